"""The nftables backend: applies objects by one transaction in the table ``inet netlib`` of one netns.

One rule: the transaction is first sent without reading the table. When the kernel refuses it (an entry has another value, or is
gone already), the table is read and the exact difference is sent instead, again when another program changes it in between.
"""

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from netlib.errors import Conflict, FeatureMissing, KernelError, NetlibError, ObjectMissing, TeardownError
from netlib.firewall.backend import RuleEvents, Tagged
from netlib.firewall.dnstable import DnsTable
from netlib.firewall.foreign import allowance_commands, explained_allowance, foreign_tables, lacking, our_rules
from netlib.firewall.legacy import LegacyTables
from netlib.firewall.libnftables import Nft, keeping, nft
from netlib.firewall.members import MemberTable
from netlib.firewall.objects import (
    Allowance,
    ApartBridge,
    BridgedNetwork,
    ContainerSubnet,
    DnsRedirect,
    FirewallBase,
    PortCondition,
)
from netlib.firewall.ruleset import (
    APART_SETS,
    DNS_TABLE,
    MAPS,
    NETWORK_SETS,
    SETS,
    TABLE,
    Element,
    add_elements,
    base_commands,
    base_comments,
    chain_commands,
    commands,
    delete_elements,
    elements,
    own_chains,
)
from netlib.firewall.spoofing import PortMacs
from netlib.kernel.handle import Kernel
from netlib.model import NetnsRef
from netlib.plan import KernelObject

_ATTEMPTS = 4  # the first reads nothing; each later one because another writer was faster
_PROTOCOLS = {"6": "tcp", "17": "udp", "132": "sctp"}

Held = dict[tuple[str, ...], tuple[tuple[str, ...], str]]
"""The entries of one set or map: value and comment by key."""


