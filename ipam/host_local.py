"""The ranges of the IPAM type ``host-local``: reading and checking them, and the order in which addresses are tried.

Pure. Hosts switch between the reference plugin and ours, so everything is done as there, also the text of refusals.
"""

from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import NamedTuple

from msgspec import Struct

from netlib.errors import ConfigError
from netlib.model import IPAddress, IPInterface, IPNetwork

__all__ = ["Range", "RangeSet", "RangeSpec", "parse_range", "parse_range_sets"]

_HOST_BITS = 2  # at least: four addresses are the network's, the gateway's, a container's and the broadcast address


class Range(Struct, frozen=True):
    """The addresses from *start* to *end*, both included, except the gateway."""

    subnet: IPNetwork
    start: IPAddress
    end: IPAddress
    gateway: IPAddress

    def __contains__(self, address: IPAddress) -> bool:
        return address.version == self.subnet.version and int(self.start) <= int(address) <= int(self.end)

    def __str__(self) -> str:
        return f"{self.start}-{self.end}"

    def overlaps(self, other: "Range") -> bool:
        """Whether the two ranges share an address."""
        return other.start in self or self.start in other

    def addresses(self, first: int, last: int) -> Iterator[IPAddress]:
        """Yield the addresses from number *first* to *last*, except the gateway."""
        kind = type(self.start)
        for number in range(first, last + 1):
            address = kind(number)
            if address != self.gateway:
                yield address


class RangeSpec(NamedTuple):
    """A range as it is written in a configuration."""

    subnet: IPInterface | None
    start: IPAddress | None = None
    end: IPAddress | None = None
    gateway: IPAddress | None = None


def parse_range(spec: RangeSpec) -> Range:
    """Check a range and fill in the defaults; raises ConfigError.

    The default gateway is the subnet's first address. By default the range is the whole subnet without network and broadcast
    address.
    """
    subnet, start, end, gateway = spec
    if subnet is None:
        raise ConfigError("a range without subnet; write its network like 10.1.0.0/16")
    network = subnet.network
    if network.prefixlen > network.max_prefixlen - _HOST_BITS:
        raise ConfigError(f"Network {subnet} too small to allocate from")
    if subnet.ip != network.network_address:
        raise ConfigError(
            f"Network has host bits set. For a subnet mask of length {network.prefixlen} "
            f"the network address is {network.network_address}"
        )
    first, last = network.network_address + 1, network.broadcast_address - (1 if network.version == 4 else 0)
    if start is not None and (start not in network or int(start) > int(end or last)):
        raise ConfigError(f"RangeStart {start} not in network {network}")
    if end is not None and (end not in network or int(end) < int(start or first)):
        raise ConfigError(f"RangeEnd {end} not in network {network}")
    return Range(network, start or first, end or last, gateway or first)


class RangeSet(tuple[Range, ...]):
    """Ranges of one address family; a container gets one address from the set."""

    __slots__ = ()

    def __str__(self) -> str:
        return ",".join(str(item) for item in self)

    def find(self, address: IPAddress) -> Range | None:
        """Return the range that contains *address*, or None."""
        return next((item for item in self if address in item), None)

    def order(self, last: IPAddress | None) -> Iterator[IPAddress]:
        """Yield each assignable address once, in the order to try them: beginning after the *last* assigned one, then around.

        So an address that has been freed is assigned again only after all others were.
        """
        middle = self.find(last) if last is not None else None
        if last is None or middle is None:
            return (address for item in self for address in item.addresses(int(item.start), int(item.end)))
        index = self.index(middle)
        spans = [(middle, int(last) + 1, int(middle.end))]
        spans += ((item, int(item.start), int(item.end)) for item in (*self[index + 1 :], *self[:index]))
        spans += [(middle, int(middle.start), int(last))]
        return (address for item, first, final in spans for address in item.addresses(first, final))


def parse_range_sets(specs: Iterable[Iterable[RangeSpec]]) -> tuple[RangeSet, ...]:
    """Check all ranges; ConfigError for a wrong range, a set of two families, an empty set, and ranges that overlap."""
    found: list[RangeSet] = []
    for index, written in enumerate(specs):
        try:
            found.append(_parse_range_set(written))
        except ConfigError as error:
            raise ConfigError(f"invalid range set {index}: {error}") from None
    if not found:
        raise ConfigError("no IP ranges specified")
    for (index, one), (other_index, other) in combinations(enumerate(found), 2):
        if any(left.overlaps(right) for left in one for right in other):
            raise ConfigError(f"range set {index} overlaps with {other_index}")
    return tuple(found)


def _parse_range_set(specs: Iterable[RangeSpec]) -> RangeSet:
    ranges = RangeSet(parse_range(spec) for spec in specs)
    if not ranges:
        raise ConfigError("empty range set")
    if len({item.subnet.version for item in ranges}) > 1:
        raise ConfigError("mixed address families")
    for one, other in combinations(ranges, 2):
        if one.overlaps(other):
            raise ConfigError(f"subnets {one} and {other} overlap")
    return ranges
