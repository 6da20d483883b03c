"""Host ports of this thread's netns: holding them, naming their holders, choosing free ones.

A held port is bound and never listened on: nobody else can bind it, and packets that the firewall forwards never reach it.
"""

import errno
import os
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

from netlib.errors import ConfigError, FeatureMissing, NetlibError, NotPermitted, ObjectMissing, PortTaken
from netlib.kernel.translate import doing, kernel_error
from netlib.model import IPAddress, PortMapping, Protocol

__all__ = ["ephemeral_ports", "free_port", "hold_port", "port_candidates", "port_owner", "probe_port"]

_KINDS = {Protocol.TCP: socket.SOCK_STREAM, Protocol.UDP: socket.SOCK_DGRAM}
_NUMBERS = {Protocol.TCP: socket.IPPROTO_TCP, Protocol.UDP: socket.IPPROTO_UDP}
_TCP_LISTEN = 10
_STATES = 0x1FFF
_BOUND_INACTIVE = 1 << 13  # bound without listening; Linux 6.8 and newer tell of them, but of all ports at once
_REMEDY = "choose another port or stop that program"
_SYSCTL = Path("/proc/sys/net/ipv4")


def hold_port(mapping: PortMapping) -> socket.socket:
    """Bind the host port of *mapping* and return the socket: closing it frees the port.

    Without a host address the port is bound on every address of both families. Raises PortTaken naming the holder, ConfigError
    when the host does not have the address, NotPermitted for a port below ip_unprivileged_port_start without root.
    """
    try:
        return _bound(mapping, past_connections=False)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise _refusal(mapping, error) from error
    inodes = _socket_inodes(mapping.protocol, mapping.host_port, mapping.host_ip)
    if not inodes and mapping.protocol == Protocol.TCP:
        # A server that has just ended leaves connections in TIME-WAIT for a minute; those are nobody's.
        with suppress(OSError):
            return _bound(mapping, past_connections=True)
    holder = _first_holder(inodes) or ""
    text = f"host {mapping.place} is held by {holder or 'a process that cannot be seen from here'}; {_REMEDY}"
    raise PortTaken(text, holder=holder, holder_kind="process", **port_facts(mapping))


def probe_port(mapping: PortMapping) -> None:
    """Raise what :func:`hold_port` would raise, and hold nothing."""
    hold_port(mapping).close()


class _PortFacts(TypedDict):
    port: int
    protocol: str
    host_ip: str


def port_facts(mapping: PortMapping) -> _PortFacts:
    """The fields of a PortTaken for the host port of *mapping*."""
    return {"port": mapping.host_port, "protocol": str(mapping.protocol), "host_ip": str(mapping.host_ip or "")}


def free_port(protocol: Protocol, host_ip: IPAddress | None, candidates: Iterable[int]) -> int:
    """The first of *candidates* that could be held now; PortTaken, naming the last one's holder, when none could."""
    refusal: PortTaken | None = None
    for port in candidates:
        try:
            probe_port(PortMapping(container_port=0, host_port=port, protocol=protocol, host_ip=host_ip))
        except PortTaken as error:
            refusal = error
            continue
        return port
    raise PortTaken(f"no {protocol} host port is free: {refusal or 'there are none to choose from'}") from refusal


def port_candidates(first: int, last: int) -> Sequence[int]:
    """The host ports to try, in order, for a request from *first* to *last*; both 0: the ephemeral ones from a random one on.

    With a random start two requests at once try different ports, and a port that was just freed is not taken again at once.
    """
    if first:
        return range(first, last + 1)
    ports = ephemeral_ports()
    start = int.from_bytes(os.urandom(4), "big") % len(ports) if ports else 0  # not random: its import takes 2 ms
    return [*ports[start:], *ports[:start]]


def ephemeral_ports() -> Sequence[int]:
    """The ports that the kernel gives out by itself (ip_local_port_range, Docker's choice too), less the reserved ones."""
    with doing("read the range of ephemeral ports"):
        first, last = map(int, (_SYSCTL / "ip_local_port_range").read_text().split())
        reserved = (_SYSCTL / "ip_local_reserved_ports").read_text().strip()
    ports = range(first, last + 1)
    if not reserved:
        return ports
    taken: set[int] = set()
    for part in reserved.split(","):
        low, _, high = part.partition("-")
        taken.update(range(int(low), int(high or low) + 1))
    return [port for port in ports if port not in taken]


