"""What macvlan and ipvlan networks have in common: the parent that their links hang on."""

from msgspec import Struct, field

from netlib.errors import ConfigError
from netlib.kernel.links import LinkUp
from netlib.kernel.parents import ParentLink
from netlib.kernel.sublinks import Dummy, Vlan
from netlib.kernel.sysctl import Sysctl
from netlib.model import Endpoint, Network, Sandbox
from netlib.names import check_ifname, check_mtu
from netlib.plan import KernelObject, Plan

PARENT_OPTION = "parent"
_VLAN_IDS = range(1, 4095)


class ParentedEndpointOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """``--driver-opt`` keys of an endpoint in a macvlan or ipvlan network."""

    ifname: str = field(name="com.docker.network.endpoint.ifname", default="")


def parent_ifname(network: Network) -> str:
    """The link that the network's links hang on: the one named, or as in Docker ``dm-`` and the network's short id."""
    return network.options.get(PARENT_OPTION) or f"dm-{network.short_id}"


def check_parent(network: Network, mtu: int) -> None:
    """Refuse a parent or an MTU that cannot be, and a network that would have no addresses."""
    subject = f"network {network.name!r}"
    if not network.ipv4 and not network.ipv6:
        raise ConfigError(f"{subject}: it needs IPv4 or IPv6; leave one of them on")
    parent = network.options.get(PARENT_OPTION, "")
    if parent == "lo":
        raise ConfigError(f"{subject}: lo leads nowhere, so it can be no parent; name another link, or none at all")
    if parent:
        check_ifname(parent)
    if mtu:
        check_mtu(mtu, ipv6=network.ipv6)


def parent_plan(network: Network, use: str, mtu: int) -> Plan:
    """The parent, up: a link of the host, or a VLAN link or dummy made for it (a VLAN may be there already)."""
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


def announced(endpoint: Endpoint, sandbox: Sandbox) -> list[KernelObject]:
    """Have the kernel tell the LAN who has these addresses now, when the link comes up."""
    names = (f"net/ipv4/conf/{endpoint.ifname}/arp_notify", f"net/ipv6/conf/{endpoint.ifname}/ndisc_notify")
    return [Sysctl(name=name, value="1", optional=True, netns=sandbox.netns) for name in names]


def refuse_ports(network: Network, endpoint: Endpoint) -> None:
    """Raise ConfigError when ports are to be published: members are on the LAN themselves."""
    if endpoint.ports:
        raise ConfigError(
            f"network {network.name!r} ({network.driver}) publishes no ports: its members have addresses on the LAN, where all "
            "their ports are reached; leave -p out"
        )
