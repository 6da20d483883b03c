"""Links that are made by one request, most of them on a parent: macvlan, ipvlan, 802.1Q VLAN, dummy, ifb.

A link may be in another netns than its parent. Up to Linux 6.14 the kernel makes it in the parent's netns and then moves it,
which fails when a link there has the same name, such as the host's eth0. So it is made under a temporary name that no other
link has, and a second request, in its own netns, sets its name together with the tag.
"""

import errno
import hashlib
import struct
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from msgspec.structs import replace

from netlib.errors import AlreadyExists, ConfigError, KernelError, ObjectMissing
from netlib.kernel.linkinfo import (
    IFF_UP,
    IFLA_IFNAME,
    IFLA_LINK,
    IFLA_LINKINFO,
    IFLA_NET_NS_FD,
    INFO_DATA,
    INFO_KIND,
    RTM_NEWLINK,
    LinkInfo,
    link_header,
)
from netlib.kernel.links import (
    create_link,
    delete_link,
    host_end,
    is_on,
    is_ours,
    link_attributes,
    link_drift,
    may_have_ipv6,
    not_ours,
    router_refusal_commands,
    tag_attributes,
    without_link_local,
)
from netlib.kernel.netlink import attribute, nest, number, text
from netlib.kernel.netns import command_in
from netlib.kernel.routers import refuse_routers, router_refusal_drift
from netlib.kernel.translate import doing
from netlib.model import HOST, NetnsRef
from netlib.plan import KernelObject, Key

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel, Rtnl

_RTM_GETNSID, _NSA_NSID, _NSA_FD = 90, 1, 3
_MACVLAN_MODE, _MACVLAN_BC_QUEUE_LEN = 1, 7
_MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
_IPVLAN_MODE, _IPVLAN_FLAGS = 1, 2
_IPVLAN_MODES = {"l2": 0, "l3": 1, "l3s": 2}
_IPVLAN_KINDS = {"bridge": 0, "private": 1, "vepa": 2}
_VLAN_ID = 1

Settings = tuple[tuple[int, str, bytes, str], ...]
"""The settings of a kind of link: for each its attribute's number, its name, its value, and the value in ip(8)'s words."""


