"""UDP over a link that has no address yet: IP packets that we put together ourselves, broadcast on the link.

Packets are received from the link before the kernel checks addresses and filters. Sources: packet(7), RFC 768, RFC 791.
"""

import select
import socket
import struct
import time
from ipaddress import IPv4Address
from typing import NamedTuple, Self

from netlib.kernel import bpf
from netlib.kernel.handle import Kernel
from netlib.kernel.translate import doing
from netlib.model import NetnsRef

__all__ = ["Datagram", "PacketSocket"]

_ETH_P_IP = 0x0800
_EVERYBODY = b"\xff" * 6
_IP = struct.Struct("!BBHHHBBH4s4s")
_UDP = struct.Struct("!HHHH")
_PSEUDO = struct.Struct("!4s4sBBH")
_TTL = 64
_NOT_A_FRAGMENT = 0x4000
_MAX_BYTES = 1 << 16


class Datagram(NamedTuple):
    """A UDP datagram and its sender."""

    source: IPv4Address
    source_port: int
    payload: bytes


class PacketSocket:
    """A UDP port of one link, whatever addresses the link has."""

    def __init__(self, kernel: Kernel, netns: NetnsRef, ifname: str, port: int) -> None:
        """Open it; ObjectMissing when the netns or the link is gone. While it is open, the netns cannot end."""
        link = kernel.rtnl(netns).get_link(ifname)
        self.mac = bytes.fromhex(link.mac.replace(":", ""))
        self.kind = link.kind
        self._ifname = ifname
        self._port = port
        with kernel.entered(netns), doing(f"open a packet socket on {ifname} in {netns.label}"):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            try:
                self._attach_filter()
                self._socket.bind((ifname, _ETH_P_IP))
            except BaseException:
                self._socket.close()
                raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, payload: bytes, port: int, *, source: IPv4Address, destination: IPv4Address) -> None:
        """Send a datagram to *port* at *destination*, in a frame to everybody on the link."""
        packet = _packet(payload, (source, self._port), (destination, port))
        with doing(f"send on {self._ifname}"):
            self._socket.sendto(packet, (self._ifname, _ETH_P_IP, 0, 0, _EVERYBODY))

    def receive(self) -> Datagram | None:
        """The next datagram to the port, or None. Checksums are ignored: packets between links of one host have none."""
        while True:
            with doing(f"receive on {self._ifname}"):
                try:
                    packet = self._socket.recv(_MAX_BYTES)
                except BlockingIOError:
                    return None
            found = _datagram(packet, self._port)
            if found is not None:
                return found

    def wait(self, until: float) -> bool:
        """Wait for a packet until that moment of time.monotonic; return whether one has arrived."""
        poller = select.poll()  # select knows no descriptor above 1023
        poller.register(self._socket, select.POLLIN)
        return bool(poller.poll(max(0.0, until - time.monotonic()) * 1000))

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _attach_filter(self) -> None:
        """Have the kernel drop all but UDP to our port, as `udp dst port` of tcpdump: a busy link has many other packets."""
        program = (
            (bpf.LOAD_BYTE, 0, 0, 9),  # the protocol
            (bpf.IF_EQUAL, 0, 6, socket.IPPROTO_UDP),
            (bpf.LOAD_HALF, 0, 0, 6),  # the fragment's offset
            (bpf.IF_ANY_BIT, 4, 0, 0x1FFF),
            (bpf.LOAD_X_HEADER, 0, 0, 0),
            (bpf.LOAD_HALF_X, 0, 0, 2),  # the port
            (bpf.IF_EQUAL, 0, 1, self._port),
            (bpf.RETURN, 0, 0, _MAX_BYTES),
            (bpf.RETURN, 0, 0, 0),
        )
        bpf.attach_filter(self._socket, program)


def _packet(payload: bytes, source: tuple[IPv4Address, int], destination: tuple[IPv4Address, int]) -> bytes:
    addresses = source[0].packed, destination[0].packed
    length = _UDP.size + len(payload)
    pseudo = _PSEUDO.pack(*addresses, 0, socket.IPPROTO_UDP, length)
    udp = _UDP.pack(source[1], destination[1], length, 0)
    udp = udp[:6] + (_checksum(pseudo + udp + payload) or 0xFFFF).to_bytes(2, "big")
    header = _IP.pack(0x45, 0, _IP.size + length, 0, _NOT_A_FRAGMENT, _TTL, socket.IPPROTO_UDP, 0, *addresses)
    header = header[:10] + _checksum(header).to_bytes(2, "big") + header[12:]
    return header + udp + payload


def _datagram(packet: bytes, port: int) -> Datagram | None:
    """The datagram in an IP packet; None where that is no whole datagram to *port*."""
    if len(packet) < _IP.size:
        return None
    first, _, total, _, fragment, _, protocol, _, source, _ = _IP.unpack_from(packet)
    start = (first & 0xF) * 4
    if first >> 4 != 4 or start < _IP.size or fragment & 0x3FFF or protocol != socket.IPPROTO_UDP:
        return None
    if not start + _UDP.size <= total <= len(packet):
        return None
    source_port, target, length, _ = _UDP.unpack_from(packet, start)
    if target != port or not _UDP.size <= length <= total - start:
        return None
    return Datagram(IPv4Address(source), source_port, packet[start + _UDP.size : start + length])


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
