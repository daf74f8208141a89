"""Sites and data locations: declared in one file, kept in the database, found by name.

`declaration` knows the file, `rows` the tables, `applying` brings the second to say what the first says, `enrolment`
marks the directories, and `local` is the topology of a single machine that nobody had to declare.
Never deletes a copy or an operation, and refuses what would leave one without its place.
"""

from ccat_data_transfer.topology.applying import Change, apply
from ccat_data_transfer.topology.declaration import (
    Declaration,
    DiskPlace,
    Place,
    S3Place,
    SiteDeclaration,
    TapePlace,
    dump,
    load,
)
from ccat_data_transfer.topology.enrolment import enrol
from ccat_data_transfer.topology.local import LocalTopology, ensure_local
from ccat_data_transfer.topology.rows import find_location, find_site, show, sites

__all__ = [
    "Change",
    "Declaration",
    "DiskPlace",
    "LocalTopology",
    "Place",
    "S3Place",
    "SiteDeclaration",
    "TapePlace",
    "apply",
    "dump",
    "enrol",
    "ensure_local",
    "find_location",
    "find_site",
    "load",
    "show",
    "sites",
]
