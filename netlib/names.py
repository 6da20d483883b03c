"""Names that people give, checked before they reach a path, a rule, a DNS answer or a shell; and names that we derive.

Each check returns the value in the form to keep, or raises ConfigError: one sentence with the value and what to do.
"""

import ipaddress
import os
import re
from collections.abc import Iterable, Mapping

from netlib.errors import ConfigError
from netlib.model import IPAddress, IPNetwork, Link, Network

__all__ = [
    "BRIDGE_NAME_OPTION",
    "ID_DIGITS",
    "NAME_LENGTH",
    "bridge_ifname",
    "check_alias",
    "check_container_name",
    "check_domainname",
    "check_hostname",
    "check_ifname",
    "check_labels",
    "check_mac",
    "check_mtu",
    "check_network_name",
    "check_resolver_option",
    "check_sandbox_name",
    "check_search_domain",
    "endpoint_mac",
    "host_end_mac",
    "is_domain",
    "is_resolver_option",
    "new_id",
    "parse_address",
    "parse_labels",
    "parse_link",
    "parse_options",
    "parse_subnet",
    "veth_ifname",
]

BRIDGE_NAME_OPTION = "com.docker.network.bridge.name"
NAME_LENGTH = 63
"""Longest name of a network, sandbox or container: one DNS label (RFC 1035, 2.3.4), for each of them is asked for by name."""

_IFNAME_BYTES = 15  # IFNAMSIZ with its closing zero is 16
_HOSTNAME_LENGTH = 64  # sethostname(2) takes no more
_DOMAIN_LENGTH = 253
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_HOST_LABEL = re.compile(r"[a-zA-Z0-9_]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9_])?")
_DOMAIN = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")
_RESOLVER_OPTION = re.compile(r"[A-Za-z][A-Za-z0-9_-]*(:[0-9]+)?")
_IFNAME = re.compile(r"[a-zA-Z0-9_.@+][a-zA-Z0-9_.@+-]*")
_PREFIX_LENGTH = re.compile(r"[0-9]{1,3}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}|[0-9a-f]{2}(-[0-9a-f]{2}){5}")
_SYSCTL_FOLDERS = {"all", "default"}  # an ifname is a folder beside these two in /proc/sys/net/ipv4/conf
_LOWEST_MTU = {False: 68, True: 1280}  # RFC 791, 3.2; RFC 8200, 5: the kernel takes IPv6 off a link with less
_HIGHEST_MTU = 65535


# --- names of records --------------------------------------------------------------------------------------------------


def check_network_name(name: str) -> str:
    """Check the name of a network."""
    return _check_name("network", name)


def check_sandbox_name(name: str) -> str:
    """Check the name of a sandbox."""
    return _check_name("sandbox", name)


def check_container_name(name: str) -> str:
    """Check the name of a container, which its sandbox shares."""
    return _check_name("container", name)


def _check_name(what: str, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{what} name {name!r} is not allowed; begin with a letter or digit and go on with these, '_', '.' and '-'"
        )
    if len(name) > NAME_LENGTH:
        raise ConfigError(
            f"{what} name {name!r} has {len(name)} characters; DNS can ask for {NAME_LENGTH} at most, choose a shorter one"
        )
    return name


def check_hostname(name: str) -> str:
    """Check a hostname: labels as of RFC 1123 (and underscores, as Docker lets pass), 64 characters in all."""
    return _check_labels("hostname", name, _HOSTNAME_LENGTH)


def check_domainname(name: str) -> str:
    """Check a domain name or a search domain."""
    return _check_labels("domain name", name, _DOMAIN_LENGTH)


def check_alias(name: str) -> str:
    """Check a network alias: whatever DNS can be asked for."""
    return _check_labels("alias", name, _DOMAIN_LENGTH)


def _check_labels(what: str, name: str, longest: int) -> str:
    if len(name) > longest:
        raise ConfigError(f"{what} {name!r} has {len(name)} characters, {longest} at most are allowed; choose a shorter one")
    for label in name.split("."):
        if not _HOST_LABEL.fullmatch(label):
            raise ConfigError(
                f"{what} {name!r} is not allowed because of {label!r}; "
                "each part between dots has 1 to 63 letters, digits, '_' or '-', with no '-' at either end"
            )
    return name


# --- words of resolv.conf ----------------------------------------------------------------------------------------------


