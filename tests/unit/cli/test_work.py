"""`package`, `transfer`, `status`, `queues`, and the services for one round: an operator's day on a declared site."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest
from tests import factories
from tests.unit.cli.conftest import Program

from ccat_data_transfer import (
    archive_manager,
    database,
    dispatch,
    fleet,
    manager,
    models,
    operations,
    reports,
    topology,
    worker,
)
from ccat_data_transfer.cli import status as status_command
from ccat_data_transfer.cli import worker as worker_command
from ccat_data_transfer.exceptions import DatabaseError
from ccat_data_transfer.states import FailureReason, Status


@pytest.fixture
def registered(cologne: Program, night: Path) -> Program:
    """Two packages in the buffer, waiting."""
    cologne.succeed("package", "register", night, "--location", "cologne/buffer")
    return cologne


def _operations(status: Status, count: int = 1, reason: FailureReason | None = None) -> list[int]:
    with database.session_scope() as session:
        lta = topology.find_location(session, "cologne/lta")
        buffer = topology.find_location(session, "cologne/buffer")
        return [
            factories.make_operation(
                session, factories.make_package(session, at=buffer), lta, status=status, reason=reason
            ).id
            for _ in range(count)
        ]


def test_packages_are_registered_once(cologne: Program, night: Path) -> None:
    first = cologne.succeed("package", "register", night, "--location", "cologne/buffer", "--json").json()
    assert [(p["name"], p["created"], p["error"]) for p in first["packages"]] == [
        ("obs-1.tar", True, None),
        ("obs-2.tar", True, None),
    ]
    again = cologne.succeed("package", "register", night, "--location", "cologne/buffer")
    assert again.out.count("already registered") == 2


def test_a_tar_in_the_buffer_is_registered_where_it_lies(cologne: Program, night: Path) -> None:
    cologne.succeed("archive", night, "--to", "other")
    tar = cologne.folder / "buffer/deep/obs-1.tar"
    tar.parent.mkdir()
    tar.write_bytes((cologne.folder / "other/obs-1/obs-1.tar").read_bytes())
    cologne.succeed("package", "register", tar, "--location", "cologne/buffer")
    copies = cologne.succeed("package", "show", "obs-1.tar", "--json").json()["package"]["copies"]
    assert ("cologne/buffer", "deep/obs-1.tar") in [(copy["location"], copy["path"]) for copy in copies]


def test_a_tar_from_elsewhere_says_that_it_was_copied(cologne: Program, night: Path) -> None:
    cologne.succeed("archive", night / "obs-1", "--to", "other")
    tar = cologne.folder / "new.tar"
    tar.write_bytes((cologne.folder / "other/obs-1/obs-1.tar").read_bytes())
    line = cologne.succeed("package", "register", tar, "--location", "cologne/buffer").out
    assert line.startswith("new.tar  registered, copied into 'cologne/buffer'  sha256:")
    line = cologne.succeed("package", "register", night / "obs-2", "--location", "cologne/buffer").out
    assert line.startswith("obs-2.tar  registered, packed into 'cologne/buffer'  sha256:")


@pytest.mark.parametrize(
    ("paths", "place", "code"),
    [
        (("nope",), "cologne/buffer", 2),
        (("night",), "cologne/lta", 2),
        (("night",), "cologne/no", 2),
        (("night",), "buffer", 2),
    ],
)
def test_what_cannot_be_registered_is_refused(
    cologne: Program, night: Path, paths: tuple[str, ...], place: str, code: int
) -> None:
    assert night.is_dir()
    before = cologne.files
    result = cologne("package", "register", *paths, "--location", place)
    assert result.code == code
    assert result.out == ""
    assert cologne.files == before


def test_registering_needs_a_topology(nothing: Program, night: Path) -> None:
    before = nothing.files
    assert nothing("package", "register", night, "--location", "a/b").code == 4
    assert nothing.files == before


def test_other_bytes_of_the_same_name_are_refused(registered: Program, night: Path) -> None:
    (night / "obs-1/a.dat").write_bytes(b"other")
    result = registered("package", "register", night, "--location", "cologne/buffer")
    assert result.code == 1
    assert "obs-1.tar  failed: " in result.out
    assert "1 of 2 were not registered" in result.err
    alone = registered("package", "register", night / "obs-1", "--location", "cologne/buffer")
    assert alone.code == 2


def test_packages_are_listed_and_shown(registered: Program) -> None:
    listed = registered.succeed("package", "list", "--json").json()
    assert sorted((p["name"], p["state"]) for p in listed) == [("obs-1.tar", "waiting"), ("obs-2.tar", "waiting")]
    assert listed[0]["created_at"].endswith("Z")
    assert registered.succeed("package", "list", "--state", "archived", "--json").json() == []
    assert "\tobs-1.tar\twaiting\t10.2 kB\tsha256:" in registered.succeed("package", "list", "--site", "cologne").out
    detail = registered.succeed("package", "show", "obs-1", "--json").json()
    assert [file["path"] for file in detail["files"]] == ["obs-1/a.dat"]
    shown = registered.succeed("package", "show", "obs-1").out
    assert "obs-1/a.dat\t5000\tsha256:" in shown
    assert registered("package", "show", "nope").code == 2


def test_one_pass_of_the_manager_archives_what_is_registered(registered: Program) -> None:
    registered.succeed("archive-manager", "--once", "--site", "cologne")
    listed = registered.succeed("transfer", "list", "--json").json()
    assert {
        "id", "package", "site", "location", "status", "reason", "attempt", "retry_count", "queue", "bytes",
        "checksum", "created_at", "started_at", "completed_at",
    } <= set(listed[0])  # fmt: skip
    assert [each["status"] for each in listed] == ["completed", "completed"]
    assert listed[0]["queue"] == "cologne_lta_long_term_archive_transfer"
    assert listed[0]["completed_at"].endswith("Z")
    assert registered.succeed("package", "list", "--state", "archived", "--json").json() != []
    assert (registered.folder / "lta/obs-1/obs-1.tar").is_file()


def test_a_worker_without_a_broker_carries_what_is_due_and_ends(registered: Program) -> None:
    manager.run_pass(None)
    registered.succeed("worker", "--until-idle", "--location", "cologne/lta", "--concurrency", "2")
    counts = registered.succeed("status", "--json").json()["locations"][0]["counts"]
    assert counts == {"pending": 0, "scheduled": 0, "in_progress": 0, "completed": 2, "failed": 0}


def test_a_flipped_byte_is_refused_and_retried_when_it_is_mended(registered: Program) -> None:
    tar = registered.folder / "buffer/obs-1.tar"
    content = tar.read_bytes()
    tar.chmod(0o644)
    tar.write_bytes(content[:600] + bytes([content[600] ^ 1]) + content[601:])
    registered.succeed("archive-manager", "--once")
    (failed,) = registered.succeed("transfer", "list", "--status", "failed", "--json").json()
    assert (failed["package"], failed["reason"], failed["attempt"]) == ("obs-1.tar", "source_corrupt", 1)
    assert "cologne/lta: 1 failed with source_corrupt" in registered.succeed("status").out

    tar.write_bytes(content)
    retried = registered.succeed("transfer", "retry", str(failed["id"]))
    assert retried.out == f"operation {failed['id']} (obs-1.tar) is due again\n"
    registered.succeed("archive-manager", "--once")
    history = registered.succeed("transfer", "show", str(failed["id"]), "--json").json()
    assert history["transfer"]["status"] == "completed"
    assert [entry["verb"] for entry in history["log"]] == ["create", "claim", "fail", "retry", "claim", "record"]
    assert "\tretry\tpending\t1\t" in registered.succeed("transfer", "show", str(failed["id"])).out


@pytest.mark.parametrize("command", ["show", "retry", "cancel"])
def test_an_unknown_operation_exits_with_2(cologne: Program, command: str) -> None:
    result = cologne("transfer", command, "9223372036854775807")
    assert result.code == 2
    assert "there is no operation 9223372036854775807" in result.err


@pytest.mark.parametrize("command", ["show", "retry", "cancel"])
def test_an_operation_named_by_its_package_says_how_to_find_its_number(cologne: Program, command: str) -> None:
    result = cologne("transfer", command, "obs-1.tar")
    assert result.code == 2
    assert "an operation is named by its number" in result.err
    assert "`ccat_data_transfer transfer list --package obs-1.tar` shows those of a package" in result.err


def test_status_of_an_empty_database_says_what_to_do(program: Program) -> None:
    note = "note: no sites are declared: run `ccat_data_transfer topology apply FILE` or `archive`\n"
    assert program.succeed("status").err == note
    (program.folder / "t.toml").write_text('[[site]]\nname = "C"\nshort_name = "c"\n')
    program.succeed("topology", "apply", "t.toml")
    assert program.succeed("status").err == "note: no site has a long-term archive\n"
    assert program.succeed("status", "--site", "c").err == "note: site 'c' has no long-term archive\n"


def test_status_counts_one_package_as_one(cologne: Program) -> None:
    _operations(Status.PENDING)
    assert "1 package waiting, 0 packages transferring, " in cologne.succeed("status").out


def test_unknown_ids_keep_all_from_being_changed(cologne: Program) -> None:
    (failed,) = _operations(Status.FAILED)
    assert cologne("transfer", "retry", str(failed), "999").code == 2
    assert cologne.succeed("transfer", "list", "--json").json()[0]["status"] == "failed"


def test_only_what_waits_can_be_cancelled(cologne: Program) -> None:
    (pending,), (running,), (done,) = (
        _operations(status) for status in (Status.PENDING, Status.IN_PROGRESS, Status.COMPLETED)
    )
    result = cologne("transfer", "cancel", *map(str, (pending, running, done)))
    assert result.code == 1
    assert f"operation {pending} " in result.out
    assert f"operation {running} cannot be cancelled: it is in_progress" in result.err
    assert f"operation {done} cannot be cancelled: it is completed" in result.err
    (cancelled,) = cologne.succeed("transfer", "list", "--status", "failed", "--json").json()
    assert (cancelled["id"], cancelled["reason"]) == (pending, "cancelled")


def test_all_failed_operations_are_retried_by_reason(cologne: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "BATCH", 2)
    _operations(Status.FAILED, 5, FailureReason.SOURCE_MISSING)
    _operations(Status.FAILED, 1, FailureReason.SOURCE_CORRUPT)
    retried = cologne.succeed("transfer", "retry", "--all-failed", "--site", "cologne", "--reason", "source_missing")
    assert retried.out == "5 operations are due again\n"
    assert cologne.succeed("transfer", "retry", "--all-failed").out == "1 operation is due again\n"
    assert cologne.succeed("transfer", "retry", "--all-failed").out == "0 operations are due again\n"


def test_operations_are_listed_by_place_package_and_number(cologne: Program) -> None:
    ids = _operations(Status.PENDING, 3)

    def listed(*options: str) -> list[int]:
        return [each["id"] for each in cologne.succeed("transfer", "list", *options, "--json").json()]

    assert listed() == ids[::-1]
    assert listed("--limit", "1") == ids[-1:]
    assert listed("--location", "lta", "--site", "cologne") == ids[::-1]
    assert listed("--location", "cologne/lta") == listed("--location", "lta") == ids[::-1]
    assert listed("--status", "completed") == []
    package = cologne.succeed("transfer", "list", "--json").json()[0]["package"]
    assert listed("--package", package) == ids[-1:]
    assert cologne("transfer", "list", "--package", "nope").code == 2
    assert cologne("transfer", "list", "--location", "nope").code == 2
    assert f"{ids[0]}\t" in cologne.succeed("transfer", "list").out


def test_queues_tell_what_is_in_them(cologne: Program) -> None:
    _operations(Status.SCHEDULED, 2)
    _operations(Status.PENDING, 3)
    (queue,) = cologne.succeed("queues", "--site", "cologne", "--json").json()
    assert queue["queue"] == "cologne_lta_long_term_archive_transfer"
    assert (queue["due"], queue["delayed"], queue["scheduled"], queue["in_progress"]) == (3, 0, 2, 0)
    assert queue["oldest_scheduled_seconds"] >= 0
    assert "cologne_lta_long_term_archive_transfer\tcologne/lta\t3\t0\t2\t0\t" in cologne.succeed("queues").out


def test_status_is_drawn_again_until_it_is_stopped(cologne: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    read = status_command._read

    def counted(site: str | None) -> reports.Overview:
        drawn.append(site)
        if len(drawn) == 2:
            signal.raise_signal(signal.SIGINT)
        return read(site)

    monkeypatch.setattr(status_command, "_read", counted)
    monkeypatch.setattr(status_command, "REDRAW_SECONDS", 0.0)
    assert cologne.succeed("status", "--watch").out.count("cologne/lta") >= 2


def test_the_database_is_checked(cologne: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    found = cologne.succeed("db", "check", "--json").json()
    assert (found["journal_mode"], found["synchronous"], found["foreign_keys"], found["intact"]) == ("wal", 2, 1, True)
    assert "schema" in cologne.succeed("db", "check").out
    monkeypatch.setattr(database, "SCHEMA_REVISION", "0000")
    result = cologne("db", "check")
    assert result.code == 4
    assert "newer than this program's" in result.err


def test_a_damaged_reference_is_found(cologne: Program) -> None:
    with database.engine().connect() as connection:
        raw = connection.connection.dbapi_connection
        assert raw is not None
        raw.execute("PRAGMA foreign_keys=OFF")
        raw.execute("UPDATE data_location SET site_id = 99")
        raw.execute("PRAGMA foreign_keys=ON")
    database.dispose()
    result = cologne("db", "check")
    assert result.code == 4
    assert "refers to one of 'site'" in result.err


def test_the_schema_is_made_and_brought_up_to_date(nothing: Program) -> None:
    assert "is now at schema" in nothing.succeed("db", "upgrade").out
    assert nothing.succeed("db", "upgrade", "--json").json()["changed"] is False


def test_an_empty_configured_database_names_the_command_that_helps(
    nothing: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    (nothing.folder / "empty.sqlite").touch()
    monkeypatch.setenv("CCAT_DATA_TRANSFER_DATABASE_URL", f"sqlite:///{nothing.folder}/empty.sqlite")
    result = nothing("status")
    assert result.code == 4
    assert "db upgrade" in result.err


@pytest.mark.parametrize("command", [("archive-manager", "--once"), ("archive-manager",), ("worker",)])
def test_a_service_for_an_unknown_site_exits_with_2(cologne: Program, command: tuple[str, ...]) -> None:
    result = cologne(*command, "--site", "nowhere")
    assert result.code == 2
    assert "no site is called 'nowhere'" in result.err


def test_a_worker_for_an_unknown_location_exits_with_2(cologne: Program) -> None:
    assert cologne("worker", "--location", "cologne/nowhere").code == 2
    assert cologne("worker", "--location", "nowhere").code == 2


@pytest.fixture
def broker(cologne: Program, monkeypatch: pytest.MonkeyPatch) -> Program:
    """A broker that does not answer."""
    monkeypatch.setenv("CCAT_DATA_TRANSFER_BROKER_URL", "redis://127.0.0.1:1/0")
    return cologne


def test_one_pass_says_when_the_broker_is_away(broker: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dispatches: list[operations.Dispatch]) -> list[int]:
        return [each.operation_id for each in dispatches]

    _operations(Status.PENDING, 2)
    monkeypatch.setattr(dispatch, "send", refuse)
    result = broker("archive-manager", "--once")
    assert result.code == 5
    assert "error: the broker did not take 2 of 2 messages" in result.err


def test_a_worker_with_a_broker_starts_a_fleet(broker: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(fleet.Fleet, "run", lambda self, _stop: started.append(vars(self)))
    broker.succeed("worker", "--site", "cologne", "--concurrency", "3")
    assert [(each["_site"], each["_location"], each["_concurrency"]) for each in started] == [("cologne", None, 3)]
    assert broker("worker", "--until-idle").code == 2


def test_the_services_run_until_they_are_told_to_stop(registered: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    carried = threading.Event()
    carry_out = worker.carry_out

    def watched(*arguments: object, **options: object) -> worker.Result:
        result = carry_out(*arguments, **options)  # type: ignore[arg-type]
        if not carried.is_set():
            carried.set()
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    monkeypatch.setattr(worker, "carry_out", watched)
    manager.run_pass(None)
    assert registered("worker").code == 0
    assert carried.is_set()


def test_the_manager_service_is_given_what_was_asked(cologne: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(archive_manager, "archive_manager_service", lambda *arguments: asked.append(arguments))
    cologne.succeed("archive-manager", "--site", "cologne")
    cologne.succeed("--verbose", "archive-manager")
    assert asked == [(False, "cologne"), (True, None)]


def test_a_database_that_is_away_is_waited_for_by_services(cologne: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []
    check = database.check_schema

    def away_at_first() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise DatabaseError("it is away")
        check()

    monkeypatch.setattr(worker_command, "FIRST_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(database, "check_schema", away_at_first)
    result = cologne.succeed("worker", "--until-idle")
    assert "database_unavailable" in result.err

    monkeypatch.setattr(archive_manager, "archive_manager_service", lambda *_arguments: None)
    tries.clear()
    assert "database_unavailable" in cologne.succeed("archive-manager").err


def test_services_log_what_they_do_and_commands_only_trouble(registered: Program) -> None:
    events = [json.loads(line)["event"] for line in registered.succeed("archive-manager", "--once").err.splitlines()]
    assert "operation_completed" in events
    assert registered.succeed("status").err == ""


def test_a_name_from_the_database_cannot_act_on_the_terminal(cologne: Program) -> None:
    with database.session_scope() as session:
        package = models.RawDataPackage(name="a\x1b[2Jb\tc.tar", size=1)
        session.add(package)
    out = cologne.succeed("package", "list").out
    assert "\x1b" not in out
    assert "a\\x1b[2Jb\\tc.tar" in out
