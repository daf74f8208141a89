"""A data location as a value: what a storage backend and an operator's screen need to know of it.

The database row is `models.DataLocation`; this carries it to layers that know no database.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from ccat_data_transfer import routing
from ccat_data_transfer.states import Evidence


class LocationType(StrEnum):
    """What a data location is for."""

    SOURCE = "source"
    BUFFER = "buffer"
    LONG_TERM_ARCHIVE = "long_term_archive"
    PROCESSING = "processing"


class StorageType(StrEnum):
    """How a data location keeps its bytes."""

    DISK = "disk"
    S3 = "s3"
    TAPE = "tape"


@dataclass(frozen=True, slots=True)
class Location:
    """One data location. `options` holds what only its backend understands (`path` for a disk)."""

    id: int
    site: str  # short name
    name: str
    location_type: LocationType
    storage_type: StorageType
    volume_id: str | None = None  # what the sentinel in the root must say; None until the place was enrolled
    required_evidence: Evidence = Evidence.EVICTED_UNPROVED
    options: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.site}/{self.name}"

    @property
    def queue(self) -> str:
        """The queue of operations that have this destination."""
        return routing.queue_name(self.site, self.name)

    def is_on_this_host(self, hostname: str) -> bool:
        """Whether the place can be reached from the host of this name: a directory may be that of one host only.

        A name without a domain is that of the host in any domain.
        """
        host = self.options.get("host")
        if self.storage_type is not StorageType.DISK or not host or host == "localhost":
            return True
        a, b = host.lower().rstrip("."), hostname.lower().rstrip(".")
        return a == b or (("." not in a or "." not in b) and a.partition(".")[0] == b.partition(".")[0])
