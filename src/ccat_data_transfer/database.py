"""The database: engine, sessions, its clock, and the checks that refuse one that could forget.

Knows no table. One engine a process: a forked child gets its own.
"""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Dialect, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session

from ccat_data_transfer import settings
from ccat_data_transfer.exceptions import ConfigurationError, DatabaseError, DatabaseSchemaError

# The revision whose tables this code needs; a test holds it equal to the newest migration.
SCHEMA_REVISION = "0001"
# Where it is written. Not Alembic's own `alembic_version`: other programs in the same database may keep theirs there.
SCHEMA_TABLE = "ccat_data_transfer_schema"

SQLITE_BUSY_SECONDS = 30
CONNECT_SECONDS = 10


class utcnow(sa.sql.functions.GenericFunction[datetime]):  # noqa: N801 - reads as the SQL function it is
    """The database's clock, `seconds` from now. Workers' clocks are never trusted with a lease."""

    inherit_cache = True
    name = "utcnow"

    def __init__(self, seconds: float | sa.BindParameter[float] = 0.0) -> None:
        super().__init__(sa.literal(float(seconds), sa.Float) if isinstance(seconds, float | int) else seconds)
        self.type = UTCDateTime()


class UTCDateTime(sa.types.TypeDecorator[datetime]):
    """A point in time, aware and in UTC. SQLite keeps text of fixed width, so that comparing text compares times."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Refuse naive times."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone cannot be stored")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Give every time its zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


@compiles(utcnow, "postgresql")
def _utcnow_postgresql(element: Any, compiler: Any, **options: Any) -> str:
    # Not now(), which is the start of the transaction; not clock_timestamp(), which no index condition may use.
    (seconds,) = element.clauses
    return f"(statement_timestamp() + make_interval(secs => {compiler.process(seconds, **options)}))"


@compiles(utcnow, "sqlite")
def _utcnow_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    (seconds,) = element.clauses
    offset = f"printf('%+.3f seconds', {compiler.process(seconds, **options)})"
    return f"(strftime('%Y-%m-%d %H:%M:%f', 'now', {offset}) || '000')"


def normalised_url(text: str) -> URL:
    """Parse a database URL and choose the driver; raises `ConfigurationError` without showing the URL."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ConfigurationError(
            "the database URL is not of the form dialect://user:password@host/name",
            remedy="set CCAT_DATA_TRANSFER_DATABASE_URL to a sqlite or postgresql URL",
        ) from None
    backend = url.get_backend_name()
    if backend not in {"sqlite", "postgresql"}:
        raise ConfigurationError(
            f"database '{backend}' is not supported", remedy="use PostgreSQL, or SQLite for a single host"
        )
    return url.set(drivername="postgresql+psycopg" if backend == "postgresql" else "sqlite")


def create_engine(url: str) -> Engine:
    """An engine whose connections are durable or refused; connects to nothing yet."""
    parsed = normalised_url(url)
    if parsed.get_backend_name() == "sqlite":
        # One in memory, which only a setting with an uncomfortable name admits, has a pool of its own kind.
        in_memory = not parsed.database or parsed.database == ":memory:" or "mode=memory" in str(parsed.query)
        pool: dict[str, Any] = {} if in_memory else {"pool_size": 16, "max_overflow": 240}
        engine = sa.create_engine(parsed, connect_args={"timeout": SQLITE_BUSY_SECONDS}, **pool)
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    else:
        engine = sa.create_engine(
            parsed,
            pool_pre_ping=True,
            pool_size=5,
            max_overflow=60,
            connect_args={
                "connect_timeout": CONNECT_SECONDS,
                "application_name": "ccat_data_transfer",
                # A connection whose other end is gone without a word must not hang for the kernel's two hours.
                "keepalives_idle": 30,
                "keepalives_interval": 10,
                "keepalives_count": 3,
                "tcp_user_timeout": 30_000,  # milliseconds
            },
        )
        sa.event.listen(engine, "connect", _check_postgresql)
    return engine


def _refuse_volatile(what: str, remedy: str) -> None:
    if not settings.get().allow_volatile_database:
        raise DatabaseTroubleError(f"the database could forget a commit at a power cut: {what}", remedy=remedy)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    """Set what survives a power cut, and read back that it holds.

    With SQLite's defaults, and with WAL under synchronous=NORMAL, the last commits are lost when the power goes;
    with WAL under FULL they are not (https://www.sqlite.org/pragma.html#pragma_synchronous).
    """
    connection.isolation_level = None  # this module begins transactions itself
    cursor = connection.cursor()
    try:
        journal = cursor.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        synchronous = cursor.execute("PRAGMA synchronous").fetchone()[0]
        keys = cursor.execute("PRAGMA foreign_keys").fetchone()[0]
    finally:
        cursor.close()
    if keys != 1:
        raise DatabaseError("this SQLite does not enforce foreign keys", remedy="use a build of SQLite that does")
    if journal != "wal" or synchronous < 2:
        _refuse_volatile(
            f"SQLite runs with journal_mode={journal}, synchronous={synchronous} instead of WAL and FULL",
            "keep the database on a local file system, not in memory and not on a network share",
        )


