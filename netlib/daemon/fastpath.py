"""The control socket: it receives requests and sends answers, and no bytes of a peer can end netlibd.

One thread waits for all connections (:meth:`ControlServer.run`) and sends each a greeting at once, so a client without a
greeting knows that netlibd is stopped. That thread performs no verbs: a complete request is passed to a bounded pool of
workers, and its connection is not read again before the answer is sent. The peer's user is checked by SO_PEERCRED, its
namespaces by the descriptors sent with the request. :mod:`netlib.daemon.dialects` reads requests and writes answers.
"""

import array
import logging
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from netlib.daemon import dialects
from netlib.daemon.dialects import Malformed, Request, read_request
from netlib.daemon.workers import Workers
from netlib.errors import ConfigError, DaemonError, NetlibError
from netlib.kernel.descriptors import lifted
from netlib.kernel.scarcity import exhaustion
from netlib.wire.frames import Frames, FrameTooLong
from netlib.wire.protocol import (
    MAX_FDS,
    MAX_REQUEST,
    error_to_json,
    frame,
    greeting,
)

__all__ = ["ControlServer", "Refused", "Request"]

MAX_PEERS = 1024
WORKERS = 32  # verbs mostly wait: for locks, for the kernel, for a container to stop
QUICK_WORKERS = 4  # for `daemon.` verbs: their caller may hold a lock that all other workers wait for
BACKLOG = 1024
_READ_SIZE = 1 << 16
_FRAME_SECONDS = 10.0  # from the first byte of a request to its last one
_ANSWER_SECONDS = 30.0  # until the peer has taken an answer
_CREDENTIALS = struct.Struct("=iII")
_ERROR_EVENTS = select.EPOLLHUP | select.EPOLLERR

logger = logging.getLogger(__name__)


_BEFORE_ALL = "0"
"""A version that is older than any other: what an Outdated netlibd says it is."""


class Refused(Exception):
    """This netlibd cannot perform the request; it answers "not mine", and nothing of the verb was begun."""


class Outdated(Refused):
    """This netlibd runs code that was replaced on the disk; the caller has another one started, as after an upgrade."""


Handler = Callable[[Request], Any]


