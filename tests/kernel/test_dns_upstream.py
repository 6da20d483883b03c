"""Questions passed on to real servers that answer, delay, refuse, drop and lie."""

import random
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from netlib.dns import upstream
from netlib.dns.zone import View
from netlib.kernel.netns import entered
from netlib.model import NetnsRef
from tests.descriptors import open_descriptors
from tests.kernel.upstream_world import FIRST, SECOND, SECONDS, THIRD, Asker, Serving, dropping, refusing, saying


def timed(ask: Callable[[], str]) -> tuple[str, float]:
    started = time.monotonic()
    return ask(), time.monotonic() - started


def test_the_hosts_servers_answer_what_is_not_ours(asker: Asker, serving: Serving) -> None:
    server = serving("127.0.0.53", saying("192.0.2.1"))
    asker.resolv_conf.write_text("nameserver 127.0.0.53\n")
    asker.see()
    assert asker.outcome("ExAmple.oRg") == "192.0.2.1"
    assert asker.outcome("example.org", tcp=True) == "192.0.2.1"
    assert asker.outcome("web") == "172.18.0.2"
    assert (len(server.asked), server.streams) == (1, 1)
    assert asker.server.stats().forwarded == 2
    assert asker.server.stats().in_flight == 0


def test_resolv_conf_is_read_again_when_it_changes(asker: Asker, serving: Serving) -> None:
    serving(FIRST, saying("192.0.2.1"))
    serving(SECOND, saying("192.0.2.2"))
    asker.see()
    assert asker.outcome() == "NXDOMAIN"  # nobody to ask: nothing failed
    asker.resolv_conf.write_text(f"nameserver {FIRST}\n")
    assert asker.outcome() == "192.0.2.1"
    asker.resolv_conf.write_text(f"nameserver {SECOND}\n")
    assert asker.outcome() == "192.0.2.2"
    asker.resolv_conf.unlink()
    assert asker.outcome() == "NXDOMAIN"


def test_ids_and_ports_are_fresh_each_time(asker: Asker, serving: Serving) -> None:
    server = serving(FIRST, saying("192.0.2.1"))
    asker.see(FIRST)
    for number in range(40):
        assert asker.outcome(f"n{number}.example") == "192.0.2.1"
    assert len({wire[:2] for wire in server.asked}) > 35
    assert len(set(server.ports)) > 35


def test_a_sandbox_on_internal_networks_asks_nobody(asker: Asker, serving: Serving) -> None:
    server = serving(FIRST, saying("192.0.2.1"))
    asker.resolv_conf.write_text(f"nameserver {FIRST}\n")
    for servers in ((), (FIRST,)):
        asker.see(*servers, forwards=False)
        assert asker.outcome() == "NXDOMAIN"
        assert asker.outcome(tcp=True) == "NXDOMAIN"
    assert server.asked == []


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED])
@pytest.mark.parametrize("tcp", [False, True])
def test_a_server_that_cannot_say_is_passed_over(asker: Asker, serving: Serving, rcode: dns.rcode.Rcode, tcp: bool) -> None:
    serving(FIRST, refusing(rcode))
    serving(SECOND, saying("192.0.2.2"))
    asker.see(FIRST, SECOND)
    outcome, seconds = timed(lambda: asker.outcome(tcp=tcp))
    assert outcome == "192.0.2.2"
    assert seconds < 0.25


@pytest.mark.parametrize("rcode", [dns.rcode.NXDOMAIN, dns.rcode.NOERROR, dns.rcode.FORMERR, dns.rcode.NOTIMP])
def test_any_other_answer_is_the_answer(asker: Asker, serving: Serving, rcode: dns.rcode.Rcode) -> None:
    serving(FIRST, refusing(rcode))
    second = serving(SECOND, saying("192.0.2.2"))
    asker.see(FIRST, SECOND)
    assert asker.outcome() == dns.rcode.to_text(rcode)
    assert second.asked == []


def test_servfail_is_said_when_all_have_failed(asker: Asker, serving: Serving) -> None:
    serving(FIRST, refusing(dns.rcode.SERVFAIL))
    serving(SECOND, refusing(dns.rcode.REFUSED))
    asker.see(FIRST, SECOND)
    assert timed(asker.outcome)[0] == "SERVFAIL"
    asker.see(THIRD)  # nobody listens there
    outcome, seconds = timed(asker.outcome)
    assert outcome == "SERVFAIL"
    assert seconds < 0.25
    assert asker.outcome(tcp=True) == "SERVFAIL"
    asker.see("192.0.2.9")  # no route there
    assert asker.outcome() == "SERVFAIL"
    assert asker.server.stats().failures == 4


def test_a_silent_server_costs_one_client_one_wait(asker: Asker, serving: Serving) -> None:
    silent = serving(FIRST, dropping)
    serving(SECOND, saying("192.0.2.2"))
    asker.see(FIRST, SECOND)
    outcome, seconds = timed(asker.outcome)
    assert outcome == "192.0.2.2"
    assert 0.25 < seconds < 0.8
    for number in range(5):
        outcome, seconds = timed(partial(asker.outcome, f"n{number}.example"))
        assert outcome == "192.0.2.2"
        assert seconds < 0.2
    assert len(silent.asked) == 1


