"""The caller's side of a container's minder: passing input, output, signals and the terminal's size, until the exit code."""

import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from netlib.errors import ConfigError, DaemonError, DeadlineExceeded, NotFound
from netlib.kernel.folders import PRIVATE, PRIVATE_FILE, make_folder
from netlib.runtime.shim import ATTACH, CHUNK, END_OF_INPUT, ERROR, EXITED, INPUT, OUTPUT, RESIZE
from netlib.runtime.terminal import DetachKeys, Raw, size

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)

DETACHED = "read escape sequence"  # Docker's words for it
_CONTROL = "@abcdefghijklmnopqrstuvwxyz[\\]^_"  # each with ctrl is its place in this line


class Detached(Exception):
    """The keys that detach were pressed; the container goes on."""


def parse_detach_keys(text: str) -> bytes:
    """Read ``--detach-keys``: characters, ``ctrl-`` and one, or ``DEL``, with commas between; empty is ctrl-p,ctrl-q."""
    keys = bytearray()
    for key in (text or "ctrl-p,ctrl-q").split(","):
        if len(key) == 1 and key.isascii():
            keys.append(ord(key))
        elif len(key) == 6 and key.startswith("ctrl-") and key[5] in _CONTROL:
            keys.append(_CONTROL.index(key[5]))
        elif key == "DEL":
            keys.append(127)
        else:
            raise ConfigError(
                f"--detach-keys {text!r}: {key!r} is no key; write keys like a, ctrl-p, ctrl-@ or DEL, with commas"
            )
    return bytes(keys)


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends: one for :func:`relay`, one to hand to the minder at its start."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


@contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """A name for a socket that fits into its 108 bytes, however long *path* is."""
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


def listen(path: Path) -> socket.socket:
    """The socket that the minder will answer on; one left by a former minder is replaced."""
    make_folder(path.parent, PRIVATE)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _reachable(path) as name:
            listener.bind(name)
            os.chmod(name, PRIVATE_FILE)
        listener.listen(16)
    except BaseException:
        listener.close()
        raise
    return listener


def connect(path: Path, *, output: bool) -> socket.socket:
    """Reach a minder, with or without its container's output; NotFound when there is none (any more)."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _reachable(path) as name:
            connection.connect(name)
        if output:
            connection.send(ATTACH)
    except BaseException as error:
        connection.close()
        if isinstance(error, FileNotFoundError | ConnectionError):
            raise NotFound(f"nobody minds the container at {path.parent}: it has ended") from error
        raise
    return connection


def wait(connection: socket.socket, seconds: float | None = None) -> int | None:
    """The exit code, when the container ends; None when its minder went away without telling. Raises DeadlineExceeded."""
    connection.settimeout(None if seconds is None else max(seconds, 0.001))
    try:
        while message := connection.recv(CHUNK + 1):
            if message[:1] == EXITED:
                return int(message[1:])
    except TimeoutError as error:
        raise DeadlineExceeded(f"the container has not ended within {seconds:g} s") from error
    except ConnectionError:
        return None
    return None


class _Signals:
    """While entered in the main thread, signals are noted for the loop in place of what they do else."""

    def __init__(self, wanted: tuple[signal.Signals, ...]) -> None:
        self.wanted = wanted if threading.current_thread() is threading.main_thread() else ()

    def __enter__(self) -> int:
        self.read, self.write = os.pipe()
        os.set_blocking(self.write, False)
        if self.wanted:
            self.before = {number: signal.signal(number, lambda *_: None) for number in self.wanted}
            self.before_fd = signal.set_wakeup_fd(self.write, warn_on_full_buffer=False)
        return self.read

    def __exit__(self, *error: object) -> None:
        if self.wanted:
            signal.set_wakeup_fd(self.before_fd)
            for number, handler in self.before.items():
                signal.signal(number, handler)
        os.close(self.read)
        os.close(self.write)


def relay(
    connection: socket.socket,
    *,
    stdin: int | None,
    stdout: int,
    stderr: int,
    tty: bool,
    forward: Callable[[int], None],
    keys: bytes = b"",
) -> int:
    """Be the container's terminal or its pipes until it ends; return its exit code.

    *forward* is given the signals that come meanwhile. Raises DaemonError when the minder dies, Detached when *keys* are
    pressed on a terminal.
    """
    detach_keys = DetachKeys(keys if tty else b"")
    wanted = (*FORWARDED, signal.SIGWINCH) if tty else FORWARDED
    terminal = stdin if stdin is not None else stdout
    with _Signals(wanted) as signals, Raw(stdin if tty and stdin is not None else -1):
        if tty:
            _tell_size(connection, terminal)
        pending, is_detached = b"", False
        while True:
            poll = select.poll()
            poll.register(connection, select.POLLIN | (select.POLLOUT if pending else 0))
            poll.register(signals, select.POLLIN)
            if stdin is not None and not pending:
                poll.register(stdin, select.POLLIN)
            ready = dict(poll.poll())
            if signals in ready:
                for number in os.read(signals, 64):
                    if number == signal.SIGWINCH:
                        _tell_size(connection, terminal)
                    else:
                        forward(number)
            if stdin is not None and stdin in ready:
                data = os.read(stdin, CHUNK)
                passed, is_detached = detach_keys.take(data)
                pending = INPUT + passed if passed else b"" if data else END_OF_INPUT
                stdin = stdin if data and not is_detached else None
            if pending:
                pending = _send(connection, pending)
            if is_detached and not pending:
                raise Detached
            if ready.get(connection.fileno(), 0) & ~select.POLLOUT:
                code = _receive(connection, stdout, stderr)
                if code is not None:
                    return code


def _send(connection: socket.socket, message: bytes) -> bytes:
    """Send a message if that is possible now; return what is still to be sent."""
    try:
        connection.send(message, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return message
    except ConnectionError:  # the end comes by _receive
        return b""
    return b""


def _receive(connection: socket.socket, stdout: int, stderr: int) -> int | None:
    try:
        message = connection.recv(CHUNK + 1)
    except ConnectionError:
        message = b""
    if not message:
        raise DaemonError("the container's minder died, and the container with it")
    kind, body = message[:1], message[1:]
    if kind == EXITED:
        return int(body)
    if kind in (OUTPUT, ERROR):
        target = stdout if kind == OUTPUT else stderr
        while body:
            body = body[os.write(target, body) :]
    return None


def _tell_size(connection: socket.socket, terminal: int) -> None:
    rows, columns = size(terminal)
    if rows and columns:
        _send(connection, RESIZE + f"{rows} {columns}".encode())
