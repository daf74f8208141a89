"""The worker's side of operations: claim, heartbeat, record, retry, snooze, fail; each fenced by the attempt."""

import functools
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ccat_data_transfer import leases, retry, routing, sidecar
from ccat_data_transfer.checksums import DEFAULT_ALGORITHM
from ccat_data_transfer.database import utcnow
from ccat_data_transfer.exceptions import LeaseLostError, LocationUnavailableError
from ccat_data_transfer.locations import Location
from ccat_data_transfer.models import (
    DataLocation,
    DiskDataLocation,
    LongTermArchiveTransferLog,
    RawDataFile,
    RawDataPackageMetadata,
    Site,
    location_of,
    select_locations,
)
from ccat_data_transfer.operations import moves
from ccat_data_transfer.operations.moves import MAX_ID, Copy, Operation, Package, place, run
from ccat_data_transfer.states import PackageState, PhysicalCopyStatus, Status, Verb, sources
from ccat_data_transfer.storage.base import Receipt

# Files that a sidecar lists; a document is read back whole, so it must stay small.
MAX_FILES = 50_000


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
class Description:
    """What the sidecar tells of a package beyond its bytes."""

    files: list[sidecar.FileEntry]
    files_left_out: int
    metadata: dict[str, Any]
    custody: list[sidecar.CustodyEvent]


@dataclass(frozen=True, slots=True)
class NotClaimed:
    """Why an operation was not claimed: a duplicate, stale or forged message, or a paused location."""

    operation_id: Any
    why: str
    exists: bool = False


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
    parameters = {"operation_id": operation_id, "owner": str(owner), "lease_seconds": lease_seconds}
    if queues is not None:
        parameters["queues"] = list(queues)
    row = run(session, _claim_statement(queues is not None), parameters).one_or_none()
    if row is None:
        why = _why_not_claimed(session, operation_id)
        return NotClaimed(operation_id, why or "there is no such operation", exists=why is not None)
    moves.log(session, [(row.id, row.attempt)], Verb.CLAIM, Status.IN_PROGRESS)
    run(session, _NOT_WAITING, {"package_id": row.raw_data_package_id})
    return _claim_details(session, row)


@functools.cache
def _claim_statement(within_queues: bool) -> Any:
    elsewhere = (
        sa.exists()
        .where(_disk.c.data_location_id == Operation.data_location_id, _disk.c.host.not_in(leases.names_of_this_host()))
        .correlate(moves.operation)
    )
    allowed = [place.c.id == Operation.data_location_id, moves.takes_work(), moves.may_be_read(), ~elsewhere]
    if within_queues:
        queue = Site.short_name + "_" + place.c.name + f"_{routing.OPERATION_TYPE}"
        allowed += [Site.id == place.c.site_id, queue.in_(sa.bindparam("queues", expanding=True))]
    return moves.update(
        Operation.id == sa.bindparam("operation_id", type_=sa.BigInteger),
        Operation.status.in_(sources(Verb.CLAIM, Status.IN_PROGRESS)),
        Operation.not_before <= utcnow(),
        Operation.attempt < Operation.attempt_limit,
        sa.exists().where(*allowed).correlate(moves.operation),
        status=Status.IN_PROGRESS,
        attempt=Operation.attempt + 1,
        lease_owner=sa.bindparam("owner"),
        lease_until=utcnow(sa.bindparam("lease_seconds", type_=sa.Float)),
        started_at=utcnow(),
        resend_at=None,
        send_count=0,
    ).returning(Operation.attempt_limit, Operation.data_location_id)


