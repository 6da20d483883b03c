"""Routes in a fresh netns, and what a new subnet must keep clear of."""

import json
import subprocess
from collections.abc import Callable
from ipaddress import ip_address, ip_interface, ip_network
from time import monotonic
from typing import Any

import pytest
from msgspec.structs import replace

from netlib.errors import KernelError, ObjectMissing
from netlib.kernel.addresses import Address
from netlib.kernel.bridges import Bridge
from netlib.kernel.handle import Kernel
from netlib.kernel.routes import RouteEntry, host_routes
from netlib.model import NetnsRef
from netlib.testing.snapshot import differences, snapshot

ANY4, ANY6 = ip_network("0.0.0.0/0"), ip_network("::/0")
GATEWAY4, GATEWAY6 = ip_address("10.22.0.1"), ip_address("fd00::1")


@pytest.fixture
def web(netns_factory: Callable[[str], NetnsRef], kernel: Kernel) -> NetnsRef:
    """A netns with links eth0 (10.22.0.2/16, fd00::2/64) and eth1 (10.23.0.2/16)."""
    netns = netns_factory("web")
    for ifname, texts in (("eth0", ["10.22.0.2/16", "fd00::2/64"]), ("eth1", ["10.23.0.2/16"])):
        Bridge(ifname=ifname, netns=netns).ensure(kernel)
        for text in texts:
            Address(ifname=ifname, address=ip_interface(text), netns=netns).ensure(kernel)
    deadline = monotonic() + 10
    while not shown(netns, "-6 route show table local fd00::2"):  # the kernel sets it a moment after the address
        assert monotonic() < deadline
    return netns


def ip(netns: NetnsRef, command: str) -> None:
    subprocess.run(["ip", "-n", netns.label, *command.split()], check=True)


def shown(netns: NetnsRef, what: str) -> list[dict[str, Any]]:
    command = ["ip", "-j", "-n", netns.label, *what.split()]
    found: list[dict[str, Any]] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout or b"[]")
    return found


@pytest.mark.parametrize(
    ("destination", "gateway", "metric", "table"),
    [
        (ANY4, GATEWAY4, 0, 254),
        (ANY4, GATEWAY4, 200, 254),
        (ANY4, None, 0, 254),
        (ANY4, GATEWAY4, 0, 1000),
        (ip_network("10.99.0.0/24"), GATEWAY4, 0, 254),
        (ip_network("10.99.0.1/32"), None, 7, 100),
        (ANY6, GATEWAY6, 0, 254),
        (ANY6, GATEWAY6, 50, 1000),
        (ip_network("fd99::/48"), None, 0, 254),
    ],
)
def test_route_comes_once_and_goes(
    kernel: Kernel, web: NetnsRef, destination: Any, gateway: Any, metric: int, table: int
) -> None:
    before = snapshot(web)
    route = RouteEntry(destination=destination, gateway=gateway, ifname="eth0", metric=metric, table=table, netns=web)
    assert "is missing" in str(route.drift(kernel))
    route.ensure(kernel)
    after = snapshot(web)
    route.ensure(kernel)
    assert differences(after, snapshot(web)) == []
    assert route.drift(kernel) is None
    (found,) = shown(
        web, f"-{destination.version} route show table {table} {destination if destination.prefixlen else 'default'}"
    )
    expected = metric or (1024 if destination.version == 6 else 0)
    assert (found["dev"], found.get("gateway"), found.get("metric", 0)) == ("eth0", str(gateway) if gateway else None, expected)
    route.remove(kernel)
    route.remove(kernel)
    assert differences(before, snapshot(web)) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            RouteEntry(destination=ANY4, gateway=GATEWAY4, ifname="eth0"),
            RouteEntry(destination=ANY4, gateway=ip_address("10.23.0.1"), ifname="eth1"),
        ),
        (
            RouteEntry(destination=ANY4, gateway=GATEWAY4, ifname="eth0"),
            RouteEntry(destination=ANY4, ifname="eth1"),
        ),
        (
            RouteEntry(destination=ANY6, gateway=GATEWAY6, ifname="eth0"),
            RouteEntry(destination=ANY6, gateway=ip_address("fd00::9"), ifname="eth0"),
        ),
        (
            RouteEntry(destination=ANY6, gateway=GATEWAY6, ifname="eth0"),
            RouteEntry(destination=ANY6, ifname="eth1"),
        ),
        (
            RouteEntry(destination=ANY6, ifname="eth1"),
            RouteEntry(destination=ANY6, gateway=GATEWAY6, ifname="eth0"),
        ),
    ],
)
def test_another_gateway_or_link_takes_the_place(kernel: Kernel, web: NetnsRef, old: RouteEntry, new: RouteEntry) -> None:
    old, new = replace(old, netns=web), replace(new, netns=web)
    assert old.key == new.key
    old.ensure(kernel)
    assert "not by" in str(new.drift(kernel))
    new.ensure(kernel)
    assert new.drift(kernel) is None
    assert len(shown(web, f"-{old.destination.version} route show default")) == 1
    old.remove(kernel)  # it is no longer as described
    assert new.drift(kernel) is None
    new.remove(kernel)
    assert shown(web, f"-{old.destination.version} route show default") == []


ATTRIBUTES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"mtu": 1400, "advmss": 1300}, {"metrics": [{"mtu": 1400, "advmss": 1300}]}),
    ({"scope": 253, "gateway": None}, {"scope": "link"}),
    ({"scope": 0, "gateway": None}, {}),
    ({"source": ip_address("10.22.0.2")}, {"prefsrc": "10.22.0.2"}),
    ({"destination": ip_network("fd99::/48"), "gateway": GATEWAY6, "mtu": 1300}, {"metrics": [{"mtu": 1300}]}),
    ({"destination": ip_network("fd99::/48"), "gateway": None, "source": ip_address("fd00::2")}, {"prefsrc": "fd00::2"}),
]


