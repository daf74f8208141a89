"""The life of an operation, move by move, on SQLite."""

import dataclasses
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session
from tests import factories

from ccat_data_transfer import database, leases, models, operations, retry
from ccat_data_transfer.checksums import Checksum
from ccat_data_transfer.exceptions import (
    DatabaseError,
    DataCorruptionError,
    LeaseLostError,
    LocationUnavailableError,
    StorageError,
    UnknownNameError,
)
from ccat_data_transfer.locations import LocationType
from ccat_data_transfer.models import (
    DataLocation,
    LongTermArchiveTransfer,
    LongTermArchiveTransferLog,
    RawDataPackage,
    RawDataPackagePhysicalCopy,
)
from ccat_data_transfer.states import (
    MOVES,
    Evidence,
    FailureReason,
    PackageState,
    PauseReason,
    PhysicalCopyStatus,
    Status,
    Verb,
)
from ccat_data_transfer.storage.base import Receipt

Configure = Callable[..., None]
pytestmark = pytest.mark.usefixtures("sqlite_database")

LTA = LocationType.LONG_TERM_ARCHIVE
LONG_AGO = "2020-01-01 00:00:00.000000"
FAR_AWAY = "2999-01-01 00:00:00.000000"
SHA256 = Checksum("sha256", "0" * 64)
OWNER = leases.Owner.of_this_process()
DEAD = dataclasses.replace(OWNER, start="1")
OUT_OF_SIGHT = dataclasses.replace(OWNER, host="elsewhere")


def add_place(name: str = "lta", kind: LocationType = LTA, *, site: str = "cologne", **values: Any) -> int:
    with database.session_scope() as session:
        made = factories.make_location(
            session,
            f"/nowhere/{site}/{name}",
            site=factories.make_site(session, site),
            name=name,
            location_type=kind,
            **values,
        )
        return made.id


def add_buffer(name: str = "buffer", **values: Any) -> int:
    return add_place(name, LocationType.BUFFER, **values)


def add_package(*buffers: int, **values: Any) -> int:
    """A package that is present in these buffers."""
    status = values.pop("status", PhysicalCopyStatus.PRESENT)
    with database.session_scope() as session:
        package = factories.make_package(session, **values)
        for buffer in buffers:
            session.add(
                RawDataPackagePhysicalCopy(
                    raw_data_package_id=package.id, data_location_id=buffer, path=package.name, status=status
                )
            )
        return package.id


def one(status: Status = Status.PENDING, **values: Any) -> int:
    """One operation in that status, of a package in a buffer, to the one archive."""
    buffer, archive = add_buffer(), add_place()
    package_id = add_package(buffer)
    with database.session_scope() as session:
        made = factories.make_operation(
            session,
            session.get_one(RawDataPackage, package_id),
            session.get_one(DataLocation, archive),
            status=status,
            now=datetime.now(UTC) + timedelta(hours=1),
            **values,
        )
        return made.id


def set_columns(table: str, row_id: int, **values: object) -> None:
    """What a clock, an operator or vandals may do to a row."""
    columns = ", ".join(f"{name} = :{name}" for name in values)
    with database.session_scope() as session:
        session.execute(sa.text(f"UPDATE {table} SET {columns} WHERE id = :id"), {**values, "id": row_id})  # noqa: S608


def set_operation(operation_id: int, **values: object) -> None:
    set_columns("long_term_archive_transfer", operation_id, **values)


def create(**values: Any) -> tuple[int, int]:
    with database.session_scope() as session:
        return operations.create(session, **values)


def claim(operation_id: object, owner: leases.Owner = OWNER, **values: Any) -> operations.Claim | operations.NotClaimed:
    with database.session_scope() as session:
        return operations.claim(session, operation_id, owner, 180, **values)


def claimed(operation_id: int, owner: leases.Owner = OWNER) -> operations.Claim:
    found = claim(operation_id, owner)
    assert isinstance(found, operations.Claim), found
    return found


def refused(operation_id: object, **values: Any) -> str:
    found = claim(operation_id, **values)
    assert isinstance(found, operations.NotClaimed)
    assert found.operation_id is operation_id
    return found.why


def abandon(change: Callable[[Session], object]) -> None:
    """Make a change, and roll it back."""
    with database.session_scope() as session:
        change(session)
        raise KeyError


def schedule(location_id: int = 2) -> list[operations.Dispatch]:
    with database.session_scope() as session:
        return operations.schedule(session, location_id)


def receipt(key: str = "a/a.tar") -> Receipt:
    return Receipt(key, 10_240, {"sha256": SHA256}, Evidence.EVICTED_PROVED)


def record(claim: operations.Claim, key: str | None = None) -> None:
    with database.session_scope() as session:
        operations.record(session, claim, receipt(key or f"{claim.package}/{claim.package}"))


def settle(claim: operations.Claim, decision: retry.Decision, error: BaseException) -> bool:
    with database.session_scope() as session:
        return operations.settle(session, claim.operation_id, claim.attempt, decision, error)


def rescue(**values: Any) -> list[int]:
    with database.session_scope() as session:
        return operations.rescue(session, **values)


def load(operation_id: int) -> LongTermArchiveTransfer:
    with database.session_scope(read_only=True) as session:
        return operations.load(session, operation_id)


def all_operations() -> list[tuple[int, int, Status]]:
    """Package, location and status of every operation."""
    table = LongTermArchiveTransfer
    with database.session_scope(read_only=True) as session:
        rows = session.execute(
            sa.select(table.raw_data_package_id, table.data_location_id, table.status).order_by(table.id)
        )
        return [(row[0], row[1], row[2]) for row in rows]


def logged(operation_id: int) -> list[tuple[Verb, Status, int]]:
    with database.session_scope(read_only=True) as session:
        return [(row.verb, row.status, row.attempt) for row in operations.load(session, operation_id).logs]


def state(package_id: int) -> PackageState:
    with database.session_scope(read_only=True) as session:
        return session.get_one(RawDataPackage, package_id).state


def place(location_id: int) -> DataLocation:
    with database.session_scope(read_only=True) as session:
        return session.get_one(DataLocation, location_id)


