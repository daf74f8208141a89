"""What `status` shows: the operations of every archive in numbers."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ccat_data_transfer.models import RawDataPackage, RawDataPackagePhysicalCopy, Site
from ccat_data_transfer.reports.places import age, archives, now_of, place
from ccat_data_transfer.reports.transfers import Operation, is_status
from ccat_data_transfer.states import FailureReason, PackageState, PauseReason, Status

_HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Throughput:
    """What was completed lately."""

    packages_last_hour: int = 0
    bytes_last_hour: int = 0
    packages_last_day: int = 0
    bytes_last_day: int = 0


@dataclass(frozen=True, slots=True)
class LocationStatus:
    """The operations of one archive, by status and reason of failure."""

    site: str
    location: str
    active: bool
    counts: dict[Status, int]
    bytes: dict[Status, int]
    oldest_pending_seconds: float | None
    oldest_in_progress_seconds: float | None
    paused: bool
    pause_reason: PauseReason | None
    pause_message: str | None
    paused_until: datetime | None
    failures: dict[FailureReason, int]
    throughput: Throughput


@dataclass(frozen=True, slots=True)
class Overview:
    """Every archive, and how many packages are in which state; of one site, those of which it has a copy."""

    locations: tuple[LocationStatus, ...]
    packages: dict[PackageState, int]


def status(session: Session, *, site: str | None = None) -> Overview:
    """The state of every archive, of one site (by short name) or of all.

    The price: the sums of bytes read each operation and its package once. Counting alone would need an index only,
    but an operator asks for bytes; what is completed is the bulk of it and grows with the archive.
    """
    known = archives(session, site)
    ids = [archive.id for archive in known]
    now = now_of(session)
    totals = _totals(session, ids)
    failures = _failures(session, ids)
    throughput = _throughput(session, ids, now)
    return Overview(
        tuple(
            _location_status(
                archive, now, totals, failures.get(archive.id, {}), throughput.get(archive.id, Throughput())
            )
            for archive in known
        ),
        _packages(session, site),
    )


def _packages(session: Session, site: str | None) -> dict[PackageState, int]:
    """How many packages are in which state: of all, or of those that a site has a copy of."""
    counted = sa.select(RawDataPackage.state, sa.func.count().label("packages")).group_by(RawDataPackage.state)
    if site is not None:
        copy = RawDataPackagePhysicalCopy
        counted = counted.where(
            sa.exists()
            .where(copy.raw_data_package_id == RawDataPackage.id, copy.data_location_id == place.c.id)
            .where(place.c.site_id == Site.id, Site.short_name == site)
        )
    states = dict.fromkeys(PackageState, 0)
    states.update((row.state, row.packages) for row in session.execute(counted))
    return states


def _location_status(
    archive: sa.Row[Any],
    now: datetime,
    totals: dict[tuple[int, Status], Any],
    failures: dict[FailureReason, int],
    throughput: Throughput,
) -> LocationStatus:
    of = {status: totals.get((archive.id, status)) for status in Status}
    pending, running = of[Status.PENDING], of[Status.IN_PROGRESS]
    paused = archive.paused_until is not None and archive.paused_until > now
    return LocationStatus(
        site=archive.site,
        location=archive.name,
        active=archive.active,
        counts={status: row.packages if row else 0 for status, row in of.items()},
        bytes={status: int(row.bytes) if row else 0 for status, row in of.items()},
        oldest_pending_seconds=age(now, pending.created_at if pending else None),
        oldest_in_progress_seconds=age(now, running.started_at if running else None),
        paused=paused,
        pause_reason=archive.pause_reason if paused else None,
        pause_message=archive.pause_message if paused else None,
        paused_until=archive.paused_until if paused else None,
        failures=failures,
        throughput=throughput,
    )


def _totals(session: Session, location_ids: list[int]) -> dict[tuple[int, Status], Any]:
    rows = session.execute(
        sa.select(
            Operation.data_location_id,
            Operation.status,
            sa.func.count().label("packages"),
            sa.func.sum(RawDataPackage.size).label("bytes"),
            sa.func.min(Operation.created_at).label("created_at"),
            sa.func.min(Operation.started_at).label("started_at"),
        )
        .join(RawDataPackage, RawDataPackage.id == Operation.raw_data_package_id)
        .where(Operation.data_location_id.in_(location_ids))
        .group_by(Operation.data_location_id, Operation.status)
    )
    return {(row.data_location_id, row.status): row for row in rows}


def _failures(session: Session, location_ids: list[int]) -> dict[int, dict[FailureReason, int]]:
    found: dict[int, dict[FailureReason, int]] = {}
    for location_id, reason, count in session.execute(
        sa.select(Operation.data_location_id, Operation.reason, sa.func.count())
        .where(is_status(Status.FAILED), Operation.data_location_id.in_(location_ids))
        .group_by(Operation.data_location_id, Operation.reason)
        .order_by(Operation.data_location_id, Operation.reason)
    ):
        if reason is not None:  # the database holds every failed operation to have one
            found.setdefault(location_id, {})[reason] = count
    return found


def _throughput(session: Session, location_ids: list[int], now: datetime) -> dict[int, Throughput]:
    in_hour = Operation.completed_at >= now - _HOUR
    rows = session.execute(
        sa.select(
            Operation.data_location_id,
            sa.func.coalesce(sa.func.sum(sa.case((in_hour, 1), else_=0)), 0),
            sa.func.coalesce(sa.func.sum(sa.case((in_hour, RawDataPackage.size), else_=0)), 0),
            sa.func.count(),
            sa.func.coalesce(sa.func.sum(RawDataPackage.size), 0),
        )
        .join(RawDataPackage, RawDataPackage.id == Operation.raw_data_package_id)
        .where(
            is_status(Status.COMPLETED),
            Operation.data_location_id.in_(location_ids),
            Operation.completed_at >= now - _DAY,
        )
        .group_by(Operation.data_location_id)
    )
    return {location_id: Throughput(*(int(value) for value in values)) for location_id, *values in rows}