def _begin_sqlite(connection: Connection) -> None:
    # Taking the write lock at the start makes a busy database wait there, where nothing has been read yet, instead
    # of failing at the first write. Readers ask for a deferred transaction and wait for nobody.
    mode = connection.get_execution_options().get("sqlite_begin", "IMMEDIATE")
    # Past SQLAlchemy's machinery, which costs more than the statement; its errors are translated all the same.
    driver: Any = connection.connection.dbapi_connection
    try:
        driver.execute(f"BEGIN {mode}")
    except sqlite3.Error as error:
        raise sa.exc.OperationalError(f"BEGIN {mode}", None, error) from error


def _check_postgresql(connection: Any, _record: Any) -> None:
    with connection.cursor() as cursor:
        # A worker that freezes in a transaction, and whoever waits for its locks, must not stop everybody else.
        cursor.execute("SET idle_in_transaction_session_timeout = '60s'")
        cursor.execute("SET lock_timeout = '30s'")
        cursor.execute("SELECT current_setting('fsync'), current_setting('synchronous_commit')")
        fsync, commit = cursor.fetchone()
    connection.commit()
    if fsync != "on" or commit == "off":
        _refuse_volatile(
            f"PostgreSQL runs with fsync={fsync}, synchronous_commit={commit}",
            "set fsync=on and synchronous_commit=on (or stronger) in postgresql.conf",
        )


class _Engines:
    """The engine of this process for each URL; what a parent process opened is left alone in a forked child."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._engines: dict[str, Engine] = {}

    def get(self, url: str) -> Engine:
        with self._lock:
            if self._pid != os.getpid():
                for inherited in self._engines.values():
                    inherited.dispose(close=False)
                self._engines, self._pid = {}, os.getpid()
            if url not in self._engines:
                self._engines[url] = create_engine(url)
            return self._engines[url]

    def dispose(self) -> None:
        with self._lock:
            for engine in self._engines.values():
                engine.dispose(close=self._pid == os.getpid())
            self._engines = {}


_engines = _Engines()


def engine() -> Engine:
    """The engine of the configured database, made at the first call in each process."""
    return _engines.get(settings.get().database)


def dispose() -> None:
    """Close the connections of this process; the next use opens new ones. Forget inherited ones after a fork."""
    _engines.dispose()


@contextlib.contextmanager
def session_scope(bind: Engine | Connection | None = None, *, read_only: bool = False) -> Iterator[Session]:
    """One short transaction: committed at the end of the block, rolled back when it raises.

    Raises `DatabaseError` for trouble of the database; other errors pass through.
    """
    target = bind if bind is not None else engine()
    if read_only and isinstance(target, Engine):
        target = target.execution_options(sqlite_begin="DEFERRED")
    with translated_errors(), Session(target, expire_on_commit=False) as session, session.begin():
        yield session


class SchemaTroubleError(DatabaseSchemaError, SQLAlchemyError):
    """A schema error that callers who know only SQLAlchemy catch too."""


class DatabaseTroubleError(DatabaseError, SQLAlchemyError):
    """The driver's error in this program's words; callers that know only SQLAlchemy catch it too."""


@contextlib.contextmanager
def translated_errors() -> Iterator[None]:
    """Turn the driver's errors into `DatabaseError`; its text names host and database but never a password."""
    try:
        yield
    except DatabaseTroubleError:
        raise
    except DBAPIError as error:
        raise DatabaseTroubleError(f"the database refused: {_first_line(error.orig)}") from error
    except SQLAlchemyError as error:
        raise DatabaseTroubleError(f"the database cannot be used: {_first_line(error)}") from error


def _first_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def check_schema(bind: Engine | None = None) -> None:
    """Raise `DatabaseSchemaError` unless the tables are exactly those that this code was written for."""
    with session_scope(bind, read_only=True) as session:
        found = revision_of(session.connection())
    if found == SCHEMA_REVISION:
        return
    if found is None:
        raise SchemaTroubleError("the database is empty: it has none of this program's tables")
    if found < SCHEMA_REVISION:
        raise SchemaTroubleError(f"the database is at schema {found}, this program needs {SCHEMA_REVISION}")
    raise SchemaTroubleError(
        f"the database is at schema {found}, newer than this program's {SCHEMA_REVISION}",
        remedy="upgrade this program; it refuses to guess what a newer schema means",
    )


def revision_of(connection: Connection) -> str | None:
    """The schema revision that is written in the database, or None when it has no tables of ours."""
    if not sa.inspect(connection).has_table(SCHEMA_TABLE):
        return None
    version = sa.table(SCHEMA_TABLE, sa.column("version_num"))
    revision: str | None = connection.execute(sa.select(version.c.version_num)).scalar()
    return revision
