"""The product as its users run it: its real commands, worker processes, database and broker."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests import servers

from ccat_data_transfer import database, migrations

WAIT_SECONDS = 90.0
POLL_SECONDS = 0.05

TOPOLOGY = """
[[site]]
name = "{name}"
short_name = "{short_name}"

[[site.data_location]]
name = "buffer"
location_type = "buffer"
storage_type = "disk"
path = "{root}/{short_name}/buffer"

[[site.data_location]]
name = "lta"
location_type = "long_term_archive"
storage_type = "disk"
path = "{root}/{short_name}/lta"
"""


def wait_for(condition: Callable[[], Any], what: str, seconds: float = WAIT_SECONDS) -> Any:
    """Return what `condition` returns once it is true; fail the test when it does not become so."""
    pause = threading.Event()
    for _ in range(int(seconds / POLL_SECONDS)):
        if found := condition():
            return found
        pause.wait(POLL_SECONDS)
    pytest.fail(f"waited {seconds:.0f} s in vain for: {what}")


@dataclass
class Installation:
    """One installed product: settings in the environment, commands as processes."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "ccat_data_transfer", *arguments]

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run a command to its end, expect its exit code, return its standard output."""
        done = subprocess.run(
            self.command(*arguments),
            env=self.environment,
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
            check=False,
        )
        assert done.returncode == code, f"{arguments} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json"))

    def transfers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.json("transfer", "list")
        return found

    @property
    def log(self) -> str:
        """What the processes in the background have said."""
        return (self.root / "background.log").read_text(encoding="utf-8")

    @contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """A command in the background, with its children in a process group of its own; ended in good order."""
        with self.background(self.command(*arguments)) as process:
            yield process

    @contextmanager
    def background(self, command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
        """Any program in the background, like `running`."""
        with (self.root / "background.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env=self.environment,
                cwd=self.root,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(WAIT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise

    def apply_topology(self, *short_names: str) -> None:
        text = ""
        for short_name in short_names:
            for name in ("buffer", "lta"):
                (self.root / short_name / name).mkdir(parents=True, exist_ok=True)
            text += TOPOLOGY.format(root=self.root, name=short_name.title(), short_name=short_name)
        file = self.root / "topology.toml"
        file.write_text(text, encoding="utf-8")
        self.run("topology", "apply", str(file))

    def make_package(self, site: str, name: str, size: int) -> Path:
        """A real tar of about `size` bytes in the buffer of a site, registered. Large ones are sparse."""
        path = self.root / site / "buffer" / name
        content = self.root / f"{name}.content"
        with content.open("wb") as file:
            file.write(os.urandom(min(size, 1 << 16)))
            file.truncate(size)
        with tarfile.open(path, "w") as tar:
            tar.add(content, arcname="content.bin")
        content.unlink()
        self.run("package", "register", str(path), "--location", f"{site}/buffer")
        return path


def _install(root: Path, url: str, broker_url: str | None) -> Installation:
    environment = {
        **os.environ,
        "CCAT_DATA_TRANSFER_DATABASE_URL": url,
        "CCAT_DATA_TRANSFER_WORKING_DIRECTORY": str(root / "work"),
        "CCAT_DATA_TRANSFER_LEASE_SECONDS": "30",
        "CCAT_DATA_TRANSFER_RETRY_FIRST_DELAY_SECONDS": "0.2",
        "CCAT_DATA_TRANSFER_RETRY_LONGEST_DELAY_SECONDS": "1",
        "CCAT_DATA_TRANSFER_MANAGER_INTERVAL_SECONDS": "0.2",
        "CCAT_DATA_TRANSFER_LOG_FORMAT": "json",
    }
    if broker_url:
        environment["CCAT_DATA_TRANSFER_BROKER_URL"] = broker_url
        environment["CCAT_DATA_TRANSFER_BROKER_KEY_PREFIX"] = f"{root.name}."
    return Installation(root, environment)


@pytest.fixture
def database_url(postgresql_server: servers.PostgreSQL) -> Iterator[str]:
    """The URL of a database with all tables."""
    with postgresql_server.database() as url:
        migrations.upgrade(url)
        database.dispose()
        yield url


@pytest.fixture
def redis_installation(tmp_path: Path, database_url: str, valkey_server: servers.Valkey) -> Installation:
    return _install(tmp_path, database_url, valkey_server.url)


@pytest.fixture
def rabbitmq_installation(tmp_path: Path, database_url: str, rabbitmq_server: servers.RabbitMQ) -> Installation:
    return _install(tmp_path, database_url, rabbitmq_server.url)


@pytest.fixture(params=["redis_installation", "rabbitmq_installation"])
def installation(request: pytest.FixtureRequest) -> Installation:
    """PostgreSQL with each broker."""
    made: Installation = request.getfixturevalue(request.param)
    return made


@pytest.fixture
def brokerless_installation(tmp_path: Path) -> Installation:
    """SQLite and nothing else."""
    return _install(tmp_path, f"sqlite:///{tmp_path / 'operations.sqlite'}", None)
