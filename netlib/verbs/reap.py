"""``python -m netlib.verbs.reap ID``: the command that a minder runs when its container has ended.

It calls the verb ``container.reap``, which netlibd performs, or this process where there is no netlibd.
"""

import sys

from netlib.config import Config
from netlib.errors import NetlibError
from netlib.verbs.call import call


def main() -> int:
    """Clean up after the container; write a failure to standard error, which is the container's minder.log."""
    try:
        call(Config.from_environment(), "container.reap", {"name": sys.argv[1]})
    except NetlibError as error:
        sys.stderr.write(f"netlib: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
