"""The bridge driver: one Linux bridge per network, one veth pair per endpoint, ports and isolation by the firewall.

Options by Docker's keys; ``netlib.bridge.hairpin`` (ours) lets a container reach its own published port through the host.
"""

import ipaddress
from collections.abc import Mapping, Sequence

from msgspec import Struct, field

from drivers.routing import forwarding_objects, gateway_addresses
from netlib.errors import ConfigError
from netlib.firewall.members import MemberTable, PortSources
from netlib.firewall.objects import BridgedNetwork, FirewallBase, ForwardAllowance, Masquerade, published_ports
from netlib.kernel.bridges import Bridge, BridgePort
from netlib.kernel.links import Veth
from netlib.kernel.sysctl import Sysctl
from netlib.model import Endpoint, IPAddress, IPInterface, Network, PortMapping, Sandbox, Scope
from netlib.names import BRIDGE_NAME_OPTION, bridge_ifname, check_ifname, check_mtu, veth_ifname
from netlib.options import decoded_options
from netlib.plan import Plan

_LOOPBACK = ipaddress.ip_network("127.0.0.0/8")
_EVERY_IPV4 = ipaddress.ip_address("0.0.0.0")


class BridgeOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """``-o`` keys of a bridge network."""

    name: str = field(name="com.docker.network.bridge.name", default="")
    masquerade: bool = field(name="com.docker.network.bridge.enable_ip_masquerade", default=True)
    icc: bool = field(name="com.docker.network.bridge.enable_icc", default=True)
    host_binding: str = field(name="com.docker.network.bridge.host_binding_ipv4", default="")
    mtu: int = field(name="com.docker.network.driver.mtu", default=0)
    prefix: str = field(name="com.docker.network.container_iface_prefix", default="eth")
    hairpin: bool = field(name="netlib.bridge.hairpin", default=True)


class BridgeEndpointOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """``--driver-opt`` keys of an endpoint in a bridge network."""

    ifname: str = field(name="com.docker.network.endpoint.ifname", default="")


