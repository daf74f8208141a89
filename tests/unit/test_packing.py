"""What becomes a package, what is refused, and which bytes a folder becomes."""

import bz2
import contextlib
import gzip
import hashlib
import io
import lzma
import os
import shutil
import socket
import subprocess
import tarfile
import tracemalloc
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.skips import needs
from tests.unprivileged import unprivileged

from ccat_data_transfer import packing
from ccat_data_transfer.checksums import Checksum
from ccat_data_transfer.exceptions import (
    BadNameError,
    BadSourceError,
    CCATDataOperationError,
    InputError,
    SourceChangedError,
)
from ccat_data_transfer.packing import candidates, members, writing
from ccat_data_transfer.packing.candidates import Candidate, Kind


class Sink(io.BytesIO):
    """A tar in memory, in the shape that `write_tar` writes to."""

    def write(self, data: object, /) -> int:
        return super().write(data)  # type: ignore[arg-type]


def make(folder: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def pack(path: Path) -> tuple[bytes, packing.Packed]:
    (candidate,) = packing.plan([path])
    out = Sink()
    packed = packing.write_tar(candidate, out, algorithms=("sha256", "md5"))
    return out.getvalue(), packed


def names_of(found: list[Candidate]) -> list[tuple[str, Kind]]:
    return [(candidate.name, candidate.kind) for candidate in found]


# What becomes a package


def test_a_tar_is_a_package_as_it_is_whatever_its_compression(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar.gz", "c.tgz", "d.tar.xz", "e.tar.bz2", "f.tar.zst", "G.TAR"):
        (tmp_path / name).write_bytes(b"x")
    found = packing.plan([tmp_path])
    assert names_of(found) == [
        (name, Kind.TAR) for name in ("G.TAR", "a.tar", "b.tar.gz", "c.tgz", "d.tar.xz", "e.tar.bz2", "f.tar.zst")
    ]
    assert [candidate.size_bytes for candidate in found] == [1] * 7


def test_a_file_is_packed_alone(tmp_path: Path) -> None:
    (candidate,) = packing.plan([make(tmp_path, {"raw.dat": b"12345"}) / "raw.dat"])
    assert (candidate.name, candidate.kind, candidate.size_bytes) == ("raw.dat.tar", Kind.FILE, 5)
    data, packed = pack(tmp_path / "raw.dat")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == ["raw.dat"]
    assert [member.path for member in packed.members] == ["raw.dat"]


def test_a_folder_with_loose_files_is_one_package_beside_its_tars(tmp_path: Path) -> None:
    night = make(tmp_path / "night", {"log.txt": b"log", "obs/a.dat": b"a", "obs/inner.tar": b"inner"})
    make_tar(night / "b.tar", {"x": b"y"})
    found = packing.plan([night])
    assert names_of(found) == [("b.tar", Kind.TAR), ("night.tar", Kind.FOLDER)]
    assert [entry.path for entry in found[1].members] == [
        "night", "night/log.txt", "night/obs", "night/obs/a.dat", "night/obs/inner.tar",
    ]  # fmt: skip


def test_a_folder_without_loose_files_gives_a_package_for_each_subfolder(tmp_path: Path) -> None:
    make(tmp_path / "raw", {"obs1/a": b"1", "obs2/b/c": b"2", "obs2/d.tar": b"3"})
    make_tar(tmp_path / "raw" / "obs3.tar", {"x": b"y"})
    found = packing.plan([tmp_path / "raw"])
    assert names_of(found) == [("obs3.tar", Kind.TAR), ("obs1.tar", Kind.FOLDER), ("obs2.tar", Kind.FOLDER)]
    assert "obs2/d.tar" in [entry.path for entry in found[2].members]


def test_a_path_given_twice_in_whatever_spelling_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    night = make(tmp_path / "night", {"a": b"1"})
    (tmp_path / "link").symlink_to(night)
    monkeypatch.chdir(night)
    found = packing.plan([".", f"{night}/", night, "../night", tmp_path / "link"])
    assert names_of(found) == [("night.tar", Kind.FOLDER)]


def test_skipped_paths_are_passed_over(tmp_path: Path) -> None:
    make(tmp_path / "raw", {"obs/a": b"1", "work/db": b"2", "obs/work/x": b"3"})
    found = packing.plan([tmp_path / "raw"], skip=[tmp_path / "raw/work", tmp_path / "raw/obs/work"])
    assert names_of(found) == [("obs.tar", Kind.FOLDER)]
    assert [entry.path for entry in found[0].members] == ["obs", "obs/a"]
    with pytest.raises(InputError, match="own folder"):
        packing.plan([tmp_path / "raw/work"], skip=[tmp_path / "raw/work"])


# What is refused


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        here = Path.cwd()
        os.chdir(path.parent)  # the name of a socket is short
        try:
            sock.bind(path.name)
        finally:
            os.chdir(here)


def _link_to_file(path: Path) -> None:
    path.symlink_to(path.parent / "a.dat")


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_fifo, "named pipe"),
        (_socket, "socket"),
        (_link_to_file, "symbolic link"),
        (_dangling, "symbolic link"),
        (_loop, "symbolic link"),
    ],
)
@pytest.mark.parametrize("inside", ["odd", "deep/odd"])
def test_what_is_no_file_inside_a_folder_is_refused(
    tmp_path: Path, spoil: Callable[[Path], None], words: str, inside: str
) -> None:
    make(tmp_path / "n", {"a.dat": b"1", "deep/b.dat": b"2"})
    spoil(tmp_path / "n" / inside)
    with pytest.raises(InputError, match=words) as caught:
        packing.plan([tmp_path / "n"])
    assert str(tmp_path / "n" / inside) in str(caught.value)
    assert caught.value.exit_code == 2
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(_fifo, "named pipe"), (_dangling, "link to nothing"), (_loop, "cannot be read"), (lambda _: None, "not exist")],
)
def test_what_is_no_file_is_refused_as_a_path(tmp_path: Path, spoil: Callable[[Path], None], words: str) -> None:
    spoil(tmp_path / "odd")
    with pytest.raises(InputError, match=words):
        packing.plan([tmp_path / "odd"])