RETRY = retry.Decision(retry.Outcome.RETRY, FailureReason.STORAGE_ERROR, 0)
FAIL = retry.Decision(retry.Outcome.FAIL, FailureReason.SOURCE_CORRUPT)
SNOOZE = retry.Decision(retry.Outcome.SNOOZE, FailureReason.DESTINATION_UNAVAILABLE, 60)
BROKEN = StorageError("it broke")
ROTTEN = DataCorruptionError("it is rotten")


def unwell(location: str = "cologne/lta") -> LocationUnavailableError:
    return LocationUnavailableError("no room", condition=PauseReason.FULL.value, location=location)


class TestCreate:
    def test_makes_one_operation_for_each_active_archive_of_the_site(self) -> None:
        buffer, first, second = add_buffer(), add_place("lta"), add_place("lta-2")
        add_place("lta", site="bonn")
        package = add_package(buffer)
        assert create() == (1, 2)
        assert all_operations() == [(package, first, Status.PENDING), (package, second, Status.PENDING)]

    def test_is_idempotent(self) -> None:
        buffer, _ = add_buffer(), add_place()
        add_package(buffer)
        assert create() == (1, 1)
        assert create() == (0, 0)
        assert len(all_operations()) == 1

    def test_gives_an_operation_the_configured_attempts(self, configure: Configure) -> None:
        configure(max_attempts=3)
        buffer, _ = add_buffer(), add_place()
        add_package(buffer)
        create()
        assert (load(1).attempt, load(1).attempt_limit, load(1).retry_count) == (0, 3, 0)

    @pytest.mark.parametrize("status", [s for s in PhysicalCopyStatus if s is not PhysicalCopyStatus.PRESENT])
    def test_takes_only_copies_that_are_present(self, status: PhysicalCopyStatus) -> None:
        buffer, _ = add_buffer(), add_place()
        add_package(buffer, status=status)
        assert create() == (0, 0)

    @pytest.mark.parametrize("kind", [k for k in LocationType if k is not LocationType.BUFFER])
    def test_takes_only_copies_in_buffers(self, kind: LocationType) -> None:
        elsewhere, _ = add_place("elsewhere", kind), add_place()
        add_package(elsewhere)
        assert create()[1] == 0

    @pytest.mark.parametrize("kind", [k for k in LocationType if k is not LTA])
    def test_archives_only_to_archives(self, kind: LocationType) -> None:
        buffer, _ = add_buffer(), add_place("elsewhere", kind)
        add_package(buffer)
        assert create() == (1, 0)

    def test_takes_only_copies_in_active_buffers_until_they_become_active(self) -> None:
        buffer, _ = add_buffer(active=False), add_place()
        add_package(buffer)
        assert create() == (0, 0)
        set_columns("data_location", buffer, active=True)
        assert create() == (1, 1)

    def test_waits_for_a_checksum_to_be_recorded(self) -> None:
        buffer, _ = add_buffer(), add_place()
        package = add_package(buffer, checksum=None)
        assert create() == (0, 0)
        set_columns("raw_data_package", package, checksum=str(SHA256))
        assert create() == (1, 1)

    def test_makes_one_operation_of_a_package_that_lies_in_two_buffers(self) -> None:
        first, second, _ = add_buffer(), add_buffer("buffer-2"), add_place()
        add_package(first, second)
        assert create() == (2, 1)

    def test_archives_a_package_at_each_site_where_it_lies(self) -> None:
        here, there = add_buffer(), add_buffer(site="bonn")
        add_place(), add_place(site="bonn")
        add_package(here, there)
        assert create() == (2, 2)

    def test_of_one_site_leaves_the_others_alone(self) -> None:
        here, there = add_buffer(), add_buffer(site="bonn")
        add_place(), add_place(site="bonn")
        add_package(here, there)
        assert create(site_id=place(there).site_id) == (1, 1)
        assert create() == (1, 1)

    def test_gives_a_new_archive_the_packages_that_were_there_before_it(self) -> None:
        buffer, _ = add_buffer(), add_place()
        for _ in range(3):
            add_package(buffer)
        assert create() == (3, 3)
        add_place("lta-2")
        assert create() == (3, 3)
        assert create() == (0, 0)

    def test_gives_an_archive_that_is_active_again_what_it_missed(self) -> None:
        buffer, _, second = add_buffer(), add_place(), add_place("lta-2")
        set_columns("data_location", second, active=False)
        add_package(buffer)
        assert create() == (1, 1)
        set_columns("data_location", second, active=True)
        assert create() == (1, 1)
        assert create() == (0, 0)

    def test_considers_no_more_copies_at_once_than_asked(self) -> None:
        buffer, _ = add_buffer(), add_place()
        for _ in range(5):
            add_package(buffer)
        assert [create(limit=2) for _ in range(4)] == [(2, 2), (2, 2), (1, 1), (0, 0)]

    def test_for_named_packages_skips_those_that_have_one_or_no_checksum(self) -> None:
        buffer, archive = add_buffer(), add_place()
        old = add_package(buffer)
        create()
        new, bare = add_package(buffer), add_package(buffer, checksum=None)
        with database.session_scope() as session:
            assert operations.create_for(session, [old, new, bare], archive) == 1
        assert [row[0] for row in all_operations()] == [old, new]

    def test_that_is_rolled_back_leaves_the_copies_to_be_considered_again(self) -> None:
        buffer, _ = add_buffer(), add_place()
        add_package(buffer)
        with pytest.raises(KeyError):
            abandon(operations.create)
        assert all_operations() == []
        assert create() == (1, 1)


def many(count: int) -> list[int]:
    """So many pending operations to location 2."""
    buffer, _ = add_buffer(), add_place()
    for _ in range(count):
        add_package(buffer)
    create()
    return list(range(1, count + 1))


