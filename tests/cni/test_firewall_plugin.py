"""``firewall``: what the host forwards for containers where others drop, and which bridges are apart.

Each runs with bridged frames passing the host's rules (bridge-nf-call-iptables 1) and without. The containers are those of
``firewall_world``, on bridges that some plugin before has made.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from cni_plugins.protocol import Code
from netlib.config import Config
from netlib.core.attachments import Attachments
from netlib.core.controller import Controller, Unwatched
from netlib.kernel.netns import entered
from tests.cni.calling import Caller
from tests.kernel.firewall_world import World, probes

ADDRESSES = {"fw-a1": ("10.1.0.2/24", "fd01::2/64"), "fw-a2": ("10.1.0.3/24", "fd01::3/64"), "fw-b1": ("10.2.0.2/24",)}
A1, A2, LAN = ("10.1.0.2", "fd01::2"), ("10.1.0.3", "fd01::3"), ("192.168.9.2", "fd09::2")
_HOOK = "{ type filter hook forward priority %d; policy drop; }"
DROPS = {
    "iptables": (["iptables", "-P", "FORWARD", "DROP"], ["ip6tables", "-P", "FORWARD", "DROP"]),
    "legacy": (["iptables-legacy", "-P", "FORWARD", "DROP"], ["ip6tables-legacy", "-P", "FORWARD", "DROP"]),
    "nftables": (["nft", "add table inet mine; add chain inet mine late " + _HOOK % 10],),
    "reject": (["nft", "add table inet mine; add chain inet mine c " + _HOOK % -10 + "; add rule inet mine c reject"],),
}


@pytest.fixture(scope="module", params=[0, 1], ids=["bridge_nf_0", "bridge_nf_1"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    world = World(request.param)
    yield world
    world.close()


@pytest.fixture
def controller(world: World, config: Config) -> Iterator[Controller]:
    """The verbs of the world's host; a test's thread stays there."""
    with entered(world.refs["host"]):
        with Controller(config, watcher=Unwatched()) as controller:
            yield controller
            controller.reset()
        for tool in ("iptables-legacy", "ip6tables-legacy"):
            world.run(tool, "-P", "FORWARD", "ACCEPT")
        world.run("nft", "flush ruleset")


def conf(container: str = "fw-a1", bridge: str = "brA", **more: Any) -> dict[str, Any]:
    interfaces = [{"name": bridge}, {"name": "v"}, {"name": "eth0", "sandbox": f"/run/netns/{container}"}]
    ips = [{"address": address, "interface": 2} for address in ADDRESSES[container]]
    previous = {"cniVersion": "1.1.0", "interfaces": interfaces, "ips": ips}
    return {"cniVersion": "1.1.0", "name": "pods", "type": "firewall", "prevResult": previous, **more}


def rules(world: World) -> list[str]:
    """Everybody's rules but ours, without counters."""
    tables = ["iptables-save", "ip6tables-save", "iptables-legacy-save", "ip6tables-legacy-save"]
    saved = "".join(world.run(tool) for tool in tables)
    listed = [line.partition(" [")[0] for line in saved.splitlines() if not line.startswith("#")]
    return [*listed, *world.run("nft", "list tables").splitlines()]


@pytest.mark.parametrize("drop", DROPS)
def test_what_others_drop_is_let_through_for_these_addresses_only(
    world: World, caller: Caller, controller: Controller, drop: str
) -> None:
    """What a container begins, and the answers to it; nobody else's, and nothing that begins outside."""
    for command in DROPS[drop]:
        world.run(*command)
    before = rules(world)
    world.closed(*probes(["a1"], LAN))
    config = conf()
    assert caller.ok("ADD", config, "fw-a1") == config["prevResult"]
    world.reached(*probes(["a1"], LAN, protocols=("tcp", "udp", "icmp")))
    world.closed(*probes(["lan"], A1), *probes(["a2"], LAN))
    caller.ok("CHECK", config, "fw-a1")
    caller.ok("ADD", conf("fw-a2"), "fw-a2")
    caller.ok("DEL", config, "fw-a1")
    caller.ok("DEL", config, "fw-a1")
    world.closed(*probes(["a1"], LAN))
    world.reached(*probes(["a2"], LAN))
    caller.ok("DEL", conf("fw-a2"), "fw-a2")
    Attachments(controller).prune()
    assert rules(world) == before