def test_a_shunned_server_is_tried_again_and_back(asker: Asker, serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "SHUN_SECONDS", 0.2)
    first = serving(FIRST, dropping)
    serving(SECOND, saying("192.0.2.2"))
    asker.see(FIRST, SECOND)
    assert asker.outcome() == "192.0.2.2"
    first.behave = saying("192.0.2.1")
    deadline = time.monotonic() + SECONDS
    while asker.outcome() != "192.0.2.1":
        assert time.monotonic() < deadline
    assert asker.outcome() == "192.0.2.1"


def test_silence_ends_in_servfail_in_time(asker: Asker, serving: Serving) -> None:
    server = serving(FIRST, dropping)
    asker.see(FIRST)
    outcome, seconds = timed(asker.outcome)
    assert outcome == "SERVFAIL"
    assert 0.9 < seconds < 1.5
    assert len(server.asked) == 4
    assert len(set(server.asked)) == len(set(server.ports)) == 1  # repeated, not asked anew
    assert asker.server.stats().in_flight == 0


def test_a_lost_datagram_is_sent_again(asker: Asker, serving: Serving) -> None:
    server = serving(FIRST, dropping)
    once = saying("192.0.2.1")
    server.behave = lambda wire, stream: once(wire, stream) if len(server.asked) > 1 else []
    asker.see(FIRST)
    assert asker.outcome() == "192.0.2.1"


def test_a_late_answer_is_still_an_answer(asker: Asker, serving: Serving) -> None:
    truth = saying("192.0.2.1")
    serving(FIRST, lambda wire, stream: truth(wire, stream) if not threading.Event().wait(0.5) else [])
    serving(SECOND, dropping)
    asker.see(FIRST, SECOND)
    outcome, seconds = timed(asker.outcome)
    assert outcome == "192.0.2.1"
    assert 0.4 < seconds < 0.9


def lying(wire: bytes) -> list[bytes]:
    """Everything but the answer: another id, another question, no response at all, and stumps."""
    (truth,) = saying("203.0.113.66")(wire, False)
    other = dns.message.make_query("evil.example", "A", id=int.from_bytes(wire[:2], "big"))
    (elsewhere,) = saying("203.0.113.66")(other.to_wire(), False)
    wrong_id = bytes((truth[0] ^ 1,)) + truth[1:]
    return [wrong_id, elsewhere, wire, truth[:11], b"", truth[:4] + b"\0\0" + truth[6:12], b"\xff" * 50]


def test_only_the_answer_to_the_question_counts(asker: Asker, serving: Serving) -> None:
    honest = saying("192.0.2.1")
    serving(FIRST, lambda wire, stream: [*lying(wire), *honest(wire, stream)])
    asker.see(FIRST)
    assert asker.outcome() == "192.0.2.1"
    assert asker.server.stats().forged == 7


def test_lies_by_tcp_are_no_answer_either(asker: Asker, serving: Serving) -> None:
    server = serving(FIRST, dropping)
    asker.see(FIRST)
    for number in range(7):

        def lie(wire: bytes, stream: bool, number: int = number) -> list[bytes]:
            return [lying(wire)[number]]

        server.behave = lie
        outcome, seconds = timed(lambda: asker.outcome(tcp=True))
        assert outcome == "SERVFAIL"
        assert seconds < 0.25


def test_a_refusal_without_the_question_is_understood(asker: Asker, serving: Serving) -> None:
    serving(FIRST, lambda wire, _: [wire[:2] + b"\x81\x81" + bytes(8)])
    asker.see(FIRST)
    query = dns.message.make_query("example.org", "A").to_wire()
    with asker.socket() as sock:
        sock.send(query)
        assert sock.recv(512) == query[:2] + b"\x81\x81" + bytes(8)


def test_a_lower_cased_question_comes_back_as_it_was_spelled(asker: Asker, serving: Serving) -> None:
    honest = saying("192.0.2.1")
    serving(FIRST, lambda wire, stream: honest(wire[:12] + wire[12:].lower(), stream))
    asker.see(FIRST)
    assert asker.outcome("EXAMPLE.org") == "192.0.2.1"


def test_truncation_is_passed_on_and_oversize_is_cut(asker: Asker, serving: Serving) -> None:
    def short_by_udp(wire: bytes, stream: bool) -> list[bytes]:
        if stream:
            return saying("192.0.2.1", 500)(wire, stream)
        response = dns.message.make_response(dns.message.from_wire(wire))
        response.flags |= dns.flags.TC
        return [response.to_wire()]

    server = serving(FIRST, short_by_udp)
    asker.see(FIRST)
    assert asker.ask().flags & dns.flags.TC
    assert len(asker.ask(tcp=True).answer[0]) == 500
    server.behave = saying("192.0.2.1", 60)
    cut = asker.ask("other.example")
    assert cut.flags & dns.flags.TC
    assert not cut.answer
    assert len(asker.ask("other.example", payload=4096).answer[0]) == 60


