"""Queries of guests to a gateway: those from a guest's address are dropped unless its own bridge port received them.

So a limit that netlibd counts by address holds for the port. The kernel compares address and port, for netlibd cannot see the
port: the link of the packet is the bridge (``IP_PKTINFO``), a mark set by a rule can be read for UDP alone (``SO_RCVMARK``) and
is used by others (``ip rule``, Kubernetes), and a source's MAC address is as easily forged as its IP address. A packet to port
53 is looked up in two hash sets: with 200 guests in them, a gateway gave 53,000 answers a second, and 51,000 without.

The table belongs to the process that made it (``NFT_TABLE_F_OWNER``, Linux 5.12): the kernel deletes it when netlibd ends,
however that ends, and `nft flush ruleset` does not touch it. Where the kernel lacks that, or nftables for bridges, guests are
told apart by address alone.
"""

import os
import socket
import struct
from collections.abc import Iterable, Iterator
from itertools import product
from typing import NamedTuple

from netlib.firewall.expressions import (
    AT_ONCE,
    BRIDGE_HEADER,
    DELSETELEM,
    DELTABLE,
    IFNAME_SIZE,
    NETFILTER,
    NETWORK_HEADER,
    NEWCHAIN,
    NEWRULE,
    NEWSET,
    NEWSETELEM,
    NEWTABLE,
    NFTABLES,
    TRANSPORT_HEADER,
    compare,
    expression,
    hooked_chain,
    ifname_key,
    load,
    number,
    set_elements,
)
from netlib.firewall.ruleset import checked_ifname
from netlib.kernel.netlink import APPEND, CREATE, NetlinkSocket, nest, text
from netlib.kernel.translate import doing
from netlib.model import IPAddress

__all__ = ["Guest", "GuestTable"]

_OWNER = 2  # NFT_TABLE_F_OWNER
_CHAIN = "prerouting"
_PREROUTING, _FIRST = 0, -300  # NF_BR_PRE_ROUTING; before the bridge learns the sender's MAC address
_META_L4PROTO, _META_PROTOCOL, _META_IIFNAME = 16, 1, 6  # NFT_META_*
_INVERTED = 1  # NFT_LOOKUP_F_INV
_DROP = 0  # NF_DROP
_TYPE_BITS, _TYPE_OF_IFNAME = 6, 41  # nft's own numbers, for its listings
_FIRST_WORD = 8  # NFT_REG32_00
_DNS_PORT = 53


class _Family(NamedTuple):
    """The addresses of an IP version: their size, and where the header has them."""

    ethertype: int
    size: int
    source: int  # offsets in its header
    destination: int
    nft_type: int


_FAMILIES = {4: _Family(0x0800, 4, 12, 16, 7), 6: _Family(0x86DD, 16, 8, 24, 8)}
_IFNAME = _TYPE_OF_IFNAME, IFNAME_SIZE
_SETS = {
    f"{name}{version}": (address, address, *more)
    for version, family in _FAMILIES.items()
    for address in ((family.nft_type, family.size),)
    for name, more in (("guests", ()), ("ports", (_IFNAME,)))
}
"""The sets, each with the types and sizes of its keys' parts."""


class Guest(NamedTuple):
    """A sandbox that asks *gateway* for names, from the address *client* and by the bridge port *port*."""

    gateway: IPAddress
    client: IPAddress
    port: str


