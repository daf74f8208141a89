"""Marking the directories of data locations, so that a disk that is not mounted is not mistaken for an empty one.

The mark lies in the directory, its value in the row. No transaction is open while a directory is touched.
"""

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from ccat_data_transfer import database, models, storage
from ccat_data_transfer.exceptions import TopologyError, UnknownNameError
from ccat_data_transfer.locations import Location, StorageType
from ccat_data_transfer.storage import volume
from ccat_data_transfer.topology import rows
from ccat_data_transfer.topology.declaration import FILE_SYSTEM_ROOT


def takes_mark(location: Location) -> bool:
    """Whether a location is marked at all: the root of the file system belongs to somebody else."""
    return location.storage_type is StorageType.DISK and location.options["path"] != FILE_SYSTEM_ROOT


def enrol(location_id: int, bind: Engine | None = None) -> str | None:
    """Mark the directory of a data location and remember the mark; returns the one that counts, None if it takes none.

    Uses short transactions of its own, of the configured database or of `bind`. A directory that carries a mark keeps
    it; two callers at once agree on one. Raises `LocationUnavailableError` or `StorageError` when the directory is
    unwell, and `TopologyError` when it is that of another location.
    """
    with database.session_scope(bind, read_only=True) as session:
        row = session.get(models.DataLocation, location_id)
        if row is None:
            raise UnknownNameError(f"there is no data location with id {location_id}")
        location = row.value()
    if location.volume_id is not None or not takes_mark(location):
        return location.volume_id
    mark = storage.open_storage(location).enrol()
    with database.session_scope(bind) as session:
        rows.serialise(session)
        return store(session, location, mark)


def store(session: Session, location: Location, mark: str) -> str | None:
    """Remember the mark of a location that has none yet; returns the one that counts.

    Raises `TopologyError` when another location has it: two names for one directory would make one copy count twice.
    """
    place = models.DataLocation
    query = sa.select(place).where(place.volume_id == mark, place.id != location.id)
    for other in session.scalars(query.limit(1)):
        raise TopologyError(
            f"directory '{location.options['path']}' of data location '{location}' is marked as that of "
            f"data location '{other.value()}'",
            remedy="give each data location a directory of its own; if this one was copied from the other, remove "
            f"'{volume.SENTINEL}' from the copy",
        )
    session.execute(
        sa.update(place)
        .where(place.id == location.id, place.volume_id.is_(None))
        .values(volume_id=mark)
        .execution_options(synchronize_session=False)
    )
    return session.scalars(sa.select(place.volume_id).where(place.id == location.id)).one()
