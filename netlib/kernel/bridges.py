"""Bridges and their ports."""

from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from msgspec import Struct
from msgspec.structs import replace

from netlib.errors import ConfigError, ObjectMissing
from netlib.kernel.addresses import switched_on
from netlib.kernel.linkinfo import (
    BR_NF_CALL_IP6TABLES,
    BR_NF_CALL_IPTABLES,
    BRPORT_ISOLATED,
    BRPORT_LEARNING,
    BRPORT_MODE,
    IFF_UP,
    IFLA_LINKINFO,
    IFLA_MASTER,
    IFLA_PROTINFO,
    INFO_DATA,
    INFO_KIND,
    RTM_SETLINK,
    LinkInfo,
    link_header,
)
from netlib.kernel.links import (
    create_link,
    finish_host_end,
    is_on,
    is_ours,
    link_attributes,
    link_drift,
    not_ours,
    remove_link,
    router_refusal_commands,
    set_link,
)
from netlib.kernel.netlink import attribute, nest, number
from netlib.kernel.netns import command_in
from netlib.kernel.routers import router_refusal_drift
from netlib.kernel.sysctl import read_sysctl, write_sysctl
from netlib.plan import KernelObject, Key

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel

_AF_BRIDGE = 7
_BR_NETFILTER = Path("/proc/sys/net/bridge")
_FILTERED = (True, True)


class BridgeBefore(Struct, frozen=True):
    """The settings of somebody else's bridge before a network of ours used it."""

    up: bool
    mac: str
    mtu: int
    nf_call: tuple[bool, bool]  # whether the firewall sees IPv4, IPv6 packets between its ports
    disable_ipv6: str | None


