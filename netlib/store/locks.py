"""Locks between processes: one flock'ed file per record or shared key being worked on.

Its rules: a lock is held during work only, its file names the holder, every wait has a deadline whose error names the holder,
and a forked child never keeps a lock alive (flock survives its owner when a child inherited the descriptor).
"""

import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from netlib.errors import NotPermitted, StoreError
from netlib.kernel.folders import check_owner, own_folder
from netlib.kernel.waiting import Waiting

DEADLINE_SECONDS = 60.0
_held: dict[str, int] = {}  # the locks of this process, and their descriptors
_changing = threading.Lock()  # of _held together with the files; a fork waits for it too


def _close_inherited() -> None:
    for fd in _held.values():
        os.close(fd)
    _held.clear()
    _changing.release()


os.register_at_fork(before=_changing.acquire, after_in_parent=_changing.release, after_in_child=_close_inherited)


def record_lock(record: str) -> str:
    """The name of the lock to hold during work on a record (by id)."""
    return f"record:{record}"


def run_folder_refusal(folder: Path, error: OSError) -> StoreError:
    """The error that says why the run folder cannot be used, and what to do."""
    if error.errno == errno.EROFS:
        return StoreError(
            f"run folder {folder} is on a read-only disk; remount it (mount -o remount,rw), "
            "or pass --run-dir to use another one"
        )
    return StoreError(f"run folder {folder}: {error.strerror}; pass --run-dir to use another one")


class Locks:
    """The locks of one host, as files in ``<run_dir>/locks``."""

    def __init__(self, folder: Path) -> None:
        """Raise NotPermitted where the folder, or the run folder around it, is another user's."""
        self.folder = folder
        for path in (folder.parent, folder):
            if path.exists():
                check_owner(path, "run folder", "pass --run-dir")

    @contextmanager
    def hold(self, name: str, purpose: str, *, seconds: float = DEADLINE_SECONDS) -> Iterator[None]:
        """Hold the lock *name* during the block; wait for it up to *seconds*.

        Raises DeadlineExceeded that names the holder, Stuck as soon as the holder is found stopped.
        """
        path = self._path(name)

        def late() -> str:
            return f"{purpose}: waited {seconds:.0f} s for {self._holder(path)}; try again when it is done"

        waiting = Waiting(path, purpose, seconds, late)
        while (fd := self._try(path, purpose)) is None:
            waiting.pause()
        try:
            yield
        finally:
            self._release(path, fd)

    @contextmanager
    def attempt(self, name: str, purpose: str) -> Iterator[bool]:
        """Hold the lock *name* during the block if nobody has it; yields whether it is held."""
        path = self._path(name)
        fd = self._try(path, purpose)
        try:
            yield fd is not None
        finally:
            if fd is not None:
                self._release(path, fd)

    def sweep(self) -> None:
        """Delete the files that killed holders left, which lock nothing any more."""
        for path in map(str, self.folder.glob("*")):
            fd = self._try(path, "sweeping")
            if fd is not None:
                self._release(path, fd)

    def _path(self, name: str) -> str:
        return f"{self.folder}/" + hashlib.blake2b(name.encode(), digest_size=12).hexdigest()

    def _try(self, path: str, purpose: str) -> int | None:
        if path in _held:  # by another thread of this process: no need to ask the kernel
            return None
        with _changing:
            return self._take(path, purpose)

    def _take(self, path: str, purpose: str) -> int | None:
        fd = self._open(path)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have deleted the file between our open and our flock: then this lock guards nothing.
            found = os.fstat(fd)
            if found.st_nlink == 0:
                os.close(fd)
                return None
        except BlockingIOError:
            os.close(fd)
            return None
        _held[path] = fd
        with suppress(OSError):  # a note for people; on a full disk the lock holds without it
            if found.st_size:  # of a holder that was killed
                os.truncate(fd, 0)
            os.pwrite(fd, f"pid {os.getpid()} ({purpose})".encode(), 0)
        return fd

    def _open(self, path: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            try:
                return os.open(path, flags, 0o600)
            except FileNotFoundError:
                own_folder(self.folder.parent, "run folder", "pass --run-dir")  # the sockets' folder too is for root alone
                own_folder(self.folder, "run folder", "pass --run-dir")
                return os.open(path, flags, 0o600)
        except PermissionError as error:
            raise NotPermitted(
                f"run folder {self.folder.parent}: no permission to write there; run as root or pass --run-dir"
            ) from error
        except OSError as error:
            raise run_folder_refusal(self.folder.parent, error) from error

    def _release(self, path: str, fd: int) -> None:
        with _changing:
            if _held.get(path) != fd:  # a forked child, in which it was closed already
                return
            with suppress(FileNotFoundError):
                os.unlink(path)  # a text: a Path takes longer to hash and to delete than the lock takes
            del _held[path]
            os.close(fd)

    def _holder(self, path: str) -> str:
        try:
            return Path(path).read_text() or "another process"
        except FileNotFoundError:
            return "another process"
