"""Host ports that endpoints publish, held for as long as the daemon lives.

One rule: a port is held by binding it, never by listening on it; the firewall forwards what comes in, and nobody else can
have the port. Only on ``[::1]``, where the firewall cannot, do we listen as well. A port that cannot be held is told once and
tried again at every :meth:`HeldPorts.retry`.
"""

import logging
import os

from netlib.daemon.loopback import LoopbackForwarder, Place
from netlib.daemon.servants import Change
from netlib.errors import NetlibError
from netlib.kernel.descriptors import lifted_descriptor
from netlib.kernel.sockets import hold_port
from netlib.model import Endpoint, IPAddress, PortMapping, Protocol

__all__ = ["HeldPorts"]

logger = logging.getLogger(__name__)
_HeldPlace = tuple[Protocol, int, IPAddress | None]


class HeldPorts:
    """The sockets (descriptors: there are thousands) that hold each endpoint's ports; used by one thread at a time.

    A servant, whom :class:`netlib.daemon.serving.Serving` tells which ports to hold.
    """

    name = "ports"

    def __init__(self) -> None:
        self._held: dict[str, dict[_HeldPlace, int]] = {}
        self._missing: dict[str, tuple[Endpoint, NetlibError]] = {}  # and why its first port cannot be held
        self._forwarder = LoopbackForwarder()

    def release(self, endpoint_id: str) -> None:
        """Let go of every port of an endpoint."""
        self._missing.pop(endpoint_id, None)
        held = self._held.pop(endpoint_id, {})
        if held:
            self._forwarder.withdraw(endpoint_id)
        for fd in held.values():
            os.close(fd)

    def hold(self, endpoint: Endpoint) -> None:
        """Hold the ports of *endpoint*, and serve those on ``[::1]``; log those that somebody else has."""
        held = self._held.setdefault(endpoint.id, {})
        on_loopback: list[Place] = []
        address = endpoint.address(6) or endpoint.address(4)
        target = str(address.ip) if address else ""
        missing: NetlibError | None = None
        for mapping in endpoint.ports:
            place = (mapping.protocol, mapping.host_port, mapping.host_ip)
            if place in held:
                continue
            try:
                held[place] = lifted_descriptor(hold_port(mapping))
            except NetlibError as error:
                missing = missing or error
                if endpoint.id not in self._missing:
                    logger.warning("%s", error)
                continue
            if target and _is_on_loopback(mapping):
                on_loopback.append(Place(mapping.host_port, held[place], (target, mapping.container_port)))
        self._forwarder.forward(endpoint.id, on_loopback)
        if missing is not None:
            self._missing[endpoint.id] = (endpoint, missing)
        else:
            self._missing.pop(endpoint.id, None)

    def retry(self) -> None:
        """Try again for the ports that could not be held."""
        for endpoint, _ in list(self._missing.values()):
            self.hold(endpoint)

    def start(self) -> None:
        """Nothing is held yet."""

    def changed(self, change: Change) -> tuple[NetlibError, ...]:
        """Nothing: who serves names tells what to hold."""
        return ()

    def health(self) -> str | None:
        """How many endpoints lack a port, and why the first of them does."""
        missing = list(self._missing.values())
        return f"ports of {len(missing)} endpoints are not held: {missing[0][1]}" if missing else None

    def stop(self) -> None:
        """Let go of everything."""
        for endpoint_id in list(self._held):
            self.release(endpoint_id)
        self._forwarder.close()


def _is_on_loopback(mapping: PortMapping) -> bool:
    """Whether the port is published on ``[::1]``, among others perhaps."""
    host_ip = mapping.host_ip
    return mapping.protocol is Protocol.TCP and (host_ip is None or str(host_ip) in ("::", "::1"))
