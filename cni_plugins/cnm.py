"""The plugin type ``netlib``: the container joins a network of ``netlib network create``, with its names and published ports.

The network gives the addresses, so there is no ``ipam``. All interfaces of a container are endpoints of one sandbox, which
is removed with the last of them.
"""

import hashlib
import re
import time
from ipaddress import ip_interface
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from cni_plugins import attaching
from cni_plugins.decode import convert
from cni_plugins.interface import chosen_dns
from cni_plugins.netconf import NetConf
from cni_plugins.node import Node
from cni_plugins.portmap import PortEntry, published_by_others
from cni_plugins.protocol import CniError, Code
from cni_plugins.result import IP, Dns, Interface, Result, Route
from cni_plugins.skel import Call
from netlib.core.endpoint_record import endpoint_record
from netlib.core.endpoints import connect
from netlib.core.pending_attachment import PendingAttachment, Wanted
from netlib.core.sandbox_plan import resolver_address
from netlib.driverapi import Addressless
from netlib.errors import AddressTaken, ConfigError, PoolExhausted, PortTaken
from netlib.kernel.links import Veth
from netlib.kernel.netns import identity_of_path
from netlib.kernel.routes import RouteEntry
from netlib.model import Endpoint, NetnsRef, Network, Phase, PortMapping, Protocol, Sandbox
from netlib.names import NAME_LENGTH, check_alias, new_id
from netlib.plan import Plan, ability
from netlib.ports import PortRequest
from netlib.registry import driver_of
from netlib.requests import ConnectRequest

__all__ = ["CnmConf", "CnmPlugin", "sandbox_name"]

NAME = "netlib"
_FULL_ID = re.compile(r"[0-9a-f]{64}")
_ARGS = ("IP", "MAC", "K8S_POD_NAME", "K8S_POD_NAMESPACE", "K8S_POD_INFRA_CONTAINER_ID", "K8S_POD_UID")
_LAST_PORT = 65535


class Requested(Struct, frozen=True, rename="camel"):
    """The keys under ``runtimeConfig`` and ``args.cni`` by which a container asks for addresses, names and ports."""

    aliases: Any = None  # a list, or one for each network by its name
    ips: tuple[str, ...] = ()
    mac: str = ""
    port_mappings: tuple[PortEntry, ...] = ()


class Args(Struct, frozen=True):
    """The key ``args``."""

    cni: Requested = Requested()


class CnmConf(NetConf, frozen=True, kw_only=True, rename="camel"):
    """The configuration."""

    network: str = ""  # the name of the configuration
    gw_priority: int | None = None  # None: a container's first interface has the default route
    args: Args = Args()
    runtime_config: Requested = Requested()


