"""One client's TCP connection: queries in, answers out, each behind two bytes of length (RFC 1035 section 4.2.2).

A client can delay only itself: every read and write returns at once, its buffers are bounded, its queries are answered in its
party's turns, and its connection is closed when it has sent no whole query for ``IDLE_SECONDS`` to twice that (CVE-2024-8418
was a resolver that waited for such a client).
"""

import select
import socket
from collections.abc import Callable

from netlib.dns.loop import READABLE, WRITABLE, Loop
from netlib.dns.message import HEADER_SIZE, MAX_DATAGRAM
from netlib.dns.turns import Party

__all__ = ["IDLE_SECONDS", "Connection", "Reply"]

# RFC 7766 section 6.2.3 asks for "a few seconds". An answer from upstream takes 4 at most, so none comes too late.
IDLE_SECONDS = 10.0
# Beyond these limits nothing is read from the client until it has received answers. One answer may exceed the first limit.
_MAX_UNSENT = 65536
_MAX_PENDING = 16
_LENGTH_SIZE = 2
_BROKEN = select.EPOLLERR | select.EPOLLHUP  # reported for any socket, so without closing it for ever

Reply = Callable[[bytes], None]


class Connection:
    """Reads queries and calls *respond* with each and with a function for its answer, to be called now or later, in any order.

    ``party`` is charged for the time; *ended* is called once, when the connection is closed.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        party: Party,
        respond: Callable[[bytes, Reply], None],
        ended: Callable[["Connection"], None],
    ) -> None:
        self.party = party
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
        self._cut_off = False  # the turn ended while there were queries to answer
        self._events = READABLE
        self._progressed = False
        loop.watch(sock.fileno(), self._on_ready, party=party)
        self._timer = loop.after(IDLE_SECONDS, self._on_deadline)

    def close(self) -> None:
        """Close at once; later answers are dropped."""
        if self._closed:
            return
        self._closed = True
        self._timer.cancel()
        self._loop.forget(self._sock.fileno())
        self._sock.close()
        self._ended(self)

    def _on_deadline(self) -> None:
        """Close, unless the client has sent a whole query since the last deadline; then set another one."""
        if not self._progressed:
            self.close()
            return
        self._progressed = False
        self._timer = self._loop.after(IDLE_SECONDS, self._on_deadline)

    def _on_ready(self, events: int) -> None:
        """Read once, and answer as many queries as the turn has time for."""
        try:
            if events & _BROKEN:
                self.close()
            elif events & READABLE and not self._cut_off and self._wants_more():
                data = self._sock.recv(MAX_DATAGRAM)
                self._finished = not data
                self._received += data
        except BlockingIOError:
            return
        except OSError:
            self.close()
        self._advance()

    def _advance(self) -> None:
        """Answer queries and send answers, each of which makes room for the other, until the turn ends."""
        while self._take_queries() and not self._cut_off:
            self._send()
        self._send()
        if self._cut_off and not self._closed:
            self._loop.again(self._sock.fileno())

    def _has_room(self) -> bool:
        return self._pending < _MAX_PENDING and len(self._unsent) < _MAX_UNSENT

    def _wants_more(self) -> bool:
        return not self._finished and self._has_room()

    def _take_queries(self) -> bool:
        """Call *respond* with the whole queries received, as far as time and limits allow; return whether there were any."""
        taken = self._cut_off = False
        self._taking = True
        while not self._closed and self._has_room():
            if taken and self._loop.turn_is_over():
                self._cut_off = True
                break
            if len(self._received) < _LENGTH_SIZE:
                break
            length = int.from_bytes(self._received[:_LENGTH_SIZE], "big")
            if not HEADER_SIZE <= length <= MAX_DATAGRAM:  # it cannot be a query, nor is it a reason to wait longer
                self.close()
                break
            end = _LENGTH_SIZE + length
            if len(self._received) < end:
                break
            query = bytes(self._received[_LENGTH_SIZE:end])
            del self._received[:end]
            taken = self._progressed = True
            self._pending += 1
            self._respond(query, self._reply)
        self._taking = False
        return taken

    def _reply(self, message: bytes) -> None:
        """Queue one answer; an empty *message* means that there is none."""
        self._pending -= 1
        if self._closed:
            return
        if message:
            self._unsent += len(message).to_bytes(_LENGTH_SIZE, "big") + message
        if not self._taking:  # else _advance is running, and sends it
            self._advance()

    def _send(self) -> None:
        if self._closed:
            return
        if self._unsent:
            try:
                del self._unsent[: self._sock.send(self._unsent)]
            except BlockingIOError:
                pass  # the kernel's buffer is full: wait for WRITABLE
            except OSError:
                self.close()
                return
        if self._finished and not self._unsent and not self._pending and not self._cut_off:
            self.close()
            return
        # Also when the turn was cut off, which saves two system calls a turn.
        events = (READABLE if self._wants_more() else 0) | (WRITABLE if self._unsent else 0)
        if events != self._events:
            self._events = events
            self._loop.rewatch(self._sock.fileno(), events)
