"""Making one CNI attachment: its plugin drafts objects, the store gets them first, then the kernel; a failure undoes all.

1. The draft runs in a transaction. Where the network lacks shared objects, the transaction is rolled back, the network is
   extended, and the draft runs again.
2. The same transaction writes the record and its objects.
3. The objects are applied. Where another program took an address meanwhile, the draft runs again.
"""

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from netlib.core.endpoint_record import port_publisher
from netlib.core.lifecycle import Lifecycle
from netlib.core.repair import with_repair
from netlib.errors import AddressTaken, Conflict, PoolExhausted, PortTaken, TeardownError
from netlib.facts import Facts, Prepares, World
from netlib.kernel.handle import Kernel
from netlib.kernel.sockets import port_facts
from netlib.model import CniAttachment, CniNetwork, NetnsRef, Phase, PortMapping
from netlib.plan import KernelObject, Key, Plan
from netlib.store.records import Transaction

if TYPE_CHECKING:
    from netlib.core.attachments import Attachments

__all__ = ["AttachmentKey", "PendingAttachment", "Wanted"]

_ATTEMPTS = 5  # at extending the network, where other attachments keep changing its shared objects
_CHOICES = 100  # of an address, where other programs keep taking addresses from the same files


class AttachmentKey(NamedTuple):
    """The key of an attachment: the name of its network, the container's id, the interface, the plugin's type."""

    network: str
    container: str
    ifname: str
    plugin: str

    @property
    def name(self) -> str:
        """The name of the attachment's record; no part can contain a slash."""
        return "/".join(self)


class Wanted(NamedTuple):
    """The objects that an attachment needs: *own* ones, and *shared* ones, which belong to its network.

    *replaced* are the keys of those objects of the network that must be removed, since *shared* has others in their place.
    *ports* are the host ports that nobody else may publish as long as the attachment exists.
    """

    own: Plan
    shared: Plan = Plan()
    replaced: frozenset[Key] = frozenset()
    ports: tuple[PortMapping, ...] = ()


class _NeedsShared(Exception):
    """Rolls back the transaction of a draft whose network lacks shared objects: extend the network first, then draft again."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted


Draft = Callable[[Transaction], Wanted]


class PendingAttachment:
    """One CNI attachment in phase ``creating``: every step is in the store before it is in the kernel."""

    def __init__(
        self,
        attachments: "Attachments",
        key: AttachmentKey,
        record: str,
        netns: NetnsRef,
        kernel: Kernel,
        finish: Callable[[Transaction], None],
    ) -> None:
        self.key = key
        self.record = record
        self.netns = netns
        self.kernel = kernel
        self.plan = Plan()  # the objects applied so far
        self.shared = Plan()  # the objects of its network, as of the draft's transaction
        self.made_network = ""  # the network's id, where this attachment was the first and made it
        self.sandbox = self.endpoint = ""  # ids, set before apply() where the attachment joins a network of ours
        self._attachments = attachments
        self._finish = finish
        self._is_written = False
        self._network = ""  # id

    @property
    def store_tag(self) -> str:
        """The tag of this host's store, which other stores do not have."""
        return self._attachments.engine.store_tag

    def apply(self, draft: Draft) -> Plan:
        """Write and apply those objects of *draft* that this attachment does not have yet; return them.

        *draft* runs in the transaction that writes its objects. It runs again after the network was extended, after the
        addresses of containers whose netns is gone were reclaimed, and after another program took the address that it chose.

        Raises AddressTaken, PoolExhausted, PortTaken, Conflict, KernelError.
        """
        for _ in range(_CHOICES):
            fresh = self._write_shared(draft)
            if self._make(fresh):
                return fresh
        network = self.key.network
        raise AddressTaken(f"addresses of network {network!r} keep being taken by others; try again", network=network)

    def _make(self, fresh: Plan) -> bool:
        """Apply the objects *fresh*; return False, with none of them left, where an address of theirs is taken.

        The address is then that of a program without records in our store: the draft has found no lease of it.
        """
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
        """Write the objects of *draft*, and before that make or extend the network, or reclaim addresses, where needed."""
        may_reclaim = True
        for _ in range(_ATTEMPTS):
            try:
                return self._write(draft)
            except _NeedsShared as missing:
                made = self._attachments.share(self.key.network, missing.wanted)
                self.made_network = self.made_network or made
            except (AddressTaken, PoolExhausted):
                if not (may_reclaim and self._attachments.reclaim(self.key.network)):
                    raise
                may_reclaim = False
        raise Conflict(f"network {self.key.network!r} keeps being changed by others; try again")

    def _write(self, draft: Draft) -> Plan:
        """Write the record, if it is not written, and the new objects of *draft*, in one transaction; return those objects.

        Raises _NeedsShared where the network does not exist or lacks shared objects of the draft.
        """
        with self._attachments.store.write() as tx:
            network = tx.find_named(CniNetwork, self.key.network)
            self.shared = tx.objects(network.id) if network is not None else Plan()
            wanted = draft(tx)
            if network is None or not self._attachments.shares(network, self.shared, wanted):
                raise _NeedsShared(wanted)
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

    def ask_world(self, driver: Prepares, asked: Struct, keep: Callable[[Facts], KernelObject]) -> Facts:
        """Ask *driver* for the facts that *asked* needs, and return them.

        Whenever the driver notes facts, *keep* makes an object of them, which is written into the attachment's record. The
        removal of that object gives back what the driver took (a DHCP lease).
        """

        def note(facts: Facts) -> None:
            item = keep(facts)
            if item.key in self.plan.keys:
                self._revise(item)
            else:
                self.apply(lambda _: Wanted(Plan(item)))

        facts = driver.prepare(asked, World(self.kernel, note))
        note(facts)
        return facts

    def _revise(self, item: KernelObject) -> None:
        """Replace the object with the key of *item* by *item*, in :attr:`plan` and in the store."""
        self.plan = Plan(*(item if present.key == item.key else present for present in self.plan))
        self._attachments.revise(self.record, item, Phase.CREATING)

    def finish(self, result: dict[str, Any]) -> None:
        """Write *result*, ADD's answer, into the record, and set phase ``ready``; :meth:`apply` has been called before."""
        with self._attachments.store.write() as tx:
            row = tx.by_id(self.record)
            assert row is not None, "finish() comes after apply()"
            tx.replace(replace(row.value, result=result))
            tx.set_phase(self.record, Phase.READY)
            self._finish(tx)

    def undo(self) -> None:
        """Remove the attachment's objects, what it joined, and its record; a no-op where nothing was written.

        Raises TeardownError for what could not be removed; the record then stays, in phase ``removing``.
        """
        if not self._is_written:
            return
        with self._attachments.store.read() as tx:
            row = tx.by_id(self.record)
        try:
            if row is not None:
                self._attachments.leave(row.value, keep_ports=False)
            self._attachments.engine.remove(self.kernel, [self.record], self.plan)
        except TeardownError:
            with self._attachments.store.write() as tx:
                tx.set_phase(self.record, Phase.REMOVING)
            raise
        with self._attachments.store.write() as tx:
            Lifecycle.forget(tx, tx.by_id(self.record))


def _refuse_taken_ports(tx: Transaction, ports: Iterable[PortMapping]) -> None:
    """Raise PortTaken, with the holder's name, where a record has published one of *ports*."""
    for port in ports:
        if (holder := tx.port_holder(port)) is not None:
            publisher = port_publisher(tx, holder)
            text = f"host {port.place} is published by {publisher}; choose another, or take that one down"
            raise PortTaken(text, holder=publisher.name, holder_kind=publisher.kind, **port_facts(port))
