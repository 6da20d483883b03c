"""What ``bridge`` can besides: VLANs, promiscuous mode, and ports that may have one MAC address only."""

import json
import subprocess
from typing import Any

import pytest

from cni_plugins.protocol import Code
from netlib.core.controller import Controller
from netlib.errors import KernelError
from netlib.testing.snapshot import differences, snapshot
from tests.cni.calling import Caller, run

needs_vlans = pytest.mark.needs_link_kind("bridge_vlan_filtering")
NATIVE = ["PVID", "Egress Untagged"]


def bridge(number: int = 2, name: str = "pods", network: int = 22, **more: Any) -> dict[str, Any]:
    ipam = {
        "type": "static",
        "addresses": [{"address": f"10.{network}.0.{number}/16"}, {"address": f"fd00:{network}::{number}/64"}],
    }
    return {"cniVersion": "1.1.0", "name": name, "type": "bridge", "isGateway": True, "ipam": ipam, **more}


def vlans_of(ifname: str) -> dict[str, list[str]]:
    """The VLANs of a bridge port with their flags."""
    (port,) = json.loads(run("bridge", "-j", "vlan", "show", "dev", ifname))
    return {str(entry["vlan"]): entry.get("flags", []) for entry in port["vlans"]}


# --- VLANs ---------------------------------------------------------------------------------------------------------------


@needs_vlans
def test_vlans_of_one_bridge_are_apart_and_each_has_its_gateway(caller: Caller) -> None:
    for name, number, network, vlan in (("c1", 2, 22, 100), ("c2", 3, 22, 100), ("c3", 2, 23, 200), ("c4", 4, 22, 200)):
        caller.container(name)
        result = caller.ok("ADD", bridge(number, f"vlan{vlan}-{network}", network, vlan=vlan, isGateway=name != "c4"), name)
        assert vlans_of(result["interfaces"][1]["name"]) == {str(vlan): NATIVE}
        if name != "c4":
            assert result["interfaces"][3]["name"] == f"cni0.{vlan}"
            assert result["interfaces"][3]["mac"] in run("ip", "link", "show", f"cni0.{vlan}")
    assert caller.pings("c1", "10.22.0.3")
    assert caller.pings("c1", "10.22.0.1")
    assert caller.pings("c1", "fd00:22::1")
    assert caller.pings("c3", "10.23.0.1")
    assert not caller.pings("c1", "10.22.0.4"), "of its subnet, in another VLAN"
    assert "10.22.0.1/16" in run("ip", "addr", "show", "cni0.100")
    assert "inet " not in run("ip", "addr", "show", "cni0")


@needs_vlans
def test_all_of_a_vlan_goes_with_its_networks(caller: Caller, controller: Controller) -> None:
    before = snapshot()
    for name, number in (("c1", 2), ("c2", 3)):
        caller.container(name)
        caller.ok("ADD", bridge(number, f"net-{name}", vlan=100), name)
    caller.ok("DEL", bridge(2, "net-c1", vlan=100))
    assert caller.pings("c2", "10.22.0.1")
    caller.ok("DEL", bridge(3, "net-c2", vlan=100), "c2")
    controller.reset()
    assert differences(before, snapshot()) == []


@needs_vlans
@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"vlanTrunk": [{"minID": 20, "maxID": 22}, {"id": 30}]}, {"1": NATIVE, "20": [], "21": [], "22": [], "30": []}),
        ({"vlan": 10, "vlanTrunk": [{"id": 30}]}, {"10": NATIVE, "30": []}),
        ({"vlan": 10, "preserveDefaultVlan": True}, {"1": ["Egress Untagged"], "10": NATIVE}),
        ({"vlanTrunk": []}, {"1": NATIVE}),
    ],
)
def test_vlans_of_a_port(caller: Caller, more: dict[str, Any], expected: dict[str, list[str]]) -> None:
    caller.container("c1")
    config = bridge(isGateway=False, **more)
    result = caller.ok("ADD", config)
    port = result["interfaces"][1]["name"]
    assert vlans_of(port) == expected
    assert "vlan_filtering 1" in run("ip", "-d", "link", "show", "cni0")
    caller.ok("CHECK", {**config, "prevResult": result})
    if more != {"vlanTrunk": []}:
        run("bridge", "vlan", "add", "dev", port, "vid", "77")
        code, sentence = caller.error("CHECK", {**config, "prevResult": result})
        assert (code, "77" in sentence) == (Code.DRIFT, True)


