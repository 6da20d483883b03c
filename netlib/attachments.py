"""Attachments: what CNI plugins do for containers, with the guarantees of every other record.

A CNI network is a record that outlives its attachments. What they share (a bridge, its gateways, forwarding) belongs to it, is
made by the first one that needs it and goes with :meth:`Attachments.prune`; all else belongs to the attachment, which one
plugin makes for one interface of one container.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from msgspec.structs import replace

from netlib.controller import Controller
from netlib.errors import (
    AddressTaken,
    AlreadyExists,
    Conflict,
    InUse,
    NetlibError,
    NotFound,
    ObjectMissing,
    PoolExhausted,
    PortTaken,
    TeardownError,
)
from netlib.kernel.handle import Kernel
from netlib.kernel.netns import opened
from netlib.lifecycle import Lifecycle
from netlib.model import CniAttachment, CniNetwork, NetnsRef, Phase, PortMapping, Sandbox
from netlib.names import new_id
from netlib.plan import KernelObject, Key, Plan
from netlib.recovery import drift
from netlib.repair import with_repair
from netlib.requests import port_publisher
from netlib.store.records import Row, Transaction

__all__ = ["PREFIX", "Adding", "AttachmentKey", "Attachments", "Wanted"]

PREFIX = "cni:"  # tells a CNI network from another of its name; no name of ours can hold a colon
_ATTEMPTS = 5  # at sharing what a configuration that changes all the time asks for
_CHOICES = 100  # of an address, where other programs take addresses from the same files all the time


class AttachmentKey(NamedTuple):
    """Who an attachment is: the name of its network, the container's id, the interface, the plugin's type."""

    network: str
    container: str
    ifname: str
    plugin: str

    @property
    def name(self) -> str:
        """As the record is called; none of the parts can hold a slash."""
        return "/".join(self)


class Wanted(NamedTuple):
    """What an attachment needs: objects of its own, and some that belong to its network; *ousted* ones there go for them.

    *ports* are host ports that nobody else may publish meanwhile.
    """

    own: Plan
    shared: Plan = Plan()
    ousted: frozenset[Key] = frozenset()
    ports: tuple[PortMapping, ...] = ()


class _Unshared(Exception):
    """Ends a transaction whose draft needs what its network does not have yet."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted


Draft = Callable[[Transaction], Wanted]


