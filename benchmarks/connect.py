"""Connecting and disconnecting one endpoint after a warm-up: in-process, by the reference CNI plugins, and through netlibd."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.measure import Row, Target, milliseconds, series
from benchmarks.world import World
from netlib.kernel.netns import NETNS_DIR, create_netns, delete_netns
from netlib.verbs.call import call

_CONNECT, _DISCONNECT = Target(5, "ms"), Target(30, "ms")
_CNI_FOLDER = Path("/usr/lib/cni")


class _Cni:
    """The reference plugins bridge and host-local with masquerade, in their own host netns, for one container."""

    def __init__(self, folder: Path, host: Path, container: Path) -> None:
        network = {
            "cniVersion": "1.0.0",
            "name": "bench",
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": True,
            "ipam": {"type": "host-local", "subnet": "10.22.0.0/16", "dataDir": str(folder / "cni")},
        }
        self._network = json.dumps(network)
        self._command = ["nsenter", f"--net={host}", str(_CNI_FOLDER / "bridge")]
        self._environment = {
            **os.environ,
            "CNI_CONTAINERID": "bench",
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": str(container),
            "CNI_PATH": str(_CNI_FOLDER),
        }

    def __call__(self, verb: str) -> None:
        environment = {**self._environment, "CNI_COMMAND": verb}
        subprocess.run(self._command, input=self._network, env=environment, text=True, capture_output=True, check=True)


@contextmanager
def _cni(world: World) -> Iterator[_Cni | None]:
    """Provide the reference plugins, or None where they are not installed."""
    if not (_CNI_FOLDER / "bridge").exists():
        yield None
        return
    host, container = NETNS_DIR / "cni-host", NETNS_DIR / "cni-container"
    for path in (host, container):
        create_netns(path)
    try:
        yield _Cni(world.folder, host, container)
    finally:
        for path in (container, host):
            delete_netns(path)


def measure(world: World) -> Iterator[Row]:
    """Measure 40 cycles of one sandbox and one network that resolves names, in-process and through netlibd."""
    yield from _in_process(world)
    yield from _through_netlibd(world)


def _in_process(world: World) -> Iterator[Row]:
    """Measure ten cycles of ours, ten of the plugins, and so on: after each process of theirs, ours would find cold caches."""
    ours: tuple[list[float], list[float]] = ([], [])
    theirs: tuple[list[float], list[float]] = ([], [])
    with world.host() as controller, _cni(world) as cni:
        controller.create_network("net")
        controller.create_sandbox("box")
        for turn in range(-1, 4):  # the first one warms up
            for _ in range(world.times(10)):
                _note(turn, ours, controller.connect, controller.disconnect, "net", "box")
            for _ in range(world.times(10) if cni else 0):
                assert cni is not None
                _note(turn, theirs, partial(cni, "ADD"), partial(cni, "DEL"))
    peer = "CNI bridge + host-local + masquerade, "
    note = "the plugins are a process each, as runtimes call them; ours is a warm library; the targets are absolute"
    yield Row("connect, in-process", series(ours[0]), f"{peer}ADD", series(theirs[0]), _CONNECT, note)
    yield Row("disconnect, in-process", series(ours[1]), f"{peer}DEL", series(theirs[1]), _DISCONNECT)


def _through_netlibd(world: World) -> Iterator[Row]:
    times: tuple[list[float], list[float]] = ([], [])
    args = {"network": "net", "container": "box"}
    with world.served_host() as controller:
        ask = partial(call, controller.config)
        controller.create_network("net")
        controller.create_sandbox("box")
        for turn in range(-1, world.times(40)):
            _note(turn, times, partial(ask, "network.connect", args), partial(ask, "network.disconnect", args))
    yield Row("connect, through netlibd", series(times[0]), target=_CONNECT, note="its resolver is opened as well")
    yield Row("disconnect, through netlibd", series(times[1]), target=_DISCONNECT)


def _note(
    turn: int,
    times: tuple[list[float], list[float]],
    connect: Callable[..., object],
    disconnect: Callable[..., object],
    *arguments: str,
) -> None:
    """Measure one cycle, and keep the figures unless the turn is the warm-up."""
    figures = milliseconds(connect, *arguments), milliseconds(disconnect, *arguments)
    for kept, figure in zip(times, figures, strict=True) if turn >= 0 else ():
        kept.append(figure)
