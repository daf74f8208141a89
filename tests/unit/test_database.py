"""The database on SQLite: durable or refused, one engine a process, errors in the program's words."""

import os
import sqlite3
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from tests import factories

from ccat_data_transfer import database, models
from ccat_data_transfer.database import utcnow
from ccat_data_transfer.exceptions import ConfigurationError, DatabaseError, DatabaseSchemaError
from ccat_data_transfer.locations import LocationType
from ccat_data_transfer.states import Status

Configure = Callable[..., None]


def pragma(connection: sa.Connection, name: str) -> Any:
    return connection.exec_driver_sql(f"PRAGMA {name}").scalar()


def test_every_pooled_connection_survives_a_power_cut_and_keeps_foreign_keys(sqlite_database: Path) -> None:
    # Read-only scopes, because only one can hold the write lock.
    engine = database.engine().execution_options(sqlite_begin="DEFERRED")
    with engine.connect() as one, engine.connect() as two, engine.connect() as three:
        for connection in (one, two, three):
            assert pragma(connection, "journal_mode") == "wal"
            assert pragma(connection, "synchronous") == 2
            assert pragma(connection, "foreign_keys") == 1
        assert len({id(c.connection.driver_connection) for c in (one, two, three)}) == 3


def test_a_database_in_memory_is_refused_with_the_reason(configure: Configure) -> None:
    configure(database_url="sqlite://")
    with (
        pytest.raises(DatabaseError, match="could forget a commit at a power cut") as refused,
        database.session_scope() as session,
    ):
        session.connection()
    assert "local file system" in refused.value.remedy


def test_a_database_in_memory_is_taken_by_who_asks_for_it(configure: Configure) -> None:
    configure(database_url="sqlite://", allow_volatile_database=True)
    with database.session_scope() as session:
        assert session.scalar(sa.text("SELECT 1")) == 1


def test_foreign_keys_are_enforced(sqlite_database: Path) -> None:
    with pytest.raises(DatabaseError, match="FOREIGN KEY"), database.session_scope() as session:
        session.add(models.RawDataPackagePhysicalCopy(raw_data_package_id=99, data_location_id=99, path="a"))


def test_a_block_that_ends_is_committed(sqlite_database: Path) -> None:
    with database.session_scope() as session:
        factories.make_site(session)
    with database.session_scope(read_only=True) as session:
        assert session.scalar(sa.select(models.Site.short_name)) == "cologne"


def test_a_block_that_raises_is_rolled_back_and_its_error_passes(sqlite_database: Path) -> None:
    def change() -> None:
        with database.session_scope() as session:
            factories.make_site(session)
            raise KeyError

    with pytest.raises(KeyError):
        change()
    with database.session_scope(read_only=True) as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(models.Site)) == 0


def test_a_reader_does_not_wait_for_a_writer_and_sees_what_was_committed(sqlite_database: Path) -> None:
    seen: list[int | None] = []

    def read() -> None:
        with database.session_scope(read_only=True) as session:
            seen.append(session.scalar(sa.select(sa.func.count()).select_from(models.Site)))

    with database.session_scope() as session:
        factories.make_site(session)
        reader = threading.Thread(target=read)
        reader.start()
        reader.join(timeout=10)
        assert seen == [0]
    read()
    assert seen == [0, 1]


