"""Source addresses of members of a masquerading network: a frame with another address than the member's own is dropped.

::

    member ── veth ──┬─ bridge netlib_members prerouting: port . source in the set? ── bridge ──┬─ another member
                     └─ no: dropped                                                             └─ the host, and beyond

A table of the bridge family sees a frame when the member's port has received it, before the bridge and br_netfilter do: the
check does not depend on where the frame is sent, and a port cannot be spoofed as a MAC address can. The chain never changes; a
member is one element for its port and one for each address, so that the thousandth costs what the first did.

Members' elements are changed by netlink messages of our own, as the resolver's table is (:mod:`netlib.firewall.dnstable`):
0.05 ms of a connect. ARP is not checked, nor which address of fe80::/10 a member uses: the kernel chooses that one in the
member's netns.
"""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING

from netlib.errors import ObjectMissing
from netlib.firewall.bridgetable import BridgeConversation, BridgeTable
from netlib.firewall.expressions import (
    AT_ONCE,
    BRIDGE_HEADER,
    DELSETELEM,
    NEWSETELEM,
    NFTABLES,
    ifname_key,
    set_elements,
)
from netlib.firewall.libnftables import nft
from netlib.firewall.ruleset import checked_ifname
from netlib.kernel.netlink import CREATE
from netlib.kernel.netns import command_in
from netlib.kernel.translate import doing
from netlib.model import IPAddress
from netlib.plan import KernelObject, Key

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel

__all__ = ["MemberConversation", "MemberTable", "PortSources"]

TABLE_NAME = "netlib_members"
TABLE = f"bridge {TABLE_NAME}"
_PORTS, _SOURCES = "ports", {4: "sources4", 6: "sources6"}
_ADDRESSLESS = "nd-neighbor-solicit, nd-router-solicit, mld-listener-report, mld2-listener-report"
# By "meta protocol" a frame with a VLAN tag is one of its IP version too; "ether type" would be the tag's.
_RULES = (
    (f"iifname != @{_PORTS} accept", "no member of a masquerading network"),
    (f"meta protocol ip iifname . ip saddr @{_SOURCES[4]} accept", "a member's own address"),
    ("meta protocol ip ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept", "DHCP, before there is an address"),
    ("meta protocol ip ip saddr 0.0.0.0 ip protocol igmp accept", "groups, before there is an address"),
    ("meta protocol ip drop", "somebody else's address"),
    (f"meta protocol ip6 iifname . ip6 saddr @{_SOURCES[6]} accept", "a member's own IPv6 address"),
    ("meta protocol ip6 ip6 saddr fe80::/10 accept", "of the link alone"),
    (
        f"meta protocol ip6 ip6 saddr :: icmpv6 type {{ {_ADDRESSLESS} }} accept",
        "before there is an IPv6 address",
    ),
    ("meta protocol ip6 drop", "somebody else's IPv6 address"),
    # The kernel removes the inner tags later, and would then use an address that was not checked here.
    ("meta protocol { 8021q, 8021ad } drop", "a tag within a tag"),
)


class MemberConversation(BridgeConversation):
    """A conversation about members of one netns."""

    def change(self, verbs: Sequence[int], ports: Sequence["PortSources"]) -> None:
        """Do each of *verbs* (add, delete) with the elements of *ports* in one transaction; ObjectMissing without a table."""
        action = f"change whose addresses {', '.join(item.port for item in ports[:3])} may send from in {self.netns.label}"
        sock, holders = self.opened(action), _by_set(ports)
        messages = [(verb, CREATE if verb == NEWSETELEM else 0, payload) for verb in verbs for payload in holders]
        with doing(action):
            sock.transact(NFTABLES, messages)


def _by_set(ports: Sequence["PortSources"]) -> list[bytes]:
    """The payload of a message for each set that *ports* have elements in."""
    found: dict[str, list[bytes]] = {}
    for item in ports:
        for holder, key in item.entries:
            found.setdefault(holder, []).append(key)
    return [BRIDGE_HEADER + set_elements(TABLE_NAME, holder, keys) for holder, keys in found.items()]


