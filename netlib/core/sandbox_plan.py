"""What a sandbox needs as a whole, from all its endpoints together: default route, published ports, resolver, files.

Pure: re-planned at every connect and disconnect, and compared with what is applied.
"""

import ipaddress
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
from netlib.model import Endpoint, IPAddress, NetnsRef, Network, Sandbox
from netlib.plan import KernelObject, Plan, ability
from netlib.registry import driver_of

HOST_RESOLV_CONF = Path("/etc/resolv.conf")

Attachment = tuple[Network, Endpoint]

RESOLVER_ADDRESS = ipaddress.ip_address("127.0.0.11")
_ANYWHERE = {4: ipaddress.ip_network("0.0.0.0/0"), 6: ipaddress.ip_network("::/0")}
# A resolver query from a fresh socket leaves a conntrack entry each; at 30 s, the default, 25,738 piled up in 4 s.
_UDP_TIMEOUT = "net/netfilter/nf_conntrack_udp_timeout"
_UDP_TIMEOUT_SECONDS = "5"


def sandbox_plan(sandbox: Sandbox, attachments: Sequence[Attachment], host: HostResolver) -> Plan:
    """Everything of the sandbox that belongs to no single endpoint."""
    objects: list[KernelObject] = []
    if sandbox.owned:
        objects.append(OwnedNetns(path=sandbox.netns.path, identity=sandbox.netns.identity))
        objects.append(LinkUp(ifname="lo", tagged=True, netns=sandbox.netns))
        if is_served(attachments):
            objects.append(DnsRedirect(netns=sandbox.netns, address=RESOLVER_ADDRESS, port=sandbox.dns_port))
            if _UDP_TIMEOUT not in dict(sandbox.sysctls):
                objects.append(Sysctl(name=_UDP_TIMEOUT, value=_UDP_TIMEOUT_SECONDS, netns=sandbox.netns))
        objects.extend(_asked_sysctls(sandbox, attachments))
    for family in (4, 6):
        objects.extend(_default_route(sandbox, attachments, family))
    return Plan(*objects, *_shared_sources(attachments), *_published(attachments), *_files(sandbox, attachments, host))


def _shared_sources(attachments: Sequence[Attachment]) -> Iterator[PortSources]:
    """Let a sandbox in several networks send from any of its addresses by each of its links."""
    for network, endpoint in attachments if len(attachments) > 1 else ():
        known = ability(driver_of(network), ChecksSources)
        port = known.checked_port(network, endpoint) if known else ""
        for _, other in attachments:
            if port and other.id != endpoint.id and other.addresses:
                yield PortSources(port=port, addresses=tuple(address.ip for address in other.addresses), by=other.id)


def _asked_sysctls(sandbox: Sandbox, attachments: Sequence[Attachment]) -> Iterator[TunedSysctl]:
    """What the netns was asked to have; that of a link as soon as there is such a link, over what its endpoint sets."""
    links = {None, "lo", *(endpoint.ifname for _, endpoint in attachments)}
    for path, value in sandbox.sysctls:
        if sysctl_ifname(path) in links:
            yield TunedSysctl(name=path, value=value, netns=sandbox.netns)


def inside_plan(endpoint: Endpoint, netns: NetnsRef) -> Plan:
    """What every endpoint with a link has inside, whatever its driver: its addresses, and the link up."""
    off = "0" if endpoint.address(6) else "1"
    return Plan(
        Sysctl(name=f"net/ipv6/conf/{endpoint.ifname}/disable_ipv6", value=off, optional=True, netns=netns),
        *(Address(ifname=endpoint.ifname, address=address, netns=netns) for address in endpoint.addresses),
        LinkUp(ifname=endpoint.ifname, netns=netns),
    )


def is_served(attachments: Sequence[Attachment]) -> bool:
    """Whether the embedded resolver answers this sandbox: on any network that resolves names, or for its links."""
    return any((network.resolves_names and endpoint.ifname) or endpoint.links for network, endpoint in attachments)


class Seat(NamedTuple):
    """Where a member whose netns is not ours asks for names, and from where: a gateway's address on a link of the host.

    ``port`` is the link of the host by which its questions get to ``link``.
    """

    network: str  # id
    gateway: IPAddress
    link: str
    client: IPAddress
    port: str


def resolver_seats(sandbox: Sandbox, attachments: Sequence[Attachment]) -> list[Seat]:
    """Where the embedded resolver answers *sandbox*, if that is at gateways: its own netns is somebody else's.

    Sockets of ours inside would keep that netns from ending, and the resolver's address need a rule there.
    """
    if sandbox.owned or sandbox.netns.is_host or not is_served(attachments):
        return []
    return [
        Seat(network.id, pool.gateway, known.gateway_link(network), address.ip, known.gateway_port(endpoint))
        for network, endpoint in attachments
        if (known := ability(driver_of(network), HoldsGateways)) is not None
        for pool in network.pools
        if pool.gateway is not None
        for address in endpoint.addresses
        if address.version == pool.family and address.ip in pool.subnet
    ]


