"""What follows a failed attempt: try again later, wait for a location, or give up.

The one place that decides; `operations` writes the decision down.
"""

import random
from dataclasses import dataclass
from enum import StrEnum

from ccat_data_transfer.exceptions import CCATDataOperationError, LocationUnavailableError, StoppedError
from ccat_data_transfer.states import FailureReason


class Outcome(StrEnum):
    """What to do with an operation whose attempt failed."""

    RETRY = "retry"  # the attempt is spent, another follows
    SNOOZE = "snooze"  # the attempt is given back, the location is paused
    FAIL = "fail"  # permanent


@dataclass(frozen=True, slots=True)
class Policy:
    """Delays in seconds. The delay doubles from `first_delay` to `longest_delay`; `pause` is for locations."""

    first_delay: float = 10.0
    longest_delay: float = 3600.0
    pause: float = 60.0


@dataclass(frozen=True, slots=True)
class Decision:
    """An outcome, its reason, and in how many seconds the operation is due again (0 when it is not)."""

    outcome: Outcome
    reason: FailureReason
    delay: float = 0.0


def jitter() -> random.Random:
    """A source of jitter; nothing here is a secret."""
    return random.Random()  # noqa: S311


def backoff(attempt: int, policy: Policy, rng: random.Random) -> float:
    """Seconds to wait after the given attempt: exponential, with the upper half jittered.

    Jitter keeps a thousand operations that failed together from returning together ("equal jitter" of
    M. Brooker, "Exponential Backoff And Jitter", 2015).
    """
    ceiling = min(policy.longest_delay, policy.first_delay * 2.0 ** min(attempt - 1, 30))
    return float(ceiling / 2 + rng.uniform(0, ceiling / 2))


def reason_of(error: BaseException) -> FailureReason:
    """The failure reason that an error stands for; anything unforeseen is an internal error."""
    if isinstance(error, CCATDataOperationError) and error.reason:
        return FailureReason(error.reason)
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return FailureReason.INTERRUPTED
    return FailureReason.INTERNAL_ERROR


def decide(
    error: BaseException,
    *,
    attempt: int,
    attempts_left: int,
    policy: Policy,
    rng: random.Random | None = None,
) -> Decision:
    """Decide what follows `attempt` (counted from 1), which failed with `error`.

    Errors of this program say themselves whether a retry can help; any other (a library's, MemoryError,
    SystemExit) is retried, because a cause that nobody foresaw may well pass, and the attempts are bounded.
    """
    reason = reason_of(error)
    if isinstance(error, LocationUnavailableError):
        return Decision(Outcome.SNOOZE, reason, policy.pause)
    if isinstance(error, StoppedError):
        return Decision(Outcome.SNOOZE, reason)
    if isinstance(error, CCATDataOperationError) and not error.retryable:
        return Decision(Outcome.FAIL, reason)
    if attempts_left <= 0:
        return Decision(Outcome.FAIL, FailureReason.ATTEMPTS_EXHAUSTED)
    return Decision(Outcome.RETRY, reason, backoff(attempt, policy, rng or jitter()))
