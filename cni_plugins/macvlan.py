"""The plugin type ``macvlan``: a link of the container's own, with its own MAC address, on the LAN of one of the host's."""

from collections.abc import Callable
from typing import Annotated, Literal, get_args

from msgspec import Meta, field

from cni_plugins.interface import requested_mac
from cni_plugins.single import Given, MacRequest, ParentConf, SingleLink, checked_mode, find_parent
from cni_plugins.skel import Call
from netlib.core.adding import Adding
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
    """What each verb answers."""

    name = "macvlan"
    kind = "macvlan"
    config = MacvlanConf

    def requested_mac(self, call: Call[MacvlanConf]) -> str:
        """``mac``, before it that of CNI_ARGS, before that of the runtime."""
        given = call.arguments("MAC").get("MAC", "")
        return requested_mac(call, call.config.mac, given, call.config.runtime_config.mac)

    def prepared(self, call: Call[MacvlanConf], netns: NetnsRef) -> Callable[[Adding, str], Given]:
        config = call.config
        mode = checked_mode("macvlan", config.mode or "bridge", _MODES)
        parent = find_parent(self._node, config, netns)

        def given(adding: Adding, mac: str) -> Given:
            assert parent is not None
            link = Macvlan(
                ifname=call.ifname,
                netns=adding.netns,
                mac="" if mode == "passthru" and not self.requested_mac(call) else mac,
                mtu=config.mtu,
                parent=parent.ifname,
                parent_netns=adding.netns if config.link_in_container else parent.netns,
                mode=mode,
                bcqueuelen=config.bc_queue_len,
            )
            return Given(link, link.mac or parent.mac)

        return given
