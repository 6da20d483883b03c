"""Rules of policy routing: which packets use which routing table."""

import errno
import ipaddress
import socket
import struct
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Self

from msgspec.structs import replace

from netlib.errors import KernelError, ObjectMissing
from netlib.kernel.netlink import CREATE, EXCLUSIVE, Attributes, attribute, number, number_of, text
from netlib.kernel.netns import command_in
from netlib.model import HOST, IPAddress, IPNetwork, NetnsRef
from netlib.plan import KernelObject, Key

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel

_RTM_NEWRULE, _RTM_DELRULE, _RTM_GETRULE = 32, 33, 34
_FRA_DST, _FRA_SRC, _FRA_IIFNAME, _FRA_PRIORITY, _FRA_TABLE, _FRA_PROTOCOL = 1, 2, 3, 6, 15, 21
_HEADER = struct.Struct("=BBBBBxxBI")  # fib_rule_hdr: family, dst_len, src_len, tos, table, action, flags
_TO_TABLE, _STATIC, _DETACHED = 1, 4, 0x8  # FIB_RULE_IIF_DETACHED: no such link now
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_COMPARED = {_FRA_DST, _FRA_SRC, _FRA_IIFNAME, _FRA_PRIORITY, _FRA_TABLE}
# Attributes of every rule that select nothing: FRA_SUPPRESS_PREFIXLEN (-1), FRA_PROTOCOL, FRA_PAD.
_WITHOUT_MEANING = {14: b"\xff\xff\xff\xff", 18: None, _FRA_PROTOCOL: None}


class PolicyRule(KernelObject, frozen=True, kw_only=True, tag="policy_rule"):
    """Packets that match *source*, *destination* and *iif* (None and "" match any) use *table*; all fields are identity.

    *priority* 0 leaves the place to the kernel: before all existing rules but the first. An *adopted* rule was there before us
    and is never deleted.
    """

    observations = ("adopted",)

    table: int
    family: int = 4
    source: IPNetwork | None = None
    destination: IPNetwork | None = None
    iif: str = ""
    priority: int = 0
    adopted: bool = False

    @cached_property
    def key(self) -> Key:
        return Key("rule", self.netns.path, f"{self.family} {self._text}")

    @property
    def _text(self) -> str:
        iif = f" iif {self.iif}" if self.iif else ""
        destination = f" to {self.destination}" if self.destination else ""
        priority = f" priority {self.priority}" if self.priority else ""
        return f"from {self.source or 'all'}{destination}{iif} table {self.table}{priority}"

    def observed(self, kernel: "Kernel") -> Self:
        return replace(self, adopted=self._is_there(kernel))

    def ensure(self, kernel: "Kernel") -> None:
        if self.priority == 0 and self._is_there(kernel):  # the kernel would add it again, with another priority
            return
        self._order(kernel, "add", _RTM_NEWRULE, CREATE | EXCLUSIVE, errno.EEXIST)

    def remove(self, kernel: "Kernel") -> None:
        if self.adopted:
            return
        with suppress(ObjectMissing):
            if self._is_there(kernel):  # the kernel would delete a rule with further selectors as well
                self._order(kernel, "delete", _RTM_DELRULE, 0, errno.ENOENT)

    def _order(self, kernel: "Kernel", verb: str, kind: int, flags: int, already: int) -> None:
        lengths = [network.prefixlen if network else 0 for network in (self.destination, self.source)]
        table = self.table if self.table < 256 else 0
        payload = _HEADER.pack(_FAMILY[self.family], *lengths, 0, table, _TO_TABLE, 0) + number(_FRA_TABLE, self.table)
        for selector, network in ((_FRA_DST, self.destination), (_FRA_SRC, self.source)):
            if network is not None:
                payload += attribute(selector, network.network_address.packed)
        if self.iif:
            payload += text(_FRA_IIFNAME, self.iif)
        if self.priority:
            payload += number(_FRA_PRIORITY, self.priority)
        if kind == _RTM_NEWRULE:  # a deletion would have to name the rule's own
            payload += attribute(_FRA_PROTOCOL, bytes([_STATIC]))
        try:
            kernel.rtnl(self.netns).order(f"{verb} rule {self._text} in {self.netns.label}", (kind, flags, payload))
        except KernelError as error:
            if error.errno != already:
                raise

    def _is_there(self, kernel: "Kernel") -> bool:
        found = kernel.rtnl(self.netns).dump(_RTM_GETRULE, _HEADER.pack(_FAMILY[self.family], 0, 0, 0, 0, 0, 0))
        return any(self._is(header, attributes) for header, attributes in found)

    def _is(self, header: bytes, found: Attributes) -> bool:
        family, destination, source, tos, _, action, flags = _HEADER.unpack(header)
        if (family, tos, action, flags & ~_DETACHED) != (_FAMILY[self.family], 0, _TO_TABLE, 0):
            return False
        if any(kind not in _COMPARED and _WITHOUT_MEANING.get(kind, b"") not in (None, value) for kind, value in found.items()):
            return False
        wanted = [(_FRA_DST, destination, self.destination), (_FRA_SRC, source, self.source)]
        return (
            all(_selects(found.get(kind), length, network) for kind, length, network in wanted)
            and found.get(_FRA_IIFNAME, b"").rstrip(b"\0").decode() == self.iif
            and found.get(_FRA_TABLE) == struct.pack("=I", self.table)
            and (not self.priority or found.get(_FRA_PRIORITY) == struct.pack("=I", self.priority))
        )

    def drift(self, kernel: "Kernel") -> str | None:
        try:
            return None if self._is_there(kernel) else f"rule {self._text} is missing"
        except ObjectMissing as error:
            return str(error)

    def commands(self) -> Iterable[str]:
        yield command_in(self.netns, f"ip{' -6' if self.family == 6 else ''} rule add {self._text} protocol static")


