"""A fleet of Celery workers on this host: one process tree for each destination.

A destination that hangs can fill only its own process; a process that dies (a broker's rubbish can kill one) is
started again; destinations that appear or go are followed.
"""

import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

from ccat_data_transfer import celery_app, logs, queue_discovery, settings
from ccat_data_transfer.exceptions import CCATDataOperationError

log = logs.get(__name__)

WATCH_SECONDS = 0.5
DISCOVER_SECONDS = 15.0
ASK_AGAIN_SECONDS = 2.0
LONGEST_RESTART_SECONDS = 30.0
STEADY_SECONDS = 60.0


def celery_arguments(queue: str, concurrency: int) -> list[str]:
    """How a worker of one queue is started; the same by hand."""
    host = socket.gethostname()
    return [
        sys.executable,
        *("-m", "celery", "-A", "ccat_data_transfer.celery_app", "--quiet", "worker"),
        *("-Q", queue, "-n", f"{queue}@{host}", "-c", str(concurrency)),
        *("--loglevel", settings.get().log_level, "--without-mingle", "--without-gossip"),
    ]


@dataclass
class _Member:
    """The worker process of one queue, and when it may be started again after it died."""

    queue: str
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    restart_at: float = 0.0
    deaths: int = 0
    wanted: bool = True
    is_dismissed: bool = False


class Fleet:
    """The worker processes for the queues of a site, or of one location."""

    def __init__(self, *, site: str | None, location: str | None, concurrency: int) -> None:
        self._site, self._location, self._concurrency = site, location, concurrency
        self._members: dict[str, _Member] = {}
        self._elsewhere: set[int] = set()
        self._has_started = False

    def run(self, stop: threading.Event) -> None:
        """Keep the processes running until `stop`, then let each finish what it carries."""
        next_discovery = 0.0
        while not stop.is_set():
            if time.monotonic() >= next_discovery:
                answered = self._discover()
                next_discovery = time.monotonic() + (DISCOVER_SECONDS if answered else ASK_AGAIN_SECONDS)
            for member in self._members.values():
                self._tend(member)
            stop.wait(WATCH_SECONDS)
        self._shut_down()

    def _discover(self) -> bool:
        """Ask the database which queues there are; False when it did not answer."""
        try:
            wanted = self._queues()
        except CCATDataOperationError as error:
            log.error("queue_discovery_failed", error=str(error))  # the known queues go on
            return False
        for queue in wanted - self._members.keys():
            self._members[queue] = _Member(queue)
        for queue, member in self._members.items():
            member.wanted = queue in wanted
        if not self._has_started:
            self._has_started = True
            log.info("service_started", service="worker", queues=sorted(wanted), **settings.get().about)
        return True

    def _queues(self) -> set[str]:
        """The queues of the archives that can be reached from this host."""
        host, queues = platform.node(), set()
        for location in queue_discovery.QueueDiscoveryService().locations(self._site, self._location):
            if location.is_on_this_host(host):
                queues.add(location.queue)
                self._elsewhere.discard(location.id)
            elif location.id not in self._elsewhere:
                self._elsewhere.add(location.id)
                log.warning("location_elsewhere", location=str(location), host=location.options["host"], here=host)
        return queues

    def _tend(self, member: _Member) -> None:
        process = member.process
        if process is not None and process.poll() is not None:
            self._mourn(member, process.returncode)
        if member.process is None and member.wanted and time.monotonic() >= member.restart_at:
            # A process group of its own: a Ctrl-C reaches us alone, and we pass it on in good order.
            member.process = subprocess.Popen(
                celery_arguments(member.queue, self._concurrency),
                stdin=subprocess.DEVNULL,
                process_group=0,
                env={**os.environ, celery_app.FLEET_VARIABLE: str(os.getpid())},
            )
            member.started = time.monotonic()
            log.info("worker_started", queue=member.queue, pid=member.process.pid)
            member.is_dismissed = False
        elif member.process is not None and not member.wanted and not member.is_dismissed:
            member.process.send_signal(signal.SIGTERM)
            member.is_dismissed = True

    def _mourn(self, member: _Member, code: int) -> None:
        steady = time.monotonic() - member.started > STEADY_SECONDS
        member.deaths = 1 if steady else member.deaths + 1
        delay = min(2.0 ** min(member.deaths - 1, 30), LONGEST_RESTART_SECONDS) if member.wanted else 0.0
        member.process, member.restart_at = None, time.monotonic() + delay
        if member.wanted:
            log.error("worker_died", queue=member.queue, exit_code=code, restart_in=delay)

    def _shut_down(self) -> None:
        running = [m.process for m in self._members.values() if m.process is not None]
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.wait()
