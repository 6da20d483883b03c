"""Published TCP ports on ``[::1]``: the kernel cannot forward what is sent there, so these bytes pass through here.

One rule: nothing waits. One thread moves what is ready; a side that does not read stops the other one from being read. Only
the host's own processes can come by this way.
"""

import errno
import socket
from collections.abc import Callable
from functools import partial

from netlib.dns.loop import READABLE, WRITABLE, Loop, Timer
from netlib.model import IPAddress

__all__ = ["LoopbackForwarder"]

ADDRESS = "::1"
MAX_PAIRS = 512
_BACKLOG = 128
_BUFFER = 1 << 16
_CONNECT_SECONDS = 10.0
_ACCEPT_PAUSE_SECONDS = 1.0
_NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class LoopbackForwarder:
    """Listens on ports of ``[::1]`` and forwards to containers, from a thread that begins with the first port."""

    def __init__(self) -> None:
        self._loop: Loop | None = None
        self._pairs: dict[_Pair, socket.socket] = {}  # each with the listener that it came by

    def listen(self, port: int, address: IPAddress, container_port: int, *, beside: socket.socket) -> socket.socket:
        """Forward ``[::1]:port`` to a container until :meth:`close_listener` of what is returned. Raise OSError.

        *beside* is the socket that holds the port on every address. Both need SO_REUSEADDR while the second one binds, and give it
        up afterwards, or a third could bind too.
        """
        if self._loop is None:
            self._loop = Loop("netlibd-loopback")
        listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        beside.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, True)
        try:
            listener.setblocking(False)
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, True)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, True)
            listener.bind((ADDRESS, port))
            listener.listen(_BACKLOG)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, False)
        except OSError:
            listener.close()
            raise
        finally:
            beside.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, False)
        target = (str(address), container_port)
        self._loop.call(partial(self._loop.watch, listener.fileno(), partial(self._accept, self._loop, listener, target)))
        return listener

    def close_listener(self, listener: socket.socket) -> None:
        """Listen no more; what was connected by it is closed as well."""
        if self._loop is not None:
            self._loop.call(partial(self._close_listener, self._loop, listener))

    def close(self) -> None:
        """Close every connection and end the thread; listeners are closed before."""
        if self._loop is not None:
            self._loop.call(lambda: [pair.close() for pair in list(self._pairs)])
            self._loop.stop()
            self._loop = None

    def _close_listener(self, loop: Loop, listener: socket.socket) -> None:
        loop.forget(listener.fileno())
        for pair in [pair for pair, origin in self._pairs.items() if origin is listener]:
            pair.close()
        listener.close()

    def _accept(self, loop: Loop, listener: socket.socket, target: tuple[str, int], events: int) -> None:
        try:
            client, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in _NO_DESCRIPTORS:  # it stays in the backlog, and we must not spin on it
                loop.rewatch(listener.fileno(), 0)
                loop.after(_ACCEPT_PAUSE_SECONDS, lambda: listener.fileno() >= 0 and loop.rewatch(listener.fileno(), READABLE))
            return
        if len(self._pairs) >= MAX_PAIRS:
            client.close()
            return
        try:
            server = socket.socket(socket.AF_INET6 if ":" in target[0] else socket.AF_INET, socket.SOCK_STREAM)
        except OSError:
            client.close()
            return
        server.setblocking(False)
        client.setblocking(False)
        if server.connect_ex(target) not in (0, errno.EINPROGRESS):
            client.close()
            server.close()
            return
        pair = _Pair(loop, client, server, self._ended)
        self._pairs[pair] = listener

    def _ended(self, pair: "_Pair") -> None:
        self._pairs.pop(pair, None)


class _Flow:
    """One direction: bytes read from one socket and not yet taken by the other."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.buffer = bytearray()
        self.ended = False  # the source will send no more
        self.closed = False  # and the sink has been told

    def move(self) -> None:
        """Move what can be moved now. Raises OSError when a side is gone."""
        if not self.ended and len(self.buffer) < _BUFFER:
            try:
                data = self.source.recv(_BUFFER)
                self.ended = not data
                self.buffer += data
            except BlockingIOError:
                pass
        if self.buffer:
            try:
                del self.buffer[: self.sink.send(self.buffer)]
            except BlockingIOError:
                pass
        if self.ended and not self.buffer and not self.closed:
            self.sink.shutdown(socket.SHUT_WR)
            self.closed = True

    @property
    def wants_source(self) -> bool:
        return not self.ended and len(self.buffer) < _BUFFER

    @property
    def wants_sink(self) -> bool:
        return bool(self.buffer)


class _Pair:
    """A client of the host, and its connection to the container."""

    def __init__(self, loop: Loop, client: socket.socket, server: socket.socket, ended: Callable[["_Pair"], None]) -> None:
        self._loop = loop
        self._client = client
        self._server = server
        self._ended = ended
        self._flows = (_Flow(client, server), _Flow(server, client))
        self._events = {client: 0, server: WRITABLE}
        self._deadline: Timer | None = loop.after(_CONNECT_SECONDS, self.close)
        self._open = True
        loop.watch(client.fileno(), self._on_ready, 0)
        loop.watch(server.fileno(), self._on_connected, WRITABLE)

    def close(self) -> None:
        """Close both sides at once."""
        if not self._open:
            return
        self._open = False
        if self._deadline is not None:
            self._deadline.cancel()
        for sock in (self._client, self._server):
            self._loop.forget(sock.fileno())
            sock.close()
        self._ended(self)

    def _on_connected(self, events: int) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._on_ready(events)

    def _on_ready(self, events: int) -> None:
        if self._deadline is not None:  # the client hung up before the container answered
            self.close()
            return
        try:
            for flow in self._flows:
                flow.move()
        except OSError:
            self.close()
            return
        there, back = self._flows
        if there.closed and back.closed:
            self.close()
            return
        self._wait_for(self._client, there.wants_source, back.wants_sink)
        self._wait_for(self._server, back.wants_source, there.wants_sink)

    def _wait_for(self, sock: socket.socket, readable: bool, writable: bool) -> None:
        events = (READABLE if readable else 0) | (WRITABLE if writable else 0)
        if events != self._events[sock]:
            self._events[sock] = events
            self._loop.rewatch(sock.fileno(), events)
