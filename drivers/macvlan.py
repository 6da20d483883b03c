"""The macvlan driver: containers on the LAN of a link of the host, each with a MAC address of its own.

The host and its containers do not reach each other by that link: the kernel keeps a parent from its macvlan links.
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
from netlib.kernel.sublinks import Macvlan
from netlib.model import Endpoint, Network, Sandbox, Scope
from netlib.options import decoded_options
from netlib.plan import Plan


class MacvlanOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """``-o`` keys of a macvlan network."""

    parent: str = ""
    mode: Literal["bridge", "private", "vepa", "passthru"] = field(name="macvlan_mode", default="bridge")
    mtu: int = field(name="com.docker.network.driver.mtu", default=0)


class MacvlanDriver:
    """Gives sandboxes macvlan links."""

    name = "macvlan"
    scope = Scope.LOCAL
    network_options = MacvlanOptions
    endpoint_options = ParentedEndpointOptions

    def validate_network(self, network: Network) -> None:
        check_parent(network, _options(network).mtu)

    def shaped(self, network: Network) -> Network:
        """Without a parent nothing leads out of it."""
        return network if _options(network).parent else replace(network, internal=True)

    def lan_link(self, options: Mapping[str, str]) -> str:
        return options.get(PARENT_OPTION, "")

    def why_no_mac(self, network: Network) -> str:
        """In passthru mode the one endpoint has the parent's."""
        return "in passthru mode it has the MAC address of the parent" if _options(network).mode == "passthru" else ""

    def network_plan(self, network: Network) -> Plan:
        """The parent; passthru has it alone."""
        options = _options(network)
        alone = f" in passthru mode ({network.short_id})" if options.mode == "passthru" else ""
        return parent_plan(network, f"macvlan{alone}", options.mtu)

    def join_plan(self, network: Network, endpoint: Endpoint, sandbox: Sandbox) -> Plan:
        """A macvlan link in the sandbox."""
        options = _options(network)
        refuse_ports(network, endpoint)
        return Plan(
            Macvlan(
                ifname=endpoint.ifname,
                netns=sandbox.netns,
                parent=parent_ifname(network),
                mode=options.mode,
                mac=endpoint.mac,
                mtu=options.mtu,
            ),
            *announced(endpoint, sandbox),
        )


def _options(network: Network) -> MacvlanOptions:
    return decoded_options(MacvlanOptions, network.options, f"network {network.name!r}")
