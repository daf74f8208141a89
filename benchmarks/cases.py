"""The benchmarks, by name. Each cleans up behind itself, and raises when the work it timed was not done."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import inputs, processes, product, servers
from benchmarks.product import scratch
from benchmarks.results import Figure, Target

FLEET_WORKERS = 2
MEMORY_LIMIT_MB = 150


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    small_count: int = 1000
    small_bytes: int = 64 << 10
    large_count: int = 8
    large_bytes: int = 256 << 20
    huge_bytes: int = 8 << 30
    archived: int = 100_000
    passes: int = 50


QUICK = Sizes(small_count=100, large_count=4, large_bytes=32 << 20, huge_bytes=512 << 20, archived=5000, passes=10)


@dataclass(frozen=True, slots=True)
class Context:
    """Where to work, how often to measure, and whom to tell."""

    directory: Path
    runs: int
    sizes: Sizes
    say: Callable[[str], None]


def _in_turn(
    context: Context, sources: Sequence[Path], ours: Callable[[Path], float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Seconds of the floor and of ours, measured in turn, each from warm sources into an empty directory."""
    floors, times = [], []
    for number in range(context.runs):
        with scratch(context.directory, "floor") as target:
            target.mkdir()
            inputs.warm(sources)
            floors.append(_floor(sources[0].parent, target, context.directory))
        with scratch(context.directory, "ours") as directory:
            times.append(ours(directory))
        context.say(f"  run {number + 1}: {times[-1]:.2f} s, floor {floors[-1]:.2f} s")
    return tuple(floors), tuple(times)


def _floor(sources: Path, target: Path, directory: Path) -> float:
    command: processes.Command = [sys.executable, "-m", "benchmarks.floor", sources, target]
    return float(processes.run(command, log=directory / "log", env=product.environment(directory / "home")).output)


def _rates(amount: float, seconds: Sequence[float]) -> tuple[float, ...]:
    return tuple(amount / value for value in seconds)