class CnmPlugin:
    """The verbs of this type."""

    name = NAME
    config = CnmConf

    def __init__(self, node: Node) -> None:
        self._node = node

    def add(self, call: Call[CnmConf]) -> Result:
        network = self._network(call.config)
        wanted = _request(call)
        netns = attaching.netns_of(self._node, call)
        if identity_of_path(call.netns) != netns.identity:
            raise CniError(
                Code.INVALID_NETNS,
                f"{call.netns} leads to another netns here",
                "give CNI_NETNS as a path that is the same for all",
            )
        controller = self._node.controller
        with (
            controller.locks.hold(_lock(call), f"attaching container {call.container_id} to network {network.name}"),
            attaching.pending_attachment(self._node, call, NAME) as pending,
        ):
            box = self._sandbox(call.container_id, netns)
            with controller.store.read() as tx:
                pending.sandbox, pending.endpoint = box.id, tx.new_link_id()
            pending.apply(lambda _: Wanted(Plan()))
            if not box.created:
                controller.create_sandbox(
                    box.name, netns=netns.path, sandbox_id=box.id, hostname=box.hostname, cni_container=call.container_id
                )
            others = controller.endpoints(sandbox=box.id)
            priority = call.config.gw_priority if call.config.gw_priority is not None else -len(others)
            with controller.store.read() as tx:
                beside = published_by_others(tx, call.container_id, netns, pending.record)
            published = [
                mapping
                for holder in (*(item.ports for item in others), *(port.mappings for port in beside))
                for mapping in holder
            ]
            ports = tuple(port for port in wanted.ports if not any(_satisfies(mapping, port) for mapping in published))
            request = replace(wanted, network=network.id, container=pending.sandbox, ports=ports, gw_priority=priority)
            endpoint = self._connect(call, pending, request)
            return attaching.finish(pending, call, self._result(call, network, controller.sandbox(box.id), endpoint))

    def check(self, call: Call[CnmConf]) -> None:
        if attaching.check(self._node, call, NAME) is None:
            raise CniError(Code.DRIFT, f"netlib: container {call.container_id} is not in the network; ADD it again")

    def delete(self, call: Call[CnmConf]) -> None:
        purpose = f"detaching container {call.container_id} from network {call.network}"
        with self._node.controller.locks.hold(_lock(call), purpose):
            attaching.delete(self._node, call, NAME, lambda: None)

    def garbage_collect(self, call: Call[CnmConf]) -> None:
        attaching.collect(self._node, call, NAME)

    def status(self, call: Call[CnmConf]) -> None:
        self._node.controller.require_settings()
        network = self._network(call.config)
        probe = Sandbox(id=new_id(), name="status", created=time.time(), netns=NetnsRef("/nowhere"), owned=False)
        with self._node.controller.store.rehearsal() as tx:
            endpoint_record(tx, new_id(), probe.created, network, probe, ConnectRequest(), linked=True)

    # --- joining -------------------------------------------------------------------------------------------------------

    def _network(self, config: CnmConf) -> Network:
        if config.ipam is not None and config.ipam.type:
            raise CniError(
                Code.INVALID_CONFIG,
                "netlib: the network gives the addresses itself",
                f"leave out ipam (it is {config.ipam.type})",
            )
        network = self._node.controller.network(config.network or config.name)
        if ability(driver_of(network), Addressless):
            raise CniError(
                Code.INVALID_CONFIG, f'network "{network.name}" ({network.driver}) gives no interface', "name another network"
            )
        return network

    def _sandbox(self, container: str, netns: NetnsRef) -> Sandbox:
        """The sandbox whose netns is *netns*; where there is none yet, the sandbox to make, with ``created`` 0."""
        controller, name = self._node.controller, sandbox_name(container)
        with controller.store.read() as tx:
            present, namesake = tx.sandbox_in(netns.identity), tx.find_named(Sandbox, name)
            is_free = tx.by_id(container) is None
        if present is not None and present.phase is Phase.READY:
            return present.value
        if namesake is not None and namesake.value.cni_container == container:  # its netns is one that the container had before
            controller.remove_sandbox(namesake.id)
        sandbox_id = container if is_free and _FULL_ID.fullmatch(container) else new_id()
        return Sandbox(id=sandbox_id, name=name, created=0, netns=netns, owned=False)

    def _connect(self, call: Call[CnmConf], pending: PendingAttachment, request: ConnectRequest) -> Endpoint:
        """Join the network; where an address or port is taken, remove attachments of containers that are gone and try again."""
        controller = self._node.controller
        try:
            return connect(controller, request, endpoint_id=pending.endpoint)
        except (AddressTaken, PoolExhausted, PortTaken):
            if not attaching.attachments_of(self._node).reclaim(call.network):
                raise
        return connect(controller, request, endpoint_id=pending.endpoint)

    def _result(self, call: Call[CnmConf], network: Network, box: Sandbox, endpoint: Endpoint) -> Result:
        with self._node.controller.store.read() as tx:
            pairs, routes = tx.objects(endpoint.id).of(Veth), tx.objects(box.id).of(RouteEntry)
        host = tuple(Interface(pair.ifname, pair.host_mac) for pair in pairs)
        default = [item for item in routes if item.ifname == endpoint.ifname]
        pools = {address: network.pool_of(address.ip) for address in endpoint.addresses}
        gateways = {address: pool.gateway for address, pool in pools.items() if pool is not None and not network.internal}
        resolver = resolver_address(box, [(network, endpoint)])
        return Result(
            interfaces=(*host, Interface(endpoint.ifname, endpoint.mac, sandbox=call.netns)),
            ips=tuple(IP(address, gateways.get(address), interface=len(host)) for address in endpoint.addresses),
            routes=tuple(Route(ip_interface(str(item.destination)), item.gateway) for item in default),
            dns=chosen_dns(call.config.dns, Dns(nameservers=(str(resolver),)) if resolver else Dns()),
        )


