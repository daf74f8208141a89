"""The manager's side of operations: create, schedule, rescue, and what is due here without a broker."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ccat_data_transfer import leases, retry, settings
from ccat_data_transfer.database import utcnow
from ccat_data_transfer.locations import LocationType
from ccat_data_transfer.models import DataLocation, DiskDataLocation, Site
from ccat_data_transfer.operations import moves
from ccat_data_transfer.operations.moves import Copy, Operation, Package, place, run
from ccat_data_transfer.states import FailureReason, PhysicalCopyStatus, Status, Verb

BATCH = 1000
LONGEST_RESEND_DOUBLINGS = 6
UNSENT_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Dispatch:
    """An operation to be sent, and the queue of its destination."""

    operation_id: int
    queue: str


def create(session: Session, *, site_id: int | None = None, limit: int = BATCH) -> tuple[int, int]:
    """Create the operations that are missing; returns (copies considered, operations created).

    Considers at most `limit` copies: call again, in a new transaction, until none was considered. Safe with any
    number of managers: what two of them want to create, the unique key makes once.
    """
    _notice_changed_topology(session, site_id)
    _hold_topology(session, site_id)
    ready = run(
        session,
        sa.select(Copy.id, Copy.raw_data_package_id)
        .join(place, place.c.id == Copy.data_location_id)
        .join(moves.package, Package.id == Copy.raw_data_package_id)
        .where(
            # Spelled as the partial index spells it, without parameters.
            Copy.considered == sa.false(),
            Copy.status == sa.literal(PhysicalCopyStatus.PRESENT, Copy.status.type, literal_execute=True),
            Package.checksum.is_not(None),
            *moves.active(LocationType.BUFFER, site_id),
        )
        .limit(limit)
        .with_for_update(of=moves.copy, skip_locked=True, key_share=True),
    ).all()
    if not ready:
        return 0, 0
    copies = [row.id for row in ready]
    archive = place.alias("archive")
    wanted = (
        sa.select(Copy.raw_data_package_id, archive.c.id, sa.literal(settings.get().max_attempts))
        .distinct()
        .join(place, place.c.id == Copy.data_location_id)
        .join(archive, archive.c.site_id == place.c.site_id)
        .where(Copy.id.in_(copies), archive.c.location_type == LocationType.LONG_TERM_ARCHIVE, archive.c.active)
        .order_by(Copy.raw_data_package_id, archive.c.id)  # so that two managers meet the unique key in one order
    )
    created = _create(session, wanted)
    run(session, sa.update(moves.copy).where(Copy.id.in_(copies)).values(considered=True))
    # Also of those that need nothing new: an archive may have been given up since.
    moves.refresh_packages(session, {row.raw_data_package_id for row in ready})
    return len(copies), created


def create_for(session: Session, package_ids: Collection[int], location_id: int) -> int:
    """Create the missing operations of these packages to one location; returns how many were created."""
    wanted = sa.select(Package.id, sa.literal(location_id), sa.literal(settings.get().max_attempts)).where(
        Package.id.in_(package_ids), Package.checksum.is_not(None)
    )
    created = _create(session, wanted.order_by(Package.id))
    moves.refresh_packages(session, package_ids)
    return created


def _create(session: Session, wanted: Any) -> int:
    """Insert what `wanted` selects (package, location, attempt limit) where the database does not have it yet."""
    created = run(
        session,
        moves.insert(session.get_bind().dialect.name, moves.operation)
        .from_select(["raw_data_package_id", "data_location_id", "attempt_limit"], wanted)
        .on_conflict_do_nothing()
        .returning(Operation.id, Operation.raw_data_package_id),
    ).all()
    moves.log(session, ((row.id, 0) for row in created), Verb.CREATE, Status.PENDING)
    return len(created)


def _notice_changed_topology(session: Session, site_id: int | None) -> None:
    """Look at every copy of a site again when its active buffers or archives are not those that were last seen."""
    places = run(
        session,
        sa.select(place.c.site_id, place.c.id, place.c.location_type)
        .where(place.c.active, place.c.location_type.in_((LocationType.BUFFER, LocationType.LONG_TERM_ARCHIVE)))
        .order_by(place.c.id),
    ).all()
    for site in run(
        session, sa.select(Site.id, Site.seen_topology).where(*([Site.id == site_id] if site_id is not None else []))
    ):
        seen = ",".join(f"{p.location_type.value[0]}{p.id}" for p in places if p.site_id == site.id)
        if seen == site.seen_topology:
            continue
        noticed = run(
            session,
            sa.update(Site)
            .where(Site.id == site.id, Site.seen_topology == site.seen_topology)
            .values(seen_topology=seen),
        )
        if not noticed.rowcount:
            continue  # another manager was faster, and did what follows
        buffers = [p.id for p in places if p.site_id == site.id and p.location_type is LocationType.BUFFER]
        run(
            session,
            sa.update(moves.copy)
            .where(Copy.data_location_id.in_(buffers), Copy.considered.is_(True))
            .values(considered=False),
        )


def _hold_topology(session: Session, site_id: int | None) -> None:
    """Have whoever notices a new archive wait for this transaction.

    Otherwise it could look at the copies again just before this marks some of them as considered, by archives that
    were read earlier, and the new archive would never get them. (SQLite has one writer at a time anyway.)
    """
    sites = sa.select(Site.id).order_by(Site.id).with_for_update(read=True)
    run(session, sites if site_id is None else sites.where(Site.id == site_id)).all()


def schedule(session: Session, location_id: int) -> list[Dispatch]:
    """Schedule what is due at a location, and again what nobody claimed in time; send it only after the commit.

    Bounded, so that an outage does not flood the broker: at most `schedule_limit` operations wait for a worker.
    A paused location gets nothing. One location a transaction: two managers then never wait for each other in a
    circle.
    """
    location = session.get_one(DataLocation, location_id)
    waiting = run(
        session,
        sa.select(sa.func.count())
        .select_from(moves.operation)
        .where(Operation.data_location_id == location_id, moves.in_status(Status.SCHEDULED)),
    ).scalar_one()
    limit = settings.get().schedule_limit
    again = _resend(session, location_id, limit)
    due = _due(session, location_id, Status.PENDING, Operation.not_before, max(0, limit - waiting), lock=True)
    moved = _mark_sent(session, due.scalars().all(), Status.PENDING, send_count=0)
    moves.log(session, ((row.id, row.attempt) for row in moved), Verb.SCHEDULE, Status.SCHEDULED)
    moves.refresh_packages(session, {row.raw_data_package_id for row in moved})
    queue = location.value().queue
    return [Dispatch(operation_id, queue) for operation_id in (*again, *(row.id for row in moved))]


def _resend(session: Session, location_id: int, limit: int) -> list[int]:
    """The scheduled operations whose messages count as lost. Their state does not change, so nothing is logged.

    Each is sent again later than the last time: in a long queue a message is late far more often than lost.
    """
    due = _due(session, location_id, Status.SCHEDULED, Operation.resend_at, limit, lock=True).scalars().all()
    counts = run(session, sa.select(Operation.id, Operation.send_count).where(Operation.id.in_(due))).all()
    for sent in {row.send_count for row in counts}:
        _mark_sent(session, [row.id for row in counts if row.send_count == sent], Status.SCHEDULED, send_count=sent)
    return list(due)


def _mark_sent(session: Session, operation_ids: Sequence[int], status: Status, *, send_count: int) -> Sequence[Any]:
    if not operation_ids:
        return []
    wait = settings.get().resend_seconds * 2 ** min(send_count, LONGEST_RESEND_DOUBLINGS)
    return run(
        session,
        moves.update(
            Operation.id.in_(operation_ids),
            moves.in_status(status),
            status=Status.SCHEDULED,
            scheduled_at=utcnow() if status is Status.PENDING else Operation.scheduled_at,
            resend_at=utcnow(wait),
            send_count=send_count + 1,
        ),
    ).all()


def not_sent(session: Session, operation_ids: Collection[int]) -> None:
    """Have these scheduled operations sent again soon: the broker did not take their messages."""
    run(
        session,
        moves.update(
            Operation.id.in_(operation_ids),
            moves.in_status(Status.SCHEDULED),
            resend_at=utcnow(UNSENT_SECONDS),
            send_count=0,
        ),
    )


def due_here(session: Session, location_id: int, *, limit: int) -> list[int]:
    """Operations of a location that a worker without a broker may claim now, oldest first.

    Also what was scheduled and nobody claimed in time: the broker may have been given up since.
    """
    found: list[int] = []
    for status, clock in ((Status.PENDING, Operation.not_before), (Status.SCHEDULED, Operation.resend_at)):
        found += _due(session, location_id, status, clock, limit - len(found)).scalars()
    return found


def _due(session: Session, location_id: int, status: Status, clock: Any, limit: int, *, lock: bool = False) -> Any:
    """The ids of operations in `status` that `clock` says are due, oldest first; none of a paused location."""
    query = (
        sa.select(Operation.id)
        .join(place, place.c.id == Operation.data_location_id)
        .where(
            Operation.data_location_id == location_id,
            moves.in_status(status),
            clock <= utcnow(),
            moves.takes_work(),
            moves.may_be_read(),
        )
        .order_by(clock, Operation.id)
        .limit(limit)
    )
    return run(session, query.with_for_update(of=moves.operation, skip_locked=True, key_share=True) if lock else query)


def make_due(session: Session, operation_ids: Collection[int]) -> None:
    """Drop the waiting time of pending operations: somebody asked for them by name."""
    run(session, moves.update(Operation.id.in_(operation_ids), moves.in_status(Status.PENDING), not_before=utcnow()))


def archive_ids(session: Session, site_id: int | None = None, *, here: bool = False) -> list[int]:
    """Ids of the active archives, of one site or of all; with `here` without those that are bound to another host."""
    disk: Any = DiskDataLocation.__table__
    query = sa.select(place.c.id).outerjoin(disk, disk.c.data_location_id == place.c.id)
    query = query.where(*moves.active(LocationType.LONG_TERM_ARCHIVE, site_id)).order_by(place.c.id)
    if here:
        query = query.where(sa.or_(disk.c.host.is_(None), disk.c.host.in_(leases.names_of_this_host())))
    return list(run(session, query).scalars())


def rescue(session: Session, *, site_id: int | None = None, limit: int = BATCH) -> list[int]:
    """Take back the operations of dead attempts; returns their ids.

    Dead is an attempt whose lease has run out on the database's clock, or whose process this very host can see to be
    gone. The attempt stays counted: a package that kills its worker reaches its limit and fails.
    """
    here = [] if site_id is None else [place.c.site_id == site_id]
    has_expired = Operation.lease_until < utcnow()
    is_of_this_host = Operation.lease_owner.startswith(f"{leases.host()}|", autoescape=True)
    running = (
        sa.select(
            Operation.id,
            Operation.attempt,
            Operation.attempt_limit,
            Operation.lease_owner,
            Operation.raw_data_package_id,
        )
        .join(place, place.c.id == Operation.data_location_id)
        .where(moves.in_status(Status.IN_PROGRESS), *here)
    )
    # Nothing is locked while dead and living are told apart; the move itself asks again, and passes over a row that
    # somebody holds: a worker that froze in its last transaction must not keep all the others from being rescued.
    expired = {row.id: (row, has_expired) for row in run(session, running.where(has_expired).limit(limit))}
    ours = [row for row in run(session, running.where(is_of_this_host)) if _holder_is_dead(row.lease_owner)]
    dead = {row.id: (row, None) for row in ours} | expired
    in_order = sorted(dead.values(), key=lambda pair: (pair[0].raw_data_package_id, pair[0].id))
    return [row.id for row, only_if in in_order if _rescue(session, row, only_if=only_if)]


def rescue_one(session: Session, operation_id: int) -> bool:
    """Take one operation back if the process that holds it is known to be dead; True when it was."""
    row = run(
        session,
        sa.select(Operation.id, Operation.attempt, Operation.attempt_limit, Operation.lease_owner).where(
            Operation.id == operation_id, moves.in_status(Status.IN_PROGRESS)
        ),
    ).one_or_none()
    return row is not None and _holder_is_dead(row.lease_owner) and _rescue(session, row)


def _holder_is_dead(owner: str | None) -> bool:
    holder = leases.Owner.parse(owner or "")
    return holder is not None and holder.is_known_dead()


def _rescue(session: Session, row: Any, *, only_if: sa.ColumnElement[bool] | None = None) -> bool:
    free = sa.select(Operation.id).where(*moves.HELD).with_for_update(skip_locked=True, key_share=True)
    if run(session, free, moves.held(row.id, row.attempt)).one_or_none() is None:
        return False
    message = f"the worker of attempt {row.attempt} is gone ({row.lease_owner})"
    is_last = row.attempt >= row.attempt_limit
    return moves.leave(
        session,
        row.id,
        row.attempt,
        Verb.RESCUE,
        Status.FAILED if is_last else Status.PENDING,
        FailureReason.ATTEMPTS_EXHAUSTED if is_last else FailureReason.WORKER_LOST,
        message,
        delay=0.0 if is_last else retry.backoff(row.attempt, moves.policy(), retry.jitter()),
        only_if=only_if,
    )