class MadeLink(KernelObject, frozen=True, kw_only=True):
    """What the kinds have in common: *ifname* with *mac* and *mtu* ("" and 0: the kernel's), *up* if it is set up here.

    A link of the host that is set up here ignores router advertisements and redirects.
    """

    kind: ClassVar[str]

    ifname: str
    mac: str = ""
    mtu: int = 0
    up: bool = False

    @cached_property
    def key(self) -> Key:
        return Key("link", self.netns.path, self.ifname)

    @property
    def _parent(self) -> tuple[NetnsRef, str] | None:
        """The parent's netns and name, for kinds that have one."""
        return None

    @property
    def _serves_host(self) -> bool:
        return self.up and self.netns.is_host

    @property
    def _settings(self) -> Settings:
        """The settings of the kind, in the order of ip(8)."""
        return ()

    @property
    def _fixed(self) -> frozenset[int]:
        """The attribute numbers of settings that an existing link cannot change."""
        return frozenset()

    def holds_outside(self) -> bool:
        """Yes for a link whose parent is in another netns, where it occupies a slot."""
        return self._parent is not None and self._parent[0].path != self.netns.path

    def ensure(self, kernel: "Kernel") -> None:
        """Make the link, or change an existing one; replace one that is on another parent or has other fixed settings.

        Raises AlreadyExists when a link that is not ours has the name, ObjectMissing without the parent.
        """
        rtnl = kernel.rtnl(self.netns)
        link = rtnl.find_link(self.ifname)
        if link is not None and not is_ours(link, self.kind):
            raise not_ours(link, self.netns)
        if link is not None and not self._can_become(kernel, link):
            delete_link(rtnl, link)
            link = None
        if link is None:
            self._create(kernel, rtnl)
        else:
            changed = [(kind, value) for kind, _, value, _ in self._settings if link.data.get(kind) != value]
            mac = "" if link.mac == self.mac.lower() else self.mac
            info = nest(IFLA_LINKINFO, attribute(INFO_KIND, self.kind.encode()), self._data(changed)) if changed else b""
            self._finish(kernel, rtnl, self.ifname, link_attributes(mac, self.mtu) + info)

    def _create(self, kernel: "Kernel", rtnl: "Rtnl") -> None:
        more, maker, ifname = link_attributes(self.mac, self.mtu), rtnl, self.ifname
        if self._parent is not None:
            home, parent = self._parent
            maker = kernel.rtnl(home)
            more += number(IFLA_LINK, maker.index(parent))
            if home.path != self.netns.path:
                more += number(IFLA_NET_NS_FD, kernel.netns_fd(self.netns))
                ifname = self._temporary_name
        data = self._data([(kind, value) for kind, _, value, _ in self._settings])
        action = f"{self.kind} {self.ifname} in {self.netns.label}"
        if not create_link(maker, action, ifname, self.kind, more, data):
            self._remove_named(rtnl, self._temporary_name)  # left by a crash
            if not create_link(maker, action, ifname, self.kind, more, data):
                raise self._made_meanwhile
        try:
            self._finish(kernel, rtnl, ifname, text(IFLA_IFNAME, self.ifname))
        except KernelError as error:
            if error.errno != errno.EEXIST:
                raise
            raise self._made_meanwhile from error

    @property
    def _made_meanwhile(self) -> AlreadyExists:
        return AlreadyExists(f"link {self.ifname} in {self.netns.label} is being made by somebody else; try again")

    def _finish(self, kernel: "Kernel", rtnl: "Rtnl", ifname: str, more: bytes) -> None:
        index, action = rtnl.index(ifname), f"set up link {self.ifname} in {self.netns.label}"
        payload = link_header(index) + more + tag_attributes(kernel)
        rtnl.order(action, (RTM_NEWLINK, 0, payload))
        if self._serves_host:
            refuse_routers(kernel, self.netns, self.ifname)
        if self.up:  # by a message of its own: the kernel sets a link up before the attributes of the same message
            refused = host_end(self.mtu) if self._serves_host else without_link_local(self.mtu)
            up = link_header(index, IFF_UP, IFF_UP)
            rtnl.order(action, (RTM_NEWLINK, 0, link_header(index) + refused), (RTM_NEWLINK, 0, up))

    @staticmethod
    def _data(settings: Iterable[tuple[int, bytes]]) -> bytes:
        attributes = [attribute(kind, value) for kind, value in settings]
        return nest(INFO_DATA, *attributes) if attributes else b""

    @property
    def _temporary_name(self) -> str:
        """The link's name until it has its own; always the same, so that a link which a crash left is found."""
        return "nl" + hashlib.sha256(f"{self.netns.path} {self.netns.identity} {self.ifname}".encode()).hexdigest()[:12]

    def _can_become(self, kernel: "Kernel", link: LinkInfo) -> bool:
        """Whether an existing link is on the right parent and has the right fixed settings."""
        return self._is_on_parent(kernel, link) and all(
            link.data.get(kind) == value for kind, _, value, _ in self._settings if kind in self._fixed
        )

    def _is_on_parent(self, kernel: "Kernel", link: LinkInfo) -> bool:
        if self._parent is None:
            return True
        home, parent = self._parent
        if link.peer != kernel.rtnl(home).index(parent):
            return False
        if home.path == self.netns.path:
            return link.peer_nsid is None
        return link.peer_nsid is not None and link.peer_nsid == netns_number(kernel, self.netns, home)

    def remove(self, kernel: "Kernel") -> None:
        """Delete the link if it is ours, also under the temporary name that a crash may have left it with."""
        with suppress(ObjectMissing):
            rtnl = kernel.rtnl(self.netns)
            for ifname in (self.ifname, self._temporary_name):
                self._remove_named(rtnl, ifname)

    def _remove_named(self, rtnl: "Rtnl", ifname: str) -> None:
        link = rtnl.find_link(ifname)
        if link is not None and is_ours(link, self.kind):
            delete_link(rtnl, link)

    def carries_in(self) -> tuple[str, ...]:
        return (self.netns.path,)

    def carries(self, other: KernelObject) -> bool:
        return other is not self and other.netns.path == self.netns.path and is_on(other, self.ifname)

    def drift(self, kernel: "Kernel") -> str | None:
        try:
            link = kernel.rtnl(self.netns).find_link(self.ifname)
            if link is None:
                return f"link {self.ifname} is missing"
            if not is_ours(link, self.kind):
                return f"link {self.ifname} is not netlib's"
            if self._parent is not None and not self._is_on_parent(kernel, link):
                return f"link {self.ifname} is not on {self._parent[1]} in {self._parent[0].label}"
        except ObjectMissing as error:
            return str(error)
        for kind, name, value, words in self._settings:
            if link.data.get(kind) != value:
                return f"link {self.ifname} has another {name} than {words}"
        return link_drift(link, self.ifname, self.mac, self.mtu, up=self.up) or (
            router_refusal_drift(link) if self._serves_host else None
        )

    def commands(self) -> Iterable[str]:
        home, on = self.netns, ""
        if self._parent is not None:
            home, on = self._parent[0], f" link {self._parent[1]}"
        mac = f" address {self.mac}" if self.mac else ""
        mtu = f" mtu {self.mtu}" if self.mtu else ""
        moved = home.path != self.netns.path
        first = self._temporary_name if moved else self.ifname
        where = f" netns {self.netns.label}" if moved else ""
        yield command_in(home, f"ip link add{on} name {first}{mac}{mtu}{where} type {self.kind}{self._words}")
        if moved:
            yield command_in(self.netns, f"ip link set {first} name {self.ifname}")
        if self.up:
            if self._serves_host:
                yield from router_refusal_commands(self.netns, self.ifname, self.mtu)
            if may_have_ipv6(self.mtu):
                yield command_in(self.netns, f"ip link set {self.ifname} addrgenmode none")
            yield command_in(self.netns, f"ip link set {self.ifname} up")

    @property
    def _words(self) -> str:
        return "".join(f" {name} {words}" for _, name, _, words in self._settings)


