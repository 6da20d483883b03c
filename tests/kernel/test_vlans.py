"""VLANs of bridge ports."""

import json
from collections.abc import Callable, Iterator

import pytest

from netlib.errors import ObjectMissing
from netlib.kernel.bridges import Bridge, BridgePort
from netlib.kernel.handle import Kernel
from netlib.kernel.tuning import LinkSetting
from netlib.kernel.vlans import PortVlans
from netlib.model import NetnsRef
from tests.kernel.object_world import TAG, World, assert_same, go_rounds, is_lost_netns, make_world, repair, settle

pytestmark = pytest.mark.needs_link_kind("bridge_vlan_filtering")


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    with Kernel(TAG) as handle:
        yield handle


@pytest.fixture
def world(netns_factory: Callable[[str], NetnsRef], kernel: Kernel) -> World:
    """With lan0 and dev0 in a bridge that keeps VLANs apart."""
    world = make_world(netns_factory)
    Bridge(ifname="br0", netns=world.host).ensure(kernel)
    _filtering(world, "br0").ensure(kernel)
    world.run("host:ip link set dev0 up")
    for ifname in ("lan0", "dev0"):
        BridgePort(ifname=ifname, bridge="br0", netns=world.host).ensure(kernel)
    return world


def _filtering(world: World, ifname: str) -> LinkSetting:
    return LinkSetting(ifname=ifname, setting="vlan_filtering", value="on", netns=world.host)


def _vlans(world: World, **more: object) -> PortVlans:
    return PortVlans(ifname="lan0", netns=world.host, **more)  # type: ignore[arg-type]


def _shown(world: World) -> dict[int, list[str]]:
    (port,) = (item for item in json.loads(world.run("host:bridge -j vlan show")) if item["ifname"] == "lan0")
    return {
        vlan: entry.get("flags", [])
        for entry in port["vlans"]
        for vlan in range(entry["vlan"], entry.get("vlanEnd", entry["vlan"]) + 1)
    }


NATIVE = ["PVID", "Egress Untagged"]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"native": 10}, {10: NATIVE}),
        ({"native": 10, "keeps_default": True}, {1: ["Egress Untagged"], 10: NATIVE}),
        ({"tagged": ((20, 22),)}, {1: NATIVE, 20: [], 21: [], 22: []}),
        ({"native": 10, "tagged": ((9, 11), (100, 100))}, {9: [], 10: NATIVE, 11: [], 100: []}),
        ({"native": 4094, "tagged": ((1, 4093),)}, {vlan: [] for vlan in range(1, 4094)} | {4094: NATIVE}),
    ],
)
def test_set_twice_given_back_twice_and_explained(
    kernel: Kernel, world: World, more: dict[str, object], expected: dict[int, list[str]]
) -> None:
    item = _vlans(world, **more)
    go_rounds(kernel, world, item)
    assert _shown(world) == expected
    is_lost_netns(kernel, item)


@pytest.mark.parametrize(
    ("damage", "drift"),
    [
        ("host:bridge vlan add dev lan0 vid 30", "has VLANs 10 native, 20-21, 30, not 10 native, 20-21"),
        ("host:bridge vlan del dev lan0 vid 21", "has VLANs 10 native, 20, not 10 native, 20-21"),
        ("host:bridge vlan add dev lan0 vid 10", "has VLANs 10, 20-21, not 10 native, 20-21"),
    ],
)
def test_drift_is_named_and_repaired(kernel: Kernel, world: World, damage: str, drift: str) -> None:
    repair(kernel, world, _vlans(world, native=10, tagged=((20, 21),)), damage, drift)


def test_a_port_made_by_the_same_plan_gets_the_default_back(kernel: Kernel, world: World) -> None:
    before = world.state()
    item = _vlans(world, native=10)
    item.ensure(kernel)
    item.remove(kernel)
    assert_same(before, world.state())


def test_what_is_no_port_has_no_vlans(kernel: Kernel, world: World) -> None:
    world.run("host:ip link del lan0")
    item = _vlans(world, native=10)
    with pytest.raises(ObjectMissing, match="lan0"):
        item.ensure(kernel)
    item.remove(kernel)
    assert item.observed(kernel) == item
    assert "lan0" in str(item.drift(kernel))


def test_ports_of_other_vlans_do_not_meet(kernel: Kernel, world: World) -> None:
    """far0 (behind lan0) and peer0 (behind dev0), as two hosts on one bridge."""
    for line in (
        f"far:ip link set peer0 netns {world.web.label}",
        "web:ip link set peer0 up",
        "web:ip addr add 10.8.0.2/24 dev peer0",
        "far:ip addr add 10.8.0.3/24 dev far0",
    ):
        world.run(line)
    world.run("web:ping -c1 -W2 10.8.0.3")
    settle(kernel, world, _vlans(world, native=10))
    with pytest.raises(Exception, match="returned non-zero"):
        world.run("web:ping -c1 -W1 10.8.0.3")
    PortVlans(ifname="dev0", native=10, netns=world.host).ensure(kernel)
    world.run("web:ping -c1 -W2 10.8.0.3")


def test_a_bridge_starts_and_stops_keeping_vlans_apart(kernel: Kernel, world: World) -> None:
    world.run("host:ip link add br1 type bridge")
    before = world.state()
    item = _filtering(world, "br1").observed(kernel)
    assert item.drift(kernel) == "link br1 has vlan_filtering off, not on"
    settle(kernel, world, item)
    item.remove(kernel)
    assert_same(before, world.state())
