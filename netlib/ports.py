"""Docker's syntax for published and exposed ports, read into requests and written back for people. Pure.

::

    [[HOST_IP:][HOST_PORT[-HOST_PORT]]:]CONTAINER_PORT[-CONTAINER_PORT][/tcp|/udp]

Without a host port, any free one is meant. A range on both sides pairs them up and must be equally long; a host range for a
single container port means one free port out of it. ``0.0.0.0`` and ``::`` mean every address of that family, no host
address means every address of both.
"""

import re
from collections.abc import Iterator, Sequence

from msgspec import Struct

from netlib.errors import ConfigError
from netlib.model import IPAddress, PortMapping, Protocol
from netlib.names import parse_address

__all__ = ["PortRequest", "parse_expose", "parse_publish", "port_runs"]

_DIGITS = re.compile(r"[0-9]+")
_SYNTAX = "write it like 80, 8080:80, 127.0.0.1:8080:80, [::1]:8080:80 or 8000-8010:80-90/udp"


class PortRequest(Struct, frozen=True, kw_only=True):
    """One container port to publish on one of the host ports from first to last; both 0 mean any free one."""

    container_port: int
    protocol: Protocol = Protocol.TCP
    host_ip: IPAddress | None = None
    host_port_first: int = 0
    host_port_last: int = 0

    @property
    def is_fixed(self) -> bool:
        """Whether there is a single host port that will do."""
        return 0 < self.host_port_first == self.host_port_last

    def mapping(self, host_port: int) -> PortMapping:
        """This request, answered with *host_port*."""
        return PortMapping(
            container_port=self.container_port, host_port=host_port, protocol=self.protocol, host_ip=self.host_ip
        )


def port_runs(mappings: Sequence[PortMapping]) -> Iterator[tuple[PortMapping, int]]:
    """Yield (first mapping, count) for each run of mappings whose host and container ports both grow by one."""
    start = 0
    for end in range(1, len(mappings) + 1):
        if end == len(mappings) or not _follows(mappings[end - 1], mappings[end]):
            yield mappings[start], end - start
            start = end


def _follows(one: PortMapping, other: PortMapping) -> bool:
    ports = (one.host_port + 1, one.container_port + 1)
    same = one.protocol is other.protocol and one.host_ip == other.host_ip
    return same and (other.host_port, other.container_port) == ports


def parse_publish(text: str) -> tuple[PortRequest, ...]:
    """Read the value of one ``--publish``; ConfigError quotes it and says what is wrong."""
    body, protocol = _without_protocol(text, "published")
    host_ip, host_ports, container_ports = _parts(text, body)
    containers = _port_range(container_ports, text, "container port")
    if not host_ports:
        return tuple(PortRequest(container_port=port, protocol=protocol, host_ip=host_ip) for port in containers)
    hosts = _port_range(host_ports, text, "host port")
    if len(containers) == 1:
        return (
            PortRequest(
                container_port=containers[0],
                protocol=protocol,
                host_ip=host_ip,
                host_port_first=hosts[0],
                host_port_last=hosts[-1],
            ),
        )
    if len(containers) != len(hosts):
        raise ConfigError(
            f"published port {text!r}: the ranges have {len(hosts)} host ports and {len(containers)} container ports; "
            "make them equally long"
        )
    return tuple(
        PortRequest(container_port=container, protocol=protocol, host_ip=host_ip, host_port_first=host, host_port_last=host)
        for host, container in zip(hosts, containers, strict=True)
    )


def parse_expose(text: str) -> tuple[tuple[int, Protocol], ...]:
    """Read the value of one ``--expose``: a container port or a range of them, with a protocol."""
    body, protocol = _without_protocol(text, "exposed")
    if ":" in body:
        raise ConfigError(f"exposed port {text!r} names a host port; --expose takes container ports only, --publish both")
    return tuple((port, protocol) for port in _port_range(body, text, "container port", "exposed"))


def _without_protocol(text: str, kind: str) -> tuple[str, Protocol]:
    body, slash, name = text.partition("/")
    if not slash:
        return body, Protocol.TCP
    if name.lower() not in (Protocol.TCP, Protocol.UDP):
        raise ConfigError(f"{kind} port {text!r}: protocol {name!r} is not supported; tcp and udp are")
    return body, Protocol(name.lower())


def _parts(text: str, body: str) -> tuple[IPAddress | None, str, str]:
    """Host address, host ports and container ports; the first two may be missing."""
    rest, _, container_ports = body.rpartition(":")
    address, _, host_ports = rest.rpartition(":")
    if not container_ports:
        raise ConfigError(f"published port {text!r} lacks the container port; {_SYNTAX}")
    if rest.endswith("]") or "." in host_ports:  # an address and one port: which of the two is missing?
        raise ConfigError(
            f"published port {text!r} has an address but one port only; write {rest}::{container_ports} for any free host port"
        )
    if not address:
        return None, host_ports, container_ports
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    host_ip = parse_address(address, f"published port {text!r}: host address")
    if host_ip.is_multicast or str(host_ip) == "255.255.255.255":
        raise ConfigError(f"published port {text!r}: host address {host_ip} is no single host's; name one of this host")
    return host_ip, host_ports, container_ports


def _port_range(ports: str, text: str, what: str, kind: str = "published") -> range:
    first, dash, last = ports.partition("-")
    start = _port(first, text, what, kind)
    end = _port(last, text, what, kind) if dash else start
    if end < start:
        raise ConfigError(f"{kind} port {text!r}: the {what} range {ports} runs backwards; write {end}-{start}")
    return range(start, end + 1)


def _port(number: str, text: str, what: str, kind: str) -> int:
    if not _DIGITS.fullmatch(number):
        raise ConfigError(f"{kind} port {text!r}: {what} {number!r} is no number; {_SYNTAX}")
    if not 1 <= int(number[:6]) <= 65535:
        hint = "; leave the host port out for any free one" if what == "host port" and not int(number[:6]) else ""
        raise ConfigError(f"{kind} port {text!r}: {what} {number} is not between 1 and 65535{hint}")
    return int(number)
