"""The case of the letters in questions upstream: a secret towards servers that keep it, none towards the others."""

import threading
import time

import dns.message
import dns.rcode
import pytest

from netlib.dns import spelling, upstream
from tests.kernel.dns_client import wait_until
from tests.kernel.upstream_world import FIRST, SECOND, SECONDS, Asker, Behaviour, Serving, dropping, refusing, saying

NAME = "a-rather-long-name-with-forty-letters-and-more.example.org"


def question(wire: bytes) -> bytes:
    return wire[12 : wire.index(b"\0", 12)]


def folding(behave: Behaviour) -> Behaviour:
    """A server that answers everything in small letters."""
    return lambda wire, stream: behave(wire[:12] + wire[12:].lower(), stream)


def test_servers_are_asked_in_random_letters_and_clients_get_their_own(asker: Asker, serving: Serving) -> None:
    server = serving(FIRST, saying("192.0.2.1"))
    asker.see(FIRST)
    for number in range(8):
        assert asker.outcome(NAME.title() if number % 2 else NAME) == "192.0.2.1"  # it checks the spelling of the answer
    spellings = {question(wire) for wire in server.asked}
    assert len(spellings) == 8
    assert {spelled.lower() for spelled in spellings} == {question(dns.message.make_query(NAME, "A").to_wire())}
    assert asker.server.stats().forged == 0


def test_by_tcp_too(asker: Asker, serving: Serving) -> None:
    server = serving(FIRST, saying("192.0.2.1"))
    asker.see(FIRST)
    for _ in range(4):
        assert asker.outcome(NAME, tcp=True) == "192.0.2.1"
    assert len(set(map(question, server.asked_by_tcp))) == 4


@pytest.mark.parametrize("tcp", [False, True])
def test_a_server_that_does_not_keep_the_case_is_asked_without_it(asker: Asker, serving: Serving, tcp: bool) -> None:
    server = serving(FIRST, folding(saying("192.0.2.1")))
    asker.see(FIRST)
    for _ in range(4):
        assert asker.outcome(NAME, tcp=tcp) == "192.0.2.1"
    plain, asked = question(dns.message.make_query(NAME, "A").to_wire()), server.asked_by_tcp if tcp else server.asked
    assert [question(wire) == plain for wire in asked] == [False, True, True, True, True]
    assert asker.server.stats().forged == 0


def test_it_is_tried_again_from_time_to_time(asker: Asker, serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spelling, "FOLDING_SECONDS", 0.2)
    server = serving(FIRST, folding(saying("192.0.2.1")))
    asker.see(FIRST)
    plain = question(dns.message.make_query(NAME, "A").to_wire())
    assert asker.outcome(NAME) == "192.0.2.1"
    server.behave = saying("192.0.2.2")
    deadline = time.monotonic() + SECONDS
    while question(server.asked[-1]) == plain:
        assert asker.outcome(NAME) == "192.0.2.2"
        assert time.monotonic() < deadline


def test_an_answer_in_other_letters_is_not_believed_where_the_right_one_follows(asker: Asker, serving: Serving) -> None:
    lie, truth = saying("203.0.113.66"), saying("192.0.2.1")
    server = serving(FIRST, lambda wire, stream: [*lie(wire[:12] + wire[12:].swapcase(), stream)] * 2 + truth(wire, stream))
    asker.see(FIRST)
    for _ in range(4):
        assert asker.outcome(NAME) == "192.0.2.1"
    assert len({question(wire) for wire in server.asked}) == 4  # it is still asked in random letters, once each time
    assert asker.server.stats().forged == 8


def test_nor_where_the_right_one_follows_late(asker: Asker, serving: Serving) -> None:
    lie, truth = saying("203.0.113.66"), saying("192.0.2.1")
    first: list[bytes] = []

    def late(wire: bytes, stream: bool) -> list[bytes]:
        """Answer the first question in other letters at once, and rightly when the second one is there."""
        if not first:
            first.append(wire)
            return lie(wire[:12] + wire[12:].swapcase(), stream)
        server.answer_again(first[0], truth(first[0], stream)[0])
        return []

    server = serving(FIRST, late)
    asker.see(FIRST)
    assert asker.outcome(NAME) == "192.0.2.1"
    server.behave = truth
    assert asker.outcome(NAME) == "192.0.2.1"
    assert question(server.asked[-1]) != question(server.asked[1])  # the plain one


