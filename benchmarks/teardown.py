"""Removing 100 endpoints in one operation, and one by one."""

from collections.abc import Iterator

from benchmarks.measure import Row, Target, milliseconds, series
from benchmarks.world import World
from netlib.core.controller import Controller

_ENDPOINTS = 100
_TARGET = Target(0.1, "x")


def measure(world: World) -> Iterator[Row]:
    """Measure both. In one operation the sandboxes are removed as well; one by one only the endpoints are."""
    number = world.times(_ENDPOINTS)
    at_once, one_by_one = [], []
    with world.host() as controller:
        controller.create_network("net")
        for _ in range(3):
            names = _connected(controller, number)
            one_by_one.append(milliseconds(_disconnect, controller, names))
            for name in names:
                controller.connect("net", name)
            at_once.append(milliseconds(controller.remove_sandboxes, names))
    subject = f"{number} sandboxes with their endpoints removed at once"
    yield Row(subject, series(at_once), f"{number} single disconnects", series(one_by_one), _TARGET)


def _connected(controller: Controller, number: int) -> list[str]:
    names = [f"box{index}" for index in range(number)]
    for name in names:
        controller.create_sandbox(name)
        controller.connect("net", name)
    return names


def _disconnect(controller: Controller, names: list[str]) -> None:
    for name in names:
        controller.disconnect("net", name)
