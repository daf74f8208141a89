"""One candidate on its way to a package: digested where it lies, or packed or copied into the buffer.

All input and output of registering is here, none of the database. Bytes appear in the buffer whole, durable
and under a name that was free, or not at all.
"""

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ccat_data_transfer import fits_headers, names, packing, storage
from ccat_data_transfer.checksums import DEFAULT_ALGORITHM, Checksum, Digests
from ccat_data_transfer.exceptions import (
    BadNameError,
    ChecksumVerificationError,
    ConfigurationError,
    DataCorruptionError,
    InputError,
    SourceChangedError,
    SourceMissingError,
)
from ccat_data_transfer.locations import Location, StorageType
from ccat_data_transfer.packages import records
from ccat_data_transfer.packages.records import Found, Known, Registered
from ccat_data_transfer.packing import Candidate, Kind, Packed
from ccat_data_transfer.storage import errnos, incoming, paths, volume

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Job:
    """What is the same for all candidates of one call. `notes` collects what concerns all, in any thread."""

    tars_at: Location
    packs_at: Location
    given: Mapping[str, Checksum]
    reads_headers: bool
    on_progress: packing.Progress
    token: str
    notes: set[str] = field(default_factory=set)


def root_of(location: Location) -> str:
    """The directory of a location on disk, with links resolved."""
    if location.storage_type is not StorageType.DISK:
        raise ConfigurationError(
            f"packages are registered in directories, and data location '{location}' is '{location.storage_type}'",
            remedy="register them at a location on disk",
        )
    return os.path.realpath(location.options["path"])


def own_paths(location: Location) -> list[str]:
    """What lies below a location's root that is this program's and no data."""
    root = root_of(location)
    return [str(Path(root, name)) for name in (volume.SENTINEL, incoming.DIRECTORY)]


def prepare(candidate: Candidate, known: Known | None, job: Job) -> Found | Registered:
    """See that the candidate's bytes lie at a location, and what they are. Changes nothing that is known.

    Bytes that the database knows and that the place says are untouched are not read again.
    """
    if known is not None and (error := records.twin(known, candidate.name)):
        raise error
    key = _key_below(job.tars_at, candidate.path) if candidate.kind is Kind.TAR else None
    return _brought(candidate, known, job) if key is None else _in_place(candidate, key, known, job)


def _key_below(location: Location, path: Path) -> str | None:
    root = root_of(location)
    if not path.is_relative_to(root):
        return None
    key = path.relative_to(root).as_posix()
    try:
        key.encode()
    except UnicodeEncodeError:
        raise BadNameError(f"path '{names.shown(str(path))}' is not valid UTF-8") from None
    return names.check_copy_path(key)


def _in_place(candidate: Candidate, key: str, known: Known | None, job: Job) -> Found | Registered:
    place = storage.open_storage(job.tars_at)
    before = place.stat(key)
    if before is None:
        raise SourceMissingError(f"'{names.shown(str(candidate.path))}' is no longer there")
    if known is not None and _is_intact(known, job, job.tars_at, key, before.identity):
        return _unchanged(known)
    packed = packing.digest_tar(candidate, algorithms=_algorithms(known, job, candidate), on_progress=job.on_progress)
    after = place.stat(key)
    if after is None or after.identity != before.identity:
        raise SourceChangedError(f"'{names.shown(str(candidate.path))}' changed while it was read")
    _check(candidate, packed, known, job)
    packed = replace(packed, fingerprint="")  # it is known again by itself
    identity = before.identity
    copy = known.copies.get(job.tars_at.id) if known else None
    if copy is not None and copy.path != key and copy.is_present and copy.identity and place.stat(copy.path):
        key, identity = copy.path, copy.identity  # the same package twice in one buffer: the first stays its copy
    return _found(candidate, packed, known, job, job.tars_at, key, identity, copied=False)


def _brought(candidate: Candidate, known: Known | None, job: Job) -> Found | Registered:
    """Pack or copy into the buffer, unless the same bytes are there already."""
    place, key = storage.open_storage(job.packs_at), candidate.name
    there = place.stat(key)
    is_intact = known is not None and there and _is_intact(known, job, job.packs_at, key, there.identity)
    if known is not None and is_intact and known.fingerprint == candidate.fingerprint:
        return _unchanged(known)
    packed, copied = None, False
    if there is None:
        packed, copied = _publish(candidate, known, job)
        there = place.stat(key)
    if not copied:
        packed = packing.digest_tar(
            candidate, algorithms=_algorithms(known, job, candidate), on_progress=job.on_progress
        )
        _check(candidate, packed, known, job)
        if not is_intact:
            _compare(candidate, packed, known, job)
    if there is None or packed is None:
        raise SourceChangedError(f"package '{key}' was removed from '{job.packs_at}' while it was registered")
    return _found(candidate, packed, known, job, job.packs_at, key, there.identity, copied=copied)


