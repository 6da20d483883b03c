"""The table of phases: every case has one row, and the core does what each row says."""

from collections import Counter
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import pytest

from netlib.core import endpoints, recovery
from netlib.core.phases import ABSENT, ARROWS, TABLE, Action, Found, is_there, what_happens
from netlib.core.preparing import Prepared
from netlib.errors import AlreadyExists, Conflict, InUse, NetlibError, NotFound
from netlib.model import Endpoint, Network, Phase, Sandbox
from netlib.plan import Plan
from netlib.store.locks import record_lock
from netlib.store.records import Row
from tests.model import ModelController, modelled
from tests.model_kernel import Thing, World

PHASES = (ABSENT, *Phase)


def named(*founds: Found) -> pytest.MarkDecorator:
    """Run a test for each case of the table that is found so, with what happens."""
    rules = [rule for rule in TABLE if rule.found in founds]
    cases = [Case(*case, rule.action) for rule in rules if rule.action is not None for case in rule.cases()]
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.text) for case in cases])


class Case(NamedTuple):
    """A case of the table, and what happens."""

    phase: Phase | None
    found: Found
    outlives_boot: bool
    is_used: bool
    action: Action

    @property
    def text(self) -> str:
        flags = ("outlives_boot", self.outlives_boot), ("used", self.is_used)
        return "-".join([self.phase or "absent", *(word for word, flag in flags if flag), self.action.name.lower()])


class Host:
    """A host with a network and a sandbox, of which one is the record that a case is about."""

    def __init__(self, case: Case) -> None:
        self.world = World()
        self.controller = ModelController(self.world)
        self.network = self.controller.create_network("net", driver="model")
        self.sandbox = self.controller.create_sandbox("box")
        if case.is_used:
            self.controller.connect("net", "box")
        self.subject: Network | Sandbox = self.network if case.outlives_boot else self.sandbox
        self.row = self.find(self.subject.id)
        self.set_phase(self.subject.id, case.phase)
        self.before = self.world.state

    def find(self, record: str) -> Row[Any] | None:
        with self.controller.store.read() as tx:
            return tx.by_id(record)

    def set_phase(self, record: str, phase: Phase | None) -> None:
        with self.controller.store.write() as tx:
            if phase is None:
                tx.delete(record)
            else:
                tx.set_phase(record, phase)

    @property
    def phase(self) -> Phase | None:
        row = self.find(self.subject.id)
        return row.phase if row is not None else None

    def assert_left_alone(self) -> None:
        assert self.world.state == self.before

    def assert_taken_down(self) -> None:
        assert self.phase is ABSENT
        name = "link/host/br-net" if self.subject is self.network else f"netns/host/{self.sandbox.netns.path}"
        assert name not in self.world.kernel
        assert self.world.rows(f"SELECT * FROM object WHERE record='{self.subject.id}'") == []
        if self.subject is self.network:
            assert self.world.rows("SELECT * FROM pool WHERE network<>''") == []


@pytest.fixture(autouse=True)
def model() -> Iterator[None]:
    with modelled():
        yield


# --- the table itself --------------------------------------------------------------------------------------------------


def test_every_case_has_one_row() -> None:
    counts = Counter(case for rule in TABLE for case in rule.cases())
    assert counts.keys() == set(product(PHASES, Found, (False, True), (False, True)))
    assert {case for case, count in counts.items() if count > 1} == set()


@pytest.mark.parametrize("rule", TABLE, ids=str)
def test_a_row_is_what_is_looked_up(rule: Any) -> None:
    for phase, found, outlives_boot, is_used in rule.cases():
        if rule.action is None:
            with pytest.raises(LookupError, match=f"no record in phase {phase} that is found {found.name}"):
                what_happens(phase, found, outlives_boot=outlives_boot, is_used=is_used)
        else:
            assert what_happens(phase, found, outlives_boot=outlives_boot, is_used=is_used) is rule.action


def test_every_action_happens() -> None:
    assert {rule.action for rule in TABLE} == {None, *Action}


def test_the_picture_has_every_phase_and_every_way_out() -> None:
    assert ARROWS.keys() == set(PHASES)
    assert {phase for followers in ARROWS.values() for phase in followers} == set(PHASES)
    assert [phase for phase in PHASES if is_there(phase)] == [Phase.READY]


# --- its rows, by what the core does -----------------------------------------------------------------------------------


@named(Found.WORKED_ON)
def test_recovery_passes_over_what_is_worked_on(case: Case) -> None:
    host = Host(case)
    with host.controller.lifecycle.working_on([host.subject.id], "working"):
        assert host.controller.recover() == []
    assert case.action is Action.LEAVE_ALONE
    host.assert_left_alone()


