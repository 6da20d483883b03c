"""The embedded DNS server: sockets inside each sandbox's netns, one thread that answers them all.

It only moves bytes: :mod:`netlib.dns.resolver` finds answers, :mod:`netlib.dns.upstream` asks other servers. A sandbox's view
is replaced, never edited, together with the answers cached from it. An open socket keeps its netns from ending, so
:meth:`DnsServer.withdraw` returns only when all of the sandbox's are closed.
"""

import errno
import logging
import random
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from msgspec import Struct

from netlib.dns.connection import Connection, Reply
from netlib.dns.lanes import Lane, Lanes, open_lane
from netlib.dns.loop import READABLE, Loop
from netlib.dns.message import MAX_DATAGRAM, Rcode, parse_query
from netlib.dns.resolver import Forward, answer, refusal
from netlib.dns.turns import Handler, Party
from netlib.dns.upstream import HostServers, Upstream
from netlib.dns.zone import View
from netlib.kernel.descriptors import lifted
from netlib.kernel.netns import entered
from netlib.kernel.translate import doing
from netlib.model import RESOLVER_ADDRESS, IPAddress, NetnsRef

__all__ = ["DnsServer", "DnsStats"]

logger = logging.getLogger(__name__)

# Datagrams answered from the cache before anything else is handled: half a millisecond, a turn.
_BURST = 64
# Cached answers per sandbox and view. A stub resolver asks for each name in a few spellings; a client that never repeats a
# query (cookies, random names) cannot make the cache grow. Answers to queries longer than a name with an OPT are not cached.
_CACHED_ANSWERS = 1024
_CACHED_QUERY_SIZE = 320
# TCP connections: of one party, and in all. At the last limit the oldest connection of the party with most is closed, so that
# clients who keep theirs open cannot lock others out.
_CONNECTIONS_PER_CLIENT = 32
_CONNECTIONS = 512
_ACCEPTS_PER_WAKE = 16
_NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_ACCEPT_PAUSE_SECONDS = 1.0


class DnsStats(Struct, frozen=True):
    """Counts since the start, and present numbers."""

    queries: int  # datagrams and TCP messages received
    cache_hits: int
    forwarded: int
    failures: int  # SERVFAIL: no server upstream answered
    refused: int  # REFUSED: too many questions in flight
    forged: int  # answers from upstream with a wrong id or question
    dropped: int  # queries without an answer, and answers that could not be sent
    connections: int  # open TCP connections
    in_flight: int  # questions upstream without an answer yet
    sandboxes: int


class _Snapshot:
    """The view of *party*, and cached answers from it by the query's bytes after its id."""

    __slots__ = ("cache", "party", "view")

    def __init__(self, view: View | None, party: Party) -> None:
        self.view = view
        self.party = party
        self.cache: dict[bytes, Iterator[bytes]] = {}


class _Served:
    """One sandbox (or gateway) whose queries are answered: its sockets and its snapshot."""

    def __init__(self, name: str, netns: NetnsRef, lanes: Lanes, snapshot: _Snapshot) -> None:
        self.name = name
        self.netns = netns
        self.lanes = lanes
        self.snapshot = snapshot
        self.guests: dict[str, _Snapshot] = {}  # by address, those who have a view of their own at a gateway
        self.connections: dict[Connection, None] = {}

    def snapshot_of(self, client: str) -> _Snapshot:
        """The snapshot for queries from the address *client*."""
        return self.guests.get(client, self.snapshot)


