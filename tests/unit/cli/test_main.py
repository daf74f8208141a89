"""The edge: help, exit codes, and how errors are told."""

import errno
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest
from tests.unit.cli.conftest import Program

from ccat_data_transfer import __version__, cli, exceptions, reports
from ccat_data_transfer.cli import commands, output


def _commands() -> Iterator[tuple[str, ...]]:
    context = click.Context(cli.root)
    for name in cli.root.list_commands(context):
        command = cli.root.get_command(context, name)
        yield (name,)
        if isinstance(command, click.Group):
            for below in command.list_commands(context):
                yield name, below


COMMANDS = list(_commands())


@pytest.mark.parametrize("command", [(), *COMMANDS], ids=" ".join)
def test_every_command_has_help_with_an_example(nothing: Program, command: tuple[str, ...]) -> None:
    result = nothing(*command, "--help")
    assert result.code == 0
    assert "Example:\n  ccat_data_transfer " in result.out.replace(
        "\n    ccat_data_transfer ", "\n  ccat_data_transfer "
    )
    assert "--workdir" in result.out
    assert "--verbose" in result.out
    assert nothing.files == []


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_says_what_it_does(command: tuple[str, ...]) -> None:
    context = click.Context(cli.root)
    found = cli.root.get_command(context, command[0])
    for name in command[1:]:
        assert isinstance(found, click.Group)
        found = found.get_command(context, name)
    assert found is not None
    assert found.help
    assert found.get_short_help_str(200).endswith(".")


def test_the_help_documents_every_exit_code(nothing: Program) -> None:
    out = nothing("--help").out
    codes = {error.exit_code for error in _tree(exceptions.CCATDataOperationError)}
    for code in codes | {0, cli.NOT_ALL, cli.DEFECT, cli.INTERRUPTED}:
        assert f"\n    {code} " in out, code


def _tree(error: type[exceptions.CCATDataOperationError]) -> Iterator[type[exceptions.CCATDataOperationError]]:
    yield error
    for below in error.__subclasses__():
        yield from _tree(below)


@pytest.mark.parametrize("command", [(), ("status",), ("topology", "show")], ids=" ".join)
def test_the_version_is_shown_anywhere(nothing: Program, command: tuple[str, ...]) -> None:
    assert nothing(*command, "--version").out == f"ccat_data_transfer {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-command",),
        ("topology", "no-such-command"),
        ("archive",),
        ("archive", "x"),
        ("status", "--no-such-option"),
        ("transfer", "show", "abc"),
        ("transfer", "show", "0"),
        ("transfer", "show", "-1"),
        ("transfer", "show", "9223372036854775808"),
        ("transfer", "cancel"),
        ("transfer", "retry"),
        ("transfer", "retry", "1", "--all-failed"),
        ("transfer", "retry", "1", "--site", "cologne"),
        ("transfer", "list", "--status", "lost"),
        ("transfer", "list", "--limit", "0"),
        ("package", "list", "--state", "lost"),
        ("worker", "--concurrency", "0"),
        ("status", "--workdir", ""),
        ("stat\x1b[31mus\n",),
    ],
    ids=" ".join,
)
def test_a_bad_command_exits_with_2_and_says_where_help_is(nothing: Program, arguments: tuple[str, ...]) -> None:
    result = nothing(*arguments)
    assert result.code == 2
    assert result.out == ""
    error, hint = result.err.splitlines()
    assert error.startswith("error: ")
    assert "--help` explains the command" in hint
    assert nothing.files == []


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (("statsu",), "'statsu'; did you mean 'status'?"),
        (("--verbose", "archiv"), "'archiv'; did you mean 'archive'?"),
        (("package", "lst"), "'lst'; did you mean 'list'?"),
        (("db", "qqq"), "'qqq'; there are: upgrade, check"),
    ],
)
def test_an_unknown_command_suggests_the_nearest(nothing: Program, arguments: tuple[str, ...], suggestion: str) -> None:
    assert nothing(*arguments).err.startswith(f"error: there is no command {suggestion}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("topology", "show"),
        ("location", "list"),
        ("location", "show", "a/b"),
        ("location", "check"),
        ("location", "resume", "a/b"),
        ("package", "list"),
        ("package", "show", "x"),
        ("transfer", "list"),
        ("transfer", "show", "1"),
        ("transfer", "retry", "1"),
        ("transfer", "cancel", "1"),
        ("status",),
        ("queues",),
        ("db", "check"),
        ("archive-manager", "--once"),
        ("archive-manager",),
        ("worker",),
    ],
    ids=" ".join,
)
def test_without_a_database_a_command_names_where_it_looked(nothing: Program, arguments: tuple[str, ...]) -> None:
    result = nothing(*arguments)
    assert result.code == 4
    first, hint = [line for line in result.err.splitlines() if not line.startswith("{")]
    assert first == f"error: there is no database at '{nothing.folder}/.ccat_data_transfer/operations.sqlite'"
    assert hint.startswith("hint: run `ccat_data_transfer archive`")
    assert nothing.files == []


