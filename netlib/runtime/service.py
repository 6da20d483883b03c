"""Creating, starting, stopping and removing containers: the record, the sandbox and the processes of each together.

As in the core, the record is written first: the container's before anything of it is made, its netns before its command starts.
A verb that works on a container holds the container's lock. Each run of the command has a new sandbox, which is removed when
the command ends. The record, the files and the log stay until the container is removed.
"""

import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial

from msgspec.structs import replace

from netlib.core.controller import Controller
from netlib.core.endpoints import connect
from netlib.core.sandboxes import create_sandbox
from netlib.core.session import no_container
from netlib.core.traces import container_folders
from netlib.driverapi import Addressless, PublishesPorts
from netlib.errors import AlreadyExists, ConfigError, Conflict, DiskFull, InUse, NetlibError, NotFound, StoreLost
from netlib.model import Endpoint, Event, Phase, Sandbox
from netlib.names import check_alias, check_domainname, check_hostname, check_sandbox_name, new_id
from netlib.ports import PortRequest
from netlib.registry import driver
from netlib.requests import Join, SandboxRequest
from netlib.runtime.container import Runtime, State
from netlib.runtime.spec import RECORD_SUFFIX, Container, ContainerSpec, check_spec, generate_name
from netlib.store.kinds import Kind, register
from netlib.store.locks import record_lock
from netlib.store.records import Row, Transaction

register(Kind("container", Container, -1, recovered=False))

# The key under which the store has the ids of containers without a record that `system restore` has listed. No verb is refused
# because of these.
ACCEPTED = "accepted"
_KILL_SECONDS = 10.0

__all__ = [
    "containers",
    "create_container",
    "find_again",
    "find_container",
    "finish",
    "kill_container",
    "reap_container",
    "refuse_unknown",
    "remove_container",
    "remove_containers",
    "run_container",
    "start_container",
    "stop_container",
    "unknown_containers",
    "warnings",
]


def runtime(controller: Controller) -> Runtime:
    """Return the runtime of the controller's host."""
    return Runtime(controller.config)


def event(action: str, container: Container, **more: str) -> Event:
    """Return the event that *action* (Docker's word) happened to *container*; *more* are further attributes."""
    attributes = {"name": container.name, "image": container.spec.rootfs, **container.spec.labels, **more}
    return Event(type="container", action=action, id=container.container_id, attributes=attributes)


# --- looking -------------------------------------------------------------------------------------------------------------


def containers(controller: Controller) -> list[Container]:
    """Return the records of all containers, sorted by name."""
    with controller.store.read() as tx:
        return [row.value for row in tx.all(Container) if row.phase is Phase.READY]


def find_container(controller: Controller, reference: str, *, half_removed: bool = False) -> Container:
    """Return the container with that name, id or unambiguous beginning of an id; NotFound else.

    A container whose removal failed is NotFound too, unless the caller, who removes it again, asks for the *half_removed*.
    """
    with controller.store.read() as tx:
        row = tx.find(Container, reference)
    if row is None or (row.phase is Phase.REMOVING and not half_removed):
        raise no_container(reference)
    return row.value


def find_again(controller: Controller, container: Container) -> Container:
    """Read a container's record again, now that its lock is held; NotFound when it was removed before the lock was taken."""
    with controller.store.read() as tx:
        row = tx.by_id(container.id)
    if row is None or row.phase is Phase.REMOVING:
        raise NotFound(f"container {container.name!r} was removed meanwhile; `netlib ps -a` lists what there is")
    found: Container = row.value
    return found


def warnings(controller: Controller, spec: ContainerSpec) -> list[str]:
    """Return a sentence for each option of *spec* that has no effect."""
    if not spec.publish or not spec.networks:
        return []
    name = spec.networks[0].network
    if not isinstance(driver(controller.network(name).driver), Addressless):
        return []
    return [f"published ports are discarded on network {name!r}: there is nothing to map"]


# --- making --------------------------------------------------------------------------------------------------------------


