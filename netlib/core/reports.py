"""What records say of themselves: their plans, the commands that amount to these, and how the kernel differs."""

from collections.abc import Sequence

from netlib.core import recovery
from netlib.core.session import Session
from netlib.model import Network, Sandbox
from netlib.plan import Plan
from netlib.registry import driver_of

__all__ = ["check", "explain", "plan_of"]


def plan_of(session: Session, reference: str | Network | Sandbox) -> Plan:
    """What a network or a sandbox (with its endpoints) is made of: as written down, or as it would be at first use."""
    with session.store.read() as tx:
        found = session.find_subject(tx, reference)
        if isinstance(found.value, Network):
            return tx.objects(found.id) or driver_of(found.value).network_plan(found.value)
        parts = [tx.objects(row.id) for row in tx.endpoints_of_sandbox(found.id)]
        unique = {item.key: item for plan in (tx.objects(found.id), *parts) for item in plan}
        return Plan(*unique.values())


def explain(session: Session, reference: str | Network | Sandbox) -> list[str]:
    """The commands that a person would type to make a network or a sandbox with its endpoints."""
    return [line for item in plan_of(session, reference) for line in item.commands()]


def check(session: Session, reference: str | Network | Sandbox) -> list[tuple[str, str]]:
    """Compare a network or a sandbox (with its endpoints) with the kernel: (object, how it differs) for each drift."""
    return recovery.drift(session.lifecycle, _records(session, reference))


def _records(session: Session, reference: str | Network | Sandbox) -> Sequence[str]:
    with session.store.read() as tx:
        found = session.find_subject(tx, reference)
        if isinstance(found.value, Network):
            return [found.id]
        return [found.id, *(row.id for row in tx.endpoints_of_sandbox(found.id))]
