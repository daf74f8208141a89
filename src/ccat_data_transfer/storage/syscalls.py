"""Three system calls that Python's `os` lacks. Each raises `OSError`; ENOSYS where the C library has none."""

import ctypes
import errno
import mmap
import os

_LIBC = ctypes.CDLL(None, use_errno=True)
_RENAME_NOREPLACE = 1
_WINDOW_BYTES = 1 << 30  # of address space at a time; a multiple of every page size


def _call(name: str, *arguments: object) -> None:
    try:
        function = getattr(_LIBC, name)
    except AttributeError:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    if function(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def preallocate(fd: int, size: int) -> None:
    """Reserve `size` bytes.

    Not `posix_fallocate`: where a file system cannot reserve, the C library writes a byte into every block
    instead, which for a large package takes longer than the copy.
    """
    _call("fallocate", ctypes.c_int(fd), ctypes.c_int(0), ctypes.c_long(0), ctypes.c_long(size))


def rename_noreplace(source_fd: int, source: str, target_fd: int, target: str) -> None:
    """Rename, and fail with EEXIST rather than replace anything."""
    _call(
        "renameat2",
        ctypes.c_int(source_fd),
        ctypes.c_char_p(os.fsencode(source)),
        ctypes.c_int(target_fd),
        ctypes.c_char_p(os.fsencode(target)),
        ctypes.c_uint(_RENAME_NOREPLACE),
    )


def is_any_page_cached(fd: int, size: int) -> bool:
    """Whether the page cache holds any page of the file.

    The kernel answers True for everything when the file is neither ours nor writable by us, so a wrong answer
    can only ever be True. Asks about every page, where probing with RWF_NOWAIT could only afford a sample:
    one page that somebody maps is enough to hide a bad block.
    """
    for start in range(0, size, _WINDOW_BYTES):
        length = min(_WINDOW_BYTES, size - start)
        # Private and writable, because ctypes takes the address of writable buffers only. Nothing touches it.
        with mmap.mmap(fd, length, access=mmap.ACCESS_COPY, offset=start) as window:
            pages = ctypes.create_string_buffer(-(-length // mmap.PAGESIZE))
            first = ctypes.c_char.from_buffer(window)
            try:
                _call("mincore", ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(length), pages)
            finally:
                del first  # else the mapping could not be closed
            if pages.raw.strip(b"\0"):
                return True
    return False
