"""Every object of every plan fails in turn, and the process dies before and after each: nothing may be left.

The base is compared whole: links, addresses, routes, rules, the nftables ruleset, sysctls, netns files, our folders, and the
store's records, objects, leases, free ranges and ports. The first use of a host leaves the base of the firewall and forwarding;
the fixture makes that first use, so that nothing at all may differ afterwards.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.errors import KernelError, NetlibError
from netlib.kernel.snapshot import differences, snapshot
from netlib.model import Protocol
from netlib.plan import KernelObject
from netlib.ports import parse_publish
from netlib.store.sqlite import Store

Action = Callable[[Controller], Any]

TABLES = {
    "record": "SELECT id, kind, name, phase, network, sandbox FROM record ORDER BY id",
    "object": "SELECT record, key, body FROM object ORDER BY record, key",
    "pool": "SELECT network, subnet FROM pool ORDER BY network, subnet",  # not its cursor: addresses rest before reuse
    "free_range": "SELECT pool, first, last FROM free_range ORDER BY pool, last",
    "lease": "SELECT pool, address, owner FROM lease ORDER BY pool, address",
    "port": "SELECT protocol, number, host_ip, owner FROM port ORDER BY protocol, number, host_ip",
}
FOLDERS = ("/run/netns", "/etc/netns")


def _state(config: Config, store: Store) -> dict[str, Any]:
    with store.read() as tx:
        rows = {table: tx.db.execute(query).fetchall() for table, query in TABLES.items()}
    files = sorted(
        str(path) for top in (*FOLDERS, str(config.sandbox_dir), str(config.lock_dir)) for path in Path(top).rglob("*")
    )
    return {"kernel": snapshot(), "rows": rows, "files": files}


def _assert_same(before: dict[str, Any], after: dict[str, Any], when: str) -> None:
    assert differences(before["kernel"], after["kernel"]) == [], when
    for table, rows in before["rows"].items():
        assert after["rows"][table] == rows, f"{when}: table {table}"
    assert after["files"] == before["files"], when


class Stop:
    """An observer that acts at the *n*-th moment it is told of."""

    def __init__(self, moment: int, act: Callable[[KernelObject], None], only: tuple[str, ...] = ()) -> None:
        self.moments: list[str] = []
        self._moment, self._act, self._only = moment, act, only

    def __call__(self, moment: str, item: KernelObject) -> None:
        if self._only and moment not in self._only:
            return
        self.moments.append(f"{moment} {item.key}")
        if len(self.moments) - 1 == self._moment:
            self._act(item)


def _fail(item: KernelObject) -> None:
    raise KernelError(f"injected at {item.key}")


def _die(item: KernelObject) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _create_network(controller: Controller) -> None:
    controller.create_network("web", subnets=["10.200.0.0/24", "fd00:200::/64"])


def _make_bridge(controller: Controller) -> None:
    """A bridge of somebody else, down, with an address, and with a network's MTU and IPv6 still to come."""
    for command in ("link add br-lan mtu 1300 type bridge", "addr add 10.201.0.1/24 dev br-lan"):
        subprocess.run(["ip", *command.split()], check=True)
    Path("/proc/sys/net/ipv6/conf/br-lan/disable_ipv6").write_text("1")


def _create_on_bridge(controller: Controller) -> None:
    options = {
        "com.docker.network.bridge.name": "br-lan",
        "com.docker.network.driver.mtu": "1400",
        "com.docker.network.bridge.enable_icc": "false",
    }
    controller.create_network("web", subnets=["10.201.0.0/24", "fd00:201::/64"], options=options)


def _create_sandbox(controller: Controller) -> None:
    controller.create_sandbox("box")


def _connect(controller: Controller) -> None:
    ports = [*parse_publish("8080:80"), *parse_publish("127.0.0.1:5353:53/udp")]
    assert {port.protocol for port in ports} == {Protocol.TCP, Protocol.UDP}
    controller.connect("web", "box", aliases=["www"], ports=ports)


def _connect_default(controller: Controller) -> None:
    controller.connect("bridge", "box")


def _disconnect(controller: Controller) -> None:
    controller.disconnect("web", "box")


def _remove_sandbox(controller: Controller) -> None:
    controller.remove_sandbox("box")


def _remove_network(controller: Controller) -> None:
    controller.remove_network("web")


