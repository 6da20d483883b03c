"""Starting netlibd from the caller's side: by systemd where that has our unit, else as a detached process.

One rule: when :func:`start_daemon` returns, a netlibd answers; else its error says what prevented that. A command imports
this module when netlibd is to be started, so it imports the standard library's small modules only.
"""

import json
import os
import socket
import time
from contextlib import suppress

from netlib.config import DEFAULT_RUN_DIR, DEFAULT_STATE_DIR, Config
from netlib.errors import DaemonError, DeadlineExceeded, NotPermitted, Stuck
from netlib.kernel.scarcity import translated_scarcity
from netlib.kernel.waiting import LOOK_SECONDS, stopped_holder, trouble
from netlib.wire.conversation import START_SECONDS
from netlib.wire.protocol import NAMESPACES, error_from_json

__all__ = ["start_daemon"]

_UNIT = "netlibd.service"
_UNIT_FOLDERS = ("/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
_READY_FD = 3
_READ_SIZE = 1 << 12


def start_daemon(config: Config | None = None, *, deadline: float = START_SECONDS) -> None:
    """Start netlibd unless one runs, and return when it answers; two callers at once get the same one.

    Raises the error that netlibd reported (WrongHost, NotPermitted, StoreError), DaemonError when it ended without a report,
    Stuck when there is one that is stopped, HostExhausted, DeadlineExceeded.
    """
    config = config or Config.from_environment()
    if os.geteuid() != 0:
        raise NotPermitted("netlibd must be started by root: run this with sudo")
    if _is_systemds(config):
        _start_unit(deadline)
    else:
        _spawn(config, deadline)


def _is_systemds(config: Config) -> bool:
    """Whether systemd has our unit and would start it in this network namespace."""
    if (str(config.state_dir), str(config.run_dir)) != (DEFAULT_STATE_DIR, DEFAULT_RUN_DIR):
        return False
    if not os.path.isdir("/run/systemd/system") or not any(os.path.exists(f"{folder}/{_UNIT}") for folder in _UNIT_FOLDERS):
        return False
    return all(os.path.samestat(os.stat(f"/proc/1/ns/{kind}"), os.stat(f"/proc/thread-self/ns/{kind}")) for kind in NAMESPACES)


def _start_unit(deadline: float) -> None:
    import subprocess

    try:
        done = subprocess.run(["systemctl", "start", _UNIT], capture_output=True, text=True, timeout=deadline)
    except subprocess.TimeoutExpired as error:
        raise DeadlineExceeded(
            f"systemctl start {_UNIT} took more than {deadline:.0f} s; see `systemctl status {_UNIT}`"
        ) from error
    if done.returncode:
        raise DaemonError(f"systemctl start {_UNIT} failed: {done.stderr.strip()}")


def _spawn(config: Config, deadline: float) -> None:
    """Start netlibd detached: the spawned process forks and ends, and its child reports over a socket when it answers."""
    import signal
    import sys

    ours, theirs = socket.socketpair()
    with ours, theirs, translated_scarcity():
        arguments = ["--detach", "--state-dir", str(config.state_dir), "--run-dir", str(config.run_dir)]
        process = os.posix_spawn(
            os.path.abspath(sys.executable),
            [sys.executable, "-P", "-m", "netlib.daemon", *arguments],
            _environment(),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, 0, 1),
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), 2),  # for an interpreter that cannot even begin
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), _READY_FD),
            ],
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD],
        )
        theirs.close()
        try:
            report = _read_report(ours, config, time.monotonic() + deadline)
        except BaseException:
            os.kill(process, signal.SIGKILL)
            raise
        finally:
            with suppress(ChildProcessError):  # a program that embeds netlib may ignore SIGCHLD
                os.waitpid(process, 0)  # the spawned process, which ended as soon as it had forked
    for line in report.splitlines():
        if line.startswith("{"):
            answer = json.loads(line)
            if "error" in answer:
                raise error_from_json(answer["error"])
            return
    last = report.strip().splitlines()[-1:] or ["no reason given"]
    raise DaemonError(f"netlibd did not start: {last[0]}; see {config.log_file}")


def _read_report(ours: socket.socket, config: Config, until: float) -> str:
    """The report of the starting daemon, up to its one line of JSON or to its end."""
    report = b""
    while not (report.endswith(b"}\n") and report.splitlines()[-1].startswith(b"{")):
        ours.settimeout(max(min(until - time.monotonic(), LOOK_SECONDS), 0.001))
        try:
            data = ours.recv(_READ_SIZE)
        except TimeoutError as error:
            if pid := stopped_holder(config.starting_file):
                raise Stuck(f"netlibd did not get ready: {trouble(pid)}") from error
            if time.monotonic() < until:
                continue
            raise DeadlineExceeded("netlibd did not get ready in time; it may still be starting") from error
        if not data:
            break
        report += data
    return report.decode(errors="replace")


def _environment() -> dict[str, str]:
    """The environment that netlibd needs, without anything of the caller's session."""
    package_root = os.path.abspath(f"{os.path.dirname(__file__)}/../..")
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
    if os.path.basename(package_root) not in ("site-packages", "dist-packages"):  # a checkout
        environment["PYTHONPATH"] = package_root
    return environment