def run_container(
    controller: Controller, spec: ContainerSpec, *, client: socket.socket | None = None, size: tuple[int, int] = (0, 0)
) -> Container:
    """Create a container and start it; after any error the container does not exist.

    *client* and *size* are as for :meth:`netlib.runtime.container.Runtime.launch`. Raises the errors of that method and of the
    controller's verbs.
    """
    refuse_unknown(controller)
    finish(controller)
    container = _new_record(controller, spec)
    with controller.locks.hold(record_lock(container.id), f"running container {spec.name or container.short_id}"):
        container = _insert_record(controller, container, Phase.CREATING)  # removed after a crash: its caller got no answer
        controller.publish("container create", container.name, event("create", container))
        try:
            container = _start(controller, container, client, size)
            with controller.store.write() as tx:
                tx.set_phase(container.id, Phase.READY)
            # This counts up the store's generation number: a copy of the store in which the record is still "creating", by
            # which the running container would be ended, is recognised as older from here on.
            controller.publish("container run", container.name, event("start", container))
        except BaseException:
            _kill(controller, container)
            _remove_sandboxes(controller, container)
            _delete_container(controller, container)
            controller.publish("container rm", container.name, event("destroy", container))
            raise
    return container


def create_container(controller: Controller, spec: ContainerSpec) -> Container:
    """Check *spec* and write the container's record, without a sandbox and without a process."""
    refuse_unknown(controller)
    finish(controller)
    return _insert_record(controller, _new_record(controller, spec), Phase.READY)


def _insert_record(controller: Controller, container: Container, phase: Phase) -> Container:
    with controller.store.write() as tx:
        if not container.name:
            taken = [row.name for row in tx.all(Container)] + [row.name for row in tx.all(Sandbox)]
            container = replace(container, name=generate_name(taken))
        _check_free(tx, container.name)
        tx.insert(container, name=container.name, phase=phase)
    return container


def _new_record(controller: Controller, spec: ContainerSpec) -> Container:
    """Check *spec* and return a new record for it, which is not written; ConfigError, NotFound for options that cannot hold."""
    check_spec(spec)
    if spec.name:
        check_sandbox_name(spec.name)
    if spec.hostname:
        check_hostname(spec.hostname)
    if spec.domainname:
        check_domainname(spec.domainname)
    if spec.rootfs and not os.path.isdir(spec.rootfs):
        raise ConfigError(f"--rootfs {spec.rootfs}: no such directory")
    container_id = new_id()
    hostname = spec.hostname or container_id[:12]
    if spec.netns_of:
        hostname = find_container(controller, spec.netns_of).hostname
    for attachment in spec.networks if not spec.netns_of else ():
        network = controller.network(attachment.network)
        for alias in attachment.aliases:
            check_alias(alias)
        if _shared_netns(network.driver) == "" and not spec.hostname:
            hostname = os.uname().nodename
    return Container(id=container_id + RECORD_SUFFIX, name=spec.name, created=time.time(), spec=spec, hostname=hostname)


def _check_free(tx: Transaction, name: str) -> None:
    for taken in (tx.find(Container, name), tx.find(Sandbox, name)):
        if taken is not None and taken.name == name:
            raise AlreadyExists(
                f"the name {name!r} is in use by container {taken.id[:12]}; choose another, or remove that one",
                name=name,
                holder=taken.name,
            )


def _shared_netns(driver_name: str) -> str | None:
    """Return the path of the netns that all sandboxes in networks of this driver use; None where each has its own."""
    known = driver(driver_name)
    return known.sandbox_netns() if isinstance(known, Addressless) else None


def start_container(
    controller: Controller, reference: str, *, client: socket.socket | None = None, size: tuple[int, int] = (0, 0)
) -> Container:
    """Make the container's sandbox, connect it to its networks and start its command; after an error nothing of this is left.

    A no-op for a running container.
    """
    container = find_container(controller, reference)
    with controller.locks.hold(record_lock(container.id), f"starting container {container.name}"):
        container = find_again(controller, container)
        if runtime(controller).state(container).running:
            return container
        _remove_sandboxes(controller, container)
        started = _start(controller, container, client, size, again=True)
        controller.publish("container start", container.name, event("start", container))
        return started


def _start(
    controller: Controller, container: Container, client: socket.socket | None, size: tuple[int, int], *, again: bool = False
) -> Container:
    """Connect and launch a container whose lock is held; after an error it has no sandbox."""
    try:
        container = _make_sandbox(controller, container, again=again)
        runtime(controller).launch(container, client=client, size=size)
    except BaseException:
        _remove_sandboxes(controller, container)
        raise
    return container


