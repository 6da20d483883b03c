"""Finding network drivers and IPAM drivers by name; their modules are imported at the first use.

Built-in drivers are in the tables below, others are found by the entry points ``netlib.drivers`` and ``netlib.ipam_drivers``,
which are read only for a name that is not built in. A driver of another package is guarded (:mod:`netlib.packages`): its
defects name it.
"""

import sys
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast

from msgspec import Struct

from netlib.driverapi import Driver, NoOptions
from netlib.errors import NetlibError, NotFound, PackageFailed, PackageMissing
from netlib.ipamapi import IpamDriver
from netlib.model import Endpoint, Network, Sandbox, Scope
from netlib.objects import load
from netlib.packages import guarded, loaded

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint, EntryPoints

__all__ = [
    "Side",
    "UnusableDriver",
    "driver",
    "driver_of",
    "ipam_driver",
    "ipam_driver_of",
    "missing_package",
    "package_of",
    "usable_driver_of",
]

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
    """Return the network driver called *name*. NotFound lists the known ones; PackageFailed for one that cannot be loaded."""
    return cast(Driver, _made("driver", name))


@cache
def ipam_driver(name: str) -> IpamDriver:
    """Return the IPAM driver called *name*. NotFound lists the known ones; PackageFailed for one that cannot be loaded."""
    return cast(IpamDriver, _made("ipam", name))


def driver_of(network: Network) -> Driver:
    """Return the driver of a recorded network; an UnusableDriver where its package is not installed or cannot be loaded."""
    try:
        return driver(network.driver)
    except NotFound:
        return UnusableDriver(network.driver, _missing(network, "driver", network.driver))
    except PackageFailed as error:
        return UnusableDriver(network.driver, error)


def usable_driver_of(network: Network) -> Driver:
    """Return the driver of a recorded network; PackageMissing, PackageFailed where there is none that can be used."""
    known = driver_of(network)
    if isinstance(known, UnusableDriver):
        raise known.error
    return known


def ipam_driver_of(network: Network) -> IpamDriver:
    """Return the IPAM driver of a recorded network; PackageMissing, PackageFailed where there is none that can be used."""
    try:
        return ipam_driver(network.ipam_driver)
    except NotFound as error:
        raise _missing(network, "ipam", network.ipam_driver) from error


def package_of(side: Side, name: str) -> str:
    """Return the name of the distribution that a driver belongs to; empty for a built-in driver and for an unknown one."""
    point = None if name in _TABLES[side][1] else _entry_point(side, name)
    return point.dist.name if point is not None and point.dist is not None else ""


class UnusableDriver:
    """Stands for a driver whose package is not installed or cannot be loaded: its plans raise *error*; it has no abilities."""

    scope = Scope.LOCAL
    network_options: type[Struct] = NoOptions
    endpoint_options: type[Struct] = NoOptions

    def __init__(self, name: str, error: NetlibError) -> None:
        self.name = name
        self.error = error

    def network_plan(self, network: Network) -> NoReturn:
        raise self.error

    def join_plan(self, network: Network, endpoint: Endpoint, sandbox: Sandbox) -> NoReturn:
        raise self.error


def missing_package(whose: str, side: Side, name: str, package: str) -> PackageMissing:
    """Return the error for a driver of *package* that is not installed any more; *whose* names the record that needs it."""
    what = _TABLES[side][0]
    of_package = f" of the package {package}" if package else ""
    where = f"not installed where netlib runs ({sys.prefix})"
    text = f"{whose} needs the {what} {name!r}{of_package}, which is {where}; install it again"
    return PackageMissing(text, kind=what, reference=name, package=package)


def _missing(network: Network, side: Side, name: str) -> PackageMissing:
    return missing_package(f"network {network.name!r}", side, name, network.packages.get(side, ""))


def _made(side: Side, name: str) -> Any:
    what, builtin, group = _TABLES[side]
    if name in builtin:
        return load(builtin[name])()
    point = _entry_point(side, name)
    if point is None:
        known = ", ".join(sorted({*builtin, *(found.name for found in _entry_points(group))}))
        text = f"{what} {name!r} not found where netlib runs ({sys.prefix}); there are: {known}"
        raise NotFound(text, kind=what, reference=name)
    return guarded(loaded(point, what), what, name, package_of(side, name))


def _entry_point(side: Side, name: str) -> "EntryPoint | None":
    return next((point for point in _entry_points(_TABLES[side][2]) if point.name == name), None)


def _entry_points(group: str) -> "EntryPoints":
    from importlib.metadata import entry_points  # 10 ms, only for what is not built in

    return entry_points(group=group)
