"""``netlib system restore``: putting a backup in the place of the store, or accepting the present store though it is older.

The kernel may hold objects that were made after the backup. One rule: no running container is ended, and no file of a
container is deleted. A record is kept where the kernel has an object with the tag of its id. It is deleted where its objects
are gone, as after a boot. Objects without a record are left and listed.
"""

import random
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from msgspec.structs import replace

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.core.endpoints import connect
from netlib.core.host import require_root
from netlib.core.recovery import forget
from netlib.core.sandbox_plan import is_served
from netlib.core.sandboxes import DNS_PORTS
from netlib.core.traces import container_folders, listed, minders
from netlib.errors import KernelError, NetlibError, ObjectMissing, PackageFailed, PackageMissing, StoreDamaged, WrongHost
from netlib.kernel.addresses import addresses_of
from netlib.kernel.bridges import Bridge
from netlib.kernel.handle import Kernel
from netlib.kernel.linkinfo import LinkInfo
from netlib.kernel.netns import boot_id, current_identity, is_alive, pinned_netns
from netlib.model import CniAttachment, CniNetwork, Endpoint, IPInterface, NetnsRef, Network, Phase, Sandbox
from netlib.names import new_id
from netlib.plan import KernelObject
from netlib.registry import driver_of, ipam_driver
from netlib.requests import ConnectRequest
from netlib.runtime.leftovers import ACCEPTED
from netlib.runtime.lookup import containers
from netlib.runtime.spec import Container
from netlib.store.backup import check_backup, copy_whole, kept_beside, meta_of, put_back, set_aside
from netlib.store.locks import Locks
from netlib.store.records import Row, Transaction
from netlib.store.sqlite import Store
from netlib.store.tags import TAG_DIGITS, store_of, tag_of, tags_of
from netlib.wire.client import leave, start_daemon

__all__ = ["restore"]


def restore(config: Config, backup: Path | None) -> Iterator[str]:
    """Put *backup* in the place of the store, or keep the present store (None), and bring its records to what the kernel has.

    Yields a line for each thing that was adopted, deleted or left. The former store is kept beside the new one. Raises
    NotPermitted, NotFound, ConfigError, WrongHost before anything is changed.
    """
    require_root()
    store = Store(config.state_dir, boot=boot_id())
    if backup is not None:
        check_backup(backup)
        _check_place(backup)
        if store.exists and backup.samefile(store.path):
            backup = None
    leave(config)
    with Locks(config.lock_dir).hold("restore", "restoring the store"):
        yield from _put_in_place(store, backup)
        yield from _accept(config)


def _put_in_place(store: Store, backup: Path | None) -> Iterator[str]:
    if backup is None:
        yield "accepted: the store as it is"
        return
    if kept := _keep(store):
        yield f"kept: the former store, as {kept}"
    put_back(backup, store.path)
    yield f"restored: {backup}"


def _accept(config: Config) -> Iterator[str]:
    """Adopt the objects whose tags prove that they are ours, list the others, and start netlibd where it is needed."""
    with Controller(config, watcher=Unwatched(), despite_loss=True) as controller:
        yield from _adopt(controller)
        yield from _left(controller)
        sandboxes = controller.sandboxes()
        with controller.store.read() as tx:
            memberships = [tx.memberships(sandbox.id) for sandbox in sandboxes]
    leave(config)  # a netlibd that a supervisor has started meanwhile has read the former records
    if any(is_served(pairs) or any(endpoint.ports for _, endpoint in pairs) for pairs in memberships):
        start_daemon(config)


def _check_place(backup: Path) -> None:
    """Raise WrongHost for a backup that was made in this boot but in another netns."""
    place = meta_of(backup, "netns") or ""
    if place.startswith(f"{boot_id()}:") and place != current_identity():
        raise WrongHost(f"{backup} describes another network namespace than this one; restore it from there")


def _keep(store: Store) -> Path | None:
    """Copy the present store beside itself, or rename a damaged one, and return the path; None where there was no store."""
    if not store.exists:
        with store.read():  # creates it
            pass
        store.close()
        return None
    try:
        with store.read() as tx:
            tx.all(Network)
    except StoreDamaged:
        return set_aside(store.path, "before")
    finally:
        store.close()
    kept = kept_beside(store.path, "before")
    copy_whole(store.path, kept)
    return kept