class TestSchedule:
    def test_moves_what_is_due_and_names_the_queue(self) -> None:
        many(2)
        queue = "cologne_lta_long_term_archive_transfer"
        assert schedule() == [operations.Dispatch(1, queue), operations.Dispatch(2, queue)]
        assert {row[2] for row in all_operations()} == {Status.SCHEDULED}
        assert schedule() == []

    def test_leaves_what_is_not_due(self) -> None:
        many(2)
        set_operation(1, not_before=FAR_AWAY)
        assert [d.operation_id for d in schedule()] == [2]

    def test_takes_the_oldest_first(self, configure: Configure) -> None:
        configure(schedule_limit=1)
        many(3)
        set_operation(3, not_before=LONG_AGO)
        assert [d.operation_id for d in schedule()] == [3]

    def test_never_lets_more_wait_for_a_worker_than_the_limit(self, configure: Configure) -> None:
        configure(schedule_limit=3)
        many(5)
        assert len(schedule()) == 3
        assert schedule() == []
        claimed(1)
        assert len(schedule()) == 1

    def test_sends_again_what_nobody_claimed_in_time(self) -> None:
        many(2)
        schedule()
        set_operation(2, resend_at=LONG_AGO)
        assert [d.operation_id for d in schedule()] == [2]
        assert schedule() == []
        assert logged(2)[-1:] == [(Verb.SCHEDULE, Status.SCHEDULED, 0)]
        assert len(logged(2)) == len(logged(1))  # the state did not change, so nothing is logged

    def test_sends_again_later_each_time_what_waits_in_a_long_queue(self, configure: Configure) -> None:
        configure(resend_seconds=100)
        many(1)
        schedule()
        waits = []
        for _ in range(3):
            set_operation(1, resend_at=LONG_AGO)
            schedule()
            row = load(1)
            assert row.resend_at is not None
            waits.append(round((row.resend_at - datetime.now(UTC)).total_seconds(), -2))
        assert waits == [200, 400, 800]

    def test_sends_again_soon_what_the_broker_did_not_take(self) -> None:
        many(2)
        schedule()
        with database.session_scope() as session:
            operations.not_sent(session, [2])
        row = load(2)
        assert row.resend_at is not None
        assert row.resend_at < datetime.now(UTC) + timedelta(seconds=5)
        set_operation(2, resend_at=LONG_AGO)
        assert [d.operation_id for d in schedule()] == [2]

    def test_is_not_told_of_an_unsent_message_after_its_claim(self) -> None:
        many(1)
        schedule()
        claimed(1)
        with database.session_scope() as session:
            operations.not_sent(session, [1])
        assert load(1).resend_at is None
        assert schedule() == []

    def test_gives_a_paused_location_nothing_until_the_pause_is_over(self) -> None:
        many(2)
        set_columns("data_location", 2, paused_until=FAR_AWAY, pause_reason="full")
        assert schedule() == []
        set_columns("data_location", 2, paused_until=LONG_AGO)
        assert len(schedule()) == 2

    def test_sends_nothing_again_to_a_paused_location(self) -> None:
        many(1)
        schedule()
        set_operation(1, resend_at=LONG_AGO)
        set_columns("data_location", 2, paused_until=FAR_AWAY, pause_reason="full")
        assert schedule() == []

    def test_gives_an_inactive_location_nothing(self) -> None:
        many(1)
        set_columns("data_location", 2, active=False)
        assert schedule() == []

    def test_of_one_location_leaves_the_others_alone(self) -> None:
        many(1)
        second = add_place("lta-2")
        create()
        assert [d.operation_id for d in schedule(second)] == [2]
        assert load(1).status is Status.PENDING


class TestWithoutABroker:
    def due(self, limit: int = 10) -> list[int]:
        with database.session_scope(read_only=True) as session:
            return operations.due_here(session, 2, limit=limit)

    def test_what_is_pending_and_due_is_found_oldest_first(self) -> None:
        many(4)
        set_operation(2, not_before=FAR_AWAY)
        set_operation(4, not_before=LONG_AGO)
        assert self.due() == [4, 1, 3]
        assert self.due(limit=2) == [4, 1]

    @pytest.mark.parametrize("values", [{"active": False}, {"paused_until": FAR_AWAY, "pause_reason": "full"}])
    def test_nothing_is_due_at_a_place_that_takes_no_work(self, values: dict[str, object]) -> None:
        many(1)
        set_columns("data_location", 2, **values)
        assert self.due() == []

    def test_what_was_sent_and_nobody_claimed_in_time_is_found_too(self) -> None:
        many(3)
        schedule()
        assert self.due() == []
        set_operation(2, resend_at=LONG_AGO)
        assert self.due() == [2]
        assert claimed(2).attempt == 1

    def test_what_was_asked_for_by_name_need_not_wait(self) -> None:
        many(2)
        for operation_id in (1, 2):
            set_operation(operation_id, not_before=FAR_AWAY)
        with database.session_scope() as session:
            operations.make_due(session, [2])
        assert self.due() == [2]


