"""The verbs of plugin types that give a container one link and its addresses.

A type says which link. The parent of a link that has one is looked up before anything is made.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from cni_plugins import attaching
from cni_plugins.addressing import Addressing
from cni_plugins.interface import address_objects, checked_mtu, chosen_dns, remove_foreign_link, requested_mac, route_objects
from cni_plugins.netconf import NetConf
from cni_plugins.node import Node
from cni_plugins.protocol import CniError, Code
from cni_plugins.result import Interface, Result
from cni_plugins.skel import Call
from netlib.core.pending_attachment import PendingAttachment, Wanted
from netlib.errors import ObjectMissing
from netlib.kernel.handle import Kernel
from netlib.kernel.linkinfo import LinkInfo
from netlib.kernel.links import LinkUp
from netlib.kernel.routes import default_route_link
from netlib.model import HOST, IPAddress, NetnsRef
from netlib.names import check_ifname, endpoint_mac
from netlib.plan import KernelObject, Plan
from netlib.store.records import Transaction

__all__ = [
    "LinkPlan",
    "MacRequest",
    "Parent",
    "ParentConf",
    "PreparedLink",
    "SingleLink",
    "checked_mode",
    "chosen_mac",
    "find_parent",
]

C = TypeVar("C", bound=NetConf)
M = TypeVar("M", bound=str)


class MacRequest(Struct, frozen=True):
    """The MAC address under ``runtimeConfig``."""

    mac: str = ""


def chosen_mac(call: Call[Any]) -> str:
    """``runtimeConfig.mac``, else ``MAC`` in CNI_ARGS, else ``mac``, of a configuration with both keys; "" for none."""
    argument = call.arguments("MAC").get("MAC", "")
    return requested_mac(call, call.config.mac, argument, call.config.runtime_config.mac)


class ParentConf(NetConf, frozen=True, kw_only=True, rename="camel"):
    """The configuration of a link that has a parent."""

    master: str = ""
    mtu: int = 0
    link_in_container: bool = False


class Parent(NamedTuple):
    """The parent of a container's link: its name, the netns that it is in, and its MAC address."""

    ifname: str
    netns: NetnsRef
    mac: str


class LinkPlan(NamedTuple):
    """The link of a container, its MAC address, and the objects to make right after the link."""

    link: KernelObject
    mac: str
    more: tuple[KernelObject, ...] = ()


class PreparedLink(Protocol):
    """The link that one call asks for; its configuration is checked, and its parent found."""

    def link(self, pending: PendingAttachment, mac: str) -> LinkPlan:
        """Plan the link for *pending*, with the address *mac* where links of this type have MAC addresses of their own."""
        ...