# name, what must be there first, the action
MAKING: list[tuple[str, list[Action], Action]] = [
    ("network create", [], _create_network),
    ("network create on a bridge", [_make_bridge], _create_on_bridge),
    ("sandbox create", [_create_network], _create_sandbox),
    ("connect", [_create_network, _create_sandbox], _connect),
    ("second connect", [_create_network, _create_sandbox, _connect], _connect_default),
]
# name, what must be there first, what is made then, the action that undoes exactly that
REMOVING: list[tuple[str, list[Action], list[Action], Action]] = [
    ("disconnect", [_create_network, _create_sandbox, _connect_default], [_connect], _disconnect),
    ("sandbox rm", [_create_network], [_create_sandbox, _connect], _remove_sandbox),
    ("network rm", [], [_create_network], _remove_network),
    ("network rm on a bridge", [_make_bridge], [_create_on_bridge], _remove_network),
]


@pytest.fixture
def host(config: Config) -> Iterator[Config]:
    with Controller(config, watcher=Unwatched()) as controller:
        # The first use of each network leaves its link and the base of the firewall: made now, so that they are in the base.
        controller.create_sandbox("warm")
        controller.connect("bridge", "warm")
        controller.remove_sandbox("warm")
    yield config
    with Controller(config, watcher=Unwatched()) as controller:
        controller.reset()
    subprocess.run(["ip", "link", "del", "br-lan"], check=False, capture_output=True)


@pytest.mark.parametrize(("first", "action"), [pytest.param(first, action, id=name) for name, first, action in MAKING])
def test_a_failure_at_any_object_leaves_everything_as_it_was(host: Config, first: list[Action], action: Action) -> None:
    with Controller(host, watcher=Unwatched()) as controller:
        _perform(controller, first)
        before = _state(host, controller.store)
        number = 0
        while True:
            stop = Stop(number, _fail, ("ensure",))
            with Controller(host, watcher=Unwatched(), observer=stop) as faulty:
                if not _fails(faulty, action):
                    break
            _assert_same(before, _state(host, controller.store), f"failed at {stop.moments[-1]}")
            number += 1
        assert number == len(set(stop.moments)) > 0


@pytest.mark.parametrize(("first", "action"), [pytest.param(first, action, id=name) for name, first, action in MAKING])
def test_a_death_while_something_is_made_is_undone(host: Config, first: list[Action], action: Action) -> None:
    with Controller(host, watcher=Unwatched()) as controller:
        _perform(controller, first)
        before = _state(host, controller.store)
        number = 0
        while (moment := run_and_die(host, action, number)) is not None:
            controller.recover()
            _assert_same(before, _state(host, controller.store), f"died at {moment}")
            number += 1
        assert number > 0


@pytest.mark.parametrize(("first", "made", "action"), [pytest.param(*rest, id=name) for name, *rest in REMOVING])
def test_a_death_while_something_is_removed_is_finished(
    host: Config, first: list[Action], made: list[Action], action: Action
) -> None:
    with Controller(host, watcher=Unwatched()) as controller:
        _perform(controller, first)
        base = _state(host, controller.store)
        number = 0
        _perform(controller, made)
        while (moment := run_and_die(host, action, number)) is not None:
            controller.recover()
            _assert_same(base, _state(host, controller.store), f"died at {moment}")
            _perform(controller, made)
            number += 1
        assert number > 0
        _assert_same(base, _state(host, controller.store), "the removal that nobody disturbed")


def _perform(controller: Controller, steps: list[Action]) -> None:
    for step in steps:
        step(controller)


def _fails(controller: Controller, action: Action) -> bool:
    """Whether *action* ends by the injected failure (any other is the test's)."""
    try:
        action(controller)
    except NetlibError as error:
        if "injected" not in str(error):
            raise
        return True
    return False


def run_and_die(config: Config, action: Action, number: int) -> str | None:
    """Fork, run *action* and die at moment *number*; answer with that moment, or None when the action came to its end."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)

        def report_and_die(item: KernelObject) -> None:
            os.write(writing, stop.moments[-1].encode())
            _die(item)

        stop = Stop(number, report_and_die)
        with Controller(config, watcher=Unwatched(), observer=stop) as controller:
            action(controller)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        moment = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return moment
    assert status == 0
    return None