def _make_sandbox(controller: Controller, container: Container, *, again: bool) -> Container:
    """Make the container's sandbox, connect it to its networks, and write the netns into the container's record.

    A container that shares another one's network gets the netns of that one.
    """
    spec = container.spec
    if spec.netns_of:
        other = find_container(controller, spec.netns_of)
        if not runtime(controller).state(other).running:
            raise Conflict(f"container {other.name!r}, whose network {container.name!r} uses, is not running; start it first")
        return _write_record(controller, replace(container, netns=other.netns, files_dir=other.files_dir, owns_sandbox=False))
    shared = _shared_netns(controller.network(spec.networks[0].network).driver) if spec.networks else None
    request = SandboxRequest(
        name=container.name,
        netns=shared,
        hostname=container.hostname,
        domainname=spec.domainname,
        resolver=spec.resolver,
        sysctls=spec.sysctls,
        sandbox_id=container.container_id,
    )
    sandbox = create_sandbox(controller, request)
    placed = replace(container, netns=sandbox.netns, files_dir=sandbox.files_dir, owns_sandbox=True)
    container = _write_record(controller, placed)
    publishing = _publishing_network(controller, spec, again=again)
    for attachment in spec.networks:
        join_network(controller, sandbox.id, attachment, spec.publish if attachment is publishing else ())
    return container


def _publishing_network(controller: Controller, spec: ContainerSpec, *, again: bool) -> Join | None:
    """Choose the network that the container's ports are requested with: the first whose driver can publish ports.

    If there is none, it is the first network with a link, whose driver then refuses the ports with its reason. A container
    that is started *again* gets no such refusal: it may have been disconnected from the network that published its ports.
    """
    drivers = [(item, driver(controller.network(item.network).driver)) for item in spec.networks]
    publishing = [item for item, known in drivers if isinstance(known, PublishesPorts)]
    linked = [item for item, known in drivers if not isinstance(known, Addressless) and not again]
    return next(iter([*publishing, *linked]), None)


def join_network(controller: Controller, sandbox: str, wanted: Join, ports: Sequence[PortRequest] = ()) -> Endpoint:
    """Connect a sandbox to the network in *wanted*, with its options; raises the errors of :meth:`Controller.connect`."""
    return connect(controller, wanted.connecting(sandbox, ports))


def _write_record(controller: Controller, container: Container) -> Container:
    with controller.store.write() as tx:
        tx.replace(container)
    return container


# --- ending --------------------------------------------------------------------------------------------------------------


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
        _remove_sandboxes(controller, present.value)
        if present.value.spec.auto_remove or present.phase is not Phase.READY:
            _delete_container(controller, present.value)
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
            _kill(controller, container)  # returns when it has ended
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
        _remove_sandboxes(controller, *present)
        for container in present:
            _delete_container(controller, container)
        names = ", ".join(container.name for container in present)
        controller.publish("container rm", names, *(event("destroy", container) for container in present))


def _set_removing(controller: Controller, containers: Sequence[Container]) -> None:
    with controller.store.write(clearing=True) as tx:
        for container in containers:
            tx.set_phase(container.id, Phase.REMOVING)


def _kill(controller: Controller, container: Container) -> None:
    """Kill a container and wait for its end; a no-op when it does not run."""
    runtime(controller).stop(container, _KILL_SECONDS, signal.SIGKILL)


def _remove_sandboxes(controller: Controller, *containers: Container) -> None:
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
            _write_record(controller, replace(record.value, netns=None, files_dir="", owns_sandbox=True))


def _delete_container(controller: Controller, container: Container) -> None:
    runtime(controller).remove(container)
    with controller.store.write(clearing=True) as tx:
        tx.delete(container.id)


# --- after a crash -------------------------------------------------------------------------------------------------------


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
            tx.move_on()
        phase = Phase.READY
    if state.running:
        if phase is Phase.READY:
            return
        _kill(controller, row.value)
    _remove_sandboxes(controller, row.value)
    if phase is not Phase.READY or row.value.spec.auto_remove:
        _delete_container(controller, row.value)
