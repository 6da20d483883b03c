"""The plugin types that give a container one link: on a link of the host's, to nowhere, to a program, or a moved one."""

import subprocess
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from cni_plugins.protocol import Code
from netlib.core.attachments import Attachments
from netlib.core.controller import Controller
from netlib.testing.snapshot import differences, snapshot
from tests.cni.calling import Caller, run


def conf(kind: str, number: int = 2, **more: Any) -> dict[str, Any]:
    address = {"address": f"192.0.2.{number}/24", "gateway": "192.0.2.1"}
    ipam = {"type": "static", "addresses": [address], "routes": [{"dst": "0.0.0.0/0"}]}
    return {"cniVersion": "1.1.0", "name": "lan", "type": kind, "ipam": ipam, **more}


KINDS = [
    pytest.param(conf("macvlan", master="lan0"), id="macvlan"),
    pytest.param(conf("ipvlan", master="lan0"), id="ipvlan", marks=pytest.mark.needs_link_kind("ipvlan")),
    pytest.param(conf("vlan", master="lan0", vlanId=5), id="vlan", marks=pytest.mark.needs_link_kind("vlan")),
    pytest.param(conf("dummy"), id="dummy", marks=pytest.mark.needs_link_kind("dummy")),
    pytest.param(conf("tap"), id="tap"),
    pytest.param(conf("host-device", device="dev0"), id="host-device"),
]
every_kind = pytest.mark.parametrize("given", KINDS)


@pytest.fixture(autouse=True)
def lan(caller: Caller) -> Iterator[None]:
    """A link of the host to another machine, 192.0.2.1, also there on VLAN 5 where the kernel knows VLANs."""
    caller.container("peer")
    run("ip", "link", "add", "lan0", "type", "veth", "peer", "name", "eth0", "netns", "peer")
    run("ip", "-n", "peer", "addr", "add", "192.0.2.1/24", "dev", "eth0")
    run("ip", "-n", "peer", "link", "set", "eth0", "up")
    run("ip", "link", "set", "lan0", "addrgenmode", "none", "up")  # an address of the kernel's would come a moment later
    yield
    run("ip", "link", "del", "lan0")


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    """A link of the host to be moved, up, with an address."""
    run("ip", "link", "add", "dev0", "mtu", "1400", "type", "veth", "peer", "name", "dev1")
    for name in ("dev0", "dev1"):
        run("ip", "link", "set", name, "up")
    run("ip", "addr", "add", "198.51.100.7/24", "dev", "dev0")
    yield
    subprocess.run(["ip", "link", "del", "dev1"], check=False, stderr=subprocess.DEVNULL)  # may have ended with its other end


@pytest.fixture
def container(caller: Caller) -> str:
    return caller.container("c1")


@every_kind
@pytest.mark.usefixtures("container")
def test_the_result_is_what_is_there(caller: Caller, given: dict[str, Any]) -> None:
    result = caller.ok("ADD", given)
    assert result["interfaces"] == [{"name": "eth0", "mac": result["interfaces"][0]["mac"], "sandbox": "/run/netns/c1"}]
    assert result["ips"] == [{"address": "192.0.2.2/24", "gateway": "192.0.2.1", "interface": 0}]
    shown = run("ip", "-n", "c1", "addr", "show", "eth0")
    assert f"link/ether {result['interfaces'][0]['mac']}" in shown
    assert "192.0.2.2/24" in shown
    assert ",UP" in shown
    if given["type"] != "tap":  # without a program it has no carrier, and its routes are down
        assert "via 192.0.2.1" in run("ip", "-n", "c1", "route", "get", "203.0.113.9")


@every_kind
@pytest.mark.usefixtures("container")
def test_del_takes_all_back_and_may_come_twice(caller: Caller, controller: Controller, given: dict[str, Any]) -> None:
    before = snapshot()
    caller.ok("ADD", given)
    caller.ok("DEL", given)
    caller.ok("DEL", given)
    assert subprocess.run(["ip", "-n", "c1", "link", "show", "eth0"], capture_output=True).returncode == 1
    controller.reset()
    assert differences(before, snapshot()) == []


@every_kind
@pytest.mark.usefixtures("container")
def test_check_names_what_differs(caller: Caller, given: dict[str, Any]) -> None:
    previous = caller.ok("ADD", given)
    caller.ok("CHECK", {**given, "prevResult": previous})
    run("ip", "-n", "c1", "addr", "flush", "dev", "eth0")
    code, sentence = caller.error("CHECK", {**given, "prevResult": previous})
    assert code == Code.DRIFT
    assert "192.0.2.2/24" in sentence


@every_kind
@pytest.mark.usefixtures("container")
def test_an_interface_of_that_name_is_left_alone(caller: Caller, given: dict[str, Any]) -> None:
    run("ip", "-n", "c1", "link", "add", "eth0", "type", "bridge")
    before = snapshot()
    assert "eth0" in caller.error("ADD", given)[1]
    assert differences(before, snapshot()) == []


