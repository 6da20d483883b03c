"""tap devices: links that a program such as a virtual machine opens; ours stay while no program has them open."""

import fcntl
import os
import struct
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING

from netlib.errors import ObjectMissing
from netlib.kernel.linkinfo import LinkInfo
from netlib.kernel.links import (
    delete_link,
    is_on,
    is_ours,
    link_attributes,
    link_drift,
    not_ours,
    remove_link,
    router_refusal_commands,
    set_link,
    tag_attributes,
)
from netlib.kernel.netns import command_in
from netlib.kernel.routers import NO_REDIRECTS, refuse_routers, router_refusal_drift
from netlib.kernel.translate import doing
from netlib.plan import KernelObject, Key

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel

_KIND = "tun"  # what the kernel calls tap devices, too
_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER, _TUNSETGROUP = 0x400454CA, 0x400454CB, 0x400454CC, 0x400454CE
_IFF_TAP, _IFF_NO_PI, _IFF_MULTI_QUEUE = 0x2, 0x1000, 0x100
_OWNER, _GROUP, _TYPE, _PERSIST, _MULTI_QUEUE = 1, 2, 3, 6, 7  # IFLA_TUN_*
_TAP = 2


class Tap(KernelObject, frozen=True, kw_only=True, tag="tap"):
    """A persistent tap device, which *owner* and members of *group* (ids; None: root alone) may open.

    With *multi_queue* it can be open several times at once. On the host it ignores router advertisements and redirects.
    """

    ifname: str
    mac: str = ""
    mtu: int = 0
    multi_queue: bool = False
    owner: int | None = None
    group: int | None = None

    @cached_property
    def key(self) -> Key:
        return Key("link", self.netns.path, self.ifname)

    def ensure(self, kernel: "Kernel") -> None:
        """Make the device, or change MAC address and MTU of an existing one; replace one that differs otherwise.

        Raises AlreadyExists when a link that is not ours has the name.
        """
        rtnl = kernel.rtnl(self.netns)
        link = rtnl.find_link(self.ifname)
        if link is not None and not is_ours(link, _KIND):
            raise not_ours(link, self.netns)
        if link is not None and self._differs(link):
            delete_link(rtnl, link)
            link = None
        if link is None:
            self._create(kernel)
        else:
            self._finish(kernel)

    def _create(self, kernel: "Kernel") -> None:
        """Make the device. Only the last step makes it persist: until then it vanishes with the descriptor and in a crash."""
        flags = _IFF_TAP | _IFF_NO_PI | (_IFF_MULTI_QUEUE if self.multi_queue else 0)
        with kernel.entered(self.netns), doing(f"create tap device {self.ifname} in {self.netns.label}"):
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", self.ifname.encode(), flags))
                for request, number in ((_TUNSETOWNER, self.owner), (_TUNSETGROUP, self.group)):
                    if number is not None:
                        fcntl.ioctl(fd, request, number)
                self._finish(kernel)
                fcntl.ioctl(fd, _TUNSETPERSIST, 1)
            finally:
                os.close(fd)

    def _finish(self, kernel: "Kernel") -> None:
        more = link_attributes(self.mac, self.mtu) + tag_attributes(kernel) + (NO_REDIRECTS if self.netns.is_host else b"")
        set_link(kernel.rtnl(self.netns), f"set up link {self.ifname}", self.ifname, more, change=0)
        if self.netns.is_host:
            refuse_routers(kernel, self.netns, self.ifname)

    def remove(self, kernel: "Kernel") -> None:
        remove_link(kernel, self.netns, self.ifname, _KIND)

    def carries_in(self) -> tuple[str, ...]:
        return (self.netns.path,)

    def carries(self, other: KernelObject) -> bool:
        return other is not self and other.netns.path == self.netns.path and is_on(other, self.ifname)

    def _differs(self, link: LinkInfo) -> str:
        """How an existing device differs in what cannot be changed, or ""."""
        if link.data.get(_TYPE) != bytes([_TAP]):
            return "is a tun device"
        if link.data.get(_MULTI_QUEUE) != bytes([self.multi_queue]):
            return f"has multi_queue {'off' if self.multi_queue else 'on'}"
        for kind, word, wanted in ((_OWNER, "owner", self.owner), (_GROUP, "group", self.group)):
            if link.data.get(kind) != (None if wanted is None else struct.pack("=I", wanted)):
                return f"has another {word} than {'none' if wanted is None else wanted}"
        return "" if link.data.get(_PERSIST) == b"\1" else "vanishes when its program ends"

    def drift(self, kernel: "Kernel") -> str | None:
        try:
            link = kernel.rtnl(self.netns).find_link(self.ifname)
        except ObjectMissing as error:
            return str(error)
        if link is None:
            return f"link {self.ifname} is missing"
        if not is_ours(link, _KIND):
            return f"link {self.ifname} is not netlib's"
        if difference := self._differs(link):
            return f"link {self.ifname} {difference}"
        return link_drift(link, self.ifname, self.mac, self.mtu, up=False) or (
            router_refusal_drift(link) if self.netns.is_host else None
        )

    def commands(self) -> Iterable[str]:
        owner = "" if self.owner is None else f" user {self.owner}"
        group = "" if self.group is None else f" group {self.group}"
        queues = " multi_queue" if self.multi_queue else ""
        yield command_in(self.netns, f"ip tuntap add mode tap name {self.ifname}{queues}{owner}{group}")
        if self.mac or self.mtu:
            mac = f" address {self.mac}" if self.mac else ""
            mtu = f" mtu {self.mtu}" if self.mtu else ""
            yield command_in(self.netns, f"ip link set {self.ifname}{mac}{mtu}")
        if self.netns.is_host:
            yield from router_refusal_commands(self.netns, self.ifname, self.mtu)