def port_owner(protocol: Protocol, port: int, host_ip: IPAddress | None = None) -> str | None:
    """Who holds a port that would clash: ``python3 (pid 123)``, or None when that cannot be seen.

    Asks sock_diag, because /proc/net/tcp does not show a socket that is bound without listening (nor does sock_diag before
    Linux 6.8). Listening sockets come before connections. Without root, other users' processes cannot be seen.
    """
    return _first_holder(_socket_inodes(protocol, port, host_ip))


def _first_holder(inodes: Sequence[int]) -> str | None:
    holders = _processes(inodes) if inodes else {}
    return next((holders[inode] for inode in inodes if inode in holders), None)


def _bound(mapping: PortMapping, *, past_connections: bool) -> socket.socket:
    host_ip = mapping.host_ip
    family = socket.AF_INET if host_ip is not None and host_ip.version == 4 else socket.AF_INET6
    try:
        held = socket.socket(family, _KINDS[mapping.protocol] | socket.SOCK_CLOEXEC)
    except OSError as error:
        if host_ip is not None or error.errno != errno.EAFNOSUPPORT:
            raise
        family = socket.AF_INET  # a kernel without IPv6
        held = socket.socket(family, _KINDS[mapping.protocol] | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host_ip is not None)
        if past_connections:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, True)
        held.bind((str(host_ip or ("::" if family == socket.AF_INET6 else "0.0.0.0")), mapping.host_port))
        if past_connections:  # else a server that sets the option too (nearly all do) could listen beside us
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, False)
    except OSError:
        held.close()
        raise
    return held


def _refusal(mapping: PortMapping, error: OSError) -> NetlibError:
    place = f"host {mapping.place}"
    if error.errno in (errno.EADDRNOTAVAIL, errno.EINVAL):
        return ConfigError(
            f"{place} cannot be published: no interface of this host has that address; leave it out or add it first"
        )
    if error.errno == errno.EACCES:
        return NotPermitted(f"{place} is privileged: run as root or choose a port from 1024 on")
    return kernel_error(error.errno or 0, f"hold {place}", error.strerror or "")


def _socket_inodes(protocol: Protocol, port: int, host_ip: IPAddress | None) -> list[int]:
    """Inodes of the sockets on *port* that clash with *host_ip*, listening ones first; a socket without a process has none."""
    from pyroute2 import DiagSocket  # heavy, and only wanted for an error message

    def on_port(diag: DiagSocket, states: int) -> list[int]:
        items = [
            item
            for family in (socket.AF_INET, socket.AF_INET6)
            for item in diag.get_sock_stats(family=family, protocol=_NUMBERS[protocol], states=states, sport=port)
            if item["idiag_inode"] and item["idiag_sport"] == port and _clashes(item["idiag_src"], host_ip)
        ]
        return [item["idiag_inode"] for item in sorted(items, key=lambda item: item["idiag_state"] != _TCP_LISTEN)]

    try:
        with doing("list sockets"), DiagSocket() as diag:
            return on_port(diag, _STATES) or on_port(diag, _BOUND_INACTIVE)
    except (FeatureMissing, ObjectMissing):  # a kernel without sock_diag for this protocol
        return []


def _clashes(bound: str, host_ip: IPAddress | None) -> bool:
    if host_ip is None or host_ip.is_unspecified:
        return True
    return bound in ("::", "0.0.0.0", str(host_ip), f"::ffff:{host_ip}")


def _processes(inodes: Iterable[int]) -> dict[int, str]:
    """``name (pid n)`` for each of the socket *inodes* that a process has open."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    holders: dict[int, str] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # it has ended meanwhile, or is another user's
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with suppress(FileNotFoundError):  # this one was closed meanwhile
                    link = os.readlink(f"/proc/{pid}/fd/{fd}")
                    if link in wanted:
                        holders.setdefault(wanted[link], f"{Path('/proc', pid, 'comm').read_text().strip()} (pid {pid})")
    return holders