class TestClaim:
    @pytest.mark.parametrize("status", [Status.PENDING, Status.SCHEDULED])
    def test_counts_the_attempt_and_takes_the_lease(self, status: Status) -> None:
        operation_id = one(status)
        set_operation(operation_id, not_before=LONG_AGO)
        found = claimed(operation_id)
        row = load(operation_id)
        assert (found.attempt, found.attempts_left, found.token) == (1, 4, f"{operation_id}.1")
        assert (row.status, row.attempt, row.lease_owner, row.resend_at) == (Status.IN_PROGRESS, 1, str(OWNER), None)
        assert row.lease_until is not None
        assert timedelta(170) < (row.lease_until - datetime.now(UTC)) * 86_400 < timedelta(190)

    def test_happens_once(self) -> None:
        operation_id = one()
        claimed(operation_id)
        assert refused(operation_id) == "it is in_progress"
        assert load(operation_id).attempt == 1

    @pytest.mark.parametrize("status", [Status.IN_PROGRESS, Status.COMPLETED, Status.FAILED])
    def test_is_refused_in_any_other_status(self, status: Status) -> None:
        operation_id = one(status)
        before = load(operation_id).attempt
        assert refused(operation_id) == f"it is {status}"
        assert load(operation_id).attempt == before

    @pytest.mark.parametrize(
        "forged",
        [None, "", "1", b"1", 1.0, True, False, [], [1], {}, {"id": 1}, 0, -1, 2**63, -(2**63), 10**30],
        ids=repr,
    )
    def test_of_a_forged_id_is_refused_and_changes_nothing(self, forged: object) -> None:
        operation_id = one()
        assert refused(forged) == "this is no operation id"
        assert load(operation_id).status is Status.PENDING

    @pytest.mark.parametrize("unknown", [2, 2**31, 2**63 - 1])
    def test_of_an_unknown_operation_is_refused(self, unknown: int) -> None:
        one()
        assert refused(unknown) == "there is no such operation"

    def test_before_the_operation_is_due_is_refused(self) -> None:
        operation_id = one()
        set_operation(operation_id, not_before=FAR_AWAY)
        assert "not due yet" in refused(operation_id)

    def test_without_an_attempt_left_is_refused(self) -> None:
        operation_id = one(attempt=5)
        assert refused(operation_id) == "it has no attempt left"

    def test_for_an_inactive_destination_is_refused(self) -> None:
        operation_id = one()
        set_columns("data_location", 2, active=False)
        assert refused(operation_id) == "its destination is not active"

    def test_for_a_paused_destination_is_refused_until_the_pause_is_over(self) -> None:
        operation_id = one()
        set_columns("data_location", 2, paused_until=FAR_AWAY, pause_reason="full")
        assert refused(operation_id) == "its destination is paused: full"
        set_columns("data_location", 2, paused_until=LONG_AGO)
        assert claimed(operation_id).destination_was_paused

    @pytest.mark.parametrize("queues", [[], ["bonn_lta_long_term_archive_transfer"], ["cologne_lta"], ["%"]])
    def test_by_a_worker_of_other_queues_is_refused(self, queues: list[str]) -> None:
        operation_id = one()
        assert "not for this worker" in refused(operation_id, queues=queues)
        assert load(operation_id).status is Status.PENDING

    def test_by_a_worker_of_its_queue_is_granted(self) -> None:
        operation_id = one()
        queues = ["bonn_lta_long_term_archive_transfer", "cologne_lta_long_term_archive_transfer"]
        assert isinstance(claim(operation_id, queues=queues), operations.Claim)

    def test_tells_all_that_a_worker_needs(self) -> None:
        operation_id = one()
        with database.session_scope() as session:
            session.add(models.RawDataFile(raw_data_package_id=1, name="a.fits", path="raw/a.fits", size=7))
            session.add(models.RawDataPackageMetadata(raw_data_package_id=1, document={"obscore": {"obs_id": "1"}}))
        found = claimed(operation_id)
        with database.session_scope(read_only=True) as session:
            described = operations.describe(session, found)
        assert (found.size, found.checksum, described.metadata) == (10_240, str(SHA256), {"obscore": {"obs_id": "1"}})
        assert [(file.path, file.size) for file in described.files] == [("raw/a.fits", 7)]
        assert [(str(source.location), source.path) for source in found.sources] == [("cologne/buffer", found.package)]
        assert (str(found.destination), found.destination.options) == ("cologne/lta", {"path": "/nowhere/cologne/lta"})
        assert [event.event for event in described.custody] == ["register", "claim"]
        assert not found.destination_was_paused

    def test_waits_for_a_buffer_that_is_switched_off(self) -> None:
        buffer, archive = add_buffer(), add_place()
        package = add_package(buffer)
        with database.session_scope() as session:
            operations.create_for(session, [package], archive)
        set_columns("data_location", buffer, active=False)
        assert schedule() == []
        with database.session_scope() as session:
            refused = operations.claim(session, 1, OWNER, 60)
        assert isinstance(refused, operations.NotClaimed)
        assert load(1).attempt == 0
        set_columns("data_location", buffer, active=True)
        assert claimed(1).attempt == 1

    def test_tells_of_custody_and_files_only_what_stays_small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(operations.attempts, "_FILES", operations.attempts._FILES.limit(2))
        monkeypatch.setattr(operations.attempts, "MAX_FILES", 2)
        operation_id = one()
        with database.session_scope() as session:
            session.add_all(
                models.RawDataFile(raw_data_package_id=1, name=f"{n}", path=f"{n}", size=7) for n in range(5)
            )
        for _ in range(3):
            settle(claimed(operation_id), dataclasses.replace(RETRY, delay=0), BROKEN)
        found = claimed(operation_id)
        with database.session_scope(read_only=True) as session:
            described = operations.describe(session, found)
        assert [event.event for event in described.custody] == ["register", "claim"]
        assert (len(described.files), described.files_left_out) == (2, 3)

    def test_offers_sources_by_priority_and_only_those_that_may_be_read(self) -> None:
        low, high, archive = add_buffer("low", priority=2), add_buffer("high", priority=1), add_place()
        inactive, gone, far = add_buffer("inactive"), add_buffer("gone"), add_buffer("far", site="bonn")
        package = add_package(low, high, inactive, far)
        set_columns("data_location", inactive, active=False)
        with database.session_scope() as session:
            session.add(
                RawDataPackagePhysicalCopy(
                    raw_data_package_id=package,
                    data_location_id=gone,
                    path="gone",
                    status=PhysicalCopyStatus.DELETED,
                )
            )
            operations.create_for(session, [package], archive)
        assert [str(source.location) for source in claimed(1).sources] == ["cologne/high", "cologne/low"]


class TestHeartbeat:
    def beat(self, operation_id: int, attempt: int) -> bool:
        with database.session_scope() as session:
            return operations.heartbeat(session, operation_id, attempt, 180)

    def test_extends_the_lease(self) -> None:
        found = claimed(one())
        set_operation(1, lease_until=LONG_AGO)
        assert self.beat(1, found.attempt)
        assert rescue() == []

    @pytest.mark.parametrize("attempt", [0, 2, -1])
    def test_of_another_attempt_is_refused(self, attempt: int) -> None:
        claimed(one())
        set_operation(1, lease_until=LONG_AGO)
        assert not self.beat(1, attempt)
        assert rescue() == [1]

    @pytest.mark.parametrize("status", [s for s in Status if s is not Status.IN_PROGRESS])
    def test_of_what_does_not_run_is_refused(self, status: Status) -> None:
        assert not self.beat(one(status, attempt=1), 1)


