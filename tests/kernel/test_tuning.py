"""Link settings, policy rules, shaping: set, explained, given back."""

import json
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from time import monotonic

import pytest
from msgspec.structs import replace

from netlib.errors import AlreadyExists, KernelError, ObjectMissing
from netlib.kernel.handle import Kernel
from netlib.kernel.qdiscs import IngressRedirect, TokenBucket
from netlib.kernel.rules import PolicyRule
from netlib.kernel.sublinks import Ifb
from netlib.kernel.tuning import LinkSetting
from netlib.model import NetnsRef
from netlib.plan import KernelObject
from tests.kernel.object_world import TAG, World, assert_same, go_rounds, is_lost_netns, make_world, repair, settle

Make = Callable[[World], KernelObject]
SOURCE4, SOURCE6, LAN = ip_network("10.5.0.2/32"), ip_network("fd05::2/128"), ip_network("10.9.0.0/16")


@pytest.fixture
def world(netns_factory: Callable[[str], NetnsRef]) -> World:
    world = make_world(netns_factory)
    world.run("host:ip link add ifb7 up type ifb")
    return world


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    with Kernel(TAG) as handle:
        yield handle


def _setting(setting: str, value: str) -> Make:
    return lambda world: LinkSetting(ifname="eth5", setting=setting, value=value, netns=world.web)  # type: ignore[arg-type]


def _bucket(rate: int = 8_000_000, burst: int = 800_000) -> Make:
    return lambda world: TokenBucket(ifname="lan0", rate=rate, burst=burst, netns=world.host)


def _redirect(world: World) -> IngressRedirect:
    return IngressRedirect(ifname="lan0", to="ifb7", netns=world.host)


def _rule(**more: object) -> Make:
    return lambda world: PolicyRule(**{"table": 100, "netns": world.web, **more})  # type: ignore[arg-type]


OBJECTS: dict[str, Make] = {
    "mac": _setting("mac", "02:00:00:00:00:05"),
    "mtu": _setting("mtu", "1400"),
    "txqlen": _setting("txqlen", "77"),
    "promisc": _setting("promisc", "on"),
    "allmulti": _setting("allmulti", "on"),
    "rule from": _rule(source=SOURCE4),
    "rule with all": _rule(source=SOURCE4, destination=LAN, iif="eth5", priority=1000, table=5000),
    "rule by link": _rule(iif="eth5", family=6, priority=7),
    "rule from 6": _rule(source=SOURCE6, family=6),
    "rule to everywhere": _rule(destination=ip_network("0.0.0.0/0")),
    "token bucket": _bucket(),
    "slow token bucket": _bucket(8_000, 8_000),
    "token bucket of 80 Gbit/s": _bucket(80_000_000_000, 8_000_000_000),
    "redirect": _redirect,
}
ROUNDS = [pytest.param(make, id=name) for name, make in OBJECTS.items()]


@pytest.mark.parametrize("make", ROUNDS)
def test_set_twice_given_back_twice_and_explained(kernel: Kernel, world: World, make: Make) -> None:
    go_rounds(kernel, world, make(world))


@pytest.mark.parametrize("make", ROUNDS)
def test_gone_with_the_netns(kernel: Kernel, world: World, make: Make) -> None:
    is_lost_netns(kernel, make(world))


