"""Temporaries: what an attempt writes before it may be seen.

They lie in one hidden directory of the root and carry the attempt's token in their name, so that what a dead
attempt left behind can be told from what a living one is writing, and from everything that is not ours.
"""

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from ccat_data_transfer import names
from ccat_data_transfer.exceptions import BadNameError, StorageError
from ccat_data_transfer.storage import copying, errnos, medium, paths, syscalls
from ccat_data_transfer.storage.base import Leaving
from ccat_data_transfer.storage.volume import Root

DIRECTORY = ".incoming"
_TOKEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# The token, then what keeps two temporaries of one attempt apart.
_NAME = re.compile(rf"({_TOKEN.pattern})~[0-9a-f]{{8}}")

# Write-back is begun after so many bytes, so that the disk works while the next are read and hashed.
_WINDOW_BYTES = 16 << 20
_CANNOT_LINK = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_CANNOT_MAKE_NAMELESS = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}
_CANNOT_RESERVE = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


def check_token(token: str) -> str:
    """Return `token` if it can name an attempt; raises `BadNameError`."""
    if not _TOKEN.fullmatch(token):
        raise BadNameError(f"attempt token '{names.shown(token)}' is not of letters, digits, '.', '_' and '-'")
    return token


def _open_directory(root: Root) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    with errnos.blaming(root.location, f"opening '{DIRECTORY}'"):
        with contextlib.suppress(FileNotFoundError):
            return os.open(DIRECTORY, flags, dir_fd=root.fd)
        with contextlib.suppress(FileExistsError):
            os.mkdir(DIRECTORY, 0o700, dir_fd=root.fd)
        return os.open(DIRECTORY, flags, dir_fd=root.fd)


class Temporary:
    """A new file that only its attempt knows. Leaving the block removes it unless it was published."""

    def __init__(self, root: Root, token: str, size: int) -> None:
        """Make it, with room for `size` bytes where the file system can promise that."""
        self._location = root.location
        self._name = f"{check_token(token)}~{secrets.token_hex(4)}"
        self._is_unlinked = False
        self._written = 0
        self._fd = -1
        self._directory_fd = _open_directory(root)
        try:
            with errnos.blaming(self._location, "making a temporary file"):
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                self._fd = os.open(self._name, flags, 0o600, dir_fd=self._directory_fd)
                # What fits in one chunk is written before anybody else could take the room.
                if size > copying.CHUNK_BYTES:
                    self._reserve(size)
        except BaseException:
            self.discard()
            raise

    def _reserve(self, size: int) -> None:
        try:
            syscalls.preallocate(self._fd, size)
        except OSError as error:
            if error.errno not in _CANNOT_RESERVE:
                raise

    def write(self, chunk: memoryview) -> None:
        """Append all of `chunk`."""
        with errnos.blaming(self._location, "writing"):
            done = 0
            while done < len(chunk):
                written = os.write(self._fd, chunk[done:])
                if written == 0:
                    raise OSError(errno.EIO, "nothing was written")
                done += written
        before = self._written // _WINDOW_BYTES
        self._written += done
        if self._written // _WINDOW_BYTES > before:
            medium.forget(self._fd, before * _WINDOW_BYTES, _WINDOW_BYTES)

    def seal(self) -> None:
        """Make the bytes durable and the file read-only. Any error is final: the file is to be given up.

        A second fsync would report success though the pages that failed are gone.
        """
        with errnos.blaming(self._location, "making the bytes durable"):
            os.fchmod(self._fd, 0o444)
            os.fsync(self._fd)
            fd, self._fd = self._fd, -1
            os.close(fd)  # network file systems may report a failed write here

    def reopen(self) -> int:
        """A fresh read-only descriptor of the sealed file."""
        with errnos.blaming(self._location, "reading back"):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            return os.open(self._name, flags, dir_fd=self._directory_fd)

    def publish(self, holder_fd: int, name: str) -> bool:
        """Give the sealed file its final name; False when that is taken. Never replaces anything."""
        with errnos.blaming(self._location, "publishing"):
            try:
                self._link(holder_fd, name)
            except FileExistsError:
                return False
        # At once, so that the same sync of the journal takes both names; a sweep finds it if that fails.
        self._unlink()
        return True

    def _link(self, holder_fd: int, name: str) -> None:
        try:
            os.link(self._name, name, src_dir_fd=self._directory_fd, dst_dir_fd=holder_fd, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
            syscalls.rename_noreplace(self._directory_fd, self._name, holder_fd, name)

    def _unlink(self) -> None:
        if not self._is_unlinked:
            with contextlib.suppress(OSError):
                os.unlink(self._name, dir_fd=self._directory_fd)
            self._is_unlinked = True

    def discard(self) -> None:
        """Remove the temporary name as far as the place allows. May be called twice; raises nothing."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1
        if self._directory_fd >= 0:
            self._unlink()
            os.close(self._directory_fd)
            self._directory_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()


def sweep(root: Root, is_dead: Callable[[str], bool], *, delete: bool) -> list[Leaving]:
    """What dead attempts left in the directory of temporaries; removed only with `delete`.

    A temporary that was published before its attempt died has two names; only the one here goes.
    """
    leavings = []
    with errnos.blaming(root.location, f"reading '{DIRECTORY}'"):
        try:
            folder = paths.Folders(root.fd, [DIRECTORY], listing=True)
        except FileNotFoundError:
            return []
        except paths.ObstacleError as obstacle:
            raise StorageError(f"{obstacle} at location '{root.location}'") from obstacle
        with folder:
            for name in sorted(os.listdir(folder.holder_fd)):
                leaving = _leaving(folder.holder_fd, name)
                if leaving is not None and is_dead(leaving.token):
                    leavings.append(leaving)
                    if delete:
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(name, dir_fd=folder.holder_fd)
    return leavings


def _leaving(directory_fd: int, name: str) -> Leaving | None:
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    try:
        found = paths.lstat(directory_fd, name)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return Leaving(match[1], found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))


def names_of(root: Root, wanted: os.stat_result) -> int:
    """How many temporary names a file has; raises `OSError`."""
    try:
        folder = paths.Folders(root.fd, [DIRECTORY], listing=True)
    except (FileNotFoundError, paths.ObstacleError):
        return 0
    count = 0
    with folder:
        for name in os.listdir(folder.holder_fd):
            if _NAME.fullmatch(name):
                with contextlib.suppress(FileNotFoundError):
                    count += os.path.samestat(paths.lstat(folder.holder_fd, name), wanted)
    return count


def try_file(root: Root) -> int:
    """A new nameless file in the root, after one could be made among the temporaries too; gone when closed."""
    try:
        with paths.Folders(root.fd, [DIRECTORY], listing=True) as folder:
            os.close(_nameless_file(folder.holder_fd))
    except FileNotFoundError:
        pass  # no attempt was made here yet
    except paths.ObstacleError as obstacle:
        raise StorageError(f"{obstacle} at location '{root.location}'") from obstacle
    return _nameless_file(root.fd)


def _nameless_file(directory_fd: int) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(".", flags | os.O_TMPFILE, 0o600, dir_fd=directory_fd)
    except (OSError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno not in _CANNOT_MAKE_NAMELESS:
            raise
    name = f".check~{secrets.token_hex(4)}"
    fd = os.open(name, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=directory_fd)
    os.unlink(name, dir_fd=directory_fd)
    return fd
