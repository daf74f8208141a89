"""Walking below a root by descriptors, so that nothing outside it can be reached.

Every component is opened on its own, relative to the one before, and never through a link. What a hostile
database row or a link planted in the tree can achieve is an error.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from ccat_data_transfer import names
from ccat_data_transfer.exceptions import BadNameError

# O_PATH needs no permission to list a folder; macOS has none.
_SEARCH = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class ObstacleError(Exception):
    """Something that is not what it would have to be lies in the way."""

    def __init__(self, path: str, mode: int) -> None:
        self.path = path
        self.kind = _KINDS.get(stat.S_IFMT(mode), "something unknown")
        super().__init__(f"'{names.shown(path)}' is {self.kind}")


def source_parts(key: str) -> list[str]:
    """The components of the key of something that may have been stored by others; raises `BadNameError`."""
    names.check_copy_path(key)
    try:
        os.fsencode(key)
    except UnicodeEncodeError:
        raise BadNameError(f"path '{names.shown(key)}' is not valid UTF-8") from None
    return key.split("/")


def stored_parts(key: str) -> list[str]:
    """The components of a key that this program may write; raises `BadNameError`.

    Stricter than for a source: nothing hidden, so that neither the mark nor the temporaries can be addressed.
    """
    parts = source_parts(key)
    names.check_member_path(key)
    if any(part[0] == "." for part in parts):
        raise BadNameError(f"path '{names.shown(key)}' has a component that begins with '.'")
    return parts


def _open_directory(parent_fd: int, parts: Sequence[str], flags: int) -> int:
    name = parts[-1]
    try:
        return os.open(name, flags, dir_fd=parent_fd)
    except OSError as error:
        if error.errno not in {errno.ENOTDIR, errno.ELOOP}:
            raise
        raise ObstacleError("/".join(parts), lstat(parent_fd, name).st_mode) from error


def lstat(parent_fd: int, name: str) -> os.stat_result:
    """What lies under `name`, without following it."""
    return os.stat(name, dir_fd=parent_fd, follow_symlinks=False)


def fsync_directory(fd: int) -> None:
    """Make the entries of a directory durable."""
    try:
        os.fsync(fd)
    except OSError as error:
        # Network file systems whose servers write directories at once know no fsync of one.
        if error.errno != errno.EINVAL:
            raise


class Folders:
    """The open directories from below a root down to the one that holds an object."""

    def __init__(self, root_fd: int, parts: Sequence[str], *, make: bool = False, listing: bool = False) -> None:
        """Walk down `parts`; raises `FileNotFoundError` and `ObstacleError`.

        With `make` those that are missing are made. With `listing` they can be listed and synced, which needs
        more permission than to pass through.
        """
        self._root_fd = root_fd
        self._fds: list[int] = []
        self.are_new = False
        flags = _LIST if listing or make else _SEARCH
        try:
            for depth in range(1, len(parts) + 1):
                self._fds.append(self._step(parts[:depth], flags, make=make))
        except BaseException:
            self.close()
            raise

    def _step(self, parts: Sequence[str], flags: int, *, make: bool) -> int:
        try:
            return _open_directory(self.holder_fd, parts, flags)
        except FileNotFoundError:
            if not make:
                raise
        self.are_new = True
        # When another worker was faster, or something else appeared: opening it tells.
        with contextlib.suppress(FileExistsError):
            os.mkdir(parts[-1], 0o755, dir_fd=self.holder_fd)
        return _open_directory(self.holder_fd, parts, flags)

    @property
    def holder_fd(self) -> int:
        """The directory that holds the object."""
        return self._fds[-1] if self._fds else self._root_fd

    def sync_parents(self) -> None:
        """Make the directories themselves durable.

        Also those that were there before: whoever made them may have died before doing this.
        """
        for fd in [self._root_fd, *self._fds][:-1]:
            fsync_directory(fd)

    def sync_holder(self) -> None:
        """Make the names in the directory that holds the object durable."""
        fsync_directory(self.holder_fd)

    def close(self) -> None:
        """Release the descriptors. May be called twice."""
        while self._fds:
            os.close(self._fds.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_regular(parent_fd: int, name: str, path: str) -> int:
    """Open a regular file for reading and nothing else; raises `ObstacleError` for all other kinds.

    Looks before it opens, because opening some devices does something; looks again at what it got.
    """
    found = lstat(parent_fd, name)
    if not stat.S_ISREG(found.st_mode):
        raise ObstacleError(path, found.st_mode)
    # O_NONBLOCK: should a pipe have taken its place meanwhile, opening it must not wait for a writer.
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent_fd)
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise ObstacleError(path, mode)
    except BaseException:
        os.close(fd)
        raise
    return fd


class File:
    """An open regular file and the open folders above it."""

    def __init__(self, root_fd: int, parts: Sequence[str], *, listing: bool = False) -> None:
        """Open it for reading, below folders opened with `listing`; raises like `Folders`."""
        self.folders = Folders(root_fd, parts[:-1], listing=listing)
        try:
            self.fd = open_regular(self.folders.holder_fd, parts[-1], "/".join(parts))
        except BaseException:
            self.folders.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.fd)
        self.folders.close()
