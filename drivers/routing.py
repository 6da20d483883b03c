"""The objects of a host that routes for its containers: what networks of the driver bridge and CNI networks have in common."""

import ipaddress
from collections.abc import Collection, Sequence

from netlib.kernel.addresses import Address
from netlib.kernel.sysctl import RouterAdvertisements, Sysctl
from netlib.model import IPInterface
from netlib.plan import KernelObject

__all__ = ["forwarding_objects", "gateway_addresses"]

_LINK_LOCAL = ipaddress.ip_interface("fe80::1/64")


def forwarding_objects(versions: Collection[int]) -> list[KernelObject]:
    """The objects that switch forwarding on for these IP *versions* (4, 6).

    With IPv6 they keep the host learning routes by router advertisements, which a router ignores by default.
    """
    objects: list[KernelObject] = []
    if 4 in versions:
        objects.append(Sysctl(name="net/ipv4/ip_forward", value="1"))
    if 6 in versions:
        objects += [RouterAdvertisements(), Sysctl(name="net/ipv6/conf/all/forwarding", value="1")]
    return objects


def gateway_addresses(ifname: str, gateways: Sequence[IPInterface], *, ipv6: bool = False) -> list[KernelObject]:
    """The objects that give a link of the host the *gateways* of containers.

    With *ipv6*, or a gateway of IPv6, the link gets Docker's link-local address too, the same on every bridge: the kernel makes
    none on our links, and a router without one solicits no neighbours.
    """
    link_local = [_LINK_LOCAL] if ipv6 or any(gateway.version == 6 for gateway in gateways) else []
    addresses = dict.fromkeys([*gateways, *link_local])
    return [Address(ifname=ifname, address=address) for address in addresses]
