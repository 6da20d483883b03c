"""A network without a bridge: the host routes to each container by a veth pair, and answers for everybody else there."""

from ipaddress import ip_network

from msgspec import Struct, field

from acme_net.queue_length import QueueLength
from netlib.driverapi import NoOptions
from netlib.kernel.links import Veth
from netlib.kernel.routes import RouteEntry
from netlib.kernel.sysctl import Sysctl
from netlib.model import Endpoint, Network, Sandbox, Scope
from netlib.names import veth_ifname
from netlib.options import decoded_options
from netlib.plan import Plan


class RoutedOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """``-o`` keys of a routed network."""

    queue: int = field(name="acme.queue", default=500)


class RoutedDriver:
    """Plans veth pairs and a route for each address."""

    name = "routed"
    scope = Scope.LOCAL
    network_options = RoutedOptions
    endpoint_options = NoOptions

    def routes_by_link(self, network: Network) -> bool:
        """The host answers for every address on the link."""
        return True

    def network_plan(self, network: Network) -> Plan:
        return Plan(Sysctl(name="net/ipv4/ip_forward", value="1"))

    def join_plan(self, network: Network, endpoint: Endpoint, sandbox: Sandbox) -> Plan:
        options = decoded_options(RoutedOptions, network.options, f"network {network.name!r}")
        host = veth_ifname(endpoint.id)
        return Plan(
            Veth(ifname=host, peer=endpoint.ifname, peer_netns=sandbox.netns, mac=endpoint.mac),
            QueueLength(ifname=host, packets=options.queue),
            Sysctl(name=f"net/ipv4/conf/{host}/proxy_arp", value="1"),
            *(RouteEntry(destination=ip_network(address.ip), ifname=host) for address in endpoint.addresses),
        )
