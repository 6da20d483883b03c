"""The default IPAM driver: it chooses subnets and addresses for this host's networks. Subnets of two networks never overlap.

A dynamic address is the next free one after the last one leased, so a released address is leased again only after all others
were. Meanwhile neighbours' ARP caches forget the MAC address of its former holder. Requested addresses do not count as the last
one leased.
"""

import ipaddress
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import starmap
from typing import Any, NamedTuple

from msgspec import Struct, field

from ipam.pools import (
    DEFAULT_BLOCKS,
    Block,
    Span,
    address_at,
    check_subnet,
    dynamic_span,
    first_fit,
    is_specific,
    merged,
    overlap,
    span,
    subnet_at,
    usable_span,
)
from netlib.errors import AddressTaken, ConfigError, Conflict, NotFound, PoolExhausted
from netlib.ipamapi import Leases, Pool, PoolRequest
from netlib.model import AUXILIARY, GATEWAY, AddressPool, IPAddress, IPInterface, IPNetwork
from netlib.options import decoded_options

__all__ = ["DefaultIpam", "PoolUsage"]

_ULA_KEY = "ipam.ula"


class PoolUsage(NamedTuple):
    """The use of one subnet: ``total`` addresses that interfaces may have, ``available`` of them as dynamic addresses."""

    subnet: IPNetwork
    total: int
    leased: int
    available: int


class DefaultOptions(Struct, frozen=True):
    """The ``--ipam-opt`` keys of the default driver: only Docker's key for serial addresses, which ours always are."""

    serial: bool = field(name="com.docker.network.ipam.serial", default=True)


class DefaultIpam:
    """The driver ``default``, which keeps its state in the store's leases (:class:`netlib.ipamapi.Leases`)."""

    name = "default"

    def __init__(self, blocks: Sequence[Block] = DEFAULT_BLOCKS) -> None:
        """Choose automatic subnets from *blocks*, in order; without an IPv6 block, from this host's own /48."""
        self._blocks = blocks

    # --- pools -----------------------------------------------------------------------------------------------------

    def request_pool(self, leases: Leases, network: str, request: PoolRequest, avoid: Sequence[IPNetwork]) -> AddressPool:
        """Reserve a subnet for *network* (an id), with its gateway and auxiliary addresses; see :class:`IpamDriver`.

        Unless a gateway is given, it is the lowest address of the ip-range, or of the subnet, that is not auxiliary, as in
        Docker.
        """
        if not decoded_options(DefaultOptions, request.options, "IPAM driver default").serial:
            raise ConfigError(
                "IPAM driver default: com.docker.network.ipam.serial=false is not possible, for a released address must not be "
                "leased again at once; leave the option out"
            )
        if request.subnet is None:
            _refuse_without_subnet(request)
            subnet = self._automatic_subnet(leases, request, avoid)
        else:
            subnet = request.subnet
            if subnet.version != request.family:
                raise ConfigError(f"subnet {subnet} is not an IPv{request.family} subnet; choose one of that family")
            check_subnet(subnet)
            _refuse_overlap(leases, network, subnet, avoid)
        dynamic = dynamic_span(subnet, request.ip_range)
        reserved = _reservations(subnet, request)

        pool = leases.add_pool(network, subnet, dynamic)
        for address, owner in reserved.items():
            leases.lease(pool, address, owner)
        gateway = request.gateway
        if gateway is None and request.wants_gateway:
            gateway = leases.lease_first(pool, GATEWAY)
            if gateway is None:
                raise PoolExhausted(
                    f"no address is left for the gateway of subnet {subnet}, for auxiliary addresses take all; leave one out"
                )
        return AddressPool(subnet=subnet, gateway=gateway, ip_range=request.ip_range, auxiliary=request.auxiliary)

    def release_pool(self, leases: Leases, network: str) -> None:
        """Release all pools of *network* with their leases; a no-op when it has none."""
        leases.remove_pools(network)

    # --- addresses -------------------------------------------------------------------------------------------------

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
        """Lease *preferred*, or the next free address after the last one leased, to *owner* (a record's id).

        Raises NotFound for an unknown subnet, ConfigError for an address outside it, AddressTaken with the holder's name, and
        PoolExhausted.
        """
        pool = next((pool for pool in leases.pools(network) if pool.subnet == subnet), None)
        if pool is None:
            raise NotFound(f'network "{leases.network_name(network)}" has no subnet {subnet}')
        if preferred is None:
            address = leases.lease_next(pool, owner)
            if address is None:
                raise _exhausted(leases, pool)
        else:
            address = preferred
            _check_member(subnet, address, f'address {address} for network "{leases.network_name(network)}"')
            if not leases.lease(pool, address, owner):
                name, holder = leases.network_name(network), leases.holder(pool, address)
                text = f'address {address} of network "{name}" is taken by {holder}; choose another one'
                raise AddressTaken(text, holder=holder.name, holder_kind=holder.kind, address=str(address), network=name)
        return ipaddress.ip_interface((address, subnet.prefixlen))

    def release_address(self, leases: Leases, network: str, owner: str) -> None:
        """Release all leases that *owner* holds in *network*; a no-op when it holds none."""
        leases.release(network, owner)

    def usage(self, leases: Leases, network: str) -> list[PoolUsage]:
        """Return the use of each subnet of *network*."""
        return [
            PoolUsage(
                pool.subnet,
                total=usable_span(pool.subnet).size,
                leased=leases.count(pool, span(pool.subnet)),
                available=pool.dynamic.size - leases.count(pool, pool.dynamic),
            )
            for pool in leases.pools(network)
        ]

    # --- automatic subnets -----------------------------------------------------------------------------------------

    def _automatic_subnet(self, leases: Leases, request: PoolRequest, avoid: Sequence[IPNetwork]) -> IPNetwork:
        family = request.family
        known = (*starmap(Block, request.blocks),) or self._blocks
        blocks = [block for block in known if block.base.version == family]
        if not blocks and family == 6:
            blocks = [Block(_host_ula(leases), 64)]
        routes = merged(avoid, family)
        for base, prefixlen in blocks:
            whole = span(base)
            size = 1 << (base.max_prefixlen - prefixlen)
            for hole in leases.free_spans(base):
                first = first_fit(Span(max(hole.first, whole.first), min(hole.last, whole.last)), size, routes)
                if first is not None:
                    return subnet_at(family, first, prefixlen)
        raise PoolExhausted(
            f"no automatic IPv{family} subnet is left: networks and routes of this host cover all of "
            f"{', '.join(str(block.base) for block in blocks) or 'nothing'}; pass --subnet or remove networks that are not used"
        )


