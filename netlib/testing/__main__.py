"""``python -m netlib.testing COMMAND [ARG ...]``: run a command in a test host.

It has network, mount, IPC and process namespaces of its own. What is changed there, and in its /etc, /run and /var/lib, is
thrown away when the command ends. The exit code is the command's.

    python -m netlib.testing python -m pytest test_conformance.py
    python -m netlib.testing netlib network create web
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    if sys.argv[1:2] in (["--help"], ["-h"]):
        print(__doc__, end="")
        sys.exit(0)
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print("usage: python -m netlib.testing COMMAND [ARG ...]; --help says what it does", file=sys.stderr)
        sys.exit(2)
    os.execv("/bin/sh", ["sh", str(Path(__file__).with_name("testhost")), *sys.argv[1:]])
