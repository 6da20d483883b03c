"""Letters as a secret: which are varied, what counts as an answer, and how the client gets its own back."""

import time
from ipaddress import ip_address

import dns.message
import dns.name
import dns.rrset
import pytest

from netlib.dns import spelling
from netlib.dns.message import Query, parse_query, respelled
from netlib.dns.spelling import FoldingServers, Verdict, judge, mixed


def parsed(wire: bytes) -> Query:
    query = parse_query(wire)
    assert isinstance(query, Query)
    return query


def test_only_letters_of_the_name_are_varied() -> None:
    query = parsed(dns.message.make_query("a1-b_2.XYZ.example", "HTTPS").to_wire())  # HTTPS: its number is that of a letter
    seen = {mixed(query.question) for _ in range(200)}
    assert len(seen) > 100
    for question in seen:
        assert question[-4:] == b"\0\x41\0\x01"
        assert question.lower() == query.question.lower()
        assert question[0] == 6
        assert dns.name.from_wire(question, 0)[0] == dns.name.from_text("a1-b_2.xyz.example")
    columns = zip(*(question[:-4] for question in seen), strict=True)
    assert all(len(set(column)) == (2 if chr(max(column)).isalpha() else 1) for column in columns)


def test_the_root_has_no_letters() -> None:
    assert mixed(b"\0\0\2\0\1") == b"\0\0\2\0\1"


def test_what_is_an_answer() -> None:
    asked = dns.message.make_query("ExAmPlE.org", "A", id=0x1234)
    wire = asked.to_wire()
    query = parsed(dns.message.make_query("example.org", "A").to_wire())
    response = dns.message.make_response(asked).to_wire()
    folded = response[:12] + response[12:].lower()
    other_type = response[:-3] + b"\x1c" + response[-2:]
    assert judge(response, wire, query) is Verdict.ANSWER
    assert judge(folded, wire, query) is Verdict.FOLDED
    for foreign in (wire, response[:11], b"", b"\xff" + response[1:], response[:20] + b"X" + response[21:], other_type):
        assert judge(foreign, wire, query) is Verdict.FOREIGN
    bare = response[:3] + b"\x05\0\0" + bytes(6)
    assert judge(bare, wire, query) is Verdict.ANSWER  # REFUSED, the question left out
    assert judge(bare[:3] + b"\x03" + bare[4:], wire, query) is Verdict.FOREIGN  # NXDOMAIN of what?


def test_bytes_of_the_type_are_not_taken_for_letters() -> None:
    """Types 65 and 97 differ as a letter and its capital do."""
    asked = dns.message.make_query("example.org", "HTTPS")
    query = parsed(asked.to_wire())
    response = dns.message.make_response(dns.message.make_query("example.org", "TYPE97", id=asked.id)).to_wire()
    assert judge(response, asked.to_wire(), query) is Verdict.FOREIGN


@pytest.mark.parametrize("compressed", [True, False])
def test_names_in_records_follow_the_question(compressed: bool) -> None:
    query = dns.message.make_query("example.org", "A")
    response = dns.message.make_response(query)
    response.answer = [
        dns.rrset.from_text("ExAmple.oRg.", 60, "IN", "CNAME", "other.test."),
        dns.rrset.from_text("other.test.", 60, "IN", "TXT", '"\\007eXaMpLe\\003oRg\\000"'),
    ]
    wire = response.to_wire()
    spelled = b"\7ExAmple\3oRg\0"
    wire = wire[:12] + spelled + wire[12 + len(spelled) :]
    if not compressed:
        wire = wire.replace(b"\xc0\x0c", spelled)
    answer = dns.message.from_wire(respelled(wire, b"\7EXAMPLE\3ORG\0\0\1\0\1"))
    assert answer.question[0].name.to_text() == "EXAMPLE.ORG."
    assert answer.answer[0].name.to_text() == "EXAMPLE.ORG."
    assert "eXaMpLe" in answer.answer[1].to_text()  # data stays what it is


def test_data_that_looks_like_the_name_is_left_alone() -> None:
    """1.65.0.7 has the bytes of the name "A"."""
    query = dns.message.make_query("A", "A")
    response = dns.message.make_response(query)
    response.answer = [dns.rrset.from_text("A.", 60, "IN", "A", "1.65.0.7", "1.97.0.7")]
    answer = dns.message.from_wire(respelled(response.to_wire(), b"\1a\0\0\1\0\1"))
    assert sorted(record.address for record in answer.answer[0]) == ["1.65.0.7", "1.97.0.7"]


def test_a_response_that_is_cut_off_anywhere_does_no_harm() -> None:
    response = dns.message.make_response(dns.message.make_query("ExAmPle.org", "A"))
    response.answer = [dns.rrset.from_text("other.", 60, "IN", "CNAME", "ExAmPle.org.")]
    wire = response.to_wire().replace(b"\xc0\x0c", b"\7ExAmPle\3org\0")
    question = wire[12:29].lower()
    for end in range(29, len(wire)):
        assert respelled(wire[:end], question)[12:29] == question


def test_what_is_signed_is_known() -> None:
    plain = dns.message.make_query("example.org", "A", use_edns=0)
    assert not parsed(plain.to_wire()).signed
    plain.use_tsig({dns.name.from_text("key"): b"secret"})
    assert parsed(plain.to_wire()).signed


def test_servers_that_fold_are_remembered_for_a_while_and_not_without_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    now, server = 100.0, ip_address("192.0.2.1")
    monkeypatch.setattr(time, "monotonic", lambda: now)
    servers = FoldingServers()
    servers.note(server)
    now += spelling.FOLDING_SECONDS - 1
    assert server in servers
    now += 2
    assert server not in servers
    servers.note(server)
    for number in range(1, spelling.REMEMBERED + 1):
        servers.note(server + number)
    assert len(servers) == spelling.REMEMBERED
    assert server not in servers
    assert server + 1 in servers
