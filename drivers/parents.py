"""The macvlan and ipvlan drivers' common part: the parent of their links, and the LAN that the parent leads to."""

from collections.abc import Mapping
from typing import Generic, TypeVar

from msgspec import Struct, field
from msgspec.structs import replace

from netlib.errors import ConfigError
from netlib.kernel.links import LinkUp
from netlib.kernel.parents import ParentLink
from netlib.kernel.sublinks import Dummy, Vlan
from netlib.kernel.sysctl import Sysctl
from netlib.model import Endpoint, Network, Sandbox, Scope
from netlib.names import check_ifname, check_mtu
from netlib.options import decoded_options
from netlib.plan import KernelObject, Plan

PARENT_OPTION = "parent"
_VLAN_IDS = range(1, 4095)


class ParentedOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """``-o`` keys that a macvlan and an ipvlan network have in common."""

    parent: str = ""
    mtu: int = field(name="com.docker.network.driver.mtu", default=0)


_Options = TypeVar("_Options", bound=ParentedOptions)


class ParentedEndpointOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """``--driver-opt`` keys of an endpoint in a macvlan or ipvlan network."""

    ifname: str = field(name="com.docker.network.endpoint.ifname", default="")


class ParentedDriver(Generic[_Options]):
    """The answers that the macvlan and the ipvlan driver have in common."""

    scope = Scope.LOCAL
    network_options: type[_Options]
    endpoint_options = ParentedEndpointOptions

    def options(self, network: Network) -> _Options:
        """The options of *network*, typed."""
        return decoded_options(self.network_options, network.options, f"network {network.name!r}")

    def validate_network(self, network: Network) -> None:
        """Refuse an impossible parent or MTU, and a network without addresses."""
        subject, options = f"network {network.name!r}", self.options(network)
        if not network.ipv4 and not network.ipv6:
            raise ConfigError(f"{subject}: it needs IPv4 or IPv6; leave one of them on")
        if options.parent == "lo":
            raise ConfigError(f"{subject}: lo leads nowhere, so it can be no parent; name another link, or none at all")
        if options.parent:
            check_ifname(options.parent)
        if options.mtu:
            check_mtu(options.mtu, ipv6=network.ipv6)

    def shaped(self, network: Network) -> Network:
        """*network*, made internal where it has no parent: nothing leads out of a dummy."""
        return network if self.options(network).parent else replace(network, internal=True)

    def lan_link(self, options: Mapping[str, str]) -> str:
        """The parent."""
        return options.get(PARENT_OPTION, "")

    def why_no_ports(self, network: Network) -> str:
        """Members are on the LAN themselves."""
        return "its members have addresses on the LAN, where all their ports are reached"


def parent_ifname(network: Network) -> str:
    """The parent of the network's links: the one named, or as in Docker ``dm-`` and the network's short id."""
    return network.options.get(PARENT_OPTION) or f"dm-{network.short_id}"


def parent_plan(network: Network, use: str, mtu: int) -> Plan:
    """The parent, up: the named link of the host, a VLAN of one if the name ends in a VLAN id, or a dummy without a name.

    An existing VLAN link of that name is used. *use* is what the network needs its parent for.
    """
    ifname = parent_ifname(network)
    if not network.options.get(PARENT_OPTION):
        return Plan(Dummy(ifname=ifname, mtu=mtu, up=True))
    carrier, _, tag = ifname.rpartition(".")
    if not (carrier and tag.isdecimal() and int(tag) in _VLAN_IDS):
        return Plan(ParentLink(ifname=ifname, use=use), LinkUp(ifname=ifname))
    return Plan(
        LinkUp(ifname=carrier, optional=True),
        Vlan(ifname=ifname, parent=carrier, vlan_id=int(tag), may_stand=True, up=True),
        ParentLink(ifname=ifname, use=use, made=True),
        LinkUp(ifname=ifname),
    )


def announcing_sysctls(endpoint: Endpoint, sandbox: Sandbox) -> list[KernelObject]:
    """Have the kernel announce the endpoint's addresses on the LAN when its link comes up: others may know a former holder."""
    names = (f"net/ipv4/conf/{endpoint.ifname}/arp_notify", f"net/ipv6/conf/{endpoint.ifname}/ndisc_notify")
    return [Sysctl(name=name, value="1", optional=True, netns=sandbox.netns) for name in names]
