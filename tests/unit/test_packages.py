"""Registering: what lies where afterwards, what the database says, and what happens the second time."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tests import factories
from tests.skips import skip_or_fail

from ccat_data_transfer import database, fits_headers, models, packages, packing, settings, storage, topology
from ccat_data_transfer.exceptions import (
    BadNameError,
    BadSourceError,
    ChecksumVerificationError,
    ConfigurationError,
    DatabaseError,
    DataCorruptionError,
    InputError,
    LocationUnavailableError,
    SourceChangedError,
    SourceMissingError,
    SourceReadError,
    UnknownNameError,
)
from ccat_data_transfer.locations import Location, StorageType
from ccat_data_transfer.packages import buffer, intake, leavings, records
from ccat_data_transfer.states import PackageState, PhysicalCopyStatus
from ccat_data_transfer.storage import incoming


@dataclass
class World:
    """A database, a folder of tars that is a location, a buffer for packs, and a folder that is neither."""

    tars: Path
    packs: Path
    elsewhere: Path
    tars_at: Location
    packs_at: Location

    def register(self, *paths: Path, **options: Any) -> packages.Registration:
        given = [str(path) for path in paths]
        return packages.register(given, **{"tars_at": self.tars_at, "packs_at": self.packs_at} | options)

    def one(self, path: Path, **options: Any) -> packages.Registered:
        (registered,) = self.register(path, **options).packages
        return registered

    def good(self, path: Path, **options: Any) -> packages.Registered:
        registered = self.one(path, **options)
        assert registered.error is None, registered.error
        return registered


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("CCAT_DATA_TRANSFER_DATABASE_URL", f"sqlite:///{tmp_path / 'db.sqlite'}")
    settings.get.cache_clear()
    models.Base.metadata.create_all(database.engine())
    folders = [tmp_path / name for name in ("tars", "packs", "elsewhere")]
    for folder in folders:
        folder.mkdir()
    with database.session_scope() as session:
        tars_at = factories.make_location(session, folders[0], name="tars").value()
        packs_at = factories.make_location(session, folders[1], name="packs").value()
    yield World(folders[0], folders[1], folders[2], tars_at, packs_at)
    database.dispose()
    settings.get.cache_clear()


def make_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def make_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def sha256(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def rows(model: type[Any]) -> list[Any]:
    with database.session_scope(read_only=True) as session:
        return list(session.scalars(sa.select(model).order_by(model.id)))


def everything() -> str:
    """All rows of all tables, to see that nothing changed."""
    with database.session_scope(read_only=True) as session:
        return repr([session.execute(table.select()).all() for table in models.Base.metadata.sorted_tables])


def nothing_is_left_in(world: World) -> bool:
    return not list((world.packs / ".incoming").glob("*"))


@pytest.fixture
def read_paths(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The sources whose bytes are read from now on."""
    seen: list[Path] = []
    original = packing.writing.write_tar

    def spy(candidate: packing.Candidate, *args: Any, **options: Any) -> packing.Packed:
        seen.append(candidate.path)
        return original(candidate, *args, **options)

    for module in (packing, packing.writing):
        monkeypatch.setattr(module, "write_tar", spy)
    return seen


# The first time


def test_a_tar_below_the_root_is_registered_where_it_lies(world: World) -> None:
    path = make_tar(world.tars / "2026/01/obs.tar", {"obs/a.dat": b"123", "obs/b.dat": b""})
    registered = world.good(path)
    assert registered == packages.Registered(
        "obs.tar", registered.id, created=True, copied=False, size=path.stat().st_size, checksum=sha256(path)
    )
    (package,) = rows(models.RawDataPackage)
    (copy,) = rows(models.RawDataPackagePhysicalCopy)
    assert (package.name, package.size, package.checksum) == ("obs.tar", path.stat().st_size, sha256(path))
    assert package.state is PackageState.WAITING
    assert (copy.path, copy.data_location_id, copy.checksum) == ("2026/01/obs.tar", world.tars_at.id, sha256(path))
    assert copy.status is PhysicalCopyStatus.PRESENT
    assert copy.verified_at is None
    assert copy.identity
    assert [(f.path, f.name, f.size) for f in sorted(rows(models.RawDataFile), key=lambda f: f.path)] == [
        ("obs/a.dat", "a.dat", 3),
        ("obs/b.dat", "b.dat", 0),
    ]
    assert rows_of_metadata() == []
    assert list(world.packs.iterdir()) == []


