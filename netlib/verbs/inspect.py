"""Records in Docker's JSON, for ``ls`` and ``inspect``. Pure.

Keys and spellings are those of Docker's API (``api/types/network``), so that scripts written for it read ours.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from netlib.core.sandbox_plan import Membership, publishing_membership
from netlib.kernel.sysctl import sysctl_name
from netlib.model import AddressPool, Endpoint, IPInterface, Network, Sandbox
from netlib.store.records import JournalEntry

Member = tuple[Endpoint, Sandbox]


def network_row(network: Network) -> dict[str, str]:
    """Return one line of ``network ls``; every value is text, as in ``docker network ls --format json``."""
    return {
        "CreatedAt": time.strftime("%Y-%m-%d %H:%M:%S %z %Z", time.localtime(network.created)),
        "Driver": network.driver,
        "ID": network.id,
        "IPv4": _truth(network.ipv4),
        "IPv6": _truth(network.ipv6),
        "Internal": _truth(network.internal),
        "Labels": ",".join(f"{key}={value}" for key, value in sorted(network.labels.items())),
        "Name": network.name,
        "Scope": network.scope.value,
    }


def network_details(network: Network, members: Iterable[Member]) -> dict[str, Any]:
    """Return what ``network inspect`` shows of a network and its members."""
    return {
        "Name": network.name,
        "Id": network.id,
        "Created": timestamp(network.created),
        "Scope": network.scope.value,
        "Driver": network.driver,
        "EnableIPv4": network.ipv4,
        "EnableIPv6": network.ipv6,
        "IPAM": {
            "Driver": network.ipam_driver,
            "Options": dict(network.ipam_options),
            "Config": [_pool(pool) for pool in network.pools],
        },
        "Internal": network.internal,
        "Attachable": False,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": {sandbox.id: _member(endpoint, sandbox) for endpoint, sandbox in members},
        "Options": dict(network.options),
        "Labels": dict(network.labels),
    }


def network_settings(sandbox: Sandbox, endpoints: Sequence[Endpoint], networks: Mapping[str, Network]) -> dict[str, Any]:
    """Return the ``NetworkSettings`` of a container; *networks* are by id.

    As in Docker's JSON, the fields of the endpoint on the default bridge are repeated at the top level.
    """
    attachments = [(networks[endpoint.network], endpoint) for endpoint in endpoints]
    shown = {network.name: _endpoint(endpoint, sandbox, network) for network, endpoint in attachments}
    default = shown.get("bridge", {})
    return {
        "SandboxID": sandbox.id,
        "SandboxKey": sandbox.netns.path,
        "Ports": ports(attachments),
        "EndpointID": default.get("EndpointID", ""),
        "Gateway": default.get("Gateway", ""),
        "IPAddress": default.get("IPAddress", ""),
        "IPPrefixLen": default.get("IPPrefixLen", 0),
        "GlobalIPv6Address": default.get("GlobalIPv6Address", ""),
        "GlobalIPv6PrefixLen": default.get("GlobalIPv6PrefixLen", 0),
        "IPv6Gateway": default.get("IPv6Gateway", ""),
        "MacAddress": default.get("MacAddress", ""),
        "Networks": shown,
    }


def sandbox_details(sandbox: Sandbox, endpoints: Sequence[Endpoint], networks: Mapping[str, Network]) -> dict[str, Any]:
    """Return what ``inspect`` shows of a sandbox; Docker has none, and the part ``NetworkSettings`` is as a container's."""
    resolver = sandbox.resolver
    return {
        "Name": sandbox.name,
        "Id": sandbox.id,
        "Created": timestamp(sandbox.created),
        "OwnsNetns": sandbox.owned,
        "CNIContainer": sandbox.cni_container,
        "Hostname": sandbox.hostname,
        "Domainname": sandbox.domainname,
        "Dns": [str(server) for server in resolver.servers],
        "DnsSearch": list(resolver.search),
        "DnsOptions": list(resolver.options),
        "ExtraHosts": [f"{name}:{address}" for name, address in resolver.extra_hosts],
        "Sysctls": {sysctl_name(path): value for path, value in sandbox.sysctls},
        "NetworkSettings": network_settings(sandbox, endpoints, networks),
    }