class Nftables:
    """The firewall of one netns."""

    name = "nftables"
    user_rules = "chain user of the nftables table inet netlib"

    def __init__(self, kernel: Kernel, netns: NetnsRef) -> None:
        self.netns = netns
        self._kernel = kernel
        self._held: dict[str, Held] = {}
        self._held_generation = -1

    @property
    def nft(self) -> Nft:
        """The conversation, opened at first use; ObjectMissing when the netns is gone."""
        return nft(self._kernel, self.netns)

    @property
    def _dns(self) -> DnsTable:
        return self._kernel.kept(self.netns, DnsTable)

    def close(self) -> None:
        """Nothing to close: the conversations are the handle's."""

    @staticmethod
    def commands(item: KernelObject) -> Sequence[str]:
        """The ``nft`` command lines that make *item*."""
        return commands(item)

    def allowance_commands(self, item: KernelObject) -> Sequence[str]:
        """The ``nft`` command lines for the foreign chains of now that drop by default; a comment where there are none."""
        assert isinstance(item, Allowance)
        return list(explained_allowance(foreign_tables(self.nft), item.subject))

    @staticmethod
    def tables() -> tuple[KernelObject, ...]:
        """The table of IP, and the two of the bridge family."""
        return (FirewallBase(), MemberTable(), PortMacs())

    @staticmethod
    def events() -> RuleEvents:
        """nftables' events of this thread's netns."""
        from netlib.firewall.nft_events import NftEvents  # netlibd alone listens

        return NftEvents()

    @staticmethod
    def keeping() -> AbstractContextManager[None]:
        """Keep libnftables' conversations: closing one takes some 10 ms."""
        return keeping()

    def ensure(self, groups: Mapping[str, Sequence[KernelObject]]) -> None:
        """Apply the objects of all *groups* in one transaction, all or none; entries get their group's tag as a comment.

        The redirection to a resolver, alone in its netns, is a transaction of its own.
        """
        objects = [item for group in groups.values() for item in group]
        try:
            self._transact(lambda exact: self._ensure_commands(groups, exact), f"set up {_names(objects)}")
        except ObjectMissing as error:
            if not any(isinstance(item, FirewallBase) for item in objects):
                raise
            # The table is made in this transaction: the kernel lacks an expression or a chain type.
            raise FeatureMissing(f"this kernel lacks a part of nf_tables (nat, masq, fib, ct): {error}", error.errno) from error
        for tag, group in groups.items():
            for item in group:
                if isinstance(item, Allowance):
                    LegacyTables(self.netns).allow(item.subject, tag)
                elif isinstance(item, DnsRedirect):
                    self._dns.ensure(item)

    def remove(self, objects: Sequence[KernelObject]) -> None:
        """Remove all *objects* in one transaction; one that is gone already, with its netns or not, is no error."""
        try:
            with self._kernel.entered(self.netns):
                pass
        except ObjectMissing:
            return
        failures: list[NetlibError] = []
        try:
            self._transact(lambda exact: self._removal_commands(objects, exact), f"remove {_names(objects)}")
        except NetlibError as error:
            failures.append(error)
        for item in objects:
            try:
                if isinstance(item, Allowance):
                    LegacyTables(self.netns).withdraw(item.subject)
                elif isinstance(item, DnsRedirect):
                    self._dns.remove()
            except NetlibError as error:
                failures.append(error)
        if failures:
            raise failures[0] if len(failures) == 1 else TeardownError(failures)

    def drift(self, item: KernelObject) -> str | None:
        """How the kernel differs from *item*, or None."""
        match item:
            case FirewallBase():
                return self._base_drift()
            case DnsRedirect():
                return self._dns_drift(item)
            case ContainerSubnet() | PortCondition():
                return self._chain_drift(item)
            case Allowance():
                problems = [*lacking(foreign_tables(self.nft), item.subject), *LegacyTables(self.netns).lacking(item.subject)]
                return "; ".join(problems) or None
        wanted = elements(item)
        try:
            wrong = [text for element in wanted if (text := self._element_drift(element))]
            wrong += [f"{_spelled(element)} should not be there" for element in self._stale(item, wanted)]
        except ObjectMissing:
            return f"nftables table {TABLE} is gone"
        return "; ".join(wrong) or None

    def list_ours(self) -> tuple[Tagged, ...]:
        """Everything in the kernel that has a tag of netlib's: entries of our table, rules in foreign chains."""
        found = []
        for holder in (*SETS, *MAPS):
            try:
                held = self._entries(holder)
            except ObjectMissing:
                continue
            for key, (value, comment) in held.items():
                element = Element(holder, key, value)
                what, removal = f"{TABLE} {_spelled(element)}", next(delete_elements([element]))
                found.append(Tagged(comment, what, removal, (*key, *value)))
        for rule in our_rules(foreign_tables(self.nft)):
            tag = rule.comment.partition(" ")[0]
            found.append(Tagged(tag, f"{rule.chain} rule {rule.comment!r}", f"delete rule {rule.chain} handle {rule.handle}"))
        return tuple(found)

    def discard(self, found: Iterable[Tagged]) -> None:
        """Delete what :meth:`list_ours` found, by a transaction each: something that is gone by now is no error."""
        for item in found:
            try:
                self.nft.run(item.removal, f"discard {item.what}")
            except ObjectMissing:
                continue

    def refuse_other_store(self, tag: str) -> None:
        """Raise Conflict when the table has a bridge of another store than that of *tag*."""
        ours = tag.rpartition(":")[0]
        for bridge, its_tag in self.bridges().items():
            other = its_tag.rpartition(":")[0]
            if ours and other and other != ours:
                raise Conflict(
                    f"the firewall of this host holds bridge {bridge} of another netlib store ({other}); use that one's "
                    f"--state-dir, or, if it is lost, `netlib system reset --lost --store {other.removeprefix('netlib:')}`"
                )

    def bridges(self) -> dict[str, str]:
        """The bridges in our table, each with the tag of its network."""
        return {bridge: comment for (bridge,), (_, comment) in self._entries_or_none("bridges").items()}

    def listing(self) -> str:
        """Our table as ``nft`` shows it to a person; empty when there is none."""
        try:
            return self.nft.text(f"list table {TABLE}")
        except ObjectMissing:
            return ""

    # --- transactions ----------------------------------------------------------------------------------------------

    def _transact(self, script: Callable[[bool], list[str]], action: str) -> None:
        for attempt in range(_ATTEMPTS):
            commands = script(attempt > 0)
            if not commands:
                return
            try:
                self.nft.run("\n".join(commands), action)
                return
            except FeatureMissing:
                raise
            except KernelError:
                if attempt == _ATTEMPTS - 1:
                    raise

    def _ensure_commands(self, groups: Mapping[str, Sequence[KernelObject]], exact: bool) -> list[str]:
        objects = [item for group in groups.values() for item in group]
        commands: list[str] = []
        has_base = any(isinstance(item, FirewallBase) for item in objects)
        if has_base and self._base_drift() is not None:
            commands += base_commands()
        for tag, group in groups.items():  # before all elements that jump to them
            for item in group:
                commands += chain_commands(item, tag)
        for tag, group in groups.items():
            wanted = [element for item in group for element in elements(item)]
            stale = [element for item in group for element in self._stale(item, elements(item))]
            if exact:
                replaced, wanted = self._difference(wanted, missing_table_is_empty=has_base)
                stale += replaced
            commands += [*delete_elements(stale), *add_elements(wanted, tag)]
        commands += self._allowance_commands(groups)
        return commands

    def _removal_commands(self, objects: Sequence[KernelObject], exact: bool) -> list[str]:
        unwanted = list(dict.fromkeys(element for item in objects for element in elements(item)))
        if exact:
            unwanted = [element for element in unwanted if element.key in self._entries_or_none(element.holder)]
        commands = list(delete_elements(unwanted))
        allowances = {item.subject for item in objects if isinstance(item, Allowance)}
        if allowances:
            tables = foreign_tables(self.nft)
            commands += [
                f"delete rule {rule.chain} handle {rule.handle}"
                for subject in sorted(allowances)
                for rule in our_rules(tables, subject)
            ]
        chains = [name for item in objects for name in own_chains(item)]
        if exact and chains:
            present = self._chains()
            chains = [name for name in chains if name in present]
        commands += [f"delete chain {TABLE} {name}" for name in chains]
        for item in objects:
            if isinstance(item, FirewallBase) and self._is_free_of_user_rules():
                commands += [f"add table {TABLE}", f"delete table {TABLE}"]
        return commands

    def _allowance_commands(self, groups: Mapping[str, Sequence[KernelObject]]) -> Iterator[str]:
        subjects = [(item.subject, tag) for tag, group in groups.items() for item in group if isinstance(item, Allowance)]
        if subjects:
            tables = foreign_tables(self.nft)
            for subject, tag in subjects:
                yield from allowance_commands(tables, subject, tag)

    def _difference(self, wanted: Iterable[Element], *, missing_table_is_empty: bool) -> tuple[list[Element], list[Element]]:
        """The elements to delete first because they have another value, and the elements to add then."""
        replaced, added = [], []
        for element in wanted:
            try:
                held = self._entries(element.holder)
            except ObjectMissing:
                if not missing_table_is_empty:
                    raise ObjectMissing(
                        f"nftables table {TABLE} is gone from {self.netns.label}: "
                        "another program deleted it, repair restores it"
                    ) from None
                held = {}
            found = held.get(element.key)
            if found is not None and found[0] != element.value:
                replaced.append(element)
            if found is None or found[0] != element.value:
                added.append(element)
        return replaced, added

    def _stale(self, item: KernelObject, wanted: Sequence[Element]) -> list[Element]:
        """Entries of *item*'s bridge that are not *wanted*: they are from earlier settings."""
        if not isinstance(item, BridgedNetwork | ApartBridge):
            return []
        return [
            Element(holder, key)
            for holder in (NETWORK_SETS if isinstance(item, BridgedNetwork) else APART_SETS)
            for key in self._entries_or_none(holder)
            if key[-1] == item.bridge and Element(holder, key) not in wanted
        ]

    # --- reading ---------------------------------------------------------------------------------------------------

    def _entries(self, holder: str) -> Held:
        """The entries of one of our sets or maps, read once per generation of the ruleset; ObjectMissing without the table."""
        generation = self.nft.generation()
        if generation != self._held_generation:
            self._held, self._held_generation = {}, generation
        if holder not in self._held:
            self._held[holder] = parsed_entries(self.nft.listing(f"list {'set' if holder in SETS else 'map'} {TABLE} {holder}"))
        return self._held[holder]

    def _entries_or_none(self, holder: str) -> Held:
        try:
            return self._entries(holder)
        except ObjectMissing:
            return {}

    def _element_drift(self, element: Element) -> str | None:
        found = self._entries(element.holder).get(element.key)
        if found is None:
            return f"{_spelled(element)} is missing"
        if found[0] != element.value:
            return f"{_spelled(element)} leads to {' . '.join(found[0])} instead"
        return None

    def _base_drift(self) -> str | None:
        try:
            listing = self.nft.listing(f"list table {TABLE}", elements=False)
        except ObjectMissing:
            return f"nftables table {TABLE} is missing"
        return base_difference(listing)

    def _chains(self) -> set[str]:
        """The names of the chains in our table."""
        try:
            return {
                entry["chain"]["name"] for entry in self.nft.listing(f"list table {TABLE}", elements=False) if "chain" in entry
            }
        except ObjectMissing:
            return set()

    def _chain_drift(self, item: KernelObject) -> str | None:
        for name, rules in own_chains(item).items():
            try:
                found = [entry for entry in self.nft.listing(f"list chain {TABLE} {name}") if "rule" in entry]
            except ObjectMissing:
                return f"nftables chain {TABLE} {name} is missing"
            if len(found) != len(rules):
                return f"nftables chain {TABLE} {name} has other rules than ours"
        return None

    def _dns_drift(self, item: DnsRedirect) -> str | None:
        try:
            rules = [entry["rule"] for entry in self.nft.listing(f"list table {DNS_TABLE}") if "rule" in entry]
        except ObjectMissing:
            return f"nftables table {DNS_TABLE} is missing in {self.netns.label}"
        target = {"dnat": {"addr": str(item.address), "port": item.port}}
        if len(rules) == 2 and all(rule["expr"][-1] == target for rule in rules):
            return None
        return f"nftables table {DNS_TABLE} in {self.netns.label} does not lead to {item.address} port {item.port}"

    def _is_free_of_user_rules(self) -> bool:
        """Whether the chain ``user`` is empty: the rules in it are a person's, and not ours to delete."""
        try:
            return not any("rule" in entry for entry in self.nft.listing(f"list chain {TABLE} user"))
        except ObjectMissing:
            return True