@pytest.mark.parametrize("place", ["before", "after"])
def test_the_working_directory_is_chosen_before_or_after_the_command(
    program: Program, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = program.folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    option = ("--workdir", "../.ccat_data_transfer")
    program.succeed(*((*option, "queues") if place == "before" else ("queues", *option)))


def test_an_unforeseen_error_is_told_as_a_defect(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object) -> None:
        raise LookupError("what\x1b[31m is this")

    monkeypatch.setattr(reports, "queues", broken)
    result = program("queues")
    assert result.code == 70
    assert result.err.splitlines() == [
        "error: unexpected LookupError: what\\x1b[31m is this",
        "hint: this is a defect; run again with --verbose and report it",
    ]
    assert "in broken" in program("--verbose", "queues").err
    assert "in broken" in program("queues", "--verbose").err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interrupt_exits_with_130(program: Program, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def interrupted(*_arguments: object) -> None:
        raise error

    monkeypatch.setattr(reports, "queues", interrupted)
    result = program("queues")
    assert result.code == 130
    assert result.err == "interrupted: nothing more was started; run the same command again to go on\n"


@pytest.mark.parametrize(("number", "message"), [(errno.EPIPE, ""), (errno.ENOSPC, "the output cannot be written")])
def test_an_output_that_fails_is_no_defect(
    program: Program, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    class Broken:
        def write(self, _text: str) -> None:
            raise OSError(number, "broken")

        def isatty(self) -> bool:
            return False

        def flush(self) -> None:
            """Nothing is left."""

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Broken())
        result = program("queues")
    assert result.code == 1
    assert message in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("variable", "code"),
    [
        ({"CCAT_DATA_TRANSFER_MAX_ATEMPTS": "3"}, 3),
        ({"CCAT_DATA_TRANSFER_MAX_ATTEMPTS": "0"}, 3),
        ({"CCAT_DATA_TRANSFER_DATABASE_URL": "mysql://host/name"}, 3),
        ({"CCAT_DATA_TRANSFER_DATABASE_URL": "nonsense"}, 3),
    ],
)
def test_bad_settings_exit_with_3(
    nothing: Program, monkeypatch: pytest.MonkeyPatch, variable: dict[str, str], code: int
) -> None:
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    result = nothing("status")
    assert result.code == code
    assert result.err.startswith("error: ")
    assert "hint: " in result.err


def test_a_file_that_is_no_database_exits_with_4(nothing: Program) -> None:
    (nothing.folder / ".ccat_data_transfer").mkdir()
    (nothing.folder / ".ccat_data_transfer" / "operations.sqlite").write_text("something else entirely")
    assert nothing("status").code == 4
    assert nothing("db", "check").code == 4


def test_help_loads_neither_database_nor_broker_nor_fits() -> None:
    heavy = ("sqlalchemy", "celery", "kombu", "alembic", "astropy", "pydantic", "rich")
    code = f"""
import sys
from ccat_data_transfer import cli
for command in {[list(each) for each in COMMANDS]!r}:
    cli.main([*command, "--help"])
loaded = [name for name in {heavy!r} if name in sys.modules]
sys.exit(f"loaded: {{loaded}}" if loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_group_without_a_command_shows_its_help(nothing: Program) -> None:
    result = nothing("topology")
    assert result.code == 2
    assert "apply" in result.err


def test_the_shell_can_complete_commands(nothing: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_CCAT_DATA_TRANSFER_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "ccat_data_transfer topology a")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert "apply" in nothing.succeed("topology").out


def test_the_module_runs_as_a_program() -> None:
    asked = [sys.executable, "-m", "ccat_data_transfer", "--version"]
    assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout.endswith(f"{__version__}\n")


def test_settings_of_this_process_reach_those_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CCAT_DATA_TRANSFER_WORKER_CONCURRENCY", raising=False)
    commands.set_for_this_process("worker_concurrency", "7")
    from ccat_data_transfer import settings

    assert settings.get().worker_concurrency == 7
    settings.get.cache_clear()


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (50_000_000_000, "50.0 GB"), (10**18, "1000.0 PB")],
)
def test_sizes_are_in_units_of_people(count: int, text: str) -> None:
    assert output.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, ""), (0.4, "0 s"), (59, "59 s"), (90, "1.5 min"), (7200, "2.0 h"), (172_800, "2.0 d")]
)
def test_spans_are_in_units_of_people(seconds: float | None, text: str) -> None:
    assert output.span(seconds) == text


def test_names_reach_a_terminal_without_control_characters() -> None:
    assert output.safe("a\x1b]0;b\x07\n\udcff" + "x" * 300) == "a\\x1b]0;b\\x07\\n\\udcff" + "x" * 300


def test_a_table_on_a_terminal_keeps_brackets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "is_terminal", lambda: True)
    output.table(("name", "fine"), [("[red]x[/red]", True), (None, False)])
    assert "[red]x[/red]" in capsys.readouterr().out


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes a terminal of so many columns of standard output."""

    def make(columns: int) -> None:
        monkeypatch.setattr(output, "is_terminal", lambda: True)
        monkeypatch.setenv("COLUMNS", str(columns))

    return make


COLUMNS = ("id", "package", "size", "created", "note")
ROWS = [
    (7, "a-package-with-a-long-name.tar", output.size(5000), datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC), "why it is"),
    (12, "b.tar", output.size(70_000), None, "so"),
]


