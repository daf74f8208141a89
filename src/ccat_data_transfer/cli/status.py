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
        overview = _read(site)
        _show(overview, as_json=as_json)
        if not overview.locations:
            _explain_nothing(site)
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


def _explain_nothing(site: str | None) -> None:
    """Say why there is nothing to show."""
    from ccat_data_transfer import database, topology

    with database.session_scope(read_only=True) as session:
        is_declared = bool(topology.show(session).sites)
    if not is_declared:
        output.complain("note", "no sites are declared: run `ccat_data_transfer topology apply FILE` or `archive`")
    else:
        where = "no site" if site is None else f"site '{site}'"
        output.complain("note", f"{where} has {'a' if site is None else 'no'} long-term archive")


def _show(overview: "Overview", *, as_json: bool) -> None:
    if as_json:
        output.write_json(overview)
        return
    output.table(
        ("location", *Status, "oldest pending", "archived", "last hour", "last day", "paused"),
        [_row(each) for each in overview.locations],
        expendable=("last day", "last hour", "archived", "oldest pending", "scheduled"),
    )
    output.lines(
        f"{each.site}/{each.location}: {count} failed with {reason}"
        for each in overview.locations
        for reason, count in each.failures.items()
    )
    output.lines([", ".join(f"{output.count(n, 'package')} {state}" for state, n in overview.packages.items())])


def _row(each: "LocationStatus") -> tuple[object, ...]:
    paused = f"{each.pause_reason} until {output.when(each.paused_until)}" if each.paused else ""
    return (
        f"{each.site}/{each.location}" + ("" if each.active else " (not active)"),
        *(each.counts[status] for status in Status),
        output.span(each.oldest_pending_seconds),
        output.size(each.bytes[Status.COMPLETED]),
        f"{each.throughput.packages_last_hour} ({output.size(each.throughput.bytes_last_hour)})",
        f"{each.throughput.packages_last_day} ({output.size(each.throughput.bytes_last_day)})",
        paused,
    )
