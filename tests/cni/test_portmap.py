"""``portmap``: who reaches a container's port on the host, and what every verb does with it.

Each runs with bridged frames passing the host's rules (bridge-nf-call-iptables 1) and without. The containers are those of
``firewall_world``, on bridges that some plugin before has made.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cni_plugins.protocol import Code
from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.errors import PortTaken
from netlib.kernel.netns import entered
from netlib.ports import parse_publish
from tests.cni.calling import Caller
from tests.kernel.firewall_world import Probe, World, probes
from tests.stored import stored_objects

ADDRESSES = {"fw-a1": ("10.1.0.2/24", "fd01::2/64"), "fw-a2": ("10.1.0.3/24", "fd01::3/64"), "fw-b1": ("10.2.0.2/24",)}
UPLINK = ("192.168.9.1", "fd09::1")
LOCALNET = Path("/proc/sys/net/ipv4/conf/brA/route_localnet")


@pytest.fixture(scope="module", params=[0, 1], ids=["bridge_nf_0", "bridge_nf_1"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    world = World(request.param)
    yield world
    world.close()


@pytest.fixture
def controller(world: World, config: Config) -> Iterator[Controller]:
    """The verbs of the world's host; a test's thread stays there."""
    with entered(world.refs["host"]):
        LOCALNET.write_text("0")
        with Controller(config, watcher=Unwatched()) as controller:
            yield controller
            controller.reset()
        assert LOCALNET.read_text() == "0\n"
        LOCALNET.write_text("1")


def conf(*ports: dict[str, Any], container: str = "fw-a1", **more: Any) -> dict[str, Any]:
    interfaces = [{"name": "brA"}, {"name": "v"}, {"name": "eth0", "sandbox": f"/run/netns/{container}"}]
    ips = [{"address": address, "interface": 2} for address in ADDRESSES.get(container, ())]
    return {
        "cniVersion": "1.1.0",
        "name": "pods",
        "type": "portmap",
        "runtimeConfig": {"portMappings": list(ports)},
        "prevResult": {"cniVersion": "1.1.0", "interfaces": interfaces, "ips": ips},
        **more,
    }


def port(host: int, container: int = 80, protocol: str = "tcp", **more: str) -> dict[str, Any]:
    return {"hostPort": host, "containerPort": container, "protocol": protocol, **more}


BOTH = (port(7080), port(7080, protocol="udp"))


def names(found: list[str | None]) -> list[str | None]:
    """Who answered."""
    return [answer and answer.split()[0] for answer in found]


def test_from_outside_it_shows_who_asks_and_the_result_is_passed_on(world: World, caller: Caller) -> None:
    config = conf(*BOTH)
    result = caller.ok("ADD", config, "fw-a1")
    assert result == config["prevResult"]
    assert world.answers(*probes(["lan"], UPLINK, 7080)) == ["a1 192.168.9.2"] * 2 + ["a1 fd09::2"] * 2
    caller.ok("DEL", config, "fw-a1")
    world.closed(*probes(["lan"], UPLINK, 7080))
    caller.ok("DEL", config, "fw-a1")


def test_from_beside_the_container_and_from_itself(world: World, caller: Caller) -> None:
    caller.ok("ADD", conf(*BOTH), "fw-a1")
    found = world.answers(*probes(["a1", "a2"], [*UPLINK, "10.1.0.1", "fd01::1"], 7080))
    assert names(found) == ["a1"] * 16
    assert {answer and answer.split()[1] for answer in found} == {"10.1.0.1", "fd01::1"}
    assert world.answers(*probes(["b1"], ["10.2.0.1"], 7080)) == ["a1 10.2.0.2"] * 2
    world.reached(*probes(["a2"], ["10.1.0.2"]))


def test_from_the_host_by_its_loopback_and_nobody_elses(world: World, caller: Caller) -> None:
    """The links of mallory and lan lead 127.0.0.0/8 to the host."""
    caller.ok("ADD", conf(*BOTH), "fw-a1")
    assert LOCALNET.read_text() == "1\n"
    assert world.answers(*probes(["host"], ["127.0.0.1"], 7080)) == ["a1 10.1.0.1"] * 2
    assert names(world.answers(*probes(["host"], UPLINK, 7080))) == ["a1"] * 4
    world.closed(*probes(["mallory", "lan"], ["127.0.0.1"], 7080), *probes(["mallory", "lan"], ["127.0.0.1"], 9000))


def test_on_one_address_only(world: World, caller: Caller) -> None:
    caller.ok(
        "ADD", conf(port(7081, hostIP="192.168.9.1"), port(7082, hostIP="127.0.0.1"), port(7083, hostIP="fd09::1")), "fw-a1"
    )
    assert world.answers(Probe("lan", "tcp", "192.168.9.1", 7081)) == ["a1 192.168.9.2"]
    assert world.answers(Probe("lan", "tcp", "fd09::1", 7083)) == ["a1 fd09::2"]
    assert world.answers(Probe("host", "tcp", "127.0.0.1", 7082)) == ["a1 10.1.0.1"]
    world.closed(
        *probes(["host"], ["127.0.0.1", "10.1.0.1"], 7081, ["tcp"]),
        *probes(["lan", "a2", "mallory"], ["192.168.9.1", "fd09::1"], 7082, ["tcp"]),
        *probes(["lan"], ["192.168.9.1"], 7083, ["tcp"]),
    )


def test_without_snat_nobody_else_than_the_outside_is_answered(world: World, caller: Caller) -> None:
    caller.ok("ADD", conf(*BOTH, snat=False), "fw-a1")
    assert LOCALNET.read_text() == "0\n"
    assert world.answers(*probes(["lan"], ["192.168.9.1"], 7080)) == ["a1 192.168.9.2"] * 2
    world.closed(*probes(["host"], ["127.0.0.1"], 7080, ["tcp"]), *probes(["a1"], ["192.168.9.1"], 7080))


def test_masquerading_all(world: World, caller: Caller) -> None:
    caller.ok("ADD", conf(*BOTH, masqAll=True), "fw-a1")
    assert world.answers(*probes(["lan"], UPLINK, 7080)) == ["a1 10.1.0.1"] * 2 + ["a1 fd01::1"] * 2


@pytest.mark.parametrize(
    ("words", "open_to", "closed_to"),
    [
        (["-s", "192.168.9.0/24"], ["lan"], ["a2", "b1"]),
        (["!", "-s", "192.168.9.2"], ["a2", "b1"], ["lan"]),
        (["-i", "brA", "!", "-d", "10.9.9.9"], ["a2"], ["lan", "b1"]),
        (["ip", "saddr", "!=", "10.1.0.0/24", "iifname", "!=", "brB"], ["lan"], ["a2", "b1"]),
    ],
)
def test_conditions_say_whom_a_port_is_for(
    world: World, caller: Caller, words: list[str], open_to: list[str], closed_to: list[str]
) -> None:
    config = conf(*BOTH, conditionsV4=words)
    caller.ok("ADD", config, "fw-a1")
    caller.ok("CHECK", config, "fw-a1")
    assert names(world.answers(*probes(open_to, ["192.168.9.1"], 7080))) == ["a1"] * 2 * len(open_to)
    world.closed(*probes(closed_to, ["192.168.9.1"], 7080))
    assert names(world.answers(*probes(["lan"], ["fd09::1"], 7080))) == ["a1"] * 2
    caller.ok("DEL", config, "fw-a1")


def test_a_condition_of_one_address_is_none_of_anothers(world: World, caller: Caller) -> None:
    """The same port on two addresses, of two containers."""
    guarded = conf(port(7080, hostIP="192.168.9.1"), conditionsV4=["-s", "10.0.0.0/8"])
    caller.ok("ADD", guarded, "fw-a1")
    caller.ok("ADD", conf(port(7080, hostIP="10.1.0.1"), container="fw-a2"), "fw-a2")
    found = world.answers(*probes(["b1"], ["192.168.9.1", "10.1.0.1"], 7080, ["tcp"]))
    assert names(found) == ["a1", "a2"]
    assert names(world.answers(*probes(["lan"], ["10.1.0.1"], 7080, ["tcp"]))) == ["a2"]
    world.closed(*probes(["lan"], ["192.168.9.1"], 7080, ["tcp"]))
    caller.ok("DEL", guarded, "fw-a1")


@pytest.mark.parametrize(
    ("more", "code", "sentence"),
    [
        (
            {"conditionsV4": ["-m", "mark", "--mark", "1"]},
            Code.UNSUPPORTED_FIELD,
            "portmap: conditionsV4 is not supported: -m mark --mark 1; source, destination and incoming link are, each",
        ),
        ({"conditionsV4": ["-s", "fd00::/64"]}, Code.UNSUPPORTED_FIELD, "conditionsV4 is not supported: -s fd00::/64"),
        ({"conditionsV6": ["-s"]}, Code.UNSUPPORTED_FIELD, "conditionsV6 is not supported: -s"),
        ({"conditionsV4": ["-i", "x; flush ruleset"]}, Code.UNSUPPORTED_FIELD, "conditionsV4 is not supported"),
        ({"conditionsV4": ["tcp", "dport", "80"]}, Code.UNSUPPORTED_FIELD, "is not supported: tcp dport 80"),
        (
            {"conditionsV4": ["-s", "10.0.0.0/8"], "backend": "nftables"},
            Code.INVALID_CONFIG,
            "nftables backend was requested but configuration contains iptables-specific options [conditionsV4]",
        ),
        ({"backend": "ipfw"}, Code.INVALID_CONFIG, 'unrecognized backend "ipfw"'),
    ],
)
def test_what_cannot_be_kept_is_refused(world: World, caller: Caller, more: dict[str, Any], code: Code, sentence: str) -> None:
    found = caller.error("ADD", conf(port(7080), **more), "fw-a1")
    assert found[0] == code
    assert sentence in found[1]
    assert world.run("nft", "list tables") == ""


def test_a_range_is_one_object(world: World, caller: Caller, controller: Controller) -> None:
    caller.ok("ADD", conf(*(port(7100 + number, 60 + number) for number in range(50))), "fw-a1")
    world.reached(Probe("lan", "tcp", "192.168.9.1", 7120))
    world.closed(Probe("lan", "tcp", "192.168.9.1", 7119))  # nobody listens on 79
    with controller.store.read() as tx:
        keys = [str(item.key) for item in stored_objects(tx) if "/port/" in str(item.key)]
    assert keys == ["firewall/host/port/0.0.0.0:7100-7149/tcp", "firewall/host/port/[::]:7100-7149/tcp"]


def test_a_udp_flow_follows_the_port(world: World, caller: Caller) -> None:
    """One that began before the port was published, and goes on when it leads elsewhere."""
    flow = Probe("lan", "udp", "192.168.9.1", 7000, source_port=40000)
    world.closed(flow)
    for container in ("fw-a1", "fw-a2"):
        config = conf(port(7000, protocol="UDP"), container=container)
        caller.ok("ADD", config, container)
        assert world.answers(flow) == [f"{container.removeprefix('fw-')} 192.168.9.2"]
        caller.ok("DEL", config, container)
    world.closed(flow)


def test_a_port_has_one_holder_who_is_named(world: World, caller: Caller) -> None:
    caller.ok("ADD", conf(port(7080)), "fw-a1")
    code, sentence = caller.error("ADD", conf(port(7080), container="fw-a2"), "fw-a2")
    assert code == Code.CONFLICT
    assert "host port 7080/tcp is published by container fw-a1 of a CNI network" in sentence
    code, sentence = caller.error("ADD", conf(port(7080, hostIP="127.0.0.1"), container="fw-a2", name="others"), "fw-a2")
    assert "host port 7080/tcp on 127.0.0.1 is published by container fw-a1" in sentence
    caller.ok("ADD", conf(port(7080, protocol="udp"), container="fw-a2"), "fw-a2")
    assert names(world.answers(*probes(["lan"], ["192.168.9.1"], 7080))) == ["a1", "a2"]


def test_a_container_has_its_port_in_the_first_of_its_networks_that_are_left(world: World, caller: Caller) -> None:
    """Runtimes ask for a container's ports in each network; what the first one's family leaves out the second publishes."""
    first, again = conf(port(7080)), conf(port(7080), name="others")
    first["prevResult"]["ips"] = first["prevResult"]["ips"][:1]
    again["prevResult"]["interfaces"][2]["name"] = "eth1"
    caller.ok("ADD", first, "fw-a1")
    caller.ok("ADD", again, "fw-a1", ifname="eth1")
    for config, ifname in ((first, "eth0"), (again, "eth1")):
        caller.ok("CHECK", config, "fw-a1", ifname=ifname)
    assert names(world.answers(*probes(["lan"], UPLINK, 7080, ["tcp"]))) == ["a1", "a1"]
    assert "published by container fw-a1" in caller.error("ADD", conf(port(7080), container="fw-a2"), "fw-a2")[1]
    caller.ok("DEL", first, "fw-a1")
    caller.ok("CHECK", again, "fw-a1", ifname="eth1")
    assert names(world.answers(*probes(["lan"], UPLINK, 7080, ["tcp"]))) == ["a1", "a1"]
    assert "published by container fw-a1" in caller.error("ADD", conf(port(7080), container="fw-a2"), "fw-a2")[1]
    caller.ok("DEL", again, "fw-a1", ifname="eth1")
    world.closed(*probes(["lan"], UPLINK, 7080, ["tcp"]))
    caller.ok("ADD", conf(port(7080), container="fw-a2"), "fw-a2")


def test_the_next_network_takes_the_ports_over_one_of_two_does(world: World, caller: Caller) -> None:
    """The container's later networks have the addresses of others here: who answers tells by which one it went."""
    configs = []
    for number, stand_in in enumerate(("fw-a1", "fw-a2", "fw-b1")):
        config = conf(*BOTH, name=f"net{number}")
        config["prevResult"]["interfaces"][2]["name"] = f"eth{number}"
        config["prevResult"]["ips"] = [{"address": ADDRESSES[stand_in][0], "interface": 2}]
        configs.append(config)
        caller.ok("ADD", config, "fw-a1", ifname=f"eth{number}")
    for number, who in enumerate(("a1", "a2", "b1")):
        assert names(world.answers(*probes(["lan"], UPLINK[:1], 7080))) == [who] * 2
        for later in range(number, 3):
            caller.ok("CHECK", configs[later], "fw-a1", ifname=f"eth{later}")
        caller.ok("DEL", configs[number], "fw-a1", ifname=f"eth{number}")
    world.closed(*probes(["lan"], UPLINK[:1], 7080))