class SingleLink(ABC, Generic[C]):
    """The verbs of such a type; a subclass prepares its link."""

    name: ClassVar[str]
    kind: ClassVar[str]
    """The kernel's kind of the link: a DEL without a record removes a link of this kind only."""
    config: type[C]
    needs_addresses: ClassVar[bool] = False

    def __init__(self, node: Node) -> None:
        self._node = node

    @abstractmethod
    def prepare(self, call: Call[C], netns: NetnsRef) -> PreparedLink:
        """Check the configuration of *call*, find the links of the host that it names, and change nothing.

        *netns* is the container's, or HOST for a STATUS, which has no container. Raises ConfigError, ObjectMissing.
        """

    def leased(self, _call: Call[C]) -> Result:
        """The addresses of a container whose configuration has no IPAM; none for most types."""
        return Result()

    def requested_mac(self, _call: Call[C]) -> str:
        """The MAC address that *call* asks for, or ""."""
        return ""

    def add(self, call: Call[C]) -> Result:
        addressing = self._addressing(call)
        prepared = self.prepare(call, attaching.netns_of(self._node, call))
        wanted_mac = self.requested_mac(call)
        with attaching.pending_attachment(self._node, call, self.name) as pending:
            ifname, netns, result = call.ifname, pending.netns, Result()

            def plan_link(address: IPAddress | None) -> LinkPlan:
                link_is_first = addressing.asks_over_link and bool(addressing)  # its MAC cannot follow from the address then
                return prepared.link(pending, wanted_mac or endpoint_mac(pending.record, None if link_is_first else address))

            if addressing and addressing.asks_over_link:
                planned = plan_link(None)
                pending.apply(lambda _: Wanted(Plan(planned.link, *planned.more, LinkUp(ifname=ifname, netns=netns))))
                addressing.ask(pending)

            def draft(tx: Transaction) -> Wanted:
                nonlocal result
                leased, held = addressing.lease(tx, pending) if addressing else (self.leased(call), Plan())
                self._check_addresses(leased, addressing)
                ipv4 = next((ip.address.ip for ip in leased.ips if isinstance(ip.address.ip, IPv4Address)), None)
                planned = plan_link(ipv4)
                result = Result(
                    interfaces=(Interface(ifname, planned.mac, sandbox=netns.path),),
                    ips=tuple(replace(ip, interface=0) for ip in leased.ips),
                    routes=leased.routes,
                    dns=chosen_dns(call.config.dns, leased.dns),
                )
                inside = [*address_objects(ifname, netns, result.ips), *route_objects(ifname, netns, result)]
                return Wanted(Plan(*held, planned.link, *planned.more, *inside))

            pending.apply(draft)
            return attaching.finish(pending, call, result)

    def check(self, call: Call[C]) -> None:
        if addressing := Addressing(self._node, call):
            addressing.check()
        attaching.check(self._node, call, self.name)

    def delete(self, call: Call[C]) -> None:
        attaching.delete(self._node, call, self.name, lambda: self.delete_foreign(call))

    def delete_foreign(self, call: Call[C]) -> None:
        """DEL for a container that no record knows."""
        Addressing(self._node, call).delete()
        remove_foreign_link(self._node, call, (self.kind,))

    def garbage_collect(self, call: Call[C]) -> None:
        attaching.collect(self._node, call, self.name)
        Addressing(self._node, call).garbage_collect()

    def status(self, call: Call[C]) -> None:
        addressing = self._addressing(call)
        self.prepare(call, HOST)
        addressing.status()

    def _addressing(self, call: Call[C]) -> Addressing:
        addressing = Addressing(self._node, call)
        if self.needs_addresses and not addressing:
            raise CniError(Code.INVALID_CONFIG, f"{self.name} needs addresses", "give it an ipam, such as host-local")
        return addressing

    @staticmethod
    def _check_addresses(leased: Result, addressing: Addressing) -> None:
        if addressing and not leased.ips:
            raise CniError(Code.INVALID_CONFIG, "IPAM plugin returned missing IP config", addressing.kind)


def checked_mode(kind: str, mode: str, known: Sequence[M]) -> M:
    """Return *mode*, which is one of the *known* ones; CniError for any other.

    The configuration's type leaves it a text, for a DEL must not be refused because of an unknown mode.
    """
    found = next((entry for entry in known if entry == mode), None)
    if found is None:
        raise CniError(Code.INVALID_CONFIG, f'unknown {kind} mode: "{mode}"', f"known are {', '.join(known)}")
    return found


def find_parent(node: Node, config: ParentConf, netns: NetnsRef) -> Parent:
    """Find the parent: the link that *config* names, else the link of the default route. Its name and the MTU are checked.

    With ``linkInContainer`` the parent is looked for in *netns*, the container's, else on the host.
    """
    checked_mtu(config.mtu)
    if config.link_in_container and netns.is_host:  # STATUS: there is no container to look into, and no link to make
        return Parent(config.master, netns, "")
    home = netns if config.link_in_container else HOST
    with Kernel() as kernel:
        if not home.is_host and node.netns is not None:
            kernel.lend(home, node.netns)
        ifname = config.master or default_route_link(kernel, home)
        if not ifname:
            raise ObjectMissing(f"no default route interface found in {home.label}; name the parent link by master")
        link: LinkInfo = kernel.rtnl(home).get_link(check_ifname(ifname))
    if config.mtu > link.mtu:
        raise CniError(Code.INVALID_CONFIG, f"invalid MTU {config.mtu}", f"must be [0, master MTU({link.mtu})]")
    return Parent(ifname, home, link.mac)