def test_an_answer_in_another_case_is_not_lost_when_the_server_says_nothing_more(asker: Asker, serving: Serving) -> None:
    server = serving(FIRST, dropping)
    fold = folding(saying("192.0.2.1"))
    server.behave = lambda wire, stream: fold(wire, stream) if len(server.asked) == 1 else []
    asker.see(FIRST)
    assert asker.outcome(NAME.upper()) == "192.0.2.1"
    assert asker.server.stats().failures == 0
    assert asker.server.stats().in_flight == 0


def test_a_late_answer_in_another_case_is_not_lost_either(asker: Asker, serving: Serving) -> None:
    """The first answer takes most of the time that there is, and the second would take as much again."""
    fold = folding(saying("192.0.2.1"))
    serving(FIRST, lambda wire, stream: fold(wire, stream) if not threading.Event().wait(0.7) else [])
    asker.see(FIRST)
    assert asker.outcome(NAME) == "192.0.2.1"


def test_an_answer_to_another_question_is_ignored_in_any_case(asker: Asker, serving: Serving) -> None:
    truth = saying("192.0.2.1")

    def lying(wire: bytes, stream: bool) -> list[bytes]:
        other = dns.message.make_query(f"x{NAME[1:]}", "A", id=int.from_bytes(wire[:2], "big")).to_wire()
        another_type = dns.message.make_query(NAME, "AAAA", id=int.from_bytes(wire[:2], "big")).to_wire()
        return [*saying("203.0.113.66")(other, stream), *saying("203.0.113.66")(another_type, stream), *truth(wire, stream)]

    serving(FIRST, lying)
    asker.see(FIRST)
    assert asker.outcome(NAME) == "192.0.2.1"
    assert asker.server.stats().forged == 2


def test_names_spelled_out_in_records_get_the_clients_spelling(asker: Asker, serving: Serving) -> None:
    def spelled_out(wire: bytes, stream: bool) -> list[bytes]:
        (answer,) = saying("192.0.2.1", 3)(wire, stream)
        return [answer.replace(b"\xc0\x0c", wire[12 : wire.index(b"\0", 12) + 1])]

    serving(FIRST, spelled_out)
    asker.see(FIRST)
    answer = asker.ask("Example.ORG", payload=4096).answer
    assert [rrset.name.to_text() for rrset in answer] == ["Example.ORG."]
    assert len(answer[0]) == 3


def test_equal_questions_in_other_letters_are_asked_once_and_answered_each_in_its_own(asker: Asker, serving: Serving) -> None:
    """So a loop of servers that ask each other ends, though each of them may vary the letters."""
    release = threading.Event()
    honest = saying("192.0.2.1")
    server = serving(FIRST, lambda wire, stream: honest(wire, stream) if release.wait(SECONDS) else [])
    asker.see(FIRST)
    spellings = [NAME, NAME.upper(), NAME.title(), NAME.swapcase()]
    with asker.socket() as sock:
        for number, name in enumerate(spellings):
            sock.send(dns.message.make_query(name, "A", id=number).to_wire())
        wait_until(lambda: asker.server.stats().forwarded == len(spellings), "not all were asked")
        assert asker.server.stats().in_flight == 1
        release.set()
        answers = {(message := dns.message.from_wire(sock.recv(512))).id: message for _ in spellings}
    assert len(server.asked) == 1
    for number, name in enumerate(spellings):
        assert answers[number].question[0].name.to_text() == f"{name}."
        assert answers[number].answer[0].name.to_text() == f"{name}."


def test_a_signed_query_is_passed_on_as_it_is(asker: Asker, serving: Serving) -> None:
    server = serving(FIRST, lambda wire, stream: [wire[:2] + b"\x81\x83" + wire[4:]])
    asker.see(FIRST)
    query = dns.message.make_query(NAME.title(), "A")
    query.use_tsig({dns.name.from_text("key"): b"secret"})
    wire = query.to_wire()
    with asker.socket() as sock:
        sock.send(wire)
        assert sock.recv(512)[:2] == wire[:2]
    assert server.asked[0][2:] == wire[2:]


def test_a_server_behind_one_that_folds_is_asked_when_that_fails(
    asker: Asker, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    for patience in ("RETRY_SECONDS", "TOTAL_SECONDS"):  # not because of silence
        monkeypatch.setattr(upstream, patience, 10 * SECONDS)
    first = serving(FIRST, folding(refusing(dns.rcode.SERVFAIL)))
    second = serving(SECOND, saying("192.0.2.2"))
    asker.see(FIRST, SECOND)
    assert asker.outcome(NAME) == "192.0.2.2"
    assert len(first.asked) == 2
    assert len(second.asked) == 1
