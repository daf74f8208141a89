"""`location`: how the storage places are."""

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ccat_data_transfer import storage
from ccat_data_transfer.cli import commands, options, output, preparation, selection
from ccat_data_transfer.exceptions import CCATDataOperationError
from ccat_data_transfer.locations import LocationType
from ccat_data_transfer.states import PauseReason
from ccat_data_transfer.storage.base import Health

if TYPE_CHECKING:
    from ccat_data_transfer.reports import Place

UNWELL = 6
NOT_ALL = 1
# A place that does not answer must not keep the others from being told.
ANSWER_SECONDS = 30.0

_WRITTEN = frozenset({LocationType.BUFFER, LocationType.LONG_TERM_ARCHIVE})


@dataclass(frozen=True, slots=True)
class Checkup:
    """One place and how it is; `health` is None when it cannot be checked from this machine."""

    place: "Place"
    health: Health | None
    message: str

    @property
    def is_unwell(self) -> bool:
        """Whether the place is in use and cannot be used."""
        return self.place.active and self.health is not None and self.health.problem is not None

    @property
    def condition(self) -> str:
        """`well`, the problem, or `not checked`."""
        if self.health is None:
            return "not checked"
        return self.health.problem or "well"


@click.group(cls=commands.Group, epilog="\b\nExample:\n  ccat_data_transfer location check")
def location() -> None:
    """See how the storage places are: reachable, writable, with room, the right volume, paused."""


@location.command("list", example="ccat_data_transfer location list --site cologne")
@options.site
@options.as_json
def list_(site: str | None, as_json: bool) -> None:
    """List data locations with their kind and whether they are paused."""
    from ccat_data_transfer import database, reports

    preparation.for_reading()
    with database.session_scope(read_only=True) as session:
        places = reports.places(session, site=selection.select(session, site).site)
    if as_json:
        output.write_json([_as_object(place) for place in places])
        return
    output.table(
        ("location", "type", "storage", "priority", "active", "paused", "where"),
        [
            (
                place.value,
                place.value.location_type,
                place.value.storage_type,
                place.priority,
                place.active,
                place.pause_reason or "",
                _where(place),
            )
            for place in places
        ],
        expendable=("priority", "storage", "active", "type"),
    )


def _where(place: "Place") -> str:
    return ", ".join(f"{value}" if key == "path" else f"{key}={value}" for key, value in place.value.options.items())


def _as_object(place: "Place") -> dict[str, Any]:
    value = place.value
    is_archive = value.location_type is LocationType.LONG_TERM_ARCHIVE
    return {
        "site": value.site,
        "location": value.name,
        "location_type": value.location_type,
        "storage_type": value.storage_type,
        "priority": place.priority,
        "active": place.active,
        "paused": place.paused,
        "pause_reason": place.pause_reason,
        "pause_message": place.pause_message,
        "paused_until": place.paused_until,
        "volume_id": value.volume_id,
        "required_evidence": value.required_evidence,
        "queue": value.queue if is_archive else None,
        **value.options,
    }


@location.command(example="ccat_data_transfer location show cologne/lta")
@click.argument("name", metavar="SITE/NAME")
@options.as_json
def show(name: str, as_json: bool) -> None:
    """Show one data location."""
    from ccat_data_transfer import database

    preparation.for_reading()
    with database.session_scope(read_only=True) as session:
        described = _as_object(selection.place(session, name))
    if as_json:
        output.write_json(described)
    else:
        output.facts(described)


@location.command(
    example="""
    ccat_data_transfer location check
    ccat_data_transfer location check cologne/lta --json
    """
)
@click.argument("names", nargs=-1, metavar="[SITE/NAME]...")
@options.site
@options.as_json
def check(names: tuple[str, ...], site: str | None, as_json: bool) -> None:
    """Check that places can be used now; of all that are active, or of those named.

    Exit code 6 when an active one is unwell, 1 when one cannot be checked from this machine.
    """
    from ccat_data_transfer import database, reports

    preparation.for_reading()
    with database.session_scope(read_only=True) as session:
        chosen = selection.select(session, site).site
        places = [selection.place(session, name) for name in names]
        places = places or [place for place in reports.places(session, site=chosen) if place.active]
    found = _checked(places)
    if as_json:
        output.write_json([_checkup_object(each) for each in found])
    else:
        _show(found)
    if any(each.is_unwell for each in found):
        raise click.exceptions.Exit(UNWELL)
    if any(each.health is None for each in found):
        raise click.exceptions.Exit(NOT_ALL)


def _checked(places: "list[Place]") -> list[Checkup]:
    """Check all places at once; one that hangs is left behind and told as unreachable."""
    found: dict[int, Checkup] = {}

    def check_one(place: "Place") -> None:
        found[place.value.id] = _checkup(place)

    threads = [threading.Thread(target=check_one, args=(place,), daemon=True) for place in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(ANSWER_SECONDS)
    return [found.get(place.value.id) or _silent(place) for place in places]


def _checkup(place: "Place") -> Checkup:
    try:
        backend = storage.open_storage(place.value)
    except CCATDataOperationError as error:
        return Checkup(place, None, str(error))
    health = backend.check(writable=place.value.location_type in _WRITTEN and place.value.options.get("path") != "/")
    return Checkup(place, health, health.message)


def _silent(place: "Place") -> Checkup:
    message = f"data location '{place.value}' did not answer within {ANSWER_SECONDS:.0f} s"
    return Checkup(place, Health(PauseReason.UNREACHABLE, message), message)


def _checkup_object(checkup: Checkup) -> dict[str, Any]:
    health, place = checkup.health, checkup.place
    return {
        "site": place.value.site,
        "location": place.value.name,
        "active": place.active,
        "condition": checkup.condition,
        "message": checkup.message,
        "enrolled": place.value.volume_id is not None,
        "free_bytes": health.free_bytes if health else None,
        "total_bytes": health.total_bytes if health else None,
        "expected_evidence": health.expected_evidence if health else None,
        "paused": place.paused,
        "pause_reason": place.pause_reason,
        "paused_until": place.paused_until,
    }


def _show(found: list[Checkup]) -> None:
    output.table(
        ("location", "condition", "free", "of", "evidence", "paused"),
        [
            (
                each.place.value,
                each.condition,
                output.size(each.health.free_bytes) if each.health and each.health.free_bytes is not None else "",
                output.size(each.health.total_bytes) if each.health and each.health.total_bytes is not None else "",
                each.health.expected_evidence if each.health else "",
                each.place.pause_reason or "",
            )
            for each in found
        ],
        expendable=("evidence", "of"),
    )
    for each in found:
        if each.condition != "well":
            output.complain("error" if each.is_unwell else "note", each.message)
        elif each.place.paused:
            until = output.when(each.place.paused_until)
            output.complain(
                "note",
                f"'{each.place.value}' is well again and paused until {until}; "
                f"`ccat_data_transfer location resume {each.place.value}` goes on at once",
            )


@location.command(example="ccat_data_transfer location resume cologne/lta")
@click.argument("name", metavar="SITE/NAME")
def resume(name: str) -> None:
    """End the pause of a place. It is paused again at the next attempt if it is still unwell."""
    from ccat_data_transfer import database, operations

    preparation.for_reading()
    with database.session_scope() as session:
        place = selection.place(session, name)
        operations.resume(session, place.value.id)
    output.lines([f"'{place.value}' takes work" if place.paused else f"'{place.value}' was not paused"])