class Adding:
    """One attachment being made: every step is written down before it is applied."""

    def __init__(self, attachments: "Attachments", key: AttachmentKey, record: str, netns: NetnsRef, kernel: Kernel) -> None:
        self.key = key
        self.record = record
        self.netns = netns
        self.kernel = kernel
        self.plan = Plan()  # what was applied so far
        self.shared = Plan()  # what its network has, as of the draft's transaction
        self.made_network = ""  # id, when this attachment is the first of its network
        self.sandbox = self.endpoint = ""  # ids, set before apply() where it is an endpoint of a network of ours
        self._attachments = attachments
        self._is_written = False
        self._network = ""  # id

    @property
    def store_tag(self) -> str:
        """What tells this host's store from another's."""
        return self._attachments.engine.store_tag

    def apply(self, draft: Draft) -> Plan:
        """Write down and make what *draft* answers with; called again, what is new in it. Answers with that.

        *draft* runs in the transaction that writes its objects, and again when the network has to be extended before, when no
        address was free but those of containers that are gone, and when an address that it chose was taken meanwhile.
        """
        for _ in range(_CHOICES):
            fresh = self._write_shared(draft)
            if self._make(fresh):
                return fresh
        raise AddressTaken(f"addresses of network {self.key.network!r} keep being taken by others; try again")

    def _make(self, fresh: Plan) -> bool:
        """Whether it is made; if not, an address was taken by somebody who keeps no records here, and nothing is left of it."""
        before, self.plan = self.plan, self.plan + fresh
        attachments = self._attachments
        try:
            with_repair(
                attachments.controller.lifecycle,
                self._network,
                lambda: attachments.engine.ensure(self.kernel, self.record, fresh),
            )
        except AddressTaken:
            self.plan = before
            return False
        return True

    def _write_shared(self, draft: Draft) -> Plan:
        may_reclaim = True
        for _ in range(_ATTEMPTS):
            try:
                return self._write(draft)
            except _Unshared as missing:
                made = self._attachments.share(self.key.network, missing.wanted)
                self.made_network = self.made_network or made
            except (AddressTaken, PoolExhausted):
                if not (may_reclaim and self._attachments.reclaim(self.key.network)):
                    raise
                may_reclaim = False
        raise Conflict(f"network {self.key.network!r} keeps being changed by others; try again")

    def _write(self, draft: Draft) -> Plan:
        with self._attachments.store.write() as tx:
            network = tx.find_named(CniNetwork, self.key.network)
            self.shared = tx.objects(network.id) if network is not None else Plan()
            wanted = draft(tx)
            if network is None or not self._attachments.shares(network, self.shared, wanted):
                raise _Unshared(wanted)
            self._network = network.id
            done = set(self.plan.keys)
            fresh = Plan(*(item for item in wanted.own if item.key not in done))
            if not self._is_written:
                _refuse_taken_ports(tx, wanted.ports)
            fresh = self._attachments.engine.observed(tx, self.kernel, self.record, fresh)
            if not self._is_written:
                container, ifname, plugin = self.key[1:]
                attachment = CniAttachment(
                    id=self.record,
                    network=network.id,
                    container=container,
                    ifname=ifname,
                    plugin=plugin,
                    netns=self.netns,
                    created=time.time(),
                    sandbox=self.sandbox,
                    endpoint=self.endpoint,
                )
                tx.insert(attachment, name=self.key.name, network=network.id, sandbox=self.netns.path)
            tx.write_objects(self.record, self.plan + fresh)
            if not self._is_written:
                tx.claim_ports(wanted.ports, self.record)
        self._is_written = True
        return fresh

    def revise(self, item: KernelObject) -> None:
        """Write *item* down in the place of the object with its key, which is what :attr:`plan` says of it already."""
        self.plan = Plan(*(item if present.key == item.key else present for present in self.plan))
        self._attachments.revise(self.record, item, Phase.CREATING)

    def finish(self, result: dict[str, Any]) -> None:
        """Say what ADD answers; the attachment is ready."""
        with self._attachments.store.write() as tx:
            row = tx.by_id(self.record)
            assert row is not None, "finish() comes after apply()"
            tx.replace(replace(row.value, result=result))
            tx.set_phase(self.record, Phase.READY)

    def undo(self) -> None:
        """Take back what was made; TeardownError when something would not go, which then stays written down."""
        if not self._is_written:
            return
        with self._attachments.store.read() as tx:
            row = tx.by_id(self.record)
        try:
            if row is not None:
                self._attachments.leave(row.value)
            self._attachments.engine.remove(self.kernel, [self.record], self.plan)
        except TeardownError:
            with self._attachments.store.write() as tx:
                tx.set_phase(self.record, Phase.REMOVING)
            raise
        with self._attachments.store.write() as tx:
            Lifecycle.forget(tx, tx.by_id(self.record))


