"""The destinations of `archive`: everything that can be refused about them is, before anything is made.

A directory that is missing is made only when nothing says that it was an archive before: an archive that has
vanished, or whose disk is not mounted, must not come back empty.
"""

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ccat_data_transfer import database, names, reports, storage
from ccat_data_transfer.cli import preparation
from ccat_data_transfer.exceptions import ConfigurationError, InputError, LocationUnavailableError
from ccat_data_transfer.locations import Location, LocationType, StorageType
from ccat_data_transfer.states import PauseReason
from ccat_data_transfer.storage.errnos import CONDITIONS


@dataclass(frozen=True, slots=True)
class Destination:
    """One destination as it was given; `root` has its links resolved, `path` not."""

    given: str
    path: Path
    root: Path

    @property
    def shown(self) -> str:
        """As the user wrote it."""
        return names.shown(self.given)

    def unusable(self, problem: PauseReason, message: str) -> LocationUnavailableError:
        """The error that says why nothing can be archived there."""
        return LocationUnavailableError(
            f"destination '{self.shown}' cannot be used: {message}",
            condition=problem.value,
            location=str(self.root),
            remedy="make it usable (mounted, writable, with room), or name another destination",
        )


def parse(texts: Sequence[str]) -> list[Destination]:
    """The destinations that were asked for, each once; raises for what is no directory of this machine."""
    found: dict[Path, Destination] = {}
    for text in texts:
        path = _path_of(text)
        try:
            path.encode()
            root = Path(os.path.realpath(path))
        except (UnicodeEncodeError, ValueError):
            raise InputError(f"destination '{names.shown(text)}' is not a path in UTF-8") from None
        found.setdefault(root, Destination(text, Path(path), root))
    return list(found.values())


def _path_of(text: str) -> str:
    shown = names.shown(text)
    if not text:
        raise InputError("a destination is empty", remedy="name a directory")
    scheme, separator, _ = text.partition("://")
    if text.lower().startswith("file:/"):
        parts = urlsplit(text)
        if parts.netloc not in {"", "localhost"} or parts.query or parts.fragment:
            raise InputError(
                f"destination '{shown}' is not a directory of this machine", remedy="write it as file:///directory"
            )
        return unquote(parts.path)
    if separator:
        raise ConfigurationError(
            f"destination '{shown}' is of the kind '{names.shown(scheme)}', which this version cannot archive to",
            remedy="name a directory, as /directory or file:///directory",
        )
    if ":" in text.partition("/")[0] and not os.path.lexists(text):  # as rsync and scp read it
        raise ConfigurationError(
            f"destination '{shown}' is on another host, and remote hosts are not supported yet",
            remedy=f"mount its directory here and name that; for a directory of this machine write './{shown}'",
        )
    return text


def refuse_overlaps(paths: Sequence[str], destinations: Sequence[Destination], workdir: Path) -> None:
    """Raise `InputError` when what is read, what is written and the working directory are not apart."""
    workdir = Path(os.path.realpath(workdir))
    paths = [path for path in paths if path]  # an empty one is no path at all, and is refused as such
    sources = [Path(os.path.realpath(path)) for path in paths]
    for destination in destinations:
        for given, source in zip(paths, sources, strict=True):
            shown = names.shown(given)
            if _is_within(destination.root, source):
                raise InputError(
                    f"destination '{destination.shown}' is inside '{shown}', which is to be archived", remedy=_APART
                )
            if _is_within(source, destination.root):
                raise InputError(
                    f"'{shown}', which is to be archived, is inside destination '{destination.shown}'", remedy=_APART
                )
        if _is_within(destination.root, workdir) or _is_within(workdir, destination.root):
            raise InputError(
                f"destination '{destination.shown}' and the working directory '{workdir}' are not apart",
                remedy="name another destination, or another working directory with --workdir",
            )
        for other in destinations:
            if other is not destination and _is_within(other.root, destination.root):
                raise InputError(
                    f"destination '{other.shown}' is inside destination '{destination.shown}'", remedy=_APART
                )
    for given, source in zip(paths, sources, strict=True):
        if source != workdir and _is_within(source, workdir):
            raise InputError(
                f"'{names.shown(given)}' is inside the working directory '{workdir}'", remedy="name the data's folder"
            )


