"""What netlibd keeps up for sandboxes: names, held ports, the firewall; over kills, restarts and other programs' doings."""

import ipaddress
import os
import re
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import dns.message
import dns.query
import dns.rcode
import pytest

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.daemon.ports import HeldPorts
from netlib.daemon.servants import ChangedRecords
from netlib.daemon.serving import Serving
from netlib.dns.server import DnsServer
from netlib.errors import PortTaken
from netlib.firewall.backend import backend, firewall
from netlib.firewall.objects import DnsRedirect, PublishedPort
from netlib.kernel.handle import Kernel
from netlib.kernel.netns import boot_id, entered
from netlib.kernel.sockets import probe_port
from netlib.model import Endpoint, Link, NetnsRef, PortMapping, Sandbox
from netlib.ports import parse_publish
from netlib.store.sqlite import Store
from netlib.verbs.call import call
from netlib.wire.client import leave, start_daemon

SECONDS = 10.0


@pytest.fixture
def controller(config: Config) -> Iterator[Controller]:
    with Controller(config) as controller:
        yield controller
        controller.reset()
    leave(config)


def kill(config: Config) -> None:
    """End netlibd as a crash would, and wait until it has ended."""
    fd = os.pidfd_open(int(config.pid_file.read_text()))
    signal.pidfd_send_signal(fd, signal.SIGKILL)
    assert select.select([fd], [], [], SECONDS)[0]
    os.close(fd)


def resolve(netns: NetnsRef, name: str) -> list[str] | str:
    """The addresses of *name* as a process in *netns* finds them, or the rcode's name."""
    with entered(netns):
        answer = dns.query.udp(dns.message.make_query(name, "A"), "127.0.0.11", timeout=SECONDS)
    if answer.rcode() != dns.rcode.NOERROR:
        return dns.rcode.to_text(answer.rcode())
    return sorted(record.address for rrset in answer.answer for record in rrset)


def address(endpoint: Endpoint) -> str:
    found = endpoint.address(4)
    assert found is not None
    return str(found.ip)


def held(port: int) -> bool:
    try:
        probe_port(PortMapping(container_port=0, host_port=port))
    except PortTaken:
        return True
    return False


def test_names_are_there_when_connect_returns_and_gone_when_disconnect_does(controller: Controller) -> None:
    controller.create_network("web", internal=True)
    one, two = controller.create_sandbox("one"), controller.create_sandbox("two")
    first = controller.connect("web", "one")
    assert resolve(one.netns, "two") == "NXDOMAIN"
    second = controller.connect("web", "two", aliases=["db"])
    assert resolve(one.netns, "two") == resolve(one.netns, "db") == resolve(one.netns, "two.web") == [address(second)]
    assert resolve(two.netns, "one") == [address(first)]
    controller.disconnect("web", "two")
    assert resolve(one.netns, "two") == "NXDOMAIN"
    controller.create_network("other", internal=True)
    elsewhere = controller.connect("other", "two")
    controller.connect("other", "one")
    assert resolve(one.netns, "two") == [address(elsewhere)]
    controller.remove_sandbox("two")
    assert resolve(one.netns, "two") == "NXDOMAIN"


def test_links_and_name_servers_are_each_sandboxes_own(controller: Controller) -> None:
    controller.create_network("web", internal=True)
    boxes = {name: controller.create_sandbox(name) for name in ("one", "two", "three")}
    target = controller.connect("web", "two")
    controller.connect("web", "one", links=[Link("two", "db")])
    controller.connect("web", "three")
    assert resolve(boxes["one"].netns, "db") == [address(target)]
    assert resolve(boxes["two"].netns, "db") == resolve(boxes["three"].netns, "db") == "NXDOMAIN"
    controller.disconnect("web", "two")
    assert resolve(boxes["one"].netns, "db") == "NXDOMAIN"


def test_the_daemons_own_verbs_are_served_as_well(controller: Controller, config: Config) -> None:
    controller.create_network("web", internal=True)
    one = controller.create_sandbox("one")
    start_daemon(config)
    call(config, "network.connect", {"network": "web", "container": "one", "aliases": ["me"]})
    (endpoint,) = controller.endpoints(sandbox="one")
    assert resolve(one.netns, "me") == [address(endpoint)]
    call(config, "network.disconnect", {"network": "web", "container": "one"})
    with entered(one.netns), pytest.raises((dns.query.NoDOQ, OSError, dns.exception.Timeout)):
        dns.query.udp(dns.message.make_query("me", "A"), "127.0.0.11", timeout=0.2)


