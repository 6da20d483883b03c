"""``tuning``: what it changes, what it gives back, and that the plugins before it do not take its changes for drift."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cni_plugins.protocol import Code
from netlib.core.controller import Controller
from netlib.errors import KernelError
from netlib.kernel.netns import identity_of_path
from netlib.model import NetnsRef
from netlib.testing.snapshot import Snapshot, differences, snapshot
from netlib.verbs.perform import perform
from tests.cni.calling import Caller, run

ADDRESSES = [{"address": "10.22.0.2/16"}, {"address": "fd00:22::2/64"}]
BRIDGE: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "name": "pods",
    "type": "bridge",
    "isDefaultGateway": True,
    "ipam": {"type": "static", "addresses": ADDRESSES},
}
MAC = "02:00:00:00:00:0a"
ALL = {"mac": MAC, "mtu": 1400, "promisc": True, "allmulti": True, "txQLen": 77}
SYSCTLS = {"net.ipv4.conf.IFNAME.arp_notify": "1", "net/ipv4/tcp_syncookies": "2", "net.ipv6.conf.IFNAME.accept_dad": "1"}
ALLOWLIST = Path("/etc/cni/tuning/allowlist.conf")


def tuning(**more: Any) -> dict[str, Any]:
    return {"cniVersion": "1.1.0", "name": "pods", "type": "tuning", **more}


def inside(container: str = "c1") -> Snapshot:
    path = f"/run/netns/{container}"
    return snapshot(NetnsRef(path, identity_of_path(path)))


def sysctl(name: str, container: str = "c1") -> str:
    return run("ip", "netns", "exec", container, "sysctl", "-n", name).strip()


@pytest.fixture
def bridged(caller: Caller) -> dict[str, Any]:
    """What the bridge plugin answered for container c1."""
    caller.container("c1")
    result: dict[str, Any] = caller.ok("ADD", BRIDGE)
    return result


@pytest.fixture
def allowed() -> Iterator[Path]:
    """The host's list of allowed sysctls, gone after the test."""
    ALLOWLIST.parent.mkdir(parents=True, exist_ok=True)
    yield ALLOWLIST
    ALLOWLIST.unlink(missing_ok=True)


def test_link_and_sysctls_are_as_asked_and_the_result_says_so(caller: Caller, bridged: dict[str, Any]) -> None:
    result = caller.ok("ADD", tuning(**ALL, sysctl=SYSCTLS, prevResult=bridged))
    expected = json.loads(json.dumps(bridged))
    expected["interfaces"][2]["mac"] = MAC
    assert result == expected
    shown = run("ip", "-n", "c1", "-d", "link", "show", "eth0")
    for word in (MAC, "mtu 1400", "PROMISC", "ALLMULTI", "qlen 77"):
        assert word in shown
    assert [sysctl(name) for name in ("net.ipv4.conf.eth0.arp_notify", "net.ipv4.tcp_syncookies")] == ["1", "2"]
    assert caller.pings("c1", "10.22.0.1")


def test_an_mtu_that_was_told_is_told_anew(caller: Caller, bridged: dict[str, Any]) -> None:
    bridged["interfaces"][2]["mtu"] = 1500
    result = caller.ok("ADD", tuning(mtu=1400, prevResult=bridged))
    assert [item.get("mtu") for item in result["interfaces"]] == [None, None, 1400]


def test_del_gives_back_what_was_there_and_may_come_twice(caller: Caller, bridged: dict[str, Any]) -> None:
    before, syncookies = inside(), sysctl("net.ipv4.tcp_syncookies")
    config = tuning(**ALL, sysctl=SYSCTLS, prevResult=bridged)
    caller.ok("ADD", config)
    assert differences(before, inside())
    caller.ok("DEL", config)
    caller.ok("DEL", config)
    assert differences(before, inside()) == []
    assert sysctl("net.ipv4.tcp_syncookies") == syncookies
    assert sysctl("net.ipv6.conf.eth0.accept_dad") == "0"


