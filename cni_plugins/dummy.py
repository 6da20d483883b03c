"""The plugin type ``dummy``: a link that leads nowhere, to hold addresses."""

from collections.abc import Callable

from cni_plugins.netconf import NetConf
from cni_plugins.single import Given, SingleLink
from cni_plugins.skel import Call
from netlib.core.adding import Adding
from netlib.kernel.sublinks import Dummy
from netlib.model import NetnsRef

__all__ = ["DummyPlugin"]


class DummyPlugin(SingleLink[NetConf]):
    """What each verb answers."""

    name = "dummy"
    kind = "dummy"
    config = NetConf
    needs_addresses = True

    def prepared(self, call: Call[NetConf], _netns: NetnsRef) -> Callable[[Adding, str], Given]:
        return lambda adding, mac: Given(Dummy(ifname=call.ifname, netns=adding.netns, mac=mac), mac)
