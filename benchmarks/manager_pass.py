"""One pass of the manager in a process that says when the pass began, its own start not included."""

import sys
import time

from benchmarks.product import SITE
from ccat_data_transfer import archive_manager, logs


def main() -> None:
    """Create, schedule and send everything that is registered."""
    logs.configure()
    sys.stdout.write(f"began {time.monotonic()} \n")
    sys.stdout.flush()
    archive_manager.transfer_raw_data_packages_to_long_term_archive(site_name=SITE)


if __name__ == "__main__":
    main()
