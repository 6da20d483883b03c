"""Router advertisements and redirects: our links ignore both.

A container is no router of the host's, but it can send either. A link of the host that accepted them would give the host
addresses, a default route, or another route to a destination (CVE-2020-10749, CVE-2020-13401). So a link that we make for the
host refuses both before it is up. In a netns that we make, every new link refuses them
(:func:`netlib.kernel.netns.refuse_routers_here`); ``--sysctl``, the CNI plugin tuning or a process there may change that later.

IPv4's settings are set by netlink, IPv6's are sysctls: the kernel takes no more than an address mode for IPv6 in a link
message (``inet6_validate_link_af``). The kernel takes an IPv4 redirect on a link that does not forward when the link *or*
``conf/all`` allows it (``Documentation/networking/ip-sysctl.rst``), and ``conf/all`` is the administrator's: on a network's
bridge the firewall drops redirects as well.
"""

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from netlib.errors import ObjectMissing
from netlib.kernel.linkinfo import IFLA_AF_SPEC, LinkInfo
from netlib.kernel.netlink import attribute, attributes_of, nest, number
from netlib.kernel.sysctl import write_here
from netlib.kernel.translate import doing
from netlib.model import NetnsRef

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel

__all__ = [
    "NO_LINK_LOCAL",
    "NO_REDIRECTS",
    "NO_REDIRECTS_NOR_LINK_LOCAL",
    "refuse_routers",
    "router_refusal_drift",
    "settings",
]

_INET_CONF, _INET6_CONF, _INET6_ADDR_GEN_MODE = 1, 2, 8  # IFLA_INET_CONF, IFLA_INET6_CONF, IFLA_INET6_ADDR_GEN_MODE
_ACCEPT_REDIRECTS = 4  # IPV4_DEVCONF_ACCEPT_REDIRECTS; the kernel lists these from 1
_ACCEPT_RA6, _ACCEPT_REDIRECTS6 = 3, 4  # DEVCONF_*; listed from 0
_REFUSED6 = ("accept_ra", "accept_redirects")
_IPV4 = nest(socket.AF_INET, nest(_INET_CONF, number(_ACCEPT_REDIRECTS, 0)))
_IPV6 = nest(socket.AF_INET6, attribute(_INET6_ADDR_GEN_MODE, b"\1"))

NO_LINK_LOCAL = nest(IFLA_AF_SPEC, _IPV6)
"""Attributes of a link message: the kernel generates no link-local address. Only a link with IPv6 takes them."""
NO_REDIRECTS = nest(IFLA_AF_SPEC, _IPV4)
"""No IPv4 redirects."""
NO_REDIRECTS_NOR_LINK_LOCAL = nest(IFLA_AF_SPEC, _IPV4, _IPV6)
"""Both."""


def refuse_routers(kernel: "Kernel", netns: NetnsRef, ifname: str) -> None:
    """Switch off router advertisements and IPv6 redirects on a link (10 µs); a no-op where it has no IPv6.

    A link has no IPv6 in a kernel without it, and with an MTU below 1280. When such an MTU is raised the link gets fresh
    settings, so call this after the MTU is set and before the link is up.
    """
    with suppress(ObjectMissing), kernel.entered(netns), doing(f"have {ifname} in {netns.label} take nothing from routers"):
        for name in _REFUSED6:
            write_here(f"net/ipv6/conf/{ifname}/{name}", "0")


def router_refusal_drift(link: LinkInfo) -> str | None:
    """Name the sysctl by which a link of ours accepts router advertisements or redirects; None when it refuses all."""
    families = attributes_of(link.family_settings)
    ipv4 = attributes_of(families.get(socket.AF_INET, b"")).get(_INET_CONF, b"")
    ipv6 = attributes_of(families.get(socket.AF_INET6, b"")).get(_INET6_CONF, b"")
    for version, values, at, name in (
        (4, ipv4, _ACCEPT_REDIRECTS - 1, "accept_redirects"),
        (6, ipv6, _ACCEPT_RA6, "accept_ra"),
        (6, ipv6, _ACCEPT_REDIRECTS6, "accept_redirects"),
    ):
        if len(values) >= 4 * (at + 1):  # else the link has no settings of that version
            (value,) = struct.unpack_from("=i", values, 4 * at)
            if value:
                return f"sysctl net/ipv{version}/conf/{link.ifname}/{name} is '{value}', not '0'"
    return None


def settings(ifname: str, *, ipv6: bool = True) -> Iterator[str]:
    """The sysctls that are 0 on a link of ours, without those of *ipv6* where it has none."""
    yield f"net/ipv4/conf/{ifname}/accept_redirects"
    if ipv6:
        yield from (f"net/ipv6/conf/{ifname}/{name}" for name in _REFUSED6)
