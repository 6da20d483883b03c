"""Host ports that endpoints publish, held for as long as the daemon lives.

One rule: a port is held by binding it, never by listening on it; the firewall forwards what comes in, and nobody else can
have the port. One that cannot be held is told once and tried again at every :meth:`HeldPorts.retry`.
"""

import logging
import resource
import socket
from collections.abc import Collection
from contextlib import suppress

from netlib.errors import NetlibError
from netlib.kernel.sockets import hold_port
from netlib.model import IPAddress, PortMapping, Protocol

__all__ = ["HeldPorts", "raise_descriptor_limit"]

logger = logging.getLogger(__name__)
_Place = tuple[Protocol, int, IPAddress | None]


class HeldPorts:
    """Sockets by the place they hold; used by one thread at a time."""

    def __init__(self) -> None:
        self._held: dict[str, dict[_Place, socket.socket]] = {}
        self._missing: dict[str, dict[_Place, PortMapping]] = {}

    def __len__(self) -> int:
        return sum(len(places) for places in self._held.values())

    def release(self, owner: str) -> None:
        """Let go of every port of *owner* (an endpoint's id)."""
        self._missing.pop(owner, None)
        for held in self._held.pop(owner, {}).values():
            held.close()

    def hold(self, owner: str, mappings: Collection[PortMapping]) -> None:
        """Hold the ports of *owner*, and no others any more; log those that somebody else has."""
        wanted = {(mapping.protocol, mapping.host_port, mapping.host_ip): mapping for mapping in mappings}
        held = self._held.setdefault(owner, {})
        for place in held.keys() - wanted.keys():
            held.pop(place).close()
        missing: dict[_Place, PortMapping] = {}
        known = self._missing.get(owner, {})
        for place, mapping in wanted.items():
            if place in held:
                continue
            try:
                held[place] = hold_port(mapping)
            except NetlibError as error:
                missing[place] = mapping
                if place not in known:
                    logger.warning("%s", error)
        self._missing[owner] = missing
        for table in (self._held, self._missing):
            if not table[owner]:
                del table[owner]

    def retry(self) -> None:
        """Try again for the ports that could not be held."""
        for owner, missing in list(self._missing.items()):
            held = self._held.get(owner, {})
            self.hold(owner, [*missing.values(), *(_mapping(place) for place in held)])

    def close(self) -> None:
        """Let go of everything."""
        for owner in [*self._held, *self._missing]:
            self.release(owner)


def _mapping(place: _Place) -> PortMapping:
    protocol, number, host_ip = place
    return PortMapping(container_port=0, host_port=number, protocol=protocol, host_ip=host_ip)


def raise_descriptor_limit() -> None:
    """Let this process open as many files as it may: each held port and each sandbox's resolver is one or two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # "unlimited" above what fs.nr_open allows
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