def test_ports_of_a_container_that_is_gone_are_not_handed_on(world: World, caller: Caller) -> None:
    caller.container("dead")
    configs = [conf(port(7080), name=name, prevResult={"ips": [{"address": "10.1.0.99/24"}]}) for name in ("pods", "others")]
    for number, config in enumerate(configs):
        caller.ok("ADD", config, "dead", ifname=f"eth{number}")
    caller.lose("dead")
    caller.ok("DEL", configs[0], "dead")
    caller.ok("ADD", conf(port(7080)), "fw-a1")
    caller.ok("DEL", configs[1], "dead", ifname="eth1")
    assert names(world.answers(*probes(["lan"], UPLINK, 7080, ["tcp"]))) == ["a1"] * 2


def test_a_network_of_netlibs_and_a_plugin_do_not_get_the_same_port(
    world: World, caller: Caller, controller: Controller
) -> None:
    caller.ok("ADD", conf(port(7080)), "fw-a1")
    controller.create_network("web")
    controller.create_sandbox("box")
    with pytest.raises(PortTaken, match="port 7080/tcp is already published by container fw-a1 of a CNI network; choose"):
        controller.connect("web", "box", ports=parse_publish("7080:80"))
    controller.connect("web", "box", ports=parse_publish("7081:80"))
    code, sentence = caller.error("ADD", conf(port(7081), container="fw-a2"), "fw-a2")
    assert code == Code.CONFLICT
    assert sentence.startswith("host port 7081/tcp is published by 'box'; choose another")


