"""A network on a bridge that somebody else made: what it has is used, and after the network it has what it had."""

import json
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.errors import AddressTaken, Conflict
from netlib.testing.snapshot import differences, snapshot

OPTIONS = {"com.docker.network.bridge.name": "br-lan"}


@pytest.fixture
def controller(config: Config) -> Iterator[Controller]:
    """A host on which the base of the firewall and forwarding are there, so that they are in the first snapshot."""
    with Controller(config, watcher=Unwatched()) as controller:
        controller.create_network("warm", subnets=["10.99.0.0/24", "fd99::/64"])
        yield controller
        controller.reset()


@pytest.fixture(autouse=True)
def bridge(controller: Controller) -> Iterator[None]:
    """The bridge br-lan, down, without addresses."""
    _run("ip link add br-lan type bridge")
    yield
    for network in controller.networks():
        if network.options == OPTIONS:
            for endpoint in controller.endpoints(network=network.id):
                controller.disconnect(network.id, endpoint.sandbox)
            controller.remove_network(network.id)
    _run("ip link del br-lan")


def _run(command: str) -> str:
    return subprocess.run(command.split(), check=True, capture_output=True, text=True).stdout


def _up(*addresses: str) -> None:
    _run("ip link set br-lan up")
    for address in addresses:
        _run(f"ip addr add {address} dev br-lan" + (" nodad" if ":" in address else ""))


def _link() -> Any:
    (link,) = json.loads(_run("ip -j addr show br-lan"))
    return link


def _addresses() -> list[str]:
    return [f"{item['local']}/{item['prefixlen']}" for item in _link()["addr_info"] if item["scope"] == "global"]


def _ping(box: str, target: str) -> bool:
    command = ["ip", "netns", "exec", box, "ping", "-c1", "-W1", target]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_its_address_may_be_the_gateway_and_stays(controller: Controller) -> None:
    _up("10.5.0.1/24", "fd05::1/64")
    before = snapshot()
    network = controller.create_network(
        "lan", subnets=["10.5.0.0/24", "fd05::/64"], gateways=["10.5.0.1", "fd05::1"], options=OPTIONS
    )
    assert controller.check("lan") == []
    controller.create_sandbox("box")
    controller.connect("lan", "box")
    assert _ping("box", "10.5.0.1")
    assert _ping("box", "fd05::1")
    controller.remove_sandbox("box")
    controller.remove_network(network.id)
    assert differences(before, snapshot()) == []


def test_without_a_subnet_its_own_is_used_with_its_address_as_the_gateway(controller: Controller) -> None:
    _up("10.5.0.9/24", "fd05::9/64", "10.5.0.12/24", "10.6.0.1/32")
    before = snapshot()
    network = controller.create_network("lan", ipv6=True, options=OPTIONS, ip_ranges=["10.5.0.8/29"])
    assert [(str(pool.subnet), str(pool.gateway)) for pool in network.pools] == [
        ("10.5.0.0/24", "10.5.0.9"),
        ("fd05::/64", "fd05::9"),
    ]
    controller.create_sandbox("box")
    with pytest.raises(AddressTaken, match=r"10\.5\.0\.12.*br-lan"):
        controller.connect("lan", "box", ip="10.5.0.12")
    controller.connect("lan", "box")
    assert _ping("box", "10.5.0.12")
    controller.remove_sandbox("box")
    controller.remove_network("lan")
    assert differences(before, snapshot()) == []


def test_its_address_is_the_gateway_of_a_subnet_given_without_one(controller: Controller) -> None:
    _up("10.5.0.9/24")
    network = controller.create_network("lan", subnets=["10.5.0.0/24"], options=OPTIONS)
    assert network.pools[0].gateway == ip_address("10.5.0.9")
    assert _addresses() == ["10.5.0.9/24"]


def test_what_lies_behind_it_is_still_stepped_around(controller: Controller) -> None:
    _up("10.5.0.1/24")
    _run("ip route add 10.6.0.0/16 via 10.5.0.2")
    with pytest.raises(Conflict, match=r"10\.6\.0\.0/16"):
        controller.create_network("lan", subnets=["10.6.1.0/24"], options=OPTIONS)
    with pytest.raises(Conflict, match=r"10\.5\.0"):
        controller.create_network("other", subnets=["10.5.0.0/24"])


def test_one_that_is_down_is_set_up_and_down_again(controller: Controller) -> None:
    _run("ip addr add 10.5.0.1/24 dev br-lan")
    _run("ip addr add fd05::1/64 dev br-lan")
    before = _link()["flags"], _addresses()
    assert "UP" not in before[0]
    controller.create_network("lan", options=OPTIONS)
    assert "UP" in _link()["flags"]
    controller.remove_network("lan")
    assert (_link()["flags"], _addresses()) == before


def test_one_that_is_up_stays_up(controller: Controller) -> None:
    _up()
    controller.create_network("lan", options=OPTIONS)
    _run("ip link set br-lan down")
    assert [difference for _, difference in controller.check("lan")] == ["link br-lan is down"]
    _run("ip link set br-lan up")
    controller.remove_network("lan")
    assert "UP" in _link()["flags"]


def test_its_mac_address_does_not_follow_its_members(controller: Controller) -> None:
    _up("10.5.0.1/24")
    before = _link()["address"]
    controller.create_network("lan", options=OPTIONS)
    controller.create_sandbox("box")
    controller.connect("lan", "box")
    assert _link()["address"] == before
    controller.remove_sandbox("box")
    assert _link()["address"] == before


def test_it_takes_the_mtu_of_the_network_for_as_long(controller: Controller) -> None:
    _run("ip link set br-lan mtu 1300")
    controller.create_network("lan", options={**OPTIONS, "com.docker.network.driver.mtu": "1400"})
    assert _link()["mtu"] == 1400
    _run("ip link set br-lan mtu 1200")
    assert [difference for _, difference in controller.check("lan")] == ["link br-lan has MTU 1200, not 1400"]
    _run("ip link set br-lan mtu 1400")
    controller.remove_network("lan")
    assert _link()["mtu"] == 1300


def test_an_mtu_that_was_changed_meanwhile_stays(controller: Controller) -> None:
    controller.create_network("lan", options={**OPTIONS, "com.docker.network.driver.mtu": "1400"})
    _run("ip link set br-lan mtu 1200")
    controller.remove_network("lan")
    assert _link()["mtu"] == 1200


def test_addresses_that_came_after_ours_stay(controller: Controller) -> None:
    _up()
    before = snapshot()
    controller.create_network("lan", subnets=["10.5.0.0/24"], options=OPTIONS)
    _run("ip addr add 10.5.0.77/24 dev br-lan")
    assert _addresses() == ["10.5.0.1/24", "10.5.0.77/24"]
    controller.remove_network("lan")
    assert _addresses() == ["10.5.0.77/24"]
    assert Path("/proc/sys/net/ipv4/conf/br-lan/promote_secondaries").read_text() == "0\n"
    _run("ip addr del 10.5.0.77/24 dev br-lan")
    assert differences(before, snapshot()) == []


def test_ipv6_is_switched_on_for_a_network_that_needs_it_and_off_again(controller: Controller) -> None:
    setting = Path("/proc/sys/net/ipv6/conf/br-lan/disable_ipv6")
    setting.write_text("1")
    controller.create_network("lan", subnets=["10.5.0.0/24", "fd05::/64"], options=OPTIONS)
    assert _addresses() == ["10.5.0.1/24", "fd05::1/64"]
    controller.remove_network("lan")
    assert setting.read_text() == "1\n"
    assert _addresses() == []