def test_equal_questions_are_asked_once(asker: Asker, serving: Serving) -> None:
    release = threading.Event()
    honest = saying("192.0.2.1")
    server = serving(FIRST, lambda wire, stream: honest(wire, stream) if release.wait(SECONDS) else [])
    asker.see(FIRST)
    query = dns.message.make_query("example.org", "A").to_wire()
    with asker.socket() as sock:
        for number in range(20):
            sock.send(bytes((7, number)) + query[2:])
        deadline = time.monotonic() + SECONDS
        while asker.server.stats().forwarded < 20:
            assert time.monotonic() < deadline
        release.set()
        ids = {sock.recv(512)[:2] for _ in range(20)}
    assert ids == {bytes((7, number)) for number in range(20)}
    assert len(server.asked) == 1


def test_one_sandbox_cannot_take_every_place(
    asker: Asker, serving: Serving, monkeypatch: pytest.MonkeyPatch, netns_factory: Callable[[str], NetnsRef]
) -> None:
    monkeypatch.setattr(upstream, "MAX_IN_FLIGHT_PER_SANDBOX", 10)
    monkeypatch.setattr(upstream, "MAX_IN_FLIGHT", 12)
    serving(FIRST, dropping)
    asker.see(FIRST)
    other = netns_factory("other")
    port = asker.server.serve("b", other, view=View(servers=(ip_address(FIRST),)))
    with entered(other):
        theirs = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with asker.socket() as sock, theirs:
        theirs.settimeout(SECONDS)
        theirs.connect(("127.0.0.11", port))
        for client, count in ((sock, 15), (theirs, 4)):
            for number in range(count):
                client.send(dns.message.make_query(f"n{number}.example{count}", "A").to_wire())
        refused = [dns.message.from_wire(sock.recv(512)).rcode() for _ in range(7)]
        assert refused == [dns.rcode.REFUSED] * 7  # five beyond its share, two for those who have fewer
        failed = [dns.message.from_wire(client.recv(512)).rcode() for client in (*[sock] * 8, *[theirs] * 4)]
        assert failed == [dns.rcode.SERVFAIL] * 12
    assert asker.outcome("web") == "172.18.0.2"
    assert asker.server.stats().refused == 7
    assert asker.server._upstream._shares == {}


def test_withdrawn_while_asking(asker: Asker, serving: Serving) -> None:
    release = threading.Event()
    honest = saying("192.0.2.1")
    server = serving(FIRST, lambda wire, stream: honest(wire, stream) if release.wait(SECONDS) else [])
    asker.see(FIRST)
    query = dns.message.make_query("example.org", "A").to_wire()
    with asker.socket() as sock, asker.socket(socket.SOCK_STREAM) as stream:
        sock.send(query)
        stream.sendall(len(query).to_bytes(2, "big") + query)
        deadline = time.monotonic() + SECONDS
        while asker.server.stats().in_flight < 2 or not server.asked:
            assert time.monotonic() < deadline
        asker.server.withdraw("a")
        release.set()
        asker.port = asker.server.serve("a", asker.netns)
    asker.see(FIRST)
    assert asker.outcome("again.example") == "192.0.2.1"
    while asker.server.stats().in_flight:
        assert time.monotonic() < deadline


def test_descriptors_are_closed_with_every_question(asker: Asker, serving: Serving) -> None:
    serving(FIRST, refusing(dns.rcode.SERVFAIL))
    second = serving(SECOND, saying("192.0.2.2"))
    asker.see(FIRST, THIRD, SECOND)
    before = len(open_descriptors())
    for number in range(30):
        assert asker.outcome(f"n{number}.example", tcp=bool(number % 2)) == "192.0.2.2"
    second.behave = dropping
    assert asker.outcome() == asker.outcome(tcp=True) == "SERVFAIL"
    deadline = time.monotonic() + SECONDS
    while len(open_descriptors()) > before:  # the server sees its clients go a moment later
        assert time.monotonic() < deadline


def test_no_answer_from_upstream_does_harm(asker: Asker, serving: Serving) -> None:
    source = random.Random(45553)

    def babble(wire: bytes, stream: bool) -> list[bytes]:
        (truth,) = saying("192.0.2.1", 5)(wire, stream)
        messages = []
        for _ in range(20):
            message = bytearray(truth[: source.choice((len(truth), source.randrange(len(truth) + 1)))])
            for _ in range(source.randrange(1, 5)):
                if message:
                    message[source.randrange(len(message))] = source.randrange(256)
            messages.append(bytes(message))
        return [*messages, truth]

    serving(FIRST, babble)
    asker.see(FIRST)
    query = dns.message.make_query("example.org", "A", use_edns=0).to_wire()
    with asker.socket() as sock:
        for number in range(200):
            wire = number.to_bytes(2, "big") + query[2:]
            sock.send(wire)
            assert sock.recv(65535)[:2] == wire[:2]
    assert asker.outcome("web") == "172.18.0.2"
