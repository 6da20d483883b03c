"""Our nftables ruleset as text: the static table, and the entries of each firewall object.

Pure. One rule: the hooked chains never change; networks and ports are elements of sets and hash maps, so the thousandth
published port costs what the first did. A subnet of CNI networks has two small chains that elements jump to, for such subnets
may overlap, and intervals in a set may not. Every name that reaches nft's text is checked here.
"""

import hashlib
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

from netlib.errors import ConfigError
from netlib.firewall.objects import (
    MARK,
    MARKED,
    Allowance,
    ApartBridge,
    BridgedNetwork,
    ContainerSubnet,
    DnsRedirect,
    FirewallBase,
    ForwardedAddress,
    Masquerade,
    MasqueradedAddress,
    PacketMatch,
    PortCondition,
    PublishedPort,
)
from netlib.kernel.netns import command_in
from netlib.model import IPAddress, IPNetwork
from netlib.names import parse_subnet
from netlib.plan import KernelObject

TABLE = "inet netlib"
DNS_TABLE, DNS_CHAIN = "ip netlib_dns", "output"
NETWORK_SETS = ("bridges", "same", "internal", "open", "own4", "own6")
"""The sets to which a BridgedNetwork adds its bridge, as the last part of the key in each."""
APART_SETS = ("apart", "together")
"""The sets to which an ApartBridge adds its bridge, likewise."""

_IFNAME = re.compile(r"[A-Za-z0-9_.@+=-]{1,15}")
_TAG = re.compile(r"[A-Za-z0-9_.:-]{0,100}")

SETS = {
    "bridges": ("ifname",),
    "same": ("ifname", "ifname"),
    "internal": ("ifname",),
    "open": ("ifname",),
    "own4": ("ipv4_addr", "ifname"),
    "own6": ("ipv6_addr", "ifname"),
    "masquerade4": ("ipv4_addr", "ifname"),
    "masquerade6": ("ipv6_addr", "ifname"),
    "apart": ("ifname",),
    "together": ("ifname", "ifname"),
    "forwarded4": ("ipv4_addr",),
    "forwarded6": ("ipv6_addr",),
}
_SUBNET_SETS = ("own4", "own6", "masquerade4", "masquerade6")
MAPS = {
    "ports4": ("inet_proto", "inet_service"),
    "ports6": ("inet_proto", "inet_service"),
    "hostports4": ("ipv4_addr", "inet_proto", "inet_service"),
    "hostports6": ("ipv6_addr", "inet_proto", "inet_service"),
    "outward4": ("ipv4_addr",),
    "outward6": ("ipv6_addr",),
    "inward4": ("inet_proto", "ipv4_addr", "inet_service"),
    "inward6": ("inet_proto", "ipv6_addr", "inet_service"),
    "guarded4": ("inet_proto", "inet_service"),
    "guarded6": ("inet_proto", "inet_service"),
    "hostguarded4": ("ipv4_addr", "inet_proto", "inet_service"),
    "hostguarded6": ("ipv6_addr", "inet_proto", "inet_service"),
}
_VERDICT_MAPS = ("outward4", "outward6", "inward4", "inward6", "guarded4", "guarded6", "hostguarded4", "hostguarded6")

# The first rule is for a port on an address that the host no longer has: the address's new owner answers. Packets to fe80::/10
# cannot be forwarded, and those to ::1 the kernel does not forward.
_DNAT = (
    ("fib daddr type != local return", "not sent to the host"),
    ("ip daddr . meta l4proto . th dport vmap @hostguarded4", "port on one address with a condition"),
    ("ip6 daddr . meta l4proto . th dport vmap @hostguarded6", "IPv6 port on one address with a condition"),
    ("meta nfproto ipv4 meta l4proto . th dport vmap @guarded4", "port with a condition"),
    ("meta nfproto ipv6 meta l4proto . th dport vmap @guarded6", "IPv6 port with a condition"),
    ("dnat ip to ip daddr . meta l4proto . th dport map @hostports4", "port published on one address"),
    ("meta nfproto ipv4 dnat ip to meta l4proto . th dport map @ports4", "port published on every address"),
    ("ip6 daddr { ::1, fe80::/10 } return", "not forwardable"),
    ("dnat ip6 to ip6 daddr . meta l4proto . th dport map @hostports6", "IPv6 port published on one address"),
    ("meta nfproto ipv6 dnat ip6 to meta l4proto . th dport map @ports6", "IPv6 port published on every address"),
)

