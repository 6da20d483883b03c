"""Facts: what only the world knows (a DHCP server, another process, another host), asked before the transaction, and kept.

::

    record written down ──▶ prepare ──▶ facts written down ──▶ transaction: record, plan ──▶ kernel
       (phase creating)        │ note: what is known so far              │
                               ▼                                        ▼
                    a crash from here on: release(record, facts) when the record is taken down

A driver that must ask offers :class:`Prepares`. Nobody holds the store's write lock while it asks, which may take seconds.
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
"""What a driver found out: names to what JSON can hold. They are in the record, for the driver's plans and its IPAM verbs."""


class World(NamedTuple):
    """What a driver asks the world with."""

    kernel: "Kernel"
    note: Callable[[Facts], None]  # writes down what is about to be true, before it is: ``release`` gets that after a crash


@runtime_checkable
class Prepares(Protocol):
    """A driver, of networks or of addresses, that must ask the world."""

    def prepare(self, asked: Struct, world: World) -> Facts:
        """Find out what *asked* (one of the structs below) needs; outside of any transaction, for as long as it takes.

        It may be asked again for the same record, after a crash: it then answers with the same, or gives back what it had. A
        NetlibError that it raises is the verb's, and the record goes.
        """
        ...

    def release(self, record: str, facts: Mapping[str, Any], kernel: "Kernel") -> None:
        """Give back what :meth:`prepare` took for *record*; a no-op when it is gone. *facts* are empty if none were noted."""
        ...


class PoolsAsked(Struct, frozen=True, kw_only=True):
    """Of an IPAM driver: the pools of a network that is to be made."""

    record: str  # the network's id
    name: str
    requests: tuple[PoolRequest, ...]


class NetworkAsked(Struct, frozen=True, kw_only=True):
    """Of a network driver: a network that is to be made."""

    record: str  # its id
    request: NetworkRequest


class AddressesAsked(Struct, frozen=True, kw_only=True):
    """Of an IPAM driver: the addresses of an endpoint that is to be made."""

    record: str  # the endpoint's id
    network: Network
    sandbox: Sandbox
    preferred: tuple[IPAddress, ...] = ()


class EndpointAsked(Struct, frozen=True, kw_only=True):
    """Of a network driver: an endpoint that is to be made."""

    record: str  # its id
    network: Network
    sandbox: Sandbox
    request: ConnectRequest
