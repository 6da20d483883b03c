"""Room on the state folder's disk that is kept for clearing up: a file that holds nothing, set free when the disk is full.

To remove something is to write first that it is about to go. Containers can fill the disk, and would then be there for good.
"""

import os
from contextlib import suppress
from pathlib import Path

from netlib.kernel.folders import open_private

__all__ = ["Reserve"]

RESERVE_BYTES = 1 << 20
_PART = 16  # of a small disk no more than this part
_PLENTY = 4  # so many times as much must be free before it is taken (again)


class Reserve:
    """The file ``reserve`` in the state folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "reserve"

    def keep(self) -> None:
        """Take the room where that was not done yet and there is plenty; one ``stat`` where it was."""
        with suppress(OSError):  # a file system that cannot promise room: then there is none to set free
            if self._path.exists():
                return
            free, size = self._disk()
            if free < _PLENTY * size:
                return
            fd = open_private(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            try:
                os.posix_fallocate(fd, 0, size)
            finally:
                os.close(fd)

    def is_needed(self) -> bool:
        """Whether the disk has less free than the reserve would give."""
        try:
            free, size = self._disk()
        except OSError:
            return False
        return free < size

    def spend(self) -> None:
        """Set the room free, if there is any."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _disk(self) -> tuple[int, int]:
        """What is free on the disk for everybody, and how big the reserve is to be there, in bytes."""
        disk = os.statvfs(self._path.parent)
        return disk.f_bavail * disk.f_frsize, min(RESERVE_BYTES, disk.f_blocks * disk.f_frsize // _PART)