class Attachments:
    """The attachments of one store; it serves one thread, as its controller does."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.store = controller.store
        self.engine = controller.engine
        self._lifecycle = controller.lifecycle

    # --- making ----------------------------------------------------------------------------------------------------

    @contextmanager
    def adding(self, key: AttachmentKey, netns: NetnsRef, fd: int | None = None) -> Iterator[Adding]:
        """Make an attachment in the block, by :meth:`Adding.apply` and :meth:`Adding.finish`; an error in it undoes all.

        *netns* has its identity; *fd*, where given, is a descriptor of it, and its path is not looked at. Raises
        AlreadyExists when the attachment is there. What a container that is gone left in its place goes first.
        """
        purpose = f"attaching container {key.container} to network {key.network}"
        with self._alone(key, purpose), self.controller.operation("cni add", key.name):
            self._clear_the_way(key, netns)
            with self.store.read() as tx:
                record = tx.new_link_id()
            with self._lifecycle.working_on([record], purpose), self.engine.kernel(record) as kernel:
                if fd is not None:
                    kernel.lend(netns, fd)
                adding = Adding(self, key, record, netns, kernel)
                try:
                    yield adding
                except NetlibError as error:
                    self._undo(adding, error)
                    raise

    @contextmanager
    def _alone(self, key: AttachmentKey, purpose: str) -> Iterator[None]:
        """Let ADD and DEL of one attachment wait for each other: a killed plugin's ADD may go on in netlibd when DEL comes."""
        with self.controller.locks.hold(f"attachment:{key.name}", purpose):
            yield

    def _undo(self, adding: Adding, error: NetlibError) -> None:
        failures: list[NetlibError] = []
        try:
            adding.undo()
            if adding.made_network:
                self._prune(adding.made_network)
        except TeardownError as failure:
            failures.extend(failure.failures)
        if failures:
            known = error.failures if isinstance(error, TeardownError) else (error,)
            raise TeardownError([*known, *failures]) from error

    def _clear_the_way(self, key: AttachmentKey, netns: NetnsRef) -> None:
        """Take down what a netns that was at this path before still holds, and what is left of this attachment."""
        with self.store.read() as tx:
            rows = [row for row in tx.attachments_in(netns.path) if row.value.netns.identity != netns.identity]
            same = tx.find_named(CniAttachment, key.name)
        if same is not None and same.value.netns.identity != netns.identity and not self.is_alive(same.value.netns):
            rows = [*(row for row in rows if row.id != same.id), same]
            same = None
        if rows:
            self._take_down(rows, f"clearing the way for container {key.container}")
        if same is not None:
            if same.phase is not Phase.READY:
                raise Conflict(f"{key.name} is being made or removed by somebody else, or would not go; see `netlib log`")
            raise AlreadyExists(f"container {key.container} has {key.ifname} in network {key.network} already; DEL it first")

    # --- what a network's attachments share ------------------------------------------------------------------------

    def shares(self, network: Row[CniNetwork], shared: Plan, wanted: Wanted) -> bool:
        """Whether all that is to be shared stands already, as far as is written down (*shared*), and nothing is to go."""
        if network.phase is not Phase.READY or not self._lifecycle.is_materialised(network):
            return False
        present = {item.key: item for item in shared}
        return all(_is_same(present.get(item.key), item) for item in wanted.shared) and not wanted.ousted & present.keys()

    def share(self, name: str, wanted: Wanted) -> str:
        """Make the network *name* where it is missing, and bring it to what is *wanted*; answer with its id if it is new."""
        with self.controller.locks.hold(f"cni-network:{name}", f"setting up network {name}"):
            with self.store.read() as tx:
                row = tx.find_named(CniNetwork, name)
            if row is not None and row.phase is not Phase.READY:  # a dead process left it
                self.controller.recover()
                with self.store.read() as tx:
                    row = tx.find_named(CniNetwork, name)
                if row is not None and row.phase is not Phase.READY:
                    raise Conflict(f"network {name!r} was to be removed, and something of it would not go; see `netlib log`")
            record = row.id if row is not None else new_id()
            with self._lifecycle.working_on([record], f"setting up network {name}"), self.engine.kernel(record) as kernel:
                if row is None:
                    network = CniNetwork(id=record, name=name, created=time.time())
                    self._lifecycle.create_cni_network(kernel, network, wanted.shared)
                    return record
                self._lifecycle.extend(kernel, record, wanted.shared, wanted.ousted)
        return ""

    def revise(self, record: str, item: KernelObject, phase: Phase = Phase.READY) -> bool:
        """Write down what became of an object of an attachment (by id), by its key; False where that is not in *phase*."""
        with self.store.write() as tx:
            row = tx.by_id(record)
            if row is None or row.phase is not phase:
                return False
            tx.write_objects(record, [item if present.key == item.key else present for present in tx.objects(record)])
        return True

    # --- taking away -----------------------------------------------------------------------------------------------

    def delete(self, key: AttachmentKey) -> CniAttachment | None:
        """Take down one attachment; answer with what it was, None when there is none.

        Raises TeardownError when something would not go; it stays written down, and the next call tries again.
        """
        purpose = f"detaching container {key.container} from network {key.network}"
        with self._alone(key, purpose):
            with self.store.read() as tx:
                row = tx.find_named(CniAttachment, key.name)
            if row is None:
                return None
            with self.controller.operation("cni del", key.name):
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
        """Take down the attachments of *network* whose netns is gone: their runtime died, or never came back for them."""
        with self.store.read() as tx:
            row = tx.find_named(CniNetwork, network)
            present = tx.attachments_of(row.id) if row is not None else []
        rows = [row for row in present if row.phase is Phase.READY and not self.is_alive(row.value.netns)]
        return self._collect("cni reclaim", network, rows)

    def clear_ports(self, ports: Iterable[PortMapping]) -> None:
        """Take down the attachments that hold one of *ports* and whose netns is gone: nobody came to detach them."""
        with self.store.read() as tx:
            holders = {holder for port in ports if (holder := tx.port_holder(port)) is not None}
            rows = [row for row in map(tx.by_id, sorted(holders)) if row is not None and isinstance(row.value, CniAttachment)]
        dead = [row for row in rows if row.phase is Phase.READY and not self.is_alive(row.value.netns)]
        self._collect("cni reclaim", "published ports", dead)

    def _collect(self, verb: str, network: str, rows: Sequence[Row[CniAttachment]]) -> list[CniAttachment]:
        if rows:
            with self.controller.operation(verb, network):
                self._take_down(rows, f"clearing network {network}")
        return [row.value for row in rows]

    def _take_down(self, rows: Sequence[Row[CniAttachment]], purpose: str) -> None:
        """Take down attachments with what they joined; one TeardownError lists what would not go, after all else."""
        failures: list[NetlibError] = []
        left: list[str] = []
        for row in rows:
            try:
                self.leave(row.value)
                left.append(row.id)
            except TeardownError as error:
                failures.extend(error.failures)
        try:
            self.controller.take_down(_in_hundreds(left), purpose)
        except TeardownError as error:
            failures.extend(error.failures)
        if failures:
            raise TeardownError(failures)

    def leave(self, attachment: CniAttachment) -> None:
        """Take down what an attachment joined, its endpoint and perhaps its sandbox; a no-op when it joined nothing."""
        rows = self._lifecycle.joined(attachment)
        try:
            if any(isinstance(row.value, Sandbox) for row in rows):
                self.controller.remove_sandbox(attachment.sandbox)
            elif rows:
                self.controller.disconnect(rows[0].value.network, attachment.sandbox)
        except NotFound:  # somebody was quicker; or it would not go before
            if failures := self.controller.recover():
                raise TeardownError(failures) from None

    def prune(self) -> list[CniNetwork]:
        """Take down every CNI network without attachments; answer with them."""
        with self.controller.operation("cni prune", "networks without attachments"):
            with self.store.read() as tx:
                rows = tx.all(CniNetwork)
            return [row.value for row in rows if self._prune(row.id)]

    def remove_network(self, reference: str) -> CniNetwork:
        """Take down one CNI network; answer with it. Raises NotFound, and InUse that lists who is attached."""
        network = self.network(reference)
        with self.controller.operation("network rm", f"{PREFIX}{network.name}"):
            if not self._prune(network.id):
                users = ", ".join(sorted({item.container[:12] for item in self.attachments(network.name)}))
                raise InUse(
                    f"CNI network {network.name!r} has containers attached: {users or 'one by now'}; "
                    "their runtime detaches them, or `netlib cni prune --stale` those that are gone"
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
        """The objects that are written down for an attachment (with what it joined) or a CNI network, by id."""
        with self.store.read() as tx:
            row = tx.by_id(record)
            joined = [row.value.sandbox, row.value.endpoint] if row and isinstance(row.value, CniAttachment) else []
            return Plan(*(item for part in (record, *joined) if part for item in tx.objects(part)))

    def network(self, reference: str) -> CniNetwork:
        """The CNI network of that name, id or unambiguous beginning of an id, ``cni:`` before it or not; NotFound else."""
        with self.store.read() as tx:
            row = tx.find(CniNetwork, reference.removeprefix(PREFIX))
        if row is None or row.phase is not Phase.READY:
            raise NotFound(f"network {reference!r} not found; `netlib network ls` lists them")
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

    @staticmethod
    def is_alive(netns: NetnsRef) -> bool:
        """Whether the netns that an attachment was made in is still there."""
        try:
            with opened(netns):
                return True
        except ObjectMissing:
            return False


def _refuse_taken_ports(tx: Transaction, ports: Iterable[PortMapping]) -> None:
    """Raise PortTaken, naming the holder, when one of *ports* is somebody's already."""
    for port in ports:
        if (holder := tx.port_holder(port)) is not None:
            place = f"host port {port.host_port}/{port.protocol}" + (f" on {port.host_ip}" if port.host_ip else "")
            raise PortTaken(f"{place} is published by {port_publisher(tx, holder)}; choose another, or take that one down")


def _is_same(present: KernelObject | None, wanted: KernelObject) -> bool:
    """Whether an object that is written down is the wanted one, but for what was observed when it was made."""
    if present is None or type(present) is not type(wanted):
        return False
    return present == replace(wanted, **{field: getattr(present, field) for field in wanted.observations})


def _in_hundreds(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), 100):
        yield ids[start : start + 100]
