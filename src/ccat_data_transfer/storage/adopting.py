"""What an object that is there already must be before it is taken for ours: nobody else can change it any more."""

import os
import stat

from ccat_data_transfer.exceptions import DestinationFileExistsError
from ccat_data_transfer.names import shown
from ccat_data_transfer.storage import errnos, incoming
from ccat_data_transfer.storage.volume import Root

_READ_ONLY = 0o444
_WRITABLE = 0o222


def protect(root: Root, fd: int, key: str) -> None:
    """Make the object read-only, and raise `DestinationFileExistsError` when it can be changed all the same.

    To be called before its bytes are verified: what was verified first could be changed afterwards.
    """
    what = f"'{shown(key)}' at location '{root.location}'"
    _make_read_only(root, fd, what)
    with errnos.blaming(root.location, f"looking at '{shown(key)}'"):
        if os.fstat(fd).st_nlink == 1:
            return
        # Whoever published it may have died before it removed the temporary name, or may be about to: so first these.
        ours = incoming.names_of(root, os.fstat(fd))
        links = os.fstat(fd).st_nlink
    if links > 1 + ours:
        raise DestinationFileExistsError(
            f"{what} has {links - ours - 1} other names (hard links), through which it may be changed",
            remedy="replace it by a copy that has no other name, then run `ccat_data_transfer transfer retry`",
        )


def _make_read_only(root: Root, fd: int, what: str) -> None:
    mode = stat.S_IMODE(os.fstat(fd).st_mode)
    if mode == _READ_ONLY:
        return
    try:
        os.fchmod(fd, _READ_ONLY)
    except PermissionError as error:
        if mode & _WRITABLE:
            raise DestinationFileExistsError(
                f"{what} belongs to another user and is writable, so its bytes prove nothing",
                remedy="let its owner make it read-only, then run `ccat_data_transfer transfer retry`",
            ) from error
    except OSError as error:
        raise errnos.destination_error(error, root.location, "making the object read-only") from error
