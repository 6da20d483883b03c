"""What plugins that give a container an interface do with an IPAM result at ADD, and with the interface at DEL."""

import errno
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_interface
from typing import Any

from cni_plugins.netconf import NetConf
from cni_plugins.node import Node
from cni_plugins.protocol import CniError, Code
from cni_plugins.result import IP, Dns, Result, Route
from cni_plugins.skel import Call
from netlib.errors import KernelError, ObjectMissing
from netlib.firewall.objects import ContainerSubnet, FirewallBase, MasqueradedAddress
from netlib.kernel.addresses import Address, addresses_of
from netlib.kernel.handle import Kernel
from netlib.kernel.links import LinkUp, delete_link
from netlib.kernel.netns import identity_of
from netlib.kernel.routes import MAIN_TABLE, RouteEntry
from netlib.kernel.sysctl import Sysctl
from netlib.model import IPAddress, IPInterface, NetnsRef
from netlib.names import check_mac
from netlib.plan import KernelObject

__all__ = [
    "address_objects",
    "check_masquerade_backend",
    "checked_mtu",
    "chosen_dns",
    "default_route",
    "first_address",
    "masquerade_objects",
    "remove_foreign_link",
    "requested_mac",
    "route_objects",
]

_LONGEST_MTU = 65535


def address_objects(
    ifname: str,
    netns: NetnsRef,
    ips: Iterable[IP],
    *,
    dad: bool = False,
    on_link: bool = True,
    announced: Collection[int] = (4, 6),
) -> list[KernelObject]:
    """The objects that give a link of the container the addresses *ips* and set it up, with IPv6 switched on if needed.

    When the link comes up, the kernel announces the addresses of the IP versions *announced*: a neighbour may know an address
    by the MAC address of its former holder. A bridge sends the announcement to each of its ports while the caller waits: 4 ms
    for 1,000 ports.
    """
    addresses = list(dict.fromkeys(ip.address for ip in ips))
    families = {address.version for address in addresses}
    objects: list[KernelObject] = [
        Sysctl(name=f"net/ipv{version}/conf/{ifname}/{name}", value="1", netns=netns, optional=True)
        for version, name in ((4, "arp_notify"), (6, "ndisc_notify"))
        if version in families.intersection(announced)
    ]
    if 6 in families:
        objects += [
            Sysctl(name=f"net/ipv6/conf/{name}/disable_ipv6", value="0", netns=netns) for name in dict.fromkeys(("lo", ifname))
        ]
        objects.append(Sysctl(name=f"net/ipv6/conf/{ifname}/keep_addr_on_down", value="1", netns=netns))
        objects.append(Sysctl(name=f"net/ipv6/conf/{ifname}/accept_dad", value="1" if dad else "0", netns=netns))
    objects += [Address(ifname=ifname, address=address, netns=netns, dad=dad, on_link=on_link) for address in addresses]
    return [*objects, LinkUp(ifname=ifname, netns=netns)]


def route_objects(ifname: str, netns: NetnsRef, result: Result) -> list[KernelObject]:
    """The routes of *result* over a link of the container; without a gateway, by that of the first address of its IP version.

    An existing route to the same destination, such as the default route of another interface, is left unchanged. A route into a
    subnet of *result* is left out: the kernel makes it with the address.
    """
    subnets = {ip.address.network for ip in result.ips}
    gateways: dict[int, IPAddress] = {}
    for ip in result.ips:
        if ip.gateway is not None:
            gateways.setdefault(ip.gateway.version, ip.gateway)
    routes: dict[object, KernelObject] = {}
    for route in result.routes:
        table = route.table if route.table is not None else MAIN_TABLE
        if route.dst.network in subnets and table == MAIN_TABLE and not route.priority:
            continue
        entry = RouteEntry(
            destination=route.dst.network,
            gateway=_gateway(route, gateways),
            ifname=ifname,
            metric=route.priority,
            table=table,
            scope=route.scope,
            mtu=route.mtu,
            advmss=route.advmss,
            netns=netns,
            yields=True,
        )
        routes.setdefault(entry.key, entry)
    return list(routes.values())


