"""The plan of a sandbox's own objects, made from all its memberships: default route, published ports, resolver, files.

One rule: plans are pure. A sandbox is planned again at every connect and disconnect, and the engine applies the difference from
its former plan.
"""

import ipaddress
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from netlib.dns.resolvconf import UPLINK_RESOLV_CONF, HostResolver, hosts_file, parse_resolv_conf, sandbox_resolv_conf
from netlib.driverapi import ChecksSources, HoldsGateways, PublishesPorts, RoutesByLink
from netlib.firewall.members import PortSources
from netlib.firewall.objects import DnsRedirect
from netlib.kernel.addresses import Address
from netlib.kernel.files import Folder, TextFile
from netlib.kernel.links import LinkUp
from netlib.kernel.netns import NETNS_DIR, NETNS_FILES_DIR
from netlib.kernel.owned_netns import OwnedNetns
from netlib.kernel.routes import RouteEntry
from netlib.kernel.sysctl import Sysctl, sysctl_ifname
from netlib.kernel.tuning import TunedSysctl
from netlib.model import RESOLVER_ADDRESS, Endpoint, IPAddress, NetnsRef, Network, Sandbox
from netlib.plan import KernelObject, Plan, ability
from netlib.registry import driver_of

HOST_RESOLV_CONF = Path("/etc/resolv.conf")
_LONGEST_RESOLV_CONF = 1 << 16

Membership = tuple[Network, Endpoint]
"""One network of a sandbox, with the sandbox's endpoint in it."""

_ANYWHERE = {4: ipaddress.ip_network("0.0.0.0/0"), 6: ipaddress.ip_network("::/0")}
# Each resolver query from a new socket leaves a conntrack entry. At the default of 30 s, 25,738 entries piled up in 4 s.
_UDP_TIMEOUT = "net/netfilter/nf_conntrack_udp_timeout"
_UDP_TIMEOUT_SECONDS = "5"


def sandbox_plan(sandbox: Sandbox, memberships: Sequence[Membership], host: HostResolver) -> Plan:
    """Plan the objects of *sandbox* that belong to no single endpoint; *host* is the host's resolver configuration.

    Objects that no connect changes come first: what two plans begin with is not written down again.
    """
    objects: list[KernelObject] = []
    if sandbox.owned:
        objects.append(OwnedNetns(path=sandbox.netns.path, identity=sandbox.netns.identity))
        objects.append(LinkUp(ifname="lo", tagged=True, netns=sandbox.netns))
    objects += _constant_files(sandbox)
    if sandbox.owned:
        if is_served(memberships):
            objects.append(DnsRedirect(netns=sandbox.netns, address=RESOLVER_ADDRESS, port=sandbox.dns_port))
            if _UDP_TIMEOUT not in dict(sandbox.sysctls):
                objects.append(Sysctl(name=_UDP_TIMEOUT, value=_UDP_TIMEOUT_SECONDS, netns=sandbox.netns))
        objects.extend(_asked_sysctls(sandbox, memberships))
    for family in (4, 6):
        objects.extend(_default_route(sandbox, memberships, family))
    return Plan(*objects, *_shared_sources(memberships), *_published(memberships), *_files(sandbox, memberships, host))


def _shared_sources(memberships: Sequence[Membership]) -> Iterator[PortSources]:
    """Allow a sandbox in several networks to send from each of its addresses by each of its links.

    A driver with ChecksSources lets a member's port send from that endpoint's own addresses only.
    """
    for network, endpoint in memberships if len(memberships) > 1 else ():
        known = ability(driver_of(network), ChecksSources)
        port = known.checked_port(network, endpoint) if known else ""
        for _, other in memberships:
            if port and other.id != endpoint.id and other.addresses:
                yield PortSources(port=port, addresses=tuple(address.ip for address in other.addresses), by=other.id)


def _asked_sysctls(sandbox: Sandbox, memberships: Sequence[Membership]) -> Iterator[TunedSysctl]:
    """Plan the sysctls that the request for the sandbox named; a link's sysctl only while an endpoint has that link.

    They override the sysctls in the endpoints' plans.
    """
    links = {None, "lo", *(endpoint.ifname for _, endpoint in memberships)}
    for path, value in sandbox.sysctls:
        if sysctl_ifname(path) in links:
            yield TunedSysctl(name=path, value=value, netns=sandbox.netns)


