"""What the program has, the documentation explains."""

import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from enum import StrEnum

import click
import pytest
from tests.docs import reading

import ccat_data_transfer
from ccat_data_transfer import cli, database, models, settings, states, topology
from ccat_data_transfer.exceptions import CCATDataOperationError

REASONS = "docs/how-to/when-something-fails.md"


def test_generated_pages_are_fresh() -> None:
    command = [sys.executable, str(reading.ROOT / "scripts" / "docs")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _commands(group: click.Group, context: click.Context) -> Iterator[click.Context]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        below = click.Context(command, info_name=name, parent=context)
        yield below
        if isinstance(command, click.Group):
            yield from _commands(command, below)


def _all_commands() -> list[click.Context]:
    return list(_commands(cli.root, click.Context(cli.root, info_name="ccat_data_transfer")))


def test_every_command_is_documented() -> None:
    documented = reading.headings("docs/reference/cli.md")
    assert [context.command_path for context in _all_commands()] == documented[2:]


def test_every_json_output_is_documented() -> None:
    documented = [h.removesuffix(" --json") for h in reading.headings("docs/reference/json.md") if h.endswith("--json")]
    with_json = [
        context.command_path.removeprefix("ccat_data_transfer ")
        for context in _all_commands()
        if any("--json" in parameter.opts for parameter in context.command.params)
    ]
    assert sorted(with_json) == sorted(set(documented) - {"archive --dry-run"})


def test_every_setting_is_documented() -> None:
    assert reading.first_cells(reading.text("docs/reference/settings.md"))[1:] == list(settings.Settings.model_fields)


def _subclasses(top: type[CCATDataOperationError]) -> Iterator[type[CCATDataOperationError]]:
    yield top
    for below in top.__subclasses__():
        yield from _subclasses(below)


def test_every_error_is_documented() -> None:
    for module in pkgutil.walk_packages(ccat_data_transfer.__path__, "ccat_data_transfer."):
        if not module.name.endswith(("__main__", ".env")) and ".versions" not in module.name:
            importlib.import_module(module.name)
    documented = set(reading.first_cells(reading.text("docs/reference/errors.md"))[1:])
    ours = {error for error in _subclasses(CCATDataOperationError) if error.__module__.startswith("ccat_data_transfer")}
    assert documented == {error.__name__ for error in ours}


def test_every_exit_code_is_documented() -> None:
    documented = {int(cell) for cell in reading.first_cells(reading.text("docs/reference/exit-codes.md"))[1:]}
    assert {0, cli.NOT_ALL, cli.DEFECT, cli.INTERRUPTED} <= documented
    assert {error.exit_code for error in _subclasses(CCATDataOperationError)} <= documented


@pytest.mark.parametrize(
    ("vocabulary", "heading"),
    [(states.FailureReason, "Reasons of failures"), (states.PauseReason, "Reasons of pauses")],
)
def test_every_reason_has_its_own_paragraph(vocabulary: type[StrEnum], heading: str) -> None:
    body = reading.section(REASONS, heading)
    documented = re.findall(r"^### `(\w+)`$", body, flags=re.MULTILINE)
    assert documented == [reason.value for reason in vocabulary]
    for part in re.split(r"^### .+$", body, flags=re.MULTILINE)[1:]:
        assert "*Do:*" in part


def test_every_status_and_move_is_documented() -> None:
    page = reading.text("docs/states.md")
    for vocabulary in (states.Status, states.PackageState, states.PhysicalCopyStatus, states.Evidence):
        assert {value.value for value in vocabulary} <= set(reading.first_cells(page))
    for move in states.MOVES:
        source = f"`{move.source.value}`" if move.source else "(nothing)"
        assert f"| `{move.verb.value}` | {source} | `{move.target.value}` | {move.mover} |" in page


def test_every_verb_and_status_is_in_the_glossary_or_the_states() -> None:
    words = set(reading.first_cells(reading.text("docs/glossary.md")))
    assert {verb.value for verb in states.Verb} <= words


def test_every_table_and_column_is_documented() -> None:
    page = "docs/reference/tables.md"
    tables = models.Base.metadata.tables
    assert sorted(reading.headings(page)[1:]) == sorted([*tables, database.SCHEMA_TABLE])
    for name, table in tables.items():
        body = reading.section(page, f"`{name}`")
        assert sorted(reading.first_cells(body)[1:]) == sorted(table.columns.keys()), name
        bold = set(re.findall(r"^\| \*\*`(\w+)`\*\*", body, flags=re.MULTILINE))
        assert bold == {column.name for column in table.columns if not column.nullable}, name


def test_every_key_of_a_topology_file_is_documented() -> None:
    body = reading.section("docs/how-to/run-two-sites.md", "4. The topology")
    for place in (topology.DiskPlace, topology.S3Place, topology.TapePlace):
        for key in place.model_fields:
            assert f"`{key}`" in body, key


def test_the_topology_of_the_page_is_that_of_the_example_file() -> None:
    blocks = [block for language, block in reading.blocks("docs/how-to/run-two-sites.md") if language == "toml"]
    assert blocks == [reading.text("deploy/topology.example.toml")]


def test_the_example_files_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = topology.load(reading.ROOT / "deploy" / "topology.example.toml")
    assert [site.short_name for site in declared.sites] == ["ccat", "cologne"]
    example = reading.ROOT / "deploy" / "settings.example.toml"
    monkeypatch.setenv("CCAT_DATA_TRANSFER_SETTINGS_FILE", str(example))
    for environment in tomllib.loads(example.read_text(encoding="utf-8")):
        monkeypatch.setenv("CCAT_DATA_TRANSFER_ENVIRONMENT", environment)
        settings.Settings()


def test_the_layers_of_the_architecture_page_are_those_that_are_checked() -> None:
    project = tomllib.loads(reading.text("pyproject.toml"))
    (contract,) = (each for each in project["tool"]["importlinter"]["contracts"] if each["type"] == "layers")
    checked = [layer.replace("ccat_data_transfer.", "") for layer in contract["layers"]]
    drawn = [block.splitlines() for _, block in reading.blocks("ARCHITECTURE.md")]
    assert checked in drawn


def test_the_readme_is_short_and_gives_the_two_commands() -> None:
    readme = reading.text("README.md")
    assert len(readme.splitlines()) < 150
    assert "`make demo`" in readme
    assert "`make test`" in readme


def test_the_units_call_commands_that_exist() -> None:
    for name in ("archive-manager.service", "worker@.service"):
        (call,) = re.findall(r"^ExecStart=\S+ (.+)$", reading.text(f"deploy/{name}"), flags=re.MULTILINE)
        assert call.split()[0] in {context.info_name for context in _all_commands()}
