"""The table of moves: it is closed, and it says what the product promises."""

from itertools import product

import pytest

from ccat_data_transfer.states import MOVES, Evidence, PackageState, PhysicalCopyStatus, Status, Verb, sources


def test_an_operation_has_exactly_the_statuses_of_the_contract() -> None:
    assert [status.value for status in Status] == ["pending", "scheduled", "in_progress", "completed", "failed"]


def test_a_package_has_exactly_the_states_of_the_contract() -> None:
    assert {state.value for state in PackageState} == {"waiting", "transferring", "archived", "failed"}


def test_a_physical_copy_has_exactly_the_statuses_of_the_contract() -> None:
    assert {status.value for status in PhysicalCopyStatus} == {
        "present",
        "staged",
        "deletion_scheduled",
        "deletion_in_progress",
        "deletion_possible",
        "deleted",
        "deletion_failed",
    }


def test_no_move_is_written_twice() -> None:
    assert len({(move.verb, move.source, move.target) for move in MOVES}) == len(MOVES)


def test_every_move_says_who_makes_it() -> None:
    movers = ("manager", "worker", "operator", "a task")
    assert all(move.mover.startswith(movers) for move in MOVES)


def test_every_verb_makes_a_move_and_every_status_is_reached() -> None:
    assert {move.verb for move in MOVES} == set(Verb)
    assert {move.target for move in MOVES} == set(Status)


def test_an_operation_begins_by_being_created_and_in_no_other_way() -> None:
    assert [(move.verb, move.target) for move in MOVES if move.source is None] == [(Verb.CREATE, Status.PENDING)]


def test_nothing_leaves_completed() -> None:
    assert not [move for move in MOVES if move.source is Status.COMPLETED]


def test_only_recording_a_running_attempt_completes_an_operation() -> None:
    assert [(m.verb, m.source) for m in MOVES if m.target is Status.COMPLETED] == [(Verb.RECORD, Status.IN_PROGRESS)]


def test_only_a_claim_starts_an_attempt() -> None:
    assert {move.verb for move in MOVES if move.target is Status.IN_PROGRESS} == {Verb.CLAIM}


def test_only_an_operator_takes_an_operation_out_of_failed() -> None:
    assert [(m.verb, m.target, m.mover) for m in MOVES if m.source is Status.FAILED] == [
        (Verb.RETRY, Status.PENDING, "operator")
    ]


def test_a_running_attempt_cannot_be_cancelled() -> None:
    assert set(sources(Verb.CANCEL, Status.FAILED)) == {Status.PENDING, Status.SCHEDULED}


@pytest.mark.parametrize(("verb", "target"), list(product(Verb, Status)))
def test_sources_are_those_of_the_table(verb: Verb, target: Status) -> None:
    found = sources(verb, target)
    assert set(found) == {
        move.source for move in MOVES if (move.verb, move.target) == (verb, target) and move.source is not None
    }
    assert len(set(found)) == len(found)


def test_creating_has_no_source() -> None:
    assert sources(Verb.CREATE, Status.PENDING) == ()


@pytest.mark.parametrize(("found", "required"), list(product(Evidence, Evidence)))
def test_evidence_suffices_when_it_is_as_strong_as_what_is_required(found: Evidence, required: Evidence) -> None:
    strongest_first = [
        Evidence.DIRECT,
        Evidence.EVICTED_PROVED,
        Evidence.STORE_CHECKSUM,
        Evidence.READBACK_REMOTE,
        Evidence.EVICTED_UNPROVED,
        Evidence.REOPEN_ONLY,
    ]
    assert found.suffices(required) == (strongest_first.index(found) <= strongest_first.index(required))
