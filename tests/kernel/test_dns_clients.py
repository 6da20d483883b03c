"""Clients that mean harm to the DNS server, or do it: stuck, greedy, talking nonsense. They hold up nobody."""

import os
import random
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import dns.message
import pytest

from netlib.dns import connection, server
from netlib.dns.server import DnsServer
from netlib.kernel.netns import entered
from netlib.model import NetnsRef
from tests.kernel.dns_client import MANY, SECONDS, Client, framed, is_closed, reaches, read_message, values, view, wait_until

MakeNetns = Callable[[str], NetnsRef]


@pytest.fixture
def dns_server(tmp_path: Path) -> Iterator[DnsServer]:
    made = DnsServer(resolv_conf=tmp_path / "resolv.conf")
    yield made
    made.close()


@pytest.fixture
def netns(netns_factory: MakeNetns) -> NetnsRef:
    return netns_factory("dns")


def test_stuck_tcp_clients_hold_up_nobody(dns_server: DnsServer, netns: NetnsRef, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "IDLE_SECONDS", 1.0)
    client = Client(netns, dns_server.serve("a", netns, view=view()))
    with ExitStack() as stack:
        stuck = [stack.enter_context(client.tcp()) for _ in range(31)]
        for number, sock in enumerate(stuck):
            sock.send((b"", b"\0", b"\0\x20half a query")[number % 3])
        started = time.monotonic()
        assert client.address_of() == "172.18.0.2"
        assert client.address_of(tcp=True) == "172.18.0.2"
        assert time.monotonic() - started < 0.5
        assert all(is_closed(sock) for sock in stuck)
        assert time.monotonic() - started < 3.0
    wait_until(lambda: dns_server.stats().connections == 0, "connections remain")


def test_bytes_that_drip_buy_no_time(dns_server: DnsServer, netns: NetnsRef, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "IDLE_SECONDS", 0.4)
    client = Client(netns, dns_server.serve("a", netns, view=view()))
    started = time.monotonic()
    pause = threading.Event()
    query = framed(dns.message.make_query("x" * 60, "A").to_wire())
    with client.tcp() as slow, client.tcp() as empty:
        for byte in query[:-1]:
            try:
                slow.send(bytes((byte,)))
                empty.send(b"\0")
            except OSError:
                break
            pause.wait(0.05)
        else:
            pytest.fail("a connection without one whole query lived on")
        assert is_closed(slow)
        assert is_closed(empty)
    assert time.monotonic() - started < 2.0


def test_one_client_gets_so_many_connections_and_no_more(dns_server: DnsServer, netns: NetnsRef) -> None:
    client = Client(netns, dns_server.serve("a", netns, view=view()))
    query = framed(dns.message.make_query("web", "A").to_wire())
    with ExitStack() as stack:
        open_ones = [stack.enter_context(client.tcp()) for _ in range(32)]
        for sock in open_ones:
            sock.sendall(query)
            assert read_message(sock)
        with client.tcp() as one_more:
            assert is_closed(one_more)
        assert dns_server.stats().connections == 32
        assert client.address_of() == "172.18.0.2"
    wait_until(lambda: dns_server.stats().connections == 0, "connections remain")
    assert client.address_of(tcp=True) == "172.18.0.2"


