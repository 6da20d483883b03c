"""The plugin type ``static``: addresses, routes and name servers are what the configuration says.

It keeps nothing, so DEL and GC have nothing to do, and an ADD that can be read succeeds.
"""

from typing import TYPE_CHECKING

from msgspec import Struct

from cni_plugins.decode import Address, Cidr, parse_address, parse_cidr
from cni_plugins.netconf import Ipam, NetConf, required_ipam
from cni_plugins.node import Node
from cni_plugins.protocol import CniError, Code, at_least
from cni_plugins.result import IP, Dns, Result, Route
from cni_plugins.skel import Call
from ipam.static import Assignment, assignments, drift

if TYPE_CHECKING:
    from cni_plugins.addressing import Lease
    from netlib.core.pending_attachment import PendingAttachment
    from netlib.store.records import Transaction

__all__ = ["StaticConf", "StaticPlugin"]


class StaticAddress(Struct, frozen=True):
    """One of ``ipam.addresses``."""

    address: Cidr
    gateway: Address | None = None


class StaticIpam(Ipam, frozen=True, kw_only=True, rename="camel"):
    """The key ``ipam``."""

    addresses: tuple[StaticAddress, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Dns = Dns()


class RequestedIPs(Struct, frozen=True):
    """The capability ``ips``, and the same key under ``args.cni``."""

    ips: tuple[Cidr, ...] = ()


class Args(Struct, frozen=True):
    """The key ``args``."""

    cni: RequestedIPs = RequestedIPs()


class StaticConf(NetConf, frozen=True, kw_only=True, rename="camel"):
    """The configuration of the calling plugin, as static reads it."""

    ipam: StaticIpam | None = None
    runtime_config: RequestedIPs = RequestedIPs()
    args: Args = Args()


class StaticPlugin:
    """The verbs of this type."""

    name = "static"
    config = StaticConf

    def __init__(self, node: Node) -> None:
        """It needs nothing of the host."""

    def lease(self, call: Call[StaticConf], tx: "Transaction", pending: "PendingAttachment") -> "Lease":
        """The addresses of the configuration; no object has to hold them."""
        from cni_plugins.addressing import Lease  # only a main plugin asks, and it has imported the core

        return Lease(self.add(call))

    def add(self, call: Call[StaticConf]) -> Result:
        ipam = required_ipam(call.config.ipam)
        ips = tuple(IP(found.address, found.gateway) for found in _assignments(call, ipam))
        return Result(ips=ips, routes=ipam.routes, dns=ipam.dns)

    def check(self, call: Call[StaticConf]) -> None:
        assert call.prev_result is not None
        assigned = [Assignment(ip.address, ip.gateway) for ip in call.prev_result.ips]
        for wanted in _assignments(call, required_ipam(call.config.ipam)):
            if found := drift(wanted, assigned):
                raise CniError(
                    Code.DRIFT, f"static: Failed to match addr {wanted.address.ip} on interface {call.ifname}", found
                )

    def delete(self, call: Call[StaticConf]) -> None:
        pass

    def garbage_collect(self, call: Call[StaticConf]) -> None:
        pass

    def status(self, call: Call[StaticConf]) -> None:
        required_ipam(call.config.ipam)


def _assignments(call: Call[StaticConf], ipam: StaticIpam) -> tuple[Assignment, ...]:
    arguments = call.arguments("IP", "GATEWAY")
    found = assignments(
        configured=[Assignment(entry.address, entry.gateway) for entry in ipam.addresses],
        requested=[_cidr(text.strip()) for text in _listed(arguments, "IP")],
        gateways=[_gateway(text.strip()) for text in _listed(arguments, "GATEWAY")],
        overrides=(call.config.args.cni.ips, call.config.runtime_config.ips),
    )
    families = [entry.address.version for entry in found]
    if len(families) > len(set(families)) and not at_least(call.version, "0.3.0"):
        raise CniError(Code.INVALID_CONFIG, f"CNI version {call.version} does not support more than 1 address per family")
    return found


def _listed(arguments: dict[str, str], key: str) -> list[str]:
    return arguments[key].split(",") if arguments.get(key) else []


def _cidr(text: str) -> Cidr:
    try:
        return parse_cidr(text)
    except ValueError as error:
        msg = f"the 'ip' field is expected to be in CIDR notation, got: '{text}'"
        raise CniError(Code.INVALID_ENVIRONMENT, msg, f"CNI_ARGS: IP: {error}") from None


def _gateway(text: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        raise CniError(Code.INVALID_ENVIRONMENT, f"invalid gateway address: {text}", f"CNI_ARGS: GATEWAY: {error}") from None
