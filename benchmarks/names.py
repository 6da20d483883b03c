"""The answers per second of the embedded resolver at 127.0.0.11:53 in a sandbox, and of Docker's resolver in a container.

dnsperf sends all queries from one socket. No program in Debian opens a socket for each query, so
:mod:`benchmarks.fresh_sockets` does that, for both resolvers alike.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks import fresh_sockets
from benchmarks.measure import Row, Target, series
from benchmarks.peers import IMAGE, PeerError, dnsperf
from benchmarks.world import World

_AT_LEAST_THEIRS = Target(1, "x", at_least=True)
_NETWORK = "bench-names"
_NAMES = ("alpha", "beta", "gamma")
_RESOLVER = "127.0.0.11"
_QUERIES = 10_000  # per process

Load = Callable[[Path], float]
"""A function that queries the resolver from a netns and returns the answers per second."""


def measure(world: World) -> Iterator[Row]:
    """Measure with one socket, then with a fresh socket per query; ours and Docker's in turn."""
    with world.served_host() as controller, world.docker_network(_NETWORK) as docker:
        controller.create_network(_NETWORK)
        for name in _NAMES:
            controller.create_sandbox(name)
            controller.connect(_NETWORK, name)
            if docker:
                docker("run", "-d", "--name", name, "--network", _NETWORK, IMAGE, "sleep", "1000")
        ours = Path(controller.sandbox(_NAMES[0]).netns.path)
        theirs = docker.netns(_NAMES[0]) if docker else None
        loads: dict[str, tuple[int, Load]] = {}
        if shutil.which("dnsperf"):
            loads["one socket"] = 3, partial(_one_socket, world)
        loads["a fresh socket per query"] = 9, partial(_fresh_sockets, world)
        for kind, (rounds, load) in loads.items():
            figures: dict[Path, list[float]] = {netns: [] for netns in (ours, theirs) if netns}
            for _ in range(world.times(rounds)):
                for netns, found in figures.items():
                    found.append(load(netns))
            yield _row(world, kind, figures[ours], figures[theirs] if theirs else [])
    if "one socket" not in loads:
        yield _row(world, "one socket", [], [], "dnsperf is not installed; `scripts/install peers` brings it")


def _row(world: World, kind: str, ours: list[float], theirs: list[float], note: str = "") -> Row:
    unit = "answers/s"
    return Row(
        f"DNS, {kind}",
        series(ours, unit),
        "Docker's resolver",
        series(theirs, unit),
        _AT_LEAST_THEIRS,
        note or world.without,
    )


def _one_socket(world: World, netns: Path) -> float:
    return dnsperf(netns, _RESOLVER, _NAMES, world.folder, seconds=world.times(3)).per_second


def _fresh_sockets(world: World, netns: Path) -> float:
    """Query from several processes, so that the resolver is the limit; return the sum of their answers per second."""
    script = [sys.executable, "-IS", fresh_sockets.__file__, _RESOLVER, str(world.times(_QUERIES)), *_NAMES]
    command = ["nsenter", f"--net={netns}", *script]
    with ExitStack() as stack:
        askers = []
        for _ in range(fresh_sockets.PROCESSES):
            askers.append(stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)))
            stack.callback(askers[-1].kill)  # a no-op for one that has ended
        outputs = [asker.communicate(timeout=60)[0] for asker in askers]
    if any(asker.returncode for asker in askers):
        raise PeerError(f"asking {_RESOLVER} in {netns} from fresh sockets failed")
    return sum(map(float, outputs))
