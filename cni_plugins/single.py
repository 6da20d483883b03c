"""What plugin types have in common that give a container one link and its addresses.

A type says which link; where that is on another one, the parent is looked at before anything is made.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from typing import ClassVar, Generic, NamedTuple, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from cni_plugins import attaching
from cni_plugins.addressing import Addressing
from cni_plugins.interface import addressed, checked_mtu, chosen_dns, remove_foreign_link, routed
from cni_plugins.netconf import NetConf
from cni_plugins.node import Node
from cni_plugins.protocol import CniError, Code
from cni_plugins.result import Interface, Result
from cni_plugins.skel import Call
from netlib.core.adding import Adding, Wanted
from netlib.errors import ObjectMissing
from netlib.kernel.handle import Kernel
from netlib.kernel.linkinfo import LinkInfo
from netlib.kernel.links import LinkUp
from netlib.kernel.routes import default_route_link
from netlib.model import HOST, IPAddress, NetnsRef
from netlib.names import check_ifname, endpoint_mac
from netlib.plan import KernelObject, Plan
from netlib.store.records import Transaction

__all__ = ["Given", "MacRequest", "ParentConf", "SingleLink", "checked_mode", "find_parent"]

C = TypeVar("C", bound=NetConf)
M = TypeVar("M", bound=str)


class MacRequest(Struct, frozen=True):
    """The MAC address under ``runtimeConfig``."""

    mac: str = ""


class ParentConf(NetConf, frozen=True, kw_only=True, rename="camel"):
    """The configuration of a link on another one."""

    master: str = ""
    mtu: int = 0
    link_in_container: bool = False


class Parent(NamedTuple):
    """The link that another one is on."""

    ifname: str
    netns: NetnsRef
    mac: str


class Given(NamedTuple):
    """The link for a container, with its MAC address; *more* comes right after it."""

    link: KernelObject
    mac: str
    more: tuple[KernelObject, ...] = ()


MacFor = Callable[[IPAddress | None], str]


class SingleLink(ABC, Generic[C]):
    """What each verb answers; a subclass names its link."""

    name: ClassVar[str]
    kind: ClassVar[str]
    """Of the link, as the kernel has it: what a DEL without a record takes away."""
    config: type[C]
    needs_addresses: ClassVar[bool] = False

    def __init__(self, node: Node) -> None:
        self._node = node

    @abstractmethod
    def prepared(self, call: Call[C], netns: NetnsRef) -> Callable[[Adding, str], Given]:
        """Check *call* and look at what is there; answer with a function from a MAC address, if one is free, to the link.

        *netns* is the container's, HOST where there is none (STATUS). Raises ConfigError, ObjectMissing.
        """

    def leased(self, _call: Call[C]) -> Result:
        """Where the configuration has no IPAM: the addresses that come from elsewhere."""
        return Result()

    def requested_mac(self, _call: Call[C]) -> str:
        """The MAC address that is asked for, or ""."""
        return ""

    def add(self, call: Call[C]) -> Result:
        addressing = self._addressing(call)
        prepared = self.prepared(call, attaching.netns_of(self._node, call))
        wanted_mac = self.requested_mac(call)
        with attaching.adding(self._node, call, self.name) as adding:
            ifname, netns, result = call.ifname, adding.netns, Result()

            def made(address: IPAddress | None) -> Given:
                late = addressing.asks_over_link and bool(addressing)
                return prepared(adding, wanted_mac or endpoint_mac(adding.record, None if late else address))

            if addressing and addressing.asks_over_link:
                given = made(None)
                adding.apply(lambda _: Wanted(Plan(given.link, *given.more, LinkUp(ifname=ifname, netns=netns))))
                addressing.ask(adding)

            def draft(tx: Transaction) -> Wanted:
                nonlocal result
                leased, held = addressing.lease(tx, adding) if addressing else (self.leased(call), Plan())
                self._check_addresses(leased, addressing)
                given = made(next((ip.address.ip for ip in leased.ips if isinstance(ip.address.ip, IPv4Address)), None))
                result = Result(
                    interfaces=(Interface(ifname, given.mac, sandbox=netns.path),),
                    ips=tuple(replace(ip, interface=0) for ip in leased.ips),
                    routes=leased.routes,
                    dns=chosen_dns(call.config.dns, leased.dns),
                )
                inside = [*addressed(ifname, netns, result.ips), *routed(ifname, netns, result)]
                return Wanted(Plan(*held, given.link, *given.more, *inside))

            adding.apply(draft)
            return attaching.finish(adding, call, result)

    def check(self, call: Call[C]) -> None:
        if addressing := Addressing(self._node, call):
            addressing.check()
        attaching.check(self._node, call, self.name)

    def delete(self, call: Call[C]) -> None:
        attaching.delete(self._node, call, self.name, lambda: self.delete_foreign(call))

    def delete_foreign(self, call: Call[C]) -> None:
        """DEL of what no record knows."""
        Addressing(self._node, call).delete()
        remove_foreign_link(self._node, call, (self.kind,))

    def garbage_collect(self, call: Call[C]) -> None:
        attaching.collect(self._node, call, self.name)
        Addressing(self._node, call).garbage_collect()

    def status(self, call: Call[C]) -> None:
        addressing = self._addressing(call)
        self.prepared(call, HOST)
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
    """*mode* as one of the *known* ones; CniError else. Not by its type, which a DEL would be refused for."""
    found = next((entry for entry in known if entry == mode), None)
    if found is None:
        raise CniError(Code.INVALID_CONFIG, f'unknown {kind} mode: "{mode}"', f"known are {', '.join(known)}")
    return found


def find_parent(node: Node, config: ParentConf, netns: NetnsRef) -> Parent | None:
    """The link that *config* names, else that of the default route, where it says to look; MTU and name checked.

    None for a link inside a container where there is no container (STATUS).
    """
    checked_mtu(config.mtu)
    if config.link_in_container and netns.is_host:
        return None
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
