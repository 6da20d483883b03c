"""The keys ``conditionsV4`` and ``conditionsV6`` of portmap: conditions on addresses and links, in words of iptables or nft.

One rule: no word of a configuration reaches a rule. A condition is parsed and written anew; any other word is refused by name.
"""

from ipaddress import ip_interface
from typing import Literal

from cni_plugins.protocol import CniError, Code
from netlib.errors import ConfigError
from netlib.firewall.objects import PacketMatch, PortCondition
from netlib.names import check_ifname

__all__ = ["backend_of", "read_condition"]

_Field = Literal["saddr", "daddr", "iifname"]
_OPTIONS: dict[str, _Field] = {
    "-s": "saddr",
    "--source": "saddr",
    "-d": "daddr",
    "--destination": "daddr",
    "-i": "iifname",
    "--in-interface": "iifname",
}
_EXPRESSIONS: dict[tuple[str, str], _Field] = {
    ("ip", "saddr"): "saddr",
    ("ip", "daddr"): "daddr",
    ("ip6", "saddr"): "saddr",
    ("ip6", "daddr"): "daddr",
    ("meta", "iifname"): "iifname",
}


def backend_of(words: tuple[str, ...]) -> str:
    """The program whose words these are, told by the first character as the reference does; "" for no words."""
    if not words or not words[0]:
        return ""
    return "iptables" if words[0][0] in "-!" else "nftables"


def read_condition(key: str, version: Literal[4, 6], words: tuple[str, ...]) -> PortCondition | None:
    """Parse the condition on packets of one IP version, None for no words; CniError (code 2) names what it cannot parse."""
    backend = backend_of(words)
    if not backend:
        return None
    text = " ".join(words)
    read = _of_iptables if backend == "iptables" else _of_nftables
    try:
        return PortCondition(version=version, matches=tuple(_checked(version, match) for match in read(text.split())))
    except (ValueError, ConfigError, StopIteration) as error:
        raise CniError(
            Code.UNSUPPORTED_FIELD,
            f"portmap: {key} is not supported: {text}",
            f"source, destination and incoming link are, each perhaps negated{f' ({error})' if str(error) else ''}",
        ) from None


def _of_iptables(words: list[str]) -> list[PacketMatch]:
    found = []
    rest = iter(words)
    for word in rest:
        negated = word == "!"
        option = next(rest) if negated else word
        if option not in _OPTIONS:
            raise ValueError(option)
        found.append(PacketMatch(_OPTIONS[option], next(rest), negated))
    return found


def _of_nftables(words: list[str]) -> list[PacketMatch]:
    found = []
    rest = iter(words)
    for word in rest:
        pair = ("meta", word) if word == "iifname" else (word, next(rest))
        if pair not in _EXPRESSIONS:
            raise ValueError(" ".join(pair))
        value = next(rest)
        negated = value == "!="
        found.append(PacketMatch(_EXPRESSIONS[pair], next(rest) if value in ("!=", "==") else value, negated))
    return found


def _checked(version: int, match: PacketMatch) -> PacketMatch:
    if match.field == "iifname":
        return PacketMatch(match.field, check_ifname(match.value.strip('"')), match.negated)
    subnet = ip_interface(match.value).network
    if subnet.version != version:
        raise ValueError(match.value)
    return PacketMatch(match.field, str(subnet), match.negated)
