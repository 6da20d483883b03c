"""macvlan and ipvlan networks on a LAN: members reach it and each other, the parent is shared as it may be, nothing is left.

The LAN is a veth: lan0 in the host (192.168.7.5/24, its router is 192.168.7.1), far0 in a netns of its own.
"""

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.errors import AddressTaken, ConfigError, Conflict, KernelError
from netlib.model import NetnsRef
from netlib.plan import KernelObject
from netlib.ports import parse_publish
from netlib.testing.snapshot import differences, snapshot

SUBNET = "192.168.7.0/24"


def _run(line: str) -> str:
    return subprocess.run(line.split(), check=True, capture_output=True, text=True).stdout


@pytest.fixture
def far(netns_factory: Callable[[str], NetnsRef]) -> Iterator[str]:
    name = netns_factory("far").label
    for line in (
        f"ip link add lan0 type veth peer name far0 netns {name}",
        "ip addr add 192.168.7.5/24 dev lan0",
        "ip link set lan0 addrgenmode none up",  # an address of the kernel's would come a moment later
        f"ip -n {name} addr add 192.168.7.1/24 dev far0",
        f"ip -n {name} addr add fd07::1/64 nodad dev far0",
        f"ip -n {name} addr add 10.44.0.1/32 dev lo",
        f"ip -n {name} link set far0 up",
        "ip route add 10.44.0.0/16 via 192.168.7.1",
    ):
        _run(line)
    yield name
    subprocess.run(["ip", "link", "del", "lan0"], check=False, capture_output=True)


@pytest.fixture
def controller(config: Config, far: str) -> Iterator[Controller]:
    with Controller(config, watcher=Unwatched()) as controller:
        yield controller
        controller.reset()


def _ping(box: str, target: str) -> bool:
    command = ["ip", "netns", "exec", box, "ping", "-c1", "-W2", target]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _join(controller: Controller, network: str, *boxes: str, **wanted: Any) -> None:
    for box in boxes:
        controller.create_sandbox(box)
        controller.connect(network, box, **wanted)


def _link(box: str, ifname: str = "eth0") -> Any:
    (link,) = json.loads(_run(f"ip -n {box} -d -j addr show {ifname}"))
    return link


DRIVERS = [
    pytest.param("macvlan", {}, id="macvlan"),
    pytest.param("macvlan", {"macvlan_mode": "private"}, id="macvlan private"),
    pytest.param("macvlan", {"macvlan_mode": "passthru"}, id="macvlan passthru"),
    pytest.param("ipvlan", {}, id="ipvlan", marks=pytest.mark.needs_link_kind("ipvlan")),
]


@pytest.mark.parametrize(("driver", "options"), DRIVERS)
def test_a_member_is_on_the_lan_and_nothing_is_left(
    controller: Controller, far: str, driver: str, options: dict[str, str]
) -> None:
    before = snapshot()
    controller.create_network(
        "lan", driver=driver, subnets=[SUBNET, "fd07::/64"], gateways=["fd07::1"], options={"parent": "lan0", **options}
    )
    _join(controller, "lan", "box", ip="192.168.7.40", ip6="fd07::40")
    assert controller.check("lan") == controller.check("box") == []
    assert _ping("box", "192.168.7.1")
    assert _ping("box", "fd07::1")
    assert _ping(far, "192.168.7.40")
    assert _ping("box", "10.44.0.1")  # by the default route
    controller.remove_sandbox("box")
    controller.remove_network("lan")
    assert differences(before, snapshot()) == []


@pytest.mark.needs_link_kind("ipvlan")
@pytest.mark.parametrize("mode", ["l3", "l3s"])
def test_a_member_is_routed_to_in_the_modes_l3(controller: Controller, far: str, mode: str) -> None:
    _run(f"ip -n {far} route add 192.168.9.0/24 via 192.168.7.5")
    before = snapshot()
    options = {"parent": "lan0", "ipvlan_mode": mode}
    controller.create_network("lan", driver="ipvlan", subnets=["192.168.9.0/24"], options=options)
    _join(controller, "lan", "box", ip="192.168.9.40")
    assert controller.check("lan") == controller.check("box") == []
    assert _run("ip -n box route show default").split()[:3] == ["default", "dev", "eth0"]
    assert _ping(far, "192.168.9.40")
    assert _ping("box", "192.168.7.1")
    controller.remove_sandbox("box")
    controller.remove_network("lan")
    assert differences(before, snapshot()) == []


@pytest.mark.parametrize(("driver", "options"), [DRIVERS[0], DRIVERS[3]])
def test_members_reach_each_other(controller: Controller, driver: str, options: dict[str, str]) -> None:
    controller.create_network("lan", driver=driver, subnets=[SUBNET], options={"parent": "lan0", **options})
    _join(controller, "lan", "one", "two")
    address = controller.endpoints(sandbox="two")[0].addresses[0].ip
    assert _ping("one", str(address))
    controller.disconnect("lan", "two")
    assert not _ping("one", str(address))
    controller.connect("lan", "two", ip=str(address))
    assert _ping("one", str(address))


