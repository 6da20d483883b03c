"""One side of a comparison: a program that measures the netlib on its PYTHONPATH. :mod:`benchmarks.compare` runs two of it.

``python side.py FOLDER`` prints which netlib it is, and the names of its rows. For each name on standard input it takes one
sample and prints its milliseconds. It runs in its own test host, and uses only functions that every commit since 11f308c has.
"""

import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from itertools import cycle as cycle_of
from pathlib import Path
from typing import Any

sys.path.pop(0)  # this file's own folder: netlib is to be found by PYTHONPATH

import netlib
from cni_plugins.install import install
from netlib import Config, Controller
from netlib.kernel.netns import NETNS_DIR, create_netns, delete_netns, entered
from netlib.model import NetnsRef
from netlib.ports import parse_publish


def _found(name: str, *modules: str) -> Any:
    """Return *name* from the first of *modules* that has it: first the newest module, then those of earlier commits."""
    for module in modules:
        with suppress(ImportError, AttributeError):
            return getattr(import_module(module), name)
    raise SystemExit(f"none of {', '.join(modules)} has {name}")


call = _found("call", "netlib.verbs.call", "netlib.client")
leave = _found("leave", "netlib.wire.client", "netlib.client")
start_daemon = _found("start_daemon", "netlib.wire.client", "netlib.client")
Unwatched = _found("Unwatched", "netlib.core.controller", "netlib.controller")
remove_all = _found("remove_all", "netlib.verbs.container", "netlib.runtime.verbs")

Sample = Callable[[], float]
_SANDBOXES = 20
_QUERIES = 2000
_CONNECTIONS = 100
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: no TIME-WAIT, which would slow the next connections
_SLEEP = ("sleep", "1000")


def _took(action: Callable[..., object], *arguments: object, **keywords: object) -> float:
    started = time.perf_counter()
    action(*arguments, **keywords)
    return (time.perf_counter() - started) * 1000


def _run(*words: str, given: bytes = b"", environ: dict[str, str] | None = None) -> bytes:
    done = subprocess.run(words, input=given, env=environ, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.returncode} {done.stdout!r} {done.stderr!r}")
    return done.stdout


@contextmanager
def _alone(config: Config, command: list[str]) -> Iterator[dict[str, Sample]]:
    """Provide the rows of operations in this process, which need no netlibd."""
    with Controller(config, watcher=Unwatched()) as controller:
        controller.create_sandbox("own")
        # Other ports each time: netlibd is not told of changes here, but may have read the last ports and still hold them.
        one = cycle_of(parse_publish(f"{port}:80") for port in range(9000, 9100))
        many = cycle_of(parse_publish(f"{first}-{first + 999}:1-1000") for first in range(10000, 20000, 1000))

        def cycle(first: bool, **wanted: Any) -> float:
            joined = _took(controller.connect, "net", "own", **wanted)
            left = _took(controller.disconnect, "net", "own")
            return joined if first else left

        def network() -> None:
            controller.create_network("other")
            controller.remove_network("other")

        def sandboxes() -> float:
            names = [f"box{number}" for number in range(_SANDBOXES)]
            for name in names:
                controller.create_sandbox(name)
                controller.connect("net", name)
            return _took(controller.remove_sandboxes, names)

        yield {
            "connect, in-process": lambda: cycle(True),
            "disconnect, in-process": lambda: cycle(False),
            "connect with a port": lambda: cycle(True, ports=next(one)),
            "connect with a range of 1,000 ports": lambda: cycle(True, ports=next(many)),
            "create and remove a network": lambda: _took(network),
            f"{_SANDBOXES} sandboxes removed at once": sandboxes,
            "netlib network ls, in its own process": lambda: _took(_run, "unshare", "--mount", *command, "network", "ls"),
        }


@contextmanager
def _host(config: Config) -> Iterator[Controller]:
    """Provide a controller and a netlibd, and remove everything that was made after the block."""
    start_daemon(config)
    try:
        with Controller(config) as controller:
            try:
                yield controller
            finally:
                remove_all(controller)
                controller.reset()
    finally:
        leave(config)


@contextmanager
def _served(folder: Path) -> Iterator[dict[str, Sample]]:
    """Provide all rows, on a host with a netlibd that has served requests before."""
    config = Config(state_dir=folder / "served" / "state", run_dir=folder / "served" / "run")
    with _host(config) as controller, ExitStack() as stack:
        controller.create_network("net")
        controller.create_sandbox("box")
        controller.create_sandbox("asker")
        controller.connect("net", "asker")
        command = [sys.executable, "-P", "-m", "netlib", f"--state-dir={config.state_dir}", f"--run-dir={config.run_dir}"]
        many = parse_publish("20000-20999:1-1000")
        args = {"network": "net", "container": "box"}
        _run(*command, "run", "-d", "--name", "living", "--network", "net", *_SLEEP)

        def cycle(first: bool) -> float:
            joined = _took(call, config, "network.connect", args)
            left = _took(call, config, "network.disconnect", args)
            return joined if first else left

        def held() -> float:
            took = _took(controller.connect, "net", "box", ports=many)
            controller.disconnect("net", "box")
            return took

        def started(first: bool) -> float:
            begun = _took(_run, *command, "run", "-d", "--name", "new", "--network", "net", *_SLEEP)
            removed = _took(_run, *command, "rm", "-f", "new")
            return begun if first else removed

        def names() -> float:
            asking = Path(__file__).with_name("fresh_sockets.py")
            netns = controller.sandbox("asker").netns.path
            words = [sys.executable, "-IS", str(asking), "127.0.0.11", str(_QUERIES), "asker", "living"]
            return _QUERIES / float(_run("nsenter", f"--net={netns}", *words)) * 1000

        yield {
            **stack.enter_context(_traffic(controller)),
            "connect, through netlibd": lambda: cycle(True),
            "disconnect, through netlibd": lambda: cycle(False),
            "1,000 ports held by netlibd": held,
            "netlib run -d": lambda: started(True),
            "netlib rm -f": lambda: started(False),
            "netlib exec true": lambda: _took(_run, *command, "exec", "living", "true"),
            "netlib network ls, with netlibd": lambda: _took(_run, *command, "network", "ls"),
            f"{_QUERIES:,} names from fresh sockets": names,
            **stack.enter_context(_cni(folder, config)),
            **stack.enter_context(_alone(config, command)),
        }


