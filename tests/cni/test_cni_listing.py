"""What is shown of attachments, and what is removed when nobody needs it: the verbs behind ``netlib cni`` and ``network``."""

from typing import Any

import pytest

from netlib.core.attachments import Attachments
from netlib.core.controller import Controller
from netlib.errors import InUse, NotFound
from netlib.testing.snapshot import differences, snapshot
from netlib.verbs.perform import perform
from tests.cni.calling import Caller, run


def conf(number: int, name: str = "pods", **more: Any) -> dict[str, Any]:
    ipam = {"type": "static", "addresses": [{"address": f"10.22.0.{number}/16"}]}
    return {"cniVersion": "1.1.0", "name": name, "type": "bridge", "isGateway": True, "ipam": ipam, **more}


def two(caller: Caller) -> None:
    for number, name in ((2, "c1"), (3, "c2")):
        caller.container(name)
        caller.ok("ADD", conf(number), name)


def test_attachments_are_listed_with_their_chain(caller: Caller, controller: Controller) -> None:
    two(caller)
    caller.ok("ADD", {"cniVersion": "1.1.0", "name": "pods", "type": "loopback"}, "c1", ifname="lo")
    rows = perform(controller, "cni.ls", {})
    assert [(item["Container"], item["Interface"], item["Plugins"], item["Addresses"], item["Status"]) for item in rows] == [
        ("c1", "eth0", "bridge", "10.22.0.2/16", "attached"),
        ("c1", "lo", "loopback", "127.0.0.1/8,::1/128", "attached"),
        ("c2", "eth0", "bridge", "10.22.0.3/16", "attached"),
    ]
    caller.lose("c2")
    assert [item["Status"] for item in perform(controller, "cni.ls", {})] == ["attached", "attached", "stale"]


def test_inspect_says_which_plugin_holds_what_and_what_differs(caller: Caller, controller: Controller) -> None:
    two(caller)
    (shown,) = perform(controller, "cni.inspect", {"name": "c1"})
    assert shown["Result"]["ips"][0]["address"] == "10.22.0.2/16"
    assert [item["Type"] for item in shown["Plugins"]] == ["bridge"]
    assert "address//run/netns/c1/eth0 10.22.0.2/16" in shown["Plugins"][0]["Objects"]
    assert "address/host/cni0 10.22.0.1/16" in shown["Shared"]
    assert (shown["Status"], shown["Drift"]) == ("attached", [])
    run("ip", "-n", "c1", "addr", "flush", "dev", "eth0")
    (shown,) = perform(controller, "cni.inspect", {"name": "c1"})
    assert [item["Object"] for item in shown["Drift"]] == ["address//run/netns/c1/eth0 10.22.0.2/16"]
    assert perform(controller, "check", {"name": "c1"}) == shown["Drift"]
    caller.lose("c1")
    (shown,) = perform(controller, "cni.inspect", {"name": "c1"})
    assert (shown["Status"], shown["Drift"]) == ("stale", [{"Object": "netns//run/netns/c1", "Drift": "gone"}])
    with pytest.raises(NotFound, match="2 attached containers have ids that begin with 'c'"):
        perform(controller, "cni.inspect", {"name": "c"})
    with pytest.raises(NotFound, match="no CNI plugin has attached a container 'x'"):
        perform(controller, "cni.inspect", {"name": "x"})


def test_a_whole_name_comes_before_the_beginning_of_an_id(caller: Caller, controller: Controller) -> None:
    other = controller.create_network("other")
    name = other.id[:6]
    caller.container("c1")
    caller.ok("ADD", conf(2, name=name), "c1")
    caller.container(other.id[:5])
    caller.ok("ADD", conf(3, name=name), other.id[:5])
    (shown,) = perform(controller, "network.inspect", {"names": [name]})
    assert (shown["Name"], shown["Driver"]) == (name, "cni")
    for reference in (name, other.id[:5]):
        lines = [line for item in perform(controller, "explain", {"name": reference}) for line in item["Commands"]]
        assert any("10.22.0." in line for line in lines)
        assert perform(controller, "check", {"name": reference}) == []
    with pytest.raises(InUse, match="has containers attached"):
        perform(controller, "network.rm", {"name": name})
    assert perform(controller, "network.inspect", {"names": [other.id[:4]]})[0]["Name"] == "other"
    for container, number in (("c1", 2), (other.id[:5], 3)):
        caller.ok("DEL", conf(number, name=name), container)
    perform(controller, "network.rm", {"name": name})
    perform(controller, "network.rm", {"name": other.id[:6]})
    assert "other" not in [network.name for network in controller.networks()]


