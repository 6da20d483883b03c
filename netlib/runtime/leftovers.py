"""Containers that a crash left half made or half removed, and files of containers that no record knows."""

from collections.abc import Callable
from functools import partial

from netlib.core.controller import Controller
from netlib.core.traces import container_folders
from netlib.errors import NetlibError, StoreLost
from netlib.model import Phase
from netlib.runtime.ending import delete_container, kill_and_wait, remove_sandboxes
from netlib.runtime.lookup import runtime
from netlib.runtime.spec import RECORD_SUFFIX, Container
from netlib.store.locks import record_lock
from netlib.store.records import Row

# The key under which the store has the ids of containers without a record that `system restore` has listed. No verb is refused
# because of these.
ACCEPTED = "accepted"

__all__ = ["ACCEPTED", "finish", "refuse_unknown", "unknown_containers"]


def finish(controller: Controller) -> list[NetlibError]:
    """Finish the work of dead processes: remove containers whose creation or removal broke off, and sandboxes of ended ones.

    Returns the failures and raises none, so that one container does not stop verbs on others. Files without a record are kept:
    a record is written before the first file and deleted after the last one, so the store has lost the record, and somebody may
    need the files.
    """
    with controller.store.read() as tx:
        rows = tx.all(Container)
    processes = runtime(controller)
    failures: list[NetlibError] = []
    for row in rows:
        if row.phase is Phase.READY and (row.value.netns is None or processes.state(row.value).running):
            continue
        failures += _failures_of(partial(_if_unlocked, controller, row, partial(_finish_one, controller, row.id)))
    return failures


def refuse_unknown(controller: Controller) -> None:
    """Raise StoreLost where there are files of containers without a record, except those that `system restore` has listed.

    Rows were deleted from the store then, or the store was replaced. The check reads the folder of all containers, so only
    verbs that list containers or create one call it.
    """
    unknown = unknown_containers(controller)
    if unknown:
        count = f"{len(unknown)} container{'' if len(unknown) == 1 else 's'}"
        raise StoreLost(f"{controller.store.path} does not know {count} with files in {controller.config.container_dir}")


def unknown_containers(controller: Controller) -> list[str]:
    """Return the ids of containers that have files but no record, except those that `system restore` has listed."""
    found = container_folders(controller.config)
    with controller.store.read() as tx:
        accepted = (tx.meta(ACCEPTED) or "").split()
        unknown = [item for item in found.difference(accepted) if tx.by_id(item + RECORD_SUFFIX) is None]
    # Listed again, because a container may have been removed after the first listing, its record last.
    still_there = container_folders(controller.config) if unknown else ()
    return sorted(item for item in unknown if item in still_there)


def _failures_of(action: Callable[[], None]) -> list[NetlibError]:
    try:
        action()
    except NetlibError as error:
        return [error]
    return []


def _if_unlocked(controller: Controller, row: Row[Container], action: Callable[[], None]) -> None:
    with controller.locks.attempt(record_lock(row.id), f"recovering container {row.name}") as held:
        if held:
            action()


def _finish_one(controller: Controller, record: str) -> None:
    with controller.store.read() as tx:
        row = tx.by_id(record)
    if row is None:
        return
    state = runtime(controller).state(row.value)
    phase = row.phase
    if phase is Phase.CREATING and state.status != "created":
        # The command has begun, and only this phase was not written: the process that started the container died before that,
        # or this is a copy of the store from that moment. The command may have written files, so the container is kept.
        with controller.store.write() as tx:
            tx.set_phase(record, Phase.READY)
            tx.count_operation()
        phase = Phase.READY
    if state.running:
        if phase is Phase.READY:
            return
        kill_and_wait(controller, row.value)
    remove_sandboxes(controller, row.value)
    if phase is not Phase.READY or row.value.spec.auto_remove:
        delete_container(controller, row.value)
