"""netlibd from the caller's side: ask it, start it, or do the work in this process where it is not there.

One rule: the work is done here only when the daemon certainly has not begun it (nobody listens, the request did not reach it
whole, it answered "not mine"). Every command imports this module, so it imports the standard library's small modules only.

How requests and answers look is :mod:`netlib.wire`'s.
"""

import json
import os
import socket
import struct
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from netlib import __version__
from netlib.config import DEFAULT_RUN_DIR, DEFAULT_STATE_DIR, Config
from netlib.errors import ConfigError, DaemonError, DeadlineExceeded, NetlibError, NotPermitted
from netlib.wire import (
    ABOUT_ITSELF,
    LENGTH,
    MAX_ANSWER,
    NAMESPACES,
    PROTOCOL,
    at_socket,
    error_from_json,
    frame,
    release,
    store_identity,
)

if TYPE_CHECKING:
    from netlib.plan import KernelObject

__all__ = ["DaemonWatcher", "call", "leave", "start_daemon"]

DEADLINE_SECONDS = 120.0  # two locks of 60 s, the longest that a verb may wait
START_SECONDS = 20.0
TELL_SECONDS = 30.0

LOG_NAME = "netlibd.log"
_UNIT = "netlibd.service"
_UNIT_FOLDERS = ("/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
_READY_FD = 3

_CREDENTIALS = struct.Struct("=iII")  # pid, uid, gid
_TIMEVAL = struct.Struct("@ll")
_READ_SIZE = 1 << 16

Progress = Callable[[Any], None]


def call(
    config: Config | None,
    verb: str,
    args: dict[str, Any],
    *,
    fds: Sequence[int] = (),
    start: bool = False,
    deadline: float = DEADLINE_SECONDS,
    progress: Progress | None = None,
) -> Any:
    """Have *verb* done by netlibd, or here where netlibd is not there or not ours, and return its JSON result.

    *config* None means the environment's. *fds* are lent to the verb, which finds their numbers in ``args["fds"]``. *start*
    starts netlibd first when it is not there; one that was killed is started again in any case. *deadline* is in seconds
    for all of it. *progress* is told ``{"moment": "ensured" | "removed", "object": key}`` as the kernel changes.

    Raises what the verb raises; DeadlineExceeded when no answer came in time (the work may still be done); DaemonError when
    netlibd broke off (what it left half done is undone by the next command).
    """
    config = config or Config.from_environment()
    _check_text([str(config.state_dir), str(config.run_dir), args])
    until = time.monotonic() + deadline
    for _ in range(2):  # twice: an older netlibd is replaced and asked again
        connection = _reach(config, until, start=start)
        if connection is None:
            break
        try:
            return connection.ask(verb, args, until, fds=fds, progress=progress)
        except Unsent:
            continue
        except NotMine as answer:
            if not answer.is_older:
                break
            _replace(connection, config, until)
        finally:
            connection.close()
    return _perform_here(config, verb, args, fds, progress)


def _check_text(value: Any) -> None:
    """Raise ConfigError for a text that came in bytes which are no UTF-8: neither the store nor JSON can keep it."""
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise ConfigError(f"{value!r} is no UTF-8 text, and nothing else can be kept; spell it in UTF-8")
    elif isinstance(value, dict):
        _check_text([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for item in value:
            _check_text(item)


def leave(config: Config | None = None, *, deadline: float = START_SECONDS) -> bool:
    """Ask netlibd to end, and wait until it has; False when it is not there. What the kernel holds stays as it is."""
    until = time.monotonic() + deadline
    try:
        connection = Connection(config or Config.from_environment(), until)
    except OSError:
        return False
    try:
        connection.see_out(until)
    finally:
        connection.close()
    return True


# --- one conversation --------------------------------------------------------------------------------------------------


class BrokenOff(DaemonError):
    """netlibd ended between the request and its answer."""


class Unsent(Exception):
    """The request did not reach netlibd whole, so nothing of it was done."""


class NotMine(Exception):
    """netlibd refused the request before it began: other namespaces, another store, another version."""

    def __init__(self, reason: str, version: str) -> None:
        super().__init__(reason)
        self.version = version

    @property
    def is_older(self) -> bool:
        """Whether that netlibd was left over from before an upgrade."""
        return release(self.version) < release(__version__)


class Connection:
    """One conversation with netlibd, for one thread, one request at a time."""

    def __init__(self, config: Config, until: float) -> None:
        """Connect. Raises OSError where nobody listens, DaemonError when the listener is neither root nor ourselves."""
        self._state_dir = config.state_dir
        self._buffer = bytearray()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Not settimeout: with it a connect to a full backlog fails at once instead of waiting.
            left = max(until - time.monotonic(), 0.001)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(int(left), int(left % 1 * 1e6)))
            at_socket(config, self._socket.connect)
            self.pid, uid, _ = _CREDENTIALS.unpack(
                self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
            if uid not in (0, os.geteuid()):
                raise DaemonError(f"{config.socket_path} belongs to user {uid}, not to root: it is not netlibd's; remove it")
        except BlockingIOError as error:
            self._socket.close()
            raise DeadlineExceeded(f"netlibd does not accept connections on {config.socket_path}") from error
        except BaseException:
            self._socket.close()
            raise

    def ask(
        self, verb: str, args: dict[str, Any], until: float, *, fds: Sequence[int] = (), progress: Progress | None = None
    ) -> Any:
        """Send one request and wait for its result. Raises Unsent, NotMine, and what :func:`call` says."""
        request = {
            "protocol": PROTOCOL,
            "version": __version__,
            "store": store_identity(self._state_dir),
            "progress": progress is not None,
            "verb": verb,
            "args": args,
        }
        self._send(frame(request), () if verb.startswith(ABOUT_ITSELF) else NAMESPACES, fds, until)
        while True:
            answer = self._receive(verb, until)
            if "progress" in answer:
                if progress is not None:
                    progress(answer["progress"])
            elif "error" in answer:
                raise error_from_json(answer["error"])
            elif "not_mine" in answer:
                raise NotMine(answer["not_mine"], answer.get("version", ""))
            else:
                return answer.get("result")

    def see_out(self, until: float) -> None:
        """Ask this netlibd to end, and wait until it has. Raises DeadlineExceeded."""
        try:
            self.ask("daemon.leave", {}, until)
            while self._read("daemon.leave", until):
                pass
        except (Unsent, ConnectionResetError):
            return

    def close(self) -> None:
        self._socket.close()

    def _send(self, data: bytes, namespaces: Sequence[str], fds: Sequence[int], until: float) -> None:
        own = [os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in namespaces]
        try:
            self._socket.settimeout(max(until - time.monotonic(), 0.001))
            sent = socket.send_fds(self._socket, [data], [*own, *fds]) if own or fds else 0
            if sent < len(data):
                self._socket.sendall(data[sent:])
        except TimeoutError as error:
            raise DeadlineExceeded(f"netlibd (pid {self.pid}) did not take the request in time") from error
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Unsent from error
        finally:
            for fd in own:
                os.close(fd)

    def _receive(self, verb: str, until: float) -> dict[str, Any]:
        while (size := self._frame_size(verb)) > len(self._buffer):
            try:
                data = self._read(verb, until)
            except ConnectionResetError as error:  # the kernel says so when it closed without having read what we sent
                raise Unsent from error
            if not data:
                raise BrokenOff(
                    f"netlibd (pid {self.pid}) ended during {verb!r}; what it left half done is undone by the next command"
                )
            self._buffer += data
        answer: dict[str, Any] = json.loads(self._buffer[LENGTH.size : size])
        del self._buffer[:size]
        return answer

    def _frame_size(self, verb: str) -> int:
        """How many bytes the next frame has, with its length; only that length's while it is not there."""
        if len(self._buffer) < LENGTH.size:
            return LENGTH.size
        size = LENGTH.size + int(LENGTH.unpack_from(self._buffer)[0])
        if size > MAX_ANSWER:
            raise DaemonError(f"netlibd (pid {self.pid}) answered {verb!r} with {size} bytes, more than {MAX_ANSWER}")
        return size

    def _read(self, verb: str, until: float) -> bytes:
        self._socket.settimeout(max(until - time.monotonic(), 0.001))
        try:
            return self._socket.recv(_READ_SIZE)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"netlibd (pid {self.pid}) did not answer {verb!r} in time; see `netlib log` for how it ended"
            ) from error


# --- reaching it -------------------------------------------------------------------------------------------------------


def _reach(config: Config, until: float, *, start: bool) -> Connection | None:
    """A connection, or None where there is no netlibd and *start* does not ask for one."""
    try:
        return Connection(config, until)
    except ConnectionRefusedError:  # a socket without a listener: it was killed, and whoever needed it still does
        try:
            start_daemon(config, deadline=until - time.monotonic())
        except NetlibError:
            if start:
                raise
            return None
    except OSError:
        if not start:
            return None
        start_daemon(config, deadline=until - time.monotonic())
    try:
        return Connection(config, until)
    except OSError as error:
        raise DaemonError(f"netlibd was started and is gone again; see {config.run_dir / LOG_NAME}") from error


def _replace(connection: Connection, config: Config, until: float) -> None:
    """Let the older netlibd at the other end leave, and start this version's."""
    connection.see_out(until)
    start_daemon(config, deadline=until - time.monotonic())


def _perform_here(config: Config, verb: str, args: dict[str, Any], fds: Sequence[int], progress: Progress | None) -> Any:
    from netlib.controller import Controller
    from netlib.kernel.descriptors import raise_limit
    from netlib.verbs import perform

    raise_limit()
    with Controller(config, observer=progress_observer(progress) if progress else None) as controller:
        return perform(controller, verb, {**args, "fds": list(fds)} if fds else args)


def progress_observer(progress: Progress) -> "Callable[[str, KernelObject], None]":
    """An observer for a Controller that tells *progress* what :func:`call` promises."""

    def observe(moment: str, item: "KernelObject") -> None:
        if moment in ("ensured", "removed"):
            progress({"moment": moment, "object": str(item.key)})

    return observe


# --- starting it -------------------------------------------------------------------------------------------------------


def start_daemon(config: Config | None = None, *, deadline: float = START_SECONDS) -> None:
    """See that netlibd runs, and come back when it answers; two callers at once end with one daemon.

    Raises what stopped it (WrongHost, NotPermitted, StoreError), DaemonError when it ended without a word, DeadlineExceeded.
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
    """Start it detached: what we spawn forks once more and ends, and its child tells us over a socket when it answers."""
    import signal
    import sys

    ours, theirs = socket.socketpair()
    with ours, theirs:
        arguments = ["--detach", "--state-dir", str(config.state_dir), "--run-dir", str(config.run_dir)]
        process = os.posix_spawn(
            os.path.abspath(sys.executable),
            [sys.executable, "-P", "-m", "netlib.daemon", *arguments],
            _environment(),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, 0, 1),
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), 2),  # an interpreter that cannot even begin says why
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), _READY_FD),
            ],
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD],
        )
        theirs.close()
        try:
            report = _read_report(ours, time.monotonic() + deadline)
        except BaseException:
            os.kill(process, signal.SIGKILL)
            raise
        finally:
            with suppress(ChildProcessError):  # a host program may leave its children to the kernel
                os.waitpid(process, 0)  # the one in between: it ended as soon as it had forked
    for line in report.splitlines():
        if line.startswith("{"):
            answer = json.loads(line)
            if "error" in answer:
                raise error_from_json(answer["error"])
            return
    last = report.strip().splitlines()[-1:] or ["no reason given"]
    raise DaemonError(f"netlibd did not start: {last[0]}; see {config.run_dir / LOG_NAME}")


def _read_report(ours: socket.socket, until: float) -> str:
    """What the starting daemon says, up to its one line of JSON or to its end."""
    report = b""
    while not (report.endswith(b"}\n") and report.splitlines()[-1].startswith(b"{")):
        ours.settimeout(max(until - time.monotonic(), 0.001))
        try:
            data = ours.recv(_READ_SIZE)
        except TimeoutError as error:
            raise DeadlineExceeded("netlibd did not get ready in time; it may still be starting") from error
        if not data:
            break
        report += data
    return report.decode(errors="replace")


def _environment() -> dict[str, str]:
    """Only what netlibd needs, so that nothing of the caller's session stays with it."""
    package_root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
    if os.path.basename(package_root) not in ("site-packages", "dist-packages"):  # a checkout
        environment["PYTHONPATH"] = package_root
    return environment


# --- telling it what changed -------------------------------------------------------------------------------------------


class DaemonWatcher:
    """Tells netlibd which records changed, and comes back when it serves them: :class:`netlib.controller.Watcher`.

    One connection is kept open. It belongs to the thread and the process that made it; a forked child makes its own.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._connection: Connection | None = None
        self._pid = os.getpid()

    def changed(self, *, sandboxes: Collection[str], networks: Collection[str], needed: bool) -> None:
        """Let netlibd read these records again; where it is not there it is started if *needed*.

        Raises DaemonError and what :func:`start_daemon` raises, when *needed*: the kernel then has what was asked, but
        nobody serves names and holds ports yet.
        """
        args = {"sandboxes": list(sandboxes), "networks": list(networks), "needed": needed}
        try:
            self._tell(args, needed)
        except NetlibError:
            self.close()
            if needed:
                raise

    def close(self) -> None:
        """Close the connection; the next change opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tell(self, args: dict[str, Any], needed: bool) -> None:
        until = time.monotonic() + TELL_SECONDS
        for _ in range(3):  # a kept connection whose daemon is gone; an older version; then a true answer
            connection = self._connected(until, needed)
            if connection is None:
                return
            try:
                connection.ask("daemon.changed", args, until)
                return
            except Unsent:
                self.close()
            except BrokenOff:  # it ended meanwhile; to read records once more does no harm
                self.close()
            except NotMine as answer:
                if not answer.is_older:
                    raise DaemonError(
                        f"names and ports are not served: netlibd (pid {connection.pid}) says: {answer}"
                    ) from answer
                _replace(connection, self._config, until)
                self.close()
        raise DaemonError(
            f"names and ports are not served: netlibd broke off three times; see {self._config.run_dir / LOG_NAME}"
        )

    def _connected(self, until: float, needed: bool) -> Connection | None:
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self.close()
        if self._connection is None:
            self._connection = _reach(self._config, until, start=needed)
        return self._connection