class Bridge(KernelObject, frozen=True, kw_only=True, tag="bridge"):
    """A Linux bridge, up; an MTU of 0 leaves the kernel's.

    An *adopted* bridge was there before us: it gets these settings, is never deleted, and gets its former settings back at the
    removal. Its present MAC address is set explicitly: a bridge without one takes the lowest of its ports', and neighbours
    would lose the host. *filtered*: packets between its ports pass the firewall where the kernel has br_netfilter, also when
    the host's ``bridge-nf-call-iptables`` is 0. *ipv6* enables IPv6 on the bridge, also where it is off for new links. A bridge
    that we made without it gives the host no IPv6 address, so containers cannot reach host services over link-local IPv6. Ours
    ignore router advertisements and redirects.
    """

    ifname: str
    mac: str = ""
    mtu: int = 0
    ipv6: bool = True
    filtered: bool = False
    adopted: BridgeBefore | None = None

    observations = ("adopted",)

    @cached_property
    def key(self) -> Key:
        return Key("link", self.netns.path, self.ifname)

    @property
    def shared(self) -> bool:
        return True

    def observed(self, kernel: "Kernel") -> Self:
        """Adopt an existing bridge of that name which is not ours; ConfigError when a link of another kind has the name."""
        link = kernel.rtnl(self.netns).find_link(self.ifname)
        if link is None:
            return self
        if link.kind != "bridge":
            raise ConfigError(f"link {self.ifname} in {self.netns.label} is no bridge ({link.kind}); use another name")
        if is_ours(link, "bridge"):
            return self
        disable_ipv6 = read_sysctl(kernel, self.netns, self._disable_ipv6)
        return replace(self, adopted=BridgeBefore(link.up, link.mac, link.mtu, _nf_call(link), disable_ipv6))

    def ensure(self, kernel: "Kernel") -> None:
        rtnl = kernel.rtnl(self.netns)
        # The MTU is set after the creation: the kernel forgets one set at the creation when the first port is added.
        mac = link_attributes(self.adopted.mac if self.adopted else self.mac)
        settings = mac + link_attributes(mtu=self.mtu) + (_filtering(*_FILTERED) if self.filtered else b"")
        action = f"bridge {self.ifname} in {self.netns.label}"
        if not self.adopted and not create_link(rtnl, action, self.ifname, "bridge", mac):
            link = rtnl.get_link(self.ifname)
            if not is_ours(link, "bridge"):
                raise not_ours(link, self.netns)
        with suppress(ObjectMissing):  # no IPv6 in this kernel, or none on a link with so small an MTU
            for name, value in self._sysctls.items():
                write_sysctl(kernel, self.netns, name, value)
        if self.adopted:
            set_link(rtnl, f"set up link {self.ifname}", self.ifname, settings, IFF_UP)
        else:
            finish_host_end(kernel, rtnl, self.ifname, self.mtu, settings)

    @property
    def _sysctls(self) -> dict[str, str]:
        """The sysctls that switch IPv6 on or off; on an adopted bridge it is never switched off."""
        if self.adopted:
            return {self._disable_ipv6: "0"} if self.ipv6 else {}
        return {self._disable_ipv6: "0" if self.ipv6 else "1"}

    @property
    def _disable_ipv6(self) -> str:
        return f"net/ipv6/conf/{self.ifname}/disable_ipv6"

    def remove(self, kernel: "Kernel") -> None:
        """Delete a bridge that is ours, whose ports stay without a master; give an adopted one its former settings back."""
        if self.adopted:
            self._restore(kernel, self.adopted)
        else:
            remove_link(kernel, self.netns, self.ifname, "bridge")

    def _restore(self, kernel: "Kernel", before: BridgeBefore) -> None:
        """Restore the former settings that are still as we set them. IPv6 addresses stay when the link is set down."""
        with suppress(ObjectMissing):
            rtnl = kernel.rtnl(self.netns)
            link = rtnl.get_link(self.ifname)
            if link.kind != "bridge":
                return
            settings = link_attributes(mtu=before.mtu) if self.mtu and link.mtu == self.mtu else b""
            if self.filtered and _nf_call(link) == _FILTERED:
                settings += _filtering(*before.nf_call)
            with switched_on(kernel, self.netns, f"net/ipv6/conf/{self.ifname}/keep_addr_on_down"):
                action = f"give back link {self.ifname}"
                set_link(rtnl, action, self.ifname, settings, change=0 if before.up else IFF_UP)
            if self.ipv6 and before.disable_ipv6 not in (None, "0"):
                write_sysctl(kernel, self.netns, self._disable_ipv6, before.disable_ipv6)

    def carries_in(self) -> tuple[str, ...]:
        return (self.netns.path,)

    def carries(self, other: KernelObject) -> bool:
        if self.adopted or other is self or other.netns.path != self.netns.path:
            return False
        return is_on(other, self.ifname) or (isinstance(other, BridgePort) and other.bridge == self.ifname)

    def drift(self, kernel: "Kernel") -> str | None:
        link = kernel.rtnl(self.netns).find_link(self.ifname)
        if link is None:
            return f"bridge {self.ifname} is missing"
        if link.kind != "bridge":
            return f"link {self.ifname} is no bridge"
        if self.filtered and _BR_NETFILTER.exists() and _nf_call(link) != _FILTERED:
            return f"bridge {self.ifname} does not pass packets between its ports to the firewall"
        for name, value in self._sysctls.items():
            found = read_sysctl(kernel, self.netns, name)
            if found not in (None, value):
                return f"sysctl {name} is {found!r}, not {value!r}"
        mac = "" if self.adopted else self.mac
        return link_drift(link, self.ifname, mac, self.mtu) or (None if self.adopted else router_refusal_drift(link))

    def commands(self) -> Iterable[str]:
        mac = f" address {self.mac}" if self.mac else ""
        mtu = f" mtu {self.mtu}" if self.mtu else ""
        if not self.adopted:
            yield command_in(self.netns, f"ip link add {self.ifname}{mac} type bridge")
            yield from router_refusal_commands(self.netns, self.ifname, 0)  # at first it has the kernel's MTU
        for name, value in self._sysctls.items():
            yield command_in(self.netns, f"sysctl -w {name}={value}")
        if self.filtered:
            yield command_in(self.netns, f"ip link set {self.ifname} type bridge nf_call_iptables 1 nf_call_ip6tables 1")
        yield command_in(self.netns, f"ip link set {self.ifname}{mtu} up")


