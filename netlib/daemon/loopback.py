"""Published TCP ports on ``[::1]``: netlibd accepts the connections and passes their bytes on to the container.

The kernel does not forward packets to ``::1``, so no firewall rule can do this. Only processes of the host can connect there.
One rule: nothing blocks. One thread copies what is ready; while one side does not read, the other side is not read either.
"""

import errno
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from netlib.dns.loop import READABLE, WRITABLE, Loop
from netlib.kernel.descriptors import lifted

__all__ = ["ForwardedPort", "LoopbackForwarder"]

ADDRESS = "::1"
MAX_PAIRS = 512
_WAITED_FOR = 64  # listeners that `forward` opens before it returns, at 0.02 ms each
_BACKLOG = 128
_BUFFER = 1 << 16
_CONNECT_SECONDS = 10.0
_ACCEPT_PAUSE_SECONDS = 1.0
_RESET = struct.pack("=ii", 1, 0)  # struct linger: on, 0 seconds
_NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class ForwardedPort(NamedTuple):
    """A host port to listen on, the descriptor of the socket that holds it, and the container's address and port."""

    port: int
    held: int
    target: tuple[str, int]


def _listen_beside(descriptor: int, port: int) -> socket.socket:
    """Listen on ``[::1]:port`` although *descriptor* holds the port on every address. Raise OSError.

    Both sockets need SO_REUSEADDR while the second one binds. It is cleared afterwards, or a third socket could bind as well.
    """
    listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    held = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, fileno=descriptor)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, True)
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
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, False)
        held.detach()
    return listener


