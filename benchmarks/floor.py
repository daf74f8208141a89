"""The floor: the least work that proves a copy, in one process and without a database.

For each file: read + SHA-256 + write + fsync + rename, then the cache is told to drop it and it is read again
+ SHA-256. No directory is synced, nothing is recorded, nobody else is thought of: faster than this nobody can
be who does the same work on one core.

Run as a program, it prints how many seconds the work itself took, its own start not included.
"""

import hashlib
import os
import sys
import time
from pathlib import Path

BUFFER_BYTES = 1 << 20


def copy(source: Path, target: Path, buffer: memoryview) -> None:
    """Copy one file and prove it; raises `RuntimeError` when other bytes come back."""
    temporary = target.with_suffix(".part")
    with source.open("rb", buffering=0) as reader, temporary.open("wb", buffering=0) as writer:
        given = hashlib.sha256()
        while got := reader.readinto(buffer):
            given.update(buffer[:got])
            if writer.write(buffer[:got]) != got:
                raise RuntimeError(f"'{temporary}' took only a part of the bytes")
        os.fsync(writer.fileno())
    temporary.rename(target)
    with target.open("rb", buffering=0) as reader:
        os.posix_fadvise(reader.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        found = hashlib.sha256()
        while got := reader.readinto(buffer):
            found.update(buffer[:got])
    if found.digest() != given.digest():
        raise RuntimeError(f"'{target}' does not hold what was written")


def main() -> None:
    """`floor SOURCES TARGETS`: copy all tars of one folder into another."""
    sources, targets = map(Path, sys.argv[1:])
    found = sorted(sources.glob("*.tar"))
    buffer = memoryview(bytearray(BUFFER_BYTES))
    started = time.monotonic()
    for source in found:
        copy(source, targets / source.name, buffer)
    sys.stdout.write(f"{time.monotonic() - started}\n")


if __name__ == "__main__":
    main()
