"""Recovery after a crash or a boot: unfinished records are finished or undone, and drift is found.

What is done with which record stands in :mod:`netlib.core.phases`. An in-flight record is taken only when its lock is free, and
read again under the lock. A sandbox that loses an endpoint by being recovered is planned anew.
"""

from collections.abc import Iterable
from typing import Any

from netlib.config import Config
from netlib.core.lifecycle import Lifecycle
from netlib.core.phases import ABSENT, Action, Found, what_happens
from netlib.core.preparing import Prepared
from netlib.errors import NetlibError, TeardownError, WrongHost
from netlib.kernel.handle import Kernel
from netlib.kernel.netns import boot_id, current_identity
from netlib.kernel.tuning import TunedSysctl
from netlib.model import CniAttachment, Endpoint, Phase, Sandbox
from netlib.plan import KernelObject, Overrides, Plan, ability
from netlib.store.kinds import in_order_of_removal, kind_called
from netlib.store.locks import record_lock
from netlib.store.records import Row, Transaction
from netlib.store.sqlite import Store

RESET_LOCK = "reset"  # whoever resets everything holds it
_PURPOSE = "recovering what a crash left"


def check_host(store: Store) -> bool:
    """Check that the store belongs to this netns; a new store is bound to it.

    Returns True if records of an earlier boot still have to be forgotten.

    Raises WrongHost: one store describes one netns (boot id and cookie), as two would undo each other's work.
    """
    here = current_identity()
    with store.read() as tx:
        known = tx.meta("netns")
    if known == here:
        return False
    if known is not None and known.split(":")[0] == boot_id():
        raise WrongHost(
            f"{store.path} describes another network namespace than this one; "
            "pass --state-dir and --run-dir (or NETLIB_STATE_DIR and NETLIB_RUN_DIR) for a store of its own"
        )
    if known is None:
        with store.write() as tx:
            tx.set_meta("netns", here)
    return known is not None


def finish_in_flight(lifecycle: Lifecycle, finished: list[Row[Any]]) -> list[NetlibError]:
    """Take down every record that a dead process left in flight, as the table says.

    Return the errors of objects that could not be removed; append to *finished* the records whose removal was begun before
    and is done now.
    """
    with lifecycle.store.read() as tx:
        rows = tx.in_flight()
    failures: list[NetlibError] = []
    found = False
    for record, kind, sandbox in sorted(rows, key=lambda row: kind_called(row[1]).order):
        lock = record_lock(sandbox if kind_called(kind).locked_by_sandbox else record)
        with lifecycle.engine.locks.attempt(lock, _PURPOSE) as held:
            action = _settle(lifecycle, record, failures, finished) if held else Action.LEAVE_ALONE  # somebody works on it
            found = found or action is Action.TAKE_DOWN
    if found:
        lifecycle.engine.locks.sweep()  # the dead process also held locks of shared keys
    return failures


def _settle(lifecycle: Lifecycle, record: str, failures: list[NetlibError], finished: list[Row[Any]]) -> Action:
    """Act on an in-flight record whose lock is held, as the table says; append to *failures* and *finished*."""
    with lifecycle.store.read() as tx:
        row = tx.by_id(record)
        if row is None:
            return what_happens(ABSENT, Found.ABANDONED)
        outlives_boot = kind_called(row.kind).outlives_boot
        is_used = outlives_boot and any(user.phase is not Phase.REMOVING for user in tx.users_of(record))
    action = what_happens(row.phase, Found.ABANDONED, outlives_boot=outlives_boot, is_used=is_used)
    if action is Action.TAKE_DOWN:
        failed = _take_down(lifecycle, row)
        failures += failed
        if not failed and row.phase is Phase.REMOVING:
            finished.append(row)
    elif action is Action.CALL_READY:
        with lifecycle.engine.locks.attempt(RESET_LOCK, _PURPOSE) as no_reset:
            if not no_reset:
                return what_happens(row.phase, Found.BEING_RESET, outlives_boot=outlives_boot, is_used=is_used)
            with lifecycle.store.write() as tx:
                tx.set_phase(record, Phase.READY)
    return action


def _take_down(lifecycle: Lifecycle, row: Row[Any]) -> list[NetlibError]:
    with lifecycle.store.read() as tx:
        endpoints = tx.endpoints_of_sandbox(row.id) if isinstance(row.value, Sandbox) else []
    try:
        if isinstance(row.value, CniAttachment) and row.value.sandbox and not _leave(lifecycle, row.value):
            return []
        lifecycle.take_down([*endpoints, row])
    except TeardownError as error:
        return list(error.failures)
    except NetlibError as error:
        return [error]
    return []


