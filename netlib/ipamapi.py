"""The contract of an IPAM driver, which has libnetwork's four verbs, and the part of the store that it may use.

Drivers are found by name (``netlib.ipam_drivers``). Their verbs run inside the transaction that writes the record, so an
address is leased if and only if its owner is recorded. They must be quick, because the store's write lock is held meanwhile. A
driver that has to ask another process or host does that before the transaction, as :class:`netlib.facts.Prepares` describes.
Addresses are ``ipaddress`` objects in these signatures.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from msgspec import Struct

from netlib.model import AddressPool, IPAddress, IPInterface, IPNetwork

__all__ = ["Holder", "IpamDriver", "Leased", "Leases", "Pool", "PoolRequest", "Span", "span", "usable_span"]


class Span(NamedTuple):
    """Consecutive addresses as integers, both ends included. Comparing two takes 0.06 µs, with ``ipaddress`` 1.6 µs."""

    first: int
    last: int

    @property
    def size(self) -> int:
        return self.last - self.first + 1

    def contains(self, other: "Span") -> bool:
        return self.first <= other.first and other.last <= self.last


def span(network: IPNetwork) -> Span:
    """Return the span of all addresses of *network*."""
    return Span(int(network.network_address), int(network.broadcast_address))


def usable_span(subnet: IPNetwork) -> Span:
    """Return the addresses for interfaces: without network and broadcast address; in IPv6 without the anycast address.

    The anycast address is the first one of a subnet, by RFC 4291, 2.6.1.
    """
    first, last = span(subnet)
    return Span(first + 1, last - 1 if subnet.version == 4 else last)


class PoolRequest(Struct, frozen=True, kw_only=True):
    """A network's request for a subnet of one family; the driver chooses what is left out."""

    family: int  # 4 or 6
    subnet: IPNetwork | None = None
    ip_range: IPNetwork | None = None
    gateway: IPAddress | None = None
    wants_gateway: bool = True
    auxiliary: dict[str, IPAddress] = {}
    options: Mapping[str, str] = {}  # ``--ipam-opt``, which the driver checks
    blocks: tuple[tuple[IPNetwork, int], ...] = ()  # for an automatic subnet, each with its prefix length; empty: the driver's
    facts: Mapping[str, Any] = {}  # the facts that the driver's ``prepare`` returned for this network


class Pool(NamedTuple):
    """One subnet of a network in the store."""

    number: int
    network: str  # id
    subnet: IPNetwork
    dynamic: Span  # the addresses for endpoints that request no certain one


class Holder(NamedTuple):
    """Who has an address: the ``kind`` and plain ``name`` of a record's sandbox, say. As a text it is ``description``."""

    kind: str  # "sandbox", "auxiliary", "gateway" (then ``name`` is the network's)
    name: str
    description: str

    def __str__(self) -> str:
        return self.description


class Leased(NamedTuple):
    """One leased address: ``owner`` is the value given at the request, ``holder`` a description for people."""

    address: IPInterface
    owner: str
    holder: str


class Leases(Protocol):
    """The pools and leases in the store, as an IPAM driver uses them inside a transaction, without SQL."""

    def pools(self, network: str) -> Sequence[Pool]:
        """Return the pools of *network* (an id), in the order in which they were added."""
        ...

    def free_spans(self, within: IPNetwork) -> Iterator[Span]:
        """Yield the free spans that share an address with *within*, in ascending order; change no pool before the end."""
        ...

    def overlapping(self, subnet: IPNetwork) -> tuple[str, IPNetwork] | None:
        """Return network id and subnet of a pool that shares an address with *subnet*; None where there is none."""
        ...

    def add_pool(self, network: str, subnet: IPNetwork, dynamic: Span) -> Pool:
        """Reserve *subnet*, which overlaps no other pool, for *network*; all its usable addresses are free then."""
        ...

    def remove_pools(self, network: str) -> None:
        """Release the pools of *network* with all their leases; a no-op when it has none."""
        ...

    def lease(self, pool: Pool, address: IPAddress, owner: str) -> bool:
        """Lease *address* of *pool*; False when it is not free."""
        ...

    def lease_next(self, pool: Pool, owner: str) -> IPAddress | None:
        """Lease the next free dynamic address after the one that this method leased last; None where none is free."""
        ...

    def lease_first(self, pool: Pool, owner: str) -> IPAddress | None:
        """Lease the lowest free address of the dynamic span; None where none is free."""
        ...

    def release(self, network: str, owner: str) -> None:
        """Release all addresses of *network* that *owner* has; a no-op when it has none."""
        ...

    def holder(self, pool: Pool, address: IPAddress) -> Holder:
        """Return the holder of *address*; as a text it is a description for a message."""
        ...

    def count(self, pool: Pool, within: Span) -> int:
        """Return the number of leased addresses in *within*."""
        ...

    def listed(self, network: str) -> list[Leased]:
        """Return all leased addresses of *network* in ascending order, pool by pool."""
        ...

    def network_name(self, network: str) -> str:
        """Return the name of the network with that id."""
        ...

    def fact(self, key: str) -> str | None:
        """Return the value that :meth:`remember` stored under *key*, or None."""
        ...

    def remember(self, key: str, value: str) -> None:
        """Store a value of the driver's about this host; *key* begins with the driver's name."""
        ...


class IpamDriver(Protocol):
    """The methods of every IPAM driver."""

    @property
    def name(self) -> str:
        """The name by which a network asks for this driver; the entry point has the same."""
        ...

    def request_pool(self, leases: Leases, network: str, request: PoolRequest, avoid: Sequence[IPNetwork]) -> AddressPool:
        """Reserve a subnet for *network* (an id), with its gateway and auxiliary addresses.

        *avoid* holds the host's routes. An automatic subnet overlaps none of them and no pool of another network; a given one
        that overlaps is refused, and so is an option that the driver does not have. Raises ConfigError, Conflict,
        PoolExhausted.
        """
        ...

    def release_pool(self, leases: Leases, network: str) -> None:
        """Release all pools of *network* with their leases; a no-op when it has none."""
        ...

    def request_address(
        self,
        leases: Leases,
        network: str,
        subnet: IPNetwork,
        owner: str,
        preferred: IPAddress | None = None,
        *,
        facts: Mapping[str, Any] = {},
    ) -> IPInterface:
        """Lease *preferred*, or an address of the driver's choice, to *owner* (a record's id).

        *facts* are those that the driver's ``prepare`` returned for *owner*. Raises ConfigError for an address outside the
        subnet, AddressTaken with the holder's name, PoolExhausted.
        """
        ...

    def release_address(self, leases: Leases, network: str, owner: str) -> None:
        """Release all leases that *owner* holds in *network*; a no-op when it holds none."""
        ...
