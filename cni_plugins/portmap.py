"""The plugin type ``portmap``: publishes ports of the container on the host.

The rules are nftables', whichever ``backend`` is named, with the effect of the reference's. Unlike there, a host port has one
holder: a second container that asks for it is refused with the name of the holder. A port that a container asks for in several
of its networks is published in the first; when the container leaves that network, the next one publishes it.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from msgspec import Struct, field
from msgspec.structs import replace

from cni_plugins.attaching import attachments_of, check, finish, pending_attachment
from cni_plugins.chained import ChainedPlugin, addresses_of, previous
from cni_plugins.conditions import backend_of, read_condition
from cni_plugins.decode import Address
from cni_plugins.netconf import NetConf
from cni_plugins.protocol import CniError, Code
from cni_plugins.reference import forget_ports
from cni_plugins.result import Result
from cni_plugins.skel import Call
from netlib.core.pending_attachment import PendingAttachment, Wanted
from netlib.firewall.backend import firewall
from netlib.firewall.objects import AwaitedPort, ContainerSubnet, FirewallBase, PortCondition, PublishedPort, published_ports
from netlib.kernel.handle import Kernel
from netlib.kernel.routes import route_link
from netlib.kernel.sysctl import Sysctl
from netlib.model import IPInterface, IPNetwork, NetnsRef, PortMapping, Protocol
from netlib.names import parse_subnet
from netlib.plan import KernelObject, Plan
from netlib.store.records import Transaction

__all__ = ["PortEntry", "PortmapConf", "PortmapPlugin", "published_by_others"]

_BACKENDS = ("iptables", "nftables")
_LAST_PORT = 65535
_LAST_BIT = 31
_EVERYWHERE = {4: parse_subnet("0.0.0.0/0"), 6: parse_subnet("::/0")}


class PortEntry(Struct, frozen=True, rename="camel"):
    """One of ``runtimeConfig.portMappings``."""

    host_port: int = 0
    container_port: int = 0
    protocol: str = ""
    host_ip: Address | None = field(name="hostIP", default=None)


class RuntimeConfig(Struct, frozen=True, rename="camel"):
    """The capability ``portMappings``."""

    port_mappings: tuple[PortEntry, ...] = ()


class PortmapConf(NetConf, frozen=True, kw_only=True, rename="camel"):
    """The keys of portmap."""

    backend: str = ""
    snat: bool = True
    masq_all: bool = False
    mark_masq_bit: int | None = None
    external_set_mark_chain: str | None = None
    conditions_v4: tuple[str, ...] = ()
    conditions_v6: tuple[str, ...] = ()
    runtime_config: RuntimeConfig = RuntimeConfig()


class PortmapPlugin(ChainedPlugin[PortmapConf]):
    """The verbs of this type."""

    name = "portmap"
    config = PortmapConf

    def add(self, call: Call[PortmapConf]) -> Result:
        _check(call.config)
        result = previous(call, "must be called as chained plugin")
        mappings = _mappings(call)
        addresses = addresses_of(call, result)
        if not mappings or not addresses:
            return result
        _report_differences(call)
        attachments_of(self._node).clear_ports(mappings)
        with pending_attachment(self._node, call, self.name) as made:
            loopback = _loopback(call.config, addresses, made)

            def draft(tx: Transaction) -> Wanted:
                published = published_by_others(tx, made.key.container, made.netns, made.record)
                return _wanted(call.config, mappings, addresses, loopback, published)

            made.apply(draft)
            return finish(made, call, result)

    def check(self, call: Call[PortmapConf]) -> None:
        _check(call.config)
        mappings = _mappings(call)
        addresses = addresses_of(call, previous(call))
        found = check(self._node, call, self.name)
        asked = bool(mappings and addresses)
        if found is None:
            if asked:
                raise CniError(Code.DRIFT, f"portmap: no ports of container {call.container_id} are recorded; ADD it again")
            return
        attachments = attachments_of(self._node)
        recorded = set(_single_ports(attachments.plan_of(found.id).of(PublishedPort)))
        with attachments.store.read() as tx:
            published = published_by_others(tx, found.container, found.netns, found.id)
        wanted = _single_ports(_ports(call.config, mappings, addresses, published).own)
        missing = [port for port in wanted if port not in recorded]
        if missing:
            raise CniError(Code.DRIFT, f"portmap: {missing[0].key.name} was not published; ADD it again")

    def _remove_foreign(self, call: Call[PortmapConf]) -> None:
        if call.config.runtime_config.port_mappings:
            with Kernel() as kernel:
                forget_ports(kernel, call.network, call.container_id)

    def status(self, call: Call[PortmapConf]) -> None:
        _check(call.config)
        with Kernel() as kernel:
            firewall(kernel).listing()


# --- what the configuration asks for -------------------------------------------------------------------------------------


def _check(config: PortmapConf) -> None:
    """Refuse what the reference refuses, in its words, and conditions and protocols that we do not support."""
    if config.mark_masq_bit is not None and config.external_set_mark_chain is not None:
        raise CniError(Code.INVALID_CONFIG, "Cannot specify externalSetMarkChain and markMasqBit")
    if config.mark_masq_bit is not None and not 0 <= config.mark_masq_bit <= _LAST_BIT:
        raise CniError(Code.INVALID_CONFIG, "MasqMarkBit must be between 0 and 31", f"markMasqBit is {config.mark_masq_bit}")
    if config.backend and config.backend not in _BACKENDS:
        raise CniError(Code.INVALID_CONFIG, f'unrecognized backend "{config.backend}"', f"known are {', '.join(_BACKENDS)}")
    if config.backend:
        specific = {
            "externalSetMarkChain": "iptables" if config.external_set_mark_chain is not None else "",
            "conditionsV4": backend_of(config.conditions_v4),
            "conditionsV6": backend_of(config.conditions_v6),
        }
        other = "iptables" if config.backend == "nftables" else "nftables"
        if keys := [key for key, backend in specific.items() if backend == other]:
            found = f"configuration contains {other}-specific options [{' '.join(keys)}]"
            raise CniError(Code.INVALID_CONFIG, f"{config.backend} backend was requested but {found}")
    _conditions(config)
    for entry in config.runtime_config.port_mappings:
        for what, number in (("container", entry.container_port), ("host", entry.host_port)):
            if not 0 < number <= _LAST_PORT:
                raise CniError(Code.INVALID_CONFIG, f"Invalid {what} port number: {number}", "1 to 65535 are ports")
        if entry.protocol.lower() not in set(Protocol):
            raise CniError(
                Code.INVALID_CONFIG,
                f'portmap: port {entry.host_port}: protocol "{entry.protocol}" is not known',
                f"known are {', '.join(Protocol)}",
            )


def _report_differences(call: Call[PortmapConf]) -> None:
    """Report on stderr which keys of the configuration are not followed, though the effect is the same."""
    config = call.config
    if config.backend == "iptables":
        call.stderr.append("portmap: backend iptables: netlib does the same with nftables")
    if config.external_set_mark_chain is not None:
        call.stderr.append(
            f"portmap: externalSetMarkChain {config.external_set_mark_chain} is not used: netlib masquerades without a mark"
        )


def _mappings(call: Call[PortmapConf]) -> tuple[PortMapping, ...]:
    """The ports asked for, each once; CniError when one host port is to lead to two places."""
    found: dict[tuple[Protocol, int, Any], PortMapping] = {}
    for entry in call.config.runtime_config.port_mappings:
        mapping = PortMapping(
            container_port=entry.container_port,
            host_port=entry.host_port,
            protocol=Protocol(entry.protocol.lower()),
            host_ip=entry.host_ip,
        )
        if found.setdefault((mapping.protocol, mapping.host_port, mapping.host_ip), mapping) != mapping:
            raise CniError(
                Code.INVALID_CONFIG,
                f"portmap: host port {mapping.host_port}/{mapping.protocol} is asked for twice",
                "name it once",
            )
    return tuple(found.values())


def published_by_others(tx: Transaction, container: str, netns: NetnsRef, record: str) -> list[PublishedPort]:
    """The ports that other attachments of the container than *record* publish: a runtime asks for them in each network."""
    rows = [row for row in tx.attachments_in(netns.path) if row.id != record and row.value.netns.identity == netns.identity]
    found = [part for row in rows if row.value.container == container for part in (row.id, row.value.sandbox) if part]
    return [port for record in dict.fromkeys(found) for port in tx.objects(record).of(PublishedPort)]


def _is_published(mapping: PortMapping, version: int, published: Sequence[PublishedPort]) -> bool:
    return any(
        (port.protocol, port.host_ip, port.address.version) == (mapping.protocol, mapping.host_ip, version)
        and mapping.host_port in port.host_ports
        for port in published
    )


class _Ports(NamedTuple):
    """The ports to publish now, and those to publish when another network of the container stops publishing them."""

    own: list[PublishedPort]
    awaited: list[PublishedPort]


def _ports(
    config: PortmapConf,
    mappings: Sequence[PortMapping],
    addresses: Sequence[IPInterface],
    published: Sequence[PublishedPort],
) -> _Ports:
    """The objects of *mappings*; other attachments of the container have *published* some of them."""
    found, conditions = _Ports([], []), _conditions(config)
    for address in addresses:
        waiting = {item for item in mappings if _is_published(item, address.version, published)}
        condition = conditions.get(address.version)
        objects = partial(published_ports, address=address.ip, hairpin=_hairpin(config, address), condition=condition)
        found.own.extend(objects([item for item in mappings if item not in waiting]))
        found.awaited.extend(objects([item for item in mappings if item in waiting]))
    return found


def _single_ports(ports: Iterable[PublishedPort]) -> list[PublishedPort]:
    """Split runs of ports into single ones, which compare as equal however they were grouped."""
    return [
        replace(port, host_port=mapping.host_port, container_port=mapping.container_port, count=1)
        for port in ports
        for mapping in port.mappings
    ]


def _conditions(config: PortmapConf) -> dict[int, PortCondition]:
    """The conditions on packets to the published ports, by IP version."""
    found = {
        4: read_condition("conditionsV4", 4, config.conditions_v4),
        6: read_condition("conditionsV6", 6, config.conditions_v6),
    }
    return {version: condition for version, condition in found.items() if condition is not None}


def _hairpin(config: PortmapConf, address: IPInterface) -> IPNetwork | None:
    """The sources that get their answers by way of the host, besides the host's loopback; None for no others."""
    if not config.snat:
        return None
    return _EVERYWHERE[address.version] if config.masq_all else address.network


