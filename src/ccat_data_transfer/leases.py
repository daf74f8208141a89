"""Who holds a lease, and whether that process is known to be dead.

A dead holder is only ever declared from its own host: everywhere else the lease has to run out.
"""

import functools
import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Self

UNSEEN = "unknown"


@functools.cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    except OSError:
        return UNSEEN


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]")
    except OSError:
        return UNSEEN


def _is_gone(pid: int) -> bool:
    """Whether there is no such process; /proc may hide those of other users, a signal finds them."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _start_time(pid: int) -> str | None:
    """Start of a process in clock ticks since boot (field 22 of proc(5) stat): None when it is gone, `UNSEEN` when
    it lives and does not show it.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None if _is_gone(pid) else UNSEEN
    # A zombie holds nothing any more; its parent merely has not asked for its exit code.
    return None if fields[0] in {"Z", "X"} else fields[19]


@functools.cache
def _identity_of(pid: int) -> tuple[str, str, str]:
    """Boot, namespace and start time of this process, asked for once; a forked child has another `pid`."""
    return _boot_id(), _pid_namespace(), _start_time(pid) or UNSEEN


@dataclass(frozen=True, slots=True)
class Owner:
    """One process, unmistakably: host, boot, process-id namespace, process id and its start time."""

    host: str
    boot: str
    namespace: str
    pid: int
    start: str
    mark: str = ""  # tells apart the attempts of one process

    def __str__(self) -> str:
        return "|".join((self.host, self.boot, self.namespace, str(self.pid), self.start, self.mark))

    @classmethod
    def of_this_process(cls) -> Self:
        """A new owner for one attempt of this process."""
        pid = os.getpid()
        boot, namespace, start = _identity_of(pid)
        return cls(host(), boot, namespace, pid, start, mark=uuid.uuid4().hex[:12])

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read the stored form; None when it is not one."""
        parts = text.split("|")
        if len(parts) != 6 or not (parts[3].isascii() and parts[3].isdecimal()):
            return None
        host, boot, namespace, pid, start, mark = parts
        return cls(host, boot, namespace, int(pid), start, mark)

    def is_known_dead(self) -> bool:
        """True only when this host can see that the process is gone; False when alive or out of sight."""
        here = (host(), _boot_id(), _pid_namespace())
        if UNSEEN in {self.boot, self.namespace, self.start}:
            return False
        # Another boot of a host of this name is not taken for proof: two hosts may have one name. The lease runs out.
        if (self.host, self.boot, self.namespace) != here:
            return False
        return _start_time(self.pid) not in {self.start, UNSEEN}


def host() -> str:
    """The name of this host, with which every owner on it begins."""
    return socket.gethostname()


def names_of_this_host() -> tuple[str, ...]:
    """What a data location may call this host."""
    return ("localhost", host(), host().partition(".")[0])


def actor() -> str:
    """This process in the log of an operation."""
    return f"{socket.gethostname()}:{os.getpid()}"
