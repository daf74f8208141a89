"""Making the tables of this program, and bringing those of an older version up to date.

An upgrade is one transaction under a lock: whoever comes second finds the work done, and a crash leaves what was
there before. There is no way back down: an older program refuses a newer schema, and a backup is the way back.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from ccat_data_transfer import database, models, settings
from ccat_data_transfer.exceptions import DatabaseError, DatabaseSchemaError

if TYPE_CHECKING:
    from alembic.config import Config

# Any number that no other program takes for a PostgreSQL advisory lock of the same database.
_LOCK = int.from_bytes(b"ccat_dt")


def upgrade(url: str | None = None) -> bool:
    """Bring the database (the configured one by default) to this program's schema; True when that changed it.

    Cheap when there is nothing to do. Tables of other programs are left alone; raises `DatabaseSchemaError` when
    they have the names of ours, and when the schema is newer than this program.
    """
    engine = database.engine() if url is None else database.create_engine(url)
    try:
        _make_directory(engine)
        with database.session_scope(engine, read_only=True) as session:
            found = database.revision_of(session.connection())
        if found == database.SCHEMA_REVISION:
            return False
        if found is not None and found > database.SCHEMA_REVISION:
            database.check_schema(engine)  # raises, and says what to do
        with database.translated_errors(), engine.begin() as connection:
            return _upgrade(connection)
    finally:
        if url is not None:
            engine.dispose()


def check(url: str | None = None) -> None:
    """Raise `DatabaseSchemaError` unless the database (the configured one by default) has this program's schema."""
    engine = database.engine() if url is None else database.create_engine(url)
    try:
        database.check_schema(engine)
    finally:
        if url is not None:
            engine.dispose()


def config(connection: Connection | None = None) -> "Config":
    """Alembic's configuration, made here so that no `alembic.ini` has to be found; its messages go to the log only.

    Without a `connection`, `env.py` opens the configured database; that is for `alembic revision` and its kin.
    """
    from alembic.config import Config

    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    made.set_main_option("path_separator", "os")
    made.attributes["connection"] = connection
    return made


def _make_directory(engine: Engine) -> None:
    """Make the working directory when the SQLite file lies in it; any other folder must be there.

    A database whose URL is mistyped would otherwise come back empty in a folder that nobody wanted.
    """
    file = engine.url.database
    if engine.dialect.name != "sqlite" or not file or file.startswith((":memory:", "file:")):
        return
    folder, working_directory = Path(file).absolute().parent, settings.get().working_directory
    try:
        if folder == working_directory:
            folder.mkdir(parents=True, exist_ok=True)
            return
        is_there = folder.is_dir()
    except OSError as error:
        raise DatabaseError(f"the folder of database '{file}' cannot be made: {error.strerror}") from error
    if not is_there:
        raise DatabaseError(
            f"there is no folder '{folder}' for database '{file}'",
            remedy="make the folder, or correct CCAT_DATA_TRANSFER_DATABASE_URL",
        )


def _upgrade(connection: Connection) -> bool:
    """Upgrade in the transaction of `connection`, which others wait for."""
    from alembic import command
    from alembic.util import CommandError

    # On SQLite the transaction has begun by taking the write lock.
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    found = database.revision_of(connection)
    if found == database.SCHEMA_REVISION:
        return False
    if found is None:
        _refuse_foreign_tables(connection)
    try:
        command.upgrade(config(connection), "head")
    except CommandError as error:
        raise DatabaseSchemaError(
            f"the database is at schema '{found}', and this program knows no way from there: {error}",
            remedy="restore a backup, or use the version of this program that wrote the database",
        ) from error
    return True


def _refuse_foreign_tables(connection: Connection) -> None:
    ours = set(models.Base.metadata.tables)
    if taken := sorted(ours.intersection(sa.inspect(connection).get_table_names())):
        raise DatabaseSchemaError(
            f"the database has tables with the names of this program's that it did not make: {', '.join(taken)}",
            remedy="give this program a database (or, in PostgreSQL, a schema through search_path) of its own",
        )
