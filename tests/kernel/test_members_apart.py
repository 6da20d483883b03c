"""A network without icc: members do not reach each other, and reach what others publish through the host, as everybody does.

With bridged frames passing the host's rules (bridge-nf-call-iptables 1) and without; with and without br_netfilter.
"""

import json
import select
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.kernel import bridges
from netlib.ports import parse_publish
from netlib.testing.snapshot import differences, snapshot
from tests.kernel.firewall_world import BRIDGE_NF

_SECONDS = 2.5  # on an adopted bridge the first IPv6 packet is lost now and then, and sent again after one second


@pytest.fixture
def controller(config: Config, bridge_nf: str) -> Iterator[Controller]:
    with Controller(config, watcher=Unwatched()) as controller:
        yield controller
        controller.reset()


@pytest.fixture
def servers() -> Iterator[list[socket.socket]]:
    opened: list[socket.socket] = []
    yield opened
    for server in opened:
        server.close()


def _populate(controller: Controller, servers: list[socket.socket], options: dict[str, str] | None = None) -> None:
    """Members a, which publishes its port 80 as 8080, and b, of the network apart: without icc."""
    controller.create_network(
        "apart",
        subnets=["10.81.0.0/24", "fd81::/64"],
        options={"com.docker.network.bridge.enable_icc": "false", **(options or {})},
    )
    for name in ("a", "b"):
        controller.create_sandbox(name)
        controller.connect("apart", name, ports=parse_publish("8080:80") if name == "a" else ())
    with controller.inside("a"):
        server = socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True)
    servers.append(server)


def _reached(controller: Controller, box: str, addresses: Sequence[str], port: int) -> list[bool]:
    """Whether each of *addresses* is reached within _SECONDS, tried at the same time."""
    with ExitStack() as stack:
        with controller.inside(box):
            kinds = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses]
            tried = [stack.enter_context(socket.socket(kind)) for kind in kinds]
            for attempt, address in zip(tried, addresses, strict=True):
                attempt.setblocking(False)
                attempt.connect_ex((address, port))
        waiting, deadline = set(tried), time.monotonic() + _SECONDS
        while waiting and (left := deadline - time.monotonic()) > 0:
            waiting.difference_update(select.select([], waiting, [], left)[1])
        return [attempt not in waiting and not attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) for attempt in tried]


def _assert_apart(controller: Controller) -> None:
    for box in ("a", "b"):
        assert _reached(controller, box, ["10.81.0.1", "fd81::1"], 8080) == [True, True]
    assert _reached(controller, "b", ["10.81.0.2", "fd81::2"], 80) == [False, False]
    assert controller.check("apart") == [] == controller.check("a")


def test_members_reach_published_ports_only(controller: Controller, servers: list[socket.socket]) -> None:
    _populate(controller, servers)
    _assert_apart(controller)
    for path in BRIDGE_NF:  # what another program does with the host's switch changes nothing
        path.write_text("0" if path.read_text() == "1\n" else "1")
    _assert_apart(controller)


def test_a_bridge_of_somebody_else_gets_its_own_way_back(controller: Controller, servers: list[socket.socket]) -> None:
    subprocess.run(["ip", "link", "add", "br-lan", "type", "bridge"], check=True)
    before = snapshot(), _nf_call()
    try:
        _populate(controller, servers, {"com.docker.network.bridge.name": "br-lan"})
        _assert_apart(controller)
        controller.remove_sandboxes(["a", "b"])
        controller.remove_network("apart")
        assert _nf_call() == before[1]
        changed = differences(before[0], snapshot())
        assert [line for line in changed if "br-lan" in line] == []
    finally:
        subprocess.run(["ip", "link", "del", "br-lan"], check=True)


def _nf_call() -> tuple[int, int]:
    shown = subprocess.run(["ip", "-j", "-d", "link", "show", "br-lan"], check=True, capture_output=True, text=True).stdout
    (link,) = json.loads(shown)
    data = link["linkinfo"]["info_data"]
    return data["nf_call_iptables"], data["nf_call_ip6tables"]


def test_without_br_netfilter_the_ports_keep_members_apart(
    controller: Controller, servers: list[socket.socket], bridge_nf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridges, "_BR_NETFILTER", Path("/proc/sys/net/no-bridge"))
    _populate(controller, servers)
    assert _reached(controller, "b", ["10.81.0.2", "fd81::2"], 80) == [False, False]
    ports = json.loads(subprocess.run(["bridge", "-j", "-d", "link"], check=True, capture_output=True, text=True).stdout)
    assert [port["isolated"] for port in ports] == [True, True]
    assert controller.check("a") == []
