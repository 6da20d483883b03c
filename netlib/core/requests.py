"""From what a user asks to the record that says it: checked, addresses and ports assigned, inside the caller's transaction.

Everything that can be refused is refused here, before anything is written or touched.
"""

from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from msgspec import Struct, ValidationError, structs
from msgspec.structs import replace

from netlib.codec import convert
from netlib.driverapi import JoinsLan, NamesLinks, PublishesPorts, ShapesNetwork, SharesMac, TakesLink, ValidatesNetwork
from netlib.errors import AlreadyExists, ConfigError, FeatureMissing, PoolExhausted, PortTaken
from netlib.ipamapi import PoolRequest
from netlib.kernel.addresses import addresses_of
from netlib.kernel.links import kernel_has_ipv6
from netlib.kernel.routes import host_routes, routes_by
from netlib.kernel.sockets import port_candidates, probe_port
from netlib.model import (
    AddressPool,
    CniAttachment,
    Endpoint,
    IPAddress,
    IPInterface,
    IPNetwork,
    Link,
    Network,
    PortMapping,
    Protocol,
    ResolverConfig,
    Sandbox,
)
from netlib.names import (
    check_alias,
    check_ifname,
    check_labels,
    check_mac,
    check_network_name,
    endpoint_mac,
    parse_address,
    parse_subnet,
)
from netlib.options import decoded_options
from netlib.ports import PortRequest
from netlib.registry import driver, ipam_driver
from netlib.store.records import Transaction

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel

_R = TypeVar("_R", bound=Struct)
_Places = dict[tuple[Protocol, int], list[IPAddress | None]]  # what one request has been given: (protocol, port) to addresses


_IPV6_LOOPBACK = ip_address("::1")  # the kernel forwards nothing that is sent there; netlibd does


class NetworkRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``network create`` is asked for; lists run in the order given, and belong to the subnet that contains them."""

    name: str
    driver: str = "bridge"
    subnets: Sequence[Any] = ()
    gateways: Sequence[Any] = ()
    ip_ranges: Sequence[Any] = ()
    auxiliary: Mapping[str, Any] = {}
    internal: bool = False
    ipv4: bool = True
    ipv6: bool = False
    options: Mapping[str, str] = {}
    labels: Mapping[str, str] = {}
    ipam_driver: str = "default"
    ipam_options: Mapping[str, str] = {}


class SandboxRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a sandbox is asked for; *netns* None is one of its own."""

    name: str
    netns: str | None = None
    hostname: str = ""
    domainname: str = ""
    resolver: ResolverConfig = ResolverConfig()
    sandbox_id: str = ""
    sysctls: Mapping[str, str] = {}
    cni_container: str = ""


class ConnectRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``network connect`` is asked for."""

    ifname: str = ""
    ip: Any = None
    ip6: Any = None
    mac: str = ""
    aliases: Sequence[str] = ()
    ports: Sequence[PortRequest] = ()
    links: Sequence[Link] = ()
    gw_priority: int = 0
    options: Mapping[str, str] = {}


_WANTED = {
    str: "a text",
    str | None: "a text, or None",
    int: "a whole number",
    bool: "True or False",
    Sequence[Any]: "a list or tuple",
    Sequence[str]: "a list or tuple of texts",
    Sequence[PortRequest]: "a list of port requests, as netlib.ports.parse_publish makes it",
    Sequence[Link]: "a list or tuple of netlib.model.Link",
    Mapping[str, str]: "a dict with texts as keys and values",
    Mapping[str, Any]: "a dict with texts as keys",
    ResolverConfig: "a netlib.model.ResolverConfig",
    tuple[str, ...]: "a list or tuple of texts",
    tuple[IPAddress, ...]: "a list or tuple of IP addresses",
    tuple[tuple[str, IPAddress], ...]: "a list or tuple of pairs of a name and an IP address",
}


def checked(kind: type[_R], values: Mapping[str, Any]) -> _R:
    """The request that *values* make; ConfigError names the first of them that is of the wrong type, or that there is not.

    A text is a sequence too, so without this ``aliases="web"`` would be three names.
    """
    try:
        return convert(values, kind)
    except ValidationError as error:
        fields = {field.name: field for field in structs.fields(kind)}
        for name, value in values.items():
            if name not in fields:
                raise ConfigError(f"there is no argument {name!r}; there are: {', '.join(fields)}") from error
            try:
                convert(value, fields[name].type)
            except ValidationError:
                raise ConfigError(f"{name}={value!r} must be {_WANTED[fields[name].type]}") from error
        raise


class Surroundings(NamedTuple):
    """What of the host a new network has to reckon with."""

    routes: Sequence[IPNetwork] = ()
    link: str = ""  # of the host, on which the network is to sit
    addresses: Sequence[IPInterface] = ()  # that this link has already
    is_lan: bool = False  # the network is the LAN of that link, in which the host is one of many
    routers: Sequence[IPAddress] = ()  # of the LAN, by which the host itself sends


def surroundings(kernel: "Kernel", request: NetworkRequest) -> Surroundings:
    """Look at the host for *request*: what is on the link that it names stands in nobody's way."""
    known = driver(request.driver)
    if isinstance(known, JoinsLan):
        link = known.lan_link(request.options)
        routes = routes_by(kernel, link) if link and kernel.rtnl().find_link(link) else []
        routers = tuple(dict.fromkeys(route.gateway for route in routes if route.gateway))
        addresses = addresses_of(kernel, link) if link else ()
        return Surroundings(host_routes(kernel), link, addresses, is_lan=True, routers=routers)
    link = known.link_name(request.options) if isinstance(known, TakesLink) else ""
    return Surroundings(host_routes(kernel, besides=link), link, addresses_of(kernel, link) if link else ())


def pool_requests(request: NetworkRequest, around: Surroundings) -> list[PoolRequest]:
    """Sort gateways, ranges and auxiliary addresses to their subnets; add the families that are asked for without one.

    A family without a subnet gets that of the link which the network is to sit on, where it has one: as in Docker, its
    address is the gateway.
    """
    subnets = [parse_subnet(item) for item in request.subnets]
    if not request.ipv4 and (unwanted := [str(subnet) for subnet in subnets if subnet.version == 4]):
        raise ConfigError(
            f"network {request.name!r}: subnet {unwanted[0]} is of IPv4, which is switched off; leave out one of them"
        )
    for family, wanted in ((4, request.ipv4), (6, request.ipv6)):
        if wanted and not around.is_lan and not any(subnet.version == family for subnet in subnets):
            subnets += _subnets_of(around.addresses, family)[:1]
    gateways = _by_subnet("gateway", [parse_address(item, "gateway") for item in request.gateways], subnets)
    ranges = _by_subnet("ip-range", [parse_subnet(item, "ip-range") for item in request.ip_ranges], subnets)
    auxiliary: dict[IPNetwork, dict[str, IPAddress]] = {}
    for label, item in request.auxiliary.items():
        address = parse_address(item, f"aux-address {label}")
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
            pools.append(PoolRequest(family=family, options=request.ipam_options, wants_gateway=not around.is_lan))
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


def network_record(
    tx: Transaction,
    network_id: str,
    created: float,
    request: NetworkRequest,
    around: Surroundings,
    *,
    predefined: bool = False,
) -> Network:
    """Check *request*, reserve its pools, and answer with its record."""
    check_network_name(request.name)
    known = driver(request.driver)
    taken = tx.find(Network, request.name)
    if taken is not None and taken.name == request.name:
        raise AlreadyExists(
            f"network {request.name!r} already exists; choose another name, or remove it by `netlib network rm`"
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
    )
    if isinstance(known, ValidatesNetwork):
        known.validate_network(network)
    if isinstance(known, ShapesNetwork):
        network = known.shaped(network)
    if network.ipv6 and not kernel_has_ipv6():
        raise FeatureMissing(f"network {request.name!r}: this kernel has no IPv6; leave --ipv6 and IPv6 subnets out")
    ipam = ipam_driver(request.ipam_driver)
    # What is given for a LAN is in nobody's way: the host has no part in the network.
    pools = tuple(
        ipam.request_pool(tx, network_id, pool, () if around.is_lan and pool.subnet else around.routes) for pool in wanted
    )
    return replace(network, pools=pools)


