"""resolv.conf and hosts: the host's read, a sandbox's made, nothing smuggled in."""

from ipaddress import ip_address

import pytest

from netlib.dns.resolvconf import HostResolver, check_resolver, hosts_file, parse_resolv_conf, sandbox_resolv_conf
from netlib.errors import ConfigError
from netlib.model import ResolverConfig

EMBEDDED = ip_address("127.0.0.11")
HOST = HostResolver((ip_address("192.0.2.53"),), ("lan", "example.org"), ("edns0", "timeout:2"))


def servers(*texts: str) -> HostResolver:
    return HostResolver(tuple(ip_address(text) for text in texts))


def test_parse_takes_what_the_c_library_takes() -> None:
    text = """# comment
; another
nameserver 127.0.0.53
nameserver fe80::1%eth0
  nameserver\t2001:db8::1   # trailing
nameserver nonsense
nameserver
domain old.example
search one.example two.example.
options edns0 ndots:2
options trust-ad bad:option:here
sortlist 130.155.160.0/255.255.240.0
"""
    found = parse_resolv_conf(text)
    assert found.servers == tuple(ip_address(text) for text in ("127.0.0.53", "fe80::1%eth0", "2001:db8::1"))
    assert found.search == ("one.example", "two.example.")
    assert found.options == ("edns0", "ndots:2", "trust-ad")


@pytest.mark.parametrize("text", ["", "\n\n", "nameserver", "garbage \x00\xff"])
def test_parse_of_nothing_is_nothing(text: str) -> None:
    assert parse_resolv_conf(text) == HostResolver()


@pytest.mark.parametrize(
    ("resolver", "expected"),
    [
        (ResolverConfig(), "nameserver 127.0.0.11\nsearch lan example.org\noptions edns0 timeout:2 ndots:0\n"),
        (
            ResolverConfig(servers=(ip_address("10.0.0.1"),), search=("corp",), options=("ndots:2", "rotate")),
            "nameserver 127.0.0.11\nsearch corp\noptions ndots:2 rotate\n",
        ),
        (ResolverConfig(search=(".",)), "nameserver 127.0.0.11\noptions edns0 timeout:2 ndots:0\n"),
    ],
)
def test_with_our_resolver(resolver: ResolverConfig, expected: str) -> None:
    assert sandbox_resolv_conf(resolver, HOST, embedded=EMBEDDED) == expected


@pytest.mark.parametrize(
    ("host", "ipv6", "expected"),
    [
        (HOST, False, ["192.0.2.53"]),
        (servers("127.0.0.53", "192.0.2.1", "2001:db8::1"), False, ["192.0.2.1"]),
        (servers("127.0.0.53", "192.0.2.1", "2001:db8::1"), True, ["192.0.2.1", "2001:db8::1"]),
        (servers("127.0.0.53", "::1", "fe80::1%eth0"), False, ["8.8.8.8", "8.8.4.4"]),
        (servers(), True, ["8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844"]),
    ],
)
def test_without_it_the_servers_that_can_be_reached(host: HostResolver, ipv6: bool, expected: list[str]) -> None:
    text = sandbox_resolv_conf(ResolverConfig(), host, embedded=None, ipv6=ipv6)
    assert [line.split()[1] for line in text.splitlines() if line.startswith("nameserver")] == expected
    assert "ndots" not in text


def test_without_it_the_servers_asked_for_are_taken_as_they_are() -> None:
    text = sandbox_resolv_conf(ResolverConfig(servers=(ip_address("127.0.0.1"),)), HOST, embedded=None)
    assert text.startswith("nameserver 127.0.0.1\nsearch")


def test_in_the_hosts_netns_loopback_is_in_reach() -> None:
    text = sandbox_resolv_conf(ResolverConfig(), servers("127.0.0.53"), embedded=None, in_host_netns=True)
    assert text == "nameserver 127.0.0.53\n"
    assert sandbox_resolv_conf(ResolverConfig(), servers(), embedded=None, in_host_netns=True) == ""


@pytest.mark.parametrize(
    "resolver",
    [
        ResolverConfig(search=("a b",)),
        ResolverConfig(search=("a\nnameserver 6.6.6.6",)),
        ResolverConfig(search=("-a",)),
        ResolverConfig(search=("a..b",)),
        ResolverConfig(search=("",)),
        ResolverConfig(search=("a" * 64,)),
        ResolverConfig(search=(".".join(["a" * 60] * 5),)),
        ResolverConfig(options=("ndots:x",)),
        ResolverConfig(options=("rotate\n",)),
        ResolverConfig(options=("",)),
        ResolverConfig(options=("two words",)),
        ResolverConfig(extra_hosts=(("a b", EMBEDDED),)),
        ResolverConfig(extra_hosts=(("a\n6.6.6.6 bank.example", EMBEDDED),)),
        ResolverConfig(extra_hosts=(("#", EMBEDDED),)),
    ],
)
def test_what_would_become_another_word_or_line_is_refused(resolver: ResolverConfig) -> None:
    with pytest.raises(ConfigError):
        check_resolver(resolver)
    with pytest.raises(ConfigError):
        sandbox_resolv_conf(resolver, HOST, embedded=EMBEDDED)


def test_the_stub_of_systemd_is_recognised() -> None:
    assert servers("127.0.0.53").is_stub
    assert not servers("127.0.0.53", "192.0.2.1").is_stub
    assert not servers().is_stub


def test_hosts() -> None:
    text = hosts_file(
        "web",
        "example.org",
        (ip_address("172.18.0.2"), ip_address("fd00::2")),
        (("db", ip_address("10.0.0.9")), ("host.docker.internal", ip_address("172.17.0.1"))),
        names=("shop", "web"),
    )
    assert text.splitlines() == [
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "fe00::\tip6-localnet",
        "ff00::\tip6-mcastprefix",
        "ff02::1\tip6-allnodes",
        "ff02::2\tip6-allrouters",
        "10.0.0.9\tdb",
        "172.17.0.1\thost.docker.internal",
        "172.18.0.2\tweb.example.org web shop",
        "fd00::2\tweb.example.org web shop",
    ]
    assert text.endswith("\n")


def test_hosts_of_a_bare_or_full_host_name() -> None:
    address = ip_address("172.18.0.2")
    assert hosts_file("web", "", [address]).splitlines()[-1] == "172.18.0.2\tweb"
    assert hosts_file("web.example.org", "", [address]).splitlines()[-1] == "172.18.0.2\tweb.example.org web"
    assert hosts_file("", "", [address]).splitlines()[-1] == "ff02::2\tip6-allrouters"


def test_a_bad_host_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="host name"):
        hosts_file("web\n6.6.6.6 bank", "", [EMBEDDED])
