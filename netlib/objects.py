"""Finding the class of a kernel object by its tag in the store; its module is imported at the first use.

Built-in classes are in the table below, others are found by the entry points ``netlib.objects``. The tag of another package's
class begins with the package's name (``acme-net.tunnel``), so that an error can name the package when it is not installed any
more.
"""

import sys
from functools import cache
from importlib import import_module
from typing import Any, cast

from netlib.errors import PackageFailed, PackageMissing, StoreError
from netlib.packages import failed, loaded
from netlib.plan import KernelObject

_GROUP = "netlib.objects"
_OBJECTS = {
    "prepared": "netlib.core.preparing:Prepared",
    "netns": "netlib.kernel.owned_netns:OwnedNetns",
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
def object_class(tag: str) -> type[KernelObject]:
    """Return the class with that *tag*. Raises PackageMissing when its package is not installed.

    Raises PackageFailed when its package cannot be loaded, StoreError for another tag.
    """
    target = _OBJECTS.get(tag)
    if target is not None:
        return cast(type[KernelObject], load(target))
    from importlib.metadata import entry_points  # 10 ms, only for what is not built in

    for point in entry_points(group=_GROUP, name=tag):
        return cast(type[KernelObject], loaded(point, "kernel object"))
    package = tag.rpartition(".")[0]
    if not package:
        raise StoreError(f"the store holds an object of type {tag!r}, which this netlib does not know; upgrade netlib")
    where = f"not installed where netlib runs ({sys.prefix})"
    text = f"the package {package} is {where}, which an object of type {tag!r} needs; install it again"
    raise PackageMissing(text, kind="kernel object", reference=tag, package=package)


def failed_object(item: KernelObject, error: Exception) -> PackageFailed | None:
    """Return the error to raise for *error* of an object whose class is another package's; None for a built-in class."""
    package = str(type(item).__struct_config__.tag).rpartition(".")[0]
    if not package or isinstance(error, MemoryError):
        return None
    return failed(error, "kernel object", str(item.key), package, "failed")


def load(target: str) -> Any:
    """Import the module of *target* (``module:attribute``) and return the attribute."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)
