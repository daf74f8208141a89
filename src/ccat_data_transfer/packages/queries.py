"""Reading what is registered. A fixed number of statements for any number of packages."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ccat_data_transfer import models, names
from ccat_data_transfer.exceptions import UnknownNameError
from ccat_data_transfer.models import RawDataPackage
from ccat_data_transfer.packages import records
from ccat_data_transfer.sidecar import FileEntry
from ccat_data_transfer.states import Evidence, PackageState, PhysicalCopyStatus

_DETAIL_FILES = 10_000
_LARGEST_ID = 2**63 - 1


@dataclass(frozen=True, slots=True)
class CopyView:
    """One physical copy; `location` is `site/name`."""

    location: str
    path: str
    status: PhysicalCopyStatus
    checksum: str | None
    verified_at: datetime | None
    verified_how: Evidence | None


@dataclass(frozen=True, slots=True)
class PackageView:
    """One package with its copies, by location."""

    id: int
    name: str
    size: int
    checksum: str | None
    state: PackageState
    created_at: datetime
    copies: tuple[CopyView, ...]


@dataclass(frozen=True, slots=True)
class PackageDetail:
    """All that is known of a package; `files` are the first of `file_count`, by path."""

    package: PackageView
    files: tuple[FileEntry, ...]
    file_count: int
    metadata: dict[str, Any]


def get(session: Session, name_or_id: str | int) -> RawDataPackage:
    """The package of that name, of that name without its `.tar`, or of that id; else `UnknownNameError`."""
    text = str(name_or_id)
    wanted = [] if isinstance(name_or_id, int) or not _is_storable(text) else [text, f"{text}.tar"]
    found = {
        package.name: package
        for package in session.scalars(sa.select(RawDataPackage).where(RawDataPackage.name.in_(wanted)))
    }
    for name in wanted:
        if name in found:
            return found[name]
    if text.isascii() and text.isdecimal() and int(text) <= _LARGEST_ID:
        by_id = session.get(RawDataPackage, int(text))
        if by_id is not None:
            return by_id
    raise UnknownNameError(
        f"there is no package '{names.shown(text)}'",
        remedy="run `ccat_data_transfer package list` to see which there are",
    )


def list_packages(
    session: Session,
    *,
    site: str | None = None,
    state: PackageState | None = None,
    limit: int = 100,
    after: int = 0,
) -> list[PackageView]:
    """At most `limit` packages with ids above `after`, by id; those with a copy at `site`, and in `state`, if given.

    `site` is a short name or a name; an unknown one is an `UnknownNameError`.
    """
    query = sa.select(RawDataPackage).where(RawDataPackage.id > after).order_by(RawDataPackage.id).limit(limit)
    if state is not None:
        query = query.where(RawDataPackage.state == state)
    if site is not None:
        copy, location = models.RawDataPackagePhysicalCopy, models.DataLocation.__table__
        query = query.where(
            sa.exists()
            .where(copy.raw_data_package_id == RawDataPackage.id)
            .where(copy.data_location_id == location.c.id)
            .where(location.c.site_id == _site_id(session, site))
        )
    return _views(session, session.scalars(query).all())


def show(session: Session, name_or_id: str | int, *, file_limit: int = _DETAIL_FILES) -> PackageDetail:
    """A package with its files and metadata; raises what `get` raises."""
    package = get(session, name_or_id)
    file = models.RawDataFile
    of_package = file.raw_data_package_id == package.id
    count = session.scalar(sa.select(sa.func.count()).select_from(file).where(of_package)) or 0
    rows = session.execute(
        sa.select(file.path, file.size, file.checksum, file.modified_at)
        .where(of_package)
        .order_by(file.path)
        .limit(file_limit)
    )
    metadata = session.get(models.RawDataPackageMetadata, package.id)
    (view,) = _views(session, [package])
    document = dict(metadata.document) if metadata else {}
    document.pop(records.FINGERPRINT, None)
    return PackageDetail(view, tuple(FileEntry(*row) for row in rows), count, document)


def _is_storable(text: str) -> bool:
    """Whether a database could hold it at all: arguments may be any bytes."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _site_id(session: Session, site: str) -> int:
    table = models.Site
    is_called = sa.or_(table.short_name == site, table.name == site) if _is_storable(site) else sa.false()
    rows = session.execute(sa.select(table.id, table.short_name).where(is_called))
    by_name = sorted(rows, key=lambda row: row.short_name != site)
    if not by_name:
        raise UnknownNameError(
            f"there is no site '{names.shown(site)}'",
            remedy="run `ccat_data_transfer topology show` to see which there are",
        )
    return int(by_name[0].id)


def _views(session: Session, packages: Sequence[RawDataPackage]) -> list[PackageView]:
    copies: dict[int, list[CopyView]] = {}
    for some in records.chunks(package.id for package in packages):
        for package_id, view in _copies(session, some):
            copies.setdefault(package_id, []).append(view)
    return [
        PackageView(
            package.id,
            package.name,
            package.size,
            package.checksum,
            package.state,
            package.created_at,
            tuple(copies.get(package.id, ())),
        )
        for package in packages
    ]


def _copies(session: Session, package_ids: Sequence[int]) -> list[tuple[int, CopyView]]:
    copy, location, site = models.RawDataPackagePhysicalCopy, models.DataLocation.__table__, models.Site.__table__
    rows = session.execute(
        sa.select(
            copy.raw_data_package_id,
            site.c.short_name,
            location.c.name,
            copy.path,
            copy.status,
            copy.checksum,
            copy.verified_at,
            copy.verified_how,
        )
        .join(location, location.c.id == copy.data_location_id)
        .join(site, site.c.id == location.c.site_id)
        .where(copy.raw_data_package_id.in_(package_ids))
        .order_by(site.c.short_name, location.c.name)
    )
    return [(package_id, CopyView(f"{site_name}/{name}", *rest)) for package_id, site_name, name, *rest in rows]
