"""The client's side of a connection to a minder: it passes input, output, signals and the terminal's size to the exit code."""

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
from netlib.runtime.terminal import DetachKeys, RawMode, size

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)

DETACHED = "read escape sequence"  # what Docker prints then
_CONTROL = "@abcdefghijklmnopqrstuvwxyz[\\]^_"  # the code of ctrl and a character is the character's index here


class Detached(Exception):
    """The detach keys were pressed; the container keeps running."""


def parse_detach_keys(text: str) -> bytes:
    """Read ``--detach-keys``: keys separated by commas (``a``, ``ctrl-p``, ``DEL``); an empty text means ctrl-p,ctrl-q."""
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
    """Return two connected sockets: one for :func:`relay`, one to pass to the minder at its start."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


@contextmanager
def _short_path(path: Path) -> Iterator[str]:
    """Provide a path to the same socket of less than 108 bytes, which is all that a socket address can hold."""
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


def listen(path: Path) -> socket.socket:
    """Return a listening socket for the minder; the socket file of a former minder is replaced."""
    make_folder(path.parent, PRIVATE)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _short_path(path) as name:
            listener.bind(name)
            os.chmod(name, PRIVATE_FILE)
        listener.listen(16)
    except BaseException:
        listener.close()
        raise
    return listener


def connect(path: Path, *, output: bool) -> socket.socket:
    """Connect to a minder, with or without its container's output; NotFound when no minder listens."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _short_path(path) as name:
            connection.connect(name)
        if output:
            connection.send(ATTACH)
    except BaseException as error:
        connection.close()
        if isinstance(error, FileNotFoundError | ConnectionError):
            raise NotFound(f"the container has ended (no minder listens at {path}); start it first") from error
        raise
    return connection


def wait(connection: socket.socket, seconds: float | None = None) -> int | None:
    """Wait for the container's end and return its exit code, or None when the minder died. Raises DeadlineExceeded."""
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


class _SignalPipe:
    """A pipe that gets the number of each signal as a byte, in place of the signal's usual action, while it is entered.

    In another thread than the main one, where Python sets no handlers, the pipe stays empty.
    """

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
    """Pass input to the container and output from it until it ends; return its exit code.

    *forward* is called with each signal that arrives. Raises DaemonError when the minder dies, Detached when *keys* are pressed
    on a terminal.
    """
    detach_keys = DetachKeys(keys if tty else b"")
    wanted = (*FORWARDED, signal.SIGWINCH) if tty else FORWARDED
    terminal = stdin if stdin is not None else stdout
    with _SignalPipe(wanted) as signals, RawMode(stdin if tty and stdin is not None else -1):
        if tty:
            _send_size(connection, terminal)
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
                        _send_size(connection, terminal)
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
    """Send a message if that does not block; return the message if it has to be sent later, else empty bytes."""
    try:
        connection.send(message, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return message
    except ConnectionError:  # reported by the next _receive
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


def _send_size(connection: socket.socket, terminal: int) -> None:
    rows, columns = size(terminal)
    if rows and columns:
        _send(connection, RESIZE + f"{rows} {columns}".encode())
