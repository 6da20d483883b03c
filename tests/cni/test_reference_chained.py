"""``portmap``, ``firewall`` and ``bandwidth`` beside the reference's: who reaches whom, what is answered, what is refused.

The same configuration is given to the reference's binary and to ours, on one host after each other. And what the reference
has made is taken away by ours, so that as much is left as after its own DEL.
"""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cni_plugins.skel import Outcome
from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.kernel.conntrack import flush_udp
from netlib.kernel.handle import Kernel
from netlib.kernel.netns import entered
from tests.cni.calling import Caller
from tests.kernel.firewall_world import PATIENCE, World, probes

pytestmark = pytest.mark.peers

REFERENCE = Path("/usr/lib/cni")
CONTAINER = "fw-a1"
ADDRESSES = ("10.1.0.2/24", "fd01::2/64")
UPLINK = ("192.168.9.1", "fd09::1")
BOTH = [{"hostPort": 7080, "containerPort": 80, "protocol": protocol} for protocol in ("tcp", "udp")]
EVERYBODY = [
    *probes(["lan", "a1", "a2", "b1", "host", "mallory"], [*UPLINK, "10.1.0.1", "fd01::1"], 7080),
    *probes(["host", "mallory", "lan"], ["127.0.0.1"], 7080, ["tcp"]),
    *probes(["lan", "a2", "b1", "host"], ["10.1.0.2", "fd01::2"]),
    *probes(["a1"], ["192.168.9.2", "fd09::2", "10.1.0.3", "10.2.0.2", "127.0.0.1"]),
]
Plugin = Callable[[str, dict[str, Any]], Outcome]


