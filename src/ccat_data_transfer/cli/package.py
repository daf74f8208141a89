"""`package`: registering packages and looking at them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from ccat_data_transfer.cli import commands, options, output, preparation, selection
from ccat_data_transfer.exceptions import InputError
from ccat_data_transfer.locations import Location, LocationType, StorageType
from ccat_data_transfer.states import PackageState

if TYPE_CHECKING:
    from ccat_data_transfer.packages import PackageView, Registered, Registration

NOT_ALL = 1


@click.group(cls=commands.Group, epilog="\b\nExample:\n  ccat_data_transfer package list --state failed")
def package() -> None:
    """Register packages and look at them."""


@package.command(
    example="""
    ccat_data_transfer package register /buffer/obs-0421.tar --location cologne/buffer
    ccat_data_transfer package register ./night-1 --location cologne/buffer
    """
)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path())
@click.option("--location", "place", required=True, metavar="SITE/NAME", help="Buffer that holds, or gets, the bytes.")
@options.no_headers
@options.as_json
def register(paths: tuple[str, ...], place: str, no_headers: bool, as_json: bool) -> None:
    """Register tars where they lie in a buffer; other tars are copied and folders packed into it.

    The Archive Manager archives what is registered in a buffer. Registering the same again changes nothing.
    """
    from ccat_data_transfer import packages, packing, settings

    planned = packing.plan(paths, skip=[settings.get().working_directory])
    if preparation.exists():
        preparation.for_writing()
    else:
        preparation.for_reading()  # raises: without a topology there is no location to register at
    location = _buffer(place)
    with output.progress("registering", 0, hidden=as_json) as advance:
        registration = packages.register(
            paths,
            tars_at=location,
            packs_at=location,
            skip=[str(settings.get().working_directory)],
            on_progress=advance,
            workers=settings.get().worker_concurrency,
            headers=not no_headers,
        )
    verbs = {each.name: "copied" if each.kind is packing.Kind.TAR else "packed" for each in planned}
    _show_registration(registration, {name: f"{verb} into '{location}'" for name, verb in verbs.items()}, as_json)


def _buffer(name: str) -> Location:
    from ccat_data_transfer import database

    with database.session_scope(read_only=True) as session:
        location = selection.place(session, name).value
    is_for_packages = location.location_type in {LocationType.BUFFER, LocationType.SOURCE}
    if not is_for_packages or location.storage_type is not StorageType.DISK:
        raise InputError(
            f"data location '{location}' is a {location.location_type} on {location.storage_type}, "
            "and packages are registered in a buffer or source on disk",
            remedy="`ccat_data_transfer location list` shows them",
        )
    return location


def _show_registration(registration: "Registration", moves: Mapping[str, str], as_json: bool) -> None:
    """Print it; `moves` says of each name how its bytes came into the buffer, should they have."""
    if as_json:
        output.write_json(
            {"packages": [_registered(item) for item in registration.packages], "notes": list(registration.notes)}
        )
    else:
        output.lines(_line(item, moves.get(item.name, "copied")) for item in registration.packages)
    for note in registration.notes:
        output.complain("note", note)
    if not registration.errors:
        return
    first = registration.errors[0]
    output.complain("error", f"{len(registration.errors)} of {len(registration.packages)} were not registered: {first}")
    if first.remedy:
        output.complain("hint", first.remedy)
    codes = {error.exit_code for error in registration.errors}
    is_all = len(registration.errors) == len(registration.packages)
    raise click.exceptions.Exit(codes.pop() if is_all and len(codes) == 1 else NOT_ALL)


def _registered(item: "Registered") -> dict[str, object]:
    return {
        "name": item.name,
        "id": item.id,
        "created": item.created,
        "copied": item.copied,
        "size": item.size,
        "checksum": item.checksum,
        "error": None if item.error is None else str(item.error),
    }


def _line(item: "Registered", move: str) -> str:
    if item.error is not None:
        return f"{item.name}  failed: {item.error}"
    what = ("registered" if item.created else "already registered") + (f", {move}" if item.copied else "")
    return f"{item.name}  {what}  {item.checksum}  {output.size(item.size)}"


@package.command("list", example="ccat_data_transfer package list --site cologne --state failed")
@options.site
@click.option("--state", type=click.Choice([state.value for state in PackageState]), help="Only in this state.")
@options.limit
@options.as_json
def list_(site: str | None, state: str | None, limit: int, as_json: bool) -> None:
    """List packages with their state, oldest first."""
    from ccat_data_transfer import database, packages

    preparation.for_reading()
    with database.session_scope(read_only=True) as session:
        found = packages.list_packages(
            session,
            site=selection.select(session, site).site,
            state=None if state is None else PackageState(state),
            limit=limit,
        )
    if as_json:
        output.write_json(found)
        return
    output.table(
        ("id", "package", "state", "size", "checksum", "copies"),
        [(each.id, each.name, each.state, output.size(each.size), each.checksum, _places(each)) for each in found],
        expendable=("copies",),
    )


def _places(view: "PackageView") -> str:
    return ", ".join(copy.location for copy in view.copies)


@package.command(example="ccat_data_transfer package show obs-0421.tar")
@click.argument("name", metavar="NAME")
@options.as_json
def show(name: str, as_json: bool) -> None:
    """Show one package: its copies and the files in it."""
    from ccat_data_transfer import database, packages

    preparation.for_reading()
    with database.session_scope(read_only=True) as session:
        detail = packages.show(session, name)
    if as_json:
        output.write_json(detail)
        return
    view = detail.package
    output.facts(
        {
            "package": view.name,
            "id": view.id,
            "state": view.state,
            "bytes": output.Bytes(view.size),
            "checksum": view.checksum,
            "created": view.created_at,
            "files": detail.file_count,
        }
    )
    output.write("\n")
    output.table(
        ("location", "status", "path", "verified", "evidence"),
        [(copy.location, copy.status, copy.path, copy.verified_at, copy.verified_how) for copy in view.copies],
        expendable=("evidence", "verified"),
    )
    output.write("\n")
    output.table(
        ("file", "bytes", "checksum", "modified"),
        [(file.path, output.Bytes(file.size), file.checksum, file.modified_at) for file in detail.files],
        expendable=("modified",),
    )
