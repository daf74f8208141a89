"""Several managers and workers at once, on a real PostgreSQL and on SQLite."""

import concurrent.futures
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session
from tests import factories

from ccat_data_transfer import database, leases, migrations, models, operations, settings
from ccat_data_transfer.checksums import Checksum
from ccat_data_transfer.locations import LocationType
from ccat_data_transfer.operations import managing, moves
from ccat_data_transfer.states import Evidence, PackageState, Status, Verb
from ccat_data_transfer.storage.base import Receipt

PACKAGES = 300
RACERS = 16
SHA256 = Checksum("sha256", "0" * 64)


@pytest.fixture
def sqlite_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    url = f"sqlite:///{tmp_path / 'operations.sqlite'}"
    monkeypatch.setenv("CCAT_DATA_TRANSFER_DATABASE_URL", url)
    settings.get.cache_clear()
    migrations.upgrade(url)
    yield url
    database.dispose()
    settings.get.cache_clear()


@pytest.fixture(params=["sqlite_url", "operations_url"])
def any_database(request: pytest.FixtureRequest) -> str:
    """The configured database: SQLite, then PostgreSQL."""
    url: str = request.getfixturevalue(request.param)
    return url


def race(count: int, run: Callable[[int], object]) -> list[object]:
    """Let `count` threads start `run` at the same moment; returns what they returned, raises what they raised."""
    start = threading.Barrier(count)

    def wait_and_run(number: int) -> object:
        start.wait()
        return run(number)

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(wait_and_run, range(count)))


def make_world(packages: int, archives: int = 2) -> None:
    with database.session_scope() as session:
        buffer = factories.make_location(session, "/data/buffer")
        for number in range(archives):
            factories.make_location(
                session, f"/data/lta-{number}", name=f"lta-{number}", location_type=LocationType.LONG_TERM_ARCHIVE
            )
        for _ in range(packages):
            factories.make_package(session, at=buffer)


def create_all(_number: int) -> int:
    created = 0
    while True:
        with database.session_scope() as session:
            considered, new = operations.create(session, limit=50)
        created += new
        if not considered:
            return created


def count_logs(verb: Verb) -> int:
    with database.session_scope(read_only=True) as session:
        return session.execute(
            sa.select(sa.func.count())
            .select_from(models.LongTermArchiveTransferLog)
            .where(models.LongTermArchiveTransferLog.verb == verb)
        ).scalar_one()


def receipt(claim: operations.Claim) -> Receipt:
    return Receipt(claim.package, claim.size, {"sha256": SHA256}, Evidence.DIRECT)


@pytest.mark.usefixtures("any_database")
def test_managers_that_race_create_each_operation_once() -> None:
    make_world(PACKAGES)
    created = race(4, create_all)
    with database.session_scope(read_only=True) as session:
        rows = session.execute(
            sa.select(
                models.LongTermArchiveTransfer.raw_data_package_id, models.LongTermArchiveTransfer.data_location_id
            )
        ).all()
    assert len(rows) == len(set(rows)) == PACKAGES * 2
    assert sum(number for number in created if isinstance(number, int)) == PACKAGES * 2
    assert count_logs(Verb.CREATE) == PACKAGES * 2


@pytest.mark.usefixtures("any_database")
def test_managers_that_race_schedule_each_operation_once() -> None:
    make_world(PACKAGES)
    create_all(0)

    def schedule(_number: int) -> list[int]:
        ids = []
        with database.session_scope(read_only=True) as session:
            archives = operations.archive_ids(session)
        for archive in archives:
            with database.session_scope() as session:
                ids += [dispatch.operation_id for dispatch in operations.schedule(session, archive)]
        return ids

    scheduled = Counter(number for ids in race(4, schedule) for number in ids)  # type: ignore[attr-defined]
    assert len(scheduled) == PACKAGES * 2
    assert set(scheduled.values()) == {1}
    assert count_logs(Verb.SCHEDULE) == PACKAGES * 2


@pytest.mark.usefixtures("any_database")
def test_of_sixteen_claims_on_one_operation_one_wins() -> None:
    make_world(1, archives=1)
    create_all(0)

    def claim(_number: int) -> object:
        with database.session_scope() as session:
            return operations.claim(session, 1, leases.Owner.of_this_process(), 60)

    outcomes = race(RACERS, claim)
    winners = [outcome for outcome in outcomes if isinstance(outcome, operations.Claim)]
    assert len(winners) == 1
    assert winners[0].attempt == 1
    losers = [outcome for outcome in outcomes if isinstance(outcome, operations.NotClaimed)]
    assert {loser.why for loser in losers} == {"it is in_progress"}
    assert count_logs(Verb.CLAIM) == 1


@pytest.mark.usefixtures("any_database")
def test_a_dead_worker_s_operation_is_rescued_once_by_managers_that_race() -> None:
    make_world(20, archives=1)
    create_all(0)
    with database.session_scope() as session:
        for number in range(1, 21):
            assert isinstance(operations.claim(session, number, leases.Owner.of_this_process(), -1), operations.Claim)

    def rescue(_number: int) -> list[int]:
        with database.session_scope() as session:
            return operations.rescue(session)

    rescued = Counter(number for ids in race(4, rescue) for number in ids)  # type: ignore[attr-defined]
    assert rescued == Counter(range(1, 21))
    assert count_logs(Verb.RESCUE) == 20


