"""The worker's side of operations: claim, heartbeat, record, retry, snooze, fail; each fenced by the attempt."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ccat_data_transfer import leases, retry, routing, sidecar
from ccat_data_transfer.checksums import DEFAULT_ALGORITHM
from ccat_data_transfer.database import utcnow
from ccat_data_transfer.exceptions import LeaseLostError, LocationUnavailableError
from ccat_data_transfer.locations import Location, LocationType
from ccat_data_transfer.models import DataLocation, RawDataFile, RawDataPackage, RawDataPackageMetadata, Site
from ccat_data_transfer.operations import moves
from ccat_data_transfer.operations.moves import MAX_ERROR_LENGTH, MAX_ID, Copy, Log, Operation, place
from ccat_data_transfer.states import PackageState, PhysicalCopyStatus, Status, Verb, sources
from ccat_data_transfer.storage.base import Receipt


@dataclass(frozen=True, slots=True)
class Source:
    """A copy that may be read: `path` below the root of `location`."""

    location: Location
    path: str


@dataclass(frozen=True, slots=True)
class Claim:
    """One attempt of an operation, with all that the worker needs to know; nothing else of it is in the message."""

    operation_id: int
    attempt: int
    attempts_left: int
    package_id: int
    package: str
    size: int
    checksum: str | None
    sources: tuple[Source, ...]
    destination: Location
    destination_was_paused: bool

    @property
    def token(self) -> str:
        """Name of the attempt, on everything that it writes outside of the database."""
        return f"{self.operation_id}.{self.attempt}"


@dataclass(frozen=True, slots=True)
class NotClaimed:
    """Why an operation was not claimed: a duplicate, stale or forged message, or a paused location."""

    operation_id: object
    why: str


@dataclass(frozen=True, slots=True)
class Description:
    """What the sidecar tells of a package beyond its bytes."""

    files: list[sidecar.FileEntry]
    metadata: dict[str, Any]
    custody: list[sidecar.CustodyEvent]


def claim(
    session: Session,
    operation_id: object,
    owner: leases.Owner,
    lease_seconds: float,
    *,
    queues: Collection[str] | None = None,
) -> Claim | NotClaimed:
    """Claim one operation: attempt + 1 and a lease, in one compare-and-set.

    Never raises for a strange `operation_id`: it may come from a forged message. With `queues` given, only an
    operation that belongs to one of them is claimed: a message cannot make a worker serve another's destination.
    """
    if not isinstance(operation_id, int) or isinstance(operation_id, bool) or not 0 < operation_id <= MAX_ID:
        return NotClaimed(operation_id, "this is no operation id")
    allowed = sa.exists().where(place.c.id == Operation.data_location_id, moves.takes_work(), *_belongs_to(queues))
    row = session.execute(
        moves.update(
            Operation.id == operation_id,
            Operation.status.in_(sources(Verb.CLAIM, Status.IN_PROGRESS)),
            Operation.not_before <= utcnow(),
            Operation.attempt < Operation.attempt_limit,
            allowed,
            status=Status.IN_PROGRESS,
            attempt=Operation.attempt + 1,
            lease_owner=str(owner),
            lease_until=utcnow(lease_seconds),
            started_at=utcnow(),
            resend_at=None,
        ).returning(Operation.attempt_limit, Operation.data_location_id)
    ).one_or_none()
    if row is None:
        return NotClaimed(operation_id, _why_not_claimed(session, operation_id))
    moves.log(session, [(row.id, row.attempt)], Verb.CLAIM, Status.IN_PROGRESS)
    session.execute(
        sa.update(RawDataPackage)
        .where(RawDataPackage.id == row.raw_data_package_id, RawDataPackage.state == PackageState.WAITING)
        .values(state=PackageState.TRANSFERRING)
        .execution_options(synchronize_session=False)
    )
    return _claim_details(session, row)


def _belongs_to(queues: Collection[str] | None) -> list[sa.ColumnElement[bool]]:
    if queues is None:
        return []
    queue = Site.short_name + "_" + place.c.name + f"_{routing.OPERATION_TYPE}"
    return [Site.id == place.c.site_id, queue.in_(queues)]


def _claim_details(session: Session, row: Any) -> Claim:
    package = session.execute(
        sa.select(RawDataPackage.name, RawDataPackage.size, RawDataPackage.checksum).where(
            RawDataPackage.id == row.raw_data_package_id
        )
    ).one()
    destination = session.get_one(DataLocation, row.data_location_id)
    copies = session.execute(
        sa.select(Copy.path, DataLocation)
        .join(DataLocation, DataLocation.id == Copy.data_location_id)
        .where(
            Copy.raw_data_package_id == row.raw_data_package_id,
            Copy.status == PhysicalCopyStatus.PRESENT,
            DataLocation.location_type == LocationType.BUFFER,
            DataLocation.active,
            DataLocation.site_id == destination.site_id,
        )
        .order_by(DataLocation.priority, DataLocation.id)
    )
    return Claim(
        operation_id=row.id,
        attempt=row.attempt,
        attempts_left=row.attempt_limit - row.attempt,
        package_id=row.raw_data_package_id,
        package=package.name,
        size=package.size,
        checksum=package.checksum,
        sources=tuple(Source(location.value(), path) for path, location in copies),
        destination=destination.value(),
        destination_was_paused=destination.paused_until is not None,
    )


def _why_not_claimed(session: Session, operation_id: int) -> str:
    row = session.execute(
        sa.select(
            Operation.status,
            Operation.attempt,
            Operation.attempt_limit,
            place.c.active,
            place.c.pause_reason,
            sa.and_(place.c.paused_until.is_not(None), place.c.paused_until > utcnow()).label("paused"),
        )
        .join(place, place.c.id == Operation.data_location_id)
        .where(Operation.id == operation_id)
    ).one_or_none()
    if row is None:
        return "there is no such operation"
    if row.status not in sources(Verb.CLAIM, Status.IN_PROGRESS):
        return f"it is {row.status}"
    if not row.active:
        return "its destination is not active"
    if row.paused:
        return f"its destination is paused: {row.pause_reason}"
    if row.attempt >= row.attempt_limit:
        return "it has no attempt left"
    return "it is not due yet, or not for this worker"


def heartbeat(session: Session, operation_id: int, attempt: int, lease_seconds: float) -> bool:
    """Extend the lease of a running attempt; False means that it is not ours any more and must stop at once."""
    return bool(
        session.execute(moves.update(*moves.held(operation_id, attempt), lease_until=utcnow(lease_seconds))).all()
    )


def describe(session: Session, claim: Claim) -> Description:
    """The file list, the metadata and the history so far of a claimed operation's package."""
    files = session.execute(
        sa.select(RawDataFile.path, RawDataFile.size, RawDataFile.checksum, RawDataFile.modified_at)
        .where(RawDataFile.raw_data_package_id == claim.package_id)
        .order_by(RawDataFile.path)
    )
    package = session.execute(
        sa.select(RawDataPackage.created_at, RawDataPackageMetadata.document)
        .outerjoin(RawDataPackageMetadata, RawDataPackageMetadata.raw_data_package_id == RawDataPackage.id)
        .where(RawDataPackage.id == claim.package_id)
    ).one()
    events = session.execute(
        sa.select(Log.at, Log.verb, Log.actor)
        .where(Log.long_term_archive_transfer_id == claim.operation_id)
        .order_by(Log.id)
    )
    origin = str(claim.sources[0].location) if claim.sources else ""
    registered = sidecar.CustodyEvent(package.created_at, "register", "", origin)
    return Description(
        files=[sidecar.FileEntry(*row) for row in files],
        metadata=package.document or {},
        custody=[
            registered,
            *(sidecar.CustodyEvent(e.at, e.verb, e.actor, str(claim.destination)) for e in events),
        ],
    )


