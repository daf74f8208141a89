"""The Celery application: its delivery settings, each with its reason, and the base of all tasks.

The database row is the queue and the message a hint: no setting here is trusted to deliver exactly once.
"""

import ctypes
import mmap
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import celery
import celery.exceptions
import kombu
import sqlalchemy.exc
from celery import signals

from ccat_data_transfer import database, logs, settings
from ccat_data_transfer.exceptions import DatabaseError

log = logs.get(__name__)

FLEET_VARIABLE = "CCAT_FLEET_PID"  # process id of the fleet that started a worker, which must not outlive it
PR_SET_PDEATHSIG = 1  # linux/prctl.h

# How long a broker may take for each step of sending: connecting, greeting, taking a message.
SEND_SECONDS = 5.0
_REDIS_WAITS = ("socket_connect_timeout", "socket_timeout")
_AMQP_WAITS = ("connect_timeout", "read_timeout", "write_timeout")
# The longest that a task keeps a message for which the database did not answer, before it gives it back.
LONGEST_HOLD_SECONDS = 5.0
WAKE_SECONDS = 0.1


def _configuration() -> dict[str, Any]:
    """Celery's settings, from ours; evaluated when Celery first needs them."""
    chosen = settings.get()
    return {
        "broker_url": chosen.broker_url.get_secret_value() if chosen.broker_url else "",
        "result_backend": chosen.result_backend_url.get_secret_value() if chosen.result_backend_url else None,
        "result_expires": 3600,  # results are for people who watch; nothing reads them back
        # Only JSON is taken from a queue: anything else could carry code.
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        # Acknowledge after the work, and give the message back when the worker dies. Both are safe only because a
        # claim counts its attempt in the database before the work: the redelivered message finds it counted.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        # A handled failure is decided in the database (retry, snooze, fail); the message has done its duty.
        "task_acks_on_failure": True,
        "task_acks_on_timeout": True,
        # A worker reserves nothing that it is not working on: a poison package must not spend the deliveries of its
        # neighbours, and a long copy must not sit on messages that another worker could serve.
        "worker_prefetch_multiplier": 1,
        # A blink of the broker must not kill a healthy copy of many hours; the redelivered message is refused by the
        # lease. Named because the default changes in Celery 6.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_max_tasks_per_child": 10_000,  # what a library may leak stays bounded
        # What SIGQUIT leaves running copies before it cancels them; SIGTERM has the same patience, see `is_stopping`.
        "worker_soft_shutdown_timeout": chosen.shutdown_grace_seconds,
        "worker_hijack_root_logger": False,
        "worker_send_task_events": False,
        "broker_connection_retry_on_startup": True,  # a broker that comes later is waited for
        "broker_connection_max_retries": None,
        "broker_transport_options": _transport_options(chosen),
        # The manager must not hang on a dead broker: the next pass sends again what was not taken.
        "task_publish_retry_policy": {"max_retries": 0},
        "task_default_queue": "ccat_data_transfer_unrouted",  # nothing of ours goes there, nobody else's comes here
        "imports": ["ccat_data_transfer.archive_manager"],
    }


def _is_redis() -> bool:
    url = settings.get().broker_url
    return url is not None and url.get_secret_value().startswith("redis")


def _transport_options(chosen: settings.Settings) -> dict[str, Any]:
    if _is_redis():
        return {
            # Longer than the longest copy, so that a message is not delivered a second time while the first still
            # works; harmless if it is, for the claim refuses it.
            "visibility_timeout": 43_200,
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
            "global_keyprefix": chosen.broker_key_prefix,  # the observatory shares its Redis with other programs
            # Without these a publish on a dead connection waits for ever.
            "socket_timeout": 30,
            "socket_connect_timeout": 10,
            "socket_keepalive": True,
            "health_check_interval": 25,
        }
    # Without confirmation RabbitMQ's publish is fire-and-forget.
    return {"confirm_publish": True, "connect_timeout": 10}


@contextmanager
def producer() -> Iterator[kombu.Producer]:
    """Sends messages over a connection of its own, and gives up within seconds when the broker does not answer.

    Not one of the app's pool: one that was kept since the last pass may be dead without saying so.
    """
    waits = _REDIS_WAITS if _is_redis() else _AMQP_WAITS
    limits = {"max_retries": 0, **dict.fromkeys(waits, SEND_SECONDS)}
    connection = app.connection_for_write(connect_timeout=SEND_SECONDS, transport_options=limits)
    try:
        yield connection.Producer()
    except BaseException:
        connection.collect()  # unlike `release`, waits for no farewell from a broker that is silent
        raise
    connection.release()


class _Shutdown:
    """When this worker was asked to stop: in memory that the children it forks share with it."""

    def __init__(self) -> None:
        self._moment: memoryview[float] | None = None

    def prepare(self) -> None:
        """Make the memory; in the parent, before it forks."""
        self._moment = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("d")

    def begin(self) -> None:
        if self._moment is not None and not self._moment[0]:
            self._moment[0] = time.monotonic()  # one clock for all processes of a host

    def seconds(self) -> float | None:
        """Since when the worker is stopping, None when it is not."""
        began: float = self._moment[0] if self._moment is not None else 0.0
        return time.monotonic() - began if began else None


