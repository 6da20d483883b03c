"""Names and held ports, kept in step with the store.

One rule: what is served follows from the records that are ready, and a change costs what it changes: only the records named
are read, a zone is the former one with a few names replaced, and a member is told by swapping its view.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from msgspec.structs import replace

from netlib.core.sandbox_plan import Membership, is_served, resolver_seats
from netlib.daemon.gateways import Gateways
from netlib.daemon.ports import HeldPorts
from netlib.daemon.servants import Change
from netlib.dns.server import DnsServer
from netlib.dns.zone import View, Zone, build_view, build_zone
from netlib.errors import NetlibError, StoreError
from netlib.model import Endpoint, IPAddress, Network, Phase, Sandbox
from netlib.store.records import Transaction
from netlib.store.sqlite import Store

__all__ = ["Serving", "ZoneKeeper"]

logger = logging.getLogger(__name__)

Mover = Callable[[str, int], None]
"""Told the id of a sandbox whose resolver had to take another port, and that port."""


class ZoneKeeper:
    """One network's members, and the zone that they make together."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.sandboxes: dict[str, str] = {}  # by endpoint's id
        self.zone: Zone = build_zone(network, ())
        self._parts: dict[str, Zone] = {}
        self._bearers: dict[str, dict[str, tuple[IPAddress, ...]]] = {}

    def update(self, leaving: Iterable[str], joining: Iterable[tuple[Endpoint, Sandbox]]) -> None:
        """Let endpoints (by id) leave and others join; the zone is a new one afterwards."""
        touched: set[str] = set()
        pointers = dict(self.zone.pointers)
        for endpoint_id in leaving:
            part = self._parts.pop(endpoint_id)
            del self.sandboxes[endpoint_id]
            for name in part.names:
                del self._bearers[name][endpoint_id]
            for name in part.pointers:
                pointers.pop(name, None)
            touched.update(part.names)
        for endpoint, sandbox in joining:
            part = self._parts[endpoint.id] = build_zone(self.network, [(endpoint, sandbox)])
            self.sandboxes[endpoint.id] = sandbox.id
            for name, addresses in part.names.items():
                self._bearers.setdefault(name, {})[endpoint.id] = addresses
            pointers.update(part.pointers)
            touched.update(part.names)
        names = dict(self.zone.names)
        for name in touched:
            bearers = self._bearers[name]
            if bearers:
                names[name] = tuple(address for addresses in bearers.values() for address in addresses)
            else:
                del self._bearers[name]
                names.pop(name, None)
        self.zone = replace(self.zone, names=names, pointers=pointers)


class _Box(NamedTuple):
    """A sandbox that is ready, with its endpoints that are, by ifname."""

    sandbox: Sandbox
    endpoints: tuple[Endpoint, ...]
    networks: tuple[str, ...]  # theirs


_Views = dict[tuple[tuple[str, ...], tuple[IPAddress, ...]], View]


