"""A model checker: every order of the steps of two verbs, and the death of a verb before any step, on a host in memory.

The core itself runs, its store included; the kernel is a dict (:mod:`tests.model`). In every state that an order leads to
the rules of :mod:`netlib.core.phases` hold; what recovery leaves after the end of each order is whole, and so is what a boot
leaves. ``pytest tests/unit/test_model.py -o log_cli=true -o log_cli_level=INFO`` tells how much was tried.
"""

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import pytest

from netlib.core import phases, recovery
from netlib.core.attachments import Attachments
from netlib.core.engine import Engine
from netlib.core.lifecycle import Lifecycle
from netlib.core.pending_attachment import AttachmentKey, Wanted
from netlib.core.phases import ARROWS, Found, what_happens
from netlib.core.preparing import Prepared
from netlib.core.recovery import RESET_LOCK
from netlib.errors import AlreadyExists, InUse, KernelError, NetlibError, NotFound, TeardownError
from netlib.kernel.handle import Kernel
from netlib.model import NetnsRef, Network, Phase
from netlib.plan import KernelObject, Key, Plan
from netlib.store.kinds import kind_called
from netlib.store.locks import record_lock
from netlib.store.objects import decode_object
from netlib.store.records import Row, Transaction
from tests.model import ModelController, ModelDriver, ModelLocks, Verb, Verbs, modelled
from tests.model_kernel import ModelLink, ModelSwitch, World
from tests.schedules import Exploration

_log = logging.getLogger(__name__)
pytestmark = pytest.mark.timeout(300)  # seconds, where many tests run at once; alone, 8 is the most that one takes


class Scene(NamedTuple):
    """What was done before, and the verbs that are at work at once."""

    before: tuple[Verb, ...]
    verbs: tuple[Verb, ...]
    refusals: tuple[type[NetlibError], ...] = ()  # by which a verb may end
    deaths: int = 1  # of a verb, at most
    failures: int = 0  # of the kernel to make a thing, at most
    orders: int = 1  # that are tried at least
    is_disturbed: bool = False  # a verb is what is left of one that died


# --- verbs -------------------------------------------------------------------------------------------------------------


def create(name: str, bridge: str = "", *, driver: str = "model") -> Verb:
    options = {"bridge": bridge} if bridge else {}
    return lambda controller: controller.create_network(name, driver=driver, options=options)


def remove(name: str) -> Verb:
    return lambda controller: controller.remove_network(name)


def box(name: str = "box") -> Verb:
    return lambda controller: controller.create_sandbox(name)


def remove_box(name: str = "box") -> Verb:
    return lambda controller: controller.remove_sandbox(name)


def connect(network: str, sandbox: str = "box") -> Verb:
    return lambda controller: controller.connect(network, sandbox)


def disconnect(network: str, sandbox: str = "box") -> Verb:
    return lambda controller: controller.disconnect(network, sandbox)


def recover(controller: ModelController) -> None:
    controller.recover()


def reset(controller: ModelController) -> None:
    controller.reset()


def recovered_reset(controller: ModelController) -> None:
    """Write what a reset writes first and dies of, and have that recovered."""
    with controller.store.write() as tx:
        for row in tx.all(Network):
            tx.set_phase(row.id, Phase.REMOVING)
    controller.recover()


def unapplied(name: str) -> Verb:
    """Make a network as the predefined ones are before their first use."""

    def verb(controller: ModelController) -> None:
        network = controller.create_network(name, driver="model")
        World.last.kernel.clear()
        with controller.store.write() as tx:
            tx.write_objects(network.id, ())
            tx.stamp(network.id, "")

    return verb


def use(name: str) -> Verb:
    """Have a network applied, as a connect does first."""

    def verb(controller: ModelController) -> None:
        with controller.store.read() as tx:
            row = controller.find_network(tx, name)
        with controller.engine.kernel(row.id) as kernel:
            controller.lifecycle.materialise(kernel, row)

    return verb


