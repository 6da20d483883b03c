"""Questions and their exact answers, read back by an independent library; and no bytes at all that do harm."""

import random
from collections.abc import Iterator
from ipaddress import ip_address

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netlib.dns.message import Query, Rcode, parse_query, truncated
from netlib.dns.resolver import TTL, Answer, Forward, answer
from netlib.dns.zone import View, Zone

WEB = (ip_address("172.18.0.2"), ip_address("fd00::2"))
MANY = tuple(ip_address(f"172.18.1.{number}") for number in range(1, 101))
ZONE = Zone(
    network="net",
    resolves_names=True,
    internal=False,
    names={
        "web": WEB,
        "four": (ip_address("172.18.0.4"),),
        "three": MANY[:3],
        "many": MANY,
        "nothing": (),
        "a.b": (ip_address("172.18.0.5"),),
    },
    pointers={"2.0.18.172.in-addr.arpa": ("web.net",), WEB[1].reverse_pointer: ("web.net",)},
)
VIEW = View(zones=(ZONE,))
INSIDE = View(zones=(ZONE,), forwards=False)


def ask(query: dns.message.Message, view: View = VIEW, *, stream: bool = False) -> dns.message.Message:
    """Put *query*, and read the answer as strictly as the library can."""
    wire = query.to_wire()
    found = answer(wire, view, stream=stream)
    assert isinstance(found, Answer)
    response = dns.message.from_wire(wire[:2] + next(found.bodies))
    assert query.is_response(response)
    assert response.flags & dns.flags.RA
    return response


def question(name: str, kind: str = "A", **options: object) -> dns.message.Message:
    return dns.message.make_query(name, kind, **options)  # type: ignore[arg-type]


def values(response: dns.message.Message) -> list[str]:
    return [str(record) for rrset in response.answer for record in rrset]


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("web", "A", ["172.18.0.2"]),
        ("web.net", "A", ["172.18.0.2"]),
        ("WeB.nEt", "A", ["172.18.0.2"]),
        ("web", "AAAA", ["fd00::2"]),
        ("web", "ANY", ["172.18.0.2", "fd00::2"]),
        ("a.b", "A", ["172.18.0.5"]),
        ("a.b.net", "A", ["172.18.0.5"]),
        ("2.0.18.172.in-addr.arpa", "PTR", ["web.net."]),
        (WEB[1].reverse_pointer.upper(), "PTR", ["web.net."]),
        ("2.0.18.172.in-addr.arpa", "ANY", ["web.net."]),
        ("2.0.18.172.in-addr.arpa", "A", []),
        ("four", "AAAA", []),
        ("nothing", "A", []),
        ("web", "MX", []),
        ("web", "SRV", []),
        ("web", "TXT", []),
        ("web", "HTTPS", []),
        ("web", "PTR", []),
    ],
)
def test_what_is_ours_is_answered_with_authority(name: str, kind: str, expected: list[str]) -> None:
    response = ask(question(name, kind))
    assert response.rcode() == dns.rcode.NOERROR
    assert response.flags & dns.flags.AA
    assert not response.flags & dns.flags.TC
    assert values(response) == expected
    assert all(rrset.ttl == TTL for rrset in response.answer)


@pytest.mark.parametrize("name", ["other", "web.other", "net", "example.org", ".", "3.0.18.172.in-addr.arpa", "_http._tcp.web"])
def test_what_is_not_ours_is_forwarded_and_nowhere_without_a_way_out(name: str) -> None:
    assert isinstance(answer(question(name).to_wire(), VIEW), Forward)
    response = ask(question(name), INSIDE)
    assert response.rcode() == dns.rcode.NXDOMAIN
    assert not response.answer


def test_a_dot_inside_a_label_is_not_a_separator() -> None:
    assert isinstance(answer(question(r"a\.b").to_wire(), VIEW), Forward)


def test_the_question_comes_back_as_it_was_spelled() -> None:
    wire = question("wEb.NeT").to_wire()
    found = answer(wire, VIEW)
    assert isinstance(found, Answer)
    assert wire[12:] in next(found.bodies)


@pytest.mark.parametrize(
    ("flags", "kept"), [("RD", True), ("", False), ("RD CD", True), ("RD AD", True)], ids=["rd", "none", "cd", "ad"]
)
def test_flags(flags: str, kept: bool) -> None:
    query = question("web")
    query.flags = dns.flags.from_text(flags)
    response = ask(query)
    assert bool(response.flags & dns.flags.RD) is kept
    assert response.flags & dns.flags.CD == query.flags & dns.flags.CD
    assert not response.flags & dns.flags.AD