def test_devices_empty_paths_and_nul_are_refused() -> None:
    for path, words in (("/dev/null", "a device"), ("", "does not exist"), ("a\0b", "cannot be read")):
        with pytest.raises(InputError, match=words):
            packing.plan([path])
    with pytest.raises(InputError, match="no path"):
        packing.plan([])


def test_a_folder_without_any_file_is_refused_but_an_empty_one_beside_files_is_kept(tmp_path: Path) -> None:
    (tmp_path / "empty/sub").mkdir(parents=True)
    for path in (tmp_path / "empty", tmp_path / "empty/sub"):
        with pytest.raises(InputError, match="holds no files"):
            packing.plan([path])
    make(tmp_path / "empty", {"full/a": b"1"})
    assert names_of(packing.plan([tmp_path / "empty"])) == [("full.tar", Kind.FOLDER), ("sub.tar", Kind.FOLDER)]


def test_an_empty_tar_is_refused_up_front(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="empty file"):
        packing.plan([make(tmp_path, {"a.tar": b""})])


def test_the_root_folder_has_no_name() -> None:
    with pytest.raises(InputError, match="root folder"):
        candidates._pack_of(Path("/"), frozenset(), candidates._Faults(), leaves_tars=False)


@pytest.mark.parametrize("inside", ["a.dat", "deep", "deep/b.dat"])
def test_what_cannot_be_read_is_refused(tmp_path: Path, inside: str) -> None:
    make(tmp_path / "n", {"a.dat": b"1", "deep/b.dat": b"2"})
    (tmp_path / "n" / inside).chmod(0)
    try:
        with unprivileged(tmp_path), pytest.raises(InputError, match="cannot be read"):
            packing.plan([tmp_path / "n"])
    finally:
        (tmp_path / "n" / inside).chmod(0o700)


def test_unreadable_paths_are_told_by_what_the_kernel_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "n", {"a.dat": b"1", "deep/b.dat": b"2"})
    monkeypatch.setattr(os, "access", lambda path, *_, **__: not str(path).endswith("b.dat"))
    with pytest.raises(InputError, match=r"b\.dat' cannot be read by this user$"):
        packing.plan([tmp_path / "n"])


