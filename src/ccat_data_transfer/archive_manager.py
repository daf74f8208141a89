"""The Archive Manager: long-term archival of raw data packages.

Manager process: finds packages ready for archival, creates archive operations, submits archival tasks.
Worker process: carries a package to its archive, verifies its integrity there, updates its status.

The public names, and no others; `manager` has the pass, `worker` the procedure.
"""

import logging
import threading
from collections.abc import Callable, Collection
from typing import Any

from sqlalchemy.orm import Session

from ccat_data_transfer import celery_app, database, dispatch, manager, operations, service, settings, worker
from ccat_data_transfer.exceptions import UnknownNameError
from ccat_data_transfer.storage.base import Progress, no_progress

__all__ = [
    "LongTermArchiveTask",
    "archive_manager_service",
    "archive_package",
    "send_data_to_long_term_archive",
    "transfer_raw_data_packages_to_long_term_archive",
]


class LongTermArchiveTask(celery_app.CCATEnhancedSQLAlchemyTask):
    """Base class for long term archive tasks."""

    abstract = True
    ignore_result = False
    priority = None
    rate_limit = None
    reject_on_worker_lost = True
    serializer = "json"
    store_errors_even_if_ignored = False
    track_started = True
    typing = True
    acks_late = True

    def __init__(self) -> None:
        super().__init__()

    def get_retry_count(self, session: Session, operation_id: int) -> int:
        """Get current retry count for this operation. Raises `UnknownNameError`."""
        return operations.load(session, operation_id).retry_count

    def reset_state_on_failure(self, session: Session, long_term_archive_transfer_id: int, exc: BaseException) -> None:
        """Reset long term archive transfer state for retry, after a delay; fails it when no attempt is left.

        Commits. Does nothing to an operation that is not in progress.
        """
        operations.reset(session, long_term_archive_transfer_id, exc)
        session.commit()

    def mark_permanent_failure(self, session: Session, long_term_archive_transfer_id: int, exc: BaseException) -> None:
        """Mark long term archive transfer as permanently failed, with the reason that `exc` stands for.

        Commits. Does nothing to an operation that has already ended.
        """
        operations.fail(session, long_term_archive_transfer_id, exc)
        session.commit()

    def get_operation_info(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Get additional context for long term archive tasks, from their arguments alone."""
        operation_id = kwargs.get("long_term_archive_transfer_id", args[0] if args else None)
        return {"operation_type": "long_term_archive_transfer", "operation_id": operation_id}


@celery_app.app.task(base=LongTermArchiveTask, bind=True, name=dispatch.TASK)
def send_data_to_long_term_archive(
    self: LongTermArchiveTask,
    long_term_archive_transfer_id: int,
    session: Session = None,  # type: ignore[assignment]  # the published signature; None means a session of its own
) -> None:
    """Transfers raw data package to the long term archive using dynamic queue routing.

    Everything but the id comes from the database. Returns normally whatever becomes of the attempt, for that is
    recorded there; raises `DatabaseError` (an `SQLAlchemyError`) when it could not be recorded.
    """
    # A message carries an id and nothing else: what it brings as a session is none.
    given: object = session
    own = given if isinstance(given, Session) else None
    archive_package(
        long_term_archive_transfer_id, own, queues=self.consumed_queues(), should_stop=celery_app.is_stopping
    )


def archive_package(
    long_term_archive_transfer_id: object,
    session: Session | None = None,
    *,
    queues: Collection[str] | None = None,
    on_progress: Progress = no_progress,
    should_stop: Callable[[], bool] = lambda: False,
) -> worker.Result:
    """Worker task for package archival, without Celery: claim, copy, verify, record.

    Never raises for a failed attempt: retry, snooze and failure are decided and recorded. Raises `DatabaseError`
    when the database could not be asked or told; the operation is rescued then. With `session` given that one is
    used, and committed at each step. With `queues` given, only an operation of one of them is claimed.
    `should_stop` is asked while bytes move; when it says yes the attempt is given back.
    """
    return worker.carry_out(
        long_term_archive_transfer_id,
        session,
        queues=queues,
        on_progress=on_progress,
        should_stop=should_stop,
    )


def transfer_raw_data_packages_to_long_term_archive(verbose: bool = False, site_name: str | None = None) -> None:
    """Schedule long term archive transfer tasks for pending raw data packages using the new DataLocation system.

    One pass: creates, rescues, schedules, submits. Without a broker it carries the operations itself, here, until
    nothing is due. `site_name` is a site's name or short name; `UnknownNameError` when there is none. Raises
    `SQLAlchemyError` (a `DatabaseError`) on database trouble.
    """
    if verbose:
        logging.getLogger("ccat_data_transfer").setLevel(logging.DEBUG)
    database.check_schema()
    site_id = manager.site_id_of(site_name)
    manager.run_pass(site_id)
    if not settings.get().uses_broker:
        worker.local_workers().drain(manager.archive_ids(site_id, here=True))


def archive_manager_service(
    verbose: bool = False, site_name: str | None = None, *, stop: threading.Event | None = None
) -> None:
    """Main manager service: passes for ever, until SIGTERM or SIGINT or `stop`.

    A database or broker that is away is waited for. Without a broker the operations are carried by threads of this
    process. Raises `UnknownNameError` when the database answers that there is no such site.
    """
    if verbose:
        logging.getLogger("ccat_data_transfer").setLevel(logging.DEBUG)
    asked = stop or threading.Event()
    workers = worker.local_workers(asked)

    unknown: list[UnknownNameError] = []

    def step() -> bool:
        database.check_schema()
        try:
            site_id = manager.site_id_of(site_name)
        except UnknownNameError as error:  # no waiting will help
            unknown.append(error)
            asked.set()
            return False
        done = manager.run_pass(site_id)
        if not settings.get().uses_broker:
            workers.keep_up(manager.archive_ids(site_id, here=True))
        return done.did_anything

    with service.stop_on_signals(asked):
        chosen = settings.get()
        service.run(
            "archive_manager",
            step,
            interval=chosen.manager_interval_seconds,
            stop=asked,
            **chosen.about,
        )
    workers.stop(timeout=settings.get().lease_seconds)
    if unknown:
        raise unknown[0]
