"""The plugin type ``sbr``, source-based routing: packets from an address of an interface leave by that interface.

Each address gets the first routing table from 100 on that nobody uses, a rule that selects the table, a default route, and the
interface's routes that fit the address. Those routes are removed from the main table until DEL.
"""

import itertools
from collections.abc import Container
from ipaddress import ip_network
from itertools import islice
from typing import Annotated

from msgspec import Meta
from msgspec.structs import replace

from cni_plugins import attaching
from cni_plugins.chained import ChainedPlugin, previous
from cni_plugins.decode import Address
from cni_plugins.netconf import NetConf
from cni_plugins.protocol import CniError, Code
from cni_plugins.result import IP, Result
from cni_plugins.skel import Call
from netlib.core.pending_attachment import PendingAttachment, Wanted
from netlib.kernel.addresses import addresses_of
from netlib.kernel.routes import RouteAway, RouteEntry, routes_by, tables_with_routes
from netlib.kernel.rules import PolicyRule, rules_from, tables_of_rules
from netlib.model import IPAddress, IPInterface, IPNetwork
from netlib.plan import KernelObject, Plan
from netlib.store.records import Transaction

__all__ = ["SbrConf", "SbrPlugin"]

_FIRST_TABLE = 100
_LINK_SCOPE = 253


class SbrConf(NetConf, frozen=True, kw_only=True, rename="camel"):
    """The configuration. With a ``table``, which somebody else fills, only rules are made."""

    table: Annotated[int, Meta(ge=1, lt=1 << 32)] | None = None
    gateways: tuple[Address, ...] = ()
    add_source_hints: bool = False


class SbrPlugin(ChainedPlugin[SbrConf]):
    """The verbs of this type."""

    name = "sbr"
    config = SbrConf

    def add(self, call: Call[SbrConf]) -> Result:
        result = previous(call)
        ips = _ips_of(result, call.ifname)
        gateways = _gateways(call.config)
        with attaching.pending_attachment(self._node, call, self.name) as pending:

            def draft(tx: Transaction) -> Wanted:
                if call.config.table is not None:
                    return Wanted(Plan(*(_rule(ip, call.config.table, pending) for ip in ips)))
                return Wanted(_plan(call.config, ips, gateways, pending, tx))

            pending.apply(draft)
            return attaching.finish(pending, call, result)

    def check(self, call: Call[SbrConf]) -> None:
        attaching.check(self._node, call, self.name)

    def status(self, call: Call[SbrConf]) -> None:
        _gateways(call.config)

    def _remove_foreign(self, call: Call[SbrConf]) -> None:
        """Remove the reference's rules for the addresses of the link and of prevResult; its routes vanish with the link."""
        if self._node.netns is None:
            return
        netns = attaching.netns_of(self._node, call)
        with attaching.lent_kernel(self._node, call) as kernel:
            sources = {address.ip for address in addresses_of(kernel, call.ifname, netns)}
            if call.prev_result is not None:
                sources |= {ip.address.ip for ip in _addresses_on(call.prev_result, call.ifname)}
            for rule in rules_from(kernel, sources, netns):
                if call.config.table in (None, rule.table):
                    rule.remove(kernel)


def _addresses_on(result: Result, ifname: str) -> list[IP]:
    """The addresses of *result*, except those that it says are on another interface."""
    told = [(ip, result.interface_of(ip)) for ip in result.ips]
    return list({ip.address: ip for ip, interface in told if interface is None or interface.name == ifname}.values())


def _ips_of(result: Result, ifname: str) -> list[IP]:
    """The addresses that :func:`_addresses_on` finds; CniError where there are none."""
    if not (found := _addresses_on(result, ifname)):
        raise CniError(Code.INVALID_CONFIG, f"No IP addresses supplied on interface: {ifname}", "prevResult has none for it")
    return found


def _gateways(config: SbrConf) -> dict[int, IPAddress]:
    """The gateways that the configuration names, by IP version."""
    if len(config.gateways) > 2:
        msg = "gateways list cannot contain more than 2 entries (one IPv4, one IPv6)"
        raise CniError(Code.INVALID_CONFIG, msg, f"it has {len(config.gateways)}")
    found: dict[int, IPAddress] = {gateway.version: gateway for gateway in config.gateways}
    if len(found) < len(config.gateways):
        version = config.gateways[0].version
        msg = f"gateways list contains multiple IPv{version} addresses: {' and '.join(map(str, config.gateways))}"
        raise CniError(Code.INVALID_CONFIG, msg)
    return found


