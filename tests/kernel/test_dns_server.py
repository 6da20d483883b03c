"""The DNS server on real sockets in real netns: answers, hostile clients, swaps under load, and nothing left open."""

import os
import random
import resource
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import pytest

from netlib.dns import connection, server
from netlib.dns.server import DnsServer
from netlib.dns.zone import View, Zone
from netlib.errors import DaemonError, NetlibError, ObjectMissing
from netlib.kernel.netns import entered
from netlib.model import HOST, IPAddress, NetnsRef

MakeNetns = Callable[[str], NetnsRef]
SECONDS = 5.0
MANY = tuple(ip_address(f"172.18.1.{number}") for number in range(1, 101))


def view(address: str = "172.18.0.2", **names: tuple[IPAddress, ...]) -> View:
    zone = Zone(network="net", resolves_names=True, internal=True, names={"web": (ip_address(address),), **names}, pointers={})
    return View(zones=(zone,), forwards=False)


@pytest.fixture
def dns_server(tmp_path: Path) -> Iterator[DnsServer]:
    made = DnsServer(resolv_conf=tmp_path / "resolv.conf")
    yield made
    made.close()


@pytest.fixture
def netns(netns_factory: MakeNetns) -> NetnsRef:
    return netns_factory("dns")


class Client:
    """A process in a netns, asking the server at an address and port."""

    def __init__(self, netns: NetnsRef, port: int, address: str = "127.0.0.11") -> None:
        self.netns, self.server = netns, (address, port)
        self.family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def udp(self) -> socket.socket:
        return self._connected(socket.SOCK_DGRAM)

    def tcp(self) -> socket.socket:
        return self._connected(socket.SOCK_STREAM)

    def _connected(self, kind: socket.SocketKind) -> socket.socket:
        with entered(self.netns):
            sock = socket.socket(self.family, kind)
        sock.settimeout(SECONDS)
        sock.connect(self.server)
        return sock

    def ask(self, name: str = "web", *, tcp: bool = False) -> dns.message.Message:
        query = dns.message.make_query(name, "A")
        with self.tcp() if tcp else self.udp() as sock:
            if tcp:
                sock.sendall(framed(query.to_wire()))
                response = read_message(sock)
            else:
                sock.send(query.to_wire())
                response = sock.recv(65535)
        message = dns.message.from_wire(response)
        assert query.is_response(message)
        return message

    def address_of(self, name: str = "web", *, tcp: bool = False) -> str:
        return values(self.ask(name, tcp=tcp))[0]


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


def read_exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        assert more, "the connection ended"
        data += more
    return data


def read_message(sock: socket.socket) -> bytes:
    return read_exactly(sock, int.from_bytes(read_exactly(sock, 2), "big"))


def values(message: dns.message.Message) -> list[str]:
    return [str(record) for rrset in message.answer for record in rrset]


def is_closed(sock: socket.socket) -> bool:
    """Wait until the server has closed; what it sent before does not count."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


def sockets_in(netns: NetnsRef) -> list[str]:
    """The lines of the netns's tables of UDP and TCP sockets that are not mere memories of closed ones (TIME_WAIT)."""
    with entered(netns):
        lines = [
            line.split() for kind in ("udp", "tcp") for line in Path(f"/proc/thread-self/net/{kind}").read_text().splitlines()
        ]
    return [" ".join(line) for line in lines if line[0] != "sl" and line[3] != "06"]


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    pause = threading.Event()
    while not true():
        assert time.monotonic() < deadline, what
        pause.wait(0.01)


def test_it_answers_inside_the_netns_by_udp_and_tcp(dns_server: DnsServer, netns: NetnsRef) -> None:
    client = Client(netns, dns_server.serve("a", netns, view=view(many=MANY)))
    assert client.address_of() == "172.18.0.2"
    assert client.address_of(tcp=True) == "172.18.0.2"
    assert client.ask("other").rcode() == dns.rcode.NXDOMAIN
    cut = client.ask("many")
    assert cut.flags & dns.flags.TC
    assert len(values(cut)) == 30
    assert sorted(values(client.ask("many", tcp=True))) == sorted(map(str, MANY))


def test_each_sandbox_sees_its_own_view(dns_server: DnsServer, netns_factory: MakeNetns) -> None:
    one, two = netns_factory("one"), netns_factory("two")
    port = dns_server.serve("one", one, view=view("10.0.0.1"))
    assert dns_server.serve("two", two, port, view=view("10.0.0.2", secret=MANY[:1])) == port
    assert Client(one, port).address_of() == "10.0.0.1"
    assert Client(two, port).address_of() == "10.0.0.2"
    assert Client(two, port).address_of("secret") == "172.18.1.1"
    assert Client(one, port).ask("secret").rcode() == dns.rcode.NXDOMAIN


