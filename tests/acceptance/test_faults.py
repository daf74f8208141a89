"""What goes wrong around the product while it runs, and that it comes out of it."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from tests import servers
from tests.acceptance.conftest import Installation, wait_for

from ccat_data_transfer import fleet, models, routing

LARGE = 1 << 30
QUEUE = routing.queue_name("cologne", "lta")


def of_package(installation: Installation, package: str, status: str) -> dict[str, Any] | None:
    found = [t for t in installation.transfers() if t["package"] == package and t["status"] == status]
    return found[0] if found else None


def completed(installation: Installation, count: int) -> bool:
    return [transfer["status"] for transfer in installation.transfers()].count("completed") == count


def is_ready(installation: Installation, queue: str) -> bool:
    return f"{queue}@" in installation.log and " ready." in installation.log


class TestABrokerThatIsAway:
    @pytest.fixture(params=["closed", "silent"])
    def port(self, request: pytest.FixtureRequest) -> Iterator[int]:
        """A port at which nobody listens, or somebody who never says a word."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            if request.param == "silent":
                listener.listen(16)
            yield listener.getsockname()[1]

    @pytest.mark.parametrize("scheme", ["redis", "amqp"])
    def test_is_given_up_within_seconds(self, port: int, scheme: str) -> None:
        code = (
            "import time\n"
            "from ccat_data_transfer import dispatch, logs, operations\n"
            "logs.configure()\n"
            "began = time.monotonic()\n"
            "unsent = dispatch.send([operations.Dispatch(number, 'a_queue') for number in range(1000)])\n"
            "print(len(unsent), time.monotonic() - began)\n"
        )
        environment = {**os.environ, "CCAT_DATA_TRANSFER_BROKER_URL": f"{scheme}://127.0.0.1:{port}/0"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
        )
        unsent, seconds = done.stdout.split()
        assert unsent == "1000"
        assert float(seconds) < 8


def test_a_result_backend_gets_results_and_cannot_hold_up_the_manager(
    redis_installation: Installation, valkey_server: servers.Valkey
) -> None:
    installation = redis_installation
    installation.apply_topology("cologne")
    installation.make_package("cologne", "result.tar", 100_000)
    with silence() as port:
        installation.environment["CCAT_DATA_TRANSFER_RESULT_BACKEND_URL"] = f"redis://127.0.0.1:{port}/0"
        began = time.monotonic()
        installation.run("archive-manager", "--once")
        assert time.monotonic() - began < 20
    installation.environment["CCAT_DATA_TRANSFER_RESULT_BACKEND_URL"] = valkey_server.url
    with redis.Redis.from_url(valkey_server.url) as client, installation.background(fleet.celery_arguments(QUEUE, 1)):
        before = set(client.keys("celery-task-meta-*"))
        wait_for(lambda: completed(installation, 1), "the completed operation")
        wait_for(lambda: set(client.keys("celery-task-meta-*")) - before, "the result of the task")


