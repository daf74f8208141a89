"""The topology of one machine that nobody declared: what `archive PATH --to DEST` needs, made at first use."""

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ccat_data_transfer import database, leases, models, names, storage
from ccat_data_transfer.exceptions import (
    ConfigurationError,
    InputError,
    LocationUnavailableError,
    TopologyError,
)
from ccat_data_transfer.locations import Location, LocationType, StorageType
from ccat_data_transfer.topology import enrolment, rows
from ccat_data_transfer.topology.declaration import FILE_SYSTEM_ROOT

SITE_NAME = "Local"
SITE_SHORT_NAME = "local"
INPUTS = "inputs"
PACKED = "packed"

_LONGEST_NAME = 63
_ILLEGAL = re.compile(r"[^a-z0-9_-]")


@dataclass(frozen=True, slots=True)
class LocalTopology:
    """Where packages are read (`inputs` as they lie, `packed` from folders) and where they go, in the order asked."""

    inputs: Location
    packed: Location
    destinations: tuple[Location, ...]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A directory that shall be a data location; `mark` is what was found in it, None where it takes none."""

    root: str
    location_type: LocationType
    name: str
    priority: int
    mark: str | None = None


def ensure_local(*, working_directory: Path, destinations: Sequence[Path]) -> LocalTopology:
    """The local site with its two sources, and an archive location for each destination directory.

    Sources and no buffers: what lies in a buffer goes to every archive of its site, and these packages go only where
    they were asked to go. What is there already is found again by its directory. Destinations must exist; raises
    `LocationUnavailableError` for one that does not, or that is another volume than it was, and `TopologyError` for
    one that is already an archive location under another path: that it still holds what was archived there is not
    known.
    """
    packed = _make_packed(working_directory)
    roots = [_destination_root(path) for path in destinations]
    _refuse_nested(roots, packed)
    _make_sources()
    wanted = [
        _Wanted(FILE_SYSTEM_ROOT, LocationType.SOURCE, INPUTS, priority=1),
        _marked(_Wanted(packed, LocationType.SOURCE, PACKED, priority=0)),
        *(_marked(_Wanted(root, LocationType.LONG_TERM_ARCHIVE, _identifier(root), priority=0)) for root in roots),
    ]
    with database.session_scope() as session:
        rows.serialise(session)
        site = _ensure_site(session)
        inputs, packed_location, *archives = [_ensure_location(session, site, each) for each in wanted]
    return LocalTopology(inputs, packed_location, tuple(archives))


def _make_packed(working_directory: Path) -> str:
    root = os.path.realpath(working_directory / PACKED)
    try:
        Path(root).mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"working directory '{names.shown(root)}' cannot be made: {error.strerror}",
            remedy="set CCAT_DATA_TRANSFER_WORKING_DIRECTORY to a directory that can be written",
        ) from error
    return _storable(root)


def _destination_root(path: Path) -> str:
    root = _storable(os.path.realpath(path))
    if root == FILE_SYSTEM_ROOT:
        raise InputError("the root of the file system cannot be a destination")
    return root


def _refuse_nested(roots: Sequence[str], packed: str) -> None:
    """Raise `TopologyError` when a destination lies inside a directory of this database, or holds one.

    The root of the file system is left out because it holds everything, and `packed` because the caller refuses it.
    """
    disk = models.DiskDataLocation
    is_here = sa.or_(disk.host.is_(None), disk.host.in_(leases.names_of_this_host()))
    elsewhere = disk.path.not_in((FILE_SYSTEM_ROOT, packed))
    with database.session_scope(read_only=True) as session:
        known = session.scalars(sa.select(disk).where(is_here, elsewhere)).all()
        for root, place in itertools.product(roots, known):
            _refuse_nest(root, place)


def _refuse_nest(root: str, place: models.DiskDataLocation) -> None:
    is_archive = place.location_type is LocationType.LONG_TERM_ARCHIVE
    inner, outer = Path(root), Path(place.path)
    if inner == outer and is_archive:
        return
    if inner.is_relative_to(outer) or outer.is_relative_to(inner):
        kind = "archive" if is_archive else "data location"
        raise TopologyError(
            f"destination '{names.shown(root)}' and {kind} '{place.value()}' at "
            f"'{names.shown(place.path)}' lie inside one another",
            remedy="name a destination apart from it",
        )


def _make_sources() -> None:
    """Make sources of the two places where an earlier version had buffers."""
    disk = models.DiskDataLocation
    was_one = sa.or_(
        sa.and_(disk.name == INPUTS, disk.path == FILE_SYSTEM_ROOT),
        sa.and_(disk.name == PACKED, disk.path.endswith(f"/{PACKED}")),
    )
    with database.session_scope() as session:
        rows.serialise(session)
        for place in session.scalars(
            sa.select(disk)
            .join(disk.site)
            .where(models.Site.short_name == SITE_SHORT_NAME, disk.location_type == LocationType.BUFFER, was_one)
        ):
            place.location_type = LocationType.SOURCE
            place.site.seen_topology = ""  # what the manager derived from its buffers no longer holds


def _storable(root: str) -> str:
    try:
        root.encode()
    except UnicodeEncodeError:
        raise InputError(f"directory '{names.shown(root)}' has a name that is not UTF-8") from None
    return root


def _identifier(root: str) -> str:
    """A legal name of a data location that resembles the directory's."""
    name = _ILLEGAL.sub("-", Path(root).name.lower())[:_LONGEST_NAME]
    return name.strip("-_") or "archive"


