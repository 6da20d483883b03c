"""The plugin type ``bridge``: a veth pair from the container to a bridge of the host.

The bridge, its addresses and forwarding belong to the network and stay until `netlib cni prune`; all else belongs to the
attachment.
"""

import hashlib
from ipaddress import ip_interface

from msgspec import Struct, field
from msgspec.structs import replace

from cni_plugins import attaching
from cni_plugins.addressing import Addressing
from cni_plugins.bridge_vlans import PortConf, Trunk, port_conf, vlan_gateway
from cni_plugins.interface import (
    address_objects,
    check_masquerade_backend,
    checked_mtu,
    chosen_dns,
    default_route,
    first_address,
    masquerade_objects,
    remove_foreign_link,
    requested_mac,
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
from netlib.firewall.spoofing import PortMac, PortMacs, remove_reference_check
from netlib.kernel.addresses import Address, addresses_of
from netlib.kernel.bridges import Bridge, BridgePort
from netlib.kernel.handle import Kernel
from netlib.kernel.links import LinkUp, Veth
from netlib.kernel.tuning import LinkSetting
from netlib.model import IPInterface
from netlib.names import check_ifname, endpoint_mac, host_end_mac, veth_ifname
from netlib.plan import KernelObject, Key, Plan
from netlib.store.records import Transaction

__all__ = ["BridgeConf", "BridgePlugin"]

NAME = "bridge"
_CONTAINER = 2  # index of the container's interface in a result


class MacRequest(Struct, frozen=True):
    """The MAC address under ``args.cni`` and ``runtimeConfig``."""

    mac: str = ""


class Args(Struct, frozen=True):
    """The key ``args``."""

    cni: MacRequest = MacRequest()


class BridgeConf(NetConf, frozen=True, kw_only=True, rename="camel"):
    """The configuration."""

    bridge: str = "cni0"
    is_gateway: bool = False
    is_default_gateway: bool = False
    force_address: bool = False
    ip_masq_backend: str = ""
    mtu: int = 0
    hairpin_mode: bool = False
    promisc_mode: bool = False
    vlan: int = 0
    vlan_trunk: tuple[Trunk, ...] | None = None
    preserve_default_vlan: bool = False
    mac_spoof_chk: bool = field(name="macspoofchk", default=False)
    enable_dad: bool = field(name="enabledad", default=False)
    disable_container_interface: bool = False
    port_isolation: bool = False
    args: Args = Args()
    runtime_config: MacRequest = MacRequest()

    @property
    def routes_for_containers(self) -> bool:
        return self.is_gateway or self.is_default_gateway

    @property
    def port(self) -> PortConf:
        """The VLANs of a container's port; CniError where they are impossible."""
        return port_conf(self.vlan, self.vlan_trunk or (), keeps_default=self.preserve_default_vlan)


class BridgePlugin:
    """The verbs of this type."""

    name = NAME
    config = BridgeConf

    def __init__(self, node: Node) -> None:
        self._node = node

    def add(self, call: Call[BridgeConf]) -> Result:
        addressing = Addressing(self._node, call)
        _check(call.config, addressing)
        mac = requested_mac(call, call.config.args.cni.mac, call.config.runtime_config.mac)
        with attaching.pending_attachment(self._node, call, NAME) as pending:
            if addressing.asks_over_link:  # the link is made before the address is known that its MAC could be derived from
                mac = mac or endpoint_mac(pending.record, None)
            wiring = _Wiring(call.config, pending, mac)
            if addressing.asks_over_link:
                pending.apply(lambda _: wiring.wanted(Result(), Plan()))
                addressing.ask(pending)

            def draft(tx: Transaction) -> Wanted:
                result, plan = addressing.lease(tx, pending)
                if addressing and not result.ips:
                    raise CniError(Code.INVALID_CONFIG, "IPAM plugin returned missing IP config", addressing.kind)
                return wiring.wanted(result, plan)

            pending.apply(draft)
            return attaching.finish(pending, call, wiring.result)

    def check(self, call: Call[BridgeConf]) -> None:
        Addressing(self._node, call).check()
        attaching.check(self._node, call, NAME)

    def delete(self, call: Call[BridgeConf]) -> None:
        attaching.delete(self._node, call, NAME, lambda: self._delete_foreign(call))

    def _delete_foreign(self, call: Call[BridgeConf]) -> None:
        remove_foreign_link(self._node, call, ("veth",))
        Addressing(self._node, call).delete()
        with Kernel() as kernel:
            if call.config.ip_masq:
                forget_masquerade(kernel, call.network, call.container_id, call.ifname)
            if call.config.mac_spoof_chk:
                remove_reference_check(kernel, call.container_id, call.ifname)

    def garbage_collect(self, call: Call[BridgeConf]) -> None:
        attaching.collect(self._node, call, NAME)
        Addressing(self._node, call).garbage_collect()

    def status(self, call: Call[BridgeConf]) -> None:
        addressing = Addressing(self._node, call)
        _check(call.config, addressing)
        addressing.status()


def _check(config: BridgeConf, addressing: Addressing) -> None:
    check_ifname(config.bridge)
    checked_mtu(config.mtu)
    check_masquerade_backend(config.ip_masq_backend)
    if config.port.vlan and config.routes_for_containers:
        check_ifname(f"{config.bridge}.{config.vlan}")
    if config.hairpin_mode and config.promisc_mode:
        raise CniError(
            Code.INVALID_CONFIG,
            "cannot set hairpin mode and promiscuous mode at the same time.",
            "leave out hairpinMode or promiscMode",
        )
    if addressing and config.disable_container_interface:
        raise CniError(
            Code.INVALID_CONFIG,
            "cannot use IPAM when DisableContainerInterface flag is set",
            "leave out ipam or disableContainerInterface",
        )


class _Wiring:
    """Plans the objects of one ADD; of the kernel it reads only the bridge, its addresses, and its link into a VLAN."""

    def __init__(self, config: BridgeConf, pending: PendingAttachment, mac: str) -> None:
        self._config = config
        self._pending = pending
        self._mac = mac
        self.result = Result()

    def wanted(self, leased: Result, held: Plan) -> Wanted:
        """Plan the objects for the IPAM result *leased*, with those that hold it (*held*)."""
        config, pending = self._config, self._pending
        ips = tuple(self._with_gateway(ip) for ip in leased.ips)
        routes = leased.routes
        if config.is_default_gateway:
            for version in dict.fromkeys(ip.address.version for ip in ips):
                wanted = default_route(version, next(ip.gateway for ip in ips if ip.address.version == version))
                if not any(route.gw is not None and route.dst == wanted.dst for route in routes):
                    routes = (*routes, wanted)
        bridge = self._bridge()
        gateways = [_gateway_on_bridge(ip) for ip in ips] if config.routes_for_containers else []
        in_vlan = vlan_gateway(bridge.ifname, config.port, config.mtu, pending) if gateways and config.vlan else None
        host, ifname, netns = veth_ifname(pending.record), pending.key.ifname, pending.netns
        mac = self._mac or endpoint_mac(pending.record, next((ip.address.ip for ip in ips if ip.address.version == 4), None))
        host_mac = host_end_mac(pending.record)
        self.result = Result(
            interfaces=(
                Interface(bridge.ifname, bridge.adopted.mac if bridge.adopted else bridge.mac),
                Interface(host, host_mac),
                Interface(ifname, mac, sandbox=netns.path),
                *([Interface(in_vlan.ifname, in_vlan.mac)] if in_vlan else ()),
            ),
            ips=ips,
            routes=routes,
            dns=chosen_dns(config.dns, leased.dns),
        )
        own: list[KernelObject] = [
            Veth(ifname=host, peer=ifname, peer_netns=netns, mac=mac, host_mac=host_mac, mtu=config.mtu),
            *([PortMac(port=host, mac=mac)] if config.mac_spoof_chk else ()),
            BridgePort(ifname=host, bridge=bridge.ifname, hairpin=config.hairpin_mode, isolated=config.port_isolation),
            *config.port.objects(host),
        ]
        if not config.disable_container_interface:
            own += self._objects_inside(ips, self._announced_versions(ips, bridge))
        gateway_ifname = in_vlan.ifname if in_vlan else bridge.ifname
        shared = [
            bridge,
            *self._settings(),
            *(in_vlan.objects if in_vlan else ()),
            *gateway_addresses(gateway_ifname, gateways),
        ]
        if config.routes_for_containers:
            shared += forwarding_objects({ip.address.version for ip in ips})
        subnets, masquerade = masquerade_objects(config, ips)
        return Wanted(held + own + masquerade, Plan(*shared, *subnets), self._addresses_in_the_way(gateway_ifname, gateways))

    def _announced_versions(self, ips: tuple[IP, ...], bridge: Bridge) -> set[int]:
        """The IP versions whose addresses must be announced, for a neighbour may know them by another MAC address.

        IPv4 need not be where the MAC address is derived from the container's only IPv4 address: every former holder of that
        address had the same MAC address. On an adopted bridge the former holder may be a container of another plugin.
        """
        addresses = {ip.address.ip for ip in ips}
        versions: list[int] = [address.version for address in addresses]
        mac_follows_address = not self._mac and not bridge.adopted and versions.count(4) == 1
        return {version for version in versions if version == 6 or not mac_follows_address}

    def _objects_inside(self, ips: tuple[IP, ...], announced: set[int]) -> list[KernelObject]:
        ifname, netns = self._pending.key.ifname, self._pending.netns
        if not ips:  # there is no IPAM, or it asks over the link, which this makes ready
            return [LinkUp(ifname=ifname, netns=netns)]
        return [
            *address_objects(ifname, netns, ips, dad=self._config.enable_dad, announced=announced),
            *route_objects(ifname, netns, self.result),
        ]

    def _with_gateway(self, ip: IP) -> IP:
        gateway = ip.gateway
        if gateway is None and self._config.routes_for_containers:
            gateway = first_address(ip.address)
        return replace(ip, gateway=gateway, interface=_CONTAINER)

    def _bridge(self) -> Bridge:
        """The bridge: as the network's record has it, else as it will be made; its MAC is derived from store and name."""
        ifname = self._config.bridge
        digest = hashlib.blake2b(f"{self._pending.store_tag}/{ifname}".encode(), digest_size=16).hexdigest()
        wanted = Bridge(ifname=ifname, mac=endpoint_mac(digest, None), mtu=self._config.mtu)
        present = [item for item in self._pending.shared.of(Bridge) if item.key == wanted.key]
        return replace(wanted, adopted=present[0].adopted) if present else wanted.observed(self._pending.kernel)

    def _settings(self) -> list[KernelObject]:
        """Settings of the bridge in which networks on it may differ, and the table that checks the MAC addresses of ports."""
        config = self._config
        found: list[KernelObject] = [PortMacs()] if config.mac_spoof_chk else []
        if config.promisc_mode:
            found.append(LinkSetting(ifname=config.bridge, setting="promisc", value="on"))
        if config.vlan or config.vlan_trunk is not None:
            found.append(LinkSetting(ifname=config.bridge, setting="vlan_filtering", value="on"))
        return found

    def _addresses_in_the_way(self, ifname: str, gateways: list[IPInterface]) -> frozenset[Key]:
        """The recorded addresses that the link *ifname* must lose before it can have *gateways*.

        CniError where ``forceAddress`` does not allow that, and for an address that netlib did not set.
        """
        present = {item.address: item.key for item in self._pending.shared.of(Address) if item.ifname == ifname}
        fresh = [gateway for gateway in gateways if gateway not in present]
        if not fresh:
            return frozenset()
        addresses = {*present, *addresses_of(self._pending.kernel, ifname)}
        in_the_way = [address for address in addresses for gateway in fresh if _excludes(address, gateway)]
        if in_the_way and not self._config.force_address:
            raise CniError(
                Code.CONFLICT,
                f'failed to set bridge addr: "{ifname}" already has an IP address different from {fresh[0]}',
                f"it has {', '.join(map(str, in_the_way))}; give that subnet's gateway, another bridge, or forceAddress",
            )
        foreign = [str(address) for address in in_the_way if address not in present]
        if foreign:
            raise CniError(
                Code.CONFLICT,
                f'"{ifname}" has an IP address that netlib did not give it: {", ".join(foreign)}',
                f"`ip addr del {foreign[0]} dev {ifname}` first",
            )
        return frozenset(present[address] for address in in_the_way)


def _excludes(address: IPInterface, gateway: IPInterface) -> bool:
    """Whether a bridge with *address* cannot have *gateway* too: it has one IPv4 address, and one IPv6 address per subnet."""
    if address.version != gateway.version or address == gateway:
        return False
    return address.version == 4 or address.network.overlaps(gateway.network)


def _gateway_on_bridge(ip: IP) -> IPInterface:
    return ip_interface(f"{ip.gateway}/{ip.address.network.prefixlen}")
