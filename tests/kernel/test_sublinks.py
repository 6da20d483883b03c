"""Links on a parent, and those that stand alone: made, changed, explained, and never somebody else's."""

from collections.abc import Callable, Iterator
from ipaddress import ip_interface
from typing import Any

import pytest
from msgspec.structs import replace

from netlib.errors import AlreadyExists, KernelError, NotPermitted, ObjectMissing
from netlib.kernel.addresses import Address
from netlib.kernel.handle import Kernel
from netlib.kernel.links import LinkUp
from netlib.kernel.sublinks import Dummy, Ifb, Ipvlan, Macvlan, MadeLink, Vlan
from netlib.kernel.taps import Tap
from netlib.model import NetnsRef
from tests.kernel.object_world import (
    DEVICE_MAC,
    TAG,
    World,
    assert_same,
    go_rounds,
    is_lost_netns,
    make_world,
    repair,
    settle,
)

Make = Callable[[World], MadeLink | Tap]


@pytest.fixture
def world(netns_factory: Callable[[str], NetnsRef]) -> World:
    return make_world(netns_factory)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    with Kernel(TAG) as handle:
        yield handle


def _macvlan(world: World, **more: Any) -> Macvlan:
    return Macvlan(ifname="eth0", netns=world.web, parent="lan0", parent_netns=world.host, **more)


def _ipvlan(world: World, **more: Any) -> Ipvlan:
    return Ipvlan(ifname="eth0", netns=world.web, parent="lan0", parent_netns=world.host, **more)


def _vlan(world: World, **more: Any) -> Vlan:
    return Vlan(ifname="lan0.10", netns=world.host, parent="lan0", parent_netns=world.host, vlan_id=10, **more)


def _vlan_in(world: World, **more: Any) -> Vlan:
    return Vlan(ifname="eth0", netns=world.web, parent="lan0", parent_netns=world.host, vlan_id=10, **more)


def _tap(world: World, **more: Any) -> Tap:
    return Tap(ifname="tap0", netns=world.web, **more)


KINDS: dict[str, tuple[str, Make]] = {
    "macvlan": ("", lambda world: _macvlan(world)),
    "macvlan with all": ("", lambda world: _macvlan(world, mode="private", mac=DEVICE_MAC, mtu=1400, bcqueuelen=2000)),
    "macvlan vepa": ("", lambda world: _macvlan(world, mode="vepa")),
    "macvlan passthru": ("", lambda world: _macvlan(world, mode="passthru")),
    "macvlan on the container's own link": (
        "",
        lambda world: Macvlan(ifname="eth0", netns=world.web, parent="eth5", parent_netns=world.web, mac=DEVICE_MAC),
    ),
    "macvlan for the host": (
        "",
        lambda world: Macvlan(ifname="shim", netns=world.host, parent="lan0", parent_netns=world.host, up=True),
    ),
    "ipvlan": ("ipvlan", lambda world: _ipvlan(world)),
    "ipvlan l3 private": ("ipvlan", lambda world: _ipvlan(world, mode="l3", flag="private", mtu=1400)),
    "ipvlan l3s vepa": ("ipvlan", lambda world: _ipvlan(world, mode="l3s", flag="vepa")),
    "vlan": ("vlan", lambda world: _vlan(world, mtu=1400, up=True)),
    "vlan moved into the container": ("vlan", lambda world: _vlan_in(world)),
    "vlan on the container's own link": (
        "vlan",
        lambda world: Vlan(ifname="eth0", netns=world.web, parent="eth5", parent_netns=world.web, vlan_id=4094),
    ),
    "dummy": ("dummy", lambda world: Dummy(ifname="dm0", netns=world.web, mtu=1400, mac=DEVICE_MAC)),
    "dummy of the host": ("dummy", lambda world: Dummy(ifname="dm0", netns=world.host, up=True)),
    "ifb": ("", lambda world: Ifb(ifname="ifb7", netns=world.host, mtu=1400, up=True)),
    "tap": ("", lambda world: _tap(world)),
    "tap with all": ("", lambda world: _tap(world, mac=DEVICE_MAC, mtu=1400, multi_queue=True, owner=7, group=8)),
}
ROUNDS = [
    pytest.param(make, id=name, marks=[pytest.mark.needs_link_kind(kind)] if kind else [])
    for name, (kind, make) in KINDS.items()
]


@pytest.mark.parametrize("make", ROUNDS)
def test_made_twice_removed_twice_and_explained(kernel: Kernel, world: World, make: Make) -> None:
    go_rounds(kernel, world, make(world))


@pytest.mark.parametrize("make", ROUNDS)
def test_what_a_person_made_is_refused_and_left(kernel: Kernel, world: World, make: Make) -> None:
    item = make(world)
    for line in item.commands():
        world.run(line)
    before = world.state()
    with pytest.raises(AlreadyExists, match=f"link {item.ifname} exists in .* is not netlib's"):
        item.ensure(kernel)
    item.remove(kernel)  # as the way back does
    assert_same(before, world.state())
    assert "is not netlib's" in str(item.drift(kernel))


