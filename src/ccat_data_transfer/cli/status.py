"""`status`: backlog, throughput, ages and failures."""

import threading
from typing import TYPE_CHECKING

import click

from ccat_data_transfer.cli import commands, options, output, preparation, selection
from ccat_data_transfer.states import Status

if TYPE_CHECKING:
    from ccat_data_transfer.reports import LocationStatus, Overview

REDRAW_SECONDS = 2.0
_CLEAR = "\x1b[H\x1b[J"


@commands.command(
    "status",
    example="""
    ccat_data_transfer status --site cologne
    ccat_data_transfer status --watch
    """,
)
@options.site
@click.option("--watch", is_flag=True, help=f"Show it again every {REDRAW_SECONDS:.0f} s, until Ctrl-C.")
@options.as_json
def status(site: str | None, watch: bool, as_json: bool) -> None:
    """Show the backlog, throughput, ages and failures of every archive."""
    from ccat_data_transfer import service

    preparation.for_reading()
    if not watch:
        _show(_read(site), as_json=as_json)
        return
    stop = threading.Event()
    with service.stop_on_signals(stop):
        while not stop.is_set():
            overview = _read(site)
            if output.is_terminal() and not as_json:
                output.write(_CLEAR)
            _show(overview, as_json=as_json)
            stop.wait(REDRAW_SECONDS)


def _read(site: str | None) -> "Overview":
    from ccat_data_transfer import database, reports

    with database.session_scope(read_only=True) as session:
        return reports.status(session, site=selection.select(session, site).site)


def _show(overview: "Overview", *, as_json: bool) -> None:
    if as_json:
        output.write_json(overview)
        return
    output.table(
        ("location", *Status, "oldest pending", "archived", "last hour", "last day", "paused"),
        [_row(each) for each in overview.locations],
    )
    output.lines(
        f"{each.site}/{each.location}: {count} failed with {reason}"
        for each in overview.locations
        for reason, count in each.failures.items()
    )
    output.lines([", ".join(f"{count} packages {state}" for state, count in overview.packages.items())])


def _row(each: "LocationStatus") -> tuple[object, ...]:
    paused = f"{each.pause_reason} until {output.moment(each.paused_until)}" if each.paused else ""
    return (
        f"{each.site}/{each.location}" + ("" if each.active else " (not active)"),
        *(each.counts[status] for status in Status),
        output.span(each.oldest_pending_seconds),
        output.size(each.bytes[Status.COMPLETED]),
        f"{each.throughput.packages_last_hour} ({output.size(each.throughput.bytes_last_hour)})",
        f"{each.throughput.packages_last_day} ({output.size(each.throughput.bytes_last_day)})",
        paused,
    )
