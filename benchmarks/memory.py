"""The resident memory of netlibd and of each container's minder, and of Docker's processes, while containers run."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Row, series
from benchmarks.peers import IMAGE
from benchmarks.world import World
from netlib.config import Config
from netlib.verbs.call import call

_CONTAINERS, _SANDBOXES = 20, 100
_NETWORK = "bench-memory"
_COMMAND = ("sleep", "1000")


def measure(world: World) -> Iterator[Row]:
    """Measure with 20 containers of ours and of Docker's, then with 100 more sandboxes of ours."""
    containers, sandboxes = world.times(_CONTAINERS), world.times(_SANDBOXES)
    with world.served_host() as controller, world.docker_network(_NETWORK) as docker:
        config = controller.config
        controller.create_network(_NETWORK)
        for _ in range(containers):
            call(config, "container.run", {"command": _COMMAND, "networks": [_NETWORK]})
            if docker:
                docker("run", "-d", "--network", _NETWORK, IMAGE, *_COMMAND)
        ours = [_mebibytes(pid, "Pss") for pid in _shims(config)]
        theirs = [_mebibytes(pid, "Pss") for pid in _running("containerd-shim")] if docker else []
        yield _row(world, f"shim, PSS with {containers} containers", ours, "containerd-shim", theirs)
        engine = [sum(_mebibytes(pid, "Rss") for name in ("dockerd", "containerd") for pid in _running(name))] if docker else []
        netlibd = int(config.pid_file.read_text())
        subject = f"netlibd, RSS with {containers} containers"
        yield _row(world, subject, [_mebibytes(netlibd, "Rss")], "dockerd and containerd", engine)
        for number in range(sandboxes):
            controller.create_sandbox(f"box{number}")
            controller.connect(_NETWORK, f"box{number}")
        subject = f"netlibd, RSS with {containers} containers and {sandboxes} sandboxes"
        yield Row(subject, series([_mebibytes(netlibd, "Rss")], "MiB"))


def _row(world: World, subject: str, ours: list[float], peer: str, theirs: list[float]) -> Row:
    return Row(subject, series(ours, "MiB"), peer, series(theirs, "MiB"), note=world.without)


def _shims(config: Config) -> list[int]:
    return [int(json.loads(path.read_text())["minder"]) for path in config.container_dir.glob("*/pid.json")]


def _running(word: str) -> list[int]:
    """Return the pids of the processes in this test host whose command begins with *word*."""
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            name = path.read_text()
        except (FileNotFoundError, ProcessLookupError):  # the process ended meanwhile
            continue
        if name.strip() == word[:15]:
            found.append(int(path.parent.name))
    return found


def _mebibytes(pid: int, field: str) -> float:
    """Return the Rss or Pss (*field*) of a process in MiB."""
    figure = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    if figure is None:
        raise ValueError(f"process {pid}: smaps_rollup has no {field}")
    return int(figure[1]) / 1024
