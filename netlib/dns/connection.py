"""One client's TCP connection: queries in, answers out, each behind two bytes of length (RFC 1035 section 4.2.2).

A client can hold up nobody but itself: every read and write returns at once, what is buffered for it is bounded, and it is
closed when it has sent no whole query for ``IDLE_SECONDS`` (CVE-2024-8418 was a resolver that waited for such a client).
"""

import socket
from collections.abc import Callable

from netlib.dns.loop import READABLE, WRITABLE, Loop
from netlib.dns.message import MAX_DATAGRAM

__all__ = ["IDLE_SECONDS", "Connection", "Reply"]

# RFC 7766 section 6.2.3 asks for "a few seconds". An answer from upstream takes 4 at most, so none is cut off.
IDLE_SECONDS = 10.0
# Beyond these we stop reading from the client until it has taken its answers. One answer may pass the first of them.
_MAX_UNSENT = 65536
_MAX_PENDING = 16
_LENGTH_SIZE = 2

Reply = Callable[[bytes], None]


class Connection:
    """Reads queries and hands each to *respond* with the function that takes its answer, at once or later, in any order.

    ``peer`` is the client's address; *ended* is called once, when the connection is closed.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        peer: str,
        respond: Callable[[bytes, Reply], None],
        ended: Callable[["Connection"], None],
    ) -> None:
        self.peer = peer
        self._loop = loop
        self._sock = sock
        self._respond = respond
        self._ended = ended
        self._received = bytearray()
        self._unsent = bytearray()
        self._pending = 0
        self._finished = False  # the client will send no more, but may wait for answers
        self._closed = False
        self._taking = False
        self._events = READABLE
        self._progressed = True
        loop.watch(sock.fileno(), self._on_ready)
        self._timer = loop.after(IDLE_SECONDS, self._on_deadline)

    def close(self) -> None:
        """Close at once; answers still to come are dropped."""
        if self._closed:
            return
        self._closed = True
        self._timer.cancel()
        self._loop.forget(self._sock.fileno())
        self._sock.close()
        self._ended(self)

    def _on_deadline(self) -> None:
        """Two strikes: a whole query since the last look buys another term, so idleness ends after one to two of them."""
        if not self._progressed:
            self.close()
            return
        self._progressed = False
        self._timer = self._loop.after(IDLE_SECONDS, self._on_deadline)

    def _on_ready(self, events: int) -> None:
        try:
            if events & ~WRITABLE and self._may_read():
                data = self._sock.recv(MAX_DATAGRAM)
                self._finished = not data
                self._received += data
            self._take_queries()
            self._send()
        except BlockingIOError:
            return
        except OSError:  # reset by the client
            self.close()

    def _may_read(self) -> bool:
        return not self._finished and self._pending < _MAX_PENDING and len(self._unsent) < _MAX_UNSENT

    def _take_queries(self) -> None:
        if self._taking:  # an answer given at once
            return
        self._taking = True
        while not self._closed and self._pending < _MAX_PENDING and len(self._unsent) < _MAX_UNSENT:
            length = int.from_bytes(self._received[:_LENGTH_SIZE], "big")
            if len(self._received) < _LENGTH_SIZE:
                break
            if length > MAX_DATAGRAM:  # no query is that long; to wait for it would be to buffer it
                self.close()
            elif len(self._received) >= _LENGTH_SIZE + length:
                query = bytes(self._received[_LENGTH_SIZE : _LENGTH_SIZE + length])
                del self._received[: _LENGTH_SIZE + length]
                self._progressed = True
                self._pending += 1
                self._respond(query, self._reply)
            else:
                break
        self._taking = False

    def _reply(self, message: bytes) -> None:
        """Take one answer; empty when there is none to give."""
        self._pending -= 1
        if self._closed:
            return
        if message:
            self._unsent += len(message).to_bytes(_LENGTH_SIZE, "big") + message
        if self._taking:  # the caller sends when it is through
            return
        self._on_ready(0)

    def _send(self) -> None:
        if self._closed:
            return
        if self._unsent:
            try:
                del self._unsent[: self._sock.send(self._unsent)]
            except BlockingIOError:
                pass  # as much as fits is with the kernel; the rest waits for WRITABLE
        if self._finished and not self._unsent and not self._pending:
            self.close()
            return
        events = (READABLE if self._may_read() else 0) | (WRITABLE if self._unsent else 0)
        if events != self._events:
            self._events = events
            self._loop.rewatch(self._sock.fileno(), events)
