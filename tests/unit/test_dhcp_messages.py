"""DHCP messages: written as scapy reads them, read as scapy writes them, and what an acknowledgement means."""

from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP

from ipam.dhcp import Kind, Message, Option, Terms, decode, encode, terms_of
from ipam.dhcp_client import DhcpLease
from netlib import codec
from netlib.model import NetnsRef

MAC = bytes.fromhex("02420a000002")
GRANT: dict[int, bytes] = {
    Option.SERVER: IPv4Address("10.0.0.1").packed,
    Option.SUBNET_MASK: IPv4Address("255.255.255.0").packed,
}


def ack(yours: str = "10.0.0.9", **options: bytes) -> Message:
    given: dict[int, bytes] = {Option[name]: value for name, value in options.items()}
    return Message(Kind.ACK, 7, MAC, yours=IPv4Address(yours), options={**GRANT, **given})


def terms(**options: bytes) -> Terms:
    found = terms_of(ack("10.0.0.9", **options))
    assert found is not None
    return found


def reply(*options: Any, **fields: Any) -> bytes:
    """A server's message, by scapy."""
    return bytes(BOOTP(op=2, xid=7, chaddr=MAC, yiaddr="10.0.0.9", **fields) / DHCP(options=[*options, "end"]))


def seconds(number: int) -> bytes:
    return number.to_bytes(4, "big")


def test_what_a_client_says_is_understood() -> None:
    options: dict[int, bytes] = {Option.CLIENT_IDENTIFIER: b"\0c1/pods/eth0", Option.PARAMETERS: b"\x03\x01", 224: b"x" * 300}
    body = encode(Message(Kind.REQUEST, 0x01020304, MAC, IPv4Address("10.0.0.9"), wants_broadcast=True, options=options))
    packet = BOOTP(body)
    assert (packet.op, packet.htype, packet.hlen, packet.xid) == (1, 1, 6, 0x01020304)
    assert (packet.ciaddr, packet.yiaddr, packet.siaddr) == ("10.0.0.9", "0.0.0.0", "0.0.0.0")
    assert packet.flags == 0x8000
    assert packet.chaddr[:6] == MAC
    assert packet[DHCP].options[:3] == [("message-type", 3), ("client_id", b"\0c1/pods/eth0"), ("param_req_list", [3, 1])]
    assert b"".join(value for code, value in packet[DHCP].options[3:5]) == b"x" * 300
    assert len(encode(Message(Kind.DISCOVER, 1, MAC))) == 300


def test_what_a_server_says_is_understood() -> None:
    body = reply(("message-type", "ack"), ("server_id", "10.0.0.1"), ("subnet_mask", "255.255.255.0"), ("lease_time", 60))
    message = decode(body)
    assert message is not None
    assert (message.kind, message.transaction, message.mac) == (Kind.ACK, 7, MAC)
    assert message.yours == IPv4Address("10.0.0.9")
    assert message.server == IPv4Address("10.0.0.1")
    found = terms_of(message)
    assert found is not None
    assert (str(found.address), found.lease, found.renewal, found.rebinding) == ("10.0.0.9/24", 60, 30, 51)


def test_options_go_on_in_other_fields_and_pieces() -> None:
    names = b"\x35\x01\x02\xff", b"\x06\x04\x01\x01\x01\x01\xff"  # kind, name server
    body = reply(("dhcp-option-overload", 3), ("name_server", "2.2.2.2"), file=names[0], sname=names[1])
    message = decode(body)
    assert message is not None
    assert message.kind is Kind.OFFER
    assert message.options[Option.NAME_SERVERS] == bytes([2, 2, 2, 2, 1, 1, 1, 1])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        reply(("message-type", "ack"))[:235],
        reply(),
        reply(("message-type", 9)),
        bytes(BOOTP(op=1, chaddr=MAC) / DHCP(options=[("message-type", "ack"), "end"])),
        bytes(BOOTP(op=2, chaddr=MAC, hlen=17) / DHCP(options=[("message-type", "ack"), "end"])),
        bytes(BOOTP(op=2, chaddr=MAC, options=b"\0\0\0\0") / DHCP(options=[("message-type", "ack"), "end"])),
        reply()[:240] + b"\x35\x02\x05",
    ],
)
def test_what_is_no_message_is_none(body: bytes) -> None:
    assert decode(body) is None


@given(st.binary(max_size=600), st.sampled_from([b"", reply(("message-type", "ack"))[:240]]))
def test_nothing_that_comes_in_does_harm(body: bytes, head: bytes) -> None:
    message = decode(head + body)
    if message is not None:
        terms_of(message)


@given(st.dictionaries(st.integers(1, 254), st.binary(max_size=300)))
def test_no_value_does_harm(options: dict[int, bytes]) -> None:
    terms_of(Message(Kind.ACK, 7, MAC, yours=IPv4Address("10.0.0.9"), options=options))
    terms_of(ack()._replace(options={**GRANT, **options}))


