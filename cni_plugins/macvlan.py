"""The plugin type ``macvlan``: a link in the container, with a MAC address of its own, on the LAN of its parent."""

from typing import Annotated, Literal, NamedTuple, get_args

from msgspec import Meta, field

from cni_plugins.single_link import LinkPlan, MacRequest, Parent, ParentConf, SingleLink, checked_mode, chosen_mac, find_parent
from cni_plugins.skel import Call
from netlib.core.pending_attachment import PendingAttachment
from netlib.kernel.sublinks import Macvlan
from netlib.model import NetnsRef

__all__ = ["MacvlanConf", "MacvlanPlugin"]

_Mode = Literal["bridge", "private", "vepa", "passthru"]
_MODES: tuple[_Mode, ...] = get_args(_Mode)


class MacvlanConf(ParentConf, frozen=True, kw_only=True, rename="camel"):
    """The configuration."""

    mode: str = ""
    mac: str = ""
    bc_queue_len: Annotated[int, Meta(ge=0, lt=1 << 32)] = field(name="bcqueuelen", default=0)
    runtime_config: MacRequest = MacRequest()


class MacvlanPlugin(SingleLink[MacvlanConf]):
    """The verbs of this type."""

    name = "macvlan"
    kind = "macvlan"
    config = MacvlanConf

    def requested_mac(self, call: Call[MacvlanConf]) -> str:
        return chosen_mac(call)

    def prepare(self, call: Call[MacvlanConf], netns: NetnsRef) -> "_PreparedMacvlan":
        config = call.config
        mode = checked_mode("macvlan", config.mode or "bridge", _MODES)
        return _PreparedMacvlan(call, mode, find_parent(self._node, config, netns))


class _PreparedMacvlan(NamedTuple):
    call: Call[MacvlanConf]
    mode: _Mode
    parent: Parent

    def link(self, pending: PendingAttachment, mac: str) -> LinkPlan:
        has_parents_mac = self.mode == "passthru" and not chosen_mac(self.call)
        link = Macvlan(
            ifname=self.call.ifname,
            netns=pending.netns,
            mac="" if has_parents_mac else mac,
            mtu=self.call.config.mtu,
            parent=self.parent.ifname,
            parent_netns=self.parent.netns,
            mode=self.mode,
            bcqueuelen=self.call.config.bc_queue_len,
        )
        return LinkPlan(link, link.mac or self.parent.mac)
