"""The files of a package in few bytes each: a package may have more of them than objects find room in memory."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, overload

from ccat_data_transfer.checksums import DEFAULT_ALGORITHM, Checksum
from ccat_data_transfer.sidecar import FileEntry

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNKNOWN = float("nan")
_DIGEST_BYTES = 32
_FIRST_SLOTS = 64  # a power of two


def moment(seconds: float) -> datetime | None:
    """A time of change as a file system or a tar gives it; None when no calendar has it."""
    try:
        return _EPOCH + timedelta(seconds=seconds)
    except (OverflowError, ValueError):
        return None


def _encoded(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


class Members(Sequence[FileEntry]):
    """The files of a package, each path once, in the order in which they were added first.

    `notes` are sentences on what a reader of the package should know.
    """

    def __init__(self, entries: Iterable[tuple[str, int, float]] = ()) -> None:
        self.notes: list[str] = []
        self._paths = bytearray()
        self._ends = array("Q")
        self._sizes = array("q")
        self._times = array("d")
        self._digests = bytearray()
        # Where a path is, plus one, at its hash or behind it: a dict would need more bytes than all the rest.
        self._table = array("I", bytes(4 * _FIRST_SLOTS))
        for path, size, time in entries:
            self.add(path, size, time)

    def add(self, path: str, size: int, time: float, digest: Checksum | None = None) -> None:
        """Add a file, or replace what was said of its path; all files have a `digest` in sha256, or none has."""
        slot, place = self._find(path)
        time = _UNKNOWN if moment(time) is None else time
        if place is not None:
            self._sizes[place], self._times[place] = size, time
            return
        self._paths += _encoded(path)
        self._ends.append(len(self._paths))
        self._sizes.append(size)
        self._times.append(time)
        if digest is not None:
            self._digests += bytes.fromhex(digest.digest)
        self._table[slot] = len(self)
        if 2 * len(self) > len(self._table):
            self._widen()

    def add_link(self, path: str, target: str) -> None:
        """Add another name of a file that was added; of one that was not nothing is known."""
        _, place = self._find(target)
        if place is not None:
            self.add(path, self._sizes[place], self._times[place])

    def _find(self, path: str) -> tuple[int, int | None]:
        """The slot of the path, and where it is if it was added."""
        encoded, mask = _encoded(path), len(self._table) - 1
        slot = hash(path) & mask
        while entry := self._table[slot]:
            if self._bytes(entry - 1) == encoded:
                return slot, entry - 1
            slot = (slot + 1) & mask
        return slot, None

    def _widen(self) -> None:
        self._table = array("I", bytes(8 * len(self._table)))
        for place in range(len(self)):
            slot, _ = self._find(self._path(place))
            self._table[slot] = place + 1

    def _bytes(self, place: int) -> bytearray:
        start = self._ends[place - 1] if place else 0
        return self._paths[start : self._ends[place]]

    def _path(self, place: int) -> str:
        return self._bytes(place).decode("utf-8", "surrogateescape")

    def _entry(self, place: int) -> FileEntry:
        digest = self._digests[place * _DIGEST_BYTES : (place + 1) * _DIGEST_BYTES]
        checksum = f"{DEFAULT_ALGORITHM}:{digest.hex()}" if digest else None
        return FileEntry(self._path(place), self._sizes[place], checksum, moment(self._times[place]))

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[FileEntry]:
        return map(self._entry, range(len(self)))

    @overload
    def __getitem__(self, index: int) -> FileEntry: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[FileEntry, ...]: ...
    def __getitem__(self, index: int | slice) -> FileEntry | tuple[FileEntry, ...]:
        places = range(len(self))[index]
        return self._entry(places) if isinstance(places, int) else tuple(map(self._entry, places))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Members):
            return NotImplemented
        return all(bytes(mine) == bytes(theirs) for mine, theirs in zip(self._columns(), other._columns(), strict=True))

    __hash__ = None  # type: ignore[assignment]  # it can be added to

    def _columns(self) -> "tuple[Buffer, ...]":
        return self._paths, self._ends, self._sizes, self._times, self._digests

    def paths(self) -> Iterator[str]:
        """The paths alone."""
        return map(self._path, range(len(self)))
