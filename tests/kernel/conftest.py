"""What several of the kernel's tests ask for."""

from collections.abc import Iterator

import pytest

from netlib.config import Config
from tests.kernel.runtime_world import World


@pytest.fixture
def world(config: Config) -> Iterator[World]:
    world = World(config)
    yield world
    world.clear()
