"""What the kernel says about a link, as one typed value. Numbers: ``linux/if_link.h``, ``linux/if.h``."""

import struct

from msgspec import Struct

from netlib.kernel.netlink import Attributes, attributes_of, number, number_of, text

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_PROTINFO, IFLA_LINKINFO, IFLA_IFALIAS, IFLA_AF_SPEC, IFLA_GROUP = 12, 18, 20, 26, 27
IFLA_NET_NS_FD, IFLA_EXT_MASK, IFLA_LINK_NETNSID = 28, 29, 37
IFLA_TXQLEN, IFLA_PERM_ADDRESS = 13, 54
INFO_KIND, INFO_DATA, INFO_SLAVE_DATA = 1, 2, 5
BR_VLAN_FILTERING, BR_NF_CALL_IPTABLES, BR_NF_CALL_IP6TABLES = 7, 36, 37
BRPORT_MODE, BRPORT_LEARNING, BRPORT_ISOLATED = 4, 8, 33  # mode 1 is hairpin
IFF_UP, IFF_PROMISC, IFF_ALLMULTI = 0x1, 0x100, 0x200

_IFINFO = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_NO_STATISTICS = number(IFLA_EXT_MASK, 8)  # RTEXT_FILTER_SKIP_STATS: they are most of the answer


def link_header(index: int = 0, flags: int = 0, change: int = 0, family: int = 0) -> bytes:
    """The fixed part of a link message; index 0 where the link is named by an attribute."""
    return _IFINFO.pack(family, 0, index, flags, change)


ALL_LINKS = (RTM_GETLINK, link_header(), _NO_STATISTICS)
"""The question to dump for every link."""


def link_named(ifname: str) -> tuple[int, bytes, bytes, bytes]:
    """The question for one link."""
    return RTM_GETLINK, link_header(), text(IFLA_IFNAME, ifname), _NO_STATISTICS


def link_numbered(index: int) -> tuple[int, bytes, bytes]:
    """The question for the link of that index."""
    return RTM_GETLINK, link_header(index), _NO_STATISTICS


def master_of(_header: bytes, found: Attributes) -> int:
    """The ifindex of the bridge or VRF that a link (one message) is in, or 0."""
    return number_of(found.get(IFLA_MASTER))


class LinkInfo(Struct, frozen=True):
    """A link; ``kind`` is ``device`` for what was not made by netlink (lo, a network card)."""

    index: int
    ifname: str
    kind: str
    up: bool
    mtu: int
    mac: str
    alias: str
    group: int
    master: int  # index of its bridge, 0 for none
    peer: int  # ifindex of a veth's other end in its netns, or of the parent of a macvlan or a VLAN
    peer_nsid: int | None  # the number that this netns has for the peer's; None for the same netns
    data: Attributes  # the settings of its kind
    port: Attributes  # of a bridge port: its settings
    flags: int  # IFF_*, those that were set by hand
    txqlen: int
    permanent_mac: str  # the one built into a network card, or ""
    family_settings: bytes  # of IPv4 and IPv6, not decoded: few need them

    @classmethod
    def of(cls, header: bytes, found: Attributes) -> "LinkInfo":
        """Decode one message."""
        _, _, index, flags, _ = _IFINFO.unpack(header)
        info = attributes_of(found.get(IFLA_LINKINFO, b""))
        nsid = found.get(IFLA_LINK_NETNSID)
        return cls(
            index=index,
            ifname=_text(found.get(IFLA_IFNAME)),
            kind=_text(info.get(INFO_KIND)) or "device",
            up=bool(flags & IFF_UP),
            mtu=number_of(found.get(IFLA_MTU)),
            mac=found.get(IFLA_ADDRESS, b"").hex(":"),
            alias=_text(found.get(IFLA_IFALIAS)),
            group=number_of(found.get(IFLA_GROUP)),
            master=number_of(found.get(IFLA_MASTER)),
            peer=number_of(found.get(IFLA_LINK)),
            peer_nsid=None if nsid is None else struct.unpack("=i", nsid)[0],
            data=attributes_of(info.get(INFO_DATA, b"")),
            port=attributes_of(info.get(INFO_SLAVE_DATA, b"")),
            flags=flags,
            txqlen=number_of(found.get(IFLA_TXQLEN)),
            permanent_mac=found.get(IFLA_PERM_ADDRESS, b"").hex(":"),
            family_settings=found.get(IFLA_AF_SPEC, b""),
        )


def _text(value: bytes | None) -> str:
    return (value or b"").rstrip(b"\0").decode(errors="replace")
