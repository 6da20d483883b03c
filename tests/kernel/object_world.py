"""A world in which kernel objects are tried: three netns, what is in each as text, and the rounds that every object goes."""

import json
import re
import shlex
import subprocess
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from msgspec.structs import replace

from netlib.kernel.handle import Kernel
from netlib.kernel.netns import entered
from netlib.model import NetnsRef
from netlib.plan import KernelObject

TAG = "netlib:test:record"
LAN_MAC, DEVICE_MAC = "02:42:0a:00:00:01", "02:42:0a:00:00:99"
# What differs between two runs, or between what we make and what a person does: the tag, our names for new links, numbers.
_MOVING = {"ifindex", "link_index", "link_netnsid", "ifalias", "group", "dadfailed", "stats64", "stats", "refcnt", "address"}
_MOVING |= {
    "valid_life_time",
    "preferred_life_time",
    "operstate",
    "state",
    "num_tx_queues",
    "num_rx_queues",
    "parentbus",
    "parentdev",
}


_CARRIER = {"NO-CARRIER", "LOWER_UP", "linkdown", "NOARP"}  # that of an ipvlan link follows its mode only once it was up
_INDEX = re.compile(r"index \d+")

State = list[str]
"""One line for each thing."""


class World(NamedTuple):
    """*host* has the link lan0 (its other end is far0 in *far*), up, and dev0 (peer0 in *far*); *web* has eth5 (to *far*)."""

    host: NetnsRef
    web: NetnsRef
    far: NetnsRef

    def run(self, line: str) -> str:
        """Run a command line as ``explain`` prints it, or one that begins with ``host:``, ``web:`` or ``far:`` (in there)."""
        for word, netns in (("host:", self.host), ("web:", self.web), ("far:", self.far)):
            if line.startswith(word):
                with entered(netns):  # a child starts in the netns of the thread
                    return self.run(line.removeprefix(word))
        return subprocess.run(shlex.split(line), check=True, capture_output=True, text=True).stdout

    def state(self) -> State:
        """Links with all their settings, addresses, routes, rules, qdiscs, filters and VLANs of host and web."""
        questions = [
            *("addr show", "-4 route show table all", "-6 route show table all proto static"),
            *("-4 rule", "-6 rule", "tc qdisc show", "bridge vlan show"),
        ]
        found: State = []
        for word in ("host", "web"):
            for question in questions:
                command = question if question.startswith(("tc", "bridge")) else f"ip -d {question}"
                items = json.loads(self.run(f"{word}:{command.replace(' ', ' -j ', 1)}") or "[]")
                # The kernel adds a rule of l3mdev with the first VRF of a netns, and keeps it.
                lines = (json.dumps(_still(item), sort_keys=True) for item in items if "l3mdev" not in item)
                found += sorted(f"{word} {question}: {line}" for line in lines)
                if question.startswith("tc"):
                    links = [item["dev"] for item in items if item["kind"] in ("ingress", "clsact")]
                    found += [
                        f"{word} {_INDEX.sub('', self.run(f'{word}:tc filter show dev {link} ingress'))}" for link in links
                    ]
        return found


def _still(value: Any) -> Any:
    if isinstance(value, dict):
        fixed = {key: _still(item) for key, item in value.items() if key not in _MOVING and not key.endswith("_timer")}
        if "flags" in fixed:
            fixed["flags"] = [flag for flag in fixed["flags"] if flag not in _CARRIER]
        return fixed | ({"address": value["address"]} if value.get("address") in (LAN_MAC, DEVICE_MAC) else {})
    if isinstance(value, list):  # link-local addresses come by themselves
        return [
            _still(item) for item in value if not (isinstance(item, dict) and item.get("scope") == "link" and "local" in item)
        ]
    return value


def make_world(netns_factory: Callable[[str], NetnsRef]) -> World:
    """Make the three netns and their links."""
    world = World(*(netns_factory(word) for word in ("host", "web", "far")))
    far = world.far.label
    for line in (
        f"host:ip link add lan0 address {LAN_MAC} type veth peer name far0 netns {far}",
        f"host:ip link add dev0 address {DEVICE_MAC} type veth peer name peer0 netns {far}",
        f"web:ip link add eth5 address {LAN_MAC} type veth peer name peer5 netns {far}",
        *("host:ip link set lan0 up", "web:ip link set eth5 up", "web:ip addr add 10.5.0.2/24 dev eth5"),
        *(f"far:ip link set {ifname} up" for ifname in ("far0", "peer0", "peer5")),
    ):
        world.run(line)
    return world


def assert_same(before: State, after: State) -> None:
    """Compare two states; what differs is shown, a line each."""
    gone, come = Counter(before) - Counter(after), Counter(after) - Counter(before)
    lines = [*(f"- {line}" for line in gone), *(f"+ {line}" for line in come)]
    assert not lines, "\n".join(lines)


def settle(kernel: Kernel, world: World, item: KernelObject) -> State:
    """Ensure twice: the second time changes nothing. Answer with what is there then."""
    item.ensure(kernel)
    before = world.state()
    item.ensure(kernel)
    assert_same(before, world.state())
    assert item.drift(kernel) is None
    return before


def go_rounds(kernel: Kernel, world: World, item: KernelObject) -> None:
    """Make it twice, remove it twice, and make it by its commands: the same state, and nothing left."""
    before = world.state()
    item = item.observed(kernel)
    assert item.drift(kernel) is not None
    ours = settle(kernel, world, item)
    item.remove(kernel)
    item.remove(kernel)
    assert item.drift(kernel) is not None
    assert_same(before, world.state())
    for line in item.commands():
        world.run(line)
    assert_same(ours, world.state())


def repair(kernel: Kernel, world: World, item: KernelObject, damage: str, drift: str) -> None:
    """Change it by hand: the difference is named, and the next ensure sets it right."""
    item = item.observed(kernel)
    wanted = settle(kernel, world, item)
    world.run(damage)
    assert drift in str(item.drift(kernel))
    item.ensure(kernel)
    assert item.drift(kernel) is None
    assert_same(wanted, world.state())


def is_lost_netns(kernel: Kernel, item: KernelObject) -> None:
    """Another netns is at the path: nothing to do, nothing touched, and it is said."""
    stranger = replace(item, netns=NetnsRef(item.netns.path, "123456789abc:1"))
    stranger.remove(kernel)
    assert "is gone" in str(stranger.drift(kernel))