def sandbox_name(container: str) -> str:
    """The name of the sandbox of a runtime's container; in the place of a long id its beginning and a digest of it."""
    name = f"cni-{container}"
    if len(name) <= NAME_LENGTH and not _FULL_ID.fullmatch(container):
        return name
    return f"cni-{container[:12]}-{hashlib.blake2b(container.encode(), digest_size=8).hexdigest()}"


def _lock(call: Call[CnmConf]) -> str:
    return f"cni-container:{call.container_id}"


# --- what a container asks for -------------------------------------------------------------------------------------------


def _satisfies(mapping: PortMapping, port: PortRequest) -> bool:
    """Whether *mapping*, which another network of the container publishes, is what *port* asks for.

    A runtime asks for the same ports in each network. Where it names no host address, that network may have chosen one.
    """
    return port.host_ip in (None, mapping.host_ip) and mapping == replace(port, host_ip=mapping.host_ip).mapping(
        port.host_port_first
    )


def _request(call: Call[CnmConf]) -> ConnectRequest:
    """The request of *call*, before its network and sandbox are known."""
    config, given = call.config, call.arguments(*_ARGS)
    asked, by_args = config.runtime_config, config.args.cni
    ips = {
        address.version: address for address in _addresses(asked.ips or by_args.ips or tuple(filter(None, [given.get("IP")])))
    }
    return ConnectRequest(
        ifname=call.ifname,
        ip=ips.get(4),
        ip6=ips.get(6),
        mac=asked.mac or by_args.mac or given.get("MAC", ""),
        aliases=(*_aliases(call, asked), *_aliases(call, by_args), *_pod_name(call, given.get("K8S_POD_NAME", ""))),
        ports=tuple(_port(entry) for entry in (*asked.port_mappings, *by_args.port_mappings)),
    )


def _addresses(texts: tuple[str, ...]) -> list[Any]:
    try:
        found = [ip_interface(text).ip for text in texts]
    except ValueError as error:
        raise CniError(Code.INVALID_CONFIG, f"ips: {error}", "write addresses like 10.1.0.2 or fd00::2") from None
    if len({address.version for address in found}) < len(found):
        raise CniError(Code.INVALID_CONFIG, f"ips: more than one of a family: {', '.join(texts)}", "give one of each at most")
    return found


def _aliases(call: Call[CnmConf], asked: Requested) -> tuple[str, ...]:
    found = asked.aliases.get(call.network) if isinstance(asked.aliases, dict) else asked.aliases
    return convert([] if found is None else found, tuple[str, ...], "aliases")


def _pod_name(call: Call[CnmConf], name: str) -> list[str]:
    """The name of the pod as an alias; none, and a line on stderr, where it is no name that DNS could be asked for."""
    try:
        return [check_alias(name)] if name else []
    except ConfigError as error:
        call.stderr.append(f"netlib: K8S_POD_NAME is not answered as a name: {error}")
        return []


def _port(entry: PortEntry) -> PortRequest:
    for what, number in (("container", entry.container_port), ("host", entry.host_port)):
        if not 0 < number <= _LAST_PORT:
            raise CniError(Code.INVALID_CONFIG, f"Invalid {what} port number: {number}", f"1 to {_LAST_PORT} are ports")
    protocol = entry.protocol.lower() or Protocol.TCP
    if protocol not in (Protocol.TCP, Protocol.UDP):
        raise CniError(
            Code.INVALID_CONFIG, f'port {entry.host_port}: protocol "{entry.protocol}" is not possible', "tcp and udp are"
        )
    return PortRequest(
        container_port=entry.container_port,
        protocol=Protocol(protocol),
        host_ip=entry.host_ip,
        host_port_first=entry.host_port,
        host_port_last=entry.host_port,
    )
