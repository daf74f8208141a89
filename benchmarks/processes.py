"""Processes under measurement: started in sessions of their own, watched for memory, and gone afterwards for sure."""

import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

_SAMPLE_SECONDS = 0.1
_STOP_SECONDS = 30.0

Command = Sequence[str | Path]


class FailedError(Exception):
    """A process did not do what it should; the message ends with the last lines of its log."""


@dataclass
class Peaks:
    """The most memory that each process of a tree had resident, in bytes, by process id."""

    resident: dict[int, int] = field(default_factory=dict)
    commands: dict[int, str] = field(default_factory=dict)

    def note(self, pid: int, resident: int, command: str) -> None:
        """A reading of one process. High-water marks only grow, so the last reading counts."""
        self.resident[pid] = max(resident, self.resident.get(pid, 0))
        self.commands[pid] = command or self.commands.get(pid, "")

    def add(self, other: "Peaks") -> None:
        """The readings of another tree, too."""
        for pid, resident in other.resident.items():
            self.note(pid, resident, other.commands[pid])

    @property
    def highest(self) -> int:
        """That of the largest process."""
        return max(self.resident.values())

    def lines(self) -> tuple[str, ...]:
        """Every process in words, the largest first."""
        ordered = sorted(self.resident, key=lambda pid: -self.resident[pid])
        return tuple(f"{self.resident[pid] / 1e6:.1f} MB: {self.commands[pid]}" for pid in ordered)


class Tree:
    """A running program and all that it starts, in one session. Leaving the block ends them all."""

    def __init__(
        self,
        command: Command,
        *,
        log: Path,
        env: dict[str, str],
        user: int | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        watch: bool = False,
    ) -> None:
        self.peaks = Peaks()
        self.log = log
        self._stop_signal = stop_signal
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=log.parent,
                env=env,
                start_new_session=True,
                user=user,
                group=None if user is None else _group_of(user),
                extra_groups=None if user is None else [],
            )
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True) if watch else None
        if self._watcher is not None:
            self._watcher.start()

    @property
    def name(self) -> str:
        """The program in few words."""
        return " ".join(Path(str(word)).name for word in list(self._process.args)[:4])  # type: ignore[arg-type]

    def wait(self, timeout: float) -> int:
        """Wait for the program to end by itself; returns its exit code, raises `FailedError` when it does not end."""
        if self._process.returncode is not None:
            return self._process.returncode
        handle = os.pidfd_open(self._process.pid)
        try:
            if not select.select([handle], [], [], timeout)[0]:
                raise FailedError(f"{self.name} did not end within {timeout:.0f} s\n{self.tail()}")
        finally:
            os.close(handle)
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        if self._watcher is not None:
            # Exact to the end, but never below what this very process had resident when it started the program.
            self.peaks.note(self._process.pid, usage.ru_maxrss * 1024, "")
        return self._process.returncode

    def wait_for(self, text: str, timeout: float) -> None:
        """Wait until the log holds `text`."""
        deadline = time.monotonic() + timeout
        while text not in self.log.read_text(errors="replace"):
            if self._process.poll() is not None:
                raise FailedError(f"{self.name} ended while starting\n{self.tail()}")
            if time.monotonic() > deadline:
                raise FailedError(f"{self.name} said no '{text}' within {timeout:.0f} s\n{self.tail()}")
            time.sleep(0.05)

    def check_running(self) -> None:
        """Raise `FailedError` when the program has ended."""
        if self._process.poll() is not None:
            raise FailedError(f"{self.name} ended too early\n{self.tail()}")

    def tail(self) -> str:
        """The end of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    def stop(self) -> None:
        """Ask the program to end, then make sure that nothing of its session is left."""
        try:
            if self._process.returncode is None:
                self._process.send_signal(self._stop_signal)
                self.wait(_STOP_SECONDS)
        finally:
            self._ended.set()
            if self._watcher is not None:
                self._watcher.join()
            self._kill()

    def _kill(self) -> None:
        deadline = time.monotonic() + 10
        while left := session_members(self._process.pid):
            if time.monotonic() > deadline:
                raise FailedError(f"processes {left} do not end")
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        if self._process.returncode is None:
            self._process.wait()

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            for pid in session_members(self._process.pid):
                with contextlib.suppress(OSError, StopIteration):
                    self.peaks.note(pid, _high_water(pid), _command(pid))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_unused: object) -> None:
        self.stop()


def _group_of(user: int) -> int:
    import pwd

    return pwd.getpwuid(user).pw_gid


def session_members(session: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, its_session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if state != "Z" and int(its_session) == session:
                found.append(int(entry.name))
    return found


def _high_water(pid: int) -> int:
    """The most that a process had resident since its program started, in bytes (proc(5), VmHWM)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _command(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    return " ".join(Path(word).name if "/" in word else word for word in words if word)


@dataclass(frozen=True, slots=True)
class Finished:
    """A program that ended well: how long it took from start to end, and what it used."""

    seconds: float
    peaks: Peaks
    output: str


def run(command: Command, *, log: Path, env: dict[str, str], timeout: float = 600, watch: bool = False) -> Finished:
    """Run a program to its end; raises `FailedError` unless it ends with 0."""
    log.write_bytes(b"")
    started = time.monotonic()
    with Tree(command, log=log, env=env, watch=watch) as tree:
        code = tree.wait(timeout)
        seconds = time.monotonic() - started
        if code:
            raise FailedError(f"{tree.name} ended with {code}\n{tree.tail()}")
    return Finished(seconds, tree.peaks, log.read_text(errors="replace"))


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an exception, so that everything is cleaned up as on Ctrl-C."""

    def stop(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
