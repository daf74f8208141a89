"""The tree of errors is what its drawing says, and each error is complete."""

import inspect
import re

import pytest

from ccat_data_transfer import exceptions
from ccat_data_transfer.exceptions import CCATDataOperationError
from ccat_data_transfer.states import FailureReason, PauseReason

KINDS = [
    kind
    for _, kind in inspect.getmembers(exceptions, inspect.isclass)
    if issubclass(kind, CCATDataOperationError) and kind.__module__ == exceptions.__name__
]
# Names of the observatory's system that callers rely on.
PROMISED = {
    "ArchiveError",
    "NetworkError",
    "StorageError",
    "DataCorruptionError",
    "ChecksumVerificationError",
    "ServiceUnavailableError",
    "DestinationFileExistsError",
    "ConfigurationError",
    "DatabaseError",
    "RetryableError",
    "NonRetryableError",
}


def drawn() -> dict[str, str | None]:
    """The parent of each class in the drawing at the top of the module."""
    parents: dict[str, str | None] = {}
    above: list[str] = []
    for line in (exceptions.__doc__ or "").splitlines():
        match = re.fullmatch(r"    ([│├└─ ]*)(\w+Error)", line)
        if match:
            depth = len(match[1]) // 4
            del above[depth:]
            parents[match[2]] = above[-1] if above else None
            above.append(match[2])
    return parents


def test_the_tree_is_as_drawn() -> None:
    real = {kind.__name__: None if kind is CCATDataOperationError else kind.__bases__[0].__name__ for kind in KINDS}
    assert drawn() == real


def test_every_error_has_one_parent() -> None:
    assert all(len(kind.__bases__) == 1 for kind in KINDS)


def test_the_promised_names_are_there() -> None:
    assert {kind.__name__ for kind in KINDS} >= PROMISED


@pytest.mark.parametrize("kind", KINDS)
class TestEachError:
    def test_has_a_sentence_of_its_own_as_docstring(self, kind: type[CCATDataOperationError]) -> None:
        assert kind.__doc__
        first = kind.__doc__.partition("\n")[0]
        assert first.endswith(".")
        assert first[0].isupper()
        assert [other for other in KINDS if other.__doc__ == kind.__doc__] == [kind]

    def test_says_whether_a_retry_can_help(self, kind: type[CCATDataOperationError]) -> None:
        assert isinstance(kind.retryable, bool)
        if issubclass(kind, exceptions.NonRetryableError):
            assert not kind.retryable

    def test_has_an_exit_code_that_a_shell_can_show(self, kind: type[CCATDataOperationError]) -> None:
        assert 1 <= kind.exit_code <= 130
        assert kind.exit_code not in {126, 127}

    def test_has_a_reason_of_the_closed_vocabulary_or_none(self, kind: type[CCATDataOperationError]) -> None:
        assert kind.reason is None or FailureReason(kind.reason)

    def test_has_a_remedy_in_words_that_begins_small(self, kind: type[CCATDataOperationError]) -> None:
        assert not kind.remedy or (kind.remedy[0].islower() and not kind.remedy.endswith("."))


def test_an_error_without_a_message_says_what_its_class_means() -> None:
    assert str(exceptions.NoChecksumError()) == exceptions.NoChecksumError.__doc__


def test_a_remedy_that_fits_better_takes_the_place_of_the_general_one() -> None:
    assert exceptions.BadNameError("x", remedy="call it y").remedy == "call it y"
    assert exceptions.BadNameError("x").remedy == exceptions.BadNameError.remedy


def test_an_unwell_location_says_which_and_how() -> None:
    error = exceptions.LocationUnavailableError("no room", condition="full", location="cologne/lta")
    assert (PauseReason(error.condition), error.location, str(error)) == (PauseReason.FULL, "cologne/lta", "no room")
