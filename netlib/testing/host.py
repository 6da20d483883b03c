"""A test host whose whole state is compared: a verb that failed, was killed or was undone must leave nothing.

Compared are links, addresses, routes, rules, the firewall's ruleset, sysctls, netns files, our folders, and the store's
records, objects, leases, free ranges and ports.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.errors import KernelError, NetlibError
from netlib.plan import KernelObject
from netlib.store.sqlite import Store
from netlib.testing.snapshot import differences, snapshot

__all__ = ["Action", "Outside", "Stop", "TestedHost", "fail", "in_test_host"]

Action = Callable[[Controller], object]
Outside = Callable[[], object]
"""What the world outside of the host holds, by a driver's doing: anything that can be compared."""

_TABLES = {
    "record": "SELECT id, kind, name, phase, network, sandbox FROM record ORDER BY id",
    "object": "SELECT record, key, body FROM object ORDER BY record, key",
    "pool": "SELECT network, subnet FROM pool ORDER BY network, subnet",  # not its cursor: addresses rest before reuse
    "free_range": "SELECT pool, first, last FROM free_range ORDER BY pool, last",
    "lease": "SELECT pool, address, owner FROM lease ORDER BY pool, address",
    "port": "SELECT protocol, number, host_ip, owner FROM port ORDER BY protocol, number, host_ip",
}
_FOLDERS = ("/run/netns", "/etc/netns")


def in_test_host() -> bool:
    """Whether this process is in a test host, as ``python -m netlib.testing`` makes it: network, mounts and /etc of its own."""
    return os.environ.get("NETLIB_TESTHOST") == os.readlink("/proc/self/ns/net")


def fail(item: KernelObject) -> None:
    """Fail, as the kernel might, at *item*."""
    raise KernelError(f"injected at {item.key}")


def _die(item: KernelObject) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Stop:
    """An observer that calls *act* at the *moment*-th notification; with *only*, other notifications do not count."""

    def __init__(self, moment: int, act: Callable[[KernelObject], None], only: tuple[str, ...] = ()) -> None:
        self.moments: list[str] = []
        self._moment, self._act, self._only = moment, act, only

    def __call__(self, moment: str, item: KernelObject) -> None:
        if self._only and moment not in self._only:
            return
        self.moments.append(f"{moment} {item.key}")
        if len(self.moments) - 1 == self._moment:
            self._act(item)


class TestedHost:
    """One host: its folders, and what it is compared by."""

    __test__ = False  # for pytest: no class of tests

    def __init__(self, config: Config, outside: Outside = lambda: None) -> None:
        self.config = config
        self._outside = outside

    def controller(self, observer: Callable[[str, KernelObject], None] | None = None) -> Controller:
        """A controller of this host, without a netlibd."""
        return Controller(self.config, watcher=Unwatched(), observer=observer)

    def state(self) -> dict[str, Any]:
        """Return everything that is compared; no controller is opened, because it would run recovery."""
        store = Store(self.config.state_dir, boot="")
        with store.read() as tx:
            rows = {table: tx.db.execute(query).fetchall() for table, query in _TABLES.items()}
        store.close()
        tops = (*_FOLDERS, str(self.config.sandbox_dir), str(self.config.lock_dir))
        files = sorted(str(path) for top in tops for path in Path(top).rglob("*"))
        return {"kernel": snapshot(), "rows": rows, "files": files, "outside": self._outside()}

    def assert_same(self, before: dict[str, Any], when: str) -> None:
        """Compare with what :meth:`state` said *before*, whole, or with what was left in it."""
        after = self.state()
        found = differences(before["kernel"], after["kernel"])
        assert not found, f"{when}: {found}"
        for table, rows in before.get("rows", {}).items():
            assert after["rows"][table] == rows, f"{when}: table {table}: {rows} became {after['rows'][table]}"
        assert after["files"] == before["files"], f"{when}: {sorted({*after['files']} ^ {*before['files']})}"
        assert after["outside"] == before["outside"], f"{when}: outside of the host"

    def perform(self, steps: Iterable[Action]) -> None:
        """Run *steps* without a failure."""
        with self.controller() as controller:
            for step in steps:
                step(controller)

    def fails(self, action: Action, stop: Stop) -> bool:
        """Whether *action* ends by the failure that *stop* injects; any other is raised."""
        with self.controller(stop) as controller:
            try:
                action(controller)
            except NetlibError as error:
                if "injected" not in str(error):
                    raise
                return True
        return False

    def dies(self, action: Action, number: int) -> str | None:
        """Run *action* in a process that dies at moment *number*; return that moment, or None when it came to its end."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)

            def report_and_die(item: KernelObject) -> None:
                os.write(writing, stop.moments[-1].encode())
                _die(item)

            stop, status = Stop(number, report_and_die), 1
            try:
                with self.controller(stop) as controller:
                    action(controller)
                status = 0
            except NetlibError as error:
                print(f"{stop.moments[-1:]}: {error}", file=sys.stderr)
            finally:
                os._exit(status)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            moment = pipe.read()
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            return moment
        assert status == 0, f"the action ended with status {status}"
        return None

    # --- the three ways in which something can go wrong ---------------------------------------------------------------

    def assert_failures_leave_nothing(self, first: Iterable[Action], action: Action) -> int:
        """*action* fails at each object in turn, and at each question to the world; return how many there are."""
        self.perform(first)
        before, number = self.state(), 0
        while self.fails(action, stop := Stop(number, fail, ("ensure", "ask", "noted"))):
            self.assert_same(before, f"failed at {stop.moments[-1]}")
            number += 1
        assert number == len(stop.moments), "every moment was one at which it failed"
        return number

    def assert_deaths_are_undone(self, first: Iterable[Action], action: Action) -> int:
        """The process that makes something dies before and after each object; the next one undoes it. Return their number."""
        self.perform(first)
        before, number = self.state(), 0
        while (moment := self.dies(action, number)) is not None:
            self.perform([Controller.recover])
            self.assert_same(before, f"died at {moment}")
            number += 1
        return number

    def assert_deaths_are_finished(self, first: Iterable[Action], made: Iterable[Action], action: Action) -> int:
        """The process that removes what was *made* dies before and after each object; the next one finishes that."""
        self.perform(first)
        made = tuple(made)
        base, number = self.state(), 0
        self.perform(made)
        while (moment := self.dies(action, number)) is not None:
            self.perform([Controller.recover])
            self.assert_same(base, f"died at {moment}")
            self.perform(made)
            number += 1
        self.assert_same(base, "the removal that nobody disturbed")
        return number
