"""Attachments: what CNI plugins do for containers, with the guarantees of every other record.

A CNI network is a record that outlives its attachments. What they share (a bridge, its gateways, forwarding) belongs to it, is
made by the first one that needs it and is removed by :meth:`Attachments.prune`; all else belongs to the attachment, which one
plugin makes for one interface of one container.
"""

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

from msgspec.structs import replace

from netlib.core.controller import Controller
from netlib.core.pending_attachment import AttachmentKey, PendingAttachment, Wanted
from netlib.core.recovery import drift
from netlib.core.session import chunks, no_network
from netlib.errors import (
    AlreadyExists,
    Conflict,
    InUse,
    NetlibError,
    NotFound,
    TeardownError,
)
from netlib.kernel.netns import is_alive
from netlib.model import CniAttachment, CniNetwork, Event, NetnsRef, Phase, PortMapping, Sandbox
from netlib.names import new_id
from netlib.plan import KernelObject, Plan
from netlib.store.records import Row

__all__ = ["PREFIX", "Attachments"]

PREFIX = "cni:"  # tells a CNI network from another of its name; no name of ours can hold a colon


class Attachments:
    """The attachments of one store; it serves one thread, as its controller does."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.store = controller.store
        self.engine = controller.engine
        self._lifecycle = controller.lifecycle

    # --- making ----------------------------------------------------------------------------------------------------

    @contextmanager
    def pending(self, key: AttachmentKey, netns: NetnsRef, fd: int | None = None) -> Iterator[PendingAttachment]:
        """Make an attachment in the block, by its :meth:`~PendingAttachment.apply` and :meth:`~PendingAttachment.finish`.

        An error in the block undoes everything. *netns* has its identity; if *fd*, a descriptor of it, is given, its path is
        not opened. Attachments that containers left at this path, or under this name, are removed first. AlreadyExists when
        the attachment exists.
        """
        purpose = f"attaching container {key.container} to network {key.network}"
        with self._alone(key, purpose), self.controller.operation("cni add", key.name, _event("add", key)) as operation:
            self.controller.host.require_settings()
            self._remove_predecessors(key, netns)
            with self.store.read() as tx:
                record = tx.new_link_id()
            with self._lifecycle.working_on([record], purpose), self.engine.kernel(record) as kernel:
                if fd is not None:
                    kernel.lend(netns, fd)
                pending = PendingAttachment(self, key, record, netns, kernel, operation.finish)
                try:
                    yield pending
                except NetlibError as error:
                    self._undo(pending, error)
                    raise

    @contextmanager
    def _alone(self, key: AttachmentKey, purpose: str) -> Iterator[None]:
        """Hold the attachment's lock, as ADD and DEL do: the ADD of a killed plugin may still run in netlibd when DEL comes."""
        with self.controller.locks.hold(f"attachment:{key.name}", purpose):
            yield

    def _undo(self, pending: PendingAttachment, error: NetlibError) -> None:
        failures: list[NetlibError] = []
        try:
            pending.undo()
            if pending.made_network:
                self._prune(pending.made_network)
        except TeardownError as failure:
            failures.extend(failure.failures)
        if failures:
            known = error.failures if isinstance(error, TeardownError) else (error,)
            raise TeardownError([*known, *failures]) from error

    def _remove_predecessors(self, key: AttachmentKey, netns: NetnsRef) -> None:
        """Remove attachments of an earlier netns at this path, and what a failed ADD or DEL left of this attachment."""
        with self.store.read() as tx:
            rows = [row for row in tx.attachments_in(netns.path) if row.value.netns.identity != netns.identity]
            same = tx.find_named(CniAttachment, key.name)
        if same is not None and same.value.netns.identity != netns.identity and not is_alive(same.value.netns):
            rows = [*(row for row in rows if row.id != same.id), same]
            same = None
        if rows:
            self._take_down(rows, f"clearing the way for container {key.container}")
        if same is not None:
            if same.phase is not Phase.READY:
                raise Conflict(
                    f"{key.name} is being made or removed by another process, or could not be removed; see `netlib log`"
                )
            raise AlreadyExists(f"container {key.container} has {key.ifname} in network {key.network} already; DEL it first")

    # --- what a network's attachments share ------------------------------------------------------------------------

    def shares(self, network: Row[CniNetwork], shared: Plan, wanted: Wanted) -> bool:
        """Whether *shared*, the network's recorded objects, include all that *wanted* shares and none that it replaces."""
        if network.phase is not Phase.READY or not self._lifecycle.is_materialised(network):
            return False
        present = {item.key: item for item in shared}
        return all(_is_same(present.get(item.key), item) for item in wanted.shared) and not wanted.replaced & present.keys()

    def share(self, name: str, wanted: Wanted) -> str:
        """Create the network *name* if it is missing, or extend it by *wanted*'s shared objects; return its id if it is new."""
        with self.controller.locks.hold(f"cni-network:{name}", f"setting up network {name}"):
            with self.store.read() as tx:
                row = tx.find_named(CniNetwork, name)
            if row is not None and row.phase is not Phase.READY:
                with self._lifecycle.working_on([row.id], f"waiting for the end of network {name}"):
                    pass  # whoever removes it is done
                self.controller.recover()  # a dead process left it
                with self.store.read() as tx:
                    row = tx.find_named(CniNetwork, name)
                if row is not None and row.phase is not Phase.READY:
                    raise Conflict(
                        f"network {name!r} is half removed: some of its objects could not be removed; see `netlib log`"
                    )
            record = row.id if row is not None else new_id()
            with self._lifecycle.working_on([record], f"setting up network {name}"), self.engine.kernel(record) as kernel:
                if row is None:
                    network = CniNetwork(id=record, name=name, created=time.time())
                    self._lifecycle.create_cni_network(kernel, network, wanted.shared)
                    return record
                self._lifecycle.extend(kernel, record, wanted.shared, wanted.replaced)
        return ""

    def revise(self, record: str, item: KernelObject, phase: Phase = Phase.READY) -> bool:
        """Replace the recorded object of an attachment (by id) that has *item*'s key; return False if it is not in *phase*."""
        with self.store.write() as tx:
            row = tx.by_id(record)
            if row is None or row.phase is not phase:
                return False
            tx.write_objects(record, [item if present.key == item.key else present for present in tx.objects(record)])
        return True

    # --- taking away -----------------------------------------------------------------------------------------------

    def delete(self, key: AttachmentKey) -> CniAttachment | None:
        """Remove one attachment and return its record, None when it does not exist.

        Raises TeardownError for objects that could not be removed; they stay recorded, and the next call tries again.
        """
        purpose = f"detaching container {key.container} from network {key.network}"
        with self._alone(key, purpose):
            with self.store.read() as tx:
                row = tx.find_named(CniAttachment, key.name)
            if row is None:
                return None
            with self.controller.operation("cni del", key.name, _event("del", key)):
                self._take_down([row], purpose)
        return row.value

    def collect(self, network: str, plugin: str, valid: Collection[tuple[str, str]]) -> list[CniAttachment]:
        """Take down the attachments of *plugin* in *network* besides *valid* ones, (container, ifname) each; return them."""
        with self.store.read() as tx:
            row = tx.find_named(CniNetwork, network)
            present = tx.attachments_of(row.id) if row is not None else []
        rows = [row for row in present if row.value.plugin == plugin and (row.value.container, row.value.ifname) not in valid]
        return self._collect("cni gc", network, rows)

    def reclaim(self, network: str) -> list[CniAttachment]:
        """Remove the attachments of *network* whose netns is gone: their runtime did not detach them."""
        with self.store.read() as tx:
            row = tx.find_named(CniNetwork, network)
            present = tx.attachments_of(row.id) if row is not None else []
        rows = [row for row in present if row.phase is Phase.READY and not is_alive(row.value.netns)]
        return self._collect("cni reclaim", network, rows)

    def clear_ports(self, ports: Iterable[PortMapping]) -> None:
        """Remove attachments that hold one of *ports* and whose netns is gone: their runtime did not detach them."""
        with self.store.read() as tx:
            holders = {holder for port in ports if (holder := tx.port_holder(port)) is not None}
            found = [
                row.value for row in map(tx.by_id, sorted(holders)) if row is not None and isinstance(row.value, CniAttachment)
            ]
            # In a container's other networks the same ports of the other IP version may be published, or awaited.
            beside = [(item, row) for item in found for row in tx.attachments_in(item.netns.path)]
        rows = {
            row.id: row for item, row in beside if (row.value.netns, row.value.plugin) == (item.netns, item.plugin)
        }.values()
        dead = [row for row in rows if row.phase is Phase.READY and not is_alive(row.value.netns)]
        self._collect("cni reclaim", "published ports", dead)

    def _collect(self, verb: str, network: str, rows: Sequence[Row[CniAttachment]]) -> list[CniAttachment]:
        if rows:
            with self.controller.operation(verb, network):
                self._take_down(rows, f"clearing network {network}")
        return [row.value for row in rows]

    def _take_down(self, rows: Sequence[Row[CniAttachment]], purpose: str) -> None:
        """Remove attachments with their endpoints; one TeardownError lists all failures at the end."""
        failures: list[NetlibError] = []
        left: list[str] = []
        for row in rows:
            try:
                self.leave(row.value, keep_ports=True)
                left.append(row.id)
            except TeardownError as error:
                failures.extend(error.failures)
        try:
            self.controller.take_down(chunks(left), purpose)
        except TeardownError as error:
            failures.extend(error.failures)
        if failures:
            raise TeardownError(failures)

    def leave(self, attachment: CniAttachment, *, keep_ports: bool) -> None:
        """Remove the endpoint of an attachment, and perhaps its sandbox; a no-op when it joined no network of ours.

        With *keep_ports* another of the container's networks publishes what this one did.
        """
        rows = self._lifecycle.rows_to_leave_with(attachment)
        try:
            if any(isinstance(row.value, Sandbox) for row in rows):
                self.controller.remove_sandbox(attachment.sandbox)
            elif rows:
                self.controller.disconnect(rows[0].value.network, attachment.sandbox, keep_ports=keep_ports)
        except NotFound:  # another process removed it, or an earlier removal failed
            if failures := self.controller.recover():
                raise TeardownError(failures) from None

    def prune(self) -> list[CniNetwork]:
        """Take down every CNI network without attachments; return them."""
        with self.controller.operation("cni prune", "networks without attachments"):
            with self.store.read() as tx:
                rows = tx.all(CniNetwork)
            return [row.value for row in rows if self._prune(row.id)]

    def remove_network(self, reference: str) -> CniNetwork:
        """Take down one CNI network; return it. Raises NotFound, and InUse that lists who is attached."""
        network = self.network(reference)
        with self.controller.operation("network rm", f"{PREFIX}{network.name}"):
            if not self._prune(network.id):
                users = sorted({item.container[:12] for item in self.attachments(network.name)})
                raise InUse(
                    f"CNI network {network.name!r} has containers attached: {', '.join(users) or 'one by now'}; "
                    "their runtime detaches them, or `netlib cni prune --stale` those that are gone",
                    holder=network.name,
                    holder_kind="network",
                    users=users,
                )
        return network

    def _prune(self, record: str) -> bool:
        with self._lifecycle.working_on([record], "removing a network without attachments"):
            with self.store.write(clearing=True) as tx:
                row = tx.by_id(record)
                if row is None or tx.attachments_of(record):
                    return False
                tx.set_phase(record, Phase.REMOVING)  # from here on nobody joins
            self._lifecycle.take_down([row])
        return True

    # --- telling ---------------------------------------------------------------------------------------------------

    def find(self, key: AttachmentKey) -> CniAttachment | None:
        """The attachment, if it is there and ready."""
        with self.store.read() as tx:
            row = tx.find_named(CniAttachment, key.name)
        return row.value if row is not None and row.phase is Phase.READY else None

    def plan_of(self, record: str) -> Plan:
        """The recorded objects of a CNI network or an attachment, by id; an attachment's include those of its endpoint."""
        with self.store.read() as tx:
            row = tx.by_id(record)
            joined = [row.value.sandbox, row.value.endpoint] if row and isinstance(row.value, CniAttachment) else []
            return Plan(*(item for part in (record, *joined) if part for item in tx.objects(part)))

    def network(self, reference: str) -> CniNetwork:
        """The CNI network of that name, id or unambiguous beginning of an id, ``cni:`` before it or not; NotFound else."""
        with self.store.read() as tx:
            row = tx.find(CniNetwork, reference.removeprefix(PREFIX))
        if row is None or row.phase is not Phase.READY:
            raise no_network(reference)
        return row.value

    def networks(self) -> list[CniNetwork]:
        """Every CNI network, by name."""
        with self.store.read() as tx:
            return [row.value for row in tx.all(CniNetwork) if row.phase is Phase.READY]

    def attachments(self, network: str | None = None) -> list[CniAttachment]:
        """Every attachment, or those of one network (by name), by network, container and interface."""
        with self.store.read() as tx:
            if network is None:
                rows: Iterable[Row[CniAttachment]] = tx.all(CniAttachment)
            else:
                row = tx.find_named(CniNetwork, network)
                rows = tx.attachments_of(row.id) if row is not None else ()
            return [row.value for row in rows if row.phase is Phase.READY]

    def drift(self, attachment: CniAttachment) -> list[tuple[str, str]]:
        """Compare an attachment and what it shares with the kernel: (object, how it differs) for each drift."""
        records = [attachment.network, attachment.id]
        if attachment.endpoint:
            with self.store.read() as tx:
                row = tx.by_id(attachment.endpoint)
            if row is None or row.phase is not Phase.READY:
                return [(f"endpoint/{attachment.endpoint}", "gone")]
            records += [row.value.network, attachment.sandbox, attachment.endpoint]
        return self.drift_of(records)

    def drift_of(self, records: Iterable[str]) -> list[tuple[str, str]]:
        """The same for networks and attachments by id."""
        return drift(self._lifecycle, records)


def _is_same(present: KernelObject | None, wanted: KernelObject) -> bool:
    """Whether a recorded object equals the wanted one, except for its observations."""
    if present is None or type(present) is not type(wanted):
        return False
    return present == replace(wanted, **{field: getattr(present, field) for field in wanted.observations})


def _event(action: str, key: AttachmentKey) -> Event:
    return Event(type="cni", action=action, id=key.container, attributes=dict(zip(key._fields, key, strict=True)))
