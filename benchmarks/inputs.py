"""Input for the benchmarks: valid tars of an exact size."""

import os
import random
import tarfile
from collections.abc import Iterable
from pathlib import Path

_TAIL_BYTES = 2 * tarfile.BLOCKSIZE  # the end-of-archive blocks
_BLOCK_BYTES = 1 << 20


def make_tars(folder: Path, count: int, size: int) -> list[Path]:
    """Tars of exactly `size` bytes, each with one member of random bytes; the same at every call."""
    folder.mkdir(parents=True)
    made = []
    for number in range(count):
        source = random.Random(number)
        blocks = (source.randbytes(_BLOCK_BYTES) for _ in iter(int, 1))
        made.append(_write_tar(folder / f"observation-{number:06}.tar", size, blocks))
    return made


def make_huge_tar(path: Path, size: int) -> Path:
    """A tar of exactly `size` bytes with one member: one random block over and over, because it is quick to make."""
    path.parent.mkdir(parents=True, exist_ok=True)
    block = random.Random(0).randbytes(_BLOCK_BYTES)
    return _write_tar(path, size, (block for _ in iter(int, 1)))


def _write_tar(path: Path, size: int, blocks: Iterable[bytes]) -> Path:
    member = tarfile.TarInfo("raw-data.bin")
    member.size = size - tarfile.BLOCKSIZE - _TAIL_BYTES
    if member.size <= 0 or size % tarfile.BLOCKSIZE:
        raise ValueError(f"no tar has exactly {size} bytes")
    left = member.size
    with path.open("wb") as file:
        file.write(member.tobuf(format=tarfile.USTAR_FORMAT))
        for block in blocks:
            file.write(block[:left])
            left -= min(left, len(block))
            if not left:
                break
        file.write(bytes(_TAIL_BYTES))
    return path


def warm(paths: Iterable[Path]) -> None:
    """Read files once, so that every measurement begins with its sources in the page cache, and nothing to write."""
    buffer = bytearray(_BLOCK_BYTES)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    os.sync()
