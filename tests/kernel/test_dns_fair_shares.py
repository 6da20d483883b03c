"""What one sandbox asks costs the others nothing: neither time, nor places upstream, nor anything at a gateway.

The loads are bounded in count and time, and end with the test. A look-up of a neighbour is to take less than 10 ms beside any
of them, in the median: it takes 0.1 to 0.4 ms here, and took up to 77 ms (at worst a second) before sandboxes had turns.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import dns.message
import dns.rcode
import pytest

from netlib.dns import server, turns, upstream
from netlib.dns.server import DnsServer
from netlib.dns.zone import View
from netlib.model import NetnsRef
from tests.kernel import dns_load
from tests.kernel.dns_client import (
    MANY,
    UPSTREAM,
    Loads,
    before_other_work,
    client_at,
    framed,
    is_closed,
    outward,
    read_message,
    view,
    wait_until,
)

MakeNetns = Callable[[str], NetnsRef]


@pytest.fixture
def dns_server(tmp_path: Path) -> Iterator[DnsServer]:
    with before_other_work():
        made = DnsServer(resolv_conf=tmp_path / "resolv.conf")
    yield made
    made.close()


@pytest.fixture
def sandbox(dns_server: DnsServer, netns_factory: MakeNetns) -> Callable[..., str]:
    """Makes served sandboxes, as targets of loads."""

    def make(name: str, seen: View | None = None) -> str:
        netns = netns_factory(name)
        port = dns_server.serve(name, netns, view=seen or view(many=MANY))
        return f"{netns.path},127.0.0.11,{port}"

    return make


# --- the thread's time -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "name", "number", "sandboxes"),
    [
        pytest.param(dns_load.pipeline, "web", 30, 1, id="30 pipelining connections of one"),
        pytest.param(dns_load.pipeline, "web", 3, 10, id="30 pipelining connections of ten"),
        pytest.param(dns_load.pipeline, "many", 30, 1, id="30 connections that ask for much"),
        pytest.param(dns_load.pipeline, "nobody", 30, 1, id="30 connections that ask for nobody"),
        pytest.param(dns_load.slow_readers, "many", 30, 1, id="30 slow readers"),
        pytest.param(dns_load.half_frames, "many", 30, 1, id="30 half-sent frames"),
        pytest.param(dns_load.connections, "", 30, 1, id="connections without a query"),
        pytest.param(dns_load.flood, "web", 1000, 1, id="datagrams of one"),
        pytest.param(dns_load.flood, "n#", 50, 20, id="datagrams of twenty, another name each"),
    ],
)
def test_a_neighbours_look_up_is_quick_beside(
    dns_server: DnsServer,
    loads: Loads,
    sandbox: Callable[..., str],
    mode: Callable[..., None],
    name: str,
    number: int,
    sandboxes: int,
) -> None:
    neighbour = sandbox("neighbour")
    attackers = [sandbox(f"attacker{each}") for each in range(sandboxes)]
    loads.begin(mode, name, number, *attackers)
    if mode in (dns_load.pipeline, dns_load.slow_readers):
        wait_until(lambda: dns_server.stats().connections == number * sandboxes, "not all connections are there")
    if mode not in (dns_load.half_frames, dns_load.connections):
        wait_until(lambda: dns_server.stats().queries > 2000, "the load is none")
    loads.look_up_quickly("web", neighbour)


def test_a_server_without_turns_is_found_out(
    dns_server: DnsServer, loads: Loads, sandbox: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same measure as above: where each socket is served to its end, no attempt does."""
    monkeypatch.setattr(turns, "TURN_SECONDS", 60.0)
    monkeypatch.setattr(turns, "WAKE_SECONDS", 60.0)
    neighbour, attacker = sandbox("neighbour"), sandbox("attacker")
    loads.begin(dns_load.sure_pipeline, "many", 15, attacker)
    wait_until(lambda: dns_server.stats().queries > 2000, "the load is none")
    with pytest.raises(AssertionError, match="no attempt is answered"):
        loads.look_up_quickly("web", neighbour, 9)


