"""The three nouns of the Container Network Model, and what they are made of, as frozen records.

A record holds what was asked and the facts that only the world knew; everything the kernel holds follows from it. Nothing
in here reads the kernel, the store or the clock.
"""

import ipaddress
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Struct

from netlib.structs import Asked

if TYPE_CHECKING:
    IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
    IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
    IPInterface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
else:  # msgspec takes one custom type in a union; these are the common ancestors (netlib.codec reads the text)
    IPAddress = ipaddress._BaseAddress  # noqa: SLF001 - it has no public name
    IPNetwork = ipaddress._BaseNetwork  # noqa: SLF001 - as above
    IPInterface = IPAddress

__all__ = [
    "AUXILIARY",
    "GATEWAY",
    "HOST",
    "AddressPool",
    "CniAttachment",
    "CniNetwork",
    "Endpoint",
    "Event",
    "IPAddress",
    "IPInterface",
    "IPNetwork",
    "Link",
    "NetnsRef",
    "Network",
    "Phase",
    "PortMapping",
    "Protocol",
    "ResolverConfig",
    "Sandbox",
    "Scope",
]


class Phase(StrEnum):
    """Where a record stands; only ``READY`` ones are seen by lookups and names."""

    CREATING = "creating"
    READY = "ready"
    REMOVING = "removing"


class Scope(StrEnum):
    """How far a network reaches: this host, or every host of the cluster."""

    LOCAL = "local"
    GLOBAL = "global"


class Protocol(StrEnum):
    """Transport of a published port."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"  # of CNI port mappings only: the kernel has no such sockets where the module is not loaded


class NetnsRef(Struct, frozen=True):
    """A network namespace: the path it is reached by and, once known, who it truly is.

    ``identity`` is ``<boot id>:<SO_NETNS_COOKIE>``; inode numbers are reused at once, cookies never within a boot. An
    empty path is the namespace that the store describes, called the host here.
    """

    path: str
    identity: str = ""

    @property
    def is_host(self) -> bool:
        return not self.path

    @property
    def label(self) -> str:
        """How people and keys call it: ``host`` or the last part of a path in ``/run/netns``, else the path."""
        if not self.path:
            return "host"
        return self.path.removeprefix("/run/netns/")


HOST = NetnsRef("")
GATEWAY = "gateway"
"""The owner of the lease of a network's gateway address."""
AUXILIARY = "auxiliary:"
"""What the owner of an auxiliary address's lease begins with; the rest is the name that it was given."""


class AddressPool(Struct, frozen=True, kw_only=True):
    """One subnet of a network: where dynamic addresses come from, and what is kept out of them."""

    subnet: IPNetwork
    gateway: IPAddress | None = None
    ip_range: IPNetwork | None = None
    auxiliary: dict[str, IPAddress] = {}

    @property
    def family(self) -> int:
        """4 or 6."""
        return self.subnet.version

    @property
    def router(self) -> IPAddress | None:
        """Where members send what leaves the subnet: the auxiliary address that Docker names so, else the gateway."""
        return self.auxiliary.get(f"DefaultGatewayIPv{self.family}", self.gateway)

    @property
    def gateway_interface(self) -> IPInterface | None:
        """The gateway with the length of the subnet, as it stands on the bridge."""
        return ipaddress.ip_interface(f"{self.gateway}/{self.subnet.prefixlen}") if self.gateway else None


class Network(Struct, frozen=True, kw_only=True):
    """Endpoints that reach each other directly, through one driver."""

    id: str
    name: str
    driver: str
    created: float  # seconds since the epoch
    scope: Scope = Scope.LOCAL
    pools: tuple[AddressPool, ...] = ()
    options: dict[str, str] = {}
    labels: dict[str, str] = {}
    internal: bool = False
    ipv4: bool = True
    ipv6: bool = False
    ipam_driver: str = "default"
    ipam_options: dict[str, str] = {}
    predefined: bool = False
    packages: dict[str, str] = {}  # that its drivers came with, by side ("driver", "ipam"), where they are not built in
    facts: dict[str, dict[str, Any]] = {}  # what its drivers found out in the world, by side
    forwards: bool = True  # False: whether the host forwards for it is the administrator's affair (``ip-forward``)

    @property
    def resolves_names(self) -> bool:
        """User-defined networks resolve their members' names; the predefined ones do not, as in Docker."""
        return not self.predefined

    def pool(self, family: int) -> AddressPool | None:
        """The first pool of *family* (4 or 6)."""
        return next((pool for pool in self.pools if pool.family == family), None)

    def pool_of(self, address: IPAddress) -> AddressPool | None:
        """The pool whose subnet contains *address*."""
        return next((pool for pool in self.pools if pool.family == address.version and address in pool.subnet), None)

    @property
    def short_id(self) -> str:
        return self.id[:12]


