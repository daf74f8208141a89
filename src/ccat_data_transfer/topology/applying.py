"""Bringing the database to say what a declaration says.

Everything is decided before anything is written: a declaration is applied as a whole or refused with all reasons.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ccat_data_transfer import database, models, storage
from ccat_data_transfer.exceptions import CCATDataOperationError, TopologyError
from ccat_data_transfer.locations import Location
from ccat_data_transfer.states import PhysicalCopyStatus
from ccat_data_transfer.topology import declaration as declarations
from ccat_data_transfer.topology import enrolment, rows
from ccat_data_transfer.topology.declaration import AnyPlace, Declaration

Key = tuple[str, str]
Action = Literal["created", "updated", "unchanged", "removed"]

# What says where the bytes are, or what they are for: never changed under copies or operations.
_FIXED = (
    "storage_type",
    "location_type",
    "path",
    "bucket_name",
    "prefix",
    "endpoint_url",
    "library_name",
    "mount_path",
)


@dataclass(frozen=True, slots=True)
class Change:
    """What applying did to one site or data location; `details` are sentences for an operator."""

    what: Literal["site", "data location"]
    name: str  # the short name of a site, `site/name` of a data location
    action: Action
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Mark:
    """What came of marking a directory."""

    mark: str | None
    problem: str = ""


def apply(declaration: Declaration) -> list[Change]:
    """Make the database's topology the declared one; applying it again changes nothing.

    Raises `TopologyError`, with nothing changed, for what would orphan a copy or an operation. Locations and sites
    that are left out are removed; where only copies that were deleted long ago refer to one, it stays inactive.
    Directories are marked first and without a transaction; one that cannot be is no error but a detail of its change.
    Takes no session, because it must commit.
    """
    declarations.check(declaration)
    with database.session_scope(read_only=True) as session:
        plan = _Plan(session, declaration)
        plan.refuse_orphans()
        unmarked = plan.unmarked()
    marks = {key: _mark(location) for key, location in unmarked.items()}
    with database.session_scope() as session:
        rows.serialise(session)
        plan = _Plan(session, declaration)
        plan.refuse_orphans()
        return plan.carry_out(marks)


def _mark(location: Location) -> _Mark:
    try:
        return _Mark(storage.open_storage(location).enrol())
    except CCATDataOperationError as error:
        return _Mark(None, f"not enrolled: {error}")


class _Plan:
    """What is, beside what shall be, within one transaction."""

    def __init__(self, session: Session, declaration: Declaration) -> None:
        self.session = session
        self.declaration = declaration
        self.sites = {site.short_name: site for site in rows.sites(session)}
        self.rows: dict[Key, models.DataLocation] = {
            (row.site.short_name, row.name): row for row in rows.locations(session)
        }
        self.wanted: dict[Key, AnyPlace] = {
            (site.short_name, place.name): place for site, place in declaration.places()
        }

    def refuse_orphans(self) -> None:
        """Raise `TopologyError` for every location whose copies or operations would lose their place."""
        touched = [row for key, row in self.rows.items() if self._is_moved(key) or key not in self.wanted]
        if touched:
            self._lock(row.id for row in touched)
        refusals = [reason for row in touched for reason in self._refusals(row)]
        if refusals:
            raise TopologyError("; ".join(refusals))

    def _is_moved(self, key: Key) -> bool:
        return key in self.wanted and bool(_moves(self.rows[key], self.wanted[key]))

    def _lock(self, location_ids: Iterable[int]) -> None:
        # Whoever registers a copy or creates an operation holds a key lock on the location: after this, nobody does.
        place = sa.inspect(models.DataLocation).local_table
        self.session.execute(
            sa.select(place.c.id).where(place.c.id.in_(list(location_ids))).order_by(place.c.id).with_for_update()
        )

    def _refusals(self, row: models.DataLocation) -> Iterable[str]:
        key = (row.site.short_name, row.name)
        place = self.wanted.get(key)
        if place is None:
            if held := _held(self.session, row.id, also_deleted=False):
                yield f"data location '{row.value()}' is left out but has {held}: keep it, with active = false"
        elif held := _held(self.session, row.id, also_deleted=True):
            changes = ", ".join(_moves(row, place))
            yield f"data location '{row.value()}' has {held}, so this cannot change: {changes}"

    def unmarked(self) -> dict[Key, Location]:
        """The directories that are to be marked."""
        found = {}
        for (site, name), place in self.wanted.items():
            row = self.rows.get((site, name))
            if row is not None and row.volume_id is not None and not self._is_moved((site, name)):
                continue
            options = rows.new_row(place, models.Site(short_name=site)).options()
            location = Location(0, site, name, place.location_type, place.storage_type, options=options)
            if enrolment.takes_mark(location):
                found[site, name] = location
        return found

    def carry_out(self, marks: Mapping[Key, _Mark]) -> list[Change]:
        """Write it, and say what was written."""
        removed = [*self._remove_locations(), *self._remove_sites()]
        self._free_names()
        changes: list[Change] = []
        for site in self.declaration.sites:
            changes.append(self._write_site(site))
            changes += [self._write_location((site.short_name, place.name), place) for place in site.data_locations]
        self.session.flush()
        # Only now, when no location that gives up a directory is in the way of one that takes it.
        return [self._enrolled(change, marks) for change in changes] + removed

    def _remove_locations(self) -> list[Change]:
        changes = []
        for key, row in list(self.rows.items()):
            if key in self.wanted:
                continue
            if history := _held(self.session, row.id, also_deleted=True):
                action: Action = "updated" if row.active else "unchanged"
                row.active, row.volume_id = False, None
                self._look_again(key)
                changes.append(Change("data location", "/".join(key), action, (f"inactive, kept for {history}",)))
            else:
                self.session.delete(self.rows.pop(key))
                changes.append(Change("data location", "/".join(key), "removed"))
        self.session.flush()
        return changes

    def _remove_sites(self) -> list[Change]:
        kept = {site for site, _ in self.rows} | {site.short_name for site in self.declaration.sites}
        gone = [name for name in self.sites if name not in kept]
        for name in gone:
            self.session.delete(self.sites.pop(name))
        self.session.flush()
        return [Change("site", name, "removed") for name in gone]

    def _free_names(self) -> None:
        """Move changing names out of the way, so that two sites can swap theirs."""
        for site in self.declaration.sites:
            row = self.sites.get(site.short_name)
            if row is not None and row.name != site.name:
                # What no file can declare, and so no other site has.
                self.session.execute(
                    sa.update(models.Site)
                    .where(models.Site.id == row.id)
                    .values(name=f" {row.id}")
                    .execution_options(synchronize_session=False)
                )

    def _write_site(self, site: declarations.SiteDeclaration) -> Change:
        row = self.sites.get(site.short_name)
        if row is None:
            row = models.Site(short_name=site.short_name, name=site.name, location=site.location)
            self.session.add(row)
            self.sites[site.short_name] = row
            return Change("site", site.short_name, "created")
        details = []
        for name in ("name", "location"):
            before, after = getattr(row, name), getattr(site, name)
            if before != after:
                details.append(_difference(name, before, after))
                setattr(row, name, after)
        return Change("site", site.short_name, "updated" if details else "unchanged", tuple(details))

    def _write_location(self, key: Key, place: AnyPlace) -> Change:
        row = self.rows.get(key)
        name = "/".join(key)
        if row is None:
            self._add(key, place)
            return Change("data location", name, "created")
        details = tuple(_differences(row, place).values())
        if self._is_moved(key):
            row = self._move(key, row, place)
        for column, value in rows.values_of(place).items():
            setattr(row, column, value)
        if details:
            self._look_again(key)
        return Change("data location", name, "updated" if details else "unchanged", details)

    def _look_again(self, key: Key) -> None:
        """Have the manager consider every copy of the site anew.

        It compares what it saw last with what is there; what was switched off and on in between would look the same.
        """
        self.sites[key[0]].seen_topology = ""

    def _enrolled(self, change: Change, marks: Mapping[Key, _Mark]) -> Change:
        site, _, name = change.name.partition("/")
        found = marks.get((site, name))
        if found is None or self.rows[site, name].volume_id is not None:
            return change
        if found.mark is None:
            return dataclasses.replace(change, details=(*change.details, found.problem))
        volume = enrolment.store(self.session, self.rows[site, name].value(), found.mark)
        action: Action = "updated" if change.action == "unchanged" else change.action
        return dataclasses.replace(change, action=action, details=(*change.details, f"enrolled as volume '{volume}'"))

    def _add(self, key: Key, place: AnyPlace) -> models.DataLocation:
        row = rows.new_row(place, self.sites[key[0]])
        self.session.add(row)
        self.rows[key] = row
        return row

    def _move(self, key: Key, row: models.DataLocation, place: AnyPlace) -> models.DataLocation:
        """Another place under the same name: what was known of the old one, its mark and its pause, is forgotten."""
        if row.storage_type is not place.storage_type:
            self.session.delete(row)
            self.session.flush()
            return self._add(key, place)
        row.volume_id = None
        row.paused_until = row.pause_reason = row.pause_message = None
        return row


def _differences(row: models.DataLocation, place: AnyPlace) -> dict[str, str]:
    """What would change, by key."""
    before = rows.place_of(row).__dict__
    after = place.__dict__
    return {
        name: _difference(name, before.get(name), after.get(name))
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
    }


def _moves(row: models.DataLocation, place: AnyPlace) -> list[str]:
    """Those of the differences that make it another place; to name the host of a directory at last is none."""
    named = isinstance(row, models.DiskDataLocation) and row.host and getattr(place, "host", None)
    return [text for name, text in _differences(row, place).items() if name in _FIXED or (name == "host" and named)]


def _difference(name: str, before: object, after: object) -> str:
    def shown(value: object) -> str:
        return "none" if value is None else f"'{value}'" if isinstance(value, str) else str(value).lower()

    return f"{name} from {shown(before)} to {shown(after)}"


def _held(session: Session, location_id: int, *, also_deleted: bool) -> str:
    """Which copies and operations refer to a location, in words; empty when none do."""
    copies = 0
    for kind in (models.RawDataPackagePhysicalCopy, models.RawDataFilePhysicalCopy):
        live = sa.true() if also_deleted else kind.status != PhysicalCopyStatus.DELETED
        copies += _count(session, kind, kind.data_location_id == location_id, live)
    operation = models.LongTermArchiveTransfer
    operations = _count(session, operation, operation.data_location_id == location_id)
    counted = ((copies, "copy", "copies"), (operations, "operation", "operations"))
    return " and ".join(f"{n} {one if n == 1 else many}" for n, one, many in counted if n)


def _count(session: Session, kind: type[models.Base], *conditions: sa.ColumnElement[bool]) -> int:
    return session.scalars(sa.select(sa.func.count()).select_from(kind).where(*conditions)).one()
