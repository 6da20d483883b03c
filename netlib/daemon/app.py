"""The process of netlibd: detaching from its starter, claiming its run folder, starting and ending.

One rule: the process with the lock on ``netlibd.pid`` is netlibd. Before that lock is taken, little is imported, so that a
second netlibd on one run folder ends quickly. :mod:`netlib.daemon.service` does the work.
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
from typing import NoReturn

from netlib import __version__
from netlib.config import Config
from netlib.errors import NetlibError, NotPermitted, Stuck
from netlib.kernel.folders import own_folder
from netlib.kernel.scarcity import exhaustion
from netlib.kernel.waiting import Waiting, stopped_holder, trouble, try_flock
from netlib.store.locks import run_folder_refusal
from netlib.wire.conversation import START_SECONDS
from netlib.wire.protocol import error_to_json

_REPORT_FD = 3
_REFUSED = 125
_EXAMPLES = """\
examples:
  netlibd
  netlibd --state-dir /srv/netlib --run-dir /run/netlib-srv
"""
_CGROUPS = Path("/sys/fs/cgroup")


def main(argv: Sequence[str] | None = None) -> int:
    """Run netlibd until SIGTERM; return the exit code. A second one on the same run folder ends at once, with success."""
    parser = _Parser(
        prog="netlibd",
        description="Serves names, holds published ports, answers commands. A command starts it when it is needed.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"netlibd {__version__}", help="print the version")
    parser.add_argument("--state-dir", metavar="DIR", help="folder of the store (NETLIB_STATE_DIR, else /var/lib/netlib)")
    parser.add_argument(
        "--run-dir", metavar="DIR", help="folder of the socket and of the log (NETLIB_RUN_DIR, else /run/netlib)"
    )
    parser.add_argument("--detach", action="store_true", help=argparse.SUPPRESS)  # by netlib.wire.starting
    options = parser.parse_args(argv)
    config = Config.from_environment(state_dir=options.state_dir, run_dir=options.run_dir)
    if options.detach:
        detach()
    try:
        return _serve(config, detached=options.detach)
    except (NetlibError, OSError, MemoryError) as error:
        reported = error if isinstance(error, NetlibError) else exhaustion(error)
        if reported is None:
            raise
        if options.detach:
            _report({"error": error_to_json(reported)})
        else:
            print(f"netlibd: {reported}", file=sys.stderr)
        return reported.exit_code


class _Parser(argparse.ArgumentParser):
    """Refuses wrong arguments as ``netlib`` does: in one sentence, with its exit code."""

    def error(self, message: str) -> NoReturn:
        self.exit(_REFUSED, f"netlibd: {message}; see `netlibd --help`\n")


def _serve(config: Config, *, detached: bool) -> int:
    if os.geteuid() != 0:
        raise NotPermitted("netlibd changes network namespaces: run it as root")
    claim = RunFolderClaim.take(config)
    if claim is None:
        if detached:
            _report({"ready": 0})
        else:
            print(f"netlibd: another netlibd serves {config.run_dir}", file=sys.stderr)
        return 0
    try:
        from netlib.daemon.service import Service
        from netlib.firewall.backend import backend

        service = Service(config, detached=detached)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: service.stop())
        signal.signal(signal.SIGHUP, lambda *_: None)  # not SIG_IGN, which containers would inherit
        claim.set_ready()
        if detached:
            _report({"ready": os.getpid()})
        _notify_systemd()
        with backend().keeping():
            service.run()
    finally:
        claim.release()
    service.close()
    return 0


class RunFolderClaim:
    """The locks by which no other netlibd serves the run folder of this process."""

    def __init__(self, starting: int, pid: int) -> None:
        self._starting = starting
        self._pid = pid
        os.register_at_fork(after_in_child=self._close)  # a child with the descriptor would keep the flock

    @classmethod
    def take(cls, config: Config) -> "RunFolderClaim | None":
        """Claim the run folder, or return None when another netlibd serves it.

        Waits while another netlibd is starting or ending. Raises Stuck when that one is stopped, DeadlineExceeded when it
        neither serves nor ends in time, StoreError when the run folder cannot be used.
        """
        try:
            own_folder(config.run_dir, "run folder", "pass --run-dir")
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            starting = os.open(config.starting_file, flags, 0o600)
            pid = os.open(config.pid_file, flags, 0o600)
        except OSError as error:
            raise run_folder_refusal(config.run_dir, error) from error
        _lock(starting, config.starting_file, "another netlibd is still starting")
        if not try_flock(pid):
            if stopped := stopped_holder(config.pid_file):
                raise Stuck(f"netlibd cannot start: {trouble(stopped)}")
            if config.socket_path.exists() or config.former_socket_path.exists():
                os.close(starting)
                os.close(pid)
                return None
            _lock(pid, config.pid_file, "another netlibd is still ending")  # an ending netlibd deletes its sockets first
        os.truncate(pid, 0)
        os.pwrite(pid, f"{os.getpid()}\n".encode(), 0)
        return cls(starting, pid)

    def set_ready(self) -> None:
        """Release the lock that other processes wait for while this netlibd starts."""
        if self._starting >= 0:
            os.close(self._starting)
            self._starting = -1

    def release(self) -> None:
        """Give the run folder up. The pid file is emptied, not deleted: else two processes could lock two files of its name."""
        os.truncate(self._pid, 0)
        self._close()

    def _close(self) -> None:
        for fd in (self._pid, self._starting):
            if fd >= 0:
                os.close(fd)
        self._pid = self._starting = -1


def _lock(fd: int, path: Path, reason: str) -> None:
    """Lock a file of the run folder; DeadlineExceeded, with *reason*, when another process keeps it locked."""
    Waiting(path, "netlibd cannot start", START_SECONDS, lambda: f"{reason} ({path}); try again").flock(fd)


def detach() -> None:
    """Detach this process: new session, no terminal, no descriptors above the report's, out of the caller's control group."""
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    os.umask(0o077)
    os.closerange(_REPORT_FD + 1, os.sysconf("SC_OPEN_MAX"))
    os.set_inheritable(_REPORT_FD, False)
    leave_cgroup(_CGROUPS, Path("/proc/self/cgroup").read_text())


def leave_cgroup(root: Path, membership: str) -> None:
    """Move this process to the root group of every hierarchy in *membership*, the text of /proc/PID/cgroup.

    In the group of a login session, systemd would kill it at the session's end. Where the folders cannot be written (in a
    container), it stays where it is.
    """
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        names = [controllers.removeprefix("name=")] if controllers else ["", "unified"]
        for name in names if path != "/" else ():
            with suppress(OSError):
                (root / name / "cgroup.procs").write_text("0")
                break


def _report(message: dict[str, object]) -> None:
    """Send *message* to the client that started us; a no-op when the client has closed its end."""
    with suppress(OSError), socket.socket(fileno=_REPORT_FD) as report:
        report.sendall(json.dumps(message).encode() + b"\n")


def _notify_systemd() -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)
