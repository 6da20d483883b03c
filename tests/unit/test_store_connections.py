"""Connections of several threads to one store: what one of them does never takes the locks of another away."""

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from netlib.errors import DeadlineExceeded, DiskFull, HostExhausted
from netlib.store.sqlite import Store

READER = "import sys; from pathlib import Path; from netlib.store.sqlite import Store; s = Store(Path(sys.argv[1]), boot='b')\n"
READER += "with s.read() as tx: print(tx.meta('key'))\ns.close()"


def test_a_second_threads_connection_leaves_the_firsts_locks_alone(tmp_path: Path) -> None:
    """SQLite's locks are the process's: one close(2) of the file by anybody drops them, and the next reader deletes the log."""
    store = Store(tmp_path, boot="b")
    with store.write() as tx:
        tx.set_meta("key", "old")
    opened, done = threading.Event(), threading.Event()

    def second() -> None:
        with store.read() as tx:
            tx.meta("key")
        opened.set()
        done.wait(30)
        store.close()

    thread = threading.Thread(target=second)
    thread.start()
    try:
        assert opened.wait(30)
        reader = subprocess.run([sys.executable, "-c", READER, str(tmp_path)], capture_output=True, text=True, check=True)
        assert reader.stdout == "old\n"
        assert (tmp_path / "netlib.db-wal").exists()  # the reader was not the last one, and knew it
        with store.write() as tx:
            tx.set_meta("key", "new")
        reader = subprocess.run([sys.executable, "-c", READER, str(tmp_path)], capture_output=True, text=True, check=True)
        assert reader.stdout == "new\n"
    finally:
        done.set()
        thread.join(30)
        store.close()


def test_a_store_that_is_busy_when_its_disk_was_full_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, tries = Store(tmp_path, boot="b"), []

    def busy() -> sqlite3.Connection:
        tries.append(1)
        if len(tries) == 1:
            raise DiskFull("no space is left")
        error = sqlite3.OperationalError("database is locked")
        error.sqlite_errorcode = sqlite3.SQLITE_BUSY
        raise error

    monkeypatch.setattr("netlib.store.sqlite.BUSY_SECONDS", 0.0)
    monkeypatch.setattr(store, "_open", busy)
    with pytest.raises(DeadlineExceeded), store.read():
        pass
    assert len(tries) >= 2


@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR_NOMEM, sqlite3.SQLITE_IOERR_SHMMAP])
def test_memory_that_is_lacking_is_no_error_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    store, error = Store(tmp_path, boot="b"), sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = code

    def without_memory() -> sqlite3.Connection:
        raise error

    monkeypatch.setattr(sqlite3, "connect", lambda *_, **__: without_memory())
    with pytest.raises(HostExhausted, match="too little memory is left"), store.write():
        pass
