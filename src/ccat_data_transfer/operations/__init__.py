"""Every change of state of an archive operation. Nobody else writes a status.

Each function is one short transaction's worth of work on a session that the caller commits. Every move is a
compare-and-set and writes its log row in the same transaction; every later write of an attempt is conditional on
the attempt's number. All times are the database's.
"""

from ccat_data_transfer.operations.attempts import (
    Claim,
    Description,
    NotClaimed,
    Source,
    claim,
    describe,
    heartbeat,
    is_recorded,
    record,
    settle,
)
from ccat_data_transfer.operations.managing import (
    Dispatch,
    archive_ids,
    create,
    create_for,
    due_here,
    make_due,
    not_sent,
    rescue,
    rescue_one,
    schedule,
)
from ccat_data_transfer.operations.mending import cancel, fail, reset, retry_failed
from ccat_data_transfer.operations.moves import load, policy, resume

__all__ = [
    "Claim",
    "Description",
    "Dispatch",
    "NotClaimed",
    "Source",
    "archive_ids",
    "cancel",
    "claim",
    "create",
    "create_for",
    "describe",
    "due_here",
    "fail",
    "heartbeat",
    "is_recorded",
    "load",
    "make_due",
    "not_sent",
    "policy",
    "record",
    "rescue",
    "rescue_one",
    "reset",
    "resume",
    "retry_failed",
    "schedule",
    "settle",
]
