"""How far the store has come, written down outside of it: below the run folder, which ends with the boot as the kernel's side.

The number is the journal's: every operation adds one line, and it never goes back. A store whose journal ends before the
number that is written here is an older copy, has lost its log (SQLite skips what is damaged in one without a word), or is new.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from netlib.kernel.folders import PRIVATE, make_folder, open_private

__all__ = ["Generation"]

_NAME = "generation"
_MOST_BYTES = 128


class Generation:
    """The file ``generation`` in a folder below the run folder: ``<boot id> <number>``."""

    def __init__(self, folder: Path, boot: str) -> None:
        self._path = folder / _NAME
        self._boot = boot

    def known(self) -> int:
        """The number of the newest operation that any process wrote down in this boot; 0 where none did."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # none in this boot, or the run folder was deleted: it says nothing
            return 0
        try:
            return self._read(fd)
        except OSError:  # something else has its name
            return 0
        finally:
            os.close(fd)

    def advance(self, number: int) -> None:
        """Write *number* down, after its transaction has been committed, unless a later one is there already.

        After, for a process that dies in between must not make its store an older one. Where the run folder takes nothing, or
        another process has the file, nothing is written: the next operation writes a later number.
        """
        self._write(number, goes_back=False)

    def settle(self, number: int) -> None:
        """Write *number* down whatever is there: the store has been accepted as it is."""
        self._write(number, goes_back=True)

    def _write(self, number: int, *, goes_back: bool) -> None:
        with suppress(OSError):
            try:
                fd = open_private(self._path, os.O_RDWR | os.O_CREAT)
            except FileNotFoundError:  # the run folder was deleted under our feet
                make_folder(self._path.parent, PRIVATE)
                fd = open_private(self._path, os.O_RDWR | os.O_CREAT)
            try:
                if not goes_back:  # who is busy with it writes a later number, or the next does
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if goes_back or self._read(fd) < number:
                    text = f"{self._boot} {number:020d}\n".encode()  # of one length, so that it is never seen half cut off
                    os.pwrite(fd, text, 0)
            finally:
                os.close(fd)

    def _read(self, fd: int) -> int:
        boot, _, number = os.pread(fd, _MOST_BYTES, 0).decode(errors="replace").strip().partition(" ")
        return int(number) if boot == self._boot and number.isdecimal() else 0