# --- what the kernel proves ----------------------------------------------------------------------------------------------


def _adopt(controller: Controller) -> Iterator[str]:
    """Bring the records to what the kernel has, and write records for tagged objects that have none."""
    config = controller.config
    running = minders(config.container_dir)
    with Kernel() as kernel:
        present = _Present(kernel, config, controller.host.tag)
        known = controller.host.generation.known()
        with controller.store.write() as tx:
            forgotten = _settle_records(tx, kernel, present, running)
            tx.set_meta("netns", current_identity())  # the store describes this host from now on
            tx.count_operation(known)
            number = tx.generation()
        controller.host.generation.settle(number)
    controller.host.lost = None
    if forgotten:
        yield f"forgotten, because nothing of them exists any more: {listed(forgotten)}"
    controller.recover()
    controller.prepare_networks()
    yield from _adopt_sandboxes(controller, present, running)
    yield from _adopt_endpoints(controller)


class _Present:
    """The links and netns in the kernel that carry the tag of one store, by the record id in the tag (its first digits)."""

    def __init__(self, kernel: Kernel, config: Config, store: str) -> None:
        self.links: set[str] = {tag_of(link.alias)[1] for link in kernel.rtnl().links() if store_of(link.alias) == store}
        self.files = container_folders(config)
        self.inside: list[tuple[int, list[IPInterface]]] = []  # of each link: the index of its other end, and its addresses
        self.netns: dict[str, NetnsRef] = {}
        for netns in pinned_netns(config.run_dir):
            with suppress(KernelError):  # the netns was deleted meanwhile
                inside = kernel.rtnl(netns).links()
                for link in inside:
                    self.inside.append((link.peer, addresses_of(kernel, link.ifname, netns)))
                tags = {link.ifname: tag_of(link.alias) for link in inside}
                self.links |= {record for its_store, record in tags.values() if its_store == store}
                if tags.get("lo", ("", ""))[0] == store:
                    self.netns[tags["lo"][1]] = netns
                kernel.forget(netns)

    def netns_of(self, record: str) -> NetnsRef | None:
        """Return the netns whose tag names *record*, a whole id."""
        return self.netns.get(record[:TAG_DIGITS])


def _settle_records(tx: Transaction, kernel: Kernel, present: _Present, running: dict[str, int]) -> list[str]:
    """Keep the records whose objects the kernel has, delete the others as after a boot; return the names of those deleted."""
    forgotten, kept = _settle_sandboxes(tx, kernel, present, running)
    for endpoint in tx.all(Endpoint):
        if endpoint.value.sandbox in kept and (endpoint.id[:TAG_DIGITS] in present.links or not endpoint.value.ifname):
            tx.set_phase(endpoint.id, Phase.READY)
        else:
            forget(tx, kernel, endpoint)
    _settle_attachments(tx, kernel)
    is_of_this_boot = (tx.meta("netns") or "").startswith(f"{boot_id()}:")
    networks: list[Row[Any]] = [*tx.all(Network), *tx.all(CniNetwork)]
    for network in networks:
        tx.stamp(network.id, "")  # so the next use of the network makes the objects of it that are missing
        if not is_of_this_boot:  # prior values of sysctls and the like, observed in another boot, do not hold in this one
            tx.write_objects(network.id, ())
    for container in tx.all(Container):
        netns = present.netns_of(container.value.container_id)
        if container.value.owns_sandbox and netns is not None:
            tx.replace(replace(container.value, netns=netns))
        if container.value.container_id in running or container.value.container_id in present.files:
            tx.set_phase(container.id, Phase.READY)
    return forgotten