def _leave(lifecycle: Lifecycle, attachment: CniAttachment) -> bool:
    """Remove the endpoint (and perhaps the sandbox) of an attachment; return False when another process holds the sandbox."""
    with lifecycle.engine.locks.attempt(record_lock(attachment.sandbox), _PURPOSE) as held:
        if held:
            lifecycle.take_down(lifecycle.rows_to_leave_with(attachment))
        return held


def forget_former_boot(store: Store, config: Config) -> None:
    """Delete the records of sandboxes, endpoints and CNI attachments of an earlier boot, with their leases and files.

    The kernel lost their objects at the boot. Networks stay, and their objects are applied again at their next use. Nothing is
    removed from the kernel here: a sysctl with the value that we once set may be the administrator's setting now.
    """
    with Kernel() as kernel, store.write(clearing=True) as tx:
        for row in (row for group in in_order_of_removal(tx.of_other_boots()) for row in group):
            outside = tx.objects(row.id).of(Prepared)  # what drivers took in the world, which has had no boot
            found = Found.OWING_AFTER_BOOT if outside else Found.AFTER_BOOT
            action = what_happens(row.phase, found, outlives_boot=kind_called(row.kind).outlives_boot)
            if action is Action.FORGET_OBJECTS:
                tx.write_objects(row.id, outside)
            elif action is Action.LEAVE_TO_RECOVERY:  # which may ask the world: here the store is locked
                _remove_files(kernel, tx.objects(row.id))
                tx.write_objects(row.id, outside)
                tx.set_phase(row.id, Phase.REMOVING)
            else:
                forget(tx, kernel, row)
        if config.sandbox_dir.is_dir():
            for folder in config.sandbox_dir.iterdir():
                if tx.by_id(folder.name) is None:
                    import shutil  # 2 ms, after a boot only

                    shutil.rmtree(folder)
        tx.set_meta("netns", current_identity())  # last: after a crash before this line, the boot is forgotten again


def forget(tx: Transaction, kernel: Kernel, row: Row[Any], *, keeps_files: bool = False) -> None:
    """Delete a record whose kernel objects are gone, and its files unless *keeps_files*."""
    if not keeps_files:
        _remove_files(kernel, tx.objects(row.id))
    Lifecycle.forget(tx, row)


def _remove_files(kernel: Kernel, plan: Plan) -> None:
    for item in reversed(plan):
        if item.survives_boot and not isinstance(item, Prepared):
            item.remove(kernel)


def drift(lifecycle: Lifecycle, records: Iterable[str]) -> list[tuple[str, str]]:
    """Compare the objects of *records* with the kernel; return a pair (key, difference) for each drift.

    An attachment does not drift where another attachment in its netns changed the same setting (a link's MTU, a route) later,
    nor an endpoint where its sandbox was given a ``--sysctl``.
    """
    found: list[tuple[str, str]] = []
    for record in records:
        with lifecycle.store.read() as tx:
            plan: Plan = tx.objects(record)
            overriding = _overriding_objects(tx, record)
        with lifecycle.engine.kernel(record) as kernel:
            for item in plan:
                left = _still_expected(item, overriding)
                if left is not None and (difference := left.drift(kernel)):
                    found.append((str(item.key), difference))
    return found


def _still_expected(item: KernelObject, overriding: Iterable[KernelObject]) -> KernelObject | None:
    left: KernelObject | None = item
    for other in overriding:
        if left is not None:
            overriding_one = ability(other, Overrides)
            left = left if overriding_one is None else overriding_one.remaining(left)
    return left


def _overriding_objects(tx: Transaction, record: str) -> list[KernelObject]:
    """Return the objects that may override *record*'s: of other attachments in its netns, or of an endpoint's sandbox."""
    row = tx.by_id(record)
    if row is not None and isinstance(row.value, Endpoint):
        return list(tx.objects(row.value.sandbox).of(TunedSysctl))
    if row is None or not isinstance(row.value, CniAttachment):
        return []
    netns = row.value.netns
    others = [other for other in tx.attachments_in(netns.path) if other.id != record and other.value.netns == netns]
    return [item for other in others for item in tx.objects(other.id)]