@pytest.mark.parametrize(
    ("message", "missing"),
    [
        (ack(), False),
        (ack("0.0.0.0"), True),
        (ack(SUBNET_MASK=b""), True),
        (ack(SUBNET_MASK=b"\xff\0\xff\0"), True),
        (ack(SERVER=b"\x0a"), True),
    ],
)
def test_half_a_grant_is_none(message: Message, missing: bool) -> None:
    assert (terms_of(message) is None) == missing


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (3600, 1800, 3060)),
        ({"LEASE_SECONDS": seconds(100)}, (100, 50, 85)),
        ({"LEASE_SECONDS": seconds(100), "RENEWAL_SECONDS": seconds(20), "REBINDING_SECONDS": seconds(30)}, (100, 20, 30)),
        ({"LEASE_SECONDS": seconds(100), "RENEWAL_SECONDS": seconds(40), "REBINDING_SECONDS": seconds(30)}, (100, 50, 85)),
        ({"LEASE_SECONDS": seconds(100), "RENEWAL_SECONDS": seconds(200)}, (100, 50, 85)),
        ({"LEASE_SECONDS": b"\0"}, (3600, 1800, 3060)),
        ({"LEASE_SECONDS": seconds(0)}, (1, 1, 1)),
        ({"LEASE_SECONDS": b"\xff" * 4}, (None, 0x7FFFFFFF, 3650722200)),
    ],
)
def test_when_to_renew(options: dict[str, bytes], expected: tuple[int | None, int, int]) -> None:
    found = terms(**options)
    assert (found.lease, found.renewal, found.rebinding) == expected


def routes(**options: bytes) -> list[str]:
    return [f"{target} {router}" for target, router in terms(**options).routes]


def test_the_router_is_the_default_route() -> None:
    found = terms(ROUTERS=bytes([10, 0, 0, 1, 10, 0, 0, 2]))
    assert found.gateway == IPv4Address("10.0.0.1")
    assert found.routes == ((IPv4Network("0.0.0.0/0"), IPv4Address("10.0.0.1")),)


def test_old_routes_come_before_the_default_route() -> None:
    old = bytes([10, 1, 2, 3, 10, 0, 0, 5, 172, 16, 9, 9, 10, 0, 0, 6, 192, 168, 1, 0, 10, 0, 0, 7, 1, 2])
    assert routes(STATIC_ROUTES=old, ROUTERS=bytes([10, 0, 0, 1])) == [
        "10.0.0.0/8 10.0.0.5",
        "172.16.0.0/16 10.0.0.6",
        "192.168.1.0/24 10.0.0.7",
        "0.0.0.0/0 10.0.0.1",
    ]


def test_classless_routes_stand_in_for_all_others() -> None:
    classless = bytes([0, 10, 0, 0, 9, 25, 10, 7, 0, 128, 0, 0, 0, 0, 32, 1, 2, 3, 4, 10, 0, 0, 8])
    assert routes(CLASSLESS_ROUTES=classless, ROUTERS=bytes([10, 0, 0, 1]), STATIC_ROUTES=bytes(8)) == [
        "0.0.0.0/0 10.0.0.9",
        "10.7.0.128/25 0.0.0.0",
        "1.2.3.4/32 10.0.0.8",
    ]
    assert routes(CLASSLESS_ROUTES=b"\x21\0", ROUTERS=bytes([10, 0, 0, 1])) == ["0.0.0.0/0 10.0.0.1"]


@pytest.mark.parametrize(
    ("written", "names"),
    [
        (b"\3eng\5apple\3com\0\x09marketing\xc0\x04", ("eng.apple.com", "marketing.apple.com")),
        (b"\1a\0\xc0\x03", ("a",)),
        (b"\1a\0\xc0\xff", ("a",)),
        (b"\1a\0\5ab", ("a",)),
        (b"\0", ()),
        (b"\x80", ()),
    ],
)
def test_search_domains(written: bytes, names: tuple[str, ...]) -> None:
    found = terms(SEARCH=written, NAME_SERVERS=bytes([1, 1, 1, 1, 8, 8, 8, 8, 9]), DOMAIN_NAME=b"example.org\0")
    assert found.search == names
    assert found.name_servers == ("1.1.1.1", "8.8.8.8")
    assert found.domain == "example.org"


def test_a_lease_is_written_down_whole_and_explained() -> None:
    lease = DhcpLease(
        netns=NetnsRef("/run/netns/web"),
        link="eth0",
        client="c1/lan/eth0",
        options=((Option.PARAMETERS, b"\3\1"), (224, b"\xff\0")),
        address=IPv4Interface("10.0.0.9/24"),
        server=IPv4Address("10.0.0.1"),
        since=1.5,
        lease=None,
        renewal=1,
        rebinding=2,
    )
    assert codec.decode(codec.encode(lease), DhcpLease) == lease
    assert str(lease.key) == "dhcp_lease/host//run/netns/web/eth0"
    assert not lease.is_over
    command = "ip netns exec web udhcpc -i eth0 -r 10.0.0.9 -x 0x3d:0063312f6c616e2f65746830"
    assert list(lease.commands()) == [command]
