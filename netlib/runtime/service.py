"""Creating and starting containers: the record, the sandbox and the processes of each together.

As in the core, the record is written first: the container's before anything of it is made, its netns before its command starts.
A verb that works on a container holds the container's lock. Each run of the command has a new sandbox, which is removed when
the command ends (:mod:`netlib.runtime.ending`).
"""

import os
import socket
import time
from collections.abc import Sequence

from msgspec.structs import replace

from netlib.core.controller import Controller
from netlib.core.endpoints import connect
from netlib.core.sandboxes import create_sandbox
from netlib.driverapi import Addressless, PublishesPorts
from netlib.errors import AlreadyExists, ConfigError, Conflict
from netlib.model import Endpoint, Network, Phase, Sandbox
from netlib.names import check_alias, check_container_name, check_domainname, check_hostname, new_id
from netlib.ports import PortRequest
from netlib.registry import usable_driver_of
from netlib.requests import Join, SandboxRequest
from netlib.runtime.ending import delete_container, kill_and_wait, remove_sandboxes
from netlib.runtime.leftovers import finish, refuse_unknown
from netlib.runtime.lookup import described, event, find_again, find_container, runtime, write_record
from netlib.runtime.spec import RECORD_SUFFIX, Container, ContainerSpec, check_spec, generate_name
from netlib.store.locks import record_lock
from netlib.store.records import Transaction

__all__ = ["create_container", "join_network", "run_container", "start_container", "warnings"]


def warnings(controller: Controller, spec: ContainerSpec) -> list[str]:
    """Return a sentence for each option of *spec* that has no effect."""
    if not spec.publish or not spec.networks:
        return []
    name = spec.networks[0].network
    if not isinstance(usable_driver_of(controller.network(name)), Addressless):
        return []
    is_host = _shared_netns(controller.network(name)) == ""
    reason = "the container has the host's own ports" if is_host else "the container has no address"
    return [f"-p has no effect on network {name!r}: {reason}"]


def run_container(
    controller: Controller, spec: ContainerSpec, *, client: socket.socket | None = None, size: tuple[int, int] = (0, 0)
) -> Container:
    """Create a container and start it; after any error the container does not exist.

    *client* and *size* are as for :meth:`netlib.runtime.container.Runtime.launch`. Raises the errors of that method and of the
    controller's verbs.
    """
    controller.require_settings()
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
            kill_and_wait(controller, container)
            remove_sandboxes(controller, container)
            delete_container(controller, container)
            controller.publish("container rm", container.name, event("destroy", container))
            raise
    return container


def create_container(controller: Controller, spec: ContainerSpec) -> Container:
    """Check *spec* and write the container's record, without a sandbox and without a process."""
    controller.require_settings()
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
        check_container_name(spec.name)
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
        if _shared_netns(network) == "" and not spec.hostname:
            hostname = os.uname().nodename
    return Container(id=container_id + RECORD_SUFFIX, name=spec.name, created=time.time(), spec=spec, hostname=hostname)


def _check_free(tx: Transaction, name: str) -> None:
    whose = kind = ""
    if (container := tx.find_named(Container, name)) is not None:
        whose, kind = f"container {container.id[:12]}", "container"
    elif (sandbox := tx.find_named(Sandbox, name)) is not None:
        whose, kind = described(sandbox.value), "sandbox"
    if whose:
        text = f"the name {name!r} is in use by {whose}; choose another, or remove that one"
        raise AlreadyExists(text, name=name, holder=name, holder_kind=kind)


def _shared_netns(network: Network) -> str | None:
    """Return the path of the netns that all sandboxes in networks of *network*'s driver use; None where each has its own."""
    known = usable_driver_of(network)
    return known.sandbox_netns() if isinstance(known, Addressless) else None


def start_container(
    controller: Controller, reference: str, *, client: socket.socket | None = None, size: tuple[int, int] = (0, 0)
) -> Container:
    """Make the container's sandbox, connect it to its networks and start its command; after an error nothing of this is left.

    A no-op for a running container.
    """
    controller.require_settings()
    container = find_container(controller, reference)
    with controller.locks.hold(record_lock(container.id), f"starting container {container.name}"):
        container = find_again(controller, container)
        if runtime(controller).state(container).running:
            return container
        remove_sandboxes(controller, container)
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
        remove_sandboxes(controller, container)
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
        return write_record(controller, replace(container, netns=other.netns, files_dir=other.files_dir, owns_sandbox=False))
    shared = _shared_netns(controller.network(spec.networks[0].network)) if spec.networks else None
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
    container = write_record(controller, placed)
    publishing = _publishing_network(controller, spec, again=again)
    for attachment in spec.networks:
        join_network(controller, sandbox.id, attachment, spec.publish if attachment is publishing else ())
    return container


def _publishing_network(controller: Controller, spec: ContainerSpec, *, again: bool) -> Join | None:
    """Choose the network that the container's ports are requested with: the first whose driver can publish ports.

    If there is none, it is the first network with a link, whose driver then refuses the ports with its reason. A container
    that is started *again* gets no such refusal: it may have been disconnected from the network that published its ports.
    """
    drivers = [(item, usable_driver_of(controller.network(item.network))) for item in spec.networks]
    publishing = [item for item, known in drivers if isinstance(known, PublishesPorts)]
    linked = [item for item, known in drivers if not isinstance(known, Addressless) and not again]
    return next(iter([*publishing, *linked]), None)


def join_network(controller: Controller, sandbox: str, wanted: Join, ports: Sequence[PortRequest] = ()) -> Endpoint:
    """Connect a sandbox to the network in *wanted*, with its options; raises the errors of :meth:`Controller.connect`."""
    return connect(controller, wanted.connecting(sandbox, ports))
