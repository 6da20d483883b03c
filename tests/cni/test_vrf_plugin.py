"""``vrf``: a VRF made by the first interface in it and removed with the last, its routes with it."""

import json
import subprocess
from typing import Any

import pytest

from cni_plugins.protocol import Code
from netlib.core.controller import Controller
from netlib.errors import KernelError
from netlib.kernel.netns import identity_of_path
from netlib.model import NetnsRef
from netlib.testing.snapshot import Snapshot, differences, snapshot
from tests.cni.calling import Caller, run

pytestmark = pytest.mark.needs_link_kind("vrf")


def bridge(network: int, **more: Any) -> dict[str, Any]:
    addresses = [{"address": f"10.{network}.0.2/16"}, {"address": f"fd00:{network}::2/64"}]
    ipam = {"type": "static", "addresses": addresses, "routes": [{"dst": f"10.9{network}.0.0/16"}]}
    config = {"cniVersion": "1.1.0", "name": f"net{network}", "type": "bridge", "bridge": f"br{network}", "ipam": ipam}
    return {**config, "isDefaultGateway": network == 1, "isGateway": True, **more}


def vrf(previous: dict[str, Any] | None, network: int = 1, **more: Any) -> dict[str, Any]:
    config = {"cniVersion": "1.1.0", "name": f"net{network}", "type": "vrf", "vrfname": "red", **more}
    return config if previous is None else {**config, "prevResult": previous}


def inside() -> Snapshot:
    """What the container's netns holds, but for the rules that the kernel adds with the first VRF and never takes away."""
    path = "/run/netns/c1"
    found = snapshot(NetnsRef(path, identity_of_path(path)))
    return {**found, "rules": {name: text for name, text in found["rules"].items() if "l3mdev" not in name}}


def links() -> list[str]:
    return [line.split()[0].partition("@")[0] for line in run("ip", "-n", "c1", "-br", "link").splitlines()]


@pytest.fixture
def first(caller: Caller) -> dict[str, Any]:
    """What the bridge plugin answered for eth0 of c1."""
    caller.container("c1")
    result: dict[str, Any] = caller.ok("ADD", bridge(1))
    return result


def test_the_interface_its_addresses_and_routes_are_in_the_vrf(caller: Caller, first: dict[str, Any]) -> None:
    assert caller.ok("ADD", vrf(first, table=10)) == first
    assert "vrf table 10" in run("ip", "-n", "c1", "-d", "link", "show", "red")
    assert "master red" in run("ip", "-n", "c1", "link", "show", "eth0")
    shown = run("ip", "-n", "c1", "addr", "show", "eth0")
    assert "10.1.0.2/16" in shown
    assert "fd00:1::2/64" in shown
    for version, words in (("-4", ("default via 10.1.0.1", "10.91.0.0/16 via 10.1.0.1")), ("-6", ("default via fd00:1::1",))):
        table = run("ip", "-n", "c1", version, "route", "show", "vrf", "red")
        assert all(word in table for word in words)
        assert "default" not in run("ip", "-n", "c1", version, "route")
    for address in ("10.1.0.1", "fd00:1::1"):
        run("ip", "netns", "exec", "c1", "ping", "-I", "red", "-c1", "-W2", address)


def test_del_brings_all_back_and_may_come_twice(caller: Caller, first: dict[str, Any]) -> None:
    before = inside()
    caller.ok("ADD", vrf(first))
    assert differences(before, inside())
    caller.ok("DEL", vrf(first))
    caller.ok("DEL", vrf(first))
    assert differences(before, inside()) == []
    assert caller.pings("c1", "10.1.0.1")


def test_the_vrf_stays_until_its_last_interface_goes(caller: Caller, first: dict[str, Any]) -> None:
    second = caller.ok("ADD", bridge(2), ifname="eth1")
    caller.ok("ADD", vrf(first, table=7))
    code, sentence = caller.error("ADD", vrf(second, 2, table=8), ifname="eth1")
    assert (code, "already exist with different routing table 7" in sentence) == (Code.CONFLICT, True)
    caller.ok("ADD", vrf(second, 2), ifname="eth1")
    assert run("ip", "-n", "c1", "-br", "link", "show", "master", "red").count("eth") == 2
    caller.ok("DEL", vrf(first))
    assert "red" in links()
    caller.ok("DEL", vrf(second, 2), ifname="eth1")
    assert "red" not in links()


def test_a_vrf_of_somebody_else_stays(caller: Caller, first: dict[str, Any]) -> None:
    run("ip", "-n", "c1", "link", "add", "red", "type", "vrf", "table", "44")
    run("ip", "-n", "c1", "link", "set", "red", "up")
    assert "has table 44, not 45" in caller.error("ADD", vrf(first, table=45))[1]
    caller.ok("ADD", vrf(first))
    caller.ok("DEL", vrf(first))
    assert "red" in links()


def test_del_when_the_link_or_the_netns_has_gone_before(caller: Caller, first: dict[str, Any]) -> None:
    caller.ok("ADD", vrf(first))
    caller.ok("DEL", bridge(1))
    caller.ok("DEL", vrf(first))
    assert links() == ["lo"]
    first = caller.ok("ADD", bridge(1))
    caller.ok("ADD", vrf(first))
    caller.lose("c1")
    caller.ok("DEL", vrf(None))


