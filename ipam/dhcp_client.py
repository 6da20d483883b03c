"""A DHCP client on a container's link, and the kernel object for the lease that it gets.

The link needs no address: messages are sent and received by a packet socket, and this module does not configure the link. A
lease is released when it is removed, if its link still exists; else it expires at the server.

Why not pyroute2's client (pyroute2.dhcp 0.9.7: 2,842 lines without its enumerations): it needs an asyncio loop, and keeps a
packet socket and a netlink socket open as long as a lease, which keep the container's netns from ending. It opens them in the
netns that its thread is in, so each netns would need a thread of its own. Here no socket is open between two renewals, and a
process that reads the record, also after a restart, can renew or release the lease in it.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from ipaddress import IPv4Address, IPv4Interface
from typing import Any, Self

from msgspec import Struct

from ipam.dhcp import CLIENT_PORT, SERVER_PORT, Kind, Message, Option, Terms, decode, encode, terms_of
from netlib.codec import convert, to_builtins
from netlib.errors import DeadlineExceeded, KernelError, NotFound
from netlib.facts import Facts, World
from netlib.kernel.handle import Kernel
from netlib.kernel.netns import command_in
from netlib.kernel.packets import PacketSocket
from netlib.model import NetnsRef
from netlib.plan import KernelObject, Key

__all__ = ["Conversation", "DhcpClient", "DhcpLease", "LeaseAsked", "granted_terms", "kept_lease", "lease_key", "now"]

_EVERYBODY, _NOBODY = IPv4Address("255.255.255.255"), IPv4Address(0)
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 8.0  # seconds for an answer, doubled each time; a new link may lose the first message
_REQUEST_SECONDS = 8.0  # for the answer to a request; after that another server is looked for
_LONGEST_IDENTIFIER = 254


def now() -> float:
    """Return the seconds since the boot, including suspended ones: the clock by which leases are measured."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def lease_key(netns: str, link: str) -> Key:
    """Return the key of the lease of a link in the netns at a path. All leases have keys of the host, to be listed together."""
    return Key("dhcp_lease", "", f"{netns}/{link}")


class DhcpLease(KernelObject, frozen=True, kw_only=True, tag="dhcp_lease"):
    """An address that a DHCP server has leased to a container's link.

    :class:`DhcpClient` records it before it requests the address, and netlibd renews it. Times are those of :func:`now`.
    """

    batch = "dhcp"  # removed before links are, because releasing it needs the link

    link: str  # not "ifname": it does not vanish with the link
    client: str  # the container's identifier at the server
    options: tuple[tuple[int, bytes], ...]  # sent with every request
    address: IPv4Interface
    server: IPv4Address
    since: float
    lease: int | None  # seconds; None: without an end
    renewal: int  # seconds after which it is renewed at its server
    rebinding: int  # seconds after which it is renewed at any server

    @cached_property
    def key(self) -> Key:
        return lease_key(self.netns.path, self.link)

    @property
    def is_over(self) -> bool:
        return self.lease is not None and now() >= self.since + self.lease

    def ensure(self, kernel: Kernel) -> None:
        """Do nothing: :class:`DhcpClient` got the lease before the transaction."""

    def remove(self, kernel: Kernel) -> None:
        """Release the lease at its server."""
        DhcpClient().release("", {"lease": to_builtins(self)}, kernel)

    def conversation(self, kernel: Kernel) -> "Conversation":
        """Begin a conversation as the client with this lease; ObjectMissing when its netns or link is gone."""
        return Conversation(kernel, self.netns, self.link, self.client, self.options)

    def drift(self, kernel: Kernel) -> str | None:
        return f"the lease of {self.address.ip} by {self.server} is over" if self.is_over else None

    def commands(self) -> Iterable[str]:
        identifier = _identifier(self.client).hex()
        yield command_in(self.netns, f"udhcpc -i {self.link} -r {self.address.ip} -x 0x3d:{identifier}")


class LeaseAsked(Struct, frozen=True, kw_only=True):
    """A request to :class:`DhcpClient`: an address for a link that exists and is up."""

    netns: NetnsRef
    link: str
    client: str  # the container's identifier at the server
    options: tuple[tuple[int, bytes], ...]  # sent with every request
    seconds: float  # the time limit


class DhcpClient:
    """Gets and releases leases, as an ability of an IPAM driver (:class:`netlib.facts.Prepares`).

    Its facts are the lease and the server's terms, which :func:`kept_lease` and :func:`granted_terms` read.
    """

    def prepare(self, asked: Struct, world: World) -> Facts:
        """Get a lease. The offer is noted before it is requested, so that the lease is released after a crash.

        Raises DeadlineExceeded when no server answers, NotFound for an offer without a subnet mask.
        """
        assert isinstance(asked, LeaseAsked)
        until = time.monotonic() + asked.seconds
        with Conversation(world.kernel, asked.netns, asked.link, asked.client, asked.options) as conversation:
            terms = None
            while terms is None:
                offer = conversation.discover(until)
                world.note(_facts(asked, offer))
                terms = conversation.request(offer, until)
        return _facts(asked, terms)

    def release(self, record: str, facts: Mapping[str, Any], kernel: Kernel) -> None:
        """Release the lease at its server; where link or netns is gone, the lease is left to expire."""
        lease = kept_lease(facts)
        with suppress(KernelError), lease.conversation(kernel) as conversation:
            conversation.release(lease)