def test_a_rule_that_others_wrote_keeps_its_say(world: World, caller: Caller) -> None:
    world.run("iptables", "-A", "FORWARD", "-d", "192.168.9.2", "-p", "udp", "-j", "DROP")
    world.run("iptables", "-P", "FORWARD", "DROP")
    caller.ok("ADD", conf(), "fw-a1")
    world.reached(*probes(["a1"], ["192.168.9.2"], protocols=["tcp"]))
    world.closed(*probes(["a1"], ["192.168.9.2"], protocols=["udp"]))
    assert "-j DROP" in world.run("iptables", "-S", "FORWARD")  # which it could not list if it did not understand our rule


def test_the_mark_is_seen_by_nobody_after_the_forward_hooks(world: World, caller: Caller) -> None:
    """And a mark that somebody else has put on a packet stays."""
    world.run("nft", "add table inet mine; add chain inet mine pre { type filter hook prerouting priority -200; }")
    world.run("nft", "add rule inet mine pre meta mark set 0x42")
    world.run("nft", "add chain inet mine post { type filter hook postrouting priority -200; }")
    # Packets that pass, not the host's own questions for neighbours: for these the kernel gives the link they leave by.
    world.run("nft", "add rule inet mine post meta l4proto { tcp, udp } meta mark != 0x42 iif != 0 drop")
    caller.ok("ADD", conf(), "fw-a1")
    world.reached(*probes(["a1"], LAN))


def test_nothing_is_closed_where_nobody_drops(world: World, caller: Caller) -> None:
    caller.ok("ADD", conf(), "fw-a1")
    world.reached(*probes(["a1"], [*LAN, *A2, "10.2.0.2"]), *probes(["lan", "b1"], A1), *probes(["a2"], LAN))


def test_bridges_are_apart_as_their_policy_says(world: World, caller: Caller) -> None:
    """From a bridge with a policy to another one, in both directions; a bridge without is everybody's."""
    caller.ok("ADD", conf(ingressPolicy="same-bridge"), "fw-a1")
    world.reached(*probes(["b1"], A1), *probes(["a1"], ["10.2.0.2", *LAN]))
    caller.ok("ADD", conf("fw-b1", "brB", name="others", ingressPolicy="same-bridge"), "fw-b1")
    world.closed(*probes(["b1"], A1), *probes(["a1"], ["10.2.0.2"]))
    world.reached(*probes(["a1"], [*A2, *LAN]), *probes(["lan"], [*A1, "10.2.0.2"]))
    caller.ok("ADD", conf("fw-a2", ingressPolicy="open"), "fw-a2")  # the network's configuration has changed
    world.reached(*probes(["b1"], A1), *probes(["a1"], ["10.2.0.2"]))


def test_an_isolated_bridge_keeps_its_members_apart_where_frames_pass_the_rules(world: World, caller: Caller) -> None:
    caller.ok("ADD", conf(ingressPolicy="same-bridge"), "fw-a1")
    caller.ok("ADD", conf("fw-a2", ingressPolicy="isolated"), "fw-a2")
    bridged = world.run("cat", "/proc/sys/net/bridge/bridge-nf-call-iptables").strip() == "1"
    (world.closed if bridged else world.reached)(*probes(["a1"], A2))
    world.reached(*probes(["a1"], LAN))


