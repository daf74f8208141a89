"""What becomes a package: the paths a user names, looked at without reading any content.

Everything that can be seen from outside is refused here, before work begins, in one error. Only regular files
and folders are taken, and no link is followed below what the user named.
"""

import hashlib
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ccat_data_transfer import names
from ccat_data_transfer.exceptions import BadNameError, CCATDataOperationError, InputError
from ccat_data_transfer.packing import reading

_SIGNATURE = struct.Struct("=QQqqq")

AnyPath = str | os.PathLike[str]

_ODD = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Kind(StrEnum):
    """How a candidate becomes a package."""

    TAR = "tar"  # as it is
    FOLDER = "folder"  # packed
    FILE = "file"  # packed, alone


@dataclass(frozen=True, slots=True)
class Entry:
    """A member to be. `signature` changes when the bytes may have; folders have none."""

    path: str  # inside the package
    size: int
    is_folder: bool
    is_executable: bool
    signature: bytes


@dataclass(frozen=True, slots=True)
class Candidate:
    """What will become one package. `size_bytes` is what must be read; of a tar, `members` is the tar itself.

    `leaves_tars` says that the tars directly in the folder are packages of their own; `skip` is passed over.
    """

    name: str
    path: Path
    kind: Kind
    size_bytes: int
    members: tuple[Entry, ...] = ()
    leaves_tars: bool = False
    skip: frozenset[str] = frozenset()

    @property
    def fingerprint(self) -> str:
        """Changes whenever a member may have changed; says nothing about the bytes themselves."""
        return fingerprint(self.members)