def add(container: str) -> Verb:
    """CNI's ADD: a link on a bridge that the attachments of one network share."""
    own = Plan(ModelLink(name=f"port-{container}", on=("cni",)))
    shared = Plan(ModelLink(name="cni"))

    def verb(controller: ModelController) -> None:
        netns = NetnsRef(f"/{container}", f"boot1:{container}")
        with Attachments(controller).pending(_key(container), netns) as pending:
            pending.apply(lambda tx: Wanted(own, shared))
            pending.finish({})

    return verb


def delete(container: str) -> Verb:
    return lambda controller: Attachments(controller).delete(_key(container))


def prune(controller: ModelController) -> None:
    Attachments(controller).prune()


def _key(container: str) -> AttachmentKey:
    return AttachmentKey("net", container, "eth0", "model")


# --- what must hold ----------------------------------------------------------------------------------------------------

_decoded = lru_cache(maxsize=None)(decode_object)


class Record(NamedTuple):
    """What the store says of a record."""

    id: str
    kind: str
    phase: Phase
    boot: str
    network: str
    sandbox: str

    @property
    def lock(self) -> str:
        return record_lock(self.sandbox if kind_called(self.kind).locked_by_sandbox else self.id)

    @property
    def outlives_boot(self) -> bool:
        return kind_called(self.kind).outlives_boot


class Sight:
    """A world, looked at once."""

    def __init__(self, world: World) -> None:
        self.world = world
        columns = "id, kind, phase, boot, coalesce(network, ''), coalesce(sandbox, '')"
        rows = world.rows(f"SELECT {columns} FROM record ORDER BY id")
        self.records = [Record(record, kind, Phase(phase), *rest) for record, kind, phase, *rest in rows]
        self.objects: dict[str, list[KernelObject]] = defaultdict(list)
        for record, key, body in world.rows("SELECT record, key, body FROM object ORDER BY record, seq"):
            self.objects[record].append(_decoded(body, key))

    @property
    def taken(self) -> set[str]:
        """The records for which something outside is, or is about to be, taken."""
        return {record for record, items in self.objects.items() if any(isinstance(item, Prepared) for item in items)}

    def is_used(self, record: Record) -> bool:
        """Whether somebody is in a network, or in a sandbox, or is joining it."""
        return any(user.phase is not Phase.REMOVING for user in self.records if record.id in (user.network, user.sandbox))

    def is_joined(self, record: Record) -> bool:
        """Whether an endpoint that is being made, or removed, is in a sandbox: then its plan is not what it has yet."""
        return any(user.phase is not Phase.READY for user in self.records if user.sandbox == record.id)

    def faults(self, *, is_disturbed: bool) -> Iterator[str]:
        """What must not be, at any time; *is_disturbed* says that a verb died, or left something."""
        written = {str(item.key) for items in self.objects.values() for item in items}
        yield from (f"{key} is applied, and written down nowhere" for key in self.world.kernel.keys() - written)
        yield from (f"what {record[:8]} took outside is written down nowhere" for record in self.world.outside - self.taken)
        for record in self.records:
            is_worked_on = record.lock in self.world.locks
            found = Found.WORKED_ON if is_worked_on else Found.ABANDONED
            for case in (found, Found.AFTER_BOOT, Found.ASKED_FOR, Found.TO_GO, Found.TO_BE_MADE):
                what_happens(record.phase, case, outlives_boot=record.outlives_boot, is_used=self.is_used(record))
            is_being_reset = record.outlives_boot and RESET_LOCK in self.world.locks
            if record.phase is not Phase.READY and not is_worked_on and not is_being_reset and not is_disturbed:
                yield f"{record.kind} {record.id[:8]} is in {record.phase}, and nobody works on it"
            if record.phase is Phase.READY and not is_worked_on and not self.is_joined(record):
                yield from self.missing(record)

    def missing(self, record: Record) -> Iterator[str]:
        """What a record that is ready, and applied, should have in the kernel."""
        if record.boot != self.world.boot:
            what_happens(record.phase, Found.UNAPPLIED, outlives_boot=record.outlives_boot)
            return
        for item in self.objects[record.id]:
            if not isinstance(item, Prepared) and str(item.key) not in self.world.kernel:
                yield f"{record.kind} {record.id[:8]} is ready, and {item.key} is missing"

    def faults_at_rest(self) -> Iterator[str]:
        """What must not be after a recovery, when nobody is at work."""
        if self.world.outside != self.taken:
            yield f"{self.world.outside} have taken something outside, and for {self.taken} it is written"
        for record in self.records:
            if record.phase is not Phase.READY:
                yield f"{record.kind} {record.id[:8]} is still in {record.phase}"
            yield from self.missing(record)
        wanted: dict[str, Any] = {str(item.key): item for items in self.objects.values() for item in items}
        for key, thing in self.world.kernel.items():
            if key not in wanted:
                yield f"{key} is left"
            elif wanted[key].thing != thing:
                yield f"{key} is another one"
        switches = [item for item in wanted.values() if isinstance(item, ModelSwitch)]
        yield from (f"{item.key} will be left {item.before}" for item in switches if item.before != "0")
        yield from self._faults_of_leases()

    def _faults_of_leases(self) -> Iterator[str]:
        ids = {record.id for record in self.records}
        networks = {network for (network,) in self.world.rows("SELECT network FROM pool WHERE network<>''")}
        yield from (f"a pool of {network[:8]} is left" for network in networks - ids)
        owners = [owner for (owner,) in self.world.rows("SELECT owner FROM lease WHERE owner<>'gateway'")]
        members = [record.id for record in self.records if record.kind == "endpoint"]
        if sorted(owners) != members:
            yield f"addresses are leased to {owners}, and the endpoints are {members}"


