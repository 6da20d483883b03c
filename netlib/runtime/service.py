"""Containers on networks: the record, the sandbox and the processes of one, brought together and taken apart.

Record first, as in the core: a container is written down before anything of it is made, and where it runs before it does; while
somebody works on it, its lock is held. Each run of its command has a sandbox of its own, which goes when the command ends; the
record, the files and the log stay until it is removed.
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

# The key of a fact about the store: ids of containers without a record that `system restore` has listed. No verb is refused
# because of them.
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
    """The runtime of the controller's host."""
    return Runtime(controller.config)


def event(action: str, container: Container, **more: str) -> Event:
    """What has happened to *container*, in Docker's words."""
    about = {"name": container.name, "image": container.spec.rootfs, **container.spec.labels, **more}
    return Event(type="container", action=action, id=container.container_id, attributes=about)


# --- looking -------------------------------------------------------------------------------------------------------------


def containers(controller: Controller) -> list[Container]:
    """Every container, by name."""
    with controller.store.read() as tx:
        return [row.value for row in tx.all(Container) if row.phase is Phase.READY]


def find_container(controller: Controller, reference: str, *, half_removed: bool = False) -> Container:
    """The container with that name, id or unambiguous beginning of an id; NotFound else.

    One whose removal failed is not there, except for who wants the *half_removed* as well: to remove them again.
    """
    with controller.store.read() as tx:
        row = tx.find(Container, reference)
    if row is None or (row.phase is Phase.REMOVING and not half_removed):
        raise no_container(reference)
    return row.value


def find_again(controller: Controller, container: Container) -> Container:
    """A container as it is now that its lock is held; NotFound when it was removed before."""
    with controller.store.read() as tx:
        row = tx.by_id(container.id)
    if row is None or row.phase is Phase.REMOVING:
        raise NotFound(f"container {container.name!r} was removed meanwhile; `netlib ps -a` lists what there is")
    found: Container = row.value
    return found


def warnings(controller: Controller, spec: ContainerSpec) -> list[str]:
    """What of a request has no effect, one sentence each."""
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
    """Create a container and start it; after any error there is neither.

    *client* and *size* are as for :meth:`netlib.runtime.container.Runtime.launch`. Raises what that raises and what the
    verbs of the controller do.
    """
    refuse_unknown(controller)
    finish(controller)
    container = _draft(controller, spec)
    with controller.locks.hold(record_lock(container.id), f"running container {spec.name or container.short_id}"):
        container = _inserted(controller, container, Phase.CREATING)  # after a crash nobody was told of it: it goes
        controller.publish("container create", container.name, event("create", container))
        try:
            container = _start(controller, container, client, size)
            with controller.store.write() as tx:
                tx.set_phase(container.id, Phase.READY)
            # A copy of the store in which it is half made, and would be ended, is an older one from this line on.
            controller.publish("container run", container.name, event("start", container))
        except BaseException:
            _kill(controller, container)
            _leave(controller, container)
            _delete(controller, container)
            controller.publish("container rm", container.name, event("destroy", container))
            raise
    return container


def create_container(controller: Controller, spec: ContainerSpec) -> Container:
    """Check a request and write the container down; nothing runs and nothing is joined yet."""
    refuse_unknown(controller)
    finish(controller)
    return _inserted(controller, _draft(controller, spec), Phase.READY)


def _inserted(controller: Controller, container: Container, phase: Phase) -> Container:
    with controller.store.write() as tx:
        if not container.name:
            taken = [row.name for row in tx.all(Container)] + [row.name for row in tx.all(Sandbox)]
            container = replace(container, name=generate_name(taken))
        _check_free(tx, container.name)
        tx.insert(container, name=container.name, phase=phase)
    return container


def _draft(controller: Controller, spec: ContainerSpec) -> Container:
    """The record of a request in which all is well as far as can be told now."""
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
    """The path of the netns that a network's sandboxes must use; None for one of their own."""
    known = driver(driver_name)
    return known.sandbox_netns() if isinstance(known, Addressless) else None


def start_container(
    controller: Controller, reference: str, *, client: socket.socket | None = None, size: tuple[int, int] = (0, 0)
) -> Container:
    """Make the container's sandbox, join its networks, start its command; after an error nothing of that is left.

    A no-op for one that runs.
    """
    container = find_container(controller, reference)
    with controller.locks.hold(record_lock(container.id), f"starting container {container.name}"):
        container = find_again(controller, container)
        if runtime(controller).state(container).running:
            return container
        _leave(controller, container)
        started = _start(controller, container, client, size, again=True)
        controller.publish("container start", container.name, event("start", container))
        return started


