"""The mark of a volume: what tells a disk from an empty mount point and from another disk."""

import json
import os
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.storage.conftest import MakeDisk

from ccat_data_transfer.exceptions import LocationUnavailableError
from ccat_data_transfer.states import Evidence, PauseReason
from ccat_data_transfer.storage import conformance, volume
from ccat_data_transfer.storage.posix import PosixStorage

KEY = "p/p.tar"
ATTEMPT = "7.1"
DATA = conformance.sample(3 << 20)


def put(archive: PosixStorage) -> None:
    archive.put(conformance.MemoryReader(DATA), KEY, conformance.checksum(DATA), token=ATTEMPT)


def test_a_place_keeps_the_mark_it_was_given(archive: PosixStorage, root: Path) -> None:
    mark = archive.enrol()
    assert uuid.UUID(mark).version == 4
    content = json.loads((root / volume.SENTINEL).read_bytes())
    assert content["volume_id"] == mark
    assert "ccat_data_transfer" in content["comment"]
    assert archive.enrol() == mark
    assert list((root / ".incoming").iterdir()) == []


def test_many_who_enrol_at_once_get_one_mark(root: Path, make_disk: MakeDisk) -> None:
    archives = [make_disk(root) for _ in range(8)]
    start, marks = threading.Barrier(len(archives)), list[str]()

    def enrol(archive: PosixStorage) -> None:
        start.wait()
        marks.append(archive.enrol())

    threads = [threading.Thread(target=enrol, args=(archive,)) for archive in archives]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(marks) == len(archives)
    assert len(set(marks)) == 1


def test_a_place_that_does_not_exist_is_not_made(tmp_path: Path, make_disk: MakeDisk) -> None:
    archive = make_disk(tmp_path / "gone", exists=False)
    with pytest.raises(LocationUnavailableError) as error:
        archive.enrol()
    assert error.value.condition == "missing"
    assert archive.check().problem is PauseReason.MISSING
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize(
    ("content", "condition"),
    [
        (None, "missing"),
        (b"", "wrong_volume"),
        (b"{", "wrong_volume"),
        (b"[]", "wrong_volume"),
        (b'{"volume_id": 1}', "wrong_volume"),
        (b'{"volume_id": "another"}', "wrong_volume"),
        (b"\xff\xfe", "wrong_volume"),
    ],
)
def test_nothing_is_stored_on_another_volume(
    root: Path, make_disk: MakeDisk, content: bytes | None, condition: str
) -> None:
    archive = make_disk(root, volume_id="mine")
    if content is not None:
        (root / volume.SENTINEL).write_bytes(content)
    for work in (
        lambda: put(archive),
        lambda: archive.put_documents({"p/p.json": b""}, token=ATTEMPT),
        lambda: archive.verify(KEY, conformance.checksum(DATA)),
        lambda: archive.sweep(lambda _token: True),
        lambda: archive.open(KEY),
    ):
        with pytest.raises(LocationUnavailableError) as error:
            work()
        assert error.value.condition == condition
    assert archive.check(writable=False).problem == condition
    assert [path.name for path in root.iterdir()] == ([] if content is None else [volume.SENTINEL])


@pytest.mark.parametrize("kind", ["link", "directory", "pipe"])
def test_a_mark_that_is_no_file_is_no_mark(root: Path, make_disk: MakeDisk, kind: str) -> None:
    archive = make_disk(root, volume_id="mine")
    sentinel = root / volume.SENTINEL
    if kind == "link":
        (root / "real").write_bytes(b'{"volume_id": "mine"}')
        sentinel.symlink_to("real")
    elif kind == "directory":
        sentinel.mkdir()
    else:
        os.mkfifo(sentinel)
    with pytest.raises(LocationUnavailableError) as error:
        put(archive)
    assert error.value.condition == "wrong_volume"


def _swap(root: Path) -> None:
    root.rename(root.with_name("old"))
    root.mkdir()


def _unmark(root: Path) -> None:
    (root / volume.SENTINEL).unlink()


@pytest.mark.parametrize("change", [_swap, _unmark])
def test_a_volume_that_is_exchanged_during_the_copy_gets_nothing(
    root: Path, make_disk: MakeDisk, change: Callable[[Path], None]
) -> None:
    archive = make_disk(root, volume_id=make_disk(root).enrol())
    todo = [change]

    def at_the_first_chunk(_handled: int) -> None:
        if todo:
            todo.pop()(root)

    with pytest.raises(LocationUnavailableError) as error:
        archive.put(
            conformance.MemoryReader(DATA),
            KEY,
            conformance.checksum(DATA),
            token=ATTEMPT,
            on_progress=at_the_first_chunk,
        )
    assert error.value.condition in {"wrong_volume", "missing"}
    assert not (root / KEY).exists()


def test_a_well_place_tells_its_room_and_leaves_nothing(archive: PosixStorage, root: Path) -> None:
    health = archive.check()
    assert health.problem is None
    assert health.free_bytes is not None
    assert health.total_bytes is not None
    assert 0 < health.free_bytes <= health.total_bytes
    assert health.expected_evidence is not None
    assert health.expected_evidence.suffices(Evidence.EVICTED_UNPROVED)
    assert list(root.iterdir()) == []


def test_writability_is_tried_with_a_name_where_files_need_one(
    archive: PosixStorage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)  # what a file system without it makes of the flag
    assert archive.check().problem is None
    assert list(root.iterdir()) == []