class Macvlan(MadeLink, frozen=True, kw_only=True, tag="macvlan"):
    """A macvlan link, with its own MAC address on the LAN of *parent*, which is in *parent_netns*.

    *bcqueuelen* is how many broadcasts may wait (0: the kernel's 1,000). A ``passthru`` link is
    the only one on its parent, and has its MAC address.
    """

    kind = "macvlan"
    batch = "outward"

    parent: str
    parent_netns: NetnsRef = HOST
    mode: Literal["bridge", "private", "vepa", "passthru"] = "bridge"
    bcqueuelen: int = 0

    @property
    def _parent(self) -> tuple[NetnsRef, str]:
        return self.parent_netns, self.parent

    @property
    def _settings(self) -> Settings:
        mode = (_MACVLAN_MODE, "mode", struct.pack("=I", _MACVLAN_MODES[self.mode]), self.mode)
        queue = (_MACVLAN_BC_QUEUE_LEN, "bcqueuelen", struct.pack("=I", self.bcqueuelen), str(self.bcqueuelen))
        return (mode, queue) if self.bcqueuelen else (mode,)

    def _can_become(self, kernel: "Kernel", link: LinkInfo) -> bool:
        passthru = struct.pack("=I", _MACVLAN_MODES["passthru"])
        is_kept = (link.data.get(_MACVLAN_MODE) == passthru) == (self.mode == "passthru")  # no link changes to or from it
        return is_kept and super()._can_become(kernel, link)


