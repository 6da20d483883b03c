"""The verbs of the Container Network Model: networks, sandboxes and endpoints made, joined, looked at and removed.

A controller serves one thread. Every verb checks the whole request first, then works through :mod:`netlib.core.lifecycle`; it
leaves the kernel as asked or as it was. Verbs that only look change nothing in the kernel.
"""

import os
import random
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from msgspec.structs import asdict

from netlib.config import Config
from netlib.core import recovery
from netlib.core.engine import Engine, Observer
from netlib.core.host import Host
from netlib.core.lifecycle import Lifecycle
from netlib.core.repair import leave_with_repair, with_repair
from netlib.core.requests import (
    ConnectRequest,
    NetworkRequest,
    SandboxRequest,
    checked,
    endpoint_record,
    network_record,
    surroundings,
)
from netlib.core.sandboxes import host_resolver, inside_plan, is_served, sandbox_plan
from netlib.core.upgrade import bring_up_to_date
from netlib.dns.resolvconf import check_resolver
from netlib.driverapi import Addressless
from netlib.errors import AlreadyExists, ConfigError, InUse, NetlibError, NotFound, StoreError, Stuck, TeardownError
from netlib.kernel.netns import current_identity, entered, identity_of_path, netns_dir
from netlib.kernel.scarcity import exhaustion
from netlib.kernel.sysctl import asked_sysctls
from netlib.model import CniAttachment, CniNetwork, Endpoint, NetnsRef, Network, Phase, ResolverConfig, Sandbox
from netlib.names import check_domainname, check_hostname, check_sandbox_name, new_id
from netlib.plan import KernelObject, Plan
from netlib.registry import driver
from netlib.store.records import JournalEntry, Row, Transaction
from netlib.wire.client import DaemonWatcher

_AT_ONCE = 200  # how many records are removed together
DNS_PORTS = range(61000, 65536)  # above the ephemeral ports, so that nothing in the sandbox takes it by chance


class Watcher(Protocol):
    """Who serves what outlives a call (names, held ports); netlibd, unless the caller brings another."""

    def changed(self, *, sandboxes: Collection[str], networks: Collection[str], needed: bool) -> None:
        """Read these records (ids) again; *needed* says that somebody must serve them from now on."""
        ...


class Unwatched:
    """No server at all: links, addresses, ports and firewall work, names are not answered and ports are not held."""

    def changed(self, *, sandboxes: Collection[str], networks: Collection[str], needed: bool) -> None:
        """Nobody to tell."""