def test_who_keeps_asking_is_answered_too(dns_server: DnsServer, loads: Loads, sandbox: Callable[..., str]) -> None:
    """A turn that is over leaves queries behind that no event tells of: each is answered all the same, in order."""
    attacker, other = sandbox("attacker"), sandbox("other")
    loads.begin(dns_load.flood, "n#", 1, other)
    client = client_at(attacker)
    queries = [framed(dns_load.query("many", number)) for number in range(2000)]
    with client.tcp() as sock:
        for start in range(0, 2000, 50):
            sock.sendall(b"".join(queries[start : start + 50]))
            ids = [int.from_bytes(read_message(sock)[:2], "big") for _ in range(50)]
            assert ids == list(range(start, start + 50))


def test_where_connections_are_all_taken_who_has_most_makes_room(
    dns_server: DnsServer, sandbox: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_CONNECTIONS", 20)
    attacker = client_at(sandbox("attacker"))
    with client_at(sandbox("neighbour")).tcp() as oldest, ExitStack() as stack:
        oldest.sendall(framed(dns_load.query("web", 1)))
        assert read_message(oldest)[:2] == b"\0\1"
        held = [stack.enter_context(attacker.tcp()) for _ in range(25)]
        assert all(is_closed(sock) for sock in held[:6])
        oldest.sendall(framed(dns_load.query("web", 2)))
        assert read_message(oldest)[:2] == b"\0\2"
        assert dns_server.stats().connections == 20


# --- places upstream -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sandboxes", [12, 30])
def test_questions_without_an_answer_take_no_place_of_a_neighbours(
    dns_server: DnsServer, loads: Loads, sandbox: Callable[..., str], sandboxes: int
) -> None:
    loads.begin(dns_load.serve, "silent", 0, f"-,{UPSTREAM},53")
    neighbour = sandbox("neighbour", outward())
    attackers = [sandbox(f"attacker{each}", outward()) for each in range(sandboxes)]
    loads.begin(dns_load.unanswered, "n#.silent", 100, *attackers)
    wait_until(lambda: dns_server.stats().in_flight == upstream.MAX_IN_FLIGHT, "places are left")
    loads.look_up_quickly("n#.example", neighbour)
    assert dns_server.stats().refused > 0


def test_the_newest_question_of_who_has_most_is_refused(
    dns_server: DnsServer, loads: Loads, sandbox: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "MAX_IN_FLIGHT", 6)
    monkeypatch.setattr(upstream, "MAX_IN_FLIGHT_PER_SANDBOX", 5)
    monkeypatch.setattr(upstream, "TOTAL_SECONDS", 1.0)
    loads.begin(dns_load.serve, "silent", 0, f"-,{UPSTREAM},53")
    socks = [client_at(sandbox(name, outward())).udp() for name in ("many", "some", "one")]
    for sock, numbers in zip(socks, ((1, 2, 3, 4), (5, 6), (7, 8, 9)), strict=True):
        for number in numbers:
            sock.send(dns_load.query("n#.silent", number))
    rcodes = [
        {message.id: dns.rcode.to_text(message.rcode()) for message in (dns.message.from_wire(sock.recv(512)) for _ in asked)}
        for sock, asked in zip(socks, (range(4), range(2), range(3)), strict=True)
    ]
    for sock in socks:
        sock.close()
    assert rcodes == [
        {1: "SERVFAIL", 2: "SERVFAIL", 3: "REFUSED", 4: "REFUSED"},  # two places were given to those with fewer
        {5: "SERVFAIL", 6: "SERVFAIL"},
        {7: "SERVFAIL", 8: "SERVFAIL", 9: "REFUSED"},  # all have two
    ]
    assert dns_server.stats().refused == 3
    assert dns_server.stats().in_flight == 0


def test_a_refused_tcp_client_does_not_take_the_place_back(
    dns_server: DnsServer, loads: Loads, sandbox: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "MAX_IN_FLIGHT", 4)
    loads.begin(dns_load.serve, "silent", 0, f"-,{UPSTREAM},53")
    neighbour = sandbox("neighbour", outward())
    with client_at(sandbox("attacker", outward())).tcp() as sock:
        sock.sendall(b"".join(framed(dns_load.query("n#.silent", number)) for number in range(200)))
        wait_until(lambda: dns_server.stats().in_flight == 4, "places are left")
        with client_at(neighbour).udp() as other:
            other.send(dns_load.query("n1.silent", 1))
            refused = [dns.message.from_wire(read_message(sock)).rcode() for _ in range(197)]
            assert refused == [dns.rcode.REFUSED] * 197
            assert dns_server.stats().in_flight == 4
            assert len(dns_server._upstream._shares) == 2
