"""Connecting and disconnecting one endpoint, warm: in-process beside the reference CNI plugins, and through netlibd."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import Row, Target, milliseconds, series
from benchmarks.world import World
from netlib.client import call
from netlib.kernel.netns import NETNS_DIR, create_netns, delete_netns

_CONNECT, _DISCONNECT = Target(5, "ms"), Target(30, "ms")
_CNI_FOLDER = Path("/usr/lib/cni")


class _Cni:
    """The reference plugins bridge and host-local with masquerade, on a host of their own, for one container."""

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
    """The plugins, or None where they are not installed."""
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
    """The medians of 40 cycles of one sandbox and one network that resolves names."""
    yield from _in_process(world)
    yield from _through_netlibd(world)


def _in_process(world: World) -> Iterator[Row]:
    times: dict[str, list[float]] = {"connect": [], "disconnect": [], "ADD": [], "DEL": []}
    with world.host() as controller, _cni(world) as cni:
        controller.create_network("net")
        controller.create_sandbox("box")
        for cycle in range(-1, world.times(40)):  # the first one warms up
            figures = {
                "connect": milliseconds(controller.connect, "net", "box"),
                "disconnect": milliseconds(controller.disconnect, "net", "box"),
            }
            if cni is not None:
                figures |= {verb: milliseconds(cni, verb) for verb in ("ADD", "DEL")}
            for name, figure in figures.items() if cycle >= 0 else ():
                times[name].append(figure)
    note = "the plugins are a process each, as runtimes call them; ours is warm; the targets are absolute"
    peer = "CNI bridge + host-local + masquerade, "
    yield Row("connect, in-process", series(times["connect"]), f"{peer}ADD", series(times["ADD"]), _CONNECT, note)
    yield Row("disconnect, in-process", series(times["disconnect"]), f"{peer}DEL", series(times["DEL"]), _DISCONNECT)


def _through_netlibd(world: World) -> Iterator[Row]:
    connects, disconnects = [], []
    with world.served_host() as controller:
        config = controller.config
        args = {"network": "net", "container": "box"}
        controller.create_network("net")
        controller.create_sandbox("box")
        for cycle in range(-1, world.times(40)):
            connect = milliseconds(call, config, "network.connect", args)
            disconnect = milliseconds(call, config, "network.disconnect", args)
            if cycle >= 0:
                connects.append(connect)
                disconnects.append(disconnect)
    yield Row("connect, through netlibd", series(connects), target=_CONNECT, note="its resolver is opened as well")
    yield Row("disconnect, through netlibd", series(disconnects), target=_DISCONNECT)