def is_domain(name: str) -> bool:
    """Whether *name* is a domain, of a host or to search in, that one word of a file can be."""
    return len(name) <= _DOMAIN_LENGTH and _DOMAIN.fullmatch(name) is not None


def is_resolver_option(text: str) -> bool:
    """Whether *text* is an option of resolv.conf(5): a word, or a word and a number."""
    return _RESOLVER_OPTION.fullmatch(text) is not None


def check_search_domain(name: str, what: str = "search domain") -> str:
    """Check a search domain, or "." for none; *what* names it in the ConfigError."""
    if name != "." and not is_domain(name):
        raise ConfigError(f'{what} "{name}": letters, digits, "-" and "_" in labels of 1 to 63, or "." for none')
    return name


def check_resolver_option(text: str, what: str = "resolver option") -> str:
    """Check an option of resolv.conf(5); *what* names it in the ConfigError."""
    if not is_resolver_option(text):
        raise ConfigError(f'{what} "{text}": a word such as rotate, or a word with a number such as timeout:2')
    return text


# --- links -------------------------------------------------------------------------------------------------------------


def check_ifname(name: str) -> str:
    """Check the name of a link: as the kernel's dev_valid_name, less what a rule, a path or a shell would read otherwise."""
    if len(name.encode()) > _IFNAME_BYTES:
        raise ConfigError(f"interface name {name!r} has {len(name.encode())} bytes; the kernel takes {_IFNAME_BYTES} at most")
    if not _IFNAME.fullmatch(name) or name in (".", ".."):
        raise ConfigError(
            f"interface name {name!r} is not allowed; use letters, digits, '_', '.', '-', '@' and '+', and no '-' first"
        )
    if name in _SYSCTL_FOLDERS:
        raise ConfigError(f"interface name {name!r} stands for every link in /proc/sys/net; choose another one")
    return name


def check_mac(text: str) -> str:
    """Check a unicast MAC address and return it in lower case with colons."""
    mac = text.lower()
    if not _MAC.fullmatch(mac):
        raise ConfigError(f"MAC address {text!r} is malformed; write six pairs of hexadecimal digits like 02:42:ac:11:00:02")
    mac = mac.replace("-", ":")
    if int(mac[:2], 16) & 1:
        raise ConfigError(f"MAC address {text!r} is a multicast one (its first byte is odd); choose one like 02:42:ac:11:00:02")
    if mac == "00:00:00:00:00:00":
        raise ConfigError(f"MAC address {text!r} is no address of a link; leave it out to have one chosen")
    return mac


def check_mtu(value: int | str, *, ipv6: bool, what: str = "MTU") -> int:
    """Check an MTU in bytes, given as a number or as an option's text; *what* names it in the ConfigError."""
    lowest = _LOWEST_MTU[ipv6]
    try:
        mtu = int(value)
    except ValueError:
        raise ConfigError(f"{what} {value!r} is no number; choose one between {lowest} and {_HIGHEST_MTU}") from None
    if not lowest <= mtu <= _HIGHEST_MTU:
        reason = " because IPv6 needs 1280" if ipv6 and 68 <= mtu < lowest else ""
        raise ConfigError(f"{what} {mtu} is not possible{reason}; choose one between {lowest} and {_HIGHEST_MTU}")
    return mtu


def parse_link(text: str) -> Link:
    """Read ``--link NAME[:ALIAS]``; without an alias the name is its own."""
    name, _, alias = text.partition(":")
    if not name or ":" in alias:
        raise ConfigError(f"link {text!r} is malformed; write it like NAME or NAME:ALIAS")
    return Link(name, alias or name)


# --- addresses ---------------------------------------------------------------------------------------------------------


def parse_address(text: str | IPAddress, what: str = "address") -> IPAddress:
    """Read an IPv4 or IPv6 address; *what* names it in the ConfigError ("gateway", ``auxiliary address "printer"``)."""
    if isinstance(text, ipaddress.IPv4Address | ipaddress.IPv6Address):
        return text
    try:
        if not isinstance(text, str):  # ipaddress reads numbers and bytes as well
            raise ValueError
        if "%" in text:  # a zone: an address of one link only
            raise ValueError
        return ipaddress.ip_address(text)
    except ValueError:
        raise ConfigError(f"{what} {text!r} is no IP address; write it like 172.18.0.10 or fd00::10") from None


