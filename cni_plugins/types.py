"""Plugin types and the classes that answer for them, imported at first use."""

from importlib import import_module
from typing import Any, cast

from cni_plugins.skel import Plugin

__all__ = ["find_plugin_class", "plugin_types"]

_TYPES = {
    "bandwidth": "cni_plugins.bandwidth:BandwidthPlugin",
    "bridge": "cni_plugins.bridge:BridgePlugin",
    "dhcp": "cni_plugins.dhcp:DhcpPlugin",
    "dummy": "cni_plugins.dummy:DummyPlugin",
    "firewall": "cni_plugins.firewall:FirewallPlugin",
    "host-device": "cni_plugins.host_device:HostDevicePlugin",
    "host-local": "cni_plugins.host_local:HostLocalPlugin",
    "ipvlan": "cni_plugins.ipvlan:IpvlanPlugin",
    "loopback": "cni_plugins.loopback:LoopbackPlugin",
    "macvlan": "cni_plugins.macvlan:MacvlanPlugin",
    "netlib": "cni_plugins.cnm:CnmPlugin",
    "portmap": "cni_plugins.portmap:PortmapPlugin",
    "ptp": "cni_plugins.ptp:PtpPlugin",
    "sbr": "cni_plugins.sbr:SbrPlugin",
    "static": "cni_plugins.static:StaticPlugin",
    "tap": "cni_plugins.tap:TapPlugin",
    "tuning": "cni_plugins.tuning:TuningPlugin",
    "vlan": "cni_plugins.vlan:VlanPlugin",
    "vrf": "cni_plugins.vrf:VrfPlugin",
}


def plugin_types() -> tuple[str, ...]:
    """Every type that we answer for, which is the name of its executable."""
    return tuple(_TYPES)


def find_plugin_class(kind: str) -> type[Plugin[Any]] | None:
    """The class of the plugin type *kind*, None for a foreign one."""
    target = _TYPES.get(kind)
    if target is None:
        return None
    module, _, name = target.partition(":")
    return cast(type[Plugin[Any]], getattr(import_module(module), name))
