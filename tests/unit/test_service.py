"""Running a step for ever."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog

from ccat_data_transfer import service
from ccat_data_transfer.exceptions import DatabaseError

Configure = Callable[..., None]


class Clock(threading.Event):
    """A stop event that only notes how long it was asked to wait, and is set after so many waits."""

    def __init__(self, rounds: int) -> None:
        super().__init__()
        self.waits: list[float] = []
        self._rounds = rounds

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waits.append(timeout)
        if len(self.waits) >= self._rounds:
            self.set()
        return self.is_set()


def steps(*outcomes: bool | BaseException) -> Callable[[], bool]:
    """A step with these outcomes, one after the other; the last one for ever."""
    left = list(outcomes)

    def step() -> bool:
        outcome = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return step


@pytest.fixture(autouse=True)
def no_systemd(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)


def test_a_step_that_did_something_is_called_again_soon_and_else_after_the_interval() -> None:
    stop = Clock(4)
    service.run("test", steps(True, True, False, False), interval=7, stop=stop)
    assert stop.waits == [service.BUSY_SECONDS, service.BUSY_SECONDS, 7, 7]


def test_a_busy_service_never_waits_longer_than_an_idle_one() -> None:
    stop = Clock(2)
    service.run("test", steps(True, False), interval=0.1, stop=stop)
    assert stop.waits == [0.1, 0.1]


def test_a_step_that_raises_is_called_again_after_ever_longer_waits_that_are_bounded() -> None:
    stop = Clock(9)
    service.run("test", steps(DatabaseError("away")), interval=7, stop=stop)
    assert stop.waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_service_that_fails_for_years_goes_on() -> None:
    stop = Clock(2000)
    service.run("test", steps(DatabaseError("away")), interval=7, stop=stop)
    assert stop.waits[-1] == 60


def test_after_a_step_that_went_well_the_waits_begin_anew() -> None:
    stop = Clock(5)
    trouble = DatabaseError("away")
    service.run("test", steps(trouble, trouble, False, trouble, trouble), interval=7, stop=stop)
    assert stop.waits == [1, 2, 7, 1, 2]


@pytest.mark.parametrize("error", [ValueError("a defect"), MemoryError(), OSError(5, "broken")])
def test_no_error_ends_a_service(error: Exception) -> None:
    stop = Clock(2)
    service.run("test", steps(error, False), interval=7, stop=stop)
    assert stop.waits == [1, 7]


def test_a_service_says_at_its_start_what_it_works_with() -> None:
    with structlog.testing.capture_logs() as logs:
        service.run("test", steps(False), interval=7, stop=Clock(1), broker="redis://h", database="sqlite:///d")
    assert logs[0] == {
        "event": "service_started",
        "log_level": "info",
        "service": "test",
        "interval": 7,
        "broker": "redis://h",
        "database": "sqlite:///d",
    }


def test_what_asks_the_process_to_end_ends_the_service() -> None:
    with pytest.raises(SystemExit):
        service.run("test", steps(SystemExit(3)), interval=7, stop=threading.Event())


def test_a_service_that_was_stopped_before_it_began_does_nothing() -> None:
    stop = threading.Event()
    stop.set()
    service.run("test", steps(AssertionError("was called")), interval=7, stop=stop)


def test_a_stop_ends_the_wait() -> None:
    stop, waiting = threading.Event(), threading.Event()

    def step() -> bool:
        waiting.set()
        return False

    thread = threading.Thread(target=service.run, args=("test", step), kwargs={"interval": 3600, "stop": stop})
    thread.start()
    assert waiting.wait(10)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


class TestTheHealthFile:
    @pytest.fixture
    def file(self, tmp_path: Path, configure: Configure) -> Path:
        path = tmp_path / "health.json"
        configure(health_file=path)
        return path

    def test_says_that_the_last_step_went_well_and_when(self, file: Path) -> None:
        service.run("archive_manager", steps(False), interval=7, stop=Clock(1))
        state = json.loads(file.read_text())
        age = datetime.now(UTC) - datetime.fromisoformat(state.pop("at"))
        assert timedelta(0) <= age < timedelta(minutes=1)
        assert state == {
            "service": "archive_manager",
            "pid": os.getpid(),
            "healthy": True,
            "error": None,
            "failures": 0,
        }

    def test_says_what_is_wrong_and_how_often(self, file: Path) -> None:
        service.run("archive_manager", steps(DatabaseError("it is away")), interval=7, stop=Clock(3))
        state = json.loads(file.read_text())
        assert (state["healthy"], state["error"], state["failures"]) == (False, "it is away", 3)

    def test_is_never_seen_half_written_and_leaves_nothing_beside_it(self, file: Path) -> None:
        seen: list[Any] = []

        def step() -> bool:
            if file.exists():
                seen.append(json.loads(file.read_text()))
            return False

        service.run("test", step, interval=7, stop=Clock(5))
        assert len(seen) == 4
        assert list(file.parent.iterdir()) == [file]

    def test_that_cannot_be_written_does_not_end_the_service(self, tmp_path: Path, configure: Configure) -> None:
        configure(health_file=tmp_path / "absent" / "health.json")
        stop = Clock(3)
        service.run("test", steps(False), interval=7, stop=stop)
        assert stop.waits == [7, 7, 7]


class TestSystemd:
    @pytest.fixture(params=["path", "abstract"])
    def channel(
        self, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[socket.socket]:
        if request.param == "abstract" and not sys.platform.startswith("linux"):
            pytest.skip("only Linux has abstract sockets")
        monkeypatch.chdir(tmp_path)  # the path of a socket must be short
        address = "notify" if request.param == "path" else f"@ccat-test-{os.getpid()}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.bind(address.replace("@", "\0"))
            channel.settimeout(10)
            monkeypatch.setenv("NOTIFY_SOCKET", address)
            yield channel

    def test_is_told_of_start_life_and_end(self, channel: socket.socket) -> None:
        service.run("test", steps(False), interval=7, stop=Clock(2))
        assert [channel.recv(1000) for _ in range(4)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1", b"STOPPING=1"]

    def test_is_told_what_is_wrong_instead_of_that_all_is_well(self, channel: socket.socket) -> None:
        service.run("test", steps(DatabaseError("away")), interval=7, stop=Clock(1))
        assert [channel.recv(1000) for _ in range(3)] == [b"READY=1", b"STATUS=away", b"STOPPING=1"]

    def test_is_told_in_one_line_whatever_the_error_says(self, channel: socket.socket) -> None:
        service.run("test", steps(DatabaseError("away\nWATCHDOG=1")), interval=7, stop=Clock(1))
        said = [channel.recv(1000) for _ in range(3)]
        assert said[1].startswith(b"STATUS=away")
        assert b"\n" not in said[1]

    def test_that_does_not_listen_does_not_end_the_service(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
        stop = Clock(2)
        service.run("test", steps(False), interval=7, stop=stop)
        assert stop.waits == [7, 7]


SERVICE = """
import threading
from ccat_data_transfer import logs, service
logs.configure()
stop = threading.Event()
def step():
    print("step", flush=True)
    {body}
    return False
