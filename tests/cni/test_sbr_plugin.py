"""``sbr``: by which interface a container answers, what its tables hold, and that all is as before after DEL."""

import json
import os
import signal
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

REFERENCE = "/usr/lib/cni/sbr"


def bridge(network: int, *addresses: str, **more: Any) -> dict[str, Any]:
    """A network 10.NETWORK.0.0/16 and fd00:NETWORK::/64 on a bridge of its own."""
    given = [{"address": address} for address in addresses or (f"10.{network}.0.2/16", f"fd00:{network}::2/64")]
    routes = [{"dst": "10.99.0.0/16"}, {"dst": "10.98.0.0/16", "gw": f"10.{network}.0.9"}] if network == 1 else []
    ipam = {"type": "static", "addresses": given, "routes": routes}
    config = {"cniVersion": "1.0.0", "name": f"net{network}", "type": "bridge", "bridge": f"br{network}", "ipam": ipam}
    return {**config, "isDefaultGateway": True, **more}


def sbr(previous: dict[str, Any] | None, network: int = 1, **more: Any) -> dict[str, Any]:
    config = {"cniVersion": "1.0.0", "name": f"net{network}", "type": "sbr", **more}
    return config if previous is None else {**config, "prevResult": previous}


def inside() -> Snapshot:
    path = "/run/netns/c1"
    return snapshot(NetnsRef(path, identity_of_path(path)))


def rules() -> list[str]:
    """The rules by source, each with its table, in the order of their tables."""
    lines = (run("ip", "-n", "c1", "rule") + run("ip", "-n", "c1", "-6", "rule")).splitlines()
    found = [
        line.partition("from ")[2].partition(" proto")[0].replace(" lookup", "").strip()
        for line in lines
        if "from all" not in line
    ]
    return sorted(found, key=lambda line: int(line.split()[-1]))


def routes(table: str, family: str = "-4") -> list[str]:
    """The routes of a table as ip(8) prints them, but for what says who set them and link-local ones."""
    done = subprocess.run(["ip", "-n", "c1", family, "route", "show", "table", table], capture_output=True, text=True)
    words = (
        line.replace("proto kernel ", "").replace("proto static ", "").replace("proto boot ", "")
        for line in done.stdout.splitlines()
    )
    return sorted(word.replace(" pref medium", "").strip() for word in words if "fe80::" not in word)


@pytest.fixture
def first(caller: Caller) -> dict[str, Any]:
    """What the bridge plugin answered for eth0 of c1."""
    caller.container("c1")
    result: dict[str, Any] = caller.ok("ADD", bridge(1))
    return result


def test_routes_are_in_tables_of_their_own(caller: Caller, first: dict[str, Any]) -> None:
    assert caller.ok("ADD", sbr(first)) == first
    assert rules() == ["10.1.0.2 100", "fd00:1::2 101"]
    assert routes("100") == [
        "10.1.0.0/16 dev eth0 scope link src 10.1.0.2",
        "10.98.0.0/16 via 10.1.0.9 dev eth0",
        "10.99.0.0/16 via 10.1.0.1 dev eth0",
        "default via 10.1.0.1 dev eth0",
    ]
    assert routes("101", "-6") == ["default via fd00:1::1 dev eth0 metric 1024", "fd00:1::/64 dev eth0 metric 256"]
    assert routes("main") == routes("main", "-6") == []


def test_each_interface_answers_for_itself(caller: Caller, first: dict[str, Any]) -> None:
    second = caller.ok("ADD", bridge(2, isDefaultGateway=False, isGateway=True), ifname="eth1")
    caller.ok("ADD", sbr(second, 2), ifname="eth1")
    assert rules() == ["10.2.0.2 100", "fd00:2::2 101"]
    for source, link in (("10.1.0.2", "eth0"), ("10.2.0.2", "eth1"), ("fd00:1::2", "eth0"), ("fd00:2::2", "eth1")):
        target = "203.0.113.1" if "." in source else "2001:db8::1"
        assert f"dev {link}" in run("ip", "-n", "c1", "route", "get", target, "from", source)
    caller.ok("ADD", sbr(first, 1))
    assert rules() == ["10.2.0.2 100", "fd00:2::2 101", "10.1.0.2 102", "fd00:1::2 103"]
    assert caller.pings("c1", "10.1.0.1") is False
    assert "1 received" in run("ip", "netns", "exec", "c1", "ping", "-c1", "-W2", "-I", "10.1.0.2", "10.1.0.1")


def test_del_brings_all_back_and_may_come_twice(caller: Caller, first: dict[str, Any]) -> None:
    before = inside()
    caller.ok("ADD", sbr(first))
    assert differences(before, inside())
    caller.ok("DEL", sbr(first))
    caller.ok("DEL", sbr(first))
    assert differences(before, inside()) == []
    assert caller.pings("c1", "10.1.0.1")


