"""The published interface of the Archive Manager: each name, signature and attribute as it was published."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery.utils.threads import _LocalStack
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from tests import factories

from ccat_data_transfer import archive_manager, celery_app, database, models
from ccat_data_transfer.archive_manager import LongTermArchiveTask, send_data_to_long_term_archive
from ccat_data_transfer.exceptions import (
    DatabaseError,
    DataCorruptionError,
    NoChecksumError,
    StorageError,
    UnknownNameError,
)
from ccat_data_transfer.locations import LocationType
from ccat_data_transfer.states import FailureReason, Status

Configure = Callable[..., None]

NAMES = {
    "LongTermArchiveTask",
    "send_data_to_long_term_archive",
    "transfer_raw_data_packages_to_long_term_archive",
    "archive_manager_service",
    "archive_package",
}
ATTRIBUTES = {
    "ignore_result": False,
    "priority": None,
    "rate_limit": None,
    "reject_on_worker_lost": True,
    "serializer": "json",
    "store_errors_even_if_ignored": False,
    "track_started": True,
    "typing": True,
}
METHODS = {
    "__init__": [],
    "get_retry_count": ["session", "operation_id"],
    "reset_state_on_failure": ["session", "long_term_archive_transfer_id", "exc"],
    "mark_permanent_failure": ["session", "long_term_archive_transfer_id", "exc"],
    "get_operation_info": ["args", "kwargs"],
}


def test_the_module_offers_the_published_names_and_no_other() -> None:
    assert set(archive_manager.__all__) == NAMES
    assert all(hasattr(archive_manager, name) for name in NAMES)
    assert len(archive_manager.__all__) == len(NAMES)


def test_the_task_class_is_of_the_observatorys_base() -> None:
    assert LongTermArchiveTask.__bases__ == (celery_app.CCATEnhancedSQLAlchemyTask,)
    assert isinstance(send_data_to_long_term_archive, LongTermArchiveTask)


@pytest.mark.parametrize(("name", "value"), ATTRIBUTES.items())
def test_an_attribute_is_as_published_of_the_class_and_of_the_bound_task(name: str, value: object) -> None:
    for owner in (LongTermArchiveTask, send_data_to_long_term_archive):
        found = getattr(owner, name)
        assert (type(found), found) == (type(value), value)


def test_the_bound_task_keeps_its_requests_on_a_stack() -> None:
    assert isinstance(send_data_to_long_term_archive.request_stack, _LocalStack)


def test_messages_are_acknowledged_late_or_giving_them_back_would_mean_nothing() -> None:
    assert LongTermArchiveTask.acks_late is True
    assert send_data_to_long_term_archive.acks_late is True


@pytest.mark.parametrize(("name", "parameters"), METHODS.items())
def test_a_method_has_the_published_parameters(name: str, parameters: list[str]) -> None:
    signature = inspect.signature(getattr(LongTermArchiveTask, name))
    assert list(signature.parameters) == ["self", *parameters]
    assert all(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in signature.parameters.values())


def test_the_task_has_the_published_signature() -> None:
    signature = inspect.signature(send_data_to_long_term_archive.run)
    operation_id, session = signature.parameters.values()
    assert (operation_id.name, operation_id.annotation, operation_id.default) == (
        "long_term_archive_transfer_id",
        int,
        inspect.Parameter.empty,
    )
    assert (session.name, session.annotation, session.default) == ("session", Session, None)
    assert signature.return_annotation is None


def test_the_managers_pass_has_the_published_signature() -> None:
    signature = inspect.signature(archive_manager.transfer_raw_data_packages_to_long_term_archive)
    assert str(signature) == "(verbose: bool = False, site_name: str | None = None) -> None"


@pytest.mark.parametrize("name", ["archive_manager_service", "archive_package"])
def test_a_key_function_can_be_called_and_says_what_it_does(name: str) -> None:
    function = getattr(archive_manager, name)
    assert callable(function)
    assert (function.__doc__ or "").strip()


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_published_name_says_what_it_is(name: str) -> None:
    assert (getattr(archive_manager, name).__doc__ or "").strip()


@pytest.mark.parametrize(("args", "kwargs"), [((7,), {}), ((), {"long_term_archive_transfer_id": 7})])
def test_the_context_of_a_call_names_its_operation(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    info = send_data_to_long_term_archive.get_operation_info(args, kwargs)
    assert info == {"operation_type": "long_term_archive_transfer", "operation_id": 7}


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), (("x", None), {}), ((), {"session": 3})])
def test_the_context_of_a_strange_call_is_given_all_the_same(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    assert "operation_id" in send_data_to_long_term_archive.get_operation_info(args, kwargs)


def operation_in(status: Status, *, attempt: int = 0) -> int:
    """The id of an operation in that status, committed."""
    with database.session_scope() as session:
        buffer = factories.make_location(session, "/nowhere/buffer")
        archive = factories.make_location(
            session, "/nowhere/lta", name="lta", location_type=LocationType.LONG_TERM_ARCHIVE
        )
        package = factories.make_package(session, at=buffer)
        return factories.make_operation(session, package, archive, status=status, attempt=attempt).id


def state_of(operation_id: int) -> tuple[Status, FailureReason | None, int]:
    with database.session_scope(read_only=True) as session:
        row = session.get_one(models.LongTermArchiveTransfer, operation_id)
        return row.status, row.reason, row.retry_count


@pytest.mark.usefixtures("sqlite_database")
class TestTheTasksHandling:
    def test_a_running_operation_is_reset_for_a_retry_that_counts(self) -> None:
        operation_id = operation_in(Status.IN_PROGRESS)
        with Session(database.engine()) as session:
            send_data_to_long_term_archive.reset_state_on_failure(session, operation_id, StorageError("broken"))
            assert send_data_to_long_term_archive.get_retry_count(session, operation_id) == 1
        assert state_of(operation_id) == (Status.PENDING, FailureReason.STORAGE_ERROR, 1)

    def test_a_reset_on_the_last_attempt_is_a_failure(self) -> None:
        operation_id = operation_in(Status.IN_PROGRESS, attempt=5)
        with Session(database.engine()) as session:
            send_data_to_long_term_archive.reset_state_on_failure(session, operation_id, StorageError("broken"))
        assert state_of(operation_id) == (Status.FAILED, FailureReason.ATTEMPTS_EXHAUSTED, 0)

    @pytest.mark.parametrize("status", [Status.PENDING, Status.SCHEDULED, Status.COMPLETED, Status.FAILED])
    def test_nothing_is_reset_that_does_not_run(self, status: Status) -> None:
        operation_id = operation_in(status)
        before = state_of(operation_id)
        with Session(database.engine()) as session:
            send_data_to_long_term_archive.reset_state_on_failure(session, operation_id, StorageError("broken"))
        assert state_of(operation_id) == before

    @pytest.mark.parametrize("status", [Status.PENDING, Status.SCHEDULED, Status.IN_PROGRESS])
    def test_what_has_not_ended_can_be_failed_for_good(self, status: Status) -> None:
        operation_id = operation_in(status)
        with Session(database.engine()) as session:
            send_data_to_long_term_archive.mark_permanent_failure(session, operation_id, DataCorruptionError("rotten"))
        assert state_of(operation_id)[:2] == (Status.FAILED, FailureReason.SOURCE_CORRUPT)

    def test_what_is_completed_is_never_marked_as_failed(self) -> None:
        operation_id = operation_in(Status.COMPLETED)
        with Session(database.engine()) as session:
            send_data_to_long_term_archive.mark_permanent_failure(session, operation_id, NoChecksumError())
        assert state_of(operation_id)[0] is Status.COMPLETED

    @pytest.mark.parametrize("operation_id", [999, 0, -1, 2**63])
    def test_an_operation_that_does_not_exist_is_a_clear_error(self, operation_id: int) -> None:
        with Session(database.engine()) as session:
            with pytest.raises(UnknownNameError, match=f"no operation {operation_id}"):
                send_data_to_long_term_archive.get_retry_count(session, operation_id)
            with pytest.raises(UnknownNameError):
                send_data_to_long_term_archive.reset_state_on_failure(session, operation_id, StorageError())

    def test_the_task_called_for_nothing_claims_nothing_and_returns_nothing(self) -> None:
        assert send_data_to_long_term_archive(999) is None

    def test_the_task_works_on_the_session_it_is_given(self) -> None:
        operation_id = operation_in(Status.FAILED)
        with Session(database.engine()) as session:
            assert send_data_to_long_term_archive(operation_id, session) is None
            assert not session.in_transaction()

    @pytest.mark.parametrize("site_name", [None, "cologne", "Cologne", "COLOGNE"])
    def test_a_pass_creates_and_carries_out_what_is_ready(self, site_name: str | None) -> None:
        operation_id = operation_in(Status.COMPLETED)  # makes the topology
        with database.session_scope() as session:
            buffer = session.get_one(models.DataLocation, 1)
            factories.make_package(session, at=buffer, checksum=None)
            ready = factories.make_package(session, at=buffer, name="../bad").id
        archive_manager.transfer_raw_data_packages_to_long_term_archive(site_name=site_name)
        with database.session_scope(read_only=True) as session:
            rows = session.query(models.LongTermArchiveTransfer).order_by(models.LongTermArchiveTransfer.id).all()
        assert [(row.id == operation_id, row.raw_data_package_id == ready, row.status) for row in rows] == [
            (True, False, Status.COMPLETED),
            (False, True, Status.FAILED),
        ]

    @pytest.mark.parametrize("site_name", ["nowhere", "", "cologne/lta", "x" * 1000])
    def test_an_unknown_site_is_a_clear_error(self, site_name: str) -> None:
        operation_in(Status.COMPLETED)
        with pytest.raises(UnknownNameError, match="no site is called") as refused:
            archive_manager.transfer_raw_data_packages_to_long_term_archive(site_name=site_name)
        assert "cologne (Cologne)" in refused.value.remedy


class TestTroubleOfTheDatabase:
    def a_pass_fails(self) -> BaseException:
        with pytest.raises(SQLAlchemyError) as raised:
            archive_manager.transfer_raw_data_packages_to_long_term_archive()
        assert isinstance(raised.value, DatabaseError)
        return raised.value

    def test_a_database_that_cannot_be_reached_is_an_sqlalchemy_error(
        self, tmp_path: Path, configure: Configure
    ) -> None:
        configure(database_url=f"sqlite:///{tmp_path}/no/such/folder/operations.sqlite")
        assert "unable to open database file" in str(self.a_pass_fails())

    def test_a_file_that_is_no_database_is_an_sqlalchemy_error(self, tmp_path: Path, configure: Configure) -> None:
        (tmp_path / "operations.sqlite").write_bytes(b"this is something else" * 1000)
        configure(database_url=f"sqlite:///{tmp_path}/operations.sqlite")
        assert "not a database" in str(self.a_pass_fails())

    def test_an_empty_database_is_an_sqlalchemy_error(self, tmp_path: Path, configure: Configure) -> None:
        configure(database_url=f"sqlite:///{tmp_path}/operations.sqlite")
        assert "empty" in str(self.a_pass_fails())

    def test_a_database_that_could_forget_is_an_sqlalchemy_error(self, configure: Configure) -> None:
        configure(database_url="sqlite://")
        assert "could forget a commit" in str(self.a_pass_fails())

    def test_the_task_raises_it_too(self, tmp_path: Path, configure: Configure) -> None:
        configure(database_url=f"sqlite:///{tmp_path}/no/such/folder/operations.sqlite")
        with pytest.raises(SQLAlchemyError):
            send_data_to_long_term_archive(1)


def test_the_message_of_a_call_is_json() -> None:
    signature = send_data_to_long_term_archive.s(7)
    assert json.loads(json.dumps(signature))["args"] == [7]
    assert json.loads(json.dumps(signature))["task"].endswith(".archive_manager.send_data_to_long_term_archive")


def test_what_a_message_brings_as_a_session_is_no_session(sqlite_database: str) -> None:
    assert sqlite_database
    archive_manager.send_data_to_long_term_archive(1, "x")
    with database.session_scope(read_only=True) as session:
        assert session.query(models.LongTermArchiveTransferLog).count() == 0
