"""Network drivers and IPAM drivers by name, imported at first use.

Built-in drivers resolve from the tables below, others through the entry points ``netlib.drivers`` and
``netlib.ipam_drivers``, which are scanned only when a name is not built in.
"""

from functools import cache
from importlib.metadata import entry_points
from typing import Any, cast

from netlib.driverapi import Driver
from netlib.errors import NotFound
from netlib.ipamapi import IpamDriver
from netlib.objects import load

_DRIVERS = {
    "bridge": "drivers.bridge:BridgeDriver",
    "host": "drivers.host:HostDriver",
    "none": "drivers.none:NoneDriver",
    "macvlan": "drivers.macvlan:MacvlanDriver",
    "ipvlan": "drivers.ipvlan:IpvlanDriver",
}
_IPAM_DRIVERS = {"default": "ipam.default:DefaultIpam"}


@cache
def driver(name: str) -> Driver:
    """The network driver called *name*; NotFound lists the ones there are."""
    return cast(Driver, _resolve("network driver", name, _DRIVERS, "netlib.drivers")())


@cache
def ipam_driver(name: str) -> IpamDriver:
    """The IPAM driver called *name*; NotFound lists the ones there are."""
    return cast(IpamDriver, _resolve("IPAM driver", name, _IPAM_DRIVERS, "netlib.ipam_drivers")())


def _resolve(what: str, name: str, builtin: dict[str, str], group: str) -> Any:
    if name in builtin:
        return load(builtin[name])
    found = {point.name: point for point in entry_points(group=group)}
    if name not in found:
        known = ", ".join(sorted({*builtin, *found}))
        raise NotFound(f"{what} {name!r} not found; there are: {known}", kind=what, reference=name)
    return found[name].load()