class Serving:
    """The servant that publishes names, and says which ports are to be held."""

    name = "names"

    def __init__(self, store: Store, dns: DnsServer, ports: HeldPorts, moved: Mover) -> None:
        self._store = store
        self._dns = dns
        self._gateways = Gateways(dns)
        self._ports = ports
        self._moved = moved
        self._lock = threading.Lock()
        self._boxes: dict[str, _Box] = {}
        self._zones: dict[str, ZoneKeeper] = {}
        self._unserved: dict[str, NetlibError] = {}  # by sandbox: why its questions are not answered

    def start(self) -> None:
        """Serve everything that the store has."""
        with self._store.read() as tx:
            boxes = [row.id for row in tx.all(Sandbox)]
        self.changed(Change(boxes, ()))

    def changed(self, change: Change) -> list[NetlibError]:
        """Read these records again and serve what they say now; all of it is tried."""
        failures: list[NetlibError] = []
        with self._lock:
            with self._store.read() as tx:
                renewed = [network for network in change.networks if self._renew(tx, network)]
                boxes = {sandbox: self._read(tx, sandbox) for sandbox in change.sandboxes}
                touched = self._apply(tx, boxes)
            zones = [self._zones[network] for network in {*renewed, *touched}]
            views: _Views = {}
            moved = self._serve(boxes, views, failures)
            for sandbox in {sandbox for zone in zones for sandbox in zone.sandboxes.values()} - boxes.keys():
                view = self._view(self._boxes[sandbox], views)
                self._dns.publish(sandbox, view)
                self._gateways.publish(sandbox, view)
            for zone in zones:
                if not zone.sandboxes:
                    del self._zones[zone.network.id]
        for sandbox, port in moved:
            try:
                self._moved(sandbox, port)
            except NetlibError as error:
                failures.append(error)
        for failure in failures:
            logger.warning("%s", failure)
        return failures

    def health(self) -> str | None:
        """How many sandboxes ask in vain, and why the first of them does."""
        unserved = list(self._unserved.values())
        return f"names are not answered in {len(unserved)} sandboxes: {unserved[0]}" if unserved else None

    def reconcile(self) -> None:
        """Find what changed in the store without anybody telling, as when the teller was killed, and serve that."""
        with self._lock, self._store.read() as tx:
            ready = tx.ready_ids()
            boxes = {record for record, kind, _ in ready if kind == "sandbox"}
            present = {record: sandbox or record for record, _, sandbox in ready if (sandbox or record) in boxes}
            known = {
                record: sandbox
                for sandbox, box in self._boxes.items()
                for record in (sandbox, *(endpoint.id for endpoint in box.endpoints))
            }
        differing = present.keys() ^ known.keys()
        if differing:
            both = {**present, **known}
            self.changed(Change({both[record] for record in differing}, ()))

    def retry_ports(self) -> None:
        """Try again for the ports that somebody else had, the resolver's on gateways among them."""
        with self._lock:
            self._ports.retry()
            self._gateways.retry()

    def stop(self) -> None:
        """Answer nobody any more, and take back what was told to the kernel about who asks at gateways."""
        with self._lock:
            self._gateways.close()
        self._dns.close()

    def served(self) -> list[str]:
        """The ids of the sandboxes whose resolver listens on 127.0.0.11 in their own netns."""
        with self._lock:
            boxes = [box for box in self._boxes.values() if box.sandbox.owned]
            return [box.sandbox.id for box in boxes if is_served(self._memberships(box))]

    # --- from the store --------------------------------------------------------------------------------------------

    def _read(self, tx: Transaction, sandbox: str) -> _Box | None:
        row = tx.by_id(sandbox)
        if row is None or row.phase is not Phase.READY or not isinstance(row.value, Sandbox):
            return None
        endpoints = [item.value for item in tx.endpoints_of_sandbox(sandbox) if item.phase is Phase.READY]
        endpoints.sort(key=lambda endpoint: endpoint.ifname)
        return _Box(row.value, tuple(endpoints), tuple(endpoint.network for endpoint in endpoints))

    @staticmethod
    def _network(tx: Transaction, network: str) -> Network:
        row = tx.by_id(network)
        if row is None:  # an endpoint that is ready keeps its network
            raise StoreError(f"network {network} has endpoints but no record; `netlib system reset` begins anew")
        value: Network = row.value
        return value

    def _renew(self, tx: Transaction, network: str) -> bool:
        """Take over a network's changed record; its zone is built anew then."""
        zone, row = self._zones.get(network), tx.by_id(network)
        if zone is None or row is None or row.value == zone.network:
            return False
        renewed = ZoneKeeper(row.value)
        boxes = [self._boxes[sandbox] for sandbox in zone.sandboxes.values()]
        members = ((endpoint, box.sandbox) for box in boxes for endpoint in box.endpoints)
        renewed.update((), [member for member in members if member[0].network == network])
        self._zones[network] = renewed
        return True

    def _apply(self, tx: Transaction, boxes: Mapping[str, _Box | None]) -> set[str]:
        """Bring zones and held ports to *boxes* (None: gone); answer with the networks that changed."""
        leaving: dict[str, list[str]] = {}
        joining: dict[str, list[tuple[Endpoint, Sandbox]]] = {}
        ports: list[Endpoint] = []
        for sandbox, new in boxes.items():
            old = self._boxes.get(sandbox)
            for endpoint in _missing_in(old, new):
                leaving.setdefault(endpoint.network, []).append(endpoint.id)
                self._ports.release(endpoint.id)  # all of them before any is held: a port may go from one to another
            for endpoint in _missing_in(new, old):
                if new is not None:
                    joining.setdefault(endpoint.network, []).append((endpoint, new.sandbox))
                    if endpoint.ports:
                        ports.append(endpoint)
            if new is None:
                self._boxes.pop(sandbox, None)
            else:
                self._boxes[sandbox] = new
        for endpoint in ports:
            self._ports.hold(endpoint)
        for network in {*leaving, *joining}:
            zone = self._zones.get(network)
            if zone is None:
                zone = self._zones[network] = ZoneKeeper(self._network(tx, network))
            zone.update(leaving.get(network, ()), joining.get(network, ()))
        return {*leaving, *joining}

    # --- to the resolver -------------------------------------------------------------------------------------------

    def _serve(self, sandboxes: Iterable[str], views: _Views, failures: list[NetlibError]) -> list[tuple[str, int]]:
        """Open, swap or close the resolver of each sandbox; answer with those that listen elsewhere than recorded."""
        moved = []
        for sandbox in sandboxes:
            box = self._boxes.get(sandbox)
            self._unserved.pop(sandbox, None)
            try:
                if box is None or not is_served(self._memberships(box)):
                    self._dns.withdraw(sandbox)
                    self._gateways.unseat(sandbox)
                    continue
                view = self._view(box, views)
                if not box.sandbox.owned:
                    self._gateways.seat(sandbox, resolver_seats(box.sandbox, self._memberships(box)), view)
                    continue
                port = self._dns.serve(sandbox, box.sandbox.netns, box.sandbox.dns_port, view=view)
            except NetlibError as error:
                failures.append(error)
                self._unserved[sandbox] = error
                continue
            if port != box.sandbox.dns_port:
                moved.append((sandbox, port))
                self._boxes[sandbox] = box._replace(sandbox=replace(box.sandbox, dns_port=port))
        return moved

    def _view(self, box: _Box, views: _Views) -> View:
        """What *box* sees; most members of a network see the same, and share one of *views* for the length of a change."""
        key = (box.networks, box.sandbox.resolver.servers)
        has_links = any(endpoint.links for endpoint in box.endpoints)
        view = None if has_links else views.get(key)
        if view is None:
            zones = [(self._zones[endpoint.network].zone, endpoint) for endpoint in box.endpoints]
            view = build_view(zones, box.sandbox.resolver)
            if not has_links:
                views[key] = view
        return view

    def _memberships(self, box: _Box) -> list[Membership]:
        return [(self._zones[endpoint.network].network, endpoint) for endpoint in box.endpoints]


def _missing_in(box: _Box | None, other: _Box | None) -> Iterator[Endpoint]:
    """The endpoints of *box* that *other* does not have just so, or has under another name."""
    if box is None:
        return
    same_names = other is not None and replace(other.sandbox, dns_port=box.sandbox.dns_port) == box.sandbox
    for endpoint in box.endpoints:
        if other is None or not same_names or endpoint not in other.endpoints:
            yield endpoint
