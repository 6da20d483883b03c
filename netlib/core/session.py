"""A session: one store, opened by one thread, with the locks, the engine and the journal that every verb uses.

A session finishes what crashes left, brackets operations for the journal, finds records for people's references, and tells the
watcher what changed. It serves the thread that opened it, until it is closed.
"""

import threading
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

from msgspec import Struct

from netlib.config import Config
from netlib.core import recovery
from netlib.core.engine import Engine, Observer
from netlib.core.host import Host
from netlib.core.lifecycle import Lifecycle
from netlib.core.phases import Action, Found, is_there, what_happens
from netlib.core.predefined import prepare_predefined
from netlib.core.sandbox_plan import host_resolver, sandbox_plan
from netlib.core.upgrade import bring_up_to_date
from netlib.errors import ConfigError, HostExhausted, NetlibError, NotFound, StoreError, Stuck, TeardownError
from netlib.kernel.scarcity import exhaustion
from netlib.model import CniNetwork, Event, Network, Sandbox
from netlib.plan import Plan
from netlib.settings import Settings
from netlib.store.locks import Locks
from netlib.store.records import JournalEntry, Row, Transaction
from netlib.store.sqlite import Store
from netlib.wire.client import DaemonWatcher
from netlib.wire.notices import notice

__all__ = [
    "ReportsHealth",
    "Session",
    "Unwatched",
    "Watcher",
    "chunks",
    "no_container",
    "no_network",
    "no_sandbox",
    "reference_of",
]

_R = TypeVar("_R", bound=Struct)

_CLOSED = 0  # no thread has this number
_MISSED = "settings told"  # the key in the store's table ``meta`` with the settings that a notice has named
_AT_ONCE = 200  # how many records are removed together: each lock is an open file


class Watcher(Protocol):
    """The server of names and held ports, which outlive a call: netlibd, unless the caller passes another watcher."""

    def changed(self, *, sandboxes: Collection[str], networks: Collection[str], needed: bool) -> None:
        """Read these records (ids) again; *needed* says that somebody must serve them from now on."""
        ...


@runtime_checkable
class ReportsHealth(Protocol):
    """A watcher that knows how its servers are."""

    def health(self) -> dict[str, str]:
        """Return each server's health by its name: a sentence on what is wrong, or "ok"."""
        ...


class Unwatched:
    """No server at all: links, addresses, ports and firewall work, names are not answered and ports are not held."""

    def changed(self, *, sandboxes: Collection[str], networks: Collection[str], needed: bool) -> None:
        """Do nothing: there is no server."""


class Operation:
    """A verb that is being performed, for the journal."""

    def __init__(self, verb: str, subject: str, events: tuple[Event, ...], trail: Sequence[str]) -> None:
        self._verb, self._subject, self._events, self._trail = verb, subject, events, trail
        self._started, self._clock = time.time(), time.perf_counter()
        self.is_logged = False

    def finish(self, tx: Transaction) -> None:
        """Write the journal's line in *tx*, with which the verb is done."""
        tx.log(self.entry(""))
        self.is_logged = True

    def entry(self, failure: str) -> JournalEntry:
        """The line: how the verb ended, and after how long."""
        seconds, trail = time.perf_counter() - self._clock, list(self._trail)
        events = () if failure else self._events
        return JournalEntry(self._started, self._verb, self._subject, failure or "ok", seconds, trail, events)


