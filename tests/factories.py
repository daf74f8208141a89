"""Rows for tests: each function adds what it makes to the session and flushes, so that it has its id."""

import itertools
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ccat_data_transfer import models
from ccat_data_transfer.locations import LocationType
from ccat_data_transfer.states import Evidence, FailureReason, PackageState, PhysicalCopyStatus, Status

_number = itertools.count(1)


def make_site(session: Session, short_name: str = "cologne", name: str | None = None) -> models.Site:
    """A site, or the one that has the short name already."""
    found = session.scalar(sa.select(models.Site).where(models.Site.short_name == short_name))
    site = found or models.Site(short_name=short_name, name=name or short_name.title())
    session.add(site)
    session.flush()
    return site


def make_location(
    session: Session,
    path: Path | str,
    *,
    site: models.Site | None = None,
    name: str = "buffer",
    location_type: LocationType = LocationType.BUFFER,
    priority: int = 0,
    active: bool = True,
    volume_id: str | None = None,
    required_evidence: Evidence = Evidence.REOPEN_ONLY,
) -> models.DiskDataLocation:
    """A data location on disk; its directory is not made. By default any evidence is good enough."""
    location = models.DiskDataLocation(
        site=site or make_site(session),
        name=name,
        location_type=location_type,
        priority=priority,
        active=active,
        volume_id=volume_id,
        required_evidence=required_evidence,
        path=str(path),
    )
    session.add(location)
    session.flush()
    return location


def make_package(
    session: Session,
    name: str | None = None,
    *,
    at: models.DataLocation | None = None,
    size: int = 10_240,
    checksum: str | None = "sha256:" + "0" * 64,
    state: PackageState = PackageState.WAITING,
    status: PhysicalCopyStatus = PhysicalCopyStatus.PRESENT,
) -> models.RawDataPackage:
    """A package, with a physical copy at the location `at` when one is given; there are no bytes."""
    package = models.RawDataPackage(
        name=name or f"obs-{next(_number):06}.tar", size=size, checksum=checksum, state=state
    )
    session.add(package)
    session.flush()
    if at is not None:
        copy = models.RawDataPackagePhysicalCopy(
            raw_data_package_id=package.id,
            data_location_id=at.id,
            path=package.name,
            checksum=checksum,
            status=status,
        )
        session.add(copy)
        session.flush()
    return package


def make_operation(
    session: Session,
    package: models.RawDataPackage,
    to: models.DataLocation,
    *,
    status: Status = Status.PENDING,
    attempt: int = 0,
    reason: FailureReason | None = None,
    now: datetime | None = None,
) -> models.LongTermArchiveTransfer:
    """An operation in `status`, with whatever the tables demand of that status, as of `now`."""
    moment = now or datetime.now().astimezone()
    operation = models.LongTermArchiveTransfer(
        raw_data_package_id=package.id, data_location_id=to.id, status=status, attempt=attempt, reason=reason
    )
    if status is Status.SCHEDULED:
        operation.scheduled_at = operation.resend_at = moment
    elif status is Status.IN_PROGRESS:
        operation.lease_owner, operation.lease_until = "a test", moment
        operation.started_at, operation.attempt = moment, attempt or 1
    elif status is Status.COMPLETED:
        operation.completed_at, operation.evidence = moment, Evidence.EVICTED_PROVED
        operation.attempt = attempt or 1
    elif status is Status.FAILED:
        operation.reason = reason or FailureReason.STORAGE_ERROR
    session.add(operation)
    session.flush()
    return operation