class _Peer:
    """One connection, and the part of the next request that has arrived."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.frames = Frames(MAX_REQUEST)
        self.fds: list[int] = []
        self.begun = 0.0  # when the first byte of an incomplete request arrived (monotonic), 0 without one
        self.busy = False
        self.used = time.monotonic()  # when it was accepted, or when its last answer was sent
        self.leaving = False

    @property
    def idle(self) -> bool:
        return not (self.busy or self.begun or self.leaving)

    def read(self) -> bool:
        """Read what has arrived; False when the peer has closed the connection. Raises Malformed, OSError."""
        data, ancillary, flags, _ = self.sock.recvmsg(_READ_SIZE, socket.CMSG_SPACE(MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC)
        for level, kind, body in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers = array.array("i")
                numbers.frombytes(body[: len(body) - len(body) % numbers.itemsize])
                self.fds.extend(numbers)
        if flags & socket.MSG_CTRUNC or len(self.fds) > MAX_FDS:
            raise Malformed(f"more than {MAX_FDS} descriptors")
        if data and not self.frames:
            self.begun = time.monotonic()
        try:
            self.frames.feed(data)
        except FrameTooLong as error:
            raise Malformed(f"a request of more than {MAX_REQUEST} bytes") from error
        return bool(data)

    def take(self) -> "Request | None":
        """Return the request, or None while it is incomplete. Raises Malformed."""
        try:
            body = self.frames.take()
        except FrameTooLong as error:
            raise Malformed("more than one at a time") from error
        if body is None:
            return None
        if self.frames:
            raise Malformed("more than one at a time")
        self.begun = 0.0
        return read_request(body, tuple(self.fds), self.tell, self.is_there)

    def is_there(self) -> bool:
        """Whether the peer has not closed the connection; any thread may ask."""
        waiting = select.poll()
        waiting.register(self.fd, select.POLLRDHUP)
        return not waiting.poll(0)

    def send(self, answer: bytes) -> None:
        """Send one frame; OSError when the peer has closed the connection or does not read the frame in time."""
        self.sock.settimeout(_ANSWER_SECONDS)
        try:
            self.sock.sendall(answer)
        finally:
            self.sock.setblocking(False)

    def tell(self, update: Any) -> None:
        """Send progress. The verb continues when the peer has closed the connection."""
        with suppress(OSError):
            self.send(frame({"progress": update}))

    def close_fds(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()

    def close(self) -> None:
        self.close_fds()
        self.sock.close()


class ControlServer:
    """Answers requests until :meth:`stop` by calling *handle* in one of the workers.

    Connections to *listener* get a greeting. Those to *former* get none, for earlier clients do not expect one.
    """

    def __init__(self, listener: socket.socket, handle: Handler, version: str, *, former: socket.socket | None = None) -> None:
        self._listeners = {sock.fileno(): sock for sock in (listener, former) if sock is not None}
        self._greeted = listener.fileno()
        self._greeting = greeting(version)
        self._handle = handle
        self._version = version
        self._peers: dict[int, _Peer] = {}
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopping = False
        self._epoll = select.epoll()
        for sock in self._listeners.values():
            sock.setblocking(False)
            self._epoll.register(sock.fileno(), select.EPOLLIN)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._pool = Workers(WORKERS, "netlibd")
        self._quick = Workers(QUICK_WORKERS, "netlibd-quick")

    def stop(self) -> None:
        """Make :meth:`run` return; any thread or signal handler may call this."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)

    def run(self) -> None:
        """Serve until :meth:`stop`, then accept no more connections and finish the requests that were begun."""
        while not self._stopping:
            try:
                self._serve()
            except MemoryError:
                logger.warning("too little memory for a connection or a request; it is tried again")
        for listener in self._listeners.values():
            listener.close()  # waiting connections are reset, by which their callers know that nothing was begun
        self._pool.finish()
        self._quick.finish()

    def _serve(self) -> None:
        for fd, events in self._epoll.poll(self._seconds_to_wait()):
            if fd in self._listeners:
                self._accept(fd)
            elif (peer := self._peers.get(fd)) is not None and not peer.busy:
                self._on_ready(peer, events)
        self._close_slow()

    def close(self) -> None:
        """Close all connections, by which callers of ``daemon.leave`` know that netlibd has given up its run folder."""
        for peer in list(self._peers.values()):
            self._drop(peer)
        self._epoll.close()
        os.close(self._wake)

    def _accept(self, listener: int) -> None:
        try:
            sock = lifted(self._listeners[listener].accept()[0])
        except BlockingIOError:
            return
        except OSError as error:
            logger.warning("cannot accept a connection: %s", error)
            return
        pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if uid not in (0, os.geteuid()) or (len(self._peers) >= MAX_PEERS and not self._make_room()):
            logger.warning("refused a connection of pid %d, user %d; %d connections are open", pid, uid, len(self._peers))
            sock.close()
            return
        sock.setblocking(False)
        peer = self._peers[sock.fileno()] = _Peer(sock)
        self._epoll.register(sock.fileno(), select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLONESHOT)
        if listener == self._greeted:
            # An error: the peer has closed, as the next read shows. A new socket's buffer has room for the greeting.
            with suppress(OSError):
                sock.send(self._greeting)
        self._read(peer)

    def _make_room(self) -> bool:
        """Shut down the connection that has been idle for the longest time; False when none is idle.

        It is closed when epoll reports the shutdown, not here, because a worker may just be returning it to the loop.
        """
        idle = min((peer for peer in list(self._peers.values()) if peer.idle), key=lambda peer: peer.used, default=None)
        if idle is None:
            return False
        idle.leaving = True
        with suppress(OSError):  # the peer has closed it just now
            idle.sock.shutdown(socket.SHUT_RDWR)
        return True

    def _on_ready(self, peer: _Peer, events: int) -> None:
        if peer.leaving or (events & _ERROR_EVENTS and not events & select.EPOLLIN):
            self._drop(peer)
        else:
            self._read(peer)

    def _read(self, peer: _Peer) -> None:
        try:
            alive = peer.read()
            request = peer.take()
        except BlockingIOError:
            self._rearm(peer)
            return
        except Malformed as error:
            logger.warning("closed a connection that sent no request: %s", error)
            with suppress(OSError):
                peer.sock.send(frame({"error": error_to_json(ConfigError(f"malformed request: {error}"))}))
            self._drop(peer)
            return
        except (OSError, MemoryError):  # the peer has closed, or its request needs more memory than there is
            self._drop(peer)
            return
        if request is not None:
            peer.busy = True
            (self._quick if request.about_itself else self._pool).submit(partial(self._work, peer, request))
        elif alive:
            self._rearm(peer)
        else:
            self._drop(peer)

    def _rearm(self, peer: _Peer) -> None:
        self._epoll.modify(peer.fd, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLONESHOT)

    def _drop(self, peer: _Peer) -> None:
        del self._peers[peer.fd]
        peer.close()

    def _seconds_to_wait(self) -> float:
        begun = [peer.begun for peer in list(self._peers.values()) if peer.begun and not peer.busy]
        return max(0.0, min(begun) + _FRAME_SECONDS - time.monotonic()) if begun else -1

    def _close_slow(self) -> None:
        limit = time.monotonic() - _FRAME_SECONDS
        for peer in list(self._peers.values()):  # a list, because workers change the dictionary meanwhile
            if peer.begun and not peer.busy and peer.begun <= limit:
                self._drop(peer)

    # --- in a worker -----------------------------------------------------------------------------------------------

    def _work(self, peer: _Peer, request: Request) -> None:
        """Perform the request, send the answer, and have the connection read again."""
        try:
            outcome = self._outcome(request)
            peer.close_fds()
            peer.send(outcome)
        except (OSError, MemoryError) as error:
            logger.warning("the answer to %s did not reach its caller: %s", request.verb, str(error) or "too little memory")
            self._drop(peer)
            return
        peer.used = time.monotonic()
        peer.busy = False
        if not self._stopping:
            self._rearm(peer)

    def _outcome(self, request: Request) -> bytes:
        try:
            return dialects.result(request, self._handle(request))
        except Outdated as refused:
            return dialects.not_mine(request, str(refused), _BEFORE_ALL)
        except Refused as refused:
            return dialects.not_mine(request, str(refused), self._version)
        except NetlibError as error:
            return dialects.refusal(request, error)
        except Exception as error:  # a bug in one verb must not end netlibd, which answers all containers' names
            if (scarce := exhaustion(error)) is not None:
                return dialects.refusal(request, scarce)
            logger.exception("%s failed", request.verb)
            text = f"netlibd failed at {request.verb!r}: {type(error).__name__}: {error}"
            return dialects.refusal(request, DaemonError(text))