class TestRecord:
    def test_completes_the_operation_with_its_evidence_and_its_copy(self) -> None:
        found = claimed(one())
        record(found, "obs/obs.tar")
        row = load(1)
        assert (row.status, row.evidence, row.lease_owner, row.lease_until, row.reason, row.error) == (
            Status.COMPLETED,
            Evidence.EVICTED_PROVED,
            None,
            None,
            None,
            None,
        )
        assert row.completed_at is not None
        with database.session_scope(read_only=True) as session:
            copy = session.scalars(sa.select(RawDataPackagePhysicalCopy).filter_by(data_location_id=2)).one()
        assert (copy.path, copy.checksum, copy.status, copy.verified_how) == (
            "obs/obs.tar",
            str(SHA256),
            PhysicalCopyStatus.PRESENT,
            Evidence.EVICTED_PROVED,
        )
        assert copy.verified_at is not None
        assert state(1) is PackageState.ARCHIVED

    def test_takes_a_copy_that_is_known_already(self) -> None:
        found = claimed(one())
        with database.session_scope() as session:
            session.add(
                RawDataPackagePhysicalCopy(
                    raw_data_package_id=1, data_location_id=2, path="old", status=PhysicalCopyStatus.DELETED
                )
            )
        record(found, "obs/obs.tar")
        with database.session_scope(read_only=True) as session:
            copy = session.scalars(sa.select(RawDataPackagePhysicalCopy).filter_by(data_location_id=2)).one()
        assert (copy.path, copy.status) == ("obs/obs.tar", PhysicalCopyStatus.PRESENT)

    def test_by_a_stale_attempt_writes_nothing(self) -> None:
        stale = claimed(one())
        set_operation(1, lease_until=LONG_AGO)
        rescue()
        set_operation(1, not_before=LONG_AGO)
        fresh = claimed(1)
        assert fresh.attempt == 2
        with pytest.raises(LeaseLostError, match="attempt 1"):
            record(stale)
        assert load(1).status is Status.IN_PROGRESS
        with database.session_scope(read_only=True) as session:
            assert session.scalars(sa.select(RawDataPackagePhysicalCopy).filter_by(data_location_id=2)).all() == []
        record(fresh)
        assert load(1).status is Status.COMPLETED

    def test_twice_is_refused_the_second_time(self) -> None:
        found = claimed(one())
        record(found)
        with pytest.raises(LeaseLostError):
            record(found)
        assert [verb for verb, _, _ in logged(1)].count(Verb.RECORD) == 1

    def test_ends_the_pause_of_the_destination_that_took_it(self) -> None:
        operation_id = one()
        set_columns("data_location", 2, paused_until=LONG_AGO, pause_reason="full", pause_message="no room")
        record(claimed(operation_id))
        found = place(2)
        assert (found.paused_until, found.pause_reason, found.pause_message) == (None, None, None)

    def test_whose_answer_was_lost_can_be_looked_up(self) -> None:
        found = claimed(one())

        def recorded(attempt: int) -> bool | None:
            with database.session_scope(read_only=True) as session:
                return operations.is_recorded(session, 1, attempt)

        assert recorded(found.attempt) is None
        record(found)
        assert recorded(found.attempt) is True
        assert recorded(found.attempt + 1) is False

    def test_of_what_failed_meanwhile_is_not_there(self) -> None:
        found = claimed(one())
        settle(found, FAIL, ROTTEN)
        with database.session_scope(read_only=True) as session:
            assert operations.is_recorded(session, 1, found.attempt) is False


class TestSettle:
    def test_a_retry_spends_the_attempt_and_waits(self) -> None:
        found = claimed(one())
        assert settle(found, dataclasses.replace(RETRY, delay=3600), BROKEN)
        row = load(1)
        assert (row.status, row.reason, row.error) == (Status.PENDING, FailureReason.STORAGE_ERROR, "it broke")
        assert (row.attempt, row.attempt_limit, row.retry_count) == (1, 5, 1)
        assert "not due yet" in refused(1)

    def test_a_snooze_gives_the_attempt_back_but_not_its_number(self) -> None:
        found = claimed(one())
        assert settle(found, dataclasses.replace(SNOOZE, delay=0), unwell("cologne/buffer"))
        row = load(1)
        assert (row.status, row.attempt, row.attempt_limit, row.retry_count) == (Status.PENDING, 1, 6, 0)
        assert (claimed(1).attempt, claimed_left := load(1).attempt_limit - load(1).attempt) == (2, 4)
        assert claimed_left == found.attempts_left

    def test_a_failure_is_final_with_its_reason(self) -> None:
        found = claimed(one())
        assert settle(found, FAIL, ROTTEN)
        row = load(1)
        assert (row.status, row.reason, row.error) == (Status.FAILED, FailureReason.SOURCE_CORRUPT, "it is rotten")
        assert refused(1) == "it is failed"

    @pytest.mark.parametrize("decision", [RETRY, FAIL, SNOOZE])
    def test_of_a_stale_attempt_changes_nothing(self, decision: retry.Decision) -> None:
        stale = claimed(one())
        set_operation(1, lease_until=LONG_AGO)
        rescue()
        set_operation(1, not_before=LONG_AGO)
        claimed(1)
        before = logged(1)
        assert not settle(stale, decision, unwell())
        assert (load(1).status, load(1).attempt, logged(1)) == (Status.IN_PROGRESS, 2, before)
        assert place(2).paused_until is None

    def test_an_unwell_destination_is_paused_with_its_reason(self) -> None:
        found = claimed(one())
        settle(found, SNOOZE, unwell())
        row = place(2)
        assert row.paused_until is not None
        assert timedelta(50) < (row.paused_until - datetime.now(UTC)) * 86_400 < timedelta(70)
        assert (row.pause_reason, row.pause_message) == (PauseReason.FULL, "no room")
        assert place(1).paused_until is None

    def test_an_unwell_source_pauses_nothing(self) -> None:
        found = claimed(one())
        settle(found, SNOOZE, unwell("cologne/buffer"))
        assert (place(1).paused_until, place(2).paused_until) == (None, None)

    def test_a_place_of_the_same_name_at_another_site_pauses_nothing(self) -> None:
        found = claimed(one())
        settle(found, SNOOZE, unwell("bonn/lta"))
        assert place(2).paused_until is None

    def test_what_waits_for_a_worker_of_a_paused_place_is_sent_again_when_the_pause_is_over(self) -> None:
        many(2)
        schedule()
        found = claimed(1)
        settle(found, SNOOZE, unwell())
        resend_at, paused_until = load(2).resend_at, place(2).paused_until
        assert resend_at is not None
        assert paused_until is not None
        assert abs(resend_at - paused_until) < timedelta(seconds=5)

    def test_a_giant_error_is_cut(self) -> None:
        found = claimed(one())
        settle(found, RETRY, StorageError("x" * 100_000))
        assert load(1).error == "x" * 4000

    def test_an_error_without_a_text_is_called_by_its_name(self) -> None:
        found = claimed(one())
        settle(found, RETRY, MemoryError())
        assert load(1).error == "MemoryError"