class LoopbackForwarder:
    """Forwards connections to published ports on ``[::1]``, in a thread that is started with the first listener."""

    def __init__(self) -> None:
        self._loop: Loop | None = None
        self._listeners: dict[str, set[socket.socket]] = {}  # by owner
        self._pairs: dict[_Pair, socket.socket] = {}  # with the listener that accepted the connection

    def forward(self, owner: str, ports: Sequence[ForwardedPort]) -> None:
        """Forward connections to *ports* for *owner*; of more than 64, the listeners are opened after this has returned."""
        if ports:
            loop = self._loop = self._loop or Loop("netlibd-loopback")
            run = loop.call if len(ports) <= _WAITED_FOR else loop.post
            run(partial(self._listen, loop, owner, ports))

    def withdraw(self, owner: str) -> None:
        """Close the listeners of *owner* and the connections that they accepted."""
        if self._loop is not None:
            self._loop.call(partial(self._close_listeners, self._loop, owner))

    def close(self) -> None:
        """End the thread. The listeners must have been closed by :meth:`withdraw`."""
        if self._loop is not None:
            self._loop.stop()
            self._loop = None

    def _listen(self, loop: Loop, owner: str, ports: Sequence[ForwardedPort]) -> None:
        listeners = self._listeners.setdefault(owner, set())
        for port in ports:
            try:
                listener = lifted(_listen_beside(port.held, port.port))
            except OSError:  # a host without IPv6
                continue
            listeners.add(listener)
            loop.watch(listener.fileno(), partial(self._accept, loop, listener, port.target))

    def _close_listeners(self, loop: Loop, owner: str) -> None:
        listeners = self._listeners.pop(owner, set())
        for pair in [pair for pair, origin in self._pairs.items() if origin in listeners]:
            pair.close()
        for listener in listeners:
            loop.forget(listener.fileno())
            listener.close()

    def _accept(self, loop: Loop, listener: socket.socket, target: tuple[str, int], events: int) -> None:
        try:
            client = lifted(listener.accept()[0])
            # The TIME-WAIT that this connection leaves for a minute inherits the option; without it the port could not be held
            # again during that minute.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, True)
        except OSError as error:
            if error.errno in _NO_DESCRIPTORS:  # the connection stays in the backlog, and epoll would report it at once again
                loop.rewatch(listener.fileno(), 0)
                loop.after(_ACCEPT_PAUSE_SECONDS, partial(self._resume, loop, listener))
            return
        if len(self._pairs) >= MAX_PAIRS:
            client.close()
            return
        try:
            pair = _Pair(loop, client, target, self._ended)
        except OSError:
            client.close()
            return
        self._pairs[pair] = listener

    @staticmethod
    def _resume(loop: Loop, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            loop.rewatch(listener.fileno(), READABLE)

    def _ended(self, pair: "_Pair") -> None:
        self._pairs.pop(pair, None)


class _Flow:
    """One direction of a connection: the bytes read from *source* that *sink* has not taken yet."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.buffer = bytearray()
        self.ended = False  # the source will send no more
        self.closed = False  # and the sink has been told

    def move(self) -> None:
        """Read and write as much as is possible without blocking. Raises OSError when one side has closed."""
        if not self.ended and len(self.buffer) < _BUFFER:
            with suppress(BlockingIOError):
                data = self.source.recv(_BUFFER)
                self.ended = not data
                self.buffer += data
        if self.buffer:
            with suppress(BlockingIOError):
                del self.buffer[: self.sink.send(self.buffer)]
        if self.ended and not self.buffer and not self.closed:
            self.sink.shutdown(socket.SHUT_WR)
            self.closed = True

    @property
    def source_events(self) -> int:
        """The events to wait for on the source."""
        return READABLE if not self.ended and len(self.buffer) < _BUFFER else 0

    @property
    def sink_events(self) -> int:
        """The events to wait for on the sink."""
        return WRITABLE if self.buffer else 0


class _Pair:
    """A connection from a process of the host, and the one to the container that its bytes are copied to."""

    def __init__(self, loop: Loop, client: socket.socket, target: tuple[str, int], ended: Callable[["_Pair"], None]) -> None:
        """Begin to connect to *target*. Raises OSError where that fails at once, and leaves *client* open."""
        self._loop = loop
        self._client = client
        self._ended = ended
        client.setblocking(False)
        self._server = lifted(socket.socket(socket.AF_INET6 if ":" in target[0] else socket.AF_INET, socket.SOCK_STREAM))
        self._server.setblocking(False)
        code = self._server.connect_ex(target)
        if code not in (0, errno.EINPROGRESS):
            self._server.close()
            raise OSError(code, "connect")
        self._flows = (_Flow(client, self._server), _Flow(self._server, client))
        self._events = {client: 0, self._server: 0}
        self._deadline = loop.after(_CONNECT_SECONDS, self.close)
        self._open = True
        self._wait_for(self._server, WRITABLE)

    def close(self) -> None:
        """Close both connections; incomplete ones are reset, because a half-closed connection would keep the port in use."""
        if not self._open:
            return
        self._open = False
        self._deadline.cancel()
        is_complete = all(flow.closed for flow in self._flows)
        for sock in (self._client, self._server):
            self._wait_for(sock, 0)
            if not is_complete:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            sock.close()
        self._ended(self)

    def _on_ready(self, events: int) -> None:
        self._deadline.cancel()  # connected or refused; a refusal is raised by the first read
        there, back = self._flows
        try:
            there.move()
            back.move()
        except OSError:
            self.close()
            return
        if there.closed and back.closed:
            self.close()
            return
        self._wait_for(self._client, there.source_events | back.sink_events)
        self._wait_for(self._server, back.source_events | there.sink_events)

    def _wait_for(self, sock: socket.socket, events: int) -> None:
        """Wait for *events* of *sock*; without events it is not watched, since epoll reports its hang-up in any case."""
        before, self._events[sock] = self._events[sock], events
        if events and not before:
            self._loop.watch(sock.fileno(), self._on_ready, events)
        elif before and not events:
            self._loop.forget(sock.fileno())
        elif events != before:
            self._loop.rewatch(sock.fileno(), events)
