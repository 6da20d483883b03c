"""Creating and removing networks."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from netlib.core.network_record import HostState, network_draft, network_record, pool_requests, read_host_state
from netlib.core.preparing import DriverQuestion, Prepared, prepared_facts, questions
from netlib.core.session import Session
from netlib.driverapi import JoinsLan
from netlib.errors import ConfigError, FeatureMissing, InUse, TeardownError
from netlib.facts import NetworkAsked, PoolsAsked
from netlib.model import Endpoint, Event, Network, Phase
from netlib.names import new_id
from netlib.plan import ability
from netlib.registry import driver, ipam_driver
from netlib.requests import NetworkRequest
from netlib.store.records import Transaction

__all__ = ["create_network", "remove_network"]


def create_network(session: Session, request: NetworkRequest) -> Network:
    """Create the network that *request* describes; an error leaves the kernel and the records unchanged.

    Raises ConfigError, AlreadyExists, Conflict, PoolExhausted, KernelError.
    """
    session.require_settings()
    network_id, lifecycle = new_id(), session.lifecycle
    about = {"name": request.name, "type": request.driver}
    with (
        session.operation(
            "network create", request.name, Event(type="network", action="create", id=network_id, attributes=about)
        ) as operation,
        lifecycle.working_on([network_id], f"creating network {request.name}"),
        session.engine.kernel(network_id) as kernel,
    ):
        host, now = read_host_state(kernel, request, session.host.settings), time.time()
        prepared: tuple[Prepared, ...] = ()
        if asked := _questions(network_id, request, host):
            stub = Network(
                id=network_id, name=request.name, driver=request.driver, ipam_driver=request.ipam_driver, created=now
            )
            prepared = lifecycle.prepare(kernel, stub, asked, lambda tx: network_draft(tx, network_id, now, request, host))
        facts = prepared_facts(prepared)
        with _suggesting_parent(request):
            return lifecycle.create_network(
                kernel,
                network_id,
                lambda tx: network_record(tx, network_id, now, request, host, facts=facts),
                prepared,
                finish=operation.finish,
            )


@contextmanager
def _suggesting_parent(request: NetworkRequest) -> Iterator[None]:
    """Add to FeatureMissing, for a network that could be on a link of the host, that a link can be named."""
    try:
        yield
    except FeatureMissing as error:
        lan = ability(driver(request.driver), JoinsLan)
        if lan is None or lan.lan_link(request.options):
            raise
        text = f"{error}; without a parent the network is on a dummy link; name one by -o parent=LINK"
        raise FeatureMissing(text, error.errno) from error


def _questions(network_id: str, request: NetworkRequest, host: HostState) -> list[DriverQuestion]:
    """The questions that the request's network driver and IPAM driver must ask the world before the network is made."""
    known, ipam = driver(request.driver), ipam_driver(request.ipam_driver)
    return questions(
        ("driver", request.driver, known, lambda: NetworkAsked(record=network_id, request=request)),
        (
            "ipam",
            request.ipam_driver,
            ipam,
            lambda: PoolsAsked(record=network_id, name=request.name, requests=tuple(pool_requests(request, host))),
        ),
    )


def remove_network(session: Session, reference: str | Network) -> None:
    """Remove a network without endpoints.

    Raises InUse with the sandboxes in the network, ConfigError for a predefined network, NotFound, TeardownError.
    """
    done = session.finish_removal(Network, reference)
    if done is not None:
        session.publish("network rm", done.name, _destroyed(done))
        return
    with session.store.read() as tx:
        network = session.find_network(tx, reference).value
    if network.predefined:
        raise ConfigError(
            f"network {network.name!r} is predefined, as in Docker, and cannot be removed; choose another network"
        )
    with (
        session.operation("network rm", network.name, _destroyed(network)) as operation,
        session.lifecycle.working_on([network.id], f"removing network {network.name}"),
    ):
        with session.store.write(clearing=True) as tx:
            row = session.find_network(tx, network.id)
            users = [_sandbox_name(tx, item.value) for item in tx.endpoints_of_network(network.id)]
            if users:
                raise InUse(
                    f"network {network.name!r} has active endpoints: {', '.join(sorted(users))}; "
                    "disconnect them by `netlib network disconnect`, or remove them",
                    holder=network.name,
                    holder_kind="network",
                    users=sorted(users),
                )
            tx.set_phase(network.id, Phase.REMOVING)  # from here on no sandbox can join
        try:
            session.lifecycle.take_down([row], finish=operation.finish)
        except TeardownError as error:
            raise TeardownError(error.failures, subject=f"network {network.name!r}") from error


def _destroyed(network: Network) -> Event:
    about = {"name": network.name, "type": network.driver}
    return Event(type="network", action="destroy", id=network.id, attributes=about)


def _sandbox_name(tx: Transaction, endpoint: Endpoint) -> str:
    row = tx.by_id(endpoint.sandbox)
    return row.name if row else endpoint.sandbox[:12]
