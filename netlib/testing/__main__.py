"""``python -m netlib.testing COMMAND [ARG ...]``: run a command in a test host."""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    if len(sys.argv) < 2:
        print("usage: python -m netlib.testing COMMAND [ARG ...]", file=sys.stderr)
        sys.exit(2)
    os.execv("/bin/sh", ["sh", str(Path(__file__).with_name("testhost")), *sys.argv[1:]])