def test_two_archives_that_finish_a_package_at_the_same_moment_leave_it_archived(operations_url: str) -> None:
    assert operations_url
    make_world(1, archives=2)
    create_all(0)
    with database.session_scope() as session:
        claims = [operations.claim(session, number, leases.Owner.of_this_process(), 60) for number in (1, 2)]
    first, second = (claim for claim in claims if isinstance(claim, operations.Claim))
    waiting = threading.Event()

    def record_second() -> None:
        with database.session_scope() as session:
            session.execute(sa.text("SET application_name = 'second'"))
            waiting.set()
            operations.record(session, second, receipt(second))

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with database.session_scope() as session:
            operations.record(session, first, receipt(first))
            done = pool.submit(record_second)
            waiting.wait(10)
            wait_until_blocked("second")
        done.result(30)
    with database.session_scope(read_only=True) as session:
        package = session.scalars(sa.select(models.RawDataPackage)).one()
        statuses = set(session.scalars(sa.select(models.LongTermArchiveTransfer.status)))
    assert statuses == {Status.COMPLETED}
    assert package.state is PackageState.ARCHIVED


def wait_until_blocked(application: str) -> None:
    """Return once the connection of that name waits for a lock."""
    blocked = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = :name AND wait_event_type = 'Lock'"
    )
    pause = threading.Event()
    for _ in range(1000):
        with database.session_scope(read_only=True) as session:
            if session.scalar(blocked, {"name": application}):
                return
        pause.wait(0.01)
    pytest.fail(f"'{application}' never waited for a lock")


def test_an_archive_that_appears_while_a_manager_creates_gets_its_operations(
    operations_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert operations_url
    make_world(0, archives=1)
    create_all(0)
    with database.session_scope() as session:
        buffer = session.scalars(sa.select(models.DataLocation).filter_by(name="buffer")).one()
        factories.make_package(session, at=buffer)
    create = managing._create
    other = concurrent.futures.ThreadPoolExecutor(1)
    others: list[concurrent.futures.Future[int]] = []

    def create_while_the_topology_grows(session: Session, wanted: object) -> int:
        created = create(session, wanted)
        if not others:
            with database.session_scope() as grown:
                site = factories.make_site(grown)
                factories.make_location(
                    grown, "/data/new", site=site, name="new", location_type=LocationType.LONG_TERM_ARCHIVE
                )
            others.append(other.submit(create_all, 0))
            wait_until_blocked("ccat_data_transfer")
        return created

    monkeypatch.setattr(managing, "_create", create_while_the_topology_grows)
    with other:
        with database.session_scope() as session:
            operations.create(session)
        assert others[0].result(30) == 1
    with database.session_scope(read_only=True) as session:
        assert len(session.scalars(sa.select(models.LongTermArchiveTransfer)).all()) == 2


def test_a_worker_frozen_in_its_last_transaction_keeps_nobody_else_from_being_rescued(operations_url: str) -> None:
    assert operations_url
    make_world(3, archives=1)
    create_all(0)
    with database.session_scope() as session:
        claims = [operations.claim(session, number, leases.Owner.of_this_process(), -1) for number in (1, 2, 3)]
    frozen = claims[0]
    assert isinstance(frozen, operations.Claim)
    with database.session_scope() as holder:
        operations.record(holder, frozen, receipt(frozen))
        with database.session_scope() as session:
            session.execute(sa.text("SET LOCAL lock_timeout = '5s'"))
            assert operations.rescue(session) == [2, 3]
        holder.rollback()
    with database.session_scope() as session:
        assert operations.rescue(session) == [1]


def test_a_rescue_and_a_late_record_of_one_package_do_not_wait_for_each_other(operations_url: str) -> None:
    assert operations_url
    make_world(1, archives=2)
    create_all(0)
    with database.session_scope() as session:
        claims = [operations.claim(session, number, leases.Owner.of_this_process(), -1) for number in (1, 2)]
    late = claims[1]
    assert isinstance(late, operations.Claim)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with database.session_scope() as rescuer:
            # It takes the second operation, too, unless the late attempt holds it, and in any case the package.
            holder_has_row = threading.Event()

            def record_late() -> None:
                with database.session_scope() as session:
                    session.execute(sa.text("SET application_name = 'late'"))
                    session.execute(sa.text("SELECT 1 FROM long_term_archive_transfer WHERE id = 2 FOR NO KEY UPDATE"))
                    holder_has_row.set()
                    operations.record(session, late, receipt(late))

            session_of_first = rescuer.execute(sa.text("SELECT 1 FROM raw_data_package WHERE id = 1 FOR NO KEY UPDATE"))
            assert session_of_first.scalar() == 1
            done = pool.submit(record_late)
            assert holder_has_row.wait(10)
            wait_until_blocked("late")
            assert operations.rescue(rescuer) == [1]
        done.result(30)
    with database.session_scope(read_only=True) as session:
        rows = session.execute(sa.select(models.LongTermArchiveTransfer.id, models.LongTermArchiveTransfer.status))
        assert {row.id: row.status for row in rows} == {1: Status.PENDING, 2: Status.COMPLETED}


def test_registering_and_deriving_states_do_not_wait_for_each_other_in_a_circle(operations_url: str) -> None:
    assert operations_url
    make_world(2, archives=1)
    with database.session_scope() as session:
        second = factories.make_location(session, "/data/second", name="second").id
    insert = sa.insert(models.RawDataPackagePhysicalCopy)
    with database.session_scope() as registering:
        registering.execute(insert.values(raw_data_package_id=2, data_location_id=second, path="2"))
        with database.session_scope() as deriving:
            deriving.execute(sa.text("SET LOCAL lock_timeout = '5s'"))
            moves.refresh_packages(deriving, [1, 2])
            registering.execute(sa.text("SET LOCAL lock_timeout = '5s'"))
            registering.execute(insert.values(raw_data_package_id=1, data_location_id=second, path="1"))
    with database.session_scope(read_only=True) as session:
        assert len(session.scalars(sa.select(models.RawDataPackagePhysicalCopy)).all()) == 4
