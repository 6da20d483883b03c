"""The Python interface of the Container Network Model: networks, sandboxes and endpoints made, joined, looked at and removed.

Every verb checks the whole request first; it leaves the kernel as asked or as it was. Verbs that only look change nothing in
the kernel. The keywords of a verb are the fields of its request in :mod:`netlib.requests` (a test compares them).
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from netlib.core import endpoints, events, networks, reports, sandboxes
from netlib.core.predefined import prepare_predefined
from netlib.core.session import Session, Unwatched, Watcher, chunks, reference_of
from netlib.errors import ConfigError
from netlib.kernel.netns import entered
from netlib.model import (
    CniAttachment,
    CniNetwork,
    Endpoint,
    Event,
    IPAddress,
    IPNetwork,
    Link,
    Network,
    Phase,
    ResolverConfig,
    Sandbox,
)
from netlib.plan import Plan
from netlib.ports import PortRequest
from netlib.requests import ConnectRequest, NetworkRequest, SandboxRequest, read
from netlib.store.records import JournalEntry, Published

__all__ = ["Controller", "Unwatched", "Watcher"]


class Controller(Session):
    """All verbs over one store, for the thread that opened it.

    It is a context manager::

        with netlib.Controller() as controller:
            controller.create_network("web")
            box = controller.create_sandbox("box")
            controller.connect("web", "box")

    Networks and sandboxes are named by their name, their id, an unambiguous beginning of their id, or their record.
    """

    # --- networks --------------------------------------------------------------------------------------------------

    def networks(self) -> list[Network]:
        """Every network that is ready, by name."""
        with self.store.read() as tx:
            return [row.value for row in tx.all(Network) if row.phase is Phase.READY]

    def network(self, reference: str | Network) -> Network:
        """The network as it is now; NotFound when there is none."""
        with self.store.read() as tx:
            return self.find_network(tx, reference).value

    def create_network(
        self,
        name: str,
        *,
        driver: str = "bridge",
        subnets: Iterable[str | IPNetwork] = (),
        gateways: Iterable[str | IPAddress] = (),
        ip_ranges: Iterable[str | IPNetwork] = (),
        auxiliary: Mapping[str, str | IPAddress] = {},
        internal: bool = False,
        ipv4: bool = True,
        ipv6: bool = False,
        options: Mapping[str, str] = {},
        labels: Mapping[str, str] = {},
        ipam_driver: str = "default",
        ipam_options: Mapping[str, str] = {},
        scope: str = "local",
    ) -> Network:
        """Create a network. Gateways, ranges and auxiliary addresses belong to the subnet that contains them.

        Raises ConfigError, AlreadyExists, Conflict, PoolExhausted, KernelError; after any of them nothing is changed.
        """
        return networks.create_network(self, read(NetworkRequest, _given(locals())))

    def remove_network(self, reference: str | Network) -> None:
        """Remove a network without endpoints; InUse lists who is in it."""
        networks.remove_network(self, reference)

    # --- sandboxes -------------------------------------------------------------------------------------------------

    def sandboxes(self) -> list[Sandbox]:
        """Every sandbox that is ready, by name."""
        with self.store.read() as tx:
            return [row.value for row in tx.all(Sandbox) if row.phase is Phase.READY]

    def sandbox(self, reference: str | Sandbox) -> Sandbox:
        """The sandbox as it is now; NotFound when there is none."""
        with self.store.read() as tx:
            return self.find_sandbox(tx, reference).value

    def create_sandbox(
        self,
        name: str,
        *,
        netns: str | os.PathLike[str] | None = None,
        hostname: str = "",
        domainname: str = "",
        resolver: ResolverConfig = ResolverConfig(),
        sandbox_id: str = "",
        sysctls: Mapping[str, str] = {},
        cni_container: str = "",
    ) -> Sandbox:
        """Create a sandbox: with a netns of its own (*netns* None), the host's (``""``), or that at a path.

        One of its own may be asked to have *sysctls* (names of ``net.*`` to values), those of its links as these come.
        Raises AlreadyExists when the name, or a netns of that name, is there, or the netns is a sandbox's already.
        """
        given = _given(locals())
        return sandboxes.create_sandbox(self, read(SandboxRequest, given))

    def remove_sandbox(self, reference: str | Sandbox) -> None:
        """Remove a sandbox with its endpoints, its files and, where it is ours, its netns."""
        sandboxes.remove_sandboxes(self, [reference])

    def remove_sandboxes(self, references: Sequence[str | Sandbox]) -> None:
        """Remove many sandboxes at once: one firewall transaction and one link request for all of them."""
        if isinstance(references, str):
            raise ConfigError(f"references={references!r} must be a list or tuple of names; remove_sandbox removes one")
        sandboxes.remove_sandboxes(self, references)

    # --- endpoints -------------------------------------------------------------------------------------------------

    def endpoints(self, *, network: str | Network | None = None, sandbox: str | Sandbox | None = None) -> list[Endpoint]:
        """The endpoints of one network, of one sandbox, of one sandbox in one network, or all of them."""
        with self.store.read() as tx:
            home = self.find_network(tx, network).id if network is not None else ""
            if sandbox is not None:
                rows = tx.endpoints_of_sandbox(self.find_sandbox(tx, sandbox).id)
            else:
                rows = tx.endpoints_of_network(home) if home else tx.all(Endpoint)
            return [row.value for row in rows if row.phase is Phase.READY and home in ("", row.value.network)]

    def connect(
        self,
        network: str | Network,
        sandbox: str | Sandbox,
        *,
        ifname: str = "",
        ip: str | IPAddress | None = None,
        ip6: str | IPAddress | None = None,
        mac: str = "",
        aliases: Iterable[str] = (),
        ports: Iterable[str | PortRequest] = (),
        links: Iterable[str | Link] = (),
        gw_priority: int = 0,
        options: Mapping[str, str] = {},
    ) -> Endpoint:
        """Join a sandbox to a network; *ports* are written as ``-p`` takes them.

        Raises AlreadyExists (it is in that network), ConfigError, AddressTaken, PortTaken, PoolExhausted, KernelError; after
        any of them nothing is changed.
        """
        given = _given(locals())
        given |= {"network": reference_of(given["network"]), "container": reference_of(given.pop("sandbox"))}
        return endpoints.connect(self, read(ConnectRequest, given))

    def disconnect(self, network: str | Network, sandbox: str | Sandbox, *, keep_ports: bool = False) -> None:
        """Take a sandbox out of a network; NotFound when it is not in it.

        The ports that it was connected with are closed, or, with *keep_ports*, published by another of its networks.
        """
        endpoints.disconnect(self, network, sandbox, keep_ports=keep_ports)

    @contextmanager
    def inside(self, sandbox: str | Sandbox) -> Iterator[Sandbox]:
        """Be in a sandbox's netns during the block (this thread alone): sockets opened there belong to it."""
        box = self.sandbox(sandbox)
        with entered(box.netns):
            yield box

    # --- telling ---------------------------------------------------------------------------------------------------

    def plan_of(self, reference: str | Network | Sandbox) -> Plan:
        """What a network or a sandbox (with its endpoints) is made of: as written down, or as it would be at first use."""
        return reports.plan_of(self, reference)

    def explain(self, reference: str | Network | Sandbox) -> list[str]:
        """The commands that a person would type to make a network or a sandbox with its endpoints."""
        return reports.explain(self, reference)

    def check(self, reference: str | Network | Sandbox) -> list[tuple[str, str]]:
        """Compare a network or a sandbox (with its endpoints) with the kernel: (object, how it differs) for each drift."""
        return reports.check(self, reference)

    def journal(self, limit: int = 50) -> list[JournalEntry]:
        """The last *limit* operations with their objects, oldest first."""
        with self.store.read() as tx:
            return tx.journal(limit)

    def events(self, *, since: float | None = None, until: float | None = None, follow: bool = False) -> Iterator[Published]:
        """What has happened, oldest first, by whichever process; with *follow* also what happens from now on, as it does.

        *since* and *until* are moments in seconds since the epoch; *since* None is now.
        """
        return events.published(self, since=since, until=until, follow=follow)

    def reset(self) -> None:
        """Remove everything of ours from the kernel and the store, and put changed sysctls back."""
        with self.operation("system reset", "everything", Event(type="system", action="reset")):
            with self.store.write(clearing=True) as tx:  # from here on nobody joins a network that is there
                found = [row.id for kind in (CniNetwork, Network) for row in tx.all(kind)]
                for network in found:
                    tx.set_phase(network, Phase.REMOVING)
                boxes = [row.id for row in tx.all(Sandbox)]
                attachments = [row.id for row in tx.all(CniAttachment)]
            self.take_down([*chunks(boxes), *chunks(attachments), *chunks(found)], "resetting")
        self.watcher.changed(sandboxes=boxes, networks=[], needed=False)
        if self.host.lost is None:
            prepare_predefined(self.lifecycle, self.host)


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    """The *arguments* of a verb (its ``locals()``) as :func:`read` takes them."""
    del arguments["self"]
    return arguments
