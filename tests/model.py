"""A host in memory: the core, its store and its drivers' contract as they are, over a kernel that is a dict.

What a verb does to the store, to a lock or to the kernel is a step of it (:mod:`tests.schedules`): between two steps it touches
nothing that another verb could see. The test itself, which is no process, runs without pausing at steps.
"""

import sqlite3
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import Struct

from netlib import facts, objects, registry
from netlib.config import Config
from netlib.core import attachments, endpoints, engine, networks, pending_attachment, recovery, sandboxes
from netlib.core.controller import Controller, Unwatched
from netlib.core.engine import Engine
from netlib.core.lifecycle import Lifecycle
from netlib.core.network_record import HostState
from netlib.core.phases import ARROWS
from netlib.driverapi import NoOptions
from netlib.kernel.handle import Kernel
from netlib.model import Endpoint, Event, NetnsRef, Network, Sandbox, Scope
from netlib.plan import Plan
from netlib.settings import Settings
from netlib.store import records
from netlib.store.locks import Locks
from netlib.store.records import Row, Transaction
from netlib.store.sqlite import Store
from tests.model_kernel import NETNS_DIR, NOWHERE, ModelKernel, ModelLink, ModelNetns, ModelSwitch, ModelThing, World, here
from tests.schedules import Choice, Process, Run, Way

__all__ = ["ModelController", "ModelDriver", "ModelLocks", "Verb", "Verbs", "modelled"]

Verb = Callable[["ModelController"], object]

_READ, _WRITE = "read the store", "write the store"


class Verbs(Run):
    """Several verbs at work in one world, each in a process."""

    def __init__(self, world: World, verbs: Sequence[Verb], *, deaths: int = 0, failures: int = 0) -> None:
        """Bring each verb to its first step; at most *deaths* may die and *failures* kernel calls may fail."""
        self.world = world
        self.order: list[str] = []
        self._phases = world.phases()
        self._seen: Hashable = None  # the world, as it is since the last step
        self.processes = [Process(number, partial(_perform, world, verb)) for number, verb in enumerate(verbs, 1)]
        self._deaths, self._failures = deaths, failures
        for process in self.processes:
            process.start()

    def choices(self) -> list[Choice]:
        waiting = [process for process in self.processes if process.next]
        able = [Choice(process.number) for process in waiting if process.waits_for not in self.world.locks]
        dying = [Choice(process.number, Way.DIES) for process in waiting if self._deaths]
        failing = [process for process in waiting if self._failures and process.next.startswith("ensure ")]
        return [*able, *dying, *(Choice(process.number, Way.FAILS) for process in failing)]

    def stuck(self) -> list[Process]:
        """The processes that wait for locks, where none can go on."""
        waiting = [process for process in self.processes if process.next]
        return waiting if all(process.waits_for in self.world.locks for process in waiting) else []

    def take(self, choice: Choice) -> None:
        process = self.processes[choice.process - 1]
        step, self._seen = process.next, None
        assert step, f"after {self.order} the verbs do not what they did before"
        self.order.append(f"{process.number}: {step if choice.way is Way.GOES_ON else f'{choice.way.value} {step}'}")
        if choice.way is Way.DIES:
            self._deaths -= 1
            process.die()
            return
        self._failures -= choice.way is Way.FAILS
        process.let_on(fails=choice.way is Way.FAILS)
        if step == _WRITE:
            self._check_moves()

    def _check_moves(self) -> None:
        """See that the last step took each record along an arrow of the picture, if anywhere."""
        before, self._phases = self._phases, self.world.phases()
        for record in {*before, *self._phases}:
            old, new = before.get(record), self._phases.get(record)
            assert old is new or new in ARROWS[old], f"{record[:8]} is taken from {old} to {new} by the last of {self.order}"

    @property
    def state(self) -> Hashable:
        return self._state()

    def foreseen(self, choice: Choice) -> Hashable:
        return self._state(self.processes[choice.process - 1]) if choice.way is Way.DIES else None

    def _state(self, dead: Process | None = None) -> Hashable:
        """All that there is, and would be if *dead* were so."""
        locks = ((name, holder.number) for name, holder in self.world.locks.items() if holder not in (None, dead))
        verbs = tuple(_DEAD if process is dead else process.state for process in self.processes)
        if self._seen is None:
            self._seen = self.world.state
        return self._deaths - (dead is not None), self._failures, verbs, tuple(sorted(locks)), self._seen

    def stop(self) -> None:
        for process in self.processes:
            process.die()
            process.join()
        self.world.close()


