"""Of an internal network the host hears only what is for the bridge's own address, and forwards nothing of hand-made frames.

What is forbidden is sent right before what is allowed, on the same way: what is heard first says whether it got through.
"""

import socket
import subprocess
from typing import NamedTuple

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from netlib.core.controller import Controller
from netlib.kernel.handle import Kernel
from netlib.kernel.netns import entered
from netlib.model import HOST, NetnsRef
from netlib.names import bridge_ifname
from netlib.ports import parse_publish
from tests.kernel.frames import Ears, datagram, send
from tests.kernel.test_member_sources import LAN, UPLINK, controller, ears, lan
from tests.kernel.test_on_the_wire import capture

__all__ = ["controller", "ears", "lan"]

OWN = {4: "10.83.0.1", 6: "fd83::1"}
OTHERS = {4: (UPLINK[4], "10.81.0.1", "127.0.0.1", "10.81.0.255", "10.81.0.0"), 6: (UPLINK[6], "fd81::1", "::1", "fd81::")}
MEMBER = {4: "10.83.0.2", 6: "fd83::2"}
PORT = 9000


class Inside(NamedTuple):
    """A member of an internal network, beside a network of the ordinary sort with a member too."""

    netns: NetnsRef
    bridge: str
    bridge_mac: str
    neighbour: NetnsRef


@pytest.fixture
def inside(controller: Controller) -> Inside:
    controller.create_network("web", subnets=["10.81.0.0/24", "fd81::/64"])
    network = controller.create_network("inner", internal=True, subnets=["10.83.0.0/24", "fd83::/64"])
    for name, home in (("box", "inner"), ("other", "inner"), ("a", "web")):
        controller.create_sandbox(name)
        controller.connect(home, name)
    with Kernel() as kernel:
        mac = kernel.rtnl().get_link(bridge_ifname(network)).mac
    return Inside(controller.sandbox("box").netns, bridge_ifname(network), mac, controller.sandbox("other").netns)


@pytest.mark.parametrize("version", [4, 6])
def test_the_hosts_other_addresses_are_not_reached(inside: Inside, ears: Ears, lan: NetnsRef, version: int) -> None:
    hear = ears.open(HOST, PORT)
    forbidden = [datagram(MEMBER[version], other, PORT, f"to {other}", mac=inside.bridge_mac) for other in OTHERS[version]]
    send(inside.netns, "eth0", *forbidden, datagram(MEMBER[version], OWN[version], PORT, "own", mac=inside.bridge_mac))
    assert hear() == "own"


def test_they_are_where_nothing_of_ours_is_in_the_way(inside: Inside, ears: Ears, lan: NetnsRef) -> None:
    subprocess.run(["nft", "flush", "chain", "inet", "netlib", "input"], check=True)
    hear = ears.open(HOST, PORT)
    for version in (4, 6):
        for other in OTHERS[version][:2]:
            send(inside.netns, "eth0", datagram(MEMBER[version], other, PORT, other, mac=inside.bridge_mac))
            assert hear() == other


@pytest.mark.parametrize("version", [4, 6])
def test_a_route_made_by_hand_leads_nowhere(inside: Inside, ears: Ears, lan: NetnsRef, version: int) -> None:
    hear = ears.open(HOST, PORT)
    targets = (UPLINK[version], LAN[version], OWN[version])
    for target in targets[:2]:
        subprocess.run(["ip", "-n", "box", "route", "add", target, "via", OWN[version]], check=True)
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with entered(inside.netns), socket.socket(family, socket.SOCK_DGRAM) as sender:
        for target in targets:
            sender.sendto(target.encode(), (target, PORT))
    assert hear() == OWN[version]


@pytest.mark.parametrize("version", [4, 6])
def test_the_hosts_other_addresses_do_not_answer(inside: Inside, lan: NetnsRef, version: int) -> None:
    """Neither to a ping nor to a connection, nor that there is nobody: the first answer is that of the bridge."""

    def asked(target: str, number: int) -> list[Packet]:
        frame = Ether(src="02:00:00:00:00:99", dst=inside.bridge_mac)
        head: Packet = IP(src=MEMBER[4], dst=target) if version == 4 else IPv6(src=MEMBER[6], dst=target)
        ping: Packet = ICMP(id=number) if version == 4 else ICMPv6EchoRequest(id=number)
        return [
            frame / head / ping,
            frame / head / TCP(sport=4000 + number, dport=22, flags="S"),
            frame / head / UDP(sport=4000 + number, dport=9) / Raw(b"?"),
        ]

    layer = IP if version == 4 else IPv6

    def is_answer(packet: Packet) -> bool:
        # An IPv6 member's own kernel asks for neighbours meanwhile: from the bridge come answers only to what was asked.
        if layer not in packet or packet[layer].dst != MEMBER[version]:
            return False
        return TCP in packet or UDP in packet or ICMP in packet or ICMPv6EchoReply in packet

    with capture(inside.netns, "eth0") as first:
        for number, other in enumerate(OTHERS[version]):
            send(inside.netns, "eth0", *asked(other, number))
        send(inside.netns, "eth0", asked(OWN[version], 99)[0])
        assert first(is_answer)[layer].src == OWN[version]


