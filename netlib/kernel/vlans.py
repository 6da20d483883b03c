"""VLANs of bridge ports, on a bridge that filters by VLAN."""

import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Self

from msgspec.structs import replace

from netlib.errors import ObjectMissing
from netlib.kernel.linkinfo import IFLA_AF_SPEC, IFLA_EXT_MASK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK, link_header
from netlib.kernel.netlink import attribute, nest, number
from netlib.kernel.netns import command_in
from netlib.plan import KernelObject, Key

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel, Rtnl

_AF_BRIDGE = 7
_VLAN_INFO = 2  # IFLA_BRIDGE_VLAN_INFO: flags, id
_PVID, _UNTAGGED, _RANGE_BEGIN, _RANGE_END = 2, 4, 8, 16
_NATIVE = _PVID | _UNTAGGED
_ONE_BY_ONE = number(IFLA_EXT_MASK, 2)  # RTEXT_FILTER_BRVLAN
_DEFAULT = 1

Vlans = Mapping[int, int]
"""VLAN id to flags."""


class PortVlans(KernelObject, frozen=True, kw_only=True, tag="port_vlans"):
    """The VLANs of a bridge port: *native* is the VLAN of untagged packets, *tagged* are ranges (first id, last id).

    With *tagged* ones *native* 0 means 1, as in the reference bridge plugin. The port loses all other VLANs, except with
    *keeps_default* the one that the bridge gives a new port. *before* are those that an existing port had, and gets back.
    """

    observations = ("before",)

    ifname: str
    native: int = 0
    tagged: tuple[tuple[int, int], ...] = ()
    keeps_default: bool = False
    before: tuple[tuple[int, int], ...] | None = None

    @cached_property
    def key(self) -> Key:
        return Key("port_vlans", self.netns.path, self.ifname)

    def observed(self, kernel: "Kernel") -> Self:
        try:
            return replace(self, before=tuple(sorted(self._found(kernel.rtnl(self.netns)).items())))
        except ObjectMissing:  # an object before this one makes the port
            return self

    @property
    def _wanted(self) -> dict[int, int]:
        tagged = {vlan: 0 for first, last in self.tagged for vlan in range(first, last + 1)}
        default = {_DEFAULT: _UNTAGGED} if self.keeps_default else {}
        return default | tagged | {self.native or _DEFAULT: _NATIVE}

    def ensure(self, kernel: "Kernel") -> None:
        self._set_vlans(kernel.rtnl(self.netns), self._wanted)

    def remove(self, kernel: "Kernel") -> None:
        with suppress(ObjectMissing):
            self._set_vlans(kernel.rtnl(self.netns), dict(self.before) if self.before is not None else {_DEFAULT: _NATIVE})

    def _set_vlans(self, rtnl: "Rtnl", wanted: Vlans) -> None:
        index, found = rtnl.index(self.ifname), self._found(rtnl)
        action = f"set the VLANs of bridge port {self.ifname} in {self.netns.label}"
        header = link_header(index, family=_AF_BRIDGE)
        removed = {vlan: 0 for vlan in found if vlan not in wanted}
        changed = {vlan: flags for vlan, flags in wanted.items() if found.get(vlan) != flags}
        messages = [(RTM_DELLINK, 0, header + nest(IFLA_AF_SPEC, *_entries(removed)))] if removed else []
        # The native VLAN is set last: setting the former native VLAN as an ordinary one would clear the new one.
        for native in (False, True):
            part = {vlan: flags for vlan, flags in changed.items() if bool(flags & _PVID) == native}
            if part:
                messages.append((RTM_SETLINK, 0, header + nest(IFLA_AF_SPEC, *_entries(part))))
        if messages:
            rtnl.order(action, *messages)

    def _found(self, rtnl: "Rtnl") -> dict[int, int]:
        """The port's VLANs, from a dump of all ports: the kernel dumps no single one."""
        index = rtnl.index(self.ifname)
        for header, found in rtnl.dump(RTM_GETLINK, link_header(family=_AF_BRIDGE), _ONE_BY_ONE):
            if struct.unpack_from("=i", header, 4)[0] == index:
                entries = struct.iter_unpack("=HHHH", found.get(IFLA_AF_SPEC, b""))  # attribute header, flags, id
                return {vlan: flags & _NATIVE for _, kind, flags, vlan in entries if kind == _VLAN_INFO}
        return {}

    def drift(self, kernel: "Kernel") -> str | None:
        try:
            found = self._found(kernel.rtnl(self.netns))
        except ObjectMissing as error:
            return str(error)
        if found == self._wanted:
            return None
        return f"bridge port {self.ifname} has VLANs {_words(found) or 'none'}, not {_words(self._wanted)}"

    def commands(self) -> Iterable[str]:
        if not self.keeps_default and _DEFAULT not in self._wanted:
            yield command_in(self.netns, f"bridge vlan del dev {self.ifname} vid {_DEFAULT}")
        for first, last, flags in _ranges(self._wanted):
            vlans = str(first) if first == last else f"{first}-{last}"
            more = (" pvid" if flags & _PVID else "") + (" untagged" if flags & _UNTAGGED else "")
            yield command_in(self.netns, f"bridge vlan add dev {self.ifname} vid {vlans}{more}")


def _ranges(vlans: Vlans) -> Iterator[tuple[int, int, int]]:
    """First id, last id and flags of each run of consecutive ids with the same flags, the native VLAN last."""
    runs: list[tuple[int, int, int]] = []
    for vlan, flags in sorted(vlans.items(), key=lambda item: (item[1] & _PVID, item[0])):
        if runs and runs[-1][1:] == (vlan - 1, flags):
            runs[-1] = (runs[-1][0], vlan, flags)
        else:
            runs.append((vlan, vlan, flags))
    return iter(runs)


def _entries(vlans: Vlans) -> Iterator[bytes]:
    for first, last, flags in _ranges(vlans):
        if first == last:
            yield attribute(_VLAN_INFO, struct.pack("=HH", flags, first))
        else:
            yield attribute(_VLAN_INFO, struct.pack("=HH", flags | _RANGE_BEGIN, first))
            yield attribute(_VLAN_INFO, struct.pack("=HH", flags | _RANGE_END, last))


def _words(vlans: Vlans) -> str:
    return ", ".join(
        (str(first) if first == last else f"{first}-{last}") + (" native" if flags & _PVID else " untagged" if flags else "")
        for first, last, flags in sorted(_ranges(vlans))
    )
