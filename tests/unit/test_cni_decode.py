"""Foreign JSON into typed values: what Go's decoder takes is taken, and what does not fit is told by its key."""

import json
from enum import StrEnum
from ipaddress import ip_address, ip_interface, ip_network
from typing import Annotated, Any, Literal

import pytest
from msgspec import Meta, Struct, field

from cni_plugins.decode import MAX_BYTES, Address, Cidr, Subnet, convert, parse_address, parse_cidr, read_json
from cni_plugins.netconf import NetConf
from cni_plugins.protocol import CniError, Code


class Backend(StrEnum):
    """What an enumeration may be."""

    NFTABLES = "nftables"
    IPTABLES = "iptables"


class Range(Struct, frozen=True, rename="camel"):
    """An object within lists."""

    subnet: Subnet
    range_start: Address | None = None


class SampleConf(NetConf, frozen=True, kw_only=True, rename="camel"):
    """One field of each kind that a plugin declares."""

    bridge: str = "cni0"
    is_gateway: bool = False
    mtu: Annotated[int, Meta(ge=0, le=65535)] = 0
    vlan: Annotated[int, Meta(ge=0)] | None = None
    mode: Literal["bridge", "private"] = "bridge"
    backend: Backend | None = None
    ranges: tuple[tuple[Range, ...], ...] = ()
    sysctl: dict[str, str] = field(default_factory=dict)
    gateway: Address | None = None
    subnet: Cidr | None = None
    pci: str = field(name="pciBusID", default="")


def read(**keys: Any) -> SampleConf:
    return convert({"name": "n", **keys}, SampleConf, "bridge")


def refusal(**keys: Any) -> CniError:
    with pytest.raises(CniError) as caught:
        read(**keys)
    return caught.value


def test_a_plugin_declares_its_keys_and_gets_them_typed() -> None:
    conf = read(
        type="bridge",
        isGateway=True,
        ipMasq=True,
        mtu=1400,
        mode="private",
        backend="nftables",
        ranges=[[{"subnet": "10.1.0.0/16", "rangeStart": "10.1.0.9"}]],
        sysctl={"net.core.somaxconn": "500"},
        gateway="fd00::1",
        subnet="10.1.2.3/24",
        pciBusID="0000:00:1f.6",
        ipam={"type": "host-local", "unknown": 1},
        dns={"nameservers": ["10.1.0.1"]},
    )
    assert conf == SampleConf(
        name="n",
        type="bridge",
        is_gateway=True,
        ip_masq=True,
        mtu=1400,
        mode="private",
        backend=Backend.NFTABLES,
        ranges=((Range(ip_network("10.1.0.0/16"), ip_address("10.1.0.9")),),),
        sysctl={"net.core.somaxconn": "500"},
        gateway=ip_address("fd00::1"),
        subnet=ip_interface("10.1.2.3/24"),
        pci="0000:00:1f.6",
        ipam=conf.ipam,
        dns=conf.dns,
    )
    assert conf.ipam is not None
    assert conf.ipam.type == "host-local"
    assert conf.dns.nameservers == ("10.1.0.1",)


def test_keys_are_taken_as_go_takes_them() -> None:
    assert read(ISGATEWAY=True, PciBusID="x", unknown={"a": [None]}).is_gateway
    assert read(isGateway=None, mtu=None, ranges=None, ipam=None, dns=None, gateway=None) == read()
    assert read(gateway="") == read(), "Go's net.IP reads an empty text as no address"
    assert read(sysctl={"A": "1", "a": "2"}).sysctl == {"A": "1", "a": "2"}, "keys of a map are the user's own"
    assert convert({"ranges": [[{"SUBNET": "10.0.0.0/8"}]], "name": "n"}, SampleConf, "x").ranges[0][0].range_start is None