def test_a_container_comes_before_the_beginning_of_a_cni_networks_id(caller: Caller, controller: Controller) -> None:
    caller.container("c1")
    caller.ok("ADD", conf(2), "c1")
    (network,) = Attachments(controller).networks()
    name = network.id[:5]
    caller.container(name)
    caller.ok("ADD", conf(3), name)
    lines = [line for item in perform(controller, "explain", {"name": name}) for line in item["Commands"]]
    assert f"ip -n {name} addr add 10.22.0.3/16 brd + dev eth0" in lines
    assert "ip addr add 10.22.0.1/16 brd + dev cni0" in [
        line for item in perform(controller, "explain", {"name": network.id[:4]}) for line in item["Commands"]
    ]


def test_explain_prints_the_commands_of_networks_and_containers(caller: Caller, controller: Controller) -> None:
    two(caller)
    lines = [line for item in perform(controller, "explain", {"name": "c1"}) for line in item["Commands"]]
    assert "ip -n c1 addr add 10.22.0.2/16 brd + dev eth0" in lines
    assert not any("10.22.0.3" in line for line in lines)
    shared = [line for item in perform(controller, "explain", {"name": "pods"}) for line in item["Commands"]]
    assert "ip addr add 10.22.0.1/16 brd + dev cni0" in shared
    assert perform(controller, "check", {"name": "pods"}) == []
    run("ip", "addr", "del", "10.22.0.1/16", "dev", "cni0")
    assert perform(controller, "check", {"name": "cni:pods"}) != []
    with pytest.raises(NotFound, match="no container or network 'nobody'"):
        perform(controller, "explain", {"name": "nobody"})


def test_networks_are_among_the_others_and_removed_like_them(caller: Caller, controller: Controller) -> None:
    before = snapshot()
    two(caller)
    rows = {item["Name"]: item for item in perform(controller, "network.ls", {"filters": ["type=custom"]})}
    assert rows["pods"].items() >= {"Driver": "cni", "IPv4": "true", "IPv6": "false"}.items()
    (shown,) = perform(controller, "network.inspect", {"names": ["pods"]})
    assert {key: item["IPv4Address"] for key, item in shown["Containers"].items()} == {
        "c1": "10.22.0.2/16",
        "c2": "10.22.0.3/16",
    }
    with pytest.raises(NotFound, match="'pods' is one of CNI, which a container joins by its runtime"):
        controller.connect("pods", "box")
    with pytest.raises(InUse, match="'pods' has containers attached: c1, c2"):
        perform(controller, "network.rm", {"name": rows["pods"]["ID"][:12]})
    for number, name in ((2, "c1"), (3, "c2")):
        caller.ok("DEL", conf(number), name)
    assert [item["Name"] for item in perform(controller, "network.ls", {"filters": ["dangling=true"]})] == ["pods"]
    assert [(item["Network"], item["Status"]) for item in perform(controller, "cni.ls", {})] == [("pods", "unused")]
    perform(controller, "network.rm", {"name": "pods"})
    assert perform(controller, "cni.ls", {}) == []
    caller.clear()
    assert differences(before, snapshot()) == []
    with pytest.raises(NotFound, match="network 'pods' not found"):
        perform(controller, "network.rm", {"name": "pods"})


def test_of_two_networks_with_one_name_the_prefix_means_that_of_cni(caller: Caller, controller: Controller) -> None:
    caller.container("c1")
    caller.ok("ADD", conf(2))
    perform(controller, "network.create", {"name": "pods"})
    drivers = [perform(controller, "network.inspect", {"names": [name]})[0]["Driver"] for name in ("pods", "cni:pods")]
    assert drivers == ["bridge", "cni"]
    perform(controller, "network.rm", {"name": "pods"})
    assert perform(controller, "network.inspect", {"names": ["pods"]})[0]["Driver"] == "cni"
    with pytest.raises(InUse):
        perform(controller, "network.rm", {"name": "cni:pods"})


def test_prune_takes_unused_networks_and_stale_attachments(caller: Caller, controller: Controller) -> None:
    two(caller)
    caller.container("c3")
    caller.ok("ADD", conf(4, "idle", bridge="cni9"), "c3")
    caller.ok("DEL", conf(4, "idle", bridge="cni9"), "c3")
    caller.lose("c2")
    assert perform(controller, "cni.prune", {}) == {"AttachmentsDeleted": [], "NetworksDeleted": ["idle"]}
    assert perform(controller, "cni.prune", {"stale": True}) == {"AttachmentsDeleted": ["c2 eth0 pods"], "NetworksDeleted": []}
    assert caller.pings("c1", "10.22.0.1")
    caller.lose("c1")
    assert perform(controller, "cni.prune", {"stale": True}) == {
        "AttachmentsDeleted": ["c1 eth0 pods"],
        "NetworksDeleted": ["pods"],
    }
    assert "cni0" not in run("ip", "-br", "link")