class Ipvlan(MadeLink, frozen=True, kw_only=True, tag="ipvlan"):
    """An ipvlan link, with the MAC address of *parent*. All ipvlan links on a parent have the same mode and flag."""

    kind = "ipvlan"
    batch = "outward"

    parent: str
    parent_netns: NetnsRef = HOST
    mode: Literal["l2", "l3", "l3s"] = "l2"
    flag: Literal["bridge", "private", "vepa"] = "bridge"

    @property
    def _parent(self) -> tuple[NetnsRef, str]:
        return self.parent_netns, self.parent

    @property
    def _settings(self) -> Settings:
        return (
            (_IPVLAN_MODE, "mode", struct.pack("=H", _IPVLAN_MODES[self.mode]), self.mode),
            (_IPVLAN_FLAGS, "flag", struct.pack("=H", _IPVLAN_KINDS[self.flag]), self.flag),
        )

    @property
    def _words(self) -> str:
        return f" mode {self.mode} {self.flag}"


class AdoptableLink(MadeLink, frozen=True, kw_only=True):
    """A link that may be there before us, whoever made it: then it is *adopted*, used unchanged, and never deleted."""

    adopted: bool = False

    def ensure(self, kernel: "Kernel") -> None:
        if not self.adopted:
            super().ensure(kernel)
        else:
            kernel.rtnl(self.netns).index(self.ifname)

    def remove(self, kernel: "Kernel") -> None:
        if not self.adopted:
            super().remove(kernel)

    def carries(self, other: KernelObject) -> bool:
        return not self.adopted and super().carries(other)

    def drift(self, kernel: "Kernel") -> str | None:
        if not self.adopted:
            return super().drift(kernel)
        return None if kernel.rtnl(self.netns).find_link(self.ifname) else f"link {self.ifname} is missing"

    def commands(self) -> Iterable[str]:
        return () if self.adopted else super().commands()


class Vlan(AdoptableLink, frozen=True, kw_only=True, tag="vlan"):
    """An 802.1Q sub-interface of *parent* (in *parent_netns*). In the host's netns several records may share it.

    With *may_stand*, an existing link of this name is adopted, whatever it is.
    """

    kind = "vlan"
    batch = "outward"
    observations = ("adopted",)

    parent: str
    vlan_id: int
    parent_netns: NetnsRef = HOST
    may_stand: bool = False

    @property
    def shared(self) -> bool:
        return self.netns.is_host

    @property
    def _parent(self) -> tuple[NetnsRef, str]:
        return self.parent_netns, self.parent

    @property
    def _settings(self) -> Settings:
        return ((_VLAN_ID, "id", struct.pack("=H", self.vlan_id), str(self.vlan_id)),)

    @property
    def _fixed(self) -> frozenset[int]:
        return frozenset({_VLAN_ID})

    def observed(self, kernel: "Kernel") -> Self:
        """Adopt an existing link with *may_stand*; ConfigError when neither that nor its parent exists."""
        with suppress(ObjectMissing):  # the netns is yet to be made
            link = kernel.rtnl(self.netns).find_link(self.ifname)
            if self.may_stand and link is not None and not is_ours(link, self.kind):
                return replace(self, adopted=True)
            home, parent = self._parent
            if self.may_stand and link is None and kernel.rtnl(home).find_link(parent) is None:
                raise ConfigError(
                    f"parent {self.ifname}: neither it nor {parent}, to make it on, is in {home.label}; `ip link` lists them"
                )
        return self


class Dummy(MadeLink, frozen=True, kw_only=True, tag="dummy"):
    """A link that leads nowhere."""

    kind = "dummy"


class Ifb(MadeLink, frozen=True, kw_only=True, tag="ifb"):
    """An ifb link: what another link receives is redirected through it to be shaped (:mod:`netlib.kernel.qdiscs`)."""

    kind = "ifb"


def netns_number(kernel: "Kernel", where: NetnsRef, other: NetnsRef) -> int | None:
    """The number that the netns *where* has for *other* in netlink messages; None when it has none."""
    with doing(f"look up network namespace {other.label} in {where.label}"):
        header = struct.pack("=Bxxx", 0)
        _, found = kernel.rtnl(where).plain.get(_RTM_GETNSID, header, number(_NSA_FD, kernel.netns_fd(other)))
    (answer,) = struct.unpack("=i", found[_NSA_NSID])
    return None if answer < 0 else int(answer)
