"""Changes that are asked for by name: reset, fail, retry, cancel."""

from collections.abc import Collection

from sqlalchemy.orm import Session

from ccat_data_transfer import retry, settings
from ccat_data_transfer.database import utcnow
from ccat_data_transfer.operations import attempts, moves
from ccat_data_transfer.operations.moves import Operation
from ccat_data_transfer.states import FailureReason, Status, Verb, sources


def reset(session: Session, operation_id: int, error: BaseException) -> bool:
    """Have a running operation tried again, or failed when no attempt is left; False when it is not running."""
    row = moves.load(session, operation_id)
    session.refresh(row)
    left = row.attempt_limit - row.attempt
    decision = retry.decide(error, attempt=max(row.attempt, 1), attempts_left=left, policy=moves.policy())
    if decision.outcome is retry.Outcome.FAIL and left > 0:
        # The caller asks for another try, whatever the error says of itself.
        delay = retry.backoff(max(row.attempt, 1), moves.policy(), retry.jitter())
        decision = retry.Decision(retry.Outcome.RETRY, decision.reason, delay)
    return attempts.settle(session, operation_id, row.attempt, decision, error)


def fail(session: Session, operation_id: int, error: BaseException) -> bool:
    """Fail an operation for good, whoever holds it; False when it had already ended."""
    reason, message = retry.reason_of(error), str(error) or type(error).__name__
    moved = moves.run(
        session,
        moves.update(
            Operation.id == operation_id,
            Operation.status.in_(sources(Verb.FAIL, Status.FAILED)),
            status=Status.FAILED,
            reason=reason,
            error=moves.storable(message),
            lease_owner=None,
            lease_until=None,
        ),
    ).one_or_none()
    if moved is None:
        return False
    moves.log(session, [(moved.id, moved.attempt)], Verb.FAIL, Status.FAILED, reason=reason, message=message)
    moves.refresh_packages(session, [moved.raw_data_package_id])
    return True


def retry_failed(session: Session, operation_ids: Collection[int]) -> list[int]:
    """Give failed operations a new set of attempts; returns those that were failed. The attempt number goes on."""
    moved = moves.run(
        session,
        moves.update(
            Operation.id.in_(operation_ids),
            Operation.status.in_((Status.FAILED,)),
            status=Status.PENDING,
            attempt_limit=Operation.attempt + settings.get().max_attempts,
            retry_count=0,
            reason=None,
            error=None,
            not_before=utcnow(),
        ),
    ).all()
    moves.log(
        session,
        ((row.id, row.attempt) for row in moved),
        Verb.RETRY,
        Status.PENDING,
        message="asked by an operator",
    )
    moves.refresh_packages(session, {row.raw_data_package_id for row in moved})
    return [row.id for row in moved]


def cancel(session: Session, operation_ids: Collection[int]) -> list[int]:
    """Cancel operations that no worker has claimed; returns those that were waiting."""
    moved = moves.run(
        session,
        moves.update(
            Operation.id.in_(operation_ids),
            Operation.status.in_(sources(Verb.CANCEL, Status.FAILED)),
            status=Status.FAILED,
            reason=FailureReason.CANCELLED,
            error="cancelled by an operator",
        ),
    ).all()
    moves.log(
        session,
        ((row.id, row.attempt) for row in moved),
        Verb.CANCEL,
        Status.FAILED,
        reason=FailureReason.CANCELLED,
        message="asked by an operator",
    )
    moves.refresh_packages(session, {row.raw_data_package_id for row in moved})
    return [row.id for row in moved]
