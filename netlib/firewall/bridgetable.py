"""Our small tables of the bridge family: sets, and one chain that never changes and looks up frames in them.

The chain sees a frame when a port has received it, before the bridge and br_netfilter do.
"""

import shlex
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from netlib.errors import ObjectMissing
from netlib.firewall.expressions import BRIDGE_HEADER, GETRULE, NETFILTER, comment_of
from netlib.firewall.libnftables import leave_idle, nft, take_idle
from netlib.kernel.netlink import NetlinkSocket, text
from netlib.kernel.netns import command_in
from netlib.kernel.translate import doing
from netlib.model import NetnsRef
from netlib.plan import KernelObject, Key

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel

__all__ = ["BridgeConversation", "BridgeTable"]

_RULE_TABLE, _RULE_CHAIN, _RULE_USERDATA = 1, 2, 7  # NFTA_RULE_*
_CHAIN = "prerouting"


class BridgeConversation:
    """A netlink conversation about tables of one netns; opened at first use, and kept as libnftables' are."""

    def __init__(self, kernel: "Kernel", netns: NetnsRef) -> None:
        self.netns = netns
        self._kernel = kernel
        self._socket: NetlinkSocket | None = None

    def opened(self, action: str) -> NetlinkSocket:
        """The socket; *action* is a verb phrase for the error where there can be none."""
        if self._socket is None:
            self._socket = take_idle(NetlinkSocket) if self.netns.is_host else None
        if self._socket is None:
            with self._kernel.entered(self.netns), doing(action):
                self._socket = NetlinkSocket(NETFILTER)
        return self._socket

    def has(self, wanted: "BridgeTable") -> bool:
        """Whether the rules of the table are there, by their comments."""
        action, table = f"list the rules of table {wanted.table}", wanted.table.removeprefix("bridge ")
        sock = self.opened(action)
        with doing(action):
            found = sock.dump(GETRULE, BRIDGE_HEADER, text(_RULE_TABLE, table), text(_RULE_CHAIN, _CHAIN))
        return [comment_of(rule.get(_RULE_USERDATA, b"")) for _, rule in found] == [comment for _, comment in wanted.rules]

    def close(self) -> None:
        if self._socket is not None and not (self.netns.is_host and leave_idle(self._socket)):
            self._socket.close()
        self._socket = None


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
        yield f"add chain {self.table} {_CHAIN} {{ type filter hook prerouting priority -300; policy accept; }}"
        yield f"flush chain {self.table} {_CHAIN}"
        for rule, comment in self.rules:
            yield f'add rule {self.table} {_CHAIN} {rule} comment "{comment}"'

    def ensure(self, kernel: "Kernel") -> None:
        """Make the table, unless all its rules are there.

        To ask takes 0.1 ms, and to make it again 2 ms; rules that are replaced keep the kernel busy for some 10 ms afterwards.
        """
        if not kernel.kept(self.netns, BridgeConversation).has(self):
            self._make(kernel)

    def _make(self, kernel: "Kernel") -> None:
        nft(kernel, self.netns).run("\n".join(self._lines), f"set up {self.table}")

    def remove(self, kernel: "Kernel") -> None:
        with suppress(ObjectMissing):  # no netns. The table is added first, or it would be an error that it is gone
            nft(kernel, self.netns).run(f"add table {self.table}\ndelete table {self.table}", f"remove {self.table}")

    def drift(self, kernel: "Kernel") -> str | None:
        try:
            listing = nft(kernel, self.netns).listing(f"list chain {self.table} {_CHAIN}")
        except ObjectMissing:
            return f"nftables table {self.table} is gone"
        found = [entry["rule"].get("comment") for entry in listing if "rule" in entry]
        wanted = [comment for _, comment in self.rules]
        return None if found == wanted else f"nftables chain {self.table} {_CHAIN} has other rules than ours"

    def commands(self) -> Iterator[str]:
        return (command_in(self.netns, f"nft {shlex.quote(line)}") for line in self._lines)