def _filtering(ipv4: bool, ipv6: bool) -> bytes:
    settings = attribute(BR_NF_CALL_IPTABLES, bytes([ipv4])), attribute(BR_NF_CALL_IP6TABLES, bytes([ipv6]))
    return nest(IFLA_LINKINFO, attribute(INFO_KIND, b"bridge"), nest(INFO_DATA, *settings))


def _nf_call(link: LinkInfo) -> tuple[bool, bool]:
    return link.data.get(BR_NF_CALL_IPTABLES) == b"\1", link.data.get(BR_NF_CALL_IP6TABLES) == b"\1"


class BridgePort(KernelObject, frozen=True, kw_only=True, tag="bridge_port"):
    """A link as a port of a bridge, with the port's settings.

    An *isolated* port exchanges no packets with other isolated ports. On a *filtered* bridge the firewall isolates them instead
    if the kernel has br_netfilter: it lets packets to published ports pass, which br_netfilter sends from port to port as well.
    """

    ifname: str
    bridge: str
    hairpin: bool = False
    isolated: bool = False
    filtered: bool = False
    learning: bool = True

    @cached_property
    def key(self) -> Key:
        return Key("port", self.netns.path, self.ifname)

    def ensure(self, kernel: "Kernel") -> None:
        rtnl = kernel.rtnl(self.netns)
        index, bridge = rtnl.index(self.ifname), rtnl.index(self.bridge)
        port = nest(IFLA_PROTINFO, *(attribute(kind, bytes([value])) for kind, _, value in self._settings))
        rtnl.order(
            f"plug {self.ifname} into bridge {self.bridge} in {self.netns.label}",
            (RTM_SETLINK, 0, link_header(index) + number(IFLA_MASTER, bridge)),
            (RTM_SETLINK, 0, link_header(index, family=_AF_BRIDGE) + port),
        )
        rtnl.masters[index] = bridge

    def remove(self, kernel: "Kernel") -> None:
        """Unplug the link; a no-op when it is in another bridge by now."""
        with suppress(ObjectMissing):
            rtnl = kernel.rtnl(self.netns)
            bridge, link = rtnl.index(self.bridge), rtnl.get_link(self.ifname)
            if link.master == bridge:
                action = f"unplug {self.ifname} from bridge {self.bridge} in {self.netns.label}"
                rtnl.order(action, (RTM_SETLINK, 0, link_header(link.index) + number(IFLA_MASTER, 0)))

    def drift(self, kernel: "Kernel") -> str | None:
        rtnl = kernel.rtnl(self.netns)
        link = rtnl.find_link(self.ifname)
        if link is None:
            return f"link {self.ifname} is missing"
        try:
            bridge = rtnl.index(self.bridge)
        except ObjectMissing:
            return f"bridge {self.bridge} is missing"
        if link.master != bridge:
            return f"link {self.ifname} is not a port of bridge {self.bridge}"
        for setting, word, wanted in self._settings:
            if link.port.get(setting) != bytes([wanted]):
                return f"bridge port {self.ifname} has {word} {_on_off(not wanted)}"
        return None

    def commands(self) -> Iterable[str]:
        yield command_in(self.netns, f"ip link set {self.ifname} master {self.bridge}")
        settings = " ".join(f"{word} {_on_off(value)}" for _, word, value in self._settings)
        yield command_in(self.netns, f"bridge link set dev {self.ifname} {settings}")

    @property
    def _settings(self) -> tuple[tuple[int, str, bool], ...]:
        return (
            (BRPORT_MODE, "hairpin", self.hairpin),
            (BRPORT_ISOLATED, "isolated", self.isolated and not (self.filtered and _BR_NETFILTER.exists())),
            (BRPORT_LEARNING, "learning", self.learning),
        )


def _on_off(value: bool) -> str:
    return "on" if value else "off"
