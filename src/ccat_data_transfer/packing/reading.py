"""Reading tars: what a tar holds, and whether it is whole.

Headers are walked, data is passed over. Nothing is unpacked, and no name found inside is trusted. What cannot
be read as a tar from its first byte to its end-of-archive block is refused.
"""

import bz2
import contextlib
import gzip
import hashlib
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, BinaryIO, cast

from ccat_data_transfer import names
from ccat_data_transfer.exceptions import BadSourceError, InputError
from ccat_data_transfer.packing import zstandard
from ccat_data_transfer.packing.members import Members

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")

_CHUNK = 1 << 20
# No header of a real tar comes near it; a forged one must not make us allocate what it claims.
_LONGEST_HEADER = 16 << 20
# An index of PostgreSQL holds entries of up to 2704 bytes.
_LONGEST_PATH_BYTES = 2000
_LARGEST_SIZE = 1 << 62
_NOT_A_TAR = (
    tarfile.TarError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    ValueError,
    OverflowError,
    LookupError,
    RecursionError,
)
_REMEDY = "make the tar again from its source"


def is_tar(name: str) -> bool:
    """Whether a file of this name is taken for a tar."""
    return name.lower().endswith(SUFFIXES)


def inspect_tar(source: Path | int, *, path: Path | None = None) -> Members:
    """The files inside a tar, given by path or by open descriptor, without their checksums.

    `path` is how messages call what is given by descriptor.

    Raises `InputError` for what is no tar, is cut short or damaged. Data of uncompressed tars is not read;
    gzip, bzip2 and xz are read to their end, which proves their own checks; of Zstandard the frames are checked to
    be whole, and nothing is known of the files. A path that no database could hold is escaped, or cut and marked
    with its digest; of a file that is there twice the last one counts, as when unpacking.
    """
    found = Members()
    unsafe, first = 0, ""
    with _opened(source, path) as (shown, file):
        if file is None:
            found.notes.append("its content was not looked at: Zstandard is only checked to be whole")
            return found
        for _tar, member in _members(file, shown):
            if _leads_out(member.name):
                unsafe, first = unsafe + 1, first or member.name
            if member.isreg():
                found.add(_storable(member.name), member.size, member.mtime)
            elif member.islnk():
                found.add_link(_storable(member.name), _storable(member.linkname))
    if unsafe:
        count = "1 member whose path leads" if unsafe == 1 else f"{unsafe} members whose paths lead"
        found.notes.append(f"it has {count} out of the folder where it is unpacked, the first '{names.shown(first)}'")
    return found


def _leads_out(path: str) -> bool:
    """Whether unpacking it plainly would write outside the folder."""
    return path.startswith("/") or ".." in path.split("/")


def open_members(source: Path | int, wanted: Callable[[str], bool]) -> Iterator[tuple[str, BinaryIO]]:
    """The files inside a tar whose path is `wanted`, each open for reading until the next is asked for.

    Raises what `inspect_tar` raises; yields nothing for Zstandard.
    """
    with _opened(source) as (shown, file):
        if file is None:
            return
        for tar, member in _members(file, shown):
            if member.isreg() and wanted(member.name):
                content = tar.extractfile(member)
                if content is not None:
                    yield _storable(member.name), cast("BinaryIO", content)


class _Forward:
    """What `tarfile` needs of a file: bounded reads, and seeks that a compressed stream can do too."""

    def __init__(self, file: IO[bytes], *, compressed: bool) -> None:
        self._file = file
        self._compressed = compressed
        self._position = 0
        self._last = b""
        self._again = b""  # `tarfile` has read the block that ends the archive when we look at it

    def tell(self) -> int:
        return self._position

    def reached(self) -> int:
        """How far the bytes go that were read or passed over."""
        return self._position if self._compressed else min(self._position, self._file.seek(0, os.SEEK_END))

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LONGEST_HEADER:
            raise ValueError("a header claims an impossible size")
        data, self._again = self._again[:size], self._again[size:]
        if len(data) < size:
            data += self._file.read(size - len(data))
        self._position += len(data)
        self._last = data
        return data

    def seek(self, position: int, _whence: int = 0) -> int:
        if not self._compressed:
            self._file.seek(position)
            self._position = position
        elif (back := self._position - position) > 0:
            if back > len(self._last):
                raise ValueError("a header points backwards")
            self._again = self._last[-back:] + self._again
            self._position = position
        while self._position < position and self.read(min(_CHUNK, position - self._position)):
            pass
        return self._position


