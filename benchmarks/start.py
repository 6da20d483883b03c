"""The start of a container: ``netlib run -d`` and ``docker run -d``, on networks that resolve names."""

import subprocess
from collections.abc import Iterator, Sequence

from benchmarks.measure import Row, Target, milliseconds, series
from benchmarks.peers import IMAGE
from benchmarks.world import World, netlib
from netlib.verbs.call import call

_NETWORK, _NAME = "bench-start", "bench-start"
_COMMAND = ("sleep", "1000")
_TARGET = Target(0.7, "x")


def measure(world: World) -> Iterator[Row]:
    """Measure the whole command, ours and Docker's in turn; each container is removed before the next, outside the time."""
    ours: list[float] = []
    theirs: list[float] = []
    with world.served_host() as controller, world.docker_network(_NETWORK) as docker:
        controller.create_network(_NETWORK)
        start = netlib(controller.config, "run", "-d", "--name", _NAME, "--network", _NETWORK, *_COMMAND)
        for cycle in range(-1, world.times(15)):
            figure = milliseconds(_run, start)
            call(controller.config, "container.rm", {"names": [_NAME], "force": True})
            if cycle >= 0:
                ours.append(figure)
            if docker is not None:
                figure = milliseconds(docker, "run", "-d", "--name", _NAME, "--network", _NETWORK, IMAGE, *_COMMAND)
                docker("rm", "--force", _NAME)
                if cycle >= 0:
                    theirs.append(figure)
    yield Row("netlib run -d", series(ours), "docker run -d", series(theirs), _TARGET, world.without)


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)
