"""The addresses of a main plugin's container: leased by an IPAM type of ours in the same process, or by a foreign plugin.

A type of ours leases inside the transaction that writes the attachment down; the objects that hold the lease belong to the
attachment. A foreign plugin is executed.
"""

from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

from cni_plugins.delegate import ForeignLease, delegate, delegate_add, find_executable
from cni_plugins.netconf import NetConf
from cni_plugins.protocol import CniError, Code
from cni_plugins.result import Result
from cni_plugins.skel import Call, Plugin, reread
from cni_plugins.types import find_plugin_class
from netlib.core.pending_attachment import PendingAttachment, Wanted
from netlib.plan import Plan
from netlib.store.records import Transaction

__all__ = ["Addressing", "AsksOverLink", "Lease", "Leases"]


class Lease(NamedTuple):
    """Addresses, routes and name servers (an IPAM result), and the objects that hold them."""

    result: Result
    plan: Plan = Plan()


@runtime_checkable
class Leases(Protocol):
    """A plugin type that gives addresses to main plugins in the same process."""

    def lease(self, call: Call[Any], tx: Transaction, pending: PendingAttachment) -> Lease:
        """Choose addresses for *pending* inside the transaction that writes the lease's plan down; may be called again."""
        ...


@runtime_checkable
class AsksOverLink(Protocol):
    """An IPAM type that asks for addresses over the container's link, which must be up by then."""

    def ask(self, call: Call[Any], pending: PendingAttachment) -> None:
        """Ask for addresses, outside of any transaction; :meth:`Leases.lease` then returns them."""
        ...


class Addressing:
    """The IPAM side of one call of a main plugin."""

    def __init__(self, node: Any, call: Call[Any]) -> None:
        """Find the IPAM type that the configuration of *call* names; where it names none, the container gets no addresses."""
        ipam = cast(NetConf, call.config).ipam
        self.kind = ipam.type if ipam is not None else ""
        self._call = call
        self._answer = Result()
        found = find_plugin_class(self.kind) if self.kind else None
        self._ours: Plugin[Any] | None = None
        if found is not None:
            self._ours = found(node)
            if not isinstance(self._ours, Leases):
                raise CniError(
                    Code.INVALID_CONFIG, f'ipam.type: "{self.kind}" gives no addresses', "host-local, static and dhcp do"
                )
            self._call = reread(call, found.config, self.kind)
        elif self.kind:
            find_executable(self.kind, call.path)  # refused before anything is made

    def __bool__(self) -> bool:
        return bool(self.kind)

    @property
    def asks_over_link(self) -> bool:
        """Whether the container's link must be up before :meth:`ask`: for dhcp, and for a foreign plugin, which may be one."""
        return self._ours is None or isinstance(self._ours, AsksOverLink)

    def ask(self, pending: PendingAttachment) -> None:
        """Ask a DHCP server or a foreign plugin for addresses, outside of any transaction; a no-op for other types."""
        if isinstance(self._ours, AsksOverLink):
            self._ours.ask(self._call, pending)
        elif self.kind and self._ours is None:
            call = self._call
            held = ForeignLease(
                kind=self.kind,
                container=call.container_id,
                ifname=call.ifname,
                folders=call.path,
                environ={name: value for name, value in call.environ.items() if name.startswith("CNI_") or name == "PATH"},
                config=call.stdin.decode(errors="replace"),
            )
            pending.apply(lambda _: Wanted(Plan(held)))
            self._answer = delegate_add(call, self.kind)

    def lease(self, tx: Transaction, pending: PendingAttachment) -> Lease:
        """Lease the addresses of *pending*, none where there is no IPAM. CniError for a gateway of the other IP version."""
        lease = Lease(self._answer) if self._ours is None else cast(Leases, self._ours).lease(self._call, tx, pending)
        for ip in lease.result.ips:
            if ip.gateway is not None and ip.gateway.version != ip.address.version:
                raise CniError(
                    Code.INVALID_CONFIG,
                    f"{self.kind}: gateway {ip.gateway} of {ip.address} is of the other IP version",
                    f"name one of IPv{ip.address.version}",
                )
        return lease

    def check(self) -> None:
        """CHECK; raises an error that names the difference."""
        if self._ours is not None:
            self._ours.check(self._call)
        elif self.kind:
            delegate(self._call, self.kind)

    def delete(self) -> None:
        """DEL by the configuration alone, for a container that no record knows."""
        if self._ours is not None:
            self._ours.delete(self._call)
        elif self.kind:
            delegate(self._call, self.kind)

    def garbage_collect(self) -> None:
        """GC of leases that no record knows."""
        if self._ours is not None:
            self._ours.garbage_collect(self._call)
        elif self.kind:
            delegate(self._call, self.kind)

    def status(self) -> None:
        """STATUS; raises the error that an ADD would raise."""
        if self._ours is not None:
            self._ours.status(self._call)
        elif self.kind:
            delegate(self._call, self.kind)