@pytest.fixture(scope="module", params=[0, 1], ids=["bridge_nf_0", "bridge_nf_1"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    for kind in ("portmap", "firewall", "bandwidth", "bridge"):
        if not (REFERENCE / kind).is_file():
            pytest.fail(f"{REFERENCE}/{kind} is missing; install it with `apt-get install containernetworking-plugins`")
    world = World(request.param)
    yield world
    world.close()


@pytest.fixture
def controller(world: World, config: Config) -> Iterator[Controller]:
    """The verbs of the world's host, which is clean before and after; a test's thread stays there."""
    with entered(world.refs["host"]):
        _clean(world)
        with Controller(config, watcher=Unwatched()) as controller:
            yield controller
            controller.reset()
        _clean(world)


def _clean(world: World) -> None:
    world.run("nft", "flush ruleset")
    for tool in ("iptables-legacy", "ip6tables-legacy"):
        world.run(tool, "-P", "FORWARD", "ACCEPT")
    world.run("sysctl", "-qw", "net.ipv4.conf.brA.route_localnet=0")


def _forget_flows() -> None:
    """A later datagram from the same port would be one of an established flow."""
    with Kernel() as kernel:
        flush_udp(kernel, (80, 7080))


def conf(kind: str, **more: Any) -> dict[str, Any]:
    interfaces = [{"name": "brA"}, {"name": "v-a1"}, {"name": "eth0", "sandbox": f"/run/netns/{CONTAINER}"}]
    ips = [{"address": address, "interface": 2} for address in ADDRESSES]
    previous = {"cniVersion": "1.0.0", "interfaces": interfaces, "ips": ips}
    return {"cniVersion": "1.0.0", "name": "pods", "type": kind, "prevResult": previous, **more}


def theirs(verb: str, config: dict[str, Any], container: str = CONTAINER) -> Outcome:
    environ = {
        "PATH": os.environ["PATH"],
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": container,
        "CNI_NETNS": f"/run/netns/{container}",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(REFERENCE),
    }
    done = subprocess.run(
        [REFERENCE / config["type"]], env=environ, input=json.dumps(config).encode(), capture_output=True, timeout=20
    )
    return Outcome(done.stdout, done.returncode, done.stderr)


def seen(world: World, plugin: Plugin, config: dict[str, Any], wait: float) -> tuple[Any, list[str | None]]:
    """What a plugin answers to an ADD, and who then reaches whom within *wait* seconds; it is taken back again."""
    outcome = plugin("ADD", config)
    assert outcome.code == 0, outcome.stdout.decode()
    found = world.answers(*EVERYBODY, wait=wait)
    assert plugin("DEL", config).code == 0
    _forget_flows()
    return json.loads(outcome.stdout), found


def compared(world: World, caller: Caller, config: dict[str, Any]) -> list[str]:
    """The probes that end otherwise, as "source protocol address: theirs / ours"; the results are the same.

    One difference is meant: a link that lets loopback addresses pass (route_localnet, which the reference sets) does so for
    others too, and theirs then lets neighbours in that send to the host's 127.0.0.1. Ours never does.
    """

    def ours(verb: str, config: dict[str, Any]) -> Outcome:
        return caller.call(verb, config, CONTAINER)

    unmeant: list[str] = []
    for wait in (0.6, PATIENCE):  # what differs because an answer was slow is asked again, with more patience
        (result, answers), (own_result, own_answers) = seen(world, theirs, config, wait), seen(world, ours, config, wait)
        assert own_result == result
        differing = [found for found in zip(EVERYBODY, answers, own_answers, strict=True) if found[1] != found[2]]
        unmeant = [
            f"{probe.source} {probe.protocol} {probe.address}: {their_own} / {our_own}"
            for probe, their_own, our_own in differing
            if our_own is not None or (probe.source, probe.address) not in (("mallory", "127.0.0.1"), ("lan", "127.0.0.1"))
        ]
        if not unmeant:
            break
    return unmeant


@pytest.mark.parametrize(
    "more",
    [
        {"runtimeConfig": {"portMappings": BOTH}},
        {"runtimeConfig": {"portMappings": BOTH}, "backend": "iptables"},
        {"runtimeConfig": {"portMappings": BOTH}, "markMasqBit": 5},
        {"runtimeConfig": {"portMappings": BOTH}, "snat": False},
        {"runtimeConfig": {"portMappings": [{**entry, "hostIP": "192.168.9.1"} for entry in BOTH]}},
        {"runtimeConfig": {"portMappings": [{**entry, "hostIP": "127.0.0.1"} for entry in BOTH]}},
        {"runtimeConfig": {"portMappings": [{**entry, "hostIP": "fd09::1"} for entry in BOTH]}},
        {"runtimeConfig": {"portMappings": [{**entry, "hostIP": "0.0.0.0"} for entry in BOTH]}},
        {"runtimeConfig": {"portMappings": [{**entry, "hostIP": "::"} for entry in BOTH]}},
        {"runtimeConfig": {"portMappings": []}},
    ],
    ids=["plain", "iptables", "mark", "no_snat", "uplink", "loopback", "uplink6", "all4", "all6", "none"],
)
def test_portmap_reaches_whom_the_references_does(world: World, caller: Caller, more: dict[str, Any]) -> None:
    assert compared(world, caller, conf("portmap", **more)) == []


@pytest.mark.parametrize("policy", ["ACCEPT", "DROP"])
@pytest.mark.parametrize("ingress", ["open", "same-bridge"])
def test_firewall_forwards_for_whom_the_references_does(world: World, caller: Caller, policy: str, ingress: str) -> None:
    for tool in ("iptables", "ip6tables"):
        world.run(tool, "-P", "FORWARD", policy)
    assert compared(world, caller, conf("firewall", ingressPolicy=ingress)) == []


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("portmap", {}),
        ("portmap", {"markMasqBit": 32}),
        ("portmap", {"markMasqBit": 5, "externalSetMarkChain": "MINE"}),
        ("portmap", {"runtimeConfig": {"portMappings": [{"hostPort": 0, "containerPort": 80, "protocol": "tcp"}]}}),
        ("portmap", {"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": -1, "protocol": "tcp"}]}}),
        ("firewall", {}),
        ("bandwidth", {"ingressRate": 8, "ingressBurst": 8}),
        ("bandwidth", {"ingressRate": 8}),
        ("bandwidth", {"egressBurst": 8}),
        ("bandwidth", {"egressRate": 8, "egressBurst": 8 * 2**32}),
    ],
)
def test_what_the_reference_refuses_is_refused_in_its_words(
    world: World, caller: Caller, kind: str, more: dict[str, Any]
) -> None:
    """Without a result of a plugin before, which is what some of them miss."""
    config = {**conf(kind, **more), "prevResult": None}
    outcome = theirs("ADD", config)
    refused = json.loads(outcome.stdout)["msg"].removeprefix("failed to parse config: ")
    assert outcome.code == 1
    assert caller.error("ADD", config, CONTAINER)[1].startswith(refused)