def rows_of_metadata() -> list[models.RawDataPackageMetadata]:
    with database.session_scope(read_only=True) as session:
        return list(session.scalars(sa.select(models.RawDataPackageMetadata)))


def test_the_root_of_a_location_may_be_the_root_of_all(world: World) -> None:
    with database.session_scope() as session:
        here = factories.make_location(session, "/", name="here").value()
    path = make_tar(world.elsewhere / "obs.tar", {"a": b"1"})
    world.good(path, tars_at=here)
    (copy,) = rows(models.RawDataPackagePhysicalCopy)
    assert copy.path == str(path)[1:]


def test_a_tar_elsewhere_is_copied_into_the_buffer(world: World) -> None:
    path = make_tar(world.elsewhere / "deep/obs.tar", {"a": b"1" * 5000})
    registered = world.good(path)
    assert (registered.created, registered.copied) == (True, True)
    assert (world.packs / "obs.tar").read_bytes() == path.read_bytes()
    assert (world.packs / "obs.tar").stat().st_mode & 0o777 == 0o444
    (copy,) = rows(models.RawDataPackagePhysicalCopy)
    assert (copy.path, copy.data_location_id) == ("obs.tar", world.packs_at.id)
    assert nothing_is_left_in(world)


def test_a_folder_is_packed_into_the_buffer_with_the_checksums_of_its_files(world: World) -> None:
    folder = make_folder(world.elsewhere / "night", {"a": b"1", "sub/b": b"22"})
    registered = world.good(folder)
    pack = world.packs / "night.tar"
    assert (registered.name, registered.copied, registered.checksum) == ("night.tar", True, sha256(pack))
    with tarfile.open(pack) as tar:
        assert tar.getnames() == ["night", "night/a", "night/sub", "night/sub/b"]
    files = {file.path: file for file in rows(models.RawDataFile)}
    assert files["night/sub/b"].checksum == sha256(folder / "sub/b")
    assert files["night/a"].modified_at is not None
    assert nothing_is_left_in(world)


def test_results_come_in_the_order_of_the_input(world: World) -> None:
    for n in range(30):
        make_tar(world.tars / f"{n:02}.tar", {"a": b"1" * (30 - n) * 1000})
    planned: list[int] = []
    handled: list[int] = []
    registration = world.register(
        world.tars, workers=4, on_planned=lambda found: planned.append(len(found)), on_progress=handled.append
    )
    assert [item.name for item in registration.packages] == [f"{n:02}.tar" for n in range(30)]
    assert planned == [30]
    assert sum(handled) == sum(path.stat().st_size for path in world.tars.iterdir())


def test_many_packages_take_few_statements(world: World) -> None:
    for n in range(450):
        make_tar(world.tars / f"{n:03}.tar", {"a": b"1"})
    statements: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    sa.event.listen(database.engine(), "before_cursor_execute", note)
    registration = world.register(world.tars)
    sa.event.remove(database.engine(), "before_cursor_execute", note)
    assert len(registration.packages) == 450
    assert registration.errors == ()
    assert len(statements) < 60
    assert len({item.id for item in registration.packages}) == 450


# Again


@pytest.mark.parametrize("kind", ["in place", "copied", "packed", "file"])
def test_registering_again_changes_nothing(world: World, kind: str, read_paths: list[Path]) -> None:
    path = {
        "in place": lambda: make_tar(world.tars / "obs.tar", {"a": b"1"}),
        "copied": lambda: make_tar(world.elsewhere / "obs.tar", {"a": b"1"}),
        "packed": lambda: make_folder(world.elsewhere / "obs", {"a": b"1"}),
        "file": lambda: make_folder(world.elsewhere, {"obs": b"1"}) / "obs",
    }[kind]()
    first = world.good(path)
    before = everything()
    assert read_paths == [path]
    assert world.good(path) == replace(first, created=False, copied=False)
    assert everything() == before
    assert read_paths == [path]


@pytest.mark.parametrize("loose", [{}, {"loose.txt": b"1"}])
def test_a_whole_buffer_is_registered_again_and_again(world: World, loose: dict[str, bytes]) -> None:
    mark = storage.open_storage(world.packs_at).enrol()
    at = replace(world.packs_at, volume_id=mark)
    make_folder(world.packs, {"obs/a": b"1", **loose})
    make_tar(world.packs / "own.tar", {"a": b"1"})
    first = world.register(world.packs, tars_at=at, packs_at=at)
    assert first.errors == ()
    assert {item.name for item in first.packages} == {"own.tar", "packs.tar" if loose else "obs.tar"}
    before = everything()
    again = world.register(world.packs, tars_at=at, packs_at=at)
    assert again.packages == tuple(replace(item, created=False, copied=False) for item in first.packages)
    assert everything() == before
    for path in world.packs.glob("*.tar"):
        with tarfile.open(path) as tar:
            assert not [name for name in tar.getnames() if ".incoming" in name or "ccat" in name]


