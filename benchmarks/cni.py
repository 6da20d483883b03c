"""CNI calls of our plugins and of the reference plugins in turn, each in its own process, as runtimes call them.

Each side has its own host netns and host-local addresses. The containers' netns are made before and deleted after the calls.
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
    """One set of plugins, and the network that it makes."""

    name: str
    folder: Path
    subnet: str
    data: Path
    home: NetnsRef = HOST  # the host netns, in which plugins are started without another process for that

    def call(self, verb: str, config: dict[str, Any], container: str) -> dict[str, Any]:
        """Call a plugin and return its answer; CalledProcessError when it fails."""
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
        """Return the configurations of a network with a bridge and, if a host *port* is given, with that port published."""
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
        """Call ADD of each plugin of the chain, as a runtime does at a container's start, and return the result."""
        result: dict[str, Any] = {}
        for config in chain:
            result = self.call("ADD", {**config, "prevResult": result} if result else config, container)
        return result

    def delete(self, chain: Sequence[dict[str, Any]], container: str, result: dict[str, Any]) -> None:
        """Call DEL of each plugin in reverse, as a runtime does at a container's end."""
        for config in reversed(chain):
            self.call("DEL", {**config, "prevResult": result}, container)


def measure(world: World) -> Iterator[Row]:
    """Measure single ADDs and DELs (the median of 50), 100 at once, and an ADD beside 1,000 attachments."""
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
        yield _concurrent(ours, theirs, at_once)
        yield _flat(ours, many, world.times(_CYCLES))


def _ours(world: World, config: Config, name: str, subnet: str, launcher: Any = None) -> Side:
    folder = world.folder / f"{name}-plugins"
    install(folder, config, launcher=launcher, types=["bridge", "host-local", "portmap"])
    return Side(name, folder, subnet, world.folder / f"{name}-leases")


@contextmanager
def _theirs(world: World) -> Iterator[Side | None]:
    """Provide the side of the reference plugins, or None where they are not installed."""
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
    """Measure ADD and DEL of one container, by each side in turn."""
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


def _concurrent(ours: Side, theirs: Side | None, number: int) -> Row:
    """Measure the time for all containers together: ADD of all at once, then DEL of all at once."""
    totals: dict[str, list[float]] = {}
    with ThreadPoolExecutor(number) as pool:
        for _ in range(3):
            for side in (ours, theirs):
                if side is not None:
                    totals.setdefault(side.name, []).append(milliseconds(_all_at_once, pool, side, number))
    subject = f"{number} ADDs at once, then {number} DELs, with masquerade"
    return Row(subject, series(totals[ours.name]), "reference", series(totals.get("ref", ())), Target(0.25, "x"))


def _all_at_once(pool: ThreadPoolExecutor, side: Side, number: int) -> None:
    chain, names = side.chain(masquerade=True), [f"bench{index}" for index in range(number)]
    results = list(pool.map(partial(side.add, chain), names))
    list(pool.map(partial(side.delete, chain), names, results))


def _flat(ours: Side, number: int, cycles: int) -> Row:
    """Compare an ADD beside *number* attachments with an ADD beside none.

    The kernel walks over all ports of a bridge when another one is added, whatever program adds it. That time is measured with
    `ip` and not counted as ours.
    """
    chain, extra = ours.chain(masquerade=True), f"bench{number}"

    def cycle() -> tuple[float, float]:
        results: list[dict[str, Any]] = []
        took = milliseconds(_keeping(results, partial(ours.add, chain, extra)))
        ours.delete(chain, extra, *results)
        return took, _milliseconds_by_ip(chain[0]["bridge"])

    def steady() -> tuple[list[float], list[float]]:
        """Measure twice as many cycles and return the second half: at first the kernel still works on earlier removals."""
        added, by_ip = zip(*[cycle() for _ in range(2 * cycles)][cycles:], strict=True)
        return [*added], [*by_ip]

    alone, bare = steady()
    for index in range(number):
        ours.add(chain, f"bench{index}")
    crowded, full = steady()
    ours.call("GC", {**chain[0], "cniVersion": "1.1.0", "cni.dev/valid-attachments": []}, extra)
    kernel_time = statistics.median(full) - statistics.median(bare)
    return Row(
        f"ADD beside {number} attachments",
        series(crowded),
        "ADD beside none, and what `ip` takes longer",
        series(figure + kernel_time for figure in alone),
        _FLAT,
        f"beside none {statistics.median(alone):.2f} ms; `ip` takes {kernel_time:.2f} ms longer for a port of the same bridge",
    )


def _milliseconds_by_ip(bridge: str) -> float:
    """Return the milliseconds in which `ip` makes a veth pair and sets one end up as a port of *bridge*."""
    commands = "link add bench-port type veth peer name bench-peer", f"link set bench-port master {bridge} up"
    stdin = "".join(f"{command}\n" for command in commands).encode()
    took = milliseconds(subprocess.run, ["ip", "-batch", "-"], input=stdin, check=True)
    subprocess.run(["ip", "link", "delete", "bench-port"], check=True)
    return took
