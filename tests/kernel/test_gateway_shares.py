"""Shares at a gateway: what a member asks there is accounted by its bridge port, whatever address it asks from."""

import errno
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_interface
from pathlib import Path

import dns.message
import dns.rcode
import pytest
from scapy.layers.inet import IP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from netlib.config import Config
from netlib.core.controller import Controller
from netlib.core.sandbox_plan import Seat
from netlib.daemon import gateways
from netlib.daemon.gateways import Gateways
from netlib.dns.lanes import Lanes, open_lane
from netlib.dns.server import DnsServer
from netlib.errors import FeatureMissing, HostExhausted, KernelError
from netlib.firewall.guests import Guest, GuestTable
from netlib.kernel.netns import entered
from netlib.model import IPAddress, NetnsRef, ResolverConfig
from netlib.names import bridge_ifname
from netlib.wire.client import leave
from tests.kernel import dns_load
from tests.kernel.dns_client import (
    NOERROR,
    UPSTREAM,
    Loads,
    framed,
    read_message,
    resolve,
    view,
    wait_until,
)

MakeNetns = Callable[[str], NetnsRef]

Form = Callable[[Packet, str, bytes, int], list[Packet]]
"""Makes the frames of a question, after an Ethernet header: from an address, a query, and from a port."""

GATEWAYS: dict[int, str] = {4: "172.28.0.1", 6: "fd00:28::1"}


class Member:
    """A sandbox in a netns of somebody else, and what its processes may send."""

    def __init__(self, controller: Controller, name: str, netns: NetnsRef) -> None:
        self.name, self.netns = name, netns
        controller.create_sandbox(name, netns=netns.path, resolver=ResolverConfig(servers=(ip_address(UPSTREAM),)))
        endpoint = controller.connect("web", name)
        self.addresses: dict[int, str] = {each.version: str(each.ip) for each in endpoint.addresses}
        self.mac = endpoint.mac
        self.bridge = bridge_ifname(controller.network("web"))
        self.bridge_mac = Path(f"/sys/class/net/{self.bridge}/address").read_text().strip()

    def target(self, version: int = 4) -> str:
        return f"{self.netns.path},{GATEWAYS[version]},53"

    def udp(self, version: int, port: int) -> socket.socket:
        with entered(self.netns):
            sock = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
        sock.bind((self.addresses[version], port))
        sock.connect((GATEWAYS[version], 53))
        sock.settimeout(5)
        return sock

    def send(self, *frames: Packet) -> None:
        with entered(self.netns):
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        with sock:
            sock.bind(("eth0", 0))
            for frame in frames:
                sock.send(bytes(frame))

    def run(self, *command: str) -> None:
        subprocess.run(["nsenter", f"--net={self.netns.path}", *command], check=True)


def plain(ether: Packet, source: str, query: bytes, port: int) -> list[Packet]:
    return [ether / IP(src=source, dst=GATEWAYS[4]) / UDP(sport=port, dport=53) / Raw(query)]


def tagged(ether: Packet, source: str, query: bytes, port: int) -> list[Packet]:
    """With a priority tag: VLAN 0, which the kernel takes off."""
    (frame,) = plain(ether / Dot1Q(vlan=0), source, query, port)
    return [frame]


def in_fragments(ether: Packet, source: str, query: bytes, port: int) -> list[Packet]:
    whole = IP(src=source, dst=GATEWAYS[4], id=port) / UDP(sport=port, dport=53) / Raw(query)
    return [ether / part for part in fragment(whole, fragsize=8)]  # type: ignore[no-untyped-call]


def plain6(ether: Packet, source: str, query: bytes, port: int) -> list[Packet]:
    return [ether / IPv6(src=source, dst=GATEWAYS[6]) / UDP(sport=port, dport=53) / Raw(query)]


def with_options(ether: Packet, source: str, query: bytes, port: int) -> list[Packet]:
    return [ether / IPv6(src=source, dst=GATEWAYS[6]) / IPv6ExtHdrDestOpt() / UDP(sport=port, dport=53) / Raw(query)]


@pytest.fixture
def controller(config: Config) -> Iterator[Controller]:
    with Controller(config) as controller:
        controller.create_network("web", subnets=["172.28.0.0/16", "fd00:28::/64"], ipv6=True)
        yield controller
        controller.reset()
    leave(config)