def test_touched_bytes_are_read_again_and_recorded_as_untouched(world: World, read_paths: list[Path]) -> None:
    path = make_tar(world.tars / "obs.tar", {"a": b"1"})
    world.good(path)
    (before,) = rows(models.RawDataPackagePhysicalCopy)
    os.utime(path, (1, 1))
    assert not world.good(path).created
    (after,) = rows(models.RawDataPackagePhysicalCopy)
    assert after.identity != before.identity
    assert (after.id, after.checksum) == (before.id, before.checksum)
    world.good(path)
    assert read_paths == [path, path]


def test_a_touched_folder_is_packed_again_only_in_thought(world: World, read_paths: list[Path]) -> None:
    folder = make_folder(world.elsewhere / "obs", {"a": b"1"})
    world.good(folder)
    inode = (world.packs / "obs.tar").stat().st_ino
    os.utime(folder / "a", (1, 1))
    assert world.good(folder) == world.good(folder)
    assert read_paths == [folder, folder]
    assert (world.packs / "obs.tar").stat().st_ino == inode
    assert len(rows_of_metadata()) == 1


def test_a_copied_tar_is_read_again_when_it_or_its_copy_was_touched(world: World, read_paths: list[Path]) -> None:
    path = make_tar(world.elsewhere / "obs.tar", {"a": b"1"})
    world.good(path)
    os.utime(path, (1, 1))
    assert world.good(path) == world.good(path)
    assert read_paths == [path, path]
    os.utime(world.packs / "obs.tar", (1, 1))
    world.good(path)
    assert read_paths == [path] * 3
    with path.open("r+b") as file:
        file.write(b"other")
    os.utime(path, (1, 1))
    assert isinstance(world.one(path).error, InputError)


def test_a_tar_that_is_registered_where_it_lies_has_no_metadata_of_its_source(world: World) -> None:
    world.good(make_tar(world.tars / "obs.tar", {"a": b"1"}))
    assert rows_of_metadata() == []


@pytest.mark.parametrize("is_folder", [True, False])
@pytest.mark.parametrize("damage", [b"x", b"zero"])
def test_a_damaged_copy_is_told_as_one_and_made_anew_once_it_is_out_of_the_way(
    world: World, is_folder: bool, damage: bytes
) -> None:
    source = make_folder(world.elsewhere / "obs", {"a": b"1"})
    if not is_folder:
        source = make_tar(world.elsewhere / "obs.tar", {"a": b"1"})
    first = world.good(source)
    pack = world.packs / "obs.tar"
    pack.chmod(0o644)
    pack.write_bytes(pack.read_bytes().replace(b"1", damage, 1))
    error = world.one(source).error
    assert isinstance(error, DataCorruptionError)
    assert error.exit_code == 7
    for words in (f"the copy '{pack}'", "is damaged", str(first.checksum), sha256(pack)):
        assert words in str(error)
    assert "move the copy away and run the same again" in error.remedy
    pack.rename(world.elsewhere / "damaged")
    assert world.good(source).copied
    assert sha256(pack) == first.checksum
    (copy,) = rows(models.RawDataPackagePhysicalCopy)
    assert copy.path == "obs.tar"


def test_other_bytes_under_a_registered_name_are_an_error_that_names_both(world: World) -> None:
    path = make_tar(world.tars / "obs.tar", {"a": b"1"})
    other = make_tar(world.elsewhere / "obs.tar", {"a": b"2"})
    folder = make_folder(world.elsewhere / "obs", {"a": b"3"})
    first = world.good(path)
    before = everything()
    for source in (other, folder):
        error = world.one(source).error
        assert isinstance(error, InputError)
        assert error.exit_code == 2
        for words in (str(first.checksum), "'obs.tar' at 'cologne/tars'", str(source), "sha256:"):
            assert words in str(error)
    assert sha256(other) in str(world.one(other).error)
    make_tar(path, {"a": b"4"})
    assert isinstance(world.one(path).error, InputError)
    assert everything() == before
    assert list(world.packs.glob("*.tar")) == []
    assert nothing_is_left_in(world)


