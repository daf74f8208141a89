"""Handing operations over: threads that carry them here, without a broker."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from ccat_data_transfer import dispatch, operations
from ccat_data_transfer.exceptions import DatabaseError

WAIT = 10


class Work:
    """Operations of locations as a database would give them out, and what was carried."""

    def __init__(self, due: dict[int, Sequence[int]]) -> None:
        self.due = {location: list(ids) for location, ids in due.items()}
        self.carried: list[int] = []
        self.asked = 0
        self.trouble: list[Exception] = []
        self.lock = threading.Lock()

    def due_here(self, _session: object, location_id: int, *, limit: int) -> list[int]:
        with self.lock:
            self.asked += 1
            if self.trouble:
                raise self.trouble.pop()
            return self.due[location_id][:limit]

    def carry(self, operation_id: int) -> bool:
        with self.lock:
            if not any(operation_id in ids for ids in self.due.values()):
                return False
            for ids in self.due.values():
                if operation_id in ids:
                    ids.remove(operation_id)
            self.carried.append(operation_id)
            return True


@pytest.fixture
def work(sqlite_database: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Work]:
    def make(due: dict[int, Sequence[int]]) -> Work:
        made = Work(due)
        monkeypatch.setattr(operations, "due_here", made.due_here)
        return made

    return make


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def workers(
    carry: Callable[[int], bool], stop: threading.Event | None = None, concurrency: int = 2
) -> dispatch.LocalWorkers:
    return dispatch.LocalWorkers(carry, concurrency=concurrency, stop=stop or threading.Event())


class TestDrain:
    def test_carries_everything_that_is_due_once(self, work: Callable[..., Work]) -> None:
        made = work({1: range(600), 2: range(600, 650)})
        assert workers(made.carry).drain([1, 2]) == 650
        assert sorted(made.carried) == list(range(650))

    def test_of_nothing_does_nothing(self, work: Callable[..., Work]) -> None:
        made = work({1: []})
        assert workers(made.carry).drain([]) == workers(made.carry).drain([1]) == 0

    def test_leaves_what_others_were_first_to_claim(self, work: Callable[..., Work]) -> None:
        work({1: range(5)})
        tried = []

        def refuse(operation_id: int) -> bool:
            tried.append(operation_id)
            return False

        assert workers(refuse).drain([1]) == 0
        assert sorted(tried) == list(range(5))

    def test_finds_what_lies_behind_a_whole_batch_of_others(self, work: Callable[..., Work]) -> None:
        made = work({1: range(dispatch.BATCH + 5)})
        assert workers(lambda number: number >= dispatch.BATCH and made.carry(number)).drain([1]) == 5

    def test_tries_again_what_is_due_again(self, work: Callable[..., Work]) -> None:
        made = work({1: [7]})
        left = [True, True, False]

        def carry(operation_id: int) -> bool:
            made.carry(operation_id)
            if left.pop(0):
                made.due[1].append(operation_id)
            return True

        assert workers(carry).drain([1]) == 3

    def test_one_slow_package_keeps_no_other_thread_idle(self, work: Callable[..., Work]) -> None:
        made = work({1: range(2 * dispatch.BATCH)})
        rest_is_done = threading.Event()

        def carry(operation_id: int) -> bool:
            claimed = made.carry(operation_id)
            if operation_id == 0:
                assert rest_is_done.wait(WAIT)
            elif len(made.carried) == 2 * dispatch.BATCH:
                rest_is_done.set()
            return claimed

        assert workers(carry).drain([1]) == 2 * dispatch.BATCH

    def test_no_operation_is_in_two_hands(self, work: Callable[..., Work]) -> None:
        made = work({1: range(50)})
        together = threading.Barrier(2, timeout=WAIT)
        in_hand: list[int] = []

        def carry(operation_id: int) -> bool:
            in_hand.append(operation_id)
            if operation_id < 2:
                together.wait()
            assert in_hand.count(operation_id) == 1
            return made.carry(operation_id)  # until now the database still names it as due

        assert workers(carry).drain([1]) == 50

    def test_raises_what_carrying_raised_and_takes_no_more(self, work: Callable[..., Work]) -> None:
        made = work({1: range(100), 2: range(100, 200)})

        def carry(operation_id: int) -> bool:
            made.carry(operation_id)
            if operation_id == 3:
                raise DatabaseError("it is away")
            if operation_id > 3:
                raised.wait(0.2)
            return True

        raised = threading.Event()
        with pytest.raises(DatabaseError, match="it is away"):
            workers(carry).drain([1, 2])
        assert len(made.carried) < 20
        assert not threads_of_locations()

    def test_raises_what_the_database_raised(self, work: Callable[..., Work]) -> None:
        made = work({1: [1]})
        made.trouble = [DatabaseError("it is away")]
        with pytest.raises(DatabaseError):
            workers(made.carry).drain([1])

    def test_ends_when_it_is_stopped(self, work: Callable[..., Work], stop: threading.Event) -> None:
        made = work({1: range(100)})

        def carry(operation_id: int) -> bool:
            stop.set()
            return made.carry(operation_id)

        assert workers(carry, stop).drain([1]) <= 2


class TestCarryOnce:
    def test_tries_each_once_and_asks_for_no_more(self, work: Callable[..., Work]) -> None:
        made = work({1: [1, 2, 3], 2: [4]})
        made.due[1].append(99)
        assert workers(made.carry).carry_once({1: [1, 2, 3, 5], 2: [4]}) == 4
        assert sorted(made.carried) == [1, 2, 3, 4]
        assert made.asked == 0

    def test_raises_what_carrying_raised(self) -> None:
        def carry(_operation_id: int) -> bool:
            raise ValueError("a defect")

        with pytest.raises(ValueError, match="a defect"):
            workers(carry).carry_once({1: [1, 2], 2: [3]})


class TestKeepUp:
    def test_carries_what_becomes_due_later(
        self, work: Callable[..., Work], stop: threading.Event, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dispatch, "IDLE_SECONDS", 0.01)
        made, carried = work({1: []}), threading.Event()

        def carry(operation_id: int) -> bool:
            claimed = made.carry(operation_id)
            carried.set()
            return claimed

        keeper = workers(carry, stop)
        keeper.keep_up([1])
        keeper.keep_up([1])
        assert len(threads_of_locations()) == 2
        with made.lock:
            made.due[1].append(4)
        assert carried.wait(WAIT)
        keeper.stop(WAIT)
        assert made.carried == [4]
        assert not threads_of_locations()

    @pytest.mark.parametrize("trouble", [DatabaseError("it is away"), ValueError("a defect")])
    def test_waits_for_a_database_that_is_away(
        self,
        work: Callable[..., Work],
        stop: threading.Event,
        monkeypatch: pytest.MonkeyPatch,
        trouble: Exception,
    ) -> None:
        monkeypatch.setattr(dispatch, "IDLE_SECONDS", 0.01)
        made, carried = work({1: [4]}), threading.Event()
        made.trouble = [trouble, trouble, trouble]

        def carry(operation_id: int) -> bool:
            carried.set()
            return made.carry(operation_id)

        keeper = workers(carry, stop)
        keeper.keep_up([1])
        assert carried.wait(WAIT)
        keeper.stop(WAIT)

    def test_tries_again_after_a_while_what_others_claimed_and_lost(
        self, work: Callable[..., Work], stop: threading.Event, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dispatch, "IDLE_SECONDS", 0.05)
        made, twice, tried = work({1: [4]}), threading.Event(), []

        def refuse(operation_id: int) -> bool:
            tried.append(time.monotonic())
            if len(tried) == 2:
                twice.set()
            return False

        keeper = workers(refuse, stop)
        keeper.keep_up([1])
        assert twice.wait(WAIT)
        keeper.stop(WAIT)
        assert tried[1] - tried[0] >= 0.04
        assert made.asked >= 2

    def test_stopping_waits_so_long_in_all_and_not_for_each(
        self, work: Callable[..., Work], stop: threading.Event
    ) -> None:
        work({number: [number] for number in range(6)})
        release, hanging = threading.Event(), threading.Semaphore(0)

        def hang(_operation_id: int) -> bool:
            hanging.release()
            return release.wait(WAIT)

        keeper = workers(hang, stop)
        keeper.keep_up(range(6))
        assert all(hanging.acquire(timeout=WAIT) for _ in range(6))
        began = time.monotonic()
        keeper.stop(0.3)
        assert time.monotonic() - began < 1.5
        release.set()


def threads_of_locations() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("location-") and thread.is_alive()]


PROGRAM = """
import contextlib, threading, sys
from ccat_data_transfer import database, dispatch, operations
database.session_scope = lambda read_only: contextlib.nullcontext()
operations.due_here = lambda session, location_id, limit: [1]
hanging = threading.Event()
def hang(operation_id):
    hanging.set()
    print("hangs", flush=True)
    threading.Event().wait()
workers = dispatch.LocalWorkers(hang, concurrency=2, stop=threading.Event())
{body}
"""


def program(body: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body=body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        _, errors = process.communicate(timeout=WAIT)
    finally:
        process.kill()
        process.communicate()
    return process.returncode, errors


def test_a_destination_that_hangs_for_ever_does_not_keep_the_process_from_ending() -> None:
    process = program("workers.keep_up([1]); hanging.wait(); workers.stop(0.1)")
    assert ended(process) == (0, "")


@pytest.mark.parametrize("call", ["drain([1])", "carry_once({1: [1]})"])
def test_an_interrupt_ends_the_wait_for_a_destination_that_hangs(call: str) -> None:
    process = program(
        "import signal\n"
        "main = threading.main_thread().ident\n"
        "press = lambda: (hanging.wait(), signal.pthread_kill(main, signal.SIGINT))\n"
        "threading.Thread(target=press, daemon=True).start()\n"
        f"workers.{call}"
    )
    code, errors = ended(process)
    assert code == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
