"""One call of a CNI plugin that a launcher asks netlibd to do: the request, the answer, and what no answer means.

Imported by the Python launcher, which imports next to nothing (a test lists its modules), for a runtime waits for it.
"""

import posix  # os itself takes longer than all the rest
import sys
import time
from _socket import (  # socket itself imports enum and selectors
    AF_UNIX,
    SCM_RIGHTS,
    SO_PEERCRED,
    SO_SNDTIMEO,
    SOCK_CLOEXEC,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)

from cni_plugins.launcher.wire import DONE, NETNS, NOT_MINE, STDIN, pack, unpack
from netlib import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "NO_MEMORY",
    "SILENT",
    "Answer",
    "LauncherCall",
    "Lost",
    "NotBegun",
    "encoded",
    "error_object",
    "lost_answer",
    "write_all",
]

NAMESPACES = ("net", "mnt", "user")
MAX_REQUEST = 4 << 20  # netlib.wire.protocol's
MAX_ANSWER = 64 << 20
GREETING_SECONDS = 1.0
_GREETING, _LONGEST_GREETING = b'{"netlibd":', 256
_LENGTH = 4
_INT, _LONG = 4, 8 if sys.maxsize > 1 << 32 else 4  # bytes of a descriptor's number, of each half of a timeval

Answer = tuple[bytes, int, bytes]
"""What to write on stdout, the exit code, what to write on stderr."""


class NotBegun(Exception):
    """netlibd certainly has not begun the call. *release* is the version of a netlibd that refused, empty where none answered.

    *is_absent*: there is no netlibd. *is_silent*: there is one, but it did not greet.
    """

    def __init__(self, reason: str, release: str = "", *, is_absent: bool = False, is_silent: bool = False) -> None:
        super().__init__(reason)
        self.release = release
        self.is_absent = is_absent
        self.is_silent = is_silent


class Lost(Exception):
    """netlibd may have begun the call and gave no answer; *msg* and *details* tell the caller, with the code 11."""

    def __init__(self, msg: str, details: str) -> None:
        super().__init__(msg)
        self.msg = msg
        self.details = details


SILENT = "netlibd does not greet"
NO_MEMORY = "too little memory is left for the call", "free some, or raise the limit, and try again"
_UNTAKEN = "netlibd did not take the call in time", "nothing was done; try again"
_STOPPED = "netlibd is stopped, with the call begun"
_LOOK_SECONDS, _MOST_LOOKS, _LEAST_SECONDS = 1.0, 3, 0.001  # between looks at a netlibd that says nothing
_UNANSWERED = "netlibd did not answer in time", "it may still do the call; try again, and see `netlib log`"
_ENDED = "netlibd ended during the call", "what it left half done is undone by the next call; try again"
_UNREADABLE = (
    "netlibd gave an answer that cannot be read",
    "it may have done the call; try again, and see `netlib log`",
)


def lost_answer(lost: Lost) -> Answer:
    """The answer to the caller of a call that netlibd did not answer: the code 11, "try again later"."""
    return error_object(11, lost.msg, lost.details), 1, b""


def error_object(code: int, msg: str, details: str) -> bytes:
    """An error object; both texts are our own and need no escapes."""
    text = f'{{\n    "cniVersion": "1.1.0",\n    "code": {code},\n    "msg": "{msg}",\n    "details": "{details}"\n}}\n'
    return text.encode()


