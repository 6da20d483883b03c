"""Attachments: made, failed, killed, taken away, collected; and the network that outlives them."""

import subprocess
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest

from netlib.config import Config
from netlib.core.attachments import Attachments
from netlib.core.controller import Controller, Unwatched
from netlib.core.pending_attachment import AttachmentKey, PendingAttachment, Wanted
from netlib.core.repair import repair_network
from netlib.errors import AlreadyExists, NetlibError
from netlib.kernel.addresses import Address
from netlib.kernel.bridges import Bridge, BridgePort
from netlib.kernel.links import LinkUp, Veth
from netlib.kernel.netns import identity_of_path
from netlib.kernel.sysctl import Sysctl
from netlib.model import CniNetwork, NetnsRef
from netlib.names import veth_ifname
from netlib.plan import Plan
from netlib.store.records import Transaction
from netlib.testing.snapshot import differences, snapshot
from tests.faults import interrupted

TABLES = {
    "record": "SELECT id, kind, name, phase, network, sandbox FROM record ORDER BY id",
    "object": "SELECT record, key, body FROM object ORDER BY record, key",
}


@pytest.fixture
def netns() -> Iterator[Callable[[str], NetnsRef]]:
    made: list[str] = []

    def make(name: str) -> NetnsRef:
        subprocess.run(["ip", "netns", "add", name], check=True)
        made.append(name)
        return NetnsRef(f"/run/netns/{name}", identity_of_path(f"/run/netns/{name}"))

    yield make
    for name in made:
        subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


@pytest.fixture
def controller(config: Config) -> Iterator[Controller]:
    with Controller(config, watcher=Unwatched()) as controller:
        yield controller
        controller.reset()


def _key(container: str, network: str = "pods") -> AttachmentKey:
    return AttachmentKey(network, container, "eth0", "bridge")


def _shared(mtu: int = 0) -> Plan:
    return Plan(
        Sysctl(name="net/ipv4/ip_forward", value="1"),
        Bridge(ifname="cni0", mac="02:00:00:00:00:01", mtu=mtu),
        Address(ifname="cni0", address=ip_interface("10.22.0.1/16")),
    )


def _own(record: str, netns: NetnsRef, number: int) -> Plan:
    host = veth_ifname(record)
    return Plan(
        Veth(ifname=host, peer="eth0", peer_netns=netns),
        BridgePort(ifname=host, bridge="cni0"),
        Address(ifname="eth0", address=ip_interface(f"10.22.0.{number}/16"), netns=netns),
        LinkUp(ifname="eth0", netns=netns),
    )


def _add(attachments: Attachments, container: str, netns: NetnsRef, number: int = 2, mtu: int = 0) -> None:
    def draft(tx: Transaction) -> Wanted:
        return Wanted(_own(pending.record, netns, number), _shared(mtu))

    pending: PendingAttachment
    with attachments.pending(_key(container), netns) as pending:
        pending.apply(draft)
        pending.finish({"ips": [{"address": f"10.22.0.{number}/16"}]})


