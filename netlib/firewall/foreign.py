"""Forward hooks of others: which of them drop packets by default, and where a rule of ours can accept packets before that.

An accept in one table does not override a drop in another, so a foreign chain with policy ``drop`` (Docker's, ufw's, an
administrator's) stops our bridges' packets whatever our own table says. One rule: only the default is overridden. Our rule is
put behind all rules of others, before the final drop. Where another program owns and rewrites the chain (firewalld), it is left
alone, and a person is told the line to type instead.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from netlib.errors import ObjectMissing
from netlib.firewall.libnftables import Nft, nft
from netlib.firewall.objects import MARKED
from netlib.firewall.ruleset import TABLE, allowance_rules
from netlib.kernel.handle import Kernel

_NEUTRAL = {"counter", "log"}
_DROPS = {"drop", "reject"}
_XT_DROPS = {"DROP", "REJECT"}
_ADDRESSABLE = re.compile(r"(ip|ip6|inet) [A-Za-z_][A-Za-z0-9_.-]*")  # other names cannot be written in nft's language


class ForeignRule(NamedTuple):
    """A rule of ours in a chain of others."""

    chain: str  # "ip filter FORWARD"
    handle: int
    comment: str


class ForeignHook(NamedTuple):
    """A foreign chain that drops by default, and the place for a rule of ours in it."""

    chain: str  # where to accept packets: "ip filter DOCKER-USER"
    before: int  # handle of the rule to insert ours before; 0: append it
    owner: str  # a program that owns and rewrites the chain, or ""
    known: frozenset[str]  # words of its table's rules, among them link names


class _Chain(NamedTuple):
    name: str
    base: bool  # hooked into forward
    policy: str
    rules: tuple[dict[str, Any], ...]


def foreign_tables(conversation: Nft) -> dict[str, list[dict[str, Any]]]:
    """Every foreign table with a filter chain in the forward hook, listed; keys as ``"ip filter"``."""
    chains = [item["chain"] for item in conversation.listing("list chains") if "chain" in item]
    names = {f"{chain['family']} {chain['table']}" for chain in chains if chain.get("hook") == "forward"}
    found = {}
    for name in sorted(names - {TABLE}):
        if _ADDRESSABLE.fullmatch(name):
            with suppress(ObjectMissing):  # its owner deleted it meanwhile
                found[name] = conversation.listing(f"list table {name}", elements=False)
    return found


def has_firewalld(kernel: Kernel) -> bool:
    """Whether firewalld has its table here. To ask for one table, there or not, takes 0.1 ms; to list all takes 10."""
    try:
        nft(kernel).listing("list table inet firewalld", elements=False)
    except ObjectMissing:
        return False
    return True


def hooks(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[ForeignHook, ...]:
    """The places where an accept of ours is needed, one per foreign chain that drops by default. Pure."""
    return tuple(hook for name, listing in tables.items() for hook in _table_hooks(name, listing))


def our_rules(tables: Mapping[str, Sequence[Mapping[str, Any]]], subject: str = "") -> tuple[ForeignRule, ...]:
    """Our rules in foreign tables: those for *subject*, or all. Pure."""
    found = []
    for name, listing in tables.items():
        for rule in (item["rule"] for item in listing if "rule" in item):
            comment = rule.get("comment", "")
            ours, _, link = comment.partition(" forward ")
            if ours.split(":", 1)[0] == "netlib" and link and subject in ("", link):
                found.append(ForeignRule(f"{name} {rule['chain']}", rule["handle"], comment))
    return tuple(found)


def allowance_commands(tables: Mapping[str, Sequence[Mapping[str, Any]]], subject: str, tag: str) -> Iterator[str]:
    """The commands that accept *subject*'s packets in every foreign hook that does not yet. Pure."""
    present = {rule.chain for rule in our_rules(tables, subject)}
    for hook in hooks(tables):
        if not hook.owner and hook.chain not in present:
            yield from _accepts(hook, subject, tag)


