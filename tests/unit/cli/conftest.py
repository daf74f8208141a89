"""The command line, called as its entry point is, in a folder of its own."""

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog

from ccat_data_transfer import cli, database, settings

WORKDIR = ".ccat_data_transfer"


@dataclass(frozen=True)
class Result:
    """What one call did."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


class Program:
    """`ccat_data_transfer` with a current folder."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capture = capture

    def __call__(self, *arguments: str | Path) -> Result:
        self._capture.readouterr()
        settings.get.cache_clear()
        code = cli.main([str(argument) for argument in arguments])
        out, err = self._capture.readouterr()
        return Result(code, out, err)

    def succeed(self, *arguments: str | Path) -> Result:
        result = self(*arguments)
        assert result.code == 0, result
        return result

    @property
    def files(self) -> list[str]:
        """Everything below the folder."""
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*"))


@pytest.fixture
def nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Program]:
    """The program in an empty folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("CCAT_DATA_TRANSFER_WORKING_DIRECTORY", raising=False)
    root, ours = logging.getLogger(), logging.getLogger("ccat_data_transfer")
    before = root.handlers[:], root.level, ours.level
    yield Program(folder, capsys)
    root.handlers[:], root.level, ours.level = before
    structlog.reset_defaults()
    database.dispose()
    settings.get.cache_clear()


@pytest.fixture
def program(nothing: Program, empty_database: Path) -> Program:
    """The program in a folder with a database without rows."""
    workdir = nothing.folder / WORKDIR
    workdir.mkdir()
    shutil.copy(empty_database, workdir / "operations.sqlite")
    return nothing


@pytest.fixture
def night(nothing: Program) -> Path:
    """A folder of two packages to be: one folder and one tar."""
    folder = nothing.folder / "night"
    (folder / "obs-1").mkdir(parents=True)
    (folder / "obs-1" / "a.dat").write_bytes(b"a" * 5000)
    (folder / "obs-2").mkdir()
    (folder / "obs-2" / "b.dat").write_bytes(b"b" * 70_000)
    return folder


TOPOLOGY = """
[[site]]
name = "University of Cologne"
short_name = "cologne"

[[site.data_location]]
name = "buffer"
location_type = "buffer"
storage_type = "disk"
path = "{folder}/buffer"

[[site.data_location]]
name = "lta"
location_type = "long_term_archive"
storage_type = "disk"
path = "{folder}/lta"
"""


@pytest.fixture
def cologne(program: Program) -> Program:
    """The program with a declared site of one buffer and one archive."""
    for name in ("buffer", "lta"):
        (program.folder / name).mkdir()
    (program.folder / "topology.toml").write_text(TOPOLOGY.format(folder=program.folder))
    program.succeed("topology", "apply", "topology.toml")
    return program