def test_a_changed_folder_is_not_taken_for_the_package_it_was(world: World) -> None:
    folder = make_folder(world.elsewhere / "obs", {"a": b"1", "b": b"2"})
    world.good(folder)
    (folder / "a").write_bytes(b"2")
    os.utime(folder / "a", (0, 0))
    assert isinstance(world.one(folder).error, InputError)


def test_the_same_bytes_at_another_location_are_another_copy(world: World) -> None:
    path = make_tar(world.tars / "obs.tar", {"a": b"1"})
    first = world.good(path)
    other = world.elsewhere / "obs.tar"
    other.write_bytes(path.read_bytes())
    again = world.good(other)
    assert (again.id, again.created, again.copied) == (first.id, False, True)
    assert len(rows(models.RawDataPackage)) == 1
    assert {copy.data_location_id for copy in rows(models.RawDataPackagePhysicalCopy)} == {
        world.tars_at.id,
        world.packs_at.id,
    }


def test_a_copy_that_was_deleted_and_is_back_is_present_again(world: World) -> None:
    path = make_tar(world.tars / "obs.tar", {"a": b"1"})
    folder = make_folder(world.elsewhere / "night", {"a": b"1"})
    world.register(path, folder)
    (world.packs / "night.tar").unlink()
    table = models.RawDataPackagePhysicalCopy
    with database.session_scope() as session:
        session.execute(sa.update(table).values(status=PhysicalCopyStatus.DELETED, considered=True))
    registration = world.register(path, folder)
    assert registration.errors == ()
    assert [item.copied for item in registration.packages] == [False, True]
    for copy in rows(table):
        assert (copy.status, copy.considered) == (PhysicalCopyStatus.PRESENT, False)
    assert (world.packs / "night.tar").exists()


def test_a_tar_that_was_moved_inside_its_location_is_found_again(world: World) -> None:
    path = make_tar(world.tars / "obs.tar", {"a": b"1"})
    world.good(path)
    (world.tars / "sub").mkdir()
    twin = world.tars / "sub/obs.tar"
    twin.write_bytes(path.read_bytes())
    world.good(twin)
    assert [copy.path for copy in rows(models.RawDataPackagePhysicalCopy)] == ["obs.tar"]
    path.unlink()
    world.good(twin)
    assert [copy.path for copy in rows(models.RawDataPackagePhysicalCopy)] == ["sub/obs.tar"]


def test_twins_of_registered_names_are_refused(world: World) -> None:
    world.good(make_tar(world.tars / "Obs.tar", {"a": b"1"}))
    for source in (
        make_tar(world.tars / "x/obs.tar", {"a": b"1"}),
        make_folder(world.elsewhere / "OBS", {"a": b"1"}),
    ):
        error = world.one(source).error
        assert isinstance(error, InputError)
        assert "'Obs.tar'" in str(error)
        assert packing.plan([source])[0].name in str(error)
    assert len(rows(models.RawDataPackage)) == 1


def test_a_package_without_checksum_gets_one_unless_its_size_differs(world: World) -> None:
    path = make_tar(world.tars / "obs.tar", {"a": b"1"})
    other = make_tar(world.tars / "short.tar", {"a": b"1"})
    with database.session_scope() as session:
        factories.make_package(session, "obs.tar", size=path.stat().st_size, checksum=None)
        factories.make_package(session, "short.tar", size=5, checksum=None)
    assert world.good(path).checksum == sha256(path)
    assert rows(models.RawDataPackage)[0].checksum == sha256(path)
    assert isinstance(world.one(other).error, InputError)


# Checksums of producers


def test_a_producers_checksum_is_checked_and_recorded(world: World) -> None:
    path = make_tar(world.tars / "obs.tar", {"a": b"1"})
    md5 = f"md5:{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}"
    bad = world.one(path, checksum={"obs.tar": "md5:" + "0" * 32})
    assert isinstance(bad.error, ChecksumVerificationError)
    assert md5 in str(bad.error)
    assert rows(models.RawDataPackage) == []
    assert world.good(path, checksum={"obs.tar": md5.upper().replace("MD5", "md5")}).checksum == md5
    os.utime(path, (1, 1))
    assert world.good(path).checksum == md5
    assert isinstance(world.one(path, checksum={"obs.tar": "crc32:00000000"}).error, ChecksumVerificationError)


@pytest.mark.parametrize("given", [{"obs.tar": "md5:12"}, {"obs.tar": "x"}, {"other.tar": "crc32:00000000"}])
def test_a_checksum_that_cannot_be_meant_is_refused(world: World, given: dict[str, str]) -> None:
    path = make_tar(world.tars / "obs.tar", {"a": b"1"})
    with pytest.raises(InputError):
        world.register(path, checksum=given)


