"""One CNI attachment being made: drafted in a transaction, written down, applied, and undone when its plugin fails."""

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


class PendingAttachment:
    """One attachment being made: every step is written down before it is applied."""

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
        self.plan = Plan()  # what was applied so far
        self.shared = Plan()  # what its network has, as of the draft's transaction
        self.made_network = ""  # id, when this attachment is the first of its network
        self.sandbox = self.endpoint = ""  # ids, set before apply() where it is an endpoint of a network of ours
        self._attachments = attachments
        self._finish = finish
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
        network = self.key.network
        raise AddressTaken(f"addresses of network {network!r} keep being taken by others; try again", network=network)

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

    def ask_world(self, driver: Prepares, asked: Struct, keep: Callable[[Facts], KernelObject]) -> Facts:
        """What *driver* finds out; whatever it notes meanwhile is written down as the object that *keep* makes of it.

        The removal of that object is what gives back what the driver took.
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
            self._finish(tx)

    def undo(self) -> None:
        """Take back what was made; TeardownError when something would not go, which then stays written down."""
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
    """Raise PortTaken, naming the holder, when one of *ports* is somebody's already."""
    for port in ports:
        if (holder := tx.port_holder(port)) is not None:
            place = f"host port {port.host_port}/{port.protocol}" + (f" on {port.host_ip}" if port.host_ip else "")
            name = port_publisher(tx, holder)
            text = f"{place} is published by {name}; choose another, or take that one down"
            raise PortTaken(text, holder=name.strip("'"), **port_facts(port))