class LauncherCall:
    """One call of a plugin type: its environment, its stdin, and the netns that CNI_NETNS led to."""

    def __init__(
        self,
        kind: str,
        environ: "Mapping[bytes, bytes]",
        stdin: bytes | None,
        netns: int | None,
        *,
        state_dir: bytes,
        run_dir: bytes,
        until: float,
    ) -> None:
        """*netns* is a descriptor; *until* is on the monotonic clock."""
        self.kind = kind
        self.environ = environ
        self.stdin = stdin
        self.netns = netns
        self.state_dir = state_dir
        self.run_dir = run_dir
        self._until = until

    def ask(self) -> Answer:
        """Have netlibd do the call. Raises NotBegun, Lost."""
        greeted_by = time.monotonic() + GREETING_SECONDS
        sock = self._connected()
        try:
            self._hear_greeting(sock, greeted_by)
            self._send(sock)
            return self._answer(sock)
        finally:
            sock.close()

    @property
    def seconds_left(self) -> float:
        """Until the deadline; never 0, by which a socket would not wait at all."""
        return max(self._until - time.monotonic(), _LEAST_SECONDS)

    def _connected(self) -> socket:
        try:
            folder = posix.open(self.run_dir, posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
        except OSError as error:
            raise NotBegun(f"{_decoded(self.run_dir)}: {error.strerror}", is_absent=True) from None
        try:
            sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
            # Not settimeout: with it a connect to a full backlog fails at once instead of waiting.
            patience = int(GREETING_SECONDS).to_bytes(_LONG, sys.byteorder) + bytes(_LONG)
            sock.setsockopt(SOL_SOCKET, SO_SNDTIMEO, patience)
            sock.connect(f"/proc/self/fd/{folder}/control.sock")  # the folder's path may be too long for a socket's address
            credentials = sock.getsockopt(SOL_SOCKET, SO_PEERCRED, 3 * _INT)
        except BlockingIOError:  # its backlog is full, so it accepts nobody
            raise NotBegun(SILENT, is_silent=True) from None
        except OSError as error:
            raise NotBegun(f"netlibd cannot be reached: {error.strerror}", is_absent=True) from None
        finally:
            posix.close(folder)
        user = int.from_bytes(credentials[_INT : 2 * _INT], sys.byteorder)
        if user not in (0, posix.geteuid()):
            raise NotBegun(f"{_decoded(self.run_dir)}/control.sock belongs to user {user}, not to root")
        return sock

    def _hear_greeting(self, sock: socket, by: float) -> None:
        """Wait for netlibd's greeting before anything is sent: the kernel accepts connections for a stopped netlibd, too."""
        heard, size = b"", _LENGTH
        while len(heard) < size:
            sock.settimeout(max(by - time.monotonic(), 0.001))
            try:
                data = sock.recv(size - len(heard))
            except TimeoutError:
                raise NotBegun(SILENT, is_silent=True) from None
            except OSError as error:
                raise NotBegun(f"netlibd cannot be reached: {error.strerror}", is_absent=True) from None
            if not data:
                raise NotBegun("netlibd closed the connection", is_absent=True)
            heard += data
            if len(heard) == _LENGTH:
                size += int.from_bytes(heard, "big")
                if size > _LENGTH + _LONGEST_GREETING:  # the rest of it would be taken for the answer
                    break
        if not heard.startswith(_GREETING, _LENGTH):
            raise NotBegun(f"{_decoded(self.run_dir)}/control.sock is not netlibd's")

    def _send(self, sock: socket) -> None:
        lent = {STDIN: _memory_file(self.stdin)} if self.stdin is not None else {}
        if self.netns is not None:
            lent[NETNS] = self.netns
        namespaces: list[int] = []
        try:
            namespaces.extend(posix.open(f"/proc/self/ns/{name}", posix.O_RDONLY | posix.O_CLOEXEC) for name in NAMESPACES)
            data = self._request(b" ".join(lent))
            numbers = b"".join(fd.to_bytes(_INT, sys.byteorder) for fd in (*namespaces, *lent.values()))
            sock.settimeout(self.seconds_left)
            sent = sock.sendmsg([data], [(SOL_SOCKET, SCM_RIGHTS, numbers)])
            if sent < len(data):
                sock.sendall(data[sent:])
        except TimeoutError:
            raise Lost(*_UNTAKEN) from None
        except OSError as error:
            raise NotBegun(f"the request did not reach netlibd: {error.strerror}", is_absent=True) from None
        finally:
            for fd in namespaces:
                posix.close(fd)
            if STDIN in lent:
                posix.close(lent[STDIN])

    def _request(self, lent: bytes) -> bytes:
        body = pack(
            __version__.encode(),
            self._store(),
            lent,
            encoded(self.kind),
            *(name + b"=" + value for name, value in self.environ.items()),
        )
        if len(body) > MAX_REQUEST:
            raise NotBegun(f"an environment of {len(body)} bytes is more than netlibd takes")
        return len(body).to_bytes(_LENGTH, "big") + body

    def _store(self) -> bytes:
        try:
            found = posix.stat(self.state_dir + b"/netlib.db")
        except OSError:
            return b""
        return b"%d:%d" % (found.st_dev, found.st_ino)

    def _answer(self, sock: socket) -> Answer:
        try:
            start = self._receive(sock, _LENGTH)
        except ConnectionResetError:  # netlibd closed its end before it had read all of the request
            raise NotBegun("netlibd ended before it had the request", is_absent=True) from None
        size = int.from_bytes(start, "big")
        if size > MAX_ANSWER:
            raise Lost(*_UNREADABLE)
        try:
            outcome, *rest = unpack(self._receive(sock, size))
            if outcome == NOT_MINE:
                reason, release = rest
                raise NotBegun(reason.decode(), release.decode())
            code, stdout, stderr = rest
            if outcome != DONE or len(code) != 1:
                raise Lost(*_UNREADABLE)
        except ConnectionResetError:
            raise Lost(*_ENDED) from None
        except ValueError:
            raise Lost(*_UNREADABLE) from None
        return stdout, code[0], stderr

    def _receive(self, sock: socket, size: int) -> bytes:
        received = b""
        looks = 0  # in a row that found netlibd stopped
        while len(received) < size:
            sock.settimeout(min(self.seconds_left, _LOOK_SECONDS))
            try:
                data = sock.recv(size - len(received))
            except TimeoutError:
                looks = looks + 1 if (pid := _stopped_peer(sock)) else 0
                if looks >= _MOST_LOOKS:
                    remedy = f"continue it by `kill -CONT {pid}`, or end it by `kill -KILL {pid}`"
                    raise Lost(_STOPPED, f"it finishes the call when it continues; {remedy}") from None
                if self.seconds_left > _LEAST_SECONDS:
                    continue
                raise Lost(*_UNANSWERED) from None
            except ConnectionResetError:
                if not received:
                    raise
                raise Lost(*_ENDED) from None
            if not data:
                raise Lost(*_ENDED)
            received += data
        return received


def _stopped_peer(sock: socket) -> int:
    """The pid of the process at the other end, if it is stopped; else 0."""
    pid = int.from_bytes(sock.getsockopt(SOL_SOCKET, SO_PEERCRED, 3 * _INT)[:_INT], sys.byteorder)
    try:
        fd = posix.open(f"/proc/{pid}/stat", posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return 0
    try:
        state = posix.read(fd, 512).rpartition(b")")[2].split()[:1]
    except OSError:
        state = []
    finally:
        posix.close(fd)
    return pid if state and state[0] in (b"T", b"t") else 0


def encoded(text: str) -> bytes:
    """A path or an argument as the kernel gave it."""
    return text.encode(errors="surrogateescape")


def _decoded(path: bytes) -> str:
    return path.decode(errors="surrogateescape")


def _memory_file(content: bytes) -> int:
    try:
        fd = posix.memfd_create("cni-stdin")
        try:
            write_all(fd, content)
        except OSError:
            posix.close(fd)
            raise
    except OSError as error:
        raise NotBegun(f"stdin cannot be kept in memory: {error.strerror}") from None
    return fd


def write_all(fd: int, data: bytes) -> None:
    """Write all of *data*; OSError says what stopped it."""
    left = memoryview(data)
    while left:
        left = left[posix.write(fd, left) :]