@pytest.mark.parametrize(
    ("keys", "code", "message"),
    [
        ({"isGateway": "yes"}, 6, 'bridge: isGateway: expected a boolean, got "yes"'),
        ({"isGateway": 1}, 6, "bridge: isGateway: expected a boolean, got 1"),
        ({"mtu": "1500"}, 6, 'bridge: mtu: expected a whole number, got "1500"'),
        ({"mtu": 1.5}, 6, "bridge: mtu: expected a whole number, got 1.5"),
        ({"mtu": True}, 6, "bridge: mtu: expected a whole number, got true"),
        ({"vlan": 1 << 70}, 6, "bridge: vlan: expected a whole number, got 1.1805916207174113e+21"),
        ({"mtu": 65536}, 7, "bridge: mtu: expected `int` <= 65535, got 65536"),
        ({"vlan": -1}, 7, "bridge: vlan: expected `int` >= 0, got -1"),
        ({"mode": "vepa"}, 7, 'bridge: mode: expected one of bridge, private, got "vepa"'),
        ({"backend": "firewalld"}, 7, 'bridge: backend: expected one of nftables, iptables, got "firewalld"'),
        ({"mode": 1}, 6, "bridge: mode: expected a text, got 1"),
        ({"bridge": ["a"]}, 6, 'bridge: bridge: expected a text, got ["a"]'),
        ({"ipam": "host-local"}, 6, 'bridge: ipam: expected an object, got "host-local"'),
        ({"ipam": {"type": 3}}, 6, "bridge: ipam.type: expected a text, got 3"),
        ({"dns": {"search": ["a", 2]}}, 6, "bridge: dns.search[1]: expected a text, got 2"),
        ({"ranges": [[], [{}]]}, 7, "bridge: ranges[1][0].subnet: this key is required"),
        ({"ranges": [[{"subnet": "10.0.0.1/8"}]]}, 7,
         'bridge: ranges[0][0].subnet: host bits are set: expected a subnet like 10.0.0.0/8, got "10.0.0.1/8"'),
        ({"ranges": [[{"subnet": "x"}]]}, 7,
         'bridge: ranges[0][0].subnet: expected a subnet like 10.1.0.0/16 or fd00::/64, got "x"'),
        ({"ranges": {}}, 6, "bridge: ranges: expected a list, got {}"),
        ({"sysctl": {"a": 1}}, 6, "bridge: sysctl[...]: expected a text"),
        ({"capabilities": {"ips": "x"}}, 6, "bridge: capabilities[...]: expected a boolean"),
        ({"gateway": "10.0.0.1/8"}, 7, 'bridge: gateway: expected an address like 10.1.0.1 or fd00::1, got "10.0.0.1/8"'),
        ({"gateway": 3}, 6, "bridge: gateway: expected the text of an address, got 3"),
        ({"subnet": ""}, 7,
         'bridge: subnet: expected an address with its prefix length like 10.1.0.2/16 or fd00::2/64, got ""'),
        ({"bridge": ["a" * 100]}, 6, f'bridge: bridge: expected a text, got ["{"a" * 58}…'),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_by_its_key(keys: dict[str, Any], code: int, message: str) -> None:
    error = refusal(**keys)
    assert (error.code, str(error)) == (code, message)


@pytest.mark.parametrize("text", [
    "10.0.0.2", "10.0.0.2/", "10.0.0.2/33", "10.0.0.2/+8", "10.0.0.2/255.0.0.0", "10.0.0.02/8",
    "fe80::1%eth0/64", "/8", "10.0.0.2/ 8", "10.0.0.2/8/8", "", "::1/129", "10.0.0.2/٨",
])  # fmt: skip
def test_addresses_with_prefix_lengths_that_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected an address with its prefix length"):
        parse_cidr(text)


def test_addresses_are_read_as_go_reads_them() -> None:
    assert parse_cidr("10.0.0.2/024") == ip_interface("10.0.0.2/24")
    assert parse_cidr("::ffff:10.0.0.2/120") == ip_interface("10.0.0.2/24")
    assert parse_cidr("::ffff:10.0.0.2/64") == ip_interface("::ffff:10.0.0.2/64")
    assert parse_address("::ffff:10.0.0.2") == ip_address("10.0.0.2")
    for text in ("10.0.0.1/8", "fe80::1%eth0", "x", "", "1.2.3"):
        with pytest.raises(ValueError, match="expected an address like"):
            parse_address(text)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "what: no JSON: Input data was truncated; the text is empty"),
        (b" \n", "what: no JSON: Input data was truncated; the text is empty"),
        (b'{"a":', 'what: no JSON: Input data was truncated; the text begins "{\\"a\\":"'),
        (b"{} {}", "what: no JSON: JSON is malformed: trailing characters"),
        (b'{"a": NaN}', "what: no JSON: JSON is malformed: invalid character"),
        (b"\xef\xbb\xbf{}", "what: no JSON: JSON is malformed: invalid character"),
        ('{"a": 1}'.encode("utf-16"), "what: no JSON"),
        (b'{"a": 1e999}', "what: no JSON: Number out of range"),
        (b'{"a": ' + b"1" * 5000 + b"}", "what: no JSON: Integer value out of range"),
        (b'{"a": "\\ud800"}', "what: no JSON"),
        (b"[1]", "what: expected an object, got [1]"),
        (b"1" * 30, "what: expected an object, got 111111111111111111111111111111"),
        (b'"x"', 'what: expected an object, got "x"'),
        (b'{"a":' * 20000, "what: nested too deeply"),
        (b"[" * 20000, "what: nested too deeply"),
        (b" " * (MAX_BYTES + 1), f"what: {MAX_BYTES + 1} bytes are too many"),
    ],
)  # fmt: skip
def test_what_is_no_json_object_is_refused_in_a_sentence(body: bytes, message: str) -> None:
    with pytest.raises(CniError) as caught:
        read_json(body, "what")
    assert str(caught.value).startswith(message)
    assert caught.value.code == Code.DECODING_FAILURE


def test_json_that_go_takes_is_taken() -> None:
    assert read_json(b"null", "what") == {}
    assert read_json(b'{"a": 1, "a": 2}', "what") == {"a": 2}
    assert read_json(b'{"a": "\xff"}', "what") == {"a": "\ufffd"}
    assert read_json(json.dumps({"a": 1 << 63}).encode(), "what") == {"a": 1 << 63}
