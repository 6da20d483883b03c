"""One conversation with netlibd, from the caller's side: connected, greeted, one request at a time.

One rule: nothing is sent before netlibd's greeting, so a caller without a greeting knows that netlibd has begun nothing.
:mod:`netlib.wire.protocol` has the form of requests and answers. Every command imports this module: the standard library's
small modules only.
"""

import json
import os
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

from netlib import __version__
from netlib.config import Config
from netlib.errors import DaemonError, DeadlineExceeded, Stuck
from netlib.kernel.waiting import LOOK_SECONDS, holders, is_stopped, meet, trouble
from netlib.wire.frames import Frames, FrameTooLong
from netlib.wire.notices import notice
from netlib.wire.protocol import (
    ABOUT_ITSELF,
    GREETING_SECONDS,
    MAX_ANSWER,
    NAMESPACES,
    PROTOCOL,
    at_socket,
    error_from_json,
    frame,
    release,
    store_identity,
)

__all__ = ["START_SECONDS", "BrokenOff", "Connection", "NotMine", "Progress", "Silent", "Unsent", "known_pid"]

START_SECONDS = 20.0  # for netlibd to get ready, or to end

_CREDENTIALS = struct.Struct("=iII")  # pid, uid, gid
_TIMEVAL = struct.Struct("@ll")
_READ_SIZE = 1 << 16
_MOST_LOOKS = 3

Progress = Callable[[Any], None]


class BrokenOff(DaemonError):
    """netlibd ended between the request and its answer."""


class Unsent(Exception):
    """The request did not reach netlibd whole, so nothing of it was done."""


class Silent(Exception):
    """A netlibd accepted the connection, or its backlog did, and did not greet; nothing was sent."""

    def __init__(self, pid: int) -> None:
        super().__init__(trouble(pid))
        self.pid = pid
        meet(pid)


class NotMine(Exception):
    """netlibd refused the request before it began: other namespaces, another store, another version."""

    def __init__(self, reason: str, version: str) -> None:
        super().__init__(reason)
        self.version = version

    @property
    def is_older(self) -> bool:
        """Whether that netlibd is of an earlier version, and still runs after an upgrade."""
        return release(self.version) < release(__version__)


