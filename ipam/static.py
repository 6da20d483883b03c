"""The IPAM type ``static``: addresses from the configuration or the call, and which of these sources is used. Pure."""

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
    """Return the addresses to assign, by the rules of the reference plugin ``static``.

    These are the *configured* addresses followed by the *requested* ones (from CNI_ARGS). A requested address gets the gateway
    of *gateways* (also from CNI_ARGS) that is in its subnet. The last of *overrides* that is not empty replaces all addresses.
    """
    chosen = [*configured, *(Assignment(address, _gateway_of(address, gateways)) for address in requested)]
    for override in overrides:
        if override:
            chosen = [Assignment(address, None) for address in override]
    return tuple(chosen)


def _gateway_of(address: IPInterface, gateways: Sequence[IPAddress]) -> IPAddress | None:
    return next((gateway for gateway in reversed(gateways) if gateway in address.network), None)


def drift(wanted: Assignment, assigned: Iterable[Assignment]) -> str | None:
    """Return how *assigned* differs from *wanted*, or None. Where *wanted* has no gateway, any gateway is accepted."""
    found = next((assignment for assignment in assigned if assignment.address == wanted.address), None)
    if found is None:
        return f"{wanted.address} is not among the addresses of the result"
    if wanted.gateway is not None and found.gateway != wanted.gateway:
        return f"{wanted.address} has the gateway {found.gateway}, not {wanted.gateway}"
    return None
