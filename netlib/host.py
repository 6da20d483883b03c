"""The host that a store describes: opened, recognised, and given its predefined networks at first use.

One store describes one netns. Opening it costs a socket and two short reads; a first opening, or the first after a boot, also
writes what every host has: the networks ``bridge``, ``host`` and ``none``.
"""

import os
import time

from netlib import recovery
from netlib.config import Config
from netlib.errors import ConfigError, Conflict, NotPermitted
from netlib.kernel.handle import Kernel
from netlib.kernel.netns import boot_id, current_identity
from netlib.locks import Locks
from netlib.model import Network, Phase
from netlib.names import new_id
from netlib.requests import NetworkRequest, network_record, surroundings
from netlib.store.sqlite import Store
from netlib.store.tags import remember_tag

DEFAULT_SUBNET = "172.17.0.0/16"
DEFAULT_BRIDGE = "netlib0"
_PREDEFINED = (
    NetworkRequest(
        name="bridge",
        subnets=[DEFAULT_SUBNET],
        options={"com.docker.network.bridge.name": DEFAULT_BRIDGE},
    ),
    NetworkRequest(name="host", driver="host", ipv4=False),
    NetworkRequest(name="none", driver="none", ipv4=False),
)


class Host:
    """Store, locks and tag of one host."""

    def __init__(self, config: Config) -> None:
        """Open the store; raises NotPermitted without root, WrongHost from another netns than the store's."""
        if os.geteuid() != 0:
            raise NotPermitted(
                "netlib changes network namespaces: run it as root (sudo), "
                "or inside `unshare --user --map-root-user --net --mount`"
            )
        self.config = config
        self.store = Store(config.state_dir, boot=boot_id())
        self.locks = Locks(config.lock_dir)
        if recovery.check_host(self.store):
            with self.locks.hold("boot", "forgetting what the last boot held"):
                if recovery.check_host(self.store):  # else another process was first
                    recovery.forget_former_boot(self.store, config)
        self.tag = self._tag()
        remember_tag(config.state_dir, self.tag, current_identity())

    def _tag(self) -> str:
        """Six digits that tell this store's links from another's."""
        with self.store.read() as tx:
            tag = tx.meta("tag")
        if tag is None:
            with self.store.write() as tx:
                tag = tx.meta("tag") or new_id()[:6]
                tx.set_meta("tag", tag)
        return tag

    def prepare(self) -> None:
        """Write the predefined networks where they are missing; their objects come at first use."""
        with self.store.read() as tx:
            missing = [request for request in _PREDEFINED if tx.find(Network, request.name) is None]
        if not missing:
            return
        with Kernel() as kernel:
            around = {request.name: surroundings(kernel, request) for request in missing}
        with self.store.write() as tx:
            for request in missing:
                if tx.find(Network, request.name) is not None:
                    continue
                network_id, now = new_id(), time.time()
                try:
                    network = network_record(tx, network_id, now, request, around[request.name], predefined=True)
                except (Conflict, ConfigError):  # a route of the host is in the way: the next free pool
                    free = NetworkRequest(name=request.name, options=request.options)
                    network = network_record(tx, network_id, now, free, around[request.name], predefined=True)
                tx.insert(network, name=network.name, phase=Phase.READY)
                tx.stamp(network_id, "")
