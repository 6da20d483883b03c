"""From the request for a network to its record: checked, its pools reserved, inside the caller's transaction.

Everything that can be refused is refused here, before anything is written or touched.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from netlib.driverapi import JoinsLan, ShapesNetwork, TakesLink, ValidatesNetwork
from netlib.errors import AlreadyExists, ConfigError, FeatureMissing
from netlib.facts import Facts
from netlib.ipamapi import PoolRequest
from netlib.kernel.addresses import addresses_of
from netlib.kernel.links import kernel_has_ipv6
from netlib.kernel.routes import host_routes, routes_by
from netlib.model import IPAddress, IPInterface, IPNetwork, Network, Scope
from netlib.names import check_labels, check_network_name
from netlib.options import decoded_options
from netlib.plan import ability
from netlib.registry import Side, driver, ipam_driver, package_of
from netlib.requests import NetworkRequest
from netlib.settings import Settings
from netlib.store.records import Transaction

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel

__all__ = ["Surroundings", "network_draft", "network_record", "pool_requests", "surroundings"]


class Surroundings(NamedTuple):
    """What of the host a new network has to reckon with."""

    routes: Sequence[IPNetwork] = ()
    link: str = ""  # of the host, on which the network is to sit
    addresses: Sequence[IPInterface] = ()  # that this link has already
    is_lan: bool = False  # the network is the LAN of that link, in which the host is one of many
    routers: Sequence[IPAddress] = ()  # of the LAN, by which the host itself sends
    settings: Settings = Settings()  # of the host


def surroundings(kernel: "Kernel", request: NetworkRequest, settings: Settings) -> Surroundings:
    """Look at the host for *request*: what is on the link that it names stands in nobody's way."""
    known = driver(request.driver)
    if (on_lan := ability(known, JoinsLan)) is not None:
        link = on_lan.lan_link(request.options)
        routes = routes_by(kernel, link) if link and kernel.rtnl().find_link(link) else []
        routers = tuple(dict.fromkeys(route.gateway for route in routes if route.gateway))
        addresses = addresses_of(kernel, link) if link else ()
        return Surroundings(host_routes(kernel), link, addresses, is_lan=True, routers=routers, settings=settings)
    on_link = ability(known, TakesLink)
    link = on_link.link_name(request.options) if on_link else ""
    addresses = addresses_of(kernel, link) if link else ()
    return Surroundings(host_routes(kernel, besides=link), link, addresses, settings=settings)


def pool_requests(request: NetworkRequest, around: Surroundings) -> list[PoolRequest]:
    """Sort gateways, ranges and auxiliary addresses to their subnets; add the families that are asked for without one.

    A family without a subnet gets that of the link which the network is to sit on, where it has one: as in Docker, its
    address is the gateway.
    """
    subnets = list(request.subnets)
    if not request.ipv4 and (unwanted := [str(subnet) for subnet in subnets if subnet.version == 4]):
        raise ConfigError(
            f"network {request.name!r}: subnet {unwanted[0]} is of IPv4, which is switched off; leave out one of them"
        )
    for family, wanted in ((4, request.ipv4), (6, request.ipv6)):
        if wanted and not around.is_lan and not any(subnet.version == family for subnet in subnets):
            subnets += _subnets_of(around.addresses, family)[:1]
    gateways = _by_subnet("gateway", request.gateways, subnets)
    ranges = _by_subnet("ip-range", request.ip_ranges, subnets)
    auxiliary: dict[IPNetwork, dict[str, IPAddress]] = {}
    for label, address in request.auxiliary.items():
        auxiliary.setdefault(next(iter(_by_subnet(f"aux-address {label}", [address], subnets))), {})[label] = address
    pools = [
        _reckoned(
            PoolRequest(
                family=subnet.version,
                subnet=subnet,
                gateway=gateways.get(subnet),
                ip_range=ranges.get(subnet),
                auxiliary=auxiliary.get(subnet, {}),
                options=request.ipam_options,
            ),
            around,
        )
        for subnet in subnets
    ]
    for family, wanted in ((4, request.ipv4), (6, request.ipv6)):
        if wanted and not any(pool.family == family for pool in pools):
            pools.append(
                PoolRequest(
                    family=family,
                    options=request.ipam_options,
                    wants_gateway=not around.is_lan,
                    blocks=around.settings.default_address_pools,
                )
            )
    return sorted(pools, key=lambda pool: pool.family)


def _subnets_of(addresses: Sequence[IPInterface], family: int) -> list[IPNetwork]:
    """The subnets that links with *addresses* are in; those of one or two addresses have no room for members."""
    return [item.network for item in addresses if item.version == family and item.network.num_addresses > 2]


