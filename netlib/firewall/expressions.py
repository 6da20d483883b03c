"""Messages of nftables without a library: the attributes of rules, in the expressions that nft uses.

For small tables that never change. Numbers: ``linux/netfilter/nf_tables.h``.
"""

import struct
from collections.abc import Iterable

from netlib.kernel.netlink import attribute, nest, text

__all__ = [
    "AT_ONCE",
    "BRIDGE_HEADER",
    "DELCHAIN",
    "DELRULE",
    "DELSETELEM",
    "DELTABLE",
    "GETRULE",
    "IFNAME_SIZE",
    "NETFILTER",
    "NETWORK_HEADER",
    "NEWCHAIN",
    "NEWRULE",
    "NEWSET",
    "NEWSETELEM",
    "NEWTABLE",
    "NFTABLES",
    "TRANSPORT_HEADER",
    "comment_of",
    "compare",
    "expression",
    "hooked_chain",
    "ifname_key",
    "load",
    "number",
    "set_elements",
]

NETFILTER = 12  # NETLINK_NETFILTER
NFTABLES = 10  # NFNL_SUBSYS_NFTABLES
NEWTABLE, DELTABLE, NEWCHAIN, DELCHAIN, NEWRULE, GETRULE, DELRULE = (NFTABLES << 8 | number for number in (0, 2, 3, 5, 6, 7, 8))
NEWSET, NEWSETELEM, DELSETELEM = (NFTABLES << 8 | number for number in (9, 12, 14))
BRIDGE_HEADER = struct.pack("=BBH", 7, 0, 0)  # nfgenmsg of NFPROTO_BRIDGE
IFNAME_SIZE = 16
AT_ONCE = 256  # elements in a message: an attribute is 64 KiB long at most
NETWORK_HEADER, TRANSPORT_HEADER = 1, 2  # NFT_PAYLOAD_*
_EQUAL = 0  # NFT_CMP_EQ


def hooked_chain(table: str, name: str, kind: str, hook: int, priority: int) -> bytes:
    """A chain of *table* that packets pass at *hook*."""
    place = nest(4, number(1, hook), attribute(2, struct.pack("!i", priority)))
    return text(1, table) + text(3, name) + place + text(7, kind)


def load(base: int, offset: int, size: int, register: int = 1) -> bytes:
    """Load *size* bytes of the packet into a register."""
    return expression("payload", number(1, register), number(2, base), number(3, offset), number(4, size))


def compare(value: bytes, register: int = 1) -> bytes:
    """Match only where the register holds *value*."""
    return expression("cmp", number(1, register), number(2, _EQUAL), nest(3, attribute(1, value)))


def expression(name: str, *attributes: bytes) -> bytes:
    """One expression of a rule."""
    return nest(1, text(1, name), nest(2, *attributes))


def comment_of(user_data: bytes) -> str:
    """The comment in a rule's user data: attributes of one byte each for type and length, of which nft's type 0 is a text."""
    at = 0
    while at + 2 <= len(user_data):
        kind, length = user_data[at], user_data[at + 1]
        if kind == 0:
            return user_data[at + 2 : at + 2 + length].rstrip(b"\0").decode(errors="replace")
        at += 2 + length
    return ""


def number(kind: int, value: int) -> bytes:
    """An attribute of 32 bits, in the network's byte order."""
    return attribute(kind, struct.pack("!I", value))


def ifname_key(ifname: str) -> bytes:
    """The name of a link as (part of) a set's key."""
    return ifname.encode().ljust(IFNAME_SIZE, b"\0")


def set_elements(table: str, holder: str, keys: Iterable[bytes]) -> bytes:
    """The attributes of a message about elements of the set *holder* (NFTA_SET_ELEM_LIST_*), given by their keys."""
    elements = (nest(1, nest(1, attribute(1, key))) for key in keys)  # list element, its key, the value
    return text(1, table) + text(2, holder) + nest(3, *elements)