def record(session: Session, claim: Claim, receipt: Receipt) -> None:
    """Record a durable, verified copy: completed, physical copy and log in one transaction.

    Raises `LeaseLostError` when the attempt is not the running one any more; nothing is written then.
    """
    moved = session.execute(
        moves.update(
            *moves.held(claim.operation_id, claim.attempt),
            status=Status.COMPLETED,
            completed_at=utcnow(),
            evidence=receipt.evidence,
            reason=None,
            error=None,
            lease_owner=None,
            lease_until=None,
        )
    ).one_or_none()
    if moved is None:
        raise LeaseLostError(f"attempt {claim.attempt} of operation {claim.operation_id} no longer holds its lease")
    copy = {
        "status": PhysicalCopyStatus.PRESENT,
        "path": receipt.key,
        "checksum": str(receipt.checksums[DEFAULT_ALGORITHM]),
        "verified_at": utcnow(),
        "verified_how": receipt.evidence,
    }
    session.execute(
        moves.insert(session, Copy)
        .values(
            raw_data_package_id=claim.package_id,
            data_location_id=claim.destination.id,
            considered=True,
            **copy,
        )
        .on_conflict_do_update(index_elements=["raw_data_package_id", "data_location_id"], set_=copy)
    )
    note = f"{'adopted' if receipt.adopted else 'copied'} {receipt.size} bytes, evidence {receipt.evidence}"
    moves.log(session, [(moved.id, moved.attempt)], Verb.RECORD, Status.COMPLETED, message=note)
    moves.refresh_packages(session, [claim.package_id])
    if claim.destination_was_paused:
        moves.resume(session, claim.destination.id)