def test_del_when_the_link_or_the_netns_has_gone_before(caller: Caller, bridged: dict[str, Any]) -> None:
    config = tuning(**ALL, sysctl=SYSCTLS, prevResult=bridged)
    caller.ok("ADD", config)
    caller.ok("DEL", BRIDGE)
    caller.ok("DEL", config)
    bridged = caller.ok("ADD", BRIDGE)
    caller.ok("ADD", {**config, "prevResult": bridged})
    caller.lose("c1")
    caller.ok("DEL", config)
    caller.ok("DEL", BRIDGE)
    assert "veth" not in run("ip", "-br", "link")


def test_a_list_may_tune_an_interface_several_times(caller: Caller, controller: Controller, bridged: dict[str, Any]) -> None:
    before = inside()
    entries = [tuning(mtu=1400), tuning(sysctl=SYSCTLS), tuning(mac=MAC)]
    result = bridged
    for entry in entries:
        result = caller.ok("ADD", {**entry, "prevResult": result})
    for entry in (BRIDGE, *entries):
        caller.ok("CHECK", {**entry, "prevResult": result})
    assert [item["Plugins"] for item in perform(controller, "cni.ls", {})] == ["bridge,tuning,tuning#2,tuning#3"]
    run("ip", "netns", "exec", "c1", "sysctl", "-w", "net.ipv4.conf.eth0.arp_notify=0")
    assert "arp_notify" in caller.error("CHECK", {**entries[0], "prevResult": result})[1]
    for entry in reversed(entries):
        caller.ok("DEL", {**entry, "prevResult": result})
    assert differences(before, inside()) == []
    for entry in entries:
        caller.ok("ADD", {**entry, "prevResult": bridged})
    caller.ok("GC", {**tuning(), "cni.dev/valid-attachments": []})
    assert differences(before, inside()) == []


def test_check_of_the_chain_sees_changes_by_hand_alone(caller: Caller, bridged: dict[str, Any]) -> None:
    config = tuning(**ALL, sysctl=SYSCTLS, prevResult=bridged)
    result = caller.ok("ADD", config)
    chain = [{**BRIDGE, "prevResult": result}, {**config, "prevResult": result}]

    def drift() -> list[str]:
        outcomes = [caller.call("CHECK", item).stdout for item in chain]
        return [json.loads(text)["msg"] if text else "" for text in outcomes]

    assert drift() == ["", ""]
    for change, back, expected in (
        (["address", "02:00:00:00:00:99"], ["address", MAC], ["", "has mac 02:00:00:00:00:99, not 02:00:00:00:00:0a"]),
        (["mtu", "1300"], ["mtu", "1400"], ["", "has mtu 1300, not 1400"]),
        (["promisc", "off"], ["promisc", "on"], ["", "has promisc off, not on"]),
    ):
        run("ip", "-n", "c1", "link", "set", "eth0", *change)
        assert [wanted in said and bool(wanted) == bool(said) for wanted, said in zip(expected, drift(), strict=True)] == [
            True
        ] * 2
        run("ip", "-n", "c1", "link", "set", "eth0", *back)
        assert drift() == ["", ""]
    run("ip", "netns", "exec", "c1", "sysctl", "-w", "net.ipv6.conf.eth0.accept_dad=0")
    assert "accept_dad is '0', not '1'" in drift()[1]
    run("ip", "-n", "c1", "link", "set", "eth0", "down")
    assert "eth0" in drift()[0]


def test_without_tuning_the_bridge_plugin_sees_a_changed_mac(caller: Caller, bridged: dict[str, Any]) -> None:
    run("ip", "-n", "c1", "link", "set", "eth0", "address", MAC)
    code, sentence = caller.error("CHECK", {**BRIDGE, "prevResult": bridged})
    assert code == Code.DRIFT
    assert "has MAC address" in sentence


def test_check_without_a_record_compares_the_configuration(caller: Caller, bridged: dict[str, Any]) -> None:
    config = tuning(mtu=1400, prevResult=bridged)
    assert caller.error("CHECK", config)[0] == Code.DRIFT
    run("ip", "-n", "c1", "link", "set", "eth0", "mtu", "1400")
    caller.ok("CHECK", config)


