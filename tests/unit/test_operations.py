"""What the kernel is asked before a plan is written down."""

from ipaddress import ip_interface
from pathlib import Path

import pytest

from netlib.core.engine import Engine
from netlib.kernel.addresses import Address
from netlib.kernel.handle import Kernel, Rtnl
from netlib.kernel.links import LinkUp, Veth
from netlib.kernel.owned_netns import OwnedNetns
from netlib.model import HOST, NetnsRef
from netlib.plan import KernelObject, Plan
from netlib.store.locks import Locks
from netlib.store.sqlite import Store

BOX = NetnsRef("/run/netns/box", "boot:7")
PAIR = Veth(ifname="veth1", peer="eth0", peer_netns=BOX)
ON_PAIR = (Address(ifname="eth0", address=ip_interface("10.1.0.2/24"), netns=BOX), LinkUp(ifname="eth0", netns=BOX))


class Asked(Exception):
    """The kernel was asked."""


class Recluse(Kernel):
    """A kernel that does not want to be asked."""

    def rtnl(self, netns: NetnsRef = HOST) -> Rtnl:
        raise Asked(netns.path)


def observed(tmp_path: Path, plan: Plan, own: Plan | None = None) -> Plan:
    store = Store(tmp_path / "state", boot="boot1")
    engine = Engine(store, Locks(tmp_path / "locks"), "abc")
    with store.read() as tx:
        return engine.observed(tx, Recluse(), "a" * 64, plan, own=own)


@pytest.mark.parametrize(
    "plan", [Plan(PAIR, *ON_PAIR), Plan(OwnedNetns(path=BOX.path, identity=BOX.identity), LinkUp(ifname="lo", netns=BOX))]
)
def test_nothing_is_asked_about_what_sits_on_an_object_still_to_be_made(tmp_path: Path, plan: Plan) -> None:
    assert observed(tmp_path, plan) == plan


@pytest.mark.parametrize("item", ON_PAIR)
def test_what_sits_on_something_that_is_there_is_asked_about(tmp_path: Path, item: KernelObject) -> None:
    with pytest.raises(Asked, match=BOX.path):
        observed(tmp_path, Plan(item))
    with pytest.raises(Asked, match=BOX.path):
        observed(tmp_path, Plan(PAIR, item), own=Plan(PAIR))
