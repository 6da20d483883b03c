"""The contract of a network driver: pure functions from records to plans. Drivers are found by name (``netlib.drivers``).

A driver plans the link of an endpoint, its firewall objects, and the objects that publish ports. The core plans the rest, for
every driver alike: addresses and routes of an endpoint, the default route, resolv.conf and hosts. Further abilities of some
drivers are small Protocols, never flags.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from msgspec import Struct

from netlib.model import Endpoint, IPAddress, Network, PortMapping, Sandbox, Scope
from netlib.plan import Plan


class NoOptions(Struct, frozen=True):
    """The option struct of a driver without options."""


class Driver(Protocol):
    """The methods of every network driver, and four attributes, which class attributes provide as well as properties.

    Its option structs name their fields by Docker's keys (``msgspec`` ``rename``).
    """

    @property
    def name(self) -> str:
        """The name by which a network asks for this driver; the entry point has the same."""
        ...

    @property
    def scope(self) -> Scope:
        """How far the driver's networks reach; ``Scope.LOCAL`` is the only one yet."""
        ...

    @property
    def network_options(self) -> type[Struct]:
        """The struct of a network's options."""
        ...

    @property
    def endpoint_options(self) -> type[Struct]:
        """The struct of an endpoint's options."""
        ...

    def network_plan(self, network: Network) -> Plan:
        """Return the objects of the network itself, which exist as long as its record."""
        ...

    def join_plan(self, network: Network, endpoint: Endpoint, sandbox: Sandbox) -> Plan:
        """Return the objects that make *endpoint*'s link in *sandbox*, and its firewall objects."""
        ...


@runtime_checkable
class Addressless(Protocol):
    """A driver whose endpoints get no link and no addresses; its sandboxes may have to use a certain netns."""

    def sandbox_netns(self) -> str | None:
        """Return the path of the netns that a sandbox in this network must use ("": the host's), or None for a new netns."""
        ...


@runtime_checkable
class ValidatesNetwork(Protocol):
    """A driver that checks more of a network request than the types of its options."""

    def validate_network(self, network: Network) -> None:
        """Raise ConfigError for a network that the driver refuses; it is called before anything is changed."""
        ...


@runtime_checkable
class TakesLink(Protocol):
    """A driver whose network may use an existing link of the host; addresses and routes of that link are then the network's."""

    def link_name(self, options: Mapping[str, str]) -> str:
        """Return the link that *options* (those of a network request, not checked yet) name, or ""."""
        ...


@runtime_checkable
class JoinsLan(Protocol):
    """A driver whose networks are the LAN of a link of the host: they have its subnets, and the host is not their gateway."""

    def lan_link(self, options: Mapping[str, str]) -> str:
        """Return the link that *options* (those of a network request, not checked yet) name, or ""."""
        ...


@runtime_checkable
class ShapesNetwork(Protocol):
    """A driver some of whose options change fields of the network's record."""

    def shaped(self, network: Network) -> Network:
        """Return *network*, which has no subnets yet, with the fields that follow from its options."""
        ...


@runtime_checkable
class SharesMac(Protocol):
    """A driver whose endpoints may share one MAC address."""

    def why_no_mac(self, network: Network) -> str:
        """Return why an endpoint has no MAC address of its own, as the end of a sentence, or "" when it has one."""
        ...


@runtime_checkable
class RoutesByLink(Protocol):
    """A driver whose members may have a default route without a gateway."""

    def routes_by_link(self, network: Network) -> bool:
        """Whether the default route of members has no gateway, only a link."""
        ...


@runtime_checkable
class HoldsGateways(Protocol):
    """A driver whose networks' gateway addresses are on a link of this host; members can send DNS queries there."""

    def gateway_link(self, network: Network) -> str:
        """Return the name of the link with the gateway addresses."""
        ...

    def gateway_port(self, endpoint: Endpoint) -> str:
        """Return the name of the host's link (a bridge port) that receives the packets which *endpoint* sends."""
        ...


@runtime_checkable
class ChecksSources(Protocol):
    """A driver that drops packets of members whose source is not an address of their own."""

    def checked_port(self, network: Network, endpoint: Endpoint) -> str:
        """Return the name of the host's link on which *endpoint*'s packets are checked; empty where they are not."""
        ...


@runtime_checkable
class NamesLinks(Protocol):
    """A driver that chooses the prefix of link names in sandboxes, in the place of ``eth``."""

    def ifname_prefix(self, network: Network) -> str:
        """Return the prefix, to which the core adds the lowest free number."""
        ...


@runtime_checkable
class RefusesPorts(Protocol):
    """A driver that publishes no ports and says why. A driver without PublishesPorts refuses them without a reason."""

    def why_no_ports(self, network: Network) -> str:
        """Return why no ports of members are published, as the end of a sentence."""
        ...


@runtime_checkable
class PublishesPorts(Protocol):
    """A driver that can publish ports of members on the host."""

    def default_host_ip(self, network: Network) -> IPAddress | None:
        """Return the host address for ports whose request names none; None for all addresses."""
        ...

    def publish_plan(self, network: Network, address: IPAddress, ports: Sequence[PortMapping]) -> Plan:
        """Return the objects that forward *ports*, as far as they are of the family of *address*, to a member's *address*."""
        ...
