"""What follows a failed attempt."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccat_data_transfer import exceptions, retry
from ccat_data_transfer.exceptions import CCATDataOperationError, LocationUnavailableError
from ccat_data_transfer.retry import Outcome, Policy
from ccat_data_transfer.states import FailureReason

POLICY = Policy(first_delay=8, longest_delay=100, pause=60)
UNWELL = LocationUnavailableError("the disk is full", condition="full", location="cologne/lta")

PERMANENT = [
    (exceptions.NoChecksumError(), FailureReason.NO_CHECKSUM),
    (exceptions.SourceMissingError(), FailureReason.SOURCE_MISSING),
    (exceptions.BadSourceError(), FailureReason.SOURCE_UNREADABLE),
    (exceptions.BadNameError(), FailureReason.BAD_NAME),
    (exceptions.TooLargeError(), FailureReason.TOO_LARGE),
    (exceptions.DataCorruptionError(), FailureReason.SOURCE_CORRUPT),
    (exceptions.ChecksumVerificationError(), FailureReason.SOURCE_CORRUPT),
    (exceptions.DestinationFileExistsError(), FailureReason.DESTINATION_CONFLICT),
    (exceptions.NonRetryableError(), FailureReason.INTERNAL_ERROR),
    (exceptions.ConfigurationError(), FailureReason.INTERNAL_ERROR),
    (exceptions.DatabaseSchemaError(), FailureReason.INTERNAL_ERROR),
    (exceptions.InputError(), FailureReason.INTERNAL_ERROR),
]
PASSING = [
    (exceptions.StorageError(), FailureReason.STORAGE_ERROR),
    (exceptions.SourceChangedError(), FailureReason.SOURCE_CHANGED),
    (exceptions.SourceReadError(), FailureReason.SOURCE_UNREADABLE),
    (exceptions.NetworkError(), FailureReason.INTERNAL_ERROR),
    (exceptions.ServiceUnavailableError(), FailureReason.INTERNAL_ERROR),
    (exceptions.RetryableError(), FailureReason.INTERNAL_ERROR),
    (MemoryError(), FailureReason.INTERNAL_ERROR),
    (RecursionError(), FailureReason.INTERNAL_ERROR),
    (ValueError("a library's"), FailureReason.INTERNAL_ERROR),
    (OSError(5, "input/output error"), FailureReason.INTERNAL_ERROR),
    (SystemExit(1), FailureReason.INTERRUPTED),
    (KeyboardInterrupt(), FailureReason.INTERRUPTED),
]


def _kind(value: object) -> str | None:
    return type(value).__name__ if isinstance(value, BaseException) else None


@pytest.mark.parametrize(("error", "reason"), PERMANENT, ids=_kind)
@pytest.mark.parametrize("attempts_left", [0, 4])
def test_what_a_retry_cannot_help_fails_at_once(
    error: CCATDataOperationError, reason: FailureReason, attempts_left: int
) -> None:
    decision = retry.decide(error, attempt=1, attempts_left=attempts_left, policy=POLICY)
    assert decision == retry.Decision(Outcome.FAIL, reason)


@pytest.mark.parametrize(("error", "reason"), PASSING, ids=_kind)
def test_what_may_pass_is_tried_again_after_a_delay(error: BaseException, reason: FailureReason) -> None:
    decision = retry.decide(error, attempt=1, attempts_left=1, policy=POLICY)
    assert (decision.outcome, decision.reason) == (Outcome.RETRY, reason)
    assert 4 <= decision.delay <= 8


def test_an_unexplained_failure_is_not_called_the_last_attempt_while_others_are_left() -> None:
    decision = retry.decide(exceptions.ArchiveError("input/output error"), attempt=1, attempts_left=4, policy=POLICY)
    assert decision.outcome is Outcome.RETRY
    assert decision.reason is not FailureReason.ATTEMPTS_EXHAUSTED


@pytest.mark.parametrize(("error", "reason"), PASSING, ids=_kind)
def test_what_may_pass_fails_when_no_attempt_is_left(error: BaseException, reason: FailureReason) -> None:
    decision = retry.decide(error, attempt=5, attempts_left=0, policy=POLICY)
    assert decision == retry.Decision(Outcome.FAIL, FailureReason.ATTEMPTS_EXHAUSTED)


@pytest.mark.parametrize("attempts_left", [0, 4])
def test_a_location_that_is_unwell_is_waited_for_even_on_the_last_attempt(attempts_left: int) -> None:
    decision = retry.decide(UNWELL, attempt=5, attempts_left=attempts_left, policy=POLICY)
    assert decision == retry.Decision(Outcome.SNOOZE, FailureReason.DESTINATION_UNAVAILABLE, 60)


@pytest.mark.parametrize("attempts_left", [0, 4])
def test_an_attempt_that_was_asked_to_stop_is_given_back_and_due_at_once(attempts_left: int) -> None:
    decision = retry.decide(exceptions.StoppedError(), attempt=5, attempts_left=attempts_left, policy=POLICY)
    assert decision == retry.Decision(Outcome.SNOOZE, FailureReason.INTERRUPTED, 0)


def _all_errors(base: type[CCATDataOperationError] = CCATDataOperationError) -> list[type[CCATDataOperationError]]:
    return [base, *(found for child in base.__subclasses__() for found in _all_errors(child))]


@pytest.mark.parametrize("kind", [k for k in _all_errors() if k.__module__ == exceptions.__name__])
def test_each_error_of_the_program_is_retried_only_if_it_says_so(kind: type[CCATDataOperationError]) -> None:
    error = kind("x", condition="full", location="a/b") if issubclass(kind, LocationUnavailableError) else kind()
    decision = retry.decide(error, attempt=1, attempts_left=1, policy=POLICY)
    assert (decision.outcome is not Outcome.FAIL) == kind.retryable


@given(
    attempt=st.integers(1, 10_000),
    first=st.floats(0, 1e6),
    longest=st.floats(0, 1e6),
    seed=st.integers(),
)
def test_a_delay_lies_in_the_upper_half_of_a_doubling_that_is_bounded(
    attempt: int, first: float, longest: float, seed: int
) -> None:
    delay = retry.backoff(attempt, Policy(first, longest), random.Random(seed))
    ceiling = min(longest, first * 2.0 ** min(attempt - 1, 30))
    assert ceiling / 2 <= delay <= ceiling


def test_delays_of_operations_that_failed_together_differ() -> None:
    assert len({retry.backoff(3, POLICY, retry.jitter()) for _ in range(50)}) > 1
