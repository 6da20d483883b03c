"""nftables' own events, read from the kernel: what others change in our tables, and in chains that packets of ours pass.

Sources: ``linux/netfilter/nf_tables.h``, ``nfnetlink.h``.
"""

import socket
import struct
import sys
from collections.abc import Iterator

from netlib.firewall.backend import RuleChange
from netlib.firewall.expressions import DELCHAIN, DELRULE, DELTABLE, NETFILTER, NEWCHAIN, NFTABLES
from netlib.firewall.members import MemberTable
from netlib.firewall.ruleset import TABLE
from netlib.firewall.spoofing import PortMacs
from netlib.kernel import bpf
from netlib.kernel.netlink import attributes_of
from netlib.kernel.translate import doing

__all__ = ["NftEvents", "meaning", "meaningful_only"]

_GROUP_NFTABLES = 7
_NFTA_TABLE = 1  # the name of the table has this number in the messages of tables, chains and rules alike
_FORWARDING = {1, 2, 10}  # inet, ipv4, ipv6
_FAMILIES = {"inet": 1, "bridge": 7}  # NFPROTO_*
_TABLE_NAMES = {
    (_FAMILIES[family], f"{name}\0".encode())
    for family, name in (table.split() for table in (TABLE, MemberTable.table, PortMacs.table))
}
_HEADER = struct.Struct("=IHHII")
_GENERIC_SIZE = 4  # nfgenmsg: family, version, resource
_RECEIVE_BUFFER = 4 << 20  # `nft flush ruleset` on a big host is one burst of events
_SO_RCVBUFFORCE = 33
_READ_SIZE = 1 << 16
_MOST_MESSAGES = 16


class NftEvents:
    """The nftables events of this thread's netns."""

    def __init__(self) -> None:
        with doing("listen to nftables' events"):
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETFILTER)
            try:
                self._socket.setblocking(False)
                self._enlarge()
                bpf.attach_filter(self._socket, meaningful_only())
                self._socket.bind((0, 1 << (_GROUP_NFTABLES - 1)))
            except BaseException:
                self._socket.close()
                raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> RuleChange:
        """Read the pending events and return the parts to compare; never blocks. After lost events it returns all parts."""
        change = RuleChange.NOTHING
        while True:
            try:
                change |= meaning(self._socket.recv(_READ_SIZE))
            except BlockingIOError:
                return change
            except OSError:  # ENOBUFS: more came than the buffer holds
                change = RuleChange.TABLE | RuleChange.FOREIGN

    def close(self) -> None:
        self._socket.close()

    def _enlarge(self) -> None:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        except PermissionError:  # in a user namespace: as far as net.core allows
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)


def meaning(data: bytes) -> RuleChange:
    """What one datagram of events means. Pure."""
    change = RuleChange.NOTHING
    for kind, family, table in _messages(data):
        if (family, table) in _TABLE_NAMES:
            if kind in (DELTABLE, DELCHAIN, DELRULE):
                change |= RuleChange.TABLE
        elif family in _FORWARDING and kind in (NEWCHAIN, DELTABLE, DELCHAIN, DELRULE):
            change |= RuleChange.FOREIGN
    return change


def meaningful_only() -> tuple[bpf.Instruction, ...]:
    """A socket filter that drops datagrams whose messages all mean nothing to :func:`meaning`.

    Each connect and each ADD changes elements of sets; to wake netlibd for that made them 0.25 ms slower. A datagram with more
    than _MOST_MESSAGES messages is let through.
    """
    # A program loads big-endian; netlink's headers are in the host's byte order.
    last, *others = (int.from_bytes(struct.pack("=H", kind), "big") for kind in (NEWCHAIN, DELRULE, DELCHAIN, DELTABLE))
    low, high = (0, 1) if sys.byteorder == "little" else (3, 2)  # of a length's bytes; events are shorter than 64 KiB
    at, part = 0, 1  # cells of memory: where the message begins, a part of its length
    program: list[bpf.Instruction] = [(bpf.LOAD_CONSTANT, 0, 0, 0), (bpf.STORE, 0, 0, at)]
    for _ in range(_MOST_MESSAGES):
        program += (
            (bpf.LOAD_X_MEMORY, 0, 0, at),
            (bpf.LOAD_HALF_X, 0, 0, 4),  # nlmsg_type
            *((bpf.IF_EQUAL, len(others) - number, 0, kind) for number, kind in enumerate(others)),
            (bpf.IF_EQUAL, 0, 1, last),
            (bpf.RETURN, 0, 0, bpf.ACCEPT_ALL),
            (bpf.LOAD_BYTE_X, 0, 0, high),  # nlmsg_len
            (bpf.SHIFT_LEFT, 0, 0, 8),
            (bpf.STORE, 0, 0, part),
            (bpf.LOAD_BYTE_X, 0, 0, low),
            (bpf.LOAD_X_MEMORY, 0, 0, part),
            (bpf.ADD_X, 0, 0, 0),
            (bpf.ADD_CONSTANT, 0, 0, 3),  # messages begin at multiples of four
            (bpf.AND_CONSTANT, 0, 0, 0xFFFFFFFC),
            (bpf.LOAD_X_MEMORY, 0, 0, at),
            (bpf.ADD_X, 0, 0, 0),
            (bpf.STORE, 0, 0, at),
            (bpf.LOAD_X_LENGTH, 0, 0, 0),
            (bpf.IF_AT_LEAST_X, 0, 1, 0),
            (bpf.RETURN, 0, 0, 0),
        )
    return (*program, (bpf.RETURN, 0, 0, bpf.ACCEPT_ALL))


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at + _HEADER.size + _GENERIC_SIZE <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return
        if kind >> 8 == NFTABLES:
            body = at + _HEADER.size
            yield kind, data[body], attributes_of(data[body + _GENERIC_SIZE : at + length]).get(_NFTA_TABLE, b"")
        at += (length + 3) & ~3
