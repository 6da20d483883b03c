"""Links that existed before us, moved into a netns, and moved back with their former settings."""

from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Self

from msgspec import Struct
from msgspec.structs import replace

from netlib.errors import AlreadyExists, ObjectMissing
from netlib.kernel.addresses import Address, addresses_of
from netlib.kernel.linkinfo import (
    IFF_ALLMULTI,
    IFF_PROMISC,
    IFF_UP,
    IFLA_ADDRESS,
    IFLA_IFALIAS,
    IFLA_IFNAME,
    IFLA_MTU,
    IFLA_NET_NS_FD,
    IFLA_TXQLEN,
    RTM_SETLINK,
    LinkInfo,
    link_header,
)
from netlib.kernel.links import is_on
from netlib.kernel.netlink import attribute, number, text
from netlib.kernel.netns import command_in
from netlib.model import HOST, IPInterface, NetnsRef
from netlib.plan import KernelObject, Key

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel, Rtnl

_FLAGS = IFF_UP | IFF_PROMISC | IFF_ALLMULTI


class DeviceBefore(Struct, frozen=True):
    """The settings of a link before it was moved."""

    mac: str
    permanent_mac: str
    mtu: int
    txqlen: int
    flags: int  # of up, promisc and allmulti, those that were set
    alias: str
    addresses: tuple[IPInterface, ...]


class MovedDevice(KernelObject, frozen=True, kw_only=True, tag="moved_device"):
    """The link *device* of the netns *home*, moved into *netns* and called *ifname* there.

    While it is moved, its alias is its former name, by which it is found again (as the reference host-device plugin does). The
    removal moves it back and restores name, MAC address, MTU, queue length, flags, alias and addresses, but no routes. When the
    netns has ended before, the kernel has moved a network card to the machine's first netns, where it is restored if that is
    *home*; the kernel deletes virtual links then.
    """

    batch = "outward"
    observations = ("before",)

    device: str
    ifname: str
    home: NetnsRef = HOST
    before: DeviceBefore | None = None

    @cached_property
    def key(self) -> Key:
        return Key("link", self.netns.path, self.ifname)

    def holds_outside(self) -> bool:
        """Yes: *home* lacks the device."""
        return True

    def observed(self, kernel: "Kernel") -> Self:
        """Note the device's settings; ObjectMissing when it is not in *home*."""
        link = kernel.rtnl(self.home).get_link(self.device)
        addresses = tuple(addresses_of(kernel, self.device, self.home))
        flags = link.flags & _FLAGS
        before = DeviceBefore(link.mac, link.permanent_mac, link.mtu, link.txqlen, flags, link.alias, addresses)
        return replace(self, before=before)

    def ensure(self, kernel: "Kernel") -> None:
        """Move and rename the device by one request; AlreadyExists when *netns* has another link of that name."""
        there = kernel.rtnl(self.netns)
        namesake = there.find_link(self.ifname)
        if namesake is not None and namesake.alias == self.device:
            return
        rtnl, link = there, self._find_moved(kernel, there)
        if namesake is not None and (link is None or link.index != namesake.index):
            raise AlreadyExists(f"link {self.ifname} exists in {self.netns.label}; rename or delete it, or use another name")
        if link is None:
            rtnl = kernel.rtnl(self.home)
            link = rtnl.get_link(self.device)
        self._move(kernel, rtnl, link, self.netns, self.ifname, b"")

    def _move(self, kernel: "Kernel", rtnl: "Rtnl", link: LinkInfo, netns: NetnsRef, ifname: str, more: bytes) -> None:
        """Move *link* to *netns* and set its name, *more* and our mark there: the kernel moves a link before all else."""
        place = number(IFLA_NET_NS_FD, kernel.netns_fd(netns)) if rtnl.netns.path != netns.path else b""
        payload = link_header(link.index) + place + text(IFLA_IFNAME, ifname) + more + _alias(self.device)
        action = f"move link {link.ifname} from {rtnl.netns.label} to {netns.label} as {ifname}"
        # Not NEWLINK: newer kernels would look for the link in the netns to move it to.
        rtnl.order(action, (RTM_SETLINK, 0, payload))

    def _find_moved(self, kernel: "Kernel", there: "Rtnl") -> LinkInfo | None:
        """The device in *netns*: a link with our mark, best one called *ifname*, or an unmarked one of an interrupted move.

        While *home* has the device an unmarked link is the container's own: each netns has an ``lo`` with the same MAC address.
        """
        links = there.links()
        marked = [link for link in links if link.alias == self.device]
        named = [link for link in marked if link.ifname == self.ifname]
        unmarked = [] if self._is_at_home(kernel) else [link for link in links if self._is_unmarked(link)]
        return next(iter([*named, *marked, *unmarked]), None)

    def _is_at_home(self, kernel: "Kernel") -> bool:
        try:
            link = kernel.rtnl(self.home).find_link(self.device)
        except ObjectMissing:
            return False
        return link is not None and self.before is not None and link.mac == self.before.mac

    def _is_unmarked(self, link: LinkInfo) -> bool:
        before = self.before
        return before is not None and (link.ifname, link.mac, link.alias) == (self.device, before.mac, before.alias)

    def remove(self, kernel: "Kernel") -> None:
        """Move the device back; a no-op when it is back already, or nowhere."""
        before = self.before
        if before is None:
            return
        had = number(IFLA_MTU, before.mtu) + number(IFLA_TXQLEN, before.txqlen)
        had += attribute(IFLA_ADDRESS, bytes.fromhex(before.mac.replace(":", "")))
        with suppress(ObjectMissing):
            there = kernel.rtnl(self.netns)
            link = self._find_moved(kernel, there)
            if link is not None:
                self._move(kernel, there, link, self.home, self.device, had)
        with suppress(ObjectMissing):
            home = kernel.rtnl(self.home)
            macs = {before.mac, before.permanent_mac} - {""}
            link = next((link for link in home.links() if link.alias == self.device and link.mac in macs), None)
            if link is not None:
                if link.ifname != self.device:
                    self._move(kernel, home, link, self.home, self.device, had)
                self._restore(kernel, home, before)

    def _restore(self, kernel: "Kernel", home: "Rtnl", before: DeviceBefore) -> None:
        """Restore flags, addresses, and last the alias: after a crash the device is found by it until all is restored."""
        index, action = home.index(self.device), f"give back link {self.device} in {self.home.label}"
        home.order(action, (RTM_SETLINK, 0, link_header(index, before.flags, _FLAGS)))
        for item in before.addresses:
            Address(ifname=self.device, address=item, netns=self.home).ensure(kernel)
        home.order(action, (RTM_SETLINK, 0, link_header(index) + _alias(before.alias)))

    def carries_in(self) -> tuple[str, ...]:
        return (self.netns.path,)

    def carries(self, other: KernelObject) -> bool:
        return other is not self and other.netns.path == self.netns.path and is_on(other, self.ifname)

    def drift(self, kernel: "Kernel") -> str | None:
        try:
            link = kernel.rtnl(self.netns).find_link(self.ifname)
        except ObjectMissing as error:
            return str(error)
        if link is None:
            return f"link {self.ifname} is missing"
        return None if link.alias == self.device else f"link {self.ifname} is not the former {self.device}"

    def commands(self) -> Iterable[str]:
        where = f"netns {self.netns.label} name {self.ifname} alias {self.device}"
        yield command_in(self.home, f"ip link set {self.device} {where}")


def _alias(alias: str) -> bytes:
    return attribute(IFLA_IFALIAS, alias.encode())