def _is_intact(known: Known, job: Job, location: Location, key: str, identity: str) -> bool:
    """Whether the copy at `location` is what was recorded, by what the place says of it."""
    copy = known.copies.get(location.id)
    return (
        copy is not None
        and copy.is_present
        and copy.path == key
        and copy.identity == identity
        and known.checksum is not None
        and copy.checksum == known.checksum
        and str(job.given.get(known.name, known.checksum)) == known.checksum
    )


def _unchanged(known: Known) -> Registered:
    return Registered(known.name, known.id, created=False, copied=False, size=known.size, checksum=known.checksum)


def _algorithms(known: Known | None, job: Job, candidate: Candidate) -> tuple[str, ...]:
    wanted = {DEFAULT_ALGORITHM}
    if known is not None and known.checksum is not None:
        wanted.add(Checksum.parse(known.checksum).algorithm)
    if candidate.name in job.given:
        wanted.add(job.given[candidate.name].algorithm)
    return tuple(sorted(wanted))


def _check(candidate: Candidate, packed: Packed, known: Known | None, job: Job) -> None:
    """Raise when the bytes are not what the producer or the database says they are."""
    given = job.given.get(candidate.name)
    if given is not None and packed.checksums[given.algorithm] != given:
        raise ChecksumVerificationError(
            f"'{names.shown(str(candidate.path))}' has {packed.checksums[given.algorithm]}, not {given} as given",
            remedy="get the file again from where it was made, or correct the checksum",
        )
    if known is not None and (error := records.conflict(known, candidate.name, str(candidate.path), packed)):
        raise error


def _compare(candidate: Candidate, packed: Packed, known: Known | None, job: Job) -> None:
    """Raise unless the file that already has the name in the buffer is made of the same bytes.

    `DataCorruptionError` when it is a copy that was whole when it was recorded, `InputError` when it is anything else.
    """
    path = Path(root_of(job.packs_at), candidate.name)
    theirs, ours = _digest(job.packs_at, candidate.name), packed.checksums[DEFAULT_ALGORITHM]
    if theirs == ours:
        return
    shown = f"'{names.shown(str(path))}'"
    copy = known.copies.get(job.packs_at.id) if known is not None else None
    if copy is not None and copy.is_present and copy.path == candidate.name:
        raise DataCorruptionError(
            f"the copy {shown} of package '{names.shown(candidate.name)}' is damaged: it was recorded with {ours} and "
            f"holds {theirs}; '{names.shown(str(candidate.path))}' is as it was",
            remedy="see the disk of the copy; move the copy away and run the same again, and it is made anew",
        )
    raise InputError(
        f"{shown} is in the way: it holds {theirs}, and '{names.shown(str(candidate.path))}' gives {ours}",
        remedy="find out which of the two is right; give other data another name",
    )


def _digest(location: Location, key: str) -> Checksum:
    """The checksum of a file, whatever it holds: it need not be a tar any more."""
    digests, buffer = Digests(), memoryview(bytearray(_CHUNK_BYTES))
    with contextlib.closing(storage.open_storage(location).open(key)) as reader:
        while got := reader.readinto(buffer):
            digests.update(buffer[:got])
    return digests.result()[DEFAULT_ALGORITHM]


def _publish(candidate: Candidate, known: Known | None, job: Job) -> tuple[Packed, bool]:
    """Write the candidate's tar into the buffer; False when another process was first and nothing was published."""
    location = job.packs_at
    with volume.Root(location) as root:
        root.check_mark()
        root.check_room(candidate.size_bytes)
        with incoming.Temporary(root, job.token, 0) as temporary:
            packed = packing.write_tar(
                candidate, temporary, algorithms=_algorithms(known, job, candidate), on_progress=job.on_progress
            )
            _check(candidate, packed, known, job)
            temporary.seal()
            root.check_unmoved()
            is_published = temporary.publish(root.fd, candidate.name)
        with errnos.blaming(location, "making the name durable"):
            paths.fsync_directory(root.fd)
    return packed, is_published


def _found(
    candidate: Candidate,
    packed: Packed,
    known: Known | None,
    job: Job,
    location: Location,
    key: str,
    identity: str,
    *,
    copied: bool,
) -> Found:
    checksum = job.given.get(candidate.name, packed.checksums[DEFAULT_ALGORITHM])
    notes = packed.members.notes
    job.notes.update(f"package '{names.shown(candidate.name)}': {note}" for note in notes)
    metadata = _metadata(candidate, packed, job, Path(root_of(location), key)) if known is None else {}
    return Found(candidate.name, str(candidate.path), packed, checksum, location.id, key, identity, copied, metadata)


def _metadata(candidate: Candidate, packed: Packed, job: Job, path: Path) -> dict[str, Any]:
    """What is to be said of a new package."""
    found: dict[str, Any] = {}
    if job.reads_headers and any(map(fits_headers.is_fits, packed.members.paths())):
        if not fits_headers.is_available():
            job.notes.add(fits_headers.NOT_READ)
        size = packed.size if candidate.name.endswith(".tar") else None
        found = fits_headers.describe(packing.open_members(path, fits_headers.is_fits), package_bytes=size)
    notes = [*found.get("notes", ()), *packed.members.notes]
    return found | ({"notes": notes} if notes else {})
