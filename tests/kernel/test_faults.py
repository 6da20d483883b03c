"""Every object of every plan fails in turn, and the process dies before and after each: nothing may be left.

The base is compared whole: links, addresses, routes, rules, the nftables ruleset, sysctls, netns files, our folders, and the
store's records, objects, leases, free ranges and ports. The first use of a host leaves the base of the firewall and forwarding;
the fixture makes that first use, so that nothing at all may differ afterwards.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from netlib.config import Config
from netlib.core.controller import Controller
from netlib.model import Protocol
from netlib.ports import parse_publish
from netlib.testing.host import Action, TestedHost


def _create_network(controller: Controller) -> None:
    controller.create_network("web", subnets=["10.200.0.0/24", "fd00:200::/64"])


def _make_bridge(controller: Controller) -> None:
    """A bridge of somebody else, down, with an address, and with a network's MTU and IPv6 still to come."""
    for command in ("link add br-lan mtu 1300 type bridge", "addr add 10.201.0.1/24 dev br-lan"):
        subprocess.run(["ip", *command.split()], check=True)
    Path("/proc/sys/net/ipv6/conf/br-lan/disable_ipv6").write_text("1")


def _create_on_bridge(controller: Controller) -> None:
    options = {
        "com.docker.network.bridge.name": "br-lan",
        "com.docker.network.driver.mtu": "1400",
        "com.docker.network.bridge.enable_icc": "false",
    }
    controller.create_network("web", subnets=["10.201.0.0/24", "fd00:201::/64"], options=options)


def _create_sandbox(controller: Controller) -> None:
    controller.create_sandbox("box")


def _connect(controller: Controller) -> None:
    ports = [*parse_publish("8080:80"), *parse_publish("127.0.0.1:5353:53/udp")]
    assert {port.protocol for port in ports} == {Protocol.TCP, Protocol.UDP}
    controller.connect("web", "box", aliases=["www"], ports=ports)


def _connect_default(controller: Controller) -> None:
    controller.connect("bridge", "box")


def _disconnect(controller: Controller) -> None:
    controller.disconnect("web", "box")


def _remove_sandbox(controller: Controller) -> None:
    controller.remove_sandbox("box")


def _remove_network(controller: Controller) -> None:
    controller.remove_network("web")


# name, what must be there first, the action
MAKING: list[tuple[str, list[Action], Action]] = [
    ("network create", [], _create_network),
    ("network create on a bridge", [_make_bridge], _create_on_bridge),
    ("sandbox create", [_create_network], _create_sandbox),
    ("connect", [_create_network, _create_sandbox], _connect),
    ("second connect", [_create_network, _create_sandbox, _connect], _connect_default),
]
# name, what must be there first, what is made then, the action that undoes exactly that
REMOVING: list[tuple[str, list[Action], list[Action], Action]] = [
    ("disconnect", [_create_network, _create_sandbox, _connect_default], [_connect], _disconnect),
    ("sandbox rm", [_create_network], [_create_sandbox, _connect], _remove_sandbox),
    ("network rm", [], [_create_network], _remove_network),
    ("network rm on a bridge", [_make_bridge], [_create_on_bridge], _remove_network),
]


@pytest.fixture
def host(config: Config) -> Iterator[TestedHost]:
    host = TestedHost(config)
    with host.controller() as controller:
        # The first use of each network leaves its link and the base of the firewall: made now, so that they are in the base.
        controller.create_sandbox("warm")
        controller.connect("bridge", "warm")
        controller.remove_sandbox("warm")
    yield host
    host.perform([Controller.reset])
    subprocess.run(["ip", "link", "del", "br-lan"], check=False, capture_output=True)


@pytest.mark.parametrize(("first", "action"), [pytest.param(first, action, id=name) for name, first, action in MAKING])
def test_a_failure_at_any_object_leaves_everything_as_it_was(host: TestedHost, first: list[Action], action: Action) -> None:
    assert host.assert_failures_leave_nothing(first, action) > 0


@pytest.mark.parametrize(("first", "action"), [pytest.param(first, action, id=name) for name, first, action in MAKING])
def test_a_death_while_something_is_made_is_undone(host: TestedHost, first: list[Action], action: Action) -> None:
    assert host.assert_deaths_are_undone(first, action) > 0


@pytest.mark.parametrize(("first", "made", "action"), [pytest.param(*rest, id=name) for name, *rest in REMOVING])
def test_a_death_while_something_is_removed_is_finished(
    host: TestedHost, first: list[Action], made: list[Action], action: Action
) -> None:
    assert host.assert_deaths_are_finished(first, made, action) > 0
