"""The command ``netlib network ls`` without and with a netlibd, and ``docker network ls``."""

import subprocess
from collections.abc import Iterator, Sequence

from benchmarks.measure import Row, Target, milliseconds, series
from benchmarks.world import World, netlib

_TARGET = Target(150, "ms")


def measure(world: World) -> Iterator[Row]:
    """Measure each command 20 times, in turn, on two hosts, one of which has no netlibd."""
    times: dict[str, list[float]] = {"alone": [], "served": [], "docker": []}
    with world.host() as alone, world.served_host() as served:
        commands = {"alone": netlib(alone.config, "network", "ls"), "served": netlib(served.config, "network", "ls")}
        if world.docker is not None:
            commands["docker"] = world.docker.command("network", "ls")
        for cycle in range(-1, world.times(20)):
            for name, command in commands.items():
                figure = milliseconds(_run, command)
                if cycle >= 0:
                    times[name].append(figure)
    peer = "docker network ls"
    yield Row("netlib network ls, without netlibd", series(times["alone"]), peer, series(times["docker"]), _TARGET)
    yield Row("netlib network ls, with netlibd", series(times["served"]), peer, series(times["docker"]), _TARGET)


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)
