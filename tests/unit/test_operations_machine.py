"""The life of operations under any order of events: many workers, many managers, late writers, a clock that jumps.

Hypothesis calls the real functions on a real database; after every step what must always hold is looked up there.
"""

import dataclasses
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy.orm import Session
from tests import factories

from ccat_data_transfer import database, leases, models, operations, retry
from ccat_data_transfer.checksums import Checksum
from ccat_data_transfer.exceptions import LeaseLostError, LocationUnavailableError, StorageError, UnknownNameError
from ccat_data_transfer.locations import LocationType
from ccat_data_transfer.retry import Outcome
from ccat_data_transfer.states import MOVES, Evidence, FailureReason, PackageState, Status
from ccat_data_transfer.storage.base import Receipt

LIVING = leases.Owner.of_this_process()
OWNERS = {
    "living": LIVING,
    "dead": dataclasses.replace(LIVING, start="1"),
    "out of sight": dataclasses.replace(LIVING, host="elsewhere"),
}
LEGAL = {(move.verb.value, move.source and move.source.value, move.target.value) for move in MOVES}
LONG_AGO = "2020-01-01 00:00:00.000000"
BUFFER, FIRST, SECOND = 1, 2, 3
PACKAGES = 3

ids = st.integers(1, 2 * PACKAGES + 1)
archives = st.sampled_from([FIRST, SECOND])
choices = st.integers(0, 99)

Row = dict[str, Any]


