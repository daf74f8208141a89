"""The sidecar: a JSON document beside each archived package that makes the archive readable without our database.

Format `ccat-archive-sidecar/1`. Terms under `obscore` are those of the IVOA ObsCore data model
(https://www.ivoa.net/documents/ObsCore/), as far as they are known; a missing term means "not known".
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ccat_data_transfer.checksums import Checksum

FORMAT = "ccat-archive-sidecar/1"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file inside the package: its path there, size in bytes, checksum and time of change where known."""

    path: str
    size: int
    checksum: str | None
    modified_at: datetime | None


@dataclass(frozen=True, slots=True)
class CustodyEvent:
    """One step of the package's way: who had it, did what, when, and by which evidence."""

    at: datetime | None  # None: as the document was written
    event: str
    actor: str
    where: str
    evidence: str | None = None


def _time(value: datetime | None) -> str | None:
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z") if value else None


def _plain(value: Any) -> Any:
    """`value` as any reader of JSON takes it: keys in order, since databases do not keep theirs, and no NaN."""
    if isinstance(value, Mapping):
        return {key: _plain(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def build(
    *,
    package: str,
    size: int,
    recorded_checksum: str,
    checksums: Mapping[str, Checksum],
    files: Sequence[FileEntry],
    metadata: Mapping[str, Any],
    custody: Sequence[CustodyEvent],
    files_left_out: int = 0,
) -> bytes:
    """The document, UTF-8, ending in a newline. The same facts give the same bytes."""
    document = {
        "format": FORMAT,
        "package": {
            "name": package,
            "size": size,
            "recorded_checksum": recorded_checksum,
            "checksums": [str(checksums[name]) for name in sorted(checksums)],
        },
        "obscore": _plain(metadata.get("obscore", {})),
        "headers": _plain(metadata.get("headers", [])),
        "headers_left_out": metadata.get("headers_left_out", 0),
        "notes": metadata.get("notes", []),
        "files": [
            {"path": f.path, "size": f.size, "checksum": f.checksum, "modified_at": _time(f.modified_at)} for f in files
        ],
        "files_left_out": files_left_out,
        "custody": [
            {"at": _time(e.at), "event": e.event, "actor": e.actor, "where": e.where, "evidence": e.evidence}
            for e in custody
        ],
    }
    return (json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode(
        "utf-8", "surrogateescape"
    )


def manifest(package: str, checksum: Checksum) -> bytes:
    """A manifest of one line that `sha256sum -c` accepts in the package's folder."""
    return f"{checksum.digest}  {package}\n".encode()


def vouches_for(document: bytes, package: str, checksums: Mapping[str, Checksum]) -> bool:
    """Whether a sidecar found beside a package is about these very bytes."""
    try:
        content = json.loads(document)
        described = content["package"]
        return bool(
            content["format"] == FORMAT
            and described["name"] == package
            and str(checksums["sha256"]) in described["checksums"]
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
