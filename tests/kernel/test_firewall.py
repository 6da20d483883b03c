"""Who reaches whom through the firewall: every sentence that the documentation says, and what it forbids, with real packets.

Each runs with bridged frames passing the host's rules (bridge-nf-call-iptables 1) and without.
"""

import socket
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from netlib.firewall.backend import firewall
from netlib.firewall.objects import (
    BridgedNetwork,
    FirewallBase,
    FirewallObject,
    ForwardAllowance,
    Masquerade,
    PublishedPort,
)
from netlib.kernel.handle import Kernel
from netlib.kernel.netns import entered
from netlib.model import Protocol
from netlib.plan import KernelObject
from tests.kernel.dns_client import wait_until
from tests.kernel.firewall_world import SILENCE, Probe, World, probes

TAG = "netlib:test:record"
A1, A2, B1, I1, I2, LAN = (
    ("10.1.0.2", "fd01::2"),
    ("10.1.0.3", "fd01::3"),
    ("10.2.0.2", "fd02::2"),
    ("10.3.0.2", "fd03::2"),
    ("10.3.0.3", "fd03::3"),
    ("192.168.9.2", "fd09::2"),
)
UPLINK = ("192.168.9.1", "fd09::1")
ALL = ("tcp", "udp", "icmp")


def network(bridge: str, number: int, **options: Any) -> BridgedNetwork:
    subnets = (ip_network(f"10.{number}.0.0/24"), ip_network(f"fd0{number}::/64"))
    return BridgedNetwork(bridge=bridge, subnets=subnets, **options)


def port(
    host_port: int, address: str, host_ip: str = "", protocol: Protocol = Protocol.TCP, container_port: int = 80
) -> PublishedPort:
    return PublishedPort(
        bridge="brA" if address.split(".")[:2] == ["10", "1"] or address.startswith("fd01") else "brB",
        address=ip_address(address),
        container_port=container_port,
        host_port=host_port,
        protocol=protocol,
        host_ip=ip_address(host_ip) if host_ip else None,
    )


def published(host_port: int, addresses: tuple[str, str], host_ip: str = "") -> list[PublishedPort]:
    kept = [address for address in addresses if not host_ip or (":" in host_ip) == (":" in address)]
    return [port(host_port, address, host_ip, protocol) for address in kept for protocol in Protocol]


def standard() -> list[FirewallObject]:
    """Two networks and an internal one; 8080 (a1) and 8090 (b1) on every address, 8081 on loopback, 8082 on the uplink only."""
    subnets = [("brA", "10.1.0.0/24"), ("brA", "fd01::/64"), ("brB", "10.2.0.0/24"), ("brB", "fd02::/64")]
    return [
        FirewallBase(),
        network("brA", 1),
        network("brB", 2),
        network("brI", 3, internal=True),
        *(Masquerade(subnet=ip_network(subnet), bridge=bridge) for bridge, subnet in subnets),
        *published(8080, A1),
        *published(8090, B1),
        *published(8081, A2, "127.0.0.1"),
        *published(8082, A2, "192.168.9.1"),
        *published(8082, A2, "fd09::1"),
    ]