def endpoint_record(
    tx: Transaction,
    endpoint_id: str,
    created: float,
    network: Network,
    sandbox: Sandbox,
    request: ConnectRequest,
    *,
    linked: bool,
) -> Endpoint:
    """Check *request*, lease addresses and choose ports, and answer with the endpoint's record.

    *linked* says whether the network's driver gives endpoints a link; without one there is nothing to address or publish.
    """
    subject = f"endpoint of {sandbox.name!r} in network {network.name!r}"
    decoded_options(driver(network.driver).endpoint_options, request.options, subject)
    for alias in request.aliases:
        check_alias(alias)
    endpoint = Endpoint(
        id=endpoint_id,
        network=network.id,
        sandbox=sandbox.id,
        created=created,
        aliases=tuple(dict.fromkeys(request.aliases)),
        links=tuple(request.links),
        gw_priority=request.gw_priority,
        options=dict(request.options),
    )
    if not linked:
        if request.ip or request.ip6 or request.mac:
            raise ConfigError(
                f"{subject}: a {network.driver} network has no addresses to choose; leave --ip, --ip6 and --mac-address out"
            )
        return endpoint
    endpoint = replace(
        endpoint,
        ifname=_ifname(tx, network, sandbox, request),
        addresses=_addresses(tx, endpoint_id, network, request, subject),
    )
    return replace(
        endpoint,
        mac=_mac(tx, network, endpoint, request.mac),
        ports=_ports(tx, network, endpoint, request.ports),
    )


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


def _ifname(tx: Transaction, network: Network, sandbox: Sandbox, request: ConnectRequest) -> str:
    used = {row.value.ifname for row in tx.endpoints_of_sandbox(sandbox.id)}
    wanted = request.ifname or request.options.get("com.docker.network.endpoint.ifname", "")
    if wanted:
        check_ifname(wanted)
        if wanted in used or wanted == "lo":
            raise AlreadyExists(f"sandbox {sandbox.name!r} has a link {wanted} already; choose another ifname")
        return wanted
    known = driver(network.driver)
    prefix = known.ifname_prefix(network) if isinstance(known, NamesLinks) else "eth"
    return next(name for number in range(len(used) + 1) if (name := f"{prefix}{number}") not in used)


def _mac(tx: Transaction, network: Network, endpoint: Endpoint, wanted: str) -> str:
    known = driver(network.driver)
    reason = known.why_no_mac(network) if isinstance(known, SharesMac) else ""
    if reason and wanted:
        raise ConfigError(f"an endpoint of network {network.name!r} can have no --mac-address: {reason}; leave it out")
    if reason:
        return ""
    if not wanted:
        address = endpoint.address(4)
        return endpoint_mac(endpoint.id, address.ip if address else None)
    mac = check_mac(wanted)
    for row in tx.endpoints_of_network(network.id):
        if row.value.mac == mac:
            owner = tx.by_id(row.value.sandbox)
            name = owner.name if owner else row.value.sandbox[:12]
            raise AlreadyExists(f"MAC address {mac} is in use in network {network.name!r} by {name!r}; choose another")
    return mac


def _addresses(tx: Transaction, owner: str, network: Network, request: ConnectRequest, subject: str) -> tuple[IPInterface, ...]:
    leased: list[IPInterface] = []
    for family, flag, text in ((4, "--ip", request.ip), (6, "--ip6", request.ip6)):
        wanted = parse_address(text, flag) if text else None
        if wanted is not None and wanted.version != family:
            raise ConfigError(f"{subject}: {flag} {wanted} is an IPv{wanted.version} address; pass an IPv{family} one")
        pools = [pool for pool in network.pools if pool.family == family]
        if wanted is not None:
            pools = [pool for pool in pools if wanted in pool.subnet] or pools[:1]
            if not pools:
                raise ConfigError(f"{subject}: the network has no IPv{family} subnet for {flag} {wanted}; create it with one")
        if pools:
            leased.append(_address(tx, owner, network, pools, wanted))
    return tuple(leased)