def test_who_lost_its_netns_gives_its_port_up(world: World, caller: Caller) -> None:
    caller.container("dead")
    gone = conf(port(7080), prevResult={"ips": [{"address": "10.1.0.99/24"}]})
    caller.ok("ADD", gone, "dead")
    caller.lose("dead")
    caller.ok("ADD", conf(port(7080)), "fw-a1")
    assert names(world.answers(*probes(["lan"], UPLINK, 7080, ["tcp"]))) == ["a1"] * 2
    caller.ok("DEL", gone, "dead")
    assert names(world.answers(*probes(["lan"], UPLINK, 7080, ["tcp"]))) == ["a1"] * 2


def test_check_names_what_differs(world: World, caller: Caller) -> None:
    config = conf(*BOTH)
    code, sentence = caller.error("CHECK", config, "fw-a1")
    assert (code, sentence) == (Code.DRIFT, "portmap: no ports of container fw-a1 are recorded; ADD it again; ")
    caller.ok("ADD", config, "fw-a1")
    caller.ok("CHECK", config, "fw-a1")
    code, sentence = caller.error("CHECK", conf(*BOTH, port(7090)), "fw-a1")
    assert "port/0.0.0.0:7090/tcp was not published" in sentence
    world.run("nft", "delete element inet netlib ports4 { tcp . 7080 }")
    code, sentence = caller.error("CHECK", config, "fw-a1")
    assert code == Code.DRIFT
    assert "ports4 tcp . 7080 is missing" in sentence
    caller.ok("DEL", config, "fw-a1")


