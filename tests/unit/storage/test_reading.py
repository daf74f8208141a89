"""Sources: only regular files below the root, and only what they were when they were opened."""

import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from tests.unit.storage.conftest import MakeDisk

from ccat_data_transfer.exceptions import (
    ArchiveError,
    BadNameError,
    BadSourceError,
    LocationUnavailableError,
    SourceChangedError,
    SourceMissingError,
    SourceReadError,
)
from ccat_data_transfer.storage import conformance
from ccat_data_transfer.storage.posix import PosixStorage

CHUNK = 1 << 20
ATTEMPT = "1.1"


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


def _directory(path: Path) -> None:
    path.mkdir()


def _symlink(path: Path) -> None:
    target = path.with_name("target")
    target.write_bytes(b"bytes")
    path.symlink_to(target)


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("make", [_fifo, _socket, _directory, _symlink, _dangling, _loop])
def test_only_a_regular_file_is_a_source(buffer: PosixStorage, tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "buffer" / "p.tar")
    with pytest.raises(BadSourceError, match=r"p\.tar"):
        buffer.open("p.tar")
    with pytest.raises(BadSourceError):
        buffer.stat("p.tar")


def test_a_pipe_that_takes_the_place_of_a_file_does_not_hang(
    buffer: PosixStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "buffer" / "p.tar")
    (tmp_path / "file").write_bytes(b"")
    regular = (tmp_path / "file").stat()
    monkeypatch.setattr("ccat_data_transfer.storage.paths.lstat", lambda *_: regular)
    with pytest.raises(BadSourceError, match="named pipe"):
        buffer.open("p.tar")


def test_a_link_on_the_way_to_a_source_is_refused(buffer: PosixStorage, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "p.tar").write_bytes(b"secret")
    (tmp_path / "buffer" / "folder").symlink_to(tmp_path / "outside")
    with pytest.raises(BadSourceError, match="symbolic link"):
        buffer.open("folder/p.tar")


def test_a_file_where_a_folder_should_be_is_refused(buffer: PosixStorage, tmp_path: Path) -> None:
    (tmp_path / "buffer" / "folder").write_bytes(b"")
    with pytest.raises(BadSourceError, match="a file"):
        buffer.open("folder/p.tar")


@pytest.mark.parametrize("key", ["../p.tar", "/etc/passwd", "a/../../p.tar", "", ".", "a//b", "a\0b", "\ud800"])
def test_a_hostile_row_reaches_nothing(buffer: PosixStorage, tmp_path: Path, key: str) -> None:
    (tmp_path / "p.tar").write_bytes(b"secret")
    for read in (buffer.open, buffer.stat, buffer.read_document):
        with pytest.raises(BadNameError):
            read(key)


def test_a_name_too_long_for_the_disk_is_a_bad_name(buffer: PosixStorage) -> None:
    with pytest.raises(BadNameError):
        buffer.open("x" * 300)


def test_a_missing_file_and_a_missing_disk_are_told_apart(
    buffer: PosixStorage, tmp_path: Path, make_disk: MakeDisk
) -> None:
    with pytest.raises(SourceMissingError):
        buffer.open("no/p.tar")
    with pytest.raises(LocationUnavailableError) as unmounted:
        make_disk(tmp_path / "gone-buffer", exists=False).open("p.tar")
    assert unmounted.value.condition == "missing"
    assert unmounted.value.location == "here/gone-buffer"


def test_an_empty_mount_point_does_not_look_like_a_missing_package(tmp_path: Path, make_disk: MakeDisk) -> None:
    mark = make_disk(tmp_path / "buffer").enrol()
    buffer = make_disk(tmp_path / "buffer", volume_id=mark)
    (tmp_path / "buffer").rename(tmp_path / "unmounted")
    (tmp_path / "buffer").mkdir()
    for read in (buffer.open, buffer.stat, buffer.read_document):
        with pytest.raises(LocationUnavailableError) as error:
            read("p.tar")
        assert error.value.condition == "missing"


def test_an_unreadable_file_is_a_bad_source_and_not_an_unwell_disk(
    public_path: Path, make_disk: MakeDisk, as_nobody: Callable[[], AbstractContextManager[None]]
) -> None:
    buffer = make_disk(public_path / "buffer")
    (public_path / "buffer" / "p.tar").write_bytes(b"bytes")
    (public_path / "buffer" / "p.tar").chmod(0)
    with as_nobody(), pytest.raises(BadSourceError):
        buffer.open("p.tar")


