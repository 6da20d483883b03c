"""Held ports against real sockets: who is kept out, who is named, what is free."""

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from netlib.errors import ConfigError, NotPermitted, PortTaken
from netlib.kernel.netns import entered
from netlib.kernel.sockets import ephemeral_ports, free_port, hold_port, port_candidates, port_owner, probe_port
from netlib.model import NetnsRef, PortMapping, Protocol

TCP, UDP = Protocol.TCP, Protocol.UDP
_OTHER = """
import socket, sys
family, kind, host, port, listens = sys.argv[1:]
sock = socket.socket(int(family), int(kind))
if int(family) == socket.AF_INET6:
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(kind) == socket.SOCK_STREAM)
sock.bind((host, int(port)))
if listens == "yes":
    sock.listen()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _fresh_netns(netns_factory: Callable[[str], NetnsRef]) -> Iterator[None]:
    with entered(netns_factory("ports")):
        yield


def mapping(port: int, protocol: Protocol = TCP, host_ip: str = "") -> PortMapping:
    return PortMapping(container_port=80, host_port=port, protocol=protocol, host_ip=ip_address(host_ip) if host_ip else None)


@contextmanager
def other_program(port: int, protocol: Protocol = TCP, host: str = "127.0.0.1", *, listens: bool = True) -> Iterator[str]:
    """Another process that holds a port; yields how it is to be named."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == TCP else socket.SOCK_DGRAM
    arguments = [str(int(family)), str(int(kind)), host, str(port), "yes" if listens and protocol == TCP else "no"]
    with subprocess.Popen(
        [sys.executable, "-c", _OTHER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield f"{Path(f'/proc/{process.pid}/comm').read_text().strip()} (pid {process.pid})"
        process.communicate()


def server(port: int, host: str = "0.0.0.0", kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """A socket as nearly every server opens it."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, kind == socket.SOCK_STREAM)
        sock.bind((host, port))
        if kind == socket.SOCK_STREAM:
            sock.listen()
    except OSError:
        sock.close()
        raise
    return sock


def assert_kept_out(port: int, host: str = "0.0.0.0", kind: socket.SocketKind = socket.SOCK_STREAM) -> None:
    with pytest.raises(OSError, match="in use") as caught:
        server(port, host, kind).close()
    assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize(("protocol", "kind"), [(TCP, socket.SOCK_STREAM), (UDP, socket.SOCK_DGRAM)])
def test_a_held_port_keeps_everybody_out_until_it_is_let_go(protocol: Protocol, kind: socket.SocketKind) -> None:
    with closing(hold_port(mapping(8080, protocol))):
        for host in ("0.0.0.0", "127.0.0.1", "::", "::1"):
            assert_kept_out(8080, host, kind)
        with pytest.raises(PortTaken):
            hold_port(mapping(8080, protocol))
    server(8080, "127.0.0.1", kind).close()


def test_a_held_port_of_one_address_leaves_the_others() -> None:
    with closing(hold_port(mapping(8080, host_ip="127.0.0.1"))):
        assert_kept_out(8080, "127.0.0.1")
        server(8080, "127.0.0.2").close()
        server(8080, "::1").close()
    with closing(hold_port(mapping(8080, host_ip="0.0.0.0"))):
        assert_kept_out(8080, "127.0.0.1")
        server(8080, "::1").close()
    with closing(hold_port(mapping(8080, host_ip="::"))):
        assert_kept_out(8080, "::1")
        server(8080, "127.0.0.1").close()


def test_nobody_is_answered_on_a_held_port() -> None:
    with closing(hold_port(mapping(8080))), socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", 8080)) == errno.ECONNREFUSED


def test_a_held_port_is_not_inherited_by_a_command() -> None:
    with closing(hold_port(mapping(8080))) as held:
        assert not os.get_inheritable(held.fileno())


@pytest.mark.parametrize("listens", [True, False])
@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", "::", "::1"])
def test_the_tcp_holder_is_named(host: str, listens: bool) -> None:
    with other_program(8080, host=host, listens=listens) as name, pytest.raises(PortTaken) as caught:
        hold_port(mapping(8080))
    assert str(caught.value) == f"host port 8080/tcp is held by {name}; choose another port or stop that program"
    probe_port(mapping(8080))


def test_the_udp_holder_is_named() -> None:
    with other_program(5353, UDP) as name:
        with pytest.raises(PortTaken, match=r"host port 5353/udp on 127\.0\.0\.1 is held by") as caught:
            probe_port(mapping(5353, UDP, "127.0.0.1"))
        assert name in str(caught.value)
        probe_port(mapping(5353, TCP))


def test_only_holders_of_a_clashing_address_are_named() -> None:
    with other_program(8080, host="127.0.0.2") as name:
        assert port_owner(TCP, 8080) == port_owner(TCP, 8080, ip_address("127.0.0.2")) == name
        assert port_owner(TCP, 8080, ip_address("127.0.0.1")) is None
        assert port_owner(UDP, 8080) is None
        assert port_owner(TCP, 8081) is None
        probe_port(mapping(8080, host_ip="127.0.0.1"))


def test_a_holder_in_another_netns_is_no_holder_here(netns_factory: Callable[[str], NetnsRef]) -> None:
    with other_program(8080), entered(netns_factory("elsewhere")):
        assert port_owner(TCP, 8080) is None
        probe_port(mapping(8080))


def test_the_listener_is_named_before_a_connection() -> None:
    with other_program(8080) as name, socket.create_connection(("127.0.0.1", 8080)) as client:
        assert port_owner(TCP, 8080) == name
        ours = port_owner(TCP, client.getsockname()[1])
        assert ours is not None
        assert ours.endswith(f"(pid {os.getpid()})")
        with pytest.raises(PortTaken):
            probe_port(mapping(client.getsockname()[1]))


def test_connections_that_a_server_left_behind_hold_nothing() -> None:
    with server(8080, "127.0.0.1") as listener:
        client = socket.create_connection(("127.0.0.1", 8080))
        accepted, _ = listener.accept()
        accepted.close()  # the side that closes first keeps the TIME-WAIT
        assert client.recv(1) == b""
        client.close()
    plain = socket.socket()
    with closing(plain), pytest.raises(OSError, match="in use"):
        plain.bind(("127.0.0.1", 8080))
    with closing(hold_port(mapping(8080))):
        assert_kept_out(8080)
        assert_kept_out(8080, "127.0.0.1")


@pytest.mark.parametrize("address", ["203.0.113.9", "2001:db8::9", "fe80::1"])
def test_an_address_that_the_host_lacks_is_refused(address: str) -> None:
    with pytest.raises(
        ConfigError, match=f"host port 8080/tcp on {address} cannot be published: no interface of this host has"
    ):
        hold_port(mapping(8080, host_ip=address))


def test_a_privileged_port_without_root_is_refused() -> None:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setresuid(65534, 65534, 65534)
            hold_port(mapping(80))
        except NotPermitted as error:
            status = 0 if "host port 80/tcp is privileged" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_it_works_without_ipv6() -> None:
    for name in ("all", "default", "lo"):
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
    with closing(hold_port(mapping(8080))):
        assert_kept_out(8080)


def test_ephemeral_ports_are_the_kernels_less_the_reserved_ones() -> None:
    sysctl = Path("/proc/sys/net/ipv4")
    (sysctl / "ip_local_port_range").write_text("40000 40009")
    assert list(ephemeral_ports()) == list(range(40000, 40010))
    (sysctl / "ip_local_reserved_ports").write_text("40001,40003-40005")
    assert list(ephemeral_ports()) == [40000, 40002, 40006, 40007, 40008, 40009]
    assert sorted(port_candidates(0, 0)) == list(ephemeral_ports())
    assert list(port_candidates(8000, 8002)) == [8000, 8001, 8002]


def test_a_free_port_is_the_first_that_nobody_holds() -> None:
    with other_program(8000) as name, closing(hold_port(mapping(8001))):
        assert free_port(TCP, None, port_candidates(8000, 8010)) == 8002
        assert free_port(UDP, None, port_candidates(8000, 8010)) == 8000
        with pytest.raises(PortTaken, match="no tcp host port is free: host port 8000/tcp is held by") as caught:
            free_port(TCP, None, port_candidates(8000, 8000))
        assert name in str(caught.value)
    with pytest.raises(PortTaken, match="there are none to choose from"):
        free_port(TCP, None, [])


def test_a_server_between_bind_and_listen_is_not_robbed() -> None:
    with socket.socket() as starting:
        starting.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, True)
        starting.bind(("0.0.0.0", 8080))
        with pytest.raises(PortTaken, match=rf"is held by .* \(pid {os.getpid()}\)"):
            hold_port(mapping(8080))
        starting.listen()
