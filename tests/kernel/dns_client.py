"""A client of the DNS server in some netns, and what the tests of the server have in common."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_address
from typing import Any

import dns.message
import dns.query
import dns.rcode

from netlib.dns.zone import View, Zone
from netlib.kernel.netns import entered
from netlib.model import IPAddress, NetnsRef
from tests.kernel import dns_load

SECONDS = 5.0
UPSTREAM = "127.0.1.1"
MEDIAN_SECONDS = 0.010  # the most that a look-up may take beside a load, in the median
LOOKUPS = 50  # of an attempt
ATTEMPTS = 5
NOERROR = "0"
MANY = tuple(ip_address(f"172.18.1.{number}") for number in range(1, 101))


def view(address: str = "172.18.0.2", **names: tuple[IPAddress, ...]) -> View:
    zone = Zone(network="net", resolves_names=True, internal=True, names={"web": (ip_address(address),), **names}, pointers={})
    return View(zones=(zone,), forwards=False)


def outward() -> View:
    """What a sandbox sees that has no names of ours, and the name server of a load."""
    return View(servers=(ip_address(UPSTREAM),))


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


def client_at(target: str) -> Client:
    """A process that asks where a load of this target asks."""
    netns, address, port = target.split(",")
    return Client(NetnsRef(netns), int(port), address)


class Loads:
    """The processes that ask and answer beside the server under test."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._running: list[tuple[list[str], subprocess.Popen[bytes]]] = []

    def begin(self, mode: Callable[..., None], name: str, number: int, *targets: str) -> None:
        """Start a load and wait until it has begun."""
        self._start(self._command(mode, name, number, *targets))

    def ask(self, name: str, target: str, lookups: int = LOOKUPS) -> dict[str, Any]:
        """What a client is answered, and in what time."""
        done = subprocess.run(
            self._command(dns_load.ask, name, lookups, target), stdout=subprocess.PIPE, check=True, timeout=60
        )
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def look_up_quickly(self, name: str, target: str, lookups: int = LOOKUPS) -> None:
        """See that a client is answered, each time, in less than MEDIAN_SECONDS in the median.

        One of ATTEMPTS has to do, beside loads that last longer: a machine with other work on its processors is as slow as that
        now and then, and a server that is unfair always.
        """
        found: list[dict[str, Any]] = []
        for _ in range(ATTEMPTS):
            self._start_what_has_ended()
            found.append(self.ask(name, target, lookups))
            outcomes = found[-1]["outcomes"]
            assert outcomes.keys() <= {NOERROR, "none"}
            # In a flood the kernel may drop a datagram on its way: its queue of a busy processor holds 1,000.
            is_answered = outcomes.get(NOERROR, 0) > 0.9 * lookups
            if is_answered and found[-1]["median"] < MEDIAN_SECONDS and not self._ended():
                return
        raise AssertionError(f"no attempt is answered in less than {MEDIAN_SECONDS} s in the median: {found}")

    def _start(self, command: list[str]) -> None:
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self._stack.enter_context(process)
        self._stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n", f"{command} did not begin"
        self._running.append((command, process))

    def _ended(self) -> list[tuple[list[str], "subprocess.Popen[bytes]"]]:
        return [each for each in self._running if each[1].poll() is not None]

    def _start_what_has_ended(self) -> None:
        """Start anew the loads whose time is over: an attempt beside none would say nothing."""
        for each in self._ended():
            self._running.remove(each)
            assert each[1].returncode == 0, f"{each[0]} failed"
            self._start(each[0])

    def close(self) -> None:
        self._stack.close()

    @staticmethod
    def _command(mode: Callable[..., None], name: str, number: int, *targets: str) -> list[str]:
        return [sys.executable, "-IS", dns_load.__file__, mode.__name__, name, str(number), *targets]


@contextmanager
def before_other_work() -> Iterator[None]:
    """Have threads that are started in the block run before the other work of this machine, where we may ask for that."""
    prior = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, dns_load.BEFORE_OTHERS)
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, prior)


def resolve(netns: NetnsRef, name: str, server: str, *, tcp: bool = False) -> list[str] | str:
    """The addresses of *name* as *server* tells a process in *netns*, or the rcode's name."""
    ask = dns.query.tcp if tcp else dns.query.udp
    with entered(netns):
        answer = ask(dns.message.make_query(name, "A"), server, timeout=SECONDS)
    if answer.rcode() != dns.rcode.NOERROR:
        return dns.rcode.to_text(answer.rcode())
    return sorted(record.address for rrset in answer.answer for record in rrset)


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


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 3 * SECONDS  # a busy machine takes its time
    pause = threading.Event()
    while not true():
        assert time.monotonic() < deadline, what
        pause.wait(0.01)


def reaches(client: Client) -> bool:
    query = dns.message.make_query("web", "A").to_wire()
    with client.udp() as sock:
        sock.settimeout(0.3)
        try:
            sock.send(query)
            return bool(sock.recv(512))
        except OSError:
            return False