class Connection:
    """One conversation with netlibd, for one thread, one request at a time."""

    def __init__(self, config: Config, until: float, *, patience: float = GREETING_SECONDS, former: bool = False) -> None:
        """Connect and wait for the greeting, *until* that moment of time.monotonic at most.

        A netlibd that is stopped is given up after a second; one that is only slow has *patience* seconds. With *former*,
        connect to the socket of an earlier netlib, which has no greeting. Raises OSError where nobody listens, Unsent when the
        connection was closed, Silent, DaemonError when the listener is neither root nor ourselves.
        """
        self._state_dir = config.state_dir
        self._frames = Frames(MAX_ANSWER)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        greeted_by = min(until, time.monotonic() + patience)
        try:
            # Not settimeout: with it a connect to a full backlog fails at once instead of waiting.
            left = max(greeted_by - time.monotonic(), 0.001)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(int(left), int(left % 1 * 1e6)))
            path = config.former_socket_path if former else config.socket_path
            at_socket(path, self._socket.connect)
            self.pid, uid, _ = _CREDENTIALS.unpack(
                self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
            if uid not in (0, os.geteuid()):
                raise DaemonError(f"{path} belongs to user {uid}, not to root: it is not netlibd's; remove it")
            if former and is_stopped(self.pid):
                raise Silent(self.pid)
            if not former:
                self._hear_greeting(greeted_by)
        except BlockingIOError as error:
            self._socket.close()
            raise Silent(known_pid(config)) from error
        except BaseException:
            self._socket.close()
            raise

    def _hear_greeting(self, until: float) -> None:
        while missing := self._frames.missing:
            self._socket.settimeout(max(min(until - time.monotonic(), LOOK_SECONDS), 0.001))
            try:
                data = self._socket.recv(missing)  # no more than the greeting: answers follow it
            except TimeoutError as error:
                if time.monotonic() >= until or is_stopped(self.pid):
                    raise Silent(self.pid) from error
                continue
            except ConnectionResetError as error:
                raise Unsent from error
            if not data:
                raise Unsent
            self._feed("the connection", data)
        self._frames.take()

    def ask(
        self,
        verb: str,
        args: dict[str, Any],
        until: float,
        *,
        fds: Sequence[int] = (),
        progress: Progress | None = None,
        repeatable: bool = False,
    ) -> Any:
        """Send one request and wait for its result. Raises Unsent, NotMine, and what :func:`netlib.verbs.call.call` says.

        A *repeatable* request may be done twice without harm: when netlibd is stopped meanwhile, Stuck is raised at once.
        """
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
            answer = self._receive(verb, until, repeatable=repeatable)
            for sentence in answer.get("notices", ()):
                notice(sentence)
            if "progress" in answer:
                if progress is not None:
                    progress(answer["progress"])
            elif "error" in answer:
                raise error_from_json(answer["error"])
            elif "not_mine" in answer:
                raise NotMine(answer["not_mine"], answer.get("version", ""))
            else:
                return answer.get("result")

    def end_netlibd(self, until: float) -> None:
        """Ask this netlibd to end, and wait until it has. Raises DeadlineExceeded, Stuck."""
        try:
            self.ask("daemon.leave", {}, until, repeatable=True)
            while self._read("daemon.leave", until, repeatable=True):
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
            how = f": {trouble(self.pid)}" if is_stopped(self.pid) else ""
            raise DeadlineExceeded(f"netlibd (pid {self.pid}) did not take the request in time{how}") from error
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Unsent from error
        finally:
            for fd in own:
                os.close(fd)

    def _receive(self, verb: str, until: float, *, repeatable: bool) -> dict[str, Any]:
        while (body := self._frames.take()) is None:
            try:
                data = self._read(verb, until, repeatable=repeatable)
            except ConnectionResetError as error:  # netlibd closed its end before it had read the request
                raise Unsent from error
            if not data:
                raise BrokenOff(
                    f"netlibd (pid {self.pid}) ended during {verb!r}; what it left half done is undone by the next command"
                )
            self._feed(verb, data)
        answer: dict[str, Any] = json.loads(body)
        return answer

    def _feed(self, verb: str, data: bytes) -> None:
        try:
            self._frames.feed(data)
        except FrameTooLong as error:
            text = f"netlibd (pid {self.pid}) answered {verb!r} with {error.size} bytes, more than {MAX_ANSWER}"
            raise DaemonError(text) from error

    def _read(self, verb: str, until: float, *, repeatable: bool) -> bytes:
        looks = 0  # in a row that found netlibd stopped
        while True:
            self._socket.settimeout(max(min(until - time.monotonic(), LOOK_SECONDS), 0.001))
            try:
                return self._socket.recv(_READ_SIZE)
            except TimeoutError as error:
                looks = looks + 1 if is_stopped(self.pid) else 0
                if looks and repeatable:
                    raise Stuck(trouble(self.pid)) from error
                if looks >= _MOST_LOOKS:  # longer than a debugger may have stopped it
                    raise Stuck(
                        trouble(self.pid, f", in the middle of {verb!r}, which it finishes when it continues")
                    ) from error
                if time.monotonic() < until:
                    continue
                how = "see `netlib log` for how it ended"
                raise DeadlineExceeded(f"netlibd (pid {self.pid}) did not answer {verb!r} in time; {how}") from error


def known_pid(config: Config) -> int:
    """The pid in netlibd's pid file; 0 where there is none, or where that process does not hold the file's lock.

    A netlibd that was killed leaves its pid in the file, and another process may have that number by now.
    """
    try:
        pid = int(config.pid_file.read_text() or 0)
    except (OSError, ValueError):
        return 0
    return pid if pid in holders(config.pid_file) else 0