@pytest.fixture
def member(controller: Controller, netns_factory: MakeNetns) -> Callable[[str], Member]:
    return lambda name: Member(controller, name, netns_factory(name))


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(plain, marks=pytest.mark.vm),
        tagged,
        in_fragments,
        pytest.param(plain6, marks=pytest.mark.vm),
        with_options,
    ],
    ids=lambda form: form.__name__,
)
def test_a_forged_question_is_none(member: Callable[[str], Member], form: Form) -> None:
    version = 6 if form in (plain6, with_options) else 4
    victim, forger = member("victim"), member("forger")
    with victim.udp(version, 4000) as theirs, forger.udp(version, 4001) as own:
        own.send(dns_load.query("victim", 1))  # both know each other's MAC address afterwards
        assert own.recv(512)[:2] == b"\0\1"
        honest = Ether(src=forger.mac, dst=forger.bridge_mac)
        forger.send(*form(honest, forger.addresses[version], dns_load.query("victim", 2), 4001))
        assert own.recv(512)[:2] == b"\0\2"  # frames of this form get there
        for mac in (forger.mac, victim.mac):
            ether = Ether(src=mac, dst=forger.bridge_mac)
            forger.send(*form(ether, victim.addresses[version], dns_load.query("victim", 3), 4000))
        theirs.send(dns_load.query("forger", 4))
        assert theirs.recv(512)[:2] == b"\0\4"


@pytest.mark.parametrize("version", [4, 6])
def test_a_share_cannot_be_spent_from_another_port(loads: Loads, member: Callable[[str], Member], version: int) -> None:
    victim, forger = member("victim"), member("forger")
    loads.begin(dns_load.serve, "silent", 0, f"-,{UPSTREAM},53")
    ether = Ether(src=forger.mac, dst=forger.bridge_mac)
    form = plain if version == 4 else plain6
    forged = [form(ether, victim.addresses[version], dns_load.query("n#.silent", number), 4000)[0] for number in range(150)]
    forger.send(*forged)
    found = loads.ask("n#.example", victim.target(version), 20)
    assert found["outcomes"] == {NOERROR: 20}


@pytest.mark.parametrize("version", [4, 6])
def test_an_address_that_another_member_took_over_asks_for_nothing(member: Callable[[str], Member], version: int) -> None:
    victim, forger = member("victim"), member("forger")
    taken = f"{victim.addresses[version]}/{32 if version == 4 else 128}"
    assert resolve(victim.netns, "forger", GATEWAYS[version], tcp=True) == [forger.addresses[4]]
    victim.run("ip", "link", "set", "eth0", "down")
    forger.run("ip", "addr", "add", taken, "dev", "eth0", *(["nodad"] if version == 6 else []))
    subprocess.run(["ip", "neigh", "flush", "dev", victim.bridge], check=True)  # the host asks again whose the address is
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    for source, answers in ((forger.addresses[version], True), (victim.addresses[version], False)):
        with entered(forger.netns):
            sock = socket.socket(family, socket.SOCK_STREAM)
        with sock:
            sock.settimeout(5.0 if answers else 0.5)
            sock.bind((source, 0))
            if answers:
                sock.connect((GATEWAYS[version], 53))
                sock.sendall(framed(dns_load.query("victim")))
                assert dns.message.from_wire(read_message(sock)).rcode() == dns.rcode.NOERROR
            else:
                with pytest.raises(TimeoutError):
                    sock.connect((GATEWAYS[version], 53))


def test_a_sandbox_has_one_share_by_all_its_addresses(loads: Loads, member: Callable[[str], Member]) -> None:
    one = member("one")
    loads.begin(dns_load.serve, "silent", 0, f"-,{UPSTREAM},53")
    with one.udp(4, 4000) as first, one.udp(6, 4000) as second:
        for number in range(101):
            first.send(dns_load.query("n#.silent", number))
        assert dns.message.from_wire(first.recv(512)).rcode() == dns.rcode.REFUSED
        second.send(dns_load.query("n.example", 1))
        assert dns.message.from_wire(second.recv(512)).rcode() == dns.rcode.REFUSED


@pytest.mark.parametrize(("mode", "name", "number"), [(dns_load.flood, "n#", 1000), (dns_load.pipeline, "one", 30)])
def test_a_neighbour_at_the_gateway_is_answered_beside(
    loads: Loads, member: Callable[[str], Member], mode: Callable[..., None], name: str, number: int
) -> None:
    neighbour, one = member("neighbour"), member("one")
    loads.begin(mode, name, number, one.target())
    loads.look_up_quickly("one", neighbour.target())


# --- the parts -------------------------------------------------------------------------------------------------------


@pytest.mark.vm
@pytest.mark.parametrize("network", ["127.1.0.{}", "fd01::{}"])
def test_each_guests_packets_get_into_its_own_lane(netns_factory: MakeNetns, network: str) -> None:
    netns = netns_factory("lanes")
    server, guests = ip_address(network.format(1)), [ip_address(network.format(number)) for number in range(2, 7)]
    if server.version == 6:
        for address in (server, *guests):
            subprocess.run(["ip", "-n", Path(netns.path).name, "addr", "add", f"{address}/128", "dev", "lo"], check=True)
    with entered(netns):
        lanes = Lanes(server, "", open_lane(server, 0, ""))
        added = {guest: lanes.add(guest) for guest in guests[:4]}
    expected = {guest: added.get(guest) or lanes.first for guest in guests}
    try:
        for removed in (None, guests[1], guests[3]):
            if removed is not None:
                lanes.remove(removed)
                expected[removed] = lanes.first
            for guest, lane in expected.items():
                assert arrives(netns, guest, lanes) == (lane, lane), guest
    finally:
        lanes.close()


