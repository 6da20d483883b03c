"""Connecting containers to networks and disconnecting them, while they run or not.

The networks are written into the container's record, so that the next start connects it to the same ones.
"""

from contextlib import suppress

from msgspec.structs import replace

from netlib.core.controller import Controller
from netlib.core.session import no_container
from netlib.driverapi import PublishesPorts
from netlib.errors import AlreadyExists, Conflict, NotFound
from netlib.model import Endpoint, Network
from netlib.names import check_alias
from netlib.ports import PortRequest
from netlib.registry import driver_of
from netlib.requests import Join
from netlib.runtime.lookup import find_again, find_container, runtime
from netlib.runtime.service import join_network
from netlib.runtime.spec import Container, check_spec
from netlib.store.locks import record_lock


def connect_container(controller: Controller, reference: str, wanted: Join) -> Endpoint | None:
    """Connect a container to a network: a running one at once, which returns the endpoint, another one at its next start.

    *reference* may also be a sandbox that the Python API made without a container. Raises the errors of
    :meth:`Controller.connect`; AlreadyExists when the container is in that network, Conflict when it shares the network of
    another container.
    """
    controller.require_settings()
    network = controller.network(wanted.network)
    container = _find(controller, reference)
    if container is None:
        return join_network(controller, _sandbox(controller, reference), wanted)
    with controller.locks.hold(record_lock(container.id), f"connecting container {container.name}"):
        container = _require_own_networks(controller, container)
        spec = container.spec
        if any(_is_network(controller, item, network) for item in spec.networks):
            raise AlreadyExists(
                f"container {container.name!r} is in network {network.name!r} already; "
                "disconnect it first to connect it with other options",
                holder=container.name,
                holder_kind="container",
                name=container.name,
                network=network.name,
                sandbox=container.name,
            )
        for alias in wanted.aliases:
            check_alias(alias)
        changed = replace(spec, networks=(*spec.networks, replace(wanted, network=network.name)))
        check_spec(changed)
        endpoint = None
        if runtime(controller).state(container).running:
            ports = _ports_to_publish(controller, container, network)
            endpoint = join_network(controller, container.container_id, wanted, ports)
        _write(controller, replace(container, spec=changed))
    return endpoint


def disconnect_container(controller: Controller, reference: str, network_reference: str) -> None:
    """Disconnect a container from a network, now and for its next start; NotFound when the container is not in the network."""
    network = controller.network(network_reference)
    container = _find(controller, reference)
    if container is None:
        controller.disconnect(network.id, _sandbox(controller, reference))
        return
    with controller.locks.hold(record_lock(container.id), f"disconnecting container {container.name}"):
        container = _require_own_networks(controller, container)
        kept = tuple(item for item in container.spec.networks if not _is_network(controller, item, network))
        was_member = len(kept) < len(container.spec.networks)
        if runtime(controller).state(container).running:
            # Also without the network in the container's record: a verb that died may have made the endpoint only.
            with suppress(NotFound):
                controller.disconnect(network.id, container.container_id, keep_ports=True)
                was_member = True
        if not was_member:
            raise NotFound(
                f"container {container.name!r} is not in network {network.name!r}; "
                f"`netlib inspect {container.name}` lists the networks that it is in"
            )
        _write(controller, replace(container, spec=replace(container.spec, networks=kept)))


def _find(controller: Controller, reference: str) -> Container | None:
    try:
        return find_container(controller, reference)
    except NotFound:
        return None


def _sandbox(controller: Controller, reference: str) -> str:
    """Return the id of a sandbox without a container; the error for an unknown container where there is none."""
    try:
        return controller.sandbox(reference).id
    except NotFound:
        raise no_container(reference) from None


def _ports_to_publish(controller: Controller, container: Container, network: Network) -> tuple[PortRequest, ...]:
    """Return the container's ports if *network* can publish them and no other network of the container does, else none."""
    are_published = any(endpoint.ports for endpoint in controller.endpoints(sandbox=container.container_id))
    return () if are_published or not isinstance(driver_of(network), PublishesPorts) else container.spec.publish


def _require_own_networks(controller: Controller, container: Container) -> Container:
    """Read the container's record again and return it; Conflict when it shares the network of another container."""
    container = find_again(controller, container)
    if container.spec.netns_of:
        raise Conflict(f"the network of container {container.name!r} is that of {container.spec.netns_of!r}; connect that one")
    return container


def _is_network(controller: Controller, attachment: Join, network: Network) -> bool:
    """Whether *attachment*, which has a network's name or id as a person typed it, means *network*."""
    with suppress(NotFound):
        return controller.network(attachment.network).id == network.id
    return False


def _write(controller: Controller, container: Container) -> None:
    with controller.store.write() as tx:
        tx.replace(container)
