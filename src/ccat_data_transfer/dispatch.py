"""Handing operations over: to their queues, or, without a broker, to threads of this process.

Sends only what is committed. What the broker does not take is told to the caller and sent again later.
"""

import concurrent.futures
import threading
from collections.abc import Callable, Mapping, Sequence

from ccat_data_transfer import database, logs, operations
from ccat_data_transfer.exceptions import CCATDataOperationError

log = logs.get(__name__)

TASK = "ccat_data_transfer.archive_manager.send_data_to_long_term_archive"
BATCH = 256
IDLE_SECONDS = 1.0


def send(dispatches: Sequence[operations.Dispatch]) -> list[int]:
    """Send each operation's id to its queue; returns the ids that the broker did not take.

    The first refusal ends the sending: a broker that is away is not asked a thousand times.
    """
    if not dispatches:
        return []
    # Imported where it is used: who carries operations here, without a broker, need not wait for it to load.
    from kombu.exceptions import KombuError, OperationalError

    from ccat_data_transfer import celery_app

    try:
        with celery_app.app.producer_or_acquire() as producer:
            for number, dispatch in enumerate(dispatches):
                try:
                    celery_app.app.send_task(
                        TASK,
                        args=(dispatch.operation_id,),
                        queue=dispatch.queue,
                        producer=producer,
                        ignore_result=True,
                    )
                except (OperationalError, KombuError, OSError) as error:
                    return _refused(dispatches[number:], error)
    except (OperationalError, KombuError, OSError) as error:
        return _refused(dispatches, error)
    return []


def _refused(rest: Sequence[operations.Dispatch], error: Exception) -> list[int]:
    log.error("broker_unavailable", unsent=len(rest), error=str(error), error_type=type(error).__name__)
    return [dispatch.operation_id for dispatch in rest]


class LocalWorkers:
    """Carries due operations in threads of this process, a pool for each location.

    A location that hangs keeps only its own threads. `carry` is called with an operation's id and says whether it
    claimed the operation.
    """

    def __init__(self, carry: Callable[[int], bool], *, concurrency: int, stop: threading.Event) -> None:
        self._carry = carry
        self._concurrency = concurrency
        self._stop = stop
        self._threads: dict[int, threading.Thread] = {}

    def drain(self, location_ids: Sequence[int]) -> int:
        """Carry until nothing is due; returns how many operations were claimed."""
        if not location_ids:
            return 0
        with concurrent.futures.ThreadPoolExecutor(len(location_ids), thread_name_prefix="location") as pool:
            return sum(pool.map(self._drain_one, location_ids))

    def carry_once(self, wanted: Mapping[int, Sequence[int]]) -> int:
        """Try each of these operations (by location) once; returns how many were claimed.

        Others that are due are left alone, and what must be tried again later is not waited for.
        """
        if not wanted:
            return 0
        with concurrent.futures.ThreadPoolExecutor(len(wanted), thread_name_prefix="location") as pool:
            return sum(pool.map(self._carry_each, wanted.values()))

    def keep_up(self, location_ids: Sequence[int]) -> None:
        """Carry in the background, until `stop`, whatever becomes due at these locations. Idempotent."""
        for location_id in location_ids:
            thread = self._threads.get(location_id)
            if thread is None or not thread.is_alive():
                # A daemon, so that a destination that hangs for ever cannot keep the process from ending.
                thread = threading.Thread(
                    target=self._follow, args=(location_id,), name=f"location-{location_id}", daemon=True
                )
                self._threads[location_id] = thread
                thread.start()

    def stop(self, timeout: float) -> None:
        """Start nothing new and wait at most `timeout` seconds for what runs."""
        self._stop.set()
        for thread in self._threads.values():
            thread.join(timeout)

    def _follow(self, location_id: int) -> None:
        while not self._stop.is_set():
            try:
                claimed = self._drain_one(location_id)
            except CCATDataOperationError as error:
                log.error("local_worker_error", location_id=location_id, error=str(error))
                claimed = 0
            if not claimed:
                self._stop.wait(IDLE_SECONDS)

    def _drain_one(self, location_id: int) -> int:
        claimed = 0
        with concurrent.futures.ThreadPoolExecutor(self._concurrency, thread_name_prefix="carry") as pool:
            while not self._stop.is_set():
                with database.session_scope(read_only=True) as session:
                    due = operations.due_here(session, location_id, limit=BATCH)
                # When others claimed all of it first, their work is not ours to wait for.
                batch = sum(pool.map(self._carry_unless_stopped, due))
                claimed += batch
                if not batch:
                    break
        return claimed

    def _carry_each(self, operation_ids: Sequence[int]) -> int:
        with concurrent.futures.ThreadPoolExecutor(self._concurrency, thread_name_prefix="carry") as pool:
            return sum(pool.map(self._carry_unless_stopped, operation_ids))

    def _carry_unless_stopped(self, operation_id: int) -> bool:
        return not self._stop.is_set() and self._carry(operation_id)