def fingerprint(members: Iterable[Entry]) -> str:
    """See `Candidate.fingerprint`."""
    digest = hashlib.sha256()
    for member in members:
        text = repr((member.path, member.is_executable, member.signature))
        digest.update(text.encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


class _Faults:
    """What is wrong with the input: the first fault is told in full, the others are counted."""

    def __init__(self) -> None:
        self._first: CCATDataOperationError | None = None
        self._told: set[str] = set()  # what is looked at twice is counted once

    def add(self, fault: CCATDataOperationError) -> None:
        self._first = self._first or fault
        self._told.add(str(fault))

    def raise_first(self) -> None:
        if self._first is None:
            return
        others = len(self._told) - 1
        if not others:
            raise self._first
        more = "1 more problem" if others == 1 else f"{others} more problems"
        raise type(self._first)(f"{self._first} (and {more} in what was given)", remedy=self._first.remedy)


def plan(paths: Iterable[AnyPath], *, skip: Iterable[AnyPath] = (), packs_in: AnyPath | None = None) -> list[Candidate]:
    """What becomes a package, in the order given; what is named twice is taken once.

    A tar is a package as it is, another file is packed alone. A folder gives its tars as they are; if it has
    other files it is packed without those tars, else each of its subfolders is packed. A path given as a link
    stands for its target; links found inside folders are refused. Paths in `skip` are passed over inside
    folders.

    `packs_in` is where packs will lie: a tar there that bears the name of a pack is that pack from an earlier
    time.

    Raises `InputError` or `BadNameError` for the first thing that cannot be taken, and counts the others.
    """
    faults = _Faults()
    passed_over = frozenset(os.path.realpath(path) for path in skip)
    found: dict[tuple[Kind, Path], Candidate] = {}
    for path in paths:
        try:
            for candidate in _candidates(os.fspath(path), passed_over, faults):
                found.setdefault((candidate.kind, candidate.path), candidate)
        except (InputError, BadNameError) as fault:
            faults.add(fault)
    planned = list(found.values())
    if packs_in is not None:
        planned = _without_own_packs(planned, os.path.realpath(packs_in))
    _check_package_names(planned, faults)
    faults.raise_first()
    if not planned:
        raise InputError("no path was given", remedy="name the folders or tars to take")
    return planned


def _without_own_packs(planned: Sequence[Candidate], packs_in: str) -> list[Candidate]:
    packs = {Path(packs_in, candidate.name) for candidate in planned if candidate.kind is not Kind.TAR}
    return [candidate for candidate in planned if candidate.kind is not Kind.TAR or candidate.path not in packs]


def _candidates(given: str, skip: frozenset[str], faults: _Faults) -> Iterator[Candidate]:
    try:
        # Not Path(""), which is the working directory.
        path = os.path.realpath(given, strict=True) if given else ""
        info = os.lstat(path)
    except (OSError, ValueError) as error:
        raise _unreadable(given, error) from error
    _check_node(path, info)
    if path in skip:
        raise InputError(f"'{names.shown(given)}' is this program's own folder", remedy="name the data's folder")
    if stat.S_ISREG(info.st_mode):
        yield _from_file(Path(path), info)
    else:
        yield from _from_folder(Path(path), skip, faults)


def _from_file(path: Path, info: os.stat_result) -> Candidate:
    if not reading.is_tar(path.name):
        names.check_member_path(path.name)
        return Candidate(f"{path.name}.tar", path, Kind.FILE, info.st_size, (entry(path.name, info),))
    if info.st_size == 0:
        shown = names.shown(str(path))
        raise InputError(f"'{shown}' is an empty file, not a tar", remedy="make the tar again")
    return Candidate(path.name, path, Kind.TAR, info.st_size, (entry(path.name, info),))


def _from_folder(path: Path, skip: frozenset[str], faults: _Faults) -> Iterator[Candidate]:
    own_tars, folders, has_loose_files = [], [], False
    for place, info in _listing(str(path), skip, faults):
        if stat.S_ISDIR(info.st_mode):
            folders.append(Path(place))
        elif reading.is_tar(place):
            own_tars.append((Path(place), info))
        else:
            has_loose_files = True
    for place_of_tar, info in own_tars:
        try:
            yield _from_file(place_of_tar, info)
        except (InputError, BadNameError) as fault:
            faults.add(fault)
    packs = [path] if has_loose_files else folders
    holds_files = bool(own_tars)
    for folder in packs:
        candidate = _pack_of(folder, skip, faults, leaves_tars=has_loose_files)
        holds_files = holds_files or any(not member.is_folder for member in candidate.members)
        yield candidate
    if not holds_files:
        shown = names.shown(str(path))
        faults.add(InputError(f"folder '{shown}' holds no files", remedy="name a folder with data"))


def _pack_of(folder: Path, skip: frozenset[str], faults: _Faults, *, leaves_tars: bool) -> Candidate:
    if not folder.name:
        raise InputError("the root folder '/' has no name for a package", remedy="name a folder below it")
    members = _entries(folder, skip, faults, leaves_tars=leaves_tars)
    _check_members(folder, members, faults)
    size = sum(member.size for member in members)
    return Candidate(f"{folder.name}.tar", folder, Kind.FOLDER, size, members, leaves_tars, skip)


def _listing(folder: str, skip: frozenset[str], faults: _Faults) -> Iterator[tuple[str, os.stat_result]]:
    """What is in a folder and can be taken; the rest goes to `faults`."""
    try:
        places = sorted(item.path for item in os.scandir(folder))
    except OSError as error:
        faults.add(_unreadable(folder, error))
        return
    for place in places:
        if place in skip:
            continue
        try:
            info = os.lstat(place)
            _check_node(place, info)
        except OSError as error:
            faults.add(_unreadable(place, error))
        except InputError as fault:
            faults.add(fault)
        else:
            yield place, info


def _check_node(path: str, info: os.stat_result) -> None:
    shown = names.shown(path)
    if stat.S_ISLNK(info.st_mode):
        raise InputError(
            f"'{shown}' is a symbolic link, and what it points to is not in the folder",
            remedy="replace the link by the file it means, or move it out of the folder",
        )
    if what := _ODD.get(stat.S_IFMT(info.st_mode)):
        raise InputError(f"'{shown}' is {what}, not a file", remedy="move it out of the folder")
    needed = os.R_OK | os.X_OK if stat.S_ISDIR(info.st_mode) else os.R_OK
    if not os.access(path, needed, effective_ids=os.access in os.supports_effective_ids):
        raise InputError(f"'{shown}' cannot be read by this user", remedy="let this user read it")


def _unreadable(path: str, error: Exception) -> InputError:
    shown = names.shown(path)
    if isinstance(error, FileNotFoundError):
        what = "is a symbolic link to nothing" if Path(path).is_symlink() else "does not exist"
        return InputError(f"'{shown}' {what}", remedy="correct the path")
    text = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    return InputError(f"'{shown}' cannot be read: {text}", remedy="correct it, or let this user read it")


def entry(path: str, info: os.stat_result) -> Entry:
    """What is known of a file or folder that will be `path` inside the package."""
    if stat.S_ISDIR(info.st_mode):
        return Entry(path, 0, is_folder=True, is_executable=True, signature=b"")
    executable = bool(info.st_mode & stat.S_IXUSR)
    return Entry(path, info.st_size, is_folder=False, is_executable=executable, signature=signature(info))


def signature(info: os.stat_result) -> bytes:
    """What changes whenever the bytes of a file may have; packed, because there may be very many."""
    return _SIGNATURE.pack(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def _entries(folder: Path, skip: frozenset[str], faults: _Faults, *, leaves_tars: bool) -> tuple[Entry, ...]:
    """The folder and all below it, in the order of the tar."""
    top = str(folder)
    strip = len(top) - len(folder.name)
    found, waiting = [Entry(folder.name, 0, is_folder=True, is_executable=True, signature=b"")], [top]
    while waiting:
        place = waiting.pop()
        for below, info in _listing(place, skip, faults):
            if stat.S_ISDIR(info.st_mode):
                waiting.append(below)
            elif leaves_tars and place == top and reading.is_tar(below):
                continue
            found.append(entry(below[strip:], info))
    return tuple(sorted(found, key=lambda entry: os.fsencode(entry.path)))


def _check_members(folder: Path, members: Sequence[Entry], faults: _Faults) -> None:
    folded: dict[str, str] = {}
    for member in members:
        try:
            names.check_member_path(member.path)
        except BadNameError as fault:
            faults.add(fault)
            continue
        twin = folded.setdefault(names.fold(member.path), member.path)
        if twin != member.path:
            faults.add(
                BadNameError(
                    f"'{names.shown(twin)}' and '{names.shown(member.path)}' "
                    f"in '{names.shown(str(folder.parent))}' would be one file on some file systems",
                    remedy="rename one of the two",
                )
            )


def _check_package_names(candidates: Iterable[Candidate], faults: _Faults) -> None:
    folded: dict[str, Candidate] = {}
    for candidate in candidates:
        try:
            names.check_package_name(candidate.name)
        except BadNameError as error:
            faults.add(BadNameError(f"{error} ('{names.shown(str(candidate.path))}')"))
            continue
        twin = folded.setdefault(names.fold(candidate.name), candidate)
        if twin is not candidate:
            faults.add(
                InputError(
                    f"'{names.shown(str(twin.path))}' and '{names.shown(str(candidate.path))}' "
                    f"would both become the package '{names.shown(candidate.name)}'",
                    remedy="rename one of the two, or give only one",
                )
            )


def entries(candidate: Candidate) -> tuple[Entry, ...]:
    """The members of a candidate as they are now; raises what `plan` raises."""
    faults = _Faults()
    if candidate.kind is Kind.FILE:
        try:
            return (entry(candidate.path.name, os.lstat(candidate.path)),)
        except OSError as error:
            raise _unreadable(str(candidate.path), error) from error
    found = _entries(candidate.path, candidate.skip, faults, leaves_tars=candidate.leaves_tars)
    _check_members(candidate.path, found, faults)
    faults.raise_first()
    return found
