"""Which names are safe to store: of packages, of members of a package, of sites and locations.

The rules are the same on write and on read, so that a row edited in the database gains nothing.
"""

import re
import unicodedata

from ccat_data_transfer.exceptions import BadNameError

MAX_COMPONENT_BYTES = 255
# Room for what is stored beside a package: '.sha256', '.json' and the name of a temporary.
MAX_PACKAGE_NAME_BYTES = 200

# Letters of every script are welcome; control characters, separators and what shells and terminals act on are not.
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\/\"'`$<>|&;*?!\[\]{}]")
_IDENTIFIER = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?")


def shown(name: str) -> str:
    """`name` as it may be printed: control characters, bad bytes and direction marks escaped, length bounded."""
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name)
    return safe if len(safe) <= 200 else safe[:200] + "…"


def fold(name: str) -> str:
    """What a case-insensitive or normalising file system would make of `name`; equal folds collide there."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _fault(name: str, limit: int) -> str | None:
    """What is wrong with one component of a path, or None."""
    if not name:
        return "is empty"
    try:
        encoded = name.encode("utf-8")
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    if len(encoded) > limit:
        return f"is longer than {limit} bytes"
    if name[0] in ".-~":
        return f"begins with '{name[0]}'"
    if name[0] == " " or name[-1] in " .":
        return "begins or ends with a space, or ends with a dot"
    if _FORBIDDEN.search(name) or not name.isprintable():
        return "contains a control, separator, quote or wildcard character"
    if unicodedata.normalize("NFC", name) != name:
        return "is not in Unicode normal form C"
    return None


def check_package_name(name: str) -> str:
    """Return `name` if a package may be called so; raises `BadNameError`."""
    fault = _fault(name, MAX_PACKAGE_NAME_BYTES)
    if fault:
        raise BadNameError(f"package name '{shown(name)}' {fault}")
    return name


def check_member_path(path: str) -> str:
    """Return the relative `path` of a file inside a package if it is safe to unpack; raises `BadNameError`.

    Hidden files and characters that only shells mind are legal here: instruments write them.
    """
    for component in path.split("/"):
        fault = None
        if component in {"", ".", ".."}:
            fault = "is absolute or has an empty, '.' or '..' component"
        elif any(0xD800 <= ord(c) <= 0xDFFF for c in component):
            fault = "is not valid UTF-8"
        elif len(component.encode()) > MAX_COMPONENT_BYTES:
            fault = f"has a component longer than {MAX_COMPONENT_BYTES} bytes"
        elif not component.isprintable() or "\\" in component:
            fault = "contains a control character or a backslash"
        elif component[0] == "-":
            fault = "has a component that begins with '-'"
        elif unicodedata.normalize("NFC", component) != component:
            fault = "is not in Unicode normal form C"
        if fault:
            raise BadNameError(f"file name '{shown(path)}' {fault}")
    return path


def check_copy_path(path: str) -> str:
    """Return the `path` of a physical copy below its location's root; raises `BadNameError`.

    Only what could leave the root or deceive a reader is refused: the folders above a package are not ours to name.
    """
    parts = path.split("/")
    if not path or any(part in {"", ".", ".."} for part in parts) or "\0" in path:
        raise BadNameError(f"path '{shown(path)}' is not a plain path below its location's root")
    return path


def check_identifier(name: str, what: str) -> str:
    """Return `name` if a site or location may be called so (it becomes part of a queue name)."""
    if not _IDENTIFIER.fullmatch(name):
        raise BadNameError(
            f"{what} '{shown(name)}' is not a lower-case name",
            remedy="use up to 63 lower-case letters, digits, '_' and '-', beginning and ending with a letter or digit",
        )
    return name


def object_key(package_name: str) -> str:
    """Where a package lies below the root of every archive: a folder of its own, the package inside.

    A function of the name alone, so that the same package finds the same place from any database.
    """
    return f"{package_name.removesuffix('.tar')}/{package_name}"


def manifest_key(package_name: str) -> str:
    """Where the manifest lies that `sha256sum -c` reads."""
    return object_key(package_name) + ".sha256"


def sidecar_key(package_name: str) -> str:
    """Where the sidecar lies."""
    return object_key(package_name) + ".json"
