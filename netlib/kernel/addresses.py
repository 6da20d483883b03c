"""Addresses on links."""

import errno
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from msgspec.structs import replace

from netlib.errors import KernelError, ObjectMissing
from netlib.kernel.netlink import CREATE, EXCLUSIVE, attribute
from netlib.kernel.netns import command_in
from netlib.model import IPInterface
from netlib.plan import KernelObject, Key

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel

_RTM_NEWADDR, _RTM_DELADDR, _RTM_GETADDR = 20, 21, 22
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4
_IFA_F_NODAD, _IFA_F_DADFAILED = 0x02, 0x08
_IFADDR = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index


class Address(KernelObject, frozen=True, kw_only=True, tag="address"):
    """An address with its prefix length on a link; *adopted* when it was there before us, and then it stays.

    IPv6 without duplicate address detection: addresses come from our own leases, and waiting costs a second. When the kernel
    deletes an IPv4 address it takes younger ones of the same subnet on that link along (unless ``promote_secondaries`` is set).
    """

    ifname: str
    address: IPInterface
    adopted: bool = False

    observations = ("adopted",)

    @property
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
        if self.adopted:
            return
        with suppress(ObjectMissing):
            self._order(kernel, f"delete address {self.address} from", _RTM_DELADDR, 0, b"", errno.EADDRNOTAVAIL)

    def _order(self, kernel: "Kernel", action: str, kind: int, flags: int, more: bytes, already: int) -> None:
        rtnl = kernel.rtnl(self.netns)
        address, prefixlen = self.address.packed, self.address.network.prefixlen
        header = _IFADDR.pack(self._family, prefixlen, _IFA_F_NODAD, 0, rtnl.index(self.ifname))
        payload = header + attribute(_IFA_LOCAL, address) + attribute(_IFA_ADDRESS, address) + more
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
        rtnl = kernel.rtnl(self.netns)
        index, wanted = rtnl.index(self.ifname), (self.address.packed, self.address.network.prefixlen)
        for header, found in rtnl.dump(_RTM_GETADDR, _IFADDR.pack(self._family, 0, 0, 0, index)):
            _, prefixlen, flags, _, link = _IFADDR.unpack(header)
            address = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
            if (address, prefixlen) == wanted and link == index and not flags & _IFA_F_DADFAILED:
                return True
        return False

    def commands(self) -> Iterable[str]:
        extra = " nodad" if self.address.version == 6 else " brd +" if self.address.network.prefixlen < 31 else ""
        yield command_in(self.netns, f"ip addr add {self.address}{extra} dev {self.ifname}")