@pytest.mark.parametrize(("kind", "rdclass"), [("TXT", "CH"), ("A", "HS"), ("AXFR", "IN"), ("IXFR", "IN")])
@pytest.mark.parametrize("name", ["web", "version.bind"])
def test_other_classes_and_transfers_are_refused(name: str, kind: str, rdclass: str) -> None:
    query = question(name, "A")
    query.question[0].rdclass = dns.rdataclass.from_text(rdclass)
    query.question[0].rdtype = dns.rdatatype.from_text(kind)
    wire = query.to_wire()
    found = answer(wire, VIEW)
    assert isinstance(found, Answer)
    body = next(found.bodies)
    assert body[1] & 15 == Rcode.REFUSED
    assert body[2:10] == b"\0\1" + bytes(6)


def test_class_any_is_the_internet() -> None:
    wire = bytearray(question("web").to_wire())
    wire[-1] = 255
    found = answer(bytes(wire), VIEW)
    assert isinstance(found, Answer)
    assert WEB[0].packed in next(found.bodies)


@pytest.mark.parametrize(("size", "count"), [(None, 30), (0, 29), (512, 29), (1232, 74), (4096, 100), (65535, 100)])
def test_udp_answers_fit_the_size_the_client_takes(size: int | None, count: int) -> None:
    query = question("many") if size is None else question("many", use_edns=0, payload=size)
    response = ask(query)
    assert len(response.to_wire()) <= max(size or 0, 512)
    assert len(values(response)) == count
    assert bool(response.flags & dns.flags.TC) is (count < 100)
    assert (response.edns == 0) is (size is not None)


def test_a_forged_size_is_bounded() -> None:
    zone = Zone(
        network="net",
        resolves_names=True,
        internal=False,
        names={"huge": tuple(ip_address((10 << 24) + number) for number in range(5000))},
        pointers={},
    )
    view = View(zones=(zone,))
    assert len(ask(question("huge", use_edns=0, payload=65535), view).to_wire()) <= 4096
    by_tcp = ask(question("huge"), view, stream=True)
    assert 65000 < len(by_tcp.to_wire()) <= 65535
    assert by_tcp.flags & dns.flags.TC


def test_tcp_answers_are_whole() -> None:
    response = ask(question("many"), stream=True)
    assert len(values(response)) == 100
    assert not response.flags & dns.flags.TC


def bodies_of(name: str, turn: int = 0, stream: bool = False) -> Iterator[list[str]]:
    wire = question(name).to_wire()
    found = answer(wire, VIEW, turn=turn, stream=stream)
    assert isinstance(found, Answer)
    for body in found.bodies:
        yield values(dns.message.from_wire(wire[:2] + body, one_rr_per_rrset=True))


def test_addresses_rotate_from_answer_to_answer() -> None:
    seen = bodies_of("three")
    first = [next(seen)[0] for _ in range(6)]
    assert first == ["172.18.1.1", "172.18.1.2", "172.18.1.3"] * 2
    assert sorted(next(seen)) == ["172.18.1.1", "172.18.1.2", "172.18.1.3"]
    assert next(bodies_of("three", turn=5))[0] == "172.18.1.3"


def test_every_address_comes_by_in_cut_answers_too() -> None:
    seen = bodies_of("many")
    assert {next(seen)[-1] for _ in range(100)} == {str(address) for address in MANY}


def test_edns_is_answered_with_edns() -> None:
    response = ask(question("web", use_edns=0, want_dnssec=True, payload=1400))
    assert response.edns == 0
    assert response.ednsflags & dns.flags.DO
    assert response.payload == 4096
    assert ask(question("web")).edns == -1
    cookie = dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"12345678")
    assert ask(question("web", use_edns=0, options=[cookie])).rcode() == dns.rcode.NOERROR
    assert ask(question("other", use_edns=0), INSIDE).edns == 0


def test_edns_of_a_later_version_is_told_so() -> None:
    response = ask(question("web", use_edns=1))
    assert response.rcode() == dns.rcode.BADVERS
    assert not response.answer


def header(flags: int = 0x0100, *counts: int) -> bytes:
    return b"\x12\x34" + flags.to_bytes(2, "big") + b"".join(count.to_bytes(2, "big") for count in counts)


ASKED = b"\3web\0\0\1\0\1"
OPT = b"\0\0\x29\x10\0\0\0\0\0\0\0"