def inside_plan(endpoint: Endpoint, netns: NetnsRef) -> Plan:
    """Plan the objects inside *netns* of an endpoint with a link, the same for every driver: its addresses, and the link up."""
    off = "0" if endpoint.address(6) else "1"
    return Plan(
        Sysctl(name=f"net/ipv6/conf/{endpoint.ifname}/disable_ipv6", value=off, optional=True, netns=netns),
        *(Address(ifname=endpoint.ifname, address=address, netns=netns) for address in endpoint.addresses),
        LinkUp(ifname=endpoint.ifname, netns=netns),
    )


def is_served(memberships: Sequence[Membership]) -> bool:
    """Whether the embedded resolver serves a sandbox: one of its networks resolves names, or an endpoint has ``--link``."""
    return any((network.resolves_names and endpoint.ifname) or endpoint.links for network, endpoint in memberships)


class Seat(NamedTuple):
    """The resolver's place for one address of a sandbox in a foreign netns: a gateway's address, on a link of the host.

    The sandbox has it as name server, and sends its queries from ``client``.
    """

    network: str  # id
    gateway: IPAddress
    link: str  # of the host, with the gateway's address: the bridge
    client: IPAddress
    port: str  # the link of the host by which the sandbox's packets reach ``link``: the bridge's port


def resolver_seats(sandbox: Sandbox, memberships: Sequence[Membership]) -> list[Seat]:
    """The gateways at which the embedded resolver serves *sandbox*; none where it serves *sandbox* from inside its netns.

    A netns that somebody else made is served at gateways. The kernel keeps a netns as long as a socket is open in it, so a
    socket of the resolver inside would keep the netns after its owner deleted it; and RESOLVER_ADDRESS would need a firewall
    rule inside.
    """
    if sandbox.owned or sandbox.netns.is_host or not is_served(memberships):
        return []
    return [
        Seat(network.id, pool.gateway, known.gateway_link(network), address.ip, known.gateway_port(endpoint))
        for network, endpoint in memberships
        if (known := ability(driver_of(network), HoldsGateways)) is not None
        for pool in network.pools
        if pool.gateway is not None
        for address in endpoint.addresses
        if address.version == pool.family and address.ip in pool.subnet
    ]


def resolver_address(sandbox: Sandbox, memberships: Sequence[Membership]) -> IPAddress | None:
    """The address of the embedded resolver in *sandbox*'s resolv.conf; None where the embedded resolver does not serve it."""
    if sandbox.owned:
        return RESOLVER_ADDRESS if is_served(memberships) else None
    return next((seat.gateway for seat in resolver_seats(sandbox, memberships)), None)


def gateway_membership(memberships: Sequence[Membership], family: int) -> Membership | None:
    """The membership that provides the default route: that of the highest ``gw_priority``, then the first by network name.

    Internal networks provide none, and networks without a gateway only where their driver routes by the link itself.
    """
    able = [
        (network, endpoint)
        for network, endpoint in memberships
        if not network.internal and (_gateway(network, endpoint, family) or _routes_by_link(network, endpoint, family))
    ]
    return min(able, key=lambda pair: (-pair[1].gw_priority, pair[0].name), default=None)


def publishing_membership(memberships: Sequence[Membership], family: int) -> Membership | None:
    """The membership by which all ports of a sandbox are published: the one with the default route, where it can publish.

    Replies leave by the default route. If ports were published by another network, requests and replies would use different
    links, and a host with ``rp_filter`` would drop the replies. None where no network of the sandbox can publish ports.
    """
    able = [(network, endpoint) for network, endpoint in memberships if _publisher(network) and endpoint.address(family)]
    return gateway_membership(able, family) or next(iter(able), None)


def _publisher(network: Network) -> PublishesPorts | None:
    return ability(driver_of(network), PublishesPorts)


