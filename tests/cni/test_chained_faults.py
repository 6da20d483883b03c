"""Plugins behind others in a chain: whatever fails and wherever they die, nothing of them is left."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.testing.snapshot import differences, snapshot
from tests.cni.calling import Caller, run
from tests.faults import interrupted

BRIDGE = {
    "cniVersion": "1.1.0",
    "name": "pods",
    "type": "bridge",
    "isGateway": True,
    "ipam": {"type": "static", "addresses": [{"address": "10.22.0.2/16"}, {"address": "fd22::2/64"}]},
}
PORTS = [{"hostPort": 7080 + number, "containerPort": 80 + number, "protocol": "tcp"} for number in range(3)]
PLUGINS: dict[str, dict[str, Any]] = {
    "portmap": {"runtimeConfig": {"portMappings": [*PORTS, {"hostPort": 53, "containerPort": 53, "protocol": "udp"}]}},
    "firewall": {"ingressPolicy": "isolated"},
    "bandwidth": {f"{way}{key}": 80_000 for way in ("ingress", "egress") for key in ("Rate", "Burst")},
}
TABLES = ("record", "object", "port")


@pytest.fixture
def previous(config: Config) -> Iterator[Any]:
    """What the bridge plugin answers for c1, on a host whose own rules drop what they do not know."""
    run("iptables", "-P", "FORWARD", "DROP")
    with Controller(config, watcher=Unwatched()) as controller:
        caller = Caller(lambda: controller)
        caller.container("c1")
        result = caller.ok("ADD", BRIDGE)
    yield result
    with Controller(config, watcher=Unwatched()) as controller:
        controller.reset()
    caller.clear()
    run("nft", "delete table ip filter")


def _state(controller: Controller) -> tuple[Any, ...]:
    with controller.store.read() as tx:
        rows = [tx.db.execute(f"SELECT * FROM {table} ORDER BY 1, 2, 3").fetchall() for table in TABLES]
    return rows, run("tc", "qdisc", "show"), run("nft", "list chain ip filter FORWARD")


@pytest.mark.parametrize("action", ["fail", "die"])
@pytest.mark.parametrize("kind", PLUGINS)
def test_nothing_is_left_whatever_fails_and_wherever_it_dies(config: Config, previous: Any, kind: str, action: str) -> None:
    conf = {"cniVersion": "1.1.0", "name": "pods", "type": kind, "prevResult": previous, **PLUGINS[kind]}
    with Controller(config, watcher=Unwatched()) as controller:  # what it shares with its network stays with that
        caller = Caller(lambda: controller)
        caller.ok("ADD", conf)
        caller.ok("DEL", conf)
        before = (snapshot(), _state(controller))
    for moment in range(100):
        interrupted = _interrupted(config, conf, moment, action)
        with Controller(config, watcher=Unwatched()) as controller:
            if not interrupted:
                break
            assert differences(before[0], snapshot()) == [], moment
            assert _state(controller) == before[1], moment
    assert moment >= 2 * 2


@pytest.mark.parametrize("action", ["fail", "die"])
def test_ports_come_to_the_next_network_whatever_fails_and_wherever_the_first_ones_end_dies(
    config: Config, previous: Any, action: str
) -> None:
    common = {"cniVersion": "1.1.0", "type": "portmap", **PLUGINS["portmap"]}
    addresses = [{"address": "10.22.0.3/16", "interface": 2}, {"address": "fd22::3/64", "interface": 2}]
    later = {"interfaces": [*previous["interfaces"][:2], {**previous["interfaces"][2], "name": "eth1"}], "ips": addresses}
    first, second = {**common, "name": "pods", "prevResult": previous}, {**common, "name": "more", "prevResult": later}
    with Controller(config, watcher=Unwatched()) as controller:
        caller = Caller(lambda: controller)
        _in_turn(caller, ("ADD", first), ("ADD", second), ("DEL", second), ("DEL", first))
        before = (snapshot(), _state(controller))
    for moment in range(30):
        with Controller(config, watcher=Unwatched()) as controller:
            _in_turn(Caller(lambda: controller), ("ADD", first), ("ADD", second))

        def end(controller: Controller) -> bool:
            return b"injected" in Caller(lambda: controller).call("DEL", first).stdout

        is_told = interrupted(config, moment, action, end)
        with Controller(config, watcher=Unwatched()) as controller:
            caller = Caller(lambda: controller)
            _in_turn(caller, ("DEL", first), ("CHECK", second))
            with controller.store.read() as tx:
                assert len(tx.ports()) == len(PORTS) + 1, moment
            _in_turn(caller, ("DEL", second))
            assert differences(before[0], snapshot()) == [], moment
            assert _state(controller) == before[1], moment
        if action == "die" and not is_told:  # what fails once may well succeed when it is tried again, and is not told
            break
    assert moment >= 4


def _in_turn(caller: Caller, *calls: tuple[str, dict[str, Any]]) -> None:
    for verb, conf in calls:
        caller.ok(verb, conf, ifname=conf["prevResult"]["interfaces"][2]["name"])


def _interrupted(config: Config, conf: dict[str, Any], moment: int, action: str) -> bool:
    """Whether an ADD that fails, or dies, at that moment got there at all."""

    def attempt(controller: Controller) -> bool:
        return b"injected" in Caller(lambda: controller).call("ADD", conf).stdout

    return interrupted(config, moment, action, attempt)


def test_a_chain_runs_and_is_taken_down_in_reverse(config: Config, previous: Any) -> None:
    """All of them for one container, with a port asked for by the host's loopback; what the network shares stays."""
    confs = [{"cniVersion": "1.1.0", "name": "pods", "type": kind, **more} for kind, more in PLUGINS.items()]
    with Controller(config, watcher=Unwatched()) as controller:
        caller = Caller(lambda: controller)
        _added(caller, confs, previous)
        _deleted(caller, confs, previous)
        before = (snapshot(), _state(controller))
        result = _added(caller, confs, previous)
        with subprocess.Popen(["ip", "netns", "exec", "c1", sys.executable, "-c", _SERVER], stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            server.stdout.read(1)
            assert run(sys.executable, "-c", _CLIENT) == "10.22.0.1\n"
        for conf in reversed(confs):
            caller.ok("CHECK", {**conf, "prevResult": result})
        _deleted(caller, confs, result)
        assert differences(before[0], snapshot()) == []
        assert _state(controller) == before[1]


def _added(caller: Caller, confs: Sequence[dict[str, Any]], result: Any) -> Any:
    for conf in confs:
        result = caller.ok("ADD", {**conf, "prevResult": result})
    return result


def _deleted(caller: Caller, confs: Sequence[dict[str, Any]], result: Any) -> None:
    for conf in reversed(confs):
        caller.ok("DEL", {**conf, "prevResult": result})


_SERVER = """
import socket
with socket.create_server(("10.22.0.2", 80)) as server:
    print(end=".", flush=True)
    with server.accept()[0] as connection:
        connection.sendall(connection.getpeername()[0].encode())
"""
_CLIENT = """
import socket
with socket.create_connection(("127.0.0.1", 7080), timeout=5) as connection:
    print(connection.recv(100).decode())
"""
