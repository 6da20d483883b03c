"""Facts: what a driver has to ask outside of the host's store (a DHCP server, another process, another host).

A driver asks before the transaction that plans, and the facts are kept in the record.

::

    record written down ──▶ prepare ──▶ facts written down ──▶ transaction: record, plan ──▶ kernel
       (phase creating)        │ note: what is known so far              │
                               ▼                                        ▼
                    after a crash from here on: release(record, facts) when the record is removed

A driver that must ask offers :class:`Prepares`. The store's write lock is not held while it asks, which may take seconds.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from msgspec import Struct

from netlib.ipamapi import PoolRequest
from netlib.model import IPAddress, Network, Sandbox
from netlib.requests import ConnectRequest, NetworkRequest

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel

__all__ = ["AddressesAsked", "EndpointAsked", "Facts", "NetworkAsked", "PoolsAsked", "Prepares", "World"]

Facts = dict[str, Any]
"""What a driver found out: names and values that JSON can hold. Its plans and its IPAM verbs read them from the record."""


class World(NamedTuple):
    """What :meth:`Prepares.prepare` is given: the kernel, and a function that records facts ahead of time."""

    kernel: "Kernel"
    note: Callable[[Facts], None]  # records facts before they become true, so that ``release`` gets them after a crash


@runtime_checkable
class Prepares(Protocol):
    """A network driver or an IPAM driver that must ask outside of the store."""

    def prepare(self, asked: Struct, world: World) -> Facts:
        """Return the facts for *asked* (one of the structs below). It is called outside of any transaction and may take long.

        After a crash it may be called again for the same record: it then returns the same facts, or releases the former ones.
        When it raises a NetlibError, the verb fails with that error and the record is removed.
        """
        ...

    def release(self, record: str, facts: Mapping[str, Any], kernel: "Kernel") -> None:
        """Release what :meth:`prepare` got for *record*; a no-op when that was done. *facts* are empty if none were noted.

        The next command after a crash calls it, whatever that command is, and waits: give what you ask a deadline of seconds,
        and raise a NetlibError when it passes. The record then stays, and the release is tried again.
        """
        ...


class PoolsAsked(Struct, frozen=True, kw_only=True):
    """A question to an IPAM driver: the pools of a network that is being created."""

    record: str  # the network's id
    name: str
    requests: tuple[PoolRequest, ...]


class NetworkAsked(Struct, frozen=True, kw_only=True):
    """A question to a network driver: a network that is being created."""

    record: str  # the network's id
    request: NetworkRequest


class AddressesAsked(Struct, frozen=True, kw_only=True):
    """A question to an IPAM driver: the addresses of an endpoint that is being created."""

    record: str  # the endpoint's id
    network: Network
    sandbox: Sandbox
    preferred: tuple[IPAddress, ...] = ()


class EndpointAsked(Struct, frozen=True, kw_only=True):
    """A question to a network driver: an endpoint that is being created."""

    record: str  # the endpoint's id
    network: Network
    sandbox: Sandbox
    request: ConnectRequest