@pytest.mark.parametrize("make", ROUNDS)
def test_half_made_is_ours(kernel: Kernel, world: World, make: Make) -> None:
    item, before = make(world), world.state()
    with Kernel() as untagged:  # leaves what a crash leaves before the second request: the mark, no tag
        item.ensure(untagged)
    if isinstance(item, Tap):  # made by its program's call, it has no mark, and dies with the program until it is whole
        world.run(f"ip -n {item.netns.label} link del {item.ifname}")
    else:
        settle(kernel, world, item)
        assert kernel.rtnl(item.netns).get_link(item.ifname).alias == TAG
        item.remove(kernel)
    assert_same(before, world.state())


@pytest.mark.parametrize("make", ROUNDS)
def test_gone_with_the_netns(kernel: Kernel, world: World, make: Make) -> None:
    is_lost_netns(kernel, make(world))


DAMAGES: list[tuple[str, Make, str, str]] = [
    ("", lambda world: _macvlan(world, mode="private"), "web:ip link set eth0 type macvlan mode bridge", "another mode"),
    ("", lambda world: _macvlan(world, mac=DEVICE_MAC), "web:ip link set eth0 address 02:00:00:00:00:05", "has MAC address"),
    ("", lambda world: _macvlan(world, mtu=1400), "web:ip link set eth0 mtu 1300", "MTU 1300, not 1400"),
    ("", lambda world: _macvlan(world, bcqueuelen=9), "web:ip link set eth0 type macvlan bcqueuelen 5", "another bcqueuelen"),
    ("", lambda world: _macvlan(world), "web:ip link set eth0 name lost", "is missing"),
    ("ipvlan", lambda world: _ipvlan(world, mode="l3"), "web:ip link set eth0 type ipvlan mode l2", "another mode"),
    ("ipvlan", lambda world: _ipvlan(world), "web:ip link set eth0 type ipvlan mode l2 vepa", "another flag"),
    ("vlan", lambda world: _vlan(world, up=True), "host:ip link set lan0.10 down", "is down"),
    ("vlan", lambda world: _vlan(world), "host:ip link del lan0.10", "is missing"),
    ("dummy", lambda world: Dummy(ifname="dm0", netns=world.web, mtu=1400), "web:ip link set dm0 mtu 1300", "MTU 1300"),
    ("", lambda world: Ifb(ifname="ifb7", netns=world.host, up=True), "host:ip link set ifb7 down", "is down"),
    ("", lambda world: _tap(world, mac=DEVICE_MAC), "web:ip link set tap0 address 02:00:00:00:00:05", "has MAC address"),
    ("", lambda world: _tap(world, mtu=1400), "web:ip link set tap0 mtu 1300", "MTU 1300, not 1400"),
]


@pytest.mark.parametrize(
    ("make", "damage", "drift"),
    [
        pytest.param(make, damage, drift, id=damage, marks=[pytest.mark.needs_link_kind(kind)] if kind else [])
        for kind, make, damage, drift in DAMAGES
    ],
)
def test_drift_is_named_and_repaired(kernel: Kernel, world: World, make: Make, damage: str, drift: str) -> None:
    if "name lost" in damage:  # the parent has no second one of that MAC address to give: it is in nobody's way
        world.run("host:ip link set lan0 promisc on")
    item = make(world)
    if "lost" in damage:
        item.ensure(kernel)
        world.run(damage)
        assert drift in str(item.drift(kernel))
        settle(kernel, world, item)
    else:
        repair(kernel, world, item, damage, drift)


def test_the_name_of_a_link_of_the_host_is_in_nobodys_way(kernel: Kernel, world: World) -> None:
    world.run("host:ip link add eth0 type bridge")
    index = kernel.rtnl(world.host).index("eth0")
    settle(kernel, world, _macvlan(world))
    assert [link.ifname for link in kernel.rtnl(world.host).links()] == ["lo", "lan0", "dev0", "eth0"]
    assert kernel.rtnl(world.host).index("eth0") == index


def test_a_link_that_stands_inside_leaves_nothing_half_made(kernel: Kernel, world: World) -> None:
    world.run("web:ip link add eth0 type bridge")
    before = world.state()
    item = _macvlan(world)
    with pytest.raises(AlreadyExists, match="link eth0 exists in web"):
        item.ensure(kernel)
    item.remove(kernel)
    assert_same(before, world.state())


