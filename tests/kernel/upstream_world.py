"""Name servers upstream that do as they are told, and a sandbox that asks them by way of the server under test."""

import os
import select
import socket
import threading
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import dns.message
import dns.rcode
import dns.rrset

from netlib.dns.server import DnsServer
from netlib.dns.zone import View, Zone
from netlib.kernel.netns import entered
from netlib.model import NetnsRef

SECONDS = 5.0
FIRST, SECOND, THIRD = "127.0.1.1", "127.0.1.2", "127.0.1.3"
Behaviour = Callable[[bytes, bool], list[bytes]]


def saying(address: str, count: int = 1) -> Behaviour:
    """Answer every question with *address*."""

    def behave(wire: bytes, stream: bool) -> list[bytes]:
        query = dns.message.from_wire(wire)
        response = dns.message.make_response(query)
        addresses = [address] * min(count, 1) + [f"10.1.{number >> 8}.{number & 255}" for number in range(1, count)]
        response.answer = [dns.rrset.from_text(query.question[0].name, 60, "IN", "A", *addresses)]
        response.flags |= dns.flags.RA
        return [response.to_wire()]

    return behave


def refusing(rcode: dns.rcode.Rcode) -> Behaviour:
    def behave(wire: bytes, stream: bool) -> list[bytes]:
        response = dns.message.make_response(dns.message.from_wire(wire))
        response.set_rcode(rcode)
        return [response.to_wire()]

    return behave


def dropping(wire: bytes, stream: bool) -> list[bytes]:
    return []


class Server:
    """A name server of a few lines, at port 53 of a loopback address, in a thread of its own."""

    def __init__(self, address: str, behave: Behaviour) -> None:
        self.behave = behave
        self.asked: list[bytes] = []
        self.asked_by_tcp: list[bytes] = []
        self.ports: list[int] = []
        self.streams = 0
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for sock in (self._udp, self._tcp):
            sock.bind((address, 53))
        self._tcp.listen()
        self._stop = os.eventfd(0)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            watched: list[socket.socket | int] = [self._udp, self._tcp, self._stop]
            ready, _, _ = select.select(watched, [], [])
            if self._stop in ready:
                return
            if self._udp in ready:
                wire, client = self._udp.recvfrom(4096)
                self.asked.append(wire)
                self.ports.append(client[1])
                for message in self.behave(wire, False):
                    self._udp.sendto(message, client)
            if self._tcp in ready:
                sock, _ = self._tcp.accept()
                with sock:
                    self._serve_stream(sock)

    def _serve_stream(self, sock: socket.socket) -> None:
        sock.settimeout(SECONDS)
        self.streams += 1
        size = int.from_bytes(sock.recv(2, socket.MSG_WAITALL), "big")
        wire = sock.recv(size, socket.MSG_WAITALL)
        self.asked_by_tcp.append(wire)
        for message in self.behave(wire, True):
            framed = len(message).to_bytes(2, "big") + message
            sock.sendall(framed[:3])
            sock.sendall(framed[3:])

    def answer_again(self, wire: bytes, message: bytes) -> None:
        """Send an answer to who asked *wire*."""
        self._udp.sendto(message, ("127.0.0.1", self.ports[self.asked.index(wire)]))

    def close(self) -> None:
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        for sock in (self._udp, self._tcp):
            sock.close()
        os.close(self._stop)


class Asker:
    """A sandbox with its server, and what its processes ask."""

    def __init__(self, netns: NetnsRef, resolv_conf: Path) -> None:
        self.netns = netns
        self.resolv_conf = resolv_conf
        self.server = DnsServer(resolv_conf=resolv_conf)
        self.port = self.server.serve("a", netns)

    def see(self, *servers: str, forwards: bool = True) -> None:
        zone = Zone(network="net", resolves_names=True, internal=False, names={"web": (ip_address("172.18.0.2"),)}, pointers={})
        view = View(zones=(zone,), servers=tuple(ip_address(text) for text in servers), forwards=forwards)
        self.server.publish("a", view)

    def socket(self, kind: socket.SocketKind = socket.SOCK_DGRAM) -> socket.socket:
        with entered(self.netns):
            sock = socket.socket(socket.AF_INET, kind)
        sock.settimeout(SECONDS)
        sock.connect(("127.0.0.11", self.port))
        return sock

    def ask(self, name: str = "example.org", *, tcp: bool = False, payload: int | None = None) -> dns.message.Message:
        query = dns.message.make_query(name, "A", payload=payload)
        wire = query.to_wire()
        with self.socket(socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as sock:
            if tcp:
                sock.sendall(len(wire).to_bytes(2, "big") + wire)
                size = int.from_bytes(sock.recv(2, socket.MSG_WAITALL), "big")
                response = sock.recv(size, socket.MSG_WAITALL)
            else:
                sock.send(wire)
                response = sock.recv(65535)
        message = dns.message.from_wire(response)
        assert query.is_response(message)
        assert wire[12:-11] in response  # the spelling too
        return message

    def outcome(self, name: str = "example.org", *, tcp: bool = False) -> str:
        message = self.ask(name, tcp=tcp)
        return str(message.answer[0][0]) if message.answer else dns.rcode.to_text(message.rcode())


Serving = Callable[[str, Behaviour], Server]