def test_del_when_the_link_or_the_netns_has_gone_before(caller: Caller, first: dict[str, Any]) -> None:
    caller.ok("ADD", sbr(first))
    caller.ok("DEL", bridge(1))
    assert len(rules()) == 2
    caller.ok("DEL", sbr(first))
    assert rules() == []
    first = caller.ok("ADD", bridge(1))
    caller.ok("ADD", sbr(first))
    caller.lose("c1")
    caller.ok("DEL", sbr(None))


def test_del_after_an_address_was_taken_away_by_hand(caller: Caller, first: dict[str, Any]) -> None:
    caller.ok("ADD", sbr(first))
    run("ip", "-n", "c1", "addr", "del", "10.1.0.2/16", "dev", "eth0")
    run("ip", "-n", "c1", "link", "set", "eth0", "down")
    caller.ok("DEL", sbr(first))
    assert rules() == []


def test_check_of_the_chain_sees_changes_by_hand_alone(caller: Caller, first: dict[str, Any]) -> None:
    caller.ok("ADD", sbr(first))
    chain = [{**bridge(1), "prevResult": first}, sbr(first)]
    for config in chain:
        caller.ok("CHECK", config)
    for change, back, who, expected in (
        (
            "rule del from 10.1.0.2 table 100",
            "rule add from 10.1.0.2 table 100",
            1,
            "rule from 10.1.0.2/32 table 100 is missing",
        ),
        ("route del default table 100", "route add default via 10.1.0.1 table 100", 1, "route default4 is missing"),
        ("route add default via 10.1.0.1 dev eth0", "route del default", 1, "route default4 by eth0 is there again"),
        ("addr add 10.1.0.7/16 dev eth0", "addr del 10.1.0.7/16 dev eth0", None, ""),
        ("link set eth0 mtu 1400", "link set eth0 mtu 1500", None, ""),
        ("addr del fd00:1::2/64 dev eth0", "addr add fd00:1::2/64 dev eth0 nodad", 0, "fd00:1::2/64 is missing"),
    ):
        if change.startswith("route add"):  # its gateway must be to be reached
            run("ip", "-n", "c1", "route", "add", "10.1.0.1", "dev", "eth0")
        run("ip", "-n", "c1", *change.split())
        for number, config in enumerate(chain):
            if number == who:
                code, sentence = caller.error("CHECK", config)
                assert (code, expected in sentence) == (Code.DRIFT, True), sentence
        run("ip", "-n", "c1", *back.split())


def test_without_sbr_the_bridge_plugin_misses_its_route(caller: Caller, first: dict[str, Any]) -> None:
    run("ip", "-n", "c1", "route", "del", "default")
    assert "default4 is missing" in caller.error("CHECK", {**bridge(1), "prevResult": first})[1]


def test_a_table_that_somebody_else_fills(caller: Caller, first: dict[str, Any]) -> None:
    before = routes("main")
    caller.ok("ADD", sbr(first, table=7))
    assert rules() == ["10.1.0.2 7", "fd00:1::2 7"]
    assert routes("main") == before
    assert routes("7") == []
    caller.ok("DEL", sbr(first, table=7))
    assert rules() == []


def test_gateways_of_the_configuration(caller: Caller, first: dict[str, Any]) -> None:
    for ip in first["ips"]:
        del ip["gateway"]
    for version in ("-4", "-6"):
        run("ip", "-n", "c1", version, "route", "del", "default")
    caller.ok("ADD", sbr(first, gateways=["fd00:1::8", "10.1.0.8"]))
    assert "default via 10.1.0.8 dev eth0" in routes("100")
    assert "default via fd00:1::8 dev eth0 metric 1024" in routes("101", "-6")


def test_source_hints_leave_the_way_into_the_subnets(caller: Caller, first: dict[str, Any]) -> None:
    before = inside()
    caller.ok("ADD", sbr(first, addSourceHints=True))
    assert routes("main") == ["10.1.0.0/16 dev eth0 scope link src 10.1.0.2"]
    assert routes("main", "-6") == ["fd00:1::/64 dev eth0 src fd00:1::2 metric 1024"]
    assert caller.pings("c1", "10.1.0.1")
    for config in ({**bridge(1), "prevResult": first}, sbr(first)):
        caller.ok("CHECK", config)
    caller.ok("DEL", sbr(first))
    assert differences(before, inside()) == []


