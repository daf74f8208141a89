"""How a folder becomes a tar: the same input gives the same bytes.

Neither the clock, the copier, the order of the directory nor the user shows in them. What changes while it is
read is refused.
"""

import contextlib
import errno
import os
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ccat_data_transfer import checksums, names
from ccat_data_transfer.checksums import Checksum
from ccat_data_transfer.exceptions import BadSourceError, SourceChangedError
from ccat_data_transfer.packing import candidates, reading
from ccat_data_transfer.packing.candidates import Candidate, Entry
from ccat_data_transfer.packing.members import Members

Progress = Callable[[int], None]

_CHUNK = 1 << 20
# Folders are passed through: those above the data may be listed by nobody. macOS has no O_PATH.
_SEARCH = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
_NO_FOLLOW = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Packed:
    """The bytes of a package, the files in them, and the `Candidate.fingerprint` those had."""

    size: int
    checksums: Mapping[str, Checksum]
    members: Members
    fingerprint: str


class Out(Protocol):
    """Where a tar is written: takes all of what it is given, or raises."""

    def write(self, data: memoryview, /) -> object:
        """Append `data`."""


def no_progress(_handled: int) -> None:
    """Report to nobody."""


class _Tee:
    """Digests and counts what goes to `out`, in the same pass."""

    def __init__(self, out: Out | None, algorithms: Iterable[str]) -> None:
        self._out = out
        self._digests = checksums.Digests(algorithms)
        self.size = 0

    def write(self, data: memoryview) -> None:
        self._digests.update(data)
        if self._out is not None:
            self._out.write(data)
        self.size += len(data)

    def pad(self, unit: int) -> None:
        self.write(memoryview(bytes(-self.size % unit)))

    def packed(self, members: Members, mark: str) -> Packed:
        return Packed(self.size, self._digests.result(), members, mark)


def write_tar(
    candidate: Candidate,
    out: Out | None,
    *,
    algorithms: Sequence[str] = (checksums.DEFAULT_ALGORITHM,),
    on_progress: Progress = no_progress,
) -> Packed:
    """Write the candidate's tar to `out`; without one only its checksums are made. Each source is read once.

    A tar is copied as it is. Headers of a packed one carry no owner, no time and no more of the mode than
    whether a file is executable; the times are in the list of members. Folders are listed anew, and
    `SourceChangedError` is raised when anything in them, or the tar, changes before the end. `on_progress` is
    told the bytes read.
    """
    tee = _Tee(out, algorithms)
    if candidate.kind is candidates.Kind.TAR:
        return _copy_tar(candidate, tee, on_progress)
    entries = candidates.entries(candidate)
    members = Members()
    with _folder(candidate.path.parent) as root:
        buffer = memoryview(bytearray(_CHUNK))
        for entry in entries:
            if entry.is_folder:
                tee.write(memoryview(_header(entry)))
            else:
                checksum, time = _write_member(root, candidate, entry, tee, buffer, on_progress)
                members.add(entry.path, entry.size, time, checksum)
    tee.write(memoryview(bytes(2 * tarfile.BLOCKSIZE)))
    tee.pad(tarfile.RECORDSIZE)
    _check_same(candidate, entries, candidates.entries(candidate))
    return tee.packed(members, candidates.fingerprint(entries))


def digest_tar(
    candidate: Candidate,
    *,
    algorithms: Sequence[str] = (checksums.DEFAULT_ALGORITHM,),
    on_progress: Progress = no_progress,
) -> Packed:
    """What `write_tar` would write, without writing it."""
    return write_tar(candidate, None, algorithms=algorithms, on_progress=on_progress)


def _check_same(candidate: Candidate, before: tuple[Entry, ...], after: tuple[Entry, ...]) -> None:
    if before == after:
        return
    (path, *_) = sorted(entry.path for entry in set(before) ^ set(after))
    shown = names.shown(str(candidate.path.parent / path))
    raise SourceChangedError(f"'{shown}' changed while it was packed")


