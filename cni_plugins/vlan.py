"""The plugin type ``vlan``: an 802.1Q sub-interface of one of the host's links, inside the container."""

from collections.abc import Callable

from msgspec import field

from cni_plugins.protocol import CniError, Code
from cni_plugins.single import Given, ParentConf, SingleLink, find_parent
from cni_plugins.skel import Call
from netlib.core.adding import Adding
from netlib.kernel.sublinks import Vlan
from netlib.model import NetnsRef

__all__ = ["VlanConf", "VlanPlugin"]

_HIGHEST_ID = 4094


class VlanConf(ParentConf, frozen=True, kw_only=True, rename="camel"):
    """The configuration."""

    vlan_id: int = field(name="vlanId", default=0)


class VlanPlugin(SingleLink[VlanConf]):
    """What each verb answers."""

    name = "vlan"
    kind = "vlan"
    config = VlanConf
    needs_addresses = True

    def prepared(self, call: Call[VlanConf], netns: NetnsRef) -> Callable[[Adding, str], Given]:
        config = call.config
        if not config.master:
            msg = '"master" field is required. It specifies the host interface name to create the VLAN for'
            raise CniError(Code.INVALID_CONFIG, msg)
        if not 0 <= config.vlan_id <= _HIGHEST_ID:
            raise CniError(
                Code.INVALID_CONFIG, f"invalid VLAN ID {config.vlan_id} (must be between 0 and {_HIGHEST_ID} inclusive)"
            )
        parent = find_parent(self._node, config, netns)

        def given(adding: Adding, _mac: str) -> Given:
            assert parent is not None
            link = Vlan(
                ifname=call.ifname,
                netns=adding.netns,
                mtu=config.mtu,
                parent=parent.ifname,
                parent_netns=adding.netns if config.link_in_container else parent.netns,
                vlan_id=config.vlan_id,
            )
            return Given(link, parent.mac)

        return given