@pytest.mark.parametrize("version", [4, 6])
def test_what_looks_like_an_answer_of_others_is_not_forwarded(
    controller: Controller, inside: Inside, ears: Ears, lan: NetnsRef, version: int
) -> None:
    """A flow of another network is established; a member of the internal one says that it goes on with it."""
    hear = ears.open(lan, PORT)
    source = next(str(item.ip) for item in controller.endpoints(sandbox="a")[0].addresses if item.version == version)
    with Kernel() as kernel:
        web_mac = kernel.rtnl().get_link(bridge_ifname(controller.network("web"))).mac
    honest = datagram(source, LAN[version], PORT, "honest", mac=web_mac)
    send(controller.sandbox("a").netns, "eth0", honest)
    assert hear() == "honest"
    _answered(lan, version)
    send(inside.netns, "eth0", datagram(source, LAN[version], PORT, "forged", mac=inside.bridge_mac))
    send(controller.sandbox("a").netns, "eth0", honest)
    assert hear() == "honest"


def _answered(lan: NetnsRef, version: int) -> None:
    """Send what the host takes for the answer to the datagram of the test above: masquerading keeps its port."""
    with Kernel() as kernel:
        mac = kernel.rtnl().get_link("uplink").mac
    head = IP(src=LAN[4], dst=UPLINK[4]) if version == 4 else IPv6(src=LAN[6], dst=UPLINK[6])
    send(lan, "eth0", Ether(src="02:00:00:00:00:98", dst=mac) / head / UDP(sport=PORT, dport=4000) / Raw(b"answer"))


@pytest.mark.parametrize("version", [4, 6])
def test_members_reach_each_other_and_the_bridge(inside: Inside, ears: Ears, version: int) -> None:
    there, here = ears.open(inside.neighbour, PORT), ears.open(HOST, PORT)
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    neighbour = {4: "10.83.0.3", 6: "fd83::3"}[version]
    with entered(inside.netns), socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"hello", (neighbour, PORT))
        sender.sendto(b"hello", (OWN[version], PORT))
    assert (there(), here()) == ("hello", "hello")


@pytest.mark.parametrize("target", ["127.0.0.1", UPLINK[4], OWN[4], MEMBER[4], UPLINK[6], OWN[6], MEMBER[6]])
def test_the_host_is_answered_whichever_address_it_asks_by(controller: Controller, lan: NetnsRef, target: str) -> None:
    controller.create_network("inner", internal=True, subnets=["10.83.0.0/24", "fd83::/64"])
    controller.create_sandbox("box")
    controller.connect("inner", "box", ports=parse_publish("8080:80"))
    for gateway in OWN.values():  # as a container's root might
        subprocess.run(["ip", "-n", "box", "route", "add", "default", "via", gateway], check=True)
    port = 80 if target in MEMBER.values() else 8080
    with controller.inside("box"):
        server = socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True)
    with server, socket.create_connection((target, port), timeout=5) as client:
        server.settimeout(5)
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"hello")
        assert client.recv(10) == b"hello"


@pytest.mark.parametrize("source", [UPLINK[4], UPLINK[6]])
def test_the_host_may_ask_by_another_address_of_its_own(inside: Inside, lan: NetnsRef, source: str) -> None:
    version = 6 if ":" in source else 4
    with entered(inside.netns):
        server = socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True)
    with entered(inside.netns):  # the way back, as a default route would be
        subprocess.run(["ip", "route", "add", source, "via", OWN[version]], check=True)
    with server, socket.create_connection((MEMBER[version], 80), timeout=5, source_address=(source, 0)) as client:
        server.settimeout(5)
        server.accept()[0].close()
        assert client.recv(10) == b""
