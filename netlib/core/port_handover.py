"""Handing over published ports when the endpoint or CNI attachment that publishes them is removed.

With ``keep_ports`` another endpoint of the sandbox publishes an endpoint's ports. Under CNI, a runtime asks each network of a
container to publish the container's ports. The first network's attachment publishes them; the other attachments have them as
AwaitedPort objects, and one of them publishes them when the first is removed.

::

    attachment net1 (publishes 8080)        DEL net1        attachment net2 (publishes 8080)
    attachment net2 (awaits 8080)         ───────────▶      attachment net3 (awaits 8080)
    attachment net3 (awaits 8080)
"""

from collections.abc import Collection, Iterable
from contextlib import ExitStack

from msgspec.structs import replace

from netlib.core.engine import Engine
from netlib.core.sandbox_plan import publishing_membership
from netlib.errors import NetlibError, ObjectMissing
from netlib.firewall.objects import AwaitedPort, PublishedPort
from netlib.model import CniAttachment, Phase, PortMapping
from netlib.plan import Plan
from netlib.store.locks import record_lock
from netlib.store.records import Row, Transaction

__all__ = ["hand_over_attachment_ports", "hand_over_endpoint_ports"]


def hand_over_endpoint_ports(tx: Transaction, sandbox: str, leaving: Collection[str]) -> None:
    """Give the ports of the *leaving* endpoints (ids, in phase ``removing``) to another endpoint of *sandbox* (an id).

    Only the records change: the caller plans the sandbox again. Without an endpoint that can publish, nothing changes, and the
    ports are closed with the leaving endpoints.
    """
    publishers = [row.value for row in tx.endpoints_of_sandbox(sandbox) if row.id in leaving and row.value.ports]
    if not publishers:
        return
    staying = tx.memberships(sandbox)
    found = publishing_membership(staying, 4) or publishing_membership(staying, 6)
    if found is None:
        return
    receiver = found[1]
    tx.replace(replace(receiver, ports=(*receiver.ports, *(mapping for endpoint in publishers for mapping in endpoint.ports))))
    for endpoint in publishers:
        tx.replace(replace(endpoint, ports=()))
        tx.pass_ports(endpoint.id, receiver.id)


def hand_over_attachment_ports(
    engine: Engine, removed: Row[CniAttachment], ports: Collection[PublishedPort]
) -> list[NetlibError]:
    """Have the container's other attachments publish *ports*, which *removed* published; return the errors.

    The objects of *removed* are gone from the kernel, and its record is still in the store. The caller keeps that record after
    an error, and a crash leaves it: its next removal repeats the handover.
    """
    netns = removed.value.netns
    # An attachment with a sandbox has no PublishedPort: its endpoint published. Those ports are free now, unless another
    # endpoint of the sandbox has them.
    if not ports and not removed.value.sandbox:
        return []
    # One removal of the container at a time. Of two at once, each might find the other attachments locked by the other removal,
    # skip them, and nobody would publish the ports.
    with engine.locks.hold(f"port-handover:{netns.identity}", "handing on its ports"):
        with engine.store.read() as tx:
            rows = [row for row in tx.attachments_in(netns.path) if row.id != removed.id]
        others = [row for row in rows if (row.value.netns, row.value.container) == (netns, removed.value.container)]
        # With those that are being removed right now: each hands over its own ports, so these are not handed over here.
        of_container = [removed.id, *(row.id for row in others)]
        ready = [row.value for row in others if row.phase is Phase.READY]
        failures: list[NetlibError] = []
        for other in sorted(ready, key=lambda other: other.created):
            # Whoever has this lock removes or changes the attachment, and publishes or hands over its ports itself.
            with engine.locks.attempt(record_lock(other.id), "publishing its ports") as held:
                if held:
                    failures += _publish(engine, removed.id, other.id, of_container)
    return failures


def _publish(engine: Engine, removed: str, receiver: str, of_container: Collection[str]) -> list[NetlibError]:
    """Publish the ports that the attachment *receiver* (an id, as all here) awaits and no other of the container publishes."""
    with ExitStack() as stack:
        kernel = stack.enter_context(engine.kernel(receiver))
        with engine.store.write() as tx:
            row, plan = tx.by_id(receiver), tx.objects(receiver)
            if row is None or row.phase is not Phase.READY:
                return []
            awaited = plan.of(AwaitedPort)
            try:
                kernel.netns_fd(row.value.netns)
            except ObjectMissing:  # the netns is gone; the record only waits for the runtime's DEL
                awaited = ()
            published = {
                side
                for other in {*of_container} - {removed, receiver}
                for side in _host_sides(tx.objects(other).of(PublishedPort))
            }
            waiting = [item for item in awaited if published.isdisjoint(_host_sides([item.port]))]
            due = [item for item in waiting if all(tx.port_holder(it) in (None, *of_container) for it in item.port.mappings)]
            fresh = [item.port for item in due if item.port not in plan]
            # The claims of *removed* cover both IP versions. The receiver may have published the ports of one version before,
            # by objects without a claim.
            for port in [*plan.of(PublishedPort), *fresh]:
                tx.free_ports(port.mappings, removed)
                tx.claim_ports([mapping for mapping in port.mappings if tx.port_holder(mapping) is None], receiver)
            tx.write_objects(receiver, plan + fresh)
        if failures := engine.repair(kernel, Plan(*(item.port for item in due))):
            return failures
        with engine.store.write() as tx:
            tx.write_objects(receiver, [item for item in tx.objects(receiver) if item not in due])
    return []


def _host_sides(ports: Iterable[PublishedPort]) -> set[tuple[int, PortMapping]]:
    """The host's sides of *ports* (container port 0) with their IP version: a claim covers both versions, an object one."""
    return {(port.address.version, replace(item, container_port=0)) for port in ports for item in port.mappings}
