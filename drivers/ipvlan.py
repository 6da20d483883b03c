"""The ipvlan driver: containers on the LAN of a link of the host, under the MAC address of that link.

In mode l2 members answer ARP on the LAN. In l3 and l3s they do not: the LAN needs routes to them by the host, and they send all
packets out by the link itself, without a gateway.
"""

from typing import Literal

from msgspec import field

from drivers.parents import ParentedDriver, ParentedOptions, announcing_sysctls, parent_ifname, parent_plan
from netlib.kernel.sublinks import Ipvlan
from netlib.model import Endpoint, Network, Sandbox
from netlib.plan import Plan


class IpvlanOptions(ParentedOptions, frozen=True, forbid_unknown_fields=True):
    """``-o`` keys of an ipvlan network."""

    mode: Literal["l2", "l3", "l3s"] = field(name="ipvlan_mode", default="l2")
    flag: Literal["bridge", "private", "vepa"] = field(name="ipvlan_flag", default="bridge")


class IpvlanDriver(ParentedDriver[IpvlanOptions]):
    """Gives sandboxes ipvlan links."""

    name = "ipvlan"
    network_options = IpvlanOptions

    def why_no_mac(self, network: Network) -> str:
        return "it has the MAC address of the parent"

    def routes_by_link(self, network: Network) -> bool:
        return self.options(network).mode != "l2"

    def network_plan(self, network: Network) -> Plan:
        """The parent; the kernel keeps one mode and one flag for all ipvlan links on it."""
        options = self.options(network)
        return parent_plan(network, f"ipvlan {options.mode} {options.flag}", options.mtu)

    def join_plan(self, network: Network, endpoint: Endpoint, sandbox: Sandbox) -> Plan:
        """An ipvlan link in the sandbox."""
        options = self.options(network)
        return Plan(
            Ipvlan(
                ifname=endpoint.ifname,
                netns=sandbox.netns,
                parent=parent_ifname(network),
                mode=options.mode,
                flag=options.flag,
                mtu=options.mtu,
            ),
            *announcing_sysctls(endpoint, sandbox),
        )
