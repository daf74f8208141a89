"""Which queues the workers of a site must consume: one for each active archive location, from the database alone."""

import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from ccat_data_transfer import database, models, routing, topology
from ccat_data_transfer.locations import Location, LocationType


class QueueDiscoveryService:
    """Finds queues and locations; `source` is an engine or makes sessions, by default the configured database."""

    def __init__(self, source: Engine | Callable[[], AbstractContextManager[Session]] | None = None) -> None:
        self._source = source

    def queues_for_site(self, site: str | None = None) -> list[str]:
        """The queues of a site (short name or name), or of all sites, sorted; raises `UnknownNameError`."""
        return sorted(self.queue_of(location) for location in self.locations(site))

    def locations(self, site: str | None = None, location: str | None = None, *, here: bool = False) -> list[Location]:
        """The active long-term archive locations, at one site or all, of one name (`site/name` or `name`) or all.

        With `here` without those whose directory is that of another host. Raises `UnknownNameError` for a site or a
        `site/name` that does not exist; a name that no active archive has finds nothing.
        """
        place = models.DataLocation
        query = (
            sa.select(place)
            .join(place.site)
            .where(place.location_type == LocationType.LONG_TERM_ARCHIVE, place.active)
            .order_by(models.Site.short_name, place.name)
        )
        with self._session() as session:
            if site is not None:
                query = query.where(place.site_id == topology.find_site(session, site).id)
            if location is not None and "/" in location:
                query = query.where(place.id == topology.find_location(session, location).id)
            elif location is not None:
                query = query.where(place.name == location)
            found = [row.value() for row in session.scalars(query)]
        host = platform.node()
        return [each for each in found if not here or each.is_on_this_host(host)]

    def queue_of(self, location: Location | models.DataLocation) -> str:
        """The queue of the operations that carry packages to a location."""
        value = location if isinstance(location, Location) else location.value()
        return routing.queue_name(value.site, value.name)

    @contextmanager
    def _session(self) -> Iterator[Session]:
        if self._source is None or isinstance(self._source, Engine):
            with database.session_scope(self._source, read_only=True) as session:
                yield session
        else:
            with database.translated_errors(), self._source() as session:
                yield session
