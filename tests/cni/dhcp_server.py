"""A small DHCP server for tests, on scapy's messages: what it says is the test's choice, and all that it hears is kept."""

import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from scapy.layers.dhcp import BOOTP, DHCP

from netlib.kernel.netns import entered
from netlib.model import NetnsRef

__all__ = ["ADDRESS", "GRANTED", "Heard", "Server", "grant"]

ADDRESS, GRANTED = "10.9.0.1", "10.9.0.50"
_DEADLINE = 20.0
_SO_BINDTODEVICE = 25
Options = list[Any]


class Heard(NamedTuple):
    """What a client said."""

    kind: str
    packet: BOOTP
    options: dict[Any, Any]

    @property
    def client(self) -> bytes:
        return bytes(self.options["client_id"])


Answers = Callable[[Heard], list[Options]]


def grant(heard: Heard, *more: Any, lease: int = 600, mask: str = "255.255.255.0") -> list[Options]:
    """Offer what is sought, and acknowledge it; *more* options go along."""
    kind = {"discover": "offer", "request": "ack"}.get(heard.kind)
    if kind is None:
        return []
    given = [("lease_time", lease), *([("subnet_mask", mask)] if mask else []), *more]
    return [[("message-type", kind), ("server_id", ADDRESS), *given]]


class Server:
    """It answers on one link until it is closed; *answers* may be exchanged at any time."""

    def __init__(self, netns: NetnsRef, ifname: str, answers: Answers = grant) -> None:
        self.answers = answers
        self.granted = GRANTED
        self.heard: list[Heard] = []
        self._news = threading.Condition()
        with entered(netns):
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, ifname.encode())
        self._socket.bind(("", 67))
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="dhcp-server")
        self._thread.start()

    def close(self) -> None:
        self._stopped.close()
        self._thread.join()
        self._socket.close()
        self._stop.close()

    def wait_for(self, kind: str, number: int = 1) -> Heard:
        """The *number*-th message of that kind, waiting for it."""
        deadline = time.monotonic() + _DEADLINE
        with self._news:
            while len(found := [heard for heard in self.heard if heard.kind == kind]) < number:
                left = deadline - time.monotonic()
                assert left > 0, f"no {kind}; heard was {[heard.kind for heard in self.heard]}"
                self._news.wait(left)
        return found[number - 1]

    def kinds(self) -> list[str]:
        return [heard.kind for heard in self.heard]

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._socket, self._stop], [], [])
            if self._stop in ready:
                return
            packet = BOOTP(self._socket.recv(4096))
            options = {item[0]: item[1] for item in packet[DHCP].options if isinstance(item, tuple)}
            heard = Heard(_KINDS[options["message-type"]], packet, options)
            for answer in self.answers(heard):
                self._say(packet, answer)
            with self._news:
                self.heard.append(heard)
                self._news.notify_all()

    def _say(self, asked: BOOTP, options: Options) -> None:
        reply = BOOTP(op=2, xid=asked.xid, chaddr=asked.chaddr, yiaddr=self.granted) / DHCP(options=[*options, "end"])
        self._socket.sendto(bytes(reply), ("255.255.255.255", 68))


_KINDS = {1: "discover", 3: "request", 4: "decline", 7: "release"}
