"""Published ports whose holder goes, and who has them then.

An endpoint's go to another of its sandbox, where that is asked for. A runtime asks for a container's ports in each of its CNI
networks; the first one publishes them, and the others' attachments have them written down as awaited.
"""

from collections.abc import Collection, Iterable
from contextlib import ExitStack

from msgspec.structs import replace

from netlib.core.engine import Engine
from netlib.core.sandbox_plan import publishing_attachment
from netlib.errors import NetlibError, ObjectMissing
from netlib.firewall.objects import AwaitedPort, PublishedPort
from netlib.model import CniAttachment, Phase, PortMapping
from netlib.plan import Plan
from netlib.store.locks import record_lock
from netlib.store.records import Row, Transaction

__all__ = ["hand_on_ports", "publish_awaited"]


def hand_on_ports(tx: Transaction, sandbox: str, leaving: Collection[str]) -> None:
    """Let another endpoint of *sandbox* that can publish have the ports of those that leave (ids, in phase ``removing``)."""
    asking = [row.value for row in tx.endpoints_of_sandbox(sandbox) if row.id in leaving and row.value.ports]
    if not asking:
        return
    staying = tx.memberships(sandbox)
    found = publishing_attachment(staying, 4) or publishing_attachment(staying, 6)
    if found is None:
        return
    heir = found[1]
    tx.replace(replace(heir, ports=(*heir.ports, *(mapping for endpoint in asking for mapping in endpoint.ports))))
    for endpoint in asking:
        tx.replace(replace(endpoint, ports=()))
        tx.pass_ports(endpoint.id, heir.id)


def publish_awaited(engine: Engine, gone: Row[CniAttachment], ports: Collection[PublishedPort]) -> list[NetlibError]:
    """Have other attachments of the container publish what *gone*, of which only the record is left, did: *ports*.

    As long as that record stands, all of it is done again after a crash or a failure. Answers with what failed.
    """
    netns = gone.value.netns
    if not ports and not gone.value.sandbox:  # what a sandbox published is free where no endpoint of it is left to
        return []
    # One at a time: of two that go at once each might find the heir locked by the other, and leave it out.
    with engine.locks.hold(f"heirs:{netns.identity}", "handing on its ports"):
        with engine.store.read() as tx:
            rows = [row for row in tx.attachments_in(netns.path) if row.id != gone.id]
        beside = [row for row in rows if (row.value.netns, row.value.container) == (netns, gone.value.container)]
        family = [gone.id, *(row.id for row in beside)]  # what one that goes just now has, it hands on itself
        heirs = [row.value for row in beside if row.phase is Phase.READY]
        failures: list[NetlibError] = []
        for heir in sorted(heirs, key=lambda heir: heir.created):
            with engine.locks.attempt(record_lock(heir.id), "publishing its ports") as held:  # else it goes, or changes, itself
                if held:
                    failures += _publish(engine, gone.id, heir.id, family)
    return failures


def _publish(engine: Engine, gone: str, heir: str, family: Collection[str]) -> list[NetlibError]:
    with ExitStack() as stack:
        kernel = stack.enter_context(engine.kernel(heir))
        with engine.store.write() as tx:
            row, plan = tx.by_id(heir), tx.objects(heir)
            if row is None or row.phase is not Phase.READY:
                return []
            awaited = plan.of(AwaitedPort)
            try:
                kernel.netns_fd(row.value.netns)
            except ObjectMissing:  # its container is gone: it only waits for its DEL
                awaited = ()
            beside = {place for other in {*family} - {gone, heir} for place in _places(tx.objects(other).of(PublishedPort))}
            waiting = [item for item in awaited if beside.isdisjoint(_places([item.port]))]
            due = [item for item in waiting if all(tx.port_holder(it) in (None, *family) for it in item.port.mappings)]
            fresh = [item.port for item in due if item.port not in plan]
            for port in [*plan.of(PublishedPort), *fresh]:  # of one family of addresses it may have had them all along
                tx.free_ports(port.mappings, gone)
                tx.claim_ports([mapping for mapping in port.mappings if tx.port_holder(mapping) is None], heir)
            tx.write_objects(heir, plan + fresh)
        if failures := engine.repair(kernel, Plan(*(item.port for item in due))):
            return failures
        with engine.store.write() as tx:
            tx.write_objects(heir, [item for item in tx.objects(heir) if item not in due])
    return []


def _places(ports: Iterable[PublishedPort]) -> set[tuple[int, PortMapping]]:
    """The host's sides of *ports*, by IP version: a claim is for both, an object for one."""
    return {(port.address.version, replace(item, container_port=0)) for port in ports for item in port.mappings}
