"""The firewall's kernel objects: what a network and its ports need, independent of any backend.

One rule: an object only says what it is. The backend (:mod:`netlib.firewall.backend`) knows the rules for it, and applies a
whole run of objects in one transaction.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from msgspec import Struct

from netlib.errors import ConfigError
from netlib.firewall.backend import backend, firewall
from netlib.model import HOST, RESOLVER_ADDRESS, IPAddress, IPInterface, IPNetwork, NetnsRef, PortMapping, Protocol
from netlib.plan import KernelObject, Key
from netlib.ports import port_runs

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel

__all__ = [
    "MARKED",
    "AddressAllowance",
    "Allowance",
    "ApartBridge",
    "AwaitedPort",
    "BridgedNetwork",
    "ContainerSubnet",
    "DnsRedirect",
    "FirewallBase",
    "FirewallObject",
    "ForwardAllowance",
    "ForwardedAddress",
    "Masquerade",
    "MasqueradedAddress",
    "PacketMatch",
    "PortCondition",
    "PublishedPort",
    "published_ports",
]


MARK = "0x1000"
"""The mark bit (12) of packets of CNI containers in the forward hooks; kube-proxy's are 14 and 15, portmap's 13."""
MARKED = f"mark:{MARK}"
"""The subject of an allowance for these packets; no link can be called so."""


class FirewallObject(KernelObject, frozen=True, kw_only=True):
    """What all firewall objects share: the backend applies or removes a run of them in one transaction."""

    batch: ClassVar[str] = "firewall"

    def ensure(self, kernel: "Kernel") -> None:
        self.ensure_many(kernel, (self,))

    def remove(self, kernel: "Kernel") -> None:
        self.remove_many(kernel, (self,))

    @classmethod
    def ensure_many(cls, kernel: "Kernel", run: Sequence[KernelObject]) -> None:
        """Apply the run in one transaction: all of it or nothing."""
        cls.ensure_tagged(kernel, {kernel.tag: run})

    @staticmethod
    def ensure_tagged(kernel: "Kernel", groups: Mapping[str, Sequence[KernelObject]]) -> None:
        """As :meth:`ensure_many` for several records at once: the objects of one netns, by the tag of their record."""
        run = [item for group in groups.values() for item in group]
        firewall(kernel, run[0].netns).ensure(groups)
        _flush_udp(kernel, run)

    @classmethod
    def remove_many(cls, kernel: "Kernel", run: Sequence[KernelObject]) -> None:
        """Remove the run in one transaction; an object that is gone already is no error."""
        firewall(kernel, run[0].netns).remove(run)
        _flush_udp(kernel, run)

    def drift(self, kernel: "Kernel") -> str | None:
        return firewall(kernel, self.netns).drift(self)

    def commands(self) -> Iterable[str]:
        return backend().commands(self)

    def _named(self, name: str) -> Key:
        return Key("firewall", self.netns.path, name)


class FirewallBase(FirewallObject, frozen=True, kw_only=True, tag="firewall_base"):
    """Our table with its static chains; every other object is an entry in it.

    The removal leaves the whole table in place where the chain ``user`` has a person's rules: without entries the other chains
    affect no packet.
    """

    @property
    def shared(self) -> bool:
        return True

    @cached_property
    def key(self) -> Key:
        return self._named("base")

    def observed(self, kernel: "Kernel") -> Self:
        """Raise Conflict, which names the store, when the table has networks of another store."""
        firewall(kernel, self.netns).refuse_other_store(kernel.tag)
        return self


class BridgedNetwork(FirewallObject, frozen=True, kw_only=True, tag="firewall_network"):
    """A bridge that is a network of ours: isolated from all others, and closed to the outside except for published ports.

    ``internal``: no packet leaves or enters it. ``icc``: its members may talk to each other; frames between ports pass the
    firewall only where br_netfilter is used (see :class:`netlib.kernel.bridges.Bridge` and its ports).
    ``mode``: Docker's gateway mode; with ``nat-unprotected`` the outside may reach ports that are not published.
    """

    bridge: str
    subnets: tuple[IPNetwork, ...]
    internal: bool = False
    icc: bool = True
    mode: Literal["nat", "nat-unprotected"] = "nat"

    @cached_property
    def key(self) -> Key:
        return self._named(f"network/{self.bridge}")


class Masquerade(FirewallObject, frozen=True, kw_only=True, tag="masquerade"):
    """Packets from *subnet* that leave by another link than *bridge* get the address of that link as their source."""

    subnet: IPNetwork
    bridge: str

    @cached_property
    def key(self) -> Key:
        return self._named(f"masquerade/{self.bridge}/{self.subnet}")


class ContainerSubnet(FirewallObject, frozen=True, kw_only=True, tag="container_subnet"):
    """A subnet of containers of CNI networks: it says which destinations a :class:`MasqueradedAddress` is masqueraded for.

    It has no effect by itself, and must be applied first. Any number of networks may have the same one.
    """

    subnet: IPNetwork

    @property
    def shared(self) -> bool:
        return True

    @cached_property
    def key(self) -> Key:
        return self._named(f"subnet/{self.subnet}")


class MasqueradedAddress(FirewallObject, frozen=True, kw_only=True, tag="masqueraded_address"):
    """Packets from a container's *address* to destinations beyond its subnet get the address of the link they leave by.

    The CNI key ``ipMasq`` asks for it, whatever links are in between. Multicast, and frames that a bridge only forwards, keep
    their source. The :class:`ContainerSubnet` of the address must be applied first.
    """

    address: IPInterface

    @property
    def shared(self) -> bool:
        """True: two networks may give out the same address, and a container that was never detached may hold it still."""
        return True

    @cached_property
    def key(self) -> Key:
        return self._named(f"masquerade/{self.address.ip}")


class PacketMatch(Struct, frozen=True):
    """A condition on a packet, or its negation: source or destination in a subnet, or the link that received it."""

    field: Literal["saddr", "daddr", "iifname"]
    value: str
    negated: bool = False


class PortCondition(FirewallObject, frozen=True, kw_only=True, tag="port_condition"):
    """Conditions that a packet to a :class:`PublishedPort` must all meet, else the host gets it; it must be applied first."""

    version: Literal[4, 6]
    matches: tuple[PacketMatch, ...]

    @property
    def shared(self) -> bool:
        return True

    @cached_property
    def key(self) -> Key:
        return self._named(f"condition/{self.digest}")

    @property
    def digest(self) -> str:
        """A name for the conditions."""
        return hashlib.sha256(repr((self.version, self.matches)).encode()).hexdigest()[:12]


class PublishedPort(FirewallObject, frozen=True, kw_only=True, dict=True, tag="published_port"):
    """A container's port on a port of the host: on one address, or on every address of its family.

    *count* is how many ports from ``host_port`` on lead to as many from ``container_port`` on: a range is one object.
    ``host_ip`` None, 0.0.0.0 and :: all mean every address. The kernel cannot forward packets to ``::1``: netlibd does.

    Clients on the *bridge* of a network of ours get answers by way of the host. Elsewhere *hairpin* names the clients that do,
    besides the host's loopback: the container's own subnet, or everybody. Its :class:`ContainerSubnet` must be applied first.
    """

    bridge: str = ""
    hairpin: IPNetwork | None = None
    condition: PortCondition | None = None
    address: IPAddress
    container_port: int
    host_port: int
    count: int = 1
    protocol: Protocol = Protocol.TCP
    host_ip: IPAddress | None = None

    @property
    def host_ports(self) -> range:
        return range(self.host_port, self.host_port + self.count)

    @cached_property  # a connect asks for it a dozen times, and for that of many ports at once
    def key(self) -> Key:
        return self._named(f"port/{self.endpoint}/{self.protocol}")

    @property
    def mappings(self) -> list[PortMapping]:
        """A mapping for each port, as ports are claimed."""
        return [
            PortMapping(
                container_port=self.container_port + offset,
                host_port=self.host_port + offset,
                protocol=self.protocol,
                host_ip=self.host_ip,
            )
            for offset in range(self.count)
        ]

    @property
    def endpoint(self) -> str:
        """The host's side as people write it: ``0.0.0.0:8080``, ``[::1]:53``, ``0.0.0.0:8000-8099``."""
        ports = f"{self.host_port}-{self.host_ports[-1]}" if self.count > 1 else str(self.host_port)
        if self.host_ip is None:
            return f"0.0.0.0:{ports}" if self.address.version == 4 else f"[::]:{ports}"
        return f"{self.host_ip}:{ports}" if self.host_ip.version == 4 else f"[{self.host_ip}]:{ports}"

    @property
    def one_address(self) -> IPAddress | None:
        """The only address it is published on, or None; ConfigError when it is of the other family than the container's."""
        if self.host_ip is not None and self.host_ip.version != self.address.version:
            raise ConfigError(
                f"port {self.endpoint}/{self.protocol}: container address {self.address} is of the other IP family"
            )
        return None if self.host_ip is None or self.host_ip.is_unspecified else self.host_ip


