"""Copies of a store while it is in use, and a store replaced by a copy, both by SQLite's online backup: no half of a change."""

import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from netlib.errors import AlreadyExists, ConfigError, NotFound, StoreError
from netlib.kernel.folders import open_private
from netlib.store.read_only import open_read_only
from netlib.store.schema import MIGRATIONS

__all__ = ["check_backup", "copy_store", "copy_whole", "kept_beside", "meta_of", "put_back", "set_aside"]

_OWN = ("netlib.db", "tags", "reserve")
_PAGES = 1024  # at a time, so that writers wait for 4 MiB at most
_PATIENCE = 30.0


def copy_store(source: Path, target: Path, *, replace: bool = False) -> None:
    """Copy the store at *source* into the file *target*, which has that name when all of it is on the disk.

    Raises AlreadyExists where the file exists, unless *replace*; ConfigError where it cannot be written.
    """
    if os.path.lexists(target) and not target.is_file():
        raise ConfigError(f"{target} is no regular file; name one, or a new one")
    if os.path.realpath(target.parent) == os.path.realpath(source.parent) and target.name.startswith(_OWN):
        raise ConfigError(f"{target} is a file of the store itself; choose another name")
    if os.path.lexists(target) and not replace:
        raise AlreadyExists(f"{target} exists; choose another name, or pass --force")
    copy_whole(source, target)


def copy_whole(source: Path, target: Path) -> None:
    """Copy the store at *source* into the file *target*, replacing any. Raises ConfigError where it cannot be written."""
    new = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        os.close(open_private(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        with closing(_live(source)) as live, closing(sqlite3.connect(new)) as copy:
            live.backup(copy, pages=_PAGES)
            copy.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
        with open(new, "rb") as file:
            os.fsync(file.fileno())
        new.rename(target)
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error.strerror}; choose another file") from error
    except sqlite3.Error as error:
        raise StoreError(f"{source} cannot be copied to {target}: {error}") from error
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)


def check_backup(path: Path) -> None:
    """Check that *path* is an undamaged store that this netlib can read. Raises NotFound, ConfigError."""
    if not path.exists():
        raise NotFound(f"there is no file {path}; name one that `netlib system backup` wrote")
    if not path.is_file():
        raise ConfigError(f"{path} is no file; name one that `netlib system backup` wrote")
    with _as_backup(path) as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise ConfigError(f"{path} was written by a newer netlib (schema {version}, not {len(MIGRATIONS)}); upgrade netlib")
        if not db.execute("SELECT 1 FROM meta WHERE key='tag'").fetchone():
            raise ConfigError(f"{path} is a store that nothing was ever written to; name one that `netlib system backup` wrote")
        (answer,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if answer != "ok":
            raise ConfigError(f"{path} is damaged: {answer}; name another backup")


def meta_of(path: Path, key: str) -> str | None:
    """The value of *key* in the table ``meta`` of the backup at *path*."""
    with _as_backup(path) as db:
        row = db.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
    return row[0] if row else None


def put_back(backup: Path, store: Path) -> None:
    """Replace the content of *store*, which other processes may have open, by that of *backup*, in one transaction."""
    with _as_backup(backup) as source:
        try:
            with closing(sqlite3.connect(store, timeout=_PATIENCE)) as target:
                source.backup(target)
                target.execute("PRAGMA journal_mode=WAL")
        except sqlite3.Error as error:
            raise StoreError(f"{backup} cannot be put in the place of {store}: {error}; nothing was changed") from error


def set_aside(store: Path, why: str) -> Path:
    """Rename a store to a name with *why* and the time, and its log likewise, by whose name SQLite's tools find it."""
    kept = kept_beside(store, why)
    for suffix in ("-wal", "-shm", ""):
        source = Path(f"{store}{suffix}")
        if os.path.lexists(source):
            source.rename(f"{kept}{suffix}")
    return kept


def kept_beside(store: Path, why: str) -> Path:
    """The name beside a store under which the store is kept: with *why* and the time."""
    return store.with_name(f"{store.name}.{why}-{time.strftime('%Y%m%dT%H%M%S')}")


@contextmanager
def _as_backup(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with closing(_open(path)) as db:
            yield db
    except sqlite3.Error as error:
        raise ConfigError(f"{path} is no store of netlib: {error}; name a file that `netlib system backup` wrote") from error


def _live(path: Path) -> sqlite3.Connection:
    try:
        return open_read_only(path, _PATIENCE).connection
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(os.fspath(path))}?mode=ro", uri=True, timeout=_PATIENCE)
