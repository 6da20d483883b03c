"""Names for sandboxes whose netns is somebody else's: answered at the gateways of their networks, to each what it may see."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netlib.config import Config
from netlib.core.controller import Controller
from netlib.errors import Conflict
from netlib.model import Endpoint, NetnsRef, Sandbox
from netlib.wire.client import leave
from tests.kernel.dns_client import resolve

MakeNetns = Callable[[str], NetnsRef]


@pytest.fixture
def controller(config: Config) -> Iterator[Controller]:
    with Controller(config) as controller:
        yield controller
        controller.reset()
    leave(config)


def address(endpoint: Endpoint, family: int = 4) -> str:
    found = endpoint.address(family)
    assert found is not None
    return str(found.ip)


def nameservers(sandbox: Sandbox) -> list[str]:
    lines = Path(sandbox.files_dir, "resolv.conf").read_text().splitlines()
    return [line.split()[1] for line in lines if line.startswith("nameserver")]


@pytest.fixture
def web(controller: Controller) -> str:
    """A network, and its gateway's address."""
    controller.create_network("web", internal=True, subnets=["172.28.0.0/16", "fd00:28::/64"], ipv6=True)
    return "172.28.0.1"


def test_members_in_netns_of_others_ask_the_gateway(controller: Controller, web: str, netns_factory: MakeNetns) -> None:
    home = netns_factory("guest")
    guest = controller.create_sandbox("guest", netns=home.path)
    mine = controller.connect("web", "guest", aliases=["visitor"])
    assert nameservers(guest) == [web]
    controller.create_sandbox("own")
    own = controller.connect("web", "own")
    for server in (web, "fd00:28::1"):
        assert resolve(home, "own", server) == resolve(home, "own.web", server, tcp=True) == [address(own)]
        assert resolve(home, "visitor", server) == [address(mine)]
        assert resolve(home, "nobody", server) == "NXDOMAIN"
    assert resolve(controller.sandbox("own").netns, "visitor", "127.0.0.11") == [address(mine)]
    controller.disconnect("web", "own")
    assert resolve(home, "own", web) == "NXDOMAIN"


def test_each_sees_its_own_networks_and_strangers_nothing(controller: Controller, web: str, netns_factory: MakeNetns) -> None:
    controller.create_network("db", internal=True, subnets=["172.29.0.0/16"])
    one, two = netns_factory("one"), netns_factory("two")
    controller.create_sandbox("one", netns=one.path)
    controller.create_sandbox("two", netns=two.path)
    controller.connect("web", "one")
    controller.connect("web", "two")
    inner = controller.connect("db", "one")
    assert resolve(one, "one.db", web) == resolve(one, "one.db", "172.29.0.1") == [address(inner)]
    assert resolve(two, "one.db", web) == "NXDOMAIN"
    box = controller.create_sandbox("own")  # it has a resolver of its own
    controller.connect("web", "own")
    assert resolve(box.netns, "one", web) == "SERVFAIL"


def test_the_gateway_is_served_as_long_as_somebody_asks_there(
    controller: Controller, web: str, netns_factory: MakeNetns, config: Config
) -> None:
    home = netns_factory("guest")
    controller.create_sandbox("guest", netns=home.path)
    mine = controller.connect("web", "guest")
    assert resolve(home, "guest", web) == [address(mine)]
    leave(config)
    controller.create_sandbox("own")
    own = controller.connect("web", "own")  # starts netlibd, which serves what was there
    assert resolve(home, "own", web) == [address(own)]
    controller.remove_sandbox("guest")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((web, 53))


def test_a_name_server_on_every_address_is_named(controller: Controller, web: str, netns_factory: MakeNetns) -> None:
    home = netns_factory("guest")
    controller.create_sandbox("guest", netns=home.path)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("0.0.0.0", 53))
        with pytest.raises(Conflict, match=f"port 53 of {web} is taken"):
            controller.connect("web", "guest")
    assert controller.endpoints(sandbox="guest") == []
    mine = controller.connect("web", "guest")
    assert resolve(home, "guest", web) == [address(mine)]
