"""`archive`: from a folder to verified copies, and what happens when something is in the way."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.cli.conftest import WORKDIR, Program

from ccat_data_transfer import database, packages, worker
from ccat_data_transfer.cli import archiving, outcomes
from ccat_data_transfer.exceptions import StorageError
from ccat_data_transfer.states import PauseReason
from ccat_data_transfer.storage.base import Health
from ccat_data_transfer.storage.posix import PosixStorage

INTERRUPTED = "interrupted: nothing more was started; run the same command again to go on"


def test_one_command_archives_a_folder_at_two_destinations(nothing: Program, night: Path) -> None:
    result = nothing.succeed("archive", night, "--to", "a", "--to", "b")
    *lines, summary = result.out.splitlines()
    assert len(lines) == 4
    for line in lines:
        assert "  archived  sha256:" in line
    assert (nothing.folder / "a/obs-1/obs-1.tar").read_bytes() == (nothing.folder / "b/obs-1/obs-1.tar").read_bytes()
    assert summary.startswith("2 of 2 packages (")
    assert ") archived at 2 destinations; copies: 4 archived now and verified; " in summary
    assert f"{nothing.folder}/{WORKDIR}/operations.sqlite" in summary
    assert result.err == ""


def test_a_second_run_does_nothing(nothing: Program, night: Path) -> None:
    nothing.succeed("archive", night, "--to", "a")
    before = {path: path.stat().st_mtime_ns for path in (nothing.folder / "a").rglob("*")}
    again = nothing.succeed("archive", night, "--to", "a", "--json").json()
    assert [d["outcome"] for p in again["packages"] for d in p["destinations"]] == ["already archived"] * 2
    assert [d["attempt"] for p in again["packages"] for d in p["destinations"]] == [1, 1]
    assert {path: path.stat().st_mtime_ns for path in (nothing.folder / "a").rglob("*")} == before


def test_a_second_destination_gets_only_what_it_lacks(nothing: Program, night: Path) -> None:
    nothing.succeed("archive", night / "obs-1", "--to", "a")
    report = nothing.succeed("archive", night, "--to", "a", "--to", "b", "--json").json()
    outcomes = {p["name"]: [d["outcome"] for d in p["destinations"]] for p in report["packages"]}
    assert outcomes == {"obs-1.tar": ["already archived", "archived"], "obs-2.tar": ["archived", "archived"]}


def test_the_summary_tells_what_was_read_now_from_what_was_verified_earlier(nothing: Program, night: Path) -> None:
    nothing.succeed("archive", night / "obs-1", "--to", "a")
    both = nothing.succeed("archive", night, "--to", "a").out
    assert "; copies: 1 archived now and verified, 1 verified earlier and not read again; " in both
    again = nothing.succeed("archive", night / "obs-1", "--to", "a").out
    assert (
        "1 of 1 package (10.2 kB) archived at 1 destination; copies: 1 verified earlier and not read again; " in again
    )


def test_the_json_report_has_its_documented_shape(nothing: Program, night: Path) -> None:
    report = nothing.succeed("archive", night / "obs-1", "--to", "a", "--json").json()
    (package,) = report["packages"]
    (copy,) = package["destinations"]
    assert (report["archived"], report["failed"], report["waiting"]) == (1, 0, 0)
    assert report["database"] == f"{nothing.folder}/{WORKDIR}/operations.sqlite"
    assert (package["name"], package["size"]) == ("obs-1.tar", 10_240)
    assert package["checksum"].startswith("sha256:")
    assert copy["location"] == "local/a"
    assert copy["status"] == "completed"
    assert copy["path"] == f"{nothing.folder}/a/obs-1/obs-1.tar"
    assert copy["attempt"] == 1
    assert copy["evidence"]
    assert copy["reason"] is None
    assert copy["error"] is None


def test_a_destination_may_be_a_url(nothing: Program, night: Path) -> None:
    (nothing.folder / "the archive").mkdir()
    nothing.succeed("archive", night, "--to", f"file://{nothing.folder}/the%20archive")
    assert (nothing.folder / "the archive/obs-2/obs-2.tar").is_file()


def test_the_working_directory_may_lie_inside_of_what_is_archived(nothing: Program, night: Path) -> None:
    workdir = night / WORKDIR
    nothing.succeed("archive", night, "--to", "a", "--workdir", workdir)
    report = nothing.succeed("archive", night, "--to", "a", "--workdir", workdir, "--json").json()
    assert [package["name"] for package in report["packages"]] == ["obs-1.tar", "obs-2.tar"]


def test_what_an_earlier_database_archived_is_adopted(nothing: Program, night: Path) -> None:
    nothing.succeed("archive", night, "--to", "a")
    report = nothing.succeed("archive", night, "--to", "a", "--json", "--workdir", "other").json()
    assert {d["outcome"] for p in report["packages"] for d in p["destinations"]} == {"adopted"}


def test_a_dry_run_makes_nothing(nothing: Program, night: Path) -> None:
    before = nothing.files
    plan = nothing.succeed("archive", night, "--to", "a", "--dry-run", "--json").json()
    assert [(p["name"], p["kind"], p["size"]) for p in plan["packages"]] == [
        ("obs-1.tar", "folder", 5000),
        ("obs-2.tar", "folder", 70_000),
    ]
    assert plan["destinations"] == [f"{nothing.folder}/a"]
    assert "would archive obs-1.tar" in nothing.succeed("archive", night, "--to", "a", "--dry-run").out
    assert nothing.files == before


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[600] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


def test_a_byte_that_flips_after_registering_is_refused(
    nothing: Program, night: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry = archiving._carry

    def flipped(*arguments: Any) -> set[int]:
        _flip(nothing.folder / WORKDIR / "packed" / "obs-1.tar")
        return carry(*arguments)

    monkeypatch.setattr(archiving, "_carry", flipped)
    result = nothing("archive", night, "--to", "a", "--json")
    assert result.code == 1
    report = result.json()
    assert (report["archived"], report["failed"]) == (1, 1)
    (copy,) = report["packages"][0]["destinations"]
    assert (copy["status"], copy["reason"], copy["outcome"]) == ("failed", "source_corrupt", "failed")
    assert not (nothing.folder / "a/obs-1/obs-1.tar").exists()
    assert "transfer show" in result.err
    listed = nothing.succeed("transfer", "list", "--status", "failed", "--json").json()
    assert [(each["package"], each["reason"]) for each in listed] == [("obs-1.tar", "source_corrupt")]


def test_other_bytes_under_the_name_are_left_as_they_are(nothing: Program, night: Path) -> None:
    taken = nothing.folder / "a/obs-1/obs-1.tar"
    taken.parent.mkdir(parents=True)
    taken.write_bytes(b"other")
    result = nothing("archive", night, "--to", "a")
    assert result.code == 1
    assert "obs-1.tar  failed: destination_conflict: " in result.out
    assert "obs-2.tar  archived" in result.out
    assert taken.read_bytes() == b"other"


def test_a_failed_package_is_tried_again_by_the_same_command(nothing: Program, night: Path) -> None:
    taken = nothing.folder / "a/obs-1/obs-1.tar"
    taken.parent.mkdir(parents=True)
    taken.write_bytes(b"other")
    assert nothing("archive", night, "--to", "a").code == 1
    taken.unlink()
    nothing.succeed("archive", night, "--to", "a")


def test_the_same_name_with_other_bytes_names_both(nothing: Program, night: Path) -> None:
    nothing.succeed("archive", night / "obs-1", "--to", "a")
    (night / "obs-1" / "a.dat").write_bytes(b"x" * 5000)
    result = nothing("archive", night / "obs-1", "--to", "a")
    assert result.code == 2
    assert result.out.count("sha256:") == 2
    assert "give other data another name" in result.err


def test_a_truncated_tar_fails_and_its_neighbours_do_not(nothing: Program, night: Path) -> None:
    nothing.succeed("archive", night / "obs-2", "--to", "a")
    tar = nothing.folder / "a/obs-2/obs-2.tar"
    (nothing.folder / "cut.tar").write_bytes(tar.read_bytes()[:30_000])
    alone = nothing("archive", "cut.tar", "--to", "a")
    assert alone.code == 7 or alone.code == 2
    assert "cut.tar  failed: " in alone.out
    together = nothing("archive", "cut.tar", night, "--to", "a")
    assert together.code == 1
    assert "obs-1.tar  archived" in together.out
    assert not (nothing.folder / "a/cut").exists()


def test_a_trouble_that_may_pass_is_reported_as_waiting(
    nothing: Program, night: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_arguments: object, **_options: object) -> None:
        raise StorageError("the disk coughed")

    with monkeypatch.context() as patch:
        patch.setattr(PosixStorage, "put", fails)
        result = nothing("archive", night / "obs-1", "--to", "a")
    assert result.code == 1
    assert "obs-1.tar  waiting: storage_error: the disk coughed" in result.out
    assert "run the same command again to go on" in result.err
    nothing.succeed("archive", night / "obs-1", "--to", "a")  # at once: what is asked for by name does not wait


def test_a_pause_of_an_earlier_run_is_not_waited_for(
    nothing: Program, night: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: PosixStorage, *_arguments: object, **_options: object) -> None:
        from ccat_data_transfer.storage import errnos

        raise errnos.unavailable(self.location, PauseReason.FULL, "is full")

    with monkeypatch.context() as patch:
        patch.setattr(PosixStorage, "put", full)
        result = nothing("archive", night, "--to", "a")
    assert result.code == 1
    lines = result.out.splitlines()[:-1]
    assert len(lines) == 2
    assert all("  waiting: " in line and "is full" in line for line in lines)  # also of what was not begun
    assert "hint: make destination 'local/a' usable (mounted, writable, with room), then run the same" in result.err
    assert "full" in nothing.succeed("status").out
    nothing.succeed("archive", night, "--to", "a")


def test_an_archived_package_that_is_gone_is_not_called_archived(nothing: Program, night: Path) -> None:
    nothing.succeed("archive", night / "obs-1", "--to", "a")
    (nothing.folder / "a/obs-1/obs-1.tar").unlink()
    result = nothing("archive", night / "obs-1", "--to", "a")
    assert result.code == 1
    assert "failed: it was archived, and is not there any more" in result.out
    packed = nothing.folder / WORKDIR / "packed/obs-1.tar"
    assert result.err.splitlines() == [
        "error: not everything is archived: 1 failed",
        f"hint: {outcomes.LOST}; then restore it by hand, for instance from '{packed}'",
    ]


def test_a_lost_object_is_restored_from_another_archive_first(nothing: Program, night: Path) -> None:
    nothing.succeed("archive", night / "obs-1", "--to", "a", "--to", "b")
    lost = nothing.folder / "a/obs-1/obs-1.tar"
    lost.chmod(0o644)
    lost.write_bytes(b"xyz")
    result = nothing("archive", night / "obs-1", "--to", "a", "--to", "b")
    assert "failed: it was archived with 10.2 kB (10240 bytes), and has 3 B (3 bytes) now" in result.out
    assert f"for instance from '{nothing.folder}/b/obs-1/obs-1.tar'" in result.err


def test_a_lost_object_without_another_copy_is_told_so(nothing: Program, night: Path) -> None:
    nothing.succeed("archive", night / "obs-1", "--to", "a", "--to", "b")
    tar = nothing.folder / "obs-1.tar"
    tar.write_bytes((nothing.folder / "a/obs-1/obs-1.tar").read_bytes())
    for path in (nothing.folder / WORKDIR / "packed", nothing.folder / "a/obs-1", nothing.folder / "b/obs-1"):
        (path / "obs-1.tar").unlink()
    result = nothing("archive", night / "obs-1", "--to", "a", "--to", "b", "--json")
    assert result.code == 1
    assert [d["outcome"] for d in result.json()["packages"][0]["destinations"]] == ["failed", "failed"]
    assert result.err.count("hint: ") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_gives_the_attempts_back(
    nothing: Program, night: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    carry_out = worker.carry_out

    def interrupted(operation_id: object, **options: Any) -> worker.Result:
        os.kill(os.getpid(), number)
        while not options["should_stop"]():  # the main thread takes the signal
            pass
        return carry_out(operation_id, **options)

    with monkeypatch.context() as patch:
        patch.setattr(worker, "carry_out", interrupted)
        result = nothing("archive", night / "obs-1", "--to", "a")
    assert result.code == 130
    assert "waiting: interrupted" in result.out
    assert result.err.splitlines() == ["error: not everything is archived: 1 waiting", INTERRUPTED]
    nothing.succeed("archive", night / "obs-1", "--to", "a")


def test_a_signal_while_registering_ends_the_work(
    nothing: Program, night: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register = packages.register

    def interrupted(*arguments: Any, on_progress: Callable[[int], None], **options: Any) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return register(*arguments, on_progress=on_progress, **options)

    monkeypatch.setattr(packages, "register", interrupted)
    result = nothing("archive", night, "--to", "a")
    assert result.code == 130
    assert result.out == ""
    assert result.err.splitlines() == [INTERRUPTED]
    assert not (nothing.folder / "a/obs-1").exists()


def test_what_a_signal_kept_from_being_begun_says_so(
    nothing: Program, night: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry = archiving._carry

    def interrupted(asked: Any, locations: Any, stop: threading.Event, advance: Any) -> set[int]:
        stop.set()
        return carry(asked, locations, stop, advance)

    monkeypatch.setattr(archiving, "_carry", interrupted)
    result = nothing("archive", night, "--to", "a")
    assert result.code == 130
    assert result.out.count("waiting: interrupted before it was begun") == 2
    assert result.err.splitlines()[-1] == INTERRUPTED


def test_an_attempt_of_a_killed_run_is_taken_up_at_once(
    nothing: Program, night: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(operation_id: int, **_options: object) -> worker.Result:
        from ccat_data_transfer import leases, operations

        gone = leases.Owner.of_this_process()
        dead = leases.Owner(gone.host, gone.boot, gone.namespace, 2**22 + 1, "1")
        with database.session_scope() as session:
            operations.claim(session, operation_id, dead, 3600)
        return worker.Result(operation_id, worker.Ending.LOST)

    with monkeypatch.context() as patch:
        patch.setattr(worker, "carry_out", killed)
        result = nothing("archive", night / "obs-1", "--to", "a")
    assert result.code == 1
    assert "waiting: another process is carrying it" in result.out
    assert "hint: wait until the other process has ended" in result.err
    report = nothing.succeed("archive", night / "obs-1", "--to", "a", "--json").json()
    assert report["packages"][0]["destinations"][0]["attempt"] == 2


def test_a_database_that_goes_away_ends_the_work_with_4(
    nothing: Program, night: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_operation_id: int, **_options: object) -> worker.Result:
        raise database.DatabaseTroubleError("the database refused: gone")

    monkeypatch.setattr(worker, "carry_out", away)
    result = nothing("archive", night, "--to", "a")
    assert result.code == 4
    assert result.err.startswith("error: the database refused: gone\n")


def test_a_destination_that_becomes_unusable_before_the_start_is_one_error(
    nothing: Program, night: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (nothing.folder / "a").mkdir()
    unwell = Health(PauseReason.READ_ONLY, "it is read-only")
    monkeypatch.setattr(PosixStorage, "check", lambda _self, **_options: unwell)
    before = nothing.files
    result = nothing("archive", night, "--to", "a")
    assert result.code == 6
    assert result.err.startswith("error: destination 'a' cannot be used: it is read-only\nhint: ")
    assert result.out == ""
    assert nothing.files == before