_SET_MARK = f"meta mark set meta mark or {MARK}"
_ANSWER = "ct state established,related ct direction reply"
_HAIRPIN = "ct status dnat meta l4proto { tcp, udp, sctp }"

# nft 1.0.6 takes no "dstnat" in an output chain, and lists the number as it is.
_CHAINS: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "raw_prerouting": (
        "type filter hook prerouting priority raw",
        (
            ('iifname != "lo" ip daddr 127.0.0.0/8 drop', "route_localnet must not open the host's loopback"),
            ('iifname != "lo" ip saddr 127.0.0.0/8 drop', "nobody else is the host's loopback"),
        ),
    ),
    # Before the input chains of others: of an internal network's packets those see only the ones to the bridge itself.
    "input": (
        "type filter hook input priority raw",
        (
            ("iifname @bridges icmp type redirect drop", "no member is the host's router"),
            ("iifname != @internal accept", "not from an internal network"),
            # Where the host asked from 127.0.0.1, or from another address than the bridge's.
            (f"ip saddr . iifname @own4 {_ANSWER} accept", "answers to the host"),
            (f"ip6 saddr . iifname @own6 {_ANSWER} accept", "IPv6 answers to the host"),
            ("fib daddr . iif type != { local, broadcast, multicast } drop", "internal: the host's other addresses"),
        ),
    ),
    "prerouting": ("type nat hook prerouting priority dstnat", _DNAT),
    "output": ("type nat hook output priority -100", _DNAT),
    "postrouting": (
        "type nat hook postrouting priority srcnat",
        (
            ("ct status dnat ip saddr . oifname @own4 masquerade", "hairpin: back into the network it came from"),
            ("ct status dnat ip6 saddr . oifname @own6 masquerade", "IPv6 hairpin"),
            ("ip saddr 127.0.0.0/8 oifname @bridges masquerade", "from the host's loopback"),
            ("ip saddr . iifname @masquerade4 iifname . oifname != @same masquerade", "leaves by another link"),
            ("ip6 saddr . iifname @masquerade6 iifname . oifname != @same masquerade", "IPv6 leaves by another link"),
            # Without the protocols nft does not know what proto-dst is.
            (f"{_HAIRPIN} meta l4proto . ip daddr . ct original proto-dst vmap @inward4", "asked from beside the container"),
            (f"{_HAIRPIN} meta l4proto . ip6 daddr . ct original proto-dst vmap @inward6", "asked by IPv6 from beside it"),
            ("iif != 0 ip saddr vmap @outward4", "routed from a masqueraded address"),  # bridged frames have no iif here
            ("iif != 0 ip6 saddr vmap @outward6", "routed from a masqueraded IPv6 address"),
        ),
    ),
    "forward": (
        "type filter hook forward priority filter",
        (
            ("jump user", "yours first"),
            ("iifname @apart oifname @apart iifname . oifname != @together drop", "bridges of CNI networks are apart"),
            ("iifname . oifname @same accept", "within one network"),
            # Before the answers, for a forged packet may look like one.
            ("iifname @internal drop", "internal: nothing leaves"),
            ("oifname @internal drop", "internal: nothing enters"),
            ("ct state established,related accept", "answers"),
            ("oifname @bridges ct status dnat accept", "published ports"),
            ("iifname @bridges oifname @bridges drop", "networks are apart"),
            ("oifname @open accept", "nat-unprotected"),
            ("oifname @bridges drop", "unpublished ports are closed"),
        ),
    ),
    "marking": (
        "type filter hook forward priority mangle",
        (
            (f"ip saddr @forwarded4 {_SET_MARK}", "for the allowance in hooks of others"),
            (f"ip6 saddr @forwarded6 {_SET_MARK}", "by IPv6"),
            (f"ct state established,related ip daddr @forwarded4 {_SET_MARK}", "answers"),
            (f"ct state established,related ip6 daddr @forwarded6 {_SET_MARK}", "answers by IPv6"),
        ),
    ),
    "unmarking": (
        "type filter hook forward priority 300",
        ((f"meta mark and {MARK} == {MARK} meta mark set meta mark xor {MARK}", "no business of what comes after"),),
    ),
}