def _copy_tar(candidate: Candidate, tee: _Tee, on_progress: Progress) -> Packed:
    path = candidate.path
    with _folder(path.parent) as root, _file(root, path, path.name) as descriptor:
        before = os.fstat(descriptor)
        buffer = memoryview(bytearray(min(before.st_size, _CHUNK)))
        _read(descriptor, before, path, buffer, (tee.write,), on_progress)
        # Before a tar that somebody is still writing is called damaged, and again after its members were listed.
        _check_unchanged(descriptor, before, path)
        members = reading.inspect_tar(descriptor, path=path)
        _check_unchanged(descriptor, before, path)
    return tee.packed(members, candidates.fingerprint([candidates.entry(path.name, before)]))


def _header(entry: Entry) -> bytes:
    info = tarfile.TarInfo(entry.path)
    info.type = tarfile.DIRTYPE if entry.is_folder else tarfile.REGTYPE
    info.mode = 0o755 if entry.is_executable else 0o644
    info.size = entry.size
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _write_member(
    root: int, candidate: Candidate, entry: Entry, tee: _Tee, buffer: memoryview, on_progress: Progress
) -> tuple[Checksum, float]:
    """Write one file; its checksum and its time of change."""
    path = candidate.path.parent / entry.path
    with _file(root, path, entry.path) as descriptor:
        info = os.fstat(descriptor)
        if candidates.signature(info) != entry.signature:
            raise SourceChangedError(f"'{names.shown(str(path))}' changed while it was packed")
        tee.write(memoryview(_header(entry)))
        digests = checksums.Digests()
        _read(descriptor, info, path, buffer, (tee.write, digests.update), on_progress)
        _check_unchanged(descriptor, info, path)
    tee.pad(tarfile.BLOCKSIZE)
    (checksum,) = digests.result().values()
    return checksum, info.st_mtime


def _read(
    descriptor: int,
    info: os.stat_result,
    path: Path,
    buffer: memoryview,
    sinks: Sequence[Callable[[memoryview], None]],
    on_progress: Progress,
) -> None:
    left = info.st_size
    while left:
        with _reading(path):
            got = os.readv(descriptor, [buffer[:left]])
        if not got:
            raise SourceChangedError(f"'{names.shown(str(path))}' was cut short while it was read")
        for sink in sinks:
            sink(buffer[:got])
        left -= got
        on_progress(got)


def _check_unchanged(descriptor: int, before: os.stat_result, path: Path) -> None:
    with _reading(path):
        named = os.lstat(path)
    # The open file tells of writes, its name tells of a replacement.
    after = {candidates.signature(os.fstat(descriptor)), candidates.signature(named)}
    if after != {candidates.signature(before)}:
        raise SourceChangedError(f"'{names.shown(str(path))}' changed while it was read")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        shown = names.shown(str(path))
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
            raise SourceChangedError(f"'{shown}' was removed or replaced while it was read") from error
        text = os.strerror(error.errno) if error.errno else str(error)
        raise BadSourceError(f"'{shown}' cannot be read: {text}") from error


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[int]:
    with _reading(path):
        descriptor = os.open(path, _SEARCH)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _file(root: int, path: Path, below: str) -> Iterator[int]:
    """A regular file `below` the open folder `root`, reached without following any link."""
    descriptor = -1
    *above, name = below.split("/")
    steps = [*((folder, _SEARCH | os.O_NOFOLLOW) for folder in above), (name, _NO_FOLLOW)]
    try:
        for step, flags in steps:
            holder = descriptor
            with _reading(path):
                descriptor = os.open(step, flags, dir_fd=holder if holder >= 0 else root)
            if holder >= 0:
                os.close(holder)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BadSourceError(f"'{names.shown(str(path))}' is not a regular file")
        yield descriptor
    finally:
        if descriptor >= 0:
            os.close(descriptor)
