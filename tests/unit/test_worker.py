"""The worker's procedure on real files: what it did is in the archive and in the database, whatever happens."""

import dataclasses
import hashlib
import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from tests import factories

from ccat_data_transfer import database, leases, models, operations, storage, worker
from ccat_data_transfer.checksums import Checksum
from ccat_data_transfer.exceptions import DatabaseError, SourceReadError, StoppedError
from ccat_data_transfer.locations import LocationType
from ccat_data_transfer.states import Evidence, FailureReason, PackageState, PauseReason, Status, Verb
from ccat_data_transfer.storage.reading import PosixReader
from ccat_data_transfer.worker import Ending, carry_out

Configure = Callable[..., None]
DEAD = dataclasses.replace(leases.Owner.of_this_process(), start="1")
LONG_AGO = "2020-01-01 00:00:00.000000"
NAME = "obs-0421.tar"
BYTES = b"raw data of one night " * 1000
SHA256 = f"sha256:{hashlib.sha256(BYTES).hexdigest()}"


class World:
    """A site with buffers and an archive on disk, and one package that is to be archived."""

    def __init__(self, path: Path, database_file: Path) -> None:
        self.path = path
        self.database_file = database_file
        self.lta = path / "lta"
        self.lta.mkdir()
        with database.session_scope() as session:
            location = factories.make_location(
                session, self.lta, name="lta", location_type=LocationType.LONG_TERM_ARCHIVE
            )
            self.lta_id = location.id

    def add_buffer(self, name: str = "buffer", **values: Any) -> Path:
        folder = self.path / name
        folder.mkdir()
        with database.session_scope() as session:
            factories.make_location(session, folder, name=name, **values)
        return folder

    def add_package(self, *buffers: Path, name: str = NAME, data: bytes | None = BYTES, **values: Any) -> int:
        """An operation for a package that is registered in these buffers, and lies there unless `data` is None."""
        with database.session_scope() as session:
            facts: dict[str, Any] = {"size": len(BYTES), "checksum": SHA256} | values
            package = factories.make_package(session, name, **facts)
            for buffer in buffers:
                location = session.scalars(sa.select(models.DataLocation).filter_by(name=buffer.name)).one()
                session.add(
                    models.RawDataPackagePhysicalCopy(
                        raw_data_package_id=package.id, data_location_id=location.id, path=f"in/{package.id}.tar"
                    )
                )
                if data is not None:
                    self.source(buffer, package.id).parent.mkdir(exist_ok=True)
                    self.source(buffer, package.id).write_bytes(data)
            archive = session.get_one(models.DataLocation, self.lta_id)
            return factories.make_operation(session, package, archive).id

    def source(self, buffer: Path, package_id: int = 1) -> Path:
        return buffer / "in" / f"{package_id}.tar"

    def execute(self, statement: str, *parameters: object) -> list[Any]:
        """On a connection that has nothing to do with the product's."""
        connection = sqlite3.connect(self.database_file, timeout=10)
        try:
            with connection:
                return connection.execute(statement, parameters).fetchall()
        finally:
            connection.close()

    def row(self, operation_id: int = 1) -> models.LongTermArchiveTransfer:
        with database.session_scope(read_only=True) as session:
            return operations.load(session, operation_id)

    def verbs(self, operation_id: int = 1) -> list[Verb]:
        with database.session_scope(read_only=True) as session:
            return [log.verb for log in operations.load(session, operation_id).logs]

    def location(self, location_id: int | None = None) -> models.DataLocation:
        with database.session_scope(read_only=True) as session:
            return session.get_one(models.DataLocation, location_id or self.lta_id)

    def package_state(self) -> PackageState:
        with database.session_scope(read_only=True) as session:
            return session.get_one(models.RawDataPackage, 1).state

    def stored(self) -> dict[str, bytes]:
        """Every file in the archive but its mark."""
        return {
            str(file.relative_to(self.lta)): file.read_bytes()
            for file in self.lta.rglob("*")
            if file.is_file() and file.name != ".ccat_data_transfer.json"
        }

    def copies_in_archive(self) -> list[Any]:
        return self.execute(
            "SELECT path, checksum, status FROM raw_data_package_physical_copy WHERE data_location_id = ?", self.lta_id
        )

    def make_due(self, operation_id: int = 1) -> None:
        self.execute("UPDATE long_term_archive_transfer SET not_before = ? WHERE id = ?", LONG_AGO, operation_id)


@pytest.fixture
def world(tmp_path: Path, sqlite_database: Path) -> World:
    return World(tmp_path, sqlite_database)


@pytest.fixture
def buffer(world: World) -> Path:
    return world.add_buffer()


