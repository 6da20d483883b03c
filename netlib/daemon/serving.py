"""Publishing names and holding ports according to the records in the store.

One rule: everything is computed from the records that are ready, and the cost of a change depends on its size only. Only the
changed records are read, a zone is copied with a few names replaced, and a member's resolver gets a new view.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from msgspec.structs import replace

from netlib.core.sandbox_plan import Membership, is_served, resolver_seats
from netlib.daemon.gateways import Gateways
from netlib.daemon.ports import HeldPorts
from netlib.daemon.servants import ChangedRecords
from netlib.dns.server import DnsServer
from netlib.dns.zone import View, Zone, build_view, build_zone
from netlib.errors import NetlibError, StoreError
from netlib.model import Endpoint, IPAddress, Network, Phase, Sandbox
from netlib.store.records import Transaction
from netlib.store.sqlite import Store

__all__ = ["NetworkZone", "Serving"]

logger = logging.getLogger(__name__)

PortRecorder = Callable[[str, int], None]
"""Called with the id of a sandbox whose resolver had to take another port, and that port."""


class NetworkZone:
    """The members of one network, and the zone with their names."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.sandboxes: dict[str, str] = {}  # by endpoint id
        self.zone: Zone = build_zone(network, ())
        self._parts: dict[str, Zone] = {}  # the zone of each endpoint alone, by endpoint id
        self._owners: dict[str, dict[str, tuple[IPAddress, ...]]] = {}  # addresses of a name, by name and endpoint id

    def update(self, leaving: Iterable[str], joining: Iterable[tuple[Endpoint, Sandbox]]) -> None:
        """Remove the endpoints *leaving* (ids) and add those *joining*; :attr:`zone` is a new object afterwards."""
        touched: set[str] = set()
        pointers = dict(self.zone.pointers)
        for endpoint_id in leaving:
            part = self._parts.pop(endpoint_id)
            del self.sandboxes[endpoint_id]
            for name in part.names:
                del self._owners[name][endpoint_id]
            for name in part.pointers:
                pointers.pop(name, None)
            touched.update(part.names)
        for endpoint, sandbox in joining:
            part = self._parts[endpoint.id] = build_zone(self.network, [(endpoint, sandbox)])
            self.sandboxes[endpoint.id] = sandbox.id
            for name, addresses in part.names.items():
                self._owners.setdefault(name, {})[endpoint.id] = addresses
            pointers.update(part.pointers)
            touched.update(part.names)
        names = dict(self.zone.names)
        for name in touched:
            owners = self._owners[name]
            if owners:
                names[name] = tuple(address for addresses in owners.values() for address in addresses)
            else:
                del self._owners[name]
                names.pop(name, None)
        self.zone = replace(self.zone, names=names, pointers=pointers)


class _ReadySandbox(NamedTuple):
    """A sandbox whose record is ready, with its ready endpoints, sorted by ifname."""

    record: Sandbox
    endpoints: tuple[Endpoint, ...]
    networks: tuple[str, ...]  # network ids of the endpoints, in the same order


_Views = dict[tuple[tuple[str, ...], tuple[IPAddress, ...]], View]