def _start(
    controller: Controller, container: Container, client: socket.socket | None, size: tuple[int, int], *, again: bool = False
) -> Container:
    """Join and launch a container whose lock is held; after an error it is nowhere again."""
    try:
        container = _join(controller, container, again=again)
        runtime(controller).launch(container, client=client, size=size)
    except BaseException:
        _leave(controller, container)
        raise
    return container


def _join(controller: Controller, container: Container, *, again: bool) -> Container:
    """Give the container its netns and its networks, and write down where it is."""
    spec = container.spec
    if spec.netns_of:
        other = find_container(controller, spec.netns_of)
        if not runtime(controller).state(other).running:
            raise Conflict(f"container {other.name!r}, whose network {container.name!r} uses, is not running; start it first")
        return _written(controller, replace(container, netns=other.netns, files_dir=other.files_dir, owns_sandbox=False))
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
    container = _written(controller, replace(container, netns=sandbox.netns, files_dir=sandbox.files_dir, owns_sandbox=True))
    asking = _asking(controller, spec, again=again)
    for attachment in spec.networks:
        join_network(controller, sandbox.id, attachment, spec.publish if attachment is asking else ())
    return container


def _asking(controller: Controller, spec: ContainerSpec, *, again: bool) -> Join | None:
    """With which of its networks a container asks for its ports: one that can publish.

    Else one that says why it cannot, but for a container that is started *again*: it may have left the one that could.
    """
    drivers = [(item, driver(controller.network(item.network).driver)) for item in spec.networks]
    able = [item for item, known in drivers if isinstance(known, PublishesPorts)]
    linked = [item for item, known in drivers if not isinstance(known, Addressless) and not again]
    return next(iter([*able, *linked]), None)


def join_network(controller: Controller, sandbox: str, wanted: Join, ports: Sequence[PortRequest] = ()) -> Endpoint:
    """Join a sandbox to the network that *wanted* names, as it asks for; raises what :meth:`Controller.connect` raises."""
    return connect(controller, wanted.connecting(sandbox, ports))


def _written(controller: Controller, container: Container) -> Container:
    with controller.store.write() as tx:
        tx.replace(container)
    return container


# --- ending --------------------------------------------------------------------------------------------------------------


def kill_container(controller: Controller, reference: str, number: int) -> None:
    """Send a signal to the container's process 1; Conflict when it does not run."""
    container = find_container(controller, reference)
    runtime(controller).kill(container, number)
    controller.publish("container kill", container.name, event("kill", container, signal=str(number)))


def stop_container(controller: Controller, reference: str, *, seconds: float | None = None, number: int | None = None) -> State:
    """Ask the container to end, kill it when it does not in time, take its sandbox away; answer with how it ended."""
    controller.store.require_writable()  # how it ended could not be written down
    container = find_container(controller, reference)
    runtime(controller).claim(container)
    runtime(controller).stop(container, seconds, number)
    state = runtime(controller).state(container)
    reap_container(controller, container.id)
    controller.publish("container stop", container.name, event("stop", container))
    return state


