"""The plugin type ``vlan``: a link in the container that is an 802.1Q VLAN of a link of the host."""

from typing import NamedTuple

from msgspec import field

from cni_plugins.protocol import CniError, Code
from cni_plugins.single_link import LinkPlan, Parent, ParentConf, SingleLink, find_parent
from cni_plugins.skel import Call
from netlib.core.pending_attachment import PendingAttachment
from netlib.kernel.sublinks import Vlan
from netlib.model import NetnsRef

__all__ = ["VlanConf", "VlanPlugin"]

_HIGHEST_ID = 4094


class VlanConf(ParentConf, frozen=True, kw_only=True, rename="camel"):
    """The configuration."""

    vlan_id: int = field(name="vlanId", default=0)


class VlanPlugin(SingleLink[VlanConf]):
    """The verbs of this type."""

    name = "vlan"
    kind = "vlan"
    config = VlanConf
    needs_addresses = True

    def prepare(self, call: Call[VlanConf], netns: NetnsRef) -> "_PreparedVlan":
        config = call.config
        if not config.master:
            msg = '"master" field is required. It specifies the host interface name to create the VLAN for'
            raise CniError(Code.INVALID_CONFIG, msg)
        if not 0 <= config.vlan_id <= _HIGHEST_ID:
            raise CniError(
                Code.INVALID_CONFIG, f"invalid VLAN ID {config.vlan_id} (must be between 0 and {_HIGHEST_ID} inclusive)"
            )
        return _PreparedVlan(call.ifname, config.mtu, config.vlan_id, find_parent(self._node, config, netns))


class _PreparedVlan(NamedTuple):
    ifname: str
    mtu: int
    vlan_id: int
    parent: Parent

    def link(self, pending: PendingAttachment, _mac: str) -> LinkPlan:
        link = Vlan(
            ifname=self.ifname,
            netns=pending.netns,
            mtu=self.mtu,
            parent=self.parent.ifname,
            parent_netns=self.parent.netns,
            vlan_id=self.vlan_id,
        )
        return LinkPlan(link, self.parent.mac)