def _settle_attachments(tx: Transaction, kernel: Kernel) -> None:
    """Delete the records of CNI attachments whose link is gone, of all plugins in the chain; the others become ready."""
    rows = [row for row in tx.all(CniAttachment) if is_alive(row.value.netns)]  # those of a dead netns are left to GC or DEL
    made = {row.id: [item for item in tx.objects(row.id) if item.key.kind == "link"] for row in rows}
    gone = {
        (row.value.container, row.value.ifname, row.value.network)
        for row in rows
        if made[row.id] and all(_is_missing(kernel, item) for item in made[row.id])
    }
    for row in rows:
        if (row.value.container, row.value.ifname, row.value.network) in gone:
            forget(tx, kernel, row)
        elif row.phase is Phase.CREATING:
            tx.set_phase(row.id, Phase.READY)


def _is_missing(kernel: Kernel, link: KernelObject) -> bool:
    try:
        return kernel.rtnl(link.netns).find_link(link.key.name) is None
    except ObjectMissing:
        return True


def _settle_sandboxes(
    tx: Transaction, kernel: Kernel, present: _Present, running: dict[str, int]
) -> tuple[list[str], set[str]]:
    """Keep the sandboxes whose netns is there, delete the others; return the names of those deleted, the ids of those kept."""
    forgotten, kept = [], set()
    for row in tx.all(Sandbox):
        netns = present.netns_of(row.id) or (row.value.netns if is_alive(row.value.netns) else None)
        if row.value.owned and netns is None:
            forgotten.append(row.name)
            forget(tx, kernel, row, keeps_files=row.id in running)
        else:
            kept.add(row.id)
            tx.replace(replace(row.value, netns=netns or row.value.netns))
            tx.set_phase(row.id, Phase.READY)
    return forgotten, kept


def _adopt_sandboxes(controller: Controller, present: _Present, running: dict[str, int]) -> Iterator[str]:
    """Write the sandboxes of containers that were started after the backup, whose netns carry the containers' ids as tags."""
    known = {container.container_id: container for container in containers(controller)}
    with controller.store.read() as tx:
        missing = [item for item in running if item in known and tx.by_id(item) is None]
    for sandbox_id in missing:
        container, netns = known[sandbox_id], present.netns_of(sandbox_id)
        if netns is None:
            continue
        sandbox = Sandbox(
            id=sandbox_id,
            name=container.name,
            created=time.time(),
            netns=netns,
            owned=True,
            hostname=container.hostname,
            domainname=container.spec.domainname,
            resolver=container.spec.resolver,
            dns_port=random.choice(DNS_PORTS),
            files_dir=str(controller.config.sandbox_dir / sandbox_id),
        )
        purpose = f"adopting sandbox {sandbox.name}"
        with (
            controller.operation("sandbox adopt", sandbox.name),
            controller.lifecycle.working_on([sandbox_id], purpose),
            controller.engine.kernel(sandbox_id) as kernel,
        ):
            controller.lifecycle.create_sandbox(kernel, sandbox, lambda _: None)
            with controller.store.write() as tx:
                tx.replace(replace(container, netns=netns, files_dir=sandbox.files_dir, owns_sandbox=True))
        yield f"adopted: {container.name}, which was started after the backup"


def _adopt_endpoints(controller: Controller) -> Iterator[str]:
    """Write endpoints for links that connect a sandbox to a network without a record; the existing links are kept unchanged."""
    with Kernel() as kernel:
        outside, networks = {link.index: link for link in kernel.rtnl().links()}, _by_bridge(controller)
        found = [
            (sandbox, seen)
            for sandbox in controller.sandboxes()
            if sandbox.owned
            for seen in _unknown_endpoints(controller, kernel, sandbox, outside, networks)
        ]
    for sandbox, seen in found:
        families = {address.version: address for address in seen.addresses}
        try:
            request = ConnectRequest(
                network=seen.network,
                container=sandbox.id,
                ifname=seen.ifname,
                mac=seen.mac,
                ip=families[4].ip if 4 in families else None,
                ip6=families[6].ip if 6 in families else None,
            )
            connect(controller, request, endpoint_id=seen.record)
        except NetlibError as error:
            yield f"left: {seen.ifname} of {sandbox.name}: {error}"
        else:
            yield f"adopted: {seen.ifname} of {sandbox.name}, without aliases and published ports: start it anew to have them"


