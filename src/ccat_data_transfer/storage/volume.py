"""The root of a data location, and the mark in it by which it is known.

An unmounted disk leaves an empty directory behind that takes every byte. The mark, a small file in the root,
tells the disk from that directory and from another disk.
"""

import errno
import json
import os
import stat
import uuid
from types import TracebackType
from typing import Self

from ccat_data_transfer.exceptions import LocationUnavailableError
from ccat_data_transfer.locations import Location
from ccat_data_transfer.states import PauseReason
from ccat_data_transfer.storage import errnos

SENTINEL = ".ccat_data_transfer.json"
# Beside a package its documents, its folder and the growth of directories must find room.
RESERVE_BYTES = 4 << 20
RESERVE_INODES = 8
_MARK_LIMIT_BYTES = 4096
_COMMENT = (
    "This file marks the directory as a data location of ccat_data_transfer. "
    "It is how the program knows that the right disk is mounted here; do not copy or change it."
)


class Root:
    """The top directory of a location, open. Everything below is reached from its descriptor.

    It may itself be reached through links: where a location lies is the operator's choice.
    """

    def __init__(self, location: Location, *, search_only: bool = False) -> None:
        """With `search_only` the directory need not be readable, only passable."""
        self.location = location
        access = getattr(os, "O_PATH", os.O_RDONLY) if search_only else os.O_RDONLY
        try:
            self.fd = os.open(location.options["path"], access | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise errnos.root_error(error, location) from error

    def close(self) -> None:
        """Release it. May be called twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def mark(self) -> str | None:
        """The mark of the volume, or None when it carries none."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(SENTINEL, flags, dir_fd=self.fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise self._bad_mark() from error
            raise errnos.destination_error(error, self.location, f"opening '{SENTINEL}'") from error
        with errnos.blaming(self.location, f"reading '{SENTINEL}'"):
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise self._bad_mark()
                text = os.read(fd, _MARK_LIMIT_BYTES)
            finally:
                os.close(fd)
        return self._parsed(text)

    def _parsed(self, text: bytes) -> str:
        try:
            content = json.loads(text)
        except ValueError as error:
            raise self._bad_mark() from error
        mark = content.get("volume_id") if isinstance(content, dict) else None
        if not isinstance(mark, str) or not mark:
            raise self._bad_mark()
        return mark

    def _bad_mark(self) -> LocationUnavailableError:
        return errnos.unavailable(
            self.location,
            PauseReason.WRONG_VOLUME,
            f"has a file '{SENTINEL}' that this program did not write",
        )

    def check_mark(self) -> None:
        """Raise `LocationUnavailableError` unless this is the volume that was enrolled, if one was."""
        wanted = self.location.volume_id
        if wanted is None:
            return
        found = self.mark()
        if found is None:
            message = f"has no file '{SENTINEL}' in its directory: its disk is not mounted there"
            raise errnos.unavailable(self.location, PauseReason.MISSING, message)
        if found != wanted:
            message = f"is volume '{wanted}', but volume '{found[:64]}' is mounted there"
            raise errnos.unavailable(self.location, PauseReason.WRONG_VOLUME, message)

    def check_unmoved(self) -> None:
        """Raise `LocationUnavailableError` if the path leads elsewhere than when this was opened."""
        path = self.location.options["path"]
        try:
            now, then = os.stat(path), os.fstat(self.fd)
        except OSError as error:
            raise errnos.root_error(error, self.location) from error
        if (now.st_dev, now.st_ino) != (then.st_dev, then.st_ino):
            message = "was unmounted or replaced during the copy"
            raise errnos.unavailable(self.location, PauseReason.WRONG_VOLUME, message)
        self.check_mark()

    def room(self) -> tuple[int, int]:
        """Free bytes for this user, and bytes in all."""
        with errnos.blaming(self.location, "asking for free space"):
            space = os.fstatvfs(self.fd)
        return space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize

    def check_room(self, size: int) -> None:
        """Raise `LocationUnavailableError` unless `size` bytes find room here."""
        with errnos.blaming(self.location, "asking for free space"):
            space = os.fstatvfs(self.fd)
        free = space.f_bavail * space.f_frsize
        if free < size + RESERVE_BYTES:
            message = f"has {free} bytes free, {size + RESERVE_BYTES} are needed"
            raise errnos.unavailable(self.location, PauseReason.FULL, message)
        # Some file systems make inodes as they need them and count none.
        if space.f_files and space.f_favail < RESERVE_INODES:
            message = f"has {space.f_favail} inodes free, {RESERVE_INODES} are needed"
            raise errnos.unavailable(self.location, PauseReason.FULL, message)


def new_mark() -> bytes:
    """The content of a fresh sentinel file."""
    return json.dumps({"volume_id": str(uuid.uuid4()), "comment": _COMMENT}, indent=1).encode() + b"\n"
