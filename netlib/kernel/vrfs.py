"""VRFs: links whose enslaved links have a routing table of their own."""

import struct
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Self

from msgspec.structs import replace

from netlib.errors import AlreadyExists, ConfigError, ObjectMissing
from netlib.kernel.addresses import switched_on
from netlib.kernel.linkinfo import IFLA_MASTER, RTM_SETLINK, LinkInfo, link_header
from netlib.kernel.links import is_ours
from netlib.kernel.netlink import number
from netlib.kernel.netns import command_in
from netlib.kernel.routes import MAIN_TABLE, RouteEntry, routes_by
from netlib.kernel.sublinks import AdoptableLink, Settings
from netlib.plan import KernelObject, Key

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel, Rtnl

_TABLE = 1


class Vrf(AdoptableLink, frozen=True, kw_only=True, tag="vrf"):
    """A VRF, up, that several records may share. *table* 0 means the lowest that no other VRF of its netns has (*chosen*)."""

    kind = "vrf"
    observations = ("chosen", "adopted")

    table: int = 0
    up: bool = True
    chosen: int = 0

    @property
    def shared(self) -> bool:
        return True

    @property
    def _settings(self) -> Settings:
        table = self.table or self.chosen
        return ((_TABLE, "table", struct.pack("=I", table), str(table)),)

    @property
    def _fixed(self) -> frozenset[int]:
        return frozenset({_TABLE})

    def observed(self, kernel: "Kernel") -> Self:
        """Adopt a VRF of that name, or choose a table; ConfigError for another kind of link, or another table."""
        vrfs, chosen = [], 1
        for link in kernel.rtnl(self.netns).links():
            if link.kind == self.kind:
                vrfs.append(_table_of(link))
            if link.ifname != self.ifname:
                continue
            if link.kind != self.kind:
                raise ConfigError(f"link {self.ifname} in {self.netns.label} is no VRF ({link.kind}); use another name")
            if self.table not in (0, _table_of(link)):
                raise ConfigError(
                    f"VRF {self.ifname} in {self.netns.label} has table {_table_of(link)}, not {self.table}; use that one"
                )
            return replace(self, chosen=_table_of(link), adopted=not is_ours(link, self.kind))
        while chosen in vrfs:
            chosen += 1
        return replace(self, chosen=self.table or chosen)


def _table_of(link: LinkInfo) -> int:
    (table,) = struct.unpack("=I", link.data[_TABLE])
    return int(table)


class Enslaved(KernelObject, frozen=True, kw_only=True, tag="enslaved"):
    """A link in a VRF.

    *routes* are the main table's routes over it: the kernel drops them when the link joins the VRF, and we set them in the
    VRF's table.
    """

    observations = ("routes",)

    ifname: str
    vrf: str
    routes: tuple[RouteEntry, ...] = ()

    @cached_property
    def key(self) -> Key:
        return Key("vrf", self.netns.path, self.ifname)

    def observed(self, kernel: "Kernel") -> Self:
        try:
            return replace(self, routes=tuple(routes_by(kernel, self.ifname, self.netns)))
        except ObjectMissing:  # an object before this one makes the link
            return self

    def ensure(self, kernel: "Kernel") -> None:
        """Put the link into the VRF; AlreadyExists when it has another master."""
        rtnl = kernel.rtnl(self.netns)
        link, vrf = rtnl.get_link(self.ifname), rtnl.get_link(self.vrf)
        if link.master not in (0, vrf.index):
            master = next((other.ifname for other in rtnl.links() if other.index == link.master), "another link")
            raise AlreadyExists(
                f"link {self.ifname} in {self.netns.label} belongs to {master} already; take it from there first"
            )
        if not link.master:
            self._set_master(kernel, rtnl, link, vrf.index)
        for route in self.routes:
            replace(route, table=_table_of(vrf)).ensure(kernel)

    def remove(self, kernel: "Kernel") -> None:
        """Take the link out of the VRF and put its routes into the main table; a no-op when it has another master by now."""
        with suppress(ObjectMissing):
            rtnl = kernel.rtnl(self.netns)
            link = rtnl.get_link(self.ifname)
            if link.master and link.master == rtnl.index(self.vrf):
                self._set_master(kernel, rtnl, link, 0)
                for route in self.routes:
                    route.ensure(kernel)

    def _set_master(self, kernel: "Kernel", rtnl: "Rtnl", link: LinkInfo, master: int) -> None:
        """Change the master. The kernel sets the link down and up, and deletes its IPv6 addresses unless this sysctl is on."""
        with switched_on(kernel, self.netns, self._keep_addresses):
            action = f"{'put' if master else 'take'} link {self.ifname} {'into' if master else 'out of'} VRF {self.vrf}"
            rtnl.order(
                f"{action} in {self.netns.label}", (RTM_SETLINK, 0, link_header(link.index) + number(IFLA_MASTER, master))
            )

    @property
    def _keep_addresses(self) -> str:
        return f"net/ipv6/conf/{self.ifname}/keep_addr_on_down"

    def drift(self, kernel: "Kernel") -> str | None:
        try:
            rtnl = kernel.rtnl(self.netns)
            link, vrf = rtnl.get_link(self.ifname), rtnl.get_link(self.vrf)
        except ObjectMissing as error:
            return str(error)
        if link.master != vrf.index:
            return f"link {self.ifname} is not in VRF {self.vrf}"
        drifts = (replace(route, table=_table_of(vrf)).drift(kernel) for route in self.routes)
        return next((drift for drift in drifts if drift), None)

    def remaining(self, other: KernelObject) -> KernelObject | None:
        """*other*, or None for a route over this link, which is in the VRF's table now."""
        if (
            isinstance(other, RouteEntry)
            and other.table == MAIN_TABLE
            and (other.netns, other.ifname) == (self.netns, self.ifname)
        ):
            return None
        return other

    def commands(self) -> Iterable[str]:
        yield command_in(self.netns, f"sysctl -w {self._keep_addresses}=1")
        yield command_in(self.netns, f"ip link set {self.ifname} master {self.vrf}")
        yield command_in(self.netns, f"sysctl -w {self._keep_addresses}=0")
        for route in self.routes:
            yield from (f"{command} vrf {self.vrf} proto static" for command in route.commands())
