"""VRFs and what is enslaved to them."""

from collections.abc import Callable, Iterator

import pytest
from msgspec.structs import replace

from netlib.errors import AlreadyExists, ConfigError, ObjectMissing
from netlib.kernel.handle import Kernel
from netlib.kernel.vrfs import Enslaved, Vrf
from netlib.model import NetnsRef
from tests.kernel.object_world import TAG, World, assert_same, go_rounds, is_lost_netns, make_world, repair, settle

pytestmark = pytest.mark.needs_link_kind("vrf")


@pytest.fixture
def world(netns_factory: Callable[[str], NetnsRef]) -> World:
    return make_world(netns_factory)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    with Kernel(TAG) as handle:
        yield handle


def _vrf(world: World, table: int = 0) -> Vrf:
    return Vrf(ifname="red", table=table, netns=world.web)


def _enslaved(world: World) -> Enslaved:
    return Enslaved(ifname="eth5", vrf="red", netns=world.web)


@pytest.mark.parametrize("table", [0, 5000])
def test_vrf_made_twice_removed_twice_and_explained(kernel: Kernel, world: World, table: int) -> None:
    go_rounds(kernel, world, _vrf(world, table))
    is_lost_netns(kernel, _vrf(world, table))


def test_the_lowest_table_that_no_other_vrf_has(kernel: Kernel, world: World) -> None:
    world.run("web:ip link add blue type vrf table 1")
    world.run("web:ip link add green type vrf table 3")
    assert _vrf(world).observed(kernel).chosen == 2
    assert _vrf(world, 77).observed(kernel).chosen == 77


def test_vrf_of_somebody_else_is_adopted_and_stays(kernel: Kernel, world: World) -> None:
    world.run("web:ip link add red type vrf table 9")
    before = world.state()
    item = _vrf(world).observed(kernel)
    assert (item.adopted, item.chosen) == (True, 9)
    settle(kernel, world, item)
    item.remove(kernel)
    assert_same(before, world.state())
    assert list(item.commands()) == []
    with pytest.raises(ConfigError, match="VRF red in web.* has table 9, not 10"):
        _vrf(world, 10).observed(kernel)


def test_another_link_of_that_name_is_refused(kernel: Kernel, world: World) -> None:
    with pytest.raises(ConfigError, match="link eth5 in web.* is no VRF"):
        replace(_vrf(world), ifname="eth5").observed(kernel)
    world.run("web:ip link add red type bridge")
    with pytest.raises(AlreadyExists, match="link red exists in web"):
        replace(_vrf(world), chosen=4).ensure(kernel)


def test_vrf_drift_is_named_and_repaired(kernel: Kernel, world: World) -> None:
    repair(kernel, world, _vrf(world, 8), "web:ip link set red down", "link red is down")


def _routed(kernel: Kernel, world: World) -> None:
    _vrf(world, 8).ensure(kernel)
    for line in (
        "web:ip addr add fd05::2/64 nodad dev eth5",
        "web:ip route add default via 10.5.0.1 proto static",
        "web:ip route add 10.6.0.0/16 dev eth5 mtu 1400 proto static",
        "web:ip -6 route add default via fd05::1 dev eth5 proto static",
        "web:ip -6 route add fd06::/64 dev eth5 metric 7 proto static",
    ):
        world.run(line)


def test_a_link_goes_into_a_vrf_and_back_with_addresses_and_routes(kernel: Kernel, world: World) -> None:
    _routed(kernel, world)
    item = _enslaved(world).observed(kernel)
    assert {str(route.destination) for route in item.routes} == {"0.0.0.0/0", "10.6.0.0/16", "::/0", "fd06::/64"}
    go_rounds(kernel, world, item)
    assert "fd05::2" in world.run("web:ip addr show dev eth5")
    assert "default via 10.5.0.1" in world.run("web:ip route show vrf red")
    assert "default via fd05::1" in world.run("web:ip -6 route show vrf red")
    assert world.run("web:ip route show") == ""
    is_lost_netns(kernel, item)


@pytest.mark.parametrize(
    ("damage", "drift"),
    [
        ("web:ip link set eth5 nomaster", "link eth5 is not in VRF red"),
        ("web:ip route del default vrf red", "route default4 is missing"),
    ],
)
def test_enslaved_drift_is_named_and_repaired(kernel: Kernel, world: World, damage: str, drift: str) -> None:
    _routed(kernel, world)
    if "nomaster" in damage:  # which takes IPv6 addresses along: these are other objects' affair
        world.run("web:ip -6 route del default")
    item = _enslaved(world).observed(kernel)
    item.ensure(kernel)
    world.run(damage)
    assert drift in str(item.drift(kernel))
    settle(kernel, world, item)


def test_a_link_of_another_master_is_refused_and_left(kernel: Kernel, world: World) -> None:
    _vrf(world, 8).ensure(kernel)
    for line in ("web:ip link add br0 type bridge", "web:ip link set eth5 master br0"):
        world.run(line)
    before = world.state()
    with pytest.raises(AlreadyExists, match="link eth5 in web.* belongs to br0 already"):
        _enslaved(world).ensure(kernel)
    _enslaved(world).remove(kernel)
    assert_same(before, world.state())


def test_without_vrf_or_link_there_is_nothing_to_do(kernel: Kernel, world: World) -> None:
    with pytest.raises(ObjectMissing, match="red"):
        _enslaved(world).ensure(kernel)
    _enslaved(world).remove(kernel)
    assert "red" in str(_enslaved(world).drift(kernel))
    absent = replace(_enslaved(world), ifname="eth9")
    assert absent.observed(kernel) == absent
