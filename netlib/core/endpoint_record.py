"""Making an endpoint's record from the request for it: check it, lease addresses, choose ports, in the caller's transaction.

One rule: a request that can be refused is refused here, before the store or the kernel is changed.
"""

from collections.abc import Collection, Mapping, Sequence
from ipaddress import ip_address

from msgspec.structs import replace

from netlib.driverapi import NamesLinks, PublishesPorts, RefusesPorts, SharesMac
from netlib.errors import AlreadyExists, ConfigError, PoolExhausted, PortTaken
from netlib.facts import Facts
from netlib.ipamapi import Holder
from netlib.kernel.sockets import port_candidates, port_facts, probe_port
from netlib.model import (
    AddressPool,
    CniAttachment,
    Endpoint,
    IPAddress,
    IPInterface,
    Network,
    PortMapping,
    Protocol,
    Sandbox,
)
from netlib.names import check_alias, check_ifname, check_mac, endpoint_mac
from netlib.options import decoded_options
from netlib.plan import ability
from netlib.ports import PortRequest
from netlib.registry import driver_of, ipam_driver_of
from netlib.requests import ConnectRequest
from netlib.store.records import Transaction

__all__ = ["endpoint_record", "port_publisher"]

_Places = dict[tuple[Protocol, int], list[IPAddress | None]]
"""The host ports that one request has got so far: protocol and port, to the host addresses (None: all)."""

_IPV6_LOOPBACK = ip_address("::1")  # the kernel never forwards packets to it; netlibd accepts the connections and relays them


def endpoint_record(
    tx: Transaction,
    endpoint_id: str,
    created: float,
    network: Network,
    sandbox: Sandbox,
    request: ConnectRequest,
    *,
    linked: bool,
    links: Collection[str] = (),
    facts: Mapping[str, Facts] | None = None,
) -> Endpoint:
    """Check *request*, lease addresses and choose ports; return the endpoint's record.

    *linked* says whether the network's driver gives endpoints a link. An endpoint without one gets no addresses and no ports.
    *links* are the ifnames of the sandbox's other endpoints. *facts* are those of the network's drivers, by side.

    Raises ConfigError, AlreadyExists (an ifname or MAC address), AddressTaken, PoolExhausted, PortTaken.
    """
    subject = f"endpoint of {sandbox.name!r} in network {network.name!r}"
    decoded_options(driver_of(network).endpoint_options, request.options, subject)
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
        facts=dict(facts or {}),
    )
    if not linked:
        if request.ip or request.ip6 or request.mac:
            raise ConfigError(
                f"{subject}: a {network.driver} network has no addresses to choose; leave --ip, --ip6 and --mac-address out"
            )
        return endpoint
    endpoint = replace(
        endpoint,
        ifname=_ifname(links, network, sandbox, request),
        addresses=_addresses(tx, endpoint, network, request, subject),
    )
    return replace(
        endpoint,
        mac=_mac(tx, network, endpoint, request.mac),
        ports=_ports(tx, network, endpoint, request.ports),
    )


def _ifname(used: Collection[str], network: Network, sandbox: Sandbox, request: ConnectRequest) -> str:
    """The ifname that *request* wants, or else the driver's prefix (``eth``) with the lowest free number."""
    wanted = request.ifname or request.options.get("com.docker.network.endpoint.ifname", "")
    if wanted:
        check_ifname(wanted)
        if wanted in used or wanted == "lo":
            raise AlreadyExists(f"sandbox {sandbox.name!r} has a link {wanted} already; choose another ifname", name=wanted)
        return wanted
    known = ability(driver_of(network), NamesLinks)
    prefix = known.ifname_prefix(network) if known else "eth"
    return next(name for number in range(len(used) + 1) if (name := f"{prefix}{number}") not in used)


def _mac(tx: Transaction, network: Network, endpoint: Endpoint, wanted: str) -> str:
    """Return *wanted*, or a MAC address made from the endpoint's IPv4 address or id; "" where it has its parent's (ipvlan)."""
    known = ability(driver_of(network), SharesMac)
    reason = known.why_no_mac(network) if known else ""
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
            raise AlreadyExists(
                f"MAC address {mac} is in use in network {network.name!r} by {name!r}; choose another",
                name=mac,
                holder=name,
                holder_kind="sandbox",
                network=network.name,
            )
    return mac


