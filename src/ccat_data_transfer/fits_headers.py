"""What the FITS headers inside a package say of the observation, for its sidecar.

Only headers are read. A strange header is noted and passed over: it never keeps a package from being
registered. Terms are those of IVOA ObsCore 1.1 in its units (degrees, MJD days, seconds, kbyte of 1000
bytes); a term that the headers do not give, or on which they disagree, is left out. Reading needs astropy,
which is optional.
"""

import gzip
import importlib.util
import io
import math
import threading
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, BinaryIO, cast

MAX_HEADERS = 1000
NOT_READ = "FITS headers were not read: install 'ccat-data-transfer[fits]'"

_SUFFIXES = (".fits", ".fit", ".fts", ".fits.gz", ".fit.gz", ".fts.gz")
_CARDS = (
    "TELESCOP", "INSTRUME", "DETECTOR", "ORIGIN", "OBSERVER", "PROPID", "PROGRAM", "OBS_ID", "OBSID",
    "OBSMODE", "OBSTYPE", "OBJECT", "DATE", "DATE-OBS", "TIME-OBS", "DATE-BEG", "DATE-END", "TIMESYS",
    "MJD-OBS", "MJD-BEG", "MJD-END", "EXPTIME", "EXPOSURE", "XPOSURE", "TELAPSE", "RA", "DEC", "RADESYS",
    "EQUINOX", "FILTER", "RESTFREQ", "XTENSION", "EXTNAME", "BUNIT", "BITPIX", "NAXIS",
)  # fmt: skip
_AXES = ("NAXIS{}", "CTYPE{}", "CUNIT{}", "CRVAL{}")
_SPECTRAL = ("FREQ", "WAVE", "AWAV", "VELO", "VRAD", "VOPT", "ZOPT", "ENER", "WAVN", "BETA")
_CELESTIAL = ({"RA--", "DEC-"}, {"GLON", "GLAT"}, {"ELON", "ELAT"})
# A header is a few blocks of 2880 bytes; what does not end in 100 of them is no header.
_MOST_BYTES = 100 * 2880
_MOST_CHARACTERS = 1000
_STRANGE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    zlib.error,
)
_MJD_ZERO = datetime(1858, 11, 17, tzinfo=UTC)

# Filters of warnings belong to the process; two threads would restore each other's.
_quiet = threading.Lock()

Cards = dict[str, str | int | float | bool]


def is_fits(path: str) -> bool:
    """Whether a file of this name is taken for FITS."""
    return path.lower().endswith(_SUFFIXES)


def is_available() -> bool:
    """Whether headers can be read; if not, `describe` gives nothing and `NOT_READ` says why."""
    try:
        return importlib.util.find_spec("astropy.io.fits") is not None
    except (ImportError, ValueError):
        return False


def describe(open_members: Iterable[tuple[str, BinaryIO]], *, package_bytes: int | None = None) -> dict[str, Any]:
    """What a package's FITS files tell: `obscore` terms, `headers`, and `notes` on what was odd.

    Each member is read before the next is asked for. Empty when there is no FITS file or no astropy. At most
    `MAX_HEADERS` headers are kept, `headers_left_out` counts the rest. `package_bytes` is for
    `access_estsize`.
    """
    if not is_available():
        return {}
    headers: list[tuple[str, Cards]] = []
    notes: list[str] = []
    left_out = 0
    for path, stream in open_members:
        if not is_fits(path):
            continue
        if len(headers) + len(notes) >= MAX_HEADERS:
            left_out += 1
            continue
        try:
            headers.append((path, _read(path, stream)))
        except _STRANGE as error:
            notes.append(f"{path}: no FITS header could be read ({type(error).__name__})")
    return _document(headers, notes, left_out, package_bytes)


def _document(
    headers: Sequence[tuple[str, Cards]], notes: list[str], left_out: int, package_bytes: int | None
) -> dict[str, Any]:
    if not headers and not notes:
        return {}
    document: dict[str, Any] = {
        "obscore": _obscore([cards for _, cards in headers], package_bytes) if not left_out else {},
        "headers": [{"path": path, "cards": cards} for path, cards in headers],
    }
    if notes:
        document["notes"] = notes
    if left_out:
        document["headers_left_out"] = left_out
    return document


def _read(path: str, stream: BinaryIO) -> Cards:
    """The chosen cards of the primary header, and of the first extension when the primary has no data."""
    if path.lower().endswith(".gz"):
        stream = cast("BinaryIO", gzip.GzipFile(fileobj=stream))
    start = io.BytesIO(stream.read(_MOST_BYTES))
    with _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from astropy.io import fits  # here, because already this may warn, of a home without its folders

        try:
            primary = fits.Header.fromfile(start)
            if "SIMPLE" not in primary:
                raise ValueError("no SIMPLE card")
            cards = _chosen(primary)
            if primary.get("NAXIS") == 0 and start.tell() < start.getbuffer().nbytes:
                # What a bare primary says of the observation holds for its extensions.
                cards |= _chosen(fits.Header.fromfile(start))
        except fits.VerifyError as error:
            raise ValueError(str(error)) from error
    return cards


def _chosen(header: Any) -> Cards:
    wanted = [*_CARDS, *(axis.format(n) for n in range(1, 10) for axis in _AXES)]
    found = {}
    for keyword in wanted:
        if keyword in header:
            value = _plain(header, keyword)
            if value is not None:
                found[keyword] = value
    return found


