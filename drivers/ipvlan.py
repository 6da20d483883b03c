"""The ipvlan driver: containers on the LAN of a link of the host, under the MAC address of that link.

In mode l2 members answer ARP on the LAN; in l3 and l3s the host's network routes to them, and they send everything out by the
link itself, without a gateway.
"""

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct, field
from msgspec.structs import replace

from drivers.parents import (
    PARENT_OPTION,
    ParentedEndpointOptions,
    announced,
    check_parent,
    parent_ifname,
    parent_plan,
    refuse_ports,
)
from netlib.kernel.sublinks import Ipvlan
from netlib.model import Endpoint, Network, Sandbox, Scope
from netlib.options import decoded_options
from netlib.plan import Plan


class IpvlanOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """``-o`` keys of an ipvlan network."""

    parent: str = ""
    mode: Literal["l2", "l3", "l3s"] = field(name="ipvlan_mode", default="l2")
    flag: Literal["bridge", "private", "vepa"] = field(name="ipvlan_flag", default="bridge")
    mtu: int = field(name="com.docker.network.driver.mtu", default=0)


class IpvlanDriver:
    """Gives sandboxes ipvlan links."""

    name = "ipvlan"
    scope = Scope.LOCAL
    network_options = IpvlanOptions
    endpoint_options = ParentedEndpointOptions

    def validate_network(self, network: Network) -> None:
        check_parent(network, _options(network).mtu)

    def shaped(self, network: Network) -> Network:
        """Without a parent nothing leads out of it."""
        return network if _options(network).parent else replace(network, internal=True)

    def lan_link(self, options: Mapping[str, str]) -> str:
        return options.get(PARENT_OPTION, "")

    def why_no_mac(self, network: Network) -> str:
        return "it has the MAC address of the parent"

    def routes_by_link(self, network: Network) -> bool:
        return _options(network).mode != "l2"

    def network_plan(self, network: Network) -> Plan:
        """The parent; mode and flag are those of every ipvlan link on it."""
        options = _options(network)
        return parent_plan(network, f"ipvlan {options.mode} {options.flag}", options.mtu)

    def join_plan(self, network: Network, endpoint: Endpoint, sandbox: Sandbox) -> Plan:
        """An ipvlan link in the sandbox."""
        options = _options(network)
        refuse_ports(network, endpoint)
        return Plan(
            Ipvlan(
                ifname=endpoint.ifname,
                netns=sandbox.netns,
                parent=parent_ifname(network),
                mode=options.mode,
                flag=options.flag,
                mtu=options.mtu,
            ),
            *announced(endpoint, sandbox),
        )


def _options(network: Network) -> IpvlanOptions:
    return decoded_options(IpvlanOptions, network.options, f"network {network.name!r}")