def _loopback(config: PortmapConf, addresses: tuple[IPInterface, ...], made: PendingAttachment) -> list[KernelObject]:
    """The sysctl that lets the host's packets to 127.0.0.1 out to the container; the firewall base drops those of others."""
    ipv4 = next((address for address in addresses if address.version == 4), None)
    link = route_link(made.kernel, ipv4.ip) if config.snat and ipv4 is not None else None
    return [Sysctl(name=f"net/ipv4/conf/{link}/route_localnet", value="1")] if link is not None else []


def _wanted(
    config: PortmapConf,
    mappings: tuple[PortMapping, ...],
    addresses: tuple[IPInterface, ...],
    loopback: list[KernelObject],
    published: Sequence[PublishedPort],
) -> Wanted:
    subnets = {subnet for address in addresses if (subnet := _hairpin(config, address)) is not None}
    ports = _ports(config, mappings, addresses, published)
    own = {(item.protocol, item.host_port, item.host_ip) for port in ports.own for item in port.mappings}
    conditions = {port.condition.key: port.condition for kind in ports for port in kind if port.condition is not None}
    return Wanted(
        own=Plan(*loopback, *ports.own, *(AwaitedPort(port=port) for port in ports.awaited)),
        shared=Plan(
            FirewallBase(), *(ContainerSubnet(subnet=subnet) for subnet in sorted(subnets, key=str)), *conditions.values()
        ),
        ports=tuple(
            item
            for item in mappings
            if (item.protocol, item.host_port, item.host_ip) in own
            and not any(_is_published(item, version, published) for version in (4, 6))
        ),
    )