@pytest.mark.parametrize(
    "name",
    [b"new\nline", b"esc\x1b[31m", b"-rf", b"bad\xff", "e\u0301".encode(), "rtl\u202egnp".encode(), b"back\\slash"],
)
def test_hostile_names_are_refused_and_shown_escaped(tmp_path: Path, name: bytes) -> None:
    make(tmp_path / "n", {"a.dat": b"1"})
    Path(os.fsdecode(os.fsencode(tmp_path / "n") + b"/" + name)).write_bytes(b"")
    for path in (tmp_path / "n", Path(os.fsdecode(os.fsencode(tmp_path / "n") + b"/" + name))):
        with pytest.raises(BadNameError) as caught:
            packing.plan([path])
        assert caught.value.exit_code == 2
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", [".hidden", "~tilde", "wild*card", "a" * 197])
def test_a_name_that_no_package_may_have_is_refused_with_its_path(tmp_path: Path, name: str) -> None:
    make(tmp_path / name, {"a.dat": b"1"})
    with pytest.raises(BadNameError, match="package name") as caught:
        packing.plan([tmp_path / name])
    assert name[:90] in str(caught.value)


@pytest.mark.parametrize(("one", "other"), [("Data.fits", "data.FITS"), ("straße", "STRASSE")])
def test_twins_in_one_package_are_refused(tmp_path: Path, one: str, other: str) -> None:
    assert unicodedata.normalize("NFC", one) == one
    make(tmp_path / "n", {one: b"1", other: b"2"})
    with pytest.raises(BadNameError, match="one file on some file systems") as caught:
        packing.plan([tmp_path / "n"])
    assert one in str(caught.value)
    assert other in str(caught.value)


def test_two_sources_of_one_package_are_refused_naming_both(tmp_path: Path) -> None:
    make(tmp_path, {"x/obs/a": b"1", "y/Obs/a": b"2"})
    with pytest.raises(InputError, match="both become the package") as caught:
        packing.plan([tmp_path / "x", tmp_path / "y"])
    assert str(tmp_path / "x/obs") in str(caught.value)
    assert str(tmp_path / "y/Obs") in str(caught.value)


def test_the_first_fault_is_told_and_the_others_are_counted(tmp_path: Path) -> None:
    make(tmp_path / "n", {"a": b"1"})
    (tmp_path / "n/link").symlink_to("a")
    with pytest.raises(InputError, match=r"'.*gone' does not exist \(and 2 more problems"):
        packing.plan([tmp_path / "gone", tmp_path / "n", tmp_path / "gone2"])


# The bytes


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    files = {"z.txt": b"z", "a/b": b"ab", "a-c": b"ac", "ä/ö": b"u", "long/" + "x" * 150 + "/" + "y" * 150: b"l"}
    one = make(tmp_path / "1/obs", files)
    before = os.umask(0o077)
    try:
        other = make(tmp_path / "2/obs", dict(reversed(files.items())))
    finally:
        os.umask(before)
    (one / "e").mkdir()
    (other / "e").mkdir(mode=0o700)
    os.utime(other / "z.txt", (1, 1))
    (data, packed), (again, packed_again) = pack(one), pack(other)
    assert data == again
    assert packed.checksums == packed_again.checksums
    assert packed.checksums["sha256"] == Checksum("sha256", hashlib.sha256(data).hexdigest())
    assert packed.checksums["md5"] == Checksum("md5", hashlib.md5(data, usedforsecurity=False).hexdigest())
    assert packed.size == len(data)
    assert len(data) % tarfile.RECORDSIZE == 0