def explained_allowance(tables: Mapping[str, Sequence[Mapping[str, Any]]], subject: str) -> Iterator[str]:
    """The commands that accept *subject*'s packets in foreign hooks, also in those that do so already; else a comment. Pure."""
    found = hooks(tables)
    for hook in found:
        lines = [f"nft {shlex.quote(line)}" for line in _accepts(hook, subject, "")]
        yield from [f"# left to {hook.owner}: {line}" for line in lines] if hook.owner else lines
    if not found:
        yield f"# no other program drops what {named(subject)} by default, so no rule of ours is needed among theirs"


def lacking(tables: Mapping[str, Sequence[Mapping[str, Any]]], subject: str) -> Iterator[str]:
    """One sentence per foreign hook that drops *subject*'s packets, with the line that helps. Pure."""
    present = {rule.chain for rule in our_rules(tables, subject)}
    for hook in hooks(tables):
        if hook.owner and subject == MARKED:  # a person configures which addresses it accepts
            continue
        if hook.owner and subject not in hook.known:
            yield f"{hook.owner} drops what {subject} forwards; type: firewall-cmd --zone=trusted --add-interface={subject}"
        elif not hook.owner and hook.chain not in present:
            lines = "; ".join(f"nft '{line}'" for line in _accepts(hook, subject, ""))
            yield f"chain {hook.chain} drops what {named(subject)}; type: {lines}"


def named(subject: str) -> str:
    """*subject* and the verb "forward", for a sentence."""
    return "CNI containers forward" if subject == MARKED else f"{subject} forwards"


def _accepts(hook: ForeignHook, subject: str, tag: str) -> Iterator[str]:
    verb, place = ("insert", f" position {hook.before}") if hook.before else ("add", "")
    for rule in allowance_rules(subject, tag):
        yield f"{verb} rule {hook.chain}{place} {rule}"


def _table_hooks(table: str, listing: Sequence[Mapping[str, Any]]) -> Iterator[ForeignHook]:
    rules = [item["rule"] for item in listing if "rule" in item]
    chains = {
        chain["name"]: _Chain(
            chain["name"],
            chain.get("hook") == "forward" and chain.get("type") == "filter",
            chain.get("policy", ""),
            tuple(rule for rule in rules if rule["chain"] == chain["name"]),
        )
        for chain in (item["chain"] for item in listing if "chain" in item)
    }
    owner = "firewalld" if table.split()[1] == "firewalld" else ""
    for chain in (chain for chain in chains.values() if chain.base):
        final = _final(chain, chains)
        if chain.policy == "drop" or final:
            target, before = chain.name, final
            if chain.name == "FORWARD" and "DOCKER-USER" in chains:  # Docker reorders FORWARD, and leaves this one alone
                target, before = "DOCKER-USER", _closing_return(chains["DOCKER-USER"])
            yield ForeignHook(f"{table} {target}", before, owner, frozenset(_strings(rules)))


def _final(chain: _Chain, chains: Mapping[str, _Chain], depth: int = 0) -> int:
    """The handle of the last rule of *chain* if that drops every packet which reaches it, else 0."""
    if not chain.rules or depth > 16:  # the kernel's own limit on jumps
        return 0
    verdict = _unconditional(chain.rules[-1])
    target = chains.get(verdict.removeprefix("to "))
    drops = verdict in _DROPS or (target is not None and _final(target, chains, depth + 1) != 0)
    return int(chain.rules[-1]["handle"]) if drops else 0


def _closing_return(chain: _Chain) -> int:
    last = chain.rules[-1] if chain.rules else None
    return int(last["handle"]) if last is not None and _unconditional(last) == "return" else _final(chain, {})


def _unconditional(rule: Mapping[str, Any]) -> str:
    """The verdict of a rule without a condition: ``drop``, ``reject``, ``return``, ``to CHAIN``, or "" for any other rule."""
    verdict = ""
    for statement in rule.get("expr", ()):
        ((kind, body),) = statement.items()
        if kind in ("jump", "goto"):
            verdict = f"to {body['target']}"
        elif kind in _DROPS or kind == "return":
            verdict = kind
        elif kind == "xt" and body.get("name") in _XT_DROPS:
            verdict = "drop"
        elif kind not in _NEUTRAL and not (kind == "xt" and body.get("name") == "comment"):
            return ""
    return verdict


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)