def test_gc_and_status(world: World, caller: Caller) -> None:
    caller.ok("STATUS", conf())
    caller.ok("ADD", conf(port(7080)), "fw-a1")
    caller.ok("ADD", conf(port(7081), container="fw-a2"), "fw-a2")
    caller.ok("GC", {**conf(), "cni.dev/valid-attachments": [{"containerID": "fw-a2", "ifname": "eth0"}]})
    world.reached(Probe("lan", "tcp", "192.168.9.1", 7081))
    world.closed(Probe("lan", "tcp", "192.168.9.1", 7080))


def test_nothing_is_written_down_without_ports_or_addresses(world: World, caller: Caller, controller: Controller) -> None:
    for config in (conf(), conf(port(7080), prevResult={"ips": []})):
        caller.ok("ADD", config, "fw-a1")
        caller.ok("CHECK", config, "fw-a1")
        caller.ok("DEL", config, "fw-a1")
    with controller.store.read() as tx:
        assert list(stored_objects(tx)) == []


@pytest.mark.parametrize("program", ["iptables", "iptables-legacy"])
def test_del_takes_what_the_reference_left(world: World, caller: Caller, program: str) -> None:
    """And nothing of any other container's."""
    v6 = program.replace("ip", "ip6", 1)
    tables = [program, v6]
    chain, other = "CNI-DN-c696790723754b4a3dd22", "CNI-DN-000000000000000000000"
    for tool in tables:
        world.run(tool, "-t", "nat", "-N", "CNI-HOSTPORT-DNAT")
        for name in (chain, other):
            world.run(tool, "-t", "nat", "-N", name)
            world.run(tool, "-t", "nat", "-A", name, "-p", "tcp", "--dport", "7080", "-j", "REDIRECT")
            world.run(
                tool, "-t", "nat", "-A", "CNI-HOSTPORT-DNAT", "-p", "tcp", "-m", "multiport", "--dports", "1,2", "-j", name
            )
    caller.ok("DEL", conf(port(7080)), "fw-a1")
    for tool in tables:
        rules = world.run(tool, "-t", "nat", "-S")
        assert chain not in rules, tool
        assert rules.count(other) == 3, tool
        world.run(tool, "-t", "nat", "-F")
        world.run(tool, "-t", "nat", "-X")