def test_what_a_crash_left_on_its_way_is_found(kernel: Kernel, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    item, before = _macvlan(world), world.state()

    def crash(*_: Any) -> None:
        raise NotPermitted("here it ends")

    def interrupted() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(MadeLink, "_finish", crash)
            with pytest.raises(NotPermitted):
                item.ensure(kernel)

    interrupted()
    assert len(kernel.rtnl(world.web).links()) == 3
    item.remove(kernel)
    assert_same(before, world.state())
    interrupted()
    settle(kernel, world, item)
    assert len(kernel.rtnl(world.web).links()) == 3


def test_one_on_another_parent_is_made_anew(kernel: Kernel, world: World) -> None:
    _macvlan(world).ensure(kernel)
    item = replace(_macvlan(world), parent="dev0")
    assert item.drift(kernel) == f"link eth0 is not on dev0 in {world.host.label}"
    settle(kernel, world, item)
    inside = replace(item, parent="eth5", parent_netns=world.web)
    assert item.drift(kernel) is None
    assert "is not on eth5" in str(inside.drift(kernel))
    settle(kernel, world, inside)


def test_into_passthru_leads_no_change_of_a_living_one(kernel: Kernel, world: World) -> None:
    item = _macvlan(world, mode="vepa")
    item.ensure(kernel)
    index = kernel.rtnl(world.web).index("eth0")
    settle(kernel, world, replace(item, mode="private"))
    assert kernel.rtnl(world.web).index("eth0") == index
    settle(kernel, world, replace(item, mode="passthru"))
    settle(kernel, world, item)


def test_without_its_parent_it_is_not_made(kernel: Kernel, world: World) -> None:
    item, before = replace(_macvlan(world), parent="nolink0"), world.state()
    with pytest.raises(ObjectMissing, match="nolink0"):
        item.ensure(kernel)
    item.remove(kernel)
    assert_same(before, world.state())
    _macvlan(world).ensure(kernel)
    world.run("host:ip link del lan0")
    assert _macvlan(world).drift(kernel) == "link eth0 is missing"
    _macvlan(world).remove(kernel)


def test_an_mtu_above_the_parents_is_refused(kernel: Kernel, world: World) -> None:
    before = world.state()
    with pytest.raises(KernelError, match="cannot create macvlan eth0 in web"):
        _macvlan(world, mtu=9000).ensure(kernel)
    assert_same(before, world.state())


def test_it_carries_what_sits_on_it(world: World) -> None:
    item = _macvlan(world)
    inside = (
        LinkUp(ifname="eth0", netns=world.web),
        Address(ifname="eth0", address=ip_interface("10.1.0.2/24"), netns=world.web),
    )
    assert [item.carries(other) for other in inside] == [True, True]
    assert not item.carries(LinkUp(ifname="eth0", netns=world.host))
    assert not item.carries(item)


def test_macvlans_of_one_parent_talk(kernel: Kernel, world: World) -> None:
    for netns, number in ((world.web, 2), (world.far, 3)):
        name = "eth0"
        item = Macvlan(ifname=name, netns=netns, parent="lan0", parent_netns=world.host)
        item.ensure(kernel)
        Address(ifname=name, address=ip_interface(f"10.7.0.{number}/24"), netns=netns).ensure(kernel)
        LinkUp(ifname=name, netns=netns).ensure(kernel)
    world.run("web:ping -c1 -W2 10.7.0.3")


# --- a VLAN that several share --------------------------------------------------------------------------------------------


@pytest.mark.needs_link_kind("vlan")
def test_a_vlan_that_stands_is_adopted_where_it_may(kernel: Kernel, world: World) -> None:
    world.run("host:ip link add link lan0 name lan0.10 type vlan id 10")
    before = world.state()
    item = _vlan(world, may_stand=True).observed(kernel)
    assert item.adopted
    settle(kernel, world, item)
    item.remove(kernel)
    assert_same(before, world.state())
    assert list(item.commands()) == []
    assert not item.carries(LinkUp(ifname="lan0.10", netns=world.host))
    world.run("host:ip link del lan0.10")
    assert item.drift(kernel) == "link lan0.10 is missing"


@pytest.mark.needs_link_kind("vlan")
def test_a_vlan_of_ours_is_not_adopted_and_another_id_makes_it_anew(kernel: Kernel, world: World) -> None:
    item = _vlan(world, may_stand=True)
    item.ensure(kernel)
    assert not item.observed(kernel).adopted
    other = replace(item, vlan_id=11)
    assert "another id than 11" in str(other.drift(kernel))
    settle(kernel, world, other)


# --- tap ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "drift"),
    [({"multi_queue": True}, "has multi_queue off"), ({"owner": 5}, "another owner than 5"), ({"group": 5}, "another group")],
)
def test_a_tap_that_differs_is_made_anew(kernel: Kernel, world: World, change: dict[str, Any], drift: str) -> None:
    _tap(world).ensure(kernel)
    item = _tap(world, **change)
    assert drift in str(item.drift(kernel))
    settle(kernel, world, item)
    settle(kernel, world, _tap(world))


def test_a_tap_belongs_to_nobody_or_its_owner(kernel: Kernel, world: World) -> None:
    _tap(world, owner=0).ensure(kernel)
    assert _tap(world).drift(kernel) == "link tap0 has another owner than none"