def _reckoned(pool: PoolRequest, around: Surroundings) -> PoolRequest:
    """*pool* on a link: of the addresses that this has, the first is its gateway if none is given, no member gets another.

    On a LAN the gateway is the router that the host uses there, if there is one, and no member gets what the host has.
    """
    assert pool.subnet is not None
    present = [address.ip for address in around.addresses]
    gateways = around.routers if around.is_lan else present
    free = [address for address in gateways if address in pool.subnet and address not in pool.auxiliary.values()]
    gateway = pool.gateway or (free[0] if free else None)
    known = (address for address in dict.fromkeys((*present, *around.routers)) if address in pool.subnet and address != gateway)
    others = {f"{around.link} {address}": address for address in known if address not in pool.auxiliary.values()}
    wants_gateway = gateway is not None or not around.is_lan
    return replace(pool, gateway=gateway, wants_gateway=wants_gateway, auxiliary={**pool.auxiliary, **others})


def network_draft(
    tx: Transaction,
    network_id: str,
    created: float,
    request: NetworkRequest,
    around: Surroundings,
    *,
    predefined: bool = False,
) -> tuple[Network, list[PoolRequest]]:
    """Check *request*; answer with its record, which has no pools yet, and with those that it asks for."""
    check_network_name(request.name)
    if request.scope != Scope.LOCAL:
        raise ConfigError(f"--scope {request.scope!r} is not there yet; networks reach as far as this host (local)")
    known = driver(request.driver)
    taken = tx.find_named(Network, request.name)
    if taken is not None and taken.id != network_id:
        raise AlreadyExists(
            f"network {request.name!r} already exists; choose another name, or remove it by `netlib network rm`",
            name=request.name,
            holder=request.name,
        )
    check_labels(request.labels)
    decoded_options(known.network_options, request.options, f"network {request.name!r}")
    wanted = pool_requests(request, around)
    network = Network(
        id=network_id,
        name=request.name,
        driver=request.driver,
        created=created,
        scope=known.scope,
        options=dict(request.options),
        labels=dict(request.labels),
        internal=request.internal,
        ipv4=any(pool.family == 4 for pool in wanted),
        ipv6=any(pool.family == 6 for pool in wanted),
        ipam_driver=request.ipam_driver,
        ipam_options=dict(request.ipam_options),
        predefined=predefined,
        forwards=around.settings.ip_forward,
        packages=_packages(request),
    )
    if (checking := ability(known, ValidatesNetwork)) is not None:
        checking.validate_network(network)
    if (shaping := ability(known, ShapesNetwork)) is not None:
        network = shaping.shaped(network)
    if network.ipv6 and not kernel_has_ipv6():
        raise FeatureMissing(f"network {request.name!r}: this kernel has no IPv6; leave --ipv6 and IPv6 subnets out")
    ipam_driver(request.ipam_driver)  # NotFound before anything is written
    return network, wanted


def network_record(
    tx: Transaction,
    network_id: str,
    created: float,
    request: NetworkRequest,
    around: Surroundings,
    *,
    predefined: bool = False,
    facts: Mapping[str, Facts] | None = None,
) -> Network:
    """Check *request*, reserve its pools, and answer with its record; *facts* are what its drivers found out, by side."""
    network, wanted = network_draft(tx, network_id, created, request, around, predefined=predefined)
    ipam = ipam_driver(request.ipam_driver)
    if facts:
        wanted = [replace(pool, facts=facts.get("ipam", {})) for pool in wanted]
    # What is given for a LAN is in nobody's way: the host has no part in the network.
    pools = tuple(
        ipam.request_pool(tx.leases, network_id, pool, () if around.is_lan and pool.subnet else around.routes)
        for pool in wanted
    )
    return replace(network, pools=pools, facts=dict(facts or {}))


def _packages(request: NetworkRequest) -> dict[str, str]:
    """The distributions that the request's drivers come with, where they are not built in."""
    sides: tuple[tuple[Side, str], ...] = ("driver", request.driver), ("ipam", request.ipam_driver)
    return {side: package for side, name in sides if (package := package_of(side, name))}


def _by_subnet(what: str, items: Sequence[Any], subnets: Sequence[IPNetwork]) -> dict[IPNetwork, Any]:
    found: dict[IPNetwork, Any] = {}
    for item in items:
        home = next((subnet for subnet in subnets if _contains(subnet, item)), None)
        if home is None:
            have = ", ".join(map(str, subnets)) or "none was given"
            raise ConfigError(f"{what} {item} lies in none of the subnets ({have}); pass the --subnet that contains it")
        if home in found:
            raise ConfigError(f"{what} {item}: subnet {home} has {found[home]} already; give one each")
        found[home] = item
    return found


def _contains(subnet: IPNetwork, item: Any) -> bool:
    if item.version != subnet.version:
        return False
    first = getattr(item, "network_address", item)
    last = getattr(item, "broadcast_address", item)
    return bool(first >= subnet.network_address and last <= subnet.broadcast_address)
