"""Frames made by hand, as a member with CAP_NET_RAW makes them, and what they do: waited for by the kernel's own events."""

import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import (
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from netlib.kernel.linkinfo import RTM_NEWLINK, LinkInfo
from netlib.kernel.netlink import attributes_of
from netlib.kernel.netns import entered
from netlib.model import NetnsRef

PATIENCE_SECONDS = 5.0
LINK, ADDRESS6, ROUTE6 = 1, 1 << 8, 1 << 10  # RTMGRP_*
LEARNT, PREFIX = "2001:db8:bad::/64", "2001:db8:bad::"
_CRAFTED = "02:00:00:00:00:99"
_LOCAL_EXPERIMENT = 0x88B5  # an EtherType
_ALL_NODES, _ALL_NODES_MAC = "ff02::1", "33:33:00:00:00:01"


@contextmanager
def on_one_processor() -> Iterator[None]:
    """What this thread sends meanwhile is received in that order: the kernel queues it on the processor it was sent from."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def send(netns: NetnsRef, ifname: str, *frames: Packet) -> None:
    """Send frames by a link as they are."""
    with on_one_processor(), entered(netns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((ifname, 0))
        for frame in frames:
            sender.send(bytes(frame))


def datagram(source: str, target: str, port: int, word: str, *, mac: str) -> Packet:
    """A UDP datagram that says *word*, to a MAC address of the sender's choice."""
    head = IPv6(src=source, dst=target) if ":" in target else IP(src=source, dst=target)
    return Ether(src=_CRAFTED, dst=mac) / head / UDP(sport=4000, dport=port) / Raw(word.encode())


def mark(mac: str) -> Packet:
    """A frame of no protocol: where it has come, what was sent before it has come, or never will."""
    return Ether(src=_CRAFTED, dst=mac, type=_LOCAL_EXPERIMENT) / Raw(b"mark")


def advertisement(source: str = "fe80::bad") -> Packet:
    """A router advertisement: a default route, and a prefix to make an address in."""
    options = ICMPv6NDOptPrefixInfo(prefix=PREFIX, prefixlen=64, L=1, A=1, validlifetime=1800, preferredlifetime=1800)
    told = ICMPv6ND_RA(routerlifetime=1800) / options / ICMPv6NDOptSrcLLAddr(lladdr="02:00:00:00:0b:ad")
    return Ether(src="02:00:00:00:0b:ad", dst=_ALL_NODES_MAC) / IPv6(src=source, dst=_ALL_NODES, hlim=255) / told


def redirect4(source: str, target: str, away: str, *, host: str, mac: str) -> Packet:
    """From the router *source* to *host*: what goes to *target*, send to *away*."""
    sent = IP(src=host, dst=target) / ICMP(type="echo-reply", id=1, seq=1)
    return Ether(src=_CRAFTED, dst=mac) / IP(src=source, dst=host) / ICMP(type="redirect", code=1, gw=away) / sent


def redirect6(source: str, target: str, away: str, *, host: str, mac: str) -> Packet:
    """The same by IPv6."""
    return Ether(src=_CRAFTED, dst=mac) / IPv6(src=source, dst=host, hlim=255) / ICMPv6ND_Redirect(tgt=away, dst=target)


class Changes:
    """What rtnetlink tells of *groups* in this thread's netns, from now on."""

    def __init__(self, groups: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
        self._socket.bind((0, groups))

    def until(self, condition: Callable[[], bool]) -> bool:
        """Whether it becomes true: looked at again after each change."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._socket], [], [], left)[0]:
                return condition()
            self._socket.recv(1 << 16)
        return True

    def links(self) -> list[LinkInfo]:
        """Every link as it was told of so far; the kernel tells before it answers who made the change."""
        found = []
        while select.select([self._socket], [], [], 0)[0]:
            data, at = self._socket.recv(1 << 16), 0
            while at + 16 <= len(data):
                length, kind = struct.unpack_from("=IH", data, at)
                if kind == RTM_NEWLINK and data[at + 16] == socket.AF_UNSPEC:  # a bridge tells of its ports as well
                    found.append(LinkInfo.of(data[at + 16 : at + 32], attributes_of(data[at + 32 : at + length])))
                at += (length + 3) & ~3
        return found

    def close(self) -> None:
        self._socket.close()


@contextmanager
def changes(groups: int, netns: NetnsRef | None = None) -> Iterator[Changes]:
    """Listen in *netns*, or here."""
    with entered(netns or NetnsRef("")):
        listening = Changes(groups)
    try:
        yield listening
    finally:
        listening.close()


class Ears:
    """UDP sockets in a netns, each of which tells what it hears first."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def open(self, netns: NetnsRef, port: int, family: socket.AddressFamily = socket.AF_INET6) -> Callable[[], str]:
        """Listen on a port, with AF_INET6 by both IP versions; answers with a function that waits for the next word."""
        with entered(netns):
            listener = socket.socket(family, socket.SOCK_DGRAM)
        self._sockets.append(listener)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("", port))
        listener.settimeout(PATIENCE_SECONDS)
        return lambda: listener.recv(100).decode()

    def close(self) -> None:
        for listener in self._sockets:
            listener.close()