class TestRescue:
    def test_leaves_a_living_attempt_alone(self) -> None:
        claimed(one())
        assert rescue() == []
        assert load(1).status is Status.IN_PROGRESS

    @pytest.mark.parametrize("owner", [OWNER, OUT_OF_SIGHT, DEAD])
    def test_takes_back_what_has_an_expired_lease_whoever_holds_it(self, owner: leases.Owner) -> None:
        claimed(one(), owner)
        set_operation(1, lease_until=LONG_AGO)
        assert rescue() == [1]
        row = load(1)
        assert (row.status, row.reason, row.attempt, row.retry_count) == (
            Status.PENDING,
            FailureReason.WORKER_LOST,
            1,
            1,
        )
        assert logged(1)[-1] == (Verb.RESCUE, Status.PENDING, 1)

    def test_takes_back_what_a_dead_process_of_this_host_holds_before_its_lease_ends(self) -> None:
        claimed(one(), DEAD)
        assert rescue() == [1]

    def test_waits_for_the_lease_of_a_process_it_cannot_see(self) -> None:
        claimed(one(), OUT_OF_SIGHT)
        assert rescue() == []

    @pytest.mark.parametrize("owner", ["", "nonsense", "a|b|c|d|e|f", "a|b|c|²|e|f"])
    def test_waits_for_the_lease_of_an_owner_that_nobody_can_read(self, owner: str) -> None:
        claimed(one())
        set_operation(1, lease_owner=owner)
        assert rescue() == []
        set_operation(1, lease_until=LONG_AGO)
        assert rescue() == [1]

    def test_makes_a_package_wait_before_the_next_attempt(self) -> None:
        claimed(one(), DEAD)
        rescue()
        assert "not due yet" in refused(1)

    def test_fails_what_lost_its_worker_on_the_last_attempt(self) -> None:
        operation_id = one(attempt=4)
        claimed(operation_id, DEAD)
        assert rescue() == [operation_id]
        row = load(operation_id)
        assert (row.status, row.reason, row.attempt) == (Status.FAILED, FailureReason.ATTEMPTS_EXHAUSTED, 5)
        assert state(1) is PackageState.FAILED

    def test_lets_a_package_that_kills_its_workers_reach_its_limit(self) -> None:
        operation_id = one()
        for _ in range(5):
            set_operation(operation_id, not_before=LONG_AGO)
            claimed(operation_id, DEAD)
            assert rescue() == [operation_id]
        assert load(operation_id).status is Status.FAILED
        assert [verb for verb, _, _ in logged(operation_id)] == [Verb.CLAIM, Verb.RESCUE] * 5

    def test_of_one_site_leaves_the_others_alone(self) -> None:
        claimed(one(), DEAD)
        other = add_place(site="bonn")
        assert rescue(site_id=place(other).site_id) == []
        assert rescue(site_id=place(2).site_id) == [1]

    def test_finds_the_dead_however_many_live(self) -> None:
        for operation_id in many(3):
            claimed(operation_id)
        set_operation(3, lease_until=LONG_AGO)
        assert rescue(limit=2) == [3]

    def test_of_one_operation_asks_only_whether_its_holder_is_dead(self) -> None:
        def rescue_one(operation_id: int) -> bool:
            with database.session_scope() as session:
                return operations.rescue_one(session, operation_id)

        claimed(one())
        set_operation(1, lease_until=LONG_AGO)
        assert not rescue_one(1)
        set_operation(1, lease_owner=str(DEAD))
        assert rescue_one(1)
        assert not rescue_one(1)
        assert not rescue_one(99)


class TestMending:
    def retried(self, *ids: int) -> list[int]:
        with database.session_scope() as session:
            return operations.retry_failed(session, ids)

    def cancelled(self, *ids: int) -> list[int]:
        with database.session_scope() as session:
            return operations.cancel(session, ids)

    def test_a_retry_gives_new_attempts_and_the_number_goes_on(self) -> None:
        operation_id = one(attempt=4)
        claimed(operation_id, DEAD)
        rescue()
        assert self.retried(operation_id) == [operation_id]
        row = load(operation_id)
        assert (row.status, row.attempt, row.attempt_limit, row.retry_count) == (Status.PENDING, 5, 10, 0)
        assert claimed(operation_id).token == f"{operation_id}.6"

    @pytest.mark.parametrize("status", [s for s in Status if s is not Status.FAILED])
    def test_a_retry_touches_only_what_failed(self, status: Status) -> None:
        operation_id = one(status)
        assert self.retried(operation_id, 99) == []
        assert load(operation_id).status is status
        assert logged(operation_id) == []

    @pytest.mark.parametrize("status", [Status.PENDING, Status.SCHEDULED])
    def test_a_cancel_ends_what_no_worker_has(self, status: Status) -> None:
        operation_id = one(status)
        assert self.cancelled(operation_id) == [operation_id]
        assert (load(operation_id).status, load(operation_id).reason) == (Status.FAILED, FailureReason.CANCELLED)
        assert refused(operation_id) == "it is failed"

    @pytest.mark.parametrize("status", [Status.IN_PROGRESS, Status.COMPLETED, Status.FAILED])
    def test_a_cancel_touches_nothing_else(self, status: Status) -> None:
        operation_id = one(status)
        assert self.cancelled(operation_id) == []
        assert load(operation_id).status is status

    def test_what_was_cancelled_can_be_taken_up_again(self) -> None:
        operation_id = one()
        self.cancelled(operation_id)
        assert self.retried(operation_id) == [operation_id]
        record(claimed(operation_id))
        assert state(1) is PackageState.ARCHIVED

    def test_nothing_asked_for_is_nothing_done(self) -> None:
        one(Status.FAILED)
        assert self.retried() == self.cancelled() == []

    @pytest.mark.parametrize("unknown", [0, -1, 99, 2**63])
    def test_an_unknown_operation_cannot_be_loaded(self, unknown: int) -> None:
        with pytest.raises(UnknownNameError, match=f"there is no operation {unknown}"):
            load(unknown)


