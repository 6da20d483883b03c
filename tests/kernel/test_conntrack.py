"""Tracked connections: exactly those that a change concerns are forgotten."""

import socket
import subprocess
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address

import pytest
from pyroute2 import NFCTSocket

from netlib.kernel import conntrack
from netlib.kernel.conntrack import flush_udp
from netlib.kernel.handle import Kernel
from netlib.kernel.netns import entered
from netlib.kernel.sysctl import read_sysctl
from netlib.model import NetnsRef

RULES = """
table inet track {
    chain output { type nat hook output priority -100; udp dport 8053 dnat ip to 10.22.0.2:53; }
    chain watch { type filter hook output priority 0; ct state new accept; }
}
"""


@pytest.fixture
def web(netns_factory: Callable[[str], NetnsRef]) -> NetnsRef:
    """A netns that tracks connections; what goes to UDP port 8053 is translated to 10.22.0.2:53."""
    netns = netns_factory("web")
    for address in ("10.22.0.2/32", "10.22.0.3/32", "fd00::2/128", "fd00::3/128"):
        nodad = ["nodad"] if ":" in address else []
        subprocess.run(["ip", "-n", netns.label, "addr", "add", address, "dev", "lo", *nodad], check=True)
    with entered(netns):
        subprocess.run(["nft", "-f", "-"], input=RULES.encode(), check=True)
    return netns


@pytest.fixture(params=["by filter", "listed, as before Linux 6.8"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "by filter":
        monkeypatch.setattr(conntrack, "_delete_by_filter", lambda conntrack, wanted: False)


def send(netns: NetnsRef, *targets: tuple[str, int], kind: socket.SocketKind = socket.SOCK_DGRAM, source: str = "") -> None:
    """Start connections; nobody needs to answer."""
    with entered(netns):
        for host, port in targets:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            with socket.socket(family, kind) as sock:
                if source:
                    sock.bind((source, 0))
                if kind == socket.SOCK_DGRAM:
                    sock.sendto(b"x", (host, port))
                else:
                    assert sock.connect_ex((host, port)) != 0


def tracked(netns: NetnsRef) -> Counter[tuple[str, int]]:
    """How many connections there are, by their original destination."""
    found: Counter[tuple[str, int]] = Counter()
    with entered(netns):
        for family, version in ((socket.AF_INET, "V4"), (socket.AF_INET6, "V6")):
            with NFCTSocket(nfgen_family=family) as sock:
                for entry in sock.dump():
                    original = entry.get("CTA_TUPLE_ORIG")
                    host = original.get_nested("CTA_TUPLE_IP", f"CTA_IP_{version}_DST")
                    found[host, original.get_nested("CTA_TUPLE_PROTO", "CTA_PROTO_DST_PORT")] += 1
    return found


@pytest.mark.usefixtures("way")
def test_udp_connections_to_a_port_are_forgotten(kernel: Kernel, web: NetnsRef) -> None:
    send(web, ("127.0.0.1", 53), ("10.22.0.3", 53), ("::1", 53), ("127.0.0.1", 54), ("127.0.0.1", 53))
    flush_udp(kernel, [53], netns=web)
    assert tracked(web) == {("127.0.0.1", 54): 1}
    flush_udp(kernel, [53], netns=web)
    flush_udp(kernel, [], netns=web)
    assert tracked(web) == {("127.0.0.1", 54): 1}


@pytest.mark.usefixtures("way")
def test_udp_connections_to_a_port_at_one_address_are_forgotten(kernel: Kernel, web: NetnsRef) -> None:
    send(web, ("127.0.0.1", 53), ("10.22.0.3", 53), ("::1", 53), ("fd00::2", 53))
    flush_udp(kernel, [53], ip_address("10.22.0.3"), netns=web)
    assert tracked(web) == {("127.0.0.1", 53): 1, ("::1", 53): 1, ("fd00::2", 53): 1}
    flush_udp(kernel, [53], ip_address("::1"), netns=web)
    assert tracked(web) == {("127.0.0.1", 53): 1, ("fd00::2", 53): 1}


def test_tcp_connections_to_the_port_stay(kernel: Kernel, web: NetnsRef) -> None:
    with entered(web), socket.create_server(("127.0.0.1", 53)) as server, socket.create_connection(server.getsockname()):
        flush_udp(kernel, [53], netns=web)
        assert tracked(web) == {("127.0.0.1", 53): 1}


def test_a_range_of_ports_is_forgotten(kernel: Kernel, web: NetnsRef) -> None:
    send(web, *(("127.0.0.1", 7000 + n) for n in range(120)), ("::1", 7001))
    flush_udp(kernel, range(7010, 7110), netns=web)
    assert sorted(port for _, port in tracked(web)) == sorted([*range(7000, 7010), *range(7110, 7120), 7001])


def test_an_empty_table_costs_next_to_nothing(kernel: Kernel, web: NetnsRef) -> None:
    flush_udp(kernel, range(1, 10_000), netns=web)
    assert read_sysctl(kernel, web, "net/netfilter/nf_conntrack_count") == "0"


def test_nothing_to_flush_in_a_netns_that_is_gone(kernel: Kernel) -> None:
    flush_udp(kernel, [53], netns=NetnsRef("/run/netns/nobody"))
