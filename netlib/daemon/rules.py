"""Putting our firewall back where others deleted parts of it, and letting our bridges through what others added.

A notice of the backend (:class:`~netlib.firewall.backend.RuleEvents`) only says that it is worth a look. What is done then
follows from the store and the kernel alone, so that our own changes, whose notices come back to us, end at that look.
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
    """Where a table of ours is not whole any more, make again all that ready records have in them; return how many objects.

    *thorough* looks at every entry, not only at the static chains. No record can begin to leave meanwhile: that takes the
    store's write lock, which is held. The table of IP is one transaction: packets meet all of it, or what they
    met before.
    """
    tables = backend().tables()
    with controller.engine.kernel("") as kernel, ExitStack() as held:
        if not thorough and not _lost_tables(controller, kernel):  # as after each deletion of our own: nobody has to wait
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
    """Whether a table that some record has is not whole."""
    tables = backend().tables()
    with controller.store.read() as tx:
        held = tx.holders([table.key for table in tables], besides=())
    return any(str(table.key) in held and table.drift(kernel) is not None for table in tables)


def restore_allowances(controller: Controller) -> int:
    """Let our bridges through foreign forward hooks where they would be stopped by now; return how many that was needed for."""
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
