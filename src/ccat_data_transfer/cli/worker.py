"""`worker`: carries packages to the archives, by messages or, without a broker, from the database alone."""

import threading

import click

from ccat_data_transfer.cli import commands, preparation
from ccat_data_transfer.exceptions import DatabaseError, DatabaseSchemaError, UnknownNameError
from ccat_data_transfer.locations import Location

DISCOVER_SECONDS = 5.0
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 30.0
INTERRUPTED = 130


@commands.command(
    "worker",
    service=True,
    example="""
    ccat_data_transfer worker --site cologne --concurrency 4
    ccat_data_transfer worker --location cologne/lta
    """,
)
@click.option("--site", metavar="SITE", help="Only archives of this site (short name or name); default: all.")
@click.option("--location", metavar="LOCATION", help="Only this archive, as SITE/NAME or NAME.")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 256),
    metavar="N",
    help="Packages carried side by side to one archive (default: setting worker_concurrency).",
)
@click.option("--until-idle", is_flag=True, help="Without a broker: carry what is due and end.")
def worker(site: str | None, location: str | None, concurrency: int | None, until_idle: bool) -> None:
    """Carry packages to the archives and verify them there; until SIGTERM, then finish in good order.

    With a broker this starts Celery workers, one process tree for each archive, on exactly the queues they need.
    Without one, threads of this process do the same work from the database alone.
    """
    from ccat_data_transfer import service, settings

    if concurrency is not None:
        commands.set_for_this_process("worker_concurrency", str(concurrency))
    uses_broker = settings.get().uses_broker
    if until_idle and uses_broker:
        raise click.UsageError("--until-idle works only without a broker")
    stop = threading.Event()
    with service.stop_on_signals(stop):
        found = _wait_for_archives(site, location, stop)
        if stop.is_set():
            return
        if uses_broker:
            from ccat_data_transfer import fleet

            fleet.Fleet(site=site, location=location, concurrency=settings.get().worker_concurrency).run(stop)
        elif until_idle:
            _drain(found, stop)
        else:
            _keep_up(site, location, stop)
    if until_idle and stop.is_set():
        raise click.exceptions.Exit(INTERRUPTED)


def _archives(site: str | None, location: str | None) -> list[Location]:
    from ccat_data_transfer import queue_discovery

    found = queue_discovery.QueueDiscoveryService().locations(site, location, here=True)
    if not found and location is not None:
        raise UnknownNameError(
            f"there is no active archive '{location}'", remedy="`ccat_data_transfer location list` shows them all"
        )
    return found


def _wait_for_archives(site: str | None, location: str | None, stop: threading.Event) -> list[Location]:
    """The archives to serve, once the database answers; raises for a wrong name or schema."""
    from ccat_data_transfer import logs

    wait = FIRST_WAIT_SECONDS
    while not stop.is_set():
        try:
            preparation.for_reading()
            return _archives(site, location)
        except DatabaseSchemaError:
            raise
        except DatabaseError as error:
            if not preparation.exists():
                raise
            logs.get(__name__).warning("database_unavailable", error=str(error), retry_in=wait)
        stop.wait(wait)
        wait = min(2 * wait, LONGEST_WAIT_SECONDS)
    return []


def _drain(found: list[Location], stop: threading.Event) -> None:
    from ccat_data_transfer import worker as procedure

    procedure.local_workers(stop).drain([location.id for location in found])


def _keep_up(site: str | None, location: str | None, stop: threading.Event) -> None:
    from ccat_data_transfer import queue_discovery, service, settings
    from ccat_data_transfer import worker as procedure

    workers = procedure.local_workers(stop)

    def step() -> bool:
        # Asked again and again, because archives are declared and removed while this runs.
        found = queue_discovery.QueueDiscoveryService().locations(site, location, here=True)
        workers.keep_up([each.id for each in found])
        return False

    service.run("worker", step, interval=DISCOVER_SECONDS, stop=stop)
    workers.stop(timeout=settings.get().lease_seconds)
