"""Storing on a directory: whole and verified or not at all, and never over anything."""

import contextlib
import errno
import os
import resource
import stat
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from tests.skips import skip_or_fail
from tests.unit.storage.conftest import MakeDisk

from ccat_data_transfer.exceptions import (
    ArchiveError,
    BadNameError,
    BadSourceError,
    ConfigurationError,
    DestinationFileExistsError,
    LocationUnavailableError,
    StorageError,
)
from ccat_data_transfer.locations import Location, LocationType, StorageType
from ccat_data_transfer.states import Evidence, PauseReason
from ccat_data_transfer.storage import conformance, copying, incoming, medium, volume
from ccat_data_transfer.storage.base import Receipt
from ccat_data_transfer.storage.conformance import MemoryReader
from ccat_data_transfer.storage.posix import PosixStorage

CHUNK = copying.CHUNK_BYTES
KEY = "p/p.tar"
ATTEMPT = "7.1"
DATA = conformance.sample(3 * CHUNK + 17)
SMALL = conformance.sample(5000)

AsNobody = Callable[[], AbstractContextManager[None]]


def put(archive: PosixStorage, data: bytes = DATA, key: str = KEY) -> Receipt:
    return archive.put(MemoryReader(data), key, conformance.checksum(data), token=ATTEMPT)


def temporaries(root: Path) -> list[Path]:
    folder = root / ".incoming"
    return list(folder.iterdir()) if folder.exists() else []


def assert_nothing_is_there(archive: PosixStorage, root: Path) -> None:
    assert archive.stat(KEY) is None
    assert temporaries(root) == []
    assert threading.active_count() == 1 or not [t for t in threading.enumerate() if t.name.startswith("copy-")]


# What lies there afterwards


def test_an_object_is_a_read_only_file_in_a_folder_of_its_own(archive: PosixStorage, root: Path) -> None:
    receipt = put(archive)
    found = (root / KEY).stat()
    assert stat.S_IMODE(found.st_mode) == 0o444
    assert found.st_nlink == 1
    assert (root / KEY).read_bytes() == DATA
    assert receipt.evidence.suffices(Evidence.EVICTED_UNPROVED)
    assert temporaries(root) == []
    assert stat.S_IMODE((root / ".incoming").stat().st_mode) == 0o700


def test_documents_are_read_only_too(archive: PosixStorage, root: Path) -> None:
    archive.put_documents({"p/p.tar.json": b"{}"}, token=ATTEMPT)
    assert stat.S_IMODE((root / "p/p.tar.json").stat().st_mode) == 0o444
    assert temporaries(root) == []


def test_progress_tells_of_every_byte_when_it_is_written_and_when_it_is_read_back(archive: PosixStorage) -> None:
    handled: list[int] = []
    archive.put(MemoryReader(DATA), KEY, conformance.checksum(DATA), token=ATTEMPT, on_progress=handled.append)
    assert sum(handled) == 2 * len(DATA)


def test_sparse_sources_are_stored_in_full(buffer: PosixStorage, archive: PosixStorage, tmp_path: Path) -> None:
    with (tmp_path / "buffer" / "p.tar").open("wb") as file:
        file.truncate(5 * CHUNK)
    with buffer.open("p.tar") as reader:
        archive.put(reader, KEY, conformance.checksum(bytes(5 * CHUNK)), token=ATTEMPT)
    assert (tmp_path / "lta" / KEY).stat().st_blocks * 512 >= 5 * CHUNK


# Names


@pytest.mark.parametrize("key", [".incoming/x", ".ccat_data_transfer.json", "p/.hidden", "p/../../x", "/x", "\ud800"])
def test_keys_that_are_not_ours_to_write_are_refused(archive: PosixStorage, root: Path, key: str) -> None:
    with pytest.raises(BadNameError):
        put(archive, key=key)
    with pytest.raises(BadNameError):
        archive.put_documents({key: b""}, token=ATTEMPT)
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("token", ["", "../x", "a/b", ".", "-x", "a\n", "x" * 200, "a~b"])
def test_tokens_that_could_not_be_found_again_are_refused(archive: PosixStorage, root: Path, token: str) -> None:
    with pytest.raises(BadNameError):
        archive.put(MemoryReader(b""), KEY, conformance.checksum(b""), token=token)
    assert list(root.iterdir()) == []


