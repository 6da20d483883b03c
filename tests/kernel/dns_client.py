"""A client of the DNS server in some netns, and what the tests of the server have in common."""

import socket
import threading
import time
from collections.abc import Callable
from ipaddress import ip_address

import dns.message
import dns.query
import dns.rcode

from netlib.dns.zone import View, Zone
from netlib.kernel.netns import entered
from netlib.model import IPAddress, NetnsRef

SECONDS = 5.0
MANY = tuple(ip_address(f"172.18.1.{number}") for number in range(1, 101))


def view(address: str = "172.18.0.2", **names: tuple[IPAddress, ...]) -> View:
    zone = Zone(network="net", resolves_names=True, internal=True, names={"web": (ip_address(address),), **names}, pointers={})
    return View(zones=(zone,), forwards=False)


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
    deadline = time.monotonic() + SECONDS
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
