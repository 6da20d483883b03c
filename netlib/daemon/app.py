"""netlibd as a process: detached, alone on its run folder, started and ended in order.

One rule: who holds the lock on ``netlibd.pid`` is netlibd. What happens before that lock is taken imports little, so that
one who comes second costs little; the service itself is :mod:`netlib.daemon.service`.
"""

import argparse
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from netlib.config import Config
from netlib.errors import NetlibError, NotPermitted, Stuck
from netlib.kernel.folders import own_folder
from netlib.kernel.scarcity import exhaustion
from netlib.kernel.waiting import Waiting, stopped_holder, trouble, try_flock
from netlib.store.locks import run_folder_refusal
from netlib.wire.conversation import START_SECONDS
from netlib.wire.protocol import error_to_json

_REPORT_FD = 3
_CGROUPS = Path("/sys/fs/cgroup")


def main(argv: Sequence[str] | None = None) -> int:
    """Run netlibd until SIGTERM; return the exit code. A second one on the same run folder ends at once, with success."""
    parser = argparse.ArgumentParser(prog="netlibd", description="Serves names, holds published ports, answers commands.")
    parser.add_argument("--state-dir", help="folder of the store (NETLIB_STATE_DIR, else /var/lib/netlib)")
    parser.add_argument("--run-dir", help="folder of the socket and of the log (NETLIB_RUN_DIR, else /run/netlib)")
    parser.add_argument("--detach", action="store_true", help=argparse.SUPPRESS)  # by netlib.wire.starting
    options = parser.parse_args(argv)
    config = Config.from_environment(state_dir=options.state_dir, run_dir=options.run_dir)
    if options.detach:
        detach()
    try:
        return _serve(config, detached=options.detach)
    except (NetlibError, OSError, MemoryError) as error:
        told = error if isinstance(error, NetlibError) else exhaustion(error)
        if told is None:
            raise
        if options.detach:
            _report({"error": error_to_json(told)})
        else:
            print(f"netlibd: {told}", file=sys.stderr)
        return told.exit_code


def _serve(config: Config, *, detached: bool) -> int:
    if os.geteuid() != 0:
        raise NotPermitted("netlibd changes network namespaces: run it as root")
    place = Place.claim(config)
    if place is None:
        if detached:
            _report({"ready": 0})
        else:
            print(f"netlibd: another one serves {config.run_dir}", file=sys.stderr)
        return 0
    try:
        from netlib.daemon.service import Service
        from netlib.firewall.backend import backend

        service = Service(config, detached=detached)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: service.stop())
        signal.signal(signal.SIGHUP, lambda *_: None)  # not SIG_IGN, which containers would inherit
        place.is_ready()
        if detached:
            _report({"ready": os.getpid()})
        _notify_systemd()
        with backend().keeping():
            service.run()
    finally:
        place.leave()
    service.close()
    return 0


class Place:
    """The run folder, taken by this process: no other netlibd serves it."""

    def __init__(self, starting: int, pid: int) -> None:
        self._starting = starting
        self._pid = pid
        os.register_at_fork(after_in_child=self._close)  # flock outlives its owner in a child that inherited the descriptor

    @classmethod
    def claim(cls, config: Config) -> "Place | None":
        """Take it, or None when another netlibd has it and is ready; wait for how it ends while one starts, or leaves.

        Raises Stuck when the other one is stopped, DeadlineExceeded when it neither gets ready nor leaves, StoreError.
        """
        try:
            own_folder(config.run_dir, "run folder", "pass --run-dir")
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            starting = os.open(config.starting_file, flags, 0o600)
            pid = os.open(config.pid_file, flags, 0o600)
        except OSError as error:
            raise run_folder_refusal(config.run_dir, error) from error
        _take(starting, config.starting_file, "another netlibd is still starting")
        if not try_flock(pid):
            if stopped := stopped_holder(config.pid_file):
                raise Stuck(f"netlibd cannot start: {trouble(stopped)}")
            if config.socket_path.exists() or config.former_socket_path.exists():
                os.close(starting)
                os.close(pid)
                return None
            _take(pid, config.pid_file, "another netlibd is still leaving")  # it gave up its sockets first
        os.truncate(pid, 0)
        os.pwrite(pid, f"{os.getpid()}\n".encode(), 0)
        return cls(starting, pid)

    def is_ready(self) -> None:
        """Let those go on who wait for how this start ends."""
        if self._starting >= 0:
            os.close(self._starting)
            self._starting = -1

    def leave(self) -> None:
        """Give the place up. The file stays, empty: two could lock two files of one name."""
        os.truncate(self._pid, 0)
        self._close()

    def _close(self) -> None:
        for fd in (self._pid, self._starting):
            if fd >= 0:
                os.close(fd)
        self._pid = self._starting = -1


def _take(fd: int, path: Path, otherwise: str) -> None:
    """Lock a file of the run folder; DeadlineExceeded says *otherwise* when another process keeps it."""
    Waiting(path, "netlibd cannot start", START_SECONDS, lambda: f"{otherwise} ({path}); try again").flock(fd)


def detach() -> None:
    """Become a process of its own: new session, no terminal, no descriptors but the report's, out of the caller's cgroup."""
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    os.umask(0o077)
    os.closerange(_REPORT_FD + 1, os.sysconf("SC_OPEN_MAX"))
    os.set_inheritable(_REPORT_FD, False)
    leave_cgroup(_CGROUPS, Path("/proc/self/cgroup").read_text())


def leave_cgroup(root: Path, membership: str) -> None:
    """Move this process to the top of every hierarchy in *membership* (/proc/PID/cgroup): a session's end must not end it.

    Where the folders cannot be written (a container), it stays where it is.
    """
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        names = [controllers.removeprefix("name=")] if controllers else ["", "unified"]
        for name in names if path != "/" else ():
            with suppress(OSError):
                (root / name / "cgroup.procs").write_text("0")
                break


def _report(message: dict[str, object]) -> None:
    """Tell the client that started us; it may have given up by now."""
    with suppress(OSError), socket.socket(fileno=_REPORT_FD) as report:
        report.sendall(json.dumps(message).encode() + b"\n")


def _notify_systemd() -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)
