"""Processes stopped by SIGSTOP, which are surely continued; and processes that hold what netlib waits for, and are stopped."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from netlib.config import Config
from netlib.kernel.waiting import is_stopped
from tests.processes import pid_of

__all__ = ["HOLDING", "LIMIT", "remedy", "stopped", "stopped_holding", "stopped_netlibd", "stopping_itself"]

ROOT = Path(__file__).parents[1]
LIMIT = 15.0
"""Seconds by which everything is done or refused where netlibd is stopped: 5 s, and what a loaded machine takes besides.

What it must tell apart are the deadlines of those who wait for what a stopped process holds: 20, 30, 60, 120 s.
"""

# By what is held: a program that holds it, says so and waits to be ended. Its arguments are the folders.
_START = """
import signal, sqlite3, sys
from pathlib import Path
from netlib.config import Config
from netlib.store.locks import Locks
config = Config(sys.argv[2], sys.argv[3])
"""
HOLDING = {
    "a record's lock": "held = Locks(config.lock_dir).hold(sys.argv[4], 'testing')\nheld.__enter__()\n",
    "a shared lock": "held = Locks(config.lock_dir).hold(sys.argv[4], 'testing')\nheld.__enter__()\n",
    "the store": "db = sqlite3.connect(config.state_dir / 'netlib.db', isolation_level=None)\ndb.execute('BEGIN IMMEDIATE')\n",
}
_END = "print('holding', flush=True)\nsignal.pause()\n"

_STOPPING_ITSELF = """
import os, signal, sys, threading
from netlib.config import Config
from tests.cni.launching import serving
def handle(request):
    os.kill(os.getpid(), signal.SIGSTOP)
    threading.Event().wait(60)  # this thread may be the last one to be stopped
with serving(Config.from_environment(), handle):
    print("ready", flush=True)
    sys.stdin.read()
"""


@contextmanager
def stopping_itself(config: Config) -> Iterator[int]:
    """A control socket of *config* whose handler stops its own process, as a netlibd that is stopped with a request begun."""
    folders = {"NETLIB_STATE_DIR": str(config.state_dir), "NETLIB_RUN_DIR": str(config.run_dir), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-c", _STOPPING_ITSELF, "netlib.daemon"]
    with subprocess.Popen(command, env={**os.environ, **folders}, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield server.pid
        finally:
            server.kill()


@contextmanager
def stopped(pid: int) -> Iterator[int]:
    """Have the process stopped during the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        deadline = time.monotonic() + 5
        pause = threading.Event()
        while not is_stopped(pid):
            assert time.monotonic() < deadline, f"process {pid} does not stop"
            pause.wait(0.01)
        yield pid
    finally:
        with suppress(ProcessLookupError):  # the test has ended it
            os.kill(pid, signal.SIGCONT)


@contextmanager
def stopped_netlibd(config: Config) -> Iterator[int]:
    """Have the netlibd of *config* stopped during the block, at a moment when it holds nothing that others wait for."""
    pid = pid_of(config)
    pause = threading.Event()
    deadline = time.monotonic() + 10
    while True:
        with stopped(pid):
            if not _holds(pid, config):
                yield pid
                return
        assert time.monotonic() < deadline, f"netlibd (pid {pid}) is never idle"
        pause.wait(0.01)


def _holds(pid: int, config: Config) -> bool:
    """Whether a process holds a lock that others wait for: any but the one on netlibd's place.

    /proc/locks also tells of each container's lock, by the pid of the netlibd that took it; but only the container's minder,
    which inherited it, still has that file open.
    """
    place = config.pid_file.stat().st_ino
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    held = {int(words[5].rpartition(":")[2]) for words in locks if words[3:5] == ["WRITE", str(pid)]} - {place}
    return bool(held and held & _open_files(pid))


def _open_files(pid: int) -> set[int]:
    """The inodes of the files that a process has open."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # a file that is out of our sight
            found.add(link.stat().st_ino)
    return found


@contextmanager
def stopped_holding(config: Config, what: str, name: str = "") -> Iterator[int]:
    """Have a process that calls itself netlibd hold *what* (a key of HOLDING; the lock *name*), and be stopped."""
    code = _START + HOLDING[what] + _END
    command = [sys.executable, "-P", "-c", code, "netlib.daemon", str(config.state_dir), str(config.run_dir), name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={"PYTHONPATH": str(ROOT)}) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"holding\n"
            with stopped(holder.pid):
                yield holder.pid
        finally:
            holder.kill()


def remedy(pid: int) -> str:
    """What every sentence about a stopped process ends with."""
    return f"; continue it by `kill -CONT {pid}`, or end it by `kill -KILL {pid}`"
