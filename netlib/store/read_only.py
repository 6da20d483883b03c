"""Reading a store on a read-only disk, without changing it.

One rule: all that is read was in the store at one moment. While another process has the store open (its disk may be writable
by another mount), or has died with it open, SQLite reads the file with its log. A closed store is copied into memory: SQLite
cannot open a file in WAL mode where it cannot make a file beside it.
"""

import os
import sqlite3
from pathlib import Path
from typing import NamedTuple

from netlib.errors import StoreError

__all__ = ["ReadOnlyStore", "is_read_only", "open_read_only", "refusal", "state_of"]

_ATTEMPTS = 10
_WAL_MARKS = slice(18, 20)  # two bytes of the file's head; SQLite opens no copy in memory that says "WAL" (file format, 1.3)


class ReadOnlyStore(NamedTuple):
    """A connection that only reads, and the state of the file when it was opened (:func:`state_of`)."""

    connection: sqlite3.Connection
    state: tuple[int, ...]


def is_read_only(folder: Path) -> bool:
    """Whether the disk of *folder* is read-only, by its mount or by itself; False where it cannot be asked."""
    try:
        return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def refusal(folder: Path) -> StoreError:
    """The error that says why nothing can be changed, and what to do."""
    return StoreError(
        f"state folder {folder} is on a read-only disk, so nothing can be changed; "
        "remount it (mount -o remount,rw), or pass --state-dir to use another one"
    )


def state_of(path: Path) -> tuple[int, ...] | None:
    """A state that changes with a closed store's content; () while the store has a log, None when its disk takes writes."""
    if not is_read_only(path.parent):
        return None
    if os.path.exists(f"{path}-wal"):
        return ()
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def open_read_only(path: Path, patience: float) -> ReadOnlyStore:
    """Open the store at *path*. Raises StoreError when that cannot be done without writing, OSError, sqlite3.Error."""
    for _ in range(_ATTEMPTS):
        before = state_of(path)
        if not before:
            return ReadOnlyStore(_opened(f"{path.as_uri()}?mode=ro", patience), ())
        content = bytearray(path.read_bytes())
        if state_of(path) == before:
            content[_WAL_MARKS] = b"\1\1"
            connection = _opened(":memory:", patience)
            connection.deserialize(bytes(content))
            connection.execute("PRAGMA query_only=ON")
            return ReadOnlyStore(connection, before)
    raise StoreError(f"{path} changes while it is read, though its disk is read-only here; try again")


def _opened(name: str, patience: float) -> sqlite3.Connection:
    return sqlite3.connect(name, uri=True, timeout=patience, isolation_level=None, check_same_thread=False)