class Session:
    """A store, its locks and its engine, for the thread that opened it."""

    def __init__(
        self,
        config: Config | None = None,
        *,
        watcher: Watcher | None = None,
        observer: Observer | None = None,
        despite_loss: bool = False,
    ) -> None:
        """Open the store of *config* and finish what a crash left in it.

        *watcher* None means netlibd, started when it is needed. *observer* is told of every object that is made or removed.
        Raises NotPermitted without root, WrongHost when the store describes another netns. Raises StoreLost when the store is
        new or older than what it made; with *despite_loss* it is opened all the same, and nothing is finished or prepared.
        """
        self.config = config or Config.from_environment()
        self._thread = threading.get_ident()
        self.host = Host(self.config, despite_loss=despite_loss)
        self._store = self.host.store
        self.locks: Locks = self.host.locks
        self.entered_sandbox = ""  # the name of the one whose netns this thread has entered
        self.engine = Engine(self._store, self.locks, self.host.tag, observer)
        self.lifecycle = Lifecycle(self.engine, self._plan_sandbox)
        self._own_watcher: DaemonWatcher | None = None
        if watcher is None:
            watcher = self._own_watcher = DaemonWatcher(self.config)
        self.watcher = watcher
        self._finished: list[Row[Any]] = []  # removed by the last recovery: their removal had failed, or its process died
        self.former_bridge = ""  # why the network bridge still has its former settings, if it does
        self._told_missed: tuple[str, ...] = ()
        self.recover()
        if self.host.lost is None:
            bring_up_to_date(self.lifecycle)
        self.prepare_networks()

    @property
    def store(self) -> Store:
        """The store. ConfigError when this session is closed, or another thread's: each opens its own."""
        if self._thread != threading.get_ident():  # not by require_usable(): a connect asks for the store often
            raise self._unusable()
        return self._store

    def require_usable(self) -> None:
        """Raise ConfigError when this session is closed, or another thread's."""
        if self._thread != threading.get_ident():
            raise self._unusable()

    def _unusable(self) -> ConfigError:
        return ConfigError(
            "this Controller is closed; open another one"
            if self._thread == _CLOSED
            else "a Controller serves the thread that opened it, and this is another one; open one in each thread"
        )

    def close(self) -> None:
        """Close the store's connection of this thread, and the one to netlibd; to close it again is a no-op."""
        if self._thread == _CLOSED:
            return
        store = self.store
        self._thread = _CLOSED
        if self._own_watcher is not None:
            self._own_watcher.close()
        self.engine.close()
        store.close()

    def __enter__(self) -> Self:
        self.require_usable()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def recover(self) -> list[NetlibError]:
        """Finish or undo what dead processes left; return the errors of objects that could not be removed.

        One indexed query when there is nothing.
        """
        self._finished = []
        return recovery.finish_in_flight(self.lifecycle, self._finished) if self.host.lost is None else []

    # --- settings ----------------------------------------------------------------------------------------------------

    def follow_settings(self) -> None:
        """Look at ``daemon.json`` (one stat), and do what the opening of a session does where it has changed.

        Every verb begins with it. No error is raised: :attr:`Host.settings_fault` is met by verbs that need settings.
        """
        if self.host.settings_file.look() or self.former_bridge or self.host.unfollowed is not None:
            self.prepare_networks()

    def prepare_networks(self) -> None:
        """Write missing predefined networks, and replace ``bridge`` where its settings have changed; remember why it stays."""
        if self.host.lost is not None:
            return
        self.host.unfollowed, self.former_bridge = None, ""
        try:
            self.former_bridge = prepare_predefined(self.lifecycle, self.host)
        except NetlibError as error:
            self.host.unfollowed = error

    def require_settings(self) -> Settings:
        """Return the present settings, for a verb that a person asked for; raises :attr:`Host.settings_fault`.

        Keys without effect that ask for something else than what netlib does are worth one notice in the life of a store.
        """
        self.follow_settings()
        settings = self.host.settings
        if settings.missed != self._told_missed:
            self._tell_missed(settings.missed)
            self._told_missed = settings.missed
        return settings

    def _tell_missed(self, missed: tuple[str, ...]) -> None:
        known = ", ".join(missed)
        with self.store.read() as tx:
            was_told = (tx.meta(_MISSED) or "") == known
        if was_told:
            return
        with suppress(StoreError, HostExhausted, Stuck), self.store.write() as tx:
            tx.set_meta(_MISSED, known)
        if missed:
            have = "have" if len(missed) > 1 else "has"
            notice(f"{self.host.settings_file.path}: {known} {have} no effect; netlib does what it does without")

    def tell_fault(self) -> None:
        """Show a notice where the settings cannot be used now, after a verb that did without them."""
        if (fault := self.host.settings_fault) is not None:
            notice(f"{fault}; nothing is made until that is corrected")

    def tell_of_bridge(self, network: Network | None = None) -> None:
        """Show a notice where ``bridge`` still has its former settings, in a verb that uses or shows *network*, or all."""
        if self.former_bridge and (network is None or (network.predefined and network.name == "bridge")):
            notice(self.former_bridge)

    # --- operations ------------------------------------------------------------------------------------------------

    @contextmanager
    def looking(self) -> Iterator[Transaction]:
        """A read transaction of a verb, after the settings are followed, and what dead processes left in flight is finished."""
        self.follow_settings()
        with self.store.read() as tx:
            if not tx.in_flight():  # in the same transaction: another one costs 0.05 ms
                yield tx
                return
        self.recover()
        with self.store.read() as tx:
            yield tx

    @contextmanager
    def operation(self, verb: str, subject: str, *events: Event, is_recovered: bool = False) -> Iterator["Operation"]:
        """Follow the settings and recover first, then write one journal line with what was made and removed, and how it ended.

        *events* have happened when the block ends without an error, and are published with that line. The verb's last
        transaction may write the line (:meth:`Operation.finish`); else it is a transaction of its own. *is_recovered* says that
        the verb has begun by :meth:`looking`.
        """
        store = self.store
        if self.entered_sandbox:
            place = f"this thread is in the netns of {self.entered_sandbox!r}"
            raise ConfigError(f"{verb}: {place}; leave the block of inside() first")
        if not is_recovered:
            self.follow_settings()
            self.recover()
        self.engine.trail.clear()
        operation = Operation(verb, subject, events, self.engine.trail)
        outcome = ""
        try:
            yield operation
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
            raise
        finally:
            if outcome or not operation.is_logged:
                # The operation is finished even if its line cannot be written (full disk, no memory, locked store).
                with suppress(StoreError, HostExhausted, Stuck), store.write() as tx:
                    tx.log(operation.entry(outcome))
        self.tell_fault()

    def publish(self, verb: str, subject: str, *events: Event) -> None:
        """Write a journal line for what has just been done without objects of the kernel, with its *events*."""
        with suppress(StoreError, HostExhausted, Stuck), self.store.write() as tx:
            tx.log(JournalEntry(time.time(), verb, subject, "ok", 0.0, [], events))

    @contextmanager
    def undoing_on_scarcity(self) -> Iterator[None]:
        """Undo at once, as the next command would, what the block leaves in flight where the host has run out of something."""
        try:
            yield
        except Exception as error:
            if exhaustion(error) is not None:
                self.recover()
            raise

    def take_down(self, lists: Iterable[Sequence[str]], purpose: str) -> None:
        """Take down records (ids) with what is in them, list by list (:func:`chunks`)."""
        failures: list[NetlibError] = []
        for ids in lists:
            with self.lifecycle.working_on(ids, purpose):
                with self.store.read() as tx:
                    rows = [row for item in ids if (row := tx.by_id(item)) is not None]
                    users = [user for row in rows for user in tx.users_of(row.id)]
                try:
                    self.lifecycle.take_down([*users, *rows])
                except TeardownError as error:
                    failures.extend(error.failures)
        if failures:
            raise TeardownError(failures)

    def finish_removal(self, kind: type[_R], reference: str | Network) -> _R | None:
        """Try again to remove a record whose removal failed, and return the record that is removed now.

        None for a record whose removal was not begun before, which the caller then removes. A record is also returned when the
        recovery at this session's opening, or at its former verb, finished the removal. Each is returned once.

        TeardownError lists the objects that still cannot be removed.
        """
        with self.store.read() as tx:
            row = tx.find(kind, reference_of(reference))
        if row is None:
            return self._take_finished(kind, reference_of(reference))
        if what_happens(row.phase, Found.TO_GO) is not Action.RECOVER_FIRST:
            return None
        failures = self.recover()
        with self.store.read() as tx:
            is_left = tx.by_id(row.id) is not None
        if is_left and failures:
            raise TeardownError(failures, subject=f"{row.kind} {row.name!r}")
        return self._take_finished(kind, row.id)

    def _take_finished(self, kind: type[_R], reference: str) -> _R | None:
        """Return the removed record of that name or id, if the last recovery finished its removal, and forget it."""
        for row in self._finished:
            if isinstance(row.value, kind) and reference in (row.name, row.id):
                self._finished.remove(row)
                return row.value
        return None

    # --- what people refer to --------------------------------------------------------------------------------------

    def find_network(self, tx: Transaction, reference: str | Network) -> Row[Network]:
        """The ready network with that name, id or unambiguous beginning of an id; NotFound else."""
        reference = reference_of(reference)
        row = tx.find(Network, reference)
        if row is None and tx.find(CniNetwork, reference) is not None:
            raise NotFound(
                f"network {reference!r} is one of CNI, which a container joins by its runtime; create one of netlib",
                kind="network",
                reference=reference,
            )
        if row is None or not is_there(row.phase):
            raise no_network(reference)
        return row

    def find_sandbox(self, tx: Transaction, reference: str | Sandbox) -> Row[Sandbox]:
        """The ready sandbox with that name, id or unambiguous beginning of an id; NotFound else."""
        reference = reference_of(reference)
        row = tx.find(Sandbox, reference)
        if row is None or not is_there(row.phase):
            raise no_sandbox(reference)
        return row

    def find_subject(self, tx: Transaction, reference: str | Network | Sandbox) -> Row[Network] | Row[Sandbox]:
        """Return the network or sandbox called *reference*, by its name or the beginning of its id; NotFound if there is none.

        A whole name is preferred to the beginning of an id.
        """
        reference = reference_of(reference)
        if (network := tx.find_named(Network, reference)) is not None:
            return network
        if (box := tx.find_named(Sandbox, reference)) is not None:
            return box
        return tx.find(Network, reference) or self.find_sandbox(tx, reference)

    def _plan_sandbox(self, tx: Transaction, sandbox: Sandbox) -> Plan:
        return sandbox_plan(sandbox, tx.memberships(sandbox.id), host_resolver())


