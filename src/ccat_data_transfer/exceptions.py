"""Every error of the product, in one tree.

    CCATDataOperationError
    ├── ConfigurationError
    │   └── TopologyError
    ├── InputError
    │   └── UnknownNameError
    ├── RetryableError
    │   ├── DatabaseError
    │   │   └── DatabaseSchemaError
    │   ├── NetworkError
    │   │   └── ServiceUnavailableError
    │   ├── LeaseLostError
    │   ├── StoppedError
    │   └── ArchiveError
    │       ├── SourceReadError
    │       ├── SourceChangedError
    │       ├── StorageError
    │       └── LocationUnavailableError
    │           └── SourceUnavailableError
    └── NonRetryableError
        ├── NoChecksumError
        ├── SourceMissingError
        ├── BadSourceError
        ├── BadNameError
        ├── TooLargeError
        ├── DataCorruptionError
        │   └── ChecksumVerificationError
        └── DestinationFileExistsError

Each class says whether a retry can help (`retryable`), with which code the command line exits
(`exit_code`), what an operator can do (`remedy`), and, where it ends an attempt, which member of
`states.FailureReason` is recorded (`reason`).
"""

from typing import ClassVar


class CCATDataOperationError(Exception):
    """The operation failed."""

    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 70
    reason: ClassVar[str | None] = None
    remedy: str = ""

    def __init__(self, message: str | None = None, *, remedy: str | None = None) -> None:
        super().__init__(message or type(self).__doc__)
        if remedy is not None:
            self.remedy = remedy


class ConfigurationError(CCATDataOperationError):
    """A setting is missing, malformed or unsafe."""

    exit_code = 3
    remedy = "correct the setting; `ccat_data_transfer --help` names where settings come from"


class TopologyError(ConfigurationError):
    """The declared sites and data locations contradict each other or the database."""

    remedy = "correct the topology file and apply it again; nothing was changed"


class InputError(CCATDataOperationError):
    """What the caller gave cannot be used."""

    exit_code = 2


class UnknownNameError(InputError):
    """There is no site, location, package or operation of that name."""


class RetryableError(CCATDataOperationError):
    """The same operation may succeed later."""

    retryable = True


class DatabaseError(RetryableError):
    """The database cannot be used."""

    exit_code = 4
    remedy = "see that the database runs and that CCAT_DATA_TRANSFER_DATABASE_URL names it"


class DatabaseSchemaError(DatabaseError):
    """The database has the tables of another version of this program."""

    retryable = False
    remedy = "run `ccat_data_transfer db upgrade`"


class NetworkError(RetryableError):
    """A connection failed."""

    exit_code = 5


class ServiceUnavailableError(NetworkError):
    """The message broker does not answer."""

    remedy = "see that the broker runs and that CCAT_DATA_TRANSFER_BROKER_URL names it"


class LeaseLostError(RetryableError):
    """The attempt no longer owns its operation and must stop at once."""

    exit_code = 1


class StoppedError(RetryableError):
    """The process was asked to stop; the attempt is given back."""

    exit_code = 130
    reason = "interrupted"


class ArchiveError(RetryableError):
    """The package could not be archived this time."""

    exit_code = 6


class SourceReadError(ArchiveError):
    """The source is there and could not be read this time."""

    reason = "source_unreadable"
    remedy = "see the disk of the buffer; the attempt is repeated by itself"


class SourceChangedError(ArchiveError):
    """The source changed while it was being read."""

    exit_code = 7
    reason = "source_changed"
    remedy = "see who writes to the buffer; a registered package must not change"


class StorageError(ArchiveError):
    """The storage did not do what it was asked, or did not keep what it was given."""

    reason = "storage_error"


class LocationUnavailableError(ArchiveError):
    """A data location is missing, full, read-only, not permitted or not the volume it was.

    No fault of the package: the attempt is given back and the location is paused.
    """

    reason = "destination_unavailable"
    remedy = "run `ccat_data_transfer location check`; work resumes by itself once the location is well"

    def __init__(self, message: str, *, condition: str, location: str, remedy: str | None = None) -> None:
        """`condition` is a `states.PauseReason` value; `location` is the `site/name` that is unwell."""
        super().__init__(message, remedy=remedy)
        self.condition = condition
        self.location = location


class SourceUnavailableError(LocationUnavailableError):
    """No buffer that has the package can be read now.

    No fault of the package: the attempt is given back. The destination is not paused.
    """

    reason = "source_unavailable"


class NonRetryableError(CCATDataOperationError):
    """Trying again cannot help."""

    exit_code = 7


class NoChecksumError(NonRetryableError):
    """No usable checksum was recorded for the package, so nothing could be proved."""

    reason = "no_checksum"
    remedy = "register the package again with its checksum, then run `ccat_data_transfer transfer retry`"


class SourceMissingError(NonRetryableError):
    """The package is not where its physical copy says."""

    reason = "source_missing"
    remedy = "bring the package back to its buffer, then run `ccat_data_transfer transfer retry`"


class BadSourceError(NonRetryableError):
    """The source is not a readable regular file."""

    reason = "source_unreadable"
    remedy = "make it a regular file that this user may read, then run `ccat_data_transfer transfer retry`"


class BadNameError(NonRetryableError):
    """A name cannot be stored safely."""

    exit_code = 2
    reason = "bad_name"
    remedy = "rename it: letters, digits, '.', '_', '-', '+', '=', ',', '@', '%', ':' and inner spaces are safe"


class TooLargeError(NonRetryableError):
    """The package is larger than the destination accepts."""

    reason = "too_large"


class DataCorruptionError(NonRetryableError):
    """The source does not have the checksum that was recorded for it."""

    reason = "source_corrupt"
    remedy = "restore the package from another copy, then run `ccat_data_transfer transfer retry`"


class ChecksumVerificationError(DataCorruptionError):
    """Bytes and checksum disagree."""


class DestinationFileExistsError(NonRetryableError):
    """Other bytes are already stored under this name; they were left as they are."""

    reason = "destination_conflict"
    remedy = "find out which of the two is right; this program never overwrites an archived object"