_APART = "an archive must lie apart from its sources: name another destination"


def _is_within(inner: Path, outer: Path) -> bool:
    """Whether `inner` is `outer` or below it, by name or, as with bind mounts, by what the directories are."""
    if inner.is_relative_to(outer):
        return True
    try:
        wanted = outer.stat()
    except (OSError, ValueError):
        return False
    return any(_is_same(wanted, path) for path in (inner, *inner.parents))


def _is_same(info: os.stat_result, path: Path) -> bool:
    try:
        return os.path.samestat(info, path.stat())
    except (OSError, ValueError):
        return False


def refuse_unusable(destination: Destination) -> None:
    """Raise `InputError` or `LocationUnavailableError` unless it can be used, or made; changes nothing."""
    root = destination.root
    if root == Path("/"):
        raise InputError("the root of the file system cannot be a destination", remedy="name a directory of its own")
    known = _known(root)
    if not _is_there(destination):
        _refuse_to_make(destination, known)
    elif not root.is_dir():
        raise InputError(f"destination '{destination.shown}' is not a directory", remedy="name a directory")
    else:
        _refuse_unwell(destination, known or _unregistered(root, root.name))


def _is_there(destination: Destination) -> bool:
    try:
        os.lstat(destination.root)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(
                f"destination '{destination.shown}' has a name that is too long", remedy="give it a shorter name"
            ) from error
        condition = CONDITIONS.get(error.errno or 0, PauseReason.UNREACHABLE)
        raise destination.unusable(condition, os.strerror(error.errno or 0)) from error
    return True


def _refuse_unwell(destination: Destination, location: Location) -> None:
    health = storage.open_storage(location).check()
    if health.problem is not None:
        raise destination.unusable(health.problem, health.message)


def _refuse_to_make(destination: Destination, known: Location | None) -> None:
    parent = destination.root.parent
    if known is not None:
        raise destination.unusable(
            PauseReason.MISSING, f"it is the archive '{known}' of this database, and it is not there any more"
        )
    if destination.path.is_symlink():
        raise destination.unusable(PauseReason.MISSING, f"it is a link to '{names.shown(str(destination.root))}'")
    if not parent.is_dir():
        raise InputError(
            f"destination '{destination.shown}' cannot be made: there is no folder '{names.shown(str(parent))}'",
            remedy="make the folder, or correct the destination",
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise destination.unusable(PauseReason.DENIED, f"folder '{names.shown(str(parent))}' cannot be written to")
    # What is to be made there will have the room, and the evidence, that its parent has.
    _refuse_unwell(destination, _unregistered(parent, destination.root.name))


def _known(root: Path) -> Location | None:
    if not preparation.exists():
        return None
    with database.session_scope(read_only=True) as session:
        return reports.archive_at(session, str(root))


def _unregistered(root: Path, name: str) -> Location:
    """A location that the database does not know yet."""
    return Location(0, "local", name, LocationType.LONG_TERM_ARCHIVE, StorageType.DISK, options={"path": str(root)})


@contextlib.contextmanager
def made(destinations: Sequence[Destination]) -> Iterator[None]:
    """Make the directories that are missing; when the block raises, those that are still empty go again."""
    new = [destination for destination in destinations if not destination.root.exists()]
    try:
        for destination in new:
            _make(destination)
        yield
    except BaseException:
        for destination in new:
            with contextlib.suppress(OSError):
                destination.root.rmdir()
        raise


def _make(destination: Destination) -> None:
    """Make the directory so that it survives a power cut."""
    try:
        destination.root.mkdir(exist_ok=True)
        parent = os.open(destination.root.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
    except OSError as error:
        condition = CONDITIONS.get(error.errno or 0, PauseReason.DENIED)
        raise destination.unusable(condition, f"it cannot be made: {error.strerror}") from error