def base_difference(listing: Sequence[dict[str, Any]]) -> str | None:
    """How a listing of our table differs from an intact one of this version, or None. Pure."""
    present = {entry[kind]["name"] for entry in listing for kind in ("set", "map", "chain") if kind in entry}
    missing = [name for name in (*SETS, *MAPS, "user", *base_comments()) if name not in present]
    if missing:
        return f"nftables table {TABLE} lacks {', '.join(missing)}"
    for chain, comments in base_comments().items():
        rules = [entry["rule"] for entry in listing if "rule" in entry and entry["rule"]["chain"] == chain]
        if [rule.get("comment") for rule in rules] != comments:
            return f"nftables chain {TABLE} {chain} has other rules than ours"
    return None


def parsed_entries(listing: Sequence[dict[str, Any]]) -> Held:
    """The entries in the JSON listing of one set or map. Pure."""
    held: Held = {}
    for entry in listing:
        body = entry.get("set") or entry.get("map") or {}
        for item in body.get("elem", ()):
            key, value = (item[0], item[1]) if "map" in body else (item, None)
            comment = ""
            if isinstance(key, dict) and "elem" in key:
                key, comment = key["elem"]["val"], key["elem"].get("comment", "")
            parts = _parts(key)
            types = body["type"] if isinstance(body["type"], list) else [body["type"]]
            names = tuple(
                _PROTOCOLS.get(part, part) if kind == "inet_proto" else part for kind, part in zip(types, parts, strict=True)
            )
            held[names] = (_parts(value) if value is not None else (), comment)
    return held


def _parts(value: Any) -> tuple[str, ...]:
    if isinstance(value, dict) and "concat" in value:
        return tuple(part for piece in value["concat"] for part in _parts(piece))
    if isinstance(value, dict) and (verdict := next((word for word in ("goto", "jump") if word in value), "")):
        return (f"{verdict} {value[verdict]['target']}",)
    if isinstance(value, dict) and "prefix" in value:
        return (f"{_canonical(value['prefix']['addr'])}/{value['prefix']['len']}",)
    return (_canonical(str(value)),)


def _canonical(text: str) -> str:
    """*text* as Python writes it: nft writes IPv4-mapped IPv6 addresses otherwise."""
    return str(ipaddress.ip_address(text)) if text.startswith("::ffff:") else text


def _spelled(element: Element) -> str:
    return f"{element.holder} {' . '.join(element.key)}"


def _names(objects: Sequence[KernelObject]) -> str:
    shown = ", ".join(item.key.name for item in objects[:3])
    return f"firewall {shown}" + (f" and {len(objects) - 3} more" if len(objects) > 3 else "")
