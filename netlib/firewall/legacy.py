"""Legacy xtables (``iptables-legacy``), which filter packets although nftables does not list them.

One rule: python-iptables takes no lock and replaces whole tables, so every change here holds the lock that iptables itself
takes, from reading a table to committing it.
"""

import os
import subprocess
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from netlib.errors import DeadlineExceeded, FeatureMissing, KernelError
from netlib.firewall.foreign import named
from netlib.firewall.objects import MARK, MARKED
from netlib.firewall.ruleset import allowance_comment
from netlib.kernel.netns import entered
from netlib.kernel.translate import doing
from netlib.kernel.waiting import Waiting
from netlib.model import NetnsRef

_XTABLES_LOCK = Path("/run/xtables.lock")
_LOCK_SECONDS = 10.0
_PROGRAMS = {"ip": "iptables-legacy", "ip6": "ip6tables-legacy"}
_MASKED = f"{MARK}/{MARK}"
_NAMES = {"ip": "ip_tables_names", "ip6": "ip6_tables_names"}


class LegacyTables:
    """The legacy FORWARD chains of one netns, and our accepts in them."""

    def __init__(self, netns: NetnsRef) -> None:
        self.netns = netns

    def allow(self, subject: str, tag: str) -> None:
        """Append accepts for *subject* to each legacy FORWARD chain that drops by default."""
        for family in self._present():
            with self._forward(family) as chain:
                if chain.get_policy().name == "DROP" and not any(_our_comments(chain, subject)):
                    for rule in _accepts(family, subject, allowance_comment(subject, tag)):
                        chain.append_rule(rule)

    def withdraw(self, subject: str) -> None:
        """Delete our accepts for *subject*, wherever they are."""
        for family in self._present():
            with self._forward(family) as chain:
                for comment in set(_our_comments(chain, subject)):
                    for rule in _accepts(family, subject, comment):
                        chain.delete_rule(rule)

    def lacking(self, subject: str) -> Iterator[str]:
        """One sentence per legacy FORWARD chain that drops *subject*'s packets, with the command that helps."""
        for family in self._present():
            with self._forward(family) as chain:
                closed = chain.get_policy().name == "DROP" and not any(_our_comments(chain, subject))
            if closed:
                lines = "; ".join(f"{_PROGRAMS[family]} -A FORWARD {match} -j ACCEPT" for match in _matches(subject))
                yield f"{_PROGRAMS[family]}'s FORWARD drops what {named(subject)}; type: {lines}"

    def forget_chains(self, table: str, names: Collection[str]) -> None:
        """Remove the chains *names*, and the rules that jump to them, from a *table* (``nat``)."""
        for family in self._present(table):
            saved = self._saved(family, table)
            present = [name for name in names if any(line.startswith(f":{name} ") for line in saved)]
            leading = [line for line in saved if line.startswith("-A ") and line.split()[-1] in present]
            flushed = [f"-F {name}" for name in present]
            self._restore(
                family, table, [*flushed, *(f"-D {line[3:]}" for line in leading), *(f"-X {name}" for name in present)]
            )

    def forget_rules(self, rules: Collection[str]) -> None:
        """Remove *rules* from ``filter``, each as iptables-save writes it without ``-A``."""
        for family in self._present():
            present = [line[3:] for line in self._saved(family, "filter") if line.startswith("-A ") and line[3:] in rules]
            self._restore(family, "filter", [f"-D {rule}" for rule in present])

    # python-iptables cannot read rules of an extension that it does not find, and misses some that are installed. So rules of
    # others are read and changed by iptables' own programs.

    def _saved(self, family: str, table: str) -> list[str]:
        return self._run(f"{_PROGRAMS[family]}-save", "-t", table).splitlines()

    def _restore(self, family: str, table: str, lines: Sequence[str]) -> None:
        """Make changes in one transaction, under iptables' own lock."""
        if lines:
            script = "\n".join([f"*{table}", *lines, "COMMIT", ""])
            self._run(f"{_PROGRAMS[family]}-restore", "--noflush", "--wait", str(int(_LOCK_SECONDS)), script=script)

    def _run(self, *command: str, script: str = "") -> str:
        with entered(self.netns):
            try:
                done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=2 * _LOCK_SECONDS)
            except FileNotFoundError:
                raise FeatureMissing(
                    f"{command[0]} is not installed, and this host has legacy tables; install iptables"
                ) from None
            except subprocess.TimeoutExpired:
                raise DeadlineExceeded(f"{command[0]} did not end in time; try again") from None
        if done.returncode:
            raise KernelError(f"{command[0]} failed: {done.stderr.strip()}")
        return done.stdout

    def _present(self, table: str = "filter") -> tuple[str, ...]:
        """The families that have the legacy table, from two files: iptables would make the tables when it is asked.

        In a user namespace the files cannot be read, and no family counts as having the table.
        """
        found = []
        with entered(self.netns), doing("look for legacy tables"):
            for family, name in _NAMES.items():
                with suppress(FileNotFoundError, PermissionError):
                    if table in (Path("/proc/thread-self/net") / name).read_text().split():
                        found.append(family)
        return tuple(found)

    @contextmanager
    def _forward(self, family: str) -> Iterator[Any]:
        """The present FORWARD chain, to be read and changed under the lock; changes are committed at the end.

        Readers hold the lock as well: python-iptables has one table object for all threads of the process.
        """
        import iptc  # takes 90 ms, and only a host with legacy tables needs it

        with entered(self.netns), doing(f"use the tables of {_PROGRAMS[family]}"), _xtables_lock():
            table = iptc.Table(iptc.Table.FILTER) if family == "ip" else iptc.Table6(iptc.Table6.FILTER)
            table.autocommit = False
            try:
                table.refresh()
                yield iptc.Chain(table, "FORWARD")
                table.commit()
            except (iptc.IPTCError, iptc.XTablesError) as error:
                raise KernelError(f"cannot use the tables of {_PROGRAMS[family]}: {error}") from error
            finally:
                table.autocommit = True


def _matches(subject: str) -> tuple[str, ...]:
    return (f"-m mark --mark {_MASKED}",) if subject == MARKED else (f"-i {subject}", f"-o {subject}")


def _accepts(family: str, subject: str, comment: str) -> Iterator[Any]:
    import iptc

    for direction in ("",) if subject == MARKED else ("in_interface", "out_interface"):
        rule = iptc.Rule() if family == "ip" else iptc.Rule6()
        if direction:
            setattr(rule, direction, subject)
        else:
            rule.create_match("mark").mark = _MASKED
        rule.create_match("comment").comment = comment
        rule.target = rule.create_target("ACCEPT")
        yield rule


def _our_comments(chain: Any, subject: str) -> Iterator[str]:
    """The comments of our rules for *subject*: the tag, and last the subject."""
    for match in (match for rule in chain.rules for match in rule.matches if match.name == "comment"):
        comment = match.comment.strip('"')
        tag, _, link = comment.partition(" forward ")
        if tag.split(":", 1)[0] == "netlib" and link == subject:
            yield comment


@contextmanager
def _xtables_lock() -> Iterator[None]:
    """Hold the lock that every iptables program takes; DeadlineExceeded after ten seconds."""
    late = f"{_XTABLES_LOCK} is held by another program for {_LOCK_SECONDS:.0f} s; try again"
    waiting = Waiting(_XTABLES_LOCK, "changing foreign rules", _LOCK_SECONDS, lambda: late)
    fd = os.open(_XTABLES_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        waiting.flock(fd)
        yield
    finally:
        os.close(fd)
