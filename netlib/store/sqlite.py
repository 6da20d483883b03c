"""The local store: one SQLite file in WAL mode, one connection per thread, none across a fork.

Its one rule: every write is ``BEGIN IMMEDIATE``. A deferred transaction that reads and then writes fails under
contention (673 of 1,000 times with 50 processes); an immediate one waits its turn.
"""

import errno
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from netlib.errors import DeadlineExceeded, DiskFull, HostExhausted, NetlibError, NotPermitted, StoreDamaged, StoreError, Stuck
from netlib.kernel.folders import PRIVATE_FILE, own_folder
from netlib.kernel.scarcity import NO_MEMORY
from netlib.kernel.waiting import LOOK_SECONDS, Waiting, meet, patience, stopped_holder, trouble
from netlib.store import read_only
from netlib.store.generation import Generation
from netlib.store.read_only import open_read_only
from netlib.store.records import Transaction
from netlib.store.reserve import Reserve
from netlib.store.schema import MIGRATIONS

_T = TypeVar("_T")

BUSY_SECONDS = 30.0
_LOG_PAGES = 1000  # SQLite's own: how long its log grows before it is folded into the file
_LOG_PAGES_SHORT = 16  # where the disk is nearly full
_LOCK_BYTES = (120, 122, 128)  # of the file -shm: to write, to recover the log, to be the first (SQLite's file format, 2.3.1)
# SQLITE_ERROR, as our statements are right: a table or a column that they name is missing.
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
_UNREADABLE = {
    sqlite3.SQLITE_IOERR_CORRUPTFS,
    sqlite3.SQLITE_IOERR_DATA,
    sqlite3.SQLITE_IOERR_READ,
    sqlite3.SQLITE_IOERR_SHORT_READ,
}
# Where malloc(3) fails, Python raises MemoryError; these two are reported as errors of the disk.
_NO_MEMORY = {sqlite3.SQLITE_IOERR_NOMEM, sqlite3.SQLITE_IOERR_SHMMAP}


_writers: dict[str, threading.Lock] = {}
"""By file: which thread of this process writes. SQLite lets others sleep, up to 100 ms a time, where a lock wakes the next."""


def _forget_writers() -> None:
    _writers.clear()  # in a forked child: their holders are not here


os.register_at_fork(after_in_child=_forget_writers)