def _facts(asked: LeaseAsked, terms: Terms) -> Facts:
    lease = DhcpLease(
        netns=asked.netns,
        link=asked.link,
        client=asked.client,
        options=asked.options,
        address=terms.address,
        server=terms.server,
        since=now(),
        lease=terms.lease,
        renewal=terms.renewal,
        rebinding=terms.rebinding,
    )
    return {"lease": to_builtins(lease), "terms": to_builtins(terms)}


def kept_lease(facts: Mapping[str, Any]) -> DhcpLease:
    """Read the lease in the client's *facts*; it is also the kernel object that is recorded for them."""
    return convert(facts["lease"], DhcpLease)


def granted_terms(facts: Mapping[str, Any]) -> Terms:
    """Read the server's terms in the client's *facts*."""
    return convert(facts["terms"], Terms)


class Conversation:
    """The messages between one client and the DHCP servers on a link."""

    def __init__(self, kernel: Kernel, netns: NetnsRef, link: str, client: str, options: Iterable[tuple[int, bytes]]) -> None:
        """Open a socket on *link*, which is up, for *client*; *options* are sent with every request. Raises ObjectMissing."""
        self._link = link
        self._options: dict[int, bytes] = {Option.CLIENT_IDENTIFIER: _identifier(client), **dict(options)}
        self._transaction = 0
        self._socket = PacketSocket(kernel, netns, link, CLIENT_PORT)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    # --- waiting for answers -------------------------------------------------------------------------------------------

    def discover(self, until: float) -> Terms:
        """Ask for an offer until that moment of time.monotonic; DeadlineExceeded for none, NotFound without a subnet mask."""
        self._begin()

        def accepts(answer: Message) -> bool:
            return answer.kind is Kind.OFFER and answer.server is not None and not answer.yours.is_unspecified

        found = self._ask(until, lambda: self._send(Kind.DISCOVER), accepts)
        if found is None:
            raise DeadlineExceeded(f"no DHCP server offered an address on {self._link}; check that its network has one")
        terms = terms_of(found)
        if terms is None:
            raise NotFound(f"DHCP option Subnet Mask not found in the offer of {found.server}; let the server send it")
        return terms

    def request(self, offer: Terms, until: float) -> Terms | None:
        """Request the *offer* and return its server's terms; None when the server refuses or does not answer."""
        more: dict[int, bytes] = {Option.REQUESTED_ADDRESS: offer.address.ip.packed, Option.SERVER: offer.server.packed}

        def accepts(answer: Message) -> bool:
            return answer.server == offer.server and answer.kind in (Kind.ACK, Kind.NAK)

        found = self._ask(min(until, time.monotonic() + _REQUEST_SECONDS), lambda: self._send(Kind.REQUEST, more=more), accepts)
        return terms_of(found) if found is not None and found.kind is Kind.ACK else None

    def _ask(self, until: float, send: Callable[[], None], accepts: Callable[[Message], bool]) -> Message | None:
        wait = _FIRST_WAIT
        while time.monotonic() < until:
            send()
            next_send = min(until, time.monotonic() + wait)
            while self._socket.wait(next_send):
                for answer in self.answers():
                    if accepts(answer):
                        return answer
            wait = min(2 * wait, _LONGEST_WAIT)
        return None

    # --- without waiting -----------------------------------------------------------------------------------------------

    def renew(self, lease: DhcpLease) -> None:
        """Send a request to renew *lease* to all servers; :meth:`answers` returns their answers."""
        self._begin()
        self._send(Kind.REQUEST, own=lease.address.ip)

    def release(self, lease: DhcpLease) -> None:
        """Send the release of *lease* to its server, which does not answer."""
        self._begin()
        self._send(Kind.RELEASE, own=lease.address.ip, more={Option.SERVER: lease.server.packed}, to=lease.server)

    def answers(self) -> Iterator[Message]:
        """Yield the messages received that answer this client's last message."""
        while (datagram := self._socket.receive()) is not None:
            answer = decode(datagram.payload)
            if answer is not None and (answer.transaction, answer.mac) == (self._transaction, self._socket.mac):
                yield answer

    def _begin(self) -> None:
        self._transaction = int.from_bytes(os.urandom(4), "big")

    def _send(
        self, kind: Kind, own: IPv4Address = _NOBODY, more: Mapping[int, bytes] | None = None, to: IPv4Address = _EVERYBODY
    ) -> None:
        given = [Option.CLIENT_IDENTIFIER] if kind is Kind.RELEASE else self._options
        options: dict[int, bytes] = {code: self._options[code] for code in given}
        options.update(more or {})
        # All ipvlan links of a parent have its MAC address. The kernel tells them apart by IP address, and this link has none
        # yet; a broadcast reaches all of them.
        wants_broadcast = self._socket.kind == "ipvlan"
        message = Message(kind, self._transaction, self._socket.mac, own, wants_broadcast=wants_broadcast, options=options)
        self._socket.send(encode(message), SERVER_PORT, source=own, destination=to)


def _identifier(client: str) -> bytes:
    """Return the client identifier in the reference plugin's form: a host that switches to ours keeps its addresses."""
    return b"\0" + client.encode()[:_LONGEST_IDENTIFIER]
