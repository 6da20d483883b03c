"""Names, addresses and values that people give: what is kept, and the one sentence for what is not."""

import re
from ipaddress import ip_address, ip_network

import pytest

from netlib.errors import ConfigError
from netlib.model import Network
from netlib.names import (
    BRIDGE_NAME_OPTION,
    bridge_ifname,
    check_alias,
    check_domainname,
    check_hostname,
    check_ifname,
    check_labels,
    check_mac,
    check_mtu,
    check_network_name,
    check_sandbox_name,
    endpoint_mac,
    new_id,
    parse_address,
    parse_labels,
    parse_options,
    parse_subnet,
    veth_ifname,
)


@pytest.mark.parametrize("name", ["web", "0", "my_net-1.prod", "A" * 63])
def test_names_that_are_kept(name: str) -> None:
    assert check_network_name(name) == check_sandbox_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".web", "-web", "_web", "a b", "a/b", "../etc", "web\n", "wéb", "a;b", "$(id)", "a\0b"]
)
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"^network name {re.escape(repr(name))} is not allowed; begin with a letter or digit"
    ):
        check_network_name(name)
    with pytest.raises(ConfigError, match=r"^sandbox name"):
        check_sandbox_name(name)


def test_a_name_longer_than_a_dns_label_is_refused() -> None:
    with pytest.raises(ConfigError, match="has 64 characters; DNS can ask for 63 at most"):
        check_network_name("a" * 64)


@pytest.mark.parametrize("name", ["web", "web.example.org", "my_host", "a" * 63])
def test_hostnames_domains_and_aliases_that_are_kept(name: str) -> None:
    assert check_hostname(name) == check_domainname(name) == check_alias(name) == name


@pytest.mark.parametrize("name", ["", "a..b", "-a", "a-", ".a", "a.", "a b", "a/b", "a\nb", "ä", "x" * 64 + ".b"])
def test_hostnames_domains_and_aliases_that_are_refused(name: str) -> None:
    for check, what in ((check_hostname, "hostname"), (check_domainname, "domain name"), (check_alias, "alias")):
        with pytest.raises(ConfigError, match=f"^{what} "):
            check(name)


def test_a_hostname_is_as_long_as_the_kernel_takes_it() -> None:
    assert check_hostname("a" * 32 + "." + "b" * 31)
    with pytest.raises(ConfigError, match="has 65 characters, 64 at most"):
        check_hostname("a" * 32 + "." + "b" * 32)
    assert check_alias(".".join(["a" * 62] * 4))
    with pytest.raises(ConfigError, match="253 at most"):
        check_alias(".".join(["a" * 63] * 4))


@pytest.mark.parametrize("name", ["eth0", "br-0123456789ab", "eth0.10", "veth@x", "a" * 15])
def test_ifnames_that_are_kept(name: str) -> None:
    assert check_ifname(name) == name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a" * 16, "has 16 bytes; the kernel takes 15 at most"),
        ("ä" * 8, "has 16 bytes"),
        ("", "is not allowed"),
        (".", "is not allowed"),
        ("..", "is not allowed"),
        ("-a", "is not allowed"),
        ("a/b", "is not allowed"),
        ("a:b", "is not allowed"),
        ("a b", "is not allowed"),
        ("a\tb", "is not allowed"),
        ("eth%d", "is not allowed"),
        ("eth*", "is not allowed"),
        ('e"', "is not allowed"),
        ("all", "stands for every link"),
        ("default", "stands for every link"),
    ],
)
def test_ifnames_that_are_refused(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"interface name {re.escape(repr(name))} {reason}"):
        check_ifname(name)


@pytest.mark.parametrize("text", ["02:42:AC:11:00:02", "02-42-ac-11-00-02"])
def test_macs_are_kept_in_lower_case_with_colons(text: str) -> None:
    assert check_mac(text) == "02:42:ac:11:00:02"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("02:42:ac:11:00", "is malformed"),
        ("02:42:ac:11:00:0g", "is malformed"),
        ("02:42-ac:11:00:02", "is malformed"),
        ("02:42:ac:11:00:02\n", "is malformed"),
        ("01:00:5e:00:00:01", "is a multicast one"),
        ("ff:ff:ff:ff:ff:ff", "is a multicast one"),
        ("00:00:00:00:00:00", "is no address of a link"),
    ],
)
def test_macs_that_are_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"MAC address {re.escape(repr(text))} {reason}"):
        check_mac(text)


