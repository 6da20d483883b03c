"""The embedded DNS server: sockets inside each sandbox's netns, one thread that answers them all.

It only moves bytes: :mod:`netlib.dns.resolver` knows the answers, :mod:`netlib.dns.upstream` asks elsewhere. A sandbox's view
is swapped, never edited, and the answers made from it go with it. A socket pins its netns, so :meth:`DnsServer.withdraw`
comes back only when all of the sandbox's are closed.
"""

import errno
import ipaddress
import random
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import Struct

from netlib.dns.connection import Connection, Reply
from netlib.dns.loop import READABLE, Loop
from netlib.dns.message import MAX_DATAGRAM, Rcode, parse_query
from netlib.dns.resolver import Forward, answer, refusal
from netlib.dns.upstream import HostServers, Upstream
from netlib.dns.zone import View
from netlib.kernel.descriptors import lifted
from netlib.kernel.netns import entered
from netlib.kernel.translate import doing
from netlib.model import IPAddress, NetnsRef

__all__ = ["RESOLVER_ADDRESS", "DnsServer", "DnsStats"]

RESOLVER_ADDRESS = ipaddress.ip_address("127.0.0.11")

# Datagrams answered before other sockets get their turn: half a millisecond of one sandbox's flood.
_BURST = 64
# Some 1,000 queries may wait while the thread is busy elsewhere; the default holds 277.
_RECEIVE_BUFFER = 1 << 20
_SEND_BUFFER = 1 << 20
# Answers kept per sandbox and view. A stub resolver asks each name in a few spellings; one that never repeats a query
# (cookies, random names) cannot make it grow. Queries longer than a name with an OPT are not kept at all.
_CACHED_ANSWERS = 1024
_CACHED_QUERY_SIZE = 320
# TCP connections: from one client's address (a sandbox's queries all come from one), to one server socket, in all. At the
# last limit the oldest connection makes room, so that clients who hold on to theirs cannot lock the others out.
_CONNECTIONS_PER_CLIENT = 32
_CONNECTIONS_PER_SANDBOX = 256
_CONNECTIONS = 512
_ACCEPTS_PER_WAKE = 16
_BACKLOG = 128
_NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_ACCEPT_PAUSE_SECONDS = 1.0
_PORT_ATTEMPTS = 16
_IP_FREEBIND, _IPV6_FREEBIND = 15, 78
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33


class DnsStats(Struct, frozen=True):
    """Counts since the start, and how things stand."""

    queries: int  # datagrams and TCP messages received
    cache_hits: int
    forwarded: int
    failures: int  # SERVFAIL: no server upstream answered
    refused: int  # REFUSED: too many questions in flight
    forged: int  # answers from upstream with a wrong id or question
    dropped: int  # nothing to answer, or an answer that could not be sent
    connections: int  # TCP clients by now
    in_flight: int  # questions upstream by now
    sandboxes: int


class _Snapshot:
    """What *owner* sees and the answers made from it, by the query's bytes after its id."""

    __slots__ = ("cache", "owner", "view")

    def __init__(self, view: View | None, owner: str) -> None:
        self.view = view
        self.owner = owner
        self.cache: dict[bytes, Iterator[bytes]] = {}


class _Served:
    """One sandbox (or gateway) that is answered: its sockets and its snapshot."""

    def __init__(self, owner: str, netns: NetnsRef, udp: socket.socket, tcp: socket.socket) -> None:
        self.owner = owner
        self.netns = netns
        self.udp = udp
        self.tcp = tcp
        self.address: str = udp.getsockname()[0]
        self.port: int = udp.getsockname()[1]
        self.snapshot = _Snapshot(None, owner)
        self.guests: dict[str, _Snapshot] = {}  # by address: who sees something else at a gateway
        self.connections: dict[Connection, None] = {}