_DEAD = ("", repr(None))


def _perform(world: World, verb: Verb) -> None:
    verb(ModelController(world))


# --- what verbs ask for ------------------------------------------------------------------------------------------------

FORWARD = ModelSwitch(name="forward")
PROXY = ModelSwitch(name="proxy")


class _NetworkOptions(Struct, frozen=True):
    bridge: str = ""


class ModelDriver:
    """A bridge and a gateway on it, with a switch that all such networks need; or on a common bridge, that the options name."""

    name = "model"
    scope = Scope.LOCAL
    network_options = _NetworkOptions
    endpoint_options = NoOptions

    def network_plan(self, network: Network) -> Plan:
        bridge = _bridge(network)
        gateway = ModelThing(name=f"gateway-{network.name}", on=(bridge,))
        if network.options:
            return Plan(ModelLink(name=bridge, is_common=True), gateway)
        return Plan(ModelLink(name=bridge), gateway, FORWARD)

    def join_plan(self, network: Network, endpoint: Endpoint, sandbox: Sandbox) -> Plan:
        port = _port(endpoint)
        return Plan(ModelLink(name=port), ModelThing(name=f"member-{port}", on=(_bridge(network), port)))


class AskingDriver(ModelDriver):
    """The same, which takes something outside the host for each record."""

    name = "asking"

    def prepare(self, asked: Any, world: facts.World) -> facts.Facts:
        assert isinstance(world.kernel, ModelKernel)
        taken = {"taken": asked.record}
        world.note(taken)
        world.kernel.world.pause("take something outside")
        world.kernel.world.outside.add(asked.record)
        return taken

    def release(self, record: str, facts: Mapping[str, Any], kernel: Kernel) -> None:
        assert isinstance(kernel, ModelKernel)
        kernel.world.pause("give back what is outside")
        kernel.world.outside.discard(record)


def _bridge(network: Network) -> str:
    return network.options.get("bridge", f"br-{network.name}")


def _port(endpoint: Endpoint) -> str:
    return f"port-{endpoint.id[:8]}"


def _inside_plan(endpoint: Endpoint, netns: NetnsRef) -> Plan:
    return Plan(ModelThing(name=f"address-{endpoint.ifname}", on=(_port(endpoint),), netns=netns), PROXY)


class ModelStore(Store):
    """The store in memory, each transaction a step. No two are open at once, so one connection serves all processes."""

    def __init__(self, world: World) -> None:
        super().__init__(NOWHERE, boot=world.boot)
        self._world = world

    @property
    def is_read_only(self) -> bool:
        return False

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        self._world.pause(_READ)
        with super().read() as tx:
            yield tx

    @contextmanager
    def write(self, *, clearing: bool = False) -> Iterator[Transaction]:
        self._world.pause(_WRITE)
        with super().write() as tx:  # no reserve is to be spent on a disk
            yield tx

    def _open(self) -> sqlite3.Connection:
        self._local.seen = None
        if not self._world.rows("SELECT 1 FROM sqlite_schema"):
            self._migrate(self._world.database)
        return self._world.database


