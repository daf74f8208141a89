"""Finding what `--site` and `--location` name, before anything is listed: an unknown name is an error, not a blank."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from ccat_data_transfer.reports import Place


@dataclass(frozen=True, slots=True)
class Selection:
    """Short name of a site and name of a location; None is no restriction."""

    site: str | None = None
    location: str | None = None


def select(session: "Session", site: str | None, location: str | None = None) -> Selection:
    """Resolve names as people write them; raises `UnknownNameError`."""
    from ccat_data_transfer import reports, topology

    chosen = None if site is None else topology.find_site(session, site).short_name
    if location is None:
        return Selection(chosen)
    if "/" not in location and chosen is not None:
        location = f"{chosen}/{location}"
    if "/" not in location:
        known = {place.value.name for place in reports.places(session)}
        if location in known:
            return Selection(None, location)
    found = topology.find_location(session, location).value()
    return Selection(found.site if chosen in {None, found.site} else chosen, found.name)


def place(session: "Session", text: str) -> "Place":
    """The data location that `site/name` names; raises `UnknownNameError`."""
    from ccat_data_transfer import reports, topology

    row = topology.find_location(session, text)
    return next(each for each in reports.places(session, site=row.site.short_name) if each.value.id == row.id)
