"""The states of operations, packages and copies, and who may move what where.

Holds no data and does no I/O; `operations` is the only caller that turns a move into SQL.
"""

from enum import StrEnum
from typing import NamedTuple


class Status(StrEnum):
    """State of a long-term archive transfer."""

    PENDING = "pending"  # wanted, not before `not_before`
    SCHEDULED = "scheduled"  # a message was, or is about to be, sent
    IN_PROGRESS = "in_progress"  # one attempt runs and holds the lease
    COMPLETED = "completed"  # durable, verified, physical copy recorded
    FAILED = "failed"  # permanent, with its reason


class PackageState(StrEnum):
    """State of a raw data package, derived from its operations."""

    WAITING = "waiting"  # something is still to be archived, nothing is under way
    TRANSFERRING = "transferring"  # operations run, or some destinations are done and others are not
    ARCHIVED = "archived"  # every active archive of its sites holds a verified copy
    FAILED = "failed"  # an operation failed for good


class PhysicalCopyStatus(StrEnum):
    """State of the bytes of one physical copy."""

    PRESENT = "present"
    STAGED = "staged"
    DELETION_SCHEDULED = "deletion_scheduled"
    DELETION_IN_PROGRESS = "deletion_in_progress"
    DELETION_POSSIBLE = "deletion_possible"
    DELETED = "deleted"
    DELETION_FAILED = "deletion_failed"


class FailureReason(StrEnum):
    """Why an attempt or an operation failed: the closed vocabulary beside the status."""

    SOURCE_CORRUPT = "source_corrupt"
    SOURCE_MISSING = "source_missing"
    SOURCE_UNREADABLE = "source_unreadable"
    SOURCE_CHANGED = "source_changed"
    NO_CHECKSUM = "no_checksum"
    BAD_NAME = "bad_name"
    TOO_LARGE = "too_large"
    DESTINATION_CONFLICT = "destination_conflict"
    DESTINATION_UNAVAILABLE = "destination_unavailable"
    SOURCE_UNAVAILABLE = "source_unavailable"
    STORAGE_ERROR = "storage_error"
    WORKER_LOST = "worker_lost"
    INTERRUPTED = "interrupted"
    INTERNAL_ERROR = "internal_error"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    CANCELLED = "cancelled"


class PauseReason(StrEnum):
    """Why a data location takes no work for now."""

    MISSING = "missing"
    WRONG_VOLUME = "wrong_volume"
    FULL = "full"
    READ_ONLY = "read_only"
    DENIED = "denied"
    UNREACHABLE = "unreachable"
    EVIDENCE = "evidence"  # it cannot give the evidence that its policy asks for
    MISCONFIGURED = "misconfigured"


class Evidence(StrEnum):
    """How the stored bytes were verified, strongest first."""

    DIRECT = "direct"  # read with O_DIRECT, past the page cache
    EVICTED_PROVED = "evicted-proved"  # read after the kernel said the cache no longer held them
    STORE_CHECKSUM = "store-checksum"  # the store's own full-object checksum
    READBACK_REMOTE = "readback-remote"  # read back over the network
    EVICTED_UNPROVED = "evicted-unproved"  # eviction was asked for, the file system cannot tell
    REOPEN_ONLY = "reopen-only"  # read back, possibly from the cache

    def suffices(self, required: "Evidence") -> bool:
        """Whether this is at least as strong as `required`."""
        order = list(Evidence)
        return order.index(self) <= order.index(required)


class Verb(StrEnum):
    """What happened to an operation; written to its log with each change."""

    CREATE = "create"
    SCHEDULE = "schedule"
    CLAIM = "claim"
    RECORD = "record"
    RETRY = "retry"
    SNOOZE = "snooze"
    FAIL = "fail"
    RESCUE = "rescue"
    CANCEL = "cancel"


class Move(NamedTuple):
    """One legal move: `mover` says who makes it."""

    verb: Verb
    source: Status | None
    target: Status
    mover: str


MOVES: tuple[Move, ...] = (
    Move(Verb.CREATE, None, Status.PENDING, "manager"),
    Move(Verb.SCHEDULE, Status.PENDING, Status.SCHEDULED, "manager"),
    Move(Verb.CLAIM, Status.SCHEDULED, Status.IN_PROGRESS, "worker"),
    Move(
        Verb.CLAIM,
        Status.PENDING,
        Status.IN_PROGRESS,
        "worker without a broker, or on a message that came late",
    ),
    Move(Verb.RECORD, Status.IN_PROGRESS, Status.COMPLETED, "worker"),
    Move(Verb.RETRY, Status.IN_PROGRESS, Status.PENDING, "worker"),
    Move(Verb.SNOOZE, Status.IN_PROGRESS, Status.PENDING, "worker, when a location is unwell"),
    Move(Verb.FAIL, Status.IN_PROGRESS, Status.FAILED, "worker"),
    Move(Verb.FAIL, Status.SCHEDULED, Status.FAILED, "a task, by `mark_permanent_failure`"),
    Move(Verb.FAIL, Status.PENDING, Status.FAILED, "a task, by `mark_permanent_failure`"),
    Move(Verb.RESCUE, Status.IN_PROGRESS, Status.PENDING, "manager, when the lease has run out"),
    Move(
        Verb.RESCUE,
        Status.IN_PROGRESS,
        Status.FAILED,
        "manager, when the lease has run out on the last attempt",
    ),
    Move(Verb.RETRY, Status.FAILED, Status.PENDING, "operator"),
    Move(Verb.CANCEL, Status.PENDING, Status.FAILED, "operator"),
    Move(Verb.CANCEL, Status.SCHEDULED, Status.FAILED, "operator"),
)


def sources(verb: Verb, target: Status) -> tuple[Status, ...]:
    """The statuses from which `verb` may lead to `target`; empty when it never does."""
    return tuple(m.source for m in MOVES if m.verb is verb and m.target is target and m.source is not None)
