"""The plugin type ``ptp``: a veth pair between container and host that carries all packets, those to the same subnet too.

As in the reference, the container has a route to its gateway's address, which is on the host's end, and reaches its subnet
through the gateway. The host has the gateway's address on every such link, and a route to each container.
"""

from ipaddress import ip_interface, ip_network

from msgspec.structs import replace

from cni_plugins import attaching
from cni_plugins.addressing import Addressing
from cni_plugins.interface import (
    address_objects,
    check_masquerade_backend,
    checked_mtu,
    chosen_dns,
    masquerade_objects,
    remove_foreign_link,
    route_objects,
)
from cni_plugins.netconf import NetConf
from cni_plugins.node import Node
from cni_plugins.protocol import CniError, Code
from cni_plugins.reference import forget_masquerade
from cni_plugins.result import IP, Interface, Result
from cni_plugins.skel import Call
from drivers.routing import forwarding_objects, gateway_addresses
from netlib.core.pending_attachment import PendingAttachment, Wanted
from netlib.kernel.handle import Kernel
from netlib.kernel.links import LinkUp, Veth
from netlib.kernel.routes import RouteEntry
from netlib.model import IPAddress, IPNetwork, NetnsRef
from netlib.names import endpoint_mac, host_end_mac, veth_ifname
from netlib.plan import KernelObject, Plan
from netlib.store.records import Transaction

__all__ = ["PtpConf", "PtpPlugin"]

NAME = "ptp"
_CONTAINER = 1  # index of the container's interface in a result


class PtpConf(NetConf, frozen=True, kw_only=True, rename="camel"):
    """The configuration."""

    ip_masq_backend: str = ""
    mtu: int = 0


class PtpPlugin:
    """The verbs of this type."""

    name = NAME
    config = PtpConf

    def __init__(self, node: Node) -> None:
        self._node = node

    def add(self, call: Call[PtpConf]) -> Result:
        addressing = _addressing(self._node, call)
        with attaching.pending_attachment(self._node, call, NAME) as pending:
            result, veth = Result(), _veth(call.config, pending, ())
            if addressing.asks_over_link:
                pending.apply(lambda _: Wanted(Plan(veth, LinkUp(ifname=veth.peer, netns=pending.netns))))
                addressing.ask(pending)

            def draft(tx: Transaction) -> Wanted:
                nonlocal result, veth
                leased, held = addressing.lease(tx, pending)
                if not addressing.asks_over_link:
                    veth = _veth(call.config, pending, leased.ips)
                result = _result(call.config, veth, leased)
                subnets, masquerade = masquerade_objects(call.config, result.ips)
                return Wanted(
                    held + _own(veth, result) + masquerade,
                    Plan(*forwarding_objects({ip.address.version for ip in result.ips}), *subnets),
                )

            pending.apply(draft)
            return attaching.finish(pending, call, result)

    def check(self, call: Call[PtpConf]) -> None:
        _addressing(self._node, call).check()
        attaching.check(self._node, call, NAME)

    def delete(self, call: Call[PtpConf]) -> None:
        attaching.delete(self._node, call, NAME, lambda: self._delete_foreign(call))

    def _delete_foreign(self, call: Call[PtpConf]) -> None:
        Addressing(self._node, call).delete()
        remove_foreign_link(self._node, call, ("veth",))
        if call.config.ip_masq:
            with Kernel() as kernel:
                forget_masquerade(kernel, call.network, call.container_id, call.ifname)

    def garbage_collect(self, call: Call[PtpConf]) -> None:
        attaching.collect(self._node, call, NAME)
        Addressing(self._node, call).garbage_collect()

    def status(self, call: Call[PtpConf]) -> None:
        _addressing(self._node, call).status()


def _addressing(node: Node, call: Call[PtpConf]) -> Addressing:
    checked_mtu(call.config.mtu)
    check_masquerade_backend(call.config.ip_masq_backend)
    addressing = Addressing(node, call)
    if not addressing:
        raise CniError(Code.INVALID_CONFIG, "ptp needs addresses", "give it an ipam, such as host-local")
    return addressing


def _result(config: PtpConf, veth: Veth, leased: Result) -> Result:
    if not leased.ips:
        raise CniError(Code.INVALID_CONFIG, "IPAM plugin returned missing IP config")
    without = next((ip for ip in leased.ips if ip.gateway is None), None)
    if without is not None:
        raise CniError(Code.INVALID_CONFIG, f"ptp needs a gateway for {without.address}", "name it in the key ipam")
    return Result(
        interfaces=(Interface(veth.ifname, veth.host_mac), Interface(veth.peer, veth.mac, sandbox=veth.peer_netns.path)),
        ips=tuple(replace(ip, interface=_CONTAINER) for ip in leased.ips),
        routes=leased.routes,
        dns=chosen_dns(config.dns, leased.dns),
    )


def _veth(config: PtpConf, pending: PendingAttachment, ips: tuple[IP, ...]) -> Veth:
    address = next((ip.address.ip for ip in ips if ip.address.version == 4), None)
    return Veth(
        ifname=veth_ifname(pending.record),
        peer=pending.key.ifname,
        peer_netns=pending.netns,
        mac=endpoint_mac(pending.record, address),
        host_mac=host_end_mac(pending.record),
        mtu=config.mtu,
    )


def _own(veth: Veth, result: Result) -> list[KernelObject]:
    """The link, the gateway's address and a route to the container on the host, and the container's routes by that gateway."""
    netns = veth.peer_netns
    gateways = dict.fromkeys(ip.gateway for ip in result.ips if ip.gateway is not None)
    addresses = dict.fromkeys(_single_address(ip.address.ip) for ip in result.ips)
    objects: list[KernelObject] = [
        veth,
        *gateway_addresses(veth.ifname, [ip_interface(gateway) for gateway in gateways]),
        *(RouteEntry(destination=address, ifname=veth.ifname) for address in addresses),
        # Nothing is announced: the link's only neighbour, the host's end, is new too.
        *address_objects(veth.peer, netns, result.ips, on_link=False, announced=()),
    ]
    inward: dict[object, KernelObject] = {}
    by_gateways = (route for ip in result.ips for route in _by_gateway(ip, veth.peer, netns))
    for route in (*by_gateways, *route_objects(veth.peer, netns, result)):
        inward.setdefault(route.key, route)
    return [*objects, *inward.values()]


def _by_gateway(ip: IP, ifname: str, netns: NetnsRef) -> list[RouteEntry]:
    assert ip.gateway is not None
    source = ip.address.ip
    return [
        RouteEntry(destination=_single_address(ip.gateway), ifname=ifname, source=source, netns=netns),
        RouteEntry(destination=ip.address.network, gateway=ip.gateway, ifname=ifname, source=source, netns=netns),
    ]


def _single_address(address: IPAddress) -> IPNetwork:
    return ip_network(address)
