"""The migrations on PostgreSQL: they make what the models say, and upgrades at the same time wait for each other."""

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.engine import Engine
from tests import servers

from ccat_data_transfer import database, migrations, models
from ccat_data_transfer.exceptions import DatabaseSchemaError

pytestmark = pytest.mark.postgresql

# What alembic's comparison does not see, as PostgreSQL itself writes it down.
DEFINITIONS = {
    "constraint": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace""",
    "index": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "column": """
        SELECT table_name, column_name, concat_ws(' ', data_type, character_maximum_length, is_nullable, column_default)
        FROM information_schema.columns WHERE table_schema = 'public'""",
}


@contextlib.contextmanager
def engine_of(url: str) -> Iterator[Engine]:
    engine = database.create_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()


def execute(url: str, *statements: str) -> None:
    with engine_of(url) as engine, engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def tables(url: str) -> set[str]:
    with engine_of(url) as engine:
        return set(sa.inspect(engine).get_table_names())


def definitions(url: str) -> set[tuple[str, ...]]:
    found = set()
    with engine_of(url) as engine, engine.connect() as connection:
        for kind, query in DEFINITIONS.items():
            found |= {(kind, *row) for row in connection.exec_driver_sql(query)}
    return {row for row in found if row[1] != database.SCHEMA_TABLE}


def test_an_upgrade_makes_every_table_and_the_second_changes_nothing(postgresql_url: str) -> None:
    assert migrations.upgrade(postgresql_url)
    assert tables(postgresql_url) == set(models.Base.metadata.tables) | {database.SCHEMA_TABLE}
    migrations.check(postgresql_url)
    assert not migrations.upgrade(postgresql_url)


def test_migrations_and_models_make_the_same_tables(postgresql_url: str) -> None:
    migrations.upgrade(postgresql_url)
    with engine_of(postgresql_url) as engine, engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": database.SCHEMA_TABLE, "compare_server_default": True}
        )
        assert compare_metadata(context, models.Base.metadata) == []


def test_migrations_and_models_agree_on_checks_defaults_and_partial_indexes(
    postgresql_url: str, postgresql_server: servers.PostgreSQL
) -> None:
    migrations.upgrade(postgresql_url)
    with postgresql_server.database() as other:
        with engine_of(other) as engine:
            models.Base.metadata.create_all(engine)
        assert definitions(postgresql_url) == definitions(other)
    kinds = {row[0] for row in definitions(postgresql_url)}
    assert kinds == set(DEFINITIONS)


def test_upgrades_at_the_same_time_wait_and_one_does_the_work(postgresql_url: str) -> None:
    barrier = threading.Barrier(4)

    def upgrade() -> bool:
        barrier.wait(30)
        return migrations.upgrade(postgresql_url)

    with ThreadPoolExecutor(4) as pool:
        outcomes = [future.result(60) for future in [pool.submit(upgrade) for _ in range(4)]]
    assert sorted(outcomes) == [False, False, False, True]
    migrations.check(postgresql_url)


def test_an_upgrade_that_breaks_leaves_nothing_half_made(postgresql_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class PowerCut(BaseException):
        pass

    def cut(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if statement.startswith(f"INSERT INTO {database.SCHEMA_TABLE}"):
            raise PowerCut

    make = database.create_engine

    def make_mortal(url: str) -> Engine:
        engine = make(url)
        sa.event.listen(engine, "before_cursor_execute", cut)
        return engine

    with monkeypatch.context() as patch:
        patch.setattr(database, "create_engine", make_mortal)
        with pytest.raises(PowerCut):
            migrations.upgrade(postgresql_url)
    assert tables(postgresql_url) == set()
    assert migrations.upgrade(postgresql_url)


def test_a_newer_schema_is_refused(postgresql_url: str) -> None:
    migrations.upgrade(postgresql_url)
    execute(postgresql_url, "UPDATE ccat_data_transfer_schema SET version_num = '9999'")
    for act in (migrations.check, migrations.upgrade):
        with pytest.raises(DatabaseSchemaError, match=r"9999.*newer"):
            act(postgresql_url)


def test_an_older_schema_is_refused(postgresql_url: str) -> None:
    migrations.upgrade(postgresql_url)
    execute(postgresql_url, "UPDATE ccat_data_transfer_schema SET version_num = '0000'")
    with pytest.raises(DatabaseSchemaError, match="0000"):
        migrations.check(postgresql_url)


def test_tables_of_other_programs_are_left_alone(postgresql_url: str) -> None:
    execute(postgresql_url, "CREATE TABLE alembic_version (version_num text)", "CREATE TABLE observation (id int)")
    assert migrations.upgrade(postgresql_url)
    assert tables(postgresql_url) > {"alembic_version", "observation"}


def test_a_table_with_the_name_of_ours_is_not_taken_over(postgresql_url: str) -> None:
    execute(postgresql_url, "CREATE TABLE data_location (id int)")
    with pytest.raises(DatabaseSchemaError, match="data_location"):
        migrations.upgrade(postgresql_url)
    assert tables(postgresql_url) == {"data_location"}
