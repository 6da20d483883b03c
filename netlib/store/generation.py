"""The number of the store's newest operation, written down outside of the store: below the run folder, until the boot ends.

The number is the journal's: every operation adds one line, and it never decreases. A store whose journal ends before the number
in this file is an older copy, has lost its log (SQLite silently skips damaged parts of it), or is new.
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
        except OSError:  # none in this boot, or the run folder was deleted
            return 0
        try:
            return self._read(fd)
        except OSError:  # something else has its name
            return 0
        finally:
            os.close(fd)

    def advance(self, number: int) -> None:
        """Write *number*, after its transaction has been committed, unless the file has a later one.

        Not before that: a process that died in between would make its store look like an older copy. Where the run folder takes
        no writes, or another process has locked the file, nothing is written: the next operation writes a later number.
        """
        self._write(number, may_decrease=False)

    def settle(self, number: int) -> None:
        """Write *number* even where the file has a later one: the store has been accepted as it is."""
        self._write(number, may_decrease=True)

    def _write(self, number: int, *, may_decrease: bool) -> None:
        with suppress(OSError):
            try:
                fd = open_private(self._path, os.O_RDWR | os.O_CREAT)
            except FileNotFoundError:  # the run folder was deleted meanwhile
                make_folder(self._path.parent, PRIVATE)
                fd = open_private(self._path, os.O_RDWR | os.O_CREAT)
            try:
                if not may_decrease:  # the process that has the lock writes a later number, or the next operation does
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if may_decrease or self._read(fd) < number:
                    text = f"{self._boot} {number:020d}\n".encode()  # of fixed length, so that no reader sees a part of it
                    os.pwrite(fd, text, 0)
            finally:
                os.close(fd)

    def _read(self, fd: int) -> int:
        boot, _, number = os.pread(fd, _MOST_BYTES, 0).decode(errors="replace").strip().partition(" ")
        return int(number) if boot == self._boot and number.isdecimal() else 0
