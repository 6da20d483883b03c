"""Routes: those that we set, and those that a new subnet must not overlap."""

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from msgspec.structs import replace

from netlib.errors import KernelError, ObjectMissing
from netlib.kernel.links import is_on
from netlib.kernel.netlink import APPEND, CREATE, REPLACE, attribute, attributes_of, nest, number, number_of
from netlib.kernel.netns import command_in
from netlib.kernel.translate import doing
from netlib.model import HOST, IPAddress, IPNetwork, NetnsRef
from netlib.plan import KernelObject, Key

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel, Rtnl

MAIN_TABLE = 254
_IPV6_METRIC = 1024  # what the kernel makes of metric 0
_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 24, 25, 26
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_METRICS, _RTA_TABLE = 1, 4, 5, 6, 7, 8, 15
_RTAX_MTU, _RTAX_ADVMSS = 2, 8
_MOST_BEHIND = 64  # metrics that one network after the other may take
_RTMSG = struct.Struct("=BBBBBBBBI")  # rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
_IMPOSSIBLE = {errno.EINVAL, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH}
_NO_DESTINATION = {3, 4, 5}  # rtm_type: broadcast, anycast, multicast
_SCOPE_LINK, _UNICAST = 253, 1
_BY_KERNEL, _STATIC, _BY_ROUTER = 2, 4, 9  # rtm_protocol
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
# Loopback, multicast and link-local addresses, which no subnet of ours has.
_SPECIAL = tuple(ipaddress.ip_network(text) for text in ("127.0.0.0/8", "224.0.0.0/4", "::1/128", "fe80::/64", "ff00::/8"))