@named(Found.ABANDONED)
def test_recovery_settles_what_is_abandoned(case: Case) -> None:
    host = Host(case)
    with host.controller.locks.attempt(record_lock(host.subject.id), "recovering") as held:
        assert held
        failures: list[NetlibError] = []
        assert recovery._settle(host.controller.lifecycle, host.subject.id, failures, []) is case.action
        assert failures == []
    match case.action:
        case Action.TAKE_DOWN:
            host.assert_taken_down()
        case Action.CALL_READY:
            assert host.phase is Phase.READY
            assert "link/host/br-net" in host.world.kernel
        case _:
            assert case.action is Action.LEAVE_ALONE
            host.assert_left_alone()


@named(Found.BEING_RESET)
def test_recovery_leaves_networks_to_a_reset_that_is_at_work(case: Case) -> None:
    host = Host(case)
    with host.controller.locks.hold(recovery.RESET_LOCK, "resetting"):
        assert host.controller.recover() == []
    assert case.action is Action.LEAVE_ALONE
    host.assert_left_alone()
    assert host.controller.recover() == []
    assert host.phase is Phase.READY


@named(Found.AFTER_BOOT, Found.OWING_AFTER_BOOT)
def test_a_boot_is_the_end_of_what_does_not_outlive_it(case: Case) -> None:
    former = Host(case)
    lease = Prepared(side="driver", name="asking", record=former.subject.id, facts={})
    outside = Plan(lease) if case.found is Found.OWING_AFTER_BOOT else Plan()
    with former.controller.store.write() as tx:
        tx.write_objects(former.subject.id, tx.objects(former.subject.id) + outside)
    foreign = {"link/host/br-net": Thing()}  # somebody else's by now
    world = World(former.world.image(), foreign, boot="boot2")
    controller = ModelController(world)
    recovery.forget_former_boot(controller.store, controller.config)
    assert world.kernel == foreign
    with controller.store.read() as tx:
        row, plan = tx.by_id(former.subject.id), tx.objects(former.subject.id)
    if case.action is Action.FORGET:
        assert row is None
    else:
        left = {Action.FORGET_OBJECTS: (Phase.READY, "boot1"), Action.LEAVE_TO_RECOVERY: (Phase.REMOVING, "boot2")}
        assert row is not None
        assert (row.phase, row.boot) == left[case.action]
        assert plan == outside


@named(Found.ASKED_FOR)
def test_a_verb_goes_on_with_what_is_ready_alone(case: Case) -> None:
    host = Host(case)
    ask = host.controller.network if case.outlives_boot else host.controller.sandbox
    if case.action is Action.GO_ON:
        assert ask(host.subject.name) == host.subject
    else:
        assert case.action is Action.REFUSE
        with pytest.raises(NotFound, match="not found"):
            ask(host.subject.name)
    host.assert_left_alone()


@named(Found.UNAPPLIED)
def test_a_network_is_applied_at_its_first_use(case: Case) -> None:
    host = Host(case)
    row = host.row
    assert row is not None
    with host.controller.store.write() as tx:
        tx.write_objects(row.id, ())
        tx.stamp(row.id, "")
    host.world.kernel.clear()
    host.before = host.world.state
    with host.controller.engine.kernel(row.id) as kernel:
        host.controller.lifecycle.materialise(kernel, row._replace(boot=""))
    if case.action is Action.APPLY:
        assert "link/host/br-net" in host.world.kernel
        present = host.find(row.id)
        assert present is not None
        assert present.boot == "boot1"
    else:
        assert case.action is Action.LEAVE_ALONE
        host.assert_left_alone()


@named(Found.TO_GO)
def test_a_removal_asked_for_again_recovers_first(case: Case) -> None:
    host = Host(case)
    host.controller.finish_removal(type(host.subject), host.subject.name)
    if case.action is Action.GO_ON:
        host.assert_left_alone()
    else:
        assert case.action is Action.RECOVER_FIRST
        left = what_happens(case.phase, Found.ABANDONED, outlives_boot=case.outlives_boot, is_used=case.is_used)
        assert host.phase == (Phase.READY if left is Action.CALL_READY else ABSENT)


@pytest.mark.parametrize("phase", PHASES)
def test_a_sandbox_joins_a_network_once(phase: Phase | None) -> None:
    action = what_happens(phase, Found.TO_BE_MADE)
    host = Host(Case(Phase.READY, Found.TO_BE_MADE, outlives_boot=True, is_used=True, action=action))
    with host.controller.store.read() as tx:
        (endpoint,) = tx.all(Endpoint)
    host.set_phase(endpoint.id, phase)
    refusals: dict[Action, type[Conflict]] = {Action.REFUSE: AlreadyExists, Action.REFUSE_WHILE_IT_LEAVES: InUse}
    with host.controller.store.read() as tx:
        if action is Action.GO_ON:
            endpoints._check(tx, "f" * 64, host.network, host.sandbox)
        else:
            with pytest.raises(refusals[action]):
                endpoints._check(tx, "f" * 64, host.network, host.sandbox)