def test_the_bytes_are_those_of_every_version_of_this_program(tmp_path: Path) -> None:
    folder = make(tmp_path / "obs", {"a.txt": b"one\n", "ü" * 60 + "/b": b"two\n"})
    (folder / "run.sh").write_bytes(b"#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    _, packed = pack(folder)
    assert packed.checksums["sha256"].digest == GOLDEN


GOLDEN = "78d2601d462332a544dd5b706e0197873a41c4518b417b4c5aabdaf599e82255"


def test_headers_tell_nothing_of_who_packed_when(tmp_path: Path) -> None:
    folder = make(tmp_path / "obs", {"a": b"1", "run": b"2"})
    (folder / "run").chmod(0o740)
    data, packed = pack(folder)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        infos = tar.getmembers()
    for info in infos:
        assert (info.uid, info.gid, info.uname, info.gname, info.mtime) == (0, 0, "", "", 0)
        assert info.mode == (0o755 if info.name in {"obs", "obs/run"} else 0o644)
    changed = packed.members[0].modified_at
    assert changed is not None
    assert abs(changed.timestamp() - (folder / "a").stat().st_mtime) < 0.001
    assert packed.members[0].checksum == f"sha256:{hashlib.sha256(b'1').hexdigest()}"


def test_digest_tar_is_what_write_tar_writes(tmp_path: Path) -> None:
    folder = make(tmp_path / "obs", {"a": b"1" * 3_000_000, "b": b""})
    (candidate,) = packing.plan([folder])
    handled: list[int] = []
    digested = packing.digest_tar(candidate, algorithms=("sha256", "md5"), on_progress=handled.append)
    assert digested == pack(folder)[1]
    assert sum(handled) == candidate.size_bytes == 3_000_000


def test_a_tar_is_copied_as_it_is(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar.gz", {"x": b"1" * 100}, "w:gz")
    data, packed = pack(path)
    assert data == path.read_bytes()
    assert [(member.path, member.size, member.checksum) for member in packed.members] == [("x", 100, None)]


@needs(shutil.which("tar"), "there is no tar")
def test_gnu_tar_reads_it(tmp_path: Path) -> None:
    make(tmp_path / "obs", {"a": b"1" * 1000, "ü/" + "x" * 200: b"2", "c" * 120: b""})
    (tmp_path / "out.tar").write_bytes(pack(tmp_path / "obs")[0])
    (tmp_path / "unpacked").mkdir()
    done = subprocess.run(
        ["tar", "-xf", tmp_path / "out.tar", "-C", tmp_path / "unpacked"], capture_output=True, check=True
    )
    assert done.stderr == b""
    assert tree(tmp_path / "unpacked/obs") == tree(tmp_path / "obs")


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


_component = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z"), exclude_characters="/\\"), min_size=1, max_size=60
).filter(lambda text: text not in {".", ".."} and text[0] != "-" and unicodedata.normalize("NFC", text) == text)
# A tar at the top would be a package as it is.
_paths = st.lists(_component, min_size=1, max_size=4).filter(lambda parts: not packing.is_tar(parts[0])).map("/".join)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.dictionaries(_paths, st.binary(max_size=2000), min_size=1, max_size=8))
def test_what_is_packed_comes_out_again(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    base = tmp_path_factory.mktemp("pack")
    (base / "obs").mkdir()
    (base / "obs" / "loose").write_bytes(b"")
    for path, data in files.items():
        try:
            make(base / "obs", {path: data})
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue  # a file and a folder of one name
        except OSError:
            continue  # longer than the file system takes
    try:
        data, packed = pack(base / "obs")
    except BadNameError:
        return  # twins, or more bytes than a name may have
    assert pack(base / "obs")[0] == data
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        tar.extractall(base / "out", filter="data")
    assert tree(base / "out/obs") == tree(base / "obs")
    (base / "obs.tar").write_bytes(data)
    inspected = packing.inspect_tar(base / "obs.tar")
    assert [(m.path, m.size) for m in inspected] == [(m.path, m.size) for m in packed.members]


def test_a_sparse_file_beyond_the_old_limit_of_tar_has_a_header_that_readers_understand() -> None:
    entry = candidates.Entry("obs/big", 9 << 30, is_folder=False, is_executable=False, signature=b"")
    with tarfile.open(fileobj=io.BytesIO(writing._header(entry))) as tar:
        info = tar.next()
    assert info is not None
    assert info.size == 9 << 30


# What changes while it is read


class Spoiler(Sink):
    """Does something to the source once a number of bytes were written."""

    def __init__(self, after: int, act: Callable[[], object]) -> None:
        super().__init__()
        self._after = after
        self._act: Callable[[], object] | None = act

    def write(self, data: object, /) -> int:
        written = super().write(data)
        if self._act is not None and self.tell() > self._after:
            act, self._act = self._act, None
            act()
        return written


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def _overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"other")
    os.utime(path, ns=(1, 1))


def _replace(path: Path) -> None:
    (path.parent.parent / "new").write_bytes(path.read_bytes())
    (path.parent.parent / "new").rename(path)


def _replace_by_link(path: Path) -> None:
    path.rename(path.parent.parent / "moved")
    path.symlink_to(path.parent.parent / "moved")


def _add(path: Path) -> None:
    (path.parent / "late").write_bytes(b"late")


CHANGES = [_append, _overwrite, _replace, Path.unlink, lambda path: os.truncate(path, 10)]