_shutdown = _Shutdown()


def is_stopping() -> bool:
    """Whether the worker of this process was asked to stop so long ago that copies must be given up.

    Celery itself lets running tasks end, and a copy may take hours: for a task to ask while bytes move.
    """
    seconds = _shutdown.seconds()
    return seconds is not None and seconds >= settings.get().shutdown_grace_seconds


class CCATEnhancedSQLAlchemyTask(celery.Task):  # type: ignore[type-arg]
    """Base of all tasks: what is true of each of them.

    A task's body never lets an error of its work escape (the database records it), so what arrives in `on_failure`
    is a defect, and the operation's row is left for the manager to rescue. When the database does not answer, the
    message goes back to its queue: a task that fails is acknowledged, and an outage would drain all queues in seconds.
    """

    abstract = True
    acks_late = True
    _outages = 0  # one after the other, of this process

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task's body; called by a worker, give the message back when the database does not answer."""
        if self.request.called_directly or self.request.is_eager:
            return super().__call__(*args, **kwargs)
        try:
            result = self.run(*args, **kwargs)
        except DatabaseError as error:
            # Values that the database refuses are this message's fault, which would come back for ever.
            if isinstance(error.__cause__, sqlalchemy.exc.DataError | sqlalchemy.exc.IntegrityError):
                raise
            self._hold(error, args, kwargs)
            raise celery.exceptions.Reject(str(error), requeue=True) from error
        self._outages = 0
        return result

    def _hold(self, error: DatabaseError, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep a message for a moment before it is given back, so that it does not spin."""
        seconds = min(2.0**self._outages, LONGEST_HOLD_SECONDS)
        self._outages = min(self._outages + 1, 10)
        log.warning(
            "message_given_back",
            task=self.name,
            error=str(error),
            in_seconds=seconds,
            **self.get_operation_info(args, kwargs),
        )
        deadline, pause = time.monotonic() + seconds, threading.Event()
        while time.monotonic() < deadline and _shutdown.seconds() is None:
            pause.wait(WAKE_SECONDS)

    def get_operation_info(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """What logs should say of a call, from its arguments. Tasks say more."""
        return {"task_args": list(args), "task_kwargs": kwargs}

    def on_failure(
        self,
        exc: BaseException,
        task_id: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        einfo: Any,  # noqa: ARG002 - Celery's signature
    ) -> None:
        """Log what escaped a task's body, with its context."""
        log.error(
            "task_failed",
            task=self.name,
            task_id=task_id,
            error=str(exc),
            error_type=type(exc).__name__,
            **self.get_operation_info(args, kwargs),
        )

    def consumed_queues(self) -> frozenset[str] | None:
        """The queues that this worker consumes, or None when the task was called without a worker."""
        if self.request.called_directly or self.request.is_eager:
            return None
        return frozenset(self.app.amqp.queues.consume_from)


app = celery.Celery("ccat_data_transfer", task_cls=CCATEnhancedSQLAlchemyTask)
app.add_defaults(_configuration)


@signals.setup_logging.connect
def _configure_logging(loglevel: int | str = "INFO", **_unused: Any) -> None:
    logs.configure(verbose=loglevel in {10, "DEBUG"})


@signals.celeryd_init.connect
def _hush_advice(**_unused: Any) -> None:
    # Said at each start of each worker, to whoever runs a container or a host of its own as root. Its reason, that
    # unpickling runs what a message says, does not hold here: only JSON is accepted.
    warnings.filterwarnings("ignore", "You're running the worker with superuser", celery.exceptions.SecurityWarning)


@signals.celeryd_after_setup.connect
def _hush_announcement(**_unused: Any) -> None:
    # Said at each loss of the broker. It announces another default in Celery 6 for what is set explicitly above.
    # Here, because Celery has just asked to see all warnings of this category.
    warnings.filterwarnings("ignore", r"\s*In Celery 5\.1 we introduced", celery.exceptions.CPendingDeprecationWarning)


@signals.worker_init.connect
def _begin(**_unused: Any) -> None:
    if not settings.get().uses_broker:
        # SystemExit, because Celery only logs what else a signal's receiver raises.
        raise SystemExit(
            "error: no broker is configured\n"
            "hint: set CCAT_DATA_TRANSFER_BROKER_URL, or run `ccat_data_transfer worker`, which needs none"
        )
    _shutdown.prepare()
    if os.environ.get(FLEET_VARIABLE) == str(os.getppid()):
        die_with_parent()


@signals.worker_shutting_down.connect
def _tell_children(**_unused: Any) -> None:
    _shutdown.begin()


@signals.worker_process_init.connect
def _prepare_child(**_unused: Any) -> None:
    """Make a forked child safe: no connection of its parent's, and no life beyond its parent's."""
    database.dispose()
    die_with_parent()


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies: an orphan must not go on copying unsupervised."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl"):  # Linux; elsewhere the lease stops an orphan
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
