"""What CNI plugins ask of the firewall, with real packets: addresses that are masqueraded one by one.

Each runs with bridged frames passing the host's rules (bridge-nf-call-iptables 1) and without. brA and brB are no networks of
netlib's here, but bridges that plugins made.
"""

import subprocess
from collections.abc import Iterator
from ipaddress import ip_interface, ip_network

import pytest

from netlib.firewall.backend import firewall
from netlib.firewall.objects import (
    BridgedNetwork,
    ContainerSubnet,
    FirewallBase,
    FirewallObject,
    Masquerade,
    MasqueradedAddress,
)
from netlib.kernel.handle import Kernel
from netlib.kernel.netns import entered
from tests.kernel.firewall_world import World, probes

SUBNETS = [ContainerSubnet(subnet=ip_network(subnet)) for subnet in ("10.1.0.0/24", "fd01::/64", "10.0.0.0/8")]
A1 = [MasqueradedAddress(address=ip_interface(address)) for address in ("10.1.0.2/24", "fd01::2/64")]


@pytest.fixture(scope="module", params=[0, 1], ids=["bridge_nf_0", "bridge_nf_1"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    world = World(request.param)
    yield world
    world.close()


@pytest.fixture
def kernel(world: World) -> Iterator[Kernel]:
    """A handle on the world's host, with the table; a test's thread stays there."""
    with entered(world.refs["host"]), Kernel("netlib:test:record") as kernel:
        FirewallBase().ensure(kernel)
        yield kernel
        subprocess.run(["nft", "add table inet netlib; delete table inet netlib"], check=True)


def test_what_leaves_its_own_subnet_takes_the_address_of_the_link(world: World, kernel: Kernel) -> None:
    FirewallObject.ensure_many(kernel, [*SUBNETS, *A1])
    assert world.answers(*probes(["a1"], ["192.168.9.2", "fd09::2"])) == ["lan 192.168.9.1"] * 2 + ["lan fd09::1"] * 2
    assert world.answers(*probes(["a1"], ["10.2.0.2", "fd02::2"])) == ["b1 10.2.0.1"] * 2 + ["b1 fd02::1"] * 2
    assert world.answers(*probes(["a1"], ["10.1.0.3", "fd01::3"])) == ["a2 10.1.0.2"] * 2 + ["a2 fd01::2"] * 2
    assert world.answers(*probes(["a2"], ["192.168.9.2", "fd09::2"])) == ["lan 10.1.0.3"] * 2 + ["lan fd01::3"] * 2
    FirewallObject.remove_many(kernel, A1)
    assert world.answers(*probes(["a1"], ["192.168.9.2", "fd09::2"])) == ["lan 10.1.0.2"] * 2 + ["lan fd01::2"] * 2


def test_each_address_is_measured_by_its_own_subnet(world: World, kernel: Kernel) -> None:
    """Subnets of different networks may lie in each other, and nothing of that is an interval set's affair."""
    wide = MasqueradedAddress(address=ip_interface("10.1.0.3/8"))
    FirewallObject.ensure_many(kernel, [*SUBNETS, *A1, wide])
    assert world.answers(*probes(["a1", "a2"], ["10.2.0.2"])) == ["b1 10.2.0.1"] * 2 + ["b1 10.1.0.3"] * 2
    assert wide.drift(kernel) is None


def test_frames_that_the_bridge_only_passes_on_keep_their_address(world: World, kernel: Kernel) -> None:
    """Another subnet on the same wire: the host routes nothing, so there is no link that they leave by."""
    FirewallObject.ensure_many(kernel, [*SUBNETS, *A1])
    world.run("ip", "address", "add", "10.77.0.3/24", "dev", "eth0", name="a2")
    world.run("ip", "route", "add", "10.77.0.0/24", "dev", "eth0", "src", "10.1.0.2", name="a1")
    assert world.answers(*probes(["a1"], ["10.77.0.3"], protocols=["tcp"])) == ["a2 10.1.0.2"]
    world.run("ip", "route", "del", "10.77.0.0/24", name="a1")
    world.run("ip", "address", "del", "10.77.0.3/24", "dev", "eth0", name="a2")


def test_networks_of_ours_are_what_they_were_beside_them(world: World, kernel: Kernel) -> None:
    """brB is a network of netlib's, and brA a plugin's bridge."""
    subnet = ip_network("10.2.0.0/24")
    ours = [BridgedNetwork(bridge="brB", subnets=(subnet,)), Masquerade(subnet=subnet, bridge="brB")]
    FirewallObject.ensure_many(kernel, [*ours, *SUBNETS, *A1])
    world.closed(*probes(["a1", "lan"], ["10.2.0.2"]))
    assert world.answers(*probes(["b1"], ["192.168.9.2", "10.1.0.2"])) == ["lan 192.168.9.1"] * 2 + ["a1 10.1.0.1"] * 2


def test_what_is_altered_by_hand_is_told_and_made_whole(world: World, kernel: Kernel) -> None:
    """And what is gone already is no error."""
    FirewallObject.ensure_many(kernel, [*SUBNETS, *A1])
    world.run("nft", "flush chain inet netlib outward_10.1.0.0/24")
    assert SUBNETS[0].drift(kernel) == "nftables chain inet netlib outward_10.1.0.0/24 has other rules than ours"
    SUBNETS[0].ensure(kernel)
    assert SUBNETS[0].drift(kernel) is None
    world.run("nft", "delete element inet netlib outward4 { 10.1.0.2 }")
    assert A1[0].drift(kernel) == "outward4 10.1.0.2 is missing"
    FirewallObject.remove_many(kernel, [*A1, *SUBNETS])
    FirewallObject.remove_many(kernel, [*A1, *SUBNETS])
    assert "outward_" not in firewall(kernel).listing()
    assert SUBNETS[1].drift(kernel) == "nftables chain inet netlib outward_fd01__/64 is missing"
