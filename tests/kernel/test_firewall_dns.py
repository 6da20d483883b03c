"""The way to the resolver inside a sandbox: port 53 of 127.0.0.11 leads to the port it listens on."""

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import ip_address

import pytest

from netlib.errors import ConfigError, FeatureMissing
from netlib.firewall import dnstable
from netlib.firewall.objects import DnsRedirect
from netlib.firewall.ruleset import dns_commands
from netlib.kernel.handle import Kernel
from netlib.kernel.netlink import nest, text
from netlib.kernel.netns import entered
from netlib.model import NetnsRef

ADDRESS = "127.0.0.11"


@pytest.fixture
def sandbox(netns_factory: Callable[[str], NetnsRef]) -> NetnsRef:
    return netns_factory("sandbox")


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    with Kernel("netlib:test:record") as kernel:
        yield kernel


def test_queries_reach_the_resolver_and_answers_come_from_port_53(sandbox: NetnsRef, kernel: Kernel) -> None:
    with ExitStack() as stack:
        with entered(sandbox):
            udp, own, client, bare = (stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(4))
            tcp, tcp_client = (stack.enter_context(socket.socket()) for _ in range(2))
        udp.bind((ADDRESS, 0))
        port = udp.getsockname()[1]
        tcp.bind((ADDRESS, port))
        tcp.listen()
        own.bind(("0.0.0.0", 53))  # a name server of the container's own
        for sock in (udp, own, client, bare, tcp, tcp_client):
            sock.settimeout(5)
        redirect = DnsRedirect(netns=sandbox, address=ip_address(ADDRESS), port=port)
        redirect.ensure(kernel)
        redirect.ensure(kernel)
        assert redirect.drift(kernel) is None

        client.connect((ADDRESS, 53))  # a connected socket takes answers from there only
        client.send(b"name?")
        query, asker = udp.recvfrom(100)
        udp.sendto(query + b" answer", asker)
        assert client.recv(100) == b"name? answer"
        bare.sendto(b"name?", (ADDRESS, 53))
        udp.sendto(b"answer", udp.recvfrom(100)[1])
        assert bare.recvfrom(100) == (b"answer", (ADDRESS, 53))

        tcp_client.connect((ADDRESS, 53))
        served = stack.enter_context(tcp.accept()[0])
        served.sendall(b"long answer")
        assert tcp_client.recv(100) == b"long answer"
        assert tcp_client.getpeername() == (ADDRESS, 53)

        bare.sendto(b"mine", ("127.0.0.1", 53))
        assert own.recv(100) == b"mine"


def test_a_new_port_replaces_the_old_one(sandbox: NetnsRef, kernel: Kernel) -> None:
    first, second = (DnsRedirect(netns=sandbox, port=port) for port in (4001, 4002))
    assert "is missing" in (first.drift(kernel) or "")
    first.ensure(kernel)
    assert "does not lead to 127.0.0.11 port 4002" in (second.drift(kernel) or "")
    second.ensure(kernel)
    assert second.drift(kernel) is None
    second.remove(kernel)
    second.remove(kernel)
    with entered(sandbox):
        assert subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True).stdout == b""


def test_nothing_is_written_at_home(sandbox: NetnsRef, kernel: Kernel) -> None:
    DnsRedirect(netns=sandbox, port=4001).ensure(kernel)
    assert "netlib_dns" not in subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout


def test_a_sandbox_that_is_gone_has_nothing_to_remove(kernel: Kernel) -> None:
    DnsRedirect(netns=NetnsRef("/run/netns/never-was"), port=4001).remove(kernel)


def test_an_impossible_port_is_refused(sandbox: NetnsRef, kernel: Kernel) -> None:
    with pytest.raises(ConfigError):
        DnsRedirect(netns=sandbox, port=0).ensure(kernel)


def test_it_is_what_the_commands_that_we_tell_people_make(netns_factory: Callable[[str], NetnsRef], kernel: Kernel) -> None:
    ours, typed = netns_factory("ours"), netns_factory("typed")
    redirect = DnsRedirect(netns=ours, address=ip_address(ADDRESS), port=61234)
    redirect.ensure(kernel)
    with entered(typed):
        subprocess.run(["nft", "-f", "-"], input="\n".join(dns_commands(redirect)), text=True, check=True)
    assert _listed(ours) == _listed(typed)


def test_a_kernel_without_such_tables_is_told(sandbox: NetnsRef, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dnstable, "_chain", lambda: text(1, "netlib_dns") + text(3, "output") + nest(4, b"") + text(7, "nap"))
    with pytest.raises(FeatureMissing, match="lacks a part of nf_tables"):
        DnsRedirect(netns=sandbox, port=4001).ensure(kernel)
    with entered(sandbox):
        assert subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True).stdout == b""  # all or none


def _listed(netns: NetnsRef) -> str:
    with entered(netns):
        return subprocess.run(["nft", "--debug=netlink", "list", "ruleset"], check=True, capture_output=True, text=True).stdout
