"""The servers that the other tests rely on: they answer, and they leave nothing behind."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import kombu
import psycopg
import pytest
import redis
from tests import servers


def _libpq(url: str) -> str:
    return url.replace("postgresql+psycopg", "postgresql")


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def _is_gone(server: servers.PostgreSQL | servers.Valkey | servers.RabbitMQ) -> bool:
    return not _runs(server.pid) and not server.directory.exists()


@pytest.mark.postgresql
def test_postgresql_answers_durably_and_goes() -> None:
    with servers.or_skip(servers.postgresql()) as server:
        with psycopg.connect(_libpq(server.url)) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
            assert connection.execute("SHOW fsync").fetchone() == ("on",)
        assert _runs(server.pid)
    assert _is_gone(server)


@pytest.mark.postgresql
def test_a_database_is_a_copy_of_its_template(postgresql_server: servers.PostgreSQL) -> None:
    template = postgresql_server.create_database()
    with psycopg.connect(_libpq(postgresql_server.database_url(template))) as connection:
        connection.execute("CREATE TABLE t AS SELECT 7 AS n")
    with (
        postgresql_server.database(template) as url,
        psycopg.connect(_libpq(url)) as connection,
    ):
        assert connection.execute("SELECT n FROM t").fetchone() == (7,)
    postgresql_server.drop_database(template)


@pytest.mark.postgresql
@pytest.mark.parametrize("repetition", [1, 2])
def test_every_test_has_an_empty_database(postgresql_url: str, repetition: int) -> None:
    with psycopg.connect(_libpq(postgresql_url)) as connection:
        connection.execute("CREATE TABLE only_here (n int)")


@pytest.mark.broker
def test_valkey_answers_and_goes() -> None:
    with servers.or_skip(servers.valkey()) as server:
        with redis.Redis.from_url(server.url) as client:
            assert client.ping()
            client.set("key", "value")
            assert client.get("key") == b"value"
            assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert _runs(server.pid)
    assert _is_gone(server)


@pytest.mark.broker
def test_rabbitmq_answers_and_goes() -> None:
    with servers.or_skip(servers.rabbitmq()) as server:
        with kombu.Connection(server.url) as connection, connection.SimpleQueue("queue") as queue:
            queue.put({"number": 7})
            message = queue.get(timeout=10)
            assert message.payload == {"number": 7}
            message.ack()
        processes = servers.session_members(server.pid)
        assert len(processes) > 1  # the node and its port mapper
    assert _is_gone(server)
    assert not any(_runs(pid) for pid in processes)


@pytest.mark.parametrize("name", ["postgresql", "valkey", "rabbitmq"])
def test_a_server_goes_when_its_parent_is_killed(name: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(f"{name}_server")  # skips where the server is missing
    script = f"""
import time
from tests import servers
with servers.{name}() as server:
    print(server.pid, server.directory, flush=True)
    time.sleep(600)
"""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, directory = parent.stdout.readline().split()
        processes = servers.session_members(int(pid))
        parent.kill()
    deadline = time.monotonic() + 20
    while any(map(_runs, processes)) or Path(directory).exists():
        assert time.monotonic() < deadline, f"{name} outlived its parent"
        time.sleep(0.02)


def test_a_missing_server_skips_the_test_but_fails_it_in_ci(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_RABBITMQ", tmp_path / "rabbitmq-server")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="install-test-servers"):
        servers.or_skip(servers.rabbitmq()).__enter__()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="install-test-servers"):
        servers.or_skip(servers.rabbitmq()).__enter__()
