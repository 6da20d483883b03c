"""The type ``netlib``: containers of CNI runtimes in networks of ``netlib network create``, and what every verb does there."""

import os
import socket
from typing import Any

import pytest

from cni_plugins import attaching
from cni_plugins.cnm import sandbox_name
from cni_plugins.protocol import CniError, Code
from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.kernel.netns import entered
from netlib.model import NetnsRef
from netlib.names import check_sandbox_name
from netlib.testing.snapshot import differences, snapshot
from netlib.verbs.perform import perform
from netlib.wire.client import leave
from tests.cni.calling import Caller, run
from tests.faults import interrupted
from tests.kernel.dns_client import resolve
from tests.kernel.frames import Ears, datagram, send

FULL_ID = "0123456789abcdef" * 4
SECONDS = 5.0


def records(controller: Controller) -> list[tuple[str, str]]:
    """Every record's id and phase."""
    with controller.store.read() as tx:
        return sorted(tx.db.execute("SELECT id, phase FROM record"))


PORTS: dict[str, Any] = {"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}}


def conf(name: str = "web", **more: Any) -> dict[str, Any]:
    return {"cniVersion": "1.1.0", "name": name, "type": "netlib", **more}


@pytest.fixture
def web(controller: Controller) -> None:
    """The network, with a container of netlib's own in it."""
    controller.create_network("web", subnets=["172.28.0.0/16", "fd00:28::/64"], ipv6=True)
    controller.create_sandbox("own")
    controller.connect("web", "own")


@pytest.mark.usefixtures("web")
def test_a_container_is_heard_from_its_own_address_only(caller: Caller, controller: Controller) -> None:
    caller.container("c1")
    caller.ok("ADD", conf())
    mac = controller.endpoints(sandbox="own")[0].mac
    ears = Ears()
    try:
        hear = ears.open(controller.sandbox("own").netns, 9000)
        for version, forged in ((4, "172.28.0.{}"), (6, "fd00:28::{}")):
            frames = [datagram(forged.format(last), forged.format(2), 9000, str(last), mac=mac) for last in (1, 99, 3)]
            send(NetnsRef("/run/netns/c1"), "eth0", *frames)
            assert (version, hear()) == (version, "3")
    finally:
        ears.close()


@pytest.mark.usefixtures("web")
def test_a_container_joins_the_network_with_the_others(caller: Caller, controller: Controller) -> None:
    caller.container("c1")
    result = caller.ok("ADD", conf())
    assert [(item["name"], item.get("sandbox")) for item in result["interfaces"]][1] == ("eth0", "/run/netns/c1")
    assert result["ips"] == [
        {"address": "172.28.0.3/16", "gateway": "172.28.0.1", "interface": 1},
        {"address": "fd00:28::3/64", "gateway": "fd00:28::1", "interface": 1},
    ]
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "172.28.0.1"}, {"dst": "::/0", "gw": "fd00:28::1"}]
    assert result["dns"] == {"nameservers": ["172.28.0.1"]}
    for item, where in zip(result["interfaces"], ([], ["-n", "c1"]), strict=True):
        assert item.get("mac", "") in run("ip", *where, "link", "show", item["name"])
    for address in ("172.28.0.2", "fd00:28::2", "172.28.0.1"):
        assert caller.pings("c1", address), address
    members = perform(controller, "network.inspect", {"names": ["web"]})[0]["Containers"].values()
    assert sorted(item["Name"] for item in members) == ["cni-c1", "own"]
    (shown,) = perform(controller, "cni.inspect", {"name": "c1"})
    assert (shown["Plugins"][0]["Type"], shown["Drift"]) == ("netlib", [])
    assert "address//run/netns/c1/eth0 172.28.0.3/16" in shown["Plugins"][0]["Objects"]
    assert "ip -n c1 addr add 172.28.0.3/16 brd + dev eth0" in [
        line for item in perform(controller, "explain", {"name": "c1"}) for line in item["Commands"]
    ]


