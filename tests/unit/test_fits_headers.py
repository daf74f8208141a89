"""What FITS headers tell of a package, and that no header is strange enough to do harm."""

import gzip
import importlib
import io
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.skips import skip_or_fail

from ccat_data_transfer import fits_headers

if not fits_headers.is_available():
    skip_or_fail("astropy is not installed", whole_module=True)
astropy_fits = importlib.import_module("astropy.io.fits")
SAMPLES = Path(str(astropy_fits.__file__)).parent / "tests" / "data"


def header(*cards: str, end: bool = True) -> bytes:
    lines = [card.ljust(80) for card in (*cards, *(["END"] if end else []))]
    text = "".join(lines).encode()
    return text.ljust(-(-len(text) // 2880) * 2880)


def primary(*cards: str) -> bytes:
    return header(
        "SIMPLE  =                    T", "BITPIX  =                   16", "NAXIS   =                    0", *cards
    )


def describe(*files: bytes, **options: Any) -> dict[str, Any]:
    members: Iterable[tuple[str, BinaryIO]] = ((f"f{n}.fits", io.BytesIO(data)) for n, data in enumerate(files))
    return fits_headers.describe(members, **options)


def test_a_real_header_is_described() -> None:
    with (SAMPLES / "o4sp040b0_raw.fits").open("rb") as stream:
        document = fits_headers.describe([("o4sp040b0_raw.fits", stream)], package_bytes=50_000_001)
    assert document["obscore"] == {
        "facility_name": "HST",
        "instrument_name": "STIS",
        "t_min": pytest.approx(50923.7765625),
        "t_exptime": 30.0,
        "access_format": "application/x-tar",
        "access_estsize": 50_001,
    }
    (entry,) = document["headers"]
    assert entry["path"] == "o4sp040b0_raw.fits"
    assert entry["cards"]["TELESCOP"] == "HST"
    assert entry["cards"]["NAXIS1"] == 62
    assert "notes" not in document


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.fits")), ids=lambda path: path.name)
def test_every_sample_of_astropy_is_read_as_plain_json(path: Path) -> None:
    with path.open("rb") as stream:
        document = fits_headers.describe([(path.name, stream)])
    assert "notes" not in document
    assert len(document["headers"]) == 1
    json.dumps(document, allow_nan=False)


def test_terms_have_the_units_of_obscore() -> None:
    terms = describe(
        primary(
            "OBS_ID  = 'uid-7   '", "OBJECT  = 'Orion A '", "TELESCOP= 'FYST    '", "INSTRUME= 'PCAM    '",
            "RA      = '05:35:17.3'", "DEC     = '-05:23:28'", "DATE-OBS= '2026-01-02T12:00:00'",
            "DATE-END= '2026-01-02T18:00:00Z'", "EXPTIME =                 60.5",
        )
    )["obscore"]  # fmt: skip
    assert terms == {
        "obs_id": "uid-7",
        "target_name": "Orion A",
        "facility_name": "FYST",
        "instrument_name": "PCAM",
        "s_ra": pytest.approx(83.8220833),
        "s_dec": pytest.approx(-5.3911111),
        "t_min": 61042.5,
        "t_max": 61042.75,
        "t_exptime": 60.5,
    }


@pytest.mark.parametrize(
    ("cards", "product"),
    [
        (["NAXIS   =                    1", "CTYPE1  = 'FREQ    '"], "spectrum"),
        (["NAXIS   =                    2", "CTYPE1  = 'RA---TAN'", "CTYPE2  = 'DEC--TAN'"], "image"),
        (
            ["NAXIS   =                    3", "CTYPE1  = 'GLON-CAR'", "CTYPE2  = 'GLAT-CAR'", "CTYPE3  = 'VRAD    '"],
            "cube",
        ),
        (["NAXIS   =                    2"], None),
        (["NAXIS   =                    3", "CTYPE1  = 'RA---TAN'", "CTYPE2  = 'DEC--TAN'"], None),
    ],
)
def test_the_kind_of_data_is_told_only_when_the_axes_tell_it(cards: list[str], product: str | None) -> None:
    document = describe(header("SIMPLE  =                    T", "BITPIX  =                   16", *cards))
    assert document["obscore"].get("dataproduct_type") == product


def test_files_must_agree_and_times_span_all() -> None:
    common = ("OBJECT  = 'M 42    '", "EXPTIME =                 10.0")
    terms = describe(
        primary(*common, "MJD-OBS =              60000.5", "MJD-END =              60000.6", "INSTRUME= 'A       '"),
        primary(*common, "MJD-OBS =              60000.5", "MJD-END =              60000.7", "INSTRUME= 'B       '"),
        primary(*common, "MJD-OBS =              60001.5", "MJD-END =              60001.6", "INSTRUME= 'A       '"),
    )["obscore"]
    # Two detectors at once, then one exposure more.
    assert terms == {"target_name": "M 42", "t_min": 60000.5, "t_max": 60001.6, "t_exptime": 20.0}


@pytest.mark.parametrize(
    "cards",
    [
        ("TIMESYS = 'TAI     '", "MJD-OBS =              60000.5"),
        ("DATE-OBS= '02/01/26'",),
        ("DATE-OBS= '2026-01-02'",),
        ("RA      =                 83.8",),
        ("RA      =                 83.8", "DEC     =                 95.0"),
        ("RA      =                 83.8", "DEC     =                 -5.0", "EQUINOX =               1950.0"),
        ("RA      = 'zenith  '", "DEC     =                    T"),
        ("EXPTIME =                 -1.0",),
    ],
)
def test_what_is_not_known_for_certain_is_left_out(cards: tuple[str, ...]) -> None:
    assert describe(primary(*cards))["obscore"] == {}


def test_a_bare_primary_is_completed_by_its_first_extension() -> None:
    extension = header(
        "XTENSION= 'IMAGE   '", "BITPIX  =                   16", "NAXIS   =                    1",
        "NAXIS1  =                   10", "BUNIT   = 'K       '", "EXTNAME = 'SPEC    '",
    )  # fmt: skip
    (entry,) = describe(primary("OBJECT  = 'M 42    '") + extension)["headers"]
    assert entry["cards"] == {
        "OBJECT": "M 42", "XTENSION": "IMAGE", "BITPIX": 16, "NAXIS": 1, "NAXIS1": 10, "BUNIT": "K", "EXTNAME": "SPEC",
    }  # fmt: skip


def test_compressed_files_are_read_too() -> None:
    data = gzip.compress(primary("OBJECT  = 'M 42    '"))
    assert fits_headers.describe([("A.FITS.GZ", io.BytesIO(data))])["obscore"] == {"target_name": "M 42"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no FITS at all",
        header("SIMPLE  =                    T", end=False),
        primary()[:100],
        header("OBJECT  = 'M 42    '"),
        b"\xff" * 5760,
        b"SIMPLE  =                    T".ljust(1_000_000),
    ],
)
def test_a_malformed_file_is_noted_and_the_others_are_read(data: bytes) -> None:
    document = describe(data, primary("OBJECT  = 'M 42    '"))
    assert [entry["path"] for entry in document["headers"]] == ["f1.fits"]
    assert len(document["notes"]) == 1
    assert document["notes"][0].startswith("f0.fits: ")


def test_a_broken_compressed_file_is_noted() -> None:
    data = gzip.compress(primary())[:-20]
    for content in (data, b"not gzip"):
        assert len(fits_headers.describe([("a.fits.gz", io.BytesIO(content))])["notes"]) == 1


def test_values_that_no_json_takes_are_left_out() -> None:
    document = describe(
        primary("EXPTIME =               1E999", "OBJECT  = what is this", "FILTER  =", "TELAPSE = (1.0, 2.0)")
    )
    (entry,) = document["headers"]
    assert not {"EXPTIME", "OBJECT", "FILTER", "TELAPSE"} & set(entry["cards"])


def test_only_so_many_headers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fits_headers, "MAX_HEADERS", 2)
    document = describe(*[primary("OBJECT  = 'M 42    '")] * 5)
    assert len(document["headers"]) == 2
    assert document["headers_left_out"] == 3
    assert document["obscore"] == {}  # the others may disagree


def test_without_fits_files_there_is_nothing_to_tell() -> None:
    assert fits_headers.describe([("a.dat", io.BytesIO(primary()))]) == {}
    assert fits_headers.describe([]) == {}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_header_is_strange_enough_to_raise(data: st.DataObject) -> None:
    spoiled = bytearray(primary("OBJECT  = 'M 42    '", "EXPTIME =                 10.0", "RA      = '05:35:17.3'"))
    for _ in range(data.draw(st.integers(1, 10))):
        spoiled[data.draw(st.integers(0, 719))] = data.draw(st.integers(0, 255))
    json.dumps(describe(bytes(spoiled)), allow_nan=False)


def test_without_astropy_nothing_is_read_and_nothing_fails() -> None:
    program = """
import io, sys
sys.modules["astropy"] = None
from ccat_data_transfer import fits_headers
assert not fits_headers.is_available()
assert fits_headers.describe([("a.fits", io.BytesIO(b"SIMPLE"))]) == {}
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_importing_the_module_does_not_load_astropy() -> None:
    program = "import sys; from ccat_data_transfer import fits_headers; assert 'astropy.io.fits' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
