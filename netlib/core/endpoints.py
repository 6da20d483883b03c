"""Sandboxes joined to networks, and taken out of them."""

import time
from collections.abc import Collection, Mapping

from netlib.core.endpoint_record import endpoint_record
from netlib.core.phases import Action, Found, what_happens
from netlib.core.preparing import DriverQuestion, prepared_facts, questions
from netlib.core.repair import leave_with_repair, with_repair
from netlib.core.sandbox_plan import inside_plan, is_served
from netlib.core.session import Session, membership_event
from netlib.driverapi import Addressless
from netlib.errors import AlreadyExists, ConfigError, InUse, NetlibError, NotFound, PackageFailed
from netlib.facts import AddressesAsked, EndpointAsked, Facts
from netlib.model import Endpoint, Network, Sandbox
from netlib.plan import Plan, ability
from netlib.registry import driver_of, ipam_driver_of, usable_driver_of
from netlib.requests import ConnectRequest
from netlib.store.records import Transaction

__all__ = ["connect", "disconnect"]


def connect(session: Session, request: ConnectRequest, *, endpoint_id: str = "") -> Endpoint:
    """Join the sandbox to the network that *request* names; after an error nothing is changed.

    Raises AlreadyExists (it is in that network), ConfigError, AddressTaken, PortTaken, PoolExhausted, KernelError.
    """
    lifecycle = session.lifecycle
    with session.looking() as tx:
        session.host.require_settings()
        home, box = session.find_network(tx, request.network), session.find_sandbox(tx, request.container)
        endpoint_id = endpoint_id or tx.new_link_id()

    session.tell_of_bridge(home.value)

    def draft(tx: Transaction, facts: Mapping[str, Facts] | None = None) -> tuple[Endpoint, Plan]:
        network, sandbox = session.find_network(tx, home.id).value, session.find_sandbox(tx, box.id).value
        links = _check(tx, endpoint_id, network, sandbox)
        return _draft(tx, endpoint_id, network, sandbox, request, links, facts)

    with (
        session.operation(
            "network connect",
            f"{box.name} {home.name}",
            membership_event("connect", home.value, box.value),
            is_recovered=True,
        ) as operation,
        session.engine.kernel(endpoint_id) as kernel,
    ):
        asked = _questions(endpoint_id, home.value, box.value, request)
        if not lifecycle.is_materialised(home):
            with session.store.rehearsal() as tx:  # a refused request must not make the network's link
                if asked:  # the rest of the draft needs the answers
                    _check(tx, endpoint_id, home.value, box.value)
                else:
                    draft(tx)
            lifecycle.materialise(kernel, home)

        def join() -> Endpoint:  # again after a repair: it leaves nothing behind when it fails
            with lifecycle.working_on([box.id], f"connecting {box.name} to {home.name}"):
                if not asked:
                    return lifecycle.create_endpoint(kernel, endpoint_id, box.id, draft, finish=operation.finish)
                stub = Endpoint(id=endpoint_id, network=home.id, sandbox=box.id, created=time.time())
                prepared = lifecycle.prepare(kernel, stub, asked, lambda tx: _check(tx, endpoint_id, home.value, box.value))
                facts = prepared_facts(prepared)
                return lifecycle.create_endpoint(
                    kernel, endpoint_id, box.id, lambda tx: draft(tx, facts), prepared, finish=operation.finish
                )

        endpoint = with_repair(lifecycle, home.id, join)
    served = bool(endpoint.ports) or is_served([(home.value, endpoint)])
    try:
        session.watcher.changed(sandboxes=[box.id], networks=[home.id], needed=served)
    except NetlibError:  # without netlibd its names and held ports would be missing, so the connect is undone
        disconnect(session, home.id, box.id)
        raise
    return endpoint


