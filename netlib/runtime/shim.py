"""The minder of one container: it logs the output, serves attached clients, and writes the exit code. ``python -IS``.

It is the parent of the container's process 1, which the kernel kills when the minder ends, so no container runs without a
minder. One rule: it stays small (a test checks its imports). Modules for clients are imported when the first client attaches.

Clients and minder exchange messages (SOCK_SEQPACKET) whose first byte is their kind. To the minder: ``i`` input, ``e`` end of
input, ``r<rows> <columns>`` size of the terminal, ``a`` send me the output. From the minder: ``o`` output, ``s`` standard
error, ``x<code>`` the exit code. While a client does not read its output, the container's output is not read, as with Docker.
"""

from __future__ import annotations

import os
import select
import sys
import time

from netlib.runtime import cgroups

INPUT, END_OF_INPUT, RESIZE, ATTACH, OUTPUT, ERROR, EXITED = b"i", b"e", b"r", b"a", b"o", b"s", b"x"
CHUNK = 32 * 1024
CLAIM = "claimed"  # a file in the container's folder: the process that ends the container cleans up after it as well
_LONGEST_LINE = 16 * 1024  # longer lines are split, as in Docker's logs
# The log leaves this much of the disk free, or a twentieth of a small disk. The store needs some: SQLite's write-ahead log
# grows to 4 MiB before it is written into the database.
_MARGIN_BYTES = 16 << 20
_MARGIN_PART = 20
_ESCAPES = {number: f"\\u{number:04x}" for number in (*range(32), 0x2028, 0x2029)}
_ESCAPES |= {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t", ord('"'): '\\"', ord("\\"): "\\\\"}


class Log:
    """The container's log in the format of Docker's json-file driver, one line of JSON for each line of output.

    It does not fill the disk: while less than 16 MiB (or 5 %) are free, output is not logged, and one line says so.
    """

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._rests: dict[str, bytes] = {}
        self._folder = os.path.dirname(path)
        self._is_losing = False

    def write(self, stream: str, data: bytes) -> None:
        """Log *data*; a line is written when it is complete. Lines that the disk has no room for are lost without an error."""
        lines = (self._rests.get(stream, b"") + data).split(b"\n")
        rest = lines.pop()
        entries = [line + b"\n" for line in lines]
        while len(rest) > _LONGEST_LINE:
            entries.append(rest[:_LONGEST_LINE])
            rest = rest[_LONGEST_LINE:]
        self._rests[stream] = rest
        self._append(stream, entries)

    def close(self) -> None:
        """Write the lines that have no newline yet, and close the file."""
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
        except OSError:  # a part of a line is cut off again, for the next line would be read as its rest
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - (len(data) - left))