class Controller:
    """All verbs over one store.

    It is a context manager::

    with netlib.Controller() as controller:
        controller.create_network("web")
        box = controller.create_sandbox("box")
        controller.connect("web", "box")
    """

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
        self._trail: list[str] = []
        self._observer = observer
        self.host = Host(self.config, despite_loss=despite_loss)
        self.store = self.host.store
        self.locks = self.host.locks
        self.engine = Engine(self.store, self.locks, self.host.tag, self._observe)
        self.lifecycle = Lifecycle(self.engine, self._plan_sandbox)
        self._own_watcher: DaemonWatcher | None = None
        if watcher is None:
            watcher = self._own_watcher = DaemonWatcher(self.config)
        self.watcher = watcher
        self.recover()
        if self.host.lost is None:
            bring_up_to_date(self.lifecycle)
            self.host.prepare()

    def close(self) -> None:
        """Close the store's connection of this thread, and the one to netlibd."""
        if self._own_watcher is not None:
            self._own_watcher.close()
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def recover(self) -> list[NetlibError]:
        """Finish or undo what dead processes left; answer with what would not go. One indexed query when there is nothing."""
        return recovery.finish_in_flight(self.lifecycle) if self.host.lost is None else []

    # --- networks --------------------------------------------------------------------------------------------------

    def networks(self) -> list[Network]:
        """Every network that is ready, by name."""
        with self.store.read() as tx:
            return [row.value for row in tx.all(Network) if row.phase is Phase.READY]

    def network(self, reference: str) -> Network:
        """The network with that name, id or unambiguous beginning of an id; NotFound else."""
        with self.store.read() as tx:
            return self._network(tx, reference).value

    def create_network(self, name: str, *, driver: str = "bridge", **wanted: Any) -> Network:
        """Create a network; the keywords are the fields of :class:`netlib.core.requests.NetworkRequest`.

        Raises ConfigError, AlreadyExists, Conflict, PoolExhausted, KernelError; after any of them nothing is changed.
        """
        request = checked(NetworkRequest, {"name": name, "driver": driver, **wanted})
        network_id = new_id()
        with self.operation("network create", name), self.lifecycle.working_on([network_id], f"creating network {name}"):
            with self.engine.kernel(network_id) as kernel:
                around = surroundings(kernel, request)
                return self.lifecycle.create_network(
                    kernel, network_id, lambda tx: network_record(tx, network_id, time.time(), request, around)
                )

    def remove_network(self, reference: str) -> None:
        """Remove a network without endpoints; InUse lists who is in it."""
        self._finish_removal(Network, reference)
        network = self.network(reference)
        if network.predefined:
            raise ConfigError(f"network {network.name!r} is predefined and cannot be removed")
        with (
            self.operation("network rm", network.name),
            self.lifecycle.working_on([network.id], f"removing network {network.name}"),
        ):
            with self.store.write(clearing=True) as tx:
                row = self._network(tx, network.id)
                users = [self._sandbox_name(tx, item.value) for item in tx.endpoints_of_network(network.id)]
                if users:
                    raise InUse(
                        f"network {network.name!r} has active endpoints: {', '.join(sorted(users))}; "
                        "disconnect them by `netlib network disconnect`, or remove them"
                    )
                tx.set_phase(network.id, Phase.REMOVING)  # from here on nobody joins
            self.lifecycle.take_down([row])

    # --- sandboxes -------------------------------------------------------------------------------------------------

    def sandboxes(self) -> list[Sandbox]:
        """Every sandbox that is ready, by name."""
        with self.store.read() as tx:
            return [row.value for row in tx.all(Sandbox) if row.phase is Phase.READY]

    def sandbox(self, reference: str) -> Sandbox:
        """The sandbox with that name, id or unambiguous beginning of an id; NotFound else."""
        with self.store.read() as tx:
            return self._sandbox(tx, reference).value

    def create_sandbox(
        self,
        name: str,
        *,
        netns: str | os.PathLike[str] | None = None,
        hostname: str = "",
        domainname: str = "",
        resolver: ResolverConfig = ResolverConfig(),
        sandbox_id: str = "",
        sysctls: Mapping[str, str] | None = None,
        cni_container: str = "",
    ) -> Sandbox:
        """Create a sandbox: with a netns of its own (*netns* None), the host's (``""``), or that at a path.

        One of its own may be asked to have *sysctls* (names of ``net.*`` to values), those of its links as these come.
        Raises AlreadyExists when the name, or a netns of that name, is there, or the netns is a sandbox's already.
        """
        netns = os.fspath(netns) if isinstance(netns, os.PathLike) else netns
        wanted = {"name": name, "netns": netns, "hostname": hostname, "domainname": domainname, "sandbox_id": sandbox_id}
        more = {"resolver": resolver, "sysctls": sysctls or {}, "cni_container": cni_container}
        request = checked(SandboxRequest, {**wanted, **more})
        resolver = checked(ResolverConfig, asdict(request.resolver))
        check_sandbox_name(name)
        if hostname:
            check_hostname(hostname)
        if domainname:
            check_domainname(domainname)
        check_resolver(resolver)
        settings = asked_sysctls(request.sysctls)
        if settings and netns is not None:
            raise ConfigError(f"sysctls {', '.join(settings)} not allowed: the network namespace is not the sandbox's own")
        sandbox_id = sandbox_id or new_id()
        identity = identity_of_path(netns) if netns else ""
        if identity == current_identity():
            raise ConfigError(f"{netns} is the network namespace of the host itself; use the network host to share it")
        with (
            self.operation("sandbox create", name),
            self.lifecycle.working_on([sandbox_id], f"creating sandbox {name}"),
            self.engine.kernel(sandbox_id) as kernel,
        ):
            sandbox = Sandbox(
                id=sandbox_id,
                name=name,
                created=time.time(),
                netns=kernel.new_netns(str(netns_dir(self.config.run_dir) / name))
                if netns is None
                else NetnsRef(netns, identity),
                owned=netns is None,
                hostname=hostname or sandbox_id[:12],
                domainname=domainname,
                resolver=resolver,
                dns_port=random.choice(DNS_PORTS),
                files_dir=str(self.config.sandbox_dir / sandbox_id),
                sysctls=tuple(settings.items()),
                cni_container=cni_container,
            )
            return self.lifecycle.create_sandbox(kernel, sandbox, lambda tx: self._check_free(tx, sandbox))

    def remove_sandbox(self, reference: str) -> None:
        """Remove a sandbox with its endpoints, its files and, where it is ours, its netns."""
        self.remove_sandboxes([reference])

    def remove_sandboxes(self, references: Sequence[str]) -> None:
        """Remove many sandboxes at once: one firewall transaction and one link request for all of them."""
        if isinstance(references, str):
            raise ConfigError(f"references={references!r} must be a list or tuple of names; remove_sandbox removes one")
        with self.store.read() as tx:
            boxes = [self._sandbox(tx, reference) for reference in references]
        names = ", ".join(row.name for row in boxes)
        ids = [row.id for row in boxes]
        with self.operation("sandbox rm", names):
            self.take_down(_chunks(ids), f"removing {names}")
        self.watcher.changed(sandboxes=ids, networks=(), needed=False)

    # --- endpoints -------------------------------------------------------------------------------------------------

    def endpoints(self, *, network: str | None = None, sandbox: str | None = None) -> list[Endpoint]:
        """The endpoints of one network or of one sandbox, by whatever reference."""
        with self.store.read() as tx:
            if network is not None:
                rows = tx.endpoints_of_network(self._network(tx, network).id)
            elif sandbox is not None:
                rows = tx.endpoints_of_sandbox(self._sandbox(tx, sandbox).id)
            else:
                rows = tx.all(Endpoint)
            return [row.value for row in rows if row.phase is Phase.READY]

    def connect(self, network: str, sandbox: str, *, endpoint_id: str = "", **wanted: Any) -> Endpoint:
        """Join a sandbox to a network; the keywords are the fields of :class:`netlib.core.requests.ConnectRequest`.

        Raises AlreadyExists (it is in that network), ConfigError, AddressTaken, PortTaken, PoolExhausted, KernelError; after
        any of them nothing is changed.
        """
        request = checked(ConnectRequest, wanted)
        with self.store.read() as tx:
            home, box = self._network(tx, network), self._sandbox(tx, sandbox)
            endpoint_id = endpoint_id or tx.new_link_id()
        purpose = f"connecting {box.name} to {home.name}"
        with self.operation("network connect", f"{box.name} {home.name}"), self.engine.kernel(endpoint_id) as kernel:
            if not self.lifecycle.is_materialised(home):
                with self.store.rehearsal() as tx:  # a refused request must not make the network's link
                    self._draft_endpoint(tx, endpoint_id, home.id, box.id, request)
                self.lifecycle.materialise(kernel, home)

            def join() -> Endpoint:
                with self.lifecycle.working_on([box.id], purpose):
                    return self.lifecycle.create_endpoint(
                        kernel, endpoint_id, box.id, lambda tx: self._draft_endpoint(tx, endpoint_id, home.id, box.id, request)
                    )

            endpoint = with_repair(self.lifecycle, home.id, join)
        served = bool(endpoint.ports) or is_served([(home.value, endpoint)])
        try:
            self.watcher.changed(sandboxes=[box.id], networks=[home.id], needed=served)
        except NetlibError:  # nobody would answer its names or hold its ports: not what was asked
            self.disconnect(home.id, box.id)
            raise
        return endpoint

    def disconnect(self, network: str, sandbox: str, *, keep_ports: bool = False) -> None:
        """Take a sandbox out of a network; NotFound when it is not in it.

        The ports that it was connected with are closed, or, with *keep_ports*, published by another of its networks.
        """
        with self.store.read() as tx:
            home, box = self._network(tx, network), self._sandbox(tx, sandbox)
        purpose = f"disconnecting {box.name} from {home.name}"

        def leave() -> None:
            with self.lifecycle.working_on([box.id], purpose):
                with self.store.read() as tx:
                    rows = [row for row in tx.endpoints_of_sandbox(box.id) if row.value.network == home.id]
                if not rows:
                    raise NotFound(f"sandbox {box.name!r} is not connected to network {home.name!r}")
                self.lifecycle.take_down(rows, keep_ports=keep_ports)

        with self.operation("network disconnect", f"{box.name} {home.name}"):
            leave_with_repair(self.lifecycle, box.id, leave)
        self.watcher.changed(sandboxes=[box.id], networks=[home.id], needed=False)

    @contextmanager
    def inside(self, sandbox: str) -> Iterator[Sandbox]:
        """Be in a sandbox's netns during the block (this thread alone): sockets opened there belong to it."""
        box = self.sandbox(sandbox)
        with entered(box.netns):
            yield box

    # --- telling ---------------------------------------------------------------------------------------------------

    def plan_of(self, reference: str) -> Plan:
        """What a network or a sandbox (with its endpoints) is made of: as written down, or as it would be at first use."""
        with self.store.read() as tx:
            network = tx.find(Network, reference)
            if network is not None:
                return tx.objects(network.id) or driver(network.value.driver).network_plan(network.value)
            box = self._sandbox(tx, reference)
            parts = [tx.objects(row.id) for row in tx.endpoints_of_sandbox(box.id)]
            unique = {item.key: item for plan in (tx.objects(box.id), *parts) for item in plan}
            return Plan(*unique.values())

    def explain(self, reference: str) -> list[str]:
        """The commands that a person would type to make a network or a sandbox with its endpoints."""
        return [line for item in self.plan_of(reference) for line in item.commands()]

    def check(self, reference: str) -> list[tuple[str, str]]:
        """Compare a network or a sandbox (with its endpoints) with the kernel: (object, how it differs) for each drift."""
        with self.store.read() as tx:
            network = tx.find(Network, reference)
            box = None if network else self._sandbox(tx, reference)
            records = [network.id] if network else [box.id, *(row.id for row in tx.endpoints_of_sandbox(box.id))] if box else []
        return recovery.drift(self.lifecycle, records)

    def journal(self, limit: int = 50) -> list[JournalEntry]:
        """The last *limit* operations with their objects, oldest first."""
        with self.store.read() as tx:
            return tx.journal(limit)

    def reset(self) -> None:
        """Remove everything of ours from the kernel and the store, and put changed sysctls back."""
        with self.operation("system reset", "everything"):
            with self.store.write(clearing=True) as tx:  # from here on nobody joins a network that is there
                networks = [row.id for kind in (CniNetwork, Network) for row in tx.all(kind)]
                for network in networks:
                    tx.set_phase(network, Phase.REMOVING)
                boxes = [row.id for row in tx.all(Sandbox)]
                attachments = [row.id for row in tx.all(CniAttachment)]
            self.take_down([*_chunks(boxes), *_chunks(attachments), *_chunks(networks)], "resetting")
        self.watcher.changed(sandboxes=boxes, networks=[], needed=False)
        if self.host.lost is None:
            self.host.prepare()

    # --- inside ----------------------------------------------------------------------------------------------------

    @contextmanager
    def operation(self, verb: str, subject: str) -> Iterator[None]:
        """Recover first, then write one journal line with what was made and removed, and how it ended."""
        self.recover()
        self._trail.clear()
        started, clock = time.time(), time.perf_counter()
        outcome = "ok"
        try:
            yield
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
            raise
        finally:
            entry = JournalEntry(started, verb, subject, outcome, time.perf_counter() - clock, list(self._trail))
            # What was done is done, also where no line fits on the disk, or a process that is stopped keeps the store locked.
            with suppress(StoreError, Stuck), self.store.write() as tx:
                tx.log(entry)

    @contextmanager
    def undoing_on_scarcity(self) -> Iterator[None]:
        """Undo at once, as the next command would, what the block leaves in flight where the host has run out of something."""
        try:
            yield
        except Exception as error:
            if exhaustion(error) is not None:
                self.recover()
            raise

    def _observe(self, moment: str, item: KernelObject) -> None:
        if moment in ("ensured", "removed"):
            self._trail.append(f"{'+' if moment == 'ensured' else '-'} {item.key}")
        if self._observer is not None:
            self._observer(moment, item)

    def take_down(self, chunks: Iterable[Sequence[str]], purpose: str) -> None:
        """Take down records (ids) with what is in them, chunk by chunk: each lock is an open file."""
        failures: list[NetlibError] = []
        for ids in chunks:
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

    def _finish_removal(self, kind: type[Any], reference: str) -> None:
        """Try again to remove what would not go before; TeardownError says what still does not."""
        with self.store.read() as tx:
            row = tx.find(kind, reference)
        if row is not None and row.phase is not Phase.READY:
            failures = self.recover()
            if failures:
                raise TeardownError(failures)

    def _network(self, tx: Transaction, reference: str) -> Row[Network]:
        row = tx.find(Network, reference)
        if row is None and tx.find(CniNetwork, reference) is not None:
            raise NotFound(f"network {reference!r} is one of CNI, which a container joins by its runtime; create one of netlib")
        if row is None or row.phase is not Phase.READY:
            raise NotFound(f"network {reference!r} not found; `netlib network ls` lists them")
        return row

    def _sandbox(self, tx: Transaction, reference: str) -> Row[Sandbox]:
        row = tx.find(Sandbox, reference)
        if row is None or row.phase is not Phase.READY:
            raise NotFound(f"container {reference!r} not found; `netlib ps -a` lists them")
        return row

    @staticmethod
    def _sandbox_name(tx: Transaction, endpoint: Endpoint) -> str:
        row = tx.by_id(endpoint.sandbox)
        return row.name if row else endpoint.sandbox[:12]

    @staticmethod
    def _check_free(tx: Transaction, sandbox: Sandbox) -> None:
        taken = tx.find(Sandbox, sandbox.name)
        if taken is not None and taken.name == sandbox.name:
            raise AlreadyExists(
                f"the name {sandbox.name!r} is in use by container {taken.id[:12]}; choose another, or remove that one"
            )
        if sandbox.owned and Path(sandbox.netns.path).exists():
            raise AlreadyExists(
                f"a network namespace {sandbox.name!r} that is not ours exists; choose another name, or `ip netns del` it"
            )
        other = None if sandbox.owned or sandbox.netns.is_host else tx.sandbox_in(sandbox.netns.identity)
        if other is not None:
            raise AlreadyExists(
                f"the network namespace at {sandbox.netns.path} is that of container {other.name!r}; use that one"
            )

    def _plan_sandbox(self, tx: Transaction, sandbox: Sandbox) -> Plan:
        return sandbox_plan(sandbox, tx.memberships(sandbox.id), host_resolver())

    def _draft_endpoint(
        self, tx: Transaction, endpoint_id: str, network_id: str, sandbox_id: str, request: ConnectRequest
    ) -> tuple[Endpoint, Plan]:
        network, box = self._network(tx, network_id).value, self._sandbox(tx, sandbox_id).value
        same = [row for row in tx.endpoints_of_sandbox(box.id) if row.value.network == network.id]
        if any(row.phase is Phase.REMOVING for row in same):
            raise InUse(f"{box.name!r} still leaves network {network.name!r}: something of it would not go; see `netlib log`")
        if same:
            raise AlreadyExists(f"{box.name!r} is already connected to network {network.name!r}")
        known = driver(network.driver)
        addressless = known if isinstance(known, Addressless) else None
        host_wanted = addressless is not None and addressless.sandbox_netns() == ""
        if host_wanted != box.netns.is_host:
            raise ConfigError(
                f"{box.name!r} {'shares the netns of the host' if box.netns.is_host else 'has a netns of its own'}, "
                f"so it cannot join network {network.name!r} ({network.driver}); create it anew on that network"
            )
        endpoint = endpoint_record(tx, endpoint_id, time.time(), network, box, request, linked=addressless is None)
        plan = known.join_plan(network, endpoint, box)
        return endpoint, plan if addressless else plan + inside_plan(endpoint, box.netns)


def _chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), _AT_ONCE):
        yield ids[start : start + _AT_ONCE]