@needs_vlans
def test_networks_with_and_without_vlans_share_a_bridge_that_was_there(caller: Caller, controller: Controller) -> None:
    run("ip", "link", "add", "cni0", "type", "bridge")
    before = snapshot()
    for name, number, more in (("c1", 2, {}), ("c2", 3, {"vlan": 100})):
        caller.container(name)
        caller.ok("ADD", bridge(number, f"net-{name}", network=20 + number, **more), name)
    assert caller.pings("c1", "10.22.0.1")
    assert caller.pings("c2", "10.23.0.1")
    assert "vlan_filtering 1" in run("ip", "-d", "link", "show", "cni0")
    caller.clear()
    controller.reset()
    assert "vlan_filtering 0" in run("ip", "-d", "link", "show", "cni0")
    assert differences(before, snapshot()) == []
    run("ip", "link", "del", "cni0")


@needs_vlans
def test_a_gateway_link_that_the_reference_left_will_do(caller: Caller) -> None:
    run("ip", "link", "add", "cni0", "type", "bridge", "vlan_filtering", "1")
    run("ip", "link", "add", "vethgw", "type", "veth", "peer", "name", "cni0.100")
    run("ip", "link", "set", "vethgw", "master", "cni0")
    run("bridge", "vlan", "add", "dev", "vethgw", "vid", "100", "pvid", "untagged")
    for name in ("vethgw", "cni0.100"):
        run("ip", "link", "set", name, "up")
    caller.container("c1")
    result = caller.ok("ADD", bridge(vlan=100))
    assert result["interfaces"][3]["mac"] in run("ip", "link", "show", "cni0.100")
    assert caller.pings("c1", "10.22.0.1")
    caller.ok("DEL", bridge(vlan=100))
    assert "cni0.100" in run("ip", "-br", "link")
    for name in ("vethgw", "cni0"):
        run("ip", "link", "del", name)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"vlan": 4095}, "invalid VLAN ID 4095 (must be between 0 and 4094)"),
        ({"vlan": -1}, "invalid VLAN ID -1"),
        ({"vlanTrunk": [{"minID": 0, "maxID": 5}]}, "incorrect trunk minID parameter"),
        ({"vlanTrunk": [{"minID": 1, "maxID": 4095}]}, "incorrect trunk maxID parameter"),
        ({"vlanTrunk": [{"id": 0}]}, "incorrect trunk id parameter"),
        ({"vlanTrunk": [{"minID": 7, "maxID": 5}]}, "minID is greater than maxID in trunk parameter"),
        ({"vlanTrunk": [{"minID": 7}]}, "minID and maxID should be configured simultaneously, maxID is missing"),
        ({"vlanTrunk": [{"maxID": 7}]}, "minID and maxID should be configured simultaneously, minID is missing"),
        ({"vlan": 100, "bridge": "a-long-bridge"}, "a-long-bridge.100"),
    ],
)
def test_what_is_refused_changes_nothing(caller: Caller, more: dict[str, Any], expected: str) -> None:
    caller.container("c1")
    before = snapshot()
    assert expected in caller.error("ADD", bridge(**more))[1]
    assert differences(before, snapshot()) == []


# --- promiscuous mode ----------------------------------------------------------------------------------------------------


def test_a_bridge_is_promiscuous_while_a_network_asks_for_it(caller: Caller, controller: Controller) -> None:
    run("ip", "link", "add", "cni0", "type", "bridge")
    caller.container("c1")
    caller.container("c2")
    previous = caller.ok("ADD", bridge(2, "a", promiscMode=True))
    caller.ok("ADD", bridge(3, "b"), "c2")
    assert "PROMISC" in run("ip", "link", "show", "cni0")
    run("ip", "link", "set", "cni0", "promisc", "off")
    assert "promisc off, not on" in caller.error("CHECK", {**bridge(2, "a", promiscMode=True), "prevResult": previous})[1]
    run("ip", "link", "set", "cni0", "promisc", "on")
    caller.ok("DEL", bridge(2, "a", promiscMode=True))
    caller.ok("DEL", bridge(3, "b"), "c2")
    controller.reset()
    assert "PROMISC" not in run("ip", "link", "show", "cni0")
    run("ip", "link", "del", "cni0")


