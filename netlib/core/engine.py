"""Applying plans so that nothing is ever half done: the engine under every verb.

The rules, each in one place here: an object is written down before it is applied; a failure at step *k* undoes *k*, *k-1*, …
0; a removal follows what was written down, goes on over failures and reports them all; an object goes only when no other record
holds its key; a shared object is ensured and removed under a lock of its key.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from msgspec.structs import replace

from netlib.errors import Conflict, NetlibError, TeardownError
from netlib.kernel.handle import IdleSockets, Kernel
from netlib.kernel.scarcity import exhaustion
from netlib.objects import failed_object
from netlib.plan import Carrier, Coexists, ExplainsConflict, KernelObject, Key, Plan, ability, plan_change, removal_rank
from netlib.store.locks import Locks
from netlib.store.records import Transaction
from netlib.store.sqlite import Store
from netlib.store.tags import TAG_DIGITS

Observer = Callable[[str, KernelObject], None]
"""Gets ``ensure``/``ensured`` and ``remove``/``removed`` around each object, ``ask``/``noted`` around a driver's question.

The command line shows progress by it; tests inject faults.
"""


_NO_LOCKS = nullcontext()


class Engine:
    """Brings plans into the kernel and out of it, on behalf of records in one store."""

    def __init__(self, store: Store, locks: Locks, store_tag: str, observer: Observer | None = None) -> None:
        self.store = store
        self.locks = locks
        self.store_tag = store_tag
        self.observer = observer
        self.trail: list[str] = []  # what was made (+) and removed (-); who performs a verb clears it first
        self._idle = IdleSockets()

    def close(self) -> None:
        """Close what is kept between operations."""
        self._idle.close()

    def kernel(self, record: str) -> Kernel:
        """A handle whose tag says that what it makes belongs to *record*."""
        return Kernel(self.tag(record), self._idle)

    def tag(self, record: str) -> str:
        """The tag that marks a kernel object as *record*'s."""
        return f"netlib:{self.store_tag}:{record[:TAG_DIGITS]}"

    def observed(self, tx: Transaction, kernel: Kernel, record: str, plan: Plan, *, own: Plan | None = None) -> Plan:
        """Return *plan* with its observations filled in; Conflict when another record holds a key with other attributes.

        Observations that *record* itself (*own*) or another holder of the key made earlier are reused: by now the kernel shows
        our own values. Else the kernel is asked, except about objects on a link that is still to be made.
        """
        mine = {item.key: item for item in own or ()}
        # Objects that *own* holds unchanged were compared with other records' when they were written.
        changed = [item.key for item in plan if mine.get(item.key) != item]
        holders = tx.holders(changed, besides=[record]) if changed else {}
        result: list[KernelObject] = []
        coming: list[Carrier] = []
        for item in plan:
            holder = holders.get(str(item.key)) if holders else None
            theirs = tx.object_of(holder, str(item.key)) if holder else None
            if theirs is None and mine.get(item.key) == item:
                result.append(item)
                continue
            social = ability(item, Coexists)
            beside = social.coexisting(theirs, kernel) if social is not None and theirs is not None else None
            if beside is not None:
                item, theirs = beside, None
            known = mine.get(item.key) or theirs
            if known is None:
                may_meet_others = social is not None and social.may_meet_others()
                if beside is None and (may_meet_others or not any(carrier.carries(item) for carrier in coming)):
                    item = item.observed(kernel)
                if (carrier := ability(item, Carrier)) is not None:
                    coming.append(carrier)
            elif noted := _notes(known, item):
                item = replace(item, **noted)
            if holder is not None and theirs is not None and theirs != item:
                other = tx.by_id(holder)
                words = f"{other.kind} {other.name!r}" if other else holder
                kind, name = (other.kind, other.name) if other else ("", holder)
                raise Conflict(_disagreement(item, theirs, words), holder=name, holder_kind=kind)
            result.append(item)
        return Plan(*result)

    def ensure(self, kernel: Kernel, record: str, plan: Plan) -> None:
        """Apply *plan* in order; when an object fails, remove it and all objects before it, and raise.

        Its shared objects are removed too, applied or not: the last other holder may have left one in the kernel because
        *record* held it as well. A TeardownError (the failure first) means that the way back failed too, and something is left.
        """
        begun: list[KernelObject] = []
        try:
            for run in plan.runs():
                begun.extend(run)
                self._ensure_run(kernel, run)
        except NetlibError as error:
            shared = [item for item in plan if item.shared]
            self._go_back(error, lambda: self.remove(kernel, [record], [*begun, *shared]))
            raise

    def undo(self, error: NetlibError, kernel: Kernel, record: str, plan: Plan) -> None:
        """Remove *plan* because of *error*, which the caller raises; a TeardownError with both when something would not go."""
        self._go_back(error, lambda: self.remove(kernel, [record], plan))

    def update(self, kernel: Kernel, record: str, old: Plan, new: Plan) -> None:
        """Turn what is applied (*old*) into *new*; on failure turn it back, and raise as :meth:`ensure` does."""
        change = plan_change(old, new)
        try:
            for run in change.ensure.runs():
                self._ensure_run(kernel, run)
            self.remove(kernel, [record], change.remove)
        except NetlibError as error:
            self._go_back(error, lambda: self._restore(kernel, record, old, new))
            raise

    def repair(self, kernel: Kernel, plan: Plan) -> list[NetlibError]:
        """Apply *plan*; a failure neither stops nor undoes anything. Returns the failures."""
        failures: list[NetlibError] = []
        for run in plan.runs():
            with self._locked(run):
                try:
                    self._apply(kernel, run)
                except NetlibError as error:
                    failures.append(error)
        return failures

    def remove(self, kernel: Kernel, records: Collection[str], objects: Iterable[KernelObject]) -> None:
        """Remove *objects* of *records*, last first; raise one TeardownError listing what would not go.

        Objects that another record holds stay. Firewall state goes first, in one transaction; links next, in one request; what
        vanishes with them (their addresses) is not removed one by one.
        """
        items = list({item.key: item for item in objects}.values())
        free = self._free(records, items)
        failures: list[NetlibError] = []
        staying: list[Carrier] = []
        for run in _removal_runs(_going(items, free)):
            with self._locked(run):
                try:
                    unheld = free
                    if any(item.shared for item in run):
                        unheld = self._free(records, run)  # asked again, locked
                        staying += _carriers(item for item in run if item.key in free and item.key not in unheld)
                    leaving = [item for item in run if item.key in unheld]
                    if leaving:
                        self.tell("remove", leaving)
                        type(leaving[0]).remove_many(kernel, leaving)
                        self.trail += [f"- {item.key}" for item in leaving]
                        self.tell("removed", leaving)
                    self._let_go(records, run)
                except TeardownError as error:
                    failures.extend(error.failures)
                except NetlibError as error:
                    failures.append(error)
                except Exception as error:  # a defect in one class must not keep the objects of others
                    if exhaustion(error) is not None:
                        raise
                    failures.append(failed_object(run[0], error) or _defect(run[0], error))
        try:  # another record holds these carriers now, so the objects on them do not vanish: remove those too
            if staying:
                self.remove(kernel, records, [item for item in items if any(carrier.carries(item) for carrier in staying)])
        except TeardownError as error:
            failures.extend(error.failures)
        if failures:
            raise TeardownError(failures)

    def tell(self, moment: str, items: Iterable[KernelObject]) -> None:
        """Tell the observer of *moment* in the life of each of *items*."""
        if self.observer is not None:
            for item in items:
                self.observer(moment, item)

    def _ensure_run(self, kernel: Kernel, run: Sequence[KernelObject]) -> None:
        """Apply objects of one run under the locks of those that are shared."""
        shared = [item for item in run if item.shared]
        if shared:
            with self._locked(shared):
                self._apply(kernel, run)
        else:
            self._apply(kernel, run)

    def _apply(self, kernel: Kernel, run: Sequence[KernelObject]) -> None:
        if self.observer is not None:
            self.tell("ensure", run)
        try:
            if len(run) == 1:
                run[0].ensure(kernel)
            else:
                type(run[0]).ensure_many(kernel, run)
        except NetlibError:
            raise
        except Exception as error:
            if (failure := failed_object(run[0], error)) is not None:
                raise failure from error
            raise
        for item in run:
            self.trail.append(f"+ {item.key}")
        if self.observer is not None:
            self.tell("ensured", run)

    def _restore(self, kernel: Kernel, record: str, old: Plan, new: Plan) -> None:
        self.remove(kernel, [record], plan_change(new, old).remove)
        for run in old.runs():
            self._ensure_run(kernel, run)

    @staticmethod
    def _go_back(error: NetlibError, way_back: Callable[[], None]) -> None:
        try:
            way_back()
        except TeardownError as failure:
            raise TeardownError([error, *failure.failures]) from error
        except NetlibError as failure:
            raise TeardownError([error, failure]) from error

    def _locked(self, run: Iterable[KernelObject]) -> AbstractContextManager[object]:
        """Hold the locks of the shared objects of *run*; most have none."""
        keys = sorted([str(item.key) for item in run if item.shared])
        return self._holding(keys) if keys else _NO_LOCKS

    @contextmanager
    def _holding(self, keys: Iterable[str]) -> Iterator[None]:
        with ExitStack() as stack:
            for key in keys:
                stack.enter_context(self.locks.hold(f"key:{key}", f"changing {key}"))
            yield

    def _free(self, records: Collection[str], items: Iterable[KernelObject]) -> set[Key]:
        """Return the keys of *items* that no record besides *records* holds, by one query."""
        keys = {str(item.key): item.key for item in items}
        if not keys:
            return set()
        with self.store.read() as tx:
            held = tx.holders(keys.values(), besides=records)
        return {key for spelled, key in keys.items() if spelled not in held}

    def _let_go(self, records: Collection[str], run: Iterable[KernelObject]) -> None:
        """Delete the rows of *run*'s shared objects, whose locks are held.

        So of two last holders that leave at once, exactly one removes the object.
        """
        shared = [item.key for item in run if item.shared]
        if shared:
            with self.store.write() as tx:
                for key in shared:
                    tx.drop_object(records, key)


