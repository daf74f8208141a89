"""The rows of sites and data locations: finding them by name, and reading them as a declaration."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ccat_data_transfer import models, names
from ccat_data_transfer.exceptions import UnknownNameError
from ccat_data_transfer.locations import StorageType
from ccat_data_transfer.topology.declaration import PLACES, AnyPlace, Declaration, SiteDeclaration

# Any number that no other program takes for a PostgreSQL advisory lock of the same database.
_LOCK = int.from_bytes(b"ccat_to")

_CLASSES: dict[StorageType, type[models.DataLocation]] = {
    StorageType.DISK: models.DiskDataLocation,
    StorageType.S3: models.S3DataLocation,
    StorageType.TAPE: models.TapeDataLocation,
}


def serialise(session: Session) -> None:
    """Let only one transaction at a time change the topology; SQLite has only one that writes anyway."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))


def sites(session: Session) -> list[models.Site]:
    """All sites by short name."""
    return list(session.scalars(sa.select(models.Site).order_by(models.Site.short_name)))


def locations(session: Session) -> list[models.DataLocation]:
    """All data locations by site and name."""
    query = sa.select(models.DataLocation).join(models.DataLocation.site)
    return list(session.scalars(query.order_by(models.Site.short_name, models.DataLocation.name)))


def find_site(session: Session, text: str) -> models.Site:
    """The site of that short name or, failing that, name; in any case of letters when that leaves no doubt.

    Raises `UnknownNameError`, which lists the sites there are.
    """
    known = sites(session)
    found = (
        [site for site in known if site.short_name == text]
        or [site for site in known if site.name == text]
        or [site for site in known if text.casefold() in {site.short_name.casefold(), site.name.casefold()}]
    )
    if len(found) == 1:
        return found[0]
    problem = "more than one site is" if found else "no site is"
    listed = ", ".join(f"{site.short_name} ({site.name})" for site in found or known)
    raise UnknownNameError(
        f"{problem} called '{names.shown(text)}'",
        remedy=f"sites are: {listed}" if listed else "declare one with `ccat_data_transfer topology apply`",
    )


def find_location(session: Session, text: str) -> models.DataLocation:
    """The data location that `site/name` names; raises `UnknownNameError`, which lists those there are."""
    site_text, slash, name = text.partition("/")
    listed = ", ".join(str(location.value()) for location in locations(session))
    remedy = f"data locations are: {listed}" if listed else "declare one with `ccat_data_transfer topology apply`"
    if not slash:
        raise UnknownNameError(f"data location '{names.shown(text)}' is not of the form site/name", remedy=remedy)
    site = find_site(session, site_text)
    here = [location for location in locations(session) if location.site_id == site.id]
    for location in here:
        if location.name == name.lower():  # names of locations are lower-case
            return location
    raise UnknownNameError(f"site '{site.short_name}' has no data location '{names.shown(name)}'", remedy=remedy)


def show(session: Session) -> Declaration:
    """What the database holds, as a declaration; not checked, because it may be older than a rule."""
    places: dict[int, list[AnyPlace]] = {}
    for row in locations(session):
        places.setdefault(row.site_id, []).append(place_of(row))
    return Declaration.model_construct(
        sites=tuple(
            SiteDeclaration.model_construct(
                name=site.name,
                short_name=site.short_name,
                location=site.location,
                data_locations=tuple(places.get(site.id, ())),
            )
            for site in sites(session)
        )
    )


def place_of(row: models.DataLocation) -> AnyPlace:
    """The declaration of a row."""
    kind = PLACES[row.storage_type]
    return kind.model_construct(**{name: getattr(row, name) for name in kind.model_fields})


def new_row(place: AnyPlace, site: models.Site) -> models.DataLocation:
    """A row for a declaration."""
    return _CLASSES[place.storage_type](site=site, **values_of(place))


def values_of(place: AnyPlace) -> dict[str, Any]:
    """The columns that a declaration sets, except the storage type, which is the class of its row."""
    return {name: getattr(place, name) for name in type(place).model_fields if name != "storage_type"}
