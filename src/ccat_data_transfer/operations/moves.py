"""What all changes of an operation share: the compare-and-set, the log row, the fence, the state of the package."""

import functools
from collections.abc import Collection, Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from ccat_data_transfer import leases, retry, settings
from ccat_data_transfer.database import utcnow
from ccat_data_transfer.exceptions import UnknownNameError
from ccat_data_transfer.locations import LocationType
from ccat_data_transfer.models import (
    DataLocation,
    LongTermArchiveTransfer,
    LongTermArchiveTransferLog,
    RawDataPackage,
    RawDataPackagePhysicalCopy,
)
from ccat_data_transfer.states import FailureReason, PackageState, PhysicalCopyStatus, Status, Verb

# The tables as they are, without the mapped classes: these statements run for every package, and building one
# costs more than running it. So they are also built once where they can be.
operation: Any = LongTermArchiveTransfer.__table__
copy: Any = RawDataPackagePhysicalCopy.__table__
package: Any = RawDataPackage.__table__
place: Any = DataLocation.__table__  # the one table behind all kinds of locations
Operation, Copy, Package = operation.c, copy.c, package.c
_log: Any = LongTermArchiveTransferLog.__table__
_INSERT_LOG = sa.insert(_log)

MAX_ERROR_LENGTH = 4000
MAX_ID = 2**63 - 1


def run(session: Session, statement: Any, parameters: Any = None) -> sa.CursorResult[Any]:
    """Execute on the session's connection, in its transaction."""
    return session.connection().execute(statement, parameters)


def storable(text: str) -> str:
    """`text` as any database takes it, of bounded length: an error may quote bytes that are no characters."""
    return text[:MAX_ERROR_LENGTH].encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def insert(dialect: str, table: Any) -> Any:
    """An INSERT that knows ON CONFLICT."""
    return (postgresql.insert if dialect == "postgresql" else sqlite.insert)(table)


def log(
    session: Session,
    rows: Iterable[tuple[int, int]],
    verb: Verb,
    status: Status,
    *,
    reason: FailureReason | None = None,
    message: str | None = None,
) -> None:
    """Write one log row for each (operation id, attempt)."""
    values = [
        {
            "long_term_archive_transfer_id": operation_id,
            "attempt": attempt,
            "verb": verb,
            "status": status,
            "actor": leases.actor(),
            "reason": reason,
            "message": storable(message) if message else None,
        }
        for operation_id, attempt in rows
    ]
    if values:
        run(session, _INSERT_LOG, values)


def update(*conditions: sa.ColumnElement[bool], **values: Any) -> Any:
    """An UPDATE of operations that tells which rows it moved."""
    return (
        sa.update(operation)
        .where(*conditions)
        .values(**values)
        .returning(Operation.id, Operation.attempt, Operation.raw_data_package_id)
    )


def in_status(status: Status) -> Any:
    """True for operations in `status`, written into the SQL: a partial index serves no query that hides its condition
    in a parameter.
    """
    return Operation.status == sa.literal(status, Operation.status.type, literal_execute=True)


# The fence, for statements that are built once: true only while this attempt is the one that runs.
HELD = (
    Operation.id == sa.bindparam("held_id"),
    Operation.attempt == sa.bindparam("held_attempt"),
    Operation.status == Status.IN_PROGRESS,
)


def held(operation_id: int, attempt: int) -> dict[str, int]:
    """The parameters of `HELD`."""
    return {"held_id": operation_id, "held_attempt": attempt}


def leave(
    session: Session,
    operation_id: int,
    attempt: int,
    verb: Verb,
    target: Status,
    reason: FailureReason,
    message: str,
    *,
    delay: float = 0.0,
    only_if: sa.ColumnElement[bool] | None = None,
) -> bool:
    """Move an operation out of `in_progress`, fenced by its attempt; False when it was not there any more."""
    values: dict[str, Any] = {"not_before": utcnow(delay)} if target is Status.PENDING else {}
    if verb is Verb.SNOOZE:
        values["attempt_limit"] = Operation.attempt_limit + 1  # the attempt is given back, its number is not
    elif target is Status.PENDING:
        values["retry_count"] = Operation.retry_count + 1
    moved = run(
        session,
        update(
            *HELD,
            *([] if only_if is None else [only_if]),
            status=target,
            reason=reason,
            error=storable(message),
            lease_owner=None,
            lease_until=None,
            **values,
        ),
        held(operation_id, attempt),
    ).one_or_none()
    if moved is None:
        return False
    log(session, [(moved.id, moved.attempt)], verb, target, reason=reason, message=message)
    refresh_packages(session, [moved.raw_data_package_id])
    return True


def active(location_type: LocationType, site_id: int | None) -> list[sa.ColumnElement[bool]]:
    """True for the active places of a type, at one site or at all."""
    conditions = [place.c.location_type == location_type, place.c.active]
    return conditions if site_id is None else [*conditions, place.c.site_id == site_id]


def takes_work() -> sa.ColumnElement[bool]:
    """True for an active place that is not paused."""
    return sa.and_(place.c.active, sa.or_(place.c.paused_until.is_(None), place.c.paused_until <= utcnow()))


# Where a package may be read from: `archive` registers what lies with the user as sources, an observatory as buffers.
READABLE = (LocationType.BUFFER, LocationType.SOURCE)


