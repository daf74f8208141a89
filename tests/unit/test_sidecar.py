"""The documents beside an archived package."""

import hashlib
import json
import shutil
import subprocess
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.skips import needs

from ccat_data_transfer import sidecar
from ccat_data_transfer.checksums import Checksum, Digests

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)
BYTES = b"raw data of one night"


def digests(data: bytes = BYTES) -> dict[str, Checksum]:
    made = Digests(["sha256", "md5"])
    made.update(data)
    return made.result()


def build(**changes: Any) -> bytes:
    facts: dict[str, Any] = {
        "package": "obs-0421.tar",
        "size": len(BYTES),
        "recorded_checksum": str(digests()["md5"]),
        "checksums": digests(),
        "files": [sidecar.FileEntry("raw/a.fits", 7, None, NOON), sidecar.FileEntry("raw/ü.fits", 8, "md5:00", None)],
        "metadata": {"obscore": {"obs_id": "0421"}, "headers": [{"OBJECT": "Orion"}]},
        "custody": [sidecar.CustodyEvent(NOON, "verify", "host:1", "cologne/lta", "direct")],
    }
    return sidecar.build(**(facts | changes))


def test_the_document_holds_what_the_archive_needs_to_be_read_without_a_database() -> None:
    document = json.loads(build())
    assert document["format"] == "ccat-archive-sidecar/1"
    assert document["package"] == {
        "name": "obs-0421.tar",
        "size": len(BYTES),
        "recorded_checksum": f"md5:{hashlib.md5(BYTES, usedforsecurity=False).hexdigest()}",
        "checksums": sorted(str(checksum) for checksum in digests().values()),
    }
    assert document["obscore"] == {"obs_id": "0421"}
    assert document["headers"] == [{"OBJECT": "Orion"}]
    assert document["files"] == [
        {"path": "raw/a.fits", "size": 7, "checksum": None, "modified_at": "2026-07-01T12:00:00Z"},
        {"path": "raw/ü.fits", "size": 8, "checksum": "md5:00", "modified_at": None},
    ]
    assert document["custody"] == [
        {
            "at": "2026-07-01T12:00:00Z",
            "event": "verify",
            "actor": "host:1",
            "where": "cologne/lta",
            "evidence": "direct",
        }
    ]


def test_the_same_facts_give_the_same_bytes() -> None:
    reordered = dict(reversed(digests().items()))
    assert list(reordered) != list(digests())
    assert build() == build(checksums=reordered)


def test_a_time_is_written_the_same_in_whatever_zone_it_comes() -> None:
    zone = timezone(timedelta(hours=-4))
    event = sidecar.CustodyEvent(NOON.astimezone(zone), "verify", "host:1", "cologne/lta", "direct")
    assert build(custody=[event]) == build()


def test_what_nobody_knows_is_empty() -> None:
    document = json.loads(build(metadata={}, files=[], custody=[]))
    assert (document["obscore"], document["headers"], document["files"], document["custody"]) == ({}, [], [], [])


def test_a_document_is_text_that_ends_in_a_newline() -> None:
    assert build().decode().endswith("}\n")
    assert "ü" in build().decode()


def test_bytes_that_are_no_text_do_not_keep_a_package_from_its_sidecar() -> None:
    entry = sidecar.FileEntry("raw/\udcff.fits", 1, None, None)
    assert b"raw/\xff.fits" in build(files=[entry])


def test_a_document_vouches_for_the_bytes_it_was_written_for() -> None:
    assert sidecar.vouches_for(build(), "obs-0421.tar", digests())


@pytest.mark.parametrize(
    ("document", "package", "data"),
    [
        (build(), "obs-0422.tar", BYTES),
        (build(), "obs-0421.tar", b"other bytes"),
        (build().replace(b"sidecar/1", b"sidecar/2"), "obs-0421.tar", BYTES),
        (b"", "obs-0421.tar", BYTES),
        (b"not json", "obs-0421.tar", BYTES),
        (b"\xff\xfe", "obs-0421.tar", BYTES),
        (b"[]", "obs-0421.tar", BYTES),
        (b"null", "obs-0421.tar", BYTES),
        (b'{"package": null}', "obs-0421.tar", BYTES),
        (b'{"format": "ccat-archive-sidecar/1", "package": {"name": "obs-0421.tar"}}', "obs-0421.tar", BYTES),
        (build()[:-20], "obs-0421.tar", BYTES),
        (b"[" * 100_000, "obs-0421.tar", BYTES),
    ],
)
def test_a_document_vouches_for_nothing_else(document: bytes, package: str, data: bytes) -> None:
    assert not sidecar.vouches_for(document, package, digests(data))


@given(document=st.binary())
def test_no_document_makes_the_question_fail(document: bytes) -> None:
    assert sidecar.vouches_for(document, "obs-0421.tar", digests()) is False


@needs(shutil.which("sha256sum"), "needs coreutils")
@pytest.mark.parametrize(("stored", "code"), [(BYTES, 0), (b"other bytes", 1)])
def test_a_manifest_is_one_that_sha256sum_can_check(tmp_path: Path, stored: bytes, code: int) -> None:
    name = "obs 0421 ü.tar"
    (tmp_path / name).write_bytes(stored)
    (tmp_path / "manifest").write_bytes(sidecar.manifest(name, digests()["sha256"]))
    command = ["sha256sum", "--strict", "-c", "manifest"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == code


def test_a_header_that_is_no_number_is_written_as_json_knows_it() -> None:
    document = sidecar.build(
        package="p.tar",
        size=1,
        recorded_checksum="sha256:" + "0" * 64,
        checksums={"sha256": Checksum("sha256", "0" * 64)},
        files=[],
        metadata={"headers": [{"path": "a.fits", "cards": {"EXPTIME": float("nan"), "CRVAL1": float("inf")}}]},
        custody=[],
    )
    (header,) = json.loads(document, parse_constant=pytest.fail)["headers"]
    assert header["cards"] == {"CRVAL1": None, "EXPTIME": None}