def test_before_it_has_a_view_the_answer_is_not_final(dns_server: DnsServer, netns: NetnsRef) -> None:
    client = Client(netns, dns_server.serve("a", netns))
    assert client.ask().rcode() == dns.rcode.SERVFAIL
    dns_server.publish("a", view())
    assert client.address_of() == "172.18.0.2"
    dns_server.publish("nobody", view())


def test_a_taken_port_gives_another(dns_server: DnsServer, netns: NetnsRef) -> None:
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        with entered(netns):
            taken = socket.socket(socket.AF_INET, kind)
        with taken:
            taken.bind(("0.0.0.0", 0))
            asked: int = taken.getsockname()[1]
            port = dns_server.serve("a", netns, asked, view=view())
            assert port != asked
            assert Client(netns, port).address_of(tcp=True) == "172.18.0.2"
            dns_server.withdraw("a")


def test_the_same_port_again_though_old_connections_linger(dns_server: DnsServer, netns: NetnsRef) -> None:
    port = dns_server.serve("a", netns, view=view())
    client = Client(netns, port)
    with client.tcp() as sock:
        sock.sendall(framed(dns.message.make_query("web", "A").to_wire()))
        read_message(sock)
        dns_server.withdraw("a")  # the server closes first, and keeps the TIME_WAIT
    assert dns_server.serve("a", netns, port, view=view()) == port
    assert client.address_of(tcp=True) == "172.18.0.2"


def test_serving_again_keeps_the_sockets(dns_server: DnsServer, netns: NetnsRef) -> None:
    port = dns_server.serve("a", netns, view=view())
    before = sockets_in(netns)
    assert dns_server.serve("a", netns, port, view=view("10.0.0.9")) == port
    assert dns_server.serve("a", netns) == port
    assert sockets_in(netns) == before
    assert Client(netns, port).address_of() == "10.0.0.9"


def test_withdraw_closes_everything_at_once(dns_server: DnsServer, netns: NetnsRef) -> None:
    client = Client(netns, dns_server.serve("a", netns, view=view()))
    with client.tcp() as sock:
        sock.sendall(framed(dns.message.make_query("web", "A").to_wire()))
        read_message(sock)
        dns_server.withdraw("a")
        assert is_closed(sock)
    assert sockets_in(netns) == []
    assert dns_server.stats().sandboxes == dns_server.stats().connections == 0
    dns_server.withdraw("a")


def test_it_works_before_lo_is_up(dns_server: DnsServer, netns: NetnsRef) -> None:
    subprocess.run(["nsenter", f"--net={netns.path}", "ip", "link", "set", "lo", "down"], check=True)
    port = dns_server.serve("a", netns, view=view())
    subprocess.run(["nsenter", f"--net={netns.path}", "ip", "link", "set", "lo", "up"], check=True)
    assert Client(netns, port).address_of() == "172.18.0.2"


def test_a_netns_that_is_gone_is_named_and_leaves_nothing(dns_server: DnsServer, netns: NetnsRef) -> None:
    before = open_descriptors()
    with pytest.raises(ObjectMissing, match="elsewhere"):
        dns_server.serve("a", NetnsRef("/run/netns/elsewhere"))
    with pytest.raises(ObjectMissing):
        dns_server.serve("a", NetnsRef(netns.path, "someone:else"))
    with pytest.raises(NetlibError):
        dns_server.serve("a", netns, device="nolink0")
    assert open_descriptors() == before
    assert dns_server.stats().sandboxes == 0


def test_close_leaves_no_descriptor_and_no_thread(netns: NetnsRef, tmp_path: Path) -> None:
    threads, before = threading.active_count(), open_descriptors()
    made = DnsServer(resolv_conf=tmp_path / "none")
    client = Client(netns, made.serve("a", netns, view=view()))
    with client.tcp() as sock:
        sock.sendall(framed(dns.message.make_query("web", "A").to_wire()))
        read_message(sock)
        made.close()
        assert is_closed(sock)
    made.close()
    with pytest.raises(DaemonError):
        made.serve("a", netns)
    assert (threading.active_count(), open_descriptors()) == (threads, before)


def test_through_the_dnat_of_port_53(dns_server: DnsServer, netns: NetnsRef) -> None:
    port = dns_server.serve("a", netns, view=view())
    rules = "add table ip t; add chain ip t output { type nat hook output priority -100; }; " + "".join(
        f"add rule ip t output ip daddr 127.0.0.11 {kind} dport 53 dnat to 127.0.0.11:{port};" for kind in ("udp", "tcp")
    )
    subprocess.run(["nsenter", f"--net={netns.path}", "nft", rules], check=True)
    client = Client(netns, 53)
    with entered(netns):
        own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with own:
        own.bind(("0.0.0.0", 53))  # a container may run a server of its own
        assert client.address_of() == "172.18.0.2"
        assert client.address_of(tcp=True) == "172.18.0.2"


