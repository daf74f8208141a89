"""Disks for the storage tests, and the watch that no test leaves a descriptor open."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from tests.skips import skip_or_fail

from ccat_data_transfer.locations import Location, LocationType, StorageType
from ccat_data_transfer.states import Evidence
from ccat_data_transfer.storage.posix import PosixStorage

NOBODY = 65534

MakeDisk = Callable[..., PosixStorage]


@pytest.fixture
def make_disk() -> MakeDisk:
    """Makes a storage on a directory, which is made unless `exists` is False."""

    def make(
        path: Path,
        *,
        volume_id: str | None = None,
        evidence: Evidence = Evidence.EVICTED_UNPROVED,
        exists: bool = True,
    ) -> PosixStorage:
        if exists:
            path.mkdir(exist_ok=True)
        kind = LocationType.BUFFER if "buffer" in path.name else LocationType.LONG_TERM_ARCHIVE
        options = {"path": str(path)}
        return PosixStorage(Location(1, "here", path.name, kind, StorageType.DISK, volume_id, evidence, options))

    return make


@pytest.fixture
def buffer(tmp_path: Path, make_disk: MakeDisk) -> PosixStorage:
    return make_disk(tmp_path / "buffer")


@pytest.fixture
def archive(tmp_path: Path, make_disk: MakeDisk) -> PosixStorage:
    return make_disk(tmp_path / "lta")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of `archive`."""
    return tmp_path / "lta"


@pytest.fixture(autouse=True)
def no_open_descriptors(tmp_path: Path) -> Iterator[None]:
    """Fail a test after which a descriptor below its directory is still open."""
    yield
    left = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:  # the one of this listing
            continue
        if target.startswith(f"{tmp_path}/"):
            left.append(target)
    assert not left, f"still open: {left}"


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A directory that other users can pass through, as pytest's are not."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def as_nobody() -> Callable[[], AbstractContextManager[None]]:
    """A block whose file access is that of an ordinary user: root may do everything, whatever the modes say."""

    @contextmanager
    def block() -> Iterator[None]:
        if os.geteuid() != 0:
            yield
            return
        os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)

    return block


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB and 40 inodes."""
    path = tmp_path / "small-lta"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=12m,nr_inodes=40", "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        skip_or_fail("needs the right to mount a small file system")
    yield path
    subprocess.run(["umount", str(path)], check=True)
