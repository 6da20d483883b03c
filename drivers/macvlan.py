"""The macvlan driver: containers on the LAN of a link of the host, each with a MAC address of its own.

The host and its containers do not reach each other by that link: the kernel forwards nothing between a parent and its macvlan
links.
"""

from typing import Literal

from msgspec import field

from drivers.parents import ParentedDriver, ParentedOptions, announcing_sysctls, parent_ifname, parent_plan
from netlib.kernel.sublinks import Macvlan
from netlib.model import Endpoint, Network, Sandbox
from netlib.plan import Plan


class MacvlanOptions(ParentedOptions, frozen=True, forbid_unknown_fields=True):
    """``-o`` keys of a macvlan network."""

    mode: Literal["bridge", "private", "vepa", "passthru"] = field(name="macvlan_mode", default="bridge")


class MacvlanDriver(ParentedDriver[MacvlanOptions]):
    """Gives sandboxes macvlan links."""

    name = "macvlan"
    network_options = MacvlanOptions

    def why_no_mac(self, network: Network) -> str:
        """In passthru mode the network's only endpoint has the parent's MAC address."""
        return "in passthru mode it has the MAC address of the parent" if self.options(network).mode == "passthru" else ""

    def network_plan(self, network: Network) -> Plan:
        """The parent; a network in passthru mode shares it with no other."""
        options = self.options(network)
        alone = f" in passthru mode ({network.short_id})" if options.mode == "passthru" else ""
        return parent_plan(network, f"macvlan{alone}", options.mtu)

    def join_plan(self, network: Network, endpoint: Endpoint, sandbox: Sandbox) -> Plan:
        """A macvlan link in the sandbox."""
        options = self.options(network)
        return Plan(
            Macvlan(
                ifname=endpoint.ifname,
                netns=sandbox.netns,
                parent=parent_ifname(network),
                mode=options.mode,
                mac=endpoint.mac,
                mtu=options.mtu,
            ),
            *announcing_sysctls(endpoint, sandbox),
        )
