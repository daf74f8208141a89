"""The rows of packages, their files and copies: looked up and written for many packages at once."""

import itertools
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ccat_data_transfer import models, names
from ccat_data_transfer.checksums import DEFAULT_ALGORITHM, Checksum
from ccat_data_transfer.exceptions import CCATDataOperationError, InputError
from ccat_data_transfer.packing import Packed
from ccat_data_transfer.states import PhysicalCopyStatus

# Names in one IN, and rows in one INSERT: every database takes so many.
_AT_ONCE = 500
FINGERPRINT = "packed_from"  # key in the metadata document; no part of a sidecar
_NAME_CHARACTERS = 255


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class KnownCopy:
    """A physical copy as the database has it. `place` is for messages."""

    id: int
    place: str
    path: str
    identity: str | None
    checksum: str | None
    is_present: bool


@dataclass(frozen=True, slots=True)
class Known:
    """A package as the database has it, with its copies by location id.

    `fingerprint` is that of the folder it was packed from.
    """

    id: int
    name: str
    size: int
    checksum: str | None
    fingerprint: str | None
    copies: dict[int, KnownCopy] = field(default_factory=dict)

    @property
    def places(self) -> str:
        """Where its copies are, for messages."""
        return ", ".join(copy.place for copy in self.copies.values()) or "no copy"


@dataclass(frozen=True, slots=True)
class Found:
    """Bytes of a package that lie durable at a location, to be recorded. `origin` is where the user has them."""

    name: str
    origin: str
    packed: Packed
    checksum: Checksum  # to be recorded when the package is new
    location_id: int
    path: str
    identity: str
    copied: bool
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Registered:
    """What became of one candidate: a package, or the `error` that kept it from becoming one.

    `created` says that the database did not know it; `copied` that bytes were written into the buffer.
    """

    name: str
    id: int | None
    created: bool
    copied: bool
    size: int
    checksum: str | None
    error: CCATDataOperationError | None = None


def look_up(session: Session, package_names: Iterable[str]) -> dict[str, Known]:
    """What is known of packages with these names or with names that fold to the same, by folded name."""
    found: dict[str, Known] = {}
    package = models.RawDataPackage
    metadata = models.RawDataPackageMetadata
    for some in chunks(sorted({names.fold(name) for name in package_names})):
        rows = session.execute(
            sa.select(
                package.folded_name,
                package.id,
                package.name,
                package.size,
                package.checksum,
                metadata.document[FINGERPRINT].as_string(),
            )
            .outerjoin(metadata, metadata.raw_data_package_id == package.id)
            .where(package.folded_name.in_(some))
        )
        batch = {folded: Known(*values) for folded, *values in rows}
        _add_copies(session, {known.id: known for known in batch.values()})
        found |= batch
    return found


def _add_copies(session: Session, by_id: Mapping[int, Known]) -> None:
    copy, location, site = models.RawDataPackagePhysicalCopy, models.DataLocation.__table__, models.Site.__table__
    rows = session.execute(
        sa.select(
            copy.raw_data_package_id,
            copy.data_location_id,
            copy.id,
            site.c.short_name,
            location.c.name,
            copy.path,
            copy.identity,
            copy.checksum,
            copy.status,
        )
        .join(location, location.c.id == copy.data_location_id)
        .join(site, site.c.id == location.c.site_id)
        .where(copy.raw_data_package_id.in_(by_id))
    )
    for package_id, location_id, copy_id, site_name, location_name, path, identity, checksum, status in rows:
        place = f"'{names.shown(path)}' at '{site_name}/{location_name}'"
        is_present = status is PhysicalCopyStatus.PRESENT
        by_id[package_id].copies[location_id] = KnownCopy(copy_id, place, path, identity, checksum, is_present)


def twin(known: Known, name: str) -> InputError | None:
    """Why `name` cannot stand beside the package that is known, or None when it is that package."""
    if known.name == name:
        return None
    return InputError(
        f"package '{names.shown(name)}' would be one file with the registered package "
        f"'{names.shown(known.name)}' on some file systems",
        remedy="rename it",
    )


def conflict(known: Known, name: str, origin: str, packed: Packed) -> InputError | None:
    """Why these bytes cannot be the package that is known, or None when they are it."""
    if error := twin(known, name):
        return error
    if known.checksum is None:
        if known.size == packed.size:
            return None
        there, here = f"{known.size} bytes", f"{packed.size} bytes"
    else:
        recorded = Checksum.parse(known.checksum)
        actual = packed.checksums.get(recorded.algorithm)
        if actual == recorded and known.size == packed.size:
            return None
        there = f"{known.checksum} ({known.size} bytes)"
        here = f"{actual or packed.checksums[DEFAULT_ALGORITHM]} ({packed.size} bytes)"
    return InputError(
        f"package '{names.shown(name)}' is registered with {there} from {known.places}, "
        f"but '{names.shown(origin)}' holds {here}",
        remedy="find out which of the two is right; give other data another name",
    )


