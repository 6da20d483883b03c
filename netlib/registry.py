"""Finding network drivers and IPAM drivers by name; their modules are imported at the first use.

Built-in drivers are in the tables below, others are found by the entry points ``netlib.drivers`` and ``netlib.ipam_drivers``,
which are read only for a name that is not built in.
"""

from functools import cache
from typing import TYPE_CHECKING, Any, Literal, cast

from msgspec import Struct

from netlib.driverapi import Driver, NoOptions
from netlib.errors import NotFound, PackageMissing
from netlib.ipamapi import IpamDriver
from netlib.model import Endpoint, Network, Sandbox, Scope
from netlib.objects import load
from netlib.plan import Plan

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint, EntryPoints

__all__ = ["MissingDriver", "Side", "driver", "driver_of", "ipam_driver", "missing_package", "package_of"]

Side = Literal["driver", "ipam"]
"""Which of a network's two drivers is meant: the network driver or the IPAM driver."""

_DRIVERS = {
    "bridge": "drivers.bridge:BridgeDriver",
    "host": "drivers.host:HostDriver",
    "none": "drivers.none:NoneDriver",
    "macvlan": "drivers.macvlan:MacvlanDriver",
    "ipvlan": "drivers.ipvlan:IpvlanDriver",
}
_IPAM_DRIVERS = {"default": "ipam.default:DefaultIpam"}
_TABLES: dict[Side, tuple[str, dict[str, str], str]] = {
    "driver": ("network driver", _DRIVERS, "netlib.drivers"),
    "ipam": ("IPAM driver", _IPAM_DRIVERS, "netlib.ipam_drivers"),
}


@cache
def driver(name: str) -> Driver:
    """Return the network driver called *name*; NotFound lists the known ones."""
    return cast(Driver, _made("driver", name))


@cache
def ipam_driver(name: str) -> IpamDriver:
    """Return the IPAM driver called *name*; NotFound lists the known ones."""
    return cast(IpamDriver, _made("ipam", name))


def driver_of(network: Network) -> Driver:
    """Return the driver of a recorded network, or a MissingDriver when its package is not installed any more."""
    try:
        return driver(network.driver)
    except NotFound:
        return MissingDriver(network)


def package_of(side: Side, name: str) -> str:
    """Return the name of the distribution that a driver belongs to; empty for a built-in driver and for an unknown one."""
    point = None if name in _TABLES[side][1] else _entry_point(side, name)
    return point.dist.name if point is not None and point.dist is not None else ""


class MissingDriver:
    """Stands for a driver whose package is not installed any more: its plans raise PackageMissing, and it has no abilities."""

    scope = Scope.LOCAL
    network_options: type[Struct] = NoOptions
    endpoint_options: type[Struct] = NoOptions

    def __init__(self, network: Network) -> None:
        self.name = network.driver
        self._network = network

    def network_plan(self, network: Network) -> Plan:
        raise self._missing()

    def join_plan(self, network: Network, endpoint: Endpoint, sandbox: Sandbox) -> Plan:
        raise self._missing()

    def _missing(self) -> PackageMissing:
        whose = f"network {self._network.name!r}"
        return missing_package(whose, "driver", self.name, self._network.packages.get("driver", ""))


def missing_package(whose: str, side: Side, name: str, package: str) -> PackageMissing:
    """Return the error for a driver of *package* that is not installed any more; *whose* names the record that needs it."""
    what = _TABLES[side][0]
    of_package = f" of the package {package}" if package else ""
    text = f"{whose} needs the {what} {name!r}{of_package}, which is not installed; install it again"
    return PackageMissing(text, kind=what, reference=name, package=package)


def _made(side: Side, name: str) -> Any:
    what, builtin, group = _TABLES[side]
    if name in builtin:
        return load(builtin[name])()
    point = _entry_point(side, name)
    if point is None:
        known = ", ".join(sorted({*builtin, *(found.name for found in _entry_points(group))}))
        raise NotFound(f"{what} {name!r} not found; there are: {known}", kind=what, reference=name)
    return point.load()()


def _entry_point(side: Side, name: str) -> "EntryPoint | None":
    return next((point for point in _entry_points(_TABLES[side][2]) if point.name == name), None)


def _entry_points(group: str) -> "EntryPoints":
    from importlib.metadata import entry_points  # 10 ms, only for what is not built in

    return entry_points(group=group)