@pytest.mark.parametrize("change", [*CHANGES, _replace_by_link, _add])
@pytest.mark.parametrize("victim", ["a", "m", "z"])
def test_a_folder_that_changes_while_it_is_packed_is_an_error(
    tmp_path: Path, change: Callable[[Path], object], victim: str
) -> None:
    folder = make(tmp_path / "obs", {"a": b"a" * 2000, "m": b"m" * 3_000_000, "z": b"z" * 2000})
    (candidate,) = packing.plan([folder])
    with pytest.raises((SourceChangedError, InputError)) as caught:
        packing.write_tar(candidate, Spoiler(1_500_000, lambda: change(folder / victim)))
    assert str(folder) in str(caught.value)
    assert isinstance(caught.value, SourceChangedError) or change is _replace_by_link


@pytest.mark.parametrize("change", CHANGES)
def test_a_tar_that_changes_while_it_is_read_is_an_error(tmp_path: Path, change: Callable[[Path], object]) -> None:
    path = make_tar(tmp_path / "in/obs.tar", {"m": b"m" * 3_000_000})
    (candidate,) = packing.plan([path])
    with pytest.raises((SourceChangedError, InputError)):
        packing.write_tar(candidate, Spoiler(1_500_000, lambda: change(path)))


def test_a_folder_swapped_for_a_link_is_not_followed(tmp_path: Path) -> None:
    folder = make(tmp_path / "obs", {"a": b"a" * 3000, "sub/b": b"b"})
    make(tmp_path / "secret", {"b": b"s"})
    (candidate,) = packing.plan([folder])

    def swap() -> None:
        (folder / "sub").rename(tmp_path / "sub")
        (folder / "sub").symlink_to(tmp_path / "secret")

    with pytest.raises(CCATDataOperationError, match="replaced"):
        packing.write_tar(candidate, Spoiler(2000, swap))


def test_a_folder_above_the_data_need_not_be_listed(tmp_path: Path) -> None:
    make(tmp_path / "home/night", {"a": b"1", "sub/b": b"2"})
    make_tar(tmp_path / "home/x.tar", {"a": b"1"})
    with unprivileged(tmp_path):
        (tmp_path / "home").chmod(0o311)
        found = packing.plan([tmp_path / "home/night", tmp_path / "home/x.tar"])
        sizes = [packing.digest_tar(candidate).size for candidate in found]
        (tmp_path / "home").chmod(0o755)
    assert sizes == [10240, 10240]


def test_what_was_planned_and_is_gone_is_an_error(tmp_path: Path) -> None:
    for name in ("a.tar", "b.dat"):
        make(tmp_path, {name: b"1"})
        (candidate,) = packing.plan([tmp_path / name])
        (tmp_path / name).unlink()
        with pytest.raises((SourceChangedError, InputError)):
            packing.digest_tar(candidate)


def test_a_pipe_in_the_place_of_a_tar_does_not_hang(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", {"x": b"1"})
    (candidate,) = packing.plan([path])
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BadSourceError, match="not a regular file"):
        packing.digest_tar(candidate)


# Existing tars


FILES = {"a": b"1" * 1000, "b/c": b"2" * 5000, "n" * 150: b"", "ü": b"3"}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_the_files_of_a_tar_are_listed(tmp_path: Path, mode: str, form: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tarfile.TarFile, "format", form)
    path = make_tar(tmp_path / "a.tar", FILES, mode)
    found = packing.inspect_tar(path)
    assert [(member.path, member.size) for member in found] == [(name, len(data)) for name, data in FILES.items()]
    with path.open("rb") as file:
        file.seek(100)
        assert packing.inspect_tar(file.fileno(), path=path) == found
    members = packing.open_members(path, lambda name: name in {"a", "b/c"})
    assert [(name, stream.read()) for name, stream in members] == [("a", FILES["a"]), ("b/c", FILES["b/c"])]


@pytest.mark.parametrize(
    ("suffix", "compress"), [("", bytes), ("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)]
)
def test_a_tar_cut_anywhere_is_refused(tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]) -> None:
    path = make_tar(tmp_path / "a.tar", {"a": os.urandom(1000), "b": os.urandom(2000)})
    plain = path.read_bytes()[: 512 + 1024 + 512 + 2048 + 1024]
    data = compress(plain)
    path.write_bytes(data)
    assert len(packing.inspect_tar(path)) == 2
    lengths = (
        [1, 100, 511, 512, 600, 1535, 1536, 1700, 2048, 4095, 4096, 4100] if not suffix else range(1, len(data), 97)
    )
    for length in lengths:
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"truncated at byte|not a tar") as caught:
            packing.inspect_tar(path)
        assert caught.value.exit_code == 2
        assert str(path) in str(caught.value)