class Element(NamedTuple):
    """One entry of a set (no value) or of a map."""

    holder: str
    key: tuple[str, ...]
    value: tuple[str, ...] = ()


def checked_ifname(ifname: str) -> str:
    """Return *ifname* if nft's text can have it in quotes; ConfigError otherwise (``*`` would be a wildcard)."""
    if not _IFNAME.fullmatch(ifname):
        raise ConfigError(f"link name {ifname!r} cannot be used in firewall rules: letters, digits and _.@+=- only, 15 at most")
    return ifname


def checked_tag(tag: str) -> str:
    """Return *tag* if a comment can have it; ConfigError otherwise."""
    if not _TAG.fullmatch(tag):
        raise ConfigError(f"ownership tag {tag!r} cannot be used in a firewall comment")
    return tag


def elements(item: KernelObject) -> tuple[Element, ...]:
    """The entries of *item*; none for an object without entries."""
    match item:
        case BridgedNetwork():
            return tuple(_network_elements(item))
        case Masquerade():
            return (Element(f"masquerade{item.subnet.version}", (_subnet(item.subnet), checked_ifname(item.bridge))),)
        case ForwardedAddress():
            return (Element(f"forwarded{item.address.version}", (_address(item.address),)),)
        case ApartBridge():
            bridge = checked_ifname(item.bridge)
            return (Element("apart", (bridge,)), *((Element("together", (bridge, bridge)),) if item.icc else ()))
        case MasqueradedAddress():
            address = item.address
            return (
                Element(f"outward{address.version}", (_address(address.ip),), (f"goto {_chain('outward', address.network)}",)),
            )
        case PublishedPort():
            return tuple(_port_elements(item))
    return ()


def _network_elements(network: BridgedNetwork) -> Iterator[Element]:
    bridge = checked_ifname(network.bridge)
    yield Element("bridges", (bridge,))
    if network.icc:
        yield Element("same", (bridge, bridge))
    if network.internal:
        yield Element("internal", (bridge,))
    if network.mode == "nat-unprotected":
        yield Element("open", (bridge,))
    for subnet in network.subnets:
        yield Element(f"own{subnet.version}", (_subnet(subnet), bridge))


def _port_elements(port: PublishedPort) -> Iterator[Element]:
    for number in (port.host_port, port.container_port):
        if not 0 < number <= number + port.count - 1 < 65536:
            raise ConfigError(f"port {number} is out of range: 1 to 65535")
    address, host, protocol = _address(port.address), port.one_address, port.protocol.value
    holder = f"{'hostports' if host else 'ports'}{port.address.version}"
    place = (_address(host), protocol) if host else (protocol,)
    for offset in range(port.count):
        yield Element(holder, (*place, str(port.host_port + offset)), (address, str(port.container_port + offset)))
    if port.hairpin is not None:
        goto = (f"goto {_chain('inward', port.hairpin)}",)
        for number in port.host_ports:
            yield Element(f"inward{port.address.version}", (protocol, address, str(number)), goto)
    if port.condition is not None:
        jump = (f"jump {_condition_chain(port.condition)}",)
        for number in port.host_ports:
            yield Element(f"{'hostguarded' if host else 'guarded'}{port.address.version}", (*place, str(number)), jump)


