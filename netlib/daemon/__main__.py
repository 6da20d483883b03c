"""``python -m netlib.daemon``."""

import sys

from netlib.daemon.app import main

if __name__ == "__main__":
    sys.exit(main())
