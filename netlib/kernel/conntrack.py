"""Deleting tracked connections when other containers, or none, are to answer them from now on.

The kernel cannot see that a UDP flow has ended: its packets keep following the entry of the first packet, to a container that
is gone, or past a port published later. Attributes: ``linux/netfilter/nfnetlink_conntrack.h``.
"""

import errno
import socket
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from netlib.kernel.netlink import Attributes, NetlinkSocket, attribute, attributes_of, nest
from netlib.kernel.sysctl import read_sysctl
from netlib.kernel.translate import doing
from netlib.model import HOST, IPAddress, NetnsRef

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel

_NETLINK_NETFILTER = 12
_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_*
_ORIGINAL, _REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25  # CTA_TUPLE_ORIG …
_IP, _PROTO = 1, 2  # CTA_TUPLE_*
_SOURCE, _DESTINATION = {4: 1, 6: 3}, {4: 2, 6: 4}  # CTA_IP_V4_SRC …
_NUMBER, _DESTINATION_PORT = 1, 3  # CTA_PROTO_*
_FLAG_SOURCE, _FLAG_DESTINATION, _FLAG_NUMBER, _FLAG_DESTINATION_PORT = 1, 2, 8, 32
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
# By filter, a port costs 0.1 to 2 ms, for the kernel walks its whole table for each; one listing costs 10 to 70 ms.
_LIST_FROM_PORTS = 32


class _Wanted(NamedTuple):
    """A selection of connections; each part that is given must match."""

    version: int
    tuple: int  # _ORIGINAL or _REPLY: compare with the first packets, or with the answers
    source: bytes | None = None
    destination: bytes | None = None
    udp: bool = False
    ports: frozenset[int] = frozenset()  # destination

    @property
    def is_filterable(self) -> bool:
        """Whether :meth:`filter` selects these connections and no others."""
        return len(self.ports) < 2 and (self.version == 4 or not (self.source or self.destination))

    def filter(self) -> bytes:
        """The part of the selection that the kernel can filter by (since 5.8 in a listing, 6.8 in a deletion).

        A filter holds one port at most. An IPv6 address is left out, for the kernel takes it for the one *not* to be found
        (``ctnetlink_filter_match_tuple`` has the comparison the wrong way round, up to 6.18 at least).
        """
        addresses, protocol, flags = [], [], 0
        if self.source and self.version == 4:
            addresses.append(attribute(_SOURCE[self.version], self.source))
            flags |= _FLAG_SOURCE
        if self.destination and self.version == 4:
            addresses.append(attribute(_DESTINATION[self.version], self.destination))
            flags |= _FLAG_DESTINATION
        if self.udp:
            protocol.append(attribute(_NUMBER, bytes([socket.IPPROTO_UDP])))
            flags |= _FLAG_NUMBER
        if len(self.ports) == 1:
            protocol.append(attribute(_DESTINATION_PORT, struct.pack("!H", *self.ports)))
            flags |= _FLAG_DESTINATION_PORT
        parts = [nest(kind, *found) for kind, found in ((_IP, addresses), (_PROTO, protocol)) if found]
        if not parts:
            return b""
        by_tuple = [struct.pack("=I", flags if kind == self.tuple else 0) for kind in (_ORIGINAL, _REPLY)]
        return nest(self.tuple, *parts) + nest(_FILTER, attribute(1, by_tuple[0]), attribute(2, by_tuple[1]))

    def fits(self, connection: Attributes) -> bool:
        """Whether a listed *connection* is selected; older kernels list all connections."""
        found = attributes_of(connection[self.tuple])
        addresses, protocol = attributes_of(found[_IP]), attributes_of(found[_PROTO])
        port = protocol.get(_DESTINATION_PORT)
        return (
            self.source in (None, addresses.get(_SOURCE[self.version]))
            and self.destination in (None, addresses.get(_DESTINATION[self.version]))
            and (not self.udp or protocol.get(_NUMBER) == bytes([socket.IPPROTO_UDP]))
            and (not self.ports or (port is not None and struct.unpack("!H", port)[0] in self.ports))
        )

    @property
    def header(self) -> bytes:
        return struct.pack("!BBH", _FAMILY[self.version], 0, 0)  # nfgenmsg


def flush_udp(kernel: "Kernel", ports: Iterable[int], address: IPAddress | None = None, netns: NetnsRef = HOST) -> None:
    """Delete tracked UDP connections to *ports* of *address*, or of any: for a port just published, or published no longer."""
    wanted = frozenset(ports)
    versions = (address.version,) if address else (4, 6)
    destination = address.packed if address else None
    sets = [wanted] if len(wanted) >= _LIST_FROM_PORTS else [frozenset([port]) for port in sorted(wanted)]
    _flush(kernel, netns, [_Wanted(version, _ORIGINAL, None, destination, True, some) for version in versions for some in sets])


def _flush(kernel: "Kernel", netns: NetnsRef, all_wanted: list[_Wanted]) -> None:
    if read_sysctl(kernel, netns, "net/netfilter/nf_conntrack_count") in (None, "0"):  # not loaded, or nothing tracked
        return
    action = f"flush tracked connections in {netns.label}"
    with kernel.entered(netns), doing(action):
        conntrack = NetlinkSocket(_NETLINK_NETFILTER)
    try:
        with doing(action):
            for wanted in all_wanted:
                if not wanted.is_filterable or not _delete_by_filter(conntrack, wanted):
                    _delete_listed(conntrack, wanted)
    finally:
        conntrack.close()


def _delete_by_filter(conntrack: NetlinkSocket, wanted: _Wanted) -> bool:
    """Delete by one request; False where the kernel (before 6.8) filters no deletions and finds the tuple incomplete."""
    (refusal,) = conntrack.order([(_DELETE, 0, wanted.header + wanted.filter())])
    if refusal is None or refusal.errno == errno.ENOENT:
        return True
    if refusal.errno in (errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise refusal


def _delete_listed(conntrack: NetlinkSocket, wanted: _Wanted) -> None:
    """List connections, filtered as far as the kernel can, and delete each selected one by its own tuple."""
    orders = []
    for _, connection in conntrack.dump(_GET, wanted.header, wanted.filter()):
        if wanted.fits(connection):
            zone = attribute(_ZONE, connection[_ZONE]) if _ZONE in connection else b""
            identity = attribute(_ID, connection[_ID])
            orders.append((_DELETE, 0, wanted.header + nest(_ORIGINAL, connection[_ORIGINAL]) + zone + identity))
    for refusal in conntrack.order(orders):
        if refusal is not None and refusal.errno != errno.ENOENT:
            raise refusal
