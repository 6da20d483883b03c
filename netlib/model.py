"""The records of the Container Network Model (network, sandbox, endpoint) and of CNI, and the structs in them. All are frozen.

A record holds the options of a request and the facts that drivers found out; the kernel objects are computed from it. Nothing
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
    "RESOLVER_ADDRESS",
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
    """The state of a record's work; only ``READY`` records are found by name and have their names resolved."""

    CREATING = "creating"
    READY = "ready"
    REMOVING = "removing"


class Scope(StrEnum):
    """The extent of a network: this host, or all hosts of the cluster."""

    LOCAL = "local"
    GLOBAL = "global"


class Protocol(StrEnum):
    """The transport protocol of a published port."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"  # in CNI port mappings only: it cannot be held by a socket where the kernel's module is not loaded


class NetnsRef(Struct, frozen=True):
    """A network namespace: its path and, once known, its identity.

    ``identity`` is ``<boot id>:<SO_NETNS_COOKIE>``: inode numbers are reused at once, cookies never within a boot. An empty
    path stands for the netns that the store describes, which is called the host.
    """

    path: str
    identity: str = ""

    @property
    def is_host(self) -> bool:
        return not self.path

    @property
    def label(self) -> str:
        """The name for people and in keys: ``host``, the last part of a path in ``/run/netns``, or the path."""
        if not self.path:
            return "host"
        return self.path.removeprefix("/run/netns/")


HOST = NetnsRef("")
GATEWAY = "gateway"
"""The owner of the lease of a network's gateway address."""
AUXILIARY = "auxiliary:"
"""The owner of an auxiliary address's lease is this prefix followed by the address's name."""
RESOLVER_ADDRESS = ipaddress.IPv4Address("127.0.0.11")
"""Where the processes of an owned netns find netlibd's resolver; it is Docker's too."""


class AddressPool(Struct, frozen=True, kw_only=True):
    """One subnet of a network, the range of its dynamic addresses, and the addresses reserved in it."""

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
        """The next hop of members: the auxiliary address ``DefaultGatewayIPv4`` (6), as with Docker, else the gateway."""
        return self.auxiliary.get(f"DefaultGatewayIPv{self.family}", self.gateway)

    @property
    def gateway_interface(self) -> IPInterface | None:
        """The gateway with the prefix length of the subnet, as the bridge has it."""
        return ipaddress.ip_interface(f"{self.gateway}/{self.subnet.prefixlen}") if self.gateway else None


class Network(Struct, frozen=True, kw_only=True):
    """The record of a network: endpoints of one driver that reach each other directly."""

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
    packages: dict[str, str] = {}  # the packages of its drivers that are not built in, by side ("driver", "ipam")
    facts: dict[str, dict[str, Any]] = {}  # the facts of its drivers' ``prepare``, by side
    forwards: bool = True  # False: netlib does not switch the host's forwarding on for it (``ip-forward``)

    @property
    def resolves_names(self) -> bool:
        """Whether names of members are resolved: in user-defined networks, and not in predefined ones, as with Docker."""
        return not self.predefined

    def pool(self, family: int) -> AddressPool | None:
        """Return the first pool of *family* (4 or 6), or None."""
        return next((pool for pool in self.pools if pool.family == family), None)

    def pool_of(self, address: IPAddress) -> AddressPool | None:
        """Return the pool whose subnet contains *address*, or None."""
        return next((pool for pool in self.pools if pool.family == address.version and address in pool.subnet), None)

    @property
    def short_id(self) -> str:
        return self.id[:12]


class PortMapping(Struct, frozen=True, kw_only=True):
    """One container port that is published on one host port.

    ``host_ip`` None stands for all addresses of the host, 0.0.0.0 and :: for all addresses of their family.
    """

    container_port: int
    host_port: int
    protocol: Protocol = Protocol.TCP
    host_ip: IPAddress | None = None

    @property
    def place(self) -> str:
        """The host port for messages: ``port 8080/tcp on 10.0.0.1``."""
        return f"port {self.host_port}/{self.protocol}" + (f" on {self.host_ip}" if self.host_ip else "")

    def meets(self, other: IPAddress | None) -> bool:
        """Whether this mapping's ``host_ip`` and *other*, the ``host_ip`` of a mapping of the same port, share an address."""
        mine = self.host_ip
        if mine is None or other is None:
            return True
        return mine.version == other.version and (mine == other or mine.is_unspecified or other.is_unspecified)


class Link(Struct, frozen=True):
    """Docker's ``--link name:alias``: in this endpoint's sandbox, *alias* resolves to the sandbox called *name*."""

    name: str
    alias: str


class ResolverConfig(Struct, frozen=True, kw_only=True):
    """The resolver options of a sandbox; for an empty one the host's value is used."""

    servers: Annotated[tuple[IPAddress, ...], Asked("a list or tuple of IP addresses")] = ()
    search: Annotated[tuple[str, ...], Asked("a list or tuple of texts")] = ()
    options: Annotated[tuple[str, ...], Asked("a list or tuple of texts")] = ()
    extra_hosts: Annotated[
        tuple[tuple[str, IPAddress], ...], Asked("a list or tuple of pairs of a name and an IP address")
    ] = ()


class Sandbox(Struct, frozen=True, kw_only=True):
    """The record of a container's network stack: a netns, and the configuration of its resolver."""

    id: str
    name: str
    created: float  # seconds since the epoch
    netns: NetnsRef
    owned: bool  # whether we made the netns, and delete it with the sandbox
    hostname: str = ""
    domainname: str = ""
    resolver: ResolverConfig = ResolverConfig()
    dns_port: int = 0  # the port at 127.0.0.11 in an owned netns on which netlibd listens
    files_dir: str = ""  # folder of its resolv.conf, hosts and hostname
    sysctls: tuple[tuple[str, str], ...] = ()  # path and value of each sysctl requested for an owned netns
    cni_container: str = ""  # the runtime's id if a CNI call made the sandbox; it is removed with its last endpoint

    @property
    def short_id(self) -> str:
        return self.id[:12]


class Endpoint(Struct, frozen=True, kw_only=True):
    """The record of one sandbox's membership in one network: link, addresses, names, ports."""

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
    facts: dict[str, dict[str, Any]] = {}  # the facts of the network's drivers' ``prepare``, by side

    def address(self, family: int) -> IPInterface | None:
        """Return the first address of *family* (4 or 6), with its prefix length, or None."""
        return next((address for address in self.addresses if address.version == family), None)

    @property
    def short_id(self) -> str:
        return self.id[:12]


class CniNetwork(Struct, frozen=True, kw_only=True):
    """The record of a network of CNI configurations, which holds the objects that attachments share, such as a bridge.

    It is kept when its last attachment is removed.
    """

    id: str
    name: str
    created: float  # seconds since the epoch


class CniAttachment(Struct, frozen=True, kw_only=True):
    """The record of what one CNI plugin did for one interface of one container in one network."""

    id: str
    network: str  # id of a CniNetwork
    container: str
    ifname: str
    plugin: str
    netns: NetnsRef
    created: float  # seconds since the epoch
    result: dict[str, Any] = {}  # the result of ADD, in the newest version of the specification
    sandbox: str = ""  # the ids of sandbox and endpoint, if the attachment connects to a network of the CNM
    endpoint: str = ""


class Event(Struct, frozen=True, kw_only=True):
    """Something that happened to a record, in Docker's terms: the record's *type* and *id*, and the *action*."""

    type: str  # "network", "container", "sandbox", "cni", "system"
    action: str  # "create", "connect", "disconnect", "destroy", "start", "die", …
    id: str = ""
    attributes: dict[str, str] = {}