@pytest.mark.parametrize(("driver", "options"), [DRIVERS[0], DRIVERS[2], DRIVERS[3]])
def test_an_address_is_free_again_as_soon_as_its_container_is_gone(
    controller: Controller, driver: str, options: dict[str, str]
) -> None:
    """A link that waited for the end of its netns would hold its MAC address, an ipvlan its IP address, on the parent."""
    controller.create_network("lan", driver=driver, subnets=[SUBNET], options={"parent": "lan0", **options})
    for _ in range(5):
        _join(controller, "lan", "box", ip="192.168.7.40")
        assert _ping("box", "192.168.7.1")
        controller.remove_sandbox("box")


def test_the_hosts_subnet_address_and_router_are_reckoned_with(controller: Controller) -> None:
    network = controller.create_network("lan", driver="macvlan", subnets=[SUBNET], options={"parent": "lan0"})
    assert str(network.pools[0].gateway) == "192.168.7.1"
    controller.create_sandbox("box")
    with pytest.raises(AddressTaken, match=r"192\.168\.7\.5.*lan0"):
        controller.connect("lan", "box", ip="192.168.7.5")
    endpoint = controller.connect("lan", "box")
    assert str(endpoint.addresses[0]) == "192.168.7.2/24"
    assert _link("box")["address"] == endpoint.mac
    assert "192.168.7.5" in _run("ip addr show lan0")


def test_what_is_no_lan_of_the_parent_has_no_gateway(controller: Controller) -> None:
    network = controller.create_network("lan", driver="macvlan", subnets=["192.168.8.0/24"], options={"parent": "lan0"})
    assert network.pools[0].gateway is None
    _join(controller, "lan", "box")
    assert "default" not in _run("ip -n box route")


def test_the_mtu_and_mac_asked_for(controller: Controller) -> None:
    options = {"parent": "lan0", "com.docker.network.driver.mtu": "1400"}
    controller.create_network("lan", driver="macvlan", subnets=[SUBNET], options=options)
    _join(controller, "lan", "box", mac="02:42:00:00:00:77", options={"com.docker.network.endpoint.ifname": "lan7"})
    link = _link("box", "lan7")
    assert (link["mtu"], link["address"]) == (1400, "02:42:00:00:00:77")


def test_macvlan_networks_share_a_parent_but_for_passthru(controller: Controller) -> None:
    for name, subnet, mode in (("a", SUBNET, "bridge"), ("b", "192.168.8.0/24", "vepa")):
        options = {"parent": "lan0", "macvlan_mode": mode}
        controller.create_network(name, driver="macvlan", subnets=[subnet], options=options)
    for driver, options, use in (
        ("macvlan", {"macvlan_mode": "passthru"}, "macvlan in passthru mode"),
        ("ipvlan", {}, "ipvlan l2 bridge"),
    ):
        message = rf"parent lan0 serves network '[ab]' for macvlan, so it cannot serve for {use}.*; choose another parent"
        with pytest.raises(Conflict, match=message):
            controller.create_network("c", driver=driver, subnets=["192.168.9.0/24"], options={"parent": "lan0", **options})
    controller.remove_network("a")
    controller.remove_network("b")
    controller.create_network("c", driver="ipvlan", subnets=["192.168.9.0/24"], options={"parent": "lan0"})


def test_passthru_is_for_one(controller: Controller) -> None:
    options = {"parent": "lan0", "macvlan_mode": "passthru"}
    controller.create_network("lan", driver="macvlan", subnets=[SUBNET], options=options)
    _join(controller, "lan", "one")
    assert controller.endpoints(sandbox="one")[0].mac == ""
    controller.create_sandbox("two")
    with pytest.raises(KernelError, match="cannot create macvlan eth0 in two"):
        controller.connect("lan", "two")
    assert controller.endpoints(sandbox="two") == []


def test_a_parent_that_was_down_is_up_while_it_serves(controller: Controller) -> None:
    _run("ip link set lan0 down")
    before = snapshot()
    for name, subnet in (("a", SUBNET), ("b", "192.168.8.0/24")):
        controller.create_network(name, driver="macvlan", subnets=[subnet], options={"parent": "lan0"})
    for name in ("a", "b"):
        assert "UP" in json.loads(_run("ip -j link show lan0"))[0]["flags"]
        controller.remove_network(name)
    assert differences(before, snapshot()) == []


@pytest.mark.parametrize("driver", ["macvlan", "ipvlan"])
@pytest.mark.parametrize(
    ("parent", "message"),
    [
        ("lan9", "parent lan9: there is no such link in host"),
        ("lan9.10", "parent lan9.10: neither it nor lan9, to make it on, is in host"),
        ("lo", "lo leads nowhere"),
    ],
)
def test_a_parent_that_is_not_there_is_refused_by_name(controller: Controller, driver: str, parent: str, message: str) -> None:
    before = snapshot()
    with pytest.raises(ConfigError, match=message):
        controller.create_network("lan", driver=driver, subnets=[SUBNET], options={"parent": parent})
    assert controller.networks() == [item for item in controller.networks() if item.predefined]
    assert differences(before, snapshot()) == []