def _embedded(context: Context, sources: Sequence[Path]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    def ours(directory: Path) -> float:
        program = product.Embedded(directory)
        inputs.warm(sources)
        seconds = program.archive([sources[0].parent]).seconds
        program.check(sources)
        return seconds

    with scratch(context.directory, "first") as directory:
        product.Embedded(directory).archive(sources[:1])  # so that no run has to compile the program
    return _in_turn(context, sources, ours)


def small_embedded(context: Context) -> list[Figure]:
    """Many small packages by `archive` on SQLite."""
    count, size = context.sizes.small_count, context.sizes.small_bytes
    with scratch(context.directory, "sources") as folder:
        floors, times = _embedded(context, inputs.make_tars(folder, count, size))
    what = f"{count:,} packages of {size >> 10} KiB by `archive`, SQLite, start included"
    return [
        Figure("small-embedded", what, "packages/s", _rates(count, times), Target(100), floor=_rates(count, floors))
    ]


def small_fleet(context: Context) -> list[Figure]:
    """The same by manager, broker, PostgreSQL and workers; the servers fresh in each run."""
    count, size = context.sizes.small_count, context.sizes.small_bytes
    notes: set[str] = set()

    def ours(directory: Path) -> float:
        directory.mkdir()
        with servers.running(directory) as running:
            fleet = product.Fleet(directory, running, sources[0].parent.parent)
            fleet.register(sources[0].parent)
            with fleet.celery_workers(FLEET_WORKERS) as workers:
                inputs.warm(sources)
                seconds = fleet.archive(workers)
            fleet.check(sources)
            notes.add(running.version)
        return seconds

    with scratch(context.directory, "sources") as folder:
        sources = inputs.make_tars(folder / "night", count, size)
        floors, times = _in_turn(context, sources, ours)
    what = (
        f"{count:,} packages of {size >> 10} KiB by manager, Valkey, PostgreSQL and {FLEET_WORKERS} Celery workers "
        "of one process"
    )
    return [
        Figure(
            "small-fleet",
            what,
            "packages/s",
            _rates(count, times),
            Target(60),
            floor=_rates(count, floors),
            notes=tuple(notes),
        )
    ]


def large_embedded(context: Context) -> list[Figure]:
    """Few large packages by `archive`, registering included."""
    count, size = context.sizes.large_count, context.sizes.large_bytes
    with scratch(context.directory, "sources") as folder:
        floors, times = _embedded(context, inputs.make_tars(folder, count, size))
    what = f"{count} packages of {size >> 20} MiB by `archive`, registering included"
    megabytes = count * size / 1e6
    return [
        Figure(
            "large-embedded",
            what,
            "MB/s",
            _rates(megabytes, times),
            Target(0.75, of_floor=True),
            floor=_rates(megabytes, floors),
        )
    ]


def memory(context: Context) -> list[Figure]:
    """The peak of the largest process with one huge package, by `archive` and by a Celery worker; one run each."""
    size = context.sizes.huge_bytes
    shown = f"{size / 2**30:g} GiB"
    with scratch(context.directory, "sources") as folder:
        source = inputs.make_huge_tar(folder / "night" / "observation.tar", size)
        with scratch(context.directory, "ours") as directory:
            program = product.Embedded(directory)
            alone = program.archive([source.parent], watch=True)
            program.check([source])
        context.say(f"  `archive`: {alone.peaks.highest / 1e6:.1f} MB, {size / 1e6 / alone.seconds:.0f} MB/s")
        with scratch(context.directory, "ours") as directory:
            fleet_peaks = _fleet_memory(directory, source)
        context.say(f"  fleet: {fleet_peaks.highest / 1e6:.1f} MB")
    limit = Target(MEMORY_LIMIT_MB, "at most")
    return [
        Figure(
            "memory",
            f"{what}, peak resident of the largest process",
            "MB",
            (peaks.highest / 1e6,),
            limit,
            notes=peaks.lines(),
        )
        for what, peaks in (
            (f"a package of {shown} by `archive`", alone.peaks),
            ("the same by `package register` and a Celery `worker`", fleet_peaks),
        )
    ]


def _fleet_memory(directory: Path, source: Path) -> processes.Peaks:
    directory.mkdir()
    peaks = processes.Peaks()
    with servers.running(directory) as running:
        fleet = product.Fleet(directory, running, source.parent.parent)
        peaks.add(fleet.register(source.parent, watch=True).peaks)
        with fleet.workers(watch=True) as workers:
            fleet.archive(workers)
        for worker in workers:
            peaks.add(worker.peaks)
        fleet.check([source])
    return peaks


def idle_pass(context: Context) -> list[Figure]:
    """A pass that finds nothing to do, and `status`, among very many archived packages on PostgreSQL."""
    archived, times = context.sizes.archived, context.sizes.passes * context.runs
    with scratch(context.directory, "ours") as directory:
        directory.mkdir()
        (directory / "buffer").mkdir()
        with servers.running(directory) as running:
            fleet = product.Fleet(directory, running, directory / "buffer")
            command = [sys.executable, "-m", "benchmarks.idle", str(archived), str(times)]
            output = processes.run(command, log=directory / "log", env=fleet.env).output
            measured = json.loads(output.splitlines()[-1])
            version = running.version
    among = f"among {archived:,} archived packages, PostgreSQL"
    return [
        Figure(
            "idle-pass",
            f"a manager's pass that finds nothing to do {among}",
            "ms",
            tuple(measured["pass"]),
            Target(50, "at most"),
            notes=(version,),
        ),
        Figure("idle-pass", f"`status` {among}", "ms", tuple(measured["status"]), notes=(version,)),
    ]


BENCHMARKS: dict[str, Callable[[Context], list[Figure]]] = {
    "small-embedded": small_embedded,
    "small-fleet": small_fleet,
    "large-embedded": large_embedded,
    "memory": memory,
    "idle-pass": idle_pass,
}


def room_needed(sizes: Sizes) -> int:
    """Bytes on the disk at the worst moment."""
    return max(2 * sizes.huge_bytes, 2 * sizes.large_count * sizes.large_bytes) + (4 << 30)


def has_room(directory: Path, sizes: Sizes) -> bool:
    """Whether the disk takes the largest of them."""
    space = os.statvfs(directory)
    return space.f_bavail * space.f_frsize >= room_needed(sizes)