def test_a_folder_that_may_be_passed_but_not_listed_will_do(
    public_path: Path, make_disk: MakeDisk, as_nobody: Callable[[], AbstractContextManager[None]]
) -> None:
    buffer = make_disk(public_path / "buffer")
    (public_path / "buffer" / "p.tar").write_bytes(b"bytes")
    (public_path / "buffer").chmod(0o711)
    with as_nobody():
        assert conformance.read_all(buffer, "p.tar") == b"bytes"


def test_the_whole_file_system_can_be_a_source(tmp_path: Path, make_disk: MakeDisk) -> None:
    (tmp_path / "p.tar").write_bytes(b"bytes")
    everything = make_disk(Path("/"))
    assert conformance.read_all(everything, str(tmp_path / "p.tar")[1:]) == b"bytes"


def test_the_root_may_be_reached_through_a_link(tmp_path: Path, make_disk: MakeDisk) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "p.tar").write_bytes(b"bytes")
    (tmp_path / "buffer").symlink_to(tmp_path / "disk")
    assert conformance.read_all(make_disk(tmp_path / "buffer"), "p.tar") == b"bytes"


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def _truncate(path: Path) -> None:
    os.truncate(path, 10)


def _overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"x")


def _replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.rename(path)


def _touch(path: Path) -> None:
    os.utime(path)


def _remove(path: Path) -> None:
    path.unlink()


def _move_and_link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


MUTATIONS = [_append, _truncate, _overwrite, _replace, _touch, _remove, _move_and_link]


@pytest.mark.parametrize("mutate", MUTATIONS)
@pytest.mark.parametrize("size", [1000, 12 * CHUNK])
def test_a_source_that_changes_while_it_is_copied_is_noticed(
    buffer: PosixStorage,
    archive: PosixStorage,
    root: Path,
    tmp_path: Path,
    mutate: Callable[[Path], None],
    size: int,
) -> None:
    path = tmp_path / "buffer" / "p.tar"
    data = conformance.sample(size)
    path.write_bytes(data)
    os.utime(path, (1e9, 1e9))  # long ago, so that the clock's grain hides nothing
    todo = [mutate]

    def at_the_first_chunk(_handled: int) -> None:
        if todo:
            todo.pop()(path)

    with buffer.open("p.tar") as reader, pytest.raises(SourceChangedError, match=r"p\.tar"):
        archive.put(reader, "p/p.tar", conformance.checksum(data), token=ATTEMPT, on_progress=at_the_first_chunk)
    assert archive.stat("p/p.tar") is None
    assert list((root / ".incoming").iterdir()) == []


def test_a_source_is_not_changed_by_reading_it(buffer: PosixStorage, tmp_path: Path) -> None:
    (tmp_path / "buffer" / "p.tar").write_bytes(b"bytes")
    with buffer.open("p.tar") as reader:
        reader.readinto(memoryview(bytearray(100)))
        reader.check_unchanged()
        reader.close()
    reader.close()


def test_a_failing_source_is_not_blamed_on_the_destination(archive: PosixStorage) -> None:
    class Failing(conformance.MemoryReader):
        def readinto(self, _buffer: memoryview) -> int:
            raise OSError(28, "No space left on device")

    for size in (10, 3 * CHUNK):
        with pytest.raises(ArchiveError) as error:
            archive.put(Failing(b"x" * size), "p/p.tar", conformance.checksum(b""), token=ATTEMPT)
        assert type(error.value) is SourceReadError
        assert "source" in str(error.value)


@pytest.mark.parametrize(
    ("code", "kind"), [(5, SourceReadError), (107, LocationUnavailableError), (116, LocationUnavailableError)]
)
def test_an_error_while_reading_names_the_source(
    buffer: PosixStorage,
    archive: PosixStorage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    kind: type[ArchiveError],
) -> None:
    (tmp_path / "buffer" / "p.tar").write_bytes(b"bytes")

    def fail(*_arguments: object) -> int:
        raise OSError(code, os.strerror(code))

    with buffer.open("p.tar") as reader:
        monkeypatch.setattr(os, "readv", fail)
        with pytest.raises(kind, match="here/buffer") as error:
            archive.put(reader, "p/p.tar", conformance.checksum(b"bytes"), token=ATTEMPT)
    assert type(error.value) is kind
