"""The topology file: sites and their data locations in TOML.

Says what is wrong with a file in the words of its author, all of it at once. Knows no database.
"""

import itertools
import json
import posixpath
import stat
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ccat_data_transfer import names, routing, storage
from ccat_data_transfer.exceptions import BadNameError, InputError, TopologyError
from ccat_data_transfer.locations import LocationType, StorageType
from ccat_data_transfer.states import Evidence

FILE_SYSTEM_ROOT = "/"
_MOST_BYTES = 1 << 20
_ARCHIVING = (LocationType.BUFFER, LocationType.LONG_TERM_ARCHIVE)


def _text(value: str) -> str:
    if any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or c in "\u2028\u2029" for c in value):
        raise ValueError("must be one line without control characters")
    if value != value.strip():
        raise ValueError("must not begin or end with a space")
    return value


def _identifier(value: str) -> str:
    try:
        return names.check_identifier(value, "name")
    except BadNameError as error:
        raise ValueError(f"must be {error.remedy.removeprefix('use ')}") from error


def _absolute(value: str) -> str:
    if not value.startswith("/") or ".." in value.split("/"):
        raise ValueError("must be an absolute path without '..'")
    return "/" + posixpath.normpath(value).lstrip("/")


Text = Annotated[str, Field(min_length=1), AfterValidator(_text)]
Identifier = Annotated[str, AfterValidator(_identifier)]
AbsolutePath = Annotated[Text, AfterValidator(_absolute)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_name=True, validate_by_alias=True)


class Place(_Strict):
    """What every data location declares; a smaller `priority` is preferred."""

    name: Identifier
    location_type: LocationType
    storage_type: StorageType
    priority: int = Field(default=0, strict=True, ge=-(2**31), lt=2**31)
    active: bool = Field(default=True, strict=True)
    required_evidence: Evidence = Evidence.EVICTED_UNPROVED


class DiskPlace(Place):
    """A directory; `host` where it is not every worker's own."""

    storage_type: Literal[StorageType.DISK] = StorageType.DISK
    path: AbsolutePath
    host: Annotated[Text, Field(max_length=255)] | None = None
    user: Annotated[Text, Field(max_length=255)] | None = None


class S3Place(Place):
    """A bucket of an object store, below a prefix."""

    storage_type: Literal[StorageType.S3] = StorageType.S3
    bucket_name: Annotated[Text, Field(max_length=255)]
    prefix: Annotated[str, AfterValidator(_text)] = ""
    region: Annotated[Text, Field(max_length=63)] | None = None
    endpoint_url: Text | None = None


class TapePlace(Place):
    """A tape library behind a directory."""

    storage_type: Literal[StorageType.TAPE] = StorageType.TAPE
    library_name: Annotated[Text, Field(max_length=255)]
    mount_path: AbsolutePath


AnyPlace = DiskPlace | S3Place | TapePlace
PLACES: Mapping[str, type[AnyPlace]] = {"disk": DiskPlace, "s3": S3Place, "tape": TapePlace}


class SiteDeclaration(_Strict):
    """One site with its data locations."""

    name: Annotated[Text, Field(max_length=200)]
    short_name: Identifier
    location: Text | None = None
    data_locations: tuple[Annotated[AnyPlace, Field(discriminator="storage_type")], ...] = Field(
        (), validation_alias="data_location"
    )


class Declaration(_Strict):
    """A whole topology: what is not in it shall not be."""

    sites: tuple[SiteDeclaration, ...] = Field((), validation_alias="site")

    def places(self) -> Iterator[tuple[SiteDeclaration, AnyPlace]]:
        """Every data location with its site."""
        for site in self.sites:
            for place in site.data_locations:
                yield site, place


def load(path: Path) -> Declaration:
    """Read a topology file; raises `InputError` when there is none and `TopologyError` for all that is wrong in it."""
    shown = names.shown(str(path))
    try:
        content = tomllib.loads(_read(path).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise TopologyError(f"topology file '{shown}' is not UTF-8: byte {error.start} is bad") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise TopologyError(f"topology file '{shown}' is not TOML: {error}") from error
    try:
        # Not by the names of the attributes: `[[sites]]` is a slip, not another way to say it.
        declaration = Declaration.model_validate(content, by_alias=True, by_name=False)
    except ValidationError as error:
        faults = "; ".join(_explained(item, content) for item in error.errors(include_url=False))
        raise TopologyError(f"topology file '{shown}': {faults}") from None
    if not declaration.sites:
        raise TopologyError(f"topology file '{shown}' declares no [[site]]")
    check(declaration, f"topology file '{shown}': ")
    return declaration


def _read(path: Path) -> bytes:
    """The content of a topology file: a device would never end, and a pipe without a writer would never begin."""
    shown = names.shown(str(path))
    try:
        mode = path.stat().st_mode
        is_given_pipe = stat.S_ISFIFO(mode) and str(path).startswith(("/dev/stdin", "/dev/fd/"))
        if not stat.S_ISREG(mode) and not is_given_pipe and not stat.S_ISDIR(mode):
            raise InputError(f"topology file '{shown}' is not a regular file", remedy="name a file in TOML")
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"topology file '{shown}' cannot be read: {error.strerror}") from error
    except ValueError as error:  # a zero byte
        raise InputError(f"topology file '{shown}' cannot be read: {error}") from error
    if len(content) > _MOST_BYTES:
        raise InputError(f"topology file '{shown}' is larger than {_MOST_BYTES} bytes", remedy="name a file in TOML")
    return content


