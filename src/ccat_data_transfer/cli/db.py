"""`db`: the schema of the database, and whether it can be trusted to keep what it is told."""

from typing import TYPE_CHECKING

import click

from ccat_data_transfer.cli import commands, options, output, preparation
from ccat_data_transfer.exceptions import DatabaseError

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection


@click.group(cls=commands.Group, epilog="\b\nExample:\n  ccat_data_transfer db upgrade")
def db() -> None:
    """Upgrade and check the database."""


@db.command(example="ccat_data_transfer db upgrade")
@options.as_json
def upgrade(as_json: bool) -> None:
    """Make the tables, or bring those of an older version up to date. Take a backup before."""
    from ccat_data_transfer import database, migrations

    changed = migrations.upgrade()
    if as_json:
        output.write_json({"database": preparation.shown(), "schema": database.SCHEMA_REVISION, "changed": changed})
        return
    what = "is now" if changed else "was already"
    output.lines([f"database '{preparation.shown()}' {what} at schema {database.SCHEMA_REVISION}"])


@db.command(example="ccat_data_transfer db check --json")
@options.as_json
def check(as_json: bool) -> None:
    """Check the schema, and that a commit survives a power cut; of SQLite also that the file is intact."""
    from ccat_data_transfer import database

    preparation.for_reading()
    with database.session_scope(read_only=True) as session:
        connection = session.connection()
        found = _sqlite(connection) if connection.dialect.name == "sqlite" else _postgresql(connection)
    facts: dict[str, object] = {"database": preparation.shown(), "schema": database.SCHEMA_REVISION, **found}
    if as_json:
        output.write_json(facts)
    else:
        output.facts(facts)


def _sqlite(connection: "Connection") -> dict[str, object]:
    def pragma(name: str) -> list[object]:
        return [row[0] for row in connection.exec_driver_sql(f"PRAGMA {name}")]

    faults = pragma("quick_check(10)")
    if faults != ["ok"]:
        raise DatabaseError(
            f"the database file is damaged: {faults[0]}",
            remedy="stop every process that uses it, keep a copy of the file, and restore a backup",
        )
    if broken := connection.exec_driver_sql("PRAGMA foreign_key_check").fetchone():
        raise DatabaseError(
            f"the database is damaged: a row of table '{broken[0]}' refers to one of '{broken[2]}' that is not there",
            remedy="restore a backup",
        )
    (version,) = connection.exec_driver_sql("SELECT sqlite_version()").one()
    # How it opens was checked by the connection itself, which is refused when a commit could be forgotten.
    return {
        "engine": f"SQLite {version}",
        "journal_mode": pragma("journal_mode")[0],
        "synchronous": pragma("synchronous")[0],
        "foreign_keys": pragma("foreign_keys")[0],
        "intact": True,
    }


def _postgresql(connection: "Connection") -> dict[str, object]:
    def setting(name: str) -> object:
        return connection.exec_driver_sql(f"SHOW {name}").scalar_one()

    return {
        "engine": f"PostgreSQL {setting('server_version')}",
        "fsync": setting("fsync"),
        "synchronous_commit": setting("synchronous_commit"),
        "full_page_writes": setting("full_page_writes"),
        "data_checksums": setting("data_checksums"),
    }
