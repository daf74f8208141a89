"""Raw data packages: registering what a buffer holds, and finding what is registered.

Writes packages, their files and their physical copies; never an operation, never a package's state.
"""

from ccat_data_transfer.packages.intake import Registration, plan, register
from ccat_data_transfer.packages.queries import CopyView, PackageDetail, PackageView, get, list_packages, show
from ccat_data_transfer.packages.records import Registered

__all__ = [
    "CopyView",
    "PackageDetail",
    "PackageView",
    "Registered",
    "Registration",
    "get",
    "list_packages",
    "plan",
    "register",
    "show",
]
