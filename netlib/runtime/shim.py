"""The minder of one container: keeps its output, serves those who attach, keeps how it ended. Runs under ``python -IS``.

It is the parent of the container's process 1, which dies with it, so that no container is ever unminded. Its one rule is to
stay small (a test checks its imports): what serves those who attach later is loaded when they do.

Those attached speak in messages (SOCK_SEQPACKET) whose first byte says what they are: to the minder ``i`` input, ``e`` end of
input, ``r<rows> <columns>`` size of the terminal, ``a`` give me the output; from it ``o`` output, ``s`` standard error,
``x<code>`` the end. While one of them does not take its output, the container's is not read on, as with Docker.
"""

from __future__ import annotations

import os
import select
import sys
import time

from netlib.runtime import cgroups

INPUT, END_OF_INPUT, RESIZE, ATTACH, OUTPUT, ERROR, EXITED = b"i", b"e", b"r", b"a", b"o", b"s", b"x"
CHUNK = 32 * 1024
CLAIM = "claimed"  # a file in the container's folder: whoever ends it clears it away as well
_LONGEST_LINE = 16 * 1024  # longer ones are split, as in Docker's logs
# What the log leaves free: the store's own log grows to 4 MiB before SQLite folds it in; a small disk is not to be useless.
_MARGIN_BYTES = 16 << 20
_MARGIN_PART = 20
_ESCAPES = {number: f"\\u{number:04x}" for number in (*range(32), 0x2028, 0x2029)}
_ESCAPES |= {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t", ord('"'): '\\"', ord("\\"): "\\\\"}


class Log:
    """The container's output in the format of Docker's json-file driver, one line each.

    It is not what fills the disk: with 16 MiB (or 5 %) left, what comes is lost, and one line says so.
    """

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._rests: dict[str, bytes] = {}
        self._folder = os.path.dirname(path)
        self._is_losing = False

    def write(self, stream: str, data: bytes) -> None:
        """Keep *data*; a line waits until it is complete. What the disk cannot take is lost, the container goes on."""
        lines = (self._rests.get(stream, b"") + data).split(b"\n")
        rest = lines.pop()
        entries = [line + b"\n" for line in lines]
        while len(rest) > _LONGEST_LINE:
            entries.append(rest[:_LONGEST_LINE])
            rest = rest[_LONGEST_LINE:]
        self._rests[stream] = rest
        self._append(stream, entries)

    def close(self) -> None:
        """Write down lines without an end."""
        for stream, rest in self._rests.items():
            self._append(stream, [rest] if rest else [])
        os.close(self._fd)

    def _append(self, stream: str, entries: list[bytes]) -> None:
        if not entries:
            return
        if not has_room(os.fstatvfs(self._fd)):
            if self._is_losing:
                return
            note = f"netlib: no space left on the disk of {self._folder}: output is lost from here on, until there is\n"
            stream, entries = "stderr", [note.encode()]
            self._is_losing = True
        else:
            self._is_losing = False
        now = timestamp(time.time_ns())
        text = "".join(f'{{"log":"{escape(entry)}","stream":"{stream}","time":"{now}"}}\n' for entry in entries)
        data = text.encode()
        left = len(data)
        try:
            while left:
                left -= os.write(self._fd, data[len(data) - left :])
        except OSError:  # no part of a line stays, for the next one would be read as its rest
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - (len(data) - left))


