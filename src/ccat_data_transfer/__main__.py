"""`python -m ccat_data_transfer` is the command line."""

import sys

from ccat_data_transfer.cli import main

if __name__ == "__main__":
    sys.exit(main())
