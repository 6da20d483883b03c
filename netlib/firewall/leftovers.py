"""Removing chains and rules that other programs made for a container, when netlib detaches the container.

nftables lists those of iptables-nft; iptables-legacy has tables of its own. One rule: a missing rule is no error, and only
rules that match exactly are removed.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from netlib.errors import ObjectMissing
from netlib.firewall.legacy import LegacyTables
from netlib.firewall.libnftables import Nft, nft
from netlib.kernel.handle import Kernel
from netlib.model import HOST, IPAddress

_ATTEMPTS = 4  # each later one because another writer was faster
_FAMILIES = ("ip", "ip6")
_FIELDS = {"saddr", "daddr"}

Listing = list[dict[str, Any]]


def forget_chains(kernel: Kernel, table: str, names: Collection[str]) -> None:
    """Remove iptables' chains *names*, and the rules that jump to them, from a *table* (``nat``), of both families."""
    for family in _FAMILIES:
        _change(nft(kernel), f"{family} {table}", lambda place, listing: _without_chains(place, listing, names))
    LegacyTables(HOST).forget_chains(table, names)


def forget_rules(kernel: Kernel, table: str, chains: Collection[str], is_meant: Callable[[str], bool]) -> None:
    """Remove the rules whose comment *is_meant* from *chains* of an nftables *table* (``ip cni_hostport``)."""

    def commands(place: str, listing: Listing) -> Iterator[str]:
        for rule in _rules(listing):
            if rule["chain"] in chains and is_meant(rule.get("comment", "")):
                yield f"delete rule {place} {rule['chain']} handle {rule['handle']}"

    _change(nft(kernel), table, commands)


def forget_accepts(kernel: Kernel, chain: str, addresses: Collection[IPAddress]) -> None:
    """Remove the rules of iptables' *chain* in ``filter`` that accept packets from or to one of *addresses*."""
    texts = {str(address) for address in addresses}

    def commands(place: str, listing: Listing) -> Iterator[str]:
        for rule in _rules(listing):
            if rule["chain"] == chain and _accepted_address(rule) in texts:
                yield f"delete rule {place} {chain} handle {rule['handle']}"

    for family in _FAMILIES:
        _change(nft(kernel), f"{family} filter", commands)
    hosts = [f"{address}/{address.max_prefixlen}" for address in addresses]
    answers = [f"{chain} -d {host} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT" for host in hosts]
    LegacyTables(HOST).forget_rules({*answers, *(f"{chain} -s {host} -j ACCEPT" for host in hosts)})


def _change(conversation: Nft, place: str, commands: Callable[[str, Listing], Iterator[str]]) -> None:
    for _ in range(_ATTEMPTS):
        try:
            listing = conversation.listing(f"list table {place}", elements=False)
        except ObjectMissing:
            return
        found = list(commands(place, listing))
        if not found:
            return
        try:
            conversation.run("\n".join(found), f"clear table {place}")
        except ObjectMissing:  # another program has removed a part: read again
            continue


def _without_chains(place: str, listing: Listing, names: Collection[str]) -> Iterator[str]:
    present = [name for entry in listing if "chain" in entry and (name := entry["chain"]["name"]) in names]
    for rule in _rules(listing):
        if rule["chain"] not in present and any(_target(statement) in present for statement in rule["expr"]):
            yield f"delete rule {place} {rule['chain']} handle {rule['handle']}"
    for name in present:
        yield f"flush chain {place} {name}"
        yield f"delete chain {place} {name}"


def _rules(listing: Listing) -> Iterator[dict[str, Any]]:
    return (entry["rule"] for entry in listing if "rule" in entry)


def _target(statement: Mapping[str, Any]) -> str:
    verdict = statement.get("jump") or statement.get("goto") or {}
    return str(verdict.get("target", ""))


def _accepted_address(rule: Mapping[str, Any]) -> str:
    """The address that is the only condition of an accepting rule; "" for any other rule."""
    *conditions, verdict = rule["expr"]
    matches = [statement["match"] for statement in conditions if "match" in statement]
    if "accept" not in verdict or len(matches) != 1:
        return ""
    left = matches[0]["left"].get("payload", {})
    return str(matches[0]["right"]) if left.get("field") in _FIELDS and matches[0]["op"] == "==" else ""