def ports(memberships: Sequence[Membership]) -> dict[str, list[dict[str, str]]]:
    """Return a container's published ports by container port: ``{"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}]}``.

    A port that is published on every address is shown for IPv4, IPv6 or both: for the families in which one of the container's
    networks publishes ports, since the port answers in no other.
    """
    found: dict[str, list[dict[str, str]]] = {}
    published = [mapping for _, endpoint in memberships for mapping in endpoint.ports]
    wildcards = [host for host, family in (("0.0.0.0", 4), ("::", 6)) if publishing_membership(memberships, family)]
    for mapping in sorted(published, key=lambda mapping: (mapping.container_port, mapping.protocol, mapping.host_port)):
        hosts = wildcards if mapping.host_ip is None else [str(mapping.host_ip)]
        key = f"{mapping.container_port}/{mapping.protocol}"
        found.setdefault(key, []).extend({"HostIp": host, "HostPort": str(mapping.host_port)} for host in hosts)
    return found


def journal_row(entry: JournalEntry) -> dict[str, Any]:
    """Return one line of ``netlib log``."""
    return {
        "Time": timestamp(entry.time),
        "Operation": entry.operation,
        "Subject": entry.subject,
        "Outcome": entry.outcome,
        "Seconds": round(entry.seconds, 6),
        "Objects": entry.detail,
    }


def timestamp(seconds: float) -> str:
    """Return *seconds* since the epoch as an RFC 3339 time in UTC, with microseconds."""
    whole, micros = divmod(round(seconds * 1_000_000), 1_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{micros:06d}Z"


def duration(seconds: float) -> str:
    """Return a length of time in words: ``Less than a second``, ``5 minutes``, ``3 days``."""
    if seconds < 1:
        return "Less than a second"
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        count = int(seconds // size)
        if count:
            return f"{count} {unit}" if count == 1 else f"{count} {unit}s"
    return "1 second"


def _truth(value: bool) -> str:
    return "true" if value else "false"


def _pool(pool: AddressPool) -> dict[str, Any]:
    shown: dict[str, Any] = {"Subnet": str(pool.subnet)}
    if pool.ip_range is not None:
        shown["IPRange"] = str(pool.ip_range)
    if pool.gateway is not None:
        shown["Gateway"] = str(pool.gateway)
    if pool.auxiliary:
        shown["AuxiliaryAddresses"] = {name: str(address) for name, address in pool.auxiliary.items()}
    return shown


def _member(endpoint: Endpoint, sandbox: Sandbox) -> dict[str, str]:
    return {
        "Name": sandbox.name,
        "EndpointID": endpoint.id,
        "MacAddress": endpoint.mac,
        "IPv4Address": _text(endpoint.address(4)),
        "IPv6Address": _text(endpoint.address(6)),
    }


def _endpoint(endpoint: Endpoint, sandbox: Sandbox, network: Network) -> dict[str, Any]:
    ipv4, ipv6 = endpoint.address(4), endpoint.address(6)
    names = [sandbox.name, *endpoint.aliases, sandbox.short_id, sandbox.hostname] if network.resolves_names else []
    return {
        "Aliases": list(endpoint.aliases),
        "Links": [f"{link.name}:{link.alias}" for link in endpoint.links],
        "MacAddress": endpoint.mac,
        "DriverOpts": dict(endpoint.options),
        "GwPriority": endpoint.gw_priority,
        "NetworkID": network.id,
        "EndpointID": endpoint.id,
        "InterfaceName": endpoint.ifname,
        "Gateway": _gateway(network, 4) if ipv4 else "",
        "IPAddress": str(ipv4.ip) if ipv4 else "",
        "IPPrefixLen": ipv4.network.prefixlen if ipv4 else 0,
        "IPv6Gateway": _gateway(network, 6) if ipv6 else "",
        "GlobalIPv6Address": str(ipv6.ip) if ipv6 else "",
        "GlobalIPv6PrefixLen": ipv6.network.prefixlen if ipv6 else 0,
        "DNSNames": list(dict.fromkeys(names)),
    }


def _gateway(network: Network, family: int) -> str:
    pool = network.pool(family)
    return str(pool.gateway) if pool and pool.gateway and not network.internal else ""


def _text(address: IPInterface | None) -> str:
    return str(address) if address else ""
