"""Netlink without a library, for the requests of every connect and for dumps of thousands of objects.

Besides the kernel's work a change costs 0.03 ms here and 0.2 ms through pyroute2 (whose import takes 110 ms); an object of a
dump costs 4 µs and 200 µs. Rare requests are made through pyroute2. Layout: ``linux/netlink.h``.
"""

import os
import socket
import struct
from collections.abc import Iterable, Sequence

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_ERROR, _DONE = 2, 3
_BATCH_BEGIN, _BATCH_END = 16, 17  # linux/netfilter/nfnetlink.h
EXCLUSIVE, REPLACE, CREATE, APPEND = 0x200, 0x100, 0x400, 0x800  # NLM_F_*
_TYPE_MASK = 0x3FFF
_NESTED = 0x8000
_SOL_NETLINK, _CAP_ACK, _EXT_ACK, _GET_STRICT_CHK = 270, 10, 11, 12
_MESSAGE = 1  # NLMSGERR_ATTR_MSG

Attributes = dict[int, bytes]


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def number(kind: int, value: int) -> bytes:
    """An attribute of 32 bits, in the host's byte order."""
    return attribute(kind, struct.pack("=I", value))


def number_of(value: bytes | None) -> int:
    """The value of an attribute of 32 bits; 0 where there is none."""
    return int(struct.unpack("=I", value)[0]) if value else 0


def text(kind: int, value: str) -> bytes:
    """An attribute that ends in a zero byte."""
    return attribute(kind, value.encode() + b"\0")


def nest(kind: int, *attributes: bytes) -> bytes:
    """An attribute made of attributes."""
    return attribute(kind | _NESTED, b"".join(attributes))


def attributes_of(data: bytes) -> Attributes:
    """Attributes by number; of one that is repeated, the last."""
    found: Attributes = {}
    at, end = 0, len(data)
    while at + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            break
        found[kind & _TYPE_MASK] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def _refusal(answer: bytes) -> OSError | None:
    (code,) = struct.unpack_from("=i", answer)
    if not code:
        return None
    words = attributes_of(answer[4 + _HEADER.size :]).get(_MESSAGE, b"").rstrip(b"\0").decode(errors="replace")
    return OSError(-code, f"{os.strerror(-code)} ({words})" if words else os.strerror(-code))


class NetlinkSocket:
    """A netlink socket in the netns that the thread is in. Raises OSError; callers translate."""

    def __init__(self, protocol: int) -> None:
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._sequence = 0
        self.socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
        self.socket.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
        if protocol == socket.NETLINK_ROUTE:  # else the kernel ignores a dump's filter
            self.socket.setsockopt(_SOL_NETLINK, _GET_STRICT_CHK, 1)

    def dump(self, kind: int, header: bytes, *attributes: bytes) -> list[tuple[bytes, Attributes]]:
        """Every object of *kind* as (fixed header, attributes); *header* and *attributes* filter where the kernel can.

        A dump that the kernel calls interrupted is used as well: the kernel resumes by key, so the dump has every object that
        existed all the time.
        """
        return self._ask(kind, _DUMP, header, attributes)

    def get(self, kind: int, header: bytes, *attributes: bytes) -> tuple[bytes, Attributes]:
        """The one object that *header* and *attributes* name."""
        return self._ask(kind, 0, header, attributes)[0]

    def call(self, *questions: tuple[int, bytes, bytes]) -> None:
        """Ask for one object each, (kind, header, attributes), for what the kernel does then; the answers are not read."""
        if questions:
            self._send([(kind, _REQUEST, header + attributes) for kind, header, attributes in questions])
        for _ in questions:
            self.socket.recv(65536)

    def _ask(self, kind: int, how: int, header: bytes, attributes: Iterable[bytes]) -> list[tuple[bytes, Attributes]]:
        """Ask for all objects (*how* is _DUMP), or for one (0), whose answer is a single message."""
        self._send([(kind, _REQUEST | how, header + b"".join(attributes))])
        size = len(header)
        found: list[tuple[bytes, Attributes]] = []
        while True:
            data = self.socket.recv(65536)
            at = 0
            while at < len(data):
                length, answer, _, sequence, _ = _HEADER.unpack_from(data, at)
                if sequence == self._sequence:
                    if answer in (_DONE, _ERROR):
                        (code,) = struct.unpack_from("=i", data, at + 16)
                        if code:
                            raise OSError(-code, os.strerror(-code))
                        return found
                    found.append((data[at + 16 : at + 16 + size], attributes_of(data[at + 16 + size : at + length])))
                    if how != _DUMP:
                        return found
                at += (length + 3) & ~3

    def order(self, messages: Iterable[tuple[int, int, bytes]]) -> list[OSError | None]:
        """Send several changes at once, (type, flags, payload) each; return what the kernel refused, in order.

        It does not stop at a refusal. Where it gives its reason in words, the error has them.
        """
        flagged = [(kind, _REQUEST | _ACK | flags, payload) for kind, flags, payload in messages]
        results: list[OSError | None] = []
        for start in range(0, len(flagged), 64):  # the answers to so many fit any receive buffer
            some = flagged[start : start + 64]
            self._send(some)
            pending = len(some)
            while pending:
                data = self.socket.recv(65536)
                at = 0
                while at < len(data):
                    length, answer, _, sequence, _ = _HEADER.unpack_from(data, at)
                    if answer == _ERROR and self._sequence - len(some) < sequence <= self._sequence:
                        results.append(_refusal(data[at + 16 : at + length]))
                        pending -= 1
                    at += (length + 3) & ~3
        return results

    def transact(self, subsystem: int, messages: Sequence[tuple[int, int, bytes]]) -> None:
        """Make several changes of a netfilter subsystem as one transaction, all or none; raise what the kernel refused."""
        frame = struct.pack("!BBH", socket.AF_UNSPEC, 0, subsystem)
        flagged = [(kind, _REQUEST | _ACK | flags, payload) for kind, flags, payload in messages]
        first = self._sequence
        self._send([(_BATCH_BEGIN, _REQUEST, frame), *flagged, (_BATCH_END, _REQUEST, frame)])
        pending = len(messages)
        while pending:
            data = self.socket.recv(65536)
            at = 0
            while at < len(data):
                length, answer, _, sequence, _ = _HEADER.unpack_from(data, at)
                if answer == _ERROR and first < sequence <= self._sequence:
                    if refusal := _refusal(data[at + 16 : at + length]):
                        raise refusal
                    pending -= 1
                at += (length + 3) & ~3

    def _send(self, messages: Iterable[tuple[int, int, bytes]]) -> None:
        data = b""
        for kind, flags, payload in messages:
            self._sequence += 1
            data += _HEADER.pack(16 + len(payload), kind, flags, self._sequence, 0) + payload + bytes(-len(payload) % 4)
        self.socket.send(data)

    def close(self) -> None:
        self.socket.close()