RATES = {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 400_000_000, "egressBurst": 1_200_000}


def test_bandwidth_sets_what_the_references_does(world: World, caller: Caller) -> None:
    config = conf("bandwidth", **RATES)
    found = []
    for plugin in (theirs, lambda verb, config: caller.call(verb, config, CONTAINER)):
        result = json.loads(plugin("ADD", config).stdout)
        ifb = result["interfaces"][-1]["name"]
        shaped = [_bucket(ifname) for ifname in ("v-a1", ifb)]
        found.append((result["interfaces"][:-1], shaped, ifb[:3], sorted(result["interfaces"][-1])))
        assert plugin("DEL", config).code == 0
        world.run("sh", "-c", "tc qdisc del dev v-a1 root; tc qdisc del dev v-a1 ingress; true")  # theirs leaves them
    assert found[0] == found[1]


def _bucket(ifname: str) -> dict[str, Any]:
    told = subprocess.run(["tc", "-j", "qdisc", "show", "dev", ifname, "root"], check=True, capture_output=True).stdout
    (qdisc,) = json.loads(told)
    return {key: qdisc["options"][key] for key in ("rate", "burst", "lat")} | {"kind": qdisc["kind"]}


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("portmap", {"runtimeConfig": {"portMappings": BOTH}}),
        ("firewall", {"ingressPolicy": "same-bridge"}),
        ("bandwidth", {"egressRate": 80_000, "egressBurst": 80_000}),
    ],
)
def test_our_del_leaves_as_much_of_the_references_as_its_own(
    world: World, caller: Caller, kind: str, more: dict[str, Any]
) -> None:
    """Chains that all containers share; of this one nothing, and all of the other's."""
    config = conf(kind, **more)
    other = {
        **config,
        "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.9/24"}], "interfaces": [{"name": "brA"}]},
    }
    left = []
    for delete in (theirs, lambda verb, config: caller.call(verb, config, CONTAINER)):
        assert theirs("ADD", config).code == 0
        if kind != "bandwidth":
            assert theirs("ADD", other, "fw-a2").code == 0
        assert delete("DEL", config).code == 0
        left.append(_rules(world))
        theirs("DEL", other, "fw-a2")
        world.run("nft", "flush ruleset")
        world.run("sh", "-c", "tc qdisc del dev v-a1 ingress; true")
    assert left[0] == left[1]


@pytest.mark.parametrize("verb", ["DEL", "GC"])
def test_masquerading_by_the_reference_goes_with_its_container(world: World, caller: Caller, tmp_path: Path, verb: str) -> None:
    """Its bridge has made it; GC knows the container by its lease alone."""
    world.run("sh", "-c", "ip netns add fw-c1; ip netns add fw-c2")
    ranges = [[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd99::/64"}]]
    ipam = {"type": "host-local", "dataDir": str(tmp_path), "ranges": ranges}
    config = {"cniVersion": "1.0.0", "name": "pods", "type": "bridge", "bridge": "brZ", "ipMasq": True, "ipam": ipam}
    outcome = theirs("ADD", {**config, "name": "others"}, "fw-c2")
    assert outcome.code == 0, outcome.stdout
    before = _rules(world)
    assert theirs("ADD", config, "fw-c1").code == 0
    assert _rules(world) != before
    for _ in range(2):
        caller.ok(verb, {**config, "cniVersion": "1.1.0", "cni.dev/valid-attachments": []}, "fw-c1")
    assert _rules(world) == before
    assert list((tmp_path / "pods").glob("*99*")) == []
    world.run("sh", "-c", "ip netns del fw-c1; ip netns del fw-c2; ip link del brZ")


def _rules(world: World) -> list[str]:
    saved = world.run("iptables-save") + world.run("ip6tables-save") + world.run("ip", "-br", "link", "show", "type", "ifb")
    return [line.partition(" [")[0] for line in saved.splitlines() if not line.startswith("#")]
