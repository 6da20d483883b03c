"""Our small tables of the bridge family: sets, and one chain that never changes and looks up frames in them.

The chain sees a frame when a port has received it, before the bridge and br_netfilter do.
"""

import shlex
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from netlib.errors import ObjectMissing
from netlib.firewall.libnftables import nft
from netlib.kernel.netns import command_in
from netlib.plan import KernelObject, Key

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel

__all__ = ["BridgeTable"]


class BridgeTable(KernelObject, frozen=True, kw_only=True):
    """One such table; a subclass names its sets and its rules."""

    table: ClassVar[str]
    part: ClassVar[str]  # the last part of its key
    sets: ClassVar[tuple[tuple[str, str], ...]]  # name and type of each
    rules: ClassVar[tuple[tuple[str, str], ...]]  # rule and comment, which tells the rule from others

    @cached_property
    def key(self) -> Key:
        return Key("firewall", self.netns.path, self.part)

    @property
    def shared(self) -> bool:
        return True

    @property
    def _lines(self) -> Iterator[str]:
        yield f"add table {self.table}"
        for name, kind in self.sets:
            yield f"add set {self.table} {name} {{ type {kind}; }}"
        yield f"add chain {self.table} prerouting {{ type filter hook prerouting priority -300; policy accept; }}"
        yield f"flush chain {self.table} prerouting"
        for rule, comment in self.rules:
            yield f'add rule {self.table} prerouting {rule} comment "{comment}"'

    def ensure(self, kernel: "Kernel") -> None:
        nft(kernel, self.netns).run("\n".join(self._lines), f"set up {self.table}")

    def remove(self, kernel: "Kernel") -> None:
        with suppress(ObjectMissing):  # no netns. The table is added first, or it would be an error that it is gone
            nft(kernel, self.netns).run(f"add table {self.table}\ndelete table {self.table}", f"remove {self.table}")

    def drift(self, kernel: "Kernel") -> str | None:
        try:
            listing = nft(kernel, self.netns).listing(f"list chain {self.table} prerouting")
        except ObjectMissing:
            return f"nftables table {self.table} is gone"
        found = [entry["rule"].get("comment") for entry in listing if "rule" in entry]
        wanted = [comment for _, comment in self.rules]
        return None if found == wanted else f"nftables chain {self.table} prerouting has other rules than ours"

    def commands(self) -> Iterator[str]:
        return (command_in(self.netns, f"nft {shlex.quote(line)}") for line in self._lines)