@pytest.mark.parametrize(("gateway", "guest", "length"), [("10.9.0.1", "10.9.0.2", 24), ("fd09::1", "fd09::2", 64)])
def test_at_a_gateway_for_one_link_only(
    dns_server: DnsServer, netns_factory: MakeNetns, gateway: str, guest: str, length: int
) -> None:
    ours, other = netns_factory("ours"), netns_factory("other")
    try:
        for ifname, member in (("gw0", ours), ("gw1", other)):
            label = Path(member.path).name
            subprocess.run(["ip", "link", "add", ifname, "type", "veth", "peer", "name", "eth0", "netns", label], check=True)
            subprocess.run(["ip", "link", "set", ifname, "up"], check=True)
            inside = ["nsenter", f"--net={member.path}", "ip"]
            subprocess.run([*inside, "addr", "add", f"{guest}/{length}", "dev", "eth0", *nodad(guest)], check=True)
            subprocess.run([*inside, "link", "set", "eth0", "up"], check=True)
        port = dns_server.serve("gw", HOST, 53, address=ip_address(gateway), device="gw0", view=view())  # before the address
        assert port == 53
        for ifname in ("gw0", "gw1"):
            subprocess.run(["ip", "addr", "add", f"{gateway}/{length}", "dev", ifname, *nodad(gateway)], check=True)
        wait_until(lambda: reaches(Client(ours, 53, gateway)), "no answer at the gateway")
        assert Client(ours, 53, gateway).address_of(tcp=True) == "172.18.0.2"
        subprocess.run(["ip", "addr", "del", f"{gateway}/{length}", "dev", "gw0"], check=True)
        wait_until(lambda: pings(other, gateway), "the other link does not work")
        assert not reaches(Client(other, 53, gateway))
    finally:
        for ifname in ("gw0", "gw1"):
            subprocess.run(["ip", "link", "del", ifname], check=False, capture_output=True)


def nodad(address: str) -> list[str]:
    return ["nodad"] if ":" in address else []


def pings(netns: NetnsRef, address: str) -> bool:
    return (
        subprocess.run(["nsenter", f"--net={netns.path}", "ping", "-c1", "-W1", address], capture_output=True).returncode == 0
    )


def reaches(client: Client) -> bool:
    query = dns.message.make_query("web", "A").to_wire()
    with client.udp() as sock:
        sock.settimeout(0.3)
        try:
            sock.send(query)
            return bool(sock.recv(512))
        except OSError:
            return False


# --- the cache -------------------------------------------------------------------------------------------------------


def test_repeated_questions_come_from_the_cache_and_still_rotate(dns_server: DnsServer, netns: NetnsRef) -> None:
    client = Client(netns, dns_server.serve("a", netns, view=view(app=MANY[:3])))
    query = dns.message.make_query("app", "A")
    first = []
    with client.udp() as sock:
        for number in range(9):
            query.id = number
            sock.send(query.to_wire())
            response = dns.message.from_wire(sock.recv(512), one_rr_per_rrset=True)
            assert response.id == number
            first.append(values(response)[0])
    assert first[:3] == first[3:6] == first[6:]
    assert sorted(first[:3]) == ["172.18.1.1", "172.18.1.2", "172.18.1.3"]
    assert dns_server.stats().cache_hits == 8
    assert dns_server.stats().queries == 9


def test_the_cache_is_bounded(dns_server: DnsServer, netns: NetnsRef, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_CACHED_ANSWERS", 8)
    client = Client(netns, dns_server.serve("a", netns, view=view()))
    for number in range(50):
        assert client.ask(f"name{number}").rcode() == dns.rcode.NXDOMAIN
    assert len(dns_server._served["a"].snapshot.cache) <= 8
    assert client.address_of() == "172.18.0.2"


def test_views_swapped_under_load_are_seen_whole_and_at_once(dns_server: DnsServer, netns: NetnsRef) -> None:
    views = [view(f"10.0.0.{number}") for number in range(1, 5)]
    client = Client(netns, dns_server.serve("a", netns, view=views[0]))
    valid = {f"10.0.0.{number}" for number in range(1, 5)}
    stop, wrong, answered = threading.Event(), list[str](), list[int]()

    def load() -> None:
        count = 0
        while not stop.is_set():
            found = client.address_of()
            if found not in valid:
                wrong.append(found)
            count += 1
        answered.append(count)

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(200):
        dns_server.publish("a", views[number % 4])
        assert client.address_of() == f"10.0.0.{number % 4 + 1}"
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert all(answered)


# --- hostile clients -------------------------------------------------------------------------------------------------


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
    assert client.address_of() == "172.18.0.2"
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