def published_ports(
    mappings: Sequence[PortMapping],
    address: IPAddress,
    *,
    bridge: str = "",
    hairpin: IPNetwork | None = None,
    condition: PortCondition | None = None,
) -> list[PublishedPort]:
    """The objects that publish *mappings* for a container's *address*, one a run of ports; the other IP version is left out."""
    return [
        PublishedPort(
            bridge=bridge,
            hairpin=hairpin,
            condition=condition,
            address=address,
            container_port=first.container_port,
            host_port=first.host_port,
            count=count,
            protocol=first.protocol,
            host_ip=first.host_ip,
        )
        for first, count in port_runs(mappings)
        if first.host_ip is None or first.host_ip.version == address.version
    ]


class AwaitedPort(KernelObject, frozen=True, kw_only=True, tag="awaited_port"):
    """A port that another attachment of the container publishes, and this one when that is removed; nothing in the kernel."""

    port: PublishedPort

    @cached_property
    def key(self) -> Key:
        return Key("awaited", "", f"{self.port.key.name} for {self.port.address}")

    def ensure(self, kernel: "Kernel") -> None:
        pass

    def remove(self, kernel: "Kernel") -> None:
        pass

    def drift(self, kernel: "Kernel") -> str | None:
        return None

    def commands(self) -> Iterable[str]:
        return ()