P, S, I, C, F = Status.PENDING, Status.SCHEDULED, Status.IN_PROGRESS, Status.COMPLETED, Status.FAILED  # noqa: E741


class TestPackageState:
    def derived(self, *statuses: Status | None, sites: Iterable[str] = ()) -> PackageState:
        """The state of a package with an operation of each status (or none), each to an archive of its own."""
        buffers = {site: add_buffer(site=site) for site in dict.fromkeys(sites) or ["cologne"]}
        places = list(sites) or ["cologne"] * len(statuses)
        archives = [add_place(f"lta-{number}", site=site) for number, site in enumerate(places)]
        package_id = add_package(*buffers.values())
        with database.session_scope() as session:
            for status, archive in zip(statuses, archives, strict=True):
                if status is not None:
                    factories.make_operation(
                        session,
                        session.get_one(RawDataPackage, package_id),
                        session.get_one(DataLocation, archive),
                        status=status,
                    )
            # A neighbour that is archived everywhere must make no difference.
            neighbour = factories.make_package(session, at=session.get_one(DataLocation, buffers[places[0]]))
            for archive in archives:
                factories.make_operation(
                    session, neighbour, session.get_one(DataLocation, archive), status=Status.COMPLETED
                )
            operations.moves.refresh_packages(session, [package_id])
        return state(package_id)

    @pytest.mark.parametrize(
        ("statuses", "expected"),
        [
            ((None,), PackageState.WAITING),
            ((P,), PackageState.WAITING),
            ((S,), PackageState.TRANSFERRING),
            ((I,), PackageState.TRANSFERRING),
            ((C,), PackageState.ARCHIVED),
            ((F,), PackageState.FAILED),
            ((None, None), PackageState.WAITING),
            ((P, P), PackageState.WAITING),
            ((P, None), PackageState.WAITING),
            ((P, S), PackageState.TRANSFERRING),
            ((P, I), PackageState.TRANSFERRING),
            ((S, I), PackageState.TRANSFERRING),
            ((C, P), PackageState.TRANSFERRING),
            ((C, S), PackageState.TRANSFERRING),
            ((C, I), PackageState.TRANSFERRING),
            ((C, None), PackageState.TRANSFERRING),
            ((C, C), PackageState.ARCHIVED),
            ((F, P), PackageState.FAILED),
            ((F, I), PackageState.FAILED),
            ((F, C), PackageState.FAILED),
            ((F, F), PackageState.FAILED),
            ((C, C, None), PackageState.TRANSFERRING),
            ((C, C, C), PackageState.ARCHIVED),
        ],
    )
    def test_follows_from_its_operations(self, statuses: tuple[Status | None, ...], expected: PackageState) -> None:
        assert self.derived(*statuses) is expected

    @pytest.mark.parametrize(
        ("statuses", "expected"),
        [
            ((C, C), PackageState.ARCHIVED),
            ((C, P), PackageState.TRANSFERRING),
            ((C, None), PackageState.TRANSFERRING),
            ((F, C), PackageState.FAILED),
            ((P, P), PackageState.WAITING),
        ],
    )
    def test_asks_every_site_where_the_package_lies(
        self, statuses: tuple[Status | None, ...], expected: PackageState
    ) -> None:
        assert self.derived(*statuses, sites=["cologne", "bonn"]) is expected

    def test_asks_no_site_where_the_package_does_not_lie(self) -> None:
        add_place("lta-far", site="elsewhere")
        assert self.derived(C) is PackageState.ARCHIVED

    def test_is_never_archived_with_fewer_copies_than_the_minimum(self, configure: Configure) -> None:
        configure(minimum_archive_copies=2)
        assert self.derived(C) is PackageState.TRANSFERRING

    def test_is_archived_with_the_minimum_of_copies(self, configure: Configure) -> None:
        configure(minimum_archive_copies=2)
        assert self.derived(C, C) is PackageState.ARCHIVED

    def test_is_archived_no_more_when_a_new_archive_wants_a_copy_and_again_when_it_has_it(self) -> None:
        record(claimed(one()))
        assert state(1) is PackageState.ARCHIVED
        add_place("lta-2")
        create()
        assert state(1) is PackageState.TRANSFERRING
        record(claimed(2))
        assert state(1) is PackageState.ARCHIVED

    def test_is_archived_no_more_when_an_archive_comes_back_that_lacks_it(self) -> None:
        operation_id, second = one(), add_place("lta-2")
        create()
        set_columns("data_location", second, active=False)
        create()
        record(claimed(operation_id))
        assert state(1) is PackageState.ARCHIVED
        set_columns("data_location", second, active=True)
        create()
        assert state(1) is PackageState.TRANSFERRING

    def test_is_archived_when_the_archive_that_lacks_it_is_given_up(self) -> None:
        operation_id, second = one(), add_place("lta-2")
        create()
        record(claimed(operation_id))
        assert state(1) is PackageState.TRANSFERRING
        set_columns("data_location", second, active=False)
        create()
        assert state(1) is PackageState.ARCHIVED

    def test_is_transferring_from_the_claim_on(self) -> None:
        operation_id = one()
        assert state(1) is PackageState.WAITING
        claimed(operation_id)
        assert state(1) is PackageState.TRANSFERRING

    def test_is_waiting_again_while_a_retry_is_not_due(self) -> None:
        settle(claimed(one()), dataclasses.replace(RETRY, delay=60), BROKEN)
        assert state(1) is PackageState.WAITING

    def test_stays_failed_while_another_operation_is_claimed(self) -> None:
        settle(claimed(one()), FAIL, ROTTEN)
        add_place("lta-2")
        create()
        claimed(2)
        assert state(1) is PackageState.FAILED

    def test_heals_when_an_operators_retry_succeeds(self) -> None:
        settle(claimed(one()), FAIL, ROTTEN)
        assert state(1) is PackageState.FAILED
        with database.session_scope() as session:
            operations.retry_failed(session, [1])
        assert state(1) is PackageState.WAITING
        record(claimed(1))
        assert state(1) is PackageState.ARCHIVED