def test_a_lone_end_block_is_enough(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", {"a": b"1"})
    path.write_bytes(path.read_bytes()[: 3 * 512])
    assert [member.path for member in packing.inspect_tar(path)] == ["a"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda _data: b"", "empty file"),
        (lambda _data: b"just text", "not a tar"),
        (lambda _data: b"text " * 1000, "not a tar"),
        (lambda _data: bytes(10240), "zeros only"),
        (lambda data: data[:1024] + b"rubbish!" * 64 + data[1536:], "damaged at byte 1024"),
        (lambda data: data + b"rubbish", "behind its end"),
        (lambda data: gzip.compress(data)[:-8] + b"badcheck", "damaged|truncated"),
        (lambda data: gzip.compress(data) + b"rubbish", "damaged"),
        (lambda data: b"\x1f\x8b" + data, "not a tar"),
        (lambda data: b"BZh9" + bytes.fromhex("314159265359") + data, "not a tar"),
        (lambda data: b"\xfd7zXZ\0" + data, "not a tar"),
    ],
)
def test_what_is_no_whole_tar_is_refused(tmp_path: Path, spoil: Callable[[bytes], bytes], words: str) -> None:
    path = make_tar(tmp_path / "a.tar", {"a": b"1" * 100, "b": b"2"})
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(InputError, match=words) as caught:
        packing.inspect_tar(path)
    assert caught.value.exit_code == 2


def block(data: bytes, *, kind: int = 0, last: bool = True) -> bytes:
    return (len(data) << 3 | kind << 1 | last).to_bytes(3, "little") + data


# Of RFC 8878: a window and no content size; one segment with a dictionary; a checksum; a run; and what is skipped.
FRAMES = [
    b"\x28\xb5\x2f\xfd\x00\x58" + block(b"abc", last=False) + block(b""),
    b"\x28\xb5\x2f\xfd\x62\x01\x02\x03\x00" + block(b"abc", kind=2),
    b"\x28\xb5\x2f\xfd\xe4" + (3).to_bytes(8, "little") + block(b"abc") + b"sum4",
    b"\x28\xb5\x2f\xfd\x20\x09" + (9 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"x",
    b"\x5f\x2a\x4d\x18\x02\x00\x00\x00ab" + b"\x28\xb5\x2f\xfd\x20\x00" + block(b""),
]


@pytest.mark.parametrize("data", [*FRAMES, b"".join(FRAMES)])
def test_a_zstandard_tar_that_is_whole_has_unknown_members_and_says_so(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.tar.ZST"
    path.write_bytes(data)
    found = packing.inspect_tar(path)
    assert len(found) == 0
    assert found.notes == ["its content was not looked at: Zstandard is only checked to be whole"]
    assert list(packing.open_members(path, lambda _: True)) == []
    with path.open("rb") as file:
        assert packing.inspect_tar(file.fileno(), path=path).notes


@pytest.mark.parametrize("data", FRAMES)
def test_a_zstandard_tar_cut_anywhere_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.tar.zst"
    for length in range(4, len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"truncated at byte|has no frame with data"):
            packing.inspect_tar(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (FRAMES[0] + b"rubbish", "damaged at byte 15: no frame begins there"),
        (FRAMES[0][:4] + b"\x08" + FRAMES[0][5:], "damaged at byte 4: a frame has a reserved flag"),
        (FRAMES[0][:6] + b"\x07\x00\x00", "damaged at byte 6: a block has an impossible header"),
        (FRAMES[0][:6] + b"\xff\xff\xfb", "damaged at byte 6: a block has an impossible header"),
        (b"\x50\x2a\x4d\x18" + bytes(4), "damaged at byte 0: it has no frame with data"),
    ],
)
def test_what_is_no_frame_of_zstandard_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "a.tar.zst"
    path.write_bytes(data)
    with pytest.raises(InputError, match=words):
        packing.inspect_tar(path)


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "zst.tar"])
def test_zstandard_under_another_name_is_no_tar(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FRAMES[0])
    with pytest.raises(InputError, match="not a tar but compressed with Zstandard") as refused:
        packing.inspect_tar(tmp_path / name)
    assert ".tar.zst" in refused.value.remedy


