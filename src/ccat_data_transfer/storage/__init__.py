"""Storage backends: where the bytes of data locations are. `open_storage` finds the one for a location."""

from collections.abc import Callable

from ccat_data_transfer.exceptions import ConfigurationError
from ccat_data_transfer.locations import Location, StorageType
from ccat_data_transfer.storage.base import Storage
from ccat_data_transfer.storage.posix import PosixStorage

BACKENDS: dict[StorageType, Callable[[Location], Storage]] = {
    StorageType.DISK: PosixStorage,
}


def open_storage(location: Location) -> Storage:
    """The backend of a location; raises `ConfigurationError` when there is none for its storage type."""
    backend = BACKENDS.get(location.storage_type)
    if backend is None:
        raise ConfigurationError(
            f"data location '{location}' has storage type '{location.storage_type}', "
            f"and this version stores only on: {', '.join(BACKENDS)}",
            remedy="declare the location with another storage type",
        )
    return backend(location)
