"""``bandwidth``: how much of a burst of packets comes through, and what every verb does with the limits."""

import json
import socket
from typing import Any

import pytest

from cni_plugins.protocol import Code
from netlib.core.controller import Controller
from netlib.kernel.netns import entered
from netlib.model import NetnsRef
from netlib.testing.snapshot import differences, snapshot
from tests.cni.calling import Caller, run

BRIDGE = {
    "cniVersion": "1.1.0",
    "name": "pods",
    "type": "bridge",
    "isGateway": True,
    "ipam": {"type": "static", "addresses": [{"address": "10.22.0.2/16"}]},
}
SLOW = {"Rate": 8_000, "Burst": 80_000}  # a kilobyte in a second, ten at once and ten that may wait
DATAGRAMS, SIZE = 100, 1000


def conf(previous: Any, **more: Any) -> dict[str, Any]:
    return {"cniVersion": "1.1.0", "name": "pods", "type": "bandwidth", "prevResult": previous, **more}


def slow(*ways: str) -> dict[str, int]:
    return {f"{way}{key}": value for way in ways for key, value in SLOW.items()}


@pytest.fixture
def previous(caller: Caller) -> Any:
    """What the bridge plugin answers for c1, which has spoken with the host by now."""
    caller.container("c1")
    result = caller.ok("ADD", BRIDGE)
    assert caller.pings("c1", "10.22.0.1")
    return result


def dropped(ifname: str) -> int:
    """How many packets the qdisc that a link sends through has dropped."""
    (qdisc,) = [item for item in json.loads(run("tc", "-j", "-s", "qdisc", "show", "dev", ifname)) if item.get("root")]
    return int(qdisc["drops"])


def burst(source: str, to: str, receiver: str) -> int:
    """Send datagrams as fast as can be from a netns to *receiver*'s address *to*; how many had come when the last was sent."""
    places = {name: NetnsRef(f"/run/netns/{name}" if name else "") for name in (source, receiver)}
    with entered(places[receiver]):
        heard = socket.socket(type=socket.SOCK_DGRAM)
    with entered(places[source]):
        sender = socket.socket(type=socket.SOCK_DGRAM)
    with heard, sender:
        heard.bind(("0.0.0.0", 7000))
        heard.setblocking(False)
        heard.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        for _ in range(DATAGRAMS):
            sender.sendto(bytes(SIZE), (to, 7000))
        for count in range(DATAGRAMS):
            try:
                heard.recv(SIZE)
            except BlockingIOError:
                return count
    return DATAGRAMS


def to_container() -> int:
    return burst("", "10.22.0.2", "c1")


def from_container() -> int:
    return burst("c1", "10.22.0.1", "")


def host_link(result: Any) -> str:
    return str(result["interfaces"][1]["name"])


def test_what_a_container_receives_is_limited(caller: Caller, previous: Any) -> None:
    assert to_container() == DATAGRAMS
    assert caller.ok("ADD", conf(previous, **slow("ingress"))) == previous
    assert to_container() < DATAGRAMS / 2
    assert dropped(host_link(previous)) > DATAGRAMS / 2
    assert from_container() == DATAGRAMS


def test_what_a_container_sends_is_limited(caller: Caller, previous: Any) -> None:
    result = caller.ok("ADD", conf(previous, runtimeConfig={"bandwidth": slow("egress")}))
    assert result["interfaces"][:3] == previous["interfaces"]
    ifb = result["interfaces"][3]
    assert ifb["mac"] in run("ip", "link", "show", ifb["name"])
    assert from_container() < DATAGRAMS / 2
    assert dropped(ifb["name"]) > DATAGRAMS / 2
    assert to_container() == DATAGRAMS


def test_the_configurations_own_keys_count_before_the_runtimes(caller: Caller, previous: Any) -> None:
    config = conf(previous, ingressRate=0, runtimeConfig={"bandwidth": slow("ingress", "egress")})
    assert caller.ok("ADD", config) == previous
    assert to_container() == DATAGRAMS


def test_del_takes_all_back_and_may_come_twice(caller: Caller, controller: Controller, previous: Any) -> None:
    before = snapshot()
    qdiscs = run("tc", "qdisc", "show")
    config = conf(previous, **slow("ingress", "egress"))
    caller.ok("ADD", config)
    assert run("tc", "qdisc", "show") != qdiscs
    caller.ok("DEL", config)
    caller.ok("DEL", config)
    assert differences(before, snapshot()) == []
    assert run("tc", "qdisc", "show") == qdiscs
    assert (to_container(), from_container()) == (DATAGRAMS, DATAGRAMS)