class DnsServer:
    """Serves sandboxes from a thread of its own; its methods may be called from any other thread."""

    def __init__(self, *, resolv_conf: Path = Path("/etc/resolv.conf")) -> None:
        self._loop = Loop("netlib-dns")
        self._upstream = Upstream(self._loop, HostServers(resolv_conf))
        self._served: dict[str, _Served] = {}
        self._connections: dict[Connection, None] = {}  # oldest first
        self._queries = self._cache_hits = self._dropped = 0

    # --- control, from any thread ----------------------------------------------------------------------------------

    def serve(
        self,
        sandbox: str,
        netns: NetnsRef,
        port: int = 0,
        *,
        address: IPAddress = RESOLVER_ADDRESS,
        device: str = "",
        view: View | None = None,
    ) -> int:
        """Answer *sandbox* (an id) at *address* inside *netns*, by UDP and TCP, and return the port really bound.

        Where *port* is taken (or 0) it is another one. *device* limits it to what comes in by that link: for a gateway's
        address in the host's netns, which the whole world might reach. Until there is a view the answer is SERVFAIL, which
        clients do not take for final. Serving again what is served keeps the sockets. Raise ObjectMissing when the netns is
        gone; nothing remains after a failure.
        """
        known = self._served.get(sandbox)
        if known is not None and (known.netns, known.address) == (netns, str(address)) and port in (0, known.port):
            if view is not None:
                self.publish(sandbox, view)
            return known.port
        self.withdraw(sandbox)
        with entered(netns), doing(f"open DNS sockets at {address} in {netns.label}"):
            udp, tcp = _open_sockets(address, port, device)
        served = _Served(sandbox, netns, udp, tcp)
        served.snapshot = _Snapshot(view, sandbox)
        self._served[sandbox] = served
        try:
            with doing(f"watch DNS sockets in {netns.label}"):
                self._loop.join(
                    {tcp.fileno(): partial(self._on_clients, served), udp.fileno(): partial(self._on_datagrams, served)}
                )
        except BaseException:
            del self._served[sandbox]
            udp.close()
            tcp.close()
            raise
        return served.port

    def publish(self, sandbox: str, view: View) -> None:
        """Let *sandbox* see *view* from now on; a no-op when it is not served. Costs about a microsecond."""
        served = self._served.get(sandbox)
        if served is not None:
            served.snapshot = _Snapshot(view, sandbox)

    def admit(self, gateway: str, client: IPAddress, view: View) -> None:
        """Let who asks at *gateway* (served by that name) from the address *client* see *view* from now on."""
        served = self._served.get(gateway)
        if served is not None:
            served.guests[str(client)] = _Snapshot(view, f"{gateway} {client}")

    def dismiss(self, gateway: str, client: IPAddress) -> None:
        """Let *client* be a stranger at *gateway* again; a no-op when it is one."""
        served = self._served.get(gateway)
        if served is not None:
            served.guests.pop(str(client), None)

    def withdraw(self, sandbox: str) -> None:
        """Close all sockets in the sandbox's netns; a no-op when it is not served."""
        if sandbox in self._served:
            self._loop.call(partial(self._remove, sandbox))

    def stats(self) -> DnsStats:
        counters = self._upstream.counters
        return DnsStats(
            queries=self._queries,
            cache_hits=self._cache_hits,
            forwarded=counters.forwarded,
            failures=counters.failed,
            refused=counters.refused,
            forged=counters.forged,
            dropped=self._dropped,
            connections=len(self._connections),
            in_flight=self._upstream.in_flight,
            sandboxes=len(self._served),
        )

    def close(self) -> None:
        """Close every socket and end the thread."""
        if self._loop.is_running:
            self._loop.call(self._remove_all)
        self._loop.stop()

    # --- the loop's thread -----------------------------------------------------------------------------------------

    def _remove(self, sandbox: str) -> None:
        served = self._served.pop(sandbox, None)
        if served is None:
            return
        for connection in list(served.connections):
            connection.close()
        for sock in (served.udp, served.tcp):
            self._loop.forget(sock.fileno())
            sock.close()

    def _remove_all(self) -> None:
        for sandbox in list(self._served):
            self._remove(sandbox)
        self._upstream.close()

    def _on_datagrams(self, served: _Served, events: int) -> None:
        """Answer what has come in. Everything of a repeated question is one lookup: its answer stands, all but the id."""
        udp = served.udp
        receive, send = udp.recvfrom, udp.sendto
        hits = others = 0
        for _ in range(_BURST):
            try:
                query, client = receive(MAX_DATAGRAM)
                # Only now: who asks after a swap must not see what was before it.
                snapshot = served.guests.get(client[0], served.snapshot) if served.guests else served.snapshot
                bodies = snapshot.cache.get(query[2:])
                if bodies is None:
                    others += 1
                    self._answer(snapshot, query, partial(self._send_datagram, udp, client))
                else:
                    hits += 1
                    send(query[:2] + next(bodies), client)
            except BlockingIOError:
                break
            except OSError:  # the client's port is gone, a firewall refuses
                self._dropped += 1
        self._queries += hits + others
        self._cache_hits += hits

    def _send_datagram(self, udp: socket.socket, client: tuple[Any, ...], message: bytes) -> None:
        if not message:
            self._dropped += 1
            return
        try:
            udp.sendto(message, client)
        except OSError:  # as above; or the sandbox was withdrawn meanwhile
            self._dropped += 1

    def _answer(self, snapshot: _Snapshot, wire: bytes, reply: Reply, *, stream: bool = False) -> None:
        """Find the answer and *reply* with it, now or when upstream has answered; keep it where it will serve again."""
        if snapshot.view is None:
            query = parse_query(wire)
            reply(b"" if query is None or isinstance(query, Rcode) else wire[:2] + next(refusal(query, Rcode.SERVFAIL).bodies))
            return
        found = answer(wire, snapshot.view, stream=stream, turn=random.getrandbits(16))
        if found is None:
            reply(b"")
        elif isinstance(found, Forward):
            self._upstream.ask(wire, found.query, snapshot.view.servers, snapshot.owner, stream, reply)
        else:
            if found.steady and not stream and len(wire) <= _CACHED_QUERY_SIZE:
                if len(snapshot.cache) >= _CACHED_ANSWERS:
                    snapshot.cache.clear()
                snapshot.cache[wire[2:]] = found.bodies
            reply(wire[:2] + next(found.bodies))

    def _on_clients(self, served: _Served, events: int) -> None:
        for _ in range(_ACCEPTS_PER_WAKE):
            try:
                sock, client = served.tcp.accept()
                sock = lifted(sock)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_DESCRIPTORS:  # the client stays in the backlog, and we must not spin on it
                    self._pause_clients(served)
                    return
                continue  # the client gave up
            sock.setblocking(False)
            peer = client[0]
            if (
                len(served.connections) >= _CONNECTIONS_PER_SANDBOX
                or sum(other.peer == peer for other in served.connections) >= _CONNECTIONS_PER_CLIENT
            ):
                sock.close()
                self._dropped += 1
                continue
            if len(self._connections) >= _CONNECTIONS:
                next(iter(self._connections)).close()
            connection = Connection(
                self._loop, sock, peer, partial(self._on_message, served, peer), partial(self._on_ended, served)
            )
            served.connections[connection] = self._connections[connection] = None

    def _pause_clients(self, served: _Served) -> None:
        self._loop.rewatch(served.tcp.fileno(), 0)
        self._loop.after(_ACCEPT_PAUSE_SECONDS, partial(self._resume_clients, served))

    def _resume_clients(self, served: _Served) -> None:
        if self._served.get(served.owner) is served:
            self._loop.rewatch(served.tcp.fileno(), READABLE)

    def _on_message(self, served: _Served, peer: str, wire: bytes, reply: Reply) -> None:
        self._queries += 1
        self._answer(served.guests.get(peer, served.snapshot), wire, reply, stream=True)

    def _on_ended(self, served: _Served, connection: Connection) -> None:
        del served.connections[connection], self._connections[connection]


