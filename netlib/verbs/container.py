"""The verbs of containers.

What passes a container's input and output (``logs``, ``exec``, ``attach``, ``wait``) is no verb: it changes nothing, so the
command line asks :class:`netlib.runtime.container.Runtime` itself.
"""

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from netlib.codec import to_builtins
from netlib.core.controller import Controller
from netlib.errors import NotFound, TeardownError
from netlib.model import Endpoint
from netlib.requests import NameRequest, NamesRequest
from netlib.runtime import service
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
    """The first of *fds* as a socket of our own, which is closed with the block; None where none was lent."""
    if not fds:
        yield None
        return
    with socket.socket(fileno=os.dup(fds[0])) as client:
        yield client


def container_stop(controller: Controller, request: StopRequest) -> dict[str, int]:
    """Stop a container; answer with its exit code."""
    state = service.stop_container(controller, request.name, seconds=request.seconds, number=request.signal)
    return {"ExitCode": state.code}


def container_kill(controller: Controller, request: KillRequest) -> None:
    """Send a signal to a container's process 1."""
    service.kill_container(controller, request.name, request.signal)


def container_rm(controller: Controller, request: RemoveRequest) -> None:
    """Remove containers, all of them or none."""
    going = [service.find_container(controller, name, half_removed=True) for name in request.names]
    service.remove_containers(controller, going, force=request.force)


def container_reap(controller: Controller, request: NameRequest) -> None:
    """Clear away an ended container; its minder asks for it."""
    service.reap_container(controller, request.name)


def container_ls(controller: Controller, request: ListRequest) -> list[dict[str, str]]:
    """The containers that run, or all of them, newest first."""
    service.refuse_unknown(controller)
    now = time.time()
    own = service.runtime(controller)
    networks = {network.id: network for network in controller.networks()}
    rows = []
    for container in sorted(service.containers(controller), key=lambda item: -item.created):
        state = own.state(container)
        if request.all_states or state.running:
            joined = [(networks[item.network], item) for item in _endpoints(controller, container) if item.network in networks]
            rows.append(container_row(container, state, ports(joined), now))
    return rows


def container_inspect(controller: Controller, request: NamesRequest) -> list[dict[str, Any]]:
    """Every named container."""
    return [_details(controller, service.find_container(controller, name)) for name in request.names]


def container_record(controller: Controller, request: NameRequest) -> Any:
    """The record itself, for a caller that goes on with :class:`netlib.runtime.container.Runtime`."""
    return to_builtins(service.find_container(controller, request.name))


def remove_all(controller: Controller) -> None:
    """Kill and remove every container; part of ``system reset``. Raises TeardownError for what would not go."""
    service.remove_containers(controller, service.containers(controller), force=True)
    if failures := service.finish(controller):
        raise TeardownError(failures)


def _details(controller: Controller, container: Container) -> dict[str, Any]:
    own = service.runtime(controller)
    try:
        sandbox = controller.sandbox(container.container_id)
    except NotFound:
        settings: dict[str, Any] = {"SandboxID": "", "SandboxKey": "", "Ports": {}, "Networks": {}}
    else:
        networks = {network.id: network for network in controller.networks()}
        settings = network_settings(sandbox, _endpoints(controller, container), networks)
    return container_details(container, own.state(container), folder=str(own.folder(container)), settings=settings)


def _endpoints(controller: Controller, container: Container) -> list[Endpoint]:
    if container.netns is None or not container.owns_sandbox:
        return []
    try:
        return controller.endpoints(sandbox=container.container_id)
    except NotFound:  # it ends just now
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