class MemberTable(BridgeTable, frozen=True, kw_only=True, tag="member_table"):
    """The table; every :class:`PortSources` is a few elements in it."""

    table = TABLE
    part = "member table"
    sets = ((_PORTS, "ifname"), (_SOURCES[4], "ifname . ipv4_addr"), (_SOURCES[6], "ifname . ipv6_addr"))
    rules = _RULES

    def carries_in(self) -> tuple[str, ...]:
        return (self.netns.path,)

    def carries(self, other: KernelObject) -> bool:
        return isinstance(other, PortSources) and other.netns.path == self.netns.path


class PortSources(KernelObject, frozen=True, kw_only=True, tag="port_sources"):
    """The only addresses that a member may send from through its bridge *port*, besides fe80::/10 and no address at all.

    With *by* (an endpoint's id) *addresses* are those of that other endpoint of the same sandbox. They are allowed too, for an
    answer leaves by the link with the best route, whichever address was asked. An endpoint has its addresses as long as its
    port, so an object never loses one.
    """

    batch = "port sources"

    port: str  # not called ifname: it outlives the link
    addresses: tuple[IPAddress, ...] = ()
    by: str = ""

    @cached_property
    def key(self) -> Key:
        return Key("firewall", self.netns.path, f"sources/{self.port}" + (f"/{self.by}" if self.by else ""))

    @property
    def entries(self) -> Iterator[tuple[str, bytes]]:
        """The name of a set and the key in it, for each element."""
        port = ifname_key(self.port)
        if not self.by:
            yield _PORTS, port
        for address in self.addresses:
            yield _SOURCES[address.version], port + address.packed

    @property
    def _spelled(self) -> Iterator[str]:
        port = f'"{checked_ifname(self.port)}"'
        if not self.by:
            yield f"{TABLE} {_PORTS} {{ {port} }}"
        for address in self.addresses:
            yield f"{TABLE} {_SOURCES[address.version]} {{ {port} . {address} }}"

    def ensure(self, kernel: "Kernel") -> None:
        self.ensure_many(kernel, (self,))

    def remove(self, kernel: "Kernel") -> None:
        self.remove_many(kernel, (self,))

    @classmethod
    def ensure_many(cls, kernel: "Kernel", run: Sequence[KernelObject]) -> None:
        """Apply the run, and make the table where it is missing: a network of an older netlib has none."""
        conversation = kernel.kept(run[0].netns, MemberConversation)
        for some in _parts(run):
            try:
                conversation.change((NEWSETELEM,), some)
            except ObjectMissing:
                MemberTable(netns=run[0].netns).ensure(kernel)
                conversation.change((NEWSETELEM,), some)

    @classmethod
    def remove_many(cls, kernel: "Kernel", run: Sequence[KernelObject]) -> None:
        conversation = kernel.kept(run[0].netns, MemberConversation)
        for some in _parts(run):
            with suppress(ObjectMissing):  # no table, or no netns
                conversation.change((NEWSETELEM, DELSETELEM), some)

    def drift(self, kernel: "Kernel") -> str | None:
        try:
            for element in self._spelled:
                nft(kernel, self.netns).text(f"get element {element}")
        except ObjectMissing:
            own = ", ".join(map(str, self.addresses)) or "none"
            return f"bridge port {self.port} may send from other addresses than its own ({own}), or not from all of these"
        return None

    def commands(self) -> Iterator[str]:
        return (command_in(self.netns, f"nft {shlex.quote(f'add element {element}')}") for element in self._spelled)


def _parts(run: Sequence[KernelObject]) -> Iterator[list[PortSources]]:
    """Split the run so that every message is short enough: 60 KiB of messages in one transaction."""
    ports = [item for item in run if isinstance(item, PortSources)]
    for start in range(0, len(ports), AT_ONCE):
        yield ports[start : start + AT_ONCE]
