"""``python -m netlib``: the command line."""

import sys

from netlib.cli.main import main

sys.exit(main())
