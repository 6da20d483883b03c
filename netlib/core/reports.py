"""What records say of themselves: their plans, the commands that amount to these, and how the kernel differs."""

from collections.abc import Sequence

from netlib.core import recovery
from netlib.core.session import Session, reference_of
from netlib.model import Network, Sandbox
from netlib.plan import Plan
from netlib.registry import driver_of

__all__ = ["check", "explain", "plan_of"]


def plan_of(session: Session, reference: str | Network | Sandbox) -> Plan:
    """What a network or a sandbox (with its endpoints) is made of: as written down, or as it would be at first use."""
    reference = reference_of(reference)
    with session.store.read() as tx:
        network = tx.find(Network, reference)
        if network is not None:
            return tx.objects(network.id) or driver_of(network.value).network_plan(network.value)
        box = session.find_sandbox(tx, reference)
        parts = [tx.objects(row.id) for row in tx.endpoints_of_sandbox(box.id)]
        unique = {item.key: item for plan in (tx.objects(box.id), *parts) for item in plan}
        return Plan(*unique.values())


def explain(session: Session, reference: str | Network | Sandbox) -> list[str]:
    """The commands that a person would type to make a network or a sandbox with its endpoints."""
    return [line for item in plan_of(session, reference) for line in item.commands()]


def check(session: Session, reference: str | Network | Sandbox) -> list[tuple[str, str]]:
    """Compare a network or a sandbox (with its endpoints) with the kernel: (object, how it differs) for each drift."""
    return recovery.drift(session.lifecycle, _records(session, reference))


def _records(session: Session, reference: str | Network | Sandbox) -> Sequence[str]:
    reference = reference_of(reference)
    with session.store.read() as tx:
        network = tx.find(Network, reference)
        if network is not None:
            return [network.id]
        box = session.find_sandbox(tx, reference)
        return [box.id, *(row.id for row in tx.endpoints_of_sandbox(box.id))]