def reap_container(controller: Controller, reference: str) -> None:
    """Take away what an ended container no longer needs: its sandbox, and all of it when it was to be removed at its end.

    A no-op for one that runs or is not there (any more).
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
        if present.value.netns is not None:  # else its end was told before
            died = event("die", present.value, exitCode=str(state.code))
            controller.publish("container die", present.name, died)
        _leave(controller, present.value)
        if present.value.spec.auto_remove or present.phase is not Phase.READY:
            _delete(controller, present.value)
            controller.publish("container rm", present.name, event("destroy", present.value))


def remove_container(controller: Controller, reference: str, *, force: bool = False) -> None:
    """Remove a container with its files and its log; InUse when it runs, unless *force* says to kill it."""
    remove_containers(controller, [find_container(controller, reference, half_removed=True)], force=force)


def remove_containers(controller: Controller, going: Sequence[Container], *, force: bool = False) -> None:
    """Remove many containers: all are killed first, then their networks are left in one go. Nobody starts them meanwhile.

    Raises InUse, and removes none, when one of them runs and *force* does not say to kill it.
    """
    own = runtime(controller)
    going = sorted({container.id: container for container in going}.values(), key=lambda item: item.id)
    with ExitStack() as locks:
        for container in going:
            locks.enter_context(controller.locks.hold(record_lock(container.id), f"removing container {container.name}"))
        with controller.store.read() as tx:
            present = [row.value for container in going if (row := tx.by_id(container.id)) is not None]  # minders are quick
        running = [container for container in present if own.state(container).running]
        if running and not force:
            raise InUse(f"container {running[0].name!r} is running; stop it first, or remove it with --force")
        controller.store.require_writable()  # before anything ends
        for container in running:
            own.claim(container)
            with suppress(Conflict):  # it ended just now
                own.kill(container)
        for container in running:
            _kill(controller, container)  # and wait
        if running:
            died = [event("die", container, exitCode=str(own.state(container).code)) for container in running]
            controller.publish("container die", ", ".join(container.name for container in running), *died)
        try:
            _set_removing(controller, present)
        except DiskFull:  # perhaps with what they wrote, and that may go first: to remove them again does no harm
            for container in present:
                own.remove(container)
            _set_removing(controller, present)
        _leave(controller, *present)
        for container in present:
            _delete(controller, container)
        names = ", ".join(container.name for container in present)
        controller.publish("container rm", names, *(event("destroy", container) for container in present))


def _set_removing(controller: Controller, going: Sequence[Container]) -> None:
    with controller.store.write(clearing=True) as tx:
        for container in going:
            tx.set_phase(container.id, Phase.REMOVING)


def _kill(controller: Controller, container: Container) -> None:
    """End it at once, if it runs."""
    runtime(controller).stop(container, _KILL_SECONDS, signal.SIGKILL)


def _leave(controller: Controller, *containers: Container) -> None:
    """Remove the sandboxes of ended runs, where there are any, and write down that the containers are nowhere."""
    controller.recover()  # one that was left half made or half removed
    with controller.store.read() as tx:
        rows = [tx.by_id(container.container_id) for container in containers]
        records = [tx.by_id(container.id) for container in containers]
    ready = [row.id for row in rows if row is not None and row.phase is Phase.READY]
    if ready:
        controller.remove_sandboxes(ready)
    for record in records:
        if record is not None and record.value.netns is not None:
            _written(controller, replace(record.value, netns=None, files_dir="", owns_sandbox=True))


def _delete(controller: Controller, container: Container) -> None:
    runtime(controller).remove(container)
    with controller.store.write(clearing=True) as tx:
        tx.delete(container.id)


# --- after a crash -------------------------------------------------------------------------------------------------------


def finish(controller: Controller) -> list[NetlibError]:
    """Clear away what dead processes left: containers half made or half removed, and sandboxes of ended ones.

    Answers with what would not go: that is no reason to refuse others. Files that belong to no record stay: a record is written
    before the first file and deleted after the last one, so it is the store that has lost it, and they may be somebody's work.
    """
    with controller.store.read() as tx:
        rows = tx.all(Container)
    own = runtime(controller)
    failures: list[NetlibError] = []
    for row in rows:
        if row.phase is Phase.READY and (row.value.netns is None or own.state(row.value).running):
            continue
        failures += _attempted(partial(_if_idle, controller, row, partial(_finish_one, controller, row.id)))
    return failures


def refuse_unknown(controller: Controller) -> None:
    """Raise StoreLost where containers have files that no record knows: rows were lost, by whatever hand.

    Those that `netlib system restore` has listed were accepted. It lists all containers, so it is for verbs that do so anyway.
    """
    unknown = unknown_containers(controller)
    if unknown:
        count = f"{len(unknown)} container{'' if len(unknown) == 1 else 's'}"
        raise StoreLost(f"{controller.store.path} does not know {count} with files in {controller.config.container_dir}")


def unknown_containers(controller: Controller) -> list[str]:
    """The ids of containers with files that no record knows, but for those that have been accepted."""
    found = container_folders(controller.config)
    with controller.store.read() as tx:
        accepted = (tx.meta(ACCEPTED) or "").split()
        unknown = [item for item in found.difference(accepted) if tx.by_id(item + RECORD_SUFFIX) is None]
    still_there = container_folders(controller.config) if unknown else ()  # else it was removed, record last, in between
    return sorted(item for item in unknown if item in still_there)


def _attempted(action: Callable[[], None]) -> list[NetlibError]:
    try:
        action()
    except NetlibError as error:
        return [error]
    return []


def _if_idle(controller: Controller, row: Row[Container], action: Callable[[], None]) -> None:
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
        # Its command has begun, which comes last but for this mark: who made it died in between, or an older copy of the store
        # was made in between. It may have written something.
        with controller.store.write() as tx:
            tx.set_phase(record, Phase.READY)
            tx.move_on()
        phase = Phase.READY
    if state.running:
        if phase is Phase.READY:
            return
        _kill(controller, row.value)
    _leave(controller, row.value)
    if phase is not Phase.READY or row.value.spec.auto_remove:
        _delete(controller, row.value)