def _open_sockets(address: IPAddress, port: int, device: str) -> tuple[socket.socket, socket.socket]:
    """A UDP and a listening TCP socket on one port of *address*: *port*, or a free one where that is taken."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    for wanted in (port, *[0] * _PORT_ATTEMPTS):
        opened: list[socket.socket] = []
        try:
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                sock = lifted(socket.socket(family, kind))
                opened.append(sock)
                _prepare(sock, device)
                sock.bind((str(address), wanted))
                wanted = sock.getsockname()[1]
            opened[1].listen(_BACKLOG)
        except OSError as error:
            for sock in opened:
                sock.close()
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return opened[0], opened[1]
    raise OSError(errno.EADDRINUSE, "no port is free for both UDP and TCP")


def _prepare(sock: socket.socket, device: str) -> None:
    sock.setblocking(False)
    # The address need not be up yet: lo before its first use, a bridge's during duplicate address detection.
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
    if device:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    if sock.type == socket.SOCK_STREAM:  # an earlier server's connections may still be in TIME_WAIT on this port
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    else:
        _enlarge(sock, socket.SO_RCVBUF, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        _enlarge(sock, socket.SO_SNDBUF, _SO_SNDBUFFORCE, _SEND_BUFFER)


def _enlarge(sock: socket.socket, option: int, forced: int, size: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, forced, size)
    except PermissionError:  # in a user namespace: as far as net.core allows
        sock.setsockopt(socket.SOL_SOCKET, option, size)