def test_a_name_too_long_for_the_disk_is_a_bad_name(archive: PosixStorage, root: Path) -> None:
    with pytest.raises(BadNameError):
        put(archive, key=f"p/{'x' * 300}.tar")
    assert_nothing_is_there(archive, root)


def test_a_link_planted_in_the_destination_leads_nowhere(archive: PosixStorage, root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (root / "p").symlink_to(tmp_path / "outside")
    with pytest.raises(DestinationFileExistsError, match="symbolic link"):
        put(archive)
    with pytest.raises(DestinationFileExistsError, match="symbolic link"):
        archive.put_documents({"p/p.tar.json": b""}, token=ATTEMPT)
    with pytest.raises(StorageError, match="symbolic link"):
        archive.verify(KEY, conformance.checksum(DATA))
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_link_planted_while_the_bytes_are_copied_leads_nowhere(
    archive: PosixStorage, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()

    def plant(_handled: int) -> None:
        with contextlib.suppress(FileExistsError):
            (root / "p").symlink_to(tmp_path / "outside")

    with pytest.raises(DestinationFileExistsError):
        archive.put(MemoryReader(DATA), KEY, conformance.checksum(DATA), token=ATTEMPT, on_progress=plant)
    assert list((tmp_path / "outside").iterdir()) == []
    assert temporaries(root) == []


def test_a_link_in_place_of_the_temporaries_is_refused(archive: PosixStorage, root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (root / ".incoming").symlink_to(tmp_path / "outside")
    with pytest.raises(StorageError):
        put(archive)
    with pytest.raises(StorageError):
        archive.sweep(lambda _token: True, delete=True)
    assert archive.check().problem is not None
    assert list((tmp_path / "outside").iterdir()) == []


# Something is there already


def _plant_same(path: Path) -> None:
    path.write_bytes(DATA)


def _plant_other(path: Path) -> None:
    path.write_bytes(DATA[:-1] + b"x")


def _plant_empty(path: Path) -> None:
    path.write_bytes(b"")


def _plant_directory(path: Path) -> None:
    path.mkdir()


def _plant_link(path: Path) -> None:
    target = path.with_name("target")
    target.write_bytes(DATA)
    path.symlink_to(target)


def _plant_fifo(path: Path) -> None:
    os.mkfifo(path)


CONFLICTS = [_plant_other, _plant_empty, _plant_directory, _plant_link, _plant_fifo]


def _before(root: Path, _patch: pytest.MonkeyPatch, plant: Callable[[Path], None]) -> None:
    (root / "p").mkdir()
    plant(root / KEY)


def _just_before_publishing(root: Path, patch: pytest.MonkeyPatch, plant: Callable[[Path], None]) -> None:
    original = volume.Root.check_unmoved

    def check_and_plant(self: volume.Root) -> None:
        original(self)
        plant(root / KEY)

    patch.setattr(volume.Root, "check_unmoved", check_and_plant)


@pytest.mark.parametrize("when", [_before, _just_before_publishing])
@pytest.mark.parametrize("plant", CONFLICTS)
def test_whatever_has_the_name_is_never_replaced(
    archive: PosixStorage,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: Callable[[Path, pytest.MonkeyPatch, Callable[[Path], None]], None],
    plant: Callable[[Path], None],
) -> None:
    when(root, monkeypatch, plant)
    with pytest.raises(DestinationFileExistsError) as error:
        put(archive)
    assert str(conformance.checksum(DATA)) in str(error.value)
    assert temporaries(root) == []
    kind = stat.S_IFMT((root / KEY).lstat().st_mode)
    kinds: dict[Callable[[Path], None], int] = {
        _plant_directory: stat.S_IFDIR,
        _plant_link: stat.S_IFLNK,
        _plant_fifo: stat.S_IFIFO,
    }
    assert kind == kinds.get(plant, stat.S_IFREG)


@pytest.mark.parametrize("when", [_before, _just_before_publishing])
def test_equal_bytes_are_adopted(
    archive: PosixStorage,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: Callable[[Path, pytest.MonkeyPatch, Callable[[Path], None]], None],
) -> None:
    when(root, monkeypatch, _plant_same)
    receipt = put(archive)
    assert receipt.adopted
    assert receipt.checksums["sha256"] == conformance.checksum(DATA)
    assert temporaries(root) == []


def test_a_file_where_the_folder_should_be_is_a_conflict(archive: PosixStorage, root: Path) -> None:
    (root / "p").write_bytes(b"mine")
    with pytest.raises(DestinationFileExistsError, match="'p' is a file"):
        put(archive)
    assert (root / "p").read_bytes() == b"mine"


def test_a_conflict_names_both_checksums(archive: PosixStorage) -> None:
    put(archive, SMALL)
    other = conformance.sample(5000, 1)
    with pytest.raises(DestinationFileExistsError) as error:
        put(archive, other)
    assert str(conformance.checksum(SMALL)) in str(error.value)
    assert str(conformance.checksum(other)) in str(error.value)


@pytest.mark.parametrize("link", [True, False])
def test_a_file_is_not_its_own_second_copy(tmp_path: Path, make_disk: MakeDisk, root: Path, link: bool) -> None:
    archive = make_disk(root)
    (root / "p").mkdir()
    (root / KEY).write_bytes(DATA)
    if link:
        (tmp_path / "buffer" / "p").mkdir(parents=True)
        os.link(root / KEY, tmp_path / "buffer" / KEY)
    source = make_disk(tmp_path / "buffer") if link else archive
    with source.open(KEY) as reader, pytest.raises(BadSourceError, match="not two copies"):
        archive.put(reader, KEY, conformance.checksum(DATA), token=ATTEMPT)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_publishing_works_without_hard_links(
    archive: PosixStorage, root: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def no_links(*_arguments: object, **_options: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", no_links)
    put(archive)
    assert (root / KEY).read_bytes() == DATA
    with pytest.raises(DestinationFileExistsError):
        put(archive, SMALL)
    assert archive.put_documents({KEY: b""}, token=ATTEMPT)

    def plant(_path: Path) -> None:
        (root / "q/q.tar").write_bytes(b"first")

    _just_before_publishing(root, monkeypatch, plant)
    with pytest.raises(DestinationFileExistsError):
        put(archive, key="q/q.tar")
    assert (root / "q/q.tar").read_bytes() == b"first"
    assert temporaries(root) == []


# The disk lies or fails


def test_a_bit_that_flips_between_copy_and_verification_is_noticed(
    archive: PosixStorage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = incoming.Temporary.seal

    def seal_and_flip(self: incoming.Temporary) -> None:
        original(self)
        (path,) = temporaries(root)
        with path.open("r+b") as file:
            file.seek(2 * CHUNK)
            byte = file.read(1)[0]
            file.seek(2 * CHUNK)
            file.write(bytes([byte ^ 1]))
            file.flush()
            os.fsync(file.fileno())

    monkeypatch.setattr(incoming.Temporary, "seal", seal_and_flip)
    with pytest.raises(StorageError, match="did not keep"):
        put(archive)
    assert_nothing_is_there(archive, root)


def test_a_tail_that_gets_lost_is_noticed(archive: PosixStorage, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = incoming.Temporary.seal

    def seal_and_cut(self: incoming.Temporary) -> None:
        original(self)
        os.truncate(temporaries(root)[0], len(SMALL) - 1)

    monkeypatch.setattr(incoming.Temporary, "seal", seal_and_cut)
    with pytest.raises(StorageError, match="read back 4999 bytes"):
        put(archive, SMALL)
    assert_nothing_is_there(archive, root)


def test_a_failed_fsync_is_final(archive: PosixStorage, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, synced = os.fsync, list[int]()

    def fail_once(fd: int) -> None:
        inode = os.fstat(fd).st_ino
        synced.append(inode)
        if len(synced) == 1:
            raise OSError(errno.EIO, "Input/output error")
        original(fd)

    monkeypatch.setattr(os, "fsync", fail_once)
    with pytest.raises(StorageError, match="durable"):
        put(archive)
    assert len(synced) == 1
    assert_nothing_is_there(archive, root)
    assert not put(archive).adopted
    assert len(synced) > 1


def test_an_error_of_close_counts(archive: PosixStorage, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.close
    armed = [True]

    def fail_once(fd: int) -> None:
        is_temporary = armed and stat.S_ISREG(os.fstat(fd).st_mode)
        original(fd)
        if is_temporary:
            armed.clear()
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "close", fail_once)
    with pytest.raises(StorageError, match="durable"):
        put(archive)
    assert_nothing_is_there(archive, root)


def test_short_and_interrupted_writes_are_completed(
    archive: PosixStorage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: original(fd, data[:100_003]))
    put(archive)
    assert (root / KEY).read_bytes() == DATA


def test_a_write_that_takes_nothing_does_not_loop(
    archive: PosixStorage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "write", lambda _fd, _data: 0)
    with pytest.raises(StorageError, match="writing"):
        put(archive)
    assert_nothing_is_there(archive, root)


@pytest.mark.parametrize(
    ("code", "condition"),
    [
        (errno.ENOSPC, "full"),
        (errno.EDQUOT, "full"),
        (errno.EFBIG, "full"),
        (errno.EROFS, "read_only"),
        (errno.EACCES, "denied"),
        (errno.ENOTCONN, "unreachable"),
        (errno.ESTALE, "unreachable"),
        (errno.EIO, None),
    ],
)
@pytest.mark.parametrize("call", ["write", "fsync", "preadv", "link", "mkdir", "fchmod"])
def test_errors_of_the_destination_are_told_apart(
    archive: PosixStorage,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    code: int,
    condition: str | None,
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(ArchiveError, match="here/lta") as error:
        put(archive)
    monkeypatch.undo()
    if condition is None:
        assert type(error.value) is StorageError
    else:
        assert isinstance(error.value, LocationUnavailableError)
        assert (error.value.condition, error.value.location) == (condition, "here/lta")
    assert_nothing_is_there(archive, root)


def test_an_os_error_of_the_caller_is_not_the_disks(archive: PosixStorage, root: Path) -> None:
    def lose_the_database(_handled: int) -> None:
        raise ConnectionResetError(errno.ESTALE, "the database went away")

    for data in (SMALL, DATA):
        with pytest.raises(ConnectionResetError):
            archive.put(
                MemoryReader(data),
                KEY,
                conformance.checksum(data),
                token=ATTEMPT,
                on_progress=lose_the_database,
            )
        assert_nothing_is_there(archive, root)


def test_an_interrupt_cleans_up(archive: PosixStorage, root: Path) -> None:
    def interrupt(_handled: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        archive.put(MemoryReader(DATA), KEY, conformance.checksum(DATA), token=ATTEMPT, on_progress=interrupt)
    assert_nothing_is_there(archive, root)


def test_no_descriptor_is_left_open_by_success_or_failure(archive: PosixStorage, buffer: PosixStorage) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    def everything(number: int) -> None:
        put(archive, key=f"{number}/p.tar")
        put(archive, key=f"{number}/p.tar")
        archive.verify(f"{number}/p.tar", conformance.checksum(DATA))
        archive.put_documents({f"{number}/p.tar.json": b"{}"}, token=ATTEMPT)
        archive.read_document(f"{number}/p.tar.json")
        archive.check()
        archive.enrol()
        archive.sweep(lambda _token: True)
        failures: tuple[Callable[[], object], ...] = (
            lambda: put(archive, SMALL, key=f"{number}/p.tar"),
            lambda: archive.put(MemoryReader(DATA), "x/x.tar", conformance.checksum(b""), token=ATTEMPT),
            lambda: buffer.open("no/p.tar"),
            lambda: archive.verify("no/p.tar", conformance.checksum(b"")),
        )
        for failing in failures:
            with contextlib.suppress(Exception):
                failing()

    everything(0)
    before = count()
    everything(1)
    assert count() == before


# Room and permission


class _Meanwhile(MemoryReader):
    """Does something else before the first byte is read."""

    def __init__(self, data: bytes, work: Callable[[], None]) -> None:
        super().__init__(data)
        self._work = work

    def readinto(self, buffer: memoryview) -> int:
        self._work()
        return super().readinto(buffer)


def test_a_package_that_does_not_fit_moves_no_byte(small_disk: Path, make_disk: MakeDisk) -> None:
    archive = make_disk(small_disk)

    class Untouched(MemoryReader):
        def readinto(self, _buffer: memoryview) -> int:
            raise AssertionError("read")

    with pytest.raises(LocationUnavailableError) as error:
        archive.put(Untouched(bytes(9 << 20)), KEY, conformance.checksum(b""), token=ATTEMPT)
    assert error.value.condition == "full"
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up_during_the_copy_is_full_and_tidy(small_disk: Path, make_disk: MakeDisk) -> None:
    archive = make_disk(small_disk)

    def fill() -> None:
        with contextlib.suppress(OSError), (small_disk / "other").open("ab", buffering=0) as file:
            while True:
                file.write(bytes(CHUNK))

    # Past the question for room: small enough that none is reserved, and then there is none.
    with pytest.raises(LocationUnavailableError) as error:
        archive.put(_Meanwhile(conformance.sample(CHUNK), fill), KEY, conformance.checksum(b""), token=ATTEMPT)
    assert error.value.condition == "full"
    assert archive.check().problem is PauseReason.FULL
    assert temporaries(small_disk) == []


def test_a_disk_without_inodes_is_full(small_disk: Path, make_disk: MakeDisk) -> None:
    archive = make_disk(small_disk)
    with contextlib.suppress(OSError):
        for number in range(100):
            (small_disk / f"f{number}").touch()
    with pytest.raises(LocationUnavailableError) as error:
        put(archive, SMALL)
    assert error.value.condition == "full"
    assert archive.check().problem is PauseReason.FULL


def test_a_file_size_limit_is_a_full_disk(archive: PosixStorage, root: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (CHUNK // 2, hard))
    try:
        for data in (conformance.sample(CHUNK), DATA):
            with pytest.raises(LocationUnavailableError) as error:
                put(archive, data)
            assert error.value.condition == "full"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_nothing_is_there(archive, root)


def test_a_directory_that_may_not_be_written_is_denied(
    public_path: Path, make_disk: MakeDisk, as_nobody: AsNobody
) -> None:
    archive = make_disk(public_path / "lta")
    (public_path / "lta").chmod(0o555)
    with as_nobody():
        for work in (
            lambda: put(archive, SMALL),
            lambda: archive.put_documents({"p/p.json": b""}, token=ATTEMPT),
            archive.enrol,
        ):
            with pytest.raises(LocationUnavailableError) as error:
                work()
            assert error.value.condition == "denied"
        assert archive.check().problem is PauseReason.DENIED
        assert archive.check(writable=False).problem is None
    assert list((public_path / "lta").iterdir()) == []


def test_a_mark_that_is_there_can_be_read_where_nothing_can_be_written(
    public_path: Path, make_disk: MakeDisk, as_nobody: AsNobody
) -> None:
    mark = make_disk(public_path / "buffer").enrol()
    (public_path / "buffer").chmod(0o555)
    with as_nobody():
        assert make_disk(public_path / "buffer").enrol() == mark


# Evidence


def test_evidence_below_the_policy_publishes_nothing(
    archive: PosixStorage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(medium, "evict", lambda *_: Evidence.REOPEN_ONLY)
    with pytest.raises(LocationUnavailableError, match="reopen-only") as error:
        put(archive)
    assert error.value.condition == "evidence"
    assert_nothing_is_there(archive, root)
    assert archive.check().problem is PauseReason.EVIDENCE


def test_evidence_below_the_policy_adopts_nothing(archive: PosixStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    put(archive, SMALL)
    monkeypatch.setattr(medium, "evict", lambda *_: Evidence.REOPEN_ONLY)
    with pytest.raises(LocationUnavailableError):
        put(archive, SMALL)


def test_the_receipt_says_what_was_reached(make_disk: MakeDisk, root: Path) -> None:
    archive = make_disk(root, evidence=Evidence.DIRECT)
    expected = archive.check().expected_evidence
    if expected is not Evidence.DIRECT:
        skip_or_fail(f"the file system of the tests can be verified to '{expected}' only")
    for size in (0, 1, 4096, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5):
        assert put(archive, conformance.sample(size), key=f"p/{size}.tar").evidence is Evidence.DIRECT


# What is adopted is ours from then on


def place(root: Path, data: bytes = DATA) -> Path:
    """A file that somebody else put where the object goes."""
    path = root / KEY
    path.parent.mkdir()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("mode", [0o666, 0o600, 0o755])
def test_an_adopted_object_is_read_only_before_it_is_verified(
    archive: PosixStorage, root: Path, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place(root)
    path.chmod(mode)
    modes = []
    original = medium.read_back

    def read_back(fd: int, *arguments: Any) -> Any:
        modes.append(stat.S_IMODE(os.fstat(fd).st_mode))
        return original(fd, *arguments)

    monkeypatch.setattr(medium, "read_back", read_back)
    assert put(archive).adopted
    assert modes == [0o444]
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


def test_an_object_with_another_name_is_not_adopted(archive: PosixStorage, root: Path, tmp_path: Path) -> None:
    path = place(root)
    (tmp_path / "other").hardlink_to(path)
    (root / ".incoming").mkdir()
    (root / ".incoming" / "note").hardlink_to(path)
    with pytest.raises(DestinationFileExistsError, match=r"has 2 other names \(hard links\)"):
        put(archive)
    (tmp_path / "other").unlink()
    (root / ".incoming" / "note").unlink()
    assert put(archive).adopted


def test_a_temporary_name_that_was_left_behind_does_not_keep_from_adopting(archive: PosixStorage, root: Path) -> None:
    path = place(root)
    (root / ".incoming").mkdir()
    (root / ".incoming" / f"{ATTEMPT}~00000000").hardlink_to(path)
    (root / ".incoming" / "8.1~00000000").touch()
    assert put(archive).adopted


def test_a_name_that_is_removed_meanwhile_is_no_other_name(
    archive: PosixStorage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place(root)
    (root / "twin").hardlink_to(path)

    def names_of(*_arguments: object) -> int:
        (root / "twin").unlink()
        return 0

    monkeypatch.setattr(incoming, "names_of", names_of)
    assert put(archive).adopted


@pytest.mark.parametrize(("mode", "is_adopted"), [(0o644, False), (0o555, True)])
def test_an_object_of_another_user_is_adopted_only_when_it_is_read_only(
    archive: PosixStorage, root: Path, mode: int, is_adopted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place(root)
    path.chmod(mode)

    def fchmod(*_arguments: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "fchmod", fchmod)
    if is_adopted:
        assert put(archive).adopted
    else:
        with pytest.raises(DestinationFileExistsError, match="belongs to another user and is writable"):
            put(archive)


# Documents, verification, sweeping


def test_verification_notices_a_changed_byte(archive: PosixStorage, root: Path) -> None:
    put(archive)
    (root / KEY).chmod(0o644)
    with (root / KEY).open("r+b") as file:
        file.seek(CHUNK)
        file.write(bytes([DATA[CHUNK] ^ 1]))
    with pytest.raises(StorageError, match="checksum mismatch"):
        archive.verify(KEY, conformance.checksum(DATA))


def test_a_document_is_not_read_past_its_limit_or_through_a_link(archive: PosixStorage, root: Path) -> None:
    (root / "secret").write_bytes(b"secret")
    (root / "link").symlink_to("secret")
    with pytest.raises(StorageError, match="symbolic link"):
        archive.read_document("link")
    with pytest.raises(StorageError, match="larger"):
        archive.read_document("secret", limit=5)


def test_a_taken_document_name_is_left_alone_whatever_has_it(archive: PosixStorage, root: Path) -> None:
    (root / "p").mkdir()
    (root / "p" / "a.json").symlink_to("nowhere")
    (root / "p" / "b.json").mkdir()
    assert archive.put_documents({"p/a.json": b"x"}, token=ATTEMPT)
    assert archive.put_documents({"p/b.json": b"x"}, token=ATTEMPT)
    assert sorted(entry.name for entry in (root / "p").iterdir()) == ["a.json", "b.json"]


def test_a_sweep_removes_dead_temporaries_and_nothing_else(archive: PosixStorage, root: Path) -> None:
    put(archive)
    folder = root / ".incoming"
    (folder / "9.1~0123abcd").write_bytes(b"dead")
    (folder / "9.2~0123abcd").write_bytes(b"alive")
    foreign = ["9.1", "9.1~xyz", "9.1~0123abcd.bak", "notes.txt"]
    for name in foreign:
        (folder / name).write_bytes(b"not ours")
    (folder / "9.1~00000000").symlink_to(root / KEY)
    (folder / "9.1~00000001").mkdir()
    os.link(root / KEY, folder / "9.1~00000002")

    is_dead = {"9.1"}.__contains__
    found = archive.sweep(is_dead)
    assert [(item.token, item.size) for item in found] == [("9.1", len(DATA)), ("9.1", 4)]
    assert (folder / "9.1~0123abcd").exists()
    assert archive.sweep(is_dead, delete=True) == found
    assert archive.sweep(is_dead) == []
    left = {path.name for path in folder.iterdir()}
    assert left == {*foreign, "9.2~0123abcd", "9.1~00000000", "9.1~00000001"}
    assert (root / KEY).read_bytes() == DATA
    assert (root / KEY).stat().st_nlink == 1


def test_a_sweep_of_a_fresh_place_finds_nothing(archive: PosixStorage, root: Path) -> None:
    assert archive.sweep(lambda _token: True, delete=True) == []
    assert list(root.iterdir()) == []


# Declaration


def _location(**options: str) -> Location:
    return Location(1, "here", "lta", LocationType.LONG_TERM_ARCHIVE, StorageType.DISK, options=options)


@pytest.mark.parametrize("options", [{}, {"path": ""}, {"path": "lta"}, {"path": "/a\0b"}])
def test_a_disk_needs_an_absolute_path(options: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="absolute"):
        PosixStorage(_location(**options))


def test_a_disk_of_another_host_is_refused(root: Path) -> None:
    PosixStorage(_location(path=str(root), host=os.uname().nodename))
    with pytest.raises(ConfigurationError, match="elsewhere"):
        PosixStorage(_location(path=str(root), host="elsewhere.example"))


def test_only_errors_that_a_retry_cannot_cure_are_permanent(archive: PosixStorage) -> None:
    assert archive.is_permanent(OSError(errno.ENAMETOOLONG, ""))
    assert archive.is_permanent(DestinationFileExistsError())
    assert not archive.is_permanent(OSError(errno.EIO, ""))
    assert not archive.is_permanent(OSError(errno.ENOSPC, ""))
    assert not archive.is_permanent(StorageError())
    assert not archive.is_permanent(KeyboardInterrupt())