def arrives(netns: NetnsRef, source: object, lanes: Lanes) -> tuple[object, object]:
    """In which lane a datagram, and in which a connection from *source* is found."""
    found: list[object] = []
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        with entered(netns):
            sock = socket.socket(socket.AF_INET6 if ":" in str(source) else socket.AF_INET, kind)
        with sock:
            sock.bind((str(source), 0))
            sock.connect((str(lanes.address), lanes.port))
            if kind == socket.SOCK_DGRAM:
                sock.send(b"x")
            waiting = {own.fileno(): (own, lane) for lane in lanes for own in lane if own.type == kind}
            poll = select.poll()
            for fd in waiting:
                poll.register(fd, select.POLLIN)
            ready = [waiting[fd] for fd, _ in poll.poll(10_000)]  # the kernel may deliver a moment later
            found.append(next((lane for own, lane in ready if takes(own)), None))
    return found[0], found[1]


def takes(sock: socket.socket) -> bool:
    """Take a datagram or a connection that waits at *sock*; whether there was one."""
    try:
        if sock.type == socket.SOCK_DGRAM:
            sock.recv(1)
        else:
            sock.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def test_guests_are_admitted_and_dismissed_without_a_trace(netns_factory: MakeNetns, tmp_path: Path) -> None:
    netns, server = netns_factory("gateway"), DnsServer(resolv_conf=tmp_path / "resolv.conf")
    gateway, clients = ip_address("127.0.0.1"), [ip_address(f"127.0.0.{number}") for number in range(2, 6)]
    try:
        server.serve("gw", netns, 53, address=gateway)
        before = len(os.listdir("/proc/self/fd"))
        for client in clients:
            server.admit("gw", client, "box", view())
            server.admit("gw", client, "box", view("10.0.0.1"))
        assert len(os.listdir("/proc/self/fd")) == before + 2 * len(clients)
        server.dismiss("gw", clients[0])
        server.dismiss("gw", clients[0])
        server.admit("gw", clients[1], "other", view())  # another one's address from now on
        assert len(os.listdir("/proc/self/fd")) == before + 2 * (len(clients) - 1)
        for client in clients[1:]:
            server.dismiss("gw", client)
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        server.close()


@pytest.mark.parametrize("network", ["127.0.1.{}", "fd01::{:x}"])
def test_guests_that_the_kernel_sorts_no_more_share_the_queue_of_strangers(
    netns_factory: MakeNetns, tmp_path: Path, caplog: pytest.LogCaptureFixture, network: str
) -> None:
    """The sorting program's size has a limit, net.core.optmem_max: older kernels have 20,480 bytes."""
    netns, server = netns_factory("gateway"), DnsServer(resolv_conf=tmp_path / "resolv.conf")
    gateway, *guests = [ip_address(network.format(number)) for number in range(1, 252)]
    for address in (gateway, guests[0], guests[-1]):
        prefix = f"{address}/{8 * len(address.packed)}"
        subprocess.run(["ip", "-n", Path(netns.path).name, "addr", "add", prefix, "dev", "lo"], check=True)
    with entered(netns), lowered(Path("/proc/sys/net/core/optmem_max"), 20_480):
        before = len(os.listdir("/proc/self/fd"))
        try:
            port = server.serve("gw", netns, address=gateway)
            for client in (*guests, *guests):  # the second time, each sees a new view
                server.admit("gw", client, f"box {client}", view())
            lanes = server._served["gw"].lanes
            number = len(list(lanes))
            assert 10 < number < len(guests)
            assert len(os.listdir("/proc/self/fd")) == before + 2 * number
            assert len(caplog.messages) == 1
            assert "shares the queue of strangers at the gateway" in caplog.text
            for client in (guests[0], guests[-1]):
                assert answers_to(client, gateway, port)
            server.dismiss("gw", guests[0])
            server.admit("gw", guests[-1], "box", view())
            assert (len(list(lanes)), lanes.find(guests[-1]) is None) == (number, False)
            assert answers_to(guests[-1], gateway, port)
            server.withdraw("gw")
            assert len(os.listdir("/proc/self/fd")) == before
        finally:
            server.close()


