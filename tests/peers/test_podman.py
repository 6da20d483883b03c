"""podman with CNI and our folder, nothing but our folder, as its plugins."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni_plugins.types import plugin_types
from netlib.config import Config
from netlib.model import HOST, NetnsRef
from netlib.testing.snapshot import snapshot
from tests.kernel.dns_client import wait_until
from tests.peers.podman import Podman
from tests.peers.surroundings import HOST_ADDRESS, ask, left_behind, pings

pytestmark = [pytest.mark.runtimes, pytest.mark.needs_cgroups]

LEASES = Path("/var/lib/cni/networks")
SERVER = ("httpd", "-f", "-p", "80", "-h", "/etc")
GET = "GET /hostname HTTP/1.0\r\n\r\n"


@pytest.fixture
def podman(short_folder: Path, plugins: Path) -> Iterator[Podman]:
    with Podman(short_folder, plugins) as podman:
        yield podman


def page(address: str, port: int, source: NetnsRef = HOST) -> str | None:
    """What a container's web server says its hostname is."""
    answer = ask(address, port, source, GET)
    return answer and answer.rpartition("\r\n\r\n")[2].strip()


def test_two_containers_on_the_default_network(config: Config, podman: Podman, neighbour: NetnsRef) -> None:
    """Its conflist is podman's own: bridge, portmap, firewall and tuning."""
    before = snapshot()
    podman.run("web", *SERVER, options=("--hostname", "first", "--publish", "8080:80"))
    podman.run("box", "sleep", "1000")
    first, second = podman.address("web"), podman.address("box")
    assert first != second
    assert f"64 bytes from {first}" in podman("exec", "box", "ping", "-c1", "-W2", first)
    assert f"64 bytes from {second}" in podman("exec", "web", "ping", "-c1", "-W2", second)
    assert pings(NetnsRef(podman.netns("box")), HOST_ADDRESS)
    wait_until(lambda: page(HOST_ADDRESS, 8080, neighbour) == "first", "the page of a container that was started")
    assert page(HOST_ADDRESS, 8080) == page("127.0.0.1", 8080) == "first"

    podman("restart", "--time", "0", "web")
    assert podman.address("web") not in ("", second)
    wait_until(lambda: page(HOST_ADDRESS, 8080, neighbour) == "first", "the page of a container that was started again")
    assert f"64 bytes from {second}" in podman("exec", "web", "ping", "-c1", "-W2", second)

    podman("stop", "--time", "0", "web")
    assert page(HOST_ADDRESS, 8080, neighbour) is None
    podman("start", "web")
    wait_until(lambda: page(HOST_ADDRESS, 8080, neighbour) == "first", "the page of a container that was started again")

    podman("rm", "--force", "--time", "0", "web", "box")
    assert left_behind(config, before, *LEASES.iterdir()) == []


def test_networks_that_podman_makes(config: Config, podman: Podman) -> None:
    before = snapshot()
    podman("network", "create", "--subnet", "10.77.0.0/24", "--ipv6", "--subnet", "fd77::/64", "front")
    podman("network", "create", "--internal", "--subnet", "10.78.0.0/24", "back")
    podman("network", "create", "--subnet", "10.79.0.0/24", "side")
    written = json.loads((podman.networks / "front.conflist").read_text())
    assert {plugin["type"] for plugin in written["plugins"]} <= set(plugin_types())
    podman.run("web", *SERVER, options=("--network", "front", "--ip", "10.77.0.9", "--mac-address", "02:11:22:33:44:55"))
    podman.run("box", "sleep", "1000", options=("--network", "front,back,side", "--publish", "8081:80"))
    assert podman.address("web") == "10.77.0.9"
    assert "02:11:22:33:44:55" in podman("exec", "web", "ip", "link", "show", "eth0")
    assert "64 bytes from 10.77.0.9" in podman("exec", "box", "ping", "-c1", "-W2", "10.77.0.9")
    inside = podman("exec", "box", "ip", "addr")
    assert "inet 10.77.0." in inside
    assert "inet 10.78.0." in inside
    assert "inet 10.79.0." in inside
    assert "inet6 fd77::" in inside
    gateways = {"10.77.0.1", "10.79.0.1"}  # of the one that podman, in whatever order, joins first
    assert gateways & set(podman("exec", "box", "ip", "route", "get", "192.0.2.1").split())

    podman("network", "disconnect", "back", "box")
    assert "10.78.0." not in podman("exec", "box", "ip", "addr")
    podman("network", "connect", "back", "box")
    assert "inet 10.78.0." in podman("exec", "box", "ip", "addr")
    podman("network", "disconnect", "front", "box")
    assert "via 10.79.0.1 " in podman("exec", "box", "ip", "route", "get", "192.0.2.1")

    podman("rm", "--force", "--time", "0", "web", "box")
    podman("network", "rm", "front", "back", "side")
    assert list(podman.networks.glob("*.conflist")) == []
    assert left_behind(config, before, *LEASES.iterdir()) == []