@pytest.mark.parametrize(
    "wire",
    [
        header(0, 0, 0, 0, 0),
        header(0, 2, 0, 0, 0) + ASKED * 2,
        header(0, 1, 0, 0, 0),
        header(0, 1, 0, 0, 0) + ASKED[:-1],
        header(0, 1, 0, 0, 0) + b"\3we",
        header(0, 1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1",
        header(0, 1, 0, 0, 0) + b"\x40" + b"a" * 64 + b"\0\0\1\0\1",
        header(0, 1, 0, 0, 0) + b"\1a" * 128 + b"\0\0\1\0\1",
        header(0, 1, 0, 0, 0) + ASKED + b"trailing",
        header(0, 1, 0, 0, 1) + ASKED,
        header(0, 1, 0, 0, 1) + ASKED + OPT[:-1],
        header(0, 1, 0, 0, 2) + ASKED + OPT * 2,
        header(0, 1, 0, 0, 1) + ASKED + b"\3web" + OPT,
        header(0, 1, 0, 0, 1) + ASKED + OPT[:-1] + b"\xff",
        header(0, 1, 9, 0, 0) + ASKED,
        header(0, 1, 0, 0, 65535) + ASKED + OPT,
    ],
)
def test_the_malformed_is_formerr(wire: bytes) -> None:
    found = answer(wire, VIEW)
    assert isinstance(found, Answer)
    assert not found.steady
    response = dns.message.from_wire(wire[:2] + next(found.bodies))
    assert response.rcode() == dns.rcode.FORMERR
    assert response.id == 0x1234


@pytest.mark.parametrize("opcode", [dns.opcode.NOTIFY, dns.opcode.UPDATE, dns.opcode.STATUS, 15])
def test_other_opcodes_are_notimp(opcode: int) -> None:
    wire = header(opcode << 11, 1, 0, 0, 0) + ASKED
    found = answer(wire, VIEW)
    assert isinstance(found, Answer)
    body = next(found.bodies)
    assert body[1] & 15 == Rcode.NOTIMP
    assert body[0] >> 3 & 15 == opcode


@pytest.mark.parametrize("wire", [b"", b"\x12", header(0)[:11], header(0x8000, 1, 0, 0, 0) + ASKED, bytes(11)])
def test_the_short_and_responses_get_no_answer(wire: bytes) -> None:
    assert answer(wire, VIEW) is None


def test_the_longest_name_is_read() -> None:
    name = ".".join(["a" * 63] * 3 + ["b" * 61])
    found = answer(question(name).to_wire(), VIEW)
    assert isinstance(found, Forward)
    assert found.query.name == name


def test_other_additional_records_are_passed_over() -> None:
    wire = header(0x0100, 1, 0, 0, 2) + ASKED + b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4\1\2\3\4" + OPT
    query = parse_query(wire)
    assert isinstance(query, Query)
    assert query.edns is not None
    assert query.limit == 4096


def test_truncated_keeps_the_question_and_says_so() -> None:
    query = question("many")
    response = dns.message.make_response(query)
    parsed = parse_query(query.to_wire())
    assert isinstance(parsed, Query)
    cut = dns.message.from_wire(truncated(response.to_wire() + b"whatever", parsed))
    assert cut.flags & dns.flags.TC
    assert query.is_response(cut)


def check_any(wire: bytes, view: View, *, stream: bool) -> None:
    found = answer(wire, view, stream=stream)
    if isinstance(found, Answer):
        body = next(found.bodies)
        response = dns.message.from_wire(wire[:2] + body)
        assert response.flags & dns.flags.QR
        assert len(body) + 2 <= (65535 if stream else 4096)
    elif found is None:
        assert len(wire) < 12 or wire[2] & 0x80
    else:
        assert view.forwards


@settings(max_examples=1500, deadline=None)
@given(st.binary(max_size=120), st.booleans(), st.sampled_from([VIEW, INSIDE, View()]))
def test_random_bytes_do_no_harm(wire: bytes, stream: bool, view: View) -> None:
    check_any(wire, view, stream=stream)


def test_mutated_queries_do_no_harm() -> None:
    source = random.Random(20240815)
    good = [
        question(name, kind, **options).to_wire()
        for name in ("web", "many.net", "2.0.18.172.in-addr.arpa", "example.org")
        for kind in ("A", "ANY", "PTR")
        for options in ({}, {"use_edns": 0, "payload": 1232})
    ]
    for _ in range(20_000):
        wire = bytearray(source.choice(good))
        for _ in range(source.randrange(1, 4)):
            position = source.randrange(len(wire))
            wire[position] = source.choice((0, 1, 63, 64, 192, 255, source.randrange(256)))
        check_any(bytes(wire[: source.choice((len(wire), source.randrange(len(wire) + 1)))]), INSIDE, stream=False)