def parse_subnet(text: str | IPNetwork, what: str = "subnet") -> IPNetwork:
    """Read a subnet in CIDR notation; *what* names it in the ConfigError ("subnet", "ip-range").

    Host bits that are set are refused, and the message gives the subnet that the address lies in.
    """
    if isinstance(text, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return text
    if not isinstance(text, str):
        raise ConfigError(f"{what} {text!r} is no subnet; write it like 172.28.0.0/16 or fd00:28::/64")
    address, slash, length = text.partition("/")
    parsed = _address_of(text, address, what)
    if not slash:
        example = ipaddress.ip_network((parsed, 24 if parsed.version == 4 else 64), strict=False)
        raise ConfigError(f"{what} {text!r} lacks its prefix length; write it like {example}")
    if not _PREFIX_LENGTH.fullmatch(length) or int(length) > parsed.max_prefixlen:
        raise ConfigError(
            f"{what} {text!r} has no valid prefix length; write a number from 0 to {parsed.max_prefixlen} after the slash"
        )
    subnet = ipaddress.ip_network((parsed, int(length)), strict=False)
    if subnet.network_address != parsed:
        raise ConfigError(f"{what} {text!r} is an address inside a subnet (host bits are set); the subnet is {subnet}")
    return subnet


def _address_of(text: str, address: str, what: str) -> IPAddress:
    try:
        return parse_address(address)
    except ConfigError:
        raise ConfigError(f"{what} {text!r} is no subnet; write it like 172.28.0.0/16 or fd00:28::/64") from None


# --- KEY=VALUE ---------------------------------------------------------------------------------------------------------


def check_labels(labels: Mapping[str, str]) -> None:
    """Check labels that are read already: keys without spaces, no zero bytes."""
    for key, value in labels.items():
        _check_key_value("label", key, value)


def parse_labels(texts: Iterable[str]) -> dict[str, str]:
    """Read ``--label`` values; as in Docker, KEY alone has an empty value and the last of equal keys counts."""
    return dict(_key_value("label", text) for text in texts)


def parse_options(texts: Iterable[str]) -> dict[str, str]:
    """Read ``--opt`` or ``--driver-opt`` values; each needs its ``=``, for an empty value is rarely what was meant."""
    options: dict[str, str] = {}
    for text in texts:
        key, value = _key_value("option", text)
        if "=" not in text:
            raise ConfigError(f"option {text!r} has no value; write {key}=VALUE")
        if options.get(key, value) != value:
            raise ConfigError(f"option {key!r} is given as {options[key]!r} and as {value!r}; keep one")
        options[key] = value
    return options


def _key_value(what: str, text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    _check_key_value(what, key, value)
    return key, value


def _check_key_value(what: str, key: str, value: str) -> None:
    if not key or not key.isprintable() or " " in key or "=" in key:
        raise ConfigError(f"{what} key {key!r} is not allowed; write KEY=VALUE, the key neither empty nor with spaces")
    if "\0" in value:
        raise ConfigError(f"{what} {key!r} holds a zero byte in its value; leave that out")


# --- what we derive ----------------------------------------------------------------------------------------------------


ID_DIGITS = 64


def new_id() -> str:
    """A record's id: 64 random hexadecimal digits."""
    return os.urandom(ID_DIGITS // 2).hex()


def bridge_ifname(network: Network) -> str:
    """The bridge of a network: the one its option names, else ``br-`` and its short id."""
    return network.options.get(BRIDGE_NAME_OPTION) or f"br-{network.short_id}"


def veth_ifname(record: str) -> str:
    """The host's end of the veth pair of an endpoint or attachment: ``veth`` and 7 digits of its id, as in Docker."""
    return f"veth{record[:7]}"


def endpoint_mac(endpoint_id: str, address: IPAddress | None) -> str:
    """A locally administered MAC address: Docker's prefix and the IPv4 *address*, so that a reused one meets no stale entry.

    Without an IPv4 address it ends in the first digits of the endpoint's id.
    """
    digits = address.packed.hex() if address is not None and address.version == 4 else endpoint_id
    return "02:42:" + ":".join(digits[digit : digit + 2] for digit in range(0, 8, 2))


def host_end_mac(record: str) -> str:
    """The MAC address of the host's end of a veth pair: never that of its other end, for the bridge would keep its frames."""
    return "06" + endpoint_mac(record, None)[2:]
