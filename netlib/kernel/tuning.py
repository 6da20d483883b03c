"""Single settings of links that belong to somebody else or to another record, and sysctls; each with its former value."""

import errno
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Self

from msgspec.structs import replace

from netlib.errors import KernelError, ObjectMissing
from netlib.kernel.linkinfo import (
    BR_VLAN_FILTERING,
    IFF_ALLMULTI,
    IFF_PROMISC,
    IFLA_LINKINFO,
    IFLA_TXQLEN,
    INFO_DATA,
    INFO_KIND,
    RTM_NEWLINK,
    LinkInfo,
    link_header,
)
from netlib.kernel.links import Veth, link_attributes
from netlib.kernel.netlink import attribute, nest, number
from netlib.kernel.netns import command_in
from netlib.kernel.sysctl import Sysctl, sysctl_path
from netlib.plan import KernelObject, Key

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel

_FLAGS = {"promisc": IFF_PROMISC, "allmulti": IFF_ALLMULTI}
_UNSET: dict[str, str | int] = {"mac": "", "mtu": 0}  # values by which the object of a link leaves the setting to others
_WORDS = {"mac": "address", "mtu": "mtu", "txqlen": "txqueuelen", "promisc": "promisc", "allmulti": "allmulticast"}
_WORDS["vlan_filtering"] = "type bridge vlan_filtering"
_SWITCH = {"on": "1", "off": "0"}  # ip(8)'s words for settings of one kind of link


class LinkSetting(KernelObject, frozen=True, kw_only=True, tag="link_setting"):
    """One attribute of a link: ``mac``, ``mtu``, ``txqlen`` (decimal), ``promisc`` or ``allmulti`` (``on`` or ``off``).

    A bridge also has ``vlan_filtering``: whether it separates the VLANs of its ports (:mod:`netlib.kernel.vlans`).
    *prior* is the value before a record first set it; the last record that holds it restores that value, unless somebody has
    changed ours meanwhile.
    """

    observations = ("prior",)

    ifname: str
    setting: Literal["mac", "mtu", "txqlen", "promisc", "allmulti", "vlan_filtering"]
    value: str
    prior: str | None = None

    @cached_property
    def key(self) -> Key:
        return Key("link_setting", self.netns.path, f"{self.ifname} {self.setting}")

    @property
    def shared(self) -> bool:
        """A link of the host, as a bridge is, may serve several networks."""
        return self.netns.is_host

    def observed(self, kernel: "Kernel") -> Self:
        try:
            return replace(self, prior=self._found(kernel.rtnl(self.netns).get_link(self.ifname)))
        except ObjectMissing:  # an object before this one makes the link
            return self

    def ensure(self, kernel: "Kernel") -> None:
        self._set(kernel, self._wanted)

    def remove(self, kernel: "Kernel") -> None:
        if self.prior in (None, self._wanted):
            return
        with suppress(ObjectMissing):
            if self._found(kernel.rtnl(self.netns).get_link(self.ifname)) == self._wanted:
                self._set(kernel, str(self.prior))

    def drift(self, kernel: "Kernel") -> str | None:
        try:
            found = self._found(kernel.rtnl(self.netns).get_link(self.ifname))
        except ObjectMissing as error:
            return str(error)
        return None if found == self._wanted else f"link {self.ifname} has {self.setting} {found}, not {self._wanted}"

    def remaining(self, other: KernelObject) -> KernelObject:
        """*other* without the attribute that is set here; from a veth pair an MTU is taken for both ends."""
        key, place = other.key, (self.netns.path, self.ifname)
        is_this = key == Key("link", *place) or (isinstance(other, Veth) and (other.peer_netns.path, other.peer) == place)
        if is_this and self.setting in _UNSET and self.setting in other.__struct_fields__:
            return replace(other, **{self.setting: _UNSET[self.setting]})
        return other

    def commands(self) -> Iterable[str]:
        value = _SWITCH[self._wanted] if self.setting == "vlan_filtering" else self._wanted
        yield command_in(self.netns, f"ip link set {self.ifname} {_WORDS[self.setting]} {value}")

    @property
    def _wanted(self) -> str:
        return self.value.lower()

    def _found(self, link: LinkInfo) -> str:
        if self.setting in _FLAGS:
            return "on" if link.flags & _FLAGS[self.setting] else "off"
        if self.setting == "vlan_filtering":
            return "on" if link.data.get(BR_VLAN_FILTERING) == b"\1" else "off"
        return link.mac if self.setting == "mac" else str(link.mtu if self.setting == "mtu" else link.txqlen)

    def _set(self, kernel: "Kernel", value: str) -> None:
        rtnl = kernel.rtnl(self.netns)
        index, flags, change, more = rtnl.index(self.ifname), 0, _FLAGS.get(self.setting, 0), b""
        if change:
            flags = change if value == "on" else 0
        elif self.setting == "mac":
            more = link_attributes(mac=value)
        elif self.setting == "vlan_filtering":
            data = nest(INFO_DATA, attribute(BR_VLAN_FILTERING, bytes([value == "on"])))
            more = nest(IFLA_LINKINFO, attribute(INFO_KIND, b"bridge"), data)
        else:
            more = link_attributes(mtu=int(value)) if self.setting == "mtu" else number(IFLA_TXQLEN, int(value))
        action = f"set {self.setting} {value} of link {self.ifname} in {self.netns.label}"
        try:
            rtnl.order(action, (RTM_NEWLINK, 0, link_header(index, flags, change) + more))
        except KernelError as error:
            if error.errno != errno.EBUSY:
                raise
            raise KernelError(f"{error}; its driver changes it only while the link is down", error.errno) from error


class TunedSysctl(Sysctl, frozen=True, kw_only=True, tag="tuned_sysctl"):
    """A setting that overrides what the plan of another record set; *prior* may be that record's value."""

    @cached_property
    def key(self) -> Key:
        return Key("tuned_sysctl", self.netns.path, sysctl_path(self.name))

    @property
    def shared(self) -> bool:
        """True except for a link's own settings: the attachments of all interfaces of a container may set the same one."""
        return self.ifname is None

    def remaining(self, other: KernelObject) -> KernelObject | None:
        """*other*, or None for the plain sysctl of that name."""
        return None if other.key == ("sysctl", *self.key[1:]) else other
