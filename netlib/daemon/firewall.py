"""Restoring our firewall entries that another program deleted, and the rules that let our bridges pass other programs' chains.

A change that the backend reports (:class:`~netlib.firewall.backend.RuleChange`) only triggers a comparison of the store with
the kernel, and only a difference is repaired. So our own changes, which are reported too, cause no work beyond that.
"""

from contextlib import ExitStack

from netlib.core.controller import Controller
from netlib.firewall.backend import backend
from netlib.firewall.objects import Allowance, FirewallObject
from netlib.kernel.handle import Kernel
from netlib.plan import KernelObject, Plan
from netlib.store.locks import record_lock

__all__ = ["restore_allowances", "restore_table"]


def restore_table(controller: Controller, *, thorough: bool = False) -> int:
    """Make all firewall objects of ready records again when a table of ours is incomplete; return the number of objects, or 0.

    Completeness is judged by the static chains, or with *thorough* by every entry. The store's write lock is held, so no record
    can begin to be removed meanwhile. The table for IP is restored in one transaction: a packet meets the whole table or the
    former one.
    """
    tables = backend().tables()
    with controller.engine.kernel("") as kernel, ExitStack() as held:
        if not thorough and not _lost_tables(controller, kernel):  # the usual case, after a deletion of ours: no lock is taken
            return 0
        for table in tables:
            held.enter_context(controller.locks.hold(f"key:{table.key}", "putting the firewall back"))
        tx = held.enter_context(controller.store.write())
        records: dict[str, list[KernelObject]] = {}
        for record, item in tx.ready_objects("firewall", "host"):
            records.setdefault(record, []).append(item)
        known = {item.key: item for items in records.values() for item in items}
        watched = known.values() if thorough else [table for table in tables if table.key in known]
        if all(item.drift(kernel) is None for item in watched):
            return 0
        ours = {
            controller.engine.tag(record): [item for item in items if isinstance(item, FirewallObject)]
            for record, items in records.items()
        }
        if any(ours.values()):
            FirewallObject.ensure_tagged(kernel, ours)
        of_bridges = [item for item in known.values() if not isinstance(item, FirewallObject)]
        for run in Plan(*sorted(of_bridges, key=lambda item: item not in tables)).runs():  # the tables first
            type(run[0]).ensure_many(kernel, run)
    return sum(map(len, records.values()))


def _lost_tables(controller: Controller, kernel: Kernel) -> bool:
    """Whether a table that a record uses is incomplete."""
    tables = backend().tables()
    with controller.store.read() as tx:
        held = tx.holders([table.key for table in tables], besides=())
    return any(str(table.key) in held and table.drift(kernel) is not None for table in tables)


def restore_allowances(controller: Controller) -> int:
    """Restore the rules that let our bridges pass other programs' forward hooks, where they are missing; return how many."""
    restored = 0
    with controller.store.read() as tx:
        objects = list(tx.ready_objects("firewall", "host"))
    for record, item in objects:
        if not isinstance(item, Allowance):
            continue
        with (
            controller.locks.attempt(record_lock(record), "checking its way out") as held,
            controller.engine.kernel(record) as kernel,
        ):
            if held and item.drift(kernel) is not None:
                item.ensure(kernel)
                restored += 1
    return restored
