"""Reports on one network or sandbox: its plan, the plan's commands, and its drift from the kernel. They change nothing."""

from collections.abc import Sequence

from netlib.core import recovery
from netlib.core.session import Session
from netlib.model import Network, Sandbox
from netlib.plan import Plan
from netlib.registry import driver_of

__all__ = ["check", "explain", "plan_of"]


def plan_of(session: Session, reference: str | Network | Sandbox) -> Plan:
    """The plan of a network, or of a sandbox with its endpoints, as the store has it.

    The store has no objects of a network before its first use in this boot: the plan is then the one that this use will apply.
    """
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
    """Compare a network, or a sandbox with its endpoints, with the kernel; return key and difference of each drift."""
    return recovery.drift(session.lifecycle, _records(session, reference))


def _records(session: Session, reference: str | Network | Sandbox) -> Sequence[str]:
    """The ids of the network, or of the sandbox and its endpoints."""
    with session.store.read() as tx:
        found = session.find_subject(tx, reference)
        if isinstance(found.value, Network):
            return [found.id]
        return [found.id, *(row.id for row in tx.endpoints_of_sandbox(found.id))]