class BridgeDriver:
    """Wires sandboxes to a bridge with veth pairs."""

    name = "bridge"
    scope = Scope.LOCAL
    network_options = BridgeOptions
    endpoint_options = BridgeEndpointOptions

    def validate_network(self, network: Network) -> None:
        """Refuse names, an MTU or a host binding that cannot work, and a network without addresses."""
        options = decoded_options(BridgeOptions, network.options, f"network {network.name!r}")
        if not network.ipv4 and not network.ipv6:
            raise ConfigError(f"network {network.name!r}: a bridge network needs IPv4 or IPv6; leave one of them on")
        if options.name:
            check_ifname(options.name)
        check_ifname(f"{options.prefix}0")
        if options.mtu:
            check_mtu(options.mtu, ipv6=network.ipv6)
        if options.host_binding:
            binding = f"network {network.name!r}: com.docker.network.bridge.host_binding_ipv4={options.host_binding}"
            try:
                ipaddress.IPv4Address(options.host_binding)
            except ValueError:
                raise ConfigError(f"{binding} is no IPv4 address") from None
            if not network.ipv4:
                raise ConfigError(f"{binding} asks for ports on IPv4, which this network has not; leave it out, or IPv4 on")

    def link_name(self, options: Mapping[str, str]) -> str:
        """The bridge that the options name."""
        return options.get(BRIDGE_NAME_OPTION, "")

    def gateway_link(self, network: Network) -> str:
        """The bridge."""
        return bridge_ifname(network)

    def gateway_port(self, endpoint: Endpoint) -> str:
        """The bridge port, which is the host's end of the veth pair."""
        return veth_ifname(endpoint.id)

    def ifname_prefix(self, network: Network) -> str:
        """``container_iface_prefix``, or eth."""
        return decoded_options(BridgeOptions, network.options, f"network {network.name!r}").prefix

    def default_host_ip(self, network: Network) -> IPAddress | None:
        """``host_binding_ipv4``, or every address."""
        binding = decoded_options(BridgeOptions, network.options, f"network {network.name!r}").host_binding
        return ipaddress.ip_address(binding) if binding else None

    def network_plan(self, network: Network) -> Plan:
        """The bridge with its gateway addresses, forwarding, and the network's firewall objects."""
        options = decoded_options(BridgeOptions, network.options, f"network {network.name!r}")
        bridge = bridge_ifname(network)
        subnets = tuple(pool.subnet for pool in network.pools)
        versions = {pool.family for pool in network.pools}
        outward = not network.internal
        masquerade = _masquerades(network, options)
        return Plan(
            FirewallBase(),
            *([MemberTable()] if masquerade else ()),
            *(forwarding_objects(versions) if outward and network.forwards else ()),
            Bridge(
                ifname=bridge,
                mac=_bridge_mac(network),
                mtu=options.mtu,
                ipv6=6 in versions,
                filtered=not options.icc,
            ),
            *gateway_addresses(bridge, _gateways(network), ipv6=6 in versions),
            BridgedNetwork(bridge=bridge, subnets=subnets, internal=network.internal, icc=options.icc),
            *(Masquerade(subnet=subnet, bridge=bridge) for subnet in subnets if masquerade),
            *((ForwardAllowance(bridge=bridge),) if outward else ()),
        )

    def join_plan(self, network: Network, endpoint: Endpoint, sandbox: Sandbox) -> Plan:
        """Wire the sandbox to the bridge with a veth pair, its peer made inside the sandbox.

        In a masquerading network the sandbox may send from its own addresses only; in any other network it may be a router.
        """
        options = decoded_options(BridgeOptions, network.options, f"network {network.name!r}")
        bridge = bridge_ifname(network)
        host_ifname = veth_ifname(endpoint.id)
        own = tuple(address.ip for address in endpoint.addresses)
        return Plan(
            Veth(ifname=host_ifname, peer=endpoint.ifname, peer_netns=sandbox.netns, mac=endpoint.mac, mtu=options.mtu),
            *([PortSources(port=host_ifname, addresses=own)] if _masquerades(network, options) else ()),
            BridgePort(ifname=host_ifname, bridge=bridge, hairpin=options.hairpin, isolated=not options.icc, filtered=True),
        )

    def checked_port(self, network: Network, endpoint: Endpoint) -> str:
        """The endpoint's bridge port, where the network masquerades."""
        options = decoded_options(BridgeOptions, network.options, "driver bridge")
        return veth_ifname(endpoint.id) if _masquerades(network, options) else ""

    def publish_plan(self, network: Network, address: IPAddress, ports: Sequence[PortMapping]) -> Plan:
        """Firewall entries, one for each run of ports, and a sysctl of the bridge for ports on 127.0.0.1."""
        bridge = bridge_ifname(network)
        published = published_ports(ports, address, bridge=bridge)
        if address.version == 6 or not any(_on_loopback(mapping) for mapping in ports):
            return Plan(*published)
        # Lets packets of the host to 127.0.0.1 leave by the bridge; the firewall base drops such packets from elsewhere.
        return Plan(Sysctl(name=f"net/ipv4/conf/{bridge}/route_localnet", value="1"), *published)


def _masquerades(network: Network, options: BridgeOptions) -> bool:
    return options.masquerade and not network.internal


def _gateways(network: Network) -> list[IPInterface]:
    return [pool.gateway_interface for pool in network.pools if pool.gateway_interface]


def _on_loopback(mapping: PortMapping) -> bool:
    return mapping.host_ip is None or mapping.host_ip in _LOOPBACK or mapping.host_ip == _EVERY_IPV4


def _bridge_mac(network: Network) -> str:
    """A fixed MAC address: a bridge without one has the lowest of its ports', which changes when ports do."""
    return "02:42:" + ":".join(network.id[i : i + 2] for i in range(0, 8, 2))