def membership_event(action: str, network: Network, sandbox: Sandbox) -> Event:
    """The event of a sandbox that joined a network, or left it."""
    about = {"name": network.name, "type": network.driver, "container": sandbox.id, "containerName": sandbox.name}
    return Event(type="network", action=action, id=network.id, attributes=about)


def chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """Split *ids* into lists as long as :meth:`Session.take_down` takes one at a time."""
    for start in range(0, len(ids), _AT_ONCE):
        yield ids[start : start + _AT_ONCE]


def reference_of(record: str | Network | Sandbox) -> str:
    """Return the id of a record, or the text unchanged: the store finds records by either."""
    return record.id if isinstance(record, Network | Sandbox) else record


def no_network(reference: str) -> NotFound:
    """The error for a network that does not exist."""
    return NotFound(f"network {reference!r} not found; `netlib network ls` lists them", kind="network", reference=reference)


def no_sandbox(reference: str) -> NotFound:
    """The error for a sandbox that does not exist."""
    return NotFound(f"sandbox {reference!r} not found; `Controller.sandboxes` lists them", kind="sandbox", reference=reference)


def no_container(reference: str) -> NotFound:
    """The error for a container that does not exist."""
    return NotFound(f"container {reference!r} not found; `netlib ps -a` lists them", kind="container", reference=reference)
