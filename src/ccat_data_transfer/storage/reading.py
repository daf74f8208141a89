"""Reading a package from a directory, and noticing when it is not the package any more."""

import contextlib
import os
from collections.abc import Iterator

from ccat_data_transfer.exceptions import BadSourceError, SourceChangedError, SourceMissingError, SourceReadError
from ccat_data_transfer.names import shown
from ccat_data_transfer.storage import errnos, paths
from ccat_data_transfer.storage.base import Reader
from ccat_data_transfer.storage.volume import Root


def identity(found: os.stat_result) -> str:
    """What changes whenever the bytes of a file may have changed, or it is another file."""
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"


@contextlib.contextmanager
def source_at_fault(key: str) -> Iterator[None]:
    """A reader of another backend that lets an `OSError` out must not make the destination look unwell."""
    try:
        yield
    except OSError as error:
        raise SourceReadError(f"source of '{shown(key)}' cannot be read: {error.strerror or error}") from error


class PosixReader(Reader):
    """An open file below the root of a location."""

    def __init__(self, root: Root, key: str) -> None:
        """Takes over `root` and closes it, also when the file cannot be opened."""
        self._root = root
        self._key = key
        self._fd = -1
        try:
            self._fd = self._open()
            found = os.fstat(self._fd)
        except BaseException:
            self.close()
            raise
        self.size = found.st_size
        self.file_id = found.st_dev, found.st_ino
        self._identity = identity(found)
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    @property
    def _what(self) -> str:
        return f"source '{shown(self._key)}' at location '{self._root.location}'"

    def _open(self) -> int:
        parts = paths.source_parts(self._key)
        try:
            with paths.File(self._root.fd, parts) as file:
                return os.dup(file.fd)
        except OSError as error:
            raise errnos.source_error(error, self._root.location, self._key) from error
        except paths.ObstacleError as obstacle:
            raise BadSourceError(f"{self._what} cannot be read: {obstacle}") from obstacle

    def readinto(self, buffer: memoryview) -> int:
        """Fill `buffer` from the front; returns the bytes read, 0 only at the end."""
        try:
            return os.readv(self._fd, [buffer])
        except OSError as error:
            raise errnos.source_error(error, self._root.location, self._key) from error

    def check_unchanged(self) -> None:
        """Raise `SourceChangedError` unless the file is what it was and its name still leads to it."""
        try:
            now = os.fstat(self._fd)
        except OSError as error:
            raise errnos.source_error(error, self._root.location, self._key) from error
        try:
            other = self._open()
        except (SourceMissingError, BadSourceError) as error:
            raise SourceChangedError(f"{self._what} was moved or removed while it was read") from error
        try:
            found = os.fstat(other)
        finally:
            os.close(other)
        if (found.st_dev, found.st_ino) != self.file_id:
            raise SourceChangedError(f"{self._what} was replaced while it was read")
        if identity(now) != self._identity:
            raise SourceChangedError(f"{self._what} changed while it was read")

    def close(self) -> None:
        """Release it. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._root.close()
