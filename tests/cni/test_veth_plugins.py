"""``bridge`` and ``ptp``: what containers reach, what stands on the host, and what every verb does with it."""

import subprocess
from typing import Any

import pytest

from cni_plugins.protocol import Code
from netlib.core.attachments import Attachments
from netlib.core.controller import Controller
from netlib.testing.snapshot import differences, snapshot
from tests.cni.calling import Caller, run

DUAL = ("10.22.0.{}/16", "fd00:22::{}/64")


def conf(number: int, kind: str = "bridge", *, addresses: tuple[str, ...] = DUAL, **more: Any) -> dict[str, Any]:
    given = [{"address": text.format(number)} for text in addresses]
    if kind == "ptp":
        for entry in given:
            entry["gateway"] = f"{entry['address'].partition('/')[0].removesuffix(str(number))}1"
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}] if kind == "ptp" else []
    ipam = {"type": "static", "addresses": given, "routes": routes}
    return {"cniVersion": "1.1.0", "name": "pods", "type": kind, "ipam": ipam, **more}


def addressed(kind: str, *given: dict[str, str], routes: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return conf(2, kind, isGateway=True, ipam={"type": "static", "addresses": given, "routes": routes})


def routed(kind: str, *routes: dict[str, Any]) -> dict[str, Any]:
    return addressed(kind, {"address": "10.22.0.2/16", "gateway": "10.22.0.1"}, routes=routes)


def bridged(number: int, **more: Any) -> dict[str, Any]:
    return conf(number, isDefaultGateway=True, **more)


def test_containers_on_a_bridge_reach_each_other_and_the_host(caller: Caller) -> None:
    caller.container("c1")
    caller.container("c2")
    caller.ok("ADD", bridged(2))
    result = caller.ok("ADD", bridged(3), "c2")
    assert [item["name"] for item in result["interfaces"]][0::2] == ["cni0", "eth0"]
    assert result["interfaces"][2]["sandbox"] == "/run/netns/c2"
    assert result["ips"][0] == {"address": "10.22.0.3/16", "gateway": "10.22.0.1", "interface": 2}
    assert {route["dst"]: route["gw"] for route in result["routes"]} == {"0.0.0.0/0": "10.22.0.1", "::/0": "fd00:22::1"}
    for address in ("10.22.0.2", "10.22.0.1", "fd00:22::2", "fd00:22::1"):
        assert caller.pings("c2", address), address
    for item in result["interfaces"]:
        where = ["-n", "c2"] if item.get("sandbox") else []
        assert item["mac"] in run("ip", *where, "link", "show", item["name"])


def test_containers_on_ptp_links_reach_each_other_through_the_host(caller: Caller) -> None:
    caller.container("c1")
    caller.container("c2")
    caller.ok("ADD", conf(2, "ptp"))
    result = caller.ok("ADD", conf(3, "ptp"), "c2")
    assert [item["name"] for item in result["interfaces"]][1:] == ["eth0"]
    for address in ("10.22.0.2", "10.22.0.1", "fd00:22::2", "fd00:22::1"):
        assert caller.pings("c2", address), address
    assert "via 10.22.0.1" in run("ip", "-n", "c2", "route", "get", "10.22.0.2")


def test_an_address_is_found_whatever_mac_address_its_former_holder_had(caller: Caller) -> None:
    run("ip", "link", "add", "cni0", "type", "bridge")  # other plugins had their containers on it
    caller.container("c1")
    caller.container("c2")
    caller.ok("ADD", bridged(2), "c2")
    for address in ("10.22.0.3", "fd00:22::3"):
        for where in ((), ("-n", "c2")):
            dev = "eth0" if where else "cni0"
            run("ip", *where, "neigh", "add", address, "lladdr", "02:11:22:33:44:55", "dev", dev, "nud", "reachable")
    caller.ok("ADD", bridged(3))
    for address in ("10.22.0.3", "fd00:22::3"):
        assert caller.pings("c2", address)
        subprocess.run(["ping", "-c1", "-W2", address], check=True)
    for container, number in (("c1", 3), ("c2", 2)):
        caller.ok("DEL", bridged(number), container)
    run("ip", "link", "del", "cni0")


def test_an_address_is_found_at_once_when_its_former_holder_was_ours(caller: Caller) -> None:
    for container in ("c1", "c2", "c3"):
        caller.container(container)
    caller.ok("ADD", bridged(2), "c2")
    caller.ok("ADD", bridged(3), "c1")
    assert caller.pings("c2", "10.22.0.3")
    caller.ok("DEL", bridged(3), "c1")
    caller.ok("ADD", bridged(3), "c3")
    assert "10.22.0.3" in run("ip", "-n", "c2", "neigh", "show")
    assert caller.pings("c2", "10.22.0.3")
    assert caller.pings("c2", "fd00:22::3")


def test_what_neighbours_know_already_is_not_announced(caller: Caller) -> None:
    """On a bridge with many ports that would be most of the time of an ADD."""
    for number, (mac, announced) in enumerate((("", "0"), ("02:11:22:33:44:66", "1"))):
        container = f"c{number}"
        caller.container(container)
        conf = bridged(number + 2)
        caller.ok("ADD", {**conf, "runtimeConfig": {"mac": mac}}, container)
        read = ["ip", "netns", "exec", container, "sysctl", "-n"]
        assert run(*read, "net.ipv4.conf.eth0.arp_notify").strip() == announced
        assert run(*read, "net.ipv6.conf.eth0.ndisc_notify").strip() == "1"


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_del_takes_all_back_and_may_come_twice(caller: Caller, controller: Controller, kind: str) -> None:
    caller.container("c1")
    config = bridged(2) if kind == "bridge" else conf(2, "ptp")
    before = snapshot()
    caller.ok("ADD", config)
    caller.ok("DEL", config)
    caller.ok("DEL", config)
    assert subprocess.run(["ip", "-n", "c1", "link", "show", "eth0"], capture_output=True).returncode == 1
    controller.reset()
    assert differences(before, snapshot()) == []


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_a_route_to_the_subnet_itself_leaves_the_way_there_as_it_is(caller: Caller, kind: str) -> None:
    caller.container("c1")
    caller.ok("ADD", routed(kind))
    before = run("ip", "-n", "c1", "route")
    caller.ok("DEL", routed(kind))
    caller.ok(
        "ADD", routed(kind, {"dst": "10.22.0.0/16"}, {"dst": "10.22.0.1/32"} if kind == "ptp" else {"dst": "10.22.0.0/16"})
    )
    assert run("ip", "-n", "c1", "route") == before


def ways_out(container: str) -> list[str]:
    """By which gateway and link the container's packets leave, of IPv4 and of IPv6."""
    lines = [run("ip", "-n", container, "route", "get", address) for address in ("192.0.2.1", "2001:db8::1")]
    return [line.partition(" via ")[2].partition(" src ")[0].replace(" proto static", "").strip() for line in lines]


def second(number: int, kind: str = "bridge") -> dict[str, Any]:
    config = conf(number, kind, addresses=("10.23.0.{}/16", "fd00:23::{}/64"), name="others", bridge="cni1")
    return {**config, "isDefaultGateway": True} if kind == "bridge" else config


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_of_two_networks_the_first_is_the_way_out_as_long_as_it_is_there(caller: Caller, kind: str) -> None:
    first, other = ["10.22.0.1 dev eth0", "fd00:22::1 dev eth0"], ["10.23.0.1 dev eth1", "fd00:23::1 dev eth1"]
    caller.container("c1")
    before = run("ip", "-n", "c1", "route") + run("ip", "-n", "c1", "-6", "route")
    caller.ok("ADD", bridged(2))
    result = caller.ok("ADD", second(2, kind), ifname="eth1")
    assert ways_out("c1") == first
    caller.ok("CHECK", {**second(2, kind), "prevResult": result}, ifname="eth1")
    caller.ok("DEL", bridged(2))
    assert ways_out("c1") == other
    caller.ok("CHECK", {**second(2, kind), "prevResult": result}, ifname="eth1")
    result = caller.ok("ADD", bridged(2))
    assert ways_out("c1") == other
    caller.ok("CHECK", {**bridged(2), "prevResult": result})
    caller.ok("DEL", second(2, kind), ifname="eth1")
    assert ways_out("c1") == first
    caller.ok("DEL", bridged(2))
    assert run("ip", "-n", "c1", "route") + run("ip", "-n", "c1", "-6", "route") == before


def test_of_three_networks_each_is_the_way_out_when_those_before_it_are_gone(caller: Caller) -> None:
    caller.container("c1")
    for number in range(3):
        addresses = (f"10.{50 + number}.0.{{}}/16", f"fd00:{50 + number}::{{}}/64")
        config = conf(2, addresses=addresses, name=f"n{number}", bridge=f"cni{number}", isDefaultGateway=True)
        caller.ok("ADD", config, ifname=f"eth{number}")
    for number in range(3):
        assert ways_out("c1") == [f"10.{50 + number}.0.1 dev eth{number}", f"fd00:{50 + number}::1 dev eth{number}"]
        caller.ok("DEL", {"cniVersion": "1.1.0", "name": f"n{number}", "type": "bridge"}, ifname=f"eth{number}")


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_a_default_route_of_somebody_else_stays(caller: Caller, kind: str) -> None:
    caller.container("c1")
    run("ip", "-n", "c1", "link", "add", "x0", "up", "type", "veth", "peer", "name", "x1")
    run("ip", "-n", "c1", "link", "set", "x1", "up")
    for address, gateway in (("10.99.0.2/24", "10.99.0.1"), ("fd99::2/64", "fd99::1")):
        run("ip", "-n", "c1", "addr", "add", address, "dev", "x0", *(["nodad"] if ":" in address else []))
        run("ip", "-n", "c1", "route", "add", "default", "via", gateway)
    before = ways_out("c1")
    caller.ok("ADD", second(2, kind))
    assert ways_out("c1") == before
    caller.ok("DEL", second(2, kind))
    assert ways_out("c1") == before == ["10.99.0.1 dev x0", "fd99::1 dev x0"]


def test_one_address_in_two_subnets_is_one_way_to_a_container(caller: Caller) -> None:
    caller.container("c1")
    given = ({"address": address, "gateway": "10.22.0.1"} for address in ("10.22.0.2/16", "10.22.0.2/32"))
    caller.ok("ADD", addressed("ptp", *given))
    assert caller.pings("c1", "10.22.0.1")


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_del_without_the_netns(caller: Caller, kind: str) -> None:
    caller.container("c1")
    config = bridged(2) if kind == "bridge" else conf(2, "ptp")
    caller.ok("ADD", config)
    caller.lose("c1")
    caller.ok("DEL", config)
    assert "veth" not in run("ip", "-br", "link")


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_check_names_what_differs(caller: Caller, kind: str) -> None:
    caller.container("c1")
    config = bridged(2) if kind == "bridge" else conf(2, "ptp")
    previous = caller.ok("ADD", config)
    caller.ok("CHECK", {**config, "prevResult": previous})
    run("ip", "-n", "c1", "addr", "del", "10.22.0.2/16", "dev", "eth0")
    code, sentence = caller.error("CHECK", {**config, "prevResult": previous})
    assert code == Code.DRIFT
    assert "10.22.0.2/16" in sentence


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_gc_takes_what_is_not_valid(caller: Caller, kind: str) -> None:
    for number, name in ((2, "c1"), (3, "c2")):
        caller.container(name)
        caller.ok("ADD", bridged(number) if kind == "bridge" else conf(number, "ptp"), name)
    base = bridged(2) if kind == "bridge" else conf(2, "ptp")
    caller.ok("GC", {**base, "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]})
    assert "eth0" in run("ip", "-n", "c1", "-br", "link")
    assert "eth0" not in run("ip", "-n", "c2", "-br", "link")


def test_what_the_reference_left_is_taken_by_the_configuration_alone(caller: Caller) -> None:
    caller.container("c1")
    run("ip", "link", "add", "veth12345678", "type", "veth", "peer", "name", "eth0", "netns", "c1")
    caller.ok("DEL", bridged(2))
    assert "veth" not in run("ip", "-br", "link")


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_a_del_leaves_alone_what_is_anothers_by_now(caller: Caller, kind: str) -> None:
    """One that comes late finds the next container at its path; one after a failed ADD finds the interface in the way."""
    caller.container("c1")
    config = bridged(2) if kind == "bridge" else conf(2, "ptp")
    previous = caller.ok("ADD", config)
    environ = {"CNI_COMMAND": "DEL", "CNI_NETNS": "/run/netns/c1", "CNI_IFNAME": "eth0", "CNI_PATH": "/usr/lib/cni"}
    assert caller.answer(config, {**environ, "CNI_CONTAINERID": "late"}).code == 0
    caller.error("ADD", {**config, "name": "others"})
    caller.ok("DEL", {**config, "name": "others"})
    caller.ok("DEL", {"cniVersion": "1.1.0", "name": "others", "type": "sbr"})
    caller.ok("CHECK", {**config, "prevResult": previous})


def test_a_second_add_is_refused_and_changes_nothing(caller: Caller) -> None:
    caller.container("c1")
    caller.ok("ADD", bridged(2))
    before = snapshot()
    code, sentence = caller.error("ADD", bridged(3))
    assert code == Code.CONFLICT
    assert "has eth0 in network pods already" in sentence
    assert differences(before, snapshot()) == []


def test_another_gateway_needs_force(caller: Caller) -> None:
    caller.container("c1")
    caller.container("c2")
    caller.ok("ADD", bridged(2, addresses=("10.22.0.{}/16",)))
    before = snapshot()
    code, sentence = caller.error("ADD", bridged(2, addresses=("10.23.0.{}/16",)), "c2")
    assert code == Code.CONFLICT
    assert "already has an IP address different from 10.23.0.1/16; it has 10.22.0.1/16" in sentence
    assert differences(before, snapshot()) == []
    caller.ok("ADD", bridged(2, addresses=("10.23.0.{}/16",), forceAddress=True), "c2")
    assert "10.23.0.1/16" in (addresses := run("ip", "addr", "show", "cni0"))
    assert "10.22.0.1/16" not in addresses


def test_a_bridge_that_was_there_is_adopted_and_stays(caller: Caller, controller: Controller) -> None:
    run("ip", "link", "add", "cni0", "type", "bridge")
    run("ip", "addr", "add", "10.22.0.1/16", "dev", "cni0")
    before = snapshot()
    caller.container("c1")
    result = caller.ok("ADD", bridged(2))
    assert result["interfaces"][0]["mac"] in run("ip", "link", "show", "cni0")
    assert caller.pings("c1", "10.22.0.1")
    caller.clear()
    controller.reset()
    assert differences(before, snapshot()) == []
    run("ip", "link", "del", "cni0")


def test_the_second_layer_alone(caller: Caller) -> None:
    caller.container("c1")
    result = caller.ok("ADD", {"cniVersion": "1.0.0", "name": "l2", "type": "bridge", "bridge": "br-l2"})
    assert "ips" not in result
    assert "state UP" in run("ip", "-n", "c1", "link", "show", "eth0")
    assert "master br-l2" in run("ip", "link", "show", result["interfaces"][1]["name"])


@pytest.mark.parametrize(
    ("more", "args", "expected"),
    [
        ({"args": {"cni": {"mac": "02:00:00:00:00:0a"}}}, "", "02:00:00:00:00:0a"),
        ({}, "IgnoreUnknown=1;MAC=02:00:00:00:00:0b", "02:00:00:00:00:0b"),
        (
            {"args": {"cni": {"mac": "02:00:00:00:00:0a"}}, "runtimeConfig": {"mac": "02:00:00:00:00:0c"}},
            "IgnoreUnknown=1;MAC=02:00:00:00:00:0b",
            "02:00:00:00:00:0c",
        ),
    ],
)
def test_a_mac_address_asked_for(caller: Caller, more: dict[str, Any], args: str, expected: str) -> None:
    caller.container("c1")
    result = caller.ok("ADD", bridged(2, **more), args=args)
    assert result["interfaces"][2]["mac"] == expected
    assert expected in run("ip", "-n", "c1", "link", "show", "eth0")


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (bridged(2, mtu=-1), "invalid MTU -1"),
        (bridged(2, bridge="no/name"), "no/name"),
        (bridged(2, hairpinMode=True, promiscMode=True), "cannot set hairpin mode and promiscuous mode at the same time"),
        (bridged(2, disableContainerInterface=True), "cannot use IPAM when DisableContainerInterface flag is set"),
        ({"cniVersion": "1.0.0", "name": "p", "type": "ptp"}, "ptp needs addresses"),
        (conf(2, ipam={"type": "bridge"}), 'ipam.type: "bridge" gives no addresses'),
        (conf(2, ipam={"type": "nothing-like-that"}), 'failed to find plugin "nothing-like-that"'),
        (conf(2, args={"cni": {"mac": "zz"}}), "zz"),
        (bridged(2, addresses=("255.255.255.255/32",)), "255.255.255.255/32 has no room for a gateway"),
        *(
            (addressed(kind, {"address": "10.22.0.2/16", "gateway": "fd00:22::1"}), "gateway fd00:22::1 of 10.22.0.2/16 is of")
            for kind in ("bridge", "ptp")
        ),
        (routed("bridge", {"dst": "10.9.0.0/16", "gw": "fd00:22::1"}), "gateway fd00:22::1 of the route to 10.9.0.0/16 is of"),
        (routed("bridge", {"dst": "10.9.0.0/16", "scope": 256}), "ipam.routes[0].scope: expected `int` <= 255, got 256"),
        (routed("ptp", {"dst": "10.9.0.0/16", "advmss": 1 << 32}), "ipam.routes[0].advmss: expected `int` <= 4294967295"),
    ],
)
def test_what_is_refused_changes_nothing(caller: Caller, wrong: dict[str, Any], expected: str) -> None:
    caller.container("c1")
    before = snapshot()
    assert expected in caller.error("ADD", wrong)[1]
    assert differences(before, snapshot()) == []


def test_an_interface_of_that_name_in_the_container(caller: Caller) -> None:
    caller.container("c1")
    run("ip", "-n", "c1", "link", "add", "eth0", "type", "bridge")
    before = snapshot()
    assert "eth0 exists" in caller.error("ADD", bridged(2))[1]
    assert differences(before, snapshot()) == []


@pytest.fixture
def outside(caller: Caller) -> str:
    """A host beyond this one, which knows no way back to containers; its address."""
    caller.container("outside")
    run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", "outside")
    for where, dev, address in ((), "up0", "198.51.100.1/24"), (("-n", "outside"), "eth0", "198.51.100.2/24"):
        run("ip", *where, "addr", "add", address, "dev", dev)
        run("ip", *where, "link", "set", dev, "up")
    return "198.51.100.2"


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_masquerade_leads_out_and_goes_with_the_attachment(caller: Caller, outside: str, kind: str) -> None:
    def config(number: int, masquerade: bool) -> dict[str, Any]:
        return bridged(number, ipMasq=masquerade) if kind == "bridge" else conf(number, "ptp", ipMasq=masquerade)

    for number, name, masquerade in ((2, "c1", True), (3, "c2", False)):
        caller.container(name)
        caller.ok("ADD", config(number, masquerade), name)
    assert caller.pings("c1", outside)
    assert not caller.pings("c2", outside)
    assert caller.pings("c1", "10.22.0.3")
    assert "10.22.0.2" in run("nft", "list", "table", "inet", "netlib")
    caller.ok("DEL", config(2, masquerade=True))
    assert "10.22.0.2" not in run("nft", "list", "table", "inet", "netlib")


def test_an_unknown_backend_is_refused(caller: Caller) -> None:
    caller.container("c1")
    assert 'unknown ipmasq backend "pf"' in caller.error("ADD", bridged(2, ipMasqBackend="pf"))[1]


def test_check_compares_the_previous_result(caller: Caller) -> None:
    caller.container("c1")
    previous = caller.ok("ADD", bridged(2))
    other = {**previous, "ips": [*previous["ips"], {**previous["ips"][0], "address": "10.22.0.99/16"}]}
    assert "10.22.0.99/16 is not among the addresses" in caller.error("CHECK", {**bridged(2), "prevResult": other})[1]
    moved = {**previous, "interfaces": [*previous["interfaces"][:2], {**previous["interfaces"][2], "sandbox": "/run/netns/x"}]}
    assert "doesn't match configured netns" in caller.error("CHECK", {**bridged(2), "prevResult": moved})[1]


def test_a_bridge_deleted_by_hand_comes_back_with_the_next_container(caller: Caller) -> None:
    for number, name in ((2, "c1"), (3, "c2")):
        caller.container(name)
        if name == "c2":
            run("ip", "link", "del", "cni0")
        caller.ok("ADD", bridged(number), name)
    assert caller.pings("c2", "10.22.0.2")
    assert caller.pings("c2", "10.22.0.1")


def test_an_answer_that_its_version_cannot_express_leaves_nothing(caller: Caller, controller: Controller) -> None:
    caller.container("c1")
    before = snapshot()
    code, message = caller.error("ADD", {"cniVersion": "0.2.0", "name": "pods", "type": "bridge"})
    assert (code, "no valid IP addresses" in message) == (Code.INCOMPATIBLE_VERSION, True)
    assert differences(before, snapshot()) == []
    assert Attachments(controller).attachments() == []