def test_a_lane_that_cannot_be_watched_is_closed(
    netns_factory: MakeNetns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netns, server = netns_factory("gateway"), DnsServer(resolv_conf=tmp_path / "resolv.conf")
    gateway, client = ip_address("127.0.0.1"), ip_address("127.0.0.2")
    try:
        server.serve("gw", netns, address=gateway)
        before = len(os.listdir("/proc/self/fd"))
        monkeypatch.setattr(server._loop, "watch", refuse)
        with pytest.raises(KernelError, match="cannot watch DNS sockets"):
            server.admit("gw", client, "box", view())
        assert len(os.listdir("/proc/self/fd")) == before
        server.withdraw("gw")
    finally:
        server.close()


def refuse(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")  # of epoll: fs.epoll.max_user_watches


@contextmanager
def lowered(setting: Path, value: int) -> Iterator[None]:
    if not setting.exists():
        pytest.skip("this kernel has that setting for all network namespaces at once")
    prior = setting.read_text()
    setting.write_text(str(value))
    try:
        yield
    finally:
        setting.write_text(prior)


def answers_to(source: IPAddress, gateway: IPAddress, port: int) -> bool:
    with socket.socket(socket.AF_INET if source.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5.0)
        sock.bind((str(source), 0))
        sock.connect((str(gateway), port))
        sock.send(dns_load.query("web"))
        return dns.message.from_wire(sock.recv(512)).rcode() == dns.rcode.NOERROR


HOLDER = """
from tests.kernel.test_gateway_shares import GuestTable, guest
table = GuestTable()
table.change([], [guest(2, "veth2")])
print(flush=True)
input()
"""


def tables() -> str:
    return subprocess.run(["nft", "list", "tables"], check=True, capture_output=True, text=True).stdout


def guest(number: int, port: str, version: int = 4) -> Guest:
    return Guest(ip_address(GATEWAYS[version]), ip_interface(f"172.28.0.{number}").ip, port)


@pytest.mark.vm
def test_the_table_of_guests_outlives_a_flush_and_ends_with_its_process() -> None:
    table = GuestTable()
    table.change([], [guest(2, "veth2"), guest(3, "veth3")])
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    assert f"bridge netlib-guests-{os.getpid()}" in tables()
    table.change([guest(2, "veth2")], [guest(2, "veth4"), guest(3, "veth3")])
    listing = subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout
    assert '172.28.0.2 . "veth4"' in listing
    assert "veth2" not in listing
    table.change([guest(2, "veth4"), guest(3, "veth3")], [])
    assert "guests" not in tables()
    table.close()
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert "guests" in tables()
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: "guests" not in tables(), "the table is still there")


def test_who_could_not_leave_leaves_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[frozenset[Guest]] = []

    def change(self: GuestTable, leaving: Collection[Guest], joining: Collection[Guest]) -> None:
        if leaving and len(told) == 1:
            told.append(self.guests)
            raise HostExhausted("too little memory")
        self.guests = self.guests.difference(leaving).union(joining)
        told.append(self.guests)

    monkeypatch.setattr(GuestTable, "change", change)
    monkeypatch.setattr(gateways, "PORT", 5300)
    server = DnsServer(resolv_conf=tmp_path / "resolv.conf")
    try:
        places = Gateways(server)
        places.seat("box", [Seat("net", ip_address("127.0.0.1"), "lo", ip_address("127.0.0.2"), "veth")], view())
        places.unseat("box")
        places.retry()
    finally:
        server.close()
    assert [len(guests) for guests in told] == [1, 1, 0]


@pytest.mark.vm
def test_two_thousand_guests_join_and_leave_at_once() -> None:
    table = GuestTable()
    gateway, number = ip_address("172.28.0.1"), 2000  # elements of more than the 64 KiB that one attribute may be long
    many = [Guest(gateway, gateway + 256 + at, f"v{at}") for at in range(number)]
    table.change([], many)
    assert f"bridge netlib-guests-{os.getpid()}" in tables()
    table.change(many, [])
    assert "guests" not in tables()
    table.close()


def test_a_kernel_that_cannot_tell_ports_apart_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lacking(self: GuestTable, leaving: object, joining: object) -> None:
        raise FeatureMissing("this kernel lacks it")

    monkeypatch.setattr(GuestTable, "change", lacking)
    monkeypatch.setattr(gateways, "PORT", 5300)
    server = DnsServer(resolv_conf=tmp_path / "resolv.conf")
    try:
        places = Gateways(server)
        for number in (2, 3):
            seat = Seat("net", ip_address("127.0.0.1"), "lo", ip_address(f"127.0.0.{number}"), "veth")
            places.seat(f"box{number}", [seat], view())
        places.retry()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.2", 0))
            sock.settimeout(5)
            sock.sendto(dns_load.query("web"), ("127.0.0.1", 5300))
            assert dns.message.from_wire(sock.recv(512)).answer
        assert [record.message for record in caplog.records if "share" in record.message] == [
            "a member can use up another's share of queries to a gateway by forging its address: this kernel lacks it"
        ]
    finally:
        server.close()
