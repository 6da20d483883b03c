"""The plugin type ``bandwidth``: limits how fast a container receives (``ingress``) and sends (``egress``).

Packets to the container are shaped on the host's end of its veth pair. Packets from it are redirected at that end to an ifb
link and shaped there, for a queueing discipline shapes only what its link sends.
"""

import socket
from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import replace

from cni_plugins.attaching import check, finish, pending_attachment
from cni_plugins.chained import ChainedPlugin, previous
from cni_plugins.netconf import NetConf
from cni_plugins.protocol import CniError, Code
from cni_plugins.reference import forget_bandwidth
from cni_plugins.result import Interface, Result
from cni_plugins.skel import Call
from netlib.core.pending_attachment import PendingAttachment, Wanted
from netlib.kernel.handle import HOST, Kernel
from netlib.kernel.linkinfo import LinkInfo
from netlib.kernel.qdiscs import IngressRedirect, TokenBucket
from netlib.kernel.sublinks import Ifb
from netlib.names import endpoint_mac
from netlib.plan import KernelObject, Plan

__all__ = ["BandwidthConf", "BandwidthPlugin"]

_CHAINED = "must be called as chained plugin"
_MOST_BYTES = 2**32 - 1
_Bits = Annotated[int, Meta(ge=0)]


class Bandwidth(Struct, frozen=True, rename="camel"):
    """Limits: rates in bits per second, bursts in bits; 0 is no limit."""

    ingress_rate: _Bits = 0
    ingress_burst: _Bits = 0
    egress_rate: _Bits = 0
    egress_burst: _Bits = 0

    def __bool__(self) -> bool:
        return bool(self.ingress_rate or self.egress_rate)


class RuntimeConfig(Struct, frozen=True):
    """The capability ``bandwidth``."""

    bandwidth: Bandwidth = Bandwidth()


class BandwidthConf(NetConf, frozen=True, kw_only=True, rename="camel"):
    """The keys of bandwidth."""

    ingress_rate: _Bits | None = None
    ingress_burst: _Bits | None = None
    egress_rate: _Bits | None = None
    egress_burst: _Bits | None = None
    runtime_config: RuntimeConfig = RuntimeConfig()

    @property
    def limits(self) -> Bandwidth:
        """The limits to apply: the configuration's own keys if it has any of them, else those that the runtime asks for."""
        own = (self.ingress_rate, self.ingress_burst, self.egress_rate, self.egress_burst)
        return self.runtime_config.bandwidth if own == (None,) * len(own) else Bandwidth(*(bits or 0 for bits in own))


class BandwidthPlugin(ChainedPlugin[BandwidthConf]):
    """The verbs of this type."""

    name = "bandwidth"
    config = BandwidthConf

    def add(self, call: Call[BandwidthConf]) -> Result:
        limits = _limits(call.config)
        result = previous(call, _CHAINED)
        if not limits:
            return result
        with pending_attachment(self._node, call, self.name) as made:
            host = _host_link(made, result)
            plan = _plan(limits, host, made)
            made.apply(lambda _: Wanted(plan))
            added = tuple(Interface(ifb.ifname, ifb.mac) for ifb in plan.of(Ifb))
            return finish(made, call, replace(result, interfaces=(*result.interfaces, *added)))

    def check(self, call: Call[BandwidthConf]) -> None:
        limits = _limits(call.config)
        previous(call, _CHAINED)
        found = check(self._node, call, self.name)
        if found is None and limits:
            raise CniError(Code.DRIFT, f"bandwidth: no limits of container {call.container_id} are recorded; ADD it again")

    def _remove_foreign(self, call: Call[BandwidthConf]) -> None:
        with Kernel() as kernel:
            forget_bandwidth(kernel, call.network, call.container_id)

    def status(self, call: Call[BandwidthConf]) -> None:
        _limits(call.config)


def _limits(config: BandwidthConf) -> Bandwidth:
    """The limits of *config*; CniError, in the reference's words, for impossible ones."""
    limits = config.limits
    for way, rate, burst in (
        ("ingress", limits.ingress_rate, limits.ingress_burst),
        ("egress", limits.egress_rate, limits.egress_burst),
    ):
        if rate and not burst:
            raise CniError(Code.INVALID_CONFIG, "if rate is set, burst must also be set", f"{way}Rate is {rate}")
        if burst and not rate:
            raise CniError(Code.INVALID_CONFIG, "if burst is set, rate must also be set", f"{way}Burst is {burst}")
        if burst // 8 >= _MOST_BYTES:
            raise CniError(Code.INVALID_CONFIG, "burst cannot be more than 4GB", f"{way}Burst is {burst} bits")
        if 0 < min(rate, burst) < 8:
            raise CniError(
                Code.INVALID_CONFIG, f"bandwidth: {way}Rate and {way}Burst are less than a byte", "give 8 bits or more"
            )
    return limits


def _plan(limits: Bandwidth, host: LinkInfo, made: PendingAttachment) -> Plan:
    objects: list[KernelObject] = []
    if limits.ingress_rate:
        objects.append(TokenBucket(ifname=host.ifname, rate=limits.ingress_rate, burst=limits.ingress_burst))
    if limits.egress_rate:
        ifb = Ifb(ifname=f"bwp{made.record[:12]}", mac=endpoint_mac(made.record, None), mtu=host.mtu, up=True)
        objects += [
            ifb,
            TokenBucket(ifname=ifb.ifname, rate=limits.egress_rate, burst=limits.egress_burst),
            IngressRedirect(ifname=host.ifname, to=ifb.ifname),
        ]
    return Plan(*objects)


def _host_link(made: PendingAttachment, result: Result) -> LinkInfo:
    """The host's end of the container's veth pair, which must be among the interfaces of *result*."""
    ifname = made.key.ifname
    if not result.interfaces:
        raise CniError(Code.INVALID_CONFIG, "no interfaces provided", "bandwidth comes after a plugin that makes a veth pair")
    inside = made.kernel.rtnl(made.netns).find_link(ifname)
    if inside is None or inside.kind != "veth":
        found = f"it is a {inside.kind}" if inside is not None else "there is none"
        raise CniError(Code.INVALID_CONFIG, f"container interface {ifname} has no veth peer", found)
    try:
        name = socket.if_indextoname(inside.peer)
    except OSError:
        name = ""
    host = made.kernel.rtnl(HOST).find_link(name) if name else None
    if host is None or host.kind != "veth" or host.peer != inside.index:
        raise CniError(Code.INVALID_CONFIG, f"veth peer with index {inside.peer} is not in host ns")
    if not any(interface.name == host.ifname and not interface.sandbox for interface in result.interfaces):
        raise CniError(
            Code.INVALID_CONFIG, "no veth peer of container interface found in host ns", f"prevResult has no {host.ifname}"
        )
    return host