def may_be_read() -> sa.ColumnElement[bool]:
    """True unless every present copy lies in a buffer that is switched off: then the operation is not ready.

    For a query over operations joined with the `place` they go to. An operation without any present copy passes: the
    attempt finds that out and says so.
    """
    buffer = place.alias("buffer")
    present = (
        Copy.raw_data_package_id == Operation.raw_data_package_id,
        Copy.status == PhysicalCopyStatus.PRESENT,
        buffer.c.id == Copy.data_location_id,
        buffer.c.site_id == place.c.site_id,
        buffer.c.location_type.in_(READABLE),
    )
    has_active = sa.exists().where(*present, buffer.c.active).correlate(operation, place)
    return sa.or_(has_active, ~sa.exists().where(*present).correlate(operation, place))


def refresh_packages(session: Session, package_ids: Collection[int]) -> None:
    """Derive the state of packages anew from their operations."""
    if not package_ids:
        return
    ids = sorted(package_ids)
    if session.get_bind().dialect.name == "postgresql":
        # Two destinations of one package may end at the same moment. A statement that waited for the other's row
        # lock would still judge by what it saw before it waited, so the lock is taken first, by a statement of its
        # own, and in order, so that nobody waits in a circle.
        run(session, _LOCK_PACKAGES, {"ids": ids})
    minimum = settings.get().minimum_archive_copies
    if len(ids) == 1:
        run(session, _refresh_one(), {"package_id": ids[0], "minimum": minimum})
    else:
        run(session, _refresh(), {"ids": ids, "minimum": minimum})


_IDS = Package.id.in_(sa.bindparam("ids", expanding=True))
_LOCK_PACKAGES = sa.select(Package.id).where(_IDS).order_by(Package.id).with_for_update(key_share=True)


@functools.cache
def _refresh_one() -> Any:
    # The usual case by far, and much the cheaper one: no list to be spelled out for each execution.
    return sa.update(package).where(Package.id == sa.bindparam("package_id")).values(state=_derived_state())


@functools.cache
def _refresh() -> Any:
    state = _derived_state()
    # A row whose state does not change is not written: most of those that are looked at do not.
    return sa.update(package).where(_IDS, Package.state != state).values(state=state)


def _derived_state() -> Any:
    """The state of a package, as one expression over its row.

    Every subquery says by itself what it correlates: left to be guessed, a table of the outer statement can turn
    into one of the subquery's own, and another package's copies would count.
    """

    def operations(*conditions: sa.ColumnElement[bool]) -> Any:
        return (
            sa.exists()
            .where(Operation.raw_data_package_id == Package.id, place.c.id == Operation.data_location_id, *conditions)
            .correlate(package)
        )

    completed = (
        sa.select(sa.func.count())
        .where(Operation.raw_data_package_id == Package.id, Operation.status == Status.COMPLETED)
        .correlate(package)
        .scalar_subquery()
    )
    archive, done = place.alias("archive"), operation.alias("done")
    has_copy = (
        sa.exists()
        .where(
            done.c.raw_data_package_id == Package.id,
            done.c.data_location_id == archive.c.id,
            done.c.status == Status.COMPLETED,
        )
        .correlate(package, archive)
    )
    lacks_a_copy = (
        sa.exists()
        .where(
            Copy.raw_data_package_id == Package.id,
            place.c.id == Copy.data_location_id,
            place.c.location_type == LocationType.BUFFER,
            archive.c.site_id == place.c.site_id,
            archive.c.location_type == LocationType.LONG_TERM_ARCHIVE,
            archive.c.active,
            ~has_copy,
        )
        .correlate(package)
    )
    is_unfinished = operations(Operation.status != Status.COMPLETED, place.c.active)
    is_enough = completed >= sa.bindparam("minimum", type_=sa.Integer)
    under_way = (Status.SCHEDULED, Status.IN_PROGRESS, Status.COMPLETED)
    return sa.case(
        (operations(Operation.status == Status.FAILED, place.c.active), PackageState.FAILED),
        (sa.and_(is_enough, ~lacks_a_copy, ~is_unfinished), PackageState.ARCHIVED),
        (operations(Operation.status.in_(under_way)), PackageState.TRANSFERRING),
        else_=PackageState.WAITING,
    )


def policy() -> retry.Policy:
    """The configured delays."""
    chosen = settings.get()
    return retry.Policy(chosen.retry_first_delay_seconds, chosen.retry_longest_delay_seconds, chosen.pause_seconds)


def resume(session: Session, location_id: int) -> None:
    """End the pause of a location; what was snoozed for its sake is due at once."""
    run(
        session,
        sa.update(place)
        .where(place.c.id == location_id)
        .values(paused_until=None, pause_reason=None, pause_message=None),
    )
    run(
        session,
        update(
            Operation.data_location_id == location_id,
            in_status(Status.PENDING),
            Operation.not_before > utcnow(),
            Operation.reason == FailureReason.DESTINATION_UNAVAILABLE,
            not_before=utcnow(),
        ),
    )
    run(
        session,
        update(
            Operation.data_location_id == location_id,
            in_status(Status.SCHEDULED),
            Operation.resend_at > utcnow(),
            resend_at=utcnow(),
        ),
    )


def load(session: Session, operation_id: int) -> LongTermArchiveTransfer:
    """The row of an operation; raises `UnknownNameError`."""
    row = session.get(LongTermArchiveTransfer, operation_id) if 0 < operation_id <= MAX_ID else None
    if row is None:
        raise UnknownNameError(
            f"there is no operation {operation_id}",
            remedy="`ccat_data_transfer transfer list` shows them all",
        )
    return row