def test_del_takes_what_the_references_nftables_backend_left(world: World, caller: Caller) -> None:
    for comment in ("fw-a1", "fw-a2"):
        lines = "add table ip cni_hostport; add chain ip cni_hostport hostports; add chain ip cni_hostport masquerading; "
        lines += f'add rule ip cni_hostport hostports tcp dport 1 accept comment "{comment}"; '
        lines += f'add rule ip cni_hostport masquerading tcp dport 1 accept comment "{comment}"'
        world.run("nft", lines)
    caller.ok("DEL", conf(port(7080)), "fw-a1")
    rules = world.run("nft", "list table ip cni_hostport")
    assert (rules.count('"fw-a1"'), rules.count('"fw-a2"')) == (0, 2)
    world.run("nft", "delete table ip cni_hostport")


def test_rules_of_a_foreign_hook_are_where_they_were(world: World, caller: Caller) -> None:
    """A user's own nat rules are not ours to order."""
    world.run("nft", "add table ip mine; add chain ip mine c { type nat hook prerouting priority -110; }")
    world.run("nft", "add rule ip mine c tcp dport 7080 redirect to :9001")
    caller.ok("ADD", conf(port(7080)), "fw-a1")
    assert world.answers(Probe("lan", "tcp", "192.168.9.1", 7080)) == ["host 192.168.9.2"]
    subprocess.run(["nft", "delete table ip mine"], check=True)