# Faults


def test_one_bad_package_does_not_keep_the_others(world: World) -> None:
    make_tar(world.tars / "a.tar", {"a": b"1"})
    cut = make_tar(world.tars / "b.tar", {"a": b"1" * 5000})
    cut.write_bytes(cut.read_bytes()[:3000])
    make_tar(world.tars / "c.tar", {"a": b"1"})
    registration = world.register(world.tars)
    assert [item.error is None for item in registration.packages] == [True, False, True]
    (error,) = registration.errors
    assert isinstance(error, InputError)
    assert "truncated at byte 3000" in str(error)
    assert [package.name for package in rows(models.RawDataPackage)] == ["a.tar", "c.tar"]


@pytest.mark.parametrize("kind", ["in place", "copied", "packed"])
def test_a_source_that_changes_leaves_nothing_behind(world: World, kind: str) -> None:
    if kind == "packed":
        path = make_folder(world.elsewhere / "obs", {"a": b"1" * 3_000_000, "b": b"2"})
        victim = path / "a"
    else:
        path = make_tar((world.tars if kind == "in place" else world.elsewhere) / "obs.tar", {"a": b"1" * 3_000_000})
        victim = path
    good = make_tar(world.tars / "good.tar", {"a": b"1"})
    changed = threading.Event()

    def change(handled: int) -> None:
        if handled >= 1 << 20 and not changed.is_set():
            changed.set()
            with victim.open("ab") as file:
                file.write(b"more")

    registration = world.register(path, good, on_progress=change)
    assert isinstance(registration.packages[0].error, SourceChangedError)
    assert registration.packages[1].error is None
    assert [package.name for package in rows(models.RawDataPackage)] == ["good.tar"]
    assert list(world.packs.glob("*.tar")) == []
    assert nothing_is_left_in(world)


def test_errors_say_what_is_to_be_done_about_registering(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_tar(world.tars / "obs.tar", {"a": b"1"})
    raised: dict[type[Exception], Exception] = {
        SourceChangedError: SourceChangedError("x"),
        SourceMissingError: SourceMissingError("x"),
        BadSourceError: BadSourceError("x"),
        SourceReadError: SourceReadError("x"),
        LocationUnavailableError: LocationUnavailableError("x", condition="full", location="a/b"),
        ChecksumVerificationError: ChecksumVerificationError("x", remedy="its own"),
    }
    codes = {}
    for kind, error in raised.items():

        def prepare(*_arguments: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(buffer, "prepare", prepare)
        told = world.one(path).error
        assert told is not None
        assert str(told) == "x"
        assert "transfer retry" not in told.remedy
        assert "by itself" not in told.remedy
        assert ("run the same again" in told.remedy) is (kind is not ChecksumVerificationError)
        codes[kind] = told.exit_code
    assert codes == {
        SourceChangedError: 7,
        SourceMissingError: 2,
        BadSourceError: 2,
        SourceReadError: 2,
        LocationUnavailableError: 6,
        ChecksumVerificationError: 7,
    }


def test_what_dead_registrations_left_is_removed_and_nothing_else(world: World, tmp_path: Path) -> None:
    folder = make_folder(world.elsewhere / "obs", {"a": b"1" * 3_000_000})
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from ccat_data_transfer.locations import Location, LocationType, StorageType\n"
        "from ccat_data_transfer.packages import leavings\n"
        "from ccat_data_transfer.storage import incoming, volume\n"
        "options = {'path': sys.argv[1]}\n"
        "root = volume.Root(Location(1, 'a', 'b', LocationType.BUFFER, StorageType.DISK, options=options))\n"
        "incoming.Temporary(root, leavings.token(), 0)\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", code, world.packs], check=True)
    (dead,) = (world.packs / ".incoming").iterdir()
    kept = {
        f"{leavings.token()}~00000000",
        "register~00000000",
        "register_x_1_1_1_elsewhere~00000000",
        "7.1~00000000",
        "note",
    }
    for name in kept:
        (world.packs / ".incoming" / name).touch()
    world.good(folder)
    assert not dead.exists()
    assert {path.name for path in (world.packs / ".incoming").iterdir()} == kept


def test_a_host_of_any_name_makes_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "ü_" * 80)
    incoming.check_token(leavings.token())
    assert not leavings.is_dead(leavings.token())


