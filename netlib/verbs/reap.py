"""What a minder runs when its container has ended: ``python -m netlib.verbs.reap ID``; netlibd does the work if it can."""

import sys

from netlib.config import Config
from netlib.errors import NetlibError
from netlib.verbs.call import call


def main() -> int:
    """Clear the container away; say on standard error (the container's minder.log) what would not go."""
    try:
        call(Config.from_environment(), "container.reap", {"name": sys.argv[1]})
    except NetlibError as error:
        sys.stderr.write(f"netlib: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
