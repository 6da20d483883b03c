"""Finding things by name without importing what is not asked for.

Built-in drivers and kernel objects resolve from the tables below; other drivers through entry points
(``netlib.drivers``, ``netlib.ipam_drivers``), which are scanned only when a name is not built in.
"""

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, cast

from netlib.driverapi import Driver
from netlib.errors import NotFound, StoreError
from netlib.ipamapi import IpamDriver
from netlib.plan import KernelObject

_DRIVERS = {
    "bridge": "drivers.bridge:BridgeDriver",
    "host": "drivers.host:HostDriver",
    "none": "drivers.none:NoneDriver",
    "macvlan": "drivers.macvlan:MacvlanDriver",
    "ipvlan": "drivers.ipvlan:IpvlanDriver",
}
_IPAM_DRIVERS = {"default": "ipam.default:DefaultIpam"}
_OBJECTS = {
    "netns": "netlib.kernel.netns:OwnedNetns",
    "bridge": "netlib.kernel.bridges:Bridge",
    "veth": "netlib.kernel.links:Veth",
    "bridge_port": "netlib.kernel.bridges:BridgePort",
    "link_up": "netlib.kernel.links:LinkUp",
    "macvlan": "netlib.kernel.sublinks:Macvlan",
    "ipvlan": "netlib.kernel.sublinks:Ipvlan",
    "vlan": "netlib.kernel.sublinks:Vlan",
    "dummy": "netlib.kernel.sublinks:Dummy",
    "ifb": "netlib.kernel.sublinks:Ifb",
    "parent_link": "netlib.kernel.parents:ParentLink",
    "vrf": "netlib.kernel.vrfs:Vrf",
    "enslaved": "netlib.kernel.vrfs:Enslaved",
    "port_vlans": "netlib.kernel.vlans:PortVlans",
    "tap": "netlib.kernel.taps:Tap",
    "moved_device": "netlib.kernel.moved:MovedDevice",
    "link_setting": "netlib.kernel.tuning:LinkSetting",
    "tuned_sysctl": "netlib.kernel.tuning:TunedSysctl",
    "token_bucket": "netlib.kernel.qdiscs:TokenBucket",
    "ingress_redirect": "netlib.kernel.qdiscs:IngressRedirect",
    "address": "netlib.kernel.addresses:Address",
    "route": "netlib.kernel.routes:RouteEntry",
    "route_away": "netlib.kernel.routes:RouteAway",
    "policy_rule": "netlib.kernel.rules:PolicyRule",
    "sysctl": "netlib.kernel.sysctl:Sysctl",
    "router_advertisements": "netlib.kernel.sysctl:RouterAdvertisements",
    "file": "netlib.kernel.files:TextFile",
    "folder": "netlib.kernel.files:Folder",
    "firewall_base": "netlib.firewall.objects:FirewallBase",
    "firewall_network": "netlib.firewall.objects:BridgedNetwork",
    "masquerade": "netlib.firewall.objects:Masquerade",
    "container_subnet": "netlib.firewall.objects:ContainerSubnet",
    "masqueraded_address": "netlib.firewall.objects:MasqueradedAddress",
    "port_condition": "netlib.firewall.objects:PortCondition",
    "published_port": "netlib.firewall.objects:PublishedPort",
    "awaited_port": "netlib.firewall.objects:AwaitedPort",
    "address_allowance": "netlib.firewall.objects:AddressAllowance",
    "apart_bridge": "netlib.firewall.objects:ApartBridge",
    "forwarded_address": "netlib.firewall.objects:ForwardedAddress",
    "port_macs": "netlib.firewall.spoofing:PortMacs",
    "port_mac": "netlib.firewall.spoofing:PortMac",
    "member_table": "netlib.firewall.members:MemberTable",
    "port_sources": "netlib.firewall.members:PortSources",
    "forward_allowance": "netlib.firewall.objects:ForwardAllowance",
    "dns_redirect": "netlib.firewall.objects:DnsRedirect",
    "foreign_lease": "cni_plugins.delegate:ForeignLease",
    "lease_file": "ipam.lease_files:LeaseFile",
    "dhcp_lease": "ipam.dhcp_client:DhcpLease",
}


@cache
def driver(name: str) -> Driver:
    """The network driver called *name*; NotFound lists the ones there are."""
    return cast(Driver, _resolve("network driver", name, _DRIVERS, "netlib.drivers")())


@cache
def ipam_driver(name: str) -> IpamDriver:
    """The IPAM driver called *name*; NotFound lists the ones there are."""
    return cast(IpamDriver, _resolve("IPAM driver", name, _IPAM_DRIVERS, "netlib.ipam_drivers")())


@cache
def object_class(tag: str) -> type[KernelObject]:
    """The class of kernel object that the store calls *tag*."""
    target = _OBJECTS.get(tag)
    if target is None:
        raise StoreError(f"the store holds an object of type {tag!r}, which this netlib does not know; upgrade netlib")
    return cast(type[KernelObject], _load(target))


def object_tags() -> tuple[str, ...]:
    """Every tag that a stored object may have."""
    return tuple(_OBJECTS)


def _resolve(what: str, name: str, builtin: dict[str, str], group: str) -> Any:
    if name in builtin:
        return _load(builtin[name])
    found = {point.name: point for point in entry_points(group=group)}
    if name not in found:
        known = ", ".join(sorted({*builtin, *found}))
        raise NotFound(f"{what} {name!r} not found; there are: {known}")
    return found[name].load()


def _load(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)
