"""Whether a Zstandard file is whole, as far as its frames tell (RFC 8878): this Python cannot look inside.

The headers of frames and blocks are walked to the end, so that a file that was cut short is noticed.
"""

import os

MAGIC = b"\x28\xb5\x2f\xfd"

_SKIPPABLE = range(0x184D2A50, 0x184D2A60)
_LONGEST_BLOCK = 128 << 10
_RUN, _RESERVED = 1, 3  # kinds of blocks


class BadFrameError(Exception):
    """What is wrong, and `offset`, where; `is_cut` when the file ends too early."""

    def __init__(self, what: str, offset: int, *, is_cut: bool = False) -> None:
        super().__init__(what)
        self.offset = offset
        self.is_cut = is_cut


def begins(start: bytes) -> bool:
    """Whether a file that starts so is Zstandard."""
    return start.startswith(MAGIC) or int.from_bytes(start[:4], "little") in _SKIPPABLE


def check(descriptor: int) -> None:
    """Raise `BadFrameError` unless the file is frames from its first byte to its last, one of them with data."""
    size = os.fstat(descriptor).st_size
    offset, has_data = 0, False
    while offset < size:
        head = _bytes(descriptor, offset, 4)
        if head == MAGIC:
            offset = _frame(descriptor, offset + 4, size)
            has_data = True
        elif int.from_bytes(head, "little") in _SKIPPABLE:
            offset += 8 + int.from_bytes(_bytes(descriptor, offset + 4, 4), "little")
        else:
            raise BadFrameError("no frame begins there", offset)
        if offset > size:
            raise BadFrameError("a frame is cut short", size, is_cut=True)
    if not has_data:
        raise BadFrameError("it has no frame with data", 0)


def _bytes(descriptor: int, offset: int, count: int) -> bytes:
    data = os.pread(descriptor, count, offset)
    if len(data) < count:
        raise BadFrameError("a frame is cut short", offset + len(data), is_cut=True)
    return data


def _frame(descriptor: int, offset: int, size: int) -> int:
    """The offset behind the frame whose header begins at `offset`, which may be behind the end."""
    (flags,) = _bytes(descriptor, offset, 1)
    if flags & 0x08:
        raise BadFrameError("a frame has a reserved flag", offset)
    is_single_segment = bool(flags & 0x20)
    dictionary = (0, 1, 2, 4)[flags & 3]
    content_size = (int(is_single_segment), 2, 4, 8)[flags >> 6]
    offset += 1 + (not is_single_segment) + dictionary + content_size
    is_last = False
    while not is_last:
        head = int.from_bytes(_bytes(descriptor, offset, 3), "little")
        is_last, kind, length = bool(head & 1), head >> 1 & 3, head >> 3
        if kind == _RESERVED or length > _LONGEST_BLOCK:
            raise BadFrameError("a block has an impossible header", offset)
        offset += 3 + (1 if kind == _RUN else length)
        if offset > size:
            raise BadFrameError("a block is cut short", size, is_cut=True)
    return offset + (4 if flags & 0x04 else 0)