@pytest.mark.parametrize(("attributes", "expected"), ATTRIBUTES)
def test_attributes_are_set_compared_and_explained(
    kernel: Kernel, web: NetnsRef, attributes: dict[str, Any], expected: dict[str, Any]
) -> None:
    plain = RouteEntry(destination=ip_network("10.99.0.0/24"), gateway=GATEWAY4, ifname="eth0", netns=web)
    route = replace(plain, **attributes)
    version = route.destination.version

    def found() -> dict[str, Any]:
        (entry,) = shown(web, f"-{version} route show {route.destination}")
        return {name: entry[name] for name in ("metrics", "scope", "prefsrc") if name in entry}

    route.ensure(kernel)
    assert found() == expected
    assert route.drift(kernel) is None
    ours = shown(web, f"-{version} route show {route.destination}")
    other = replace(route, mtu=route.mtu + 1200)
    assert other.drift(kernel) == f"route {route.destination} has another scope, source, mtu or advmss"
    other.remove(kernel)
    assert route.drift(kernel) is None
    other.ensure(kernel)
    assert (other.drift(kernel), len(shown(web, f"-{version} route show {route.destination}"))) == (None, 1)
    route.ensure(kernel)
    route.remove(kernel)
    assert shown(web, f"-{version} route show {route.destination}") == []
    (command,) = route.commands()
    subprocess.run([*command.split(), "proto", "static"], check=True)
    assert shown(web, f"-{version} route show {route.destination}") == ours


def test_only_the_route_described_is_removed(kernel: Kernel, web: NetnsRef) -> None:
    ip(web, "route add default via 10.22.0.1 dev eth0 metric 100")
    ip(web, "route add default via 10.22.0.1 dev eth0 table 100")
    ip(web, "-6 route add default via fd00::1 dev eth0 metric 100")
    before = snapshot(web)
    for destination, gateway in ((ANY4, GATEWAY4), (ANY6, GATEWAY6)):
        route = RouteEntry(destination=destination, gateway=gateway, ifname="eth0", netns=web)
        route.remove(kernel)
        assert differences(before, snapshot(web)) == []
        route.ensure(kernel)
        route.remove(kernel)
    assert differences(before, snapshot(web)) == []


def test_route_is_gone_with_its_link_or_netns(kernel: Kernel, web: NetnsRef) -> None:
    route = RouteEntry(destination=ANY4, gateway=GATEWAY4, ifname="eth0", netns=web)
    route.ensure(kernel)
    stranger = replace(route, netns=NetnsRef(web.path, "123456789abc:1"))
    stranger.remove(kernel)
    assert "is gone" in str(stranger.drift(kernel))
    assert route.drift(kernel) is None
    ip(web, "link del eth0")
    route.remove(kernel)
    assert "eth0" in str(route.drift(kernel))
    with pytest.raises(ObjectMissing, match="eth0"):
        route.ensure(kernel)


def test_a_gateway_out_of_reach_is_refused_in_the_kernels_words(kernel: Kernel, web: NetnsRef) -> None:
    route = RouteEntry(destination=ANY4, gateway=ip_address("192.0.2.7"), ifname="eth0", netns=web)
    with pytest.raises(KernelError, match=r"cannot set route default4 on eth0 in web\S+: .*gateway"):
        route.ensure(kernel)


def test_host_routes_are_those_of_every_table_and_family(kernel: Kernel, web: NetnsRef) -> None:
    for command in (
        "route add default via 10.22.0.1",
        "route add 0.0.0.0/1 via 10.22.0.1",
        "route add 10.50.0.0/16 dev eth0 table 77",
        "route add 10.51.0.0/16 dev eth0 table 5000",
        "route add blackhole 10.52.0.0/14",
        "route add 169.254.0.0/16 dev eth0",
        "-6 route add default via fd00::1",
        "-6 route add fd51::/48 dev eth0 table 5000",
        "-6 route add unreachable fd52::/48",
        "addr add 198.51.100.7/32 dev lo",
    ):
        ip(web, command)
    found = host_routes(kernel, web)
    assert len(found) == len(set(found))
    assert {str(network) for network in found} == {
        *("10.22.0.0/16", "10.22.0.2/32", "10.23.0.0/16", "10.23.0.2/32"),
        *("10.50.0.0/16", "10.51.0.0/16", "10.52.0.0/14", "169.254.0.0/16", "198.51.100.7/32"),
        *("fd00::/64", "fd00::2/128", "fd51::/48", "fd52::/48"),
    }


def test_host_routes_of_a_new_netns(kernel: Kernel, netns_factory: Callable[[str], NetnsRef]) -> None:
    assert host_routes(kernel, netns_factory("empty")) == []


def test_thousands_of_host_routes_are_read_quickly(kernel: Kernel, web: NetnsRef) -> None:
    for family, texts in (
        ("-4", [f"172.{16 + n // 256}.{n % 256}.0/24" for n in range(2500)]),
        ("-6", [f"fd01:{n:x}::/48" for n in range(2500)]),
    ):
        lines = "".join(f"route add {text} dev eth0\n" for text in texts)
        subprocess.run(["ip", "-n", web.label, family, "-batch", "-"], input=lines.encode(), check=True)
    found = host_routes(kernel, web)
    assert len(found) == 5000 + 6
