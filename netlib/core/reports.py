"""Reports on one network or sandbox: its plan, the plan's commands, and its drift from the kernel. They change nothing."""

from collections.abc import Iterable, Iterator, Sequence

from netlib.core import recovery
from netlib.core.sandbox_plan import host_resolver, sandbox_plan
from netlib.core.session import Session
from netlib.model import Network, Sandbox
from netlib.plan import ExplainsByKernel, KernelObject, Plan, ability
from netlib.registry import driver_of

__all__ = ["check", "commands_of", "explain", "plan_of"]


def plan_of(session: Session, reference: str | Network | Sandbox) -> Plan:
    """The plan of a network, or of a sandbox with its endpoints, as the store has it, in an order to apply it in.

    A sandbox's netns comes first, then its endpoints' links, then what needs them: routes, published ports. The store has no
    objects of a network before its first use in this boot: the plan is then the one that this use will apply.
    """
    with session.store.read() as tx:
        found = session.find_subject(tx, reference)
        if isinstance(found.value, Network):
            return tx.objects(found.id) or driver_of(found.value).network_plan(found.value)
        own = tx.objects(found.id)
        links = [item for row in tx.endpoints_of_sandbox(found.id) for item in tx.objects(row.id)]
        alone = set(sandbox_plan(found.value, (), host_resolver()).keys)  # what the sandbox has before its first network
        first, rest = [[item for item in own if (item.key in alone) is before] for before in (True, False)]
        return Plan(*{item.key: item for item in (*first, *links, *rest)}.values())


def explain(session: Session, reference: str | Network | Sandbox) -> list[str]:
    """The commands that a person would type to make a network or a sandbox with its endpoints."""
    return [line for _, lines in commands_of(session, plan_of(session, reference)) for line in lines]


def commands_of(session: Session, plan: Iterable[KernelObject]) -> Iterator[tuple[KernelObject, list[str]]]:
    """Yield each object of *plan* with its commands; a line that begins with ``#`` says why there is no command."""
    with session.engine.kernel("") as kernel:
        for item in plan:
            asking = ability(item, ExplainsByKernel)
            yield item, list(item.commands() if asking is None else asking.commands_here(kernel))


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
