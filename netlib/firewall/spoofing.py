"""Source MAC addresses of bridge ports: a frame with another one than the port's own is dropped.

A small table of the bridge family, ``bridge netlib``: one rule, and elements for each port that is checked, so that the
thousandth costs what the first did.
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING

from netlib.errors import ObjectMissing
from netlib.firewall.bridgetable import BridgeTable
from netlib.firewall.libnftables import nft
from netlib.firewall.ruleset import checked_ifname
from netlib.names import check_mac
from netlib.plan import KernelObject, Key

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel

__all__ = ["PortMac", "PortMacs", "remove_reference_check"]

TABLE = "bridge netlib"
_SPELLABLE = re.compile(r"[A-Za-z0-9_.-]+")
_REFERENCE_TABLE, _REFERENCE_CHAIN = "bridge nat", "PREROUTING"


class PortMacs(BridgeTable, frozen=True, kw_only=True, tag="port_macs"):
    """The table; every :class:`PortMac` is an entry in it."""

    table = TABLE
    part = "port macs"
    sets = (("watched", "ifname"), ("macs", "ifname . ether_addr"))
    rules = (("iifname @watched iifname . ether saddr != @macs drop", "another MAC address"),)


class PortMac(KernelObject, frozen=True, kw_only=True, tag="port_mac"):
    """The only MAC address that frames from a bridge port may have; apply :class:`PortMacs` first."""

    port: str  # not called ifname: it outlives the link
    mac: str

    @cached_property
    def key(self) -> Key:
        return Key("firewall", self.netns.path, f"port mac/{self.port}")

    @property
    def _elements(self) -> tuple[str, str]:
        port = f'"{checked_ifname(self.port)}"'
        return f"{TABLE} macs {{ {port} . {check_mac(self.mac)} }}", f"{TABLE} watched {{ {port} }}"

    def ensure(self, kernel: "Kernel") -> None:
        self._run(kernel, "add")

    def remove(self, kernel: "Kernel") -> None:
        with suppress(ObjectMissing):  # no table
            self._run(kernel, "add", "delete")  # added first, or it would be an error that it is gone

    def _run(self, kernel: "Kernel", *verbs: str) -> None:
        lines = [f"{verb} element {element}" for verb in verbs for element in self._elements]
        nft(kernel, self.netns).run("\n".join(lines), f"{verbs[-1]} the MAC address of bridge port {self.port}")

    def drift(self, kernel: "Kernel") -> str | None:
        try:
            for element in self._elements:
                nft(kernel, self.netns).text(f"get element {element}")
        except ObjectMissing:
            return f"bridge port {self.port} may send from other MAC addresses than {self.mac}"
        return None

    def commands(self) -> Iterable[str]:
        return (f"nft 'add element {element}'" for element in self._elements)


def remove_reference_check(kernel: "Kernel", container: str, ifname: str) -> None:
    """Remove the rules of the reference bridge plugin's ``macspoofchk`` for an interface; a no-op where there are none."""
    name = f"{container}-{ifname}"
    if not _SPELLABLE.fullmatch(name):
        return
    try:
        listing = nft(kernel).listing(f"list table {_REFERENCE_TABLE}")
    except ObjectMissing:
        return
    chains = {entry["chain"]["name"] for entry in listing if "chain" in entry}
    rules = [entry["rule"] for entry in listing if "rule" in entry]
    lines = [
        f"delete rule {_REFERENCE_TABLE} {_REFERENCE_CHAIN} handle {rule['handle']}"
        for rule in rules
        if (rule["chain"], rule.get("comment")) == (_REFERENCE_CHAIN, f"macspoofchk-{name}")
    ]
    for chain in (f"cni-br-iface-{name}", f"cni-br-iface-{name}-mac"):
        if chain in chains:
            lines += [f"flush chain {_REFERENCE_TABLE} {chain}", f"delete chain {_REFERENCE_TABLE} {chain}"]
    if lines:
        nft(kernel).run("\n".join(lines), f"remove the reference plugin's check of {name}")
