"""`archive-manager`: the manager service, or one pass of it."""

import threading

import click

from ccat_data_transfer.cli import commands, preparation
from ccat_data_transfer.exceptions import DatabaseError, DatabaseSchemaError, ServiceUnavailableError

INTERRUPTED = 130


@commands.command(
    "archive-manager",
    service=True,
    example="""
    ccat_data_transfer archive-manager --site cologne
    ccat_data_transfer archive-manager --once
    """,
)
@click.option("--site", metavar="SITE", help="Only this site (short name or name); default: all.")
@click.option("--once", is_flag=True, help="Make one pass and end.")
@click.pass_context
def archive_manager(context: click.Context, site: str | None, once: bool) -> None:
    """Find packages that are ready, create and schedule their operations, and rescue what stalled; until SIGTERM.

    Any number of managers may run. Without a broker the manager carries the packages itself; with one, `worker` does.
    """
    if once:
        _one_pass(site)
        return
    _refuse_what_cannot_pass(site)
    from ccat_data_transfer.archive_manager import archive_manager_service

    archive_manager_service(context.ensure_object(commands.Invocation).verbose, site)


def _refuse_what_cannot_pass(site: str | None) -> None:
    """Raise for a name or a schema that is wrong; a database that is away is waited for by the service."""
    from ccat_data_transfer import logs, manager

    try:
        preparation.for_reading()
        manager.site_id_of(site)
    except DatabaseSchemaError:
        raise
    except DatabaseError as error:
        if not preparation.exists():
            raise
        logs.get(__name__).warning("database_unavailable", error=str(error))


def _one_pass(site: str | None) -> None:
    from ccat_data_transfer import manager, service, settings, worker

    preparation.for_reading()
    site_id = manager.site_id_of(site)
    stop = threading.Event()
    with service.stop_on_signals(stop):
        done = manager.run_pass(site_id)
        if done.unsent:
            raise ServiceUnavailableError(
                f"the broker did not take {done.unsent} of {done.scheduled} messages; the next pass sends them again"
            )
        if not settings.get().uses_broker:
            worker.local_workers(stop).drain(manager.archive_ids(site_id, here=True))
    if stop.is_set():
        raise click.exceptions.Exit(INTERRUPTED)
