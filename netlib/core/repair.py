"""Repairing a network: applying those of its objects again that somebody has deleted or changed by hand.

One rule: a network is compared with the kernel only after a verb has failed. A verb that succeeds costs no comparison.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeVar

from netlib.core.lifecycle import Lifecycle
from netlib.errors import HostExhausted, KernelError, NetlibError, ObjectMissing, StoreError, TeardownError
from netlib.model import Phase
from netlib.plan import Carrier, KernelObject, Plan, ability
from netlib.store.kinds import lock_of
from netlib.store.locks import record_lock
from netlib.store.records import JournalEntry

__all__ = ["Repair", "leave_with_repair", "repair_network", "with_repair"]

_T = TypeVar("_T")


class Repair(NamedTuple):
    """The outcome of a repair: a sentence for each object that the network had lost, and the errors of those still missing."""

    lost: list[str]
    failures: list[NetlibError]


def with_repair(lifecycle: Lifecycle, network: str, action: Callable[[], _T]) -> _T:
    """Call *action* and return its result; after a KernelError, repair *network* (an id) and call *action* once more.

    *action* may run twice, so it must leave nothing behind when it fails. Its error is raised where the network had lost
    nothing; where the repair fails, the error's message also says why, and to create the network anew.
    """
    try:
        return action()
    except KernelError as error:
        repair = repair_network(lifecycle, network)
        if repair.failures:
            raise type(error)(
                f"{error}; objects of its network are missing and cannot be made again ({repair.failures[0]}): "
                "remove the network and create it anew",
                error.errno,
            ) from error
        if not repair.lost and not isinstance(error, ObjectMissing):  # else another process has repaired it meanwhile
            raise
    return action()


def leave_with_repair(lifecycle: Lifecycle, sandbox: str, leave: Callable[[], None]) -> None:
    """Take *sandbox* (an id) out of a network by *leave*; where this fails, repair the sandbox's other networks and finish.

    The sandbox's default route and ports now belong to those networks: *leave* fails where a bridge of theirs was deleted, say.
    Raises TeardownError for objects that could not be removed or applied again.
    """
    try:
        leave()
    except TeardownError as error:
        with lifecycle.store.read() as tx:
            endpoints = tx.endpoints_of_sandbox(sandbox)
        if any(row.phase is not Phase.READY for row in endpoints):
            raise
        repairs = [repair_network(lifecycle, row.value.network) for row in endpoints]
        is_missing = any(isinstance(failure, ObjectMissing) for failure in error.failures)  # as above
        if not is_missing and not any(repair.lost for repair in repairs):
            raise
        with lifecycle.working_on([sandbox], "finishing to leave a network"), lifecycle.engine.kernel(sandbox) as kernel:
            lifecycle.replan_sandbox(kernel, sandbox)


def repair_network(lifecycle: Lifecycle, network: str) -> Repair:
    """Apply the objects of a ready network (an id; also a CNI network) that are missing or changed in the kernel.

    The objects of members that the kernel deleted with them (a bridge's ports) are applied again too, but not those of a member
    whose lock another process holds: :func:`recovery.drift` reports these. The repair is written into the journal.
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
        with suppress(StoreError, HostExhausted), lifecycle.store.write() as tx:
            tx.log(entry)
    return Repair([difference for _, difference in drifts], failures)


def _repair_members(lifecycle: Lifecycle, network: str, lost: Sequence[KernelObject]) -> list[NetlibError]:
    """Apply the objects again that *network*'s ready members had on *lost* objects; return the errors.

    A network's objects carry objects in the host's netns only (bridge ports, say): nothing inside a member's netns is touched.
    """
    engine = lifecycle.engine
    failures: list[NetlibError] = []
    carriers = [carrier for item in lost if (carrier := ability(item, Carrier)) is not None]
    with lifecycle.store.read() as tx:
        members = tx.users_of(network)
    for member in members:
        lock = record_lock(lock_of(member))
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
