"""Zones that grow and shrink member by member, and events of nftables: pure parts of netlibd."""

import socket
import struct
from ipaddress import ip_address, ip_interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netlib.daemon.serving import NetworkZone
from netlib.dns.zone import build_zone
from netlib.firewall.backend import RuleChange
from netlib.firewall.nft_events import meaning, meaningful_only
from netlib.kernel.bpf import attach_filter
from netlib.kernel.netlink import attribute
from netlib.model import Endpoint, NetnsRef, Network, Sandbox

NETWORK = Network(id="n" * 64, name="web", driver="bridge", created=0.0)


def _member(number: int, aliases: tuple[str, ...] = ()) -> tuple[Endpoint, Sandbox]:
    sandbox = Sandbox(
        id=f"{number:064x}",
        name=f"box{number}",
        created=0.0,
        netns=NetnsRef(f"/run/netns/box{number}"),
        owned=True,
        hostname="host",
    )
    endpoint = Endpoint(
        id=f"e{number:063x}",
        network=NETWORK.id,
        sandbox=sandbox.id,
        created=0.0,
        addresses=(ip_interface(f"10.0.0.{number}/24"), ip_interface(f"fd00::{number:x}/64")),
        aliases=aliases,
    )
    return endpoint, sandbox


@given(st.lists(st.tuples(st.integers(1, 6), st.sampled_from([(), ("db",), ("db", "Cache")])), max_size=30))
def test_a_zone_kept_in_step_is_the_zone_built_anew(changes: list[tuple[int, tuple[str, ...]]]) -> None:
    zone = NetworkZone(NETWORK)
    members: dict[int, tuple[Endpoint, Sandbox]] = {}
    for number, aliases in changes:
        if number in members:
            zone.update([members.pop(number)[0].id], ())
        else:
            members[number] = _member(number, aliases)
            zone.update((), [members[number]])
        assert zone.zone == build_zone(NETWORK, members.values())
        assert sorted(zone.sandboxes.values()) == sorted(sandbox.id for _, sandbox in members.values())


def test_a_member_may_change_in_one_step() -> None:
    zone = NetworkZone(NETWORK)
    before = _member(1, ("old",))
    after = _member(1, ("new",))
    zone.update((), [before])
    former = zone.zone
    zone.update([before[0].id], [after])
    assert zone.zone.find("old") is None
    assert zone.zone.find("new") == (ip_address("10.0.0.1"), ip_address("fd00::1"))
    assert zone.zone.pointers == {
        ip_address("10.0.0.1").reverse_pointer: ("box1.web",),
        ip_address("fd00::1").reverse_pointer: ("box1.web",),
    }
    assert former.find("old") is not None  # a snapshot is swapped, never edited


def _event(message: int, family: int, table: str) -> bytes:
    body = struct.pack("=BBH", family, 0, 0) + attribute(1, table.encode() + b"\0")
    return struct.pack("=IHHII", 16 + len(body), 10 << 8 | message, 0, 0, 0) + body


NEWTABLE, DELTABLE, NEWCHAIN, DELCHAIN, NEWRULE, DELRULE, NEWSETELEM, DELSETELEM, NEWGEN = 0, 2, 3, 5, 6, 8, 12, 14, 15
IPV4, INET, BRIDGE = 2, 1, 7


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (_event(DELTABLE, INET, "netlib"), RuleChange.TABLE),
        (_event(DELRULE, INET, "netlib"), RuleChange.TABLE),
        (_event(DELCHAIN, INET, "netlib"), RuleChange.TABLE),
        (_event(DELSETELEM, INET, "netlib"), RuleChange.NOTHING),  # a port unpublished: ours, a thousand times a day
        (_event(NEWSETELEM, INET, "netlib"), RuleChange.NOTHING),
        (_event(NEWCHAIN, INET, "netlib"), RuleChange.NOTHING),
        (_event(DELTABLE, INET, "netlib2"), RuleChange.FOREIGN),
        (_event(DELTABLE, IPV4, "netlib"), RuleChange.FOREIGN),
        (_event(NEWCHAIN, IPV4, "filter"), RuleChange.FOREIGN),
        (_event(DELRULE, IPV4, "filter"), RuleChange.FOREIGN),
        (_event(NEWRULE, IPV4, "filter"), RuleChange.NOTHING),
        (_event(DELTABLE, BRIDGE, "filter"), RuleChange.NOTHING),
        (_event(DELTABLE, BRIDGE, "netlib_members"), RuleChange.TABLE),
        (_event(DELRULE, BRIDGE, "netlib"), RuleChange.TABLE),
        (_event(DELSETELEM, BRIDGE, "netlib_members"), RuleChange.NOTHING),
        (_event(NEWGEN, INET, ""), RuleChange.NOTHING),
        (
            _event(NEWGEN, INET, "") + _event(DELRULE, IPV4, "nat") + _event(DELTABLE, INET, "netlib"),
            RuleChange.TABLE | RuleChange.FOREIGN,
        ),
        (b"", RuleChange.NOTHING),
        (b"\0" * 40, RuleChange.NOTHING),
    ],
)
def test_what_an_event_means(data: bytes, expected: RuleChange) -> None:
    assert meaning(data) == expected


@pytest.mark.parametrize(
    ("data", "arrives"),
    [
        (_event(NEWSETELEM, INET, "netlib"), False),
        (_event(DELSETELEM, BRIDGE, "netlib_members") * 4, False),
        (_event(NEWGEN, INET, ""), False),
        (_event(NEWRULE, IPV4, "filter") + _event(NEWSETELEM, INET, "a-table-with-a-longer-name"), False),
        (_event(NEWSETELEM, INET, "netlib") + _event(DELRULE, INET, "netlib"), True),
        (_event(NEWSETELEM, INET, "odd") * 15 + _event(DELTABLE, INET, "netlib"), True),
        (_event(NEWSETELEM, INET, "netlib") * 17, True),  # more than the filter looks at
        (_event(DELCHAIN, BRIDGE, "netlib"), True),
        (_event(NEWCHAIN, IPV4, "filter"), True),
    ],
)
def test_the_kernel_wakes_nobody_for_events_without_a_meaning(data: bytes, arrives: bool) -> None:
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with sender, receiver:
        attach_filter(receiver, meaningful_only())
        receiver.setblocking(False)
        sender.send(data)
        try:
            assert receiver.recv(1 << 16) == data
            assert arrives
        except BlockingIOError:
            assert not arrives
            assert meaning(data) is RuleChange.NOTHING


@given(st.binary(max_size=200))
def test_any_bytes_mean_something(data: bytes) -> None:
    assert isinstance(meaning(data), RuleChange)