def disconnect(session: Session, network: str | Network, sandbox: str | Sandbox, *, keep_ports: bool = False) -> None:
    """Take a sandbox out of a network; NotFound when it is not in it.

    The ports that it was connected with are closed, or, with *keep_ports*, published by another of its networks.
    """
    lifecycle = session.lifecycle
    with session.looking() as tx:
        home, box = session.find_network(tx, network), session.find_sandbox(tx, sandbox)

    def leave() -> None:
        with lifecycle.working_on([box.id], f"disconnecting {box.name} from {home.name}"):
            with session.store.read() as tx:
                rows = [row for row in tx.endpoints_of_sandbox(box.id) if row.value.network == home.id]
            if not rows:
                text = f"sandbox {box.name!r} is not connected to network {home.name!r}"
                raise NotFound(f"{text}; `netlib network inspect` lists who is", kind="endpoint", reference=box.name)
            lifecycle.take_down(rows, keep_ports=keep_ports, finish=operation.finish)

    with session.operation(
        "network disconnect", f"{box.name} {home.name}", membership_event("disconnect", home.value, box.value)
    ) as operation:
        leave_with_repair(lifecycle, box.id, leave)
    session.watcher.changed(sandboxes=[box.id], networks=[home.id], needed=False)


def _questions(endpoint_id: str, network: Network, box: Sandbox, request: ConnectRequest) -> list[DriverQuestion]:
    """What the network's drivers must ask the world before the endpoint can be made."""
    preferred = tuple(address for address in (request.ip, request.ip6) if address is not None)
    return questions(
        (
            "driver",
            network.driver,
            driver_of(network),
            lambda: EndpointAsked(record=endpoint_id, network=network, sandbox=box, request=request),
        ),
        (
            "ipam",
            network.ipam_driver,
            ipam_driver_of(network) if network.pools else None,
            lambda: AddressesAsked(record=endpoint_id, network=network, sandbox=box, preferred=preferred),
        ),
    )


def _check(tx: Transaction, endpoint_id: str, network: Network, box: Sandbox) -> Collection[str]:
    """Refuse a sandbox that is in the network, and one whose netns the network's driver cannot use.

    Answer with the names of the links that it has.
    """
    present = [row for row in tx.endpoints_of_sandbox(box.id) if row.id != endpoint_id]
    same = [row for row in present if row.value.network == network.id]
    actions = [what_happens(row.phase, Found.TO_BE_MADE) for row in same]
    if Action.REFUSE_WHILE_IT_LEAVES in actions:
        text = (
            f"{box.name!r} is half disconnected from network {network.name!r}: an object could not be removed; see `netlib log`"
        )
        raise InUse(text, holder=network.name, holder_kind="network", users=[box.name])
    if Action.REFUSE in actions:
        text = f"{box.name!r} is already connected to network {network.name!r}; disconnect it first to change how"
        raise AlreadyExists(text, holder=box.name, holder_kind="sandbox", name=box.name, network=network.name, sandbox=box.name)
    linkless = ability(driver_of(network), Addressless)
    host_wanted = linkless is not None and linkless.sandbox_netns() == ""
    if host_wanted != box.netns.is_host:
        raise ConfigError(
            f"{box.name!r} {'shares the netns of the host' if box.netns.is_host else 'has a netns of its own'}, "
            f"so it cannot join network {network.name!r} ({network.driver}); create it anew on that network"
        )
    return {row.value.ifname for row in present}


def _draft(
    tx: Transaction,
    endpoint_id: str,
    network: Network,
    box: Sandbox,
    request: ConnectRequest,
    links: Collection[str],
    facts: Mapping[str, Facts] | None,
) -> tuple[Endpoint, Plan]:
    known = usable_driver_of(network)
    linked = ability(known, Addressless) is None
    endpoint = endpoint_record(tx, endpoint_id, time.time(), network, box, request, linked=linked, links=links, facts=facts)
    plan = known.join_plan(network, endpoint, box)
    if not linked:
        return endpoint, plan
    try:
        return endpoint, plan + inside_plan(endpoint, box.netns)
    except ValueError as error:  # two objects with one key
        text = f"network driver {network.driver!r} plans what the core plans for every driver: {error}; leave that out"
        raise PackageFailed(text, kind="network driver", reference=network.driver) from error
