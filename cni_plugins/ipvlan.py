"""The plugin type ``ipvlan``: a link of the container's own on one of the host's, whose MAC address it shares."""

from collections.abc import Callable
from typing import Literal, get_args

from msgspec.structs import replace

from cni_plugins.protocol import CniError, Code
from cni_plugins.result import Result
from cni_plugins.single import Given, ParentConf, SingleLink, checked_mode, find_parent
from cni_plugins.skel import Call
from netlib.core.adding import Adding
from netlib.kernel.sublinks import Ipvlan
from netlib.model import NetnsRef

__all__ = ["IpvlanConf", "IpvlanPlugin"]

_Mode = Literal["l2", "l3", "l3s"]
_MODES: tuple[_Mode, ...] = get_args(_Mode)


class IpvlanConf(ParentConf, frozen=True, kw_only=True, rename="camel"):
    """The configuration."""

    mode: str = ""


class IpvlanPlugin(SingleLink[IpvlanConf]):
    """What each verb answers. Behind another plugin, its parent and its addresses may come from that one's result."""

    name = "ipvlan"
    kind = "ipvlan"
    config = IpvlanConf

    def leased(self, call: Call[IpvlanConf]) -> Result:
        if call.prev_result is None or not call.prev_result.ips:
            raise CniError(Code.INVALID_CONFIG, "ipvlan needs addresses", "give it an ipam, such as host-local")
        return call.prev_result

    def prepared(self, call: Call[IpvlanConf], netns: NetnsRef) -> Callable[[Adding, str], Given]:
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
        parent = find_parent(self._node, config, netns)

        def given(adding: Adding, _mac: str) -> Given:
            assert parent is not None
            link = Ipvlan(
                ifname=call.ifname,
                netns=adding.netns,
                mtu=config.mtu,
                parent=parent.ifname,
                parent_netns=adding.netns if config.link_in_container else parent.netns,
                mode=mode,
            )
            return Given(link, parent.mac)

        return given
