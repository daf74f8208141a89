"""Workers of a host: which queues they serve, what they say, and what they do when they are told to stop."""

import inspect
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import celery
import pytest
import sqlalchemy.exc
import structlog
from celery.exceptions import Reject
from tests import factories

from ccat_data_transfer import archive_manager, celery_app, database, fleet, models, queue_discovery, settings
from ccat_data_transfer.exceptions import DatabaseError
from ccat_data_transfer.locations import Location, LocationType, StorageType

Configure = Callable[..., None]
TASK = archive_manager.send_data_to_long_term_archive


def place(host: str | None, storage_type: StorageType = StorageType.DISK) -> Location:
    options = {"path": "/lta"} | ({"host": host} if host else {})
    return Location(1, "cologne", "lta", LocationType.LONG_TERM_ARCHIVE, storage_type, options=options)


@pytest.mark.parametrize(
    ("host", "here", "expected"),
    [
        (None, "lta1", True),
        ("localhost", "lta1", True),
        ("lta1", "lta1", True),
        ("LTA1", "lta1", True),
        ("lta1", "lta1.uni-koeln.de", True),
        ("lta1.uni-koeln.de", "lta1", True),
        ("lta1.uni-koeln.de.", "lta1.uni-koeln.de", True),
        ("lta1.uni-koeln.de", "lta1.ccat.cl", False),
        ("lta2", "lta1", False),
        ("lta", "lta1", False),
    ],
)
def test_a_directory_is_of_its_host_alone(host: str | None, here: str, expected: bool) -> None:
    assert place(host).is_on_this_host(here) is expected


def test_only_directories_are_of_one_host() -> None:
    assert place("elsewhere.example", StorageType.S3).is_on_this_host("lta1")


@pytest.fixture
def two_archives(sqlite_database: Path) -> None:
    """One that any host can reach, one of another host."""
    with database.session_scope() as session:
        for name, host in (("lta", platform.node()), ("far", "elsewhere.example")):
            row = factories.make_location(session, f"/{name}", name=name, location_type=LocationType.LONG_TERM_ARCHIVE)
            row.host = host


def test_the_archives_of_other_hosts_are_left_out_when_asked(two_archives: None) -> None:
    service = queue_discovery.QueueDiscoveryService()
    assert [str(found) for found in service.locations(here=True)] == ["cologne/lta"]
    assert [str(found) for found in service.locations()] == ["cologne/far", "cologne/lta"]


class Fleet(fleet.Fleet):
    """Starts no processes and is stopped after a number of rounds."""

    def __init__(self, rounds: int) -> None:
        super().__init__(site=None, location=None, concurrency=1)
        self.stop = threading.Event()
        self.tended: list[str] = []
        self._rounds = rounds

    def _tend(self, member: fleet._Member) -> None:
        self.tended.append(member.queue)
        if len(self.tended) >= self._rounds:
            self.stop.set()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WATCH_SECONDS", "DISCOVER_SECONDS", "ASK_AGAIN_SECONDS"):
        monkeypatch.setattr(fleet, name, 0.0)


def test_a_fleet_serves_no_archive_of_another_host_and_says_so_once(
    two_archives: None, impatient: None, configure: Configure
) -> None:
    configure(broker_url="redis://user:secret@broker.example:6379/3")
    made = Fleet(3)
    with structlog.testing.capture_logs() as logs:
        made.run(made.stop)
    assert set(made.tended) == {"cologne_lta_long_term_archive_transfer"}
    assert [entry["location"] for entry in logs if entry["event"] == "location_elsewhere"] == ["cologne/far"]
    (start,) = [entry for entry in logs if entry["event"] == "service_started"]
    assert start["queues"] == ["cologne_lta_long_term_archive_transfer"]
    assert start["broker"] == "redis://broker.example:6379/3"


def test_a_location_that_comes_here_and_goes_again_is_told_of_again(two_archives: None, impatient: None) -> None:
    made = Fleet(100)
    with structlog.testing.capture_logs() as logs:
        for host in (None, "elsewhere.example"):
            made._discover()
            with database.session_scope() as session:
                session.query(models.DiskDataLocation).filter_by(name="far").one().host = host
        made._discover()
    assert len([entry for entry in logs if entry["event"] == "location_elsewhere"]) == 2


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:secret@h:1/0", "redis://h:1/0"),
        ("redis://u:se/cret@h/0", "redis://h/0"),
        ("amqp://u:secret@h//?password=secret", "amqp://h//"),
        ("redis://:se?cret@h", "redis://"),
        ("redis://h/0?password=se@cret", "redis://"),
        ("redis://h/0", "redis://h/0"),
    ],
)
def test_what_a_service_says_of_itself_has_no_password(configure: Configure, url: str, shown: str) -> None:
    configure(broker_url=url, database_url="postgresql://u:secret@db/operations")
    assert settings.get().about == {"broker": shown, "database": "postgresql://db/operations"}


def test_without_a_broker_a_service_says_none(configure: Configure) -> None:
    configure(working_directory="/w")
    assert settings.get().about == {"broker": "none", "database": "sqlite:////w/operations.sqlite"}


