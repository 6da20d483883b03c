"""Docker's predefined networks, which every host has: ``bridge``, by the host's settings, ``host`` and ``none``.

The first opening of a store writes their records; their objects are applied at their first use. When the settings of ``bridge``
change, the next opening at which no sandbox is in ``bridge`` removes it and writes a new record.
"""

import hashlib
import time
from ipaddress import ip_network

from netlib.codec import encode
from netlib.core.host import Host
from netlib.core.lifecycle import Lifecycle
from netlib.core.network_record import network_record, read_host_state
from netlib.errors import ConfigError, Conflict, TeardownError
from netlib.kernel.handle import Kernel
from netlib.model import Network, Phase
from netlib.names import BRIDGE_NAME_OPTION, new_id
from netlib.requests import NetworkRequest
from netlib.settings import Settings
from netlib.store.records import Row
from netlib.wire.notices import notice

__all__ = ["DEFAULT_BRIDGE", "DEFAULT_SUBNET", "predefined", "prepare_predefined"]

DEFAULT_SUBNET = ip_network("172.17.0.0/16")
DEFAULT_BRIDGE = "netlib0"
_MARK = "predefined"  # the key in the store's table ``meta`` with a digest of the settings that ``bridge`` was made by


def predefined(settings: Settings) -> tuple[NetworkRequest, ...]:
    """The requests for the predefined networks, ``bridge`` first."""
    host = NetworkRequest(name="host", driver="host", ipv4=False)
    none = NetworkRequest(name="none", driver="none", ipv4=False)
    return _bridge(settings), host, none


def _bridge(settings: Settings) -> NetworkRequest:
    options = {BRIDGE_NAME_OPTION: DEFAULT_BRIDGE}
    if settings.mtu:
        options["com.docker.network.driver.mtu"] = str(settings.mtu)
    if not settings.icc:
        options["com.docker.network.bridge.enable_icc"] = "false"
    if not settings.ip_masq:
        options["com.docker.network.bridge.enable_ip_masquerade"] = "false"
    if settings.bip is None:
        return NetworkRequest(name="bridge", subnets=(DEFAULT_SUBNET,), options=options)
    router = settings.default_gateway
    return NetworkRequest(
        name="bridge",
        subnets=(settings.bip.network,),
        gateways=(settings.bip.ip,),
        ip_ranges=(settings.fixed_cidr,) if settings.fixed_cidr is not None else (),
        auxiliary={f"DefaultGatewayIPv{router.version}": router} if router is not None else {},
        options=options,
    )


def prepare_predefined(lifecycle: Lifecycle, host: Host) -> None:
    """Write the records of missing predefined networks, and replace ``bridge`` where the settings for it have changed.

    A store without the digest is from before there were settings: its ``bridge`` was made by the defaults.
    """
    wanted = predefined(host.settings)
    digest, store = hashlib.blake2b(encode((wanted[0], host.settings.ip_forward)), digest_size=8).hexdigest(), lifecycle.store
    with store.read() as tx:
        found = {request.name: tx.find_named(Network, request.name) for request in wanted}
        mark = tx.meta(_MARK)
    bridge = found["bridge"]
    if bridge is not None and mark != digest and not (mark is None and host.settings == Settings()):
        if not _remove_former_bridge(lifecycle, bridge):
            return
        found["bridge"] = None
    missing = [request for request in wanted if found[request.name] is None]
    if missing:
        _write_missing(lifecycle, host, missing, digest)


def _remove_former_bridge(lifecycle: Lifecycle, bridge: Row[Network]) -> bool:
    """Remove the network ``bridge`` of former settings; return whether it is removed.

    It stays, with a notice to the user, where a sandbox is in it, another process works on it, or objects cannot be removed.
    """
    with lifecycle.working_on([bridge.id], "following the settings of the network bridge"):
        with lifecycle.store.write(clearing=True) as tx:
            row = tx.by_id(bridge.id)
            if row is None:
                return True
            if row.phase is not Phase.READY or tx.endpoints_of_network(bridge.id):
                notice("the network bridge keeps its former settings because containers are in it; remove them first")
                return False
            tx.set_phase(bridge.id, Phase.REMOVING)
        try:
            lifecycle.take_down([row])
        except TeardownError as error:  # the record stays, in phase ``removing``, and the next command tries again
            notice(f"the network bridge of the former settings could not be removed: {error}")
            return False
    return True


def _write_missing(lifecycle: Lifecycle, host: Host, missing: list[NetworkRequest], digest: str) -> None:
    """Write the records of the *missing* networks and the digest of the settings, in one transaction."""
    with Kernel() as kernel:
        states = {request.name: read_host_state(kernel, request, host.settings) for request in missing}
    with lifecycle.store.write() as tx:
        for request in missing:
            if tx.find_named(Network, request.name) is not None:  # another process was first
                continue
            network_id, now = new_id(), time.time()
            try:
                network = network_record(tx, network_id, now, request, states[request.name], predefined=True)
            except (Conflict, ConfigError):
                if host.settings.bip is not None:  # the administrator chose this subnet
                    raise
                # A route of the host overlaps 172.17.0.0/16: take the next free pool.
                free = NetworkRequest(name=request.name, options=request.options)
                network = network_record(tx, network_id, now, free, states[request.name], predefined=True)
            tx.insert(network, name=network.name, phase=Phase.READY)
            tx.stamp(network_id, "")
        tx.set_meta(_MARK, digest)