def test_mtus() -> None:
    assert [check_mtu(68, ipv6=False), check_mtu("1280", ipv6=True), check_mtu(65535, ipv6=True)] == [68, 1280, 65535]
    for value, ipv6, reason in (
        (67, False, "MTU 67 is not possible; choose one between 68 and 65535"),
        (1279, True, "MTU 1279 is not possible because IPv6 needs 1280; choose one between 1280 and 65535"),
        (65536, False, "MTU 65536 is not possible; choose"),
        ("big", False, "MTU 'big' is no number; choose one between 68 and 65535"),
    ):
        with pytest.raises(ConfigError, match=f"^{reason}"):
            check_mtu(value, ipv6=ipv6)


def test_labels_and_options() -> None:
    assert parse_labels(["a=1", "b", "c=x=y", "a=2"]) == {"a": "2", "b": "", "c": "x=y"}
    assert parse_options(["mtu=1400", "empty=", "mtu=1400"]) == {"mtu": "1400", "empty": ""}
    check_labels({"a": "1", "b": ""})
    for texts, reason in (
        (["mtu"], "option 'mtu' has no value; write mtu=VALUE"),
        (["=1"], "option key '' is not allowed"),
        (["a b=1"], "option key 'a b' is not allowed"),
        (["mtu=1", "mtu=2"], "option 'mtu' is given as '1' and as '2'; keep one"),
        (["a=\0"], "option 'a' holds a zero byte"),
    ):
        with pytest.raises(ConfigError, match=f"^{reason}"):
            parse_options(texts)
    with pytest.raises(ConfigError, match="label key 'a b' is not allowed"):
        check_labels({"a b": "1"})


def test_addresses() -> None:
    assert parse_address("10.0.0.1") == ip_address("10.0.0.1")
    assert parse_address(ip_address("fd00::1")) == ip_address("fd00::1")
    for text in ("", "10.0.0", "10.0.0.1/24", "10.0.0.01", "fe80::1%eth0", "web"):
        with pytest.raises(ConfigError, match=f"^gateway {re.escape(repr(text))} is no IP address; write it like"):
            parse_address(text, "gateway")


def test_subnets() -> None:
    assert parse_subnet("10.0.0.0/24") == ip_network("10.0.0.0/24")
    assert parse_subnet("fd00::/64") == ip_network("fd00::/64")
    assert parse_subnet(ip_network("10.0.0.0/24")) == ip_network("10.0.0.0/24")
    for text, reason in (
        ("10.0.0.5/24", "is an address inside a subnet (host bits are set); the subnet is 10.0.0.0/24"),
        ("fd00::5/64", "is an address inside a subnet (host bits are set); the subnet is fd00::/64"),
        ("10.0.0.7", "lacks its prefix length; write it like 10.0.0.0/24"),
        ("fd00::7", "lacks its prefix length; write it like fd00::/64"),
        ("10.0.0.0/33", "has no valid prefix length; write a number from 0 to 32 after the slash"),
        ("10.0.0.0/255.255.255.0", "has no valid prefix length"),
        ("10.0.0.0/", "has no valid prefix length"),
        ("fd00::/129", "has no valid prefix length; write a number from 0 to 128 after the slash"),
        ("10.0.0/24", "is no subnet; write it like 172.28.0.0/16"),
        ("web", "is no subnet"),
    ):
        with pytest.raises(ConfigError) as caught:
            parse_subnet(text, "ip-range")
        assert str(caught.value).startswith(f"ip-range {text!r} {reason}")


def test_names_that_are_derived() -> None:
    one, other = new_id(), new_id()
    assert re.fullmatch("[0-9a-f]{64}", one)
    assert one != other
    network = Network(id="3f2a1c9d4e5b" + "0" * 52, name="web", driver="bridge", created=0.0)
    assert bridge_ifname(network) == "br-3f2a1c9d4e5b"
    named = Network(id=one, name="web", driver="bridge", created=0.0, options={BRIDGE_NAME_OPTION: "web0"})
    assert bridge_ifname(named) == "web0"
    assert veth_ifname("3f2a1c9d" * 8) == "veth3f2a1c9"
    assert endpoint_mac("3f2a1c9d" * 8, None) == "02:42:3f:2a:1c:9d"
    assert endpoint_mac("3f2a1c9d" * 8, ip_address("172.17.0.2")) == "02:42:ac:11:00:02"
    assert check_ifname(bridge_ifname(network)) == "br-3f2a1c9d4e5b"
    assert check_mac(endpoint_mac(one, None)) == endpoint_mac(one, None)