def _is_busy(error: Exception) -> bool:
    """Whether others keep the file locked."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class _Rehearsed(Exception):
    """Ends a rehearsal, so that its transaction is rolled back."""


class Store:
    """Records, objects, leases and ports of one host, in ``<state_dir>/netlib.db``, readable by its owner only."""

    def __init__(self, state_dir: Path, *, boot: str, generation: Generation | None = None) -> None:
        """Remember where the file is; it is opened (and made) at the first transaction.

        *boot* is the boot id that new rows are stamped with. *generation* is told how far the store has come.
        """
        self._generation = generation
        self.path = state_dir / "netlib.db"
        self.boot = boot
        self._reserve = Reserve(state_dir)
        self._local = threading.local()

    @property
    def exists(self) -> bool:
        """Whether anything was ever written; looking does not make the file."""
        return self.path.exists()

    @property
    def is_read_only(self) -> bool:
        """Whether its disk takes no writes, so that it can only be looked at."""
        return read_only.is_read_only(self.path.parent)

    def require_writable(self) -> None:
        """Raise StoreError where it can only be looked at."""
        if self.is_read_only:
            raise read_only.refusal(self.path.parent)

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A consistent view of one moment. Writing inside it is an error of the program."""
        yield from self._transaction("BEGIN")

    @contextmanager
    def write(self, *, clearing: bool = False) -> Iterator[Transaction]:
        """One atomic change: committed when the block ends, rolled back when it raises.

        *clearing* says that the transaction removes something: on a full disk it may use the reserved space. Raises
        DeadlineExceeded when another process keeps the write lock for 30 s, Stuck when that one is stopped, DiskFull.
        """
        self.require_writable()
        if clearing:
            self._make_room()
        writer = _writers.setdefault(str(self.path), threading.Lock())
        if not writer.acquire(timeout=BUSY_SECONDS):
            raise self._busy()
        try:
            yield from self._transaction("BEGIN IMMEDIATE")
        finally:
            writer.release()

    @contextmanager
    def rehearsal(self) -> Iterator[Transaction]:
        """A write transaction that is always rolled back.

        A request that would be refused is refused here, before the kernel is changed.
        """
        with suppress(_Rehearsed), self.write() as tx:
            yield tx
            raise _Rehearsed

    def close(self) -> None:
        """Close this thread's connection; the next transaction opens a new one."""
        connection = getattr(self._local, "connection", None)
        if connection is not None and self._local.pid == os.getpid():
            connection.close()
            self._reserve.keep()  # there may be room again
        self._local.connection = None

    def _transaction(self, begin: str) -> Iterator[Transaction]:
        connection = self._connection()
        if patience() != self._local.patience:  # a process was found stopped, or goes on
            self._local.patience = patience()
            connection.execute(f"PRAGMA busy_timeout={self._local.patience * 1000:.0f}")
        try:
            self._patiently(lambda: self._begin(connection, begin))
        except sqlite3.Error as error:
            raise self._translated(error) from error
        transaction = Transaction(connection, self.boot)
        try:
            yield transaction
        except BaseException as error:
            self._roll_back(connection)
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.IntegrityError):
                raise self._translated(error) from error
            raise
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back(connection)
            raise self._translated(error) from error
        if transaction.counted and self._generation is not None:
            self._generation.advance(transaction.counted)

    @staticmethod
    def _begin(connection: sqlite3.Connection, begin: str) -> None:
        connection.execute(begin)
        if begin == "BEGIN":  # which takes no lock before something is read
            try:
                connection.execute("PRAGMA schema_version")
            except sqlite3.Error:
                connection.execute("ROLLBACK")
                raise

    def _patiently(self, action: Callable[[], _T]) -> _T:
        """Do *action*, again each second while others keep the file locked, up to BUSY_SECONDS; Stuck when one is stopped."""
        until = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                return action()
            except sqlite3.OperationalError as error:
                if not _is_busy(error):
                    raise
                holder = stopped_holder(f"{self.path}-shm", _LOCK_BYTES) or stopped_holder(self.path)
                if holder:
                    meet(holder)
                    raise Stuck(f"{self.path}: {trouble(holder, ' and keeps it locked')}") from error
                if time.monotonic() > until:
                    raise

    @staticmethod
    def _roll_back(connection: sqlite3.Connection) -> None:
        if connection.in_transaction:  # SQLite itself goes back after some errors (a full disk, a damaged file)
            connection.execute("ROLLBACK")

    def _make_room(self) -> None:
        """Set the reserve free where the disk is nearly full, and make do with little; else see that there is a reserve."""
        is_short = self._reserve.is_needed()
        if is_short:
            self._reserve.spend()
        else:
            self._reserve.keep()
        connection = self._connection()
        if is_short != self._local.is_short:
            connection.execute(f"PRAGMA wal_autocheckpoint={_LOG_PAGES_SHORT if is_short else _LOG_PAGES}")
            self._local.is_short = is_short

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is not None and self._local.pid == os.getpid():
            if self._local.seen is None or self._local.seen == read_only.state_of(self.path):
                return connection
            self.close()
        # A connection inherited over a fork is dropped without closing it: closing would release the parent's locks.
        self._local.inherited = connection
        try:
            try:
                connection = self._patiently(self._open)
            except DiskFull:  # even to read takes 32 KiB, which SQLite shares among processes
                self._reserve.spend()
                connection = self._patiently(self._open)
        except sqlite3.OperationalError as error:
            raise self._translated(error) from error
        self._local.connection, self._local.pid, self._local.is_short = connection, os.getpid(), False
        self._local.patience = LOOK_SECONDS
        self._reserve.keep()
        return connection

    def _open(self) -> sqlite3.Connection:
        connection = self._local.seen = None  # the state of a read-only store when it was opened
        try:
            if self.is_read_only and self.exists:
                connection, self._local.seen = open_read_only(self.path, LOOK_SECONDS)
                self._check_schema(connection)
                return connection
            self._make_file()
            connection = sqlite3.connect(self.path, timeout=LOOK_SECONDS, isolation_level=None, check_same_thread=False)
            self._use_write_ahead_log(connection)
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute("PRAGMA temp_store=MEMORY")  # there may be no place for temporary files that can be written
            self._migrate(connection)
        except (OSError, sqlite3.Error) as error:
            if connection is not None:
                connection.close()
            if _is_busy(error):
                raise
            raise self._translated(error) from error
        return connection

    def _make_file(self) -> None:
        own_folder(self.path.parent, "state folder", "pass --state-dir")
        if self.path.is_symlink():
            raise StoreError(f"{self.path} is a link, which is not followed there; pass --state-dir to use another folder")
        # Never opened and closed here: close(2) would drop the locks that this process's other connections hold on the
        # file; another process would then take itself for the last user and delete the log that these connections use.
        with suppress(FileExistsError):
            os.mknod(self.path, stat.S_IFREG | PRIVATE_FILE)
            self.path.chmod(PRIVATE_FILE)  # whatever the umask

    def _use_write_ahead_log(self, connection: sqlite3.Connection) -> None:
        """Switch the log on, one process at a time: SQLite does not wait for another one that does it at this moment."""
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            late = f"{self.path}: another process takes more than {BUSY_SECONDS:.0f} s to open it; try again"
            Waiting(self.path.parent, "opening the store", BUSY_SECONDS, lambda: late).flock(folder)
            connection.execute("PRAGMA journal_mode=WAL")
        finally:
            os.close(folder)

    def _check_schema(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version != len(MIGRATIONS):
            raise StoreError(
                f"{self.path} was written by another netlib (schema {version}, not {len(MIGRATIONS)}), "
                "and its disk is read-only; remount it (mount -o remount,rw)"
            )

    def _migrate(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == len(MIGRATIONS):
            return
        connection.execute("BEGIN IMMEDIATE")
        (version,) = connection.execute("PRAGMA user_version").fetchone()  # another process may have been first
        if version > len(MIGRATIONS):
            connection.execute("ROLLBACK")
            raise StoreError(
                f"{self.path} was written by a newer netlib (schema {version}, not {len(MIGRATIONS)}); upgrade netlib"
            )
        for number in range(version, len(MIGRATIONS)):
            migration = MIGRATIONS[number]
            if callable(migration):
                migration(connection)
            else:
                for statement in migration.split(";"):
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version={number + 1}")
        connection.execute("COMMIT")

    def _busy(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"{self.path} is kept locked for writing for more than {BUSY_SECONDS:.0f} s by somebody else")

    def _translated(self, error: sqlite3.Error | OSError) -> NetlibError:
        if isinstance(error, OSError):
            return self._refused(error)
        if _is_busy(error):
            return self._busy()
        code = getattr(error, "sqlite_errorcode", 0)
        kind = code & 0xFF
        if code in _NO_MEMORY:
            return HostExhausted(NO_MEMORY)
        if kind == sqlite3.SQLITE_READONLY or (kind in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and self.is_read_only):
            return read_only.refusal(self.path.parent)
        if kind == sqlite3.SQLITE_FULL or (kind == sqlite3.SQLITE_IOERR and self._reserve.is_needed()):
            return self._full()
        is_other = self.path.exists() and not self.path.is_file()
        if kind in _DAMAGE or code in _UNREADABLE or is_other:
            return StoreDamaged(f"{self.path}: {error}")
        return StoreError(f"{self.path}: {error}")

    def _refused(self, error: OSError) -> NetlibError:
        folder = self.path.parent
        if isinstance(error, PermissionError):
            return NotPermitted(f"state folder {folder}: no permission to write there; run as root or pass --state-dir")
        if error.errno == errno.EROFS:
            return read_only.refusal(folder)
        if error.errno == errno.ENOSPC:
            return self._full()
        return StoreError(f"state folder {folder}: {error.strerror}; pass --state-dir to use another one")

    def _full(self) -> DiskFull:
        return DiskFull(
            f"no space left on the disk of the state folder {self.path.parent}; "
            "free some there, or remove containers, with what they wrote, by `netlib rm -f`"
        )
