"""`transfer`: the archive operations."""

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import click

from ccat_data_transfer.cli import commands, options, output, preparation, selection
from ccat_data_transfer.exceptions import UnknownNameError
from ccat_data_transfer.states import FailureReason, Status

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

NOT_ALL = 1


@click.group(cls=commands.Group, epilog="\b\nExample:\n  ccat_data_transfer transfer list --status failed")
def transfer() -> None:
    """List, explain, retry and cancel archive operations."""


_statuses = click.Choice([status.value for status in Status])
_reasons = click.Choice([reason.value for reason in FailureReason])


@transfer.command("list", example="ccat_data_transfer transfer list --status failed --json")
@options.site
@options.location
@click.option("--status", type=_statuses, help="Only with this status.")
@click.option("--package", metavar="NAME", help="Only of this package.")
@options.limit
@options.as_json
def list_(
    site: str | None, location: str | None, status: str | None, package: str | None, limit: int, as_json: bool
) -> None:
    """List operations, newest first."""
    from ccat_data_transfer import database, packages, reports

    preparation.for_reading()
    with database.session_scope(read_only=True) as session:
        chosen = selection.select(session, site, location)
        found = reports.transfers(
            session,
            site=chosen.site,
            location=chosen.location,
            status=None if status is None else Status(status),
            package=None if package is None else packages.get(session, package).name,
            limit=limit,
        )
    if as_json:
        output.write_json(found)
        return
    output.table(
        ("id", "package", "location", "status", "reason", "attempt", "size", "created", "completed"),
        [
            (
                each.id,
                each.package,
                f"{each.site}/{each.location}",
                each.status,
                each.reason,
                f"{each.attempt}/{each.attempt_limit}",
                output.size(each.bytes),
                each.created_at,
                each.completed_at,
            )
            for each in found
        ],
        expendable=("created", "attempt", "size", "completed"),
    )


@transfer.command(example="ccat_data_transfer transfer show 421")
@click.argument("operation_id", metavar="ID", type=options.OPERATION_ID)
@options.as_json
def show(operation_id: int, as_json: bool) -> None:
    """Show one operation and its whole history."""
    from ccat_data_transfer import database, reports

    preparation.for_reading()
    with database.session_scope(read_only=True) as session:
        history = reports.history(session, operation_id)
    if as_json:
        output.write_json(history)
        return
    known = {name: getattr(history.transfer, name) for name in reports.Transfer.__dataclass_fields__}
    output.facts(known | {"bytes": output.Bytes(history.transfer.bytes)})
    output.write("\n")
    output.table(
        ("at", "verb", "status", "attempt", "reason", "actor", "message"),
        [
            (entry.at, entry.verb, entry.status, entry.attempt, entry.reason, entry.actor, entry.message)
            for entry in history.log
        ],
        expendable=("actor", "status"),
        wrapped="message",
        whole_times=True,
    )


@transfer.command(
    example="""
    ccat_data_transfer transfer retry 421 422
    ccat_data_transfer transfer retry --all-failed --reason destination_conflict
    """
)
@click.argument("ids", nargs=-1, metavar="[ID]...", type=options.OPERATION_ID)
@click.option("--all-failed", is_flag=True, help="Every failed operation instead of named ones.")
@options.site
@click.option("--reason", type=_reasons, help="With --all-failed: only those that failed for this reason.")
def retry(ids: tuple[int, ...], all_failed: bool, site: str | None, reason: str | None) -> None:
    """Give failed operations a new set of attempts, once their cause is removed."""
    if all_failed == bool(ids):
        raise click.UsageError("name operations by their ids, or give --all-failed")
    if not all_failed and (site or reason):
        raise click.UsageError("--site and --reason go with --all-failed")
    from ccat_data_transfer import operations

    preparation.for_reading()
    if all_failed:
        count = _retry_all(site, None if reason is None else FailureReason(reason))
        output.lines([f"{output.count(count, 'operation')} {'is' if count == 1 else 'are'} due again"])
    else:
        _change(ids, operations.retry_failed, done="is due again", refused="is not failed")


def _retry_all(site: str | None, reason: FailureReason | None) -> int:
    from ccat_data_transfer import database, operations, reports

    count, after = 0, None
    while True:
        with database.session_scope() as session:
            page = reports.transfers(
                session,
                site=selection.select(session, site).site,
                status=Status.FAILED,
                reason=reason,
                limit=reports.BATCH,
                after=after,
            )
            count += len(operations.retry_failed(session, [each.id for each in page]))
        if not page:
            return count
        after = page[-1].id


@transfer.command(example="ccat_data_transfer transfer cancel 421")
@click.argument("ids", nargs=-1, required=True, metavar="ID...", type=options.OPERATION_ID)
def cancel(ids: tuple[int, ...]) -> None:
    """Cancel operations that no worker has begun. `transfer retry` takes it back."""
    from ccat_data_transfer import operations

    preparation.for_reading()
    _change(ids, operations.cancel, done="is cancelled", refused="cannot be cancelled")


def _change(
    ids: Sequence[int], change: "Callable[[Session, Collection[int]], list[int]]", *, done: str, refused: str
) -> None:
    """Change operations by id: none when one is unknown; those that their status allows otherwise."""
    from ccat_data_transfer import database, reports

    wanted = list(dict.fromkeys(ids))
    with database.session_scope() as session:
        found = reports.by_id(session, wanted)
        if unknown := [str(each) for each in wanted if each not in found]:
            raise UnknownNameError(
                f"there is no operation {', '.join(unknown)}",
                remedy="`ccat_data_transfer transfer list` shows them all; nothing was changed",
            )
        changed = {each for chunk in reports.chunks(wanted) for each in change(session, chunk)}
    output.lines(f"operation {each} ({found[each].package}) {done}" for each in wanted if each in changed)
    left = [each for each in wanted if each not in changed]
    for each in left:
        output.complain("error", f"operation {each} {refused}: it is {found[each].status}")
    if left:
        raise click.exceptions.Exit(NOT_ALL)
