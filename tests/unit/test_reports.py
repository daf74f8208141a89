"""What is told of the operations agrees with their rows."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests import factories

from ccat_data_transfer import database, models, reports
from ccat_data_transfer.exceptions import UnknownNameError
from ccat_data_transfer.locations import LocationType
from ccat_data_transfer.states import FailureReason, PackageState, PauseReason, PhysicalCopyStatus, Status, Verb

LTA = LocationType.LONG_TERM_ARCHIVE


@pytest.fixture(autouse=True)
def two_sites(sqlite_database: Path) -> None:
    assert sqlite_database.exists()
    with database.session_scope() as session:
        for name in ("cologne", "chile"):
            site = factories.make_site(session, name)
            factories.make_location(session, f"/{name}/buffer", site=site)
            factories.make_location(session, f"/{name}/lta", site=site, name="lta", location_type=LTA)


def make(
    status: Status, *, site: str = "cologne", age: float = 0, size: int = 100, reason: FailureReason | None = None
) -> int:
    """An operation whose moments are `age` seconds ago; its id."""
    moment = datetime.now(UTC) - timedelta(seconds=age)
    with database.session_scope() as session:
        places = {
            place.name: place
            for place in session.scalars(sa.select(models.DataLocation)).all()
            if place.site.short_name == site
        }
        package = factories.make_package(session, at=places["buffer"], size=size)
        operation = factories.make_operation(session, package, places["lta"], status=status, reason=reason, now=moment)
        operation.created_at = moment
        return operation.id


def test_an_operation_is_told_with_its_package_and_place() -> None:
    made = make(Status.COMPLETED, size=7)
    with database.session_scope(read_only=True) as session:
        (transfer,) = reports.transfers(session)
    assert (transfer.id, transfer.site, transfer.location, transfer.bytes) == (made, "cologne", "lta", 7)
    assert transfer.queue == "cologne_lta_long_term_archive_transfer"
    assert transfer.checksum == "sha256:" + "0" * 64
    assert transfer.completed_at is not None
    assert transfer.completed_at.tzinfo is UTC


def test_operations_are_told_newest_first_page_by_page() -> None:
    made = [make(Status.PENDING) for _ in range(5)][::-1]
    with database.session_scope(read_only=True) as session:
        first = [each.id for each in reports.transfers(session, limit=2)]
        second = [each.id for each in reports.transfers(session, limit=2, after=first[-1])]
        last = [each.id for each in reports.transfers(session, limit=2, after=second[-1])]
    assert first + second + last == made


def test_operations_are_selected_by_what_is_asked() -> None:
    failed = make(Status.FAILED, reason=FailureReason.SOURCE_CORRUPT)
    other = make(Status.FAILED, reason=FailureReason.BAD_NAME, site="chile")
    done = make(Status.COMPLETED)
    with database.session_scope(read_only=True) as session:

        def ids(**selection: object) -> set[int]:
            return {each.id for each in reports.transfers(session, **selection)}  # type: ignore[arg-type]

        assert ids(status=Status.FAILED) == {failed, other}
        assert ids(status=Status.FAILED, site="chile") == {other}
        assert ids(reason=FailureReason.SOURCE_CORRUPT) == {failed}
        assert ids(location="lta") == {failed, other, done}
        assert ids(location="nowhere") == set()
        name = reports.by_id(session, [done])[done].package
        assert ids(package=name) == {done}


def test_many_ids_are_no_trouble() -> None:
    made = make(Status.PENDING)
    with database.session_scope(read_only=True) as session:
        assert set(reports.by_id(session, range(1, 50_000))) == {made}
        assert [t.id for t in reports.of_packages(session, range(1, 50_000), [1, 2, 3, 4])] == [made]


def test_a_history_is_told_from_its_beginning() -> None:
    made = make(Status.COMPLETED)
    with database.session_scope() as session:
        for verb, status in (
            (Verb.CREATE, Status.PENDING), (Verb.CLAIM, Status.IN_PROGRESS), (Verb.RECORD, Status.COMPLETED)
        ):  # fmt: skip
            session.add(
                models.LongTermArchiveTransferLog(
                    long_term_archive_transfer_id=made,
                    verb=verb,
                    status=status,
                    attempt=1,
                    actor="host:1",
                )
            )
    with database.session_scope(read_only=True) as session:
        history = reports.history(session, made)
    assert [entry.verb for entry in history.log] == [Verb.CREATE, Verb.CLAIM, Verb.RECORD]
    assert history.transfer.id == made


def test_an_unknown_operation_has_no_history() -> None:
    with database.session_scope(read_only=True) as session, pytest.raises(UnknownNameError, match="no operation 99"):
        reports.history(session, 99)


def test_status_counts_every_operation_once() -> None:
    make(Status.PENDING, age=500, size=1)
    make(Status.PENDING, age=100, size=2)
    make(Status.IN_PROGRESS, age=50, size=4)
    make(Status.COMPLETED, age=10, size=8)
    make(Status.COMPLETED, age=4000, size=16)
    make(Status.COMPLETED, age=90_000, size=32)
    make(Status.FAILED, reason=FailureReason.BAD_NAME, size=64)
    make(Status.FAILED, reason=FailureReason.BAD_NAME, size=64)
    make(Status.FAILED, reason=FailureReason.CANCELLED, size=64)
    with database.session_scope(read_only=True) as session:
        overview = reports.status(session)
        (only,) = reports.status(session, site="cologne").locations
    chile, cologne = overview.locations
    assert only == cologne or only.counts == cologne.counts
    assert dict(chile.counts) == dict.fromkeys(Status, 0)
    assert (chile.oldest_pending_seconds, chile.failures) == (None, {})
    assert cologne.counts == {
        Status.PENDING: 2, Status.SCHEDULED: 0, Status.IN_PROGRESS: 1, Status.COMPLETED: 3, Status.FAILED: 3
    }  # fmt: skip
    assert cologne.bytes == {
        Status.PENDING: 3, Status.SCHEDULED: 0, Status.IN_PROGRESS: 4, Status.COMPLETED: 56, Status.FAILED: 192
    }  # fmt: skip
    assert cologne.oldest_pending_seconds == pytest.approx(500, abs=30)
    assert cologne.oldest_in_progress_seconds == pytest.approx(50, abs=30)
    assert cologne.failures == {FailureReason.BAD_NAME: 2, FailureReason.CANCELLED: 1}
    assert cologne.throughput == reports.Throughput(1, 8, 2, 24)
    assert overview.packages == {**dict.fromkeys(PackageState, 0), PackageState.WAITING: 9}


def test_status_of_a_site_counts_the_packages_of_that_site() -> None:
    for site in ("cologne", "cologne", "chile"):
        make(Status.PENDING, site=site)
    with database.session_scope(read_only=True) as session:
        waiting = {
            site: reports.status(session, site=site).packages[PackageState.WAITING]
            for site in ("cologne", "chile", None)
        }
    assert waiting == {"cologne": 2, "chile": 1, None: 3}


def test_a_package_is_told_with_its_present_copies_archives_first() -> None:
    with database.session_scope() as session:
        places = {str(row.value()): row for row in session.scalars(sa.select(models.DataLocation))}
        package = factories.make_package(session, "a.tar", at=places["cologne/buffer"])
        for place, status in (("chile/lta", PhysicalCopyStatus.PRESENT), ("chile/buffer", PhysicalCopyStatus.DELETED)):
            session.add(
                models.RawDataPackagePhysicalCopy(
                    raw_data_package_id=package.id, data_location_id=places[place].id, path="a/a.tar", status=status
                )
            )
    with database.session_scope(read_only=True) as session:
        found = [(str(location), path) for location, path in reports.present_copies(session, "a.tar")]
        assert reports.present_copies(session, "b.tar") == []
    assert found == [("chile/lta", "a/a.tar"), ("cologne/buffer", "a.tar")]


def _pause(seconds: float) -> None:
    with database.session_scope() as session:
        session.execute(
            sa.update(models.DataLocation.__table__)  # type: ignore[arg-type]
            .where(models.DataLocation.name == "lta")
            .values(paused_until=database.utcnow(seconds), pause_reason=PauseReason.FULL, pause_message="full")
        )


def test_a_pause_is_told_while_it_lasts() -> None:
    _pause(60)
    with database.session_scope(read_only=True) as session:
        location = reports.status(session).locations[0]
        place = reports.places(session, site="chile")[1]
    assert (location.paused, location.pause_reason, place.paused) == (True, PauseReason.FULL, True)
    _pause(-1)
    with database.session_scope(read_only=True) as session:
        location = reports.status(session).locations[0]
        place = reports.places(session, site="chile")[1]
    assert (location.paused, location.pause_reason, location.paused_until, place.paused) == (False, None, None, False)


def test_queues_tell_what_is_due_delayed_and_under_way() -> None:
    for status in (Status.PENDING, Status.SCHEDULED, Status.IN_PROGRESS, Status.COMPLETED):
        make(status, age=30)
    delayed = make(Status.PENDING)
    with database.session_scope() as session:
        session.get_one(models.LongTermArchiveTransfer, delayed).not_before = datetime.now(UTC) + timedelta(hours=1)
    with database.session_scope(read_only=True) as session:
        chile, cologne = reports.queues(session)
        assert reports.queues(session, "cologne")[0].queue == cologne.queue
    assert (cologne.due, cologne.delayed, cologne.scheduled, cologne.in_progress) == (1, 1, 1, 1)
    assert cologne.oldest_scheduled_seconds == pytest.approx(30, abs=25)
    assert (chile.due, chile.scheduled, chile.oldest_scheduled_seconds) == (0, 0, None)


def test_an_archive_is_found_by_its_directory() -> None:
    with database.session_scope(read_only=True) as session:
        assert str(reports.archive_at(session, "/cologne/lta")) == "cologne/lta"
        assert reports.archive_at(session, "/cologne/buffer") is None
        assert reports.archive_at(session, "/nowhere") is None


def test_the_number_of_statements_does_not_grow_with_the_rows() -> None:
    statements: list[str] = []

    def count(*arguments: object) -> None:
        statements.append(str(arguments[2]))

    sa.event.listen(database.engine(), "before_cursor_execute", count)
    numbers = []
    for _ in range(2):
        make(Status.PENDING)
        make(Status.COMPLETED)
        statements.clear()
        with database.session_scope(read_only=True) as session:
            reports.transfers(session)
            reports.status(session)
            reports.queues(session)
            reports.places(session)
        numbers.append(len(statements))
    assert numbers[0] == numbers[1] < 20
