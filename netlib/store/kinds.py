"""The kinds of records, each declared once: its name, its order of removal, and what its removal releases.

::

    cni_attachment ──▶ endpoint ──▶ sandbox
          │               │
          ▼               ▼
     cni_network       network        an arrow leads from a user to what it uses; users are removed first

The core's five kinds are registered here. A room above the core adds its own by :func:`register` (the runtime's containers). A
kind registered with ``recovered`` is taken down by the core after a crash.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from netlib.errors import NotFound, PackageFailed
from netlib.ipamapi import IpamDriver
from netlib.model import CniAttachment, CniNetwork, Endpoint, Network, Sandbox
from netlib.registry import ipam_driver

if TYPE_CHECKING:
    from netlib.store.records import Row, Transaction

__all__ = ["Kind", "in_order_of_removal", "kind_called", "kind_of", "lock_of", "recovered_names", "register"]

_R = TypeVar("_R", bound="Row[Any]")


def _nothing(tx: "Transaction", record: Any) -> None:
    pass


class Kind(NamedTuple):
    """One kind of record."""

    name: str  # in the store
    record: type[Any]
    order: int  # of removal: users have lower numbers than what they use
    recovered: bool = True  # the core takes down one whose worker died, and deletes it after a boot; else its own room does
    outlives_boot: bool = False  # what is shared by many: only its objects are forgotten, and made again at its next use
    locked_by_sandbox: bool = False  # who works on one holds the lock of its sandbox
    give_back: "Callable[[Transaction, Any], None]" = _nothing  # what it leased, in the transaction that deletes it


def _give_back_addresses(tx: "Transaction", endpoint: Endpoint) -> None:
    network = tx.by_id(endpoint.network)
    if network is not None and (known := _ipam(network.value)) is not None:
        known.release_address(tx.leases, network.id, endpoint.id)
    tx.leases.release(endpoint.network, endpoint.id)


def _give_back_pools(tx: "Transaction", network: Network) -> None:
    if (known := _ipam(network)) is not None:
        known.release_pool(tx.leases, network.id)
    tx.leases.remove_pools(network.id)


def _ipam(network: Network) -> IpamDriver | None:
    """The network's IPAM driver; None where its package is missing or cannot be loaded: the leases are given back anyway."""
    try:
        return ipam_driver(network.ipam_driver)
    except (NotFound, PackageFailed):
        return None


_KINDS: dict[str, Kind] = {}
_BY_CLASS: dict[type[Any], Kind] = {}


def register(kind: Kind) -> None:
    """Add a kind; the store can then read and write its records."""
    _KINDS[kind.name] = _BY_CLASS[kind.record] = kind


for _kind in (
    Kind("cni_attachment", CniAttachment, 0),
    Kind("endpoint", Endpoint, 1, locked_by_sandbox=True, give_back=_give_back_addresses),
    Kind("sandbox", Sandbox, 2),
    Kind("cni_network", CniNetwork, 3, outlives_boot=True),
    Kind("network", Network, 4, outlives_boot=True, give_back=_give_back_pools),
):
    register(_kind)


def kind_called(name: str) -> Kind:
    """The kind that the store calls *name*."""
    return _KINDS[name]


def kind_of(record: type[Any]) -> Kind:
    """The kind of records of that class."""
    return _BY_CLASS[record]


def lock_of(row: "Row[Any]") -> str:
    """The id of the record whose lock is held by who works on *row*: its own, or its sandbox's."""
    return str(row.value.sandbox) if _KINDS[row.kind].locked_by_sandbox else row.id


def recovered_names() -> tuple[str, ...]:
    """The names of the kinds that the core recovers."""
    return tuple(kind.name for kind in _KINDS.values() if kind.recovered)


def in_order_of_removal(rows: Iterable[_R]) -> list[list[_R]]:
    """*rows* by kind, users before what they use."""
    groups: dict[int, list[_R]] = {}
    for row in rows:
        groups.setdefault(_KINDS[row.kind].order, []).append(row)
    return [groups[order] for order in sorted(groups)]