def test_check_of_the_chain_sees_changes_by_hand_alone(caller: Caller, first: dict[str, Any]) -> None:
    caller.ok("ADD", vrf(first))
    chain = [{**bridge(1), "prevResult": first}, vrf(first)]
    for config in chain:
        caller.ok("CHECK", config)
    run("ip", "-n", "c1", "route", "del", "default", "vrf", "red")
    assert "default4 is missing" in caller.error("CHECK", chain[1])[1]
    run("ip", "-n", "c1", "addr", "del", "10.1.0.2/16", "dev", "eth0")
    assert "10.1.0.2/16 is missing" in caller.error("CHECK", chain[0])[1]
    run("ip", "-n", "c1", "link", "set", "eth0", "nomaster")
    assert "eth0 is not in VRF red" in caller.error("CHECK", chain[1])[1]


def test_a_macvlan_in_a_vrf_with_another_mtu(caller: Caller) -> None:
    caller.container("peer")
    caller.container("c1")
    run("ip", "link", "add", "lan0", "type", "veth", "peer", "name", "eth0", "netns", "peer")
    run("ip", "-n", "peer", "addr", "add", "192.0.2.1/24", "dev", "eth0")
    run("ip", "-n", "peer", "link", "set", "eth0", "up")
    run("ip", "link", "set", "lan0", "up")
    ipam = {
        "type": "static",
        "addresses": [{"address": "192.0.2.2/24", "gateway": "192.0.2.1"}],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    macvlan = {"cniVersion": "1.1.0", "name": "lan", "type": "macvlan", "master": "lan0", "mtu": 1450, "ipam": ipam}
    tuned = {"cniVersion": "1.1.0", "name": "lan", "type": "tuning", "mtu": 1400, "mac": "02:00:00:00:00:0b"}
    enslaved = {"cniVersion": "1.1.0", "name": "lan", "type": "vrf", "vrfname": "red"}
    result = caller.ok("ADD", macvlan)
    result = caller.ok("ADD", {**tuned, "prevResult": result})
    result = caller.ok("ADD", {**enslaved, "prevResult": result})
    run("ip", "netns", "exec", "c1", "ping", "-I", "red", "-c1", "-W2", "192.0.2.1")
    for config in (macvlan, tuned, enslaved):
        caller.ok("CHECK", {**config, "prevResult": result})
    run("ip", "-n", "c1", "link", "set", "eth0", "mtu", "1300")
    caller.ok("CHECK", {**macvlan, "prevResult": result})
    assert "has mtu 1300, not 1400" in caller.error("CHECK", {**tuned, "prevResult": result})[1]
    for config in (enslaved, tuned, macvlan):
        caller.ok("DEL", config)
    assert links() == ["lo"]
    run("ip", "link", "del", "lan0")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"prevResult": None}, "Required prevResult missing"),
        ({"vrfname": ""}, "configuration is expected to have a valid vrf name"),
        ({"vrfname": "no/name"}, "no/name"),
        ({"vrfname": "eth0"}, "is no VRF"),
        ({"table": -1}, "vrf: table"),
    ],
)
def test_what_is_refused_changes_nothing(caller: Caller, first: dict[str, Any], more: dict[str, Any], expected: str) -> None:
    before = inside()
    assert expected in caller.error("ADD", {**vrf(first), **more})[1]
    assert differences(before, inside()) == []


def test_an_interface_that_has_another_master(caller: Caller, first: dict[str, Any]) -> None:
    run("ip", "-n", "c1", "link", "add", "blue", "type", "bridge")
    run("ip", "-n", "c1", "link", "set", "eth0", "master", "blue")
    assert "belongs to blue already" in caller.error("ADD", vrf(first))[1]
    assert "red" not in links()
    assert "master blue" in run("ip", "-n", "c1", "link", "show", "eth0")


def test_what_the_reference_left_is_taken_by_the_configuration_alone(caller: Caller, first: dict[str, Any]) -> None:
    run("ip", "-n", "c1", "link", "add", "red", "type", "vrf", "table", "44")
    run("ip", "-n", "c1", "link", "add", "other", "type", "bridge")
    for name in ("eth0", "other"):
        run("ip", "-n", "c1", "link", "set", name, "master", "red")
    caller.ok("CHECK", vrf(first))
    caller.ok("DEL", vrf(first))
    assert "red" in links()
    assert "master" not in run("ip", "-n", "c1", "link", "show", "eth0")
    caller.ok("DEL", vrf(first), ifname="other")
    assert "red" not in links()


def test_every_step_that_fails_undoes_all(
    caller: Caller, controller: Controller, first: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = inside()
    for fatal in ("vrf", "enslaved"):

        def fail(moment: str, item: Any, fatal: str = fatal) -> None:
            if moment == "ensured" and item.__struct_config__.tag == fatal:
                raise KernelError("a failure that was asked for")

        monkeypatch.setattr(controller.engine, "observer", fail)
        assert "asked for" in caller.error("ADD", vrf(first))[1]
        assert differences(before, inside()) == []


@pytest.mark.peers
def test_the_reference_makes_the_same(caller: Caller, first: dict[str, Any]) -> None:
    def seen() -> list[list[str]]:
        questions = ("-4 route", "-6 route", "-d -br link show type vrf", "-br addr show eth0")
        texts = [run("ip", "-n", "c1", *question.split()) for question in questions]
        return [sorted(word for word in text.split() if word.count(":") != 5) for text in texts]  # a VRF's MAC is random

    config = {**vrf({**first, "cniVersion": "1.0.0"}), "cniVersion": "1.0.0"}
    ours = caller.ok("ADD", config)
    state = seen()
    caller.ok("DEL", config)
    environ = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/run/netns/c1",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/",
    }
    asked = json.dumps(config)
    done = subprocess.run(["/usr/lib/cni/vrf"], env=environ, input=asked, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ours
    assert seen() == state
    caller.ok("DEL", config)
    assert "red" not in links()