with service.stop_on_signals(stop):
    service.run("test", step, interval=3600, stop=stop)
print("ended", flush=True)
"""
# The moment in which the main thread holds the lock of the event that it waits on.
WAITING = "stop._cond.__enter__(); import signal; signal.raise_signal(signal.SIGTERM); stop._cond.__exit__()"


class TestSignals:
    def started(self, body: str = "pass") -> subprocess.Popen[str]:
        code = SERVICE.format(body=body)
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "step\n"
        return process

    def ended(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        try:
            out, _ = process.communicate(timeout=5)
        finally:
            process.kill()
            process.communicate()
        return process.returncode, out

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_ends_the_service_in_good_order(self, number: signal.Signals) -> None:
        process = self.started()
        process.send_signal(number)
        assert self.ended(process) == (0, "ended\n")

    def test_a_signal_lets_the_running_step_end(self) -> None:
        process = self.started("stop.wait(); print('step ended', flush=True)")
        process.send_signal(signal.SIGTERM)
        assert self.ended(process) == (0, "step ended\nended\n")

    def test_a_second_signal_ends_the_process_at_once(self) -> None:
        process = self.started("stop.wait(); print('asked', flush=True); threading.Event().wait()")
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGTERM)
        assert self.ended(process) == (-signal.SIGTERM, "")

    def test_a_signal_may_come_at_any_moment_of_the_wait(self) -> None:
        assert self.ended(self.started(WAITING)) == (0, "ended\n")

    def test_afterwards_signals_mean_what_they_meant_before(self) -> None:
        before = signal.getsignal(signal.SIGTERM)
        with service.stop_on_signals(threading.Event()):
            assert signal.getsignal(signal.SIGTERM) is not before
        assert signal.getsignal(signal.SIGTERM) is before

    def test_another_thread_leaves_signals_alone(self) -> None:
        before, seen = signal.getsignal(signal.SIGTERM), []

        def look() -> None:
            with service.stop_on_signals(threading.Event()):
                seen.append(signal.getsignal(signal.SIGTERM))

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert seen == [before]