def _defect(item: KernelObject, error: Exception) -> NetlibError:
    """The error for a removal that failed by a defect in the class of *item*; its traceback goes to the log."""
    import logging  # 5 ms, which no other verb needs

    logging.getLogger(__name__).error("removing %s", item.key, exc_info=error)
    kind = type(item)
    return NetlibError(f"{item.key} cannot be removed: a defect in {kind.__module__}.{kind.__name__}: {error!r}")


def _notes(known: KernelObject, item: KernelObject) -> dict[str, Any]:
    """What was observed before about *known*, of the same key, and *item* does not say."""
    return {field: value for field in item.observations if (value := getattr(known, field)) != getattr(item, field)}


def _carriers(items: Iterable[KernelObject]) -> list[Carrier]:
    return [carrier for item in items if (carrier := ability(item, Carrier)) is not None]


def _going(items: Sequence[KernelObject], free: Collection[Key]) -> list[KernelObject]:
    """Return the items to remove, last first: those that do not vanish with a removed (*free*) carrier."""
    carriers: dict[str, list[Carrier]] = {}
    for carrier in _carriers(item for item in items if item.key in free):
        for path in carrier.carries_in():
            carriers.setdefault(path, []).append(carrier)
    return [item for item in reversed(items) if not any(carrier.carries(item) for carrier in carriers.get(item.netns.path, ()))]


def _disagreement(item: KernelObject, theirs: KernelObject, holder: str) -> str:
    """The sentence for a *holder* ("network 'web'") of this key with other attributes (*theirs*)."""
    explaining = ability(item, ExplainsConflict)
    if explaining is not None:
        return explaining.disagreement(theirs, holder)
    return f"{item.key} is held by {holder} with other settings; use the same ones, or another name"


def _removal_runs(going: Sequence[KernelObject]) -> list[list[KernelObject]]:
    """Runs to remove, in order: batches first, by their rank, then the rest one by one."""
    batches: dict[tuple[str, str], list[KernelObject]] = {}
    alone: list[list[KernelObject]] = []
    for item in going:
        if item.batch:
            batches.setdefault((item.batch, item.netns.path), []).append(item)
        else:
            alone.append([item])
    in_order = sorted(batches, key=lambda key: (removal_rank(key[0]), key[1]))
    return [*(batches[key] for key in in_order), *alone]
