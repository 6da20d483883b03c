"""What tests of plugin types ask for."""

from collections.abc import Iterator

import pytest

from netlib.config import Config
from netlib.controller import Controller, Unwatched
from tests.cni.calling import Caller


@pytest.fixture
def controller(config: Config) -> Iterator[Controller]:
    """A host of its own; everything of it goes at the end."""
    with Controller(config, watcher=Unwatched()) as controller:
        yield controller
        controller.reset()


@pytest.fixture
def caller(controller: Controller) -> Iterator[Caller]:
    """A runtime on that host."""
    caller = Caller(lambda: controller)
    yield caller
    caller.clear()