def test_published_ports_are_held_and_let_go(controller: Controller) -> None:
    controller.create_network("web")
    controller.create_sandbox("one")
    controller.connect(
        "web", "one", ports=[*parse_publish("8080:80"), *parse_publish("5353:53/udp"), *parse_publish("8081-8090:81-90")]
    )
    assert all(held(port) for port in (8080, *range(8081, 8091)))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises(OSError, match="in use"):
        sock.bind(("127.0.0.1", 5353))
    controller.disconnect("web", "one")
    assert not any(held(port) for port in (8080, *range(8081, 8091)))


def _send_all(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("published", ["8080:80", "[::1]:8080:80", "[::]:8080:80"])
def test_the_hosts_ipv6_loopback_reaches_a_published_port(controller: Controller, published: str) -> None:
    controller.create_network("web", ipv6=True)
    one = controller.create_sandbox("one")
    with entered(one.netns):
        listener = socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True)
    listener.settimeout(SECONDS)
    controller.connect("web", "one", ports=parse_publish(published))
    big = os.urandom(1 << 20)
    with listener, socket.create_connection(("::1", 8080), timeout=SECONDS) as client:
        server, _ = listener.accept()
        with server:
            server.settimeout(SECONDS)
            sending = threading.Thread(target=_send_all, args=(client, big))
            sending.start()
            received = bytearray()
            while piece := server.recv(1 << 16):
                received += piece
            sending.join()
            assert received == big
            server.sendall(b"all of it")  # the other half is still open
        assert client.recv(100, socket.MSG_WAITALL) == b"all of it"
    with pytest.raises(ConnectionResetError), socket.create_connection(("::1", 8080), timeout=SECONDS) as client:
        client.recv(1)  # nobody listens in the container any more
    with pytest.raises(OSError, match="in use"):
        socket.create_server(("::1", 8080), family=socket.AF_INET6)
    controller.disconnect("web", "one")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("::1", 8080), timeout=SECONDS)


def test_ports_are_held_again_at_once_though_connections_to_the_ipv6_loopback_are_remembered(controller: Controller) -> None:
    controller.create_network("app")
    controller.create_network("web")
    one = controller.create_sandbox("one")
    with entered(one.netns):
        listener = socket.create_server(("", 80))
    listener.settimeout(SECONDS)
    controller.connect("app", "one", ports=parse_publish("8080:80"))
    controller.connect("web", "one")

    def ask() -> bytes:
        with socket.create_connection(("::1", 8080), timeout=SECONDS) as client:
            listener.accept()[0].close()  # who ends a connection first, here netlibd in its turn, remembers it for a minute
            return client.recv(1)

    with listener:
        assert ask() == b""
        controller.disconnect("app", "one", keep_ports=True)
        assert ask() == b""
        controller.disconnect("web", "one")
        controller.connect("web", "one", ports=parse_publish("8080:80"))
        assert ask() == b""
    with pytest.raises(OSError, match="in use"):
        socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True)


def test_killed_while_traffic_flows_and_back_with_the_next_command(controller: Controller, config: Config) -> None:
    controller.create_network("web")
    one = controller.create_sandbox("one")
    controller.create_sandbox("two")
    controller.connect("web", "one", ports=parse_publish("8080:80"))
    second = controller.connect("web", "two")
    with entered(one.netns):
        listener = socket.create_server(("0.0.0.0", 80))
    listener.settimeout(SECONDS)
    with listener, socket.create_connection(("127.0.0.1", 8080), timeout=SECONDS) as client:
        server, _ = listener.accept()
        server.settimeout(SECONDS)
        exchanged = threading.Semaphore(0)
        stop = threading.Event()

        def pump() -> None:
            number = 0
            while not stop.is_set():
                client.sendall(number.to_bytes(4, "big"))
                if server.recv(4, socket.MSG_WAITALL) != number.to_bytes(4, "big"):
                    return
                number += 1
                exchanged.release()

        def flows() -> bool:
            return all(exchanged.acquire(timeout=SECONDS) for _ in range(200))

        pumping = threading.Thread(target=pump)
        pumping.start()
        assert flows()
        kill(config)
        assert flows()
        with socket.create_connection(("127.0.0.1", 8080), timeout=SECONDS):  # a new one as well
            listener.accept()[0].close()
        call(config, "network.ls", {})
        assert resolve(one.netns, "two") == [address(second)]
        assert held(8080)
        assert flows()
        stop.set()
        pumping.join()
        server.close()


