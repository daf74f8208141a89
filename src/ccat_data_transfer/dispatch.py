"""Handing operations over: to their queues, or, without a broker, to threads of this process.

Sends only what is committed. What the broker does not take is told to the caller and sent again later.
"""

import collections
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from ccat_data_transfer import database, logs, operations
from ccat_data_transfer.exceptions import CCATDataOperationError

log = logs.get(__name__)

TASK = "ccat_data_transfer.archive_manager.send_data_to_long_term_archive"
BATCH = 256
IDLE_SECONDS = 1.0
# How soon a thread that waits for work sees that it is asked to stop.
WAKE_SECONDS = 0.2


def send(dispatches: Sequence[operations.Dispatch]) -> list[int]:
    """Send each operation's id to its queue; returns the ids that the broker did not take.

    The first refusal ends the sending: a broker that is away is not asked a thousand times.
    """
    if not dispatches:
        return []
    # Imported where it is used: who carries operations here, without a broker, need not wait for it to load.
    from kombu.exceptions import KombuError, OperationalError

    from ccat_data_transfer import celery_app

    sent = 0
    try:
        with celery_app.producer() as producer:
            for dispatch in dispatches:
                celery_app.app.send_task(
                    TASK,
                    args=(dispatch.operation_id,),
                    queue=dispatch.queue,
                    producer=producer,
                    # Whoever sends does not subscribe to the result, so that no result backend can hold it up;
                    # the message itself says what the task says, that results are kept where there is a backend.
                    ignore_result=True,
                    headers={"ignore_result": False},
                )
                sent += 1
    except (OperationalError, KombuError, OSError) as error:
        unsent = [dispatch.operation_id for dispatch in dispatches[sent:]]
        log.error("broker_unavailable", unsent=len(unsent), error=str(error), error_type=type(error).__name__)
        return unsent
    return []


class _Feed:
    """What the threads of one location are to try: handed out one by one, none to two threads at a time.

    `ask` is called for more when there is nothing left, with how many to return at most.
    """

    def __init__(
        self, ask: Callable[[int], Sequence[int]], waiting: Sequence[int] = (), *, is_endless: bool = False
    ) -> None:
        self.claimed = 0
        self._ask = ask
        self._is_endless = is_endless
        self._waiting = collections.deque(waiting)
        self._in_hand: set[int] = set()
        self._refused: set[int] = set()
        self._ask_at = 0.0
        self._changed = threading.Condition()

    def take(self, is_over: Callable[[], bool]) -> int | None:
        """The next operation, waited for; None when it is over or, unless endless, when nothing is left to do.

        What is in hand elsewhere may become due again, so until it is given back there may be something left.
        """
        with self._changed:
            while not is_over():
                if not self._waiting and time.monotonic() >= self._ask_at:
                    self._refill()
                if self._waiting:
                    taken = self._waiting.popleft()
                    self._in_hand.add(taken)
                    return taken
                if not self._is_endless and not self._in_hand:
                    return None
                self._changed.wait(WAKE_SECONDS)
        return None

    def give_back(self, taken: int, *, claimed: bool) -> None:
        """Say that an operation is no longer in hand, and whether it was claimed."""
        with self._changed:
            self._in_hand.discard(taken)
            if claimed:
                self.claimed += 1
                self._ask_at = 0.0  # it may have failed, and be due again
            else:
                self._refused.add(taken)
            self._changed.notify_all()

    def _refill(self) -> None:
        # Set before asking: threads that find nothing, or no database, do not all ask at once.
        self._ask_at = time.monotonic() + IDLE_SECONDS
        skipped = self._in_hand | self._refused
        due = self._ask(BATCH + len(skipped))
        self._waiting.extend(each for each in due if each not in skipped)
        if self._waiting:
            self._ask_at = 0.0
            self._refused.intersection_update(due)
        elif self._is_endless:
            self._refused.clear()  # what somebody else was first to claim, and lost, is tried again after a while