def settle(session: Session, operation_id: int, attempt: int, decision: retry.Decision, error: BaseException) -> bool:
    """Write down what follows a failed attempt; False when it was not the running one any more."""
    message = str(error) or type(error).__name__
    if decision.outcome is retry.Outcome.FAIL:
        return moves.leave(session, operation_id, attempt, Verb.FAIL, Status.FAILED, decision.reason, message)
    if decision.outcome is retry.Outcome.RETRY:
        return moves.leave(
            session,
            operation_id,
            attempt,
            Verb.RETRY,
            Status.PENDING,
            decision.reason,
            message,
            delay=decision.delay,
        )
    moved = moves.leave(
        session,
        operation_id,
        attempt,
        Verb.SNOOZE,
        Status.PENDING,
        decision.reason,
        message,
        delay=decision.delay,
    )
    if moved and isinstance(error, LocationUnavailableError):
        _pause(session, operation_id, error, decision.delay)
    return moved


def _pause(session: Session, operation_id: int, error: LocationUnavailableError, seconds: float) -> None:
    """Pause the destination of an operation if it is the place that is unwell (a source pauses nothing)."""
    location = session.scalars(
        sa.select(DataLocation)
        .join(Operation, Operation.data_location_id == DataLocation.id)
        .where(Operation.id == operation_id)
    ).one()
    if str(location.value()) != error.location:
        return
    session.execute(
        sa.update(DataLocation)
        .where(DataLocation.id == location.id)
        .values(
            paused_until=utcnow(seconds),
            pause_reason=error.condition,
            pause_message=str(error)[:MAX_ERROR_LENGTH],
        )
        .execution_options(synchronize_session=False)
    )
    # Messages that arrive meanwhile are dropped, so what is scheduled is sent again when the pause is over.
    session.execute(
        moves.update(
            Operation.data_location_id == location.id,
            Operation.status == Status.SCHEDULED,
            resend_at=utcnow(seconds),
        )
    )


def is_recorded(session: Session, operation_id: int, attempt: int) -> bool | None:
    """After a commit whose answer was lost: True when this attempt completed, None when it still runs, else False."""
    row = session.execute(sa.select(Operation.status, Operation.attempt).where(Operation.id == operation_id)).one()
    if row.attempt != attempt:
        return False
    return {Status.COMPLETED: True, Status.IN_PROGRESS: None}.get(row.status, False)
