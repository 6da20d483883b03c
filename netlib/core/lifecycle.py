"""The life of records: made with their objects, changed, taken down, each so that a crash anywhere can be finished or undone.

Every flow has the same three beats: one transaction writes down what is about to be true, the kernel follows, one transaction
says that it is true (or that it is gone). They are the arrows of the picture in :mod:`netlib.core.phases`.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any

from netlib.core.engine import Engine
from netlib.core.phases import Action, Found, is_there, what_happens
from netlib.core.port_handover import hand_over_attachment_ports, hand_over_endpoint_ports
from netlib.core.preparing import DriverQuestion, Prepared, ask_world
from netlib.errors import Conflict, NetlibError, ObjectMissing, PackageFailed, PackageMissing, StoreError, TeardownError
from netlib.firewall.objects import PublishedPort
from netlib.kernel.handle import Kernel
from netlib.model import CniAttachment, CniNetwork, Endpoint, Network, Phase, Sandbox
from netlib.plan import KernelObject, Key, Plan, plan_change
from netlib.registry import driver_of
from netlib.store.kinds import in_order_of_removal, kind_called
from netlib.store.locks import record_lock
from netlib.store.records import Row, Transaction

Finish = Callable[[Transaction], None]
"""Called in the transaction with which a record's verb is done: for the journal's line."""
SandboxPlanner = Callable[[Transaction, Sandbox], Plan]


def _nothing(tx: Transaction) -> None:
    pass


class Lifecycle:
    """Creates, materialises and takes down records through one engine."""

    def __init__(self, engine: Engine, plan_sandbox: SandboxPlanner) -> None:
        self.engine = engine
        self.store = engine.store
        self._plan_sandbox = plan_sandbox

    def working_on(self, records: Collection[str], purpose: str) -> AbstractContextManager[None]:
        """Hold the locks of *records* (ids), so that recovery leaves them alone and nobody else works on them."""
        if len(records) == 1:
            (record,) = records
            return self.engine.locks.hold(record_lock(record), purpose)
        return self._working_on_several(records, purpose)

    @contextmanager
    def _working_on_several(self, records: Collection[str], purpose: str) -> Iterator[None]:
        with ExitStack() as stack:
            for record in sorted(set(records)):
                stack.enter_context(self.engine.locks.hold(record_lock(record), purpose))
            yield

    def prepare(
        self,
        kernel: Kernel,
        record: Network | Endpoint,
        asked: Sequence[DriverQuestion],
        check: Callable[[Transaction], object],
    ) -> tuple[Prepared, ...]:
        """Write *record* in phase ``creating`` unless *check* raises, and ask its drivers for facts; its lock is held."""
        with self.store.write() as tx:
            check(tx)
            self._write(tx, record, (), was_prepared=False)
        with self._forget_on_failure(record.id):
            return tuple(ask_world(self.engine, kernel, record.id, asked))

    @staticmethod
    def _write(tx: Transaction, record: Network | Endpoint, objects: Iterable[KernelObject], *, was_prepared: bool) -> None:
        """Write *record* and its objects; replace what :meth:`prepare` has written of it, if anything."""
        if was_prepared:
            tx.replace(record)
            tx.write_objects(record.id, objects)
            return
        if isinstance(record, Network):
            name, network, sandbox = record.name, None, None
        else:
            name, network, sandbox = f"{record.network}/{record.sandbox}", record.network, record.sandbox
        tx.insert(record, name=name, network=network, sandbox=sandbox)
        tx.insert_objects(record.id, objects)

    def create_network(
        self,
        kernel: Kernel,
        network_id: str,
        draft: Callable[[Transaction], Network],
        prepared: Sequence[Prepared] = (),
        *,
        finish: Finish = _nothing,
    ) -> Network:
        """Write the network that *draft* returns, apply its plan, and set phase ``ready``.

        *prepared* is what :meth:`prepare` returned for it; it is released when anything fails.
        """
        with self._releasing_on_failure(kernel, network_id, prepared), self.store.write() as tx:
            network = draft(tx)
            wanted = driver_of(network).network_plan(network)
            self._refuse_links_of_others(tx, wanted)
            plan = Plan(*prepared, *self.engine.observed(tx, kernel, network_id, wanted))
            self._write(tx, network, plan, was_prepared=bool(prepared))
        with self._forget_on_failure(network_id):
            self.engine.ensure(kernel, network_id, plan)
        with self.store.write() as tx:
            tx.set_phase(network_id, Phase.READY)
            finish(tx)
        return network

    @contextmanager
    def _releasing_on_failure(self, kernel: Kernel, record: str, prepared: Sequence[Prepared]) -> Iterator[None]:
        """Release what drivers *prepared* for a record when the block fails, and delete the record."""
        if not prepared:
            yield
            return
        with self._forget_on_failure(record):
            try:
                yield
            except NetlibError as error:
                self.engine.undo(error, kernel, record, Plan(*prepared))
                raise

    def _refuse_links_of_others(self, tx: Transaction, plan: Plan) -> None:
        """Raise Conflict when *plan* has a link that belongs to a network whose objects are not applied yet.

        A network that its driver cannot plan (no package, a defect) concerns its own verbs only, and is passed over here.
        """
        links = {key for key in plan.keys if key.kind == "link"}
        for row in tx.all(Network):
            if self.is_materialised(row):
                continue
            with suppress(PackageMissing, PackageFailed):
                common = links.intersection(driver_of(row.value).network_plan(row.value).keys)
                if common:
                    raise Conflict(f"{next(iter(common))} belongs to network {row.name!r}; use another name")

    def materialise(self, kernel: Kernel, row: Row[Network]) -> None:
        """Apply the objects of a ready network if they were not applied in this boot: at its first use, and after a boot."""
        if self.is_materialised(row):
            return
        with self.working_on([row.id], f"setting up network {row.name}"):
            with self.store.write() as tx:
                present = tx.by_id(row.id)
                if present is None or self.is_materialised(present):
                    return
                if what_happens(present.phase, Found.UNAPPLIED, outlives_boot=True) is not Action.APPLY:
                    return
                wanted, own = driver_of(row.value).network_plan(row.value), tx.objects(row.id)
                prepared = own.of(Prepared)
                plan = self.engine.observed(tx, kernel, row.id, wanted, own=own)
                tx.write_objects(row.id, (*prepared, *plan))
            try:
                self.engine.ensure(kernel, row.id, plan)
            except TeardownError:
                raise
            except NetlibError:
                with self.store.write() as tx:
                    tx.write_objects(row.id, prepared)
                raise
            with self.store.write() as tx:
                tx.set_phase(row.id, Phase.READY)

    def create_sandbox(
        self, kernel: Kernel, sandbox: Sandbox, check: Callable[[Transaction], None], *, finish: Finish = _nothing
    ) -> Sandbox:
        """Write *sandbox* unless *check* raises, apply its plan, and set phase ``ready``."""
        with self.store.write() as tx:
            check(tx)
            tx.insert(sandbox, name=sandbox.name)
            plan = self.engine.observed(tx, kernel, sandbox.id, self._plan_sandbox(tx, sandbox))
            tx.write_objects(sandbox.id, plan)
        with self._forget_on_failure(sandbox.id):
            self.engine.ensure(kernel, sandbox.id, plan)
        with self.store.write() as tx:
            tx.set_phase(sandbox.id, Phase.READY)
            finish(tx)
        return sandbox

    def create_endpoint(
        self,
        kernel: Kernel,
        endpoint_id: str,
        sandbox: str,
        draft: Callable[[Transaction], tuple[Endpoint, Plan]],
        prepared: Sequence[Prepared] = (),
        *,
        finish: Finish = _nothing,
    ) -> Endpoint:
        """Write the endpoint that *draft* returns, apply its plan and the sandbox's new one; its lock is held.

        *prepared* is what :meth:`prepare` returned for it; it is released when anything fails.
        """
        with self._releasing_on_failure(kernel, endpoint_id, prepared), self.store.write() as tx:
            endpoint, plan = draft(tx)
            plan = self.engine.observed(tx, kernel, endpoint_id, plan)
            plan = Plan(*prepared, *plan) if prepared else plan
            self._write(tx, endpoint, plan, was_prepared=bool(prepared))
            tx.claim_ports(endpoint.ports, endpoint_id)
            tx.give_up_joining(sandbox, besides=endpoint_id)
            old, new = self._rewrite_sandbox(tx, kernel, sandbox)
        try:
            self.engine.ensure(kernel, endpoint_id, plan)
            try:
                with kernel.marking(self.engine.tag(sandbox)):
                    self.engine.update(kernel, sandbox, old, new)
            except NetlibError:
                self.engine.remove(kernel, [endpoint_id], plan)
                raise
        except TeardownError:
            with self.store.write() as tx:
                tx.set_phase(endpoint_id, Phase.REMOVING)
            raise
        except NetlibError as error:
            self._forget_undone(endpoint_id, error, {sandbox: old})
            raise
        with self.store.write() as tx:
            tx.set_phase(endpoint_id, Phase.READY)
            if not set(old.keys) <= set(new.keys):  # else what is written down is the new plan already
                tx.write_objects(sandbox, new)
            finish(tx)
        return endpoint

    def create_cni_network(self, kernel: Kernel, network: CniNetwork, shared: Plan) -> None:
        """Write *network* and the objects that its attachments share, apply them, set phase ``ready``; its lock is held."""
        with self.store.write() as tx:
            plan = self.engine.observed(tx, kernel, network.id, shared)
            tx.insert(network, name=network.name)
            tx.write_objects(network.id, plan)
        with self._forget_on_failure(network.id):
            self.engine.ensure(kernel, network.id, plan)
        with self.store.write() as tx:
            tx.set_phase(network.id, Phase.READY)

    def extend(self, kernel: Kernel, record: str, shared: Plan, replaced: Collection[Key] = ()) -> None:
        """Add the objects *shared* to a CNI network and remove those with the keys *replaced*; the network's lock is held.

        The network loses its boot's stamp meanwhile, so that no other ADD takes its objects for applied.
        """
        with self.store.write() as tx:
            row = tx.by_id(record)
            if row is None or not is_there(row.phase):
                return
            old = tx.objects(record)
            kept = Plan(*(item for item in old if item.key not in replaced))
            new = Plan(*_objects_of_both(kept, self.engine.observed(tx, kernel, record, shared, own=old)))
            if new == old and self.is_materialised(row):  # another attachment was quicker
                return
            tx.write_objects(record, _objects_of_both(old, new))
            tx.stamp(record, "")
        if old and not self.is_materialised(row):  # after a crash: objects that other attachments use are repaired, not removed
            if failures := self.engine.repair(kernel, new):
                raise failures[0]
        else:
            self._extend(kernel, row, old, new)
        with self.store.write() as tx:
            tx.set_phase(record, Phase.READY)
            tx.write_objects(record, new)

    def _extend(self, kernel: Kernel, row: Row[CniNetwork], old: Plan, new: Plan) -> None:
        try:
            self.engine.update(kernel, row.id, old, new)
        except TeardownError:
            raise  # objects are left, and stay written down
        except NetlibError:
            with self.store.write() as tx:
                tx.write_objects(row.id, old)
                tx.stamp(row.id, row.boot)
            raise

    def rows_to_leave_with(self, attachment: CniAttachment) -> list[Row[Any]]:
        """Return the records to remove together with a CNI attachment that joined one of our networks.

        They are its endpoint and, if that is the last endpoint of a sandbox made by CNI, the sandbox.
        """
        if not attachment.sandbox:
            return []
        with self.store.read() as tx:
            box, endpoints = tx.by_id(attachment.sandbox), tx.endpoints_of_sandbox(attachment.sandbox)
        rows: list[Row[Any]] = [row for row in endpoints if row.id == attachment.endpoint]
        is_last = len(rows) == len(endpoints)
        return [*rows, box] if box is not None and box.value.cni_container and is_last else rows

    def take_down(self, rows: Sequence[Row[Any]], *, keep_ports: bool = False, finish: Finish = _nothing) -> None:
        """Remove records with all their objects, however many at once; their locks (and their sandboxes') are held.

        With *keep_ports*, other endpoints of their sandboxes publish the ports from then on.

        A failure does not stop the removal of other records. A record with objects that could not be removed stays in phase
        ``removing``, and one TeardownError lists all failures.
        """
        if not rows:
            return
        ids = [row.id for row in rows]
        touched = {row.value.sandbox for row in rows if isinstance(row.value, Endpoint)} - set(ids)
        with self.engine.kernel(ids[0]) as kernel:
            changes: dict[Sandbox, tuple[Plan, Plan]] = {}
            with self.store.write(clearing=True) as tx:
                for row in rows:
                    tx.set_phase(row.id, Phase.REMOVING)
                objects = {row.id: tx.objects(row.id) for row in rows}
                for sandbox in sorted(touched):
                    box = tx.by_id(sandbox)
                    if box is not None and is_there(box.phase):
                        tx.give_up_joining(sandbox)
                        if keep_ports:
                            hand_over_endpoint_ports(tx, sandbox, ids)
                        changes[box.value] = self._rewrite_sandbox(tx, kernel, sandbox)
            failures: list[NetlibError] = []
            present: dict[str, Plan] = {}
            # First: the default route is moved to another link before this link is deleted.
            for changed, (old, new) in changes.items():
                present[changed.id], failed = self._apply_new_plan(kernel, changed, old, new)
                failures += failed
            failed, stuck = self._remove_objects(kernel, rows, objects)
            failures += failed
            gone = [row for row in rows if row.id not in stuck]
            failures += self._forget_all(gone, present, _nothing if failures else finish)
        if failures:
            raise TeardownError(failures)

    def _forget_all(self, rows: Sequence[Row[Any]], present: Mapping[str, Plan], finish: Finish) -> list[NetlibError]:
        """Delete *rows*, write down the new plans of their sandboxes (*present*), and *finish*, in one transaction.

        An IPAM driver may fail to take an address back: that record stays, the others are deleted one by one, and its error is
        returned.
        """

        def write_plans(tx: Transaction) -> None:
            for sandbox, plan in present.items():
                tx.write_objects(sandbox, plan)

        try:
            with self.store.write() as tx:
                for row in rows:
                    self.forget(tx, row)
                write_plans(tx)
                finish(tx)
        except StoreError:
            raise
        except NetlibError:
            failures = list[NetlibError]()
        else:
            return []
        for row in rows:
            try:
                with self.store.write() as tx:
                    self.forget(tx, row)
            except NetlibError as error:
                failures.append(error)
        with self.store.write() as tx:
            write_plans(tx)
        return failures

    def replan_sandbox(self, kernel: Kernel, sandbox: str) -> None:
        """Apply the plan that follows from a sandbox's changed record; its lock is held.

        At the end, raise TeardownError for objects that could not be removed or applied.
        """
        with self.store.write() as tx:
            row = tx.by_id(sandbox)
            if row is None or not is_there(row.phase):
                return
            tx.give_up_joining(sandbox)
            old, new = self._rewrite_sandbox(tx, kernel, sandbox)
        present, failures = self._apply_new_plan(kernel, row.value, old, new)
        with self.store.write() as tx:
            tx.write_objects(sandbox, present)
        if failures:
            raise TeardownError(failures)

    def _apply_new_plan(self, kernel: Kernel, sandbox: Sandbox, old: Plan, new: Plan) -> tuple[Plan, list[NetlibError]]:
        """Apply the new plan of a sandbox that loses endpoints; a failure undoes nothing. Without its netns only files change.

        Returns the objects to write down, which include those that could not be removed, and the failures.
        """
        present, failures = new, list[NetlibError]()
        try:  # first: ports that another endpoint took over may be part of a longer run of ports now
            self.engine.remove(kernel, [sandbox.id], plan_change(old, new).remove)
        except TeardownError as error:
            failures.extend(error.failures)
            present = Plan(*_objects_of_both(old, new))
        try:
            kernel.netns_fd(sandbox.netns)
        except ObjectMissing:
            new = Plan(*(item for item in new if item.survives_boot))
        with kernel.marking(self.engine.tag(sandbox.id)):
            return present, failures + self.engine.repair(kernel, new)

    def _remove_objects(
        self, kernel: Kernel, rows: Sequence[Row[Any]], objects: dict[str, Plan]
    ) -> tuple[list[NetlibError], set[str]]:
        failures: list[NetlibError] = []
        stuck: set[str] = set()
        for group in in_order_of_removal(rows):
            try:
                self.engine.remove(kernel, [row.id for row in group], [item for row in group for item in objects[row.id]])
            except TeardownError:
                for row in group:  # record by record: one stuck object must not keep the others
                    try:
                        self.engine.remove(kernel, [row.id], objects[row.id])
                    except TeardownError as error:
                        failures.extend(error.failures)
                        stuck.add(row.id)
        for row in rows:
            if isinstance(row.value, CniAttachment) and row.id not in stuck:
                failed = hand_over_attachment_ports(self.engine, row, objects[row.id].of(PublishedPort))
                failures += failed
                stuck.update([row.id] if failed else ())
        return failures, stuck

    def _rewrite_sandbox(self, tx: Transaction, kernel: Kernel, sandbox: str) -> tuple[Plan, Plan]:
        """Write down the objects of a sandbox's old and new plan together; return (old, new)."""
        row = tx.by_id(sandbox)
        assert row is not None
        old = tx.objects(sandbox)
        new = self.engine.observed(tx, kernel, sandbox, self._plan_sandbox(tx, row.value), own=old)
        tx.write_objects(sandbox, _objects_of_both(old, new), old)
        return old, new

    def is_materialised(self, row: Row[Any]) -> bool:
        """Whether the network's objects were applied in this boot."""
        return row.boot == self.store.boot

    @contextmanager
    def _forget_on_failure(self, record: str) -> Iterator[None]:
        """Delete the record when the block fails and has undone everything; keep it as ``removing`` when objects are left."""
        try:
            yield
        except TeardownError:
            with self.store.write() as tx:
                tx.set_phase(record, Phase.REMOVING)
            raise
        except NetlibError as error:
            self._forget_undone(record, error, {})
            raise

    def _forget_undone(self, record: str, error: NetlibError, plans: Mapping[str, Plan]) -> None:
        """Delete a record whose objects were removed again because of *error*, and write down its sandbox's former plan.

        Where an IPAM driver fails to take something back, the record stays, in phase ``removing``, and both errors are raised.
        """
        with self.store.read() as tx:
            row = tx.by_id(record)
        failures = self._forget_all([row] if row is not None else [], plans, _nothing)
        if failures:
            with self.store.write() as tx:
                tx.set_phase(record, Phase.REMOVING)
            raise TeardownError([error, *failures]) from error

    @staticmethod
    def forget(tx: Transaction, row: Row[Any] | None) -> None:
        """Delete a record and give back what it leased."""
        if row is None:
            return
        kind_called(row.kind).give_back(tx, row.value)
        tx.delete(row.id)


def _objects_of_both(old: Plan, new: Plan) -> Collection[KernelObject]:
    """Return the objects of both plans, with *new*'s attributes where they share a key.

    That is everything the kernel may hold while *old* is turned into *new*.
    """
    wanted = {item.key: item for item in new}
    if all(item.key in wanted for item in old):
        return new
    present = set(old.keys)
    return [*(wanted.get(item.key, item) for item in old), *(item for item in new if item.key not in present)]
