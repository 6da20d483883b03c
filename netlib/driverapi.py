"""The contract of a network driver: a pure function from records to plans, found by name (``netlib.drivers``).

A driver says how a link reaches the sandbox, what its firewall needs, and what publishing ports by it takes. Addresses and
routes of an endpoint, the default route, resolv.conf and hosts are the core's, the same for every driver. Abilities beyond
that are small Protocols of their own, never flags.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from msgspec import Struct

from netlib.model import Endpoint, IPAddress, Network, PortMapping, Sandbox, Scope
from netlib.plan import Plan


class NoOptions(Struct, frozen=True):
    """The options of a driver that has none."""


class Driver(Protocol):
    """What every network driver provides. The option structs name fields by Docker's keys (``msgspec`` ``rename``)."""

    name: str
    scope: Scope
    network_options: type[Struct]
    endpoint_options: type[Struct]

    def network_plan(self, network: Network) -> Plan:
        """The objects of the network itself; they live as long as its record."""
        ...

    def join_plan(self, network: Network, endpoint: Endpoint, sandbox: Sandbox) -> Plan:
        """The objects that bring *endpoint*'s link into *sandbox*, and its firewall."""
        ...


@runtime_checkable
class Addressless(Protocol):
    """A driver whose endpoints have no link and no addresses of ours; its sandboxes may have to use another netns."""

    def sandbox_netns(self) -> str | None:
        """The path of the netns a sandbox on this network must use ("" is the host's), or None for one of its own."""
        ...


@runtime_checkable
class ValidatesNetwork(Protocol):
    """A driver that can refuse a network request beyond its options' types."""

    def validate_network(self, network: Network) -> None:
        """Raise ConfigError with one sentence; nothing has been changed yet."""
        ...


@runtime_checkable
class TakesLink(Protocol):
    """A driver whose network may be told to sit on a link of the host: what is there on that link is then its own."""

    def link_name(self, options: Mapping[str, str]) -> str:
        """The link that *options* (those of a network request, not checked yet) name, or ""."""
        ...


@runtime_checkable
class JoinsLan(Protocol):
    """A driver whose network is the LAN of a link of the host: its subnets are that one's, and the host is no gateway of it."""

    def lan_link(self, options: Mapping[str, str]) -> str:
        """The link that *options* (those of a network request, not checked yet) name, or ""."""
        ...


@runtime_checkable
class ShapesNetwork(Protocol):
    """A driver whose options say more of a network than is its own affair."""

    def shaped(self, network: Network) -> Network:
        """*network*, before it has subnets, with what follows from its options."""
        ...


@runtime_checkable
class SharesMac(Protocol):
    """A driver whose endpoints may have no MAC address of their own."""

    def why_no_mac(self, network: Network) -> str:
        """Why an endpoint has none, as the rest of a sentence, or "" when it has one."""
        ...


@runtime_checkable
class RoutesByLink(Protocol):
    """A driver whose members may reach everything by the link itself."""

    def routes_by_link(self, network: Network) -> bool:
        """Whether the default route has no gateway."""
        ...


@runtime_checkable
class HoldsGateways(Protocol):
    """A driver whose networks have their gateways on a link of this host: members may ask the host for names there."""

    def gateway_link(self, network: Network) -> str:
        """The name of that link."""
        ...

    def gateway_port(self, endpoint: Endpoint) -> str:
        """The name of the link of this host by which what *endpoint* sends gets there."""
        ...


@runtime_checkable
class ChecksSources(Protocol):
    """A driver on whose networks members send from addresses of their own only."""

    def checked_port(self, network: Network, endpoint: Endpoint) -> str:
        """The name of the link of this host on which that is checked for *endpoint*; empty where it is not."""
        ...


@runtime_checkable
class NamesLinks(Protocol):
    """A driver that chooses the prefix of links inside sandboxes (``eth`` else)."""

    def ifname_prefix(self, network: Network) -> str:
        """The prefix; the core adds the lowest free number."""
        ...


@runtime_checkable
class PublishesPorts(Protocol):
    """A driver whose members can be reached by ports of the host."""

    def default_host_ip(self, network: Network) -> IPAddress | None:
        """The host address on which ports are published when the request names none; None for every one."""
        ...

    def publish_plan(self, network: Network, address: IPAddress, ports: Sequence[PortMapping]) -> Plan:
        """What leads from *ports* to a member's *address*, as far as they are of its family."""
        ...
