"""Reading a file from the medium it is stored on, and saying how sure that is.

A re-read through the page cache is no verification: after a failed write-back the cache serves the right
bytes while the disk has lost them. So the pages are evicted first, and the kernel is asked whether they are
gone.
"""

import contextlib
import errno
import fcntl
import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass

from ccat_data_transfer.checksums import Checksum, Digests
from ccat_data_transfer.locations import Location
from ccat_data_transfer.states import Evidence
from ccat_data_transfer.storage import copying, errnos, syscalls
from ccat_data_transfer.storage.base import Progress

# A page that is just being used by somebody survives one eviction, hardly two.
_EVICTIONS = 2


@dataclass(frozen=True, slots=True)
class Found:
    """What the medium holds, and how it was read."""

    size: int
    checksums: dict[str, Checksum]
    evidence: Evidence


def forget(fd: int, offset: int = 0, length: int = 0) -> None:
    """Drop clean pages of a file from the cache and begin the write-back of dirty ones. Only a hint."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)


def can_tell(fd: int) -> bool:
    """Whether the file system can say what its cache holds; not so tmpfs, overlayfs and most network ones."""
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    # Random, because the question itself may start to read ahead.
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    try:
        os.preadv(fd, [bytearray(mmap.PAGESIZE)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    return True


def _is_evicted(fd: int, size: int) -> bool:
    try:
        return not syscalls.is_any_page_cached(fd, size)
    except OSError:
        return False


def _go_direct(fd: int) -> bool:
    """Switch the descriptor to reads past the page cache, if one works."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
    except (OSError, AttributeError):
        return False
    try:
        with mmap.mmap(-1, mmap.PAGESIZE) as page:
            os.preadv(fd, [page], 0)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        return False
    return True


def evict(fd: int, size: int, required: Evidence) -> Evidence:
    """Make sure that reads of `fd` come from the medium, and say how sure that is.

    What was written must have been synced: dirty pages stay. A file that somebody maps keeps its mapped
    pages; it is then read past the cache. That is not done where the file system cannot tell: tmpfs, which has
    nothing but the cache, takes the flag too, and would make it a lie.
    """
    if not can_tell(fd):
        forget(fd)
        return Evidence.EVICTED_UNPROVED
    if required is not Evidence.DIRECT:
        for _ in range(_EVICTIONS):
            forget(fd)
            if _is_evicted(fd, size):
                return Evidence.EVICTED_PROVED
    return Evidence.DIRECT if _go_direct(fd) else Evidence.REOPEN_ONLY


def read_back(fd: int, location: Location, algorithms: Iterable[str], on_progress: Progress) -> Found:
    """Hash what the medium holds. `fd` is a read-only descriptor; the cache is left empty of the file."""
    blaming = errnos.blaming(location, "reading back")
    with blaming:
        size = os.fstat(fd).st_size
        evidence = evict(fd, size, location.required_evidence)
    digests = Digests(algorithms)
    offset = 0

    def fill(buffer: memoryview) -> int:
        nonlocal offset
        with blaming:
            # Not asked for more at the end: past the page cache even that would have to be on a boundary.
            got = os.preadv(fd, [buffer], offset) if offset < size else 0
        offset += got
        return got

    def take(chunk: memoryview) -> None:
        digests.update(chunk)
        on_progress(len(chunk))

    total = copying.pump(fill, [take], size)
    forget(fd)
    return Found(total, digests.result(), evidence)
