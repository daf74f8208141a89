"""`python -m benchmarks [NAME...]`: run benchmarks and print their table."""

import argparse
import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import cases, machine, processes, results
from benchmarks.cases import BENCHMARKS, QUICK, Context, Sizes
from benchmarks.results import Figure

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
README = HERE.parent / "README.md"
DISK = Path("/var/tmp")  # noqa: S108 - where Linux keeps large files on a disk; only a new directory below is used


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    described = "\n".join(f"  {name:<16}{run.__doc__}" for name, run in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"Measure the program.\n\n{described}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which to run; default: all")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="runs of each (default: 3; memory: one)")
    parser.add_argument(
        "--dir", type=Path, default=DISK, metavar="DIR", help=f"where to work, on a disk (default: {DISK})"
    )
    parser.add_argument("--quick", action="store_true", help="small inputs: to see that it works, not for figures")
    parser.add_argument("--write-readme", action="store_true", help="put the table of a full run into README.md")
    chosen = parser.parse_args(words)
    if unknown := [name for name in chosen.names if name not in BENCHMARKS]:
        parser.error(f"there is no benchmark '{unknown[0]}'; there are {', '.join(BENCHMARKS)}")
    if chosen.runs < 1:
        parser.error("--runs must be at least 1")
    if chosen.write_readme and (chosen.quick or chosen.names):
        parser.error("--write-readme takes a full run: no names, no --quick")
    return chosen


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _run(names: Sequence[str], parent: Path, runs: int, sizes: Sizes) -> list[Figure]:
    """Run the benchmarks in a directory that is gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="ccat-benchmarks-", dir=parent))
    directory.chmod(0o755)  # PostgreSQL may run as another user
    figures = []
    try:
        for name in names:
            _say(f"{name} ...")
            began = time.monotonic()
            figures += BENCHMARKS[name](Context(directory, runs, sizes, _say))
            _say(f"  done in {time.monotonic() - began:.0f} s")
    finally:
        shutil.rmtree(directory)
    return figures


def main(words: Sequence[str] | None = None) -> int:
    """Run what was asked for; 0 when everything was measured, whether or not the targets are met."""
    chosen = _arguments(words)
    sizes = QUICK if chosen.quick else Sizes()
    try:
        here = machine.describe(chosen.dir)
        if not cases.has_room(chosen.dir, sizes):
            raise machine.UnfitDirectoryError(
                f"'{chosen.dir}' has no room for {cases.room_needed(sizes) / 2**30:.0f} GiB; name another with --dir"
            )
        with processes.ending_on_signals():
            figures = _run(chosen.names or list(BENCHMARKS), chosen.dir.absolute(), chosen.runs, sizes)
        text = results.table(figures, here, runs=chosen.runs, quick=chosen.quick)
        sys.stdout.write(text)
        if not (chosen.names or chosen.quick):  # never a part in place of the whole
            RESULTS.write_text(results.as_json(figures, here, runs=chosen.runs), encoding="utf-8")
        if chosen.write_readme:
            results.write_readme(README, text)
    except (machine.UnfitDirectoryError, processes.FailedError, results.ReadmeError, OSError) as error:
        _say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        raise SystemExit(main())
    raise SystemExit(130)
