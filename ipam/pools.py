"""Arithmetic of subnets and ranges on integers, without store and kernel.

A span (:class:`netlib.ipamapi.Span`) is a pair of integers, because a search for a free subnet compares thousands of blocks.
netaddr is not used for it, because its import takes 45 ms.
"""

import ipaddress
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from netlib.errors import ConfigError
from netlib.ipamapi import Span, span, usable_span
from netlib.model import IPAddress, IPNetwork

__all__ = [
    "DEFAULT_BLOCKS",
    "Block",
    "Span",
    "address_at",
    "check_subnet",
    "dynamic_span",
    "first_fit",
    "is_specific",
    "merged",
    "overlap",
    "span",
    "subnet_at",
    "usable_span",
]


class Block(NamedTuple):
    """A part of the address space, and the prefix length of the automatic subnets in it."""

    base: IPNetwork
    prefixlen: int


# Docker's defaults in Docker's order (moby, daemon/libnetwork/ipamutils), and then /24s, where Docker has no more subnets.
DEFAULT_BLOCKS = (
    *(Block(ipaddress.ip_network(f"172.{second}.0.0/16"), 16) for second in range(17, 32)),
    Block(ipaddress.ip_network("192.168.0.0/16"), 20),
    Block(ipaddress.ip_network("10.0.0.0/8"), 24),
)

_LONGEST_PREFIX = {4: 30, 6: 126}
_NOT_FOR_LINKS = (
    (ipaddress.ip_network("0.0.0.0/8"), 'the "this network" addresses'),
    (ipaddress.ip_network("127.0.0.0/8"), "the loopback addresses"),
    (ipaddress.ip_network("224.0.0.0/4"), "the multicast addresses"),
    (ipaddress.ip_network("255.255.255.255/32"), "the broadcast address"),
    (ipaddress.ip_network("::/127"), "the unspecified and the loopback address"),
    (ipaddress.ip_network("::ffff:0:0/96"), "the IPv4-mapped addresses"),
    (ipaddress.ip_network("fe80::/10"), "the link-local addresses"),
    (ipaddress.ip_network("ff00::/8"), "the multicast addresses"),
)


def address_at(family: int, number: int) -> IPAddress:
    """Return the address of *family* (4 or 6) with that *number*."""
    return ipaddress.IPv4Address(number) if family == 4 else ipaddress.IPv6Address(number)


def subnet_at(family: int, first: int, prefixlen: int) -> IPNetwork:
    """Return the subnet of *family* (4 or 6) whose network address has the number *first*."""
    return ipaddress.IPv4Network((first, prefixlen)) if family == 4 else ipaddress.IPv6Network((first, prefixlen))


def check_subnet(subnet: IPNetwork) -> None:
    """Raise ConfigError for a subnet without room for a gateway and a member, or with addresses that no interface may have."""
    longest = _LONGEST_PREFIX[subnet.version]
    if subnet.prefixlen > longest:
        raise ConfigError(f"subnet {subnet} is too small for a gateway and a member; the smallest is a /{longest}")
    for special, name in _NOT_FOR_LINKS:
        if special.version == subnet.version and overlap(span(special), span(subnet)):
            raise ConfigError(f"subnet {subnet} covers {name} ({special}), not for interfaces; choose a private subnet")


def dynamic_span(subnet: IPNetwork, ip_range: IPNetwork | None) -> Span:
    """Return the span of dynamic addresses: the usable addresses of *ip_range*, or of the whole subnet without a range.

    Raises ConfigError when the range is not inside the subnet, or has no usable address.
    """
    usable = usable_span(subnet)
    if ip_range is None:
        return usable
    if ip_range.version != subnet.version or not span(subnet).contains(span(ip_range)):
        raise ConfigError(f"ip-range {ip_range} is not inside subnet {subnet}; choose a part of it")
    wanted = span(ip_range)
    dynamic = Span(max(usable.first, wanted.first), min(usable.last, wanted.last))
    if dynamic.size < 1:
        raise ConfigError(f"ip-range {ip_range} holds no address of {subnet} that an interface may have; choose a larger one")
    return dynamic


def overlap(one: Span, other: Span) -> bool:
    """Whether two spans share an address."""
    return one.first <= other.last and other.first <= one.last


def is_specific(route: IPNetwork) -> bool:
    """Whether a route is neither a default route nor half of one (0.0.0.0/1, as VPN clients set it)."""
    return route.prefixlen > 1


def merged(routes: Iterable[IPNetwork], family: int) -> list[Span]:
    """Return the specific routes of *family* as disjoint spans in ascending order."""
    wanted = [route for route in routes if route.version == family and is_specific(route)]
    if not wanted:
        return []
    from netaddr import IPNetwork as Cidr  # 30 ms of imports, only for an automatic subnet on a host with routes
    from netaddr import IPSet

    return [Span(part.first, part.last) for part in IPSet(Cidr(str(route)) for route in wanted).iter_ipranges()]


def first_fit(hole: Span, size: int, taken: Sequence[Span]) -> int | None:
    """Find the first block of *size* addresses in *hole* that overlaps none of *taken*; return its first address, or None.

    *size* is a power of two, and a block begins at a multiple of it. *taken* are disjoint and in ascending order.
    """
    lasts = [last for _, last in taken]
    start = _aligned(hole.first, size)
    while start + size - 1 <= hole.last:
        position = bisect_left(lasts, start)
        if position == len(taken) or taken[position].first > start + size - 1:
            return start
        start = _aligned(taken[position].last + 1, size)
    return None


def _aligned(address: int, size: int) -> int:
    return -(-address // size) * size