def test_a_missing_tar_is_a_bad_source(tmp_path: Path) -> None:
    with pytest.raises(BadSourceError, match="cannot be read"):
        packing.inspect_tar(tmp_path / "a.tar")


def test_hostile_names_in_a_tar_are_listed_so_that_a_database_takes_them(tmp_path: Path) -> None:
    long = "/".join(["x" * 200] * 20)
    names = ["../up", "/abs", "new\nline", "bad\udcff", long + "/1", long + "/2"]
    path = make_tar(tmp_path / "a.tar", dict.fromkeys(names, b""))
    inspected = packing.inspect_tar(path)
    assert inspected.notes == [
        "it has 2 members whose paths lead out of the folder where it is unpacked, the first '../up'"
    ]
    found = [member.path for member in inspected]
    assert found[:4] == ["../up", "/abs", "new\nline", "bad\\xff"]
    assert len(set(found)) == len(names)
    assert all(len(name.encode()) <= 2000 for name in found)


def test_links_folders_and_updates_in_a_tar(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind, size in (("d", tarfile.DIRTYPE, 0), ("f", tarfile.REGTYPE, 5), ("f", tarfile.REGTYPE, 7)):
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, size
            tar.addfile(info, io.BytesIO(bytes(size)))
        for name, kind in (("hard", tarfile.LNKTYPE), ("soft", tarfile.SYMTYPE), ("pipe", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "f"
            tar.addfile(info)
    assert [(member.path, member.size) for member in packing.inspect_tar(path)] == [("f", 7), ("hard", 7)]


def test_a_lone_member_that_leads_out_is_told_and_harmless_dots_are_not(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", {"/etc/pass\nwd": b"", "a..b": b"", "..c/d": b""})
    assert packing.inspect_tar(path).notes == [
        "it has 1 member whose path leads out of the folder where it is unpacked, the first '/etc/pass\\nwd'"
    ]


def test_a_hard_link_means_the_file_as_it_was_then(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind, size in (
            ("f", tarfile.REGTYPE, 5),
            ("l", tarfile.LNKTYPE, 0),
            ("f", tarfile.REGTYPE, 7),
            ("x", tarfile.LNKTYPE, 0),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, size, "f" if name == "l" else "nothing"
            tar.addfile(info, io.BytesIO(bytes(size)))
    assert [(member.path, member.size) for member in packing.inspect_tar(path)] == [("f", 7), ("l", 5)]


def test_very_many_members_take_few_bytes_each() -> None:
    tracemalloc.start()
    try:
        found = members.Members((f"night/observation/frame-{n:06}.fits", n, float(n)) for n in range(50_000))
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == 50_000
    assert (found[-1].path, found[49_999].size) == ("night/observation/frame-049999.fits", 49_999)
    assert found[1:3] == (found[1], found[2])
    assert now < 100 * 50_000
    assert peak < 150 * 50_000


def test_paths_whose_hashes_are_the_same_stay_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "hash", lambda _path: 7, raising=False)
    found = members.Members([("a", 1, 0.0), ("b", 2, 0.0), ("a", 3, 0.0), ("c", 4, 0.0)])
    assert [(member.path, member.size) for member in found] == [("a", 3), ("b", 2), ("c", 4)]


def test_impossible_times_are_not_known() -> None:
    assert members.moment(1e20) is None
    assert members.moment(float("nan")) is None
    assert members.moment(-1.0) is not None


def test_forged_headers_neither_hang_nor_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE):
        for size in (-1024, 1 << 40):
            info = tarfile.TarInfo("x")
            info.type, info.size = kind, size
            path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
            with pytest.raises(InputError):
                packing.inspect_tar(path)
    header = tarfile.TarInfo("x")
    header.type = tarfile.XHDTYPE
    path.write_bytes(header.tobuf(tarfile.USTAR_FORMAT) * 3000 + bytes(1024))
    with pytest.raises(InputError):
        packing.inspect_tar(path)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_tar_never_crashes_the_reader(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = make_tar(tmp_path_factory.mktemp("t") / "a.tar", {"a": b"1" * 100, "ü" * 80: b"2"})
    spoiled = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        spoiled[data.draw(st.integers(0, 4095))] = data.draw(st.integers(0, 255))
    path.write_bytes(spoiled)
    with contextlib.suppress(CCATDataOperationError):
        packing.inspect_tar(path)