class Fault(AssertionError):
    """A state that must not be, with the order that leads there."""

    def __init__(self, run: Verbs, faults: list[str]) -> None:
        records = [f"  {row}" for row in run.world.rows("SELECT substr(id, 1, 8), kind, name, phase FROM record")]
        ends = [f"  {process.number}: {process.error!r}" for process in run.processes]
        super().__init__("\n".join([*faults, "after", *run.order, "with", *records, "and ends", *ends]))


class Checker:
    """Looks at every state of a scene."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        world = World()
        controller = ModelController(world)
        with controller.store.read():  # makes its tables
            pass
        for verb in scene.before:
            verb(controller)
        self._beginning = world.image(), world.kernel, world.outside
        self.exploration = Exploration(self._begin)

    def _begin(self) -> Verbs:
        scene = self.scene
        return Verbs(World(*self._beginning), scene.verbs, deaths=scene.deaths, failures=scene.failures)

    def check(self) -> None:
        """Raise Fault at the first state that must not be."""
        for run in self.exploration.states():
            assert isinstance(run, Verbs)
            ends = [process.is_dying or isinstance(process.error, TeardownError) for process in run.processes]
            faults = [*Sight(run.world).faults(is_disturbed=self.scene.is_disturbed or any(ends))]
            faults += [f"{process.number} waits for ever to {process.next}" for process in run.stuck()]
            if not run.choices():
                faults += self._faults_at_end(run)
            if faults:
                raise Fault(run, faults)

    def _faults_at_end(self, run: Verbs) -> Iterator[str]:
        for process in run.processes:
            if process.error is not None and not isinstance(process.error, self.scene.refusals):
                yield f"{process.number} ends by {process.error!r}"
        yield from (f"{name} is still held" for name in run.world.locks)
        image, outside = run.world.image(), run.world.outside.copy()
        yield from (f"recovery fails: {error}" for error in ModelController(run.world).recover())
        yield from (f"recovered: {fault}" for fault in Sight(run.world).faults_at_rest())
        world = World(image, outside=outside, boot="boot2")
        controller = ModelController(world)
        recovery.forget_former_boot(controller.store, controller.config)
        controller.recover()
        yield from (f"after a boot: {fault}" for fault in Sight(world).faults_at_rest())
        world.close()


# --- the scenes --------------------------------------------------------------------------------------------------------

SCENES = {
    "create and create, one bridge": Scene((), (create("a", "br"), create("b", "br")), orders=50_000),
    "create and remove, one bridge": Scene((create("a", "br"),), (create("b", "br"), remove("a")), orders=1_000_000),
    "create and remove, one switch": Scene((create("a"),), (create("b"), remove("a")), orders=2_000_000),
    "create and create, one name": Scene((), (create("a"), create("a")), (AlreadyExists,), orders=5_000),
    "create, asking the world, and recover": Scene((), (create("a", driver="asking"), recover), deaths=2, orders=500),
    "remove and remove, one bridge": Scene(
        (create("a", "br"), create("b", "br")), (remove("a"), remove("b")), orders=30_000_000
    ),
    "remove and remove, one name": Scene((create("a"),), (remove("a"), remove("a")), (NotFound,), orders=20_000),
    "remove and recover": Scene((create("a", driver="asking"),), (remove("a"), recover), deaths=2, orders=500),
    "first use and first use": Scene((unapplied("a"),), (use("a"), use("a")), deaths=2, orders=1_000),
    "first use and remove": Scene((unapplied("a"),), (use("a"), remove("a")), (NotFound,), deaths=2, orders=10_000),
    "first use that may fail and remove, one switch": Scene(
        (unapplied("a"), create("b")), (use("a"), remove("b")), (KernelError,), deaths=0, failures=1, orders=15_000_000
    ),
    "make and make, one name": Scene((), (box(), box()), (AlreadyExists,), deaths=2, orders=1_000),
    "make and remove": Scene((box(),), (box(), remove_box()), (AlreadyExists, NotFound), deaths=2, orders=4_000),
    "remove a sandbox twice": Scene(
        (create("a"), box(), connect("a")), (remove_box(), remove_box()), (NotFound,), orders=20_000
    ),
    "connect and remove the network": Scene(
        (create("a"), box()), (connect("a"), remove("a")), (NotFound, InUse), orders=200_000
    ),
    "connect and remove the sandbox": Scene((create("a"), box()), (connect("a"), remove_box()), (NotFound,), orders=5_000),
    "connect, asking the world, and remove the sandbox": Scene(
        (create("a", driver="asking"), box()), (connect("a"), remove_box()), (NotFound,), orders=15_000
    ),
    "connect two sandboxes": Scene((create("a"), box(), box("two")), (connect("a"), connect("a", "two")), orders=10_000_000),
    "connect to two networks": Scene((create("a"), create("b"), box()), (connect("a"), connect("b")), deaths=2, orders=40_000),
    "connect twice to one network": Scene((create("a"), box()), (connect("a"), connect("a")), (AlreadyExists,), orders=5_000),
    "connect and recover": Scene((create("a"), box()), (connect("a"), recover), deaths=2, orders=700),
    "connect and disconnect": Scene(
        (create("a"), create("b"), box(), connect("b")), (connect("a"), disconnect("b")), deaths=2, orders=80_000
    ),
    "disconnect twice": Scene(
        (create("a"), box(), connect("a")), (disconnect("a"), disconnect("a")), (NotFound,), orders=15_000
    ),
    "disconnect and remove the sandbox": Scene(
        (create("a"), box(), connect("a")), (disconnect("a"), remove_box()), (NotFound,), orders=20_000
    ),
    "remove the sandbox and the network": Scene(
        (create("a"), box(), connect("a")), (remove_box(), remove("a")), (InUse,), orders=3_000_000
    ),
    "reset and connect": Scene((create("a"), box()), (reset, connect("a")), (NotFound,), orders=6_000_000),
    "connect, and recover a reset": Scene(
        (create("a"), box()), (connect("a"), recovered_reset), (NotFound,), orders=100_000, is_disturbed=True
    ),
    "ADD and ADD": Scene((), (add("one"), add("two")), orders=300_000_000),
    "ADD and DEL of one container": Scene((), (add("one"), delete("one")), orders=40),
    "ADD and DEL of another": Scene((add("one"),), (delete("one"), add("two")), orders=900_000),
    "ADD and prune": Scene((add("one"), delete("one")), (add("two"), prune), orders=500_000),
    "DEL and prune": Scene((add("one"),), (delete("one"), prune), orders=30_000),
}


@pytest.fixture(autouse=True)
def model() -> Iterator[None]:
    """Stay on one processor: threads that wait for each other take turns three times as fast."""
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(processors)[os.getpid() % len(processors)]})
    try:
        with modelled():
            yield
    finally:
        os.sched_setaffinity(0, processors)


@pytest.mark.parametrize("name", SCENES)
def test_no_order_leads_to_a_state_that_must_not_be(name: str) -> None:
    scene = SCENES[name]
    checker = Checker(scene)
    checker.check()
    explored = checker.exploration
    _log.info("%s: %d orders, by %d states, in %d runs", name, explored.orders(), len(explored), explored.runs)
    assert explored.orders() >= scene.orders


# --- that the checker sees a mistake -----------------------------------------------------------------------------------


def _applies_first(
    lifecycle: Lifecycle, kernel: Kernel, network_id: str, draft: Callable[[Transaction], Network], *_: Any, **__: Any
) -> Network:
    """A wrong ``Lifecycle.create_network``: the kernel first, the record second."""
    with lifecycle.store.rehearsal() as tx:
        plan = ModelDriver().network_plan(draft(tx))
    lifecycle.engine.ensure(kernel, network_id, plan)
    with lifecycle.store.write() as tx:
        network = draft(tx)
        tx.insert(network, name=network.name, phase=Phase.READY)
        tx.write_objects(network_id, plan)
    return network


def _unlocked(*_: Any, **__: Any) -> Any:
    return nullcontext(True)


def _all_free(engine: Engine, records: Collection[str], items: Iterable[KernelObject]) -> set[Key]:
    return {item.key for item in items}


def _given_up(tx: Transaction, row: Row[Any]) -> None:
    tx.delete(row.id)


def _unsorted(lifecycle: Lifecycle, records: Iterable[str], purpose: str) -> Any:
    """A wrong ``Lifecycle.working_on``: it takes the locks in the order that they are named in."""
    stack = ExitStack()
    for record in records:
        stack.enter_context(lifecycle.engine.locks.hold(record_lock(record), purpose))
    return stack


def _remove_boxes(*names: str) -> Verb:
    return lambda controller: controller.remove_sandboxes(names)


class Mistake(NamedTuple):
    """A wrong part in the place of a right one, a scene in which that does harm, and what the checker says."""

    target: Any
    name: str
    wrong: Any
    scene: Scene
    fault: str


MISTAKES = {
    "a shared object goes without a look for other holders": Mistake(
        Engine, "_free", _all_free, SCENES["remove and remove, one bridge"], "is ready, and link/host/br is missing"
    ),
    "shared objects change without a lock": Mistake(
        Engine,
        "_locked",
        _unlocked,
        SCENES["remove and remove, one bridge"],
        "link/host/br is applied, and written down nowhere",
    ),
    "the kernel comes first, the record second": Mistake(
        Lifecycle,
        "create_network",
        _applies_first,
        SCENES["create and create, one name"],
        "is applied, and written down nowhere",
    ),
    "nobody locks what he works on": Mistake(
        Lifecycle, "working_on", _unlocked, SCENES["remove and recover"], "is in removing, and nobody works on it"
    ),
    "recovery takes what is worked on": Mistake(
        ModelLocks, "attempt", _unlocked, SCENES["connect and recover"], "endpoint .* is in removing, and nobody works on it"
    ),
    "what was leased is not given back": Mistake(
        Lifecycle, "forget", staticmethod(_given_up), SCENES["remove and recover"], "a pool of .* is left"
    ),
    "locks are taken in any order": Mistake(
        Lifecycle,
        "working_on",
        _unsorted,
        Scene((box(), box("two")), (_remove_boxes("box", "two"), _remove_boxes("two", "box")), (NotFound,)),
        "waits for ever to take record:",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_checker_sees(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake = MISTAKES[name]
    checker = Checker(mistake.scene)
    monkeypatch.setattr(mistake.target, mistake.name, mistake.wrong)
    with pytest.raises(Fault, match=mistake.fault):
        checker.check()


def test_the_checker_sees_a_case_that_the_table_does_not_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(phases._ACTIONS, (Phase.REMOVING, Found.ABANDONED, True, False))
    with pytest.raises(KeyError, match="ABANDONED"):
        Checker(SCENES["remove and recover"]).check()


def test_the_checker_sees_a_way_that_the_picture_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARROWS, Phase.CREATING, {Phase.READY})
    with pytest.raises(AssertionError, match="is taken from creating to removing by the last of"):
        Checker(SCENES["connect and recover"]).check()
