"""Addresses on links."""

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Self

from msgspec.structs import replace

from netlib.errors import KernelError, ObjectMissing
from netlib.kernel.netlink import CREATE, EXCLUSIVE, attribute, number
from netlib.kernel.netns import command_in
from netlib.kernel.sysctl import read_sysctl, write_sysctl
from netlib.model import HOST, IPInterface, NetnsRef
from netlib.plan import KernelObject, Key

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel, Rtnl

_RTM_NEWADDR, _RTM_DELADDR, _RTM_GETADDR = 20, 21, 22
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_IFA_F_NODAD, _IFA_F_DADFAILED, _IFA_F_NOPREFIXROUTE = 0x02, 0x08, 0x200
_SCOPE_UNIVERSE = 0
_IFADDR = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index


class Address(KernelObject, frozen=True, kw_only=True, tag="address"):
    """An address with its prefix length on a link. An *adopted* one was there before us and is never deleted.

    Without *dad* IPv6 detects no duplicates: our own leases make an address unique, and the detection takes a second. With
    *on_link* False the kernel adds no route to the subnet.
    """

    ifname: str
    address: IPInterface
    dad: bool = False
    on_link: bool = True
    adopted: bool = False

    observations = ("adopted",)

    @cached_property
    def key(self) -> Key:
        return Key("address", self.netns.path, f"{self.ifname} {self.address}")

    def observed(self, kernel: "Kernel") -> Self:
        try:
            return replace(self, adopted=self._is_there(kernel))
        except ObjectMissing:  # an object before this one makes the link
            return self

    def ensure(self, kernel: "Kernel") -> None:
        broadcast = b""
        if self.address.version == 4 and self.address.network.prefixlen < 31:
            broadcast = attribute(_IFA_BROADCAST, self.address.network.broadcast_address.packed)
        self._order(kernel, f"add address {self.address} to", _RTM_NEWADDR, CREATE | EXCLUSIVE, broadcast, errno.EEXIST)

    def remove(self, kernel: "Kernel") -> None:
        """Delete this address only: by default the kernel would delete the secondary ones of its subnet as well."""
        if self.adopted:
            return
        promotion = f"net/ipv4/conf/{self.ifname}/promote_secondaries"
        with (
            suppress(ObjectMissing),
            switched_on(kernel, self.netns, promotion) if self.address.version == 4 else nullcontext(),
        ):
            self._order(kernel, f"delete address {self.address} from", _RTM_DELADDR, 0, b"", errno.EADDRNOTAVAIL)

    def _order(self, kernel: "Kernel", action: str, kind: int, flags: int, more: bytes, already: int) -> None:
        rtnl = kernel.rtnl(self.netns)
        address, prefixlen = self.address.packed, self.address.network.prefixlen
        header = _IFADDR.pack(self._family, prefixlen, 0 if self.dad else _IFA_F_NODAD, 0, rtnl.index(self.ifname))
        payload = header + attribute(_IFA_LOCAL, address) + attribute(_IFA_ADDRESS, address) + more
        if not self.on_link:
            payload += number(_IFA_FLAGS, _IFA_F_NOPREFIXROUTE | (0 if self.dad else _IFA_F_NODAD))
        try:
            rtnl.order(f"{action} {self.ifname} in {self.netns.label}", (kind, flags, payload))
        except KernelError as error:
            if error.errno != already:
                raise

    def drift(self, kernel: "Kernel") -> str | None:
        try:
            if self._is_there(kernel):
                return None
        except ObjectMissing as error:
            return str(error)
        return f"address {self.address} is missing on {self.ifname}"

    @property
    def _family(self) -> int:
        return socket.AF_INET if self.address.version == 4 else socket.AF_INET6

    def _is_there(self, kernel: "Kernel") -> bool:
        wanted = (self.address.packed, self.address.network.prefixlen)
        found = _on_link(kernel.rtnl(self.netns), self.ifname, self._family)
        return any((item.packed, item.prefixlen) == wanted and not item.flags & _IFA_F_DADFAILED for item in found)

    def commands(self) -> Iterable[str]:
        extra = " brd +" if self.address.version == 4 and self.address.network.prefixlen < 31 else ""
        extra += "" if self.address.version == 4 or self.dad else " nodad"
        extra += "" if self.on_link else " noprefixroute"
        yield command_in(self.netns, f"ip addr add {self.address}{extra} dev {self.ifname}")


class _Found(NamedTuple):
    packed: bytes
    prefixlen: int
    flags: int
    scope: int


def _on_link(rtnl: "Rtnl", ifname: str, family: int) -> Iterator[_Found]:
    index = rtnl.index(ifname)
    for header, found in rtnl.dump(_RTM_GETADDR, _IFADDR.pack(family, 0, 0, 0, index)):
        kind, prefixlen, flags, scope, link = _IFADDR.unpack(header)
        if link == index and kind == family:  # a kernel without IPv6 answers for all families
            yield _Found(found.get(_IFA_LOCAL) or found[_IFA_ADDRESS], prefixlen, flags, scope)


def addresses_of(kernel: "Kernel", ifname: str, netns: NetnsRef = HOST) -> list[IPInterface]:
    """The addresses of global scope on a link, in the kernel's order; none when there is no such link."""
    try:
        found = [item for family in (socket.AF_INET, socket.AF_INET6) for item in _on_link(kernel.rtnl(netns), ifname, family)]
    except ObjectMissing:
        return []
    return [ipaddress.ip_interface((item.packed, item.prefixlen)) for item in found if item.scope == _SCOPE_UNIVERSE]


@contextmanager
def switched_on(kernel: "Kernel", netns: NetnsRef, setting: str) -> Iterator[None]:
    """Have the sysctl *setting* at 1 during the block, and at its former value afterwards; a no-op where it does not exist."""
    prior = read_sysctl(kernel, netns, setting)
    if prior in (None, "1"):
        yield
        return
    write_sysctl(kernel, netns, setting, "1")
    try:
        yield
    finally:
        with suppress(ObjectMissing):
            write_sysctl(kernel, netns, setting, str(prior))