def test_a_resolver_whose_port_was_taken_meanwhile_moves_and_is_found(controller: Controller, config: Config) -> None:
    controller.create_network("web", internal=True)
    one = controller.create_sandbox("one")
    endpoint = controller.connect("web", "one")
    before = controller.sandbox("one").dns_port
    kill(config)
    with entered(one.netns):
        thief = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with thief:
        thief.bind(("0.0.0.0", before))
        start_daemon(config)
        after = controller.sandbox("one").dns_port
        assert after != before
        assert resolve(one.netns, "one") == [address(endpoint)]
        assert controller.plan_of("one").of(DnsRedirect) == (DnsRedirect(netns=one.netns, port=after),)
        assert controller.check("one") == []


def test_a_redirect_that_a_crash_left_behind_is_put_right_at_the_start(controller: Controller, config: Config) -> None:
    controller.create_network("web", internal=True)
    one = controller.create_sandbox("one")
    endpoint = controller.connect("web", "one")
    leave(config)
    with Kernel() as kernel:
        DnsRedirect(netns=one.netns, port=9).ensure(kernel)
    start_daemon(config)
    deadline = time.monotonic() + SECONDS
    while controller.check("one") and time.monotonic() < deadline:
        call(config, "daemon.ping", {})
    assert resolve(one.netns, "one") == [address(endpoint)]


def test_names_answer_to_the_names_command_as_well(controller: Controller) -> None:
    controller.create_network("web", internal=True)
    controller.create_sandbox("one")
    endpoint = controller.connect("web", "one", aliases=["db"])
    done = subprocess.run(
        ["ip", "netns", "exec", "one", "getent", "ahostsv4", "db"], capture_output=True, text=True, timeout=SECONDS, check=True
    )
    assert done.stdout.split()[0] == address(endpoint)


# --- the firewall ------------------------------------------------------------------------------------------------------


def _nft(command: str) -> None:
    subprocess.run(["nft", *command.split()], check=True)


def _after_a_restoration(controller: Controller, names: Sequence[str], act: Callable[[], None]) -> None:
    """Do *act*, then wait on nftables' events until all that *names* have in the host's firewall is in the kernel again.

    That is more than one transaction: the bridges' tables and their elements come after the table ``inet netlib``.
    """
    events = backend().events()
    try:
        act()
        deadline = time.monotonic() + SECONDS
        while True:
            missing = [drift for name in names for drift in controller.check(name) if "firewall/host" in drift[0]]
            if not missing:
                return
            assert time.monotonic() < deadline, missing
            select.select([events.fileno()], [], [], 1)
            events.read()
    finally:
        events.close()


@pytest.mark.parametrize("command", ["flush ruleset", "delete table inet netlib", "flush table inet netlib"])
def test_a_flushed_firewall_is_put_back(controller: Controller, command: str) -> None:
    controller.create_network("web")
    controller.create_network("second")
    controller.create_sandbox("one")
    some = [item for number in range(8080, 8120, 2) for item in parse_publish(f"{number}:80")]
    controller.connect("web", "one", ports=[*some, *parse_publish("8000-8019:8000-8019")])
    assert len(controller.plan_of("one").of(PublishedPort)) == 21
    _after_a_restoration(controller, ("web", "second", "one"), lambda: _nft(command))
    controller.disconnect("web", "one")
    with Kernel() as kernel:
        assert [found for found in firewall(kernel).list_ours() if re.search(r"\b8080\b", found.what)] == []


def test_a_thousand_held_ports_leave_libnftables_its_descriptor(controller: Controller) -> None:
    controller.create_network("web")
    controller.create_sandbox("one")
    controller.connect("web", "one", ports=parse_publish("20000-20999:20000-20999"))
    assert held(20999)
    _after_a_restoration(controller, ("web", "one"), lambda: _nft("flush ruleset"))
    controller.disconnect("web", "one")
    assert not held(20999)


def test_a_firewall_that_was_flushed_while_no_daemon_was_there_is_put_back_at_its_start(
    controller: Controller, config: Config
) -> None:
    controller.create_network("web")
    controller.create_sandbox("one")
    controller.connect("web", "one", ports=parse_publish("8080:80"))
    leave(config)
    _nft("flush ruleset")
    _after_a_restoration(controller, ("web", "one"), lambda: start_daemon(config))


