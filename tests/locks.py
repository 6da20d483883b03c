"""Lock files that nobody holds: what a holder that ended well would have deleted."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

__all__ = ["abandoned"]


def abandoned(folder: Path) -> list[Path]:
    """The lock files of *folder* that are left without a holder. One that somebody holds, as netlibd may, is waited for."""
    found = []
    for path in sorted(folder.glob("*")):
        with suppress(FileNotFoundError):  # given back since
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_SH)
                if os.fstat(fd).st_nlink:
                    found.append(path)
            finally:
                os.close(fd)
    return found
