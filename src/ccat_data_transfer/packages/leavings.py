"""What a registration that died has left in the buffer: found by the process that is named in it, and removed."""

import contextlib
import re

from ccat_data_transfer import leases, storage
from ccat_data_transfer.exceptions import CCATDataOperationError
from ccat_data_transfer.locations import Location

_KIND = "register"
_HOST_CHARACTERS = 40
_TOKEN = re.compile(rf"{_KIND}_(\w+)_(\w+)_(\d+)_(\w+)_([A-Za-z0-9.-]*)", flags=re.ASCII)


def token() -> str:
    """What the temporaries of this process are called."""
    owner = leases.Owner.of_this_process()
    return "_".join((_KIND, owner.boot, owner.namespace, str(owner.pid), owner.start, _host(owner.host)))


def _host(name: str) -> str:
    """A host as a token can hold it."""
    return re.sub(r"[^A-Za-z0-9.-]", "-", name)[:_HOST_CHARACTERS]


def is_dead(found: str) -> bool:
    """Whether a token names a registration of this host whose process is known to be gone."""
    match = _TOKEN.fullmatch(found)
    if match is None or match[5] != _host(leases.host()):
        return False
    boot, namespace, pid, start = match[1], match[2], match[3], match[4]
    return leases.Owner(leases.host(), boot, namespace, int(pid), start).is_known_dead()


def sweep(location: Location) -> None:
    """Remove what is left of dead registrations; a place that is unwell is told by whoever needs it."""
    with contextlib.suppress(CCATDataOperationError, OSError):
        storage.open_storage(location).sweep(is_dead, delete=True)
