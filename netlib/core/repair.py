"""What was taken away by hand, put back when somebody needs it: a network's objects, and what hung on them.

One rule: nobody looks before something has failed. Only then is what was written down compared with the kernel.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeVar

from netlib.core.lifecycle import Lifecycle
from netlib.errors import KernelError, NetlibError, ObjectMissing, StoreError, TeardownError
from netlib.model import Endpoint, Phase
from netlib.plan import Carrier, KernelObject, Plan, ability
from netlib.store.locks import record_lock
from netlib.store.records import JournalEntry

__all__ = ["Repair", "leave_with_repair", "repair_network", "with_repair"]

_T = TypeVar("_T")


class Repair(NamedTuple):
    """What a network itself had lost, a sentence each, and what of that could not be put back."""

    lost: list[str]
    failures: list[NetlibError]


def with_repair(lifecycle: Lifecycle, network: str, action: Callable[[], _T]) -> _T:
    """Do *action*; where the kernel refuses it and *network* (an id) has lost something, put that back and try once more.

    *action* leaves nothing behind when it fails. Raises what it raises; where something would not come back, its error with
    the remedy.
    """
    try:
        return action()
    except KernelError as error:
        repair = repair_network(lifecycle, network)
        if repair.failures:
            raise type(error)(
                f"{error}; what its network had is gone and does not come back ({repair.failures[0]}): "
                "remove the network and create it anew",
                error.errno,
            ) from error
        if not repair.lost and not isinstance(error, ObjectMissing):  # else another one's repair was quicker
            raise
    return action()


def leave_with_repair(lifecycle: Lifecycle, sandbox: str, leave: Callable[[], None]) -> None:
    """Take *sandbox* (an id) out of a network by *leave*; where its others have lost something, put that back and finish.

    Its default route and its ports go by those then. Raises TeardownError for what would not go, or not come back.
    """
    try:
        leave()
    except TeardownError as error:
        with lifecycle.store.read() as tx:
            endpoints = tx.endpoints_of_sandbox(sandbox)
        if any(row.phase is not Phase.READY for row in endpoints):
            raise
        repairs = [repair_network(lifecycle, row.value.network) for row in endpoints]
        is_missing = any(isinstance(failure, ObjectMissing) for failure in error.failures)  # another's repair may be quicker
        if not is_missing and not any(repair.lost for repair in repairs):
            raise
        with lifecycle.working_on([sandbox], "finishing to leave a network"), lifecycle.engine.kernel(sandbox) as kernel:
            lifecycle.replan_sandbox(kernel, sandbox)


def repair_network(lifecycle: Lifecycle, network: str) -> Repair:
    """Bring what a ready network (an id; CNI's as well) has lost, or others have changed, back; write that into the journal.

    So is what hung on it of its members (a bridge's ports). A member that somebody works on is left to :func:`recovery.drift`.
    """
    engine = lifecycle.engine
    started, clock = time.time(), time.perf_counter()
    with lifecycle.working_on([network], "repairing a network"), engine.kernel(network) as kernel:
        with lifecycle.store.read() as tx:
            row, plan = tx.by_id(network), tx.objects(network)
        if row is None or row.phase is not Phase.READY:
            return Repair([], [])
        drifts = [(item, difference) for item in plan if (difference := item.drift(kernel))]
        lost = [item for item, _ in drifts]
        failures = engine.repair(kernel, Plan(*lost))
        left = [*failures, *(_repair_members(lifecycle, network, lost) if lost else ())]
    if lost:
        outcome = "; ".join(str(failure) for failure in left) or "ok"
        detail = [f"{item.key}: {difference}" for item, difference in drifts]
        entry = JournalEntry(started, "network repair", row.name, outcome, time.perf_counter() - clock, detail)
        with suppress(StoreError), lifecycle.store.write() as tx:
            tx.log(entry)
    return Repair([difference for _, difference in drifts], failures)


def _repair_members(lifecycle: Lifecycle, network: str, lost: Sequence[KernelObject]) -> list[NetlibError]:
    """Put back what members had on the *lost* objects, in the host's netns: what is inside theirs is their own affair."""
    engine = lifecycle.engine
    failures: list[NetlibError] = []
    carriers = [carrier for item in lost if (carrier := ability(item, Carrier)) is not None]
    with lifecycle.store.read() as tx:
        members = tx.users_of(network)
    for member in members:
        lock = record_lock(member.value.sandbox if isinstance(member.value, Endpoint) else member.id)
        with engine.locks.attempt(lock, "repairing its network") as held:
            if not held:
                continue
            with lifecycle.store.read() as tx:
                present, plan = tx.by_id(member.id), [*tx.objects(member.id), *tx.objects(member.value.sandbox)]
            carried = [item for item in plan if any(carrier.carries(item) for carrier in carriers)]
            if present is not None and present.phase is Phase.READY and carried:
                with engine.kernel(member.id) as kernel:
                    failures += engine.repair(kernel, Plan(*carried))
    return failures
