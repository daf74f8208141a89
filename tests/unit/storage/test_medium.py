"""Reading from the medium, and the stages that move the bytes."""

import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.skips import skip_or_fail

from ccat_data_transfer.locations import Location, LocationType, StorageType
from ccat_data_transfer.states import Evidence
from ccat_data_transfer.storage import conformance, copying, medium, syscalls
from ccat_data_transfer.storage.base import no_progress

CHUNK = copying.CHUNK_BYTES
DATA = conformance.sample(2 * CHUNK + 9)
HERE = Location(1, "here", "lta", LocationType.LONG_TERM_ARCHIVE, StorageType.DISK)


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[int]:
    """A descriptor of a file that is on the medium and in the cache, on a file system that can tell."""
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.write(DATA)
        file.flush()
        os.fsync(file.fileno())
    with path.open("rb") as file:
        if not medium.can_tell(file.fileno()):
            skip_or_fail("the file system of the tests cannot tell what its cache holds")
        yield file.fileno()


def test_eviction_is_proved(stored: int) -> None:
    assert syscalls.is_any_page_cached(stored, len(DATA))
    assert medium.evict(stored, len(DATA), Evidence.EVICTED_UNPROVED) is Evidence.EVICTED_PROVED
    assert not syscalls.is_any_page_cached(stored, len(DATA))


def test_the_cache_is_left_empty_of_what_was_verified(stored: int) -> None:
    found = medium.read_back(stored, HERE, ("sha256", "md5"), no_progress)
    assert found.evidence is Evidence.EVICTED_PROVED
    assert found.size == len(DATA)
    assert found.checksums["md5"] == conformance.checksum(DATA, "md5")
    assert not syscalls.is_any_page_cached(stored, len(DATA))


def test_one_page_that_somebody_maps_is_noticed_and_read_past_the_cache(stored: int) -> None:
    page = 300  # of 514, which a sample would hardly hit
    with mmap.mmap(stored, 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[page * mmap.PAGESIZE] == DATA[page * mmap.PAGESIZE]
        found = medium.read_back(stored, HERE, ("sha256",), no_progress)
    assert found.evidence is Evidence.DIRECT
    assert found.checksums["sha256"] == conformance.checksum(DATA)


def test_what_cannot_be_evicted_or_read_past_the_cache_is_only_reopened(
    stored: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syscalls, "is_any_page_cached", lambda *_: True)
    monkeypatch.setattr(medium, "_go_direct", lambda _fd: False)
    assert medium.evict(stored, len(DATA), Evidence.EVICTED_UNPROVED) is Evidence.REOPEN_ONLY


def test_a_question_that_fails_is_no_proof(stored: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> bool:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(syscalls, "is_any_page_cached", fail)
    assert medium.evict(stored, len(DATA), Evidence.EVICTED_UNPROVED) is Evidence.DIRECT


def test_a_file_system_that_cannot_tell_proves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(DATA)

    def unsupported(*_arguments: object) -> int:
        raise OSError(95, "Operation not supported")

    with (tmp_path / "file").open("rb") as file:
        monkeypatch.setattr(os, "preadv", unsupported)
        for required in (Evidence.EVICTED_UNPROVED, Evidence.DIRECT):
            assert medium.evict(file.fileno(), len(DATA), required) is Evidence.EVICTED_UNPROVED


def test_a_system_call_that_the_library_lacks_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "_LIBC", object())
    with pytest.raises(OSError, match="not implemented"):
        syscalls.preallocate(0, 1)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 20 * CHUNK + 3])
@pytest.mark.parametrize("step", [CHUNK, 70_001])
def test_all_bytes_pass_every_stage_in_order(size: int, step: int) -> None:
    data = conformance.sample(size)
    reader, first, second = conformance.MemoryReader(data), bytearray(), bytearray()
    total = copying.pump(lambda buffer: reader.readinto(buffer[:step]), [first.extend, second.extend], size)
    assert total == size
    assert first == data
    assert second == data


@pytest.mark.parametrize("size", [10, 20 * CHUNK])
def test_a_source_without_end_is_not_read_for_ever(size: int) -> None:
    total = copying.pump(len, [lambda _chunk: None], size)
    assert size < total <= size + mmap.PAGESIZE


@pytest.mark.parametrize("stage", ["fill", "hash", "write"])
@pytest.mark.parametrize("call", [1, 5, 20])
def test_an_error_of_any_stage_ends_all(stage: str, call: int) -> None:
    data = conformance.sample(20 * CHUNK)
    reader = conformance.MemoryReader(data)
    calls = dict.fromkeys(("fill", "hash", "write"), 0)

    def step(name: str) -> None:
        calls[name] += 1
        if name == stage and calls[name] == call:
            raise KeyboardInterrupt(name)

    def fill(buffer: memoryview) -> int:
        step("fill")
        return reader.readinto(buffer)

    with pytest.raises(KeyboardInterrupt, match=stage):
        copying.pump(fill, [lambda _chunk: step("hash"), lambda _chunk: step("write")], len(data))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("copy-")]
