"""The contract of an IPAM driver: libnetwork's four verbs, found by name (``netlib.ipam_drivers``); what it may ask the store.

The verbs run inside the transaction that writes the record, so an address is leased if and only if its owner is written down.
They must be quick, for the store's write lock is held meanwhile: a driver that has to ask the world (another process, another
host) does that before, as :class:`netlib.facts.Prepares` describes. Addresses are ``ipaddress`` objects here; what a driver
computes with inside is its own affair.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from msgspec import Struct

from netlib.model import AddressPool, IPAddress, IPInterface, IPNetwork

__all__ = ["IpamDriver", "Leased", "Leases", "Pool", "PoolRequest", "Span"]


class Span(NamedTuple):
    """Consecutive addresses as numbers, both ends included: an overlap is found in 0.06 µs, with ``ipaddress`` in 1.6 µs."""

    first: int
    last: int

    @property
    def size(self) -> int:
        return self.last - self.first + 1

    def contains(self, other: "Span") -> bool:
        return self.first <= other.first and other.last <= self.last


class PoolRequest(Struct, frozen=True, kw_only=True):
    """What a network asks for in one family; everything left out is the driver's choice."""

    family: int  # 4 or 6
    subnet: IPNetwork | None = None
    ip_range: IPNetwork | None = None
    gateway: IPAddress | None = None
    wants_gateway: bool = True
    auxiliary: dict[str, IPAddress] = {}
    options: Mapping[str, str] = {}  # ``--ipam-opt``, for the driver to check
    blocks: tuple[tuple[IPNetwork, int], ...] = ()  # to cut an automatic subnet from, by prefix length; empty: the driver's
    facts: Mapping[str, Any] = {}  # what the driver's ``prepare`` found out for this network


class Pool(NamedTuple):
    """One subnet of a network, as the store has it."""

    number: int
    network: str  # id
    subnet: IPNetwork
    dynamic: Span  # where addresses come from that nobody asked for by number


class Leased(NamedTuple):
    """One leased address: ``owner`` as given at the request, ``holder`` as people call it."""

    address: IPInterface
    owner: str
    holder: str


class Leases(Protocol):
    """What an IPAM driver may ask the store, inside the transaction: pools of networks, and who has which address. No SQL."""

    def pools(self, network: str) -> Sequence[Pool]:
        """The pools of *network* (an id), in the order in which they were added."""
        ...

    def free_spans(self, within: IPNetwork) -> Iterator[Span]:
        """The free spans that share an address with *within*, in rising order; change nothing meanwhile."""
        ...

    def overlapping(self, subnet: IPNetwork) -> tuple[str, IPNetwork] | None:
        """A pool that shares an address with *subnet*: its network's id and its subnet; None where there is none."""
        ...

    def add_pool(self, network: str, subnet: IPNetwork, dynamic: Span) -> Pool:
        """Reserve *subnet*, which overlaps no other pool, for *network*; every usable address of it is free."""
        ...

    def remove_pools(self, network: str) -> None:
        """Give back the pools of *network* with all their leases; a no-op when it has none."""
        ...

    def lease(self, pool: Pool, address: IPAddress, owner: str) -> bool:
        """Lease *address* of *pool*; False when it is not free."""
        ...

    def lease_next(self, pool: Pool, owner: str) -> IPAddress | None:
        """Lease the next free address of the dynamic span after the last one given so; None where none is free."""
        ...

    def lease_first(self, pool: Pool, owner: str) -> IPAddress | None:
        """Lease the lowest free address of the dynamic span; None where none is."""
        ...

    def release(self, network: str, owner: str) -> None:
        """Give back every address of *network* that *owner* has; a no-op when it has none."""
        ...

    def holder(self, pool: Pool, address: IPAddress) -> str:
        """Who has *address*, as people call it."""
        ...

    def count(self, pool: Pool, within: Span) -> int:
        """How many addresses of *within* are leased."""
        ...

    def listed(self, network: str) -> list[Leased]:
        """Every leased address of *network* in rising order, pool by pool."""
        ...

    def network_name(self, network: str) -> str:
        """What people call the network with that id."""
        ...

    def fact(self, key: str) -> str | None:
        """What :meth:`remember` wrote down in this store."""
        ...

    def remember(self, key: str, value: str) -> None:
        """Write down a fact of the driver's own about this host; *key* begins with the driver's name."""
        ...


class IpamDriver(Protocol):
    """What every IPAM driver provides."""

    name: str

    def request_pool(self, leases: Leases, network: str, request: PoolRequest, avoid: Sequence[IPNetwork]) -> AddressPool:
        """Reserve a subnet for *network* (an id) and its gateway and auxiliary addresses in it.

        *avoid* holds the host's routes: an automatic subnet overlaps none of them, nor any pool of another network; a
        given one that overlaps is refused, and so is an option that the driver does not have. Raises ConfigError, Conflict,
        PoolExhausted.
        """
        ...

    def release_pool(self, leases: Leases, network: str) -> None:
        """Give back every pool of *network* with all its leases; a no-op when it has none."""
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

        *facts* are what the driver's ``prepare`` found out for *owner*. Raises ConfigError (outside the subnet), AddressTaken
        (by whom), PoolExhausted.
        """
        ...

    def release_address(self, leases: Leases, network: str, owner: str) -> None:
        """Give back every lease that *owner* holds in *network*; a no-op when it holds none."""
        ...
