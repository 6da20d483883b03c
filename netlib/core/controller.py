"""The Python interface of the Container Network Model: the verbs that make, connect, list and remove networks and sandboxes.

A verb checks its whole request before it changes anything, and after an error the kernel is as it was. Verbs that only read
change nothing in the kernel. A verb's keywords are the fields of its request in :mod:`netlib.requests` (a test compares them).
"""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import Any

from netlib.core import endpoints, events, networks, recovery, reports, sandboxes
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
from netlib.requests import ConnectRequest, NetworkRequest, SandboxRequest, keyword_address, read
from netlib.store.records import JournalEntry, Published

__all__ = ["Controller", "Unwatched", "Watcher"]


class Controller(Session):
    """All verbs over one store, for the thread that opened it.

    It is a context manager::

        with netlib.Controller() as controller:
            controller.create_network("web")
            box = controller.create_sandbox("box")
            controller.connect("web", "box")

    A verb takes a network or a sandbox by its name, its id, an unambiguous beginning of its id, or as its record.
    """

    # --- networks --------------------------------------------------------------------------------------------------

    def networks(self) -> list[Network]:
        """All networks in phase ``ready``, in the order of their names."""
        with self.store.read() as tx:
            return [row.value for row in tx.all(Network) if row.phase is Phase.READY]

    def network(self, reference: str | Network) -> Network:
        """The present record of a network; raises NotFound."""
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

        Raises ConfigError, AlreadyExists, Conflict, PoolExhausted, KernelError; after these the kernel and the records are
        unchanged.
        """
        return networks.create_network(self, read(NetworkRequest, _given(locals())))

    def remove_network(self, reference: str | Network) -> None:
        """Remove a network without endpoints.

        Raises InUse with the sandboxes in the network, ConfigError for a predefined network, NotFound, TeardownError.
        """
        networks.remove_network(self, reference)

    # --- sandboxes -------------------------------------------------------------------------------------------------

    def sandboxes(self) -> list[Sandbox]:
        """All sandboxes in phase ``ready``, in the order of their names."""
        with self.store.read() as tx:
            return [row.value for row in tx.all(Sandbox) if row.phase is Phase.READY]

    def sandbox(self, reference: str | Sandbox) -> Sandbox:
        """The present record of a sandbox; raises NotFound."""
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
        """Create a sandbox in a new netns (*netns* None), in the host's (``""``), or in the one at the path *netns*.

        *sysctls* (names of ``net.*`` to values) are set in a new netns only; those of a link are set when the link is made.
        Raises AlreadyExists when a sandbox or a netns has the name, or another sandbox has the netns; ConfigError.
        """
        given = _given(locals())
        return sandboxes.create_sandbox(self, read(SandboxRequest, given))

    def remove_sandbox(self, reference: str | Sandbox) -> None:
        """Remove a sandbox with its endpoints, its files and, where netlib made it, its netns.

        Raises NotFound; TeardownError for what could not be removed, after all else is.
        """
        sandboxes.remove_sandboxes(self, [reference])

    def remove_sandboxes(self, references: Sequence[str | Sandbox]) -> None:
        """Remove sandboxes as :meth:`remove_sandbox` does, up to 200 in one firewall transaction and one link request."""
        if isinstance(references, str):
            raise ConfigError(f"references={references!r} must be a list or tuple of names; remove_sandbox removes one")
        sandboxes.remove_sandboxes(self, references)

    # --- endpoints -------------------------------------------------------------------------------------------------

    def endpoints(self, *, network: str | Network | None = None, sandbox: str | Sandbox | None = None) -> list[Endpoint]:
        """All endpoints in phase ``ready``, or only those in *network*, of *sandbox*, or of that sandbox in that network."""
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
        """Connect a sandbox to a network; a port in *ports* is written as for Docker's ``-p``.

        Raises AlreadyExists for a sandbox that is in the network, ConfigError, AddressTaken, PortTaken, PoolExhausted,
        KernelError; after these the kernel and the records are unchanged.
        """
        given = _given(locals())
        given |= {"network": reference_of(given["network"]), "container": reference_of(given.pop("sandbox"))}
        given |= {name: keyword_address(name, given[name]) for name in ("ip", "ip6")}
        return endpoints.connect(self, read(ConnectRequest, given))

    def disconnect(self, network: str | Network, sandbox: str | Sandbox, *, keep_ports: bool = False) -> None:
        """Disconnect a sandbox from a network; raises NotFound for a sandbox that is not in the network.

        The ports of this connect are closed, or, with *keep_ports*, published by another network of the sandbox.
        """
        endpoints.disconnect(self, network, sandbox, keep_ports=keep_ports)

    @contextmanager
    def inside(self, sandbox: str | Sandbox) -> Iterator[Sandbox]:
        """Enter a sandbox's netns for the block, with this thread only: sockets that it opens there belong to that netns.

        In the block this Controller makes and removes nothing: the host's links and rules are out of its reach.
        """
        box, outer = self.sandbox(sandbox), self.entered_sandbox
        with entered(box.netns):
            self.entered_sandbox = box.name
            try:
                yield box
            finally:
                self.entered_sandbox = outer

    # --- telling ---------------------------------------------------------------------------------------------------

    def plan_of(self, reference: str | Network | Sandbox) -> Plan:
        """The plan of a network, or of a sandbox with its endpoints, as the store has it, in an order to apply it in.

        For a network that was not used in this boot, it is the plan that the first use will apply.
        """
        return reports.plan_of(self, reference)

    def explain(self, reference: str | Network | Sandbox) -> list[str]:
        """The commands that a person would type to make a network or a sandbox with its endpoints, in that order.

        A line that begins with ``#`` says why there is no command.
        """
        return reports.explain(self, reference)

    def check(self, reference: str | Network | Sandbox) -> list[tuple[str, str]]:
        """Compare a network, or a sandbox with its endpoints, with the kernel; return key and difference of each drift."""
        return reports.check(self, reference)

    def journal(self, limit: int = 50) -> list[JournalEntry]:
        """The journal's newest *limit* operations, with the objects that each made and removed, oldest first.

        Raises ConfigError for a *limit* below 1.
        """
        if type(limit) is not int or limit < 1:
            raise ConfigError(f"limit={limit!r} must be a whole number of at least 1")
        with self.store.read() as tx:
            return tx.journal(min(limit, sys.maxsize))  # SQLite's largest number

    def events(self, *, since: float | None = None, until: float | None = None, follow: bool = False) -> Iterator[Published]:
        """Yield the events of all processes on this store, oldest first; with *follow*, also each new one when it happens.

        *since* and *until* are moments in seconds since the epoch; *since* None is now. Raises ConfigError for another value at
        the call, StoreError, at an event, when another store replaces this one meanwhile.
        """
        for name, moment in (("since", since), ("until", until)):
            is_number = isinstance(moment, int | float) and not isinstance(moment, bool) and isfinite(moment)
            if moment is not None and not is_number:
                raise ConfigError(
                    f"{name}={moment!r} must be seconds since the epoch, as time.time() and datetime.timestamp() say"
                )
        self.require_usable()
        return events.published(self, since=since, until=until, follow=follow)

    def reset(self) -> None:
        """Remove all networks, sandboxes and CNI attachments from the kernel and the store; set changed sysctls back.

        The predefined networks are written anew, but not in a lost store. Raises TeardownError for what could not be removed,
        after all else is.
        """
        with (
            self.operation("system reset", "everything", Event(type="system", action="reset")),
            self.locks.hold(recovery.RESET_LOCK, "resetting"),
        ):
            with self.store.write(clearing=True) as tx:  # from here on no sandbox or attachment can join one of these networks
                found = [row.id for kind in (CniNetwork, Network) for row in tx.all(kind)]
                for network in found:
                    tx.set_phase(network, Phase.REMOVING)
                boxes = [row.id for row in tx.all(Sandbox)]
                attachments = [row.id for row in tx.all(CniAttachment)]
            self.take_down([*chunks(boxes), *chunks(attachments), *chunks(found)], "resetting")
        self.watcher.changed(sandboxes=boxes, networks=[], needed=False)
        self.prepare_networks()


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    """Remove ``self`` from the *arguments* of a verb (its ``locals()``), for :func:`netlib.requests.read`."""
    del arguments["self"]
    return arguments