class _UnknownEndpoint(NamedTuple):
    """An endpoint without a record, as its links show it."""

    record: str  # a new id whose first digits are those of the tag
    network: str
    ifname: str
    mac: str
    addresses: list[IPInterface]


def _unknown_endpoints(
    controller: Controller, kernel: Kernel, sandbox: Sandbox, outside: Mapping[int, LinkInfo], networks: Mapping[str, Network]
) -> list[_UnknownEndpoint]:
    """Find the veth pairs from *sandbox* to bridges of our networks whose tag names an endpoint that has no record.

    *outside* are the host's links by index, *networks* our networks by the names of their bridges.
    """
    found = []
    with controller.store.read() as tx:
        for link in kernel.rtnl(sandbox.netns).links():
            other = outside.get(link.peer)
            if link.kind != "veth" or other is None or other.kind != "veth" or other.master not in outside:
                continue
            store, record = tag_of(other.alias)
            network = networks.get(outside[other.master].ifname)
            if store == controller.host.tag and network is not None and not tx.is_known(record):
                addresses = [
                    address for address in addresses_of(kernel, link.ifname, sandbox.netns) if not address.ip.is_link_local
                ]
                endpoint_id = record + new_id()[TAG_DIGITS:]
                found.append(_UnknownEndpoint(endpoint_id, network.id, link.ifname, link.mac, addresses))
    kernel.forget(sandbox.netns)
    return found


def _by_bridge(controller: Controller) -> dict[str, Network]:
    """Return the networks that have a bridge, by the bridge's name."""
    found: dict[str, Network] = {}
    for network in controller.networks():
        with suppress(PackageMissing, PackageFailed):  # a network whose package is missing keeps no other from being restored
            found |= {bridge.ifname: network for bridge in driver_of(network).network_plan(network).of(Bridge)}
    return found


# --- what is left --------------------------------------------------------------------------------------------------------


def _left(controller: Controller) -> Iterator[str]:
    """Yield a line for containers, links and netns with this store's tags or files but no record, and how to remove them."""
    config = controller.config
    running = minders(config.container_dir)
    with controller.store.write() as tx:
        known = {row.value.container_id for row in tx.all(Container)}
        unknown = sorted((container_folders(config) | running.keys()) - known)
        tx.set_meta(ACCEPTED, " ".join(unknown))
    with controller.store.read() as tx:
        tags = tags_of(config)
        with Kernel() as kernel:
            links = [
                link.ifname
                for link in kernel.rtnl().links()
                if store_of(link.alias) in tags and not tx.is_known(tag_of(link.alias)[1])
            ]
            present = _Present(kernel, config, controller.host.tag)
        netns = sorted(ref.label for record, ref in present.netns.items() if not tx.is_known(record))
    _reserve_addresses(controller, present)
    for container_id in unknown:
        state = (
            "runs" if container_id in running else "does not run; its files are in " + str(config.container_dir / container_id)
        )
        yield f"left: container {container_id[:12]}, which the store does not know, {state}"
    for what, names in (("links", links), ("network namespaces", netns)):
        if names:
            yield f"left: {what} that the store does not know: {listed(names)}"
    if unknown or links or netns:
        yield "to remove what is left, with everything in the store: netlib system reset --lost"


def _reserve_addresses(controller: Controller, present: _Present) -> None:
    """Lease the addresses of members without a record, so that nobody else gets them while their network exists."""
    networks = _by_bridge(controller)
    with Kernel() as kernel, controller.store.write() as tx:
        outside = {link.index: link for link in kernel.rtnl().links()}
        for peer, addresses in present.inside:
            link = outside.get(peer)
            network = networks.get(outside[link.master].ifname) if link is not None and link.master in outside else None
            if link is None or network is None or not tag_of(link.alias)[1] or tx.is_known(tag_of(link.alias)[1]):
                continue
            for pool in network.pools:
                for address in addresses:
                    if address.ip in pool.subnet:
                        with suppress(NetlibError):  # a record has leased it
                            ipam_driver(network.ipam_driver).request_address(
                                tx.leases, network.id, pool.subnet, tag_of(link.alias)[1], address.ip
                            )