class GuestTable:
    """The table, made in the netns of the first change and kept while it has guests; used by one thread at a time."""

    def __init__(self) -> None:
        # Two netlibds in PID namespaces of their own may have the same number.
        self._name = f"netlib-guests-{os.getpid()}-{os.urandom(2).hex()}"
        self._socket: NetlinkSocket | None = None
        self.guests: frozenset[Guest] = frozenset()  # in the kernel's table

    def change(self, leaving: Iterable[Guest], joining: Iterable[Guest]) -> None:
        """Remove guests and add others, in one transaction; one that is removed or added already is no error.

        Raises NetlibError, and changes nothing, where the kernel lacks it or this process may not.
        """
        guests = self.guests.difference(leaving).union(joining)
        messages: list[tuple[int, int, bytes]] = []
        if guests and not self.guests:
            messages += self._whole_table()
        if guests:
            if gone := self.guests - guests:
                shared = {(guest.gateway, guest.client) for guest in gone}  # another guest may have the same address by now
                kept = _elements(guest for guest in guests if (guest.gateway, guest.client) in shared)
                leaving_keys = {name: keys - kept[name] for name, keys in _elements(gone).items()}
                messages += self._element_messages(DELSETELEM, 0, leaving_keys)
            messages += self._element_messages(NEWSETELEM, CREATE, _elements(guests - self.guests))
        elif self.guests:
            messages.append((DELTABLE, 0, BRIDGE_HEADER + text(1, self._name)))
        if messages:
            with doing("tell the guests of gateways apart by bridge port"):
                if self._socket is None:
                    self._socket = NetlinkSocket(NETFILTER)
                self._socket.transact(NFTABLES, messages)
        self.guests = guests

    def close(self) -> None:
        """Remove the table."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self.guests = frozenset()

    def _whole_table(self) -> Iterator[tuple[int, int, bytes]]:
        yield NEWTABLE, CREATE, BRIDGE_HEADER + text(1, self._name) + number(2, _OWNER)
        for set_number, (name, types) in enumerate(_SETS.items(), 1):
            size = sum(length for _, length in types)
            code = 0
            for nft_type, _ in types:
                code = code << _TYPE_BITS | nft_type
            described = text(1, self._name) + text(2, name) + number(4, code) + number(5, size) + number(10, set_number)
            yield NEWSET, CREATE, BRIDGE_HEADER + described
        yield NEWCHAIN, CREATE, BRIDGE_HEADER + hooked_chain(self._name, _CHAIN, "filter", _PREROUTING, _FIRST)
        for version, protocol in product(_FAMILIES, (socket.IPPROTO_UDP, socket.IPPROTO_TCP)):
            rule = nest(4, _rule(version, protocol))
            yield NEWRULE, CREATE | APPEND, BRIDGE_HEADER + text(1, self._name) + text(2, _CHAIN) + rule

    def _element_messages(self, kind: int, flags: int, sets: dict[str, set[bytes]]) -> Iterator[tuple[int, int, bytes]]:
        for name, keys in sets.items():
            ordered = sorted(keys)
            for start in range(0, len(ordered), AT_ONCE):
                yield kind, flags, BRIDGE_HEADER + set_elements(self._name, name, ordered[start : start + AT_ONCE])


def _elements(guests: Iterable[Guest]) -> dict[str, set[bytes]]:
    """The keys of *guests* in each set."""
    found: dict[str, set[bytes]] = {name: set() for name in _SETS}
    for guest in guests:
        pair = guest.gateway.packed + guest.client.packed
        found[f"guests{guest.client.version}"].add(pair)
        port = ifname_key(checked_ifname(guest.port))
        found[f"ports{guest.client.version}"].add(pair + port)
    return found


def _rule(version: int, protocol: int) -> bytes:
    """``udp dport 53  ip daddr . ip saddr @guests4  ip daddr . ip saddr . iifname != @ports4  drop``, for IPv4 and UDP.

    A fragment that is not the first has no port and passes: without the first it is useless. The IP version is the packet's
    (``meta protocol``), not the frame's type, which is another one where there is a VLAN tag with the number 0.
    """
    family = _FAMILIES[version]
    words = family.size // 4
    source, ifname = _FIRST_WORD + words, _FIRST_WORD + 2 * words
    return b"".join(
        (
            expression("meta", number(2, _META_PROTOCOL), number(1, 1)),
            compare(struct.pack("!H", family.ethertype)),
            expression("meta", number(2, _META_L4PROTO), number(1, 1)),
            compare(bytes([protocol])),
            load(TRANSPORT_HEADER, 2, 2),
            compare(struct.pack("!H", _DNS_PORT)),
            load(NETWORK_HEADER, family.destination, family.size, _FIRST_WORD),
            load(NETWORK_HEADER, family.source, family.size, source),
            expression("lookup", text(1, f"guests{version}"), number(2, _FIRST_WORD)),
            expression("meta", number(2, _META_IIFNAME), number(1, ifname)),
            expression("lookup", text(1, f"ports{version}"), number(2, _FIRST_WORD), number(5, _INVERTED)),
            expression("immediate", number(1, 0), nest(2, nest(2, number(1, _DROP)))),
        )
    )