def _links(where: str = "") -> list[str]:
    command = ["ip", *(["-n", where] if where else []), "-br", "link"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return sorted(line.split()[0].partition("@")[0] for line in lines)


def _rows(controller: Controller) -> dict[str, Any]:
    with controller.store.read() as tx:
        return {table: tx.db.execute(query).fetchall() for table, query in TABLES.items()}


def _ping(netns: str, address: str) -> bool:
    return (
        subprocess.run(["ip", "netns", "exec", netns, "ping", "-c1", "-W2", address], stdout=subprocess.DEVNULL).returncode == 0
    )


def test_del_waits_for_the_add_of_a_plugin_that_was_killed(
    config: Config, controller: Controller, netns: Callable[[str], NetnsRef]
) -> None:
    """netlibd may still be at it; what it makes is then taken down."""
    deleted: list[str] = []

    def delete() -> None:
        with Controller(config, watcher=Unwatched()) as other:
            found = Attachments(other).delete(_key("c1"))
            deleted.append(found.container if found is not None else "nothing")

    attachments, box, thread = Attachments(controller), netns("c1"), threading.Thread(target=delete)
    with attachments.pending(_key("c1"), box) as pending:
        thread.start()
        thread.join(0.2)  # long enough for a DEL that does not wait
        pending.apply(lambda _: Wanted(_own(pending.record, box, 2), _shared()))
        pending.finish({})
    thread.join()
    assert deleted == ["c1"]
    assert _links("c1") == ["lo"]
    assert attachments.attachments() == []


def test_the_network_outlives_its_attachments_until_it_is_pruned(
    controller: Controller, netns: Callable[[str], NetnsRef]
) -> None:
    attachments = Attachments(controller)
    for number, name in enumerate(("c1", "c2"), 2):
        _add(attachments, name, netns(name), number)
    assert _ping("c1", "10.22.0.3")
    assert _ping("c2", "10.22.0.1")
    assert [item.container for item in attachments.attachments("pods")] == ["c1", "c2"]
    assert attachments.prune() == []
    for name in ("c1", "c2"):
        assert attachments.delete(_key(name)) is not None
        assert attachments.delete(_key(name)) is None
        assert _links(name) == ["lo"]
    assert _links() == ["cni0", "lo"]
    assert [network.name for network in attachments.prune()] == ["pods"]
    assert _links() == ["lo"]
    assert attachments.networks() == []
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() == "0"


def test_an_attachment_is_made_once(controller: Controller, netns: Callable[[str], NetnsRef]) -> None:
    attachments, home = Attachments(controller), netns("c1")
    _add(attachments, "c1", home)
    before = (snapshot(), _rows(controller))
    with pytest.raises(AlreadyExists, match="has eth0 in network pods already"):
        _add(attachments, "c1", home)
    assert differences(before[0], snapshot()) == []
    assert _rows(controller) == before[1]


def test_a_container_that_came_back_without_a_del_takes_its_place(
    controller: Controller, netns: Callable[[str], NetnsRef]
) -> None:
    attachments = Attachments(controller)
    _add(attachments, "c1", netns("c1"))
    subprocess.run(["ip", "netns", "del", "c1"], check=True)
    _add(attachments, "c1", netns("c1"), 7)
    _add(attachments, "c2", netns("c2"), 8)
    subprocess.run(["ip", "netns", "del", "c2"], check=True)
    _add(attachments, "c3", netns("c2"), 9)  # another container at the same path
    assert [item.container for item in attachments.attachments()] == ["c1", "c3"]
    assert len(_links()) == 4


def test_who_lost_its_netns_is_reclaimed_and_only_those_of_one_plugin_are_collected(
    controller: Controller, netns: Callable[[str], NetnsRef]
) -> None:
    attachments = Attachments(controller)
    for number, name in enumerate(("c1", "c2", "c3"), 2):
        _add(attachments, name, netns(name), number)
    subprocess.run(["ip", "netns", "del", "c2"], check=True)
    assert [item.container for item in attachments.reclaim("pods")] == ["c2"]
    assert attachments.collect("pods", "portmap", set()) == []
    assert attachments.collect("others", "bridge", set()) == []
    assert [item.container for item in attachments.collect("pods", "bridge", {("c1", "eth0")})] == ["c3"]
    assert _links("c3") == ["lo"]
    assert _ping("c1", "10.22.0.1")


def test_a_network_follows_its_configuration(controller: Controller, netns: Callable[[str], NetnsRef]) -> None:
    attachments = Attachments(controller)
    _add(attachments, "c1", netns("c1"), 2)
    _add(attachments, "c2", netns("c2"), 3, mtu=1400)
    assert Path("/sys/class/net/cni0/mtu").read_text().strip() == "1400"
    assert _ping("c1", "10.22.0.3")


def test_drift_is_told(controller: Controller, netns: Callable[[str], NetnsRef]) -> None:
    attachments = Attachments(controller)
    _add(attachments, "c1", netns("c1"))
    attachment = attachments.find(_key("c1"))
    assert attachment is not None
    assert attachments.drift(attachment) == []
    subprocess.run(["ip", "-n", "c1", "addr", "flush", "dev", "eth0"], check=True)
    assert [key for key, _ in attachments.drift(attachment)] == ["address//run/netns/c1/eth0 10.22.0.2/16"]


@pytest.mark.parametrize("has_network", [False, True])
@pytest.mark.parametrize("action", ["fail", "die"])
def test_nothing_is_left_whatever_fails_and_wherever_it_dies(
    config: Config, netns: Callable[[str], NetnsRef], has_network: bool, action: str
) -> None:
    home = netns("c1")
    with Controller(config, watcher=Unwatched()) as controller:
        if has_network:
            _add(Attachments(controller), "c0", netns("c0"), 9)
        before = (snapshot(), _rows(controller))
    for moment in range(100):
        told = _interrupted(config, home, moment, action)
        with Controller(config, watcher=Unwatched()) as controller:
            if not told:
                break
            if action == "die":  # between a network and its first attachment: it stays, as one without attachments does
                Attachments(controller).prune()
            assert differences(before[0], snapshot()) == [], (moment, told)
            assert _rows(controller) == before[1], (moment, told)
    assert moment >= 4 * 2
    with Controller(config, watcher=Unwatched()) as controller:
        controller.reset()


def _interrupted(config: Config, home: NetnsRef, moment: int, action: str) -> bool:
    """Whether an ADD that fails, or dies, at that moment got there at all."""

    def attempt(controller: Controller) -> bool:
        try:
            _add(Attachments(controller), "c1", home)
        except NetlibError as error:
            return "injected" in str(error)
        return False

    return interrupted(config, moment, action, attempt)


def test_a_bridge_deleted_by_hand_comes_back_with_what_was_plugged_into_it(
    controller: Controller, netns: Callable[[str], NetnsRef]
) -> None:
    attachments = Attachments(controller)
    for number, name in enumerate(("c1", "c2"), 2):
        _add(attachments, name, netns(name), number)
    subprocess.run(["ip", "link", "del", "cni0"], check=True)
    with controller.store.read() as tx:
        (network,) = [row.id for row in tx.all(CniNetwork)]
    repair = repair_network(controller.lifecycle, network)
    assert (repair.lost[0], repair.failures) == ("bridge cni0 is missing", [])
    assert _ping("c1", "10.22.0.3")
    assert _ping("c2", "10.22.0.1")
    assert repair_network(controller.lifecycle, network).lost == []