def every_change() -> list[tuple[str, Callable[[], int], Callable[[Session], object]]]:
    """A name, what prepares an operation and returns its id, and a change of it."""

    def running() -> int:
        return claimed(one()).operation_id

    def expired() -> int:
        operation_id = running()
        set_operation(operation_id, lease_until=LONG_AGO)
        return operation_id

    def the_claim(session: Session) -> operations.Claim:
        row = session.get_one(LongTermArchiveTransfer, 1)
        destination = row.data_location.value()
        return operations.Claim(1, 1, 4, 1, "a.tar", 10, None, (), destination, False)

    return [
        ("schedule", one, lambda s: operations.schedule(s, 2)),
        ("claim", one, lambda s: operations.claim(s, 1, OWNER, 180)),
        ("record", running, lambda s: operations.record(s, the_claim(s), receipt())),
        ("retry", running, lambda s: operations.settle(s, 1, 1, RETRY, BROKEN)),
        ("snooze", running, lambda s: operations.settle(s, 1, 1, SNOOZE, unwell())),
        ("fail", running, lambda s: operations.settle(s, 1, 1, FAIL, ROTTEN)),
        ("rescue", expired, operations.rescue),
        ("reset", running, lambda s: operations.reset(s, 1, BROKEN)),
        ("fail by name", one, lambda s: operations.fail(s, 1, BROKEN)),
        ("cancel", one, lambda s: operations.cancel(s, [1])),
        ("operator's retry", lambda: one(Status.FAILED), lambda s: operations.retry_failed(s, [1])),
    ]


@pytest.mark.parametrize(("prepare", "change"), [pytest.param(*rest, id=name) for name, *rest in every_change()])
class TestEveryChange:
    def test_writes_one_row_that_says_where_it_led(
        self, prepare: Callable[[], int], change: Callable[[Session], object]
    ) -> None:
        operation_id = prepare()
        before, was = logged(operation_id), load(operation_id).status
        with database.session_scope() as session:
            assert change(session) is not False
        row, (written,) = load(operation_id), logged(operation_id)[len(before) :]
        assert written == (written[0], row.status, row.attempt)
        assert (written[0], was, row.status) in {(move.verb, move.source, move.target) for move in MOVES}

    def test_that_is_rolled_back_writes_none(
        self, prepare: Callable[[], int], change: Callable[[Session], object]
    ) -> None:
        operation_id = prepare()
        before, was = logged(operation_id), load(operation_id)
        with pytest.raises(KeyError):
            abandon(change)
        now = load(operation_id)
        assert logged(operation_id) == before
        assert (now.status, now.attempt, now.lease_owner) == (was.status, was.attempt, was.lease_owner)

    def test_that_cannot_be_logged_does_not_happen(
        self, prepare: Callable[[], int], change: Callable[[Session], object]
    ) -> None:
        operation_id = prepare()
        was = load(operation_id).status
        with database.session_scope() as session:
            session.execute(
                sa.text(
                    "CREATE TRIGGER full BEFORE INSERT ON long_term_archive_transfer_log "
                    "BEGIN SELECT RAISE(ABORT, 'the log is full'); END"
                )
            )
        with pytest.raises(DatabaseError, match="the log is full"), database.session_scope() as session:
            change(session)
        assert load(operation_id).status is was


def test_the_log_tells_the_whole_way_and_ends_where_the_operation_is() -> None:
    buffer, _ = add_buffer(), add_place()
    add_package(buffer)
    create()
    schedule()
    claimed(1, DEAD)
    rescue()
    set_operation(1, not_before=LONG_AGO)
    settle(claimed(1), RETRY, BROKEN)
    settle(claimed(1), dataclasses.replace(SNOOZE, delay=0), unwell("cologne/buffer"))
    settle(claimed(1), FAIL, ROTTEN)
    with database.session_scope() as session:
        operations.retry_failed(session, [1])
    record(claimed(1))
    assert [verb for verb, _, _ in logged(1)] == [
        Verb.CREATE,
        Verb.SCHEDULE,
        Verb.CLAIM,
        Verb.RESCUE,
        Verb.CLAIM,
        Verb.RETRY,
        Verb.CLAIM,
        Verb.SNOOZE,
        Verb.CLAIM,
        Verb.FAIL,
        Verb.RETRY,
        Verb.CLAIM,
        Verb.RECORD,
    ]
    legal = {(move.verb, move.source, move.target) for move in MOVES}
    before: Status | None = None
    for verb, status, _ in logged(1):
        assert (verb, before, status) in legal
        before = status
    assert before is load(1).status is Status.COMPLETED
    with database.session_scope(read_only=True) as session:
        actors = session.scalars(sa.select(LongTermArchiveTransferLog.actor).distinct()).all()
    assert actors == [leases.actor()]


def test_sessions_of_callers_see_places_as_they_are_now(tmp_path: Path) -> None:
    operation_id = one()
    with Session(database.engine(), expire_on_commit=False) as session:
        remembered = session.get_one(DataLocation, 2)
        session.commit()
        with database.session_scope() as other:
            other.execute(sa.text("UPDATE disk_data_location SET path = '/moved' WHERE data_location_id = 2"))
        found = operations.claim(session, operation_id, OWNER, 180)
        session.commit()
    assert isinstance(found, operations.Claim)
    assert (found.destination.id, found.destination.options) == (remembered.id, {"path": "/moved"})
