"""What commands print: JSON for programs, tables for people, plain lines with tabs for everything between.

Names from disks and databases are data: control characters never reach a terminal.
"""

import contextlib
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any

import click

from ccat_data_transfer import names

INTERRUPTION = ("interrupted", "nothing more was started; run the same command again to go on")
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
# A number, perhaps with its unit, and perhaps with another number in brackets.
_FIGURE = re.compile(r"[\d.]+(/\d+)?( ([kMGTP]?B|s|min|h|d))?( \(.*\))?")
_GAP, _EDGES, _NARROWEST = 3, 2, 8  # characters between columns, around the table, and in a column that was cut
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


def count(number: int, noun: str) -> str:
    """A number of things."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def is_terminal() -> bool:
    """Whether what is printed is looked at."""
    return sys.stdout.isatty()


class Bytes(int):
    """A number of bytes: in units on a terminal, to the byte elsewhere."""


def when(value: datetime | None, *, whole: bool = False) -> str:
    """A time: on a terminal the local time of today, or the date of another day; elsewhere as `moment` has it.

    With `whole` it has both date and time on a terminal.
    """
    if value is None:
        return ""
    if not is_terminal():
        return str(moment(value))
    local, now = value.astimezone(), datetime.now().astimezone()
    if whole:
        return f"{local:%Y-%m-%d %H:%M:%S}"
    return f"{local:%H:%M:%S}" if local.date() == now.date() else f"{local:%Y-%m-%d}"


def _cell(value: object, *, whole_times: bool) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return when(value, whole=whole_times)
    if isinstance(value, Bytes) and is_terminal():
        return size(value)
    return safe(str(value))


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    expendable: Sequence[str] = (),
    wrapped: str | None = None,
    whole_times: bool = False,
) -> None:
    """A table for people on a terminal, else one line for each row with tabs between, and a line of names.

    On a terminal that is too narrow the `expendable` columns are left out, one after the other, and then the widest
    are cut short; only the `wrapped` one goes on in a second line.
    """
    cells = [[_cell(value, whole_times=whole_times) for value in row] for row in rows]
    if not is_terminal():
        write("".join("\t".join(row) + "\n" for row in [list(columns), *cells]))
        return
    from rich.console import Console

    console = Console(file=sys.stdout)
    by_name = {name: [row[number] for row in cells] for number, name in enumerate(columns)}
    console.print(_rich_table(by_name, _widths(by_name, expendable, console.width), wrapped))


def _widths(by_name: dict[str, list[str]], expendable: Sequence[str], available: int) -> dict[str, int]:
    """How wide each column that is shown can be; those that are not shown are not in it."""
    from rich.cells import cell_len

    widths = {name: max(map(cell_len, [name, *column])) for name, column in by_name.items()}

    def excess() -> int:
        return sum(widths.values()) + _GAP * (len(widths) - 1) + _EDGES - available

    for name in expendable:
        if excess() > 0:
            del widths[name]
    while excess() > 0 and max(widths.values()) > _NARROWEST:
        widest = max(widths, key=widths.__getitem__)
        widths[widest] -= 1
    return widths


def _rich_table(by_name: dict[str, list[str]], widths: dict[str, int], wrapped: str | None) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name, width in widths.items():
        column = [cell for cell in by_name[name] if cell]
        made.add_column(
            name,
            width=width,
            justify="right" if column and all(map(_FIGURE.fullmatch, column)) else "left",
            no_wrap=name != wrapped,
            overflow="fold" if name == wrapped else "ellipsis",
        )
    for row in zip(*(by_name[name] for name in widths), strict=True):
        made.add_row(*(Text(cell) for cell in row))  # not markup: a name may hold brackets
    return made


def facts(values: Mapping[str, object]) -> None:
    """One thing: a line for each fact that is known."""
    shown = {name: _cell(value, whole_times=True) for name, value in values.items() if value is not None}
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
