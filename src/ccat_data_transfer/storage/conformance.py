"""What any storage backend must do, as checks that the tests run and that an operator can run on live storage.

Each check works below a key prefix of its own and judges by the contract alone. Because the contract has no way to
delete, what a check stores stays; give a prefix that was not used before and says what it is.
"""

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ccat_data_transfer.checksums import Checksum
from ccat_data_transfer.exceptions import (
    BadNameError,
    CCATDataOperationError,
    DataCorruptionError,
    DestinationFileExistsError,
    LeaseLostError,
    SourceMissingError,
    StorageError,
)
from ccat_data_transfer.storage.base import Progress, Reader, Receipt, Storage, no_progress

CHUNK_BYTES = 1 << 20
_ATTEMPT = "conformance.1"
_OTHER_ATTEMPT = "conformance.2"

ESCAPING_KEYS = (
    "",
    "/",
    "/etc/x",
    "..",
    "../x",
    "a/../../x",
    "a//x",
    "./x",
    "a/.",
    "a/",
    "a\0x",
    "a\nx",
    "-x/y",
    "a/-x",
)


class ConformanceError(AssertionError):
    """The backend does not keep the contract."""


class MemoryReader(Reader):
    """A source that is in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0
        self.size = len(data)

    def readinto(self, buffer: memoryview) -> int:
        """Fill `buffer` from the front; returns the bytes read, 0 only at the end."""
        part = self._data[self._offset : self._offset + len(buffer)]
        buffer[: len(part)] = part
        self._offset += len(part)
        return len(part)

    def check_unchanged(self) -> None:
        """Memory does not change."""

    def close(self) -> None:
        """Nothing to release."""


@dataclass(frozen=True, slots=True)
class Check:
    """One obligation. `run` takes the storage and a prefix for its keys; raises `ConformanceError`."""

    name: str
    description: str
    run: Callable[[Storage, str], None]


def sample(size: int, seed: int = 0) -> bytes:
    """`size` bytes in which no two blocks are alike, always the same ones for a `seed`."""
    return hashlib.shake_256(f"{seed}".encode()).digest(size)


def checksum(data: bytes, algorithm: str = "sha256") -> Checksum:
    """What `data` has."""
    return Checksum(algorithm, hashlib.new(algorithm, data, usedforsecurity=False).hexdigest())


def _require(fact: object, message: str) -> None:
    if not fact:
        raise ConformanceError(message)


@contextlib.contextmanager
def _refused(kind: type[CCATDataOperationError], doing: str) -> Iterator[None]:
    try:
        yield
    except kind:
        return
    raise ConformanceError(f"{doing} was not refused with {kind.__name__}")


def _put(
    storage: Storage, key: str, data: bytes, *, token: str = _ATTEMPT, on_progress: Progress = no_progress
) -> Receipt:
    return storage.put(MemoryReader(data), key, checksum(data), token=token, on_progress=on_progress)


def read_all(storage: Storage, key: str) -> bytes:
    """The bytes of an object, read through the contract."""
    with storage.open(key) as reader:
        data = bytearray(reader.size + 1)
        view, done = memoryview(data), 0
        while done < len(data) and (got := reader.readinto(view[done:])):
            done += got
        reader.check_unchanged()
    return bytes(view[:done])


def _read_back(storage: Storage, prefix: str) -> None:
    data, key = sample(70_000), f"{prefix}/read/back.tar"
    handled: list[int] = []
    receipt = _put(storage, key, data, on_progress=handled.append)
    _require((receipt.key, receipt.size) == (key, len(data)), f"the receipt is of something else: {receipt}")
    _require(receipt.checksums["sha256"] == checksum(data), "the receipt has another checksum than the bytes")
    _require(not receipt.adopted, "a fresh object was called adopted")
    _require(sum(handled) >= len(data), "progress did not tell of all bytes")
    _require(read_all(storage, key) == data, "other bytes were read than were stored")
    found = storage.stat(key)
    _require(found is not None and found.size == len(data), "stat does not know the object")
    with _refused(SourceMissingError, "opening what is not there"):
        storage.open(f"{prefix}/read/nothing.tar").close()


def _sizes(storage: Storage, prefix: str) -> None:
    for size in (0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 7):
        data, key = sample(size), f"{prefix}/sizes/{size}.tar"
        _require(_put(storage, key, data).size == size, f"the receipt of {size} bytes has another size")
        _require(read_all(storage, key) == data, f"an object of {size} bytes came back changed")


def _algorithms(storage: Storage, prefix: str) -> None:
    data = sample(5_000)
    for algorithm in ("md5", "sha1", "sha512", "blake2b"):
        key, expected = f"{prefix}/algorithms/{algorithm}.tar", checksum(data, algorithm)
        receipt = storage.put(MemoryReader(data), key, expected, token=_ATTEMPT)
        _require(receipt.checksums.get(algorithm) == expected, f"the receipt has no {algorithm}")
        _require(receipt.checksums.get("sha256") == checksum(data), "the receipt has no sha256")
        storage.verify(key, expected)


def _create_only(storage: Storage, prefix: str) -> None:
    key = f"{prefix}/create/only.tar"
    for number, other in enumerate((sample(9_000, 2), b"", sample(8_999, 1), sample(9_001, 1))):
        if number == 0:
            _put(storage, key, sample(9_000, 1))
        with _refused(DestinationFileExistsError, "a second put with other bytes"):
            _put(storage, key, other, token=_OTHER_ATTEMPT)
        _require(read_all(storage, key) == sample(9_000, 1), "a refused put changed the object")


def _adoption(storage: Storage, prefix: str) -> None:
    data, key = sample(CHUNK_BYTES + 5), f"{prefix}/adopt/same.tar"
    _put(storage, key, data)
    before = storage.stat(key)
    receipt = _put(storage, key, data, token=_OTHER_ATTEMPT)
    _require(receipt.adopted, "equal bytes were not adopted")
    _require(receipt.checksums["sha256"] == checksum(data), "the receipt of an adoption has no checksum")
    _require(storage.stat(key) == before, "adoption changed the object")


def _wrong_checksum(storage: Storage, prefix: str) -> None:
    for size in (10, 2 * CHUNK_BYTES):
        key = f"{prefix}/wrong/{size}.tar"
        with _refused(DataCorruptionError, "a source with another checksum than expected"):
            storage.put(MemoryReader(sample(size)), key, checksum(b"other"), token=_ATTEMPT)
        _require(storage.stat(key) is None, "a corrupt source was stored")
        _put(storage, key, sample(size), token=_OTHER_ATTEMPT)


def _abort(storage: Storage, prefix: str) -> None:
    data = sample(3 * CHUNK_BYTES)
    for calls in (1, 2, 4):
        left, key = [calls], f"{prefix}/abort/{calls}.tar"

        def stop(_handled: int, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise LeaseLostError

        with contextlib.suppress(LeaseLostError):
            _put(storage, key, data, on_progress=stop)
            # A backend that reports in larger steps may be done before a later call.
            _require(calls > 1 and left[0] > 0, "what progress raised did not abort the work")
            continue
        _require(storage.stat(key) is None, "an aborted put left an object")
        _require(not storage.sweep(lambda token: token == _ATTEMPT), "an aborted put left something behind")


def _escaping_keys(storage: Storage, _prefix: str) -> None:
    for key in ESCAPING_KEYS:
        with _refused(BadNameError, f"the key {key!r}"):
            _put(storage, key, b"x")
        with _refused(BadNameError, f"a document with the key {key!r}"):
            storage.put_documents({key: b"x"}, token=_ATTEMPT)
    for key in ESCAPING_KEYS[:10]:
        with _refused(BadNameError, f"reading the key {key!r}"):
            storage.open(key).close()
        with _refused(BadNameError, f"stat of the key {key!r}"):
            storage.stat(key)


def _documents(storage: Storage, prefix: str) -> None:
    key = f"{prefix}/documents/a.json"
    _require(storage.read_document(key) is None, "a document that is not there was read")
    _require(not storage.put_documents({key: b"first"}, token=_ATTEMPT), "a fresh document was not stored")
    taken = storage.put_documents({key: b"second"}, token=_OTHER_ATTEMPT)
    _require(taken == {key}, "a document was stored twice")
    _require(storage.read_document(key) == b"first", "a document was overwritten")
    with _refused(StorageError, "reading a document past the limit"):
        storage.read_document(key, limit=4)
    _require(storage.read_document(key, limit=5) == b"first", "a document at the limit was refused")
    taken = storage.put_documents({f"{prefix}/documents/empty": b""}, token=_ATTEMPT)
    _require(not taken, "an empty document was refused")
    _require(storage.read_document(f"{prefix}/documents/empty") == b"", "an empty document came back changed")


def _verify(storage: Storage, prefix: str) -> None:
    data, key = sample(CHUNK_BYTES + 1), f"{prefix}/verify/a.tar"
    _put(storage, key, data)
    handled: list[int] = []
    receipt = storage.verify(key, checksum(data), on_progress=handled.append)
    _require(receipt.size == len(data), "verification found another size")
    _require(receipt.checksums["sha256"] == checksum(data), "verification found another checksum")
    _require(receipt.evidence.suffices(storage.location.required_evidence), "verification was too weak")
    with _refused(StorageError, "verification against another checksum"):
        storage.verify(key, checksum(b"other"))
    with _refused(StorageError, "verification of what is not there"):
        storage.verify(f"{prefix}/verify/nothing.tar", checksum(data))


def _sweep(storage: Storage, prefix: str) -> None:
    data, key = sample(3 * CHUNK_BYTES), f"{prefix}/sweep/a.tar"
    seen: list[str] = []

    def look(_handled: int) -> None:
        # From beside the attempt, as another worker would.
        seen.extend(item.token for item in _sibling(storage).sweep(lambda token: token == _ATTEMPT))

    _put(storage, key, data, on_progress=look)
    _require(set(seen) <= {_ATTEMPT}, f"an attempt's leavings carry another token: {set(seen)}")
    _require(not storage.sweep(lambda token: token == _ATTEMPT), "a finished put left something behind")
    storage.sweep(lambda token: token == _ATTEMPT, delete=True)
    _require(read_all(storage, key) == data, "a sweep touched a published object")


def _missing(storage: Storage, prefix: str) -> None:
    _require(storage.stat(f"{prefix}/no/such.tar") is None, "stat found what is not there")
    _require(storage.stat(f"{prefix}-nothing.tar") is None, "stat found what is not there")


def _race(storage: Storage, prefix: str) -> None:
    contenders, key = 6, f"{prefix}/race/a.tar"
    start = threading.Barrier(contenders)
    wins: list[bytes] = []
    faults: list[BaseException] = []

    def contend(number: int) -> None:
        data = sample(50_000, number)
        start.wait()
        try:
            if not _put(_sibling(storage), key, data, token=f"conformance.{number}").adopted:
                wins.append(data)
        except DestinationFileExistsError:
            return
        except BaseException as error:  # noqa: BLE001 - judged by the thread that waits
            faults.append(error)

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(contenders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _require(not faults, f"a contender failed otherwise than with a conflict: {faults[:1]!r}")
    _require(len(wins) == 1, f"{len(wins)} contenders believe that they stored the object")
    _require(read_all(storage, key) == wins[0], "the object is not the winner's")


def _mark(storage: Storage, _prefix: str) -> None:
    mark = storage.enrol()
    _require(mark and _sibling(storage).enrol() == mark, "a second enrolment changed the mark")
    health = storage.check()
    _require(health.problem is None, f"the place is unwell: {health.message}")
    for error in (BadNameError(), DataCorruptionError()):
        _require(storage.is_permanent(error), f"a retry is thought to cure {error!r}")


def _sibling(storage: Storage) -> Storage:
    """Another instance on the same place: one may be used by one thread only."""
    return type(storage)(storage.location)


CHECKS: tuple[Check, ...] = (
    Check("mark", "a place keeps the mark it was given and is well", _mark),
    Check("read_back", "what was put is read back equal", _read_back),
    Check("sizes", "objects of 0 and 1 bytes and around the size of a chunk are stored whole", _sizes),
    Check("algorithms", "every recorded algorithm is checked, and SHA-256 besides", _algorithms),
    Check("create_only", "other bytes under a taken key are a conflict, and the first stay", _create_only),
    Check("adoption", "equal bytes under a taken key are adopted", _adoption),
    Check("wrong_checksum", "a source that is not what was registered leaves nothing", _wrong_checksum),
    Check("abort", "what progress raises aborts and leaves nothing", _abort),
    Check("escaping_keys", "keys that leave the root are refused", _escaping_keys),
    Check("documents", "documents are create-only and bounded", _documents),
    Check("verify", "verification tells the right bytes from wrong and missing ones", _verify),
    Check("sweep", "a sweep finds leavings by token and no published object", _sweep),
    Check("missing", "stat of what is not there is None", _missing),
    Check("race", "of several puts under one key one wins", _race),
)