class Operations(RuleBasedStateMachine):
    """A few packages, a buffer and two archives, and everything that may happen to them."""

    template: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")
        self.folder = tempfile.mkdtemp(dir=memory if memory.is_dir() else None)
        file = f"{self.folder}/operations.sqlite"
        shutil.copyfile(self.template, file)
        self.engine = database.create_engine(f"sqlite:///{file}")
        self.connection = sqlite3.connect(file, timeout=10, isolation_level=None)
        self.connection.row_factory = sqlite3.Row
        self.claims: list[operations.Claim] = []
        self.last: dict[int, Row] = {}

    def teardown(self) -> None:
        self.connection.close()
        self.engine.dispose()
        shutil.rmtree(self.folder)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        with database.session_scope(self.engine) as session:
            yield session

    def rows(self, query: str, *parameters: object) -> list[Row]:
        return [dict(row) for row in self.connection.execute(query, parameters)]

    def execute(self, statement: str, *parameters: object) -> None:
        self.connection.execute(statement, parameters)

    def everything(self) -> list[list[Row]]:
        """All that a stale attempt must not change."""
        tables = ["long_term_archive_transfer", "long_term_archive_transfer_log", "raw_data_package_physical_copy"]
        return [self.rows(f"SELECT * FROM {table} ORDER BY id") for table in [*tables, "data_location"]]  # noqa: S608

    @initialize(second_is_active=st.booleans())
    def begin(self, second_is_active: bool) -> None:
        with self.transaction() as session:
            factories.make_location(session, "/buffer")
            for number, active in ((1, True), (2, second_is_active)):
                factories.make_location(
                    session,
                    f"/lta-{number}",
                    name=f"lta-{number}",
                    location_type=LocationType.LONG_TERM_ARCHIVE,
                    active=active,
                )
        for _ in range(PACKAGES - 1):
            self.register()
        self.create(limit=1000)

    # The managers.

    @precondition(lambda self: len(self.rows("SELECT id FROM raw_data_package")) < PACKAGES)
    @rule()
    def register(self) -> None:
        with self.transaction() as session:
            factories.make_package(session, at=session.get_one(models.DataLocation, BUFFER))

    @rule(limit=st.sampled_from([1, 2, 1000]))
    def create(self, limit: int) -> None:
        considered = 1
        while considered:
            with self.transaction() as session:
                considered, created = operations.create(session, limit=limit)
                assert created <= 2 * considered <= 2 * limit

    @rule(archive=archives, is_sent=st.booleans())
    def schedule(self, archive: int, is_sent: bool) -> None:
        with self.transaction() as session:
            dispatches = operations.schedule(session, archive)
        waiting = self.rows(
            "SELECT id FROM long_term_archive_transfer WHERE status = 'scheduled' AND data_location_id = ?", archive
        )
        assert len(waiting) <= 2
        assert {dispatch.operation_id for dispatch in dispatches} <= {row["id"] for row in waiting}
        if not is_sent:
            with self.transaction() as session:
                operations.not_sent(session, [dispatch.operation_id for dispatch in dispatches])

    @rule()
    def rescue(self) -> None:
        running = self.rows(
            "SELECT id, lease_until, lease_owner FROM long_term_archive_transfer WHERE status = 'in_progress'"
        )
        dead = {
            row["id"] for row in running if row["lease_until"] == LONG_AGO or row["lease_owner"] == str(OWNERS["dead"])
        }
        with self.transaction() as session:
            assert set(operations.rescue(session)) == dead

    # The workers.

    @rule(operation_id=ids, owner=st.sampled_from(sorted(OWNERS)))
    def claim(self, operation_id: int, owner: str) -> None:
        before = self.everything()
        with self.transaction() as session:
            claim = operations.claim(session, operation_id, OWNERS[owner], 3600)
        if isinstance(claim, operations.Claim):
            assert self.last[operation_id]["status"] in {"pending", "scheduled"}
            was = next(row for row in before[0] if row["id"] == operation_id)
            assert self.rows("SELECT ? <= strftime('%Y-%m-%d %H:%M:%f999') AS is_due", was["not_before"])[0]["is_due"]
            assert claim.attempt == self.last[operation_id]["attempt"] + 1
            self.claims.append(claim)
        else:
            assert self.everything() == before

    @rule(choice=choices)
    def claim_what_is_due(self, choice: int) -> None:
        pending = self.rows("SELECT id FROM long_term_archive_transfer WHERE status = 'pending' ORDER BY id")
        if pending:
            operation_id = pending[choice % len(pending)]["id"]
            self.time_passes(operation_id, "not_before")
            self.claim(operation_id, "living")

    @precondition(lambda self: self.rows("SELECT 1 FROM long_term_archive_transfer WHERE status = 'in_progress'"))
    @rule(choice=choices)
    def claim_what_another_worker_lost(self, choice: int) -> None:
        running = self.rows("SELECT id FROM long_term_archive_transfer WHERE status = 'in_progress' ORDER BY id")
        self.time_passes(running[choice % len(running)]["id"], "lease_until")
        self.rescue()
        self.counts_only_grow_and_completed_is_final()
        self.claim_what_is_due(choice)

    def fenced(self, choice: int, write: Callable[[Session, operations.Claim], bool]) -> None:
        """An attempt, running or long dead, writes: only the one that runs succeeds, else nothing changes."""
        claim = self.claims[choice % len(self.claims)]
        now = self.last[claim.operation_id]
        is_running = now["status"] == "in_progress" and now["attempt"] == claim.attempt
        before = self.everything()
        with self.transaction() as session:
            assert write(session, claim) is is_running
        if not is_running:
            assert self.everything() == before

    @precondition(lambda self: self.claims)
    @rule(choice=choices)
    def heartbeat(self, choice: int) -> None:
        self.fenced(
            choice, lambda session, claim: operations.heartbeat(session, claim.operation_id, claim.attempt, 3600)
        )

    @precondition(lambda self: self.claims)
    @rule(choice=choices)
    def record(self, choice: int) -> None:
        def write(session: Session, claim: operations.Claim) -> bool:
            key = f"{claim.package}/{claim.package}"
            receipt = Receipt(key, claim.size, {"sha256": Checksum("sha256", "0" * 64)}, Evidence.DIRECT)
            try:
                operations.record(session, claim, receipt)
            except LeaseLostError:
                return False
            return True

        self.fenced(choice, write)

    @precondition(lambda self: self.claims)
    @rule(choice=choices, outcome=st.sampled_from(Outcome), where=st.sampled_from(["lta-1", "lta-2", "buffer"]))
    def settle(self, choice: int, outcome: Outcome, where: str) -> None:
        reasons = {
            Outcome.RETRY: FailureReason.STORAGE_ERROR,
            Outcome.SNOOZE: FailureReason.DESTINATION_UNAVAILABLE,
            Outcome.FAIL: FailureReason.SOURCE_CORRUPT,
        }
        error = LocationUnavailableError("no room", condition="full", location=f"cologne/{where}")

        def write(session: Session, claim: operations.Claim) -> bool:
            # As `retry.decide` does it: without an attempt left there is no retry.
            is_last = outcome is Outcome.RETRY and not claim.attempts_left
            decision = retry.Decision(Outcome.FAIL if is_last else outcome, reasons[outcome], 60)
            return operations.settle(session, claim.operation_id, claim.attempt, decision, error)

        self.fenced(choice, write)

    @rule(operation_id=ids)
    def message_comes_back(self, operation_id: int) -> None:
        with self.transaction() as session:
            was_dead = operations.rescue_one(session, operation_id)
        before = self.last.get(operation_id, {})
        assert was_dead == (before.get("status") == "in_progress" and before["lease_owner"] == str(OWNERS["dead"]))

    # What is asked for by name.

    @rule(operation_ids=st.sets(ids))
    def cancel(self, operation_ids: set[int]) -> None:
        with self.transaction() as session:
            done = operations.cancel(session, operation_ids)
        assert set(done) == {
            i for i in operation_ids & set(self.last) if self.last[i]["status"] in {"pending", "scheduled"}
        }

    @rule(operation_ids=st.sets(ids))
    def retry_failed(self, operation_ids: set[int]) -> None:
        with self.transaction() as session:
            done = operations.retry_failed(session, operation_ids)
        assert set(done) == {i for i in operation_ids & set(self.last) if self.last[i]["status"] == "failed"}
        for row in self.rows("SELECT * FROM long_term_archive_transfer"):
            assert row["id"] not in done or row["attempt_limit"] == row["attempt"] + 2

    @rule(operation_id=ids, by=st.sampled_from([operations.fail, operations.reset]))
    def end_by_name(self, operation_id: int, by: Callable[[Session, int, BaseException], bool]) -> None:
        known = operation_id in self.last
        try:
            with self.transaction() as session:
                done = by(session, operation_id, StorageError("it broke"))
        except UnknownNameError:
            assert not known
        else:
            may = {"in_progress"} if by is operations.reset else {"pending", "scheduled", "in_progress"}
            assert done == (known and self.last[operation_id]["status"] in may)

    # The clock and the operator.

    @rule(operation_id=ids, clock=st.sampled_from(["not_before", "resend_at", "lease_until"]))
    def time_passes(self, operation_id: int, clock: str) -> None:
        statement = f"UPDATE long_term_archive_transfer SET {clock} = ? WHERE id = ? AND {clock} IS NOT NULL"  # noqa: S608
        self.execute(f"{statement} AND status NOT IN ('completed', 'failed')", LONG_AGO, operation_id)

    @rule(archive=archives)
    def pause_ends(self, archive: int) -> None:
        self.execute(
            "UPDATE data_location SET paused_until = ? WHERE id = ? AND paused_until IS NOT NULL", LONG_AGO, archive
        )

    @rule()
    def second_archive_comes_or_goes(self) -> None:
        self.execute("UPDATE data_location SET active = NOT active WHERE id = ?", SECOND)
        self.create(limit=1000)  # a manager notices

    # What must always hold.

    @invariant()
    def every_promise_holds(self) -> None:
        # One after the other: the first refreshes what the others, and the next step, look at.
        self.counts_only_grow_and_completed_is_final()
        self.no_package_is_archived_twice_at_a_place()
        self.completed_means_a_verified_copy_and_a_copy_means_completed()
        self.the_log_tells_legal_moves_and_ends_where_the_operation_is()
        self.a_package_is_what_its_operations_make_it()

    def counts_only_grow_and_completed_is_final(self) -> None:
        now = {row["id"]: row for row in self.rows("SELECT * FROM long_term_archive_transfer")}
        assert now.keys() >= self.last.keys()
        for operation_id, row in now.items():
            before = self.last.get(operation_id, row)
            assert before["attempt"] <= row["attempt"] <= row["attempt_limit"]
            assert before["attempt_limit"] <= row["attempt_limit"]
            if before["status"] == "completed":
                assert row == before
        self.last = now

    def no_package_is_archived_twice_at_a_place(self) -> None:
        twice = self.rows(
            "SELECT raw_data_package_id FROM long_term_archive_transfer "
            "GROUP BY raw_data_package_id, data_location_id HAVING count(*) > 1"
        )
        assert twice == []

    def completed_means_a_verified_copy_and_a_copy_means_completed(self) -> None:
        completed = self.rows(
            "SELECT raw_data_package_id, data_location_id FROM long_term_archive_transfer "
            "WHERE status = 'completed' ORDER BY 1, 2"
        )
        verified = self.rows(
            "SELECT raw_data_package_id, data_location_id FROM raw_data_package_physical_copy "
            "WHERE data_location_id <> ? AND status = 'present' AND verified_at IS NOT NULL "
            "AND verified_how = 'direct' AND checksum IS NOT NULL ORDER BY 1, 2",
            BUFFER,
        )
        assert completed == verified

    def the_log_tells_legal_moves_and_ends_where_the_operation_is(self) -> None:
        at: dict[int, tuple[str | None, int]] = {}
        for row in self.rows("SELECT * FROM long_term_archive_transfer_log ORDER BY id"):
            operation_id = row["long_term_archive_transfer_id"]
            status, attempt = at.get(operation_id, (None, 0))
            assert (row["verb"], status, row["status"]) in LEGAL
            assert row["attempt"] == attempt + (row["verb"] == "claim")
            at[operation_id] = row["status"], row["attempt"]
        assert at == {i: (row["status"], row["attempt"]) for i, row in self.last.items()}

    def a_package_is_what_its_operations_make_it(self) -> None:
        active = {row["id"] for row in self.rows("SELECT id FROM data_location WHERE active AND id <> ?", BUFFER)}
        for package in self.rows("SELECT id, state FROM raw_data_package"):
            found = [row for row in self.last.values() if row["raw_data_package_id"] == package["id"]]
            completed = {row["data_location_id"] for row in found if row["status"] == "completed"}
            if package["state"] == PackageState.ARCHIVED:
                assert completed
            assert package["state"] == self.expected_state(found, completed, active), (active, found)

    def expected_state(self, found: list[Row], completed: set[int], active: set[int]) -> PackageState:
        statuses = {Status(row["status"]) for row in found}
        if any(row["status"] == "failed" and row["data_location_id"] in active for row in found):
            return PackageState.FAILED
        if completed and active <= completed:
            return PackageState.ARCHIVED
        if statuses & {Status.SCHEDULED, Status.IN_PROGRESS, Status.COMPLETED}:
            return PackageState.TRANSFERRING
        return PackageState.WAITING


@pytest.mark.timeout(400)  # a counterexample takes its time to be made small
def test_whatever_happens_in_whatever_order_the_promises_hold(
    empty_database: Path, configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(max_attempts=2, schedule_limit=2)
    monkeypatch.setattr(Operations, "template", empty_database, raising=False)
    run_state_machine_as_test(
        Operations,
        settings=settings(
            max_examples=50, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        ),
    )
