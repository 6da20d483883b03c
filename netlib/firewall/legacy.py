"""Legacy xtables (``iptables-legacy``), which nftables does not show and which drop packets all the same.

One rule: python-iptables takes no lock and replaces whole tables, so every change here holds the lock that iptables itself
takes, from the reading to the commit.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from netlib.errors import KernelError
from netlib.firewall.ruleset import allowance_comment
from netlib.kernel.netns import entered
from netlib.kernel.translate import doing
from netlib.model import NetnsRef

_XTABLES_LOCK = Path("/run/xtables.lock")


class LegacyTables:
    """The legacy FORWARD chains of one netns, and our accepts in them."""

    def __init__(self, netns: NetnsRef) -> None:
        self.netns = netns

    def dropping(self) -> tuple[str, ...]:
        """The families ("ip", "ip6") whose legacy FORWARD chain has policy DROP; without such tables, two file reads."""
        with entered(self.netns):
            return tuple(family for family in self._present() if self._policy(family) == "DROP")

    def allow(self, bridge: str, tag: str) -> None:
        """Append two accepts for *bridge* to each legacy FORWARD chain that drops by default."""
        for family in self.dropping():
            with self._changing(family) as chain:
                if not any(_our_comments(chain, bridge)):
                    for rule in self._accepts(family, bridge, allowance_comment(bridge, tag)):
                        chain.append_rule(rule)

    def withdraw(self, bridge: str) -> None:
        """Delete our accepts for *bridge*, wherever they are."""
        with entered(self.netns):
            present = self._present()
        for family in present:
            if self._is_allowed(family, bridge):
                with self._changing(family) as chain:
                    for comment in set(_our_comments(chain, bridge)):
                        for rule in self._accepts(family, bridge, comment):
                            chain.delete_rule(rule)

    def lacking(self, bridge: str) -> Iterator[str]:
        """One sentence per legacy FORWARD chain that drops *bridge*'s packets, with the line that helps."""
        programs = {"ip": "iptables-legacy", "ip6": "ip6tables-legacy"}
        for family in self.dropping():
            if not self._is_allowed(family, bridge):
                lines = "; ".join(f"{programs[family]} -A FORWARD {option} {bridge} -j ACCEPT" for option in ("-i", "-o"))
                yield f"{programs[family]}'s FORWARD drops what {bridge} forwards; type: {lines}"

    def _is_allowed(self, family: str, bridge: str) -> bool:
        with entered(self.netns), doing(f"read the legacy {family} tables"):
            chain = self._forward(family)
            chain.table.refresh()
            return any(_our_comments(chain, bridge))

    @staticmethod
    def _present() -> tuple[str, ...]:
        """Families with a legacy filter table; only asking iptables would make one."""
        names = {"ip": "ip_tables_names", "ip6": "ip6_tables_names"}
        found = []
        for family, name in names.items():
            file = Path("/proc/thread-self/net") / name
            if file.exists() and "filter" in file.read_text().split():
                found.append(family)
        return tuple(found)

    @staticmethod
    def _forward(family: str) -> Any:
        import iptc  # 90 ms of imports, only where legacy tables are

        table = iptc.Table(iptc.Table.FILTER) if family == "ip" else iptc.Table6(iptc.Table6.FILTER)
        return iptc.Chain(table, "FORWARD")

    def _policy(self, family: str) -> str:
        with doing(f"read the legacy {family} tables"):
            chain = self._forward(family)
            chain.table.refresh()
            return str(chain.get_policy().name)

    @staticmethod
    def _accepts(family: str, bridge: str, comment: str) -> Iterator[Any]:
        import iptc

        for direction in ("in_interface", "out_interface"):
            rule = iptc.Rule() if family == "ip" else iptc.Rule6()
            setattr(rule, direction, bridge)
            rule.create_match("comment").comment = comment
            rule.target = rule.create_target("ACCEPT")
            yield rule

    @contextmanager
    def _changing(self, family: str) -> Iterator[Any]:
        """The FORWARD chain, to change under the lock; one commit at the end."""
        import iptc

        with entered(self.netns), doing(f"change the legacy {family} tables"), _xtables_lock():
            chain = self._forward(family)
            table = chain.table
            try:
                table.autocommit = False
                table.refresh()
                yield chain
                table.commit()
            except (iptc.IPTCError, iptc.XTablesError) as error:
                raise KernelError(f"cannot change the legacy {family} tables: {error}") from error
            finally:
                table.autocommit = True


def _our_comments(chain: Any, bridge: str) -> Iterator[str]:
    """The comments of our rules for *bridge*: the tag, and last the bridge."""
    for match in (match for rule in chain.rules for match in rule.matches if match.name == "comment"):
        comment = match.comment.strip('"')
        tag, _, link = comment.partition(" forward ")
        if tag.split(":", 1)[0] == "netlib" and link == bridge:
            yield comment


@contextmanager
def _xtables_lock() -> Iterator[None]:
    fd = os.open(_XTABLES_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
