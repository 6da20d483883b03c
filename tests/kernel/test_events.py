"""Events: what happens is published with the journal's line, and read while it happens, by whichever process it is done."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.errors import AlreadyExists, NetlibError
from netlib.model import Event
from netlib.store.records import JournalEntry, Published
from netlib.verbs.perform import perform

SECONDS = 20


@pytest.fixture
def controller(config: Config) -> Iterator[Controller]:
    with Controller(config, watcher=Unwatched()) as controller:
        yield controller
        perform(controller, "system.reset", {})


def _told(published: list[Published]) -> list[tuple[str, str, str]]:
    return [(item.event.type, item.event.action, item.event.attributes.get("name", "")) for item in published]


def test_what_happened_is_told_in_order(controller: Controller) -> None:
    network = controller.create_network("web", labels={"team": "shop"})
    box = controller.create_sandbox("box")
    controller.connect(network, box)
    with pytest.raises(AlreadyExists):
        controller.connect(network, box)
    controller.disconnect(network, box)
    controller.remove_sandbox(box)
    controller.remove_network(network)
    found = list(controller.events(since=0))
    assert _told(found) == [
        ("network", "create", "web"),
        ("sandbox", "create", "box"),
        ("network", "connect", "web"),
        ("network", "disconnect", "web"),
        ("sandbox", "destroy", "box"),
        ("network", "destroy", "web"),
    ]
    connected = found[2].event
    assert (connected.id, connected.attributes["container"]) == (network.id, box.id)
    assert list(controller.events(since=found[-1].time + 1)) == []


def test_who_is_removed_has_left_its_networks(controller: Controller) -> None:
    controller.create_network("web")
    controller.create_sandbox("box")
    for name in ("web", "bridge"):
        controller.connect(name, "box")
    controller.remove_sandbox("box")
    assert _told(list(controller.events(since=0)))[-3:] == [
        ("network", "disconnect", "web"),
        ("network", "disconnect", "bridge"),
        ("sandbox", "destroy", "box"),
    ]


def test_a_container_that_cannot_start_was_there_and_is_gone(controller: Controller) -> None:
    with pytest.raises(NetlibError):
        perform(controller, "container.run", {"command": ["no-such-command"], "name": "box", "networks": ["none"]})
    of_box = [item.event.action for item in controller.events(since=0) if item.event.type == "container"]
    assert of_box == ["create", "destroy"]


def test_of_a_container_its_life_is_told(controller: Controller) -> None:
    perform(controller, "container.run", {"command": ["sleep", "60"], "name": "box", "networks": ["none"], "labels": ["a=b"]})
    perform(controller, "container.stop", {"name": "box", "seconds": 0})
    perform(controller, "container.start", {"name": "box"})
    perform(controller, "container.rm", {"names": ["box"], "force": True})
    of_box = [item.event for item in controller.events(since=0) if item.event.type == "container"]
    assert [event.action for event in of_box] == ["create", "start", "die", "stop", "start", "die", "destroy"]
    assert [event.attributes.get("exitCode") for event in of_box] == [None, None, "137", None, None, "137", None]
    assert of_box[0].attributes["a"] == "b"


def test_they_are_followed_across_processes(controller: Controller, config: Config) -> None:
    """As they happen: the reader waits for the number in the run folder, and asks nobody."""
    followed: list[Published] = []
    ready, done = threading.Event(), threading.Event()

    def follow() -> None:
        with Controller(config, watcher=Unwatched()) as reader:
            events = reader.events(since=0, follow=True)
            followed.append(next(events))
            ready.set()
            followed.append(next(events))
            done.set()

    thread = threading.Thread(target=follow)
    thread.start()
    controller.create_network("first")
    assert ready.wait(SECONDS)
    code = "import sys; from netlib import *; Controller(Config(*sys.argv[1:]), watcher=Unwatched()).create_network('second')"
    command = [sys.executable, "-P", "-c", code, str(config.state_dir), str(config.run_dir)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})
    assert done.wait(SECONDS)
    thread.join()
    assert _told(followed) == [("network", "create", "first"), ("network", "create", "second")]


def _command(config: Config, *words: str) -> list[dict[str, Any]]:
    folders = [f"--state-dir={config.state_dir}", f"--run-dir={config.run_dir}"]
    command = [sys.executable, "-m", "netlib", *folders, "events", *words]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, timeout=SECONDS)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_command_prints_what_dockers_does(controller: Controller, config: Config) -> None:
    network = controller.create_network("web")
    controller.create_sandbox("box")
    controller.connect("web", "box")
    shown = _command(config, "--since", "10m", "--until", "0s")
    assert [(row["Type"], row["Action"]) for row in shown] == [
        ("network", "create"),
        ("sandbox", "create"),
        ("network", "connect"),
    ]
    assert set(shown[0]) == {"Type", "Action", "Actor", "scope", "time", "timeNano"}
    assert shown[0]["Actor"] == {"ID": network.id, "Attributes": {"name": "web", "type": "bridge"}}
    for words, count in (
        (["type=network"], 2),
        (["event=connect"], 1),
        (["container=box"], 1),
        (["sandbox=box"], 1),
        (["network=web", "event=create"], 1),
        (["event=create", "event=connect"], 3),
        (["id=" + network.id[:12]], 2),
        (["label=name=box"], 1),
        (["type=image"], 0),
    ):
        flags = [part for word in words for part in ("--filter", word)]
        assert len(_command(config, "--since", "10m", "--until", "0s", *flags)) == count, words


def test_a_long_operation_has_its_events_when_it_ends(controller: Controller) -> None:
    def line(verb: str, began: float, took: float) -> JournalEntry:
        return JournalEntry(began, verb, "web", "ok", took, [], (Event(type="network", action=verb),))

    with controller.store.write() as tx:
        tx.log(line("short", 102.0, 1.0))
        tx.log(line("long", 100.0, 5.0))
    found = [item for item in controller.events(since=0, until=200.0) if item.event.action in ("short", "long")]
    assert [(item.event.action, item.time) for item in found] == [("short", 103.0), ("long", 105.0)]
    assert [item.event.action for item in controller.events(since=104.0, until=200.0)] == ["long"]