def test_what_was_planned_is_what_is_registered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(world.elsewhere / "obs", {"a": b"1"})
    tars_at, packs_at = world.tars_at, world.packs_at
    planned = packages.plan([str(world.elsewhere)], tars_at=tars_at, packs_at=packs_at)
    make_folder(world.elsewhere / "late", {"a": b"1"})
    monkeypatch.setattr(packing, "plan", lambda *_arguments, **_options: pytest.fail("planned twice"))
    registration = packages.register(tars_at=tars_at, packs_at=packs_at, candidates=planned)
    assert [item.name for item in registration.packages] == ["obs.tar"]
    assert [candidate.path for candidate in planned] == [folder]


def test_notes_on_tars_are_told_and_kept_with_the_package(world: World) -> None:
    path = make_tar(world.tars / "x.tar", {"/etc/passwd": b"", "../up": b""})
    note = "it has 2 members whose paths lead out of the folder where it is unpacked, the first '/etc/passwd'"
    assert world.register(path).notes == (f"package 'x.tar': {note}",)
    with database.session_scope(read_only=True) as session:
        assert packages.show(session, "x").metadata == {"notes": [note]}


def test_many_notes_are_counted(world: World) -> None:
    tars = [make_tar(world.tars / f"{n:02}.tar", {"/x": b""}) for n in range(30)]
    notes = world.register(*tars).notes
    assert len(notes) == 21
    assert notes[0].startswith("package '00.tar'")
    assert notes[-1].startswith("10 more notes")


def test_packages_with_very_many_files_do_not_wait_for_one_another(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "_FILES", 3)
    monkeypatch.setattr(intake, "_COMMIT_SECONDS", 60)
    tars = [make_tar(world.tars / f"{n}.tar", {"a": b"", "b": b""}) for n in range(12)]
    written: list[int] = []
    original = records.write

    def write(session: Any, found: Any) -> Any:
        written.append(len(found))
        return original(session, found)

    monkeypatch.setattr(records, "write", write)
    registration = world.register(*tars, workers=1)
    assert [item.name for item in registration.packages] == [path.name for path in tars]
    assert sum(written) == 12
    assert max(written) <= 4


def test_what_is_in_the_way_in_the_buffer_is_adopted_or_refused_but_never_overwritten(world: World) -> None:
    folder = make_folder(world.elsewhere / "obs", {"a": b"1"})
    world.good(folder)
    with database.session_scope() as session:
        for model in (models.RawDataFile, models.RawDataPackagePhysicalCopy, models.RawDataPackageMetadata):
            session.execute(sa.delete(model))
        session.execute(sa.delete(models.RawDataPackage))
    pack = world.packs / "obs.tar"
    inode = pack.stat().st_ino
    adopted = world.good(folder)
    assert (adopted.created, adopted.copied, pack.stat().st_ino) == (True, False, inode)

    other = make_folder(world.elsewhere / "other", {"a": b"1"})
    in_the_way = make_tar(world.packs / "other.tar", {"x": b"y"})
    before = in_the_way.read_bytes()
    error = world.one(other).error
    assert isinstance(error, InputError)
    assert str(in_the_way) in str(error)
    assert sha256(in_the_way) in str(error)
    assert in_the_way.read_bytes() == before


def test_a_buffer_that_is_unwell_fails_each_package_that_needs_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(world.elsewhere / "obs", {"a": b"1"})
    tar = make_tar(world.tars / "x.tar", {"a": b"1"})
    world.packs.rmdir()
    registration = world.register(folder, tar)
    assert isinstance(registration.packages[0].error, LocationUnavailableError)
    assert registration.packages[1].error is None


def test_a_name_that_cannot_be_a_path_of_a_copy_fails_its_package(world: World) -> None:
    path = make_tar(Path(os.fsdecode(os.fsencode(world.tars) + b"/bad\xff")) / "obs.tar", {"a": b"1"})
    assert isinstance(world.one(path).error, BadNameError)


def test_only_directories_take_packages(world: World) -> None:
    tape = replace(world.packs_at, storage_type=StorageType.TAPE)
    folder = make_folder(world.elsewhere / "obs", {"a": b"1"})
    with pytest.raises(ConfigurationError, match="registered in directories"):
        world.register(folder, packs_at=tape)


def test_bad_input_is_refused_before_anything_is_done(world: World) -> None:
    make_tar(world.tars / "a.tar", {"a": b"1"})
    with pytest.raises(InputError, match="does not exist"):
        world.register(world.tars / "a.tar", world.tars / "gone.tar")
    assert rows(models.RawDataPackage) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, SourceChangedError])