def _address(
    tx: Transaction, owner: str, network: Network, pools: Sequence[AddressPool], wanted: IPAddress | None
) -> IPInterface:
    """Lease an address from the first of *pools* that has one."""
    ipam = ipam_driver(network.ipam_driver)
    *others, last = pools
    for pool in others:
        try:
            return ipam.request_address(tx, network.id, pool.subnet, owner, wanted)
        except PoolExhausted:
            continue
    return ipam.request_address(tx, network.id, last.subnet, owner, wanted)


def _ports(tx: Transaction, network: Network, endpoint: Endpoint, requests: Sequence[PortRequest]) -> tuple[PortMapping, ...]:
    known = driver(network.driver)
    default = known.default_host_ip(network) if isinstance(known, PublishesPorts) else None
    chosen: list[PortMapping] = []
    places: _Places = {}
    fixed = {
        protocol: [item.host_port_first for item in requests if item.is_fixed and item.protocol is protocol]
        for protocol in Protocol
    }
    published = {(protocol, number) for protocol, numbers in fixed.items() for number in tx.published(protocol, numbers)}
    for request in requests:
        if request.host_ip is None and default is not None:
            request = replace(request, host_ip=default)
        if request.host_ip is not None:
            _check_host_ip(network, endpoint, request, request.host_ip)
        mapping = request.mapping(request.host_port_first)
        place = (mapping.protocol, mapping.host_port)
        if request.is_fixed and place not in published and place not in places:
            probe_port(mapping)  # the common case, in which a thousand ports are asked for
        else:
            mapping = _port(tx, request, places)
            place = (mapping.protocol, mapping.host_port)
        chosen.append(mapping)
        places.setdefault(place, []).append(mapping.host_ip)
    return tuple(chosen)


def _check_host_ip(network: Network, endpoint: Endpoint, request: PortRequest, host_ip: IPAddress) -> None:
    by_netlibd = request.protocol is Protocol.TCP and host_ip == _IPV6_LOOPBACK
    if not endpoint.address(host_ip.version) and not by_netlibd:
        raise ConfigError(
            f"port {request.container_port}/{request.protocol} cannot be published on {host_ip}: "
            f"network {network.name!r} gives no IPv{host_ip.version} address; create it with an IPv{host_ip.version} subnet"
        )


def _port(tx: Transaction, request: PortRequest, chosen: _Places) -> PortMapping:
    numbers = port_candidates(request.host_port_first, request.host_port_last)
    refusal: PortTaken | None = None
    for number in numbers:
        mapping = request.mapping(number)
        try:
            _check_port(tx, mapping, chosen)
        except PortTaken as error:
            refusal = error
            continue
        return mapping
    assert refusal is not None
    if len(numbers) > 1:
        raise PortTaken(
            f"no port is free between {numbers[0]} and {numbers[-1]} for container port {request.container_port}: {refusal}"
        )
    raise refusal


def port_publisher(tx: Transaction, holder: str) -> str:
    """Whom to name as the holder of a published port, which is a record's id in the store."""
    row = tx.by_id(holder)
    if row is not None and isinstance(row.value, CniAttachment):
        return f"container {row.value.container} of a CNI network"
    sandbox = tx.by_id(row.value.sandbox) if row else None
    return repr(sandbox.name if sandbox else holder[:12])


def _check_port(tx: Transaction, mapping: PortMapping, chosen: _Places) -> None:
    place = f"port {mapping.host_port}/{mapping.protocol}" + (f" on {mapping.host_ip}" if mapping.host_ip else "")
    if any(mapping.meets(other) for other in chosen.get((mapping.protocol, mapping.host_port), ())):
        raise PortTaken(f"{place} is asked for twice in this request; publish it once")
    holder = tx.port_holder(mapping)
    if holder is not None:
        name = port_publisher(tx, holder)
        raise PortTaken(f"{place} is already published by {name}; choose another host port, or disconnect that one")
    probe_port(mapping)