@pytest.fixture(scope="module", params=[0, 1], ids=["bridge_nf_0", "bridge_nf_1"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    world = World(request.param)
    yield world
    world.close()


@pytest.fixture
def kernel(world: World) -> Iterator[Kernel]:
    """A handle on the world's host; a test's thread stays there."""
    with entered(world.refs["host"]), Kernel(TAG) as kernel:
        yield kernel
        subprocess.run(["nft", "add table inet netlib; delete table inet netlib"], check=True)  # also after a failure


def ensured(kernel: Kernel, objects: list[FirewallObject]) -> Iterator[None]:
    FirewallObject.ensure_many(kernel, objects)
    yield
    FirewallObject.remove_many(kernel, objects[::-1])
    assert firewall(kernel).listing() == ""


@pytest.fixture
def rules(kernel: Kernel) -> Iterator[None]:
    yield from ensured(kernel, standard())


def test_without_rules_everything_is_open(world: World, kernel: Kernel) -> None:
    """What keeps the closed ones below closed is the firewall, not a missing route."""
    world.reached(*probes(["a1"], [*A2, *B1, *I1, *UPLINK], protocols=["icmp"]))
    world.reached(*probes(["lan"], [*A1, *B1, *I1]), *probes(["a1"], [*B1, *I1]), *probes(["i1"], [*A1, *LAN]))
    world.reached(*probes(["mallory"], ["127.0.0.1"], 9000))
    world.reached(*probes(["lan"], ["127.0.0.1"], 9000))
    assert spoofed(world) == "spoofed"


def spoofed(world: World) -> str | None:
    """What the host hears of a datagram that mallory sends from a loopback address."""
    with entered(world.refs["host"]):
        heard = socket.socket(type=socket.SOCK_DGRAM)
    with entered(world.refs["mallory"]):
        sender = socket.socket(type=socket.SOCK_DGRAM)
    with heard, sender:
        heard.bind(("10.1.0.1", 0))
        heard.settimeout(SILENCE)
        sender.bind(("127.6.6.6", 0))
        sender.sendto(b"spoofed", heard.getsockname())
        try:
            return heard.recv(100).decode()
        except TimeoutError:
            return None


def test_members_of_a_network_reach_each_other_unchanged(world: World, rules: None) -> None:
    world.reached(*probes(["a1"], A2, protocols=ALL), *probes(["i1"], I2, protocols=ALL))
    assert world.answers(*probes(["a1"], A2)) == ["a2 10.1.0.2", "a2 10.1.0.2", "a2 fd01::2", "a2 fd01::2"]


def test_networks_are_apart(world: World, rules: None) -> None:
    world.closed(*probes(["a1"], [*B1, *I1], protocols=ALL), *probes(["b1"], A1, protocols=ALL))


def test_what_leaves_takes_the_address_of_the_uplink(world: World, rules: None) -> None:
    world.reached(*probes(["a1"], LAN, protocols=ALL))
    assert world.answers(*probes(["a1", "b1"], LAN)) == ["lan 192.168.9.1", "lan 192.168.9.1", "lan fd09::1", "lan fd09::1"] * 2


def test_published_port_from_outside_shows_who_asks(world: World, rules: None) -> None:
    found = world.answers(*probes(["lan"], UPLINK, 8080))
    assert found == ["a1 192.168.9.2", "a1 192.168.9.2", "a1 fd09::2", "a1 fd09::2"]


def test_published_port_from_the_host_itself(world: World, rules: None) -> None:
    found = world.answers(*probes(["host"], ["127.0.0.1", "192.168.9.1", "10.1.0.1", "10.2.0.1", "fd09::1"], 8080))
    assert found[:2] == ["a1 10.1.0.1"] * 2  # an address of 127/8 could not be answered
    assert [answer and answer.split()[0] for answer in found] == ["a1"] * 10


def test_host_reaches_containers_and_containers_its_gateway(world: World, rules: None) -> None:
    world.reached(*probes(["host"], [*A1, *I1], protocols=ALL))
    world.reached(*probes(["a1"], ["10.1.0.1", "fd01::1"], 9001), *probes(["i1"], ["10.3.0.1"], 9001))


def test_unpublished_ports_are_closed_when_addressed_directly(world: World, rules: None) -> None:
    world.closed(*probes(["lan"], [*A1, *A2, *B1], protocols=ALL))


def test_hairpin_to_itself_and_to_a_neighbour(world: World, rules: None) -> None:
    """Through every address of the host, the gateway's too."""
    found = world.answers(*probes(["a1", "a2"], ["192.168.9.1", "10.1.0.1", "fd09::1", "fd01::1"], 8080))
    assert [answer and answer.split()[0] for answer in found] == ["a1"] * 16


def test_another_network_is_reached_by_the_hosts_published_address_only(world: World, rules: None) -> None:
    found = world.answers(*probes(["b1"], [*UPLINK, "10.2.0.1"], 8080))
    assert [answer and answer.split()[0] for answer in found] == ["a1"] * 6
    world.closed(*probes(["b1"], A1))


def test_port_on_loopback_only(world: World, rules: None) -> None:
    assert world.answers(*probes(["host"], ["127.0.0.1"], 8081)) == ["a2 10.1.0.1"] * 2
    world.closed(
        *probes(["lan"], [*UPLINK, "127.0.0.1", "10.1.0.1"], 8081),
        *probes(["a1", "b1"], ["192.168.9.1", "10.1.0.1"], 8081),
        *probes(["mallory"], ["127.0.0.1"], 8081),
        *probes(["host"], UPLINK, 8081),
    )


def test_port_on_one_address_only(world: World, rules: None) -> None:
    found = world.answers(*probes(["lan", "a1", "a2", "b1", "host"], UPLINK, 8082))
    assert [answer and answer.split()[0] for answer in found] == ["a2"] * 20
    world.closed(*probes(["lan", "a1", "host"], ["10.1.0.1", "fd01::1"], 8082), *probes(["host"], ["127.0.0.1"], 8082))


def test_port_on_an_address_that_moved_away_is_its_new_owners(world: World, kernel: Kernel) -> None:
    moving = {"192.168.9.7": "192.168.9.7/24", "fd09::7": "fd09::7/64"}
    for _ in ensured(kernel, [*standard(), *(item for address in moving for item in published(80, A2, address))]):
        with held(world, "host", "uplink", moving.values()):
            found = world.answers(*probes(["lan", "a1", "host"], [*moving], protocols=["tcp"]))
            assert [answer and answer.split()[0] for answer in found] == ["a2"] * 6
        with held(world, "lan", "eth0", moving.values()):
            found = world.answers(*probes(["a1", "b1", "host"], [*moving], protocols=["tcp"]))
            assert [answer and answer.split()[0] for answer in found] == ["lan"] * 6


@contextmanager
def held(world: World, name: str, ifname: str, addresses: Iterable[str]) -> Iterator[None]:
    """Give a link more addresses, for the block. It begins when they are local: an IPv6 address is so only a moment later."""
    for address in addresses:
        world.run("ip", "address", "add", address, "dev", ifname, "nodad", name=name)
    try:
        asked = [address.split("/")[0] for address in addresses]
        wait_until(
            lambda: all(world.run("ip", "route", "get", address, name=name).startswith("local ") for address in asked),
            f"{asked} are not local",
        )
        yield
    finally:
        for address in addresses:
            world.run("ip", "address", "delete", address, "dev", ifname, name=name)


def test_nobody_reaches_the_hosts_loopback(world: World, rules: None) -> None:
    """Both mallory and lan send 127.0.0.0/8 to the host, whose links accept it (route_localnet)."""
    world.reached(*probes(["host"], ["127.0.0.1"], 9000))
    world.closed(*probes(["mallory", "lan"], ["127.0.0.1"], 9000), *probes(["mallory"], ["127.0.0.1"], 8080))


def test_nobody_else_is_the_hosts_loopback(world: World, rules: None) -> None:
    assert spoofed(world) is None


def test_what_ipv6_cannot_forward_stays_with_the_host(world: World, rules: None) -> None:
    """``::1`` is netlibd's to forward, and link-local addresses lead no further than their link."""
    assert world.answers(*probes(["host"], ["::1"], 8080)) == ["host ::1"] * 2
    assert world.answers(Probe("lan", "tcp", "fe80::9%eth0", 8080)) == ["host fe80::8"]


def test_internal_network_neither_leaves_nor_is_reached(world: World, kernel: Kernel, rules: None) -> None:
    """Not even by a port that somebody published on it."""
    forwarded = published(8095, I1)
    FirewallObject.ensure_many(kernel, forwarded)
    world.reached(*probes(["host"], ["192.168.9.1"], 8095))
    world.closed(
        *probes(["i1"], [*LAN, *A1, *B1], protocols=ALL),
        *probes(["lan", "a1", "b1"], I1, protocols=ALL),
        *probes(["i1"], ["10.1.0.1", "10.3.0.1"], 8090),
        *probes(["lan", "a1"], UPLINK, 8095),
    )
    FirewallObject.remove_many(kernel, forwarded)


def test_user_chain_runs_first_and_is_kept(world: World, kernel: Kernel) -> None:
    """A person's rules decide before ours, and neither a repair nor the removal of the base flushes them."""
    objects = standard()
    FirewallObject.ensure_many(kernel, objects)
    world.run("nft", "add rule inet netlib user ip saddr 192.168.9.2 tcp dport 80 drop")
    world.run("nft", "add rule inet netlib user ip saddr 10.1.0.2 ip daddr 10.2.0.2 accept")
    world.closed(Probe("lan", "tcp", "192.168.9.1", 8080))
    world.reached(Probe("lan", "udp", "192.168.9.1", 8080), Probe("a1", "tcp", "10.2.0.2", 80))
    world.run("nft", "flush chain inet netlib forward")
    assert FirewallBase().drift(kernel) == "nftables chain inet netlib forward has other rules than ours"
    FirewallBase().ensure(kernel)
    assert FirewallBase().drift(kernel) is None
    world.closed(Probe("lan", "tcp", "192.168.9.1", 8080), Probe("lan", "tcp", "10.1.0.2", 80))
    FirewallObject.remove_many(kernel, objects[::-1])
    assert "ip saddr 192.168.9.2 tcp dport 80 drop" in firewall(kernel).listing()
    world.reached(Probe("lan", "udp", "10.2.0.2", 80))  # without entries the table stands in nobody's way
    world.run("nft", "flush chain inet netlib user")
    FirewallBase().remove(kernel)
    assert firewall(kernel).listing() == ""


def test_members_kept_apart_still_reach_published_ports(world: World, kernel: Kernel) -> None:
    """Without icc; bridged frames pass the firewall only where the bridge hands them over."""
    objects = [FirewallBase(), network("brA", 1, icc=False), *published(8080, A1)]
    bridged = Path("/proc/sys/net/bridge/bridge-nf-call-iptables").read_text().strip() == "1"
    for _ in ensured(kernel, objects):
        found = world.answers(*probes(["a2", "a1"], ["192.168.9.1", "fd09::1"], 8080))
        assert [answer and answer.split()[0] for answer in found] == ["a1"] * 8
        if bridged:
            world.closed(*probes(["a2"], A1))
        else:
            world.reached(*probes(["a2"], A1))


def test_unprotected_network_is_open_to_the_outside_but_not_to_other_networks(world: World, kernel: Kernel) -> None:
    for _ in ensured(kernel, [FirewallBase(), network("brA", 1, mode="nat-unprotected"), network("brB", 2)]):
        world.reached(*probes(["lan"], A1, protocols=ALL))
        world.closed(*probes(["b1"], A1, protocols=ALL))


def test_udp_flow_follows_the_port_as_it_comes_and_goes(world: World, kernel: Kernel) -> None:
    """A flow that began before the port was published, and one that goes on after it no longer is."""
    network_objects: list[FirewallObject] = [FirewallBase(), network("brA", 1)]
    flow = Probe("lan", "udp", "192.168.9.1", 7000, source_port=40000)
    for _ in ensured(kernel, network_objects):
        world.closed(flow)
        for target in (A1, A2):
            udp = port(7000, target[0], protocol=Protocol.UDP)
            udp.ensure(kernel)
            assert world.answers(flow) == [f"{'a1' if target is A1 else 'a2'} 192.168.9.2"]
        udp = port(7000, A2[0], protocol=Protocol.UDP)
        udp.remove(kernel)
        world.closed(flow)


def test_foreign_drop_is_overcome_and_left_as_it_was(world: World, kernel: Kernel) -> None:
    """The policy that Docker and ufw set: closed without the allowance, open with it, the same rules after it."""
    for program in ("iptables", "ip6tables"):
        world.run(program, "-P", "FORWARD", "DROP")
        world.run(program, "-A", "FORWARD", "-s", "10.9.9.9" if program == "iptables" else "fd99::9", "-j", "ACCEPT")
    before = world.run("iptables-save") + world.run("ip6tables-save")
    members = (*probes(["a1"], LAN), *probes(["lan"], UPLINK, 8080))
    for _ in ensured(kernel, standard()):
        world.closed(*members)
        allowance = ForwardAllowance(bridge="brA")
        assert "chain ip filter FORWARD drops what brA forwards" in (allowance.drift(kernel) or "")
        allowance.ensure(kernel)
        allowance.ensure(kernel)
        assert allowance.drift(kernel) is None
        world.reached(*members)
        world.closed(*probes(["lan"], A1), *probes(["b1"], LAN), *probes(["a1"], B1))
        listed = world.run("iptables", "-S", "FORWARD")
        assert listed.count(f'"{TAG} forward brA" -j ACCEPT') == 2, listed
        allowance.remove(kernel)
        allowance.remove(kernel)
        world.closed(*members)
    assert _without_counters(world.run("iptables-save") + world.run("ip6tables-save")) == _without_counters(before)
    for family in ("ip", "ip6"):
        world.run("nft", f"delete table {family} filter")


def _without_counters(saved: str) -> list[str]:
    return [line.partition(" [")[0] for line in saved.splitlines() if not line.startswith("#")]


def test_every_object_drifts_when_the_table_is_deleted(world: World, kernel: Kernel) -> None:
    objects: list[KernelObject] = [*standard()]
    FirewallObject.ensure_many(kernel, objects)
    assert [item.drift(kernel) for item in objects] == [None] * len(objects)
    world.run("nft", "delete table inet netlib")
    assert all("table inet netlib is" in (item.drift(kernel) or "") for item in objects)
    FirewallObject.remove_many(kernel, objects[::-1])
    FirewallObject.ensure_many(kernel, objects)
    assert [item.drift(kernel) for item in objects] == [None] * len(objects)
    world.reached(Probe("lan", "tcp", "192.168.9.1", 8080))
    FirewallObject.remove_many(kernel, objects[::-1])