@pytest.mark.parametrize(
    ("make", "damage", "drift"),
    [
        (_setting("mtu", "1400"), "web:ip link set eth5 mtu 1300", "has mtu 1300, not 1400"),
        (_setting("mac", "02:00:00:00:00:05"), "web:ip link set eth5 address 02:00:00:00:00:06", "has mac 02:00:00:00:00:06"),
        (_setting("txqlen", "77"), "web:ip link set eth5 txqueuelen 78", "has txqlen 78, not 77"),
        (_setting("promisc", "on"), "web:ip link set eth5 promisc off", "has promisc off, not on"),
        (_setting("allmulti", "on"), "web:ip link set eth5 allmulticast off", "has allmulti off, not on"),
        (
            _rule(source=SOURCE4, priority=9),
            "web:ip rule del priority 9",
            "rule from 10.5.0.2/32 table 100 priority 9 is missing",
        ),
        (_bucket(), "host:tc qdisc del dev lan0 root", "lan0 sends without limit"),
        (
            _bucket(),
            "host:tc qdisc change dev lan0 root handle 6e6c: tbf rate 1mbit burst 100000b limit 125000b",
            "sends 1000000 bit/s, not 8000000",
        ),
        (
            _bucket(),
            "host:tc qdisc change dev lan0 root handle 6e6c: tbf rate 8mbit burst 90000b limit 125000b",
            "sends another burst than 800000 bit",
        ),
        (
            _bucket(),
            "host:tc qdisc change dev lan0 root handle 6e6c: tbf rate 8mbit burst 100000b limit 100000b",
            "lets 100000 bytes wait, not 125000",
        ),
        (_redirect, "host:tc filter del dev lan0 ingress", "what link lan0 receives does not go through ifb7"),
        (_redirect, "host:tc qdisc del dev lan0 ingress", "what link lan0 receives does not go through ifb7"),
    ],
)
def test_drift_is_named_and_repaired(kernel: Kernel, world: World, make: Make, damage: str, drift: str) -> None:
    repair(kernel, world, make(world), damage, drift)


# --- settings -------------------------------------------------------------------------------------------------------------


def test_what_somebody_has_changed_meanwhile_is_not_given_back(kernel: Kernel, world: World) -> None:
    item = _setting("mtu", "1400")(world).observed(kernel)
    item.ensure(kernel)
    world.run("web:ip link set eth5 mtu 1300")
    item.remove(kernel)
    assert kernel.rtnl(world.web).get_link("eth5").mtu == 1300


@pytest.mark.parametrize(("setting", "value"), [("promisc", "off"), ("allmulti", "off"), ("mtu", "1500")])
def test_what_was_so_before_stays(kernel: Kernel, world: World, setting: str, value: str) -> None:
    before = world.state()
    item = _setting(setting, value)(world).observed(kernel)
    settle(kernel, world, item)
    item.remove(kernel)
    assert_same(before, world.state())


def test_a_setting_of_no_link(kernel: Kernel, world: World) -> None:
    item = replace(_setting("mtu", "1400")(world), ifname="eth9").observed(kernel)
    with pytest.raises(ObjectMissing, match="eth9"):
        item.ensure(kernel)
    item.remove(kernel)
    assert "eth9" in str(item.drift(kernel))


def test_a_value_that_the_kernel_refuses(kernel: Kernel, world: World) -> None:
    with pytest.raises(KernelError, match="cannot set mtu 5 of link eth5 in web"):
        _setting("mtu", "5")(world).ensure(kernel)


# --- rules ----------------------------------------------------------------------------------------------------------------


def test_a_rule_that_was_there_stays(kernel: Kernel, world: World) -> None:
    world.run("web:ip rule add from 10.5.0.2 table 100")
    before = world.state()
    item = _rule(source=SOURCE4)(world).observed(kernel)
    settle(kernel, world, item)
    item.remove(kernel)
    assert_same(before, world.state())


@pytest.mark.parametrize("more", ["fwmark 5", "iif lo", "to 10.1.0.0/16", "suppress_prefixlength 0", "tos 0x10", "not"])
def test_a_rule_that_says_more_is_another_one(kernel: Kernel, world: World, more: str) -> None:
    world.run(f"web:ip rule add {'not ' if more == 'not' else ''}from 10.5.0.2 {more.removeprefix('not')} table 100")
    before = world.state()
    item = _rule(source=SOURCE4)(world).observed(kernel)
    item.remove(kernel)
    assert_same(before, world.state())
    settle(kernel, world, item)
    item.remove(kernel)
    assert_same(before, world.state())


def test_rules_are_told_apart_by_all_they_say(world: World) -> None:
    rule = _rule(source=SOURCE4)(world)
    changes: list[dict[str, object]] = [{"table": 7}, {"priority": 1}, {"iif": "eth5"}, {"destination": LAN}, {"source": None}]
    keys = {rule.key, *(replace(rule, **change).key for change in changes)}
    assert len(keys) == 6


# --- shaping --------------------------------------------------------------------------------------------------------------