def test_nothing_is_restored_that_nobody_has(controller: Controller, config: Config) -> None:
    controller.create_network("web")
    start_daemon(config)
    controller.remove_network("web")
    _nft("flush ruleset")
    call(config, "network.ls", {})
    log = (config.run_dir / "netlibd.log").read_text()
    assert "Traceback" not in log


# --- what nobody told of -----------------------------------------------------------------------------------------------


@pytest.fixture
def serving(config: Config) -> Iterator[Serving]:
    """The serving room in this process; what it serves is looked at from outside."""
    ports = HeldPorts()
    serving = Serving(Store(config.state_dir, boot=boot_id()), DnsServer(), ports, lambda sandbox, port: None)
    yield serving
    serving.stop()
    ports.stop()


def test_changes_that_nobody_told_of_are_found(config: Config, serving: Serving) -> None:
    with Controller(config, watcher=Unwatched()) as controller:
        controller.create_network("web", internal=True)
        one, two = controller.create_sandbox("one"), controller.create_sandbox("two")
        first = controller.connect("web", "one", ports=parse_publish("8080:80"))
        serving.reconcile(store_changed=True)
        assert resolve(one.netns, "one") == [address(first)]
        assert held(8080)
        second = controller.connect("web", "two")
        serving.reconcile(store_changed=True)
        assert resolve(one.netns, "two") == [address(second)]
        assert resolve(two.netns, "one") == [address(first)]
        controller.remove_sandbox("one")
        serving.reconcile(store_changed=True)
        assert resolve(two.netns, "one") == "NXDOMAIN"
        assert not held(8080)
        assert [*serving._sandboxes] == [two.id]
        serving.reconcile(store_changed=True)
        controller.reset()
        serving.reconcile(store_changed=True)
        assert not serving._sandboxes


def test_a_port_that_somebody_else_had_is_held_when_it_comes_free(config: Config, serving: Serving) -> None:
    with Controller(config, watcher=Unwatched()) as controller:
        controller.create_network("web")
        controller.create_sandbox("one")
        controller.connect("web", "one", ports=parse_publish("8080:80"))
        with socket.create_server(("0.0.0.0", 8080)):
            serving.start()
        assert not held(8080)
        assert "ports of 1 endpoint are not held: host port 8080/tcp is held by" in (serving._ports.health() or "")
        serving._ports.reconcile(store_changed=False)
        assert held(8080)
        assert serving._ports.health() is None
        controller.reset()
        serving.reconcile(store_changed=True)


def test_telling_of_one_member_costs_the_same_in_a_large_network(config: Config, serving: Serving) -> None:
    """Reads grow with what changed, not with the network: counted, for times are the machine's affair."""
    with Controller(config, watcher=Unwatched()) as controller:
        controller.create_network("web", internal=True)
        boxes: list[Sandbox] = []
        counts: list[int] = []
        store = serving._store
        for number in range(12):
            boxes.append(controller.create_sandbox(f"box{number}"))
            controller.connect("web", boxes[-1].id)
            statements: list[str] = []
            store._connection().set_trace_callback(statements.append)
            assert not serving.changed(ChangedRecords([boxes[-1].id], ()))
            store._connection().set_trace_callback(None)
            counts.append(len(statements))
        assert len(set(counts[1:])) == 1, counts
        assert resolve(boxes[0].netns, "box11") == resolve(boxes[11].netns, "box11")
        for box in boxes:
            assert not Path(box.netns.path).is_symlink()
        controller.reset()
        serving.reconcile(store_changed=True)


def test_addresses_resolve_back_to_names(config: Config, serving: Serving) -> None:
    with Controller(config, watcher=Unwatched()) as controller:
        controller.create_network("web", internal=True)
        one = controller.create_sandbox("one")
        endpoint = controller.connect("web", "one")
        serving.start()
        reverse = ipaddress.ip_address(address(endpoint)).reverse_pointer
        with entered(one.netns):
            answer = dns.query.udp(dns.message.make_query(reverse, "PTR"), "127.0.0.11", timeout=SECONDS)
        assert [str(record) for rrset in answer.answer for record in rrset] == ["one.web."]
        controller.reset()
        serving.reconcile(store_changed=True)
