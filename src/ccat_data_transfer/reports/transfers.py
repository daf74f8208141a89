"""Lists of operations, and the history of one."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ccat_data_transfer import routing
from ccat_data_transfer.exceptions import UnknownNameError
from ccat_data_transfer.models import (
    DataLocation,
    LongTermArchiveTransfer,
    LongTermArchiveTransferLog,
    RawDataPackage,
    Site,
)
from ccat_data_transfer.states import Evidence, FailureReason, Status, Verb

Operation = LongTermArchiveTransfer
Log = LongTermArchiveTransferLog
place = DataLocation.__table__

DEFAULT_LIMIT = 100
MAX_HISTORY = 10_000
BATCH = 1000


@dataclass(frozen=True, slots=True)
class Transfer:
    """One operation as people see it. `not_before` is when it is due."""

    id: int
    package: str
    site: str
    location: str
    status: Status
    reason: FailureReason | None
    error: str | None
    attempt: int
    attempt_limit: int
    retry_count: int
    queue: str
    bytes: int
    checksum: str | None
    evidence: Evidence | None
    created_at: datetime
    not_before: datetime
    started_at: datetime | None
    completed_at: datetime | None


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One change of an operation."""

    at: datetime
    verb: Verb
    status: Status
    attempt: int
    actor: str
    reason: FailureReason | None
    message: str | None


@dataclass(frozen=True, slots=True)
class History:
    """An operation and its changes, oldest first; of a very long life the newest `MAX_HISTORY`."""

    transfer: Transfer
    log: tuple[LogEntry, ...]


def transfers(
    session: Session,
    *,
    site: str | None = None,
    location: str | None = None,
    status: Status | None = None,
    reason: FailureReason | None = None,
    package: str | None = None,
    limit: int = DEFAULT_LIMIT,
    after: int | None = None,
) -> list[Transfer]:
    """Operations, newest first; `after` is the last id of the page before.

    `site` is a short name and `location` the name of a location; names that nothing has select nothing.
    """
    conditions: list[sa.ColumnElement[bool]] = []
    if site is not None:
        conditions.append(Site.short_name == site)
    if location is not None:
        conditions.append(place.c.name == location)
    if status is not None:
        conditions.append(is_status(status))
    if reason is not None:
        conditions.append(Operation.reason == reason)
    if package is not None:
        conditions.append(RawDataPackage.name == package)
    if after is not None:
        conditions.append(Operation.id < after)
    query = _transfers().where(*conditions).order_by(Operation.id.desc()).limit(limit)
    return [_transfer(row) for row in session.execute(query)]


def of_packages(session: Session, package_ids: Collection[int], location_ids: Collection[int]) -> list[Transfer]:
    """The operations of these packages to these locations."""
    found: list[Transfer] = []
    for chunk in chunks(package_ids):
        query = _transfers().where(
            Operation.raw_data_package_id.in_(chunk), Operation.data_location_id.in_(location_ids)
        )
        found += [_transfer(row) for row in session.execute(query)]
    return found


def by_id(session: Session, operation_ids: Collection[int]) -> dict[int, Transfer]:
    """Those of these operations that exist."""
    found: dict[int, Transfer] = {}
    for chunk in chunks(operation_ids):
        for row in session.execute(_transfers().where(Operation.id.in_(chunk))):
            found[row.id] = _transfer(row)
    return found


def chunks(ids: Collection[int], size: int = BATCH) -> list[list[int]]:
    """Ids in lists that no database finds too long for one statement."""
    every = sorted(ids)
    return [every[start : start + size] for start in range(0, len(every), size)]


def history(session: Session, operation_id: int) -> History:
    """An operation and all its changes; raises `UnknownNameError`."""
    row = session.execute(_transfers().where(Operation.id == operation_id)).one_or_none()
    if row is None:
        raise UnknownNameError(
            f"there is no operation {operation_id}", remedy="`ccat_data_transfer transfer list` shows them all"
        )
    entries = session.execute(
        sa.select(Log.at, Log.verb, Log.status, Log.attempt, Log.actor, Log.reason, Log.message)
        .where(Log.long_term_archive_transfer_id == operation_id)
        .order_by(Log.id.desc())
        .limit(MAX_HISTORY)
    ).all()
    return History(_transfer(row), tuple(LogEntry(*entry) for entry in reversed(entries)))


def _transfers() -> sa.Select[Any]:
    return (
        sa.select(
            Operation.id,
            RawDataPackage.name.label("package"),
            Site.short_name.label("site"),
            place.c.name.label("location"),
            Operation.status,
            Operation.reason,
            Operation.error,
            Operation.attempt,
            Operation.attempt_limit,
            Operation.retry_count,
            RawDataPackage.size.label("bytes"),
            RawDataPackage.checksum,
            Operation.evidence,
            Operation.created_at,
            Operation.not_before,
            Operation.started_at,
            Operation.completed_at,
        )
        .join(RawDataPackage, RawDataPackage.id == Operation.raw_data_package_id)
        .join(place, place.c.id == Operation.data_location_id)
        .join(Site, Site.id == place.c.site_id)
    )


def _transfer(row: sa.Row[Any]) -> Transfer:
    return Transfer(queue=routing.queue_name(row.site, row.location), **row._asdict())


def is_status(status: Status) -> sa.ColumnElement[bool]:
    """True for operations with this status."""
    # Written into the statement, so that every planner sees which of the partial indexes by status serves it.
    return Operation.status == sa.literal(status, Operation.status.type, literal_execute=True)