def _published(memberships: Sequence[Membership]) -> Iterator[KernelObject]:
    """Plan the published ports of all endpoints, each at the address of the publishing membership."""
    if not any(endpoint.ports for _, endpoint in memberships):
        return
    for family in (4, 6):
        found = publishing_membership(memberships, family)
        if found is None:
            continue
        network, endpoint = found
        known, address = _publisher(network), endpoint.address(family)
        assert known is not None
        assert address is not None
        # One plan per endpoint that asked for ports: a run of ports is one object, and two endpoints' runs that merged would
        # have another key as soon as one of the endpoints is disconnected.
        plans = [known.publish_plan(network, address.ip, asking.ports) for _, asking in memberships if asking.ports]
        yield from {item.key: item for plan in plans for item in plan}.values()


def _default_route(sandbox: Sandbox, memberships: Sequence[Membership], family: int) -> tuple[RouteEntry, ...]:
    chosen = gateway_membership(memberships, family)
    if chosen is None:
        return ()
    network, endpoint = chosen
    return (
        RouteEntry(
            destination=_ANYWHERE[family],
            gateway=None if _routes_by_link(network, endpoint, family) else _gateway(network, endpoint, family),
            ifname=endpoint.ifname,
            netns=sandbox.netns,
            yields=not sandbox.owned,
        ),
    )


def _routes_by_link(network: Network, endpoint: Endpoint, family: int) -> bool:
    known = ability(driver_of(network), RoutesByLink)
    return known is not None and known.routes_by_link(network) and endpoint.address(family) is not None


def _gateway(network: Network, endpoint: Endpoint, family: int) -> IPAddress | None:
    """The gateway of the subnet that contains the endpoint's address; None where the subnet or the address is missing."""
    address = endpoint.address(family)
    pool = network.pool_of(address.ip) if address else None
    return pool.router if pool else None


def _constant_files(sandbox: Sandbox) -> list[KernelObject]:
    """The folders of a sandbox's files, and its hostname."""
    folder, seen_by_ip = sandbox.files_dir, _folder_of_ip(sandbox)
    return [
        Folder(path=folder),
        TextFile(path=f"{folder}/hostname", content=f"{sandbox.hostname}\n"),
        *([Folder(path=seen_by_ip, mode=0o755)] if seen_by_ip else []),
    ]


def _files(sandbox: Sandbox, memberships: Sequence[Membership], host: HostResolver) -> Iterator[KernelObject]:
    """The files that follow from the networks that the sandbox is in: resolv.conf and hosts."""
    addresses = tuple(address.ip for _, endpoint in memberships for address in endpoint.addresses)
    resolv_conf = sandbox_resolv_conf(
        sandbox.resolver,
        host,
        embedded=resolver_address(sandbox, memberships),
        ipv6=any(address.version == 6 for address in addresses),
        in_host_netns=sandbox.netns.is_host,
    )
    hosts = hosts_file(sandbox.hostname, sandbox.domainname, addresses, sandbox.resolver.extra_hosts, names=(sandbox.name,))
    for folder in (sandbox.files_dir, _folder_of_ip(sandbox)):
        if folder:
            yield TextFile(path=f"{folder}/resolv.conf", content=resolv_conf)
            yield TextFile(path=f"{folder}/hosts", content=hosts)


def _folder_of_ip(sandbox: Sandbox) -> str:
    """The folder whose files `ip netns exec NAME` binds over the host's; empty where the netns has no name for ip."""
    folder, _, name = sandbox.netns.path.rpartition("/")  # texts: a sandbox is planned at every connect
    return f"{NETNS_FILES_DIR}/{name}" if sandbox.owned and folder == str(NETNS_DIR) else ""


def host_resolver() -> HostResolver:
    """Read the host's resolver configuration; with a local stub (systemd-resolved), that of the servers which the stub asks.

    A stub listens on the host's loopback, which a sandbox in another netns cannot reach.
    """
    host, uplink = _resolver_at(HOST_RESOLV_CONF), Path(UPLINK_RESOLV_CONF)
    return _resolver_at(uplink) if host.is_stub and uplink.exists() else host


def _resolver_at(path: Path) -> HostResolver:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # not Path.read_text, which makes five system calls more
    except FileNotFoundError:
        return _parsed(b"")
    try:
        return _parsed(os.read(fd, _LONGEST_RESOLV_CONF))
    finally:
        os.close(fd)


@lru_cache(maxsize=4)
def _parsed(content: bytes) -> HostResolver:
    return parse_resolv_conf(content.decode(errors="replace"))