def _host_ula(leases: Leases) -> IPNetwork:
    """Return this host's unique local /48 (RFC 4193: fd and 40 random bits), chosen once and kept in the store."""
    text = leases.fact(_ULA_KEY)
    if text is None:
        text = str(ipaddress.IPv6Network((b"\xfd" + os.urandom(5) + bytes(10), 48)))
        leases.remember(_ULA_KEY, text)
    return ipaddress.IPv6Network(text)


# --- what is refused ---------------------------------------------------------------------------------------------------


def _refuse_without_subnet(request: PoolRequest) -> None:
    parts = (("gateway", request.gateway), ("ip-range", request.ip_range), ("auxiliary addresses", request.auxiliary))
    for what, given in parts:
        if given:
            raise ConfigError(f"the given {what} needs a given subnet; pass --subnet too")


def _refuse_overlap(leases: Leases, network: str, subnet: IPNetwork, avoid: Iterable[IPNetwork]) -> None:
    wanted, taken = span(subnet), leases.overlapping(subnet)
    if taken is not None:
        name = leases.network_name(taken[0])
        whose = "the same network" if taken[0] == network else f'network "{name}"'
        text = f"subnet {subnet} overlaps subnet {taken[1]} of {whose}; choose another one"
        raise Conflict(text, holder=name, holder_kind="network")
    for route in avoid:
        if is_specific(route) and route.version == subnet.version and overlap(wanted, span(route)):
            raise Conflict(f"subnet {subnet} overlaps route {route} of this host; choose another one")


def _check_member(subnet: IPNetwork, address: IPAddress, what: str) -> None:
    if address not in subnet:
        raise ConfigError(f"{what} is outside subnet {subnet}; choose one inside")
    first, last = usable_span(subnet)
    if not first <= int(address) <= last:
        kind = "broadcast" if int(address) > last else "network" if subnet.version == 4 else "router anycast"
        raise ConfigError(f"{what} is the {kind} address of subnet {subnet}, which no interface may have; choose another one")


def _reservations(subnet: IPNetwork, request: PoolRequest) -> dict[IPAddress, str]:
    """Check the given gateway and auxiliary addresses, and return the owner of each by address."""
    reserved: dict[IPAddress, str] = {}
    if request.gateway is not None:
        _check_member(subnet, request.gateway, f"gateway {request.gateway}")
        reserved[request.gateway] = GATEWAY
    for name, address in request.auxiliary.items():
        _check_member(subnet, address, f'auxiliary address "{name}" ({address})')
        if address in reserved:
            other = (
                "the gateway"
                if reserved[address] == GATEWAY
                else f'auxiliary address "{reserved[address].removeprefix(AUXILIARY)}"'
            )
            raise ConfigError(f'auxiliary address "{name}" ({address}) is {other} too; choose another one')
        reserved[address] = f"{AUXILIARY}{name}"
    return reserved


def _exhausted(leases: Leases, pool: Pool) -> PoolExhausted:
    name = leases.network_name(pool.network)
    first, last = (address_at(pool.subnet.version, end) for end in pool.dynamic)
    return PoolExhausted(
        f'network "{name}" has no address left: all {pool.dynamic.size} from {first} to {last} in subnet {pool.subnet} are '
        "in use; disconnect containers or create a network with a larger subnet or ip-range",
        network=name,
        subnet=str(pool.subnet),
    )
