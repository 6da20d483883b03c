"""The verbs of containers.

The commands that pass on a container's input and output (``logs``, ``exec``, ``attach``, ``wait``) are not verbs. They change
no record, so the command line calls :class:`netlib.runtime.container.Runtime` in its own process.
"""

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from netlib.codec import to_builtins
from netlib.core.controller import Controller
from netlib.errors import Conflict, NotFound, TeardownError
from netlib.model import Endpoint
from netlib.requests import NameRequest, NamesRequest
from netlib.runtime import ending, leftovers, lookup, service
from netlib.runtime.spec import Container, KillRequest, ListRequest, RemoveRequest, RunRequest, StartRequest, StopRequest
from netlib.verbs.inspect import network_settings, ports
from netlib.verbs.inspect_container import container_details, container_row
from netlib.verbs.verb import Verb

__all__ = ["VERBS", "remove_all"]


def container_run(controller: Controller, request: RunRequest) -> dict[str, Any]:
    """Create a container and start it; answer with its id and warnings."""
    spec = request.spec
    with _lent(request.fds) as client:
        container = service.run_container(controller, spec, client=client, size=request.size)
    return {"Id": container.container_id, "Name": container.name, "Warnings": service.warnings(controller, spec)}


def container_start(controller: Controller, request: StartRequest) -> dict[str, str]:
    """Start a container that does not run."""
    with _lent(request.fds) as client:
        container = service.start_container(controller, request.name, client=client, size=request.size)
    return {"Id": container.container_id, "Name": container.name}


@contextmanager
def _lent(fds: Sequence[int]) -> Iterator[socket.socket | None]:
    """Provide the first of *fds*, duplicated, as a socket for the length of the block; None where no descriptor was lent."""
    if not fds:
        yield None
        return
    with socket.socket(fileno=os.dup(fds[0])) as client:
        yield client


def container_stop(controller: Controller, request: StopRequest) -> dict[str, int]:
    """Stop a container; answer with its exit code."""
    if request.again:
        controller.require_settings()
    state = ending.stop_container(controller, request.name, seconds=request.seconds, number=request.signal)
    return {"ExitCode": state.code}


def container_kill(controller: Controller, request: KillRequest) -> None:
    """Send a signal to a container's process 1."""
    ending.kill_container(controller, request.name, request.signal)


def container_rm(controller: Controller, request: RemoveRequest) -> None:
    """Remove the named containers; when one name is unknown, or a sandbox's without a container, none is removed."""
    containers = [_to_remove(controller, name) for name in request.names]
    ending.remove_containers(controller, containers, force=request.force)


def _to_remove(controller: Controller, name: str) -> Container:
    """Find a container. Conflict for a sandbox without one: NotFound would be success to a caller with *force*."""
    try:
        return lookup.find_container(controller, name, half_removed=True)
    except NotFound as error:
        try:
            sandbox = controller.sandbox(name)
        except NotFound:
            raise error from None
        text = f"no container is removed: {name!r} is {lookup.described(sandbox)}"
        raise Conflict(text, holder=sandbox.name, holder_kind="sandbox") from error


def container_reap(controller: Controller, request: NameRequest) -> None:
    """Clean up after a container that has ended; its minder calls this verb."""
    ending.reap_container(controller, request.name)


def container_ls(controller: Controller, request: ListRequest) -> list[dict[str, str]]:
    """List the running containers, or with *all_states* all containers, newest first."""
    leftovers.refuse_unknown(controller)
    now = time.time()
    runtime = lookup.runtime(controller)
    networks = {network.id: network for network in controller.networks()}
    rows = []
    for container in sorted(lookup.containers(controller), key=lambda item: -item.created):
        state = runtime.state(container)
        if request.all_states or state.running:
            endpoints = [item for item in _endpoints(controller, container) if item.network in networks]
            rows.append(container_row(container, state, ports([(networks[item.network], item) for item in endpoints]), now))
    return rows


def container_inspect(controller: Controller, request: NamesRequest) -> list[dict[str, Any]]:
    """Return each named container in Docker's JSON."""
    return [_details(controller, lookup.find_container(controller, name)) for name in request.names]


def container_record(controller: Controller, request: NameRequest) -> Any:
    """Return a container's record, for a caller that uses :class:`netlib.runtime.container.Runtime` in its own process."""
    return to_builtins(lookup.find_container(controller, request.name))


def remove_all(controller: Controller) -> None:
    """Kill and remove every container, as part of ``system reset``; TeardownError lists what could not be removed."""
    ending.remove_containers(controller, lookup.containers(controller), force=True)
    if failures := leftovers.finish(controller):
        raise TeardownError(failures)


def _details(controller: Controller, container: Container) -> dict[str, Any]:
    runtime = lookup.runtime(controller)
    try:
        sandbox = controller.sandbox(container.container_id)
    except NotFound:
        settings: dict[str, Any] = {"SandboxID": "", "SandboxKey": "", "Ports": {}, "Networks": {}}
    else:
        networks = {network.id: network for network in controller.networks()}
        settings = network_settings(sandbox, _endpoints(controller, container), networks)
    return container_details(container, runtime.state(container), folder=str(runtime.folder(container)), settings=settings)


def _endpoints(controller: Controller, container: Container) -> list[Endpoint]:
    if container.netns is None or not container.owns_sandbox:
        return []
    try:
        return controller.endpoints(sandbox=container.container_id)
    except NotFound:  # the container is ending just now
        return []


VERBS = {
    "container.run": Verb(RunRequest, container_run),
    "container.start": Verb(StartRequest, container_start),
    "container.stop": Verb(StopRequest, container_stop),
    "container.kill": Verb(KillRequest, container_kill),
    "container.rm": Verb(RemoveRequest, container_rm),
    "container.reap": Verb(NameRequest, container_reap),
    "container.ls": Verb(ListRequest, container_ls),
    "container.inspect": Verb(NamesRequest, container_inspect),
    "container.record": Verb(NameRequest, container_record),
}
