"""The migrations on SQLite: they make what the models say, once, whole, and never over anybody's tables."""

import contextlib
import logging
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from ccat_data_transfer import database, migrations, models, settings
from ccat_data_transfer.exceptions import DatabaseError, DatabaseSchemaError

TABLES = set(models.Base.metadata.tables)


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The configured database, which does not exist yet; nor does its folder."""
    url = f"sqlite:///{tmp_path}/new/operations.sqlite"
    monkeypatch.setenv("CCAT_DATA_TRANSFER_DATABASE_URL", url)
    monkeypatch.setenv("CCAT_DATA_TRANSFER_WORKING_DIRECTORY", f"{tmp_path}/new")
    settings.get.cache_clear()
    yield url
    database.dispose()
    settings.get.cache_clear()


def tables(url: str) -> set[str]:
    engine = database.create_engine(url)
    try:
        return set(sa.inspect(engine).get_table_names())
    finally:
        engine.dispose()


def execute(url: str, *statements: str) -> None:
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def test_an_upgrade_makes_every_table_and_the_second_changes_nothing(url: str) -> None:
    assert migrations.upgrade()
    assert tables(url) == TABLES | {database.SCHEMA_TABLE}
    migrations.check()
    assert not migrations.upgrade()
    assert not migrations.upgrade(url)
    migrations.check(url)


def test_the_code_needs_the_newest_migration() -> None:
    script = ScriptDirectory.from_config(migrations.config())
    assert script.get_heads() == [database.SCHEMA_REVISION]


def test_no_migration_offers_a_way_down() -> None:
    script = ScriptDirectory.from_config(migrations.config())
    for revision in script.walk_revisions():
        assert not hasattr(revision.module, "downgrade")
    assert not hasattr(migrations, "downgrade")


def test_no_migration_imports_the_models() -> None:
    for file in Path(migrations.__file__).parent.joinpath("versions").glob("*.py"):
        assert "ccat_data_transfer import" not in file.read_text()


def test_migrations_and_models_make_the_same_tables(url: str) -> None:
    migrations.upgrade()
    with database.engine().connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": database.SCHEMA_TABLE})
        assert compare_metadata(context, models.Base.metadata) == []


def test_migrations_and_models_agree_on_checks_defaults_and_partial_indexes(url: str, tmp_path: Path) -> None:
    migrations.upgrade()
    other = f"sqlite:///{tmp_path}/models.sqlite"
    engine = database.create_engine(other)
    models.Base.metadata.create_all(engine)
    engine.dispose()
    migrated = definitions(url)
    del migrated[database.SCHEMA_TABLE]
    assert migrated == definitions(other)


def definitions(url: str) -> dict[str, list[str]]:
    """The DDL of every table and index, its lines sorted: in which order constraints are written means nothing."""
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    connection.close()
    return {name: sorted(line.strip().rstrip(",") for line in sql.splitlines()) for name, sql in rows}


def test_a_new_row_gets_its_defaults_from_the_database(url: str) -> None:
    migrations.upgrade()
    execute(url, "INSERT INTO raw_data_package (name, folded_name, size) VALUES ('a.tar', 'a.tar', 1)")
    with database.session_scope() as session:
        package = session.scalars(sa.select(models.RawDataPackage)).one()
        age = session.scalars(sa.select(database.utcnow())).one() - package.created_at
    assert package.state == "waiting"
    assert 0 <= age.total_seconds() < 60


def test_an_empty_database_is_refused_with_the_command_that_helps(url: str) -> None:
    migrations._make_directory(database.engine())
    with pytest.raises(DatabaseSchemaError) as refused:
        migrations.check()
    assert "db upgrade" in refused.value.remedy


def test_an_older_schema_is_refused(url: str) -> None:
    migrations.upgrade()
    execute(url, "UPDATE ccat_data_transfer_schema SET version_num = '0000'")
    with pytest.raises(DatabaseSchemaError, match="0000"):
        migrations.check()


def test_a_newer_schema_is_refused_and_left_alone(url: str) -> None:
    migrations.upgrade()
    execute(url, "UPDATE ccat_data_transfer_schema SET version_num = '9999'")
    for act in (migrations.check, migrations.upgrade):
        with pytest.raises(DatabaseSchemaError, match=r"9999.*newer"):
            act()


def test_a_schema_that_nobody_knows_is_refused(url: str) -> None:
    migrations.upgrade()
    execute(url, "UPDATE ccat_data_transfer_schema SET version_num = '0000'")
    with pytest.raises(DatabaseSchemaError, match="0000"):
        migrations.upgrade()


def test_tables_of_other_programs_are_left_alone(url: str, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    execute(
        url,
        "CREATE TABLE observation (id integer)",
        "CREATE TABLE alembic_version (version_num text)",
        "INSERT INTO alembic_version VALUES ('theirs')",
    )
    assert migrations.upgrade()
    assert tables(url) == TABLES | {database.SCHEMA_TABLE, "observation", "alembic_version"}
    migrations.check()


def test_a_table_with_the_name_of_ours_is_not_taken_over(url: str, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    execute(url, "CREATE TABLE site (id integer)")
    with pytest.raises(DatabaseSchemaError, match="site") as refused:
        migrations.upgrade()
    assert refused.value.remedy
    assert tables(url) == {"site"}


def test_an_upgrade_that_breaks_leaves_nothing_half_made(url: str) -> None:
    class PowerCut(BaseException):
        pass

    def cut(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if statement.startswith(f"INSERT INTO {database.SCHEMA_TABLE}"):
            raise PowerCut

    migrations._make_directory(database.engine())
    sa.event.listen(database.engine(), "before_cursor_execute", cut)
    with pytest.raises(PowerCut):
        migrations.upgrade()
    assert tables(url) == set()
    sa.event.remove(database.engine(), "before_cursor_execute", cut)
    assert migrations.upgrade()


def test_of_upgrades_at_the_same_time_one_does_the_work(url: str) -> None:
    code = "from ccat_data_transfer import migrations; print('ready', flush=True); input(); print(migrations.upgrade())"
    with contextlib.ExitStack() as stack:
        racers = [
            stack.enter_context(subprocess.Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE, stderr=PIPE))
            for _ in range(3)
        ]
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == b"ready\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write(b"\n")
            racer.stdin.flush()
        said = [racer.communicate(timeout=60) for racer in racers]
    assert sorted(said) == [(b"False\n", b""), (b"False\n", b""), (b"True\n", b"")]
    migrations.check()


def test_nothing_is_written_to_standard_output(
    url: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        migrations.upgrade()
    assert capfd.readouterr() == ("", "")


def test_alembic_is_not_imported_when_there_is_nothing_to_do(url: str) -> None:
    migrations.upgrade()
    code = (
        "import sys; from ccat_data_transfer import migrations; print(migrations.upgrade(), 'alembic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_working_directory_that_cannot_be_made_is_the_databases_trouble(
    tmp_path: Path, configure: Callable[..., None]
) -> None:
    (tmp_path / "file").touch()
    configure(working_directory=tmp_path / "file" / "work")
    with pytest.raises(DatabaseError, match="cannot be made"):
        migrations.upgrade(f"sqlite:///{tmp_path}/file/work/operations.sqlite")


def test_of_all_folders_only_the_working_directory_is_made(tmp_path: Path, configure: Callable[..., None]) -> None:
    configure(working_directory=tmp_path / "a" / "work")
    for folder in ("mistyped", "a/work/inner", "file"):
        with pytest.raises(DatabaseError, match="there is no folder"):
            migrations.upgrade(f"sqlite:///{tmp_path}/{folder}/operations.sqlite")
        assert list(tmp_path.iterdir()) == []
    assert migrations.upgrade(f"sqlite:///{tmp_path}/a/work/operations.sqlite")


def test_a_percent_sign_in_the_path_of_the_package_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "__file__", "/opt/100%/migrations/__init__.py")
    assert migrations.config().get_main_option("script_location") == "/opt/100%/migrations"