def test_clients_that_hold_on_cannot_lock_others_out(
    dns_server: DnsServer, netns_factory: MakeNetns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_CONNECTIONS", 20)
    bad, good = netns_factory("bad"), netns_factory("good")
    holding = Client(bad, dns_server.serve("bad", bad, view=view()))
    asking = Client(good, dns_server.serve("good", good, view=view()))
    with ExitStack() as stack:
        held = [stack.enter_context(holding.tcp()) for _ in range(20)]
        wait_until(lambda: dns_server.stats().connections == 20, "not all were accepted")
        assert asking.address_of(tcp=True) == "172.18.0.2"
        assert is_closed(held[0])
        assert dns_server.stats().connections <= 20


def test_a_client_that_reads_nothing_is_not_buffered_for_ever(
    dns_server: DnsServer, netns: NetnsRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "IDLE_SECONDS", 0.5)
    client = Client(netns, dns_server.serve("a", netns, view=view(many=MANY)))
    batch = framed(dns.message.make_query("many", "A").to_wire()) * 200
    with client.tcp() as sock:
        sock.setblocking(False)
        deadline = time.monotonic() + SECONDS
        while sends(sock, batch):
            assert time.monotonic() < deadline
            assert client.address_of() == "172.18.0.2"
            assert max((len(held._unsent) for held in list(dns_server._connections)), default=0) < 2 * 65536


def sends(sock: socket.socket, data: bytes) -> bool:
    """Send as much as goes; whether the other side still listens."""
    try:
        sock.send(data)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True


def test_pipelined_queries_are_all_answered_also_after_a_half_close(dns_server: DnsServer, netns: NetnsRef) -> None:
    client = Client(netns, dns_server.serve("a", netns, view=view(many=MANY)))
    queries = []
    for number in range(500):
        query = dns.message.make_query("many" if number % 2 else "web", "A")
        query.id = number
        queries.append(framed(query.to_wire()))
    with client.tcp() as sock:

        def write() -> None:
            sock.sendall(b"".join(queries))
            sock.shutdown(socket.SHUT_WR)

        writer = threading.Thread(target=write)
        writer.start()
        seen = {dns.message.from_wire(read_message(sock)).id for _ in queries}
        writer.join()
        assert sock.recv(1) == b""
    assert seen == set(range(500))


def test_a_message_byte_by_byte_and_one_too_long(dns_server: DnsServer, netns: NetnsRef) -> None:
    client = Client(netns, dns_server.serve("a", netns, view=view()))
    with client.tcp() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in framed(dns.message.make_query("web", "A").to_wire()):
            sock.send(bytes((byte,)))
        assert values(dns.message.from_wire(read_message(sock))) == ["172.18.0.2"]
    with client.tcp() as sock:
        sock.send(b"\xff\xff")
        assert is_closed(sock)


def test_no_bytes_at_all_stop_it(dns_server: DnsServer, netns: NetnsRef) -> None:
    client = Client(netns, dns_server.serve("a", netns, view=view(many=MANY)))
    source = random.Random(8418)
    good = dns.message.make_query("many", "A", use_edns=0).to_wire()
    with client.udp() as sock:
        for _ in range(5000):
            wire = bytearray(source.choice((good, source.randbytes(source.randrange(0, 80)))))
            for _ in range(source.randrange(4)):
                if wire:
                    wire[source.randrange(len(wire))] = source.randrange(256)
            sock.send(bytes(wire))
    for _ in range(100):
        with client.tcp() as sock:
            sock.send(framed(source.randbytes(source.randrange(1, 60))) + source.randbytes(source.randrange(0, 60)))
    wait_until(lambda: reaches(client), "it no longer answers")  # a full queue may cost a query or two
    assert client.address_of(tcp=True) == "172.18.0.2"
    assert dns_server.stats().queries > 1000


def test_without_descriptors_it_waits_and_comes_back(
    dns_server: DnsServer, netns: NetnsRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_ACCEPT_PAUSE_SECONDS", 0.1)
    client = Client(netns, dns_server.serve("a", netns, view=view()))
    query = dns.message.make_query("web", "A").to_wire()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with client.udp() as udp, client.tcp() as first:
        first.sendall(framed(query))
        assert read_message(first)
        with entered(netns):
            waiting = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        with waiting:
            waiting.settimeout(0.5)
            highest = max(int(name) for name in os.listdir("/proc/self/fd"))
            fillers = [os.dup(0) for _ in range(highest + 1 - len(os.listdir("/proc/self/fd")) + 5)]
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(fillers) + 1, limits[1]))
            try:
                waiting.connect(client.server)
                waiting.sendall(framed(query))
                before = time.process_time()
                with pytest.raises(TimeoutError):
                    waiting.recv(1)
                assert time.process_time() - before < 0.2  # of 0.5 s: it does not spin
                udp.send(query)
                assert udp.recv(512)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                for filler in fillers:
                    os.close(filler)
            waiting.settimeout(SECONDS)
            assert values(dns.message.from_wire(read_message(waiting))) == ["172.18.0.2"]
