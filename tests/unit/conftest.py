"""Unit tests have no network; those that need a database have one of their own, in a file."""

import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ccat_data_transfer import database, migrations, settings


class NetworkUsedError(Exception):
    """A unit test tried to reach the network; nothing in the product catches this."""


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection and datagram of Python's sockets except local (AF_UNIX) ones."""
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, _guarded(name))


def _guarded(name: str) -> object:
    original = getattr(socket.socket, name)

    def guarded(self: socket.socket, *arguments: object) -> object:
        if self.family != socket.AF_UNIX:
            raise NetworkUsedError(f"{name}{arguments}")
        return original(self, *arguments)

    return guarded


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sets settings through the environment, for this test only: `configure(max_attempts=1)`."""

    def configure(**values: object) -> None:
        for name, value in values.items():
            monkeypatch.setenv(settings.PREFIX + name.upper(), str(value))
        settings.get.cache_clear()

    settings.get.cache_clear()
    yield configure
    database.dispose()
    settings.get.cache_clear()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with this program's tables and no rows, made once: others are copies of it."""
    path = tmp_path_factory.mktemp("empty") / "operations.sqlite"
    migrations.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_database(empty_database: Path, tmp_path: Path, configure: Callable[..., None]) -> Path:
    """The configured database, with this program's tables and no rows."""
    path = tmp_path / "operations.sqlite"
    shutil.copyfile(empty_database, path)
    configure(database_url=f"sqlite:///{path}")
    return path
