"""What `archive` refuses up front: one clear error, the documented exit code, and nothing made."""

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.cli.conftest import WORKDIR, Program
from tests.unprivileged import unprivileged

from ccat_data_transfer.storage import volume

Prepare = Callable[[Path], None]


def _nothing(_folder: Path) -> None:
    """The night is enough."""


def _fifo(folder: Path) -> None:
    os.mkfifo(folder / "night/obs-1/pipe")


def _socket(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        # Relative, because the path of a socket must be short.
        listener.bind("s")
    (folder / "s").rename(folder / "night/obs-1/s")


def _dangling(folder: Path) -> None:
    (folder / "night/obs-1/link").symlink_to("nowhere")


def _loop(folder: Path) -> None:
    (folder / "loop").symlink_to("loop")


def _newline(folder: Path) -> None:
    (folder / "night/a\nb").mkdir()
    (folder / "night/a\nb/x").write_text("x")


def _twins(folder: Path) -> None:
    for name in ("X", "x"):
        (folder / "night/obs-1" / name).write_text("x")


def _bad_bytes(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder / "night/obs-1") + b"/\xff")).write_text("x")


def _file(folder: Path) -> None:
    (folder / "file").write_text("x")


def _empty_tar(folder: Path) -> None:
    (folder / "empty.tar").touch()


def _empty_folder(folder: Path) -> None:
    (folder / "empty").mkdir()


def _dangling_destination(folder: Path) -> None:
    (folder / "mount").symlink_to("gone")


def _linked_destination(folder: Path) -> None:
    (folder / "elsewhere").symlink_to("night")


REFUSALS: list[tuple[str, Prepare, tuple[str, ...], int, str]] = [
    ("missing", _nothing, ("nope", "--to", "a"), 2, "'nope' does not exist"),
    ("no path", _nothing, ("", "--to", "a"), 2, "'' does not exist"),
    ("empty folder", _empty_folder, ("empty", "--to", "a"), 2, "holds no files"),
    ("empty tar", _empty_tar, ("empty.tar", "--to", "a"), 2, "is an empty file"),
    ("fifo", _fifo, ("night", "--to", "a"), 2, "is a named pipe"),
    ("socket", _socket, ("night", "--to", "a"), 2, "is a socket"),
    ("device", _nothing, ("/dev/null", "--to", "a"), 2, "is a device"),
    ("dangling link", _dangling, ("night", "--to", "a"), 2, "is a symbolic link"),
    ("looping link", _loop, ("loop", "--to", "a"), 2, "'loop' cannot be read"),
    ("newline", _newline, ("night", "--to", "a"), 2, "a\\nb"),
    ("twins", _twins, ("night", "--to", "a"), 2, "would be one file on some file systems"),
    ("bad bytes", _bad_bytes, ("night", "--to", "a"), 2, "is not valid UTF-8"),
    ("second path missing", _nothing, ("night", "nope", "--to", "a"), 2, "'nope' does not exist"),
    ("destination in source", _nothing, ("night", "--to", "night/a"), 2, "is inside 'night'"),
    ("destination is source", _nothing, ("night", "--to", "night"), 2, "is inside 'night'"),
    ("source in destination", _nothing, ("night/obs-1", "--to", "night"), 2, "is inside destination 'night'"),
    ("destination links to source", _linked_destination, ("night", "--to", "elsewhere/a"), 2, "is inside 'night'"),
    ("destination is a file", _file, ("night", "--to", "file"), 2, "is not a directory"),
    ("destination below a file", _file, ("night", "--to", "file/a"), 2, "cannot be made"),
    ("no parent", _nothing, ("night", "--to", "no/such/a"), 2, "there is no folder"),
    ("empty destination", _nothing, ("night", "--to", ""), 2, "a destination is empty"),
    ("bytes in destination", _nothing, ("night", "--to", "a\udcff"), 2, "is not a path in UTF-8"),
    ("working directory", _nothing, ("night", "--to", WORKDIR), 2, "and the working directory"),
    ("in working directory", _nothing, ("night", "--to", f"{WORKDIR}/a"), 2, "and the working directory"),
    ("around working directory", _nothing, ("night", "--to", "a", "--workdir", "a/b"), 2, "and the working directory"),
    ("source in workdir", _nothing, ("night/obs-1", "--to", "a", "--workdir", "night"), 2, "is inside the working"),
    ("source is workdir", _nothing, ("night", "--to", "a", "--workdir", "night"), 2, "is this program's own folder"),
    ("destination in another", _nothing, ("night", "--to", "a", "--to", "a/b"), 2, "is inside destination 'a'"),
    ("dangling destination", _dangling_destination, ("night", "--to", "mount"), 6, "it is a link to"),
    ("object store", _nothing, ("night", "--to", "s3://bucket/x"), 3, "is of the kind 's3'"),
    ("web", _nothing, ("night", "--to", "https://host/x"), 3, "is of the kind 'https'"),
    ("remote host", _nothing, ("night", "--to", "host:/archive"), 3, "remote hosts are not supported yet"),
    ("remote user", _nothing, ("night", "--to", "me@host:archive"), 3, "remote hosts are not supported yet"),
    ("other host", _nothing, ("night", "--to", "file://host/x"), 2, "is not a directory of this machine"),
    ("second destination bad", _file, ("night", "--to", "a", "--to", "file"), 2, "is not a directory"),
]


