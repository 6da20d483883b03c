"""A host with three networks and a neighbour outside, and sockets that find out who reaches whom.

::

    lan 192.168.9.2 ── host ─┬─ brA 10.1.0.1/24, fd01::1/64 ── a1 .2, a2 .3, mallory .66 (sends 127.0.0.0/8 to the host)
       fd09::2     .9.1      ├─ brB 10.2.0.1/24, fd02::1/64 ── b1 .2
                  fd09::1    └─ brI 10.3.0.1/24, fd03::1/64 ── i1 .2, i2 .3

``lan`` has routes to all of them through the host, so whatever is closed to it is closed by the firewall.
"""

import selectors
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from netlib.kernel.netns import create_netns, delete_netns, entered
from netlib.model import NetnsRef

MEMBERS = {
    "a1": ("brA", 1, 2),
    "a2": ("brA", 1, 3),
    "mallory": ("brA", 1, 66),
    "b1": ("brB", 2, 2),
    "i1": ("brI", 3, 2),
    "i2": ("brI", 3, 3),
}
BRIDGES = {"brA": 1, "brB": 2, "brI": 3}
BRIDGE_NF = tuple(Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}") for name in ("iptables", "ip6tables"))
SILENCE = 0.4  # seconds after which what did not answer is taken to be closed
_ICMP6_FILTER, _ECHO_REPLY_6 = 1, 129
PATIENCE = 5.0  # seconds for what must answer


class Probe(NamedTuple):
    """One attempt: from a netns, by tcp, udp or icmp, to an address and port."""

    source: str
    protocol: str
    address: str
    port: int = 0
    source_port: int = 0