def _rule(ip: IP, table: int, pending: PendingAttachment) -> PolicyRule:
    return PolicyRule(table=table, family=ip.address.version, source=ip_network(ip.address.ip), netns=pending.netns)


def _plan(config: SbrConf, ips: list[IP], gateways: dict[int, IPAddress], pending: PendingAttachment, tx: Transaction) -> Plan:
    """The tables, then the rules that select them, and last the routes to remove from the main table, in use until then."""
    ifname, netns = pending.key.ifname, pending.netns
    versions = {ip.address.version for ip in ips}
    by_link = routes_by(pending.kernel, ifname, netns, connected=True)
    routes = [route for route in by_link if route.destination.version in versions]
    tables = _free_tables(pending, tx, len(ips))
    objects: list[KernelObject] = []
    for ip, table in zip(ips, tables, strict=True):
        fitting = [route for route in routes if _fits(route, ip.address) or not any(_fits(route, item.address) for item in ips)]
        objects += _table(ip, gateways.get(ip.address.version), fitting, table, pending)
    objects += [_rule(ip, table, pending) for ip, table in zip(ips, tables, strict=True)]
    subnets = {
        ip.address.network: ip.address.ip for ip in reversed(ips)
    }  # a subnet's first address, as in the kernel's own routes
    staying = [route for route in routes if config.add_source_hints and _is_hinted(route, subnets)]
    # Routes by gateways first, so that DEL, in reverse order, sets them again when their gateways can be reached.
    objects += [RouteAway(route=route, netns=netns) for route in reversed(routes) if route not in staying]
    if config.add_source_hints:
        hinted = {route.destination for route in staying}
        objects += [
            RouteEntry(destination=subnet, ifname=ifname, source=source, netns=netns)
            for subnet, source in subnets.items()
            if subnet not in hinted and subnet.num_addresses > 1
        ]
    return Plan(*objects)


def _table(
    ip: IP, gateway: IPAddress | None, routes: list[RouteEntry], table: int, pending: PendingAttachment
) -> list[KernelObject]:
    """The routes in the table of one address: those into its subnets, then those by gateways.

    A default route by the configured *gateway* replaces one of the interface, which replaces one by the address's own gateway.
    """
    version = ip.address.version
    ours = [replace(route, table=table) for route in routes if route.destination.version == version]
    objects = [
        *(route for route in ours if route.gateway is None),
        *_default(ip.gateway, table, pending),
        *(route for route in ours if route.gateway is not None),
        *_default(gateway, table, pending),
    ]
    return list({route.key: route for route in objects}.values())


def _default(gateway: IPAddress | None, table: int, pending: PendingAttachment) -> list[RouteEntry]:
    if gateway is None:
        return []
    anywhere = ip_network("0.0.0.0/0" if gateway.version == 4 else "::/0")
    return [RouteEntry(destination=anywhere, ifname=pending.key.ifname, gateway=gateway, table=table, netns=pending.netns)]


def _is_hinted(route: RouteEntry, subnets: Container[IPNetwork]) -> bool:
    """Whether *route* leads into one of *subnets* and names a source or a gateway, or is of scope link (ptp)."""
    leads_there = route.destination in subnets and (route.source or route.gateway)
    return route.scope == _LINK_SCOPE or bool(leads_there)


def _fits(route: RouteEntry, address: IPInterface) -> bool:
    """Whether *route* belongs to *address*: by its source or its gateway, or because it has neither."""
    known = [item for item in (route.source, route.gateway) if item is not None]
    return route.destination.version == address.version and (not known or any(item in address.network for item in known))


def _free_tables(pending: PendingAttachment, tx: Transaction, count: int) -> list[int]:
    """The first *count* routing tables that neither the kernel nor a record uses."""
    written = [item for row in tx.attachments_in(pending.netns.path) for item in tx.objects(row.id)]
    taken = {item.table for item in written if isinstance(item, PolicyRule | RouteEntry)}
    taken |= tables_of_rules(pending.kernel, pending.netns) | tables_with_routes(pending.kernel, pending.netns)
    return list(islice((table for table in itertools.count(_FIRST_TABLE) if table not in taken), count))