class RouteEntry(KernelObject, frozen=True, kw_only=True, tag="route"):
    """A route. Destination, metric and table identify it; the rest are attributes: changing them is one request.

    *scope* (of IPv4: 0 global, 253 link, 254 host) None is link without a *gateway*, else global. *source* is what the host's
    own packets come from; *mtu* and *advmss* 0 leave these to the link. *protocol* says who set it (``rtnetlink(7)``).

    A route that *yields* is appended after existing routes with the same destination, and takes effect when they are removed;
    *behind* is how many there were. A container with two CNI networks, each of which asks for the default route::

        metric 0   default via 10.1.0.1 dev eth0    yields, behind 0: the first network's, used
        metric 0   default via 10.2.0.1 dev eth1    yields, behind 1: appended, used once eth0 is gone

    IPv6 would use two routes of one metric in turn, so there *behind* is added to the metric.
    """

    observations = ("behind",)

    destination: IPNetwork
    ifname: str
    gateway: IPAddress | None = None
    metric: int = 0
    table: int = MAIN_TABLE
    scope: int | None = None
    source: IPAddress | None = None
    mtu: int = 0
    advmss: int = 0
    protocol: int = _STATIC
    yields: bool = False
    behind: int = 0

    @cached_property
    def key(self) -> Key:
        metric = f" metric {self.metric}" if self.metric else ""
        table = f" table {self.table}" if self.table != MAIN_TABLE else ""
        return Key("route", self.netns.path, f"{self._name}{metric}{table}")

    @property
    def _name(self) -> str:
        return str(self.destination) if self.destination.prefixlen else f"default{self.destination.version}"

    @property
    def _metric(self) -> int:
        # IPv6 uses routes of one metric in turn.
        return self._first_metric + (self.behind if self.destination.version == 6 else 0)

    @property
    def _first_metric(self) -> int:
        return self.metric or (_IPV6_METRIC if self.destination.version == 6 else 0)

    @property
    def _scope(self) -> int:
        if self.destination.version == 6:
            return 0
        return self.scope if self.scope is not None else 0 if self.gateway else _SCOPE_LINK

    def may_meet_others(self) -> bool:
        """Yes for a route that yields: somebody else's route with this destination stays, and is used first."""
        return self.yields

    def observed(self, kernel: "Kernel") -> Self:
        if not self.yields:
            return self
        first = self._first_metric
        last = first + (_MOST_BEHIND if self.destination.version == 6 else 0)
        routes = _routes(kernel.rtnl(self.netns), self.destination.version, self.table)
        metrics = [route.metric for route in routes if route.destination == self.destination and first <= route.metric <= last]
        return replace(self, behind=max(metrics) - first + 1 if metrics else 0)

    def is_taken(self, kernel: "Kernel") -> bool:
        """Whether the kernel has a route with this destination, metric and table."""
        return bool(self._same(kernel.rtnl(self.netns)))

    def coexisting(self, theirs: KernelObject, kernel: "Kernel") -> Self | None:
        """Append a route that yields behind another interface's, whether that is set by now or about to be; None for others."""
        if not (self.yields and isinstance(theirs, RouteEntry) and theirs.ifname != self.ifname):
            return None
        found = self.observed(kernel)
        return found if theirs.behind or found.behind else replace(found, behind=1)

    def ensure(self, kernel: "Kernel") -> None:
        """Set the route, replacing one with the same destination and metric; ObjectMissing when its link is missing.

        A route that yields is appended to those instead.
        """
        rtnl = kernel.rtnl(self.netns)
        index = rtnl.index(self.ifname)
        if not self.behind:
            self._order(rtnl, "set", _RTM_NEWROUTE, CREATE | REPLACE, index)
        elif not any(self._is(route, index) for route in self._same(rtnl)):
            self._order(rtnl, "append", _RTM_NEWROUTE, CREATE | APPEND, index)

    def remove(self, kernel: "Kernel") -> None:
        """Remove the route if the kernel has it as described here."""
        with suppress(ObjectMissing):
            rtnl = kernel.rtnl(self.netns)
            index = rtnl.index(self.ifname)
            if any(self._is(route, index) for route in self._same(rtnl)):
                self._order(rtnl, "delete", _RTM_DELROUTE, 0, index)

    def _order(self, rtnl: "Rtnl", verb: str, kind: int, flags: int, index: int) -> None:
        destination, table = self.destination, self.table if self.table < 256 else 0
        header = _RTMSG.pack(
            _FAMILY[destination.version], destination.prefixlen, 0, 0, table, self.protocol, self._scope, _UNICAST, 0
        )
        payload = header + number(_RTA_TABLE, self.table) + number(_RTA_OIF, index) + number(_RTA_PRIORITY, self._metric)
        if destination.prefixlen:
            payload += attribute(_RTA_DST, destination.network_address.packed)
        if self.gateway:
            payload += attribute(_RTA_GATEWAY, self.gateway.packed)
        if self.source:
            payload += attribute(_RTA_PREFSRC, self.source.packed)
        if self.mtu or self.advmss:
            metrics = ((_RTAX_MTU, self.mtu), (_RTAX_ADVMSS, self.advmss))
            payload += nest(_RTA_METRICS, *(number(kind, value) for kind, value in metrics if value))
        rtnl.order(f"{verb} route {self._name} on {self.ifname} in {self.netns.label}", (kind, flags, payload))

    def _same(self, rtnl: "Rtnl") -> list["_Found"]:
        """The kernel's routes with this one's identity; several where somebody made it multipath."""
        found = _routes(rtnl, self.destination.version, self.table)
        return [route for route in found if route.destination == self.destination and route.metric == self._metric]

    def _is(self, route: "_Found", index: int) -> bool:
        return (route.link, route.gateway, route.scope, route.source, route.mtu, route.advmss) == (
            index,
            self.gateway.packed if self.gateway else None,
            self._scope,
            self.source.packed if self.source else None,
            self.mtu,
            self.advmss,
        )

    def drift(self, kernel: "Kernel") -> str | None:
        try:
            rtnl = kernel.rtnl(self.netns)
            index = rtnl.index(self.ifname)
            found = self._same(rtnl)
        except ObjectMissing as error:
            return str(error)
        if not found:
            return f"route {self._name} is missing"
        if any(self._is(route, index) for route in found):
            return None
        gateway = found[0].gateway
        if (found[0].link, gateway) == (index, self.gateway.packed if self.gateway else None):
            return f"route {self._name} has another scope, source, mtu or advmss"
        return f"route {self._name} goes by {ipaddress.ip_address(gateway) if gateway else 'another link'}, not by {self._way}"

    @property
    def _way(self) -> str:
        return f"{self.gateway} on {self.ifname}" if self.gateway else self.ifname

    def commands(self) -> Iterable[str]:
        family = " -6" if self.destination.version == 6 else ""
        destination = self.destination if self.destination.prefixlen else "default"
        via = f" via {self.gateway}" if self.gateway else ""
        priority = self._metric if self.behind else self.metric
        metric = f" metric {priority}" if priority else ""
        table = f" table {self.table}" if self.table != MAIN_TABLE else ""
        scope = f" scope {self.scope}" if self.scope is not None and self.destination.version == 4 else ""
        source = f" src {self.source}" if self.source else ""
        mtu, advmss = f" mtu {self.mtu}" if self.mtu else "", f" advmss {self.advmss}" if self.advmss else ""
        more = f"{metric}{table}{scope}{source}{mtu}{advmss}"
        verb = "append" if self.behind else "replace"
        yield command_in(self.netns, f"ip{family} route {verb} {destination}{via} dev {self.ifname}{more}")