def has_room(disk: os.statvfs_result) -> bool:
    """Whether a log may still grow on a disk."""
    return disk.f_bavail * disk.f_frsize >= min(_MARGIN_BYTES, disk.f_blocks * disk.f_frsize // _MARGIN_PART)


def escape(line: bytes) -> str:
    """*line* as the inside of a JSON string; bytes that are no UTF-8 become U+FFFD."""
    return line.decode(errors="replace").translate(_ESCAPES)


def timestamp(nanoseconds: int) -> str:
    """A time since the epoch as RFC 3339 with nine decimals."""
    seconds, fraction = divmod(nanoseconds, 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{fraction:09d}Z"


class Client:
    """Somebody attached: what is still to be sent to it, and whether it wants the output."""

    def __init__(self, fd: int, *, wants_output: bool) -> None:
        os.set_blocking(fd, False)
        os.set_inheritable(fd, False)
        self.fd = fd
        self.wants_output = wants_output
        self.pending: list[bytes] = []

    def send(self, message: bytes) -> bool:
        """Queue *message* and send what goes; False when the other side is gone."""
        self.pending.append(message)
        return self.flush()

    def flush(self) -> bool:
        """Send what waits, as far as it goes; False when the other side is gone."""
        try:
            while self.pending:
                os.write(self.fd, self.pending[0])
                self.pending.pop(0)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


class Minder:
    """The loop, from the start of the container to its end."""

    def __init__(self, facts: dict[str, str], reap: list[str]) -> None:
        self.facts = facts
        self.reap = reap
        self.pid = int(facts["pid"])
        self.pidfd = os.pidfd_open(self.pid)
        self.listen = int(facts["listen"])
        self.outputs = {int(facts["out"]): "stdout", int(facts["error"]): "stderr"}
        self.feed = int(facts["feed"]) if "feed" in facts else None
        self.is_terminal = self.feed in self.outputs
        self.input = b""  # not yet taken by the container
        self.input_ended = False
        self.clients: dict[int, Client] = {}
        self.log = Log(f"{facts['folder']}/container.log")
        for fd in (*self.outputs, *([] if self.feed is None else [self.feed]), self.listen):
            os.set_blocking(fd, False)
            os.set_inheritable(fd, False)
        if "client" in facts:
            self._add(Client(int(facts["client"]), wants_output=True))

    def run(self) -> None:
        """Mind the container to its end, keep how it ended, have it cleared away, stay until all attached know."""
        while not self._turn():
            pass
        _, status = os.waitpid(self.pid, 0)
        for fd in list(self.outputs):
            while self._read_output(fd):
                pass
        self.log.close()
        code = os.waitstatus_to_exitcode(status)
        self._keep_end(code)
        self.input = b""
        for client in list(self.clients.values()):
            self._send(client, EXITED + str(code if code >= 0 else 128 - code).encode())
        is_claimed = os.path.exists(f"{self.facts['folder']}/{CLAIM}")
        reaper = os.posix_spawn(self.reap[0], self.reap, dict(os.environ)) if self.reap and not is_claimed else None
        while any(client.pending for client in self.clients.values()):
            self._turn(running=False)
        if reaper is not None:
            os.waitpid(reaper, 0)
        cgroups.leave_minders(cgroups.own_hierarchies())

    # --- the loop ------------------------------------------------------------------------------------------------------

    def _turn(self, *, running: bool = True) -> bool:
        """Wait for something to happen and see to it; True when the container has ended."""
        poll = select.poll()
        blocked = any(client.pending for client in self.clients.values())
        for fd in self.outputs if running and not blocked else ():
            poll.register(fd, select.POLLIN)
        if running:
            poll.register(self.pidfd, select.POLLIN)
            poll.register(self.listen, select.POLLIN)
        if self.feed is not None and self.input:
            poll.register(self.feed, select.POLLOUT | (select.POLLIN if self.is_terminal and not blocked else 0))
        for client in self.clients.values():
            poll.register(client.fd, (0 if self.input else select.POLLIN) | (select.POLLOUT if client.pending else 0))
        ended = False
        for fd, events in poll.poll():
            if fd == self.pidfd:
                ended = True
            elif fd == self.listen:
                self._accept()
            elif fd in self.clients:
                self._serve(self.clients[fd], events)
            elif events & select.POLLOUT or fd not in self.outputs:
                self._feed()
            if fd in self.outputs and events & ~select.POLLOUT:
                self._read_output(fd)
        return ended

    def _read_output(self, fd: int) -> bool:
        """Pass on a piece of output; False when there is none left for now."""
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return False
        except OSError:  # EIO: the terminal was hung up
            data = b""
        stream = self.outputs[fd]
        if not data:
            del self.outputs[fd]
            return False
        self.log.write(stream, data)
        for client in list(self.clients.values()):
            if client.wants_output:
                self._send(client, (OUTPUT if stream == "stdout" else ERROR) + data)
        return True

    def _feed(self) -> None:
        """Give the container its input, as far as it takes it."""
        if self.feed is None:
            self.input = b""
            return
        try:
            if self.input:
                self.input = self.input[os.write(self.feed, self.input) :]
        except BlockingIOError:
            return
        except OSError:  # nobody reads it
            self.input, self.input_ended = b"", True
        if self.input_ended and not self.input and not self.is_terminal:
            os.close(self.feed)
            self.feed = None

    # --- those attached ------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        import socket  # 6 ms and 1.4 MB

        listener = socket.socket(fileno=self.listen)
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        finally:
            listener.detach()
        self._add(Client(connection.detach(), wants_output=False))

    def _add(self, client: Client) -> None:
        self.clients[client.fd] = client

    def _drop(self, client: Client) -> None:
        if self.clients.pop(client.fd, None) is None:
            return
        os.close(client.fd)
        if client.wants_output and self.facts["keep_stdin"] == "False":  # Docker's StdinOnce
            self.input_ended = True
            self._feed()

    def _send(self, client: Client, message: bytes) -> None:
        if not client.send(message):
            self._drop(client)

    def _serve(self, client: Client, events: int) -> None:
        if events & select.POLLOUT and not client.flush():
            self._drop(client)
            return
        if not events & ~select.POLLOUT:
            return
        try:
            message = os.read(client.fd, CHUNK + 1)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        kind, body = message[:1], message[1:]
        if not message:
            self._drop(client)
        elif kind == ATTACH:
            client.wants_output = True
        elif kind == RESIZE and self.is_terminal:
            self._resize(body)
        elif kind == INPUT:
            self.input += body
            self._feed()
        elif kind == END_OF_INPUT and self.facts["keep_stdin"] == "False":
            self.input_ended = True
            self._feed()

    def _resize(self, body: bytes) -> None:
        import fcntl
        import struct
        import termios

        rows, _, columns = body.partition(b" ")
        if self.feed is not None and rows.isdigit() and columns.isdigit():
            fcntl.ioctl(self.feed, termios.TIOCSWINSZ, struct.pack("HHHH", int(rows) & 0xFFFF, int(columns) & 0xFFFF, 0, 0))

    # --- the end -------------------------------------------------------------------------------------------------------

    def _keep_end(self, code: int) -> None:
        """Give up the lock and write exit.json: from then on the container is an ended one, and may be started or removed.

        It names the minder, so that it is not taken for the end of the next run.
        """
        folder, minder = self.facts["folder"], os.getpid()
        end = f'{{"minder": {minder}, "minder_start": {self.facts["minder_start"]}, "finished": {time.time()},'
        end += f' "code": {code if code >= 0 else 128 - code}, "signal": {max(-code, 0)}}}'
        try:
            fd = os.open(f"{folder}/exit.json.new", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)  # it has room already
            os.truncate(fd, os.write(fd, end.encode()))
            os.close(fd)
            is_kept = True
        except OSError as error:  # the code is lost, but those attached are told and all is cleared away
            is_kept = False
            _note(error)
        try:
            cgroups.remove(self.facts["id"], cgroups.own_hierarchies())
        except (OSError, TimeoutError) as error:  # the folder goes with `rm`; the end is told all the same
            _note(error)
        os.close(int(self.facts["lock"]))
        if is_kept:
            os.rename(f"{folder}/exit.json.new", f"{folder}/exit.json")
        if os.path.exists(self.facts["socket"]):
            os.unlink(self.facts["socket"])
        os.close(self.listen)


def _note(error: OSError) -> None:
    """Write it into the minder's own log, if that takes anything: the disk may be full."""
    try:
        os.write(2, f"{error}\n".encode(errors="replace"))
    except OSError:
        return


def main() -> None:
    """Read ``name=value`` facts and, after ``--``, the command that clears away; mind the container."""
    with open("/proc/self/comm", "w") as file:
        file.write("netlib-minder")
    words = sys.argv[2:]
    split = words.index("--")
    Minder(dict(word.split("=", 1) for word in words[:split]), words[split + 1 :]).run()