@every_kind
@pytest.mark.usefixtures("container")
def test_status_says_whether_an_add_would_go(caller: Caller, given: dict[str, Any]) -> None:
    caller.ok("STATUS", given)
    parents = {"master": "gone0"} if "master" in given else {"device": "gone0"} if "device" in given else {}
    if parents:
        code, sentence = caller.error("STATUS", {**given, **parents})
        assert code == Code.UNAVAILABLE
        assert "gone0" in sentence


def test_containers_and_the_lan_reach_each_other_by_macvlan(caller: Caller) -> None:
    for number, name in ((2, "c1"), (3, "c2")):
        caller.container(name)
        caller.ok("ADD", conf("macvlan", number, master="lan0"), name)
    assert caller.pings("c1", "192.0.2.1")
    assert caller.pings("peer", "192.0.2.3")
    assert caller.pings("c1", "192.0.2.3")


@pytest.mark.parametrize("mode", ["private", "vepa"])
def test_a_macvlan_mode_that_keeps_containers_apart(caller: Caller, mode: str) -> None:
    for number, name in ((2, "c1"), (3, "c2")):
        caller.container(name)
        caller.ok("ADD", conf("macvlan", number, master="lan0", mode=mode), name)
    assert caller.pings("c1", "192.0.2.1")
    assert not caller.pings("c1", "192.0.2.3")


@pytest.mark.needs_link_kind("ipvlan")
@pytest.mark.parametrize("mode", ["l2", "l3", "l3s"])
def test_containers_reach_each_other_by_ipvlan(caller: Caller, mode: str) -> None:
    for number, name in ((2, "c1"), (3, "c2")):
        caller.container(name)
        caller.ok("ADD", conf("ipvlan", number, master="lan0", mode=mode), name)
    assert caller.pings("c1", "192.0.2.3")
    if mode == "l2":
        assert caller.pings("c1", "192.0.2.1")


@pytest.mark.needs_link_kind("vlan")
@pytest.mark.usefixtures("container")
def test_a_vlan_reaches_its_own_alone(caller: Caller) -> None:
    caller.ok("ADD", conf("vlan", master="lan0", vlanId=5))
    assert not caller.pings("c1", "192.0.2.1")
    run("ip", "-n", "peer", "link", "add", "link", "eth0", "name", "eth0.5", "type", "vlan", "id", "5")
    run("ip", "-n", "peer", "addr", "del", "192.0.2.1/24", "dev", "eth0")
    run("ip", "-n", "peer", "addr", "add", "192.0.2.7/24", "dev", "eth0.5")
    run("ip", "-n", "peer", "link", "set", "eth0.5", "up")
    assert caller.pings("c1", "192.0.2.7")  # a new address: c1 may still be asking its untagged neighbours for the other one


