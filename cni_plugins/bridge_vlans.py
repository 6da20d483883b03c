"""VLANs of the plugin type ``bridge``: those of the bridge's ports, and the host's link into one of them.

The addresses of a bridge that filters VLANs are not in a container's VLAN. So the gateway of containers in a VLAN is on one end
of a veth pair, called ``BRIDGE.VLAN`` as by the reference plugin, whose other end is a port in that VLAN.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct, field

from cni_plugins.protocol import CniError, Code
from netlib.core.pending_attachment import PendingAttachment
from netlib.kernel.bridges import BridgePort
from netlib.kernel.links import LinkUp, Veth, is_ours
from netlib.kernel.sysctl import Sysctl
from netlib.kernel.vlans import PortVlans
from netlib.model import HOST
from netlib.names import check_ifname, endpoint_mac
from netlib.plan import KernelObject

__all__ = ["PortConf", "Trunk", "VlanGateway", "port_conf", "vlan_gateway"]

_LAST_ID = 4094


class Trunk(Struct, frozen=True):
    """One entry of ``vlanTrunk``: a range, an id, or both."""

    min_id: int | None = field(name="minID", default=None)
    max_id: int | None = field(name="maxID", default=None)
    id: int | None = None


class PortConf(NamedTuple):
    """The VLANs of a container's port: the untagged one (0: the bridge's default) and ranges of tagged ones."""

    vlan: int
    tagged: tuple[tuple[int, int], ...]
    keeps_default: bool

    def objects(self, port: str) -> list[KernelObject]:
        """The objects that put *port* into these VLANs."""
        if not self.vlan and not self.tagged:
            return []
        return [PortVlans(ifname=port, native=self.vlan, tagged=self.tagged, keeps_default=self.keeps_default)]


class VlanGateway(NamedTuple):
    """The host's link in a VLAN of a bridge, and the objects that make it; none for a link that is not ours."""

    ifname: str
    mac: str
    objects: list[KernelObject]


def port_conf(vlan: int, trunk: Sequence[Trunk], *, keeps_default: bool) -> PortConf:
    """The VLANs that a configuration asks for, checked."""
    if not 0 <= vlan <= _LAST_ID:
        raise CniError(Code.INVALID_CONFIG, f"invalid VLAN ID {vlan} (must be between 0 and {_LAST_ID})")
    tagged: list[tuple[int, int]] = []
    for item in trunk:
        for name, value in (("minID", item.min_id), ("maxID", item.max_id), ("id", item.id)):
            if value is not None and not 1 <= value <= _LAST_ID:
                raise CniError(Code.INVALID_CONFIG, f"incorrect trunk {name} parameter", f"{value} is not in 1 to {_LAST_ID}")
        if (item.min_id is None) != (item.max_id is None):
            missing = "minID" if item.min_id is None else "maxID"
            msg = f"minID and maxID should be configured simultaneously, {missing} is missing"
            raise CniError(Code.INVALID_CONFIG, msg, "a single VLAN is given as id")
        if item.min_id is not None and item.max_id is not None:
            if item.max_id < item.min_id:
                msg = "minID is greater than maxID in trunk parameter"
                raise CniError(Code.INVALID_CONFIG, msg, f"{item.min_id} is greater than {item.max_id}")
            tagged.append((item.min_id, item.max_id))
        if item.id is not None:
            tagged.append((item.id, item.id))
    return PortConf(vlan, tuple(tagged), keeps_default)


def vlan_gateway(bridge: str, conf: PortConf, mtu: int, pending: PendingAttachment) -> VlanGateway:
    """Plan the host's link in the VLAN of *conf*; a link of that name which somebody else made is used unchanged."""
    ifname = check_ifname(f"{bridge}.{conf.vlan}")
    link = pending.kernel.rtnl().find_link(ifname)
    if link is not None and not is_ours(link, "veth"):
        return VlanGateway(ifname, link.mac, [])
    digest = hashlib.blake2b(f"{pending.store_tag}/{ifname}".encode(), digest_size=16).hexdigest()
    mac, port = endpoint_mac(digest, None), f"nlgw{digest[:8]}"
    return VlanGateway(
        ifname,
        mac,
        [
            Veth(ifname=port, peer=ifname, peer_netns=HOST, mac=mac, mtu=mtu),
            BridgePort(ifname=port, bridge=bridge),
            *conf._replace(tagged=()).objects(port),
            Sysctl(name=f"net/ipv6/conf/{ifname}/accept_ra", value="0", optional=True),
            Sysctl(name=f"net/ipv6/conf/{ifname}/disable_ipv6", value="0", optional=True),
            LinkUp(ifname=ifname),
        ],
    )