def has_room(disk: os.statvfs_result) -> bool:
    """Whether a log may still grow on *disk*."""
    return disk.f_bavail * disk.f_frsize >= min(_MARGIN_BYTES, disk.f_blocks * disk.f_frsize // _MARGIN_PART)


def escape(line: bytes) -> str:
    """Return *line* as the inside of a JSON string, with U+FFFD for bytes that are no UTF-8."""
    return line.decode(errors="replace").translate(_ESCAPES)


def timestamp(nanoseconds: int) -> str:
    """Return a time since the epoch in RFC 3339 with nine decimals."""
    seconds, fraction = divmod(nanoseconds, 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{fraction:09d}Z"


class Client:
    """One attached client: whether it wants the output, and the messages that it has not taken yet."""

    def __init__(self, fd: int, *, wants_output: bool) -> None:
        os.set_blocking(fd, False)
        os.set_inheritable(fd, False)
        self.fd = fd
        self.wants_output = wants_output
        self.pending: list[bytes] = []

    def send(self, message: bytes) -> bool:
        """Queue *message* and send what does not block; False when the client has closed its end."""
        self.pending.append(message)
        return self.flush()

    def flush(self) -> bool:
        """Send queued messages until one would block; False when the client has closed its end."""
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
    """The minder's loop, from the start of the container to its end."""

    def __init__(self, facts: dict[str, str], reap: list[str]) -> None:
        self.facts = facts
        self.reap = reap
        self.pid = int(facts["pid"])
        self.pidfd = os.pidfd_open(self.pid)
        self.listen = int(facts["listen"])
        self.outputs = {int(facts["out"]): "stdout", int(facts["error"]): "stderr"}
        self.feed = int(facts["feed"]) if "feed" in facts else None
        self.is_terminal = self.feed in self.outputs
        self.input = b""  # input that the container has not read yet
        self.input_ended = False
        self.clients: dict[int, Client] = {}
        self.log = Log(f"{facts['folder']}/container.log")
        for fd in (*self.outputs, *([] if self.feed is None else [self.feed]), self.listen):
            os.set_blocking(fd, False)
            os.set_inheritable(fd, False)
        if "client" in facts:
            self._add(Client(int(facts["client"]), wants_output=True))

    def run(self) -> None:
        """Serve the container until it ends, write exit.json, start the clean-up, and send all clients the exit code."""
        while not self._poll_once():
            pass
        _, status = os.waitpid(self.pid, 0)
        for fd in list(self.outputs):
            while self._read_output(fd):
                pass
        self.log.close()
        code = os.waitstatus_to_exitcode(status)
        self._write_exit(code)
        self.input = b""
        for client in list(self.clients.values()):
            self._send(client, EXITED + str(code if code >= 0 else 128 - code).encode())
        is_claimed = os.path.exists(f"{self.facts['folder']}/{CLAIM}")
        reaper = os.posix_spawn(self.reap[0], self.reap, dict(os.environ)) if self.reap and not is_claimed else None
        while any(client.pending for client in self.clients.values()):
            self._poll_once(running=False)
        if reaper is not None:
            os.waitpid(reaper, 0)
        cgroups.leave_minders(cgroups.own_hierarchies())

    # --- the loop ------------------------------------------------------------------------------------------------------

    def _poll_once(self, *, running: bool = True) -> bool:
        """Wait for events and handle them; True when the container has ended."""
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
        """Log a piece of output and send it to the clients; False when there is no more for now."""
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return False
        except OSError:  # EIO: no process has the terminal open any more
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
        """Write input to the container until it would block, and close its standard input at the end of input."""
        if self.feed is None:
            self.input = b""
            return
        try:
            if self.input:
                self.input = self.input[os.write(self.feed, self.input) :]
        except BlockingIOError:
            return
        except OSError:  # no process reads it any more
            self.input, self.input_ended = b"", True
        if self.input_ended and not self.input and not self.is_terminal:
            os.close(self.feed)
            self.feed = None

    # --- clients -------------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        import socket  # here, because it costs 6 ms and 1.4 MB

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

    def _write_exit(self, code: int) -> None:
        """Release the lock and write exit.json; from then on the container has ended and can be started or removed.

        The file names the minder, so that it is not taken for the exit of the next run.
        """
        folder, minder = self.facts["folder"], os.getpid()
        end = f'{{"minder": {minder}, "minder_start": {self.facts["minder_start"]}, "finished": {time.time()},'
        end += f' "code": {code if code >= 0 else 128 - code}, "signal": {max(-code, 0)}}}'
        try:
            fd = os.open(f"{folder}/exit.json.new", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)  # its blocks are there
            os.truncate(fd, os.write(fd, end.encode()))
            os.close(fd)
            is_written = True
        except OSError as error:  # the code is lost for later commands; clients get it, and the clean-up is done
            is_written = False
            _log_error(error)
        try:
            cgroups.remove(self.facts["id"], cgroups.own_hierarchies())
        except (OSError, TimeoutError) as error:  # the groups are removed by `rm`
            _log_error(error)
        os.close(int(self.facts["lock"]))
        if is_written:
            os.rename(f"{folder}/exit.json.new", f"{folder}/exit.json")
        if os.path.exists(self.facts["socket"]):
            os.unlink(self.facts["socket"])
        os.close(self.listen)


def _log_error(error: OSError) -> None:
    """Write *error* into minder.log; a no-op when the disk is full."""
    try:
        os.write(2, f"{error}\n".encode(errors="replace"))
    except OSError:
        return


def main() -> None:
    """Read ``name=value`` facts and, after ``--``, the clean-up command from the command line; serve the container."""
    with open("/proc/self/comm", "w") as file:
        file.write("netlib-minder")
    words = sys.argv[2:]
    split = words.index("--")
    Minder(dict(word.split("=", 1) for word in words[:split]), words[split + 1 :]).run()