class World:
    """Netns, links and servers; everything goes with :meth:`close`."""

    def __init__(self, bridge_nf: int) -> None:
        self._stack = ExitStack()
        self._stop = threading.Event()
        self.refs = {name: NetnsRef(f"/run/netns/fw-{name}") for name in ("host", "lan", *MEMBERS)}
        for ref in self.refs.values():
            create_netns(Path(ref.path))
            self._stack.callback(delete_netns, Path(ref.path))
        self._wire()
        with entered(self.refs["host"]):
            for path in BRIDGE_NF:
                path.write_text(str(bridge_nf))
            for name in (
                "ipv4/ip_forward",
                "ipv6/conf/all/forwarding",
                "ipv4/conf/brA/route_localnet",
                "ipv4/conf/uplink/route_localnet",
            ):
                Path(f"/proc/sys/net/{name}").write_text("1")
        with entered(self.refs["mallory"]):
            Path("/proc/sys/net/ipv4/conf/eth0/route_localnet").write_text("1")
        self._selector = selectors.DefaultSelector()
        for name in ("lan", *MEMBERS):
            self.serve(name, "::", 80)
        self.serve("host", "127.0.0.1", 9000)
        self.serve("host", "::", 9001)
        self.serve("host", "::", 8080)  # published in the tests: it keeps what cannot be forwarded
        self._thread = threading.Thread(target=self._answer, name="answers", daemon=True)
        self._thread.start()

    def _wire(self) -> None:
        lines: dict[str, list[str]] = {name: ["link set lo up"] for name in self.refs}
        lines["host"] += ["link add uplink type veth peer name eth0 netns fw-lan", "link set uplink up"]
        lines["host"] += ["address add 192.168.9.1/24 dev uplink", "address add fd09::1/64 dev uplink nodad"]
        lines["host"] += ["address add fe80::9/64 dev uplink nodad"]
        lines["lan"] += ["link set eth0 up", "address add 192.168.9.2/24 dev eth0", "address add fd09::2/64 dev eth0 nodad"]
        lines["lan"] += ["address add fe80::8/64 dev eth0 nodad"]
        lines["lan"] += ["route add 10.0.0.0/8 via 192.168.9.1", "route add fd00::/14 via fd09::1"]
        lines["lan"] += ["address flush dev lo", "route add 127.0.0.0/8 via 192.168.9.1"]
        for bridge, number in BRIDGES.items():
            lines["host"] += [
                f"link add {bridge} type bridge",
                f"link set {bridge} up",
                f"address add 10.{number}.0.1/24 dev {bridge}",
            ]
            lines["host"] += [f"address add fd0{number}::1/64 dev {bridge} nodad"]
        for name, (bridge, number, last) in MEMBERS.items():
            lines["host"] += [
                f"link add v-{name} type veth peer name eth0 netns fw-{name}",
                f"link set v-{name} master {bridge} up",
            ]
            lines["host"] += [f"link set v-{name} type bridge_slave hairpin on"]
            lines[name] += [
                "link set eth0 up",
                f"address add 10.{number}.0.{last}/24 dev eth0",
                f"address add fd0{number}::{last}/64 dev eth0 nodad",
            ]
            lines[name] += [f"route add default via 10.{number}.0.1", f"route add default via fd0{number}::1"]
        lines["mallory"] += ["address flush dev lo", "route add 127.0.0.0/8 via 10.1.0.1"]
        lines["mallory"] += ["address add 127.6.6.6/32 dev eth0"]
        for name, batch in lines.items():
            subprocess.run(["ip", "-netns", f"fw-{name}", "-batch", "-"], input="\n".join(batch), text=True, check=True)
        with entered(self.refs["lan"]):
            Path("/proc/sys/net/ipv4/conf/eth0/route_localnet").write_text("1")

    def serve(self, name: str, address: str, port: int) -> None:
        """Answer on TCP and UDP in netns *name* with "<name> <address of the asker>"."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with entered(self.refs[name]):
                server = self._stack.enter_context(socket.socket(family, kind))
            server.setblocking(False)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((address, port))
            if kind == socket.SOCK_STREAM:
                server.listen(64)
            self._selector.register(server, selectors.EVENT_READ, name)

    def _answer(self) -> None:
        while not self._stop.is_set():
            for key, _ in self._selector.select(0.05):
                server: socket.socket = key.fileobj  # type: ignore[assignment]
                try:
                    if server.type == socket.SOCK_STREAM:
                        connection, peer = server.accept()
                        with connection:
                            connection.sendall(_line(key.data, peer))
                    else:
                        _, peer = server.recvfrom(100)
                        server.sendto(_line(key.data, peer), peer)
                except OSError:  # the asker gave up
                    continue

    def answers(self, *probes: Probe, wait: float = PATIENCE) -> list[str | None]:
        """What each probe was answered, all asked at once; None where nobody did within *wait* seconds."""
        with ExitStack() as stack, selectors.DefaultSelector() as waiting:
            found: list[str | None] = [None] * len(probes)
            for number, probe in enumerate(probes):
                sock = stack.enter_context(self._open(probe))
                waiting.register(sock, selectors.EVENT_READ, number)
            deadline = time.monotonic() + wait
            while waiting.get_map() and (left := deadline - time.monotonic()) > 0:
                for key, _ in waiting.select(left):
                    sock = key.fileobj  # type: ignore[assignment]
                    waiting.unregister(sock)
                    found[key.data] = _received(sock, probes[key.data])
            return found

    def reached(self, *probes: Probe) -> None:
        """Fail unless every probe is answered."""
        silent = [probe for probe, answer in zip(probes, self.answers(*probes), strict=True) if answer is None]
        assert not silent, f"not answered: {silent}"

    def closed(self, *probes: Probe) -> None:
        """Fail if any probe is answered."""
        answered = [pair for pair in zip(probes, self.answers(*probes, wait=SILENCE), strict=True) if pair[1] is not None]
        assert not answered, f"answered: {answered}"

    def _open(self, probe: Probe) -> socket.socket:
        family = socket.AF_INET6 if ":" in probe.address else socket.AF_INET
        with entered(self.refs[probe.source]):
            if probe.protocol == "icmp":
                number = socket.IPPROTO_ICMPV6 if family == socket.AF_INET6 else socket.IPPROTO_ICMP
                sock = socket.socket(family, socket.SOCK_RAW, number)
                if family == socket.AF_INET6:  # let only echo replies in: the netns' neighbour discovery comes here too
                    blocked = (1 << 256) - 1 ^ 1 << _ECHO_REPLY_6
                    sock.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, blocked.to_bytes(32, "little"))
                sock.connect((probe.address, 0))
                sock.send(_echo_request(family))
                return sock
            sock = socket.socket(family, socket.SOCK_STREAM if probe.protocol == "tcp" else socket.SOCK_DGRAM)
            sock.setblocking(False)
            if probe.source_port:
                sock.bind(("", probe.source_port))
            # Inside, where the link of a fe80:: address is known, and spelled out: connect() would forget it.
            sock.connect_ex(socket.getaddrinfo(probe.address, probe.port, family, flags=socket.AI_NUMERICHOST)[0][4])
        if probe.protocol == "udp":
            sock.send(b"who are you?")
        return sock

    def run(self, *command: str, name: str = "host") -> str:
        """Run a program in netns *name*; its output."""
        with entered(self.refs[name]):
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._stack.close()


def probes(
    sources: Sequence[str], addresses: Sequence[str], port: int = 80, protocols: Sequence[str] = ("tcp", "udp")
) -> list[Probe]:
    """Every source to every address by every protocol."""
    return [Probe(source, protocol, address, port) for source in sources for address in addresses for protocol in protocols]


def _line(name: str, peer: tuple[object, ...]) -> bytes:
    return f"{name} {str(peer[0]).removeprefix('::ffff:')}".encode()


def _received(sock: socket.socket, probe: Probe) -> str | None:
    try:
        data = sock.recv(2048)
    except OSError:
        return None
    if probe.protocol != "icmp":
        return data.decode() or None
    return "echo" if sock.family == socket.AF_INET6 or data[20] == 0 else None


def _echo_request(family: socket.AddressFamily) -> bytes:
    if family == socket.AF_INET6:
        return struct.pack("!BBHHH", 128, 0, 0, 7, 1)  # the kernel fills in the checksum
    return struct.pack("!BBHHH", 8, 0, 0xFFFF - (0x0800 + 7 + 1), 7, 1)
