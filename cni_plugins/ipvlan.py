"""The plugin type ``ipvlan``: a link in the container that shares the MAC address of its parent, a link of the host."""

from typing import Literal, NamedTuple, get_args

from msgspec.structs import replace

from cni_plugins.protocol import CniError, Code
from cni_plugins.result import Result
from cni_plugins.single_link import LinkPlan, Parent, ParentConf, SingleLink, checked_mode, find_parent
from cni_plugins.skel import Call
from netlib.core.pending_attachment import PendingAttachment
from netlib.kernel.sublinks import Ipvlan
from netlib.model import NetnsRef

__all__ = ["IpvlanConf", "IpvlanPlugin"]

_Mode = Literal["l2", "l3", "l3s"]
_MODES: tuple[_Mode, ...] = get_args(_Mode)


class IpvlanConf(ParentConf, frozen=True, kw_only=True, rename="camel"):
    """The configuration."""

    mode: str = ""


class IpvlanPlugin(SingleLink[IpvlanConf]):
    """The verbs of this type. In a list of plugins, the result of the plugin before may give the parent and the addresses."""

    name = "ipvlan"
    kind = "ipvlan"
    config = IpvlanConf

    def leased(self, call: Call[IpvlanConf]) -> Result:
        if call.prev_result is None or not call.prev_result.ips:
            raise CniError(Code.INVALID_CONFIG, "ipvlan needs addresses", "give it an ipam, such as host-local")
        return call.prev_result

    def prepare(self, call: Call[IpvlanConf], netns: NetnsRef) -> "_PreparedIpvlan":
        config = call.config
        mode = checked_mode("ipvlan", config.mode or "l2", _MODES)
        if not config.master and call.prev_result is not None:
            if len(call.prev_result.interfaces) != 1:
                raise CniError(
                    Code.INVALID_CONFIG,
                    "chained master failure. PrevResult lacks a single named interface",
                    "name the parent link by master",
                )
            config = replace(config, master=call.prev_result.interfaces[0].name)
        return _PreparedIpvlan(call.ifname, config.mtu, mode, find_parent(self._node, config, netns))


class _PreparedIpvlan(NamedTuple):
    ifname: str
    mtu: int
    mode: _Mode
    parent: Parent

    def link(self, pending: PendingAttachment, _mac: str) -> LinkPlan:
        link = Ipvlan(
            ifname=self.ifname,
            netns=pending.netns,
            mtu=self.mtu,
            parent=self.parent.ifname,
            parent_netns=self.parent.netns,
            mode=self.mode,
        )
        return LinkPlan(link, self.parent.mac)