class _Found(NamedTuple):
    table: int
    destination: IPNetwork
    kind: int  # rtm_type
    metric: int
    link: int  # its index; 0 for a multipath route, or one that leads nowhere
    gateway: bytes | None
    protocol: int
    scope: int
    source: bytes | None
    mtu: int
    advmss: int


def _routes(rtnl: "Rtnl", version: int, table: int = 0) -> list[_Found]:
    """Every route of a family, of one table or (0) of all."""
    header = _RTMSG.pack(_FAMILY[version], 0, 0, 0, 0, 0, 0, 0, 0)
    by_table = (number(_RTA_TABLE, table),) if table else ()
    try:
        messages = rtnl.dump(_RTM_GETROUTE, header, *by_table)
    except ObjectMissing:  # no such table
        return []
    network: Any = ipaddress.IPv4Network if version == 4 else ipaddress.IPv6Network
    anywhere = bytes(4 if version == 4 else 16)
    found = []
    for fixed, attributes in messages:
        family, prefixlen, _, _, _, protocol, scope, kind, _ = _RTMSG.unpack(fixed)
        if family == _FAMILY[version]:  # where IPv6 is switched off, the kernel answers for all families
            destination = network((attributes.get(_RTA_DST, anywhere), prefixlen))
            metric, link = number_of(attributes.get(_RTA_PRIORITY)), number_of(attributes.get(_RTA_OIF))
            metrics = attributes_of(attributes.get(_RTA_METRICS, b""))
            mtu, advmss = number_of(metrics.get(_RTAX_MTU)), number_of(metrics.get(_RTAX_ADVMSS))
            gateway, source = attributes.get(_RTA_GATEWAY), attributes.get(_RTA_PREFSRC)
            place = number_of(attributes.get(_RTA_TABLE))
            found.append(_Found(place, destination, kind, metric, link, gateway, protocol, scope, source, mtu, advmss))
    return found


def routes_by(kernel: "Kernel", ifname: str, netns: NetnsRef = HOST, *, connected: bool = False) -> list[RouteEntry]:
    """The main table's routes over a link, those by a gateway last; with *connected* also those that the kernel made itself.

    Routes that routers advertise are left out, for they are advertised again, and so are those to link-local addresses.
    """
    rtnl = kernel.rtnl(netns)
    index = rtnl.index(ifname)
    left_out = (_BY_ROUTER,) if connected else (_BY_KERNEL, _BY_ROUTER)
    found = [
        RouteEntry(
            destination=route.destination,
            ifname=ifname,
            gateway=ipaddress.ip_address(route.gateway) if route.gateway else None,
            metric=0 if (version, route.metric) == (6, _IPV6_METRIC) else route.metric,
            scope=route.scope if version == 4 else None,
            source=ipaddress.ip_address(route.source) if route.source else None,
            mtu=route.mtu,
            advmss=route.advmss,
            protocol=route.protocol,
            netns=netns,
        )
        for version in (4, 6)
        for route in _routes(rtnl, version, MAIN_TABLE)
        if route.link == index and route.kind == _UNICAST and route.protocol not in left_out
        if not route.destination.is_link_local
    ]
    return sorted(found, key=lambda route: route.gateway is not None)


