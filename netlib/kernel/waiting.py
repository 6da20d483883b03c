"""Waiting for a lock that another process holds, and noticing that this process is stopped (SIGSTOP, or Ctrl-Z in a shell).

A stopped process keeps its locks and does nothing, perhaps for days. One rule: after waiting for a second look at the holder,
and give up at once when it is stopped. Every command imports this module, so it imports next to nothing.
"""

import os
import time
from collections.abc import Callable, Collection, Iterator

from netlib.errors import DeadlineExceeded, Stuck

__all__ = ["LOOK_SECONDS", "Waiting", "holders", "is_stopped", "meet", "patience", "stopped_holder", "trouble", "try_flock"]

LOOK_SECONDS = 1.0
_SOON = 0.05
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.0005, 0.02


_met = 0  # the pid of a process that was found stopped


def meet(pid: int) -> None:
    """Remember that a process was found stopped: while it is, this process does not wait a second for it again."""
    global _met
    _met = pid


def patience() -> float:
    """How long to wait for a lock before its holder is looked at, in seconds."""
    return _SOON if _met and is_stopped(_met) else LOOK_SECONDS


def is_stopped(pid: int) -> bool:
    """Whether a signal or a debugger has stopped the process; False for a process that is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except OSError:
        return False


def trouble(pid: int, what: str = "") -> str:
    """Say that a process is stopped or (netlibd) does not answer, *what* it does besides, and the remedy.

    *pid* 0 is a netlibd whose process is not known: `kill 0` would end the caller's own.
    """
    if not pid:
        return f"netlibd does not answer{what}; try again, and see `netlib log` for what it does"
    if is_stopped(pid):
        return f"{_named(pid)} is stopped{what}; continue it by `kill -CONT {pid}`, or end it by `kill -KILL {pid}`"
    return f"{_named(pid)} does not answer{what}; end it by `kill -KILL {pid}`, and the next command starts another one"


def _named(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
        with open(f"/proc/{pid}/comm", "rb") as file:
            name = file.read().decode(errors="replace").strip()
    except OSError:
        return f"netlibd (pid {pid})"
    if b"netlib.daemon" in words or any(os.path.basename(word) == b"netlibd" for word in words[:2]):
        return f"netlibd (pid {pid})"
    return f"process {pid} ({name})"


def stopped_holder(path: "os.PathLike[str] | str", covering: Collection[int] = ()) -> int:
    """The pid of a stopped process that holds an exclusive lock on the file *path*, 0 when there is none.

    With *covering*, only a lock of fcntl(2) on one of these bytes counts. /proc/locks names the holders; its device numbers are
    not those of stat(2) on every file system, so the holder must also have the file open.
    """
    for pid in holders(path, covering):
        if is_stopped(pid) and _has_open(pid, path):
            return pid
    return 0


def holders(path: "os.PathLike[str] | str", covering: Collection[int] = ()) -> Iterator[int]:
    """The pids of exclusive locks on the inode number of *path*, of any device; *covering* as in :func:`stopped_holder`."""
    try:
        inode = str(os.stat(path).st_ino)
        with open("/proc/locks") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        words = line.split()  # "1: FLOCK ADVISORY WRITE 4711 00:2f:5678 0 EOF"; who waits has one word more
        if len(words) != 8 or words[3] != "WRITE" or words[5].rpartition(":")[2] != inode:
            continue
        first, last = int(words[6]), float("inf") if words[7] == "EOF" else int(words[7])
        if not covering or any(first <= byte <= last for byte in covering):
            yield int(words[4])


def _has_open(pid: int, path: "os.PathLike[str] | str") -> bool:
    folder = f"/proc/{pid}/fd"
    try:
        wanted = os.stat(path)
        names = os.listdir(folder)
    except OSError:
        return False
    for name in names:
        try:
            if os.path.samestat(os.stat(f"{folder}/{name}"), wanted):
                return True
        except OSError:  # closed meanwhile, or its file is out of our sight
            continue
    return False


def try_flock(fd: int) -> bool:
    """Lock the file behind *fd* for this process alone, by flock(2); False while another process has it."""
    import fcntl  # most commands take no lock

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Waiting:
    """One wait for a lock on a file, with growing pauses and looks at the holder: the kernel has no deadline for it."""

    def __init__(self, path: "os.PathLike[str] | str", purpose: str, seconds: float, late: Callable[[], str]) -> None:
        """*purpose* is what the lock is wanted for; *late* says, after *seconds*, which process had it all the time."""
        self._path = path
        self._purpose = purpose
        self._late = late
        self._until = time.monotonic() + seconds
        self._look = time.monotonic() + patience()
        self._pause = _SHORTEST_PAUSE

    def flock(self, fd: int) -> None:
        """Take the lock by :func:`try_flock`, as often as it takes; raises as :meth:`pause`."""
        while not try_flock(fd):
            self.pause()

    def pause(self) -> None:
        """Sleep for a moment. Raises Stuck when a stopped process holds the lock, DeadlineExceeded when it is too late."""
        now = time.monotonic()
        if now > self._look:
            self._look = now + LOOK_SECONDS
            if pid := stopped_holder(self._path):
                meet(pid)
                raise Stuck(f"{self._purpose}: {trouble(pid, ' and holds a lock that this needs')}")
        if now > self._until:
            raise DeadlineExceeded(self._late())
        time.sleep(self._pause)  # noqa: TID251 - flock has no deadline of its own
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