def test_a_limit_changes_live(kernel: Kernel, world: World) -> None:
    _bucket()(world).ensure(kernel)
    slower = _bucket(4_000_000, 400_000)(world)
    assert "sends 8000000 bit/s, not 4000000" in str(slower.drift(kernel))
    settle(kernel, world, slower)


@pytest.mark.parametrize("foreign", ["root handle 1: tbf rate 1mbit burst 1000b limit 3000b", "root handle 5: pfifo limit 9"])
def test_a_qdisc_of_somebody_else_is_refused_and_left(kernel: Kernel, world: World, foreign: str) -> None:
    world.run(f"host:tc qdisc add dev lan0 {foreign}")
    before = world.state()
    with pytest.raises(AlreadyExists, match="link lan0 in host.* has a qdisc that is not netlib's"):
        _bucket()(world).ensure(kernel)
    _bucket()(world).remove(kernel)
    assert_same(before, world.state())
    assert "without limit" in str(_bucket()(world).drift(kernel))


@pytest.mark.parametrize("foreign", ["ingress", "clsact"])
def test_a_filter_of_somebody_else_is_refused_and_left(kernel: Kernel, world: World, foreign: str) -> None:
    world.run(f"host:tc qdisc add dev lan0 {foreign}")
    world.run("host:tc filter add dev lan0 ingress protocol all pref 5 u32 match u32 0 0 flowid 1:1")
    before = world.state()
    with pytest.raises(AlreadyExists, match="what link lan0 in host.* receives is filtered by somebody else"):
        _redirect(world).ensure(kernel)
    _redirect(world).remove(kernel)
    assert_same(before, world.state())


def test_a_filter_that_came_after_ours_stays(kernel: Kernel, world: World) -> None:
    item = _redirect(world)
    item.ensure(kernel)
    world.run("host:tc filter add dev lan0 ingress protocol all pref 5 u32 match u32 0 0 flowid 1:1")
    item.remove(kernel)
    item.remove(kernel)
    filters = world.run("host:tc filter show dev lan0 ingress")
    assert "pref 5 " in filters
    assert "mirred" not in filters


def test_half_a_redirect_is_made_whole(kernel: Kernel, world: World) -> None:
    world.run("host:tc qdisc add dev lan0 ingress")
    settle(kernel, world, _redirect(world))


@pytest.mark.parametrize("make", [_bucket(), _redirect])
def test_shaping_of_no_link(kernel: Kernel, world: World, make: Make) -> None:
    item = make(world)
    item.ensure(kernel)
    world.run("host:ip link del lan0")
    item.remove(kernel)
    assert "lan0" in str(item.drift(kernel))
    with pytest.raises(ObjectMissing, match="lan0"):
        item.ensure(kernel)


def test_ifb_carries_its_bucket(world: World) -> None:
    ifb = Ifb(ifname="ifb7", netns=world.host)
    assert ifb.carries(TokenBucket(ifname="ifb7", rate=8, burst=8, netns=world.host))
    assert not ifb.carries(_redirect(world))


@pytest.mark.parametrize("way", ["sends", "receives"])
def test_traffic_is_slowed_down(kernel: Kernel, world: World, way: str) -> None:
    """80 kB at 0.8 Mbit/s with a burst of 10 kB: at least 0.6 s, where without limit it is done at once."""
    for line in ("host:ip addr add 10.8.0.1/24 dev lan0", "far:ip addr add 10.8.0.2/24 dev far0"):
        world.run(line)
    bucket = TokenBucket(ifname="lan0" if way == "sends" else "ifb7", rate=800_000, burst=80_000, netns=world.host)
    bucket.ensure(kernel)
    if way == "receives":
        _redirect(world).ensure(kernel)
    sender, target = ("host", "10.8.0.2") if way == "sends" else ("far", "10.8.0.1")
    started = monotonic()
    world.run(f"{sender}:ping -q -f -c 60 -s 1400 -l 6 -W 5 {target}")
    link = "lan0" if way == "sends" else "ifb7"
    (statistics,) = (item for item in json.loads(world.run(f"host:tc -s -j qdisc show dev {link}")) if item["kind"] == "tbf")
    assert statistics["packets"] >= 40
    assert statistics["overlimits"] > 0
    assert monotonic() - started > 0.5