@pytest.mark.parametrize(
    ("more", "args", "expected"),
    [
        ({}, "", "02:00:00:00:00:01"),
        ({}, "IgnoreUnknown=1;MAC=02:00:00:00:00:02", "02:00:00:00:00:02"),
        ({"runtimeConfig": {"mac": "02:00:00:00:00:03"}}, "MAC=02:00:00:00:00:02", "02:00:00:00:00:03"),
        (
            {"runtimeConfig": {"mac": "02:00:00:00:00:03"}, "args": {"cni": {"mac": "02:00:00:00:00:04"}}},
            "MAC=02:00:00:00:00:02",
            "02:00:00:00:00:04",
        ),
    ],
)
def test_which_mac_address_counts(
    caller: Caller, bridged: dict[str, Any], more: dict[str, Any], args: str, expected: str
) -> None:
    result = caller.ok("ADD", tuning(mac="02:00:00:00:00:01", prevResult=bridged, **more), args=args)
    assert result["interfaces"][2]["mac"] == expected
    assert expected in run("ip", "-n", "c1", "link", "show", "eth0")


def test_what_args_ask_for_counts_more(caller: Caller, bridged: dict[str, Any]) -> None:
    args = {"mtu": 1300, "promisc": False, "allmulti": True, "txQLen": 5, "sysctl": {"net.ipv4.conf.IFNAME.arp_notify": "1"}}
    config = tuning(
        mtu=1400, promisc=True, sysctl={"net/ipv4/conf/IFNAME/arp_notify": "0"}, args={"cni": args}, prevResult=bridged
    )
    caller.ok("ADD", config)
    shown = run("ip", "-n", "c1", "link", "show", "eth0")
    assert "PROMISC" not in shown
    for word in ("mtu 1300", "ALLMULTI", "qlen 5"):
        assert word in shown
    assert sysctl("net.ipv4.conf.eth0.arp_notify") == "1"


def test_interfaces_that_set_the_same_sysctl_share_it(caller: Caller, bridged: dict[str, Any]) -> None:
    before = sysctl("net.ipv4.tcp_syncookies")
    config = tuning(sysctl={"net.ipv4.tcp_syncookies": "2"}, prevResult=bridged)
    caller.ok("ADD", config)
    caller.ok("ADD", config, ifname="eth1")
    code, sentence = caller.error("ADD", tuning(sysctl={"net.ipv4.tcp_syncookies": "0"}, prevResult=bridged), ifname="eth2")
    assert code == Code.CONFLICT
    assert "pods/c1/eth0/tuning" in sentence or "pods/c1/eth1/tuning" in sentence
    caller.ok("DEL", config)
    assert sysctl("net.ipv4.tcp_syncookies") == "2"
    caller.ok("DEL", config, ifname="eth1")
    assert sysctl("net.ipv4.tcp_syncookies") == before


def test_gc_gives_back_what_is_not_valid(caller: Caller, bridged: dict[str, Any]) -> None:
    before = inside()
    caller.ok("ADD", tuning(**ALL, prevResult=bridged))
    caller.ok("GC", tuning(**{"cni.dev/valid-attachments": []}))
    assert differences(before, inside()) == []


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"mtu": 1400, "prevResult": None}, "Required prevResult missing"),
        ({"mac": "zz"}, "zz"),
        ({"mtu": -1}, "invalid MTU -1"),
        ({"txQLen": -1}, "tuning: txQLen"),
        ({"sysctl": {"kernel.hostname": "x"}}, 'invalid net sysctl key: "kernel.hostname"'),
        ({"sysctl": {"net/../kernel/hostname": "x"}}, "is no sysctl name"),
        ({"sysctl": {"net.ipv4.none": "1"}}, "net/ipv4/none"),
        ({"sysctl": {"net.ipv4.tcp_syncookies": 1}}, "sysctl[...]: expected a text"),
        ({"sysctl": {"net.ipv4.tcp_syncookies": "1", "net/ipv4/tcp_syncookies": "0"}}, "duplicated sysctl keys"),
        ({"mtu": 1400, "sysctl": {"net.ipv4.tcp_syncookies": "words"}}, "tcp_syncookies"),
    ],
)
def test_what_is_refused_changes_nothing(caller: Caller, bridged: dict[str, Any], wrong: dict[str, Any], expected: str) -> None:
    before = inside(), snapshot()
    assert expected in caller.error("ADD", tuning(**{"prevResult": bridged, **wrong}))[1]
    assert [differences(*pair) for pair in zip(before, (inside(), snapshot()), strict=True)] == [[], []]