def test_del_without_the_netns(caller: Caller, previous: Any) -> None:
    config = conf(previous, **slow("ingress", "egress"))
    caller.ok("ADD", config)
    caller.lose("c1")
    caller.ok("DEL", config)
    caller.ok("DEL", BRIDGE)
    assert "bwp" not in run("ip", "-br", "link")


def test_check_names_what_differs(caller: Caller, previous: Any) -> None:
    config = conf(previous, **slow("ingress", "egress"))
    code, sentence = caller.error("CHECK", config)
    assert (code, sentence) == (Code.DRIFT, "bandwidth: no limits of container c1 are recorded; ADD it again; ")
    caller.ok("ADD", config)
    caller.ok("CHECK", config)
    run("tc", "qdisc", "del", "dev", host_link(previous), "root")
    code, sentence = caller.error("CHECK", config)
    assert code == Code.DRIFT
    assert f"link {host_link(previous)} sends without limit" in sentence


def test_gc_takes_what_is_not_valid(caller: Caller, previous: Any) -> None:
    config = conf(previous, **slow("egress"))
    caller.ok("ADD", config)
    caller.ok("GC", {**config, "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]})
    assert "bwp" in run("ip", "-br", "link")
    caller.ok("GC", {**config, "cni.dev/valid-attachments": []})
    assert "bwp" not in run("ip", "-br", "link")


@pytest.mark.parametrize(
    ("limits", "code", "sentence"),
    [
        ({"ingressRate": 8000}, Code.INVALID_CONFIG, "if rate is set, burst must also be set; ingressRate is 8000"),
        ({"egressBurst": 8000}, Code.INVALID_CONFIG, "if burst is set, rate must also be set; egressBurst is 8000"),
        ({"egressRate": 8000, "egressBurst": 8 << 32}, Code.INVALID_CONFIG, "burst cannot be more than 4GB"),
        ({"egressRate": 7, "egressBurst": 80}, Code.INVALID_CONFIG, "egressRate and egressBurst are less than a byte"),
        ({"egressRate": -1, "egressBurst": 80}, Code.INVALID_CONFIG, "bandwidth: egressRate: expected `int` >= 0, got -1"),
        ({"egressRate": 1.5, "egressBurst": 80}, Code.DECODING_FAILURE, "egressRate: expected a whole number, got 1.5"),
        ({"prevResult": None, **slow("egress")}, Code.INVALID_CONFIG, "must be called as chained plugin"),
        ({"prevResult": {}, **slow("egress")}, Code.INVALID_CONFIG, "no interfaces provided"),
        (
            {"prevResult": {"interfaces": [{"name": "cni0"}]}, **slow("egress")},
            Code.INVALID_CONFIG,
            "no veth peer of container interface found in host ns; prevResult has no veth",
        ),
    ],
)
def test_what_is_refused_changes_nothing(
    caller: Caller, previous: Any, limits: dict[str, Any], code: Code, sentence: str
) -> None:
    before = snapshot()
    found = caller.error("ADD", {**conf(previous), **limits})
    assert found[0] == code
    assert sentence in found[1]
    assert differences(before, snapshot()) == []


def test_a_link_without_a_peer_on_the_host_is_refused(caller: Caller, previous: Any) -> None:
    config = conf(previous, **slow("ingress"))
    assert "container interface lo has no veth peer; it is a device" in caller.error("ADD", config, ifname="lo")[1]
    assert "container interface eth7 has no veth peer; there is none" in caller.error("ADD", config, ifname="eth7")[1]
    caller.container("c2")
    run("ip", "link", "add", "eth7", "netns", "c1", "type", "veth", "peer", "name", "eth7", "netns", "c2")
    assert "is not in host ns" in caller.error("ADD", config, ifname="eth7")[1]


def test_del_takes_what_the_reference_left(caller: Caller) -> None:
    for name in ("bwp48c5963fc74e", "bwp000000000000"):
        run("ip", "link", "add", name, "type", "ifb")
    caller.ok("DEL", conf(None))
    assert [line.split()[0] for line in run("ip", "-br", "link").splitlines()] == ["lo", "bwp000000000000"]
    run("ip", "link", "del", "bwp000000000000")
