"""Containers joining and leaving networks after their start, or before: what they joined is theirs again at the next start."""

from contextlib import suppress

from msgspec.structs import replace

from netlib.core.controller import Controller
from netlib.driverapi import PublishesPorts
from netlib.errors import AlreadyExists, Conflict, NotFound
from netlib.model import Endpoint, Network
from netlib.names import check_alias
from netlib.ports import PortRequest
from netlib.registry import driver_of
from netlib.requests import Join
from netlib.runtime.service import find_again, find_container, join_network, runtime
from netlib.runtime.spec import Container, check_spec
from netlib.store.locks import record_lock


def connect_container(controller: Controller, reference: str, wanted: Join) -> Endpoint | None:
    """Join a container to a network, at once where it runs (then the endpoint is answered), else at its next start.

    A sandbox that is no container of the runtime (the Python API's) is joined as well. Raises what
    :meth:`Controller.connect` raises; AlreadyExists when it is in that network, Conflict when its network is another
    container's.
    """
    network = controller.network(wanted.network)
    container = _find(controller, reference)
    if container is None:
        return join_network(controller, reference, wanted)
    with controller.locks.hold(record_lock(container.id), f"connecting container {container.name}"):
        container = _own_networks(controller, container)
        spec = container.spec
        if any(_means(controller, item, network) for item in spec.networks):
            raise AlreadyExists(f"container {container.name!r} is in network {network.name!r} already")
        for alias in wanted.aliases:
            check_alias(alias)
        changed = replace(spec, networks=(*spec.networks, replace(wanted, network=network.name)))
        check_spec(changed)
        endpoint = None
        if runtime(controller).state(container).running:
            ports = _unpublished(controller, container, network)
            endpoint = join_network(controller, container.container_id, wanted, ports)
        _write(controller, replace(container, spec=changed))
    return endpoint


def disconnect_container(controller: Controller, reference: str, network_reference: str) -> None:
    """Take a container out of a network, at once where it runs, and for its next start; NotFound when it is not in it."""
    network = controller.network(network_reference)
    container = _find(controller, reference)
    if container is None:
        controller.disconnect(network.id, reference)
        return
    with controller.locks.hold(record_lock(container.id), f"disconnecting container {container.name}"):
        container = _own_networks(controller, container)
        kept = tuple(item for item in container.spec.networks if not _means(controller, item, network))
        was_in = len(kept) < len(container.spec.networks)
        if runtime(controller).state(container).running:
            with suppress(NotFound):  # what is written down here may be behind: a verb before this one died
                controller.disconnect(network.id, container.container_id, keep_ports=True)
                was_in = True
        if not was_in:
            raise NotFound(f"container {container.name!r} is not in network {network.name!r}")
        _write(controller, replace(container, spec=replace(container.spec, networks=kept)))


def _find(controller: Controller, reference: str) -> Container | None:
    try:
        return find_container(controller, reference)
    except NotFound:
        return None


def _unpublished(controller: Controller, container: Container, network: Network) -> tuple[PortRequest, ...]:
    """The container's ports, where none of its networks publishes them and *network* can."""
    asked = any(endpoint.ports for endpoint in controller.endpoints(sandbox=container.container_id))
    return () if asked or not isinstance(driver_of(network), PublishesPorts) else container.spec.publish


def _own_networks(controller: Controller, container: Container) -> Container:
    """The container as it is now; Conflict when it has no network of its own."""
    container = find_again(controller, container)
    if container.spec.netns_of:
        raise Conflict(f"the network of container {container.name!r} is that of {container.spec.netns_of!r}; connect that one")
    return container


def _means(controller: Controller, attachment: Join, network: Network) -> bool:
    """Whether an attachment, which names a network as somebody typed it, is to *network*."""
    with suppress(NotFound):
        return controller.network(attachment.network).id == network.id
    return False


def _write(controller: Controller, container: Container) -> None:
    with controller.store.write() as tx:
        tx.replace(container)
