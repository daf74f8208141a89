"""Servers, a clean environment, and no process left behind, for all tests."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import servers


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[servers.PostgreSQL]:
    """One PostgreSQL for all tests of a worker; a test takes a database of its own from it."""
    with servers.or_skip(servers.postgresql()) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[servers.Valkey]:
    """One Valkey for all tests of a worker, with whatever earlier tests left in it."""
    with servers.or_skip(servers.valkey()) as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[servers.RabbitMQ]:
    """One RabbitMQ for all tests of a worker, with whatever earlier tests left in it."""
    with servers.or_skip(servers.rabbitmq()) as server:
        yield server


@pytest.fixture
def postgresql_url(postgresql_server: servers.PostgreSQL) -> Iterator[str]:
    """The URL of an empty database that is this test's alone."""
    with postgresql_server.database() as url:
        yield url


@pytest.fixture(autouse=True)
def clean_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide the developer's settings and home from the test, and fail it when it leaves processes behind."""
    home = tmp_path_factory.mktemp("home")
    for name in os.environ:
        if name.startswith(("CCAT_DATA_TRANSFER_", "PG")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    for kind in ("CONFIG", "DATA", "STATE", "CACHE", "RUNTIME"):
        suffix = "DIR" if kind == "RUNTIME" else "HOME"
        monkeypatch.setenv(f"XDG_{kind}_{suffix}", str(home / kind.lower()))
    yield
    if left := _end_processes_of(home):
        pytest.fail(f"the test left processes behind: {left}", pytrace=False)


def _end_processes_of(home: Path) -> list[str]:
    """Kill what runs with a test's home in its environment, however far from the test it was started.

    Processes that are just ending are given a moment for it and do not count.
    """
    marker = f"HOME={home}\0".encode()
    deadline = time.monotonic() + 2
    while (left := _processes_with(marker)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return list(left.values())


def _processes_with(marker: bytes) -> dict[int, str]:
    """Process ids and command lines of this user's processes with `marker` in their environment."""
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if marker in (directory / "environ").read_bytes():
                command = (directory / "cmdline").read_bytes()
                found[int(directory.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name what tests were skipped for, so that a green run is not mistaken for a full one."""
    reasons: dict[str, int] = {}
    for report in terminalreporter.getreports("skipped"):
        if not hasattr(report, "wasxfail"):
            text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            reason = text.removeprefix("Skipped: ")
            reasons[reason] = reasons.get(reason, 0) + 1
    if reasons:
        terminalreporter.section("NOT EVERYTHING WAS TESTED", sep="!", red=True)
        for reason, count in sorted(reasons.items()):
            terminalreporter.line(f"{count} {'test' if count == 1 else 'tests'} skipped: {reason}")
