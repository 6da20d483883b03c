"""CNI calls as runtimes make them, a process each, ours beside the reference plugins in turn on one host.

Each side has a host netns of its own, with host-local addresses; the containers' netns stand before and after.
"""

import json
import os
import statistics
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measure import Row, Target, milliseconds, series
from benchmarks.world import World
from cni_plugins.install import install
from netlib.config import Config
from netlib.kernel.netns import NETNS_DIR, create_netns, delete_netns, entered
from netlib.model import HOST, NetnsRef

REFERENCE = Path("/usr/lib/cni")
_CYCLES, _AT_ONCE, _MANY = 50, 100, 1000
_FLAT = Target(1.25, "x")


class Side(NamedTuple):
    """One set of plugins and the network that they make."""

    name: str
    folder: Path
    subnet: str
    data: Path
    home: NetnsRef = HOST  # who is started in it is born there: no process more for that

    def call(self, verb: str, config: dict[str, Any], container: str) -> dict[str, Any]:
        """One call; its answer. ``CalledProcessError`` when it fails."""
        environ = {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": f"{self.name}-{container}",
            "CNI_NETNS": str(NETNS_DIR / container),
            "CNI_IFNAME": f"{self.name}0",
            "CNI_PATH": str(self.folder),
        }
        command, stdin = [str(self.folder / config["type"])], json.dumps(config).encode()
        with entered(self.home):
            done = subprocess.run(command, input=stdin, env=environ, check=True, capture_output=True, close_fds=False)
        return json.loads(done.stdout) if done.stdout else {}

    def chain(self, *, masquerade: bool = False, port: int = 0) -> list[dict[str, Any]]:
        """The plugins of a network with a bridge, and where a host *port* is given with that published."""
        common = {"cniVersion": "1.0.0", "name": f"bench-{self.name}"}
        ipam = {"type": "host-local", "subnet": self.subnet, "dataDir": str(self.data)}
        bridge = {
            **common,
            "type": "bridge",
            "bridge": f"{self.name}-br",
            "isGateway": True,
            "ipMasq": masquerade,
            "ipam": ipam,
        }
        mapping = {"hostPort": port, "containerPort": 80, "protocol": "tcp"}
        portmap = {**common, "type": "portmap", "runtimeConfig": {"portMappings": [mapping]}}
        return [bridge, portmap] if port else [bridge]

    def add(self, chain: Sequence[dict[str, Any]], container: str) -> dict[str, Any]:
        """What a runtime does at a container's start; the result."""
        result: dict[str, Any] = {}
        for config in chain:
            result = self.call("ADD", {**config, "prevResult": result} if result else config, container)
        return result

    def delete(self, chain: Sequence[dict[str, Any]], container: str, result: dict[str, Any]) -> None:
        """What it does at its end."""
        for config in reversed(chain):
            self.call("DEL", {**config, "prevResult": result}, container)


def measure(world: World) -> Iterator[Row]:
    """Medians of 50, and walls of 100 at once."""
    with world.served_host() as controller, ExitStack() as stack:
        ours = _ours(world, controller.config, "nl", "10.31.0.0/16")
        slow = _ours(world, controller.config, "py", "10.33.0.0/16", "python")
        theirs = stack.enter_context(_theirs(world))
        at_once, many = world.times(_AT_ONCE), world.times(_MANY)
        for number in range(max(at_once, many + 1)):
            stack.enter_context(_container(f"bench{number}"))
        yield from _cycles(world, "bridge", {}, ours, theirs, (0.6, 1.0))
        yield from _cycles(
            world, "bridge, masquerade and a port", {"masquerade": True, "port": 31080}, ours, theirs, (0.35, 0.4)
        )
        yield from _cycles(world, "bridge with masquerade, Python launcher", {"masquerade": True}, slow, theirs, (0.7, None))
        yield _wall(ours, theirs, at_once)
        yield _flat(ours, many, world.times(_CYCLES))


def _ours(world: World, config: Config, name: str, subnet: str, launcher: Any = None) -> Side:
    folder = world.folder / f"{name}-plugins"
    install(folder, config, launcher=launcher, types=["bridge", "host-local", "portmap"])
    return Side(name, folder, subnet, world.folder / f"{name}-leases")


@contextmanager
def _theirs(world: World) -> Iterator[Side | None]:
    """The reference plugins, where they are installed."""
    if not (REFERENCE / "bridge").exists():
        yield None
        return
    with _container("ref-host"):
        yield Side("ref", REFERENCE, "10.32.0.0/16", world.folder / "ref-leases", NetnsRef(str(NETNS_DIR / "ref-host")))