_destination = place.alias("destination")
_disk: Any = DiskDataLocation.__table__
_about: Any = RawDataPackageMetadata.__table__
_file: Any = RawDataFile.__table__
_log: Any = LongTermArchiveTransferLog.__table__
_NOT_WAITING = (
    sa.update(moves.package)
    .where(Package.id == sa.bindparam("package_id"), Package.state == PackageState.WAITING)
    .values(state=PackageState.TRANSFERRING)
)
_PACKAGE = sa.select(Package.name, Package.size, Package.checksum).where(Package.id == sa.bindparam("package_id"))
_ABOUT = (
    sa.select(Package.created_at, _about.c.document)
    .outerjoin(_about, _about.c.raw_data_package_id == Package.id)
    .where(Package.id == sa.bindparam("package_id"))
)
_COPIES = (
    sa.select(Copy.path, Copy.data_location_id)
    .join(place, place.c.id == Copy.data_location_id)
    .where(
        Copy.raw_data_package_id == sa.bindparam("package_id"),
        Copy.status == PhysicalCopyStatus.PRESENT,
        place.c.location_type.in_(moves.READABLE),
        place.c.active,
        place.c.site_id.in_(sa.select(_destination.c.site_id).where(_destination.c.id == sa.bindparam("location_id"))),
    )
    .order_by(place.c.priority, place.c.id)
)
_LOCATIONS = select_locations().where(place.c.id.in_(sa.bindparam("location_ids", expanding=True)))
_FILES = (
    sa.select(_file.c.path, _file.c.size, _file.c.checksum, _file.c.modified_at)
    .where(_file.c.raw_data_package_id == sa.bindparam("package_id"))
    .order_by(_file.c.path)
    .limit(MAX_FILES)
)
_COUNT_FILES = (
    sa.select(sa.func.count()).select_from(_file).where(_file.c.raw_data_package_id == sa.bindparam("package_id"))
)
# What custody needs: where it began and who has it now. Everything else stays in the log of the operation.
_EVENTS = (
    sa.select(_log.c.at, _log.c.verb, _log.c.actor)
    .where(
        _log.c.long_term_archive_transfer_id == sa.bindparam("operation_id"),
        sa.or_(
            _log.c.verb == Verb.CREATE,
            sa.and_(_log.c.verb == Verb.CLAIM, _log.c.attempt == sa.bindparam("of_attempt")),
        ),
    )
    .order_by(_log.c.id)
)


def _claim_details(session: Session, row: Any) -> Claim:
    of_package = {"package_id": row.raw_data_package_id}
    package = run(session, _PACKAGE, of_package).one()
    copies = run(session, _COPIES, {**of_package, "location_id": row.data_location_id}).all()
    ids = {row.data_location_id, *(c.data_location_id for c in copies)}
    rows = {place.id: place for place in run(session, _LOCATIONS, {"location_ids": list(ids)})}
    locations = {place.id: location_of(place) for place in rows.values()}
    found = tuple(Source(locations[c.data_location_id], c.path) for c in copies)
    destination = locations[row.data_location_id]
    return Claim(
        operation_id=row.id,
        attempt=row.attempt,
        attempts_left=row.attempt_limit - row.attempt,
        package_id=row.raw_data_package_id,
        package=package.name,
        size=package.size,
        checksum=package.checksum,
        sources=found,
        destination=destination,
        destination_was_paused=rows[row.data_location_id].paused_until is not None,
    )


def describe(session: Session, claim: Claim) -> Description:
    """The files, the metadata and the custody of a claimed operation's package; of the files at most `MAX_FILES`."""
    of_package = {"package_id": claim.package_id}
    files = [
        sidecar.FileEntry(file.path, file.size, file.checksum, file.modified_at)
        for file in run(session, _FILES, of_package)
    ]
    count = len(files) if len(files) < MAX_FILES else run(session, _COUNT_FILES, of_package).scalar_one()
    package = run(session, _ABOUT, of_package).one()
    events = run(session, _EVENTS, {"operation_id": claim.operation_id, "of_attempt": claim.attempt})
    origin = str(claim.sources[0].location) if claim.sources else ""
    return Description(
        files=files,
        files_left_out=count - len(files),
        metadata=package.document or {},
        custody=[
            sidecar.CustodyEvent(package.created_at, "register", "", origin),
            *(sidecar.CustodyEvent(e.at, e.verb, e.actor, str(claim.destination)) for e in events),
        ],
    )


