"""The storage contract, and nothing else.

A backend keeps objects under keys (relative paths with `/`) below a root. An object appears whole, durable and
verified or not at all, and is never overwritten, shortened or deleted: there is no method for that.
Retry, pacing and fault injection wrap a backend; they are never inside one.

Backends translate the errors of their drivers at their own border:

- `LocationUnavailableError` when the place is unwell (missing, full, read-only, denied, wrong volume, unreachable);
- `StorageError` when it took the bytes and did not keep them, or failed in a way that may pass;
- `SourceMissingError`, `BadSourceError`, `SourceChangedError`, `DataCorruptionError` when the source is at fault;
- `DestinationFileExistsError` when other bytes already have the key;
- `BadNameError` when a key would leave the root or cannot be stored; `TooLargeError` before any byte moves.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from types import TracebackType
from typing import Self

from ccat_data_transfer.checksums import Checksum
from ccat_data_transfer.locations import Location
from ccat_data_transfer.states import Evidence, PauseReason

Progress = Callable[[int], None]
"""Called with the number of bytes handled since the last call, from any thread; what it raises aborts the work."""


def no_progress(_handled: int) -> None:
    """Report to nobody."""


class Residency(StrEnum):
    """Where the bytes of an object are."""

    ONLINE = "online"
    NEARLINE = "nearline"
    BOTH = "both"
    RECALLING = "recalling"


@dataclass(frozen=True, slots=True)
class ObjectStat:
    """What a location says of an object without reading it. `identity` changes whenever the bytes may have."""

    key: str
    size: int
    modified: datetime
    identity: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof that an object lies durable under `key`: its size in bytes and what its bytes were found to be.

    `checksums` holds SHA-256 and the algorithm that was asked for. `adopted` says that an earlier attempt had
    stored the same bytes and nothing was copied.
    """

    key: str
    size: int
    checksums: Mapping[str, Checksum]
    evidence: Evidence
    adopted: bool = False


@dataclass(frozen=True, slots=True)
class Health:
    """State of a place. `problem` is None when it can be used; `free_bytes` is None where nobody can know."""

    problem: PauseReason | None
    message: str
    free_bytes: int | None = None
    total_bytes: int | None = None
    expected_evidence: Evidence | None = None


@dataclass(frozen=True, slots=True)
class Leaving:
    """Something that an attempt left behind under its `token`."""

    token: str
    size: int
    modified: datetime


class Reader(ABC):
    """An open source. Reads are sequential; the bytes are those of the moment it was opened or an error is raised."""

    size: int

    @abstractmethod
    def readinto(self, buffer: memoryview) -> int:
        """Fill `buffer` from the front; returns the bytes read, 0 only at the end."""

    @abstractmethod
    def check_unchanged(self) -> None:
        """Raise `SourceChangedError` if the source is no longer what it was when it was opened."""

    @abstractmethod
    def close(self) -> None:
        """Release it. May be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Storage(ABC):
    """One data location. Instances are cheap, hold no connection to the database and may be used by one thread."""

    def __init__(self, location: Location) -> None:
        self.location = location

    @abstractmethod
    def enrol(self) -> str:
        """Mark the place as ours if nobody did, and return the mark (`Location.volume_id`).

        Two callers at once get the same mark. A place that carries a mark keeps it.
        """

    @abstractmethod
    def check(self, *, writable: bool = True) -> Health:
        """Say whether the place can be used now: reachable, the right volume, and with `writable` also that.

        Never raises for what is wrong with the place; leaves nothing behind.
        """

    @abstractmethod
    def open(self, key: str) -> Reader:
        """Open an object for reading; follows no link and opens nothing but a regular file."""

    @abstractmethod
    def stat(self, key: str) -> ObjectStat | None:
        """What lies under `key`, or None."""

    @abstractmethod
    def put(
        self, source: Reader, key: str, expected: Checksum, *, token: str, on_progress: Progress = no_progress
    ) -> Receipt:
        """Store `source` under `key`: copy, make durable, verify from the medium, publish create-only.

        `expected` is what the source's bytes must be; they are read once. `token` names the attempt: all that
        it leaves behind when the process dies carries it. An object that is already there is verified and adopted
        when it has the `expected` checksum, else it is a conflict. On any error nothing new lies under `key` and
        what was written is removed as far as the place allows.
        """

    @abstractmethod
    def put_documents(self, documents: Mapping[str, bytes], *, token: str) -> frozenset[str]:
        """Store small documents, all in one folder, durable and create-only; returns the keys that were taken.

        What is taken is left as it is. Raises `ValueError` for keys of several folders.
        """

    @abstractmethod
    def read_document(self, key: str, *, limit: int = 64 << 20) -> bytes | None:
        """The bytes of a small document, or None when there is none; `StorageError` past `limit` bytes."""

    @abstractmethod
    def verify(self, key: str, expected: Checksum, *, on_progress: Progress = no_progress) -> Receipt:
        """Read an object from the medium and compare; `StorageError` when it is missing or differs."""

    @abstractmethod
    def sweep(self, is_dead: Callable[[str], bool], *, delete: bool = False) -> list[Leaving]:
        """What dead attempts left behind; `is_dead` judges a token. Removes it only with `delete`.

        Never touches a published object or anything this program did not write.
        """

    @abstractmethod
    def is_permanent(self, error: BaseException) -> bool:
        """Whether a driver's error is one that a retry cannot cure."""

    def residency(self, key: str) -> Residency:
        """Where the bytes are. What is always online says so without asking."""
        if self.stat(key) is None:
            raise FileNotFoundError(key)
        return Residency.ONLINE

    def recall(self, key: str) -> Residency:
        """Ask for the bytes to come online; returns at once. Idempotent."""
        return self.residency(key)