def test_ports_and_addresses_that_cannot_be_are_refused(controller: Controller) -> None:
    controller.create_network("lan", driver="macvlan", subnets=[SUBNET], options={"parent": "lan0"})
    controller.create_sandbox("box")
    with pytest.raises(ConfigError, match="publishes no ports"):
        controller.connect("lan", "box", ports=[*parse_publish("8080:80")])
    assert controller.endpoints(sandbox="box") == []


def test_an_ipvlan_member_can_have_no_mac_address_of_its_own(controller: Controller) -> None:
    controller.create_network("lan", driver="ipvlan", subnets=[SUBNET], options={"parent": "lan0"})
    controller.create_sandbox("box")
    with pytest.raises(ConfigError, match="can have no --mac-address: it has the MAC address of the parent"):
        controller.connect("lan", "box", mac="02:42:00:00:00:77")


def test_every_object_may_fail_and_nothing_is_left(config: Config, controller: Controller) -> None:
    controller.create_network("lan", driver="macvlan", subnets=[SUBNET], options={"parent": "lan0"})
    controller.create_sandbox("box")
    box = controller.sandbox("box").netns
    before = snapshot(), snapshot(box)
    keys: list[str] = []

    def note(moment: str, item: KernelObject) -> None:
        if moment == "ensured":
            keys.append(str(item.key))

    with Controller(config, watcher=Unwatched(), observer=note) as watching:
        watching.connect("lan", "box", ip="192.168.7.40")
    controller.disconnect("lan", "box")
    for key in dict.fromkeys(keys):
        once = [key]

        def fail(moment: str, item: KernelObject, key: str = key, once: list[str] = once) -> None:
            if moment == "ensured" and str(item.key) in once:
                once.clear()  # the way back makes some again
                raise KernelError(f"injected after {key}")

        with Controller(config, watcher=Unwatched(), observer=fail) as faulty:
            with pytest.raises(KernelError, match="injected after"):
                faulty.connect("lan", "box", ip="192.168.7.40")
        assert differences(before[0], snapshot()) == []
        assert differences(before[1], snapshot(box)) == []


# --- VLANs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.needs_link_kind("vlan", "ipvlan")
@pytest.mark.parametrize("driver", ["macvlan", "ipvlan"])
def test_a_vlan_is_made_with_the_first_network_and_goes_with_the_last(controller: Controller, far: str, driver: str) -> None:
    for line in ("ip -n FAR link add link far0 name far0.10 type vlan id 10", "ip -n FAR link set far0.10 up"):
        _run(line.replace("FAR", far))
    _run(f"ip -n {far} addr add 192.168.10.1/24 dev far0.10")
    before = snapshot()
    for name, subnet in (("a", "192.168.10.0/24"), ("b", "192.168.11.0/24")):
        controller.create_network(name, driver=driver, subnets=[subnet], options={"parent": "lan0.10"})
    _join(controller, "a", "box", ip="192.168.10.40")
    assert controller.check("a") == controller.check("b") == controller.check("box") == []
    assert _ping("box", "192.168.10.1")
    controller.remove_network("b")
    assert _ping("box", "192.168.10.1")
    controller.remove_sandbox("box")
    controller.remove_network("a")
    assert differences(before, snapshot()) == []


@pytest.mark.needs_link_kind("vlan")
def test_a_vlan_that_stands_is_used_and_stays(controller: Controller) -> None:
    _run("ip link add link lan0 name lan0.10 type vlan id 12")
    before = snapshot()
    controller.create_network("a", driver="macvlan", subnets=["192.168.10.0/24"], options={"parent": "lan0.10"})
    assert controller.check("a") == []
    controller.remove_network("a")
    assert differences(before, snapshot()) == []


@pytest.mark.needs_link_kind("dummy", "ipvlan")
@pytest.mark.parametrize("driver", ["macvlan", "ipvlan"])
def test_without_a_parent_members_have_only_each_other(controller: Controller, driver: str) -> None:
    before = snapshot()
    network = controller.create_network("alone", driver=driver)
    assert network.internal
    _join(controller, "alone", "one", "two")
    assert _ping("one", str(controller.endpoints(sandbox="two")[0].addresses[0].ip))
    assert "default" not in _run("ip -n one route")
    for box in ("one", "two"):
        controller.remove_sandbox(box)
    controller.remove_network("alone")
    assert differences(before, snapshot()) == []


@pytest.mark.needs_link_kind("ipvlan")
def test_ipvlan_networks_share_a_parent_in_one_mode(controller: Controller) -> None:
    controller.create_network("a", driver="ipvlan", subnets=[SUBNET], options={"parent": "lan0", "ipvlan_mode": "l3"})
    with pytest.raises(Conflict, match="parent lan0 serves network 'a' for ipvlan l3 bridge"):
        controller.create_network("b", driver="ipvlan", subnets=["192.168.9.0/24"], options={"parent": "lan0"})
    controller.create_network("b", driver="ipvlan", subnets=["192.168.9.0/24"], options={"parent": "lan0", "ipvlan_mode": "l3"})
    _join(controller, "b", "box")
    assert _run("ip -n box route show default").split()[:3] == ["default", "dev", "eth0"]
