"""What the figures were measured on."""

import os
import platform
import ssl
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

_VOLATILE = {"tmpfs", "ramfs"}


class UnfitDirectoryError(Exception):
    """The directory is in memory, where fsync costs nothing, or has no room."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine, the code and the moment. `load` is that of the minute before the run: near zero, if it was idle."""

    cpu: str
    cores: int
    memory_bytes: int
    file_system: str
    device: str
    kernel: str
    python: str
    openssl: str
    date: str
    commit: str
    load: float

    def __str__(self) -> str:
        memory = f"{self.memory_bytes / 2**30:.0f} GiB"
        return (
            f"{self.cpu}, {self.cores} cores, {memory}, {self.file_system}, Linux {self.kernel}, "
            f"Python {self.python}, {self.date[:10]}, commit {self.commit}, load before the run {self.load:.1f}"
        )


def describe(directory: Path) -> Machine:
    """This machine as seen from `directory`; raises `UnfitDirectoryError` when that is in memory."""
    file_system, device = _mount(directory)
    if file_system in _VOLATILE:
        raise UnfitDirectoryError(f"'{directory}' is in memory ({file_system}); name a directory on a disk with --dir")
    return Machine(
        cpu=_line("/proc/cpuinfo", "model name") or platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        file_system=file_system,
        device=device,
        kernel=platform.release(),
        python=platform.python_version(),
        openssl=ssl.OPENSSL_VERSION,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=_commit(),
        load=os.getloadavg()[0],
    )


def _line(file: str, name: str) -> str:
    for line in Path(file).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _mount(directory: Path) -> tuple[str, str]:
    """Type and device of the file system that holds `directory` (proc(5), mountinfo)."""
    wanted = directory.stat().st_dev
    found = ("unknown", "unknown")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[2] == f"{os.major(wanted)}:{os.minor(wanted)}":
            rest = fields[fields.index("-") + 1 :]
            found = rest[0], rest[1]
    return found


def _commit() -> str:
    root = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=10"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()