@pytest.mark.parametrize(
    ("prepare", "arguments", "code", "message"), [each[1:] for each in REFUSALS], ids=[each[0] for each in REFUSALS]
)
def test_bad_input_is_refused_and_nothing_is_made(
    nothing: Program, night: Path, prepare: Prepare, arguments: tuple[str, ...], code: int, message: str
) -> None:
    assert night.is_dir()
    prepare(nothing.folder)
    before = nothing.files
    result = nothing("archive", *arguments)
    assert result.code == code, result
    assert result.out == ""
    error, *rest = result.err.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert len(rest) <= 1
    assert nothing.files == before


def test_the_root_is_no_destination(nothing: Program, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert nothing("archive", tmp_path_factory.mktemp("x"), "--to", "/").code == 2


@pytest.mark.parametrize("destination", ["shut", "shut/a"])
def test_a_destination_that_cannot_be_written_is_refused(nothing: Program, night: Path, destination: str) -> None:
    shut = nothing.folder / "shut"
    shut.mkdir(mode=0o555)
    with unprivileged(nothing.folder):
        result = nothing("archive", night, "--to", destination)
    assert result.code == 6
    assert not (nothing.folder / WORKDIR).exists()


def test_a_destination_that_cannot_be_made_leaves_nothing(
    nothing: Program, night: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path.mkdir

    def mkdir(path: Path, *arguments: Any, **options: Any) -> None:
        if path.name == "b":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    before = nothing.files
    result = nothing("archive", night, "--to", "a", "--to", "b")
    assert result.code == 6
    assert "cannot be made: No space left" in result.err
    assert nothing.files == before


def test_a_destination_whose_disk_is_full_is_not_even_made(
    nothing: Program, night: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume, "RESERVE_BYTES", 1 << 62)
    before = nothing.files
    result = nothing("archive", night, "--to", "a")
    assert result.code == 6, result
    assert "are needed" in result.err
    assert nothing.files == before


def test_a_destination_with_a_name_that_no_file_system_takes_is_the_callers_fault(
    nothing: Program, night: Path
) -> None:
    before = nothing.files
    for name in ("x" * 300, "x" * 300 + "/y"):
        result = nothing("archive", night, "--to", name)
        assert result.code == 2, result
        assert "too long" in result.err
    assert nothing.files == before


def test_a_working_directory_that_may_not_be_entered_is_named(nothing: Program, night: Path) -> None:
    (nothing.folder / "shut").mkdir(mode=0)
    with unprivileged(nothing.folder):
        archiving = nothing("archive", night, "--to", "a", "--workdir", "shut/work")
        looking = nothing("status", "--workdir", "shut/work")
    for result in (archiving, looking):
        assert result.code == 4, result
        assert "shut/work/operations.sqlite' cannot be seen: Permission denied" in result.err
    assert not (nothing.folder / "a").exists()


def test_an_archive_that_vanished_is_not_made_again(nothing: Program, night: Path) -> None:
    nothing.succeed("archive", night, "--to", "a")
    (nothing.folder / "a").rename(nothing.folder / "moved")
    result = nothing("archive", night, "--to", "a")
    assert result.code == 6
    assert "it is the archive 'local/a' of this database, and it is not there any more" in result.err
    assert not (nothing.folder / "a").exists()


def test_an_archive_whose_disk_is_not_mounted_is_not_filled(nothing: Program, night: Path) -> None:
    nothing.succeed("archive", night, "--to", "a")
    (nothing.folder / "a").rename(nothing.folder / "moved")
    (nothing.folder / "a").mkdir()
    result = nothing("archive", night, "--to", "a")
    assert result.code == 6
    assert "its disk is not mounted there" in result.err
    assert list((nothing.folder / "a").iterdir()) == []


def test_another_volume_than_it_was_is_refused(nothing: Program, night: Path) -> None:
    nothing.succeed("archive", night, "--to", "a", "--to", "b")
    for old, new in (("a", "c"), ("b", "a")):
        (nothing.folder / old).rename(nothing.folder / new)
    result = nothing("archive", night, "--to", "a")
    assert result.code == 6
    assert "is mounted there" in result.err


def test_a_postgresql_that_is_away_exits_with_4_and_makes_nothing(
    nothing: Program, night: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CCAT_DATA_TRANSFER_DATABASE_URL", f"postgresql://u:secret@/x?host={nothing.folder}/none")
    before = nothing.files
    result = nothing("archive", night, "--to", "a")
    assert result.code == 4
    assert "secret" not in result.err
    assert nothing.files == before


def test_a_working_directory_that_cannot_be_made_leaves_no_destination(nothing: Program, night: Path) -> None:
    _file(nothing.folder)
    result = nothing("archive", night, "--to", "a", "--workdir", "file/x")
    assert result.code in {3, 4}
    assert not (nothing.folder / "a").exists()


def test_control_characters_of_names_do_not_reach_the_terminal(nothing: Program) -> None:
    result = nothing("archive", "a\x1b[31mb", "--to", "c")
    assert "\x1b" not in result.err
    assert "a\\x1b[31mb" in result.err
