"""What commands print: JSON for programs, tables for people, plain lines with tabs for everything between.

Names from disks and databases are data: control characters never reach a terminal.
"""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any

import click

from ccat_data_transfer import names

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_SPANS = ((86_400, "d"), (3600, "h"), (60, "min"))


def safe(text: str) -> str:
    """`text` without anything that a terminal would act on, in its whole length."""
    return "".join(c if c.isprintable() else names.shown(c) for c in text)


def complain(kind: str, text: str) -> None:
    """One line on standard error."""
    sys.stderr.write(f"{kind}: {safe(text)}\n")
    sys.stderr.flush()


def write(text: str) -> None:
    """All of `text` on standard output, at once."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise click.ClickException(f"the output cannot be written: {error.strerror}") from error


def lines(texts: Iterable[str]) -> None:
    """One line for each text."""
    write("".join(f"{safe(text)}\n" for text in texts))


def write_json(value: object) -> None:
    """One JSON document; dataclasses become objects, times ISO 8601 in UTC."""
    write(json.dumps(value, default=_encoded, indent=1) + "\n")


def _encoded(value: object) -> object:
    if isinstance(value, datetime):
        return moment(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def moment(value: datetime | None) -> str | None:
    """ISO 8601 in UTC, with a Z."""
    return None if value is None else value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def size(count: float) -> str:
    """A number of bytes for people."""
    for unit in _UNITS[:-1]:
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} {_UNITS[-1]}"


def span(seconds: float | None) -> str:
    """A duration for people."""
    if seconds is None:
        return ""
    for unit, name in _SPANS:
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"


def is_terminal() -> bool:
    """Whether what is printed is looked at."""
    return sys.stdout.isatty()


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return str(moment(value))
    return safe(str(value))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table for people on a terminal, else one line for each row with tabs between, and a line of names."""
    cells = [[_cell(value) for value in row] for row in rows]
    if not is_terminal():
        write("".join("\t".join(row) + "\n" for row in [list(columns), *cells]))
        return
    from rich.console import Console

    Console(file=sys.stdout).print(_rich_table(columns, cells))


def _rich_table(columns: Sequence[str], cells: Iterable[Sequence[str]]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in cells:
        made.add_row(*(Text(cell) for cell in row))  # not markup: a name may hold brackets
    return made


def facts(values: Mapping[str, object]) -> None:
    """One thing: a line for each fact that is known."""
    shown = {name: _cell(value) for name, value in values.items() if value is not None}
    width = max(map(len, shown), default=0)
    write("".join(f"{name:<{width}}  {value}\n" for name, value in shown.items()))


@contextlib.contextmanager
def progress(label: str, total: int, *, hidden: bool = False) -> Iterator[Callable[[int], None]]:
    """A bar of bytes on standard error while the block runs, if it is a terminal; yields what advances it."""
    if hidden or not sys.stderr.isatty():
        yield _nothing
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)


def _nothing(_count: int) -> None:
    """Nobody looks on."""
