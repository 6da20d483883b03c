"""Published ports: the time to publish and to connect by the 4,000th port and the first, and to publish 1,000 at once."""

import socket
import statistics
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.measure import Row, Target, milliseconds, series
from benchmarks.world import World
from netlib.core.controller import Controller
from netlib.firewall.objects import PublishedPort
from netlib.kernel.netns import NETNS_DIR, create_netns, delete_netns, entered
from netlib.kernel.sockets import probe_port
from netlib.model import NetnsRef, PortMapping
from netlib.plan import KernelObject
from netlib.ports import PortRequest, parse_publish

_FLAT = Target(1.2, "x")
_RANGE = Target(50, "ms")
_HOST, _NEIGHBOUR = "192.0.2.1", "192.0.2.2"
_PORT = 9_999  # the port that is measured
_FIRST_OF_OTHERS = 10_000
_OTHERS, _PORTS_PER_SANDBOX = 3_999, 100
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: no TIME-WAIT, which would slow the next connections


class _Stopwatch:
    """An observer that notes when the engine begins and ends with the published ports of an operation."""

    def __init__(self) -> None:
        self.begun = self.done = 0.0

    def __call__(self, moment: str, item: KernelObject) -> None:
        if isinstance(item, PublishedPort):
            if moment == "ensure":
                self.begun = time.perf_counter()
            elif moment == "ensured":
                self.done = time.perf_counter()

    @property
    def firewall(self) -> float:
        """The milliseconds for the firewall entries."""
        return (self.done - self.begun) * 1000


def measure(world: World) -> Iterator[Row]:
    """Measure one port on an empty host and on a host with 3,999 others, in turn; then a range of 1,000 ports."""
    yield from _one_more(world)
    yield from _range(world)
    yield from _range_held(world)


# --- one more port -----------------------------------------------------------------------------------------------------


def _one_more(world: World) -> Iterator[Row]:
    stopwatch = _Stopwatch()
    connects: dict[bool, list[float]] = {False: [], True: []}
    entries: dict[bool, list[float]] = {False: [], True: []}
    latencies: dict[bool, list[float]] = {False: [], True: []}
    with world.host(stopwatch) as controller, _neighbour() as neighbour:
        controller.create_network("net")
        controller.create_sandbox("box")
        mapping = parse_publish(f"{_PORT}:80")
        controller.connect("net", "box", ports=mapping)
        controller.disconnect("net", "box")
        for _ in range(world.times(5)):
            for crowded in (False, True):
                others = _publish_others(controller, world.times(_OTHERS)) if crowded else []
                for _ in range(world.times(12)):
                    connects[crowded].append(milliseconds(controller.connect, "net", "box", ports=mapping))
                    entries[crowded].append(stopwatch.firewall)
                    controller.disconnect("net", "box")
                controller.connect("net", "box", ports=mapping)
                latencies[crowded].append(_latency(controller.sandbox("box").netns, neighbour, world.times(300)))
                controller.disconnect("net", "box")
                controller.remove_sandboxes(others)
    for subject, unit, figures in (
        ("connect with the 4,000th published port", "ms", connects),
        ("the 4,000th published port's firewall entry", "ms", entries),
        ("TCP connect through the 4,000th published port", "us", latencies),
    ):
        yield Row(subject, series(figures[True], unit), "the first", series(figures[False], unit), _FLAT)


def _publish_others(controller: Controller, number: int) -> list[str]:
    """Publish *number* other ports, 100 for each sandbox, and return the names of the sandboxes."""
    names = []
    for first in range(0, number, _PORTS_PER_SANDBOX):
        size = min(_PORTS_PER_SANDBOX, number - first)
        names.append(f"other{first}")
        controller.create_sandbox(names[-1])
        controller.connect("net", names[-1], ports=_ports(_FIRST_OF_OTHERS + first, size))
    return names


def _ports(first: int, number: int) -> Sequence[PortRequest]:
    return parse_publish(f"{first}-{first + number - 1}:1-{number}" if number > 1 else f"{first}:1")


@contextmanager
def _neighbour() -> Iterator[NetnsRef]:
    """Provide a machine next to the host: a netns with a veth pair to the host."""
    path = NETNS_DIR / "bench-neighbour"
    create_netns(path)
    try:
        for command in (
            f"ip link add uplink type veth peer name eth0 netns {path.name}",
            f"ip address add {_HOST}/24 dev uplink",
            "ip link set uplink up",
            f"ip -n {path.name} address add {_NEIGHBOUR}/24 dev eth0",
            f"ip -n {path.name} link set eth0 up",
        ):
            subprocess.run(command.split(), check=True)
        yield NetnsRef(str(path))
        subprocess.run(["ip", "link", "delete", "uplink"], check=True)
    finally:
        delete_netns(path)


def _latency(server: NetnsRef, client: NetnsRef, number: int) -> float:
    """Return the median microseconds of connect() from the client's netns, by the published port, to the server's netns."""
    found = []
    with entered(server):
        listener = socket.create_server(("", 80), backlog=16)
    with listener, entered(client):
        for _ in range(number + 1):  # the first one includes ARP requests
            with socket.socket() as sock:
                started = time.perf_counter()
                sock.connect((_HOST, _PORT))
                found.append((time.perf_counter() - started) * 1e6)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
                listener.accept()[0].close()
    return statistics.median(found[1:])


# --- a range -----------------------------------------------------------------------------------------------------------


def _range(world: World) -> Iterator[Row]:
    stopwatch = _Stopwatch()
    number = world.times(1000)
    whole, before, firewall, probing = [], [], [], []
    with world.host(stopwatch) as controller:
        controller.create_network("net")
        controller.create_sandbox("box")
        ports = _ports(_FIRST_OF_OTHERS, number)
        for cycle in range(-1, world.times(10)):
            started = time.perf_counter()
            endpoint = controller.connect("net", "box", ports=ports)
            ended = time.perf_counter()
            controller.disconnect("net", "box")
            if cycle >= 0:
                whole.append((ended - started) * 1000)
                before.append((stopwatch.begun - started) * 1000)
                firewall.append(stopwatch.firewall)
                probing.append(milliseconds(_probe, endpoint.ports))
    parts = {"before the firewall": before, "of that probing": probing, "firewall": firewall}
    note = ", ".join(f"{name} {found}" for name, figures in parts.items() if (found := series(figures)))
    yield Row(f"connect with a range of {number:,} ports", series(whole), target=_RANGE, note=note)


def _probe(mappings: Sequence[PortMapping]) -> None:
    for mapping in mappings:
        probe_port(mapping)


def _range_held(world: World) -> Iterator[Row]:
    """Measure the same with a netlibd, which holds all ports before connect() returns."""
    number = world.times(1000)
    times = []
    with world.served_host() as controller:
        controller.create_network("net")
        controller.create_sandbox("box")
        ports = _ports(_FIRST_OF_OTHERS, number)
        for cycle in range(-1, world.times(10)):
            time_taken = milliseconds(controller.connect, "net", "box", ports=ports)
            controller.disconnect("net", "box")
            if cycle >= 0:
                times.append(time_taken)
    yield Row(f"the same, and netlibd holds the {number:,} ports", series(times), target=_RANGE)