@pytest.mark.usefixtures("web")
@pytest.mark.parametrize("container", ["c1", FULL_ID, "k8s_" + "long-" * 20 + "1"])
@pytest.mark.parametrize("has_netns", [True, False])
def test_del_takes_all_back_and_may_come_twice(caller: Caller, controller: Controller, container: str, has_netns: bool) -> None:
    before, rows = snapshot(), records(controller)
    caller.container(container)
    caller.ok("ADD", conf(), container)
    if not has_netns:
        caller.lose(container)
    caller.ok("DEL", conf(), container)
    caller.ok("DEL", conf(), container)
    assert [box.name for box in controller.sandboxes()] == ["own"]
    caller.clear()
    assert differences(before, snapshot()) == []
    assert perform(controller, "cni.prune", {})["NetworksDeleted"] == ["web"]
    assert records(controller) == rows


def test_names_of_sandboxes_fit_and_differ() -> None:
    ids = ["c1", FULL_ID, FULL_ID[:-1] + "0", "a" * 59, "a" * 60, "a" * 61, "x" * 300, "x" * 301]
    names = [sandbox_name(container) for container in ids]
    assert len(set(names)) == len(names)
    for name in names:
        check_sandbox_name(name)


@pytest.mark.usefixtures("web")
def test_a_full_id_is_the_sandboxs_own(caller: Caller, controller: Controller) -> None:
    caller.container(FULL_ID)
    caller.ok("ADD", conf(), FULL_ID)
    assert FULL_ID in perform(controller, "network.inspect", {"names": ["web"]})[0]["Containers"]


@pytest.mark.usefixtures("web")
def test_all_interfaces_of_a_container_are_one_sandbox(caller: Caller, controller: Controller) -> None:
    controller.create_network("db", subnets=["172.29.0.0/16"])
    caller.container("c1")
    caller.ok("ADD", conf())
    second = caller.ok("ADD", conf("db"), ifname="eth1")
    assert "routes" not in second
    assert caller.pings("c1", "172.29.0.1")
    assert [box.name for box in controller.sandboxes()] == ["cni-c1", "own"]
    code, sentence = caller.error("ADD", conf("more", network="db"), ifname="eth2")
    assert (code, "already connected to network 'db'" in sentence) == (Code.CONFLICT, True)
    code, sentence = caller.error("ADD", conf("more", network="web"), ifname="eth1")
    assert code == Code.CONFLICT
    caller.ok("DEL", conf())
    assert caller.pings("c1", "172.29.0.1")
    caller.ok("CHECK", {**conf("db"), "prevResult": second}, ifname="eth1")
    caller.ok("DEL", conf("db"), ifname="eth1")
    assert [box.name for box in controller.sandboxes()] == ["own"]


