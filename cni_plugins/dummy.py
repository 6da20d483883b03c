"""The plugin type ``dummy``: a dummy link in the container, which only holds addresses."""

from typing import NamedTuple

from cni_plugins.netconf import NetConf
from cni_plugins.single_link import LinkPlan, SingleLink
from cni_plugins.skel import Call
from netlib.core.pending_attachment import PendingAttachment
from netlib.kernel.sublinks import Dummy
from netlib.model import NetnsRef

__all__ = ["DummyPlugin"]


class DummyPlugin(SingleLink[NetConf]):
    """The verbs of this type."""

    name = "dummy"
    kind = "dummy"
    config = NetConf
    needs_addresses = True

    def prepare(self, call: Call[NetConf], _netns: NetnsRef) -> "_PreparedDummy":
        return _PreparedDummy(call.ifname)


class _PreparedDummy(NamedTuple):
    ifname: str

    def link(self, pending: PendingAttachment, mac: str) -> LinkPlan:
        return LinkPlan(Dummy(ifname=self.ifname, netns=pending.netns, mac=mac), mac)