def tables_with_routes(kernel: "Kernel", netns: NetnsRef = HOST) -> set[int]:
    """The routing tables of *netns* that hold a route."""
    rtnl = kernel.rtnl(netns)
    return {route.table for version in (4, 6) for route in _routes(rtnl, version)}


class RouteAway(KernelObject, frozen=True, kw_only=True, tag="route_away"):
    """A *route* that existed before us, taken out of the kernel.

    Removing this object sets the route again, unless another route has its place. It is not set again if its link is down or
    its source address is gone: the kernel would have deleted it then.
    """

    route: RouteEntry

    @property
    def ifname(self) -> str:
        return self.route.ifname

    @cached_property
    def key(self) -> Key:
        return Key("route_away", self.netns.path, f"{self.ifname} {self.route.key.name}")

    def ensure(self, kernel: "Kernel") -> None:
        self.route.remove(kernel)

    def remove(self, kernel: "Kernel") -> None:
        with suppress(ObjectMissing):
            try:
                if not self.route.is_taken(kernel):
                    self.route.ensure(kernel)
            except KernelError as error:
                if error.errno not in _IMPOSSIBLE:
                    raise

    def drift(self, kernel: "Kernel") -> str | None:
        missing = self.route.drift(kernel)
        return None if missing else f"route {self.route.key.name} by {self.ifname} is there again"

    def remaining(self, other: KernelObject) -> KernelObject | None:
        """*other*, or None for the removed route itself."""
        return None if other.key == self.route.key and is_on(other, self.ifname) else other

    def commands(self) -> Iterable[str]:
        for command in self.route.commands():
            yield command.replace(" route replace ", " route del ", 1)


def default_route_link(kernel: "Kernel", netns: NetnsRef = HOST) -> str:
    """The link of the default route of *netns*, of IPv4 if it has one; "" where there is none."""
    rtnl = kernel.rtnl(netns)
    for version in (4, 6):
        routes = [route for route in _routes(rtnl, version, MAIN_TABLE) if not route.destination.prefixlen and route.link]
        if routes:
            best = min(routes, key=lambda route: route.metric).link
            return next((link.ifname for link in rtnl.links() if link.index == best), "")
    return ""


def host_routes(kernel: "Kernel", netns: NetnsRef = HOST, *, besides: str = "") -> list[IPNetwork]:
    """Every destination in every table of *netns*, once: what a new subnet must not overlap.

    Left out are default routes, also in halves (0.0.0.0/1 and 128.0.0.0/1, as VPNs set them), multicast, broadcast, loopback
    and link-local ones, and subnets on the link *besides*. Blackhole routes and the like count.
    """
    rtnl = kernel.rtnl(netns)
    link = rtnl.find_link(besides) if besides else None
    routes = [
        route
        for route in _routes(rtnl, 4) + _routes(rtnl, 6)
        if link is None or route.link != link.index or route.gateway is not None
    ]
    found = {route.destination for route in routes if route.kind not in _NO_DESTINATION and route.destination.prefixlen > 1}
    return [network for network in found if not any(_within(network, special) for special in _SPECIAL)]


def route_link(kernel: "Kernel", address: IPAddress, netns: NetnsRef = HOST) -> str | None:
    """The link by which *netns* sends to *address*, None where it has no route to it."""
    question = _RTMSG.pack(_FAMILY[address.version], address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    rtnl = kernel.rtnl(netns)
    try:
        with doing(f"look up the way to {address} in {netns.label}"):
            _, found = rtnl.plain.get(_RTM_GETROUTE, question, attribute(_RTA_DST, address.packed))
            with kernel.entered(netns):
                return socket.if_indextoname(number_of(found.get(_RTA_OIF)))
    except KernelError:  # unreachable, or the link was deleted meanwhile
        return None


def _within(network: Any, other: Any) -> bool:
    return network.version == other.version and bool(network.subnet_of(other))