@pytest.mark.usefixtures("web")
def test_a_container_has_its_ports_in_the_first_of_its_networks_that_are_left(caller: Caller, controller: Controller) -> None:
    controller.create_network("db", subnets=["172.29.0.0/16"])
    caller.container("c1")
    ports: dict[str, Any] = {"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}}
    caller.ok("ADD", conf(**ports))
    second = caller.ok("ADD", conf("db", **ports), ifname="eth1")
    caller.ok("CHECK", {**conf("db", **ports), "prevResult": second}, ifname="eth1")
    assert {endpoint.ifname: len(endpoint.ports) for endpoint in controller.endpoints(sandbox="cni-c1")} == {
        "eth0": 1,
        "eth1": 0,
    }
    caller.ok("DEL", conf(**ports))
    assert [len(endpoint.ports) for endpoint in controller.endpoints(sandbox="cni-c1")] == [1]
    caller.ok("CHECK", {**conf("db", **ports), "prevResult": second}, ifname="eth1")


def test_networks_that_say_on_which_address_they_publish_do_not_refuse_the_same_container(
    caller: Caller, controller: Controller
) -> None:
    for name, address in (("one", "127.0.0.1"), ("two", "127.0.0.1"), ("all", "0.0.0.0")):
        controller.create_network(name, options={"com.docker.network.bridge.host_binding_ipv4": address})
    caller.container("c1")
    for number, name in enumerate(("one", "two", "all")):
        caller.ok("ADD", conf(name, **PORTS), ifname=f"eth{number}")
    assert sorted(len(endpoint.ports) for endpoint in controller.endpoints(sandbox="cni-c1")) == [0, 0, 1]


@pytest.mark.parametrize("first", ["netlib", "portmap"])
def test_a_container_in_networks_of_both_sorts_has_its_ports_once(caller: Caller, controller: Controller, first: str) -> None:
    controller.create_network("web", subnets=["172.28.0.0/16"])
    caller.container("c1")
    addresses = {"interfaces": [{"name": "eth1"}], "ips": [{"address": "10.9.0.2/24"}]}
    chained = {**conf("pods", **PORTS), "type": "portmap", "prevResult": addresses}
    calls = [(conf(**PORTS), "eth0"), (chained, "eth1")]
    for config, ifname in calls if first == "netlib" else reversed(calls):
        caller.ok("ADD", config, ifname=ifname)
    caller.ok("CHECK", chained, ifname="eth1")
    with controller.store.read() as tx:
        assert len(tx.ports()) == 1
    caller.ok("DEL", conf(**PORTS))
    caller.ok("CHECK", chained, ifname="eth1")  # it has them now, in any case
    with controller.store.read() as tx:
        assert len(tx.ports()) == 1
    caller.ok("DEL", chained, ifname="eth1")
    with controller.store.read() as tx:
        assert tx.ports() == []


@pytest.mark.usefixtures("web")
def test_ports_of_an_add_that_failed_are_nobodys(
    caller: Caller, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise CniError(Code.INCOMPATIBLE_VERSION, "cannot be said")

    controller.create_network("db", subnets=["172.29.0.0/16"])
    caller.container("c1")
    caller.ok("ADD", conf())
    monkeypatch.setattr(attaching, "finish", refuse)
    ports = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
    assert "cannot be said" in caller.error("ADD", conf("db", runtimeConfig={"portMappings": ports}), ifname="eth1")[1]
    assert [endpoint.ports for endpoint in controller.endpoints(sandbox="cni-c1")] == [()]


@pytest.mark.usefixtures("web")
def test_a_container_of_netlibs_own_keeps_its_sandbox(caller: Caller, controller: Controller) -> None:
    controller.create_network("db", subnets=["172.29.0.0/16"])
    caller.ok("ADD", conf("db"), "own", ifname="eth7")
    assert caller.pings("own", "172.29.0.1")
    caller.ok("DEL", conf("db"), "own", ifname="eth7")
    assert caller.pings("own", "172.28.0.1")


@pytest.mark.usefixtures("web")
def test_check_names_what_differs(caller: Caller, controller: Controller) -> None:
    caller.container("c1")
    checked = {**conf(), "prevResult": caller.ok("ADD", conf())}
    caller.ok("CHECK", checked)
    run("ip", "-n", "c1", "addr", "del", "172.28.0.3/16", "dev", "eth0")
    code, sentence = caller.error("CHECK", checked)
    assert (code, "172.28.0.3/16" in sentence) == (Code.DRIFT, True)
    controller.disconnect("web", "cni-c1")
    code, sentence = caller.error("CHECK", checked)
    assert (code, "endpoint/" in sentence) == (Code.DRIFT, True)
    caller.ok("DEL", conf())
    assert [box.name for box in controller.sandboxes()] == ["own"]
    assert caller.error("CHECK", checked)[0] == Code.DRIFT


@pytest.mark.usefixtures("web")
def test_gc_takes_what_is_not_valid_in_its_own_network(caller: Caller, controller: Controller) -> None:
    for name in ("c1", "c2", "c3"):
        caller.container(name)
        caller.ok("ADD", conf("other", network="web") if name == "c3" else conf(), name)
    caller.ok("GC", {**conf(), "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]})
    assert [box.name for box in controller.sandboxes()] == ["cni-c1", "cni-c3", "own"]
    caller.lose("c1")
    assert perform(controller, "cni.prune", {"stale": True})["AttachmentsDeleted"] == ["c1 eth0 web"]
    assert [box.name for box in controller.sandboxes()] == ["cni-c3", "own"]


def test_status_says_what_an_add_would_fail_with(caller: Caller, controller: Controller) -> None:
    controller.create_network("web", subnets=["172.28.0.0/30"])
    caller.ok("STATUS", conf())
    for name in ("c1", "c2"):
        caller.container(name)
    caller.ok("ADD", conf())
    code, sentence = caller.error("STATUS", conf())
    assert (code, "172.28.0.0/30" in sentence) == (Code.UNAVAILABLE, True)
    assert caller.error("STATUS", conf("nothing"))[0] == Code.UNAVAILABLE
    assert caller.error("ADD", conf(), "c2")[0] == Code.EXHAUSTED
    caller.lose("c1")
    assert caller.ok("ADD", conf(), "c2")["ips"][0]["address"] == "172.28.0.2/30"  # nobody had come to detach c1


@pytest.mark.usefixtures("web")
def test_a_container_that_came_back_without_a_del_takes_its_place(caller: Caller, controller: Controller) -> None:
    for _ in range(2):
        caller.container("c1")
        caller.ok("ADD", conf())
        caller.lose("c1")
    assert [item["Status"] for item in perform(controller, "cni.ls", {})] == ["stale"]
    assert [box.name for box in controller.sandboxes()] == ["cni-c1", "own"]


@pytest.mark.usefixtures("web")
def test_what_a_container_asks_for(caller: Caller, controller: Controller) -> None:
    caller.container("c1")
    ports = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
    wishes = {"ips": ["172.28.7.7/16", "fd00:28::7"], "mac": "02:00:00:00:00:0a", "portMappings": ports}
    result = caller.ok("ADD", conf(runtimeConfig=wishes), args="IgnoreUnknown=1;IP=172.28.1.1;MAC=02:00:00:00:00:0b")
    assert [ip["address"] for ip in result["ips"]] == ["172.28.7.7/16", "fd00:28::7/64"]
    assert result["interfaces"][1]["mac"] == "02:00:00:00:00:0a"
    with entered(controller.sandbox("cni-c1").netns):
        server = socket.create_server(("0.0.0.0", 80))
    with server, socket.create_connection(("127.0.0.1", 8080), timeout=SECONDS) as connection:
        assert connection.getpeername() == ("127.0.0.1", 8080)
    caller.container("c2")
    code, sentence = caller.error("ADD", conf(runtimeConfig={"portMappings": ports}), "c2")
    assert (code, "'cni-c1'" in sentence) == (Code.CONFLICT, True)
    assert caller.ok("ADD", conf(), "c2", args="IP=172.28.1.1")["ips"][0]["address"] == "172.28.1.1/16"


@pytest.mark.usefixtures("web")
@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (conf("nothing"), "network 'nothing' not found"),
        (conf("x", network="host"), 'network "host" (host) gives no interface'),
        (conf("x", network="none"), 'network "none" (none) gives no interface'),
        (conf(ipam={"type": "host-local"}), "the network gives the addresses itself"),
        (conf(runtimeConfig={"ips": ["10.1.0.2", "10.1.0.3"]}), "more than one of a family"),
        (conf(runtimeConfig={"ips": ["ten"]}), "'ten' does not appear to be"),
        (conf(runtimeConfig={"ips": ["10.1.0.2"]}), "10.1.0.2"),
        (conf(runtimeConfig={"aliases": "web"}), "aliases"),
        (conf(runtimeConfig={"aliases": ["-"]}), "alias '-'"),
        (conf(args={"cni": {"mac": "zz"}}), "MAC address 'zz' is malformed"),
        (conf(runtimeConfig={"portMappings": [{"hostPort": 0, "containerPort": 80}]}), "Invalid host port number: 0"),
        (conf(runtimeConfig={"portMappings": [{"hostPort": 1, "containerPort": 80, "protocol": "sctp"}]}), 'protocol "sctp"'),
    ],
)
def test_what_is_refused_changes_nothing(caller: Caller, controller: Controller, wrong: dict[str, Any], expected: str) -> None:
    caller.container("c1")
    before, rows = snapshot(), records(controller)
    assert expected in caller.error("ADD", wrong)[1]
    assert differences(before, snapshot()) == []
    assert records(controller) == rows


def test_many_at_once(config: Config) -> None:
    containers, links = [f"c{number}" for number in range(5)], ("eth0", "eth1", "eth2")
    with Controller(config, watcher=Unwatched()) as controller:
        for ifname in links:
            controller.create_network(ifname, subnets=[f"172.2{ifname[-1]}.0.0/24"])
    runtime = Caller(lambda: controller)
    for name in containers:
        runtime.container(name)
    before = snapshot()
    for verb in ("ADD", "DEL"):
        children = [_child(config, verb, name, ifname) for name in containers for ifname in links]
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children)
        with Controller(config, watcher=Unwatched()) as controller:
            taken = [str(address) for endpoint in controller.endpoints() for address in endpoint.addresses]
            assert len(set(taken)) == len(taken) == (len(children) if verb == "ADD" else 0)
            assert len(controller.sandboxes()) == (len(containers) if verb == "ADD" else 0)
    with Controller(config, watcher=Unwatched()) as controller:
        perform(controller, "cni.prune", {})
        for ifname in links:
            controller.remove_network(ifname)
        runtime.clear()
        controller.reset()
    assert not [line for line in differences(before, snapshot()) if "veth" in line]


def _child(config: Config, verb: str, container: str, ifname: str) -> int:
    """A process that makes one call, and ends with its code."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        with Controller(config, watcher=Unwatched()) as controller:
            code = Caller(lambda: controller).call(verb, conf(ifname), container, ifname=ifname).code
    finally:
        os._exit(code)


@pytest.mark.parametrize("action", ["fail", "die"])
def test_nothing_is_left_whatever_fails_and_wherever_it_dies(config: Config, action: str) -> None:
    with Controller(config, watcher=Unwatched()) as controller:
        controller.create_network("web", subnets=["172.28.0.0/16"])
    runtime = Caller(lambda: controller)
    runtime.container("c1")
    before = snapshot()
    moments = 0
    while _interrupted(config, moments, action):
        moments += 1
        with Controller(config, watcher=Unwatched()) as controller:
            perform(controller, "cni.prune", {})
            assert controller.sandboxes() == [], moments
            assert controller.endpoints() == [], moments
            assert differences(before, snapshot()) == [], moments
    assert moments > 8
    with Controller(config, watcher=Unwatched()) as controller:
        assert [box.name for box in controller.sandboxes()] == ["cni-c1"]
        controller.reset()
    runtime.clear()


def _interrupted(config: Config, moment: int, action: str) -> bool:
    """Whether an ADD that fails, or dies, at that moment got there at all."""

    def attempt(controller: Controller) -> bool:
        outcome = Caller(lambda: controller).call("ADD", conf())
        assert outcome.code == 0 or b"injected" in outcome.stdout, outcome.stdout
        return outcome.code == 1

    return interrupted(config, moment, action, attempt)


def test_names_of_containers_are_answered(config: Config) -> None:
    with Controller(config) as controller:
        caller = Caller(lambda: controller)
        controller.create_network("web", internal=True, subnets=["172.28.0.0/16"])
        own = controller.create_sandbox("own")
        controller.connect("web", "own")
        for name in ("c1", "c2"):
            caller.container(name)
        wishes = {"aliases": {"web": ["db"], "other": ["cache"]}}
        caller.ok(
            "ADD", conf(runtimeConfig=wishes, args={"cni": {"aliases": ["sql"]}}), args="IgnoreUnknown=1;K8S_POD_NAME=pod-1"
        )
        outcome = caller.call("ADD", conf(), "c2", args="K8S_POD_NAME=pod_-")
        assert (outcome.code, b"K8S_POD_NAME" in outcome.stderr) == (0, True)
        homes = {box.name: box.netns for box in controller.sandboxes()}
        for name in ("db", "sql", "pod-1", "cni-c1", "db.web"):
            assert resolve(homes["cni-c2"], name, "172.28.0.1") == ["172.28.0.3"], name
            assert resolve(own.netns, name, "127.0.0.11") == ["172.28.0.3"], name
        assert resolve(homes["cni-c1"], "own", "172.28.0.1") == ["172.28.0.2"]
        assert resolve(homes["cni-c1"], "cache", "172.28.0.1") == "NXDOMAIN"
        caller.ok("DEL", conf())
        assert resolve(homes["cni-c2"], "db", "172.28.0.1") == "NXDOMAIN"
        caller.clear()
        controller.reset()
    leave(config)