class PortMapping(Struct, frozen=True, kw_only=True):
    """One container port published on one host port.

    ``host_ip`` None means every address of the host; 0.0.0.0 and :: mean every one of their family.
    """

    container_port: int
    host_port: int
    protocol: Protocol = Protocol.TCP
    host_ip: IPAddress | None = None

    def meets(self, other: IPAddress | None) -> bool:
        """Whether this mapping's place on the host and *other* (the same port on another ``host_ip``) share an address."""
        mine = self.host_ip
        if mine is None or other is None:
            return True
        return mine.version == other.version and (mine == other or mine.is_unspecified or other.is_unspecified)


class Link(Struct, frozen=True):
    """Docker's ``--link name:alias``: inside this endpoint's sandbox, *alias* means the sandbox called *name*."""

    name: str
    alias: str


class ResolverConfig(Struct, frozen=True, kw_only=True):
    """What a sandbox asked of its resolver; empty means: as on the host."""

    servers: Annotated[tuple[IPAddress, ...], Asked("a list or tuple of IP addresses")] = ()
    search: Annotated[tuple[str, ...], Asked("a list or tuple of texts")] = ()
    options: Annotated[tuple[str, ...], Asked("a list or tuple of texts")] = ()
    extra_hosts: Annotated[
        tuple[tuple[str, IPAddress], ...], Asked("a list or tuple of pairs of a name and an IP address")
    ] = ()


class Sandbox(Struct, frozen=True, kw_only=True):
    """One container's network stack: a netns, and what its resolver is told."""

    id: str
    name: str
    created: float  # seconds since the epoch
    netns: NetnsRef
    owned: bool  # we made the netns, and it goes with the sandbox
    hostname: str = ""
    domainname: str = ""
    resolver: ResolverConfig = ResolverConfig()
    dns_port: int = 0  # where netlibd listens on 127.0.0.11 inside an owned netns
    files_dir: str = ""  # folder of its resolv.conf, hosts and hostname
    sysctls: tuple[tuple[str, str], ...] = ()  # path and value of each that an owned netns was asked to have
    cni_container: str = ""  # as its runtime calls it, where a CNI call made the sandbox: it goes with its last endpoint

    @property
    def short_id(self) -> str:
        return self.id[:12]


class Endpoint(Struct, frozen=True, kw_only=True):
    """One sandbox's place in one network: link, addresses, names, ports."""

    id: str
    network: str  # id
    sandbox: str  # id
    created: float  # seconds since the epoch
    ifname: str = ""  # empty where the driver gives no link (host, none)
    mac: str = ""
    addresses: tuple[IPInterface, ...] = ()
    aliases: tuple[str, ...] = ()
    ports: tuple[PortMapping, ...] = ()
    links: tuple[Link, ...] = ()
    gw_priority: int = 0
    options: dict[str, str] = {}
    facts: dict[str, dict[str, Any]] = {}  # what the network's drivers found out for it in the world, by side

    def address(self, family: int) -> IPInterface | None:
        """The first address of *family* (4 or 6), with its prefix length."""
        return next((address for address in self.addresses if address.version == family), None)

    @property
    def short_id(self) -> str:
        return self.id[:12]


class CniNetwork(Struct, frozen=True, kw_only=True):
    """A network that CNI configurations describe: it holds what its attachments share, such as a bridge, and outlives them."""

    id: str
    name: str
    created: float  # seconds since the epoch


class CniAttachment(Struct, frozen=True, kw_only=True):
    """What one CNI plugin did for one interface of one container in one network."""

    id: str
    network: str  # id of a CniNetwork
    container: str
    ifname: str
    plugin: str
    netns: NetnsRef
    created: float  # seconds since the epoch
    result: dict[str, Any] = {}  # what ADD answered, in the newest version of the specification
    sandbox: str = ""  # ids, where the attachment is an endpoint of a network of ours
    endpoint: str = ""


class Event(Struct, frozen=True, kw_only=True):
    """Something that has happened to a record, in Docker's words: a *type* of thing, an *action*, whose record it is."""

    type: str  # "network", "container", "sandbox", "cni", "system"
    action: str  # "create", "connect", "disconnect", "destroy", "start", "die", …
    id: str = ""
    attributes: dict[str, str] = {}