@contextmanager
def _container(name: str) -> Iterator[None]:
    create_netns(NETNS_DIR / name)
    try:
        yield
    finally:
        delete_netns(NETNS_DIR / name)


def _cycles(
    world: World,
    subject: str,
    wanted: dict[str, Any],
    ours: Side,
    theirs: Side | None,
    targets: tuple[float, float | None],
) -> Iterator[Row]:
    """One container attached and detached by each side in turn."""
    times: dict[tuple[str, str], list[float]] = {}
    for turn in range(-2, world.times(_CYCLES)):
        for side in (ours, theirs):
            if side is None:
                continue
            chain = side.chain(**{**wanted, "port": wanted["port"] + (side is theirs)} if wanted.get("port") else wanted)
            results: list[dict[str, Any]] = []
            figures = {
                "ADD": milliseconds(_keeping(results, partial(side.add, chain, "bench0"))),
                "DEL": milliseconds(side.delete, chain, "bench0", *results),
            }
            for verb, figure in figures.items() if turn >= 0 else ():
                times.setdefault((side.name, verb), []).append(figure)
    for verb, limit in zip(("ADD", "DEL"), targets, strict=True):
        peer = series(times.get(("ref", verb), ()))
        target = Target(limit, "x") if limit is not None else None
        yield Row(f"{verb}, {subject}", series(times[ours.name, verb]), f"reference {verb}", peer, target)


def _keeping(results: list[dict[str, Any]], action: Callable[[], dict[str, Any]]) -> Callable[[], None]:
    return lambda: results.append(action())


def _wall(ours: Side, theirs: Side | None, number: int) -> Row:
    """All containers attached at once, then all detached at once."""
    walls: dict[str, list[float]] = {}
    with ThreadPoolExecutor(number) as pool:
        for _ in range(3):
            for side in (ours, theirs):
                if side is not None:
                    walls.setdefault(side.name, []).append(milliseconds(_all_at_once, pool, side, number))
    subject = f"{number} ADDs at once, then {number} DELs, with masquerade"
    return Row(subject, series(walls[ours.name]), "reference", series(walls.get("ref", ())), Target(0.25, "x"))


def _all_at_once(pool: ThreadPoolExecutor, side: Side, number: int) -> None:
    chain, names = side.chain(masquerade=True), [f"bench{index}" for index in range(number)]
    results = list(pool.map(partial(side.add, chain), names))
    list(pool.map(partial(side.delete, chain), names, results))


def _flat(ours: Side, number: int, cycles: int) -> Row:
    """One more attachment beside many, and beside none.

    The kernel looks at every port of a bridge when one more comes, whoever plugs it in: that much is no cost of ours.
    """
    chain, extra = ours.chain(masquerade=True), f"bench{number}"

    def cycle() -> tuple[float, float]:
        results: list[dict[str, Any]] = []
        took = milliseconds(_keeping(results, partial(ours.add, chain, extra)))
        ours.delete(chain, extra, *results)
        return took, _plugged(chain[0]["bridge"])

    def steady() -> tuple[list[float], list[float]]:
        """Without the first ones: the kernel is still busy with what came before."""
        added, plugged = zip(*[cycle() for _ in range(2 * cycles)][cycles:], strict=True)
        return [*added], [*plugged]

    alone, bare = steady()
    for index in range(number):
        ours.add(chain, f"bench{index}")
    crowded, full = steady()
    ours.call("GC", {**chain[0], "cniVersion": "1.1.0", "cni.dev/valid-attachments": []}, extra)
    kernels = statistics.median(full) - statistics.median(bare)
    return Row(
        f"ADD beside {number} attachments",
        series(crowded),
        "ADD beside none, and what `ip` takes longer",
        series(figure + kernels for figure in alone),
        _FLAT,
        f"beside none {statistics.median(alone):.2f} ms; `ip` takes {kernels:.2f} ms longer for a port of the same bridge",
    )


def _plugged(bridge: str) -> float:
    """How long `ip` takes for a veth pair with one end on *bridge*, up, in milliseconds."""
    commands = "link add bench-port type veth peer name bench-peer", f"link set bench-port master {bridge} up"
    stdin = "".join(f"{command}\n" for command in commands).encode()
    took = milliseconds(subprocess.run, ["ip", "-batch", "-"], input=stdin, check=True)
    subprocess.run(["ip", "link", "delete", "bench-port"], check=True)
    return took