def test_what_the_progress_raises_ends_the_work(world: World, error: type[BaseException]) -> None:
    for n in range(20):
        make_tar(world.tars / f"{n}.tar", {"a": b"1"})

    def stop(_handled: int) -> None:
        raise error

    with pytest.raises(error):
        world.register(world.tars, on_progress=stop)
    assert rows(models.RawDataPackage) == []


@pytest.mark.parametrize("kind", ["in place", "packed"])
def test_two_at_once_make_one_package(world: World, kind: str) -> None:
    if kind == "in place":
        sources = [make_tar(world.tars / f"{n}.tar", {"a": b"1" * 100}) for n in range(20)]
    else:
        sources = [make_folder(world.elsewhere / f"{n}", {"a": b"1" * 100}) for n in range(20)]
    barrier = threading.Barrier(4)
    results: list[packages.Registration] = []

    def run() -> None:
        barrier.wait()
        results.append(world.register(*sources))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert [error for result in results for error in result.errors] == []
    assert len(rows(models.RawDataPackage)) == len(rows(models.RawDataPackagePhysicalCopy)) == 20
    assert sum(item.created for result in results for item in result.packages) == 20
    assert nothing_is_left_in(world)


def test_a_row_that_another_process_wrote_meanwhile_is_looked_at_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_tar(world.tars / "obs.tar", {"a": b"1"})
    other = make_tar(world.tars / "other.tar", {"a": b"1"})
    original = records.look_up
    calls = []

    def blind_twice(session: Any, names: Any) -> Any:
        calls.append(1)
        return {} if len(calls) <= 2 else original(session, names)

    with database.session_scope() as session:
        known = factories.make_package(session, "obs.tar", size=path.stat().st_size, checksum=sha256(path)).id
    monkeypatch.setattr(records, "look_up", blind_twice)
    registration = world.register(path, other)
    assert [(item.error, item.created) for item in registration.packages] == [(None, False), (None, True)]
    assert registration.packages[0].id == known


def test_a_row_that_the_database_refuses_again_and_again_fails_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [make_tar(world.tars / f"{name}.tar", {"a": b"1"}) for name in ("one", "obs")]
    with database.session_scope() as session:
        factories.make_package(session, "obs.tar")
    monkeypatch.setattr(records, "look_up", lambda *_: {})
    registration = world.register(*sources)
    assert registration.packages[0].error is None
    assert isinstance(registration.packages[1].error, DatabaseError)


def test_other_trouble_of_the_database_is_raised(world: World) -> None:
    path = make_tar(world.tars / "obs.tar", {"a": b"1"})
    with database.session_scope() as session:
        session.execute(sa.text("DROP TABLE raw_data_file"))
    with pytest.raises(DatabaseError):
        world.register(path)
    assert rows(models.RawDataPackage) == []


@pytest.mark.parametrize("act", [Path.unlink, lambda path: os.utime(path, (1, 1))])
def test_a_tar_that_is_touched_between_two_looks_is_not_recorded(
    world: World, act: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_tar(world.tars / "obs.tar", {"a": b"1"})
    original = packing.digest_tar

    def then_touch(*args: Any, **options: Any) -> packing.Packed:
        packed = original(*args, **options)
        act(path)
        return packed

    monkeypatch.setattr(packing, "digest_tar", then_touch)
    assert isinstance(world.one(path).error, SourceChangedError)


# FITS


def fits(name: str) -> bytes:
    cards = ["SIMPLE  =                    T", "BITPIX  =                   16", "NAXIS   =                    0"]
    cards += [f"OBJECT  = '{name:8}'", "END"]
    return "".join(card.ljust(80) for card in cards).encode().ljust(2880)


def test_fits_headers_become_metadata(world: World) -> None:
    if not fits_headers.is_available():
        skip_or_fail("astropy is not installed")
    folder = make_folder(world.elsewhere / "obs", {"a.fits": fits("M 42"), "b.dat": b"1"})
    tar = make_tar(world.tars / "x.tar", {"broken.fits": b"nothing"})
    assert world.register(folder, tar).errors == ()
    with database.session_scope(read_only=True) as session:
        document = packages.show(session, "obs").metadata
        assert packages.show(session, "x").metadata["notes"]
    assert document["obscore"]["target_name"] == "M 42"
    assert document["obscore"]["access_format"] == "application/x-tar"
    assert document["headers"] == [{"path": "obs/a.fits", "cards": {"OBJECT": "M 42", "BITPIX": 16, "NAXIS": 0}}]
    json.dumps(document)


def test_without_astropy_packages_are_registered_and_a_note_says_it_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fits_headers, "is_available", lambda: False)
    tars = [make_tar(world.tars / f"{n}.tar", {"a.fits": fits("M 42")}) for n in range(3)]
    registration = world.register(*tars)
    assert registration.errors == ()
    assert registration.notes == (fits_headers.NOT_READ,)
    assert world.register(*tars).notes == ()
    assert rows_of_metadata() == []