def test_a_table_fits_a_wide_terminal_with_numbers_to_the_right(
    terminal: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    terminal(100)
    output.table(COLUMNS, ROWS, expendable=("created",))
    first, second = [line.rstrip() for line in capsys.readouterr().out.splitlines() if ".tar" in line]
    assert first == "  7   a-package-with-a-long-name.tar    5.0 kB   2020-01-02   why it is"
    assert second == " 12   b.tar                            70.0 kB                so"


@pytest.mark.parametrize("columns", [30, 40, 50, 60, 70])
def test_a_narrow_table_drops_columns_and_then_cuts_names_but_breaks_none(
    terminal: Callable[[int], None], capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    terminal(columns)
    output.table(COLUMNS, ROWS, expendable=("created", "note"))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert len(lines) == 2 + len(ROWS)
    assert all(len(line) <= columns for line in lines)
    assert ("created" in lines[0]) == ("2020-01-02" in lines[2])
    assert "5.0 kB" in lines[2]
    assert "-name.tar" in lines[2] or "…" in lines[2]


def test_only_what_explains_goes_on_in_the_next_line(
    terminal: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    terminal(40)
    words = " ".join(f"word{number}" for number in range(20))
    output.table(("id", "message"), [(1, words)], wrapped="message")
    assert [word for word in capsys.readouterr().out.split() if word.startswith("word")] == words.split()


def test_a_time_is_short_on_a_terminal_and_exact_elsewhere(terminal: Callable[[int], None]) -> None:
    now, old = datetime.now(UTC), datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert output.when(old) == "2020-01-02T03:04:05Z"
    assert output.when(old, whole=True) == "2020-01-02T03:04:05Z"
    assert output.when(None) == ""
    terminal(80)
    assert output.when(old) in {"2020-01-01", "2020-01-02", "2020-01-03"}
    assert output.when(old, whole=True) == f"{old.astimezone():%Y-%m-%d %H:%M:%S}"
    assert output.when(now) in {f"{now.astimezone():%H:%M:%S}", f"{now.astimezone():%Y-%m-%d}"}


def test_things_are_counted_in_english() -> None:
    assert [output.count(number, "package") for number in (0, 1, 2)] == ["0 packages", "1 package", "2 packages"]


def test_bytes_are_exact_where_a_program_reads_them(
    terminal: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    output.facts({"bytes": output.Bytes(5000)})
    terminal(80)
    output.facts({"bytes": output.Bytes(5000)})
    assert capsys.readouterr().out == "bytes  5000\nbytes  5.0 kB\n"


def test_what_has_no_json_form_is_a_defect(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        output.write_json({"x": object()})