def test_source_hints_where_a_subnet_is_behind_a_gateway(caller: Caller) -> None:
    caller.container("c1")
    ipam = {
        "type": "static",
        "addresses": [{"address": "10.5.0.2/16", "gateway": "10.5.0.1"}],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    ptp = {"cniVersion": "1.0.0", "name": "net5", "type": "ptp", "ipam": ipam}
    previous = caller.ok("ADD", ptp)
    before = inside()
    for more in ({}, {"addSourceHints": True}):
        caller.ok("ADD", sbr(previous, 5, **more))
        assert "default via 10.5.0.1 dev eth0" in routes("100")
        assert "1 received" in run("ip", "netns", "exec", "c1", "ping", "-c1", "-W2", "-I", "10.5.0.2", "10.5.0.1")
        caller.ok("CHECK", {**ptp, "prevResult": previous})
        caller.ok("DEL", sbr(previous, 5, **more))
        assert differences(before, inside()) == []


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"prevResult": None}, "Required prevResult missing"),
        ({"prevResult": {"cniVersion": "1.0.0"}}, "No IP addresses supplied on interface: eth0"),
        ({"gateways": ["10.1.0.1", "10.1.0.2"]}, "multiple IPv4 addresses: 10.1.0.1 and 10.1.0.2"),
        ({"gateways": ["10.1.0.1", "fd00::1", "10.1.0.2"]}, "more than 2 entries"),
        ({"gateways": ["x"]}, "gateways[0]: expected an address"),
        ({"table": 0}, "sbr: table"),
        ({"gateways": ["192.0.2.1"]}, "nexthop has invalid gateway"),
    ],
)
def test_what_is_refused_changes_nothing(caller: Caller, first: dict[str, Any], more: dict[str, Any], expected: str) -> None:
    before = inside()
    assert expected in json.dumps(caller.error("ADD", {**sbr(first), **more}))
    assert differences(before, inside()) == []


def test_del_after_an_add_that_was_refused(caller: Caller, first: dict[str, Any]) -> None:
    elsewhere = {**first, "interfaces": [{**item, "name": "eth9"} for item in first["interfaces"]]}
    assert "No IP addresses supplied" in caller.error("ADD", sbr(elsewhere))[1]
    caller.ok("DEL", sbr(elsewhere))


def test_gc_brings_back_what_is_not_valid(caller: Caller, first: dict[str, Any]) -> None:
    before = inside()
    caller.ok("ADD", sbr(first))
    caller.ok("GC", {**sbr(None), "cniVersion": "1.1.0", "cni.dev/valid-attachments": []})
    assert differences(before, inside()) == []


@pytest.mark.parametrize("fatal", range(0, 14, 3))
def test_a_death_at_any_step_is_undone_by_the_next_call(
    caller: Caller, controller: Controller, first: dict[str, Any], fatal: int
) -> None:
    before = inside()
    if (pid := os.fork()) == 0:
        seen = 0

        def die(moment: str, item: object) -> None:
            nonlocal seen
            seen += moment == "ensured"
            if seen > fatal:
                os.kill(os.getpid(), signal.SIGKILL)

        with Controller(controller.config) as mine:
            mine.engine.observer = die
            Caller(lambda: mine).call("ADD", sbr(first))
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    controller.recover()
    assert differences(before, inside()) == []
    caller.ok("ADD", sbr(first))


def test_every_step_that_fails_undoes_all(
    caller: Caller, controller: Controller, first: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = inside()
    for fatal in range(14):
        seen = 0

        def fail(moment: str, item: object, fatal: int = fatal) -> None:
            nonlocal seen
            seen += moment == "ensured"
            if moment == "ensured" and seen > fatal:
                raise KernelError("a failure that was asked for")

        monkeypatch.setattr(controller.engine, "observer", fail)
        assert "asked for" in caller.error("ADD", sbr(first))[1]
        assert differences(before, inside()) == []


@pytest.mark.peers
def test_the_reference_makes_the_same_rules_and_tables(caller: Caller, first: dict[str, Any]) -> None:
    def seen() -> list[list[str]]:
        return [rules(), routes("100"), routes("101", "-6"), routes("main"), routes("main", "-6")]

    ours = caller.ok("ADD", sbr(first))
    made = seen()
    caller.ok("DEL", sbr(first))
    environ = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/run/netns/c1",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/",
    }
    asked = json.dumps(sbr(first))
    done = subprocess.run([REFERENCE], env=environ, input=asked, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ours
    assert seen() == made
    caller.ok("DEL", sbr(first))
    assert rules() == []


@pytest.mark.peers
def test_what_the_reference_left_goes_by_the_addresses_of_the_result(caller: Caller, first: dict[str, Any]) -> None:
    for version, source in (("-4", "10.1.0.2"), ("-6", "fd00:1::2"), ("-4", "10.9.0.9")):
        run("ip", "-n", "c1", version, "rule", "add", "from", source, "table", "100")
    caller.ok("DEL", sbr(first, table=101))
    assert len(rules()) == 3
    run("ip", "-n", "c1", "link", "del", "eth0")
    caller.ok("DEL", sbr(first))
    assert rules() == ["10.9.0.9 100"]
