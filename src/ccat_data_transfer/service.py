"""Running a step for ever: interval, signals, health, back-off."""

import _thread
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import FrameType

from ccat_data_transfer import logs, settings
from ccat_data_transfer.exceptions import CCATDataOperationError

log = logs.get(__name__)

BUSY_SECONDS = 1.0
LONGEST_BACKOFF_SECONDS = 60.0


@contextmanager
def stop_on_signals(stop: threading.Event) -> Iterator[None]:
    """Set `stop` on SIGTERM or SIGINT; a second signal ends the process at once. Only in the main thread."""

    def asked(number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        # From a thread of its own: the signal may have come while this one held the lock of the event, in its wait.
        _thread.start_new_thread(stop.set, ())

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, asked) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(name: str, step: Callable[[], bool], *, interval: float, stop: threading.Event, **about: object) -> None:
    """Call `step` until `stop` is set. `about` is logged at the start: what this service works with.

    A step says whether it did anything: if so it is called again after a second, else after `interval` seconds (never
    later than that). A step that raises is logged and tried again after 1, 2, 4, ... up to 60 seconds: a database
    that is away comes back.
    """
    failures = 0
    log.info("service_started", service=name, interval=interval, **about)
    _notify("READY=1")
    while not stop.is_set():
        wait = 0.0
        try:
            wait = min(BUSY_SECONDS, interval) if step() else interval
            failures = 0
            _report(name, healthy=True)
        except Exception as error:  # the service's edge: nothing may end it but a signal
            failures += 1
            wait = min(2.0 ** min(failures - 1, 30), LONGEST_BACKOFF_SECONDS)
            log.error(
                "step_failed",
                service=name,
                failures=failures,
                retry_in=wait,
                error=str(error),
                exc_info=not isinstance(error, CCATDataOperationError),
            )
            _report(name, healthy=False, error=str(error), failures=failures)
        stop.wait(wait)
    _notify("STOPPING=1")
    log.info("service_stopped", service=name)


def _report(name: str, *, healthy: bool, error: str | None = None, failures: int = 0) -> None:
    """Tell systemd and whoever reads the health file how the last step went."""
    _notify("WATCHDOG=1" if healthy else f"STATUS={' '.join(str(error).split())}")
    file = settings.get().health_file
    if file is None:
        return
    state = {
        "service": name,
        "pid": os.getpid(),
        "healthy": healthy,
        "error": error,
        "failures": failures,
        "at": datetime.now(UTC).isoformat(),
    }
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(state) + "\n", encoding="utf-8")
        temporary.replace(file)
    except OSError as trouble:
        log.warning("health_file_unwritable", path=str(file), error=str(trouble))


def _notify(message: str) -> None:
    """Tell systemd, when it started us, by the protocol of sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto(message.encode(), address)
    except OSError as error:
        log.debug("notify_failed", error=str(error))