def subnet_chains(item: ContainerSubnet) -> dict[str, tuple[str, ...]]:
    """The chains of *item*, with their rules."""
    subnet = _subnet(item.subnet)
    family, multicast = ("ip", "224.0.0.0/4") if item.subnet.version == 4 else ("ip6", "ff00::/8")
    sources = f"{{ {subnet}, 127.0.0.0/8 }}" if item.subnet.version == 4 else subnet
    return {
        _chain("outward", item.subnet): (f"{family} daddr {{ {subnet}, {multicast} }} return", "masquerade"),
        _chain("inward", item.subnet): (f"{family} saddr {sources} masquerade",),
    }


def condition_chains(item: PortCondition) -> dict[str, tuple[str, ...]]:
    """The chain of *item*: a packet that meets all conditions returns to the lookup of its port, any other is the host's."""
    family = "ip" if item.version == 4 else "ip6"
    return {_condition_chain(item): (" ".join([*(_matched(family, match) for match in item.matches), "return"]), "accept")}


def _condition_chain(item: PortCondition) -> str:
    return f"when_{item.digest}"


def _matched(family: str, match: PacketMatch) -> str:
    if match.field == "iifname":
        left, right = "iifname", f'"{checked_ifname(match.value)}"'
    else:
        left, right = f"{family} {match.field}", _subnet(parse_subnet(match.value))
    return f"{left} {'!=' if match.negated else '=='} {right}"


def own_chains(item: KernelObject) -> dict[str, tuple[str, ...]]:
    """The chains of *item*, by name, with their rules; most objects have none."""
    match item:
        case ContainerSubnet():
            return subnet_chains(item)
        case PortCondition():
            return condition_chains(item)
    return {}


def _chain(direction: str, subnet: IPNetwork) -> str:
    return f"{direction}_{str(subnet).replace(':', '_')}"


def chain_commands(item: KernelObject, tag: str = "") -> Iterator[str]:
    """The commands that make the chains of *item*, or restore their rules."""
    for name, rules in own_chains(item).items():
        comment = f' {{ comment "{checked_tag(tag)}"; }}' if tag else ""
        yield f"add chain {TABLE} {name}{comment}"
        yield f"flush chain {TABLE} {name}"
        yield from (f"add rule {TABLE} {name} {rule}" for rule in rules)


def _address(address: IPAddress) -> str:
    if getattr(address, "scope_id", None):
        raise ConfigError(f"address {address} has a scope: it cannot be used in firewall rules")
    return str(address)


def _subnet(subnet: IPNetwork) -> str:
    """As nft lists it: a single address without its length."""
    return str(subnet.network_address) if subnet.prefixlen == subnet.max_prefixlen else str(subnet)


def _term(kind: str, text: str) -> str:
    return f'"{text}"' if kind == "ifname" else text


def _spelled(element: Element, comment: str = "", *, whole: bool = True) -> str:
    kinds = SETS.get(element.holder) or MAPS[element.holder]
    text = " . ".join(_term(kind, part) for kind, part in zip(kinds, element.key, strict=True))
    if comment:
        text += f' comment "{comment}"'
    return f"{text} : {' . '.join(element.value)}" if whole and element.value else text


def _by_holder(items: Iterable[Element]) -> dict[str, list[Element]]:
    found: dict[str, list[Element]] = {}
    for item in items:
        found.setdefault(item.holder, []).append(item)
    return found


def add_elements(items: Iterable[Element], tag: str = "") -> Iterator[str]:
    """The commands that add *items*, each with *tag* as its comment: one per set."""
    comment = checked_tag(tag)
    for holder, group in _by_holder(items).items():
        yield f"add element {TABLE} {holder} {{ {', '.join(_spelled(item, comment) for item in group)} }}"


def delete_elements(items: Iterable[Element]) -> Iterator[str]:
    """The commands that delete *items*: one per set. One missing element fails the transaction."""
    for holder, group in _by_holder(items).items():
        yield f"delete element {TABLE} {holder} {{ {', '.join(_spelled(item, whole=False) for item in group)} }}"


@cache
def base_digest() -> str:
    """A digest of this version's static rules, which the comment of one of them has."""
    return hashlib.sha256(repr((SETS, MAPS, _CHAINS)).encode()).hexdigest()[:8]