def _marked(wanted: _Wanted) -> _Wanted:
    """Mark the directory, or check the mark of one that is known; no transaction is open meanwhile."""
    with database.session_scope(read_only=True) as session:
        known = _find(session, wanted)
        location = known.value() if known is not None else None
    if location is None or location.volume_id is None:
        location = location or Location(
            0, SITE_SHORT_NAME, wanted.name, wanted.location_type, StorageType.DISK, options={"path": wanted.root}
        )
        mark = storage.open_storage(location).enrol()
    else:
        health = storage.open_storage(location).check(writable=False)
        if health.problem is not None:
            raise LocationUnavailableError(health.message, condition=health.problem.value, location=str(location))
        mark = location.volume_id
    return _Wanted(wanted.root, wanted.location_type, wanted.name, wanted.priority, mark)


def _find(session: Session, wanted: _Wanted) -> models.DiskDataLocation | None:
    disk = models.DiskDataLocation
    return session.scalars(
        sa.select(disk)
        .join(disk.site)
        .where(
            models.Site.short_name == SITE_SHORT_NAME,
            disk.location_type == wanted.location_type,
            disk.path == wanted.root,
            disk.host.is_(None),
        )
        .order_by(disk.id)
        .limit(1)
    ).one_or_none()


def _ensure_site(session: Session) -> models.Site:
    for site in session.scalars(sa.select(models.Site).where(models.Site.short_name == SITE_SHORT_NAME)):
        return site
    if session.scalars(sa.select(models.Site).where(models.Site.name == SITE_NAME)).first():
        raise TopologyError(
            f"a site named '{SITE_NAME}' is declared with another short name than '{SITE_SHORT_NAME}'",
            remedy="use another database for local archiving, or rename that site",
        )
    site = models.Site(name=SITE_NAME, short_name=SITE_SHORT_NAME)
    session.add(site)
    session.flush()
    return site


def _ensure_location(session: Session, site: models.Site, wanted: _Wanted) -> Location:
    row = _find(session, wanted) or _moved_source(session, site, wanted)
    if row is None:
        row = models.DiskDataLocation(
            site=site,
            name=_free_name(session, site, wanted.name),
            location_type=wanted.location_type,
            priority=wanted.priority,
            path=wanted.root,
        )
        session.add(row)
    elif not row.active:
        row.active = True  # asking for a place by name is asking for its use
        site.seen_topology = ""  # so that the manager looks at every copy again, however short it was off
    session.flush()
    if wanted.mark is not None and row.volume_id is None:
        enrolment.store(session, row.value(), wanted.mark)
        session.refresh(row)
    return row.value()


def _moved_source(session: Session, site: models.Site, wanted: _Wanted) -> models.DiskDataLocation | None:
    """The row of a source whose working directory was moved, database and all; it is corrected here.

    Not done for archives: a mark may have been copied with its directory, and the bytes of a copy were never
    verified. Those of a source are, each time they are read.
    """
    if wanted.location_type is not LocationType.SOURCE or wanted.mark is None:
        return None
    disk = models.DiskDataLocation
    row = session.scalars(
        sa.select(disk).where(
            disk.site_id == site.id, disk.location_type == wanted.location_type, disk.volume_id == wanted.mark
        )
    ).one_or_none()
    if row is not None:
        row.path = wanted.root
    return row


def _free_name(session: Session, site: models.Site, name: str) -> str:
    place = models.DataLocation
    taken = set(session.scalars(sa.select(place.name).where(place.site_id == site.id)))
    number, free = 1, name
    while free in taken:
        number += 1
        suffix = f"-{number}"
        free = name[: _LONGEST_NAME - len(suffix)].rstrip("-_") + suffix
    return free
