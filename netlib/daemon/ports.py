"""Holding the host ports that endpoints publish, so that no process of the host can bind them.

One rule: a port is held by a socket that is bound to it but does not listen; the firewall forwards the packets. Only on
``[::1]``, where the firewall cannot forward, does netlibd listen as well. A port that cannot be held is logged once and tried
again at every :meth:`HeldPorts.reconcile`.
"""

import logging
import os
import threading

from netlib.daemon.loopback import ForwardedPort, LoopbackForwarder
from netlib.daemon.servants import ChangedRecords
from netlib.errors import NetlibError
from netlib.kernel.descriptors import lifted_descriptor
from netlib.kernel.sockets import hold_port
from netlib.model import Endpoint, IPAddress, PortMapping, Protocol

__all__ = ["HeldPorts"]

logger = logging.getLogger(__name__)
_BoundPort = tuple[Protocol, int, IPAddress | None]


class HeldPorts:
    """The sockets that hold each endpoint's ports; any thread may hold and release them.

    They are kept as bare descriptors, because there may be thousands. This is a servant, but it reads no records:
    :class:`netlib.daemon.serving.Serving` calls :meth:`hold` and :meth:`release`.
    """

    name = "ports"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, dict[_BoundPort, int]] = {}
        self._missing: dict[str, tuple[Endpoint, NetlibError]] = {}  # with the error of its first port
        self._forwarder = LoopbackForwarder()

    def release(self, endpoint_id: str) -> None:
        """Close the sockets of all ports of an endpoint."""
        with self._lock:
            self._missing.pop(endpoint_id, None)
            held = self._held.pop(endpoint_id, {})
            if held:
                self._forwarder.withdraw(endpoint_id)
            for fd in held.values():
                os.close(fd)

    def hold(self, endpoint: Endpoint) -> None:
        """Hold the ports of *endpoint*, and forward those on ``[::1]``; log those that another process has."""
        with self._lock:
            self._hold(endpoint)

    def _hold(self, endpoint: Endpoint) -> None:
        held = self._held.setdefault(endpoint.id, {})
        on_loopback: list[ForwardedPort] = []
        address = endpoint.address(6) or endpoint.address(4)
        target = str(address.ip) if address else ""
        missing: NetlibError | None = None
        for mapping in endpoint.ports:
            port = (mapping.protocol, mapping.host_port, mapping.host_ip)
            if port in held:
                continue
            try:
                held[port] = lifted_descriptor(hold_port(mapping))
            except NetlibError as error:
                missing = missing or error
                if endpoint.id not in self._missing:
                    logger.warning("%s", error)
                continue
            if target and _is_on_loopback(mapping):
                on_loopback.append(ForwardedPort(mapping.host_port, held[port], (target, mapping.container_port)))
        self._forwarder.forward(endpoint.id, on_loopback)
        if missing is not None:
            self._missing[endpoint.id] = (endpoint, missing)
        else:
            self._missing.pop(endpoint.id, None)

    def start(self) -> None:
        """Do nothing: :class:`netlib.daemon.serving.Serving` holds the ports when it starts."""

    def changed(self, change: ChangedRecords) -> tuple[NetlibError, ...]:
        """Do nothing: :class:`netlib.daemon.serving.Serving` reads the records."""
        return ()

    def reconcile(self, *, store_changed: bool) -> None:
        """Try again for the ports that another process had."""
        with self._lock:
            for endpoint, _ in list(self._missing.values()):
                self._hold(endpoint)

    def health(self) -> str | None:
        """Return a sentence with the number of endpoints that lack a port and the reason of the first one, or None."""
        missing = list(self._missing.values())
        count = f"{len(missing)} endpoint{'' if len(missing) == 1 else 's'}"
        return f"ports of {count} are not held: {missing[0][1]}" if missing else None

    def stop(self) -> None:
        """Close all sockets."""
        for endpoint_id in list(self._held):
            self.release(endpoint_id)
        self._forwarder.close()


def _is_on_loopback(mapping: PortMapping) -> bool:
    """Whether the port is published on ``[::1]``, alone or among other addresses."""
    host_ip = mapping.host_ip
    return mapping.protocol is Protocol.TCP and (host_ip is None or str(host_ip) in ("::", "::1"))
