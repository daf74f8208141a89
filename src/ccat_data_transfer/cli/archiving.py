"""The work behind `archive`: refuse, prepare, register, carry, report."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from ccat_data_transfer import database, operations, packages, packing, reports, service, settings, topology
from ccat_data_transfer.cli import destinations, outcomes, output, preparation
from ccat_data_transfer.cli.destinations import Destination
from ccat_data_transfer.exceptions import DatabaseError
from ccat_data_transfer.locations import Location
from ccat_data_transfer.states import Status
from ccat_data_transfer.topology import LocalTopology


@dataclass(frozen=True, slots=True)
class _Request:
    """What was asked for, found to be possible as far as can be seen from outside."""

    destinations: Sequence[Destination]
    workdir: Path
    candidates: Sequence[packing.Candidate]
    reads_headers: bool

    @property
    def bytes_to_handle(self) -> int:
        """What a bar counts: each byte is read once here, and at each destination written and read back."""
        return sum(c.size_bytes for c in self.candidates) * (1 + 2 * len(self.destinations))


def run(paths: tuple[str, ...], texts: Sequence[str], *, reads_headers: bool, dry_run: bool, as_json: bool) -> None:
    """Archive what `paths` hold at the destinations that `texts` name; ends the command with its exit code."""
    began = time.monotonic()
    request = _checked(paths, texts, reads_headers=reads_headers, dry_run=dry_run)
    if dry_run:
        _show_plan(request, as_json=as_json)
        return
    if not logging.getLogger().isEnabledFor(logging.INFO):
        # What an attempt warns of is in the report that follows; twice would only hide it.
        logging.getLogger("ccat_data_transfer").setLevel(logging.ERROR)
    stop = threading.Event()
    with service.stop_on_signals(stop):
        with destinations.made(request.destinations):
            preparation.for_writing()
            local = _places(request)
        report = _archived(request, local, stop, hide_bar=as_json)
    report.show(seconds=time.monotonic() - began, as_json=as_json)
    if report.was_interrupted:
        raise KeyboardInterrupt
    raise click.exceptions.Exit(report.exit_code)


def _checked(paths: tuple[str, ...], texts: Sequence[str], *, reads_headers: bool, dry_run: bool) -> _Request:
    """Refuse what cannot be done before anything is made."""
    workdir = settings.get().working_directory
    asked = destinations.parse(texts)
    destinations.refuse_overlaps(paths, asked, workdir)
    candidates = packing.plan(paths, skip=[workdir])
    if preparation.exists() and not dry_run:
        preparation.for_writing()
    for destination in asked:
        destinations.refuse_unusable(destination)
    return _Request(asked, workdir, candidates, reads_headers)


def _show_plan(request: _Request, *, as_json: bool) -> None:
    if as_json:
        planned = [{"name": c.name, "kind": c.kind, "path": c.path, "size": c.size_bytes} for c in request.candidates]
        output.write_json({"packages": planned, "destinations": [d.root for d in request.destinations]})
        return
    output.lines(
        f"would archive {c.name} ({c.kind} '{c.path}', {output.size(c.size_bytes)})" for c in request.candidates
    )


def _places(request: _Request) -> LocalTopology:
    """The data locations, marked; raises when a destination cannot be used now."""
    local = topology.ensure_local(
        working_directory=request.workdir, destinations=[destination.root for destination in request.destinations]
    )
    with database.session_scope() as session:
        for location in local.destinations:
            # It was found to be well just now: a pause from an earlier run has nothing to wait for.
            operations.resume(session, location.id)
    return local


def _archived(request: _Request, local: LocalTopology, stop: threading.Event, *, hide_bar: bool) -> outcomes.Report:
    with output.progress("archiving", request.bytes_to_handle, hidden=hide_bar) as advance:
        unread = sum(candidate.size_bytes for candidate in request.candidates)

        def progress(count: int) -> None:
            nonlocal unread
            if stop.is_set():
                raise KeyboardInterrupt
            unread -= count
            advance(count)

        registration = packages.register(
            candidates=request.candidates,
            tars_at=local.inputs,
            packs_at=local.packed,
            on_progress=progress,
            workers=settings.get().worker_concurrency,
            headers=request.reads_headers,
        )
        advance(max(0, unread))  # what is registered and untouched is not read again
        ids = [item.id for item in registration.packages if item.id is not None]
        before = _asked_operations(ids, local.destinations)
        adopted = _carry(before, local.destinations, stop, advance)
    with database.session_scope(read_only=True) as session:
        after = reports.of_packages(session, ids, [location.id for location in local.destinations])
        pauses = {str(place.value): place for place in reports.places(session) if place.paused}
    already = {transfer.id for transfer in before if transfer.status is Status.COMPLETED}
    return outcomes.Report(
        registration, local.destinations, after, adopted, already, pauses, was_interrupted=stop.is_set()
    )


def _asked_operations(package_ids: Sequence[int], locations: Sequence[Location]) -> list[reports.Transfer]:
    """The operations of these packages to these places: made where missing, and due now, whatever was before."""
    location_ids = [location.id for location in locations]
    for chunk in reports.chunks(package_ids):
        with database.session_scope() as session:
            for location_id in location_ids:
                operations.create_for(session, chunk, location_id)
    with database.session_scope() as session:
        operations.rescue(session)  # what an earlier run left behind when it was killed
    with database.session_scope(read_only=True) as session:
        asked = reports.of_packages(session, package_ids, location_ids)
    for chunk in reports.chunks([t.id for t in asked if t.status is Status.FAILED]):
        with database.session_scope() as session:
            operations.retry_failed(session, chunk)
    for chunk in reports.chunks([t.id for t in asked if t.status is Status.PENDING]):
        with database.session_scope() as session:
            operations.make_due(session, chunk)
    return asked


def _carry(
    asked: Sequence[reports.Transfer],
    locations: Sequence[Location],
    stop: threading.Event,
    advance: Callable[[int], None],
) -> set[int]:
    """Try each operation once that is not done, and none of anybody else's; returns those that copied nothing."""
    from ccat_data_transfer import dispatch, worker

    adopted: set[int] = set()
    sizes = {transfer.id: transfer.bytes for transfer in asked}

    def carry(operation_id: int) -> bool:
        left = 2 * sizes[operation_id]

        def progress(count: int) -> None:
            nonlocal left
            left -= count
            advance(count)

        try:
            result = worker.carry_out(operation_id, on_progress=progress, should_stop=stop.is_set)
        except DatabaseError:
            stop.set()  # the others would meet the same
            raise
        if result.adopted:
            adopted.add(operation_id)
        advance(max(0, left))  # what was adopted or failed is not copied
        return result.ending is not worker.Ending.NOT_CLAIMED

    ids = {(location.site, location.name): location.id for location in locations}
    wanted: dict[int, list[int]] = {}
    for transfer in asked:
        if transfer.status in {Status.PENDING, Status.SCHEDULED, Status.FAILED}:
            wanted.setdefault(ids[transfer.site, transfer.location], []).append(transfer.id)
    concurrency = settings.get().worker_concurrency
    dispatch.LocalWorkers(carry, concurrency=concurrency, stop=stop).carry_once(wanted)
    return adopted