def _plain(header: Any, keyword: str) -> str | int | float | bool | None:
    """A value that every JSON parser and database takes, or None."""
    from astropy.io.fits import VerifyError

    try:
        value = header[keyword]
    except (VerifyError, *_STRANGE):
        return None  # the other cards may be well
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        text = "".join(c for c in value if c.isprintable()).strip()
        return text[:_MOST_CHARACTERS] or None
    return value if isinstance(value, bool | int) else None


def _obscore(headers: Sequence[Cards], package_bytes: int | None) -> dict[str, Any]:
    if not headers:
        return {}
    terms: dict[str, Any] = {
        "dataproduct_type": _agreed(_product(cards) for cards in headers),
        "obs_id": _agreed(_first(cards, "OBS_ID", "OBSID") for cards in headers),
        "target_name": _agreed(_first(cards, "OBJECT") for cards in headers),
        "facility_name": _agreed(_first(cards, "TELESCOP") for cards in headers),
        "instrument_name": _agreed(_first(cards, "INSTRUME") for cards in headers),
    }
    positions = [_position(cards) for cards in headers]
    if (position := _agreed(positions)) is not None:
        terms["s_ra"], terms["s_dec"] = position
    terms |= _times(headers)
    if package_bytes is not None:
        terms |= {"access_format": "application/x-tar", "access_estsize": math.ceil(package_bytes / 1000)}
    return {name: value for name, value in terms.items() if value is not None}


def _first(cards: Cards, *keywords: str) -> str | None:
    return next((str(cards[keyword]) for keyword in keywords if keyword in cards), None)


def _agreed(values: Iterable[Any]) -> Any:
    """The value that all give, or None."""
    different = set(values)
    return different.pop() if len(different) == 1 else None


def _product(cards: Cards) -> str | None:
    """Only what the axes say beyond doubt: detectors write two-dimensional frames of everything."""
    axes = cards.get("NAXIS")
    types = [str(cards.get(f"CTYPE{n}", "")).upper() for n in (1, 2, 3)]
    if axes == 1 and types[0].startswith(_SPECTRAL):
        return "spectrum"
    if {types[0][:4], types[1][:4]} not in _CELESTIAL:
        return None
    if axes == 2:
        return "image"
    return "cube" if axes == 3 and types[2].startswith(_SPECTRAL) else None


def _position(cards: Cards) -> tuple[float, float] | None:
    """Right ascension and declination in degrees, when the frame is ICRS or what nobody tells from it."""
    if cards.get("RADESYS", "ICRS") not in {"ICRS", "FK5"} or cards.get("EQUINOX", 2000) != 2000:
        return None
    ra, dec = _angle(cards.get("RA"), per_unit=15.0), _angle(cards.get("DEC"), per_unit=1.0)
    if ra is None or dec is None or not (0 <= ra <= 360 and -90 <= dec <= 90):
        return None
    return round(ra, 8), round(dec, 8)


def _angle(value: Any, *, per_unit: float) -> float | None:
    """Degrees from a number of degrees, or from text `12:34:56.7` in units of `per_unit` degrees."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    parts = str(value).replace(":", " ").split()
    try:
        numbers = [abs(float(part)) for part in parts]
    except ValueError:
        return None
    if len(numbers) != 3:
        return None
    degrees = (numbers[0] + numbers[1] / 60 + numbers[2] / 3600) * per_unit
    return -degrees if parts[0].startswith("-") else degrees


def _times(headers: Sequence[Cards]) -> dict[str, float]:
    starts = [_mjd(cards, ("MJD-BEG", "MJD-OBS"), ("DATE-BEG", "DATE-OBS")) for cards in headers]
    ends = [_mjd(cards, ("MJD-END",), ("DATE-END",)) for cards in headers]
    exposures = [_seconds(cards) for cards in headers]
    terms: dict[str, float] = {}
    known_starts = [start for start in starts if start is not None]
    known_ends = [end for end in ends if end is not None]
    if len(known_starts) == len(headers):
        terms["t_min"] = min(known_starts)
    if len(known_ends) == len(headers):
        terms["t_max"] = max(known_ends)
    # Files that begin at the same time are detectors of one exposure, not exposures one after the other.
    by_start: dict[float | None, float] = {}
    for start, seconds in zip(starts, exposures, strict=True):
        if seconds is not None:
            by_start[start] = max(seconds, by_start.get(start, 0.0))
    is_known = None not in exposures and (None not in starts or len(headers) == 1)
    return terms | ({"t_exptime": sum(by_start.values())} if is_known else {})


def _seconds(cards: Cards) -> float | None:
    for keyword in ("XPOSURE", "EXPTIME", "EXPOSURE"):
        value = cards.get(keyword)
        if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
            return float(value)
    return None


def _mjd(cards: Mapping[str, Any], numbers: Sequence[str], dates: Sequence[str]) -> float | None:
    if str(cards.get("TIMESYS", "UTC")).upper() != "UTC":
        return None
    for keyword in numbers:
        value = cards.get(keyword)
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            return float(value)
    for keyword in dates:
        text = str(cards.get(keyword, ""))
        if "T" not in text and "TIME-OBS" in cards and keyword == "DATE-OBS":
            text = f"{text}T{cards['TIME-OBS']}"
        try:
            moment = datetime.fromisoformat(text) if "T" in text else None
        except ValueError:
            continue
        if moment is not None:
            moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
            return round((moment - _MJD_ZERO).total_seconds() / 86_400, 9)
    return None
