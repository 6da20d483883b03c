"""Events of nftables, by which netlibd notices that another program changed the firewall, and restoring our part of it.

One rule: an event only triggers a comparison of the store with the kernel, and only a difference is repaired. So our own
changes, which cause events too, cause no work beyond that. Sources: ``linux/netfilter/nf_tables.h``, ``nfnetlink.h``.
"""

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from enum import Flag, auto

from netlib.core.controller import Controller
from netlib.firewall.expressions import DELCHAIN, DELRULE, DELTABLE, NETFILTER, NEWCHAIN, NFTABLES
from netlib.firewall.members import MemberTable
from netlib.firewall.objects import Allowance, FirewallBase, FirewallObject
from netlib.firewall.ruleset import TABLE
from netlib.firewall.spoofing import PortMacs
from netlib.kernel.handle import Kernel
from netlib.kernel.netlink import attributes_of
from netlib.kernel.translate import doing
from netlib.plan import KernelObject, Plan
from netlib.store.locks import record_lock

__all__ = ["FirewallEvents", "Notice", "restore_allowances", "restore_table"]

_GROUP_NFTABLES = 7
_NFTA_TABLE = 1  # the name of the table has this number in the messages of tables, chains and rules alike
_FORWARDING = {1, 2, 10}  # inet, ipv4, ipv6
_TABLES = (FirewallBase(), MemberTable(), PortMacs())
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


class Notice(Flag):
    """What an event says should be checked."""

    NOTHING = 0
    TABLE = auto()  # a rule, a chain or all of a table of ours was deleted
    FOREIGN = auto()  # in another table, which our packets may pass, a chain was made, or a rule, chain or table deleted


class FirewallEvents:
    """The nftables events of this thread's netns."""

    def __init__(self) -> None:
        with doing("listen to nftables' events"):
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETFILTER)
            try:
                self._socket.setblocking(False)
                self._enlarge()
                self._socket.bind((0, 1 << (_GROUP_NFTABLES - 1)))
            except BaseException:
                self._socket.close()
                raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> Notice:
        """Read the waiting events and return what to check; never blocks. When events were lost, that is everything."""
        notice = Notice.NOTHING
        while True:
            try:
                notice |= meaning(self._socket.recv(_READ_SIZE))
            except BlockingIOError:
                return notice
            except OSError:  # ENOBUFS: more events came than the buffer holds
                notice = Notice.TABLE | Notice.FOREIGN

    def close(self) -> None:
        self._socket.close()

    def _enlarge(self) -> None:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        except PermissionError:  # in a user namespace: up to net.core.rmem_max
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)


def meaning(data: bytes) -> Notice:
    """Return what one datagram of events says should be checked. Pure."""
    notice = Notice.NOTHING
    for kind, family, table in _messages(data):
        if (family, table) in _TABLE_NAMES:
            if kind in (DELTABLE, DELCHAIN, DELRULE):
                notice |= Notice.TABLE
        elif family in _FORWARDING and kind in (NEWCHAIN, DELTABLE, DELCHAIN, DELRULE):
            notice |= Notice.FOREIGN
    return notice


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


def restore_table(controller: Controller, *, thorough: bool = False) -> int:
    """Make all firewall objects of ready records again when a table of ours is incomplete; return the number of objects, or 0.

    Completeness is judged by the static chains, or with *thorough* by every entry. The store's write lock is held, so no record
    can begin to be removed meanwhile. The table ``inet netlib`` is restored in one transaction: a packet meets the whole table
    or the former one.
    """
    with controller.engine.kernel("") as kernel, ExitStack() as held:
        if not thorough and not _lost_tables(controller, kernel):  # the usual case, after a deletion of ours: no lock is taken
            return 0
        for table in _TABLES:
            held.enter_context(controller.locks.hold(f"key:{table.key}", "putting the firewall back"))
        tx = held.enter_context(controller.store.write())
        records: dict[str, list[KernelObject]] = {}
        for record, item in tx.ready_objects("firewall", "host"):
            records.setdefault(record, []).append(item)
        known = {item.key: item for items in records.values() for item in items}
        watched = known.values() if thorough else [table for table in _TABLES if table.key in known]
        if all(item.drift(kernel) is None for item in watched):
            return 0
        ours = {
            controller.engine.tag(record): [item for item in items if isinstance(item, FirewallObject)]
            for record, items in records.items()
        }
        if any(ours.values()):
            FirewallObject.ensure_tagged(kernel, ours)
        of_bridges = [item for item in known.values() if not isinstance(item, FirewallObject)]
        for run in Plan(*sorted(of_bridges, key=lambda item: item not in _TABLES)).runs():  # the tables first
            type(run[0]).ensure_many(kernel, run)
    return sum(map(len, records.values()))


def _lost_tables(controller: Controller, kernel: Kernel) -> bool:
    """Whether a table that a record uses is incomplete."""
    with controller.store.read() as tx:
        held = tx.holders([table.key for table in _TABLES], besides=())
    return any(str(table.key) in held and table.drift(kernel) is not None for table in _TABLES)


def restore_allowances(controller: Controller) -> int:
    """Restore the rules that let our bridges pass other programs' forward hooks, where they are missing; return how many."""
    restored = 0
    with controller.store.read() as tx:
        objects = list(tx.ready_objects("firewall", "host"))
    for record, item in objects:
        if not isinstance(item, Allowance):
            continue
        with (
            controller.locks.attempt(record_lock(record), "checking its way out") as held,
            controller.engine.kernel(record) as kernel,
        ):
            if held and item.drift(kernel) is not None:
                item.ensure(kernel)
                restored += 1
    return restored