class Allowance(FirewallObject, frozen=True, kw_only=True):
    """Lets packets of a *subject* through forward hooks of others that drop by default.

    An accept in our table cannot override a drop in another one. Only packets that reach such a default are accepted: earlier
    rules of others decide first.
    """

    @property
    def subject(self) -> str:
        """A bridge, or ``MARKED``."""
        raise NotImplementedError

    def commands_here(self, kernel: "Kernel") -> Iterable[str]:
        return firewall(kernel, self.netns).allowance_commands(self)

    @cached_property
    def key(self) -> Key:
        return self._named(f"forward/{self.subject}")


class ForwardAllowance(Allowance, frozen=True, kw_only=True, tag="forward_allowance"):
    """Lets a bridge's packets through, in both directions."""

    bridge: str

    @property
    def subject(self) -> str:
        return self.bridge


class AddressAllowance(Allowance, frozen=True, kw_only=True, tag="address_allowance"):
    """Lets packets from any :class:`ForwardedAddress` through, and the answers to them.

    Our table marks these packets while they pass the forward hooks: one rule in a foreign chain serves every address.
    """

    @property
    def shared(self) -> bool:
        return True

    @property
    def subject(self) -> str:
        return MARKED


class ForwardedAddress(FirewallObject, frozen=True, kw_only=True, tag="forwarded_address"):
    """A container's address whose packets foreign forward hooks are to accept (see :class:`AddressAllowance`)."""

    address: IPAddress

    @property
    def shared(self) -> bool:
        """True: two networks may give out the same address, and a container that was never detached may hold it still."""
        return True

    @cached_property
    def key(self) -> Key:
        return self._named(f"forwarded/{self.address}")


class ApartBridge(FirewallObject, frozen=True, kw_only=True, tag="apart_bridge"):
    """A bridge of a CNI network that is isolated from every other such bridge, also from published ports there.

    Without *icc* its members do not reach each other through the host either, nor directly where br_netfilter is used.
    """

    bridge: str
    icc: bool = True

    @property
    def shared(self) -> bool:
        """True: several networks may be on one bridge."""
        return True

    @cached_property
    def key(self) -> Key:
        return self._named(f"apart/{self.bridge}")


class DnsRedirect(FirewallObject, frozen=True, kw_only=True, tag="dns_redirect"):
    """In a sandbox's netns, queries of its processes to port 53 of *address* reach *port*."""

    netns: NetnsRef = HOST
    address: IPAddress = RESOLVER_ADDRESS
    port: int

    @cached_property
    def key(self) -> Key:
        return self._named("dns")


def _flush_udp(kernel: "Kernel", run: Sequence[KernelObject]) -> None:
    """Delete tracked UDP flows to ports of *run*: an entry made before the change would keep them from the new rules."""
    ports: dict[IPAddress | None, set[int]] = {}
    for item in run:
        if isinstance(item, PublishedPort) and item.protocol == Protocol.UDP:
            ports.setdefault(item.one_address, set()).update(item.host_ports)
    if ports:
        from netlib.kernel.conntrack import flush_udp

        for address, numbers in ports.items():
            flush_udp(kernel, numbers, address)
