"""What the kernel's errors mean for a data location: one table, and the two sides that can be at fault.

An error while the source is read is never blamed on the destination, nor the other way round: pausing the
wrong location stops the wrong work.
"""

import errno
import os
from types import TracebackType

from ccat_data_transfer.exceptions import (
    BadNameError,
    BadSourceError,
    CCATDataOperationError,
    LocationUnavailableError,
    SourceMissingError,
    SourceReadError,
    StorageError,
)
from ccat_data_transfer.locations import Location
from ccat_data_transfer.names import shown
from ccat_data_transfer.states import PauseReason

CONDITIONS: dict[int, PauseReason] = {
    errno.ENOSPC: PauseReason.FULL,
    errno.EDQUOT: PauseReason.FULL,
    errno.EFBIG: PauseReason.FULL,  # a limit of the process or of a quota
    errno.EROFS: PauseReason.READ_ONLY,
    errno.EACCES: PauseReason.DENIED,
    errno.EPERM: PauseReason.DENIED,
    errno.ENOTCONN: PauseReason.UNREACHABLE,
    errno.ESTALE: PauseReason.UNREACHABLE,
    errno.ENODEV: PauseReason.UNREACHABLE,
    errno.ENXIO: PauseReason.UNREACHABLE,
    errno.ETIMEDOUT: PauseReason.UNREACHABLE,
    errno.EHOSTDOWN: PauseReason.UNREACHABLE,
}


def _text(error: OSError) -> str:
    # Not str(error): it repeats the path of the call, which means nothing beside a descriptor.
    return os.strerror(error.errno) if error.errno else type(error).__name__


def unavailable(location: Location, condition: PauseReason, message: str) -> LocationUnavailableError:
    """The error that pauses `location`."""
    return LocationUnavailableError(
        f"data location '{location}' {message}", condition=condition.value, location=str(location)
    )


def root_error(error: OSError, location: Location) -> CCATDataOperationError:
    """What an error while opening the root of `location` means."""
    path = shown(location.options.get("path", ""))
    if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
        return unavailable(location, PauseReason.MISSING, f"has no directory '{path}': {_text(error)}")
    return destination_error(error, location, f"opening '{path}'")


def destination_error(error: OSError, location: Location, doing: str) -> CCATDataOperationError:
    """What an error while `doing` something at `location` means, when `location` is the side at work."""
    if error.errno == errno.ENAMETOOLONG:
        return BadNameError(f"{doing} failed at location '{location}': its file system takes no name so long")
    condition = CONDITIONS.get(error.errno or 0)
    if condition is not None:
        return unavailable(location, condition, f"is unwell: {doing} failed: {_text(error)}")
    return StorageError(f"{doing} failed at location '{location}': {_text(error)}")


def source_error(error: OSError, location: Location, key: str) -> CCATDataOperationError:
    """What an error while reading `key` at `location` means, when its root was well a moment ago."""
    what = f"source '{shown(key)}' at location '{location}'"
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return SourceMissingError(f"{what} is not there")
    if error.errno == errno.ENAMETOOLONG:
        return BadNameError(f"{what} has a name that is too long for its file system")
    condition = CONDITIONS.get(error.errno or 0)
    if condition is PauseReason.DENIED or error.errno == errno.ELOOP:
        return BadSourceError(f"{what} cannot be opened: {_text(error)}")
    if condition is PauseReason.UNREACHABLE:
        return unavailable(location, condition, f"is unwell: reading '{shown(key)}' failed: {_text(error)}")
    return SourceReadError(f"{what} cannot be read: {_text(error)}")


class blaming:  # noqa: N801 - reads as `with blaming(location, "..."):`
    """Translates an `OSError` of the block into what it means for a destination."""

    __slots__ = ("doing", "location")

    def __init__(self, location: Location, doing: str) -> None:
        self.location = location
        self.doing = doing

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            raise destination_error(error, self.location, self.doing) from error
