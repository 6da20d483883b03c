"""The DNS server on real sockets in real netns: answers, hostile clients, swaps under load, and nothing left open."""

import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import pytest

from netlib.dns import server
from netlib.dns.server import DnsServer
from netlib.errors import DaemonError, NetlibError, ObjectMissing
from netlib.kernel.netns import entered
from netlib.model import HOST, NetnsRef
from tests.descriptors import open_descriptors
from tests.kernel.dns_client import MANY, Client, framed, is_closed, reaches, read_message, values, view, wait_until

MakeNetns = Callable[[str], NetnsRef]


@pytest.fixture
def dns_server(tmp_path: Path) -> Iterator[DnsServer]:
    made = DnsServer(resolv_conf=tmp_path / "resolv.conf")
    yield made
    made.close()


@pytest.fixture
def netns(netns_factory: MakeNetns) -> NetnsRef:
    return netns_factory("dns")


def sockets_in(netns: NetnsRef) -> list[str]:
    """The lines of the netns's tables of UDP and TCP sockets that are not mere memories of closed ones (TIME_WAIT)."""
    with entered(netns):
        lines = [
            line.split() for kind in ("udp", "tcp") for line in Path(f"/proc/thread-self/net/{kind}").read_text().splitlines()
        ]
    return [" ".join(line) for line in lines if line[0] != "sl" and line[3] != "06"]


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
    wait_until(lambda: dns_server.stats().queries == 9, "the count is not taken")  # once per wake, after the answers
    assert dns_server.stats().cache_hits == 8


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
