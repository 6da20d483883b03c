"""Run another command in a running container: ``python -IS``, executed in the place of the caller's process or as its child.

The caller passes a pidfd of the container's process 1 and a readable descriptor with the configuration. This process enters the
container's namespaces, and its child executes the command. Output passes through pipes or a pseudo terminal of the container,
so that the container gets no descriptor of a terminal of the host. The exit code is the command's, 126 or 127 as Docker's, or 1
where the container ended before the command began.
"""

from __future__ import annotations

import errno
import marshal  # both ends are the same interpreter
import os
import select
import signal
import sys

from netlib.runtime import init, process
from netlib.runtime.terminal import DetachKeys, RawMode, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

CHUNK = 32 * 1024
_BEGUN = b"+"  # the child writes this before it looks for the command; a later failure is the command's
_BEGIN_SECONDS = 10
NOT_RUNNING = 1  # the container does not run: the exit code of every verb then
NOT_RUN = 126  # the command was not started, as with Docker; 127 where there is no such command
_ALL = process.CLONE_NEWNS | process.CLONE_NEWUTS | process.CLONE_NEWIPC | process.CLONE_NEWNET | process.CLONE_NEWPID
_ALL |= process.CLONE_NEWCGROUP


class _NotBegun(process.CommandRefused):
    """The child failed before it looked for the command, perhaps because the container was ending."""


def main() -> None:
    """Read the numbers of the descriptors from the command line, run the command, and end with its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    pidfd, config_fd = int(sys.argv[2]), int(sys.argv[3])
    process.hide()
    process.close_others(pidfd, config_fd)  # the command could leave the container by a folder of the host that is open
    with open(config_fd, "rb") as file:
        config = marshal.load(file)  # noqa: S302  written by our caller
    try:
        os._exit(_enter(config, pidfd))
    except BrokenPipeError:  # the reader of our output has closed it: end as by SIGPIPE
        os._exit(128 + process.SIGPIPE)
    except init.FAILURES as error:
        # While the container is ending, each step can fail with another errno: ESRCH, ENOMEM, ENODEV, ENOENT.
        is_of_the_command = isinstance(error, process.CommandRefused) and not isinstance(error, _NotBegun)
        if not is_of_the_command and _has_ended(pidfd):
            os.write(2, f"netlib: {config['refusal']}\n".encode())
            os._exit(NOT_RUNNING)
        code, _, sentence = init.explain(error).decode().partition(" ")
        os.write(2, f"netlib: {sentence}\n".encode())
        os._exit(max(int(code), NOT_RUN))


def _has_ended(pidfd: int) -> bool:
    """Whether the container's process 1 has ended or ends within a second."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(1000))