def resolver_address(sandbox: Sandbox, attachments: Sequence[Attachment]) -> IPAddress | None:
    """The name server of *sandbox* where that is the embedded resolver, else None."""
    if sandbox.owned:
        return RESOLVER_ADDRESS if is_served(attachments) else None
    return next((seat.gateway for seat in resolver_seats(sandbox, attachments)), None)


def gateway_attachment(attachments: Sequence[Attachment], family: int) -> Attachment | None:
    """Whose gateway is the default one: the highest priority, ties by network name; internal networks have none."""
    able = [
        (network, endpoint)
        for network, endpoint in attachments
        if not network.internal and (_gateway(network, endpoint, family) or _goes_by_link(network, endpoint, family))
    ]
    return min(able, key=lambda pair: (-pair[1].gw_priority, pair[0].name), default=None)


def publishing_attachment(attachments: Sequence[Attachment], family: int) -> Attachment | None:
    """By which network all ports of a sandbox are published, whichever they were asked for with: the way out.

    Answers to what came in by another one would leave by this one, and a host that checks where packets come from
    (``rp_filter``) drops such. None where no network of the sandbox can publish any.
    """
    able = [(network, endpoint) for network, endpoint in attachments if _publisher(network) and endpoint.address(family)]
    return gateway_attachment(able, family) or next(iter(able), None)


def _publisher(network: Network) -> PublishesPorts | None:
    return ability(driver_of(network), PublishesPorts)


def _published(attachments: Sequence[Attachment]) -> Iterator[KernelObject]:
    for family in (4, 6):
        found = publishing_attachment(attachments, family)
        if found is None:
            continue
        network, endpoint = found
        known, address = _publisher(network), endpoint.address(family)
        assert known is not None
        assert address is not None
        # One plan for each that asked: runs of ports do not grow together, and so keep their keys.
        plans = [known.publish_plan(network, address.ip, asking.ports) for _, asking in attachments if asking.ports]
        yield from {item.key: item for plan in plans for item in plan}.values()


def _default_route(sandbox: Sandbox, attachments: Sequence[Attachment], family: int) -> tuple[RouteEntry, ...]:
    chosen = gateway_attachment(attachments, family)
    if chosen is None:
        return ()
    network, endpoint = chosen
    return (
        RouteEntry(
            destination=_ANYWHERE[family],
            gateway=None if _goes_by_link(network, endpoint, family) else _gateway(network, endpoint, family),
            ifname=endpoint.ifname,
            netns=sandbox.netns,
            yields=not sandbox.owned,
        ),
    )


def _goes_by_link(network: Network, endpoint: Endpoint, family: int) -> bool:
    known = ability(driver_of(network), RoutesByLink)
    return known is not None and known.routes_by_link(network) and endpoint.address(family) is not None


def _gateway(network: Network, endpoint: Endpoint, family: int) -> IPAddress | None:
    """The gateway of the subnet that the endpoint's address is in."""
    address = endpoint.address(family)
    pool = network.pool_of(address.ip) if address else None
    return pool.router if pool else None


def _files(sandbox: Sandbox, attachments: Sequence[Attachment], host: HostResolver) -> tuple[KernelObject, ...]:
    folder = Path(sandbox.files_dir)
    addresses = tuple(address.ip for _, endpoint in attachments for address in endpoint.addresses)
    resolv_conf = sandbox_resolv_conf(
        sandbox.resolver,
        host,
        embedded=resolver_address(sandbox, attachments),
        ipv6=any(address.version == 6 for address in addresses),
        in_host_netns=sandbox.netns.is_host,
    )
    hosts = hosts_file(sandbox.hostname, sandbox.domainname, addresses, sandbox.resolver.extra_hosts, names=(sandbox.name,))
    objects: list[KernelObject] = [
        Folder(path=str(folder)),
        TextFile(path=str(folder / "resolv.conf"), content=resolv_conf),
        TextFile(path=str(folder / "hosts"), content=hosts),
        TextFile(path=str(folder / "hostname"), content=f"{sandbox.hostname}\n"),
    ]
    netns = Path(sandbox.netns.path)
    if sandbox.owned and netns.parent == NETNS_DIR:  # `ip netns exec NAME` binds these over the host's
        seen_by_ip = NETNS_FILES_DIR / netns.name
        objects += [
            Folder(path=str(seen_by_ip), mode=0o755),
            TextFile(path=str(seen_by_ip / "resolv.conf"), content=resolv_conf),
            TextFile(path=str(seen_by_ip / "hosts"), content=hosts),
        ]
    return tuple(objects)


def host_resolver() -> HostResolver:
    """The host's resolver; behind a local stub, the servers that the stub asks."""
    host, uplink = _resolver_at(HOST_RESOLV_CONF), Path(UPLINK_RESOLV_CONF)
    return _resolver_at(uplink) if host.is_stub and uplink.exists() else host


def _resolver_at(path: Path) -> HostResolver:
    try:
        return _parsed(path.read_text())
    except FileNotFoundError:
        return _parsed("")


@lru_cache(maxsize=4)
def _parsed(text: str) -> HostResolver:
    return parse_resolv_conf(text)
