"""The program under measurement: its commands in a clean environment, and whether they did what they say.

Nothing of it is imported here. Each command is a process of its own, as a user would start it.
"""

import contextlib
import hashlib
import itertools
import os
import random
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import LiteralString

from benchmarks import processes, servers
from benchmarks.processes import Command, FailedError, Finished, Tree

PROGRAM = Path(sys.executable).with_name("ccat_data_transfer")
SITE, BUFFER, ARCHIVE = "bench", "buffer", "lta"
QUEUE = f"{SITE}_{ARCHIVE}_long_term_archive_transfer"

_SAMPLE = 20
_POLL_SECONDS = 0.02
_READY_SECONDS = 60.0
_COUNTS = "SELECT status, count(*) FROM long_term_archive_transfer GROUP BY status"
_UNFINISHED = "SELECT count(*) FROM long_term_archive_transfer WHERE status <> 'completed'"
_FAILURE = "SELECT reason || ': ' || error FROM long_term_archive_transfer WHERE status = 'failed' LIMIT 1"

_TOPOLOGY = f"""
[[site]]
name = "Benchmark"
short_name = "{SITE}"

[[site.data_location]]
name = "{BUFFER}"
location_type = "buffer"
storage_type = "disk"
path = "{{buffer}}"

[[site.data_location]]
name = "{ARCHIVE}"
location_type = "long_term_archive"
storage_type = "disk"
path = "{{archive}}"
"""


def environment(home: Path, **settings: str) -> dict[str, str]:
    """What the program sees: none of the developer's settings, but these."""
    home.mkdir(exist_ok=True)
    root = Path(__file__).parent.parent
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "PYTHONPATH": f"{root}:{root / 'src'}",  # the code beside these files, whatever is installed
        **{f"CCAT_DATA_TRANSFER_{name.upper()}": value for name, value in settings.items()},
    }