class Serving:
    """The servant that publishes names and tells :class:`netlib.daemon.ports.HeldPorts` which ports to hold."""

    name = "names"

    def __init__(self, store: Store, dns: DnsServer, ports: HeldPorts, record_port: PortRecorder) -> None:
        self._store = store
        self._dns = dns
        self._gateways = Gateways(dns)
        self._ports = ports
        self._record_port = record_port
        self._lock = threading.Lock()
        self._sandboxes: dict[str, _ReadySandbox] = {}
        self._zones: dict[str, NetworkZone] = {}
        self._unserved: dict[str, NetlibError] = {}  # by sandbox: why its questions are not answered

    def start(self) -> None:
        """Serve all sandboxes of the store."""
        with self._store.read() as tx:
            sandboxes = [row.id for row in tx.all(Sandbox)]
        self.changed(ChangedRecords(sandboxes, ()))

    def changed(self, change: ChangedRecords) -> list[NetlibError]:
        """Read the changed records and serve them; a failure does not stop the rest, and all failures are returned."""
        failures: list[NetlibError] = []
        with self._lock:
            with self._store.read() as tx:
                renewed = [network for network in change.networks if self._renew(tx, network)]
                changed = {sandbox: self._read(tx, sandbox) for sandbox in change.sandboxes}
                touched = self._apply(tx, changed)
            zones = [self._zones[network] for network in {*renewed, *touched}]
            views: _Views = {}
            moved = self._serve(changed, views, failures)
            for sandbox in {sandbox for zone in zones for sandbox in zone.sandboxes.values()} - changed.keys():
                view = self._view(self._sandboxes[sandbox], views)
                self._dns.publish(sandbox, view)
                self._gateways.publish(sandbox, view)
            for zone in zones:
                if not zone.sandboxes:
                    del self._zones[zone.network.id]
        for sandbox, port in moved:
            try:
                self._record_port(sandbox, port)
            except NetlibError as error:
                failures.append(error)
        for failure in failures:
            logger.warning("%s", failure)
        return failures

    def health(self) -> str | None:
        """Return a sentence with the number of sandboxes without a resolver and the reason of the first one, or None."""
        unserved = list(self._unserved.values())
        count = f"{len(unserved)} sandbox{'' if len(unserved) == 1 else 'es'}"
        return f"names are not answered in {count}: {unserved[0]}" if unserved else None

    def reconcile(self, *, store_changed: bool) -> None:
        """Try again to bind port 53 of gateways where another process had it; find and serve what has changed in the store."""
        with self._lock:
            self._gateways.retry()
        if store_changed:
            self._find_changed()

    def _find_changed(self) -> None:
        """Find and serve the records that changed without a call of :meth:`changed`, as when their writer was killed."""
        with self._lock, self._store.read() as tx:
            ready = tx.ready_ids()
            sandboxes = {record for record, kind, _ in ready if kind == "sandbox"}
            present = {record: sandbox or record for record, _, sandbox in ready if (sandbox or record) in sandboxes}
            known = {
                record: sandbox
                for sandbox, served in self._sandboxes.items()
                for record in (sandbox, *(endpoint.id for endpoint in served.endpoints))
            }
        differing = present.keys() ^ known.keys()
        if differing:
            both = {**present, **known}
            self.changed(ChangedRecords({both[record] for record in differing}, ()))

    def stop(self) -> None:
        """Answer no more queries, and delete the firewall table that tells guests of gateways apart."""
        with self._lock:
            self._gateways.close()
        self._dns.close()

    # --- from the store --------------------------------------------------------------------------------------------

    def _read(self, tx: Transaction, sandbox: str) -> _ReadySandbox | None:
        row = tx.by_id(sandbox)
        if row is None or row.phase is not Phase.READY or not isinstance(row.value, Sandbox):
            return None
        endpoints = [item.value for item in tx.endpoints_of_sandbox(sandbox) if item.phase is Phase.READY]
        endpoints.sort(key=lambda endpoint: endpoint.ifname)
        return _ReadySandbox(row.value, tuple(endpoints), tuple(endpoint.network for endpoint in endpoints))

    @staticmethod
    def _network(tx: Transaction, network: str) -> Network:
        row = tx.by_id(network)
        if row is None:  # a network with ready endpoints is not deleted, so the store is damaged
            raise StoreError(f"network {network} has endpoints but no record; `netlib system reset` begins anew")
        value: Network = row.value
        return value

    def _renew(self, tx: Transaction, network: str) -> bool:
        """Build a network's zone again when its record has changed; False when it has not or when the network has no zone."""
        zone, row = self._zones.get(network), tx.by_id(network)
        if zone is None or row is None or row.value == zone.network:
            return False
        renewed = NetworkZone(row.value)
        sandboxes = [self._sandboxes[sandbox] for sandbox in zone.sandboxes.values()]
        members = ((endpoint, sandbox.record) for sandbox in sandboxes for endpoint in sandbox.endpoints)
        renewed.update((), [member for member in members if member[0].network == network])
        self._zones[network] = renewed
        return True

    def _apply(self, tx: Transaction, changed: Mapping[str, _ReadySandbox | None]) -> set[str]:
        """Update zones and held ports for the *changed* sandboxes (None: gone); return the ids of the networks that changed."""
        leaving: dict[str, list[str]] = {}
        joining: dict[str, list[tuple[Endpoint, Sandbox]]] = {}
        ports: list[Endpoint] = []
        for sandbox, new in changed.items():
            old = self._sandboxes.get(sandbox)
            for endpoint in _changed_endpoints(old, new):
                leaving.setdefault(endpoint.network, []).append(endpoint.id)
                self._ports.release(endpoint.id)  # all are released before any is held: a port may move to another endpoint
            for endpoint in _changed_endpoints(new, old):
                if new is not None:
                    joining.setdefault(endpoint.network, []).append((endpoint, new.record))
                    if endpoint.ports:
                        ports.append(endpoint)
            if new is None:
                self._sandboxes.pop(sandbox, None)
            else:
                self._sandboxes[sandbox] = new
        for endpoint in ports:
            self._ports.hold(endpoint)
        for network in {*leaving, *joining}:
            zone = self._zones.get(network)
            if zone is None:
                zone = self._zones[network] = NetworkZone(self._network(tx, network))
            zone.update(leaving.get(network, ()), joining.get(network, ()))
        return {*leaving, *joining}

    # --- to the resolver -------------------------------------------------------------------------------------------

    def _serve(self, sandboxes: Iterable[str], views: _Views, failures: list[NetlibError]) -> list[tuple[str, int]]:
        """Open, update or close the resolver of each sandbox; return the ids and ports of those not at their recorded port."""
        moved = []
        for sandbox in sandboxes:
            served = self._sandboxes.get(sandbox)
            self._unserved.pop(sandbox, None)
            try:
                if served is None or not is_served(self._memberships(served)):
                    self._dns.withdraw(sandbox)
                    self._gateways.unseat(sandbox)
                    continue
                view = self._view(served, views)
                if not served.record.owned:
                    self._gateways.seat(sandbox, resolver_seats(served.record, self._memberships(served)), view)
                    continue
                port = self._dns.serve(sandbox, served.record.netns, served.record.dns_port, view=view)
            except NetlibError as error:
                failures.append(error)
                self._unserved[sandbox] = error
                continue
            if port != served.record.dns_port:
                moved.append((sandbox, port))
                self._sandboxes[sandbox] = served._replace(record=replace(served.record, dns_port=port))
        return moved

    def _view(self, sandbox: _ReadySandbox, views: _Views) -> View:
        """Return the names that *sandbox* sees.

        Most members of a network see the same names. So that one change builds their view once, it is kept in *views*.
        """
        key = (sandbox.networks, sandbox.record.resolver.servers)
        has_links = any(endpoint.links for endpoint in sandbox.endpoints)
        view = None if has_links else views.get(key)
        if view is None:
            zones = [(self._zones[endpoint.network].zone, endpoint) for endpoint in sandbox.endpoints]
            view = build_view(zones, sandbox.record.resolver)
            if not has_links:
                views[key] = view
        return view

    def _memberships(self, sandbox: _ReadySandbox) -> list[Membership]:
        return [(self._zones[endpoint.network].network, endpoint) for endpoint in sandbox.endpoints]


def _changed_endpoints(sandbox: _ReadySandbox | None, other: _ReadySandbox | None) -> Iterator[Endpoint]:
    """Yield the endpoints of *sandbox* that *other* lacks or has with other values; all when the sandbox's record differs."""
    if sandbox is None:
        return
    same_names = other is not None and replace(other.record, dns_port=sandbox.record.dns_port) == sandbox.record
    for endpoint in sandbox.endpoints:
        if other is None or not same_names or endpoint not in other.endpoints:
            yield endpoint
