"""The plugin type ``loopback``: sets the container's ``lo`` up, whatever CNI_IFNAME says."""

from ipaddress import ip_interface

from cni_plugins import attaching
from cni_plugins.netconf import NetConf
from cni_plugins.node import Node
from cni_plugins.result import IP, Interface, Result
from cni_plugins.skel import Call
from netlib.core.pending_attachment import Wanted
from netlib.kernel.links import LinkUp
from netlib.kernel.sysctl import read_sysctl
from netlib.plan import Plan

__all__ = ["LoopbackPlugin"]

_NAME = "loopback"
_LINK = "lo"


class LoopbackPlugin:
    """The verbs of this type."""

    name = _NAME
    config = NetConf

    def __init__(self, node: Node) -> None:
        self._node = node

    def add(self, call: Call[NetConf]) -> Result:
        with attaching.pending_attachment(self._node, call, _NAME) as pending:
            pending.apply(lambda _: Wanted(Plan(LinkUp(ifname=_LINK, netns=pending.netns))))
            if call.prev_result is not None:
                return attaching.finish(pending, call, call.prev_result)
            addresses = ["127.0.0.1/8"]
            if read_sysctl(pending.kernel, pending.netns, f"net/ipv6/conf/{_LINK}/disable_ipv6") == "0":
                addresses.append("::1/128")
            result = Result(
                interfaces=(Interface(_LINK, "00:00:00:00:00:00", sandbox=pending.netns.path),),
                ips=tuple(IP(ip_interface(address), interface=0) for address in addresses),
            )
            return attaching.finish(pending, call, result)

    def check(self, call: Call[NetConf]) -> None:
        attaching.check(self._node, call, _NAME)

    def delete(self, call: Call[NetConf]) -> None:
        attaching.delete(self._node, call, _NAME, lambda: None)

    def garbage_collect(self, call: Call[NetConf]) -> None:
        attaching.collect(self._node, call, _NAME)

    def status(self, call: Call[NetConf]) -> None:
        """Nothing to check: every netns has a ``lo``."""