@pytest.mark.usefixtures("container")
def test_a_parent_inside_the_container(caller: Caller) -> None:
    run("ip", "-n", "c1", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    config = conf("macvlan", master="up0", linkInContainer=True)
    caller.ok("ADD", config)
    assert "eth0@up0" in run("ip", "-n", "c1", "-br", "link")
    caller.ok("DEL", config)
    assert "eth0" not in run("ip", "-n", "c1", "-br", "link")


@pytest.mark.usefixtures("container")
def test_the_default_route_names_the_parent(caller: Caller) -> None:
    code, sentence = caller.error("ADD", conf("macvlan"))
    assert code == Code.MISSING
    assert "no default route interface found" in sentence
    run("ip", "addr", "add", "192.0.2.9/24", "dev", "lan0")
    run("ip", "route", "add", "default", "via", "192.0.2.1")
    caller.ok("ADD", conf("macvlan"))
    assert caller.pings("c1", "192.0.2.1")


@pytest.mark.usefixtures("container")
def test_a_moved_device_comes_home_with_what_it_had(caller: Caller) -> None:
    before = snapshot()
    caller.ok("ADD", conf("host-device", device="dev0"))
    assert "dev0" not in run("ip", "-br", "link")
    caller.ok("DEL", conf("host-device", device="dev0"))
    assert differences(before, snapshot()) == []


def test_a_device_that_cannot_be_moved_leaves_the_containers_own_of_that_name_alone(
    caller: Caller, controller: Controller
) -> None:
    caller.container("c1")
    code, sentence = caller.error("ADD", conf("host-device", device="lo"))
    assert code == Code.KERNEL
    assert sentence.startswith("cannot move link lo from host to c1")
    assert [line.split()[0] for line in run("ip", "-n", "c1", "-br", "link").splitlines()] == ["lo"]
    assert Attachments(controller).attachments() == []
    caller.ok("DEL", conf("host-device", device="lo"))


@pytest.mark.usefixtures("container")
def test_a_device_is_found_by_its_mac_address(caller: Caller) -> None:
    mac = run("cat", "/sys/class/net/dev0/address").strip()
    result = caller.ok("ADD", conf("host-device", hwaddr=mac.upper()))
    assert result["interfaces"][0]["mac"] == mac


@pytest.mark.usefixtures("container")
def test_what_the_reference_moved_comes_home(caller: Caller) -> None:
    run("ip", "link", "set", "dev0", "netns", "c1", "name", "eth0", "alias", "dev0")
    caller.ok("DEL", conf("host-device", device="dev0"))
    assert "dev0" in run("ip", "-br", "link")
    assert "alias" not in run("ip", "link", "show", "dev0")


@pytest.mark.usefixtures("container")
def test_what_the_reference_left_is_taken_by_the_configuration_alone(caller: Caller) -> None:
    run("ip", "link", "add", "link", "lan0", "name", "tmp0", "type", "macvlan")
    run("ip", "link", "set", "tmp0", "netns", "c1", "name", "eth0")
    caller.ok("DEL", conf("dummy"))
    assert "eth0" in run("ip", "-n", "c1", "-br", "link")
    caller.ok("DEL", conf("macvlan", master="lan0"))
    assert "eth0" not in run("ip", "-n", "c1", "-br", "link")


@pytest.mark.usefixtures("container")
def test_a_tap_has_its_owner_and_its_place_in_a_bridge(caller: Caller) -> None:
    run("ip", "-n", "c1", "link", "add", "br0", "type", "bridge")
    caller.ok("ADD", {**conf("tap", owner=1234, group=5678, multiQueue=True, bridge="br0"), "ipam": {}})
    shown = run("ip", "-n", "c1", "-d", "link", "show", "eth0")
    for word in ("tun type tap", "user 1234", "group 5678", "multi_queue", "master br0"):
        assert word in shown


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (conf("macvlan", master="gone0"), "gone0"),
        (conf("macvlan", master="lan0", mode="nothing"), "mode"),
        (conf("macvlan", master="lan0", mtu=9000), "invalid MTU 9000; must be [0, master MTU(1500)]"),
        (conf("macvlan", master="lan0", mac="zz"), "zz"),
        (conf("ipvlan", master="lan0", mode="nothing"), "mode"),
        ({**conf("ipvlan", master="lan0"), "ipam": {}}, "ipvlan needs addresses"),
        (conf("vlan", vlanId=5), '"master" field is required'),
        (conf("vlan", master="lan0", vlanId=4095), "invalid VLAN ID 4095 (must be between 0 and 4094 inclusive)"),
        ({**conf("dummy"), "ipam": {}}, "dummy needs addresses"),
        (conf("tap", selinuxContext="x"), "selinuxContext is not supported"),
        (conf("host-device"), 'specify either "device", "hwaddr", "kernelpath" or "pciBusID"'),
        (conf("host-device", kernelpath="/sys/devices/../../etc"), "must be absolute and begin with /sys/devices/"),
        (conf("host-device", pciBusID="../../net"), "invalid pciBusID"),
        (conf("host-device", runtimeConfig={"deviceID": "0000:ff:1f.7"}), "not found or unsupported"),
        (conf("host-device", hwaddr="02:00:00:00:00:99"), "no link of the host has the MAC address"),
    ],
)
@pytest.mark.usefixtures("container")
def test_what_is_refused_changes_nothing(caller: Caller, wrong: dict[str, Any], expected: str) -> None:
    before = snapshot()
    assert expected in caller.error("ADD", wrong)[1]
    assert differences(before, snapshot()) == []


class TestLoopback:
    """``loopback``: the only link that every container has already."""

    CONF: ClassVar = {"cniVersion": "1.1.0", "name": "lo", "type": "loopback"}

    @pytest.fixture(autouse=True)
    def _down(self, container: str) -> None:
        run("ip", "-n", "c1", "link", "set", "lo", "down")

    def test_it_is_up_while_attached(self, caller: Caller) -> None:
        result = caller.ok("ADD", self.CONF, ifname="lo")
        assert result["interfaces"] == [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": "/run/netns/c1"}]
        assert [ip["address"] for ip in result["ips"]] == ["127.0.0.1/8", "::1/128"]
        assert caller.pings("c1", "127.0.0.1")
        caller.ok("CHECK", {**self.CONF, "prevResult": result}, ifname="lo")
        caller.ok("DEL", self.CONF, ifname="lo")
        assert not caller.pings("c1", "127.0.0.1")

    def test_a_previous_result_is_passed_on(self, caller: Caller) -> None:
        previous = {"cniVersion": "1.1.0", "interfaces": [{"name": "eth7"}], "ips": [{"address": "192.0.2.9/24"}]}
        assert caller.ok("ADD", {**self.CONF, "prevResult": previous}, ifname="lo") == previous

    def test_check_sees_it_down(self, caller: Caller) -> None:
        result = caller.ok("ADD", self.CONF, ifname="lo")
        run("ip", "-n", "c1", "link", "set", "lo", "down")
        assert "link lo is down" in caller.error("CHECK", {**self.CONF, "prevResult": result}, ifname="lo")[1]
