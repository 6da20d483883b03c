"""nftables' messages of our own making: the attributes of rules, in nft's own expressions.

For tables that are small and always the same. Numbers: ``linux/netfilter/nf_tables.h``.
"""

import struct

from netlib.kernel.netlink import attribute, nest, text

__all__ = [
    "APPEND",
    "DELRULE",
    "DELSETELEM",
    "DELTABLE",
    "NETFILTER",
    "NETWORK_HEADER",
    "NEWCHAIN",
    "NEWRULE",
    "NEWSET",
    "NEWSETELEM",
    "NEWTABLE",
    "NFTABLES",
    "TRANSPORT_HEADER",
    "compare",
    "expression",
    "hooked_chain",
    "load",
    "number",
]

NETFILTER = 12  # NETLINK_NETFILTER
NFTABLES = 10  # NFNL_SUBSYS_NFTABLES
NEWTABLE, DELTABLE, NEWCHAIN, NEWRULE, DELRULE = (NFTABLES << 8 | number for number in (0, 2, 3, 6, 8))
NEWSET, NEWSETELEM, DELSETELEM = (NFTABLES << 8 | number for number in (9, 12, 14))
APPEND = 0x800  # NLM_F_APPEND
NETWORK_HEADER, TRANSPORT_HEADER = 1, 2  # NFT_PAYLOAD_*
_EQUAL = 0  # NFT_CMP_EQ


def hooked_chain(table: str, name: str, kind: str, hook: int, priority: int) -> bytes:
    """A chain of *table* that packets pass at *hook*."""
    place = nest(4, number(1, hook), attribute(2, struct.pack("!i", priority)))
    return text(1, table) + text(3, name) + place + text(7, kind)


def load(base: int, offset: int, size: int, register: int = 1) -> bytes:
    """Take some of the packet into a register."""
    return expression("payload", number(1, register), number(2, base), number(3, offset), number(4, size))


def compare(value: bytes, register: int = 1) -> bytes:
    """Go on only where the register is *value*."""
    return expression("cmp", number(1, register), number(2, _EQUAL), nest(3, attribute(1, value)))


def expression(name: str, *attributes: bytes) -> bytes:
    """One expression of a rule."""
    return nest(1, text(1, name), nest(2, *attributes))


def number(kind: int, value: int) -> bytes:
    """An attribute of 32 bits, in the network's byte order."""
    return attribute(kind, struct.pack("!I", value))