def _why_not_claimed(session: Session, operation_id: int) -> str | None:
    """In words; None when there is no such operation."""
    row = run(
        session,
        sa.select(
            Operation.status,
            Operation.attempt,
            Operation.attempt_limit,
            place.c.active,
            place.c.pause_reason,
            sa.and_(place.c.paused_until.is_not(None), place.c.paused_until > utcnow()).label("paused"),
        )
        .join(place, place.c.id == Operation.data_location_id)
        .where(Operation.id == operation_id),
    ).one_or_none()
    if row is None:
        return None
    if row.status not in sources(Verb.CLAIM, Status.IN_PROGRESS):
        return f"it is {row.status}"
    if not row.active:
        return "its destination is not active"
    if row.paused:
        return f"its destination is paused: {row.pause_reason}"
    if row.attempt >= row.attempt_limit:
        return "it has no attempt left"
    return "it is not due yet, its buffer is off, or it is not for this worker"


def heartbeat(session: Session, operation_id: int, attempt: int, lease_seconds: float) -> bool:
    """Extend the lease of a running attempt; False means that it is not ours any more and must stop at once."""
    return bool(
        run(
            session, moves.update(*moves.HELD, lease_until=utcnow(lease_seconds)), moves.held(operation_id, attempt)
        ).all()
    )


def record(session: Session, claim: Claim, receipt: Receipt) -> None:
    """Record a durable, verified copy: completed, physical copy and log in one transaction.

    Raises `LeaseLostError` when the attempt is not the running one any more; nothing is written then.
    """
    moved = run(
        session, _COMPLETE, {**moves.held(claim.operation_id, claim.attempt), "found_evidence": receipt.evidence}
    ).one_or_none()
    if moved is None:
        raise LeaseLostError(f"attempt {claim.attempt} of operation {claim.operation_id} no longer holds its lease")
    run(
        session,
        _store_copy(session.get_bind().dialect.name),
        {
            "raw_data_package_id": claim.package_id,
            "data_location_id": claim.destination.id,
            "path": receipt.key,
            "checksum": str(receipt.checksums[DEFAULT_ALGORITHM]),
            "verified_how": receipt.evidence,
        },
    )
    note = f"{'adopted' if receipt.adopted else 'copied'} {receipt.size} bytes, evidence {receipt.evidence}"
    moves.log(session, [(moved.id, moved.attempt)], Verb.RECORD, Status.COMPLETED, message=note)
    moves.refresh_packages(session, [claim.package_id])
    if claim.destination_was_paused:
        moves.resume(session, claim.destination.id)


_COMPLETE = moves.update(
    *moves.HELD,
    status=Status.COMPLETED,
    completed_at=utcnow(),
    evidence=sa.bindparam("found_evidence", type_=Operation.evidence.type),
    reason=None,
    error=None,
    lease_owner=None,
    lease_until=None,
)


@functools.cache
def _store_copy(dialect: str) -> Any:
    insert = moves.insert(dialect, moves.copy).values(
        considered=True, status=PhysicalCopyStatus.PRESENT, verified_at=utcnow()
    )
    known = {"status", "path", "checksum", "verified_at", "verified_how"}
    return insert.on_conflict_do_update(
        index_elements=["raw_data_package_id", "data_location_id"],
        set_={name: insert.excluded[name] for name in known},
    )


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
        sa.select(DataLocation).where(
            DataLocation.id.in_(sa.select(Operation.data_location_id).where(Operation.id == operation_id))
        )
    ).one()
    if str(location.value()) != error.location:
        return
    run(
        session,
        sa.update(place)
        .where(place.c.id == location.id)
        .values(
            paused_until=utcnow(seconds),
            pause_reason=error.condition,
            pause_message=moves.storable(str(error)),
        ),
    )
    # Messages that arrive meanwhile are dropped, so what is scheduled is sent again when the pause is over.
    run(
        session,
        moves.update(
            Operation.data_location_id == location.id,
            moves.in_status(Status.SCHEDULED),
            resend_at=utcnow(seconds),
        ),
    )


def is_recorded(session: Session, operation_id: int, attempt: int) -> bool | None:
    """After a commit whose answer was lost: True when this attempt completed, None when it still runs, else False."""
    row = run(session, sa.select(Operation.status, Operation.attempt).where(Operation.id == operation_id)).one()
    if row.attempt != attempt:
        return False
    return {Status.COMPLETED: True, Status.IN_PROGRESS: None}.get(row.status, False)
