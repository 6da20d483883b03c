"""The plugin type ``tap``: a link inside the container whose other end is a program, such as a virtual machine's."""

from collections.abc import Callable
from typing import Annotated

from msgspec import Meta

from cni_plugins.interface import checked_mtu, requested_mac
from cni_plugins.netconf import NetConf
from cni_plugins.protocol import CniError, Code
from cni_plugins.single import Given, MacRequest, SingleLink
from cni_plugins.skel import Call
from netlib.core.adding import Adding
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
    """What each verb answers."""

    name = "tap"
    kind = "tun"  # what the kernel calls it
    config = TapConf

    def requested_mac(self, call: Call[TapConf]) -> str:
        """``mac``, before it that of CNI_ARGS, before that of the runtime."""
        given = call.arguments("MAC").get("MAC", "")
        return requested_mac(call, call.config.mac, given, call.config.runtime_config.mac)

    def prepared(self, call: Call[TapConf], _netns: NetnsRef) -> Callable[[Adding, str], Given]:
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

        def given(adding: Adding, mac: str) -> Given:
            tap = Tap(
                ifname=call.ifname,
                netns=adding.netns,
                mac=mac,
                mtu=config.mtu,
                multi_queue=config.multi_queue,
                owner=config.owner,
                group=config.group,
            )
            port = BridgePort(ifname=call.ifname, bridge=config.bridge, netns=adding.netns)
            return Given(tap, mac, (port,) if config.bridge else ())

        return given
