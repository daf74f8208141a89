"""Data locations and queues as they are now."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ccat_data_transfer import routing
from ccat_data_transfer.database import utcnow
from ccat_data_transfer.locations import Location, LocationType
from ccat_data_transfer.models import (
    DataLocation,
    DiskDataLocation,
    RawDataPackage,
    RawDataPackagePhysicalCopy,
    Site,
)
from ccat_data_transfer.reports.transfers import Operation, is_status
from ccat_data_transfer.states import PauseReason, PhysicalCopyStatus, Status

place = DataLocation.__table__


@dataclass(frozen=True, slots=True)
class Place:
    """A data location as it is declared, and its pause if there is one."""

    value: Location
    priority: int
    active: bool
    paused: bool
    pause_reason: PauseReason | None
    pause_message: str | None
    paused_until: datetime | None


@dataclass(frozen=True, slots=True)
class Queue:
    """What one queue holds. `delayed` is pending and not due yet; the age is since it was last scheduled."""

    queue: str
    site: str
    location: str
    due: int
    delayed: int
    scheduled: int
    in_progress: int
    oldest_scheduled_seconds: float | None


def places(session: Session, *, site: str | None = None) -> list[Place]:
    """All data locations, of one site (by short name) or of all, by site and name."""
    now = now_of(session)
    query = sa.select(DataLocation).join(DataLocation.site).order_by(Site.short_name, DataLocation.name)
    if site is not None:
        query = query.where(Site.short_name == site)
    found = []
    for row in session.scalars(query):
        paused = row.paused_until is not None and row.paused_until > now
        found.append(
            Place(
                value=row.value(),
                priority=row.priority,
                active=row.active,
                paused=paused,
                pause_reason=row.pause_reason if paused else None,
                pause_message=row.pause_message if paused else None,
                paused_until=row.paused_until if paused else None,
            )
        )
    return found


def archive_at(session: Session, path: str) -> Location | None:
    """The archive that has this directory of this machine, or None."""
    row = session.scalars(
        sa.select(DiskDataLocation)
        .where(
            DiskDataLocation.location_type == LocationType.LONG_TERM_ARCHIVE,
            DiskDataLocation.path == path,
            DiskDataLocation.host.is_(None),
        )
        .order_by(DiskDataLocation.id)
        .limit(1)
    ).one_or_none()
    return None if row is None else row.value()


def present_copies(session: Session, package: str) -> list[tuple[Location, str]]:
    """Where the package of that name is, as a data location and a path there; in archives first."""
    copy = RawDataPackagePhysicalCopy
    rows = session.execute(
        sa.select(DataLocation, copy.path)
        .join(copy, copy.data_location_id == DataLocation.id)
        .join(RawDataPackage, RawDataPackage.id == copy.raw_data_package_id)
        .where(RawDataPackage.name == package, copy.status == PhysicalCopyStatus.PRESENT)
        .order_by(place.c.location_type != LocationType.LONG_TERM_ARCHIVE, place.c.id)
    )
    return [(row.value(), path) for row, path in rows]


def queues(session: Session, site: str | None = None) -> list[Queue]:
    """What is under way in each archive's queue, of one site (by short name) or of all."""
    known = archives(session, site)
    now = now_of(session)
    live = {Status.PENDING: "pending", Status.SCHEDULED: "scheduled", Status.IN_PROGRESS: "in_progress"}
    rows = {
        row.data_location_id: row
        for row in session.execute(
            sa.select(
                Operation.data_location_id,
                *(_count(is_status(status), label) for status, label in live.items()),
                _count(sa.and_(is_status(Status.PENDING), Operation.not_before <= now), "due"),
                sa.func.min(sa.case((is_status(Status.SCHEDULED), Operation.scheduled_at))).label("oldest"),
            )
            .where(
                sa.or_(*(is_status(status) for status in live)),
                Operation.data_location_id.in_([a.id for a in known]),
            )
            .group_by(Operation.data_location_id)
        )
    }
    found = []
    for archive in known:
        row = rows.get(archive.id)
        found.append(
            Queue(
                queue=routing.queue_name(archive.site, archive.name),
                site=archive.site,
                location=archive.name,
                due=row.due if row else 0,
                delayed=row.pending - row.due if row else 0,
                scheduled=row.scheduled if row else 0,
                in_progress=row.in_progress if row else 0,
                oldest_scheduled_seconds=age(now, row.oldest if row else None),
            )
        )
    return found


def _count(condition: sa.ColumnElement[bool], label: str) -> sa.Label[Any]:
    return sa.func.sum(sa.case((condition, 1), else_=0)).label(label)


def archives(session: Session, site: str | None) -> Sequence[sa.Row[Any]]:
    """The long-term archives, of one site (by short name) or of all, by site and name."""
    return session.execute(
        sa.select(
            place.c.id,
            Site.short_name.label("site"),
            place.c.name,
            place.c.active,
            place.c.paused_until,
            place.c.pause_reason,
            place.c.pause_message,
        )
        .join(Site, Site.id == place.c.site_id)
        .where(
            place.c.location_type == LocationType.LONG_TERM_ARCHIVE,
            *([Site.short_name == site] if site is not None else []),
        )
        .order_by(Site.short_name, place.c.name)
    ).all()


def now_of(session: Session) -> datetime:
    """The database's clock."""
    return session.execute(sa.select(utcnow())).scalar_one()


def age(now: datetime, then: datetime | None) -> float | None:
    """Seconds since `then`."""
    return None if then is None else round(max(0.0, (now - then).total_seconds()), 3)