@contextlib.contextmanager
def _opened(source: Path | int, path: Path | None = None) -> Iterator[tuple[str, _Forward | None]]:
    """The bytes of the tar itself, decompressed; None when they cannot be had."""
    shown = f"'{names.shown(str(path or source))}'"
    try:
        if isinstance(source, int):
            descriptor = os.dup(source)
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            start = file.read(10)
            file.seek(0)
            if not start:
                raise InputError(f"{shown} is an empty file, not a tar", remedy=_REMEDY)
            if zstandard.begins(start):
                _check_zstandard(file, shown, is_named_so=Path(path or str(source)).name.lower().endswith(".tar.zst"))
                yield shown, None
            else:
                yield shown, _decompressed(file, start)
    except OSError as error:
        raise BadSourceError(f"{shown} cannot be read: {error.strerror or error}") from error


def _check_zstandard(file: BinaryIO, shown: str, *, is_named_so: bool) -> None:
    """Raise `InputError` unless the file is whole and named for what it is."""
    if not is_named_so:
        raise InputError(
            f"{shown} is not a tar but compressed with Zstandard",
            remedy="if it is a compressed tar, give it a name that ends in '.tar.zst'",
        )
    try:
        zstandard.check(file.fileno())
    except zstandard.BadFrameError as error:
        what = "truncated" if error.is_cut else "damaged"
        raise InputError(f"{shown} is {what} at byte {error.offset}: {error}", remedy=_REMEDY) from error


def _decompressed(file: BinaryIO, start: bytes) -> _Forward:
    if start.startswith(b"\x1f\x8b"):
        return _Forward(cast("IO[bytes]", gzip.GzipFile(fileobj=file)), compressed=True)
    if start.startswith(b"BZh") and start[4:] == bytes.fromhex("314159265359"):
        return _Forward(cast("IO[bytes]", bz2.BZ2File(file)), compressed=True)
    if start.startswith(b"\xfd7zXZ\0"):
        return _Forward(cast("IO[bytes]", lzma.LZMAFile(file)), compressed=True)
    return _Forward(file, compressed=False)


def _members(file: _Forward, shown: str) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Every member in turn; at the end, proof that the tar ended where it should."""
    tar = None
    try:
        tar = tarfile.TarFile(fileobj=cast("IO[bytes]", file), encoding="utf-8", errors="surrogateescape")
        empty = True
        while member := tar.next():
            empty = False
            tar.members.clear()  # type: ignore[attr-defined]  # or it would keep them all
            if tar.offset < member.offset_data or member.size > _LARGEST_SIZE:
                raise ValueError("a header claims an impossible size")
            yield tar, member
        _check_end(file, tar.offset, shown)
    except _NOT_A_TAR as error:
        raise _damage(file, shown, begun=tar is not None, error=error) from error
    except OSError as error:
        if error.errno is not None:
            raise
        # A decompressor's complaint.
        raise _damage(file, shown, begun=tar is not None, error=error) from error
    if empty:
        raise InputError(f"{shown} is a tar without members: zeros only", remedy=_REMEDY)


def _damage(file: _Forward, shown: str, *, begun: bool, error: Exception) -> InputError:
    place = file.reached()
    is_cut = isinstance(error, EOFError)
    if not begun and not is_cut:
        return InputError(f"{shown} is not a tar", remedy="if it is something else, give it another name")
    if is_cut or "unexpected end of data" in str(error) or "truncated" in str(error):
        return InputError(f"{shown} is truncated at byte {place}", remedy=_REMEDY)
    return InputError(f"{shown} is damaged near byte {place}: {names.shown(str(error))}", remedy=_REMEDY)


def _check_end(file: _Forward, offset: int, shown: str) -> None:
    """Raise `InputError` unless zeros begin at `offset` and go on to the end.

    `tarfile` takes a cut or damaged header for the end of the archive too.
    """
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise InputError(
            f"{shown} is truncated at byte {file.tell()}: the end-of-archive block is missing", remedy=_REMEDY
        )
    if any(block):
        raise InputError(f"{shown} is damaged at byte {offset}: no header there", remedy=_REMEDY)
    while rest := file.read(_CHUNK):
        if rest.strip(b"\0"):
            raise InputError(
                f"{shown} has bytes behind its end at byte {offset} that no reader would see",
                remedy=_REMEDY,
            )


def _storable(path: str) -> str:
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").replace("\0", "\\x00")
    encoded = text.encode()
    if len(encoded) <= _LONGEST_PATH_BYTES:
        return text
    # Two that differ only behind the cut must stay two.
    kept = encoded[: _LONGEST_PATH_BYTES - 80].decode("utf-8", "ignore")
    return f"{kept}…{hashlib.sha256(encoded).hexdigest()}"
