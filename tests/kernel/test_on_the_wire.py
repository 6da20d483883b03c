"""What really crosses the links, as captured: whose addresses the outside sees, and whose a container sees."""

import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from scapy.arch.linux import L2ListenSocket
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.kernel.netns import entered
from netlib.model import NetnsRef
from netlib.ports import parse_publish

HOST, NEIGHBOUR = "192.0.2.1", "192.0.2.2"
PATIENCE_SECONDS = 5.0


@contextmanager
def capture(netns: NetnsRef, ifname: str) -> Iterator[Callable[[Callable[[Packet], bool]], Packet]]:
    """Listen on a link; yields a function that waits for the first packet of a kind."""
    with entered(netns):
        listener: Any = L2ListenSocket(iface=ifname)

    def first(wanted: Callable[[Packet], bool]) -> Packet:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            if select.select([listener], [], [], left)[0]:
                packet: Packet | None = listener.recv()
                if packet is not None and wanted(packet):
                    return packet
        raise AssertionError("no such packet came by")

    try:
        yield first
    finally:
        listener.close()


@pytest.fixture
def controller(config: Config) -> Iterator[Controller]:
    with Controller(config, watcher=Unwatched()) as controller:
        controller.create_network("web")
        controller.create_sandbox("box")
        yield controller
        controller.reset()


@pytest.fixture
def neighbour(netns_factory: Callable[[str], NetnsRef]) -> Iterator[NetnsRef]:
    """Another machine on the host's LAN, which is also its way out."""
    netns = netns_factory("neighbour")
    name = netns.path.rpartition("/")[2]
    for command in (
        f"ip link add uplink type veth peer name eth0 netns {name}",
        f"ip addr add {HOST}/24 dev uplink",
        "ip link set uplink up",
        f"ip -n {name} addr add {NEIGHBOUR}/24 dev eth0",
        f"ip -n {name} link set eth0 up",
    ):
        subprocess.run(command.split(), check=True)
    yield netns
    subprocess.run(["ip", "link", "del", "uplink"], check=True)


def _send(netns: NetnsRef, target: tuple[str, int]) -> None:
    with entered(netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"hello", target)


def test_the_outside_sees_the_hosts_address_only(controller: Controller, neighbour: NetnsRef) -> None:
    controller.connect("web", "box")
    with capture(neighbour, "eth0") as first:
        _send(controller.sandbox("box").netns, (NEIGHBOUR, 9))
        packet = first(lambda packet: UDP in packet and packet[UDP].dport == 9)
    assert packet[IP].src == HOST


def test_without_masquerade_it_sees_the_containers(controller: Controller, neighbour: NetnsRef) -> None:
    controller.create_network("plain", options={"com.docker.network.bridge.enable_ip_masquerade": "false"})
    endpoint = controller.connect("plain", "box")
    with capture(neighbour, "eth0") as first:
        _send(controller.sandbox("box").netns, (NEIGHBOUR, 9))
        packet = first(lambda packet: UDP in packet and packet[UDP].dport == 9)
    assert packet[IP].src == str(endpoint.addresses[0].ip)


def test_a_container_sees_the_clients_own_address(controller: Controller, neighbour: NetnsRef) -> None:
    endpoint = controller.connect("web", "box", ports=parse_publish("8080:80"))
    with capture(controller.sandbox("box").netns, endpoint.ifname) as first:
        with entered(neighbour), socket.socket() as client:
            client.setblocking(False)
            client.connect_ex((HOST, 8080))
            packet = first(lambda packet: TCP in packet and packet[TCP].flags == "S")
    assert (packet[IP].src, packet[IP].dst, packet[TCP].dport) == (NEIGHBOUR, str(endpoint.addresses[0].ip), 80)
    assert packet[Ether].dst == endpoint.mac


def test_an_internal_network_sends_nothing_out(controller: Controller, neighbour: NetnsRef) -> None:
    controller.create_network("inner", internal=True)
    controller.connect("inner", "box")
    netns = controller.sandbox("box").netns
    gateway = controller.network("inner").pools[0].gateway
    subprocess.run(
        ["ip", "-n", "box", "route", "add", "default", "via", str(gateway)], check=True
    )  # as a container's root might
    with capture(neighbour, "eth0") as first:
        _send(netns, (NEIGHBOUR, 9))
        _send(NetnsRef(""), (NEIGHBOUR, 10))  # comes after it, were it let out
        packet = first(lambda packet: UDP in packet)
    assert packet[UDP].dport == 10


def test_neighbours_are_told_the_mac_of_the_endpoint(controller: Controller) -> None:
    controller.create_sandbox("other")
    box, other = controller.connect("web", "box"), controller.connect("web", "other")
    with capture(controller.sandbox("other").netns, other.ifname) as first:
        _send(controller.sandbox("box").netns, (str(other.addresses[0].ip), 9))
        question = first(lambda packet: ARP in packet and packet[ARP].op == 1)
    assert (question[ARP].hwsrc, question[ARP].psrc) == (box.mac, str(box.addresses[0].ip))


def test_the_first_packet_after_a_connect_arrives(controller: Controller) -> None:
    """A link whose carrier the kernel has not noticed yet drops what it is to send; one lost ARP request costs a second."""
    other = controller.create_sandbox("other")
    target = (str(controller.connect("web", "other").addresses[0].ip), 9)
    with entered(other.netns):
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with receiver:
        receiver.bind(target)
        receiver.settimeout(0.8)
        for _ in range(20):
            controller.connect("web", "box")
            _send(controller.sandbox("box").netns, target)
            assert receiver.recv(16) == b"hello"
            controller.disconnect("web", "box")