class Embedded:
    """The program with SQLite and no broker, in an empty directory of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._workdir = directory / "work"
        self.target = directory / "archive"
        directory.mkdir()

    def archive(self, sources: Sequence[Path], *, watch: bool = False) -> Finished:
        """Register and archive, from the start of the process to its end."""
        command: Command = [PROGRAM, "archive", *sources, "--to", self.target, "--workdir", self._workdir]
        env = environment(self._directory / "home")
        return processes.run(command, log=self._directory / "log", env=env, watch=watch)

    def check(self, sources: Sequence[Path]) -> None:
        """Raise `FailedError` unless the database calls every package completed, and the archive proves it."""
        with contextlib.closing(sqlite3.connect(self._workdir / "operations.sqlite")) as connection:
            _check_counts(dict(connection.execute(_COUNTS)), len(sources))
        check_archive(self.target, sources)


class Fleet:
    """The program with PostgreSQL and a Redis-compatible broker, each fresh, for one site with one archive."""

    def __init__(self, directory: Path, running: servers.Servers, buffer: Path) -> None:
        self.target = directory / "archive"
        self.target.mkdir()
        self._directory = directory
        self._running = running
        self.env = environment(
            directory / "home", database_url=running.database_url, broker_url=running.broker_url, log_format="json"
        )
        topology = directory / "topology.toml"
        topology.write_text(_TOPOLOGY.format(buffer=buffer, archive=self.target))
        self._command("db", "upgrade")
        self._command("topology", "apply", str(topology))

    def _command(self, *words: str, watch: bool = False) -> Finished:
        return processes.run([PROGRAM, *words], log=self._directory / f"log-{words[0]}", env=self.env, watch=watch)

    def register(self, folder: Path, *, watch: bool = False) -> Finished:
        """Register every tar of the buffer."""
        return self._command("package", "register", str(folder), "--location", f"{SITE}/{BUFFER}", watch=watch)

    @contextmanager
    def celery_workers(self, count: int) -> Iterator[list[Tree]]:
        """So many Celery workers of one process each on the archive's queue, ready."""
        with contextlib.ExitStack() as stack:
            trees = []
            for number in range(count):
                command = [sys.executable, "-m", "celery", "-A", "ccat_data_transfer.celery_app", "worker"]
                command += ["-Q", QUEUE, "-n", f"worker{number}@%h", "-c", "1", "--without-mingle", "--without-gossip"]
                log = self._directory / f"log-worker{number}"
                trees.append(stack.enter_context(Tree(command, log=log, env=self.env)))
            for tree in trees:
                tree.wait_for(" ready", _READY_SECONDS)
            yield trees

    @contextmanager
    def workers(self, *, watch: bool = False) -> Iterator[list[Tree]]:
        """The `worker` command, as it comes, ready."""
        command: Command = [PROGRAM, "worker", "--site", SITE]
        with Tree(command, log=self._directory / "log-worker", env=self.env, watch=watch) as tree:
            tree.wait_for(" ready", _READY_SECONDS)
            yield [tree]

    def archive(self, workers: Sequence[Tree], *, timeout: float = 600) -> float:
        """Seconds from the start of a manager's pass until the database calls every operation completed."""
        manager = self._directory / "log-pass"
        with (
            Tree([sys.executable, "-m", "benchmarks.manager_pass"], log=manager, env=self.env) as tree,
            servers.connect(self._running.database_url) as connection,
        ):
            tree.wait_for("began", _READY_SECONDS)
            began = float(manager.read_text().split("began ")[1].split()[0])
            if tree.wait(timeout):
                raise FailedError(f"the manager's pass failed\n{tree.tail()}")
            while _one(connection, _UNFINISHED):
                for worker in workers:
                    worker.check_running()
                if failure := connection.execute(_FAILURE).fetchone():
                    raise FailedError(f"an operation failed: {failure[0]}")
                if time.monotonic() > began + timeout:
                    raise FailedError(f"not everything was archived within {timeout:.0f} s\n{workers[0].tail()}")
                time.sleep(_POLL_SECONDS)
            return time.monotonic() - began

    def check(self, sources: Sequence[Path]) -> None:
        """Raise `FailedError` unless the database calls every package completed, and the archive proves it."""
        with servers.connect(self._running.database_url) as connection:
            _check_counts(dict(connection.execute(_COUNTS).fetchall()), len(sources))  # type: ignore[arg-type]
        check_archive(self.target, sources)


def _one(connection: servers.Connection, query: LiteralString) -> int:
    row = connection.execute(query).fetchone()
    if row is None:
        raise FailedError("the database counted nothing")
    return row[0]


def _check_counts(counts: dict[str, int], expected: int) -> None:
    if counts != {"completed": expected}:
        raise FailedError(f"the database should have {expected} completed operations and no other, it has {counts}")


def check_archive(target: Path, sources: Sequence[Path]) -> None:
    """Raise `FailedError` unless every source has its package there, and a sample is equal to its manifest."""
    found = {path.name: path for path in target.glob("*/*.tar")}
    expected = {source.name: source for source in sources}
    if found.keys() != expected.keys():
        raise FailedError(f"{len(expected)} packages were archived, {len(found)} are there")
    for name in random.Random(len(found)).sample(sorted(found), min(_SAMPLE, len(found))):
        manifest = found[name].with_name(f"{name}.sha256").read_text()
        digests = {_digest(expected[name]), _digest(found[name]), manifest.split()[0]}
        if len(digests) != 1 or manifest.split()[1] != name:
            raise FailedError(f"package '{name}', its source and its manifest differ")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_numbers = itertools.count(1)


@contextmanager
def scratch(parent: Path, kind: str) -> Iterator[Path]:
    """A path for one run, which does not exist yet; removed afterwards and off the disk before the next begins."""
    directory = parent / f"{kind}-{next(_numbers)}"
    try:
        yield directory
    finally:
        if directory.exists():
            shutil.rmtree(directory)
        os.sync()
