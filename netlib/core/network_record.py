"""Making a network's record from the request for the network: check the request, reserve its pools in the caller's transaction.

One rule: a request that can be refused is refused here, before the store or the kernel is changed.
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

__all__ = ["HostState", "network_draft", "network_record", "pool_requests", "read_host_state"]


class HostState(NamedTuple):
    """The host's routes, addresses and settings that decide about a new network's subnets and gateways."""

    routes: Sequence[IPNetwork] = ()  # destinations that an automatic subnet must not overlap
    link: str = ""  # the existing link that the request names as bridge or parent
    addresses: Sequence[IPInterface] = ()  # of that link
    is_lan: bool = False  # the network is the LAN of that link, and the host is no more than one of its members
    routers: Sequence[IPAddress] = ()  # of that LAN: the gateways of the host's routes over the link
    settings: Settings = Settings()


def read_host_state(kernel: "Kernel", request: NetworkRequest, settings: Settings) -> HostState:
    """Ask the kernel for the host's routes, and for the addresses and routers of the link that *request* names.

    The subnets of a bridge that the network adopts are not among the routes: they are to become the network's own.
    """
    known = driver(request.driver)
    if (on_lan := ability(known, JoinsLan)) is not None:
        link = on_lan.lan_link(request.options)
        routes = routes_by(kernel, link) if link and kernel.rtnl().find_link(link) else []
        routers = tuple(dict.fromkeys(route.gateway for route in routes if route.gateway))
        addresses = addresses_of(kernel, link) if link else ()
        return HostState(host_routes(kernel), link, addresses, is_lan=True, routers=routers, settings=settings)
    on_link = ability(known, TakesLink)
    link = on_link.link_name(request.options) if on_link else ""
    addresses = addresses_of(kernel, link) if link else ()
    return HostState(host_routes(kernel, besides=link), link, addresses, settings=settings)


def pool_requests(request: NetworkRequest, host: HostState) -> list[PoolRequest]:
    """Make a pool request for each subnet of *request*, with the gateway, range and auxiliary addresses that it contains.

    An asked family without a subnet gets the subnet of the link that *request* names, with the link's address as gateway (as in
    Docker), or else a request for an automatic subnet.

    Raises ConfigError where an address or a range is in none of the subnets.
    """
    subnets = list(request.subnets)
    if not request.ipv4 and (unwanted := [str(subnet) for subnet in subnets if subnet.version == 4]):
        raise ConfigError(
            f"network {request.name!r}: subnet {unwanted[0]} is of IPv4, which is switched off; leave out one of them"
        )
    for family, wanted in ((4, request.ipv4), (6, request.ipv6)):
        if wanted and not host.is_lan and not any(subnet.version == family for subnet in subnets):
            subnets += _subnets_of(host.addresses, family)[:1]
    gateways = _by_subnet("gateway", request.gateways, subnets)
    ranges = _by_subnet("ip-range", request.ip_ranges, subnets)
    auxiliary: dict[IPNetwork, dict[str, IPAddress]] = {}
    for label, address in request.auxiliary.items():
        auxiliary.setdefault(next(iter(_by_subnet(f"aux-address {label}", [address], subnets))), {})[label] = address
    pools = [
        _fit_to_link(
            PoolRequest(
                family=subnet.version,
                subnet=subnet,
                gateway=gateways.get(subnet),
                ip_range=ranges.get(subnet),
                auxiliary=auxiliary.get(subnet, {}),
                options=request.ipam_options,
            ),
            host,
        )
        for subnet in subnets
    ]
    for family, wanted in ((4, request.ipv4), (6, request.ipv6)):
        if wanted and not any(pool.family == family for pool in pools):
            pools.append(
                PoolRequest(
                    family=family,
                    options=request.ipam_options,
                    wants_gateway=not host.is_lan,
                    blocks=host.settings.default_address_pools,
                )
            )
    return sorted(pools, key=lambda pool: pool.family)


def _subnets_of(addresses: Sequence[IPInterface], family: int) -> list[IPNetwork]:
    """The subnets of *addresses* of that family, without those of one or two addresses, which have no room for members."""
    return [item.network for item in addresses if item.version == family and item.network.num_addresses > 2]


def _fit_to_link(pool: PoolRequest, host: HostState) -> PoolRequest:
    """Return *pool* with a gateway, where it has none, and with the addresses that no member may get, by the link of *host*.

    The gateway is the link's first address in the subnet; on a LAN it is the router that the host uses there, or none. The
    other addresses of the link and the routers become auxiliary addresses, which are never leased.
    """
    assert pool.subnet is not None
    present = [address.ip for address in host.addresses]
    gateways = host.routers if host.is_lan else present
    free = [address for address in gateways if address in pool.subnet and address not in pool.auxiliary.values()]
    gateway = pool.gateway or (free[0] if free else None)
    known = (address for address in dict.fromkeys((*present, *host.routers)) if address in pool.subnet and address != gateway)
    others = {f"{host.link} {address}": address for address in known if address not in pool.auxiliary.values()}
    wants_gateway = gateway is not None or not host.is_lan
    return replace(pool, gateway=gateway, wants_gateway=wants_gateway, auxiliary={**pool.auxiliary, **others})


def network_draft(
    tx: Transaction,
    network_id: str,
    created: float,
    request: NetworkRequest,
    host: HostState,
    *,
    predefined: bool = False,
) -> tuple[Network, list[PoolRequest]]:
    """Check *request*; return the network's record without pools, and the pool requests.

    Raises AlreadyExists for a name in use, NotFound for an unknown driver, FeatureMissing without IPv6 in the kernel,
    ConfigError.
    """
    check_network_name(request.name)
    if request.scope != Scope.LOCAL:
        raise ConfigError(f"--scope {request.scope!r} is not there yet; networks reach as far as this host (local)")
    known = driver(request.driver)
    taken = tx.find_named(Network, request.name)
    if taken is not None and taken.id != network_id:
        what = f"network {request.name!r} already exists"
        text = (
            f"{what}: it is predefined, as in Docker, and cannot be removed; choose another name"
            if taken.value.predefined
            else f"{what}; choose another name, or remove it by `netlib network rm`"
        )
        raise AlreadyExists(text, name=request.name, holder=request.name, holder_kind="network")
    check_labels(request.labels)
    decoded_options(known.network_options, request.options, f"network {request.name!r}")
    wanted = pool_requests(request, host)
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
        forwards=host.settings.ip_forward,
        packages=_packages(request),
    )
    if (checking := ability(known, ValidatesNetwork)) is not None:
        checking.validate_network(network)
    if (shaping := ability(known, ShapesNetwork)) is not None:
        network = shaping.shaped(network)
    if network.ipv6 and not kernel_has_ipv6():
        raise FeatureMissing(f"network {request.name!r}: this kernel has no IPv6; leave --ipv6 and IPv6 subnets out")
    ipam_driver(request.ipam_driver)  # raises NotFound, before anything is written
    return network, wanted


def network_record(
    tx: Transaction,
    network_id: str,
    created: float,
    request: NetworkRequest,
    host: HostState,
    *,
    predefined: bool = False,
    facts: Mapping[str, Facts] | None = None,
) -> Network:
    """Check *request*, reserve its pools, and return its record; *facts* are those of its drivers, by side (driver, IPAM).

    Raises what :func:`network_draft` raises, and Conflict and PoolExhausted of the IPAM driver.
    """
    network, wanted = network_draft(tx, network_id, created, request, host, predefined=predefined)
    ipam = ipam_driver(request.ipam_driver)
    if facts:
        wanted = [replace(pool, facts=facts.get("ipam", {})) for pool in wanted]
    # A subnet that was given for a LAN may overlap the host's routes: it is the subnet of the host's own link.
    pools = tuple(
        ipam.request_pool(tx.leases, network_id, pool, () if host.is_lan and pool.subnet else host.routes) for pool in wanted
    )
    return replace(network, pools=pools, facts=dict(facts or {}))


def _packages(request: NetworkRequest) -> dict[str, str]:
    """The distribution packages of the request's drivers, by side; built-in drivers are left out."""
    sides: tuple[tuple[Side, str], ...] = ("driver", request.driver), ("ipam", request.ipam_driver)
    return {side: package for side, name in sides if (package := package_of(side, name))}


def _by_subnet(what: str, items: Sequence[Any], subnets: Sequence[IPNetwork]) -> dict[IPNetwork, Any]:
    """Map each subnet to the one of *items* (addresses or ranges, *what* in messages) that it contains.

    Raises ConfigError for an item in none of *subnets*, and for two in one.
    """
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
