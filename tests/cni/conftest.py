"""What tests of plugin types ask for."""

import subprocess
from collections.abc import Callable, Iterator

import pytest

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.model import NetnsRef
from tests.cni.calling import Caller, run
from tests.cni.dhcp_server import ADDRESS


@pytest.fixture
def controller(config: Config) -> Iterator[Controller]:
    """A host of its own; everything of it goes at the end."""
    with Controller(config, watcher=Unwatched()) as controller:
        yield controller
        controller.reset()


@pytest.fixture
def caller(controller: Controller) -> Iterator[Caller]:
    """A runtime on that host."""
    caller = Caller(lambda: controller)
    yield caller
    caller.clear()


@pytest.fixture
def lan(netns_factory: Callable[[str], NetnsRef]) -> Iterator[NetnsRef]:
    """The netns of a DHCP server, whose eth0 is on a bridge of the administrator's, ``br-lan``."""
    home = netns_factory("dhcp")
    name = home.path.removeprefix("/run/netns/")
    run("ip", "link", "add", "br-lan", "up", "type", "bridge")
    run("ip", "link", "add", "lan1", "up", "master", "br-lan", "type", "veth", "peer", "name", "eth0", "netns", name)
    run("ip", "-n", name, "addr", "add", f"{ADDRESS}/24", "dev", "eth0")
    run("ip", "-n", name, "link", "set", "eth0", "up")
    yield home
    run("ip", "link", "del", "lan1")
    run("ip", "link", "del", "br-lan")


@pytest.fixture
def cable(caller: Caller, lan: NetnsRef) -> Iterator[Caller]:
    """A container c1 with a link to that bridge that another main plugin made, up and without an address."""
    caller.container("c1")
    run("ip", "link", "add", "veth1", "up", "master", "br-lan", "type", "veth", "peer", "name", "eth0", "netns", "c1")
    run("ip", "-n", "c1", "link", "set", "eth0", "up")
    yield caller
    subprocess.run(["ip", "link", "del", "veth1"], check=False, stderr=subprocess.DEVNULL)  # unless it went with its netns
