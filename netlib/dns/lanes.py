"""The sockets of one address that answers queries: a pair for everybody and, at a gateway, one more pair for each guest.

A pair is a *lane*: packets of a guest fill the queue of its own lane only. The kernel chooses the lane by the source address
(``SO_ATTACH_REUSEPORT_CBPF``, socket(7)), so that a flood takes only turns of its sender. With one queue for all, a guest that
sent 10,000 questions at once filled it, and a neighbour's question was dropped.
"""

import array
import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from netlib.kernel.descriptors import lifted
from netlib.model import IPAddress

__all__ = ["Lane", "Lanes", "open_lane"]

# Some 1,000 queries may wait while the thread is busy elsewhere; the default holds 277.
_RECEIVE_BUFFER = 1 << 20
_SEND_BUFFER = 1 << 20
_BACKLOG = 128
_PORT_ATTEMPTS = 16
# A program has 4,096 instructions at most, nine of them for an IPv6 address; and net.core.optmem_max bytes, which some kernels
# have as low as 20,480: 65 guests by IPv6, 230 by IPv4. Guests beyond that share the lane of strangers.
_MOST_GUESTS = 400
_IP_FREEBIND, _IPV6_FREEBIND = 15, 78
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_SO_ATTACH_REUSEPORT_CBPF = 51
# linux/bpf_common.h, linux/filter.h: load a word of the packet, compare it and jump, return a number
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_NETWORK_HEADER = 0x100000000 - 0x100000  # SKF_NET_OFF
_SOURCE = {4: 12, 6: 8}  # offset of the source address in the header


class Lane(NamedTuple):
    """A UDP and a listening TCP socket on one address and port."""

    udp: socket.socket
    tcp: socket.socket

    def close(self) -> None:
        for sock in self:
            sock.close()


class Lanes:
    """The lanes of one address; the first is for everybody without a lane of their own."""

    def __init__(self, address: IPAddress, device: str, first: Lane) -> None:
        self.address = address
        self.port: int = first.udp.getsockname()[1]
        self._device = device
        self._lanes = [first]  # in the order of the kernel's two groups, which number their sockets
        self._guests: list[IPAddress] = []  # of the lanes from the second on
        self._by_guest: dict[IPAddress, Lane] = {}  # for look-ups: there is one at every change of a view
        self._most = _MOST_GUESTS

    @property
    def first(self) -> Lane:
        return self._lanes[0]

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._lanes)

    def add(self, guest: IPAddress) -> Lane | None:
        """Open a lane for *guest*; None where it has one, or there are too many. Raises OSError, leaving nothing open."""
        if guest in self._by_guest or len(self._guests) >= self._most:
            return None
        for sock in self.first:  # only now, so that the first bind failed beside another program's socket
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        lane = open_lane(self.address, self.port, self._device, joining=True)
        try:
            self._sort([*self._guests, guest])
        except OSError:
            lane.close()  # the last of its groups, so the others keep their numbers
            with suppress(OSError):  # one of the two groups may have the new program
                self._sort(self._guests)
            self._most = len(self._guests)  # the kernel refuses more (net.core.optmem_max); try again when a guest has left
            raise
        self._lanes.append(lane)
        self._guests.append(guest)
        self._by_guest[guest] = lane
        return lane

    def find(self, guest: IPAddress) -> Lane | None:
        """The lane of *guest*."""
        return self._by_guest.get(guest)

    def remove(self, guest: IPAddress) -> None:
        """Close the lane of *guest*, whose sockets must no longer be watched."""
        at = self._guests.index(guest)
        self._by_guest.pop(guest).close()
        # The kernel gives the number of a closed socket to the last one.
        self._lanes[at + 1], self._guests[at] = self._lanes[-1], self._guests[-1]
        del self._lanes[-1], self._guests[-1]
        self._most = _MOST_GUESTS
        with suppress(OSError):  # net.core.optmem_max was lowered meanwhile; some packets are queued in another guest's lane
            self._sort(self._guests)

    def close(self) -> None:
        """Close every socket."""
        for lane in self._lanes:
            lane.close()

    def _sort(self, guests: list[IPAddress]) -> None:
        """Give the kernel the program that sorts packets by source address; before, some are queued in another guest's lane."""
        code = array.array("B", b"".join(struct.pack("=HBBI", *line) for line in _program(guests)))
        program = struct.pack("@HP", len(code) // 8, code.buffer_info()[0])
        for sock in self.first:
            sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, program)


def _program(guests: list[IPAddress]) -> list[tuple[int, int, int, int]]:
    """The program from a source address to the number of a lane: instructions (code, jump if true, jump if false, number)."""
    lines: list[tuple[int, int, int, int]] = []
    for number, guest in enumerate(guests, 1):
        words = struct.unpack(f"!{len(guest.packed) // 4}I", guest.packed)
        for at, word in reversed(list(enumerate(words))):  # members of a network differ at the end
            to_next_guest = 2 * at + 1
            lines.append((_LOAD, 0, 0, _NETWORK_HEADER + _SOURCE[guest.version] + 4 * at))
            lines.append((_EQUAL, 0, to_next_guest, word))
        lines.append((_RETURN, 0, 0, number))
    return [*lines, (_RETURN, 0, 0, 0)]


def open_lane(address: IPAddress, port: int, device: str, *, joining: bool = False) -> Lane:
    """A UDP and a listening TCP socket on one port of *address*: *port*, or a free one where that is taken.

    *joining* opens them beside other sockets of that address and port, and on no other port.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    for wanted in (port, *[0] * (0 if joining else _PORT_ATTEMPTS)):
        opened: list[socket.socket] = []
        try:
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                sock = lifted(socket.socket(family, kind))
                opened.append(sock)
                _prepare(sock, device)
                if joining:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                sock.bind((str(address), wanted))
                wanted = sock.getsockname()[1]
            opened[1].listen(_BACKLOG)
        except OSError as error:
            for sock in opened:
                sock.close()
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return Lane(*opened)
    raise OSError(errno.EADDRINUSE, "no port is free for both UDP and TCP")


def _prepare(sock: socket.socket, device: str) -> None:
    sock.setblocking(False)
    # The address need not be up yet: lo before its first use, a bridge's during duplicate address detection.
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
    if device:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    if sock.type == socket.SOCK_STREAM:  # an earlier server's connections may still be in TIME_WAIT on this port
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    else:
        _enlarge(sock, socket.SO_RCVBUF, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        _enlarge(sock, socket.SO_SNDBUF, _SO_SNDBUFFORCE, _SEND_BUFFER)


def _enlarge(sock: socket.socket, option: int, forced: int, size: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, forced, size)
    except PermissionError:  # in a user namespace: up to the limit of net.core
        sock.setsockopt(socket.SOL_SOCKET, option, size)
