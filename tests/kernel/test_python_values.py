"""Wrong values of a Python program are refused at the call, in one sentence in Python's words."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.errors import ConfigError, ObjectMissing


@pytest.fixture
def controller(config: Config) -> Iterator[Controller]:
    with Controller(config, watcher=Unwatched()) as controller:
        controller.create_network("web", subnets=["10.1.0.0/24"])
        controller.create_sandbox("box")
        yield controller
        controller.reset()


WRONG: dict[str, tuple[Callable[[Any], object], str]] = {
    "since a text": (lambda c: c.events(since="10m"), r"^since='10m' must be seconds since the epoch"),
    "since a datetime": (lambda c: c.events(since=datetime.now(UTC)), r"^since=datetime.* must be seconds since the epoch"),
    "until not finite": (lambda c: c.events(since=0, until=float("nan")), r"^until=nan must be seconds"),
    "journal of a text": (lambda c: c.journal("x"), r"^limit='x' must be a whole number of at least 1"),
    "journal of -1": (lambda c: c.journal(-1), r"^limit=-1 must be"),
    "journal of 0": (lambda c: c.journal(0), r"^limit=0 must be"),
    "ports a number": (lambda c: c.connect("web", "box", ports=[80]), r'^80 in ports must be a text like "8080:80"'),
    "ip a number": (lambda c: c.connect("web", "box", ip=9), r"^ip=9 is no IP address"),
    "ip6 a word": (lambda c: c.connect("web", "box", ip6="x"), r"^ip6='x' is no IP address"),
    "link of three": (lambda c: c.connect("web", "box", links=["a:b:c"]), r"^link 'a:b:c' is malformed"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_value_is_refused_at_the_call(case: str, controller: Controller) -> None:
    attempt, sentence = WRONG[case]
    with pytest.raises(ConfigError, match=sentence):
        attempt(controller)
    assert controller.endpoints() == []


def test_a_great_limit_is_all_there_is(controller: Controller) -> None:
    assert len(controller.journal(1 << 80)) == 2


def test_a_file_is_no_netns(controller: Controller) -> None:
    with pytest.raises(ObjectMissing, match=r"^/etc/passwd is no network namespace$"):
        controller.create_sandbox("other", netns="/etc/passwd")


def test_a_closed_controller_is_not_entered_again(config: Config) -> None:
    controller = Controller(config, watcher=Unwatched())
    controller.close()
    with pytest.raises(ConfigError, match="this Controller is closed"), controller:
        pass
    with pytest.raises(ConfigError, match="this Controller is closed"):
        controller.events(since=0)