class DnsServer:
    """Serves sandboxes from a thread of its own; its methods may be called from any other thread."""

    def __init__(self, *, resolv_conf: Path = Path("/etc/resolv.conf")) -> None:
        self._loop = Loop("netlib-dns")
        self._upstream = Upstream(self._loop, HostServers(resolv_conf))
        self._served: dict[str, _Served] = {}
        self._parties: WeakValueDictionary[str, Party] = WeakValueDictionary()  # by sandbox, while it is a guest of any gateway
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

        Where *port* is taken (or 0) another one is bound. *device* limits the sockets to packets received by that link, for a
        gateway's address in the host's netns, which the whole world might reach. Without a view the answer is SERVFAIL, after
        which clients try again. Serving again with the same arguments keeps the sockets. Raises ObjectMissing when the netns is
        gone; nothing remains after a failure.
        """
        known = self._served.get(sandbox)
        if known is not None and (known.netns, known.lanes.address) == (netns, address) and port in (0, known.lanes.port):
            if view is not None:
                self.publish(sandbox, view)
            return known.lanes.port
        self.withdraw(sandbox)
        with entered(netns), doing(f"open DNS sockets at {address} in {netns.label}"):
            lanes = Lanes(address, device, open_lane(address, port, device))
        party = Party(sandbox)
        served = self._served[sandbox] = _Served(sandbox, netns, lanes, _Snapshot(view, party))
        try:
            with doing(f"watch DNS sockets in {netns.label}"):
                self._loop.join(self._handlers(served, lanes.first), party)
        except BaseException:
            del self._served[sandbox]
            lanes.close()
            raise
        return lanes.port

    def publish(self, sandbox: str, view: View) -> None:
        """Replace the view of *sandbox*; a no-op when it is not served. Costs about a microsecond."""
        served = self._served.get(sandbox)
        if served is not None:
            served.snapshot = _Snapshot(view, served.snapshot.party)

    def admit(self, gateway: str, client: IPAddress, sandbox: str, view: View) -> None:
        """Make *client* the address of *sandbox* at *gateway* (served by that name): queries from it are answered by *view*.

        It gets a queue of its own there (:mod:`netlib.dns.lanes`). A sandbox is one party, however many gateways it asks.
        """
        served = self._served.get(gateway)
        if served is None:
            return
        party = self._parties.get(sandbox)
        if party is None:
            party = self._parties[sandbox] = Party(sandbox)
        name = str(client)
        known = served.guests.get(name)
        if known is not None and known.party is not party:
            self.dismiss(gateway, client)
        served.guests[name] = _Snapshot(view, party)
        try:
            with entered(served.netns):
                lane = served.lanes.add(client)
        except OSError as error:  # no descriptors left, or a kernel without socket groups
            logger.warning("%s shares the queue of strangers at the gateway %s: %s", client, served.lanes.address, error)
            return
        if lane is not None:
            try:
                with doing(f"watch DNS sockets in {served.netns.label}"):
                    self._loop.join(self._handlers(served, lane), party)
            except BaseException:
                served.lanes.remove(client)
                raise

    def dismiss(self, gateway: str, client: IPAddress) -> None:
        """Make *client* a stranger at *gateway* again; a no-op when it is one."""
        served = self._served.get(gateway)
        if served is not None and served.guests.pop(str(client), None) is not None:
            self._loop.call(partial(self._close_lane, served, client))

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
        for lane in served.lanes:
            self._forget(lane)
        served.lanes.close()

    def _close_lane(self, served: _Served, guest: IPAddress) -> None:
        lane = served.lanes.find(guest)
        if lane is not None and self._served.get(served.name) is served:
            self._forget(lane)
            served.lanes.remove(guest)

    def _forget(self, lane: Lane) -> None:
        for sock in lane:
            self._loop.forget(sock.fileno())

    def _remove_all(self) -> None:
        for sandbox in list(self._served):
            self._remove(sandbox)
        self._upstream.close()

    def _handlers(self, served: _Served, lane: Lane) -> dict[int, Handler]:
        return {
            lane.tcp.fileno(): partial(self._on_clients, served, lane.tcp),
            lane.udp.fileno(): partial(self._on_datagrams, served, lane.udp),
        }

    def _on_datagrams(self, served: _Served, udp: socket.socket, events: int) -> None:
        """Answer queued queries. A repeated one costs one lookup in the cache, which has the answer except for its id."""
        receive, send = udp.recvfrom, udp.sendto
        hits = others = 0
        for _ in range(_BURST):
            try:
                query, client = receive(MAX_DATAGRAM)
                # Looked up only now: a query received after a view was replaced must not get an answer from the old one.
                snapshot = served.guests.get(client[0], served.snapshot) if served.guests else served.snapshot
                bodies = snapshot.cache.get(query[2:])
                if bodies is None:
                    others += 1
                    self._answer(snapshot, query, partial(self._send_datagram, udp, client))
                    if self._loop.turn_is_over():
                        break
                else:
                    hits += 1
                    send(query[:2] + next(bodies), client)
            except BlockingIOError:
                break
            except OSError:  # the client has closed its port, or a firewall refuses
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
        """Find the answer and *reply* with it, now or when a server upstream has answered; cache it if it can be reused."""
        if snapshot.view is None:
            query = parse_query(wire)
            reply(b"" if query is None or isinstance(query, Rcode) else wire[:2] + next(refusal(query, Rcode.SERVFAIL).bodies))
            return
        found = answer(wire, snapshot.view, stream=stream, turn=random.getrandbits(16))
        if found is None:
            reply(b"")
        elif isinstance(found, Forward):
            self._upstream.ask(wire, found.query, snapshot.view.servers, snapshot.party, stream, reply)
        else:
            if found.steady and not stream and len(wire) <= _CACHED_QUERY_SIZE:
                if len(snapshot.cache) >= _CACHED_ANSWERS:
                    snapshot.cache.clear()
                snapshot.cache[wire[2:]] = found.bodies
            reply(wire[:2] + next(found.bodies))

    def _on_clients(self, served: _Served, listener: socket.socket, events: int) -> None:
        for _ in range(_ACCEPTS_PER_WAKE):
            try:
                sock, client = listener.accept()
                sock = lifted(sock)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_DESCRIPTORS:  # the client stays in the backlog, so accept would fail again at once
                    self._pause_clients(served, listener)
                    return
                continue  # the client closed its connection meanwhile
            sock.setblocking(False)
            self._admit_connection(served, sock, client[0])
            if self._loop.turn_is_over():
                return

    def _admit_connection(self, served: _Served, sock: socket.socket, client: str) -> None:
        """Accept a client's connection unless its party has too many; at the limit for all, close another party's oldest."""
        party = served.snapshot_of(client).party
        if party.connections >= _CONNECTIONS_PER_CLIENT:
            sock.close()
            self._dropped += 1
            return
        if len(self._connections) >= _CONNECTIONS:
            max(self._connections, key=lambda connection: connection.party.connections).close()  # the first found is its oldest
        respond, ended = partial(self._on_message, served, client), partial(self._on_ended, served)
        connection = Connection(self._loop, sock, party, respond, ended)
        party.connections += 1
        served.connections[connection] = self._connections[connection] = None

    def _pause_clients(self, served: _Served, listener: socket.socket) -> None:
        self._loop.rewatch(listener.fileno(), 0)
        self._loop.after(_ACCEPT_PAUSE_SECONDS, partial(self._resume_clients, served, listener))

    def _resume_clients(self, served: _Served, listener: socket.socket) -> None:
        if any(lane.tcp is listener for lane in served.lanes) and self._served.get(served.name) is served:
            self._loop.rewatch(listener.fileno(), READABLE)

    def _on_message(self, served: _Served, client: str, wire: bytes, reply: Reply) -> None:
        self._queries += 1
        self._answer(served.snapshot_of(client), wire, reply, stream=True)

    def _on_ended(self, served: _Served, connection: Connection) -> None:
        connection.party.connections -= 1
        del served.connections[connection], self._connections[connection]