@contextmanager
def _traffic(controller: Controller) -> Iterator[dict[str, Sample]]:
    """Provide rows of TCP connections to a server in a sandbox, by a published port from outside and from another sandbox."""
    for name in ("server", "client"):
        controller.create_sandbox(name)
    server = controller.connect("net", "server", ports=parse_publish("9998:80"))
    controller.connect("net", "client")
    neighbour = NETNS_DIR / "neighbour"
    create_netns(neighbour)
    for command in (
        "ip link add uplink type veth peer name eth0 netns neighbour",
        "ip address add 192.0.2.1/24 dev uplink",
        "ip link set uplink up",
        "ip -n neighbour address add 192.0.2.2/24 dev eth0",
        "ip -n neighbour link set eth0 up",
    ):
        _run(*command.split())
    with controller.inside("server"):
        listener = socket.create_server(("", 80), backlog=64)

    def connected(netns: NetnsRef, address: str, port: int) -> float:
        """Return the median of 100 connections, in milliseconds."""
        figures = []
        with entered(netns):
            for _ in range(_CONNECTIONS):
                with socket.socket() as sock:
                    figures.append(_took(sock.connect, (address, port)))
                    accepted, _ = listener.accept()
                    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
                    accepted.close()
        return statistics.median(figures)

    own = str(server.addresses[0].ip)
    try:
        yield {
            "TCP connect, published port": lambda: connected(NetnsRef(str(neighbour)), "192.0.2.1", 9998),
            "TCP connect, between sandboxes": lambda: connected(controller.sandbox("client").netns, own, 80),
        }
    finally:
        listener.close()
        _run("ip", "link", "del", "uplink")
        delete_netns(neighbour)


@contextmanager
def _cni(folder: Path, config: Config) -> Iterator[dict[str, Sample]]:
    """Provide rows of CNI calls by the launchers, with a process for each call."""
    netns = NETNS_DIR / "compared"
    create_netns(netns)
    kinds = ("c", "python")
    for kind in kinds:
        install(folder / kind, config, launcher=kind, types=["bridge", "host-local", "portmap"])  # type: ignore[arg-type]
    common = {"cniVersion": "1.0.0", "name": "compared"}
    ipam = {"type": "host-local", "subnet": "10.31.0.0/16", "dataDir": str(folder / "leases")}

    def chain(ports: bool) -> list[dict[str, Any]]:
        bridge: dict[str, Any] = {
            **common,
            "type": "bridge",
            "bridge": "compared",
            "isGateway": True,
            "ipMasq": ports,
            "ipam": ipam,
        }
        mapping = {"hostPort": 31080, "containerPort": 80, "protocol": "tcp"}
        return [bridge, {**common, "type": "portmap", "runtimeConfig": {"portMappings": [mapping]}}][: 1 + ports]

    def cycle(first: bool, ports: bool, kind: str = "c") -> float:
        environ = {"PATH": os.environ["PATH"], "CNI_CONTAINERID": "c1", "CNI_NETNS": str(netns), "CNI_IFNAME": "eth0"}
        environ["CNI_PATH"] = str(folder / kind)
        result: dict[str, object] = {}
        figures = {"ADD": 0.0, "DEL": 0.0}
        for verb in figures:
            for conf in chain(ports) if verb == "ADD" else chain(ports)[::-1]:
                given = json.dumps({**conf, "prevResult": result} if result else conf).encode()
                plugin, variables = str(folder / kind / str(conf["type"])), {**environ, "CNI_COMMAND": verb}
                begun = time.perf_counter()
                answer = _run(plugin, given=given, environ=variables)
                figures[verb] += (time.perf_counter() - begun) * 1000
                result = json.loads(answer) if answer else result
        return figures["ADD" if first else "DEL"]

    try:
        yield {
            "ADD, bridge": lambda: cycle(True, False),
            "DEL, bridge": lambda: cycle(False, False),
            "ADD, bridge, masquerade and a port": lambda: cycle(True, True),
            "DEL, bridge, masquerade and a port": lambda: cycle(False, True),
            "ADD, bridge, Python launcher": lambda: cycle(True, False, "python"),
        }
        call(config, "cni.prune", {})
    finally:
        delete_netns(netns)


def main() -> None:
    """Print which netlib this is, the names of the rows, then a sample for each line of standard input."""
    folder = Path(sys.argv[1])
    with ExitStack() as stack:
        print(json.dumps(netlib.__file__), flush=True)
        rows = stack.enter_context(_served(folder))
        print(json.dumps([*rows]), flush=True)
        for line in sys.stdin:
            print(rows[json.loads(line)](), flush=True)


if __name__ == "__main__":
    main()
