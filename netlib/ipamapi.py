"""The contract of an IPAM driver: libnetwork's four verbs, found by name (``netlib.ipam_drivers``).

The verbs run inside the transaction that writes the record, so an address is leased if and only if its owner is written
down. Addresses are ``ipaddress`` objects here; what a driver computes with inside is its own affair.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from netlib.model import AddressPool, IPAddress, IPInterface, IPNetwork

if TYPE_CHECKING:
    from netlib.store.records import Transaction


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


class IpamDriver(Protocol):
    """What every IPAM driver provides."""

    name: str

    def request_pool(self, tx: "Transaction", network: str, request: PoolRequest, avoid: Sequence[IPNetwork]) -> AddressPool:
        """Reserve a subnet for *network* (an id) and its gateway and auxiliary addresses in it.

        *avoid* holds the host's routes: an automatic subnet overlaps none of them, nor any pool of another network; a
        given one that overlaps is refused, and so is an option that the driver does not have. Raises ConfigError, Conflict,
        PoolExhausted.
        """
        ...

    def release_pool(self, tx: "Transaction", network: str) -> None:
        """Give back every pool of *network* with all its leases; a no-op when it has none."""
        ...

    def request_address(
        self, tx: "Transaction", network: str, subnet: IPNetwork, owner: str, preferred: IPAddress | None = None
    ) -> IPInterface:
        """Lease *preferred*, or the next free address after the last one given, to *owner* (a record's id).

        Raises ConfigError (outside the subnet), AddressTaken (by whom), PoolExhausted.
        """
        ...

    def release_address(self, tx: "Transaction", network: str, owner: str) -> None:
        """Give back every lease that *owner* holds in *network*; a no-op when it holds none."""
        ...
