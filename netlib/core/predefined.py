"""Docker's predefined networks, which every host has: ``bridge``, by the host's settings, ``host`` and ``none``.

The first opening of a store writes their records; their objects are applied at their first use. When the settings of ``bridge``
change, the next verb before which no sandbox is in ``bridge`` removes it and writes a new record.
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

__all__ = ["DEFAULT_BRIDGE", "DEFAULT_SUBNET", "predefined", "prepare_predefined"]

DEFAULT_SUBNET = ip_network("172.17.0.0/16")
DEFAULT_BRIDGE = "netlib0"
_FORMER = "network bridge still has its former settings"
_IN_USE = f"{_FORMER}, because containers are in it; it is made anew when they are removed"
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


def prepare_predefined(lifecycle: Lifecycle, host: Host) -> str:
    """Write the records of missing predefined networks, and replace ``bridge`` where the settings for it have changed.

    Return "", or a sentence on why ``bridge`` still has its former settings. While the settings file has a fault, no network is
    replaced, and missing ones are written by the settings before that fault. Raises Conflict, PoolExhausted and ConfigError for
    a ``bridge`` that cannot be as the settings say, and what writing raises.
    """
    wanted = predefined(host.settings_file.known)
    digest = _digest(host.settings_file.known)
    with lifecycle.store.read() as tx:
        found = {request.name: tx.find_named(Network, request.name) for request in wanted}
        # A store without the digest is from before there were settings: its ``bridge`` was made by the defaults.
        mark = tx.meta(_MARK) or _digest(Settings())
        bridge = found["bridge"]
        is_former = bridge is not None and mark != digest and host.settings_file.fault is None
        if bridge is not None and is_former and tx.endpoints_of_network(bridge.id):
            return _IN_USE
    if bridge is not None and is_former:
        if reason := _remove_former_bridge(lifecycle, bridge):
            return reason
        found["bridge"] = None
    missing = [request for request in wanted if found[request.name] is None]
    if missing:
        _write_missing(lifecycle, host, missing, digest)
    return ""


def _digest(settings: Settings) -> str:
    """Return a short text that is another one for settings that ask for another ``bridge``."""
    return hashlib.blake2b(encode((_bridge(settings), settings.ip_forward)), digest_size=8).hexdigest()


def _remove_former_bridge(lifecycle: Lifecycle, bridge: Row[Network]) -> str:
    """Remove the network ``bridge`` of former settings; return "", or a sentence on why it stays.

    It stays where a sandbox is in it, or objects of it cannot be removed.
    """
    with lifecycle.working_on([bridge.id], "following the settings of the network bridge"):
        with lifecycle.store.write(clearing=True) as tx:
            row = tx.by_id(bridge.id)
            if row is None:
                return ""
            if tx.endpoints_of_network(bridge.id):
                return _IN_USE
            if row.phase is not Phase.READY:
                return f"{_FORMER}, because objects of it could not be removed; `netlib log` shows which"
            tx.set_phase(bridge.id, Phase.REMOVING)
        try:
            lifecycle.take_down([row])
        except TeardownError as error:  # the record stays, in phase ``removing``, and the next command tries again
            return f"{_FORMER}, because it could not be removed: {error}"
    return ""


def _write_missing(lifecycle: Lifecycle, host: Host, missing: list[NetworkRequest], digest: str) -> None:
    """Write the records of the *missing* networks and the *digest* of the settings of ``bridge``, in one transaction."""
    settings = host.settings_file.known
    with Kernel() as kernel:
        states = {request.name: read_host_state(kernel, request, settings) for request in missing}
    with lifecycle.store.write() as tx:
        for request in missing:
            if tx.find_named(Network, request.name) is not None:  # another process was first
                continue
            network_id, now = new_id(), time.time()
            try:
                network = network_record(tx, network_id, now, request, states[request.name], predefined=True)
            except (Conflict, ConfigError) as error:
                if settings.bip is not None:  # the administrator chose this subnet
                    kind = Conflict if isinstance(error, Conflict) else ConfigError
                    text = f"{host.settings_file.path}: network bridge cannot be made with bip={settings.bip}: {error}"
                    raise kind(text) from error
                # A route of the host overlaps 172.17.0.0/16: take the next free pool.
                free = NetworkRequest(name=request.name, options=request.options)
                network = network_record(tx, network_id, now, free, states[request.name], predefined=True)
            tx.insert(network, name=network.name, phase=Phase.READY)
            tx.stamp(network_id, "")
            if request.name == "bridge":
                tx.set_meta(_MARK, digest)
