"""The plugin type ``vrf``: puts the interface that the plugins before it made into a VRF of the container.

The VRF is made for its first interface and removed with its last one.
"""

from typing import Annotated

from msgspec import Meta
from msgspec.structs import replace

from cni_plugins import attaching
from cni_plugins.chained import ChainedPlugin, previous
from cni_plugins.netconf import NetConf
from cni_plugins.protocol import CniError, Code
from cni_plugins.result import Result
from cni_plugins.skel import Call
from netlib.core.pending_attachment import Wanted
from netlib.kernel.links import delete_link
from netlib.kernel.vrfs import Enslaved, Vrf
from netlib.model import NetnsRef
from netlib.names import check_ifname
from netlib.plan import Plan
from netlib.store.records import Transaction

__all__ = ["VrfConf", "VrfPlugin"]


class VrfConf(NetConf, frozen=True, kw_only=True):
    """The configuration. ``table`` 0 means the table of an existing VRF of that name, else the first that no VRF has."""

    vrfname: str = ""
    table: Annotated[int, Meta(ge=0, lt=1 << 32)] = 0


class VrfPlugin(ChainedPlugin[VrfConf]):
    """The verbs of this type."""

    name = "vrf"
    config = VrfConf

    def add(self, call: Call[VrfConf]) -> Result:
        result = previous(call)
        _check(call.config)
        with attaching.pending_attachment(self._node, call, self.name) as pending:
            enslaved = Enslaved(ifname=call.ifname, vrf=call.config.vrfname, netns=pending.netns)
            pending.apply(lambda tx: Wanted(Plan(_wanted(call.config, pending.netns, tx), enslaved)))
            return attaching.finish(pending, call, result)

    def check(self, call: Call[VrfConf]) -> None:
        _check(call.config)
        netns = attaching.netns_of(self._node, call)
        attaching.check(self._node, call, self.name, [Enslaved(ifname=call.ifname, vrf=call.config.vrfname, netns=netns)])

    def status(self, call: Call[VrfConf]) -> None:
        _check(call.config)

    def _remove_foreign(self, call: Call[VrfConf]) -> None:
        """Take the interface of a container that no record knows out of its VRF, and delete the VRF where it is empty then."""
        if self._node.netns is None or not call.config.vrfname:
            return
        netns = attaching.netns_of(self._node, call)
        with attaching.lent_kernel(self._node, call) as kernel:
            Enslaved(ifname=call.ifname, vrf=call.config.vrfname, netns=netns).remove(kernel)
            rtnl = kernel.rtnl(netns)
            links = rtnl.links()
            vrf = next((link for link in links if link.ifname == call.config.vrfname and link.kind == Vrf.kind), None)
            if vrf is not None and not any(link.master == vrf.index for link in links):
                delete_link(rtnl, vrf)


def _check(config: VrfConf) -> None:
    if not config.vrfname:
        raise CniError(Code.INVALID_CONFIG, "configuration is expected to have a valid vrf name", "give it as vrfname")
    check_ifname(config.vrfname)


def _wanted(config: VrfConf, netns: NetnsRef, tx: Transaction) -> Vrf:
    """The VRF to make, as recorded for another interface of the container that is in it; CniError for another table."""
    wanted = Vrf(ifname=config.vrfname, table=config.table, netns=netns)
    for row in tx.attachments_in(netns.path):
        for other in tx.objects(row.id).of(Vrf):
            if other.key == wanted.key:
                if config.table not in (0, other.chosen):
                    msg = f"VRF {config.vrfname} already exist with different routing table {other.chosen}"
                    raise CniError(Code.CONFLICT, msg, f"use that one instead of {config.table}, or leave table out")
                return replace(wanted, table=other.table)
    return wanted