@pytest.mark.parametrize("more", [{}, pytest.param({"vlan": 100}, marks=needs_vlans)], ids=["plain", "vlan"])
def test_every_step_that_fails_undoes_all(
    caller: Caller, controller: Controller, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    caller.container("c1")
    config = bridge(macspoofchk=True, promiscMode=True, **more)
    before = snapshot()
    steps: list[str] = []
    monkeypatch.setattr(controller.engine, "observer", lambda moment, item: steps.append(moment))
    caller.ok("ADD", config)
    caller.ok("DEL", config)
    controller.reset()
    assert steps.count("ensured") > 5
    for fatal in range(steps.count("ensured")):
        seen = 0

        def fail(moment: str, item: object, fatal: int = fatal) -> None:
            nonlocal seen
            seen += moment == "ensured"
            if moment == "ensured" and seen > fatal:
                raise KernelError("a failure that was asked for")

        monkeypatch.setattr(controller.engine, "observer", fail)
        assert "asked for" in caller.error("ADD", config)[1]
        assert differences(before, snapshot()) == []


# --- MAC addresses of ports ----------------------------------------------------------------------------------------------


def test_a_port_sends_from_its_own_mac_address_only(caller: Caller, controller: Controller) -> None:
    before = snapshot()
    previous = {}
    for name, number, checked in (("c1", 2, True), ("c2", 3, True), ("c3", 4, False)):
        caller.container(name)
        previous[name] = caller.ok("ADD", bridge(number, macspoofchk=checked), name)
    config = {**bridge(2, macspoofchk=True), "prevResult": previous["c1"]}
    caller.ok("CHECK", config)
    for name in ("c1", "c2", "c3"):
        assert caller.pings(name, "10.22.0.1")
        run("ip", "-n", name, "link", "set", "eth0", "address", f"02:00:00:00:99:0{name[1]}")
        run("ip", "-n", name, "neigh", "flush", "all")
    assert [caller.pings(name, "10.22.0.1") for name in ("c1", "c2", "c3")] == [False, False, True]
    for name, number in (("c1", 2), ("c3", 4)):
        run("ip", "-n", name, "link", "set", "eth0", "address", previous[name]["interfaces"][2]["mac"])
        caller.ok("CHECK", {**bridge(number, macspoofchk=name == "c1"), "prevResult": previous[name]}, name)
    assert caller.pings("c1", "10.22.0.1")
    port, mac = previous["c1"]["interfaces"][1]["name"], previous["c1"]["interfaces"][2]["mac"]
    run("nft", "delete", "element", "bridge", "netlib", "macs", f'{{ "{port}" . {mac} }}')
    assert f"bridge port {port} may send from other MAC addresses" in caller.error("CHECK", config)[1]
    run("nft", "flush", "chain", "bridge", "netlib", "prerouting")
    assert "has other rules than ours" in caller.error("CHECK", config)[1]
    for name in ("c1", "c2", "c3"):
        caller.ok("DEL", bridge(2, macspoofchk=True), name)
    caller.ok("DEL", bridge(2, macspoofchk=True))
    listing = json.loads(run("nft", "-j", "list", "table", "bridge", "netlib"))["nftables"]
    listing = json.loads(run("nft", "-j", "list", "table", "bridge", "netlib"))["nftables"]
    assert [entry["set"]["name"] for entry in listing if "elem" in entry.get("set", {})] == []
    controller.reset()
    assert differences(before, snapshot()) == []


def test_entries_of_ports_go_although_the_table_was_deleted(caller: Caller, controller: Controller) -> None:
    caller.container("c1")
    before = snapshot()
    caller.ok("ADD", bridge(macspoofchk=True))
    run("nft", "delete", "table", "bridge", "netlib")
    caller.ok("DEL", bridge(macspoofchk=True))
    controller.reset()
    assert differences(before, snapshot()) == []


@pytest.mark.peers
def test_what_the_reference_left_goes_with_del(caller: Caller) -> None:
    """As ``pkg/link/spoofcheck.go`` of the reference names it."""
    caller.container("c1")
    lines = ["add table bridge nat", "add chain bridge nat PREROUTING { type filter hook prerouting priority -300; }"]
    for name in ("c1-eth0", "c1-eth1"):
        chain = f"cni-br-iface-{name}"
        lines += [f"add chain bridge nat {chain}", f"add chain bridge nat {chain}-mac"]
        lines += [f'add rule bridge nat PREROUTING iifname "veth1" jump {chain} comment "macspoofchk-{name}"']
        lines += [f'add rule bridge nat {chain} jump {chain}-mac comment "macspoofchk-{name}"']
        lines += [f'add rule bridge nat {chain}-mac drop comment "macspoofchk-{name}"']
    subprocess.run(["nft", "-f", "-"], input="\n".join(lines), text=True, check=True)
    caller.ok("DEL", bridge(macspoofchk=True))
    caller.ok("DEL", bridge(macspoofchk=True))
    listing = run("nft", "list", "ruleset")
    assert "c1-eth0" not in listing
    assert listing.count("c1-eth1") >= 5
    run("nft", "delete", "table", "bridge", "nat")
    caller.ok("DEL", bridge(macspoofchk=True))