def test_two_writers_take_turns(sqlite_database: Path) -> None:
    with database.session_scope() as session:
        factories.make_site(session)

    def prepend() -> None:
        for _ in range(20):
            with database.session_scope() as session:
                site = session.scalars(sa.select(models.Site)).one()
                site.location = "x" + (site.location or "")

    threads = [threading.Thread(target=prepend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.session_scope(read_only=True) as session:
        assert session.scalar(sa.select(models.Site.location)) == "x" * 80


def test_a_writer_that_waits_too_long_is_told_so(sqlite_database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "SQLITE_BUSY_SECONDS", 0.05)
    impatient = database.create_engine(f"sqlite:///{sqlite_database}")
    try:
        with database.session_scope() as session:
            factories.make_site(session)
            with pytest.raises(DatabaseError, match="database is locked"), database.session_scope(impatient) as other:
                other.execute(sa.select(models.Site))
    finally:
        impatient.dispose()


def test_a_process_has_one_engine(sqlite_database: Path) -> None:
    assert database.engine() is database.engine()


def test_another_url_has_another_engine(sqlite_database: Path, tmp_path: Path, configure: Configure) -> None:
    first = database.engine()
    configure(database_url=f"sqlite:///{tmp_path}/other.sqlite")
    assert database.engine() is not first


def test_after_disposal_connections_are_new(sqlite_database: Path) -> None:
    with database.session_scope() as session:
        factories.make_site(session)
    before = database.engine()
    database.dispose()
    assert before.pool.checkedin() == 0  # type: ignore[attr-defined]
    with database.session_scope(read_only=True) as session:
        assert session.scalar(sa.select(models.Site.short_name)) == "cologne"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_gets_an_engine_of_its_own_and_leaves_its_parents_alone(sqlite_database: Path) -> None:
    with database.session_scope() as session:
        factories.make_site(session)
    parents = database.engine()
    pid = os.fork()
    if pid == 0:  # pragma: no cover - in the child
        code = 9
        try:
            with database.session_scope() as session:
                session.scalars(sa.select(models.Site)).one().location = "seen by the child"
            code = 0 if database.engine() is not parents else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert database.engine() is parents
    with database.session_scope() as session:
        assert session.scalar(sa.select(models.Site.location)) == "seen by the child"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_that_forgets_its_parents_connections_does_not_close_them(sqlite_database: Path) -> None:
    with database.session_scope(read_only=True) as session:
        session.scalar(sa.select(models.Site.id))
    pid = os.fork()
    if pid == 0:  # pragma: no cover - in the child
        code = 9
        try:
            database.dispose()
            with database.session_scope(read_only=True) as session:
                code = 0 if session.scalar(sa.select(models.Site.id)) is None else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with database.session_scope() as session:
        factories.make_site(session)


@pytest.mark.parametrize("statement", ["SELECT * FROM no_such_table", "not sql"])
def test_an_error_of_the_driver_is_both_the_programs_and_sqlalchemys(sqlite_database: Path, statement: str) -> None:
    with pytest.raises(DatabaseError) as raised, database.session_scope() as session:
        session.execute(sa.text(statement))
    assert isinstance(raised.value, SQLAlchemyError)
    assert str(raised.value).startswith("the database refused: ")
    assert "\n" not in str(raised.value)
    assert raised.value.retryable


def test_an_error_of_sqlalchemy_is_translated_too(sqlite_database: Path) -> None:
    with pytest.raises(DatabaseError, match="cannot be used") as raised, database.session_scope() as session:
        session.scalars(sa.select(models.Site)).one()
    assert isinstance(raised.value, SQLAlchemyError)


def test_an_error_is_translated_once(sqlite_database: Path) -> None:
    with (
        pytest.raises(DatabaseError) as raised,
        database.session_scope(),
        database.session_scope(read_only=True) as own,
    ):
        own.execute(sa.text("not sql"))
    assert str(raised.value).count("the database") == 1


@pytest.mark.parametrize(
    "url",
    [
        "nothing",
        "",
        "://",
        "postgresql://user:s3cr3t@host:port/db",
        "postgresql://user:pass@s3cr3t:word@host/db",
        "mysql://user:s3cr3t@host/db",
        "oracle+cx_oracle://user:s3cr3t@host/db",
        "s3cr3t",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_secret(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        database.normalised_url(url)
    assert "s3cr3t" not in str(refused.value)
    assert refused.value.remedy


@pytest.mark.parametrize("driver", ["sqlite+aiosqlite", "sqlite+pysqlite"])
def test_sqlite_has_one_driver(driver: str, tmp_path: Path) -> None:
    engine = database.create_engine(f"{driver}:///{tmp_path}/a.sqlite")
    with database.session_scope(engine) as session:
        assert session.scalar(sa.text("SELECT 1")) == 1
    engine.dispose()


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg2", "postgresql+asyncpg", "postgresql+psycopg"])
def test_postgresql_has_one_driver(scheme: str) -> None:
    assert database.normalised_url(f"{scheme}://host/db").drivername == "postgresql+psycopg"


def test_the_databases_clock_is_near_ours_and_moves_by_what_is_added(sqlite_database: Path) -> None:
    with database.session_scope(read_only=True) as session:
        now, later, earlier = session.execute(sa.select(utcnow(), utcnow(90.5), utcnow(-90.5))).one()
    assert abs(datetime.now(UTC) - now) < timedelta(seconds=10)
    assert abs(later - now - timedelta(seconds=90.5)) < timedelta(seconds=1)
    assert abs(now - earlier - timedelta(seconds=90.5)) < timedelta(seconds=1)
    assert now.tzinfo is UTC


def test_times_of_the_clock_and_times_of_ours_are_compared_rightly(sqlite_database: Path) -> None:
    moment = datetime.now(UTC) - timedelta(seconds=5)
    with database.session_scope(read_only=True) as session:
        ours = sa.literal(moment, database.UTCDateTime())
        assert session.scalar(sa.select(sa.and_(ours > utcnow(-60), ours < utcnow())))


def test_a_time_without_a_zone_is_refused(sqlite_database: Path) -> None:
    with pytest.raises(DatabaseError, match="without a zone"), database.session_scope() as session:
        session.add(models.RawDataFile(name="a", path="a", size=1, modified_at=datetime(2026, 1, 1)))  # noqa: DTZ001


def test_a_time_of_any_zone_comes_back_as_the_same_moment(sqlite_database: Path) -> None:
    moment = datetime(2026, 1, 1, 3, tzinfo=timezone(timedelta(hours=-4)))
    with database.session_scope() as session:
        session.add(models.RawDataFile(name="a", path="a", size=1, modified_at=moment))
    with database.session_scope(read_only=True) as session:
        found = session.scalars(sa.select(models.RawDataFile.modified_at)).one()
    assert found == moment
    assert found is not None
    assert found.tzinfo is UTC


def test_a_database_of_this_schema_passes_the_check(sqlite_database: Path) -> None:
    database.check_schema()
    with database.session_scope(read_only=True) as session:
        assert database.revision_of(session.connection()) == database.SCHEMA_REVISION


@pytest.mark.parametrize(("revision", "says"), [("0000", "needs 0001"), ("9999", "newer than this program's")])
def test_a_database_of_another_schema_is_refused(sqlite_database: Path, revision: str, says: str) -> None:
    with database.session_scope() as session:
        session.execute(sa.table(database.SCHEMA_TABLE, sa.column("version_num")).update().values(version_num=revision))
    with pytest.raises(DatabaseSchemaError, match=says) as refused:
        database.check_schema()
    assert not refused.value.retryable


def test_an_empty_database_is_refused(tmp_path: Path, configure: Configure) -> None:
    configure(database_url=f"sqlite:///{tmp_path}/empty.sqlite")
    with pytest.raises(DatabaseSchemaError, match="empty"):
        database.check_schema()


@pytest.mark.usefixtures("operation")
class TestTheTablesRefuse:
    """Rows that no code may write, because the database is the last one who can say so."""

    @pytest.fixture
    def operation(self, sqlite_database: Path) -> None:  # noqa: ARG002 - the database that it is in
        with database.session_scope() as session:
            buffer = factories.make_location(session, "/buffer")
            archive = factories.make_location(session, "/lta", name="lta", location_type=LocationType.LONG_TERM_ARCHIVE)
            package = factories.make_package(session, "obs.tar", at=buffer)
            factories.make_operation(session, package, archive)

    def refused(self, statement: str) -> str:
        with pytest.raises(DatabaseError) as raised, database.session_scope() as session:
            session.execute(sa.text(statement))
        assert isinstance(raised.value.__cause__, sa.exc.IntegrityError)
        return str(raised.value)

    def taken(self, statement: str) -> None:
        with database.session_scope() as session:
            assert session.execute(sa.text(statement)).rowcount == 1  # type: ignore[attr-defined]

    def test_two_operations_of_one_package_to_one_place(self) -> None:
        with pytest.raises(DatabaseError, match="UNIQUE"), database.session_scope() as session:
            factories.make_operation(
                session, session.get_one(models.RawDataPackage, 1), session.get_one(models.DataLocation, 2)
            )

    @pytest.mark.parametrize(
        ("values", "constraint"),
        [
            ("status = 'failed'", "failed_has_reason"),
            ("status = 'in_progress'", "lease_while_in_progress"),
            ("status = 'in_progress', lease_owner = 'me'", "lease_while_in_progress"),
            ("status = 'in_progress', lease_until = '2026-01-01 00:00:00.000000'", "lease_while_in_progress"),
            ("lease_owner = 'me', lease_until = '2026-01-01 00:00:00.000000'", "lease_while_in_progress"),
            ("status = 'completed'", "completed_has_evidence"),
            ("status = 'completed', evidence = 'direct'", "completed_has_evidence"),
            ("status = 'completed', completed_at = '2026-01-01 00:00:00.000000'", "completed_has_evidence"),
            ("evidence = 'direct', completed_at = '2026-01-01 00:00:00.000000'", "completed_has_evidence"),
            ("status = 'scheduled'", "scheduled_has_resend"),
            ("attempt = -1", "counts_not_negative"),
            ("retry_count = -1", "counts_not_negative"),
            ("status = 'done'", "status"),
            ("status = 'failed', reason = 'bad luck'", "reason"),
            ("evidence = 'hearsay'", "evidence"),
        ],
    )
    def test_an_operation_whose_columns_contradict_each_other(self, values: str, constraint: str) -> None:
        assert constraint in self.refused(f"UPDATE long_term_archive_transfer SET {values}")  # noqa: S608

    @pytest.mark.parametrize(
        "values",
        [
            "status = 'failed', reason = 'cancelled'",
            "status = 'in_progress', lease_owner = 'me', lease_until = '2026-01-01 00:00:00.000000'",
            "status = 'completed', evidence = 'direct', completed_at = '2026-01-01 00:00:00.000000'",
            "status = 'scheduled', resend_at = '2026-01-01 00:00:00.000000'",
        ],
    )
    def test_nothing_that_is_complete(self, values: str) -> None:
        self.taken(f"UPDATE long_term_archive_transfer SET {values}")  # noqa: S608

    def test_two_packages_of_one_name(self) -> None:
        with pytest.raises(DatabaseError, match=r"raw_data_package\.(folded_)?name"), database.session_scope() as own:
            factories.make_package(own, "obs.tar")

    @pytest.mark.parametrize("name", ["OBS.tar", "obs.TAR"])
    def test_two_packages_that_some_file_system_takes_for_one(self, name: str) -> None:
        with pytest.raises(DatabaseError, match=r"raw_data_package\.folded_name"), database.session_scope() as own:
            factories.make_package(own, name)

    def test_two_copies_of_one_package_at_one_place(self) -> None:
        self.refused(
            "INSERT INTO raw_data_package_physical_copy (raw_data_package_id, data_location_id, path) "
            "VALUES (1, 1, 'another/obs.tar')"
        )

    def test_two_packages_under_one_path(self) -> None:
        with database.session_scope() as session:
            factories.make_package(session, "other.tar")
        self.refused(
            "INSERT INTO raw_data_package_physical_copy (raw_data_package_id, data_location_id, path) "
            "VALUES (2, 1, 'obs.tar')"
        )

    def test_a_package_of_negative_size(self) -> None:
        assert "size_not_negative" in self.refused("UPDATE raw_data_package SET size = -1")

    def test_a_pause_without_a_reason(self) -> None:
        values = "paused_until = '2026-01-01 00:00:00.000000'"
        assert "pause_has_reason" in self.refused(f"UPDATE data_location SET {values}")  # noqa: S608

    @pytest.mark.parametrize(
        ("table", "column"),
        [
            ("raw_data_package", "state"),
            ("raw_data_package_physical_copy", "status"),
            ("data_location", "location_type"),
            ("data_location", "storage_type"),
            ("data_location", "required_evidence"),
        ],
    )
    def test_a_word_that_is_not_of_the_vocabulary(self, table: str, column: str) -> None:
        assert "CHECK" in self.refused(f"UPDATE {table} SET {column} = 'nonsense'")  # noqa: S608

    def test_the_end_of_a_package_that_has_operations(self) -> None:
        self.refused("DELETE FROM raw_data_package")

    def test_a_log_row_of_no_operation(self) -> None:
        self.refused(
            "INSERT INTO long_term_archive_transfer_log (long_term_archive_transfer_id, verb, status, attempt, actor) "
            "VALUES (99, 'create', 'pending', 0, 'me')"
        )

    def test_defaults_hold_without_the_program(self) -> None:
        with database.session_scope() as session:
            package = factories.make_package(session)
            row = {"p": package.id}
            session.execute(
                sa.text(
                    "INSERT INTO long_term_archive_transfer (raw_data_package_id, data_location_id) VALUES (:p, 2)"
                ),
                row,
            )
            made = session.scalars(
                sa.select(models.LongTermArchiveTransfer).where(
                    models.LongTermArchiveTransfer.raw_data_package_id == package.id
                )
            ).one()
            assert (made.status, made.attempt, made.attempt_limit) == (Status.PENDING, 0, 5)
            assert session.scalar(sa.select(models.LongTermArchiveTransfer.not_before <= utcnow()))


def test_what_was_committed_is_read_by_another_program(sqlite_database: Path) -> None:
    with database.session_scope() as session:
        factories.make_site(session)
    connection = sqlite3.connect(sqlite_database)
    try:
        assert connection.execute("SELECT short_name FROM site").fetchall() == [("cologne",)]
    finally:
        connection.close()