class ModelLocks(Locks):
    """Locks that end with their holder, as those of flock(2) do. Who waits for one cannot be let on."""

    def __init__(self, world: World) -> None:
        self._locks = world.locks
        self._world = world

    @contextmanager
    def hold(self, name: str, purpose: str, *, seconds: float = 0) -> Iterator[None]:
        self._world.pause(f"take {name}", name)
        assert name not in self._locks, f"{name} is held already"
        with self._held(name):
            yield

    @contextmanager
    def attempt(self, name: str, purpose: str) -> Iterator[bool]:
        self._world.pause(f"try {name}")
        is_free = name not in self._locks
        self._world.tell(is_free)
        if not is_free:
            yield False
            return
        with self._held(name):
            yield True

    def sweep(self) -> None:
        """Nothing: no files are left."""

    @contextmanager
    def _held(self, name: str) -> Iterator[None]:
        self._locks[name] = process = here()
        try:
            yield
        finally:
            try:
                if process is None or not process.is_dying:
                    self._world.pause(f"let go {name}")
            finally:
                del self._locks[name]


class ModelController(Controller):
    """The verbs as they are, without the journal and without anything of a real host."""

    def __init__(self, world: World) -> None:
        self.config = Config(NOWHERE, NOWHERE / "run")
        self.host: Any = SimpleNamespace(lost=None, settings=Settings(), require_settings=Settings)
        self.former_bridge = ""
        self.locks = ModelLocks(world)
        self.engine = Engine(ModelStore(world), self.locks, "model")
        self.lifecycle = Lifecycle(self.engine, self._plan_sandbox)
        self.watcher = Unwatched()
        self._finished: list[Row[Any]] = []

    @property
    def store(self) -> Store:
        return self.engine.store

    def follow_settings(self) -> None:
        """Do nothing: the model has no file of settings."""

    def prepare_networks(self) -> None:
        """Do nothing: the model has no predefined networks."""

    def require_settings(self) -> Settings:
        return Settings()

    @contextmanager
    def operation(self, verb: str, subject: str, *events: Event, is_recovered: bool = False) -> Iterator[Any]:
        if not is_recovered:
            self.recover()
        yield SimpleNamespace(finish=lambda tx: None)

    def publish(self, verb: str, subject: str, *events: Event) -> None:
        """Nothing: the model has no journal."""

    def _plan_sandbox(self, tx: Transaction, sandbox: Sandbox) -> Plan:
        """A netns, and a default route by the first of its networks."""
        ports = tuple(_port(endpoint) for _, endpoint in tx.memberships(sandbox.id))
        routes = [ModelThing(name="default", on=ports[:1], netns=sandbox.netns)] if ports else []
        return Plan(ModelNetns(name=sandbox.netns.path), *routes)


@contextmanager
def modelled() -> Iterator[None]:
    """Put the model in the place of the kernel, and what is by chance elsewhere in a place of its own."""
    with pytest.MonkeyPatch.context() as patch:
        for cls in (ModelThing, ModelLink, ModelNetns, ModelSwitch):
            patch.setitem(objects._OBJECTS, str(cls.__struct_config__.tag), f"tests.model_kernel:{cls.__name__}")
        for driver in (ModelDriver, AskingDriver):
            patch.setitem(registry._DRIVERS, driver.name, f"tests.model:{driver.__name__}")
        for module in (engine, recovery):
            patch.setattr(module, "Kernel", ModelKernel)
        for module in (networks, sandboxes, records, attachments):
            patch.setattr(module, "new_id", lambda: World.last.new_id())
        for module in (sandboxes, recovery):
            patch.setattr(module, "current_identity", lambda: f"{World.last.boot}:host")
        for module in (networks, sandboxes, endpoints, attachments, pending_attachment):
            patch.setattr(module, "time", SimpleNamespace(time=lambda: 0.0))
        patch.setattr(sandboxes, "random_dns_port", lambda: sandboxes.DNS_PORTS[0])
        patch.setattr(sandboxes, "netns_dir", lambda run_dir: NETNS_DIR)
        patch.setattr(networks, "read_host_state", lambda kernel, request, settings: HostState())
        patch.setattr(endpoints, "inside_plan", _inside_plan)
        yield