def until(fact: Callable[[], bool], seconds: float = 20) -> None:
    """Wait, but not for ever, until something is so."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not fact():
        assert time.monotonic() < deadline, "it did not come true in time"
        pause.wait(0.01)


def raising(error: BaseException) -> Callable[[int], None]:
    """Progress that ends in an error."""

    def progress(_count: int) -> None:
        raise error

    return progress


def nothing_is_archived(world: World) -> bool:
    return world.stored() == {} and world.copies_in_archive() == []


class TestSuccess:
    def test_the_package_and_its_documents_lie_in_the_archive(self, world: World, buffer: Path) -> None:
        result = carry_out(world.add_package(buffer))
        assert (result.ending, result.attempt, result.package, result.bytes, result.error) == (
            Ending.COMPLETED,
            1,
            NAME,
            len(BYTES),
            None,
        )
        stored = world.stored()
        assert set(stored) == {f"obs-0421/{NAME}", f"obs-0421/{NAME}.sha256", f"obs-0421/{NAME}.json"}
        assert stored[f"obs-0421/{NAME}"] == BYTES
        assert stored[f"obs-0421/{NAME}.sha256"].decode() == f"{SHA256[7:]}  {NAME}\n"
        sidecar = json.loads(stored[f"obs-0421/{NAME}.json"])
        assert sidecar["package"]["checksums"] == [SHA256]
        assert [event["event"] for event in sidecar["custody"]] == ["register", "claim", "verify"]

    def test_the_database_knows_it(self, world: World, buffer: Path) -> None:
        carry_out(world.add_package(buffer))
        row = world.row()
        assert (row.status, row.attempt, row.error) == (Status.COMPLETED, 1, None)
        assert world.copies_in_archive() == [(f"obs-0421/{NAME}", SHA256, "present")]
        assert world.package_state() is PackageState.ARCHIVED
        assert world.verbs() == [Verb.CLAIM, Verb.RECORD]

    def test_the_source_is_left_as_it_was(self, world: World, buffer: Path) -> None:
        operation_id = world.add_package(buffer)
        before = world.source(buffer).stat()
        carry_out(operation_id)
        after = world.source(buffer).stat()
        assert world.source(buffer).read_bytes() == BYTES
        assert (before.st_mtime_ns, before.st_mode, before.st_ino) == (after.st_mtime_ns, after.st_mode, after.st_ino)

    def test_the_archive_is_marked_at_its_first_use(self, world: World, buffer: Path) -> None:
        carry_out(world.add_package(buffer))
        mark = json.loads((world.lta / ".ccat_data_transfer.json").read_text())["volume_id"]
        assert world.location().volume_id == mark

    def test_a_second_call_claims_nothing(self, world: World, buffer: Path) -> None:
        operation_id = world.add_package(buffer)
        carry_out(operation_id)
        assert carry_out(operation_id) == worker.Result(operation_id, Ending.NOT_CLAIMED)
        assert world.verbs() == [Verb.CLAIM, Verb.RECORD]

    @pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha512", "blake2b"])
    def test_another_checksum_than_sha256_will_do_if_it_was_recorded(
        self, world: World, buffer: Path, algorithm: str
    ) -> None:
        recorded = f"{algorithm}:{hashlib.new(algorithm, BYTES).hexdigest()}"
        assert carry_out(world.add_package(buffer, checksum=recorded)).ending is Ending.COMPLETED
        assert world.copies_in_archive()[0][1] == SHA256
        checksums = json.loads(world.stored()[f"obs-0421/{NAME}.json"])["package"]["checksums"]
        assert set(checksums) == {recorded, SHA256}

    def test_an_empty_package_is_archived_too(self, world: World, buffer: Path) -> None:
        empty = f"sha256:{hashlib.sha256(b'').hexdigest()}"
        assert carry_out(world.add_package(buffer, data=b"", size=0, checksum=empty)).ending is Ending.COMPLETED
        assert world.stored()[f"obs-0421/{NAME}"] == b""

    def test_a_package_of_many_chunks_is_reported_while_it_moves(self, world: World, buffer: Path) -> None:
        data = bytes(range(256)) * 20_000
        checksum = f"sha256:{hashlib.sha256(data).hexdigest()}"
        seen: list[int] = []
        operation_id = world.add_package(buffer, data=data, size=len(data), checksum=checksum)
        assert carry_out(operation_id, on_progress=seen.append).ending is Ending.COMPLETED
        assert sum(seen) == 2 * len(data)
        assert len(seen) > 4

    def test_a_worker_that_consumes_its_queue_may_carry_it(self, world: World, buffer: Path) -> None:
        operation_id = world.add_package(buffer)
        assert carry_out(operation_id, queues=["bonn_lta_long_term_archive_transfer"]).ending is Ending.NOT_CLAIMED
        queues = ["cologne_lta_long_term_archive_transfer"]
        assert carry_out(operation_id, queues=queues).ending is Ending.COMPLETED


@pytest.mark.parametrize("forged", [None, "1", True, 1.0, [1], {"id": 1}, 0, -1, 2**63, 10**40], ids=repr)
def test_a_forged_id_claims_nothing_and_raises_nothing(world: World, buffer: Path, forged: object) -> None:
    world.add_package(buffer)
    assert carry_out(forged) == worker.Result(forged, Ending.NOT_CLAIMED)
    assert world.row().status is Status.PENDING


class TestAFaultOfTheSource:
    """Fails for good at the first attempt, and nothing lies under the final name."""

    def fails(self, world: World, operation_id: int, reason: FailureReason) -> str:
        assert carry_out(operation_id).ending is Ending.FAIL
        row = world.row(operation_id)
        assert (row.status, row.reason, row.attempt) == (Status.FAILED, reason, 1)
        assert nothing_is_archived(world)
        assert world.package_state() is PackageState.FAILED
        assert world.location().paused_until is None
        return row.error or ""

    def test_a_corrupt_source(self, world: World, buffer: Path) -> None:
        operation_id = world.add_package(buffer, data=BYTES[:-1] + b"!")
        assert "is not what was registered" in self.fails(world, operation_id, FailureReason.SOURCE_CORRUPT)

    def test_a_missing_source(self, world: World, buffer: Path) -> None:
        self.fails(world, world.add_package(buffer, data=None), FailureReason.SOURCE_MISSING)

    def test_a_package_without_a_copy(self, world: World) -> None:
        assert "no present copy" in self.fails(world, world.add_package(), FailureReason.SOURCE_MISSING)

    @pytest.mark.parametrize("change", [b"more", b""])
    def test_a_source_of_another_size_than_recorded(self, world: World, buffer: Path, change: bytes) -> None:
        data = BYTES + change if change else BYTES[:-1]
        checksum = f"sha256:{hashlib.sha256(data).hexdigest()}"
        operation_id = world.add_package(buffer, data=data, checksum=checksum)
        assert f"has {len(data)} bytes" in self.fails(world, operation_id, FailureReason.SOURCE_CORRUPT)

    @pytest.mark.parametrize("checksum", [None, "", "garbage", "sha0:00", "sha256:", "sha256:" + "g" * 64])
    def test_a_checksum_that_proves_nothing(self, world: World, buffer: Path, checksum: str | None) -> None:
        operation_id = world.add_package(buffer, checksum=checksum)
        assert NAME in self.fails(world, operation_id, FailureReason.NO_CHECKSUM)

    @pytest.mark.parametrize("name", ["../evil.tar", "/etc/evil.tar", ".hidden.tar", "-rf", "a\nb.tar", "a/../../b"])
    def test_a_name_that_no_archive_may_hold(self, world: World, buffer: Path, name: str) -> None:
        before = set(world.path.rglob("*.tar"))
        operation_id = world.add_package(buffer, name=name)
        self.fails(world, operation_id, FailureReason.BAD_NAME)
        assert set(world.path.rglob("*.tar")) - before == {world.source(buffer)}

    def test_a_path_that_leads_out_of_the_buffer(self, world: World, buffer: Path) -> None:
        operation_id = world.add_package(buffer)
        (world.path / "secret").write_bytes(BYTES)
        world.execute("UPDATE raw_data_package_physical_copy SET path = '../secret'")
        self.fails(world, operation_id, FailureReason.BAD_NAME)

    def test_a_link_in_place_of_the_source(self, world: World, buffer: Path) -> None:
        operation_id = world.add_package(buffer)
        world.source(buffer).rename(world.path / "elsewhere")
        world.source(buffer).symlink_to(world.path / "elsewhere")
        self.fails(world, operation_id, FailureReason.SOURCE_UNREADABLE)


class TestTwoBuffers:
    """The next one is tried when one is at fault."""

    @pytest.fixture
    def buffers(self, world: World) -> tuple[Path, Path]:
        return world.add_buffer("first", priority=1), world.add_buffer("second", priority=2)

    def test_the_preferred_one_is_read(self, world: World, buffers: tuple[Path, Path]) -> None:
        operation_id = world.add_package(*buffers)
        world.source(buffers[1]).unlink()
        assert carry_out(operation_id).ending is Ending.COMPLETED

    @pytest.mark.parametrize("fault", ["corrupt", "truncated", "missing", "link", "folder", "unmounted", "elsewhere"])
    def test_the_other_one_is_read_when_the_preferred_one_is_at_fault(
        self, world: World, buffers: tuple[Path, Path], fault: str
    ) -> None:
        operation_id = world.add_package(*buffers)
        source = world.source(buffers[0])
        match fault:
            case "corrupt":
                source.write_bytes(BYTES[::-1])
            case "truncated":
                source.write_bytes(BYTES[:10])
            case "missing":
                source.unlink()
            case "link":
                source.unlink()
                source.symlink_to(world.source(buffers[1]))
            case "folder":
                source.unlink()
                source.mkdir()
            case "unmounted":
                shutil.rmtree(buffers[0])
            case "elsewhere":
                world.execute("UPDATE disk_data_location SET host = 'elsewhere' WHERE path = ?", str(buffers[0]))
        result = carry_out(operation_id)
        assert (result.ending, world.stored().get(f"obs-0421/{NAME}")) == (Ending.COMPLETED, BYTES)

    def test_the_other_one_is_read_when_the_preferred_ones_disk_is_dying(
        self, world: World, buffers: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        operation_id = world.add_package(*buffers)
        readinto = PosixReader.readinto

        def dying(self: PosixReader, into: memoryview) -> int:
            if self._root.location.name == "first":
                raise SourceReadError("source cannot be read: input/output error")
            return readinto(self, into)

        monkeypatch.setattr(PosixReader, "readinto", dying)
        assert carry_out(operation_id).ending is Ending.COMPLETED

    @pytest.mark.parametrize("unmounted", [0, 1])
    def test_a_package_does_not_fail_for_good_while_a_buffer_may_come_back(
        self, world: World, buffers: tuple[Path, Path], unmounted: int
    ) -> None:
        operation_id = world.add_package(*buffers)
        shutil.rmtree(buffers[unmounted])
        world.source(buffers[1 - unmounted]).unlink()
        assert carry_out(operation_id).ending is Ending.SNOOZE
        assert world.row().status is Status.PENDING

    def test_it_fails_when_both_are_at_fault(self, world: World, buffers: tuple[Path, Path]) -> None:
        operation_id = world.add_package(*buffers, data=b"x" * len(BYTES))
        assert carry_out(operation_id).ending is Ending.FAIL
        assert nothing_is_archived(world)


class TestABufferThatIsUnwell:
    def test_is_waited_for_without_pausing_the_archive(self, world: World, buffer: Path) -> None:
        operation_id = world.add_package(buffer)
        shutil.rmtree(buffer)
        assert carry_out(operation_id).ending is Ending.SNOOZE
        row = world.row()
        assert (row.status, row.attempt, row.attempt_limit) == (Status.PENDING, 1, 6)
        assert row.reason is FailureReason.SOURCE_UNAVAILABLE
        assert world.location().paused_until is None

    def test_is_waited_for_when_it_belongs_to_another_host(self, world: World, buffer: Path) -> None:
        operation_id = world.add_package(buffer)
        world.execute("UPDATE disk_data_location SET host = 'elsewhere' WHERE path = ?", str(buffer))
        assert carry_out(operation_id).ending is not Ending.FAIL
        assert world.row().status is Status.PENDING


class TestAnArchiveThatIsUnwell:
    """No fault of the package: the attempt is given back and the archive is paused."""

    def snoozes(self, world: World, operation_id: int, condition: PauseReason) -> None:
        assert carry_out(operation_id).ending is Ending.SNOOZE
        row, place = world.row(operation_id), world.location()
        assert (row.status, row.reason, row.attempt, row.attempt_limit) == (
            Status.PENDING,
            FailureReason.DESTINATION_UNAVAILABLE,
            1,
            6,
        )
        assert place.paused_until is not None
        assert (place.pause_reason, bool(place.pause_message)) == (condition, True)
        assert carry_out(operation_id).ending is Ending.NOT_CLAIMED

    def test_its_directory_is_missing(self, world: World, buffer: Path) -> None:
        operation_id = world.add_package(buffer)
        world.lta.rmdir()
        self.snoozes(world, operation_id, PauseReason.MISSING)

    def test_its_disk_is_not_mounted(self, world: World, buffer: Path) -> None:
        operation_id = world.add_package(buffer)
        world.execute("UPDATE data_location SET volume_id = 'the right one' WHERE id = ?", world.lta_id)
        self.snoozes(world, operation_id, PauseReason.MISSING)
        assert nothing_is_archived(world)

    def test_another_disk_is_mounted(self, world: World, buffer: Path) -> None:
        operation_id = world.add_package(buffer)
        (world.lta / ".ccat_data_transfer.json").write_text('{"volume_id": "the wrong one"}')
        world.execute("UPDATE data_location SET volume_id = 'the right one' WHERE id = ?", world.lta_id)
        self.snoozes(world, operation_id, PauseReason.WRONG_VOLUME)
        assert nothing_is_archived(world)

    def test_a_directory_of_another_host_is_left_to_that_host(self, world: World, buffer: Path) -> None:
        operation_id = world.add_package(buffer)
        world.execute("UPDATE disk_data_location SET host = 'elsewhere' WHERE path = ?", str(world.lta))
        assert carry_out(operation_id).ending is Ending.NOT_CLAIMED
        assert (world.row().attempt, world.location().paused_until) == (0, None)

    def test_it_cannot_give_the_evidence_that_is_asked_for(
        self, world: World, buffer: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        operation_id = world.add_package(buffer)
        world.execute("UPDATE data_location SET required_evidence = 'direct' WHERE id = ?", world.lta_id)
        monkeypatch.setattr("ccat_data_transfer.storage.medium.evict", lambda *_: Evidence.REOPEN_ONLY)
        self.snoozes(world, operation_id, PauseReason.EVIDENCE)
        assert nothing_is_archived(world)

    def test_once_it_is_well_the_work_goes_on_and_the_pause_is_forgotten(self, world: World, buffer: Path) -> None:
        operation_id = world.add_package(buffer)
        world.lta.rmdir()
        self.snoozes(world, operation_id, PauseReason.MISSING)
        world.lta.mkdir()
        world.execute("UPDATE data_location SET paused_until = ? WHERE id = ?", LONG_AGO, world.lta_id)
        world.make_due()
        assert carry_out(operation_id).ending is Ending.COMPLETED
        assert (world.location().paused_until, world.location().pause_reason) == (None, None)


class TestWhatIsThereAlready:
    def test_other_bytes_under_the_name_are_a_conflict_and_left_as_they_are(self, world: World, buffer: Path) -> None:
        operation_id = world.add_package(buffer)
        (world.lta / "obs-0421").mkdir()
        (world.lta / "obs-0421" / NAME).write_bytes(b"other bytes")
        assert carry_out(operation_id).ending is Ending.FAIL
        assert world.row().reason is FailureReason.DESTINATION_CONFLICT
        assert world.stored() == {f"obs-0421/{NAME}": b"other bytes"}

    def test_a_copy_that_an_attempt_published_before_it_died_is_adopted(self, world: World, buffer: Path) -> None:
        operation_id = world.add_package(buffer)
        with database.session_scope() as session:
            died = operations.claim(session, operation_id, DEAD, 180)
        assert isinstance(died, operations.Claim)
        archive = storage.open_storage(died.destination)
        with storage.open_storage(died.sources[0].location).open(died.sources[0].path) as reader:
            archive.put(reader, f"obs-0421/{NAME}", Checksum.parse(SHA256), token=died.token)
        published = (world.lta / "obs-0421" / NAME).stat().st_ino

        assert carry_out(operation_id).ending is Ending.NOT_CLAIMED  # the message that comes back; it rescues
        world.make_due()
        result = carry_out(operation_id)

        assert (result.ending, result.attempt) == (Ending.COMPLETED, 2)
        assert (world.lta / "obs-0421" / NAME).stat().st_ino == published
        assert world.verbs() == [Verb.CLAIM, Verb.RESCUE, Verb.CLAIM, Verb.RECORD]
        assert "adopted" in world.execute("SELECT message FROM long_term_archive_transfer_log ORDER BY id")[-1][0]

    def test_documents_of_an_attempt_that_died_are_adopted_too(self, world: World, buffer: Path) -> None:
        operation_id = world.add_package(buffer)
        carry_out(operation_id)
        before = world.stored()
        world.execute("DELETE FROM raw_data_package_physical_copy WHERE data_location_id = ?", world.lta_id)
        world.execute("UPDATE long_term_archive_transfer SET status = 'pending', completed_at = NULL, evidence = NULL")
        assert carry_out(operation_id).ending is Ending.COMPLETED
        assert world.stored() == before

    @pytest.mark.parametrize("ending", [".json", ".sha256"])
    def test_a_document_about_other_bytes_is_a_conflict(self, world: World, buffer: Path, ending: str) -> None:
        operation_id = world.add_package(buffer)
        document = world.lta / "obs-0421" / (NAME + ending)
        document.parent.mkdir()
        document.write_bytes(b"{}")
        assert carry_out(operation_id).ending is Ending.FAIL
        assert world.row().reason is FailureReason.DESTINATION_CONFLICT
        assert document.read_bytes() == b"{}"
        assert world.copies_in_archive() == []

    def test_a_package_whose_buffer_is_the_archive_is_never_called_archived(self, world: World) -> None:
        folder = world.add_buffer("twin")
        operation_id = world.add_package(folder, data=None)
        world.execute("UPDATE disk_data_location SET path = ? WHERE path = ?", str(world.lta), str(folder))
        world.execute("UPDATE raw_data_package_physical_copy SET path = ?", f"obs-0421/{NAME}")
        (world.lta / "obs-0421").mkdir()
        (world.lta / "obs-0421" / NAME).write_bytes(BYTES)
        assert carry_out(operation_id).ending is Ending.FAIL
        assert world.package_state() is PackageState.FAILED


class TestAnAttemptThatIsInterrupted:
    def test_gives_itself_back_when_it_is_asked_to_stop(self, world: World, buffer: Path) -> None:
        result = carry_out(world.add_package(buffer), should_stop=lambda: True)
        assert (result.ending, type(result.error)) == (Ending.SNOOZE, StoppedError)
        row = world.row()
        assert (row.status, row.reason, row.attempt, row.attempt_limit) == (
            Status.PENDING,
            FailureReason.INTERRUPTED,
            1,
            6,
        )
        assert world.location().paused_until is None
        assert nothing_is_archived(world)
        assert carry_out(1).ending is Ending.COMPLETED

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (MemoryError(), FailureReason.INTERNAL_ERROR),
            (SystemExit(1), FailureReason.INTERRUPTED),
            (ValueError("a library's"), FailureReason.INTERNAL_ERROR),
            (RecursionError(), FailureReason.INTERNAL_ERROR),
        ],
        ids=repr,
    )
    def test_by_an_unforeseen_error_is_counted_and_raises_nothing(
        self, world: World, buffer: Path, error: BaseException, reason: FailureReason
    ) -> None:
        result = carry_out(world.add_package(buffer), on_progress=raising(error))
        assert (result.ending, result.error) == (Ending.RETRY, error)
        row = world.row()
        assert (row.status, row.reason, row.attempt, row.retry_count) == (Status.PENDING, reason, 1, 1)
        assert nothing_is_archived(world)

    def test_by_the_keyboard_is_recorded_and_goes_on_up(self, world: World, buffer: Path) -> None:
        operation_id = world.add_package(buffer)
        with pytest.raises(KeyboardInterrupt):
            carry_out(operation_id, on_progress=raising(KeyboardInterrupt()))
        assert (world.row().status, world.row().reason) == (Status.PENDING, FailureReason.INTERRUPTED)
        assert nothing_is_archived(world)

    def test_in_a_thread_of_the_copy_is_counted_too(self, world: World, buffer: Path) -> None:
        data = b"x" * (3 << 20)
        checksum = f"sha256:{hashlib.sha256(data).hexdigest()}"
        operation_id = world.add_package(buffer, data=data, size=len(data), checksum=checksum)
        before = threading.active_count()
        assert carry_out(operation_id, on_progress=raising(MemoryError())).ending is Ending.RETRY
        assert threading.active_count() == before
        assert nothing_is_archived(world)

    def test_for_the_last_time_fails(self, world: World, buffer: Path) -> None:
        operation_id = world.add_package(buffer)
        world.execute("UPDATE long_term_archive_transfer SET attempt_limit = 1")
        assert carry_out(operation_id, on_progress=raising(MemoryError())).ending is Ending.FAIL
        assert world.row().reason is FailureReason.ATTEMPTS_EXHAUSTED

    def test_leaves_nothing_that_the_next_one_keeps(self, world: World, buffer: Path) -> None:
        operation_id = world.add_package(buffer)
        (world.lta / ".incoming").mkdir()
        leaving = world.lta / ".incoming" / f"{operation_id}.1~00000000"
        others = world.lta / ".incoming" / f"{operation_id}1.1~00000000"
        world.execute("UPDATE long_term_archive_transfer SET attempt = 1")
        for file in (leaving, others):
            file.touch()
        assert carry_out(operation_id).ending is Ending.COMPLETED
        assert (leaving.exists(), others.exists()) == (False, True)


class TestTheLease:
    @pytest.fixture(autouse=True)
    def short(self, world: World, configure: Configure) -> None:  # noqa: ARG002 - after the database was made
        configure(lease_seconds=1, heartbeat_seconds=0.02)

    def test_is_extended_while_a_long_copy_runs(self, world: World, buffer: Path) -> None:
        operation_id = world.add_package(buffer)
        moving, go_on = threading.Event(), threading.Event()
        results: list[worker.Result] = []

        def progress(_count: int) -> None:
            moving.set()
            assert go_on.wait(20)

        def work() -> None:
            results.append(carry_out(operation_id, on_progress=progress))

        def has_lease() -> bool:
            return bool(world.execute("SELECT 1 FROM long_term_archive_transfer WHERE lease_until > datetime('now')"))

        thread = threading.Thread(target=work)
        thread.start()
        try:
            assert moving.wait(20)
            for _ in range(3):
                world.execute("UPDATE long_term_archive_transfer SET lease_until = ?", LONG_AGO)
                until(has_lease)
        finally:
            go_on.set()
            thread.join()
        assert [result.ending for result in results] == [Ending.COMPLETED]

    @contextmanager
    def stolen(self, world: World) -> Iterator[Callable[[int], None]]:
        """Progress during which another worker takes the operation over, until the heartbeat noticed."""

        def progress(_count: int) -> None:
            if world.row().attempt > 1:
                return
            world.execute("UPDATE long_term_archive_transfer SET attempt = 2, lease_owner = 'another'")
            until(lambda: not [t for t in threading.enumerate() if t.name == "heartbeat-1.1"])

        yield progress

    def test_that_is_lost_during_the_copy_stops_it_and_nothing_is_written(self, world: World, buffer: Path) -> None:
        operation_id = world.add_package(buffer)
        with self.stolen(world) as progress:
            result = carry_out(operation_id, on_progress=progress)
        assert result.ending is Ending.LOST
        assert nothing_is_archived(world)
        row = world.row()
        assert (row.status, row.attempt, row.lease_owner, row.error) == (Status.IN_PROGRESS, 2, "another", None)
        assert world.verbs() == [Verb.CLAIM]

    def test_that_is_lost_at_the_last_moment_records_nothing(self, world: World, buffer: Path) -> None:
        operation_id = world.add_package(buffer)
        left = [2 * len(BYTES)]

        def progress(count: int) -> None:
            left[0] -= count
            if not left[0]:
                world.execute("UPDATE long_term_archive_transfer SET attempt = 2, lease_owner = 'another'")

        assert carry_out(operation_id, on_progress=progress).ending is Ending.LOST
        assert (world.row().status, world.row().attempt) == (Status.IN_PROGRESS, 2)
        assert world.copies_in_archive() == []

    def test_that_is_lost_lets_no_failure_be_recorded_either(self, world: World, buffer: Path) -> None:
        operation_id = world.add_package(buffer)

        def progress(_count: int) -> None:
            world.execute("UPDATE long_term_archive_transfer SET attempt = 2, lease_owner = 'another'")
            raise MemoryError

        assert carry_out(operation_id, on_progress=progress).ending is Ending.LOST
        assert (world.row().status, world.row().error) == (Status.IN_PROGRESS, None)

    def test_counts_as_lost_when_no_heartbeat_was_confirmed_for_so_long(
        self, world: World, buffer: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        operation_id = world.add_package(buffer)
        now = [1000.0]

        def freeze(_count: int) -> None:
            now[0] += 3600

        monkeypatch.setattr(worker, "_clock", lambda: now[0])
        assert carry_out(operation_id, on_progress=freeze).ending is Ending.LOST
        assert nothing_is_archived(world)


class TestTroubleOfTheDatabase:
    @pytest.fixture(autouse=True)
    def waiting_is_quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each wait of the worker takes a minute of its clock, and no time."""
        now = [1000.0]
        monkeypatch.setattr(worker, "_clock", lambda: now[0])
        monkeypatch.setattr(worker._Heartbeat, "wait", lambda *_: now.__setitem__(0, now[0] + 60))

    @contextmanager
    def losing(self, when: str, world: World, times: int) -> Iterator[list[str]]:
        """Sessions lose the connection `when` (before or after) they commit a completed operation, so often."""
        lost: list[str] = []

        def is_recording(session: Session) -> bool:
            statement = "SELECT 1 FROM long_term_archive_transfer WHERE status = 'completed'"
            if when == "before_commit":
                return session.connection().exec_driver_sql(statement).first() is not None
            return bool(world.execute(statement))

        def lose(session: Session) -> None:
            if len(lost) < times and is_recording(session):
                lost.append(when)
                raise OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))

        sa.event.listen(Session, when, lose)
        try:
            yield lost
        finally:
            sa.event.remove(Session, when, lose)

    def test_a_commit_whose_answer_was_lost_is_looked_up(self, world: World, buffer: Path) -> None:
        operation_id = world.add_package(buffer)
        with self.losing("after_commit", world, 1) as lost:
            assert carry_out(operation_id).ending is Ending.COMPLETED
        assert lost == ["after_commit"]
        assert world.row().status is Status.COMPLETED
        assert world.verbs() == [Verb.CLAIM, Verb.RECORD]

    def test_a_commit_that_did_not_happen_is_made_again(self, world: World, buffer: Path) -> None:
        operation_id = world.add_package(buffer)
        with self.losing("before_commit", world, 2) as lost:
            assert carry_out(operation_id).ending is Ending.COMPLETED
        assert len(lost) == 2
        assert world.verbs() == [Verb.CLAIM, Verb.RECORD]

    def test_a_record_that_never_succeeds_is_left_to_be_rescued_when_the_lease_is_over(
        self, world: World, buffer: Path
    ) -> None:
        operation_id = world.add_package(buffer)
        with self.losing("before_commit", world, 1000) as lost:
            assert carry_out(operation_id).ending is Ending.LOST
        assert len(lost) == 4
        assert world.row().status is Status.IN_PROGRESS
        world.execute("UPDATE long_term_archive_transfer SET lease_owner = ?", str(DEAD))
        carry_out(operation_id)
        world.make_due()
        assert carry_out(operation_id).ending is Ending.COMPLETED

    def test_a_failure_that_cannot_be_recorded_is_lost_with_the_lease(self, world: World, buffer: Path) -> None:
        operation_id = world.add_package(buffer, data=None)
        world.execute(
            "CREATE TRIGGER full BEFORE UPDATE ON long_term_archive_transfer WHEN new.status = 'failed' "
            "BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        )
        assert carry_out(operation_id).ending is Ending.LOST
        assert world.row().status is Status.IN_PROGRESS

    def test_a_verdict_outlives_a_blink_of_the_database(self, world: World, buffer: Path) -> None:
        operation_id = world.add_package(buffer, data=None)
        world.execute("CREATE TABLE blinks (at)")
        world.execute(
            "CREATE TRIGGER blink BEFORE UPDATE ON long_term_archive_transfer WHEN new.status = 'failed' "
            "AND (SELECT count(*) FROM blinks) = 0 BEGIN SELECT RAISE(ABORT, 'away'); END"
        )
        settle = operations.settle
        tries = []

        def settled(*arguments: Any) -> bool:
            tries.append(1)
            if len(tries) == 2:
                world.execute("INSERT INTO blinks VALUES (1)")
            return settle(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(operations, "settle", settled)
            assert carry_out(operation_id).ending is Ending.FAIL
        assert len(tries) == 2
        assert world.row().reason is FailureReason.SOURCE_MISSING

    def test_an_error_that_is_no_text_is_recorded_all_the_same(self, world: World, buffer: Path) -> None:
        operation_id = world.add_package(buffer)

        def progress(_count: int) -> None:
            raise RuntimeError("bad \udcff\0 byte")

        assert carry_out(operation_id, on_progress=progress).ending is Ending.RETRY
        assert world.row().error == "bad \\udcff\\0 byte"

    def test_a_claim_that_cannot_be_made_is_told_and_nothing_moves(self, world: World, buffer: Path) -> None:
        operation_id = world.add_package(buffer)
        world.execute(
            "CREATE TRIGGER full BEFORE UPDATE ON long_term_archive_transfer BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
        with pytest.raises(DatabaseError):
            carry_out(operation_id)
        assert nothing_is_archived(world)


class TestAGivenSession:
    def test_is_used_and_committed_at_each_step(self, world: World, buffer: Path) -> None:
        operation_id = world.add_package(buffer)
        commits: list[Status] = []
        with Session(database.engine()) as session:
            sa.event.listen(session, "after_commit", lambda _session: commits.append(world.row().status))
            assert carry_out(operation_id, session).ending is Ending.COMPLETED
            assert not session.in_transaction()
        assert commits == [Status.IN_PROGRESS, Status.IN_PROGRESS, Status.COMPLETED]  # claim, describe, record

    def test_holds_no_transaction_while_bytes_move(self, world: World, buffer: Path) -> None:
        operation_id = world.add_package(buffer)
        seen: list[bool] = []
        with Session(database.engine()) as session:
            carry_out(operation_id, session, on_progress=lambda _count: seen.append(session.in_transaction()))
        assert seen
        assert not any(seen)

    def test_is_rolled_back_and_usable_when_a_failure_cannot_be_recorded(
        self, world: World, buffer: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        operation_id = world.add_package(buffer, data=None)
        world.execute(
            "CREATE TRIGGER full BEFORE UPDATE ON long_term_archive_transfer WHEN new.status = 'failed' "
            "BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        )
        now = iter(range(0, 10_000, 60))
        monkeypatch.setattr(worker, "_clock", lambda: next(now))
        monkeypatch.setattr(worker._Heartbeat, "wait", lambda *_: None)
        with Session(database.engine()) as session:
            assert carry_out(operation_id, session).ending is Ending.LOST
            assert session.scalar(sa.select(models.LongTermArchiveTransfer.status)) is Status.IN_PROGRESS

    def test_may_be_of_another_database_than_the_configured_one(
        self, world: World, buffer: Path, empty_database: Path, configure: Configure
    ) -> None:
        operation_id = world.add_package(buffer)
        other = world.path / "other.sqlite"
        shutil.copyfile(empty_database, other)
        engine = database.engine()
        configure(database_url=f"sqlite:///{other}")
        with Session(engine) as session:
            assert carry_out(operation_id, session).ending is Ending.COMPLETED
        assert world.execute("SELECT status FROM long_term_archive_transfer") == [("completed",)]


def test_a_message_that_comes_back_after_its_worker_died_rescues_the_operation(world: World, buffer: Path) -> None:
    operation_id = world.add_package(buffer)
    with database.session_scope() as session:
        operations.claim(session, operation_id, DEAD, 180)
    assert carry_out(operation_id).ending is Ending.NOT_CLAIMED
    assert (world.row().status, world.row().reason) == (Status.PENDING, FailureReason.WORKER_LOST)


def test_two_workers_on_one_operation_archive_it_once(world: World, buffer: Path) -> None:
    operation_id = world.add_package(buffer)
    endings: list[Ending] = []
    threads = [threading.Thread(target=lambda: endings.append(carry_out(operation_id).ending)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(endings) == [Ending.COMPLETED, *[Ending.NOT_CLAIMED] * 3]
    assert world.verbs() == [Verb.CLAIM, Verb.RECORD]