@contextlib.contextmanager
def silence() -> Iterator[int]:
    """A port at which somebody listens who never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield listener.getsockname()[1]


class Outage:
    """Takes a database away from everybody who is or wants to be connected to it."""

    def __init__(self, url: str) -> None:
        chosen = make_url(url)
        self._name = str(chosen.database)
        self._server = chosen.set(drivername="postgresql", database="postgres").render_as_string(hide_password=False)

    def begin(self) -> None:
        with psycopg.connect(self._server, autocommit=True) as connection:
            connection.execute(self._allow("false"))
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [self._name]
            )

    def end(self) -> None:
        with psycopg.connect(self._server, autocommit=True) as connection:
            connection.execute(self._allow("true"))

    def _allow(self, what: str) -> psycopg.sql.Composed:
        statement = psycopg.sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
        return statement.format(psycopg.sql.Identifier(self._name), psycopg.sql.Literal(what == "true"))


def test_an_outage_of_the_database_costs_no_message(installation: Installation) -> None:
    installation.apply_topology("cologne")
    for number in range(8):
        installation.make_package("cologne", f"kept-{number}.tar", 70_000)
    installation.run("archive-manager", "--once")
    outage = Outage(installation.environment["CCAT_DATA_TRANSFER_DATABASE_URL"])
    outage.begin()
    try:
        with installation.background(fleet.celery_arguments(QUEUE, 4)):
            wait_for(lambda: installation.log.count("message_given_back") >= 10, "ten messages given back")
            outage.end()
            # No manager runs, and what was lost would only be sent again after ten minutes.
            wait_for(lambda: completed(installation, 8), "eight completed operations", seconds=60)
    finally:
        outage.end()
    assert "task_failed" not in installation.log


def test_a_worker_that_is_told_to_stop_gives_its_copy_back(redis_installation: Installation) -> None:
    installation = redis_installation
    installation.environment["CCAT_DATA_TRANSFER_SHUTDOWN_GRACE_SECONDS"] = "0"
    installation.apply_topology("cologne")
    source = installation.make_package("cologne", "large.tar", LARGE)
    lta = installation.root / "cologne" / "lta"
    installation.run("archive-manager", "--once")
    with installation.running("worker", "--concurrency", "1") as process:
        wait_for(lambda: [path for path in (lta / ".incoming").glob("*") if path.stat().st_size], "a growing temporary")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not list((lta / ".incoming").glob("*"))
    assert not (lta / "large").exists()
    (transfer,) = installation.transfers()
    assert transfer["status"] == "pending"
    given_back = row(installation, transfer["id"])
    assert (given_back.attempt, given_back.attempt_limit) == (1, 1 + 5)

    with installation.running("archive-manager"), installation.running("worker"):
        done = wait_for(lambda: of_package(installation, "large.tar", "completed"), "the second attempt")
    assert done["attempt"] == 2
    assert (lta / "large" / "large.tar").stat().st_size == source.stat().st_size


def row(installation: Installation, operation_id: int) -> models.LongTermArchiveTransfer:
    engine = sa.create_engine(installation.environment["CCAT_DATA_TRANSFER_DATABASE_URL"])
    with sa.orm.Session(engine) as session:
        found = session.get_one(models.LongTermArchiveTransfer, operation_id)
        session.expunge(found)
    engine.dispose()
    return found


def test_rubbish_in_a_queue_kills_one_process_at_most(
    redis_installation: Installation, valkey_server: servers.Valkey
) -> None:
    installation = redis_installation
    installation.apply_topology("cologne")
    installation.make_package("cologne", "good.tar", 100_000)
    with installation.running("worker", "--concurrency", "1") as worker:
        wait_for(lambda: is_ready(installation, QUEUE), "a worker that is ready")
        with redis.Redis.from_url(valkey_server.url) as client:
            client.lpush(installation.environment["CCAT_DATA_TRANSFER_BROKER_KEY_PREFIX"] + QUEUE, "{garbage")
        wait_for(lambda: "worker_died" in installation.log, "the death of a process of Celery")
        installation.run("archive-manager", "--once")
        wait_for(lambda: completed(installation, 1), "the good package")
        assert worker.poll() is None
    assert worker.returncode == 0


# Undoes all of it when the test is done or dead, whatever state it leaves: its input then ends.
THAW = """
read -r _
fsfreeze -u "$1"
umount -l "$1"
"""


def _mount_trouble(image: Path, root: Path) -> str:
    """Mount a new file system; why that cannot be done here, or nothing."""
    missing = [program for program in ("mkfs.ext4", "mount", "fsfreeze") if not shutil.which(program)]
    if os.geteuid() or missing:
        return f"a file system that hangs needs root, mkfs.ext4 and fsfreeze; missing: {missing or 'root'}"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    commands: list[list[str | Path]] = [["mkfs.ext4", "-q", image], ["mount", "-o", "loop", image, root]]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"no file system that can be made to hang: {done.stderr.strip()}"
    return ""


@pytest.fixture
def freezable(tmp_path: Path) -> Iterator[Path]:
    """A directory that is a file system of its own, which can be frozen: all writing to it then hangs."""
    image, root = tmp_path / "ext4.image", tmp_path / "chile" / "lta"
    root.mkdir(parents=True)
    if trouble := _mount_trouble(image, root):
        if os.environ.get("CI") and os.geteuid() == 0:
            pytest.fail(trouble, pytrace=False)
        pytest.skip(f"{servers.SKIP_PREFIX}{trouble}")
    rescuer = subprocess.Popen(["sh", "-c", THAW, "thaw", root], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        yield root
    finally:
        rescuer.communicate(timeout=60)


def test_one_destination_that_hangs_does_not_keep_another_from_working(
    redis_installation: Installation, freezable: Path
) -> None:
    installation = redis_installation
    installation.apply_topology("chile", "cologne")
    with installation.running("archive-manager"), installation.running("worker", "--concurrency", "1"):
        # One that goes well, so that both are known to be served.
        installation.make_package("chile", "first.tar", 100_000)
        wait_for(lambda: of_package(installation, "first.tar", "completed"), "the first package")
        subprocess.run(["fsfreeze", "-f", freezable], check=True)
        try:
            installation.make_package("chile", "stuck.tar", 100_000)
            wait_for(lambda: of_package(installation, "stuck.tar", "in_progress"), "a package that is stuck")
            for number in range(3):
                installation.make_package("cologne", f"free-{number}.tar", 100_000)
            wait_for(lambda: completed(installation, 4), "three packages of the free destination")
            assert of_package(installation, "stuck.tar", "in_progress")
        finally:
            subprocess.run(["fsfreeze", "-u", freezable], check=True)
        wait_for(lambda: of_package(installation, "stuck.tar", "completed"), "the package that was stuck")
    assert (freezable / "stuck" / "stuck.tar").stat().st_size > 100_000