def _gateway(route: Route, gateways: Mapping[int, IPAddress]) -> IPAddress | None:
    """The gateway of a route; None for 0.0.0.0, DHCP's word for "on the link". CniError for the other IP version."""
    if route.gw is None:
        return gateways.get(route.dst.version)
    if route.gw.version != route.dst.version:
        raise CniError(
            Code.INVALID_CONFIG,
            f"gateway {route.gw} of the route to {route.dst} is of the other IP version",
            f"name one of IPv{route.dst.version}",
        )
    return None if route.gw.is_unspecified else route.gw


def default_route(version: int, gateway: IPAddress | None) -> Route:
    """The default route of a family (4 or 6)."""
    return Route(ip_interface("0.0.0.0/0" if version == 4 else "::/0"), gateway)


def first_address(address: IPInterface) -> IPAddress:
    """The first address of a subnet, the gateway where none is named; CniError where the subnet has no such address."""
    try:
        return address.network.network_address + 1
    except ValueError:
        raise CniError(
            Code.INVALID_CONFIG, f"{address} has no room for a gateway", "name one, or take a larger subnet"
        ) from None


def masquerade_objects(config: NetConf, ips: Iterable[IP]) -> tuple[list[KernelObject], list[KernelObject]]:
    """The objects for ``ipMasq``: those that the network shares, and the attachment's own; none where it is off."""
    if not config.ip_masq:
        return [], []
    addresses = list(dict.fromkeys(ip.address for ip in ips))
    subnets = dict.fromkeys(address.network for address in addresses)
    shared: list[KernelObject] = [FirewallBase(), *(ContainerSubnet(subnet=subnet) for subnet in subnets)]
    return shared, [MasqueradedAddress(address=address) for address in addresses]


def check_masquerade_backend(backend: str) -> None:
    """Refuse an unknown backend; for both of the reference's, iptables and nftables, we make the same nftables rules."""
    if backend not in ("", "iptables", "nftables"):
        raise CniError(Code.INVALID_CONFIG, f'unknown ipmasq backend "{backend}"', "ipMasqBackend is iptables or nftables")


def chosen_dns(configured: Dns, leased: Dns) -> Dns:
    """The name servers of the configuration, where it names any, else those of the IPAM result."""
    return configured if configured != Dns() else leased


def requested_mac(call: Call[Any], *configured: str) -> str:
    """The MAC address asked for: the last of *configured* that is not empty, else CNI_ARGS' ``MAC``."""
    wanted = [mac for mac in (call.arguments("MAC").get("MAC", ""), *configured) if mac]
    return check_mac(wanted[-1]) if wanted else ""


def checked_mtu(mtu: int) -> int:
    """Return *mtu*, 0 for the kernel's own; CniError when no link can have it."""
    if not 0 <= mtu <= _LONGEST_MTU:
        raise CniError(Code.INVALID_CONFIG, f"invalid MTU {mtu}", f"it must be [0 (the kernel's own), {_LONGEST_MTU}]")
    return mtu


def remove_foreign_link(node: Node, call: Call[Any], kinds: Sequence[str]) -> list[IPInterface]:
    """Delete the link that *call* names in its netns, if its kind is one of *kinds*; return the addresses that it had.

    For a container that no record knows, which a reference plugin attached. A no-op without netns or link.
    """
    if node.netns is None:
        return []
    netns = NetnsRef(call.netns, identity_of(node.netns))
    with Kernel() as kernel, suppress(ObjectMissing):
        kernel.lend(netns, node.netns)
        rtnl = kernel.rtnl(netns)
        link = rtnl.find_link(call.ifname)
        if link is None or link.kind not in kinds:
            return []
        addresses = addresses_of(kernel, call.ifname, netns)
        try:
            delete_link(rtnl, link)
        except KernelError as error:
            if error.errno != errno.ENODEV:
                raise
        return addresses
    return []