def test_a_link_that_is_not_there(caller: Caller, bridged: dict[str, Any]) -> None:
    code, sentence = caller.error("ADD", tuning(mtu=1400, prevResult=bridged), ifname="eth9")
    assert code == Code.MISSING
    assert "eth9" in sentence


def test_a_list_of_allowed_sysctls(caller: Caller, bridged: dict[str, Any], allowed: Path) -> None:
    allowed.write_text("^net\\.ipv4\\.conf\\.[^.]+\\.arp_notify$\n\n  tcp_sync \n")
    names = {"net.ipv4.conf.IFNAME.arp_notify": "1", "net.ipv4.tcp_syncookies": "0"}
    caller.ok("ADD", tuning(sysctl=names, prevResult=bridged))
    more = tuning(sysctl={"net.ipv4.ip_forward": "1"}, prevResult=bridged)
    assert "Sysctl net.ipv4.ip_forward is not allowed" in caller.error("ADD", more, ifname="eth1")[1]
    assert caller.error("STATUS", more)[0] == Code.INVALID_CONFIG
    allowed.write_text("(")
    assert f"{ALLOWLIST}: no regular expression" in caller.error("ADD", more, ifname="eth1")[1]


@pytest.mark.usefixtures("bridged")
def test_what_the_reference_wrote_down_is_given_back(caller: Caller, tmp_path: Path) -> None:
    before = inside()
    backup = tmp_path / "c1_eth0.json"
    mac = run("ip", "netns", "exec", "c1", "cat", "/sys/class/net/eth0/address").strip()
    backup.write_text(json.dumps({"mac": mac, "mtu": 1500, "promisc": False, "allmulti": False}))
    for words in (["address", MAC], ["mtu", "1400"], ["promisc", "on"], ["allmulticast", "on"]):
        run("ip", "-n", "c1", "link", "set", "eth0", *words)
    caller.ok("DEL", tuning(dataDir=str(tmp_path)))
    assert differences(before, inside()) == []
    assert not backup.exists()
    backup.write_text("{")
    assert b"c1_eth0.json: no JSON" in caller.call("DEL", tuning(dataDir=str(tmp_path))).stderr
    backup.write_text("{}")
    caller.lose("c1")
    caller.ok("DEL", tuning(dataDir=str(tmp_path)))
    assert not backup.exists()


def test_every_step_that_fails_undoes_all(
    caller: Caller, controller: Controller, bridged: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tuning(**ALL, sysctl=SYSCTLS, prevResult=bridged)
    before = inside()
    steps: list[str] = []
    told = controller.engine.observer
    monkeypatch.setattr(controller.engine, "observer", lambda moment, item: steps.append(moment))
    caller.ok("ADD", config)
    count = steps.count("ensured")
    caller.ok("DEL", config)
    assert count == len(ALL) + len(SYSCTLS)
    for fatal in range(count):
        seen = 0

        def fail(moment: str, item: object, fatal: int = fatal) -> None:
            nonlocal seen
            if moment == "ensured":
                seen += 1
                if seen > fatal:
                    raise KernelError("a failure that was asked for")

        monkeypatch.setattr(controller.engine, "observer", fail)
        assert "asked for" in caller.error("ADD", config)[1]
        assert differences(before, inside()) == []
    monkeypatch.setattr(controller.engine, "observer", told)
    caller.ok("ADD", config)


@pytest.mark.peers
def test_the_reference_does_the_same(caller: Caller, bridged: dict[str, Any]) -> None:
    config = {**tuning(**ALL, sysctl=SYSCTLS, prevResult={**bridged, "cniVersion": "1.0.0"}), "cniVersion": "1.0.0"}
    del config["txQLen"]  # the reference here is older than that key
    ours = caller.ok("ADD", config)
    seen = inside(), run("ip", "-n", "c1", "link", "show", "eth0"), sysctl("net.ipv4.tcp_syncookies")
    caller.ok("DEL", config)
    environ = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/run/netns/c1",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/",
    }
    asked = json.dumps(config)
    done = subprocess.run(["/usr/lib/cni/tuning"], env=environ, input=asked, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ours
    assert (inside(), run("ip", "-n", "c1", "link", "show", "eth0"), sysctl("net.ipv4.tcp_syncookies")) == seen
