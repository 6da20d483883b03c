"""Addresses that are given, not chosen: which of the places that may name them counts. Pure, without any state."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from netlib.model import IPAddress, IPInterface

__all__ = ["Assignment", "assignments", "drift"]


class Assignment(NamedTuple):
    """An address and the gateway of its subnet."""

    address: IPInterface
    gateway: IPAddress | None


def assignments(
    *,
    configured: Iterable[Assignment],
    requested: Iterable[IPInterface],
    gateways: Sequence[IPAddress],
    overrides: Iterable[Sequence[IPInterface]],
) -> tuple[Assignment, ...]:
    """Say which addresses count, as the reference plugin ``static`` does.

    *requested* ones (CNI_ARGS) come after the *configured*; each of *gateways* (CNI_ARGS too) is that of the requested
    addresses whose subnet it is in. The last of *overrides* that is not empty replaces them all.
    """
    chosen = [*configured, *(Assignment(address, _gateway_of(address, gateways)) for address in requested)]
    for override in overrides:
        if override:
            chosen = [Assignment(address, None) for address in override]
    return tuple(chosen)


def _gateway_of(address: IPInterface, gateways: Sequence[IPAddress]) -> IPAddress | None:
    return next((gateway for gateway in reversed(gateways) if gateway in address.network), None)


def drift(wanted: Assignment, assigned: Iterable[Assignment]) -> str | None:
    """How *assigned* differs from *wanted*, or None; a wanted address without a gateway may have one."""
    found = next((assignment for assignment in assigned if assignment.address == wanted.address), None)
    if found is None:
        return f"{wanted.address} is not among the addresses of the result"
    if wanted.gateway is not None and found.gateway != wanted.gateway:
        return f"{wanted.address} has the gateway {found.gateway}, not {wanted.gateway}"
    return None
