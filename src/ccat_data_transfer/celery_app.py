"""The Celery application: its delivery settings, each with its reason, and the base of all tasks.

The database row is the queue and the message a hint: no setting here is trusted to deliver exactly once.
"""

import ctypes
import os
import signal
from typing import Any

import celery
from celery import signals

from ccat_data_transfer import database, logs, settings

log = logs.get(__name__)

FLEET_VARIABLE = "CCAT_FLEET_PID"  # process id of the fleet that started a worker, which must not outlive it
PR_SET_PDEATHSIG = 1  # linux/prctl.h


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
        "worker_soft_shutdown_timeout": 45,
        "worker_hijack_root_logger": False,
        "worker_send_task_events": False,
        "broker_connection_retry_on_startup": True,  # a broker that comes later is waited for
        "broker_connection_max_retries": None,
        "broker_transport_options": _transport_options(chosen),
        # The manager must not hang on a dead broker: the row stays scheduled and is sent again.
        "task_publish_retry_policy": {
            "max_retries": 2,
            "interval_start": 0.2,
            "interval_step": 0.5,
            "interval_max": 2,
        },
        "task_default_queue": "ccat_data_transfer_unrouted",  # nothing of ours goes there, nobody else's comes here
        "imports": ["ccat_data_transfer.archive_manager"],
    }


def _transport_options(chosen: settings.Settings) -> dict[str, Any]:
    scheme = chosen.broker_url.get_secret_value().partition(":")[0] if chosen.broker_url else ""
    if scheme.startswith("redis"):
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


class CCATEnhancedSQLAlchemyTask(celery.Task):  # type: ignore[type-arg]
    """Base of all tasks: what is true of each of them.

    A task's body never lets an error of its work escape (the database records it), so what arrives in `on_failure`
    is trouble of the database or a defect, and the operation's row is left for the manager to rescue.
    """

    abstract = True
    acks_late = True

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


@signals.worker_init.connect
def _begin(**_unused: Any) -> None:
    if not settings.get().uses_broker:
        # SystemExit, because Celery only logs what else a signal's receiver raises.
        raise SystemExit(
            "error: no broker is configured\n"
            "hint: set CCAT_DATA_TRANSFER_BROKER_URL, or run `ccat_data_transfer worker`, which needs none"
        )
    if os.environ.get(FLEET_VARIABLE) == str(os.getppid()):
        die_with_parent()


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
