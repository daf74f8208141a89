"""What becomes a package, how a folder becomes a tar, and what a tar holds. Knows no database and no settings."""

from ccat_data_transfer.packing.candidates import Candidate, Kind, plan
from ccat_data_transfer.packing.reading import inspect_tar, is_tar, open_members
from ccat_data_transfer.packing.writing import Packed, Progress, digest_tar, no_progress, write_tar

__all__ = [
    "Candidate",
    "Kind",
    "Packed",
    "Progress",
    "digest_tar",
    "inspect_tar",
    "is_tar",
    "no_progress",
    "open_members",
    "plan",
    "write_tar",
]