class TestATaskWithoutADatabase:
    @pytest.fixture
    def called(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
        """Calls the task as a worker does, with a body that raises."""
        monkeypatch.setattr(celery_app, "LONGEST_HOLD_SECONDS", 0.0)

        def call(error: Exception | None, **request: Any) -> Any:
            def body(*_arguments: object) -> None:
                if error:
                    raise error

            monkeypatch.setattr(archive_manager, "archive_package", lambda *_args, **_named: body())
            TASK.push_request(**{"called_directly": False, **request})
            try:
                return TASK(1)
            finally:
                TASK.pop_request()

        return call

    def test_gives_the_message_back(self, called: Callable[..., Any]) -> None:
        with structlog.testing.capture_logs() as logs, pytest.raises(Reject, match=r"'it is away', True"):
            called(DatabaseError("it is away"))
        assert [(entry["event"], entry["operation_id"]) for entry in logs] == [("message_given_back", 1)]

    @pytest.mark.parametrize("request_", [{"called_directly": True}, {"is_eager": True}])
    def test_raises_to_whoever_calls_it_directly(self, called: Callable[..., Any], request_: dict[str, bool]) -> None:
        with pytest.raises(DatabaseError):
            called(DatabaseError("it is away"), **request_)

    @pytest.mark.parametrize("kind", [sqlalchemy.exc.DataError, sqlalchemy.exc.IntegrityError])
    def test_keeps_no_message_whose_own_values_are_refused(
        self, called: Callable[..., Any], kind: type[sqlalchemy.exc.DBAPIError]
    ) -> None:
        error = DatabaseError("out of range")
        error.__cause__ = kind("SELECT", None, Exception("out of range"))
        with pytest.raises(DatabaseError):
            called(error)

    def test_lets_other_errors_pass(self, called: Callable[..., Any]) -> None:
        with pytest.raises(ValueError, match="a defect"):
            called(ValueError("a defect"))

    def test_holds_it_ever_longer_until_the_database_answers(
        self, called: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(celery_app, "LONGEST_HOLD_SECONDS", 0.04)
        monkeypatch.setattr(TASK, "_outages", -6)  # begins with 2**-6 seconds
        held = []
        for error in (*[DatabaseError("it is away")] * 3, None, DatabaseError("it is away")):
            with structlog.testing.capture_logs() as logs:
                try:
                    called(error)
                except Reject:
                    held.append(logs[0]["in_seconds"])
        assert held == [2.0**-6, 2.0**-5, 0.04, 0.04]

    def test_is_called_as_before(self) -> None:
        parameters = inspect.signature(TASK).parameters
        assert list(parameters) == ["long_term_archive_transfer_id", "session"]
        assert parameters["session"].default is None


FORK = """
import os
from ccat_data_transfer import celery_app
celery_app._shutdown.prepare()
(is_ready, ready), (may_look, look) = os.pipe(), os.pipe()
pid = os.fork()
if not pid:
    before = celery_app.is_stopping()
    os.write(ready, b"1")
    os.read(may_look, 1)
    os._exit(0 if not before and celery_app.is_stopping() else 1)
os.read(is_ready, 1)
celery_app._tell_children()
os.write(look, b"1")
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


class TestStopping:
    @pytest.fixture
    def shutdown(self, monkeypatch: pytest.MonkeyPatch) -> celery_app._Shutdown:
        made = celery_app._Shutdown()
        monkeypatch.setattr(celery_app, "_shutdown", made)
        return made

    @pytest.mark.usefixtures("shutdown")
    def test_a_process_that_is_no_worker_is_never_stopping(self) -> None:
        celery_app._tell_children()
        assert not celery_app.is_stopping()

    def test_a_forked_child_sees_that_its_parent_was_told_to_stop(self) -> None:
        # A process of its own, as one that has threads should not fork.
        subprocess.run(
            [sys.executable, "-c", FORK],
            env={**os.environ, "CCAT_DATA_TRANSFER_SHUTDOWN_GRACE_SECONDS": "0"},
            check=True,
        )

    def test_copies_go_on_for_the_time_of_grace(
        self, shutdown: celery_app._Shutdown, configure: Configure, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        configure(shutdown_grace_seconds=45)
        shutdown.prepare()
        celery_app._tell_children()
        now = time.monotonic()
        celery_app._tell_children()  # a second signal begins no second time of grace
        monkeypatch.setattr(time, "monotonic", lambda: now + 44)
        assert not celery_app.is_stopping()
        monkeypatch.setattr(time, "monotonic", lambda: now + 46)
        assert celery_app.is_stopping()

    def test_a_worker_that_stops_keeps_no_message_that_it_holds(
        self, shutdown: celery_app._Shutdown, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(TASK, "_outages", 8)
        shutdown.prepare()
        shutdown.begin()
        began = time.monotonic()
        TASK._hold(DatabaseError("it is away"), (1,), {})
        assert time.monotonic() - began < 1


def test_a_worker_says_neither_its_banner_nor_what_is_no_news(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "CCAT_DATA_TRANSFER_BROKER_URL": "redis+socket:///nowhere",
        "CCAT_DATA_TRANSFER_WORKING_DIRECTORY": str(tmp_path),
        "CCAT_DATA_TRANSFER_LOG_FORMAT": "json",
        "PYTHONUNBUFFERED": "1",
    }
    command = fleet.celery_arguments("some_queue", 1)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Cannot connect" in line or len(lines) > 50:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(lines) == 1, "".join(lines)


def test_the_announcement_of_another_default_is_not_repeated_at_each_loss_of_the_broker() -> None:
    code = (
        "import warnings, celery.exceptions, celery.worker.consumer.consumer as consumer\n"
        "from ccat_data_transfer import celery_app\n"
        "warnings.simplefilter('error')\n"
        "celery_app._hush_announcement()\n"
        "warnings.warn(consumer.CANCEL_TASKS_BY_DEFAULT, celery.exceptions.CPendingDeprecationWarning)\n"
        "celery_app._hush_advice()\n"
        "from celery import platforms\n"
        "warnings.warn(celery.exceptions.SecurityWarning(platforms.ROOT_DISCOURAGED))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tasks_are_of_this_class() -> None:
    assert isinstance(TASK, celery_app.CCATEnhancedSQLAlchemyTask)
    assert isinstance(TASK, celery.Task)