def _enter(config: dict[str, Any], pidfd: int) -> int:
    groups = [os.open(f"{path}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC) for path in config["groups"]]
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    process.forbid_imports()
    process.setns(pidfd, _ALL)
    terminal, number = process.open_master("/dev/pts/ptmx", *size(0)) if config["tty"] else (None, "")
    stdin, feed = os.pipe() if config["stdin"] and terminal is None else (None, None)
    out, out_write = os.pipe()
    error, error_write = os.pipe()
    status, status_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        _become_command(config, groups, [stdin, out_write, error_write], number, status_write)
    for fd in (out_write, error_write, status_write, *groups, *([] if stdin is None else [stdin])):
        os.close(fd)
    answer = _read_status(status, pid)
    if answer != _BEGUN:
        os.waitpid(pid, 0)  # at once, because the container's process 1 ends only when all processes in it are waited for
        if not answer:
            raise ProcessLookupError(errno.ESRCH, "it was killed before the command began")
        number, _, sentence = answer.removeprefix(_BEGUN).decode(errors="replace").partition(" ")
        refusal = process.CommandRefused if answer.startswith(_BEGUN) else _NotBegun
        raise refusal(int(number), sentence)
    if config["detach"]:
        return 0
    if terminal is not None:
        relay = _Relay(pid, {terminal: 1}, terminal if config["stdin"] else None, terminal, config["detach_keys"])
        with RawMode(0 if config["stdin"] else -1):
            relay.run()
        if relay.detached:
            return _detach(relay, null)
    else:
        _Relay(pid, {out: 1, error: 2}, feed, None).run()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code


def _read_status(status: int, pid: int) -> bytes:
    """Read the child's status pipe until the child executes the command or ends.

    A process in the container may have stopped the child: after 10 seconds it is killed, and CommandRefused raised.
    """
    answer = b""
    poll = select.poll()
    poll.register(status, select.POLLIN)
    while poll.poll(_BEGIN_SECONDS * 1000):
        chunk = os.read(status, 4096)
        if not chunk:
            return answer
        answer += chunk
    os.kill(pid, process.SIGKILL)
    os.waitpid(pid, 0)
    raise process.CommandRefused(NOT_RUN, f"the container kept the command from beginning for {_BEGIN_SECONDS} s")


def _detach(relay: _Relay, null: int) -> int:
    """Fork a child that keeps reading the command's terminal, so that it does not block; return the caller's exit code."""
    os.write(2, b"read escape sequence\n")
    if os.fork():
        return 1
    os.setsid()
    for fd in range(3):
        os.dup2(null, fd)
    relay.reading = False
    relay.run()
    os._exit(0)


def _become_command(config: dict[str, Any], groups: list[int], stdio: list[int | None], terminal: str, status: int) -> NoReturn:
    """Turn the forked child into the command; *stdio* holds the descriptors for 0 to 2, None for the null device."""
    message = init.UNEXPECTED
    try:
        for fd in groups:
            os.write(fd, b"0")
        os.setsid()
        os.umask(0o022)
        if config["detach"]:
            stdio = [None, None, None]
        elif terminal:
            slave = process.take_terminal(f"/dev/pts/{terminal}")
            stdio = [slave, slave, slave]
        os.write(status, _BEGUN)
        init.run_command(config, stdio, status)
    except init.FAILURES as error:
        message = init.explain(error)
    finally:
        os.write(status, message)
        os._exit(1)


class _Relay:
    """Copies output and input until the command has ended and all its output is written, or until the detach keys."""

    def __init__(
        self, pid: int, outputs: dict[int, int], feed: int | None, terminal: int | None, detach_keys: bytes = b""
    ) -> None:
        self.pidfd = os.pidfd_open(pid)
        self.outputs = outputs
        self.feed = feed
        self.terminal = terminal
        self.pending = b""  # input that the command has not taken yet
        self.reading = feed is not None  # whether our standard input is read
        self.ended = False
        self.detached = False
        self.detach_keys = DetachKeys(detach_keys)
        if feed is not None:
            os.set_blocking(feed, False)
        self.resized = -1 if terminal is None else _watch_size()

    def run(self) -> None:
        """Copy until the command's end or the detach keys; return then."""
        while self.outputs:
            ready = dict(self._interests().poll(0 if self.ended else None))
            if self.ended and not ready.keys() & self.outputs.keys():
                return
            self.ended = self.ended or self.pidfd in ready
            if self.terminal is not None and self.resized in ready:
                os.read(self.resized, 64)
                process.set_size(self.terminal, *size(0))
            for fd in ready.keys() & self.outputs.keys():
                if ready[fd] & ~select.POLLOUT and not _pass_on(fd, self.outputs[fd]):
                    del self.outputs[fd]
            if self.pending and self.feed in ready:
                self._write()
            elif 0 in ready:
                self._read()
            if self.detached and self.reading and not self.pending:
                return

    def _interests(self) -> select.poll:
        poll = select.poll()
        for fd in self.outputs:
            poll.register(fd, select.POLLIN)
        if not self.ended:
            poll.register(self.pidfd, select.POLLIN)
        if self.pending and self.feed is not None:
            poll.register(self.feed, select.POLLOUT | (select.POLLIN if self.feed in self.outputs else 0))
        elif self.reading and not self.ended:
            poll.register(0, select.POLLIN)
        if self.resized >= 0:
            poll.register(self.resized, select.POLLIN)
        return poll

    def _read(self) -> None:
        data = os.read(0, CHUNK)
        self.pending, self.detached = self.detach_keys.take(data)
        if data:
            return
        self.reading = False
        if self.feed is not None and self.feed != self.terminal:
            os.close(self.feed)
            self.feed = None

    def _write(self) -> None:
        if self.feed is None:
            return
        try:
            self.pending = self.pending[os.write(self.feed, self.pending) :]
        except BlockingIOError:
            return
        except OSError:  # no process reads it any more
            self.pending, self.reading = b"", False


def _pass_on(fd: int, target: int) -> bool:
    try:
        data = os.read(fd, CHUNK)
    except BlockingIOError:
        return True
    except OSError:  # EIO: no process has the terminal open any more
        data = b""
    rest = data
    while rest:
        rest = rest[os.write(target, rest) :]
    return bool(data)


def _watch_size() -> int:
    """Return a descriptor that is readable after each change of our terminal's size."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.signal(signal.SIGWINCH, lambda *_: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    return read