def test_headers_are_left_alone_when_not_wanted(world: World) -> None:
    path = make_tar(world.tars / "x.tar", {"a.fits": fits("M 42")})
    assert world.register(path, headers=False).notes == ()
    assert rows_of_metadata() == []


# Finding packages


def test_a_package_is_found_by_name_short_name_and_id(world: World) -> None:
    with database.session_scope() as session:
        first = factories.make_package(session, "obs.tar")
        number = factories.make_package(session, f"{first.id}.tar")
        for asked, found in (
            ("obs.tar", first),
            ("obs", first),
            (first.id, first),
            (str(number.id), number),
            (str(first.id), number),
        ):
            assert packages.get(session, asked) is found
        for asked in ("gone", "obs.tar.tar", "OBS.tar", 999, "999", "9" * 40, "-1", "", "x\x1b[31m", "٣"):
            with pytest.raises(UnknownNameError) as caught:
                packages.get(session, asked)
            assert caught.value.remedy
            assert str(caught.value).isprintable()


def test_a_name_that_no_database_could_hold_is_unknown(world: World) -> None:
    with database.session_scope(read_only=True) as session:
        for name in ("\udcff", "a\0"):
            with pytest.raises(UnknownNameError):
                packages.get(session, name)
            with pytest.raises(UnknownNameError):
                packages.list_packages(session, site=name)
            with pytest.raises(UnknownNameError):
                topology.find_site(session, name)
            with pytest.raises(UnknownNameError):
                topology.find_location(session, f"{name}/x")


def test_packages_are_listed_page_by_page_with_their_copies(world: World) -> None:
    with database.session_scope() as session:
        here = factories.make_location(session, "/data", name="extra")
        far = factories.make_location(session, "/far", site=factories.make_site(session, "chile", "Chile"))
        made = [factories.make_package(session, f"{n:03}.tar", at=here if n % 2 else far).id for n in range(12)]
        factories.make_package(session, "done.tar", at=here, state=PackageState.ARCHIVED)
    with database.session_scope(read_only=True) as session:
        page = packages.list_packages(session, limit=5)
        assert [view.id for view in page] == made[:5]
        assert [view.id for view in packages.list_packages(session, limit=5, after=page[-1].id)] == made[5:10]
        assert page[0].copies == (
            packages.CopyView("chile/buffer", "000.tar", PhysicalCopyStatus.PRESENT, page[0].checksum, None, None),
        )
        for site in ("chile", "Chile"):
            assert [view.id for view in packages.list_packages(session, site=site)] == made[::2]
        (archived,) = packages.list_packages(session, site="cologne", state=PackageState.ARCHIVED)
        assert archived.name == "done.tar"
        with pytest.raises(UnknownNameError):
            packages.list_packages(session, site="mars")


def test_listing_takes_as_many_statements_for_many_as_for_one(world: World) -> None:
    with database.session_scope() as session:
        here = factories.make_location(session, "/data", name="extra")
        for _ in range(40):
            factories.make_package(session, at=here)
    counts = []
    for limit in (1, 40):
        statements: list[str] = []

        def note(_c: Any, _cursor: Any, statement: str, *_: Any, into: list[str] = statements) -> None:
            into.append(statement)

        sa.event.listen(database.engine(), "before_cursor_execute", note)
        with database.session_scope(read_only=True) as session:
            assert len(packages.list_packages(session, limit=limit)) == limit
        sa.event.remove(database.engine(), "before_cursor_execute", note)
        counts.append(len([statement for statement in statements if statement.startswith("SELECT")]))
    assert counts[0] == counts[1] <= 2


def test_show_tells_files_and_counts_those_beyond_the_limit(world: World) -> None:
    world.good(make_tar(world.tars / "obs.tar", {f"{n}": b"1" for n in range(5)}))
    with database.session_scope(read_only=True) as session:
        detail = packages.show(session, "obs", file_limit=2)
        assert ([file.path for file in detail.files], detail.file_count) == (["0", "1"], 5)
        assert detail.package.copies[0].location == "cologne/tars"
        assert detail.metadata == {}
