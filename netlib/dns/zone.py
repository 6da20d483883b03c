"""Names of the members of a network, and which of them one sandbox sees.

Pure and immutable: a :class:`Zone` is a snapshot of one network, a :class:`View` is one sandbox's choice of zones. A change is
a new snapshot, which replaces the old one. A name belongs to one network and only that network's members see it.
"""

from collections.abc import Iterable, Mapping

from msgspec import Struct

from netlib.model import Endpoint, IPAddress, Network, ResolverConfig, Sandbox

__all__ = ["View", "Zone", "build_view", "build_zone"]


class Zone(Struct, frozen=True, kw_only=True):
    """The names of one network at one moment; all text is lower-case.

    ``names`` holds each bare name with the addresses of all members of that name, none when they have none yet; ``pointers``
    holds the reverse names (``2.0.18.172.in-addr.arpa``).
    """

    network: str  # name, for ``db.network``
    resolves_names: bool
    internal: bool
    names: Mapping[str, tuple[IPAddress, ...]]
    pointers: Mapping[str, tuple[str, ...]]

    def find(self, name: str) -> tuple[IPAddress, ...] | None:
        """The addresses of *name*, bare or with the network's name after it; None when no member has that name."""
        found = self.names.get(name)
        if found is None and name.endswith(f".{self.network}"):
            found = self.names.get(name[: -len(self.network) - 1])
        return found


class View(Struct, frozen=True, kw_only=True):
    """What one sandbox sees: its networks' zones in order, its own links, and the servers for other questions.

    ``servers`` empty means those of the host. ``forwards`` is False when no network of the sandbox leads outside: then a name
    that is not here does not exist (else a name server would be a way out of an internal network, CVE-2024-29018).
    """

    zones: tuple[Zone, ...] = ()
    links: Mapping[str, tuple[IPAddress, ...]] = {}
    servers: tuple[IPAddress, ...] = ()
    forwards: bool = True

    def find(self, name: str, version: int) -> tuple[IPAddress, ...] | None:
        """Addresses of *version* (4 or 6) for *name*; empty when it is ours without that family, None when it is not ours.

        A link hides a network's own name; the first network with an address of that version counts.
        """
        known = False
        for found in (self.links.get(name), *(zone.find(name) for zone in self.zones)):
            if found is not None:
                known = True
                fitting = tuple(address for address in found if address.version == version)
                if fitting:
                    return fitting
        return () if known else None

    def pointers(self, name: str) -> tuple[str, ...] | None:
        """The full names behind the reverse name *name*; None when no member has that address."""
        return next((zone.pointers[name] for zone in self.zones if name in zone.pointers), None)


def build_zone(network: Network, members: Iterable[tuple[Endpoint, Sandbox]]) -> Zone:
    """Take the snapshot of *network*: each member by its name, hostname, short id and aliases.

    The reverse of an address is its sandbox's name with the network's after it, as in Docker.
    """
    suffix = network.name.lower()
    names: dict[str, list[IPAddress]] = {}
    pointers: dict[str, tuple[str, ...]] = {}
    for endpoint, sandbox in members:
        addresses = tuple(interface.ip for interface in endpoint.addresses)
        called = dict.fromkeys(name.lower() for name in (sandbox.name, sandbox.hostname, sandbox.short_id, *endpoint.aliases))
        for name in called:
            if name:
                names.setdefault(name, []).extend(addresses)
        for address in addresses:
            pointers[address.reverse_pointer] = (f"{sandbox.name.lower()}.{suffix}",)
    return Zone(
        network=suffix,
        resolves_names=network.resolves_names,
        internal=network.internal,
        names={name: tuple(addresses) for name, addresses in names.items()},
        pointers=pointers,
    )


def build_view(attachments: Iterable[tuple[Zone, Endpoint]], resolver: ResolverConfig | None = None) -> View:
    """The view of a sandbox with these endpoints, its networks in the order given.

    A network that resolves no names (the default bridge) adds only the names of the endpoint's links.
    """
    zones: list[Zone] = []
    links: dict[str, tuple[IPAddress, ...]] = {}
    leads_outside = False
    for zone, endpoint in attachments:
        leads_outside = leads_outside or not zone.internal
        if zone.resolves_names:
            zones.append(zone)
        for link in endpoint.links:
            addresses = zone.find(link.name.lower())
            if addresses is not None:
                alias = link.alias.lower()
                links[alias] = links.get(alias, ()) + addresses
                if zone.resolves_names:
                    links[f"{alias}.{zone.network}"] = addresses
    return View(zones=tuple(zones), links=links, servers=resolver.servers if resolver else (), forwards=leads_outside)