def _explained(item: Any, content: Any) -> str:
    """One fault: which site, which location, which key, and what is allowed."""
    where: list[str] = []
    model: type[BaseModel] = Declaration
    keys: list[str] = []
    for step in item["loc"]:
        if isinstance(step, int):
            content = content[step] if isinstance(content, list) else None
            kind, model = ("data location", Place) if keys[-1:] == ["data_location"] else ("site", SiteDeclaration)
            where.append(f"{kind} {_called(content, step)}")
            keys = []
        elif not keys and model is Place and step in PLACES:
            model = PLACES[step]
        else:
            keys.append(str(step))
            content = content.get(step) if isinstance(content, dict) else None
    return ", ".join([*where, _fault(item, ".".join(keys), model)])


def _called(entry: Any, index: int) -> str:
    for key in ("short_name", "name"):
        if isinstance(entry, dict) and isinstance(entry.get(key), str):
            return f"'{names.shown(entry[key])}'"
    return f"number {index + 1}"


def _fault(item: Any, key: str, model: type[BaseModel]) -> str:
    shown = names.shown(key)
    match item["type"]:
        case "extra_forbidden":
            known = (field.validation_alias or name for name, field in model.model_fields.items())
            return f"key '{shown}' is unknown; allowed are {', '.join(map(str, known))}"
        case "missing":
            return f"key '{shown}' is missing"
        case "union_tag_not_found":
            return f"key 'storage_type' is missing; allowed are {', '.join(PLACES)}"
        case "union_tag_invalid":
            return f"key 'storage_type' must be one of {', '.join(PLACES)}"
        case "tuple_type" | "list_type" if key == "site":
            return "sites must be written as [[site]]"
        case "tuple_type" | "list_type":
            return "data locations must be written as [[site.data_location]]"
        case "model_type" | "model_attributes_type" | "dict_type":
            return "must be a table"
    return f"key '{shown}': {item['msg'].removeprefix('Value error, ').removeprefix('Input ')}"


def check(declaration: Declaration, prefix: str = "") -> None:
    """Raise `TopologyError` for all by which sites and locations contradict each other."""
    faults = [*_repeated(declaration), *_mixed_queues(declaration), *_overlaps(declaration), *_unsupported(declaration)]
    if faults:
        raise TopologyError(prefix + "; ".join(faults))


def _repeated(declaration: Declaration) -> Iterator[str]:
    named = [("name", site.name) for site in declaration.sites]
    named += [("short_name", site.short_name) for site in declaration.sites]
    for key, name in _twice(named):
        yield f"two sites have the {key} '{name}'"
    for site, place in _twice([(site.short_name, place.name) for site, place in declaration.places()]):
        yield f"site '{site}' has two data locations named '{place}'"


def _twice(values: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return sorted({value for value in values if values.count(value) > 1})


def _mixed_queues(declaration: Declaration) -> Iterator[str]:
    owner: dict[str, tuple[str, str]] = {}
    for site, place in declaration.places():
        queue, here = routing.queue_name(site.short_name, place.name), (site.short_name, place.name)
        other = owner.setdefault(queue, here)
        if other != here:
            yield f"data locations '{'/'.join(other)}' and '{'/'.join(here)}' would share the queue '{queue}'"


def _overlaps(declaration: Declaration) -> Iterator[str]:
    disks = [
        (f"{site.short_name}/{place.name}", place)
        for site, place in declaration.places()
        if isinstance(place, DiskPlace) and not _is_everything(place)
    ]
    for name, place in disks:
        if place.path == FILE_SYSTEM_ROOT:
            yield f"data location '{name}' cannot have the root of the file system as its path"
    for (one, a), (other, b) in itertools.combinations(disks, 2):
        # Without a host a directory is every worker's own, so it may be the same as one that names its host.
        if a.host != b.host and a.host and b.host:
            continue
        if a.path == b.path or a.path.startswith(b.path + "/") or b.path.startswith(a.path + "/"):
            yield (
                f"data locations '{one}' and '{other}' have the same path or one inside the other "
                f"('{a.path}', '{b.path}'); where they are on different machines, give both their host"
            )


def _is_everything(place: DiskPlace) -> bool:
    """A place that is only read and spans the whole file system: files are registered where they lie."""
    return place.path == FILE_SYSTEM_ROOT and place.location_type in {LocationType.BUFFER, LocationType.SOURCE}


def _unsupported(declaration: Declaration) -> Iterator[str]:
    for site, place in declaration.places():
        if place.active and place.location_type in _ARCHIVING and place.storage_type not in storage.BACKENDS:
            yield (
                f"data location '{site.short_name}/{place.name}' has storage type '{place.storage_type}'; "
                f"this version supports {', '.join(storage.BACKENDS)} (or set active = false)"
            )


def dump(declaration: Declaration) -> str:
    """The text of a topology file that declares the same; what has its default is left out."""
    blocks = []
    for site in declaration.sites:
        blocks.append(_table("[[site]]", site, skip={"data_locations"}))
        blocks += [_table("[[site.data_location]]", place) for place in site.data_locations]
    return "\n".join(blocks)


def _table(head: str, model: BaseModel, skip: frozenset[str] | set[str] = frozenset()) -> str:
    lines = [head]
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if name not in skip and (name == "storage_type" or value != field.get_default()):
            lines.append(f"{name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: str | int) -> str:
    if not isinstance(value, str):
        return json.dumps(value)  # true, false and numbers are the same in both
    # As in JSON, except that TOML takes no surrogates, which ensure_ascii would write, and no bare DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