class LocalWorkers:
    """Carries due operations in threads of this process, so many for each location.

    A location that hangs keeps only its own threads. `carry` is called with an operation's id and says whether it
    claimed the operation. The threads are daemons, and no executor's: those are waited for when the interpreter
    ends, and a destination that hangs for ever would keep the process from ending.
    """

    def __init__(self, carry: Callable[[int], bool], *, concurrency: int, stop: threading.Event) -> None:
        self._carry = carry
        self._concurrency = concurrency
        self._stop = stop
        self._feeds: dict[int, _Feed] = {}
        self._threads: dict[tuple[int, int], threading.Thread] = {}

    def drain(self, location_ids: Sequence[int]) -> int:
        """Carry until nothing is due; returns how many operations were claimed.

        What others were first to claim is not waited for. Raises what `carry` raises, or the database.
        """
        return self._carry_all({location_id: _Feed(_due_at(location_id)) for location_id in location_ids})

    def carry_once(self, wanted: Mapping[int, Sequence[int]]) -> int:
        """Try each of these operations (by location) once; returns how many were claimed.

        Others that are due are left alone, and what must be tried again later is not waited for. Raises what `carry`
        raises.
        """
        return self._carry_all({location_id: _Feed(_nothing_more, ids) for location_id, ids in wanted.items()})

    def keep_up(self, location_ids: Sequence[int]) -> None:
        """Carry in the background, until `stop`, whatever becomes due at these locations. Idempotent."""
        for location_id in location_ids:
            feed = self._feeds.setdefault(location_id, _Feed(_due_at(location_id), is_endless=True))
            for number in range(self._concurrency):
                thread = self._threads.get((location_id, number))
                if thread is None or not thread.is_alive():
                    self._threads[location_id, number] = _started(self._follow, location_id, feed)

    def stop(self, timeout: float) -> None:
        """Start nothing new and wait at most `timeout` seconds, in all, for what runs."""
        self._stop.set()
        deadline = time.monotonic() + timeout
        for thread in self._threads.values():
            thread.join(max(0.0, deadline - time.monotonic()))

    def _carry_all(self, feeds: Mapping[int, _Feed]) -> int:
        errors: list[BaseException] = []

        def is_over() -> bool:
            return bool(errors) or self._stop.is_set()

        def work(_location_id: int, feed: _Feed) -> None:
            try:
                self._work(feed, is_over)
            except BaseException as error:  # noqa: BLE001 - whatever it is, the caller gets it
                errors.append(error)

        threads = [
            _started(work, location_id, feed) for location_id, feed in feeds.items() for _ in range(self._concurrency)
        ]
        try:
            for thread in threads:
                thread.join()
        except BaseException:
            # Somebody pressed Ctrl-C: what runs is asked to end, and not waited for, as it may hang.
            self._stop.set()
            raise
        if errors:
            raise errors[0]
        return sum(feed.claimed for feed in feeds.values())

    def _follow(self, location_id: int, feed: _Feed) -> None:
        while not self._stop.is_set():
            try:
                self._work(feed, self._stop.is_set)
            except Exception as error:  # the thread's edge: nothing may end it but a stop
                is_known = isinstance(error, CCATDataOperationError)
                log.error("local_worker_error", location_id=location_id, error=str(error), exc_info=not is_known)
                self._stop.wait(IDLE_SECONDS)

    def _work(self, feed: _Feed, is_over: Callable[[], bool]) -> None:
        while (taken := feed.take(is_over)) is not None:
            claimed = False
            try:
                claimed = self._carry(taken)
            finally:
                feed.give_back(taken, claimed=claimed)


def _due_at(location_id: int) -> Callable[[int], Sequence[int]]:
    """Asks the database what is due at a location."""

    def ask(limit: int) -> Sequence[int]:
        with database.session_scope(read_only=True) as session:
            return operations.due_here(session, location_id, limit=limit)

    return ask


def _nothing_more(_limit: int) -> Sequence[int]:
    return ()


def _started(work: Callable[[int, _Feed], None], location_id: int, feed: _Feed) -> threading.Thread:
    thread = threading.Thread(target=work, args=(location_id, feed), name=f"location-{location_id}", daemon=True)
    thread.start()
    return thread