def write(session: Session, found: Sequence[Found]) -> list[Registered]:
    """Record what was found, in its order. What is known already is looked at again and only completed."""
    known = look_up(session, (item.name for item in found))
    # Two processes that write the same packages must lock them in the same order.
    ordered = sorted(found, key=lambda item: item.name)
    ids = _insert(session, [item for item in ordered if names.fold(item.name) not in known])
    results = {}
    for item in ordered:
        package = known.get(names.fold(item.name))
        if package is None:
            registered = Registered(
                item.name,
                ids[item.name],
                created=True,
                copied=item.copied,
                size=item.packed.size,
                checksum=str(item.checksum),
            )
        elif error := conflict(package, item.name, item.origin, item.packed):
            registered = failed(item.name, error)
        else:
            _complete(session, package, item)
            checksum = package.checksum or str(item.checksum)
            registered = Registered(
                item.name,
                package.id,
                created=False,
                copied=item.copied,
                size=package.size,
                checksum=checksum,
            )
        results[item.name] = registered
    return [results[item.name] for item in found]


def failed(name: str, error: CCATDataOperationError) -> Registered:
    """The result of a candidate that did not become a package."""
    return Registered(name, None, created=False, copied=False, size=0, checksum=None, error=error)


def _insert(session: Session, found: Sequence[Found]) -> dict[str, int]:
    """New packages with all their rows; their ids by name."""
    if not found:
        return {}
    package = models.RawDataPackage
    rows = [
        {
            "name": item.name,
            "folded_name": names.fold(item.name),
            "size": item.packed.size,
            "checksum": str(item.checksum),
        }
        for item in found
    ]
    inserted = session.execute(sa.insert(package).returning(package.id, package.name), rows)
    ids = {name: package_id for package_id, name in inserted}
    copies = [_copy_row(ids[item.name], item, str(item.checksum)) for item in found]
    session.execute(sa.insert(models.RawDataPackagePhysicalCopy), copies)
    for files in chunks(_file_rows(found, ids)):
        session.execute(sa.insert(models.RawDataFile), files)
    documents = [
        {"raw_data_package_id": ids[item.name], "document": document} for item in found if (document := _document(item))
    ]
    if documents:
        session.execute(sa.insert(models.RawDataPackageMetadata), documents)
    return ids


def _document(item: Found) -> dict[str, Any]:
    mark = {FINGERPRINT: item.packed.fingerprint} if item.packed.fingerprint else {}
    return {**item.metadata, **mark}


def _copy_row(package_id: int, item: Found, checksum: str) -> dict[str, Any]:
    return {
        "raw_data_package_id": package_id,
        "data_location_id": item.location_id,
        "path": item.path,
        "identity": item.identity,
        "checksum": checksum,
        "status": PhysicalCopyStatus.PRESENT,
    }


def _file_rows(found: Iterable[Found], ids: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    for item in found:
        for member in item.packed.members:
            yield {
                "id": uuid.uuid4(),
                "raw_data_package_id": ids[item.name],
                "name": member.path.rstrip("/").rpartition("/")[2][:_NAME_CHARACTERS],
                "path": member.path,
                "size": member.size,
                "checksum": member.checksum,
                "modified_at": member.modified_at,
            }


def _complete(session: Session, package: Known, item: Found) -> None:
    """Record the copy of a known package, and what else was not known of it."""
    checksum = package.checksum or str(item.checksum)
    if package.checksum is None:
        raw = models.RawDataPackage
        session.execute(sa.update(raw).where(raw.id == package.id).values(checksum=checksum))
    row = _copy_row(package.id, item, checksum)
    table = models.RawDataPackagePhysicalCopy
    copy = package.copies.get(item.location_id)
    if copy is None:
        session.execute(sa.insert(table).values(row))
    elif not copy.is_present:
        # Gone and back: `operations.create` must look at it again.
        session.execute(sa.update(table).where(table.id == copy.id).values(row | {"considered": False}))
    elif (copy.path, copy.identity, copy.checksum) != (item.path, item.identity, checksum):
        session.execute(sa.update(table).where(table.id == copy.id).values(row))
    mark = item.packed.fingerprint
    if mark and mark != package.fingerprint:
        metadata = session.get(models.RawDataPackageMetadata, package.id)
        if metadata is None:
            session.add(models.RawDataPackageMetadata(raw_data_package_id=package.id, document={FINGERPRINT: mark}))
        else:
            metadata.document = {**metadata.document, FINGERPRINT: mark}


def chunks(items: Iterable[T], size: int = _AT_ONCE) -> Iterator[list[T]]:
    """The items in lists of at most `size`."""
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
