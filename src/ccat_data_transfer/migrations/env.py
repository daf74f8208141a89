"""Run by Alembic: over the connection it is given, or, for a developer's `revision`, over the configured database."""

from alembic import context
from sqlalchemy.engine import Connection

from ccat_data_transfer import database, models


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=models.Base.metadata,
        version_table=database.SCHEMA_TABLE,
        # Tables of other programs in the same database are not ours to compare.
        include_name=lambda name, kind, _parents: kind != "table" or name in models.Base.metadata.tables,
        compare_server_default=True,
        # True on SQLite, too: `database` begins transactions itself there, so that DDL is part of them.
        transactional_ddl=True,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()


def _main() -> None:
    given = context.config.attributes.get("connection")
    if given is not None:
        _run(given)
        return
    with database.engine().connect() as connection:
        _run(connection)


_main()
