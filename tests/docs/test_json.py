"""The JSON that commands print has the shape that docs/reference/json.md tells."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.docs import reading

PAGE = "docs/reference/json.md"
FITS_CARD = "{:80}".format

TOPOLOGY = """
[[site]]
name = "Cologne"
short_name = "cologne"
location = "Germany"

[[site.data_location]]
name = "buffer"
location_type = "buffer"
storage_type = "disk"
path = "{root}/buffer"

[[site.data_location]]
name = "lta"
location_type = "long_term_archive"
storage_type = "disk"
path = "{root}/lta"
"""


class Documented:
    """The keys of one output: patterns of those that must be there, and of those that may."""

    def __init__(self, command: str) -> None:
        body = reading.section(PAGE, f"`{command}`")
        rows = re.findall(r"^\| `([^`]+)` \| (.+) \|$", body, flags=re.MULTILINE)
        self.required = {key for key, meaning in rows if not meaning.startswith("Only")}
        self.all = {key for key, _ in rows}

    def check(self, found: set[str]) -> None:
        """Fail unless the found keys are the documented ones."""
        unknown = {key for key in found if not any(_matches(pattern, key) for pattern in self.all)}
        missing = {pattern for pattern in self.required if not any(_matches(pattern, key) for key in found)}
        assert (unknown, missing) == (set(), set())


def _matches(pattern: str, key: str) -> bool:
    return bool(re.fullmatch(re.sub(r"\\\{\w+\\\}", r"[\\w-]+", re.escape(pattern)), key))


def _keys(value: Any, path: str = "") -> Iterator[str]:
    """The paths of all that is neither an object nor a list of objects; empty objects count as such."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _keys(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for inner in value:
            yield from _keys(inner, f"{path}[]")
    else:
        yield path


class Place:
    """A directory in which commands are called."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def call(self, *arguments: str, expected: int = 0) -> str:
        """Run a command; returns what it printed."""
        command = [sys.executable, "-m", "ccat_data_transfer", *arguments]
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=False)
        assert done.returncode == expected, done.stderr
        return done.stdout

    def check(self, documented: str, *arguments: str, expected: int = 0) -> None:
        """Run a command with `--json` and compare its keys with those of a section of the page."""
        document = json.loads(self.call(*arguments, "--json", expected=expected))
        Documented(f"{documented} --json").check(set(_keys(document)))


def test_the_outputs_of_an_operator(tmp_path: Path) -> None:
    place = Place(tmp_path)
    for name in ("buffer", "lta", "good", "bad"):
        (tmp_path / name).mkdir()
    cards = (
        "SIMPLE  =                    T",
        "BITPIX  =                    8",
        "NAXIS   =                    0",
        "END",
    )
    (tmp_path / "good" / "a.fits").write_text("".join(map(FITS_CARD, cards)).ljust(2880), encoding="ascii")
    (tmp_path / "bad" / "b.dat").write_text("b", encoding="ascii")
    (tmp_path / "topology.toml").write_text(TOPOLOGY.format(root=tmp_path), encoding="utf-8")

    place.check("db upgrade", "db", "upgrade")
    place.check("db check", "db", "check")
    place.check("topology apply", "topology", "apply", "topology.toml")
    place.check("topology show", "topology", "show")
    place.check("package register", "package", "register", "good", "bad", "--location", "cologne/buffer")
    bad = tmp_path / "buffer" / "bad.tar"
    bad.chmod(0o644)
    bad.write_bytes(bytes(bad.stat().st_size))
    place.call("archive-manager", "--once")

    place.check("location list", "location", "list")
    place.check("location show", "location", "show", "cologne/lta")
    place.check("location check", "location", "check")
    place.check("package list", "package", "list")
    place.check("package show", "package", "show", "good")
    place.check("package show", "package", "show", "bad")
    place.check("transfer list", "transfer", "list")
    place.check("transfer show", "transfer", "show", "1")
    place.check("status", "status")
    place.check("queues", "queues")


def test_the_outputs_of_archive(tmp_path: Path) -> None:
    place = Place(tmp_path)
    (tmp_path / "night").mkdir()
    (tmp_path / "night" / "a.dat").write_text("a", encoding="ascii")
    place.check("archive --dry-run", "archive", "night", "--to", "lta", "--dry-run")
    place.check("archive", "archive", "night", "--to", "lta")


def test_the_sidecar_has_the_keys_that_its_page_tells(tmp_path: Path) -> None:
    place = Place(tmp_path)
    (tmp_path / "night").mkdir()
    (tmp_path / "night" / "a.dat").write_text("a", encoding="ascii")
    place.call("archive", "night", "--to", "lta")
    document = json.loads((tmp_path / "lta" / "night" / "night.tar.json").read_text(encoding="utf-8"))
    body = reading.section("docs/layout.md", "The sidecar: format `ccat-archive-sidecar/1`")
    documented = set(reading.first_cells(body)[1:])
    # Without FITS files nothing is known of these.
    found = set(_keys(document)) | {"headers[].path", "headers[].cards", "files", "custody"}
    assert found == documented