@cache
def base_comments() -> dict[str, list[str]]:
    """The comments of the rules of each static chain, in order: what a listing of an intact table shows."""
    return {
        chain: [f"{comment} ({base_digest()})" if rule == "jump user" else comment for rule, comment in rules]
        for chain, (_, rules) in _CHAINS.items()
    }


@cache
def base_commands() -> tuple[str, ...]:
    """The commands that make the table, or restore it: entries and the chain ``user`` are left unchanged."""
    lines = [f"add table {TABLE}"]
    for name, kinds in SETS.items():
        flags = " flags interval;" if name in _SUBNET_SETS else ""
        lines.append(f"add set {TABLE} {name} {{ type {' . '.join(kinds)};{flags} }}")
    for name, kinds in MAPS.items():
        value = "verdict" if name in _VERDICT_MAPS else f"ipv{name[-1]}_addr . inet_service"
        lines.append(f"add map {TABLE} {name} {{ type {' . '.join(kinds)} : {value}; }}")
    lines.append(f"add chain {TABLE} user")
    for chain, (hook, rules) in _CHAINS.items():
        lines += [f"add chain {TABLE} {chain} {{ {hook}; policy accept; }}", f"flush chain {TABLE} {chain}"]
        lines += [
            f'add rule {TABLE} {chain} {rule} comment "{comment}"'
            for (rule, _), comment in zip(rules, base_comments()[chain], strict=True)
        ]
    return tuple(lines)


def check_redirect(redirect: DnsRedirect) -> None:
    """Raise ConfigError for an address or a port to which nothing can be redirected."""
    if redirect.address.version != 4 or not 0 < redirect.port < 65536:
        raise ConfigError(
            f"no DNS redirection to {redirect.address} port {redirect.port}: an IPv4 address and a port are needed"
        )


def dns_commands(redirect: DnsRedirect) -> tuple[str, ...]:
    """The commands for the sandbox's own small table. The rules are DNAT, for nft's ``redirect`` would lead to 127.0.0.1."""
    check_redirect(redirect)
    address = redirect.address
    lines = [
        f"add table {DNS_TABLE}",
        f"add chain {DNS_TABLE} {DNS_CHAIN} {{ type nat hook output priority -100; policy accept; }}",
        f"flush chain {DNS_TABLE} {DNS_CHAIN}",
    ]
    lines += [
        f"add rule {DNS_TABLE} {DNS_CHAIN} ip daddr {address} {protocol} dport 53 dnat to {address}:{redirect.port}"
        for protocol in ("udp", "tcp")
    ]
    return tuple(lines)


def allowance_rules(subject: str, tag: str = "") -> tuple[str, ...]:
    """The rules that let a *subject*'s packets through a foreign chain, with the comment by which they are found again.

    Only expressions that iptables-nft understands: else ``iptables -L`` refuses to list the table, which it considers its own.
    """
    if subject == MARKED:
        matches: tuple[str, ...] = (f"meta mark and {MARK} == {MARK}",)
    else:
        matches = tuple(f'{direction} "{checked_ifname(subject)}"' for direction in ("iifname", "oifname"))
    comment = allowance_comment(subject, checked_tag(tag))
    return tuple(f'{match} counter accept comment "{comment}"' for match in matches)


def allowance_comment(subject: str, tag: str = "") -> str:
    """The comment on a rule in a foreign chain; its last word is the bridge."""
    return f"{tag or 'netlib'} forward {subject}"


def commands(item: KernelObject) -> Sequence[str]:
    """The ``nft`` command lines that make *item*."""
    match item:
        case FirewallBase():
            lines: Sequence[str] = base_commands()
        case DnsRedirect():
            lines = dns_commands(item)
        case ContainerSubnet() | PortCondition():
            lines = list(chain_commands(item))
        case Allowance():
            rules = [f"add rule ip filter FORWARD {rule}" for rule in allowance_rules(item.subject)]
            return [f"# where a chain of others drops by default, as FORWARD may: nft {shlex.quote(rule)}" for rule in rules]
        case _:
            lines = list(add_elements(elements(item)))
    return [command_in(item.netns, f"nft {shlex.quote(line)}") for line in lines]
