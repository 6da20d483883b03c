"""Containers stopped, killed, reaped at their end, and removed.

A verb that works on a container holds the container's lock. The record, the files and the log stay until the container is
removed; its sandbox is removed when its command ends.
"""

import signal
from collections.abc import Sequence
from contextlib import ExitStack, suppress

from msgspec.structs import replace

from netlib.core.controller import Controller
from netlib.errors import Conflict, DiskFull, InUse
from netlib.model import Phase
from netlib.runtime.container import State
from netlib.runtime.lookup import event, find_container, runtime, write_record
from netlib.runtime.spec import Container
from netlib.store.locks import record_lock

_KILL_SECONDS = 10.0

__all__ = [
    "delete_container",
    "kill_and_wait",
    "kill_container",
    "reap_container",
    "remove_container",
    "remove_containers",
    "remove_sandboxes",
    "stop_container",
]


def kill_container(controller: Controller, reference: str, number: int) -> None:
    """Send a signal to the container's process 1; Conflict when the container does not run."""
    container = find_container(controller, reference)
    runtime(controller).kill(container, number)
    controller.publish("container kill", container.name, event("kill", container, signal=str(number)))


def stop_container(controller: Controller, reference: str, *, seconds: float | None = None, number: int | None = None) -> State:
    """Signal the container to end, kill it after a time, remove its sandbox, and return its final state."""
    controller.store.require_writable()  # before the container ends, for its sandbox could not be removed
    container = find_container(controller, reference)
    runtime(controller).claim_cleanup(container)
    runtime(controller).stop(container, seconds, number)
    state = runtime(controller).state(container)
    reap_container(controller, container.id)
    controller.publish("container stop", container.name, event("stop", container))
    return state


def reap_container(controller: Controller, reference: str) -> None:
    """Remove the sandbox of an ended container, and the whole container if it was run with ``--rm``.

    A no-op for a running container and for one that does not exist (any more).
    """
    with controller.store.read() as tx:
        row = tx.find(Container, reference)
    if row is None:
        return
    with controller.locks.hold(record_lock(row.id), f"clearing away container {row.name}"):
        with controller.store.read() as tx:
            present = tx.by_id(row.id)
        if present is None or (state := runtime(controller).state(present.value)).running:
            return
        if present.value.netns is not None:  # else its end has been published
            died = event("die", present.value, exitCode=str(state.code))
            controller.publish("container die", present.name, died)
        remove_sandboxes(controller, present.value)
        if present.value.spec.auto_remove or present.phase is not Phase.READY:
            delete_container(controller, present.value)
            controller.publish("container rm", present.name, event("destroy", present.value))


def remove_container(controller: Controller, reference: str, *, force: bool = False) -> None:
    """Remove a container with its files and its log. A running one is InUse, or with *force* killed first."""
    remove_containers(controller, [find_container(controller, reference, half_removed=True)], force=force)


def remove_containers(controller: Controller, wanted: Sequence[Container], *, force: bool = False) -> None:
    """Remove containers: kill all of them first, then remove all their sandboxes together. Their locks are held throughout.

    Raises InUse, and removes none, when one of them runs and *force* is not given.
    """
    processes = runtime(controller)
    wanted = sorted({container.id: container for container in wanted}.values(), key=lambda item: item.id)
    with ExitStack() as locks:
        for container in wanted:
            locks.enter_context(controller.locks.hold(record_lock(container.id), f"removing container {container.name}"))
        with controller.store.read() as tx:
            # Some may be gone: the minder of one with --rm has it removed when it ends.
            present = [row.value for container in wanted if (row := tx.by_id(container.id)) is not None]
        running = [container for container in present if processes.state(container).running]
        if running and not force:
            raise InUse(f"container {running[0].name!r} is running; stop it first, or remove it with --force")
        controller.store.require_writable()  # before any container is killed
        for container in running:
            processes.claim_cleanup(container)
            with suppress(Conflict):  # it ended just now
                processes.kill(container)
        for container in running:
            kill_and_wait(controller, container)  # returns when it has ended
        if running:
            died = [event("die", container, exitCode=str(processes.state(container).code)) for container in running]
            controller.publish("container die", ", ".join(container.name for container in running), *died)
        try:
            _set_removing(controller, present)
        except DiskFull:
            # Their own files may fill the disk. These are deleted before the records say so; after a crash in between, the
            # next removal finds them missing, which is no error.
            for container in present:
                processes.remove(container)
            _set_removing(controller, present)
        remove_sandboxes(controller, *present)
        for container in present:
            delete_container(controller, container)
        names = ", ".join(container.name for container in present)
        controller.publish("container rm", names, *(event("destroy", container) for container in present))


def _set_removing(controller: Controller, containers: Sequence[Container]) -> None:
    with controller.store.write(clearing=True) as tx:
        for container in containers:
            tx.set_phase(container.id, Phase.REMOVING)


def kill_and_wait(controller: Controller, container: Container) -> None:
    """Kill a container and wait for its end; a no-op when it does not run."""
    runtime(controller).stop(container, _KILL_SECONDS, signal.SIGKILL)


def remove_sandboxes(controller: Controller, *containers: Container) -> None:
    """Remove the sandboxes of ended containers, where they have any, and delete the netns from the containers' records."""
    controller.recover()  # removes sandboxes whose creation or removal broke off
    with controller.store.read() as tx:
        rows = [tx.by_id(container.container_id) for container in containers]
        records = [tx.by_id(container.id) for container in containers]
    ready = [row.id for row in rows if row is not None and row.phase is Phase.READY]
    if ready:
        controller.remove_sandboxes(ready)
    for record in records:
        if record is not None and record.value.netns is not None:
            write_record(controller, replace(record.value, netns=None, files_dir="", owns_sandbox=True))


def delete_container(controller: Controller, container: Container) -> None:
    """Delete a container's files and log, then its record."""
    runtime(controller).remove(container)
    with controller.store.write(clearing=True) as tx:
        tx.delete(container.id)
