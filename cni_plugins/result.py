"""The result of an ADD in the form of the newest specification (1.1.0), and its conversion from and to every older form.

Versions below 0.3.0 know one address of each family; below 1.0.0 an address carries its IP version; below 1.1.0 an interface
has no MTU, socket or PCI id, and a route is no more than destination and gateway. What a version does not know is left out.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, field

from cni_plugins.decode import Address, Cidr, convert
from cni_plugins.protocol import NEWEST, VERSIONS, CniError, Code, at_least

__all__ = ["IP", "Dns", "Interface", "Result", "Route", "Versioned", "parse_result", "render_result"]

_Count = Annotated[int, Meta(ge=0)]
_Number = Annotated[int, Meta(ge=0, lt=1 << 32)]  # as netlink has those of a route
_Scope = Annotated[int, Meta(ge=0, lt=1 << 8)]
_NEW_INTERFACE_KEYS = ("mtu", "socketPath", "pciID")
_OLD_ROUTE_KEYS = ("dst", "gw")


class Interface(Struct, frozen=True, omit_defaults=True):
    """A link of the attachment; ``sandbox`` is empty on the host, else what CNI_NETNS said."""

    name: str
    mac: str = ""
    mtu: _Count = 0
    sandbox: str = ""
    socket_path: str = field(name="socketPath", default="")
    pci_id: str = field(name="pciID", default="")


class IP(Struct, frozen=True, omit_defaults=True):
    """An address; ``interface`` is an index into the result's interfaces, None in the answer of an IPAM plugin."""

    address: Cidr
    gateway: Address | None = None
    interface: int | None = None


class Route(Struct, frozen=True, omit_defaults=True):
    """A route; ``dst`` keeps host bits (``dst.network`` has none), and without ``gw`` the gateway of the IP counts."""

    dst: Cidr
    gw: Address | None = None
    mtu: _Number = 0
    advmss: _Number = 0
    priority: _Number = 0
    table: _Number | None = None
    scope: _Scope | None = None


class Dns(Struct, frozen=True, omit_defaults=True):
    """The configuration of the container's resolver."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Result(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The answer to an ADD, and the prevResult of every later call; an IPAM plugin's has no interfaces."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IP, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Dns = Dns()

    def interface_of(self, ip: IP) -> Interface | None:
        """The interface that *ip* is on, None where the result does not tell."""
        if ip.interface is None or not 0 <= ip.interface < len(self.interfaces):
            return None
        return self.interfaces[ip.interface]


class _OldIP(Struct, frozen=True, omit_defaults=True):
    """One family in a result of 0.1.0 or 0.2.0."""

    ip: Cidr
    gateway: Address | None = None
    routes: tuple[Route, ...] = ()


class _OldResult(Struct, frozen=True, omit_defaults=True, kw_only=True):
    ip4: _OldIP | None = None
    ip6: _OldIP | None = None
    dns: Dns = Dns()


class Versioned(Struct):
    """The key that names the version of a configuration or a result."""

    cni_version: str = field(name="cniVersion", default="")


def parse_result(raw: Any, version: str, what: str = "prevResult") -> Result:
    """Read a result of any version; *version* is the one to assume where it does not name its own, as old ones may not.

    CniError names *what* and the key that does not fit. Unknown keys are ignored.
    """
    version = convert(raw, Versioned, what).cni_version or version
    if version not in VERSIONS:
        raise CniError(
            Code.DECODING_FAILURE, f"{what}: cniVersion: {version!r} is not known", f"known are {', '.join(VERSIONS)}"
        )
    if at_least(version, "0.3.0"):
        return convert(raw, Result, what)
    old = convert(raw, _OldResult, what)
    families = [family for family in (old.ip4, old.ip6) if family is not None]
    return Result(
        ips=tuple(IP(family.ip, family.gateway) for family in families),
        routes=tuple(route for family in families for route in family.routes),
        dns=old.dns,
    )


def render_result(result: Result, version: str) -> dict[str, Any]:
    """Write *result* as *version* (one of VERSIONS) has it, empty values left out as libcni does.

    CniError (code 1) for 0.2.0 and older when there is no address, which those cannot express.
    """
    if not at_least(version, "0.3.0"):
        return _render_old(result, version)
    document: dict[str, Any] = {"cniVersion": version, **_builtins(result)}
    if version == NEWEST:
        return document if document.get("dns") else {key: value for key, value in document.items() if key != "dns"}
    for interface in document.get("interfaces", ()):
        for key in _NEW_INTERFACE_KEYS:
            interface.pop(key, None)
    if routes := document.get("routes"):
        document["routes"] = [_old_route(route) for route in routes]
    if not at_least(version, "1.0.0") and result.ips:
        document["ips"] = [
            {"version": str(ip.address.version), **written} for ip, written in zip(result.ips, document["ips"], strict=True)
        ]
    return {**document, "dns": document.get("dns", {})}  # libcni wrote it empty before it knew 1.1.0


def _render_old(result: Result, version: str) -> dict[str, Any]:
    document: dict[str, Any] = {"cniVersion": version}
    for family in (4, 6):
        ip = next((ip for ip in result.ips if ip.address.version == family), None)
        if ip is not None:
            routes = tuple(Route(route.dst, route.gw) for route in result.routes if route.dst.version == family)
            document[f"ip{family}"] = _builtins(_OldIP(ip.address, ip.gateway, routes))
    if len(document) == 1:
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            "cannot convert: no valid IP addresses",
            f"a result of CNI {version} holds at least one address; use cniVersion 0.3.0 or newer, or an IPAM plugin",
        )
    return {**document, "dns": _builtins(result.dns)}


def _old_route(route: dict[str, Any]) -> dict[str, Any]:
    return {key: route[key] for key in _OLD_ROUTE_KEYS if key in route}


def _builtins(value: Struct) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.to_builtins(value, enc_hook=str)
    return document