def _addresses(
    tx: Transaction, owner: Endpoint, network: Network, request: ConnectRequest, subject: str
) -> tuple[IPInterface, ...]:
    """Lease one address of each family that the network has a subnet of, the one in *request* where there is one."""
    leased: list[IPInterface] = []
    for family, flag, wanted in ((4, "--ip", request.ip), (6, "--ip6", request.ip6)):
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
    tx: Transaction, owner: Endpoint, network: Network, pools: Sequence[AddressPool], wanted: IPAddress | None
) -> IPInterface:
    """Lease *wanted*, or else any address, from the first of *pools* with a free one; PoolExhausted is the last pool's."""
    ipam, facts = ipam_driver_of(network), owner.facts.get("ipam", {})
    *others, last = pools
    for pool in others:
        try:
            return ipam.request_address(tx.leases, network.id, pool.subnet, owner.id, wanted, facts=facts)
        except PoolExhausted:
            continue
    return ipam.request_address(tx.leases, network.id, last.subnet, owner.id, wanted, facts=facts)


def _ports(tx: Transaction, network: Network, endpoint: Endpoint, requests: Sequence[PortRequest]) -> tuple[PortMapping, ...]:
    """Choose a host port for each of *requests* that no record publishes and no process on the host has bound.

    Raises ConfigError where the network's driver publishes no ports.
    """
    if not requests:
        return ()
    known = ability(driver_of(network), PublishesPorts)
    if known is None:
        refusing = ability(driver_of(network), RefusesPorts)
        reason = f": {refusing.why_no_ports(network)}" if refusing else ""
        raise ConfigError(f"network {network.name!r} (driver {network.driver}) publishes no ports{reason}; leave -p out")
    default = known.default_host_ip(network)
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
            probe_port(mapping)  # no query per port: one asked for all fixed ones, so that a thousand ports are fast
        else:
            mapping = _port(tx, request, places)
            place = (mapping.protocol, mapping.host_port)
        chosen.append(mapping)
        places.setdefault(place, []).append(mapping.host_ip)
    return tuple(chosen)


def _check_host_ip(network: Network, endpoint: Endpoint, request: PortRequest, host_ip: IPAddress) -> None:
    """Raise ConfigError where *endpoint* has no address of *host_ip*'s family, to which packets could be translated.

    TCP ports at ``::1`` need none: netlibd relays their connections.
    """
    by_netlibd = request.protocol is Protocol.TCP and host_ip == _IPV6_LOOPBACK
    if not endpoint.address(host_ip.version) and not by_netlibd:
        raise ConfigError(
            f"port {request.container_port}/{request.protocol} cannot be published on {host_ip}: "
            f"network {network.name!r} gives no IPv{host_ip.version} address; create it with an IPv{host_ip.version} subnet"
        )


def _port(tx: Transaction, request: PortRequest, chosen: _Places) -> PortMapping:
    """The mapping of *request* to its first host port that is free; raises PortTaken where none is."""
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
            f"no port is free between {numbers[0]} and {numbers[-1]} for container port {request.container_port}: {refusal}",
            holder=refusal.holder,
            holder_kind=refusal.holder_kind,
            **port_facts(request.mapping(numbers[-1])),
        )
    raise refusal


def port_publisher(tx: Transaction, holder: str) -> Holder:
    """Who publishes a port, by the id *holder* of its record: a sandbox, or a container of CNI."""
    row = tx.by_id(holder)
    if row is not None and isinstance(row.value, CniAttachment):
        return Holder("container", row.value.container, f"container {row.value.container} of a CNI network")
    sandbox = tx.by_id(row.value.sandbox) if row else None
    name = sandbox.name if sandbox else holder[:12]
    return Holder("sandbox", name, repr(name))


def _check_port(tx: Transaction, mapping: PortMapping, chosen: _Places) -> None:
    """Raise PortTaken where this request, a record, or a process on the host has the host port of *mapping* already."""
    if any(mapping.meets(other) for other in chosen.get((mapping.protocol, mapping.host_port), ())):
        raise PortTaken(f"{mapping.place} is asked for twice in this request; publish it once", **port_facts(mapping))
    holder = tx.port_holder(mapping)
    if holder is not None:
        publisher = port_publisher(tx, holder)
        raise PortTaken(
            f"{mapping.place} is already published by {publisher}; choose another host port, or disconnect that one",
            holder=publisher.name,
            holder_kind=publisher.kind,
            **port_facts(mapping),
        )
    probe_port(mapping)
