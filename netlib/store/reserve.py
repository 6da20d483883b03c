"""Room on the state folder's disk that is reserved for removals: a file of zeros, deleted when the disk is full.

A removal is first written down in the store. Containers can fill the disk, and could then not be removed any more.
"""

import os
from contextlib import suppress
from pathlib import Path

from netlib.kernel.folders import open_private

__all__ = ["Reserve"]

RESERVE_BYTES = 1 << 20
_PART = 16  # of a small disk at most a sixteenth
_PLENTY = 4  # the reserve is made when so many times its size is free


class Reserve:
    """The file ``reserve`` in the state folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "reserve"

    def keep(self) -> None:
        """Make the reserve if there is none and much is free; one ``stat`` if there is one."""
        with suppress(OSError):  # a file system that cannot reserve room: then there is no reserve
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
        """Whether the disk has less free than the reserve's size."""
        try:
            free, size = self._disk()
        except OSError:
            return False
        return free < size

    def spend(self) -> None:
        """Delete the reserve, if there is one."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _disk(self) -> tuple[int, int]:
        """The bytes of the disk that any user may still fill, and the reserve's size there."""
        disk = os.statvfs(self._path.parent)
        return disk.f_bavail * disk.f_frsize, min(RESERVE_BYTES, disk.f_blocks * disk.f_frsize // _PART)