def test_check_names_what_differs(world: World, caller: Caller) -> None:
    code, sentence = caller.error("CHECK", conf(), "fw-a1")
    assert (code, sentence) == (Code.DRIFT, "firewall: container fw-a1 is not recorded; ADD it again; ")
    caller.ok("ADD", conf(), "fw-a1")
    world.run("nft", "delete element inet netlib forwarded4 { 10.1.0.2 }")
    assert "forwarded4 10.1.0.2 is missing" in caller.error("CHECK", conf(), "fw-a1")[1]
    world.run("nft", "add element inet netlib forwarded4 { 10.1.0.2 }")
    world.run("iptables", "-P", "FORWARD", "DROP")
    code, sentence = caller.error("CHECK", conf(), "fw-a1")
    assert "chain ip filter FORWARD drops what CNI containers forward; type: nft" in sentence


def test_gc_and_status(world: World, caller: Caller) -> None:
    caller.ok("STATUS", conf())
    for container in ("fw-a1", "fw-a2"):
        caller.ok("ADD", conf(container), container)
    caller.ok("GC", {**conf(), "cni.dev/valid-attachments": [{"containerID": "fw-a2", "ifname": "eth0"}]})
    assert "10.1.0.2" not in (listing := world.run("nft", "list table inet netlib"))
    assert "10.1.0.3" in listing


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"prevResult": None}, "missing prevResult from earlier plugin; put it behind a plugin"),
        ({"backend": "firewalld"}, "firewall: backend firewalld is not supported; leave the key out"),
        ({"ingressPolicy": "closed"}, "firewall: ingressPolicy: expected one of "),
        (
            {"ingressPolicy": "isolated", "prevResult": {"ips": []}},
            'interface needs to be set for ingress policy "isolated", make sure to chain "firewall" plugin with "bridge"',
        ),
    ],
)
def test_what_is_refused_is_refused_before_anything_is_touched(
    world: World, caller: Caller, more: dict[str, Any], sentence: str
) -> None:
    code, told = caller.error("ADD", conf(**more), "fw-a1")
    assert code == Code.INVALID_CONFIG
    assert sentence in told
    assert world.run("nft", "list tables") == ""


def test_what_is_done_otherwise_is_told(world: World, caller: Caller) -> None:
    world.run("nft", "add table inet firewalld; add chain inet firewalld filter_FORWARD " + _HOOK % 10)
    sources = "--add-source=10.1.0.0/24 --add-source=fd01::/64"
    outcome = caller.call("ADD", conf(backend="ipfw", iptablesAdminChainName="MINE"), "fw-a1")
    assert outcome.code == 0
    assert outcome.stderr.decode().splitlines() == [
        'firewall: backend "ipfw" is not known; nftables is used',
        "firewall: chain MINE is not used; rules of yours go into chain user of table inet netlib",
        f"firewall: firewalld decides what it forwards; type: firewall-cmd --zone=trusted {sources}",
    ]


@pytest.mark.parametrize("legacy", ["", "-legacy"])
def test_del_takes_what_the_reference_left(world: World, caller: Caller, legacy: str) -> None:
    """And nothing of any other container's."""
    for tool, mine, other in ((f"iptables{legacy}", "10.1.0.2", "10.1.0.22"), (f"ip6tables{legacy}", "fd01::2", "fd01::22")):
        world.run(tool, "-N", "CNI-FORWARD")
        world.run(
            tool, "-A", "CNI-FORWARD", "-m", "comment", "--comment", "CNI firewall plugin admin overrides", "-j", "RETURN"
        )
        for address in (mine, other):
            established = ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"]
            world.run(tool, "-A", "CNI-FORWARD", "-d", address, *established, "-j", "ACCEPT")
            world.run(tool, "-A", "CNI-FORWARD", "-s", address, "-j", "ACCEPT")
        world.run(tool, "-A", "CNI-FORWARD", "-s", mine, "-p", "tcp", "--dport", "80", "-j", "ACCEPT")
    caller.ok("DEL", conf(), "fw-a1")
    for tool, mine, other in (
        (f"iptables{legacy}", "10.1.0.2/32", "10.1.0.22/32"),
        (f"ip6tables{legacy}", "fd01::2/128", "fd01::22/128"),
    ):
        left = world.run(tool, "-S", "CNI-FORWARD")
        assert (left.count(mine), left.count(other)) == (1, 2), tool
        world.run(tool, "-F")
        world.run(tool, "-X")
