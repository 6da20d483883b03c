"""The plugin type ``tap``: a tap link in the container, which a program such as a virtual machine opens."""

from typing import Annotated, NamedTuple

from msgspec import Meta

from cni_plugins.interface import checked_mtu
from cni_plugins.netconf import NetConf
from cni_plugins.protocol import CniError, Code
from cni_plugins.single_link import LinkPlan, MacRequest, SingleLink, chosen_mac
from cni_plugins.skel import Call
from netlib.core.pending_attachment import PendingAttachment
from netlib.kernel.bridges import BridgePort
from netlib.kernel.taps import Tap
from netlib.model import NetnsRef
from netlib.names import check_ifname

__all__ = ["TapConf", "TapPlugin"]

_Id = Annotated[int, Meta(ge=0, lt=(1 << 32) - 1)]


class TapConf(NetConf, frozen=True, kw_only=True, rename="camel"):
    """The configuration."""

    multi_queue: bool = False
    mtu: int = 0
    mac: str = ""
    owner: _Id | None = None
    group: _Id | None = None
    selinux_context: str = ""
    bridge: str = ""
    runtime_config: MacRequest = MacRequest()


class TapPlugin(SingleLink[TapConf]):
    """The verbs of this type."""

    name = "tap"
    kind = "tun"  # the kernel's name for tap links too
    config = TapConf

    def requested_mac(self, call: Call[TapConf]) -> str:
        return chosen_mac(call)

    def prepare(self, call: Call[TapConf], _netns: NetnsRef) -> "_PreparedTap":
        config = call.config
        checked_mtu(config.mtu)
        if config.selinux_context:
            raise CniError(
                Code.UNSUPPORTED_FIELD,
                "selinuxContext is not supported",
                "netlib makes the device in its own security context; leave the key out",
            )
        if config.bridge:
            check_ifname(config.bridge)
        return _PreparedTap(call.ifname, config)


class _PreparedTap(NamedTuple):
    ifname: str
    config: TapConf

    def link(self, pending: PendingAttachment, mac: str) -> LinkPlan:
        tap = Tap(
            ifname=self.ifname,
            netns=pending.netns,
            mac=mac,
            mtu=self.config.mtu,
            multi_queue=self.config.multi_queue,
            owner=self.config.owner,
            group=self.config.group,
        )
        port = BridgePort(ifname=self.ifname, bridge=self.config.bridge, netns=pending.netns)
        return LinkPlan(tap, mac, (port,) if self.config.bridge else ())