def rules_from(kernel: "Kernel", sources: Collection[IPAddress], netns: NetnsRef = HOST) -> list[PolicyRule]:
    """The rules that select packets from one of *sources*, and from no other address."""
    found = (rule for family in (4, 6) for rule in _rules(kernel, family, netns))
    wanted = {ipaddress.ip_network(source) for source in sources}
    return [rule for rule in found if rule.source in wanted]


def tables_of_rules(kernel: "Kernel", netns: NetnsRef = HOST) -> set[int]:
    """The routing tables that rules select."""
    return {rule.table for family in (4, 6) for rule in _rules(kernel, family, netns)}


def _rules(kernel: "Kernel", family: int, netns: NetnsRef) -> Iterator[PolicyRule]:
    """Every rule of a family, with the fields that identify it."""
    for header, found in kernel.rtnl(netns).dump(_RTM_GETRULE, _HEADER.pack(_FAMILY[family], 0, 0, 0, 0, 0, 0)):
        kind, destination, source, *_ = _HEADER.unpack(header)
        if kind == _FAMILY[family]:  # a kernel without IPv6 answers for all families
            yield PolicyRule(
                table=number_of(found.get(_FRA_TABLE)),
                family=family,
                source=_network(found.get(_FRA_SRC), source),
                destination=_network(found.get(_FRA_DST), destination),
                iif=found.get(_FRA_IIFNAME, b"").rstrip(b"\0").decode(),
                priority=number_of(found.get(_FRA_PRIORITY)),
                netns=netns,
            )


def _network(address: bytes | None, length: int) -> IPNetwork | None:
    if address is None:
        return None
    return ipaddress.IPv4Network((address, length)) if len(address) == 4 else ipaddress.IPv6Network((address, length))


def _selects(found: bytes | None, length: int, network: IPNetwork | None) -> bool:
    if network is None:
        return found is None and length == 0
    return (
        length == network.prefixlen and (found or bytes(len(network.network_address.packed))) == network.network_address.packed
    )
