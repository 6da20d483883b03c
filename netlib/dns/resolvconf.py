"""resolv.conf and hosts: read the host's, make a sandbox's. Pure text in, text out.

Values of a person (search domains, options, names of extra hosts) get into a file that is read line by line and word by word,
so a value that could become several words or lines is refused.
"""

import ipaddress
from collections.abc import Iterable, Sequence

from msgspec import Struct

from netlib.errors import ConfigError
from netlib.model import IPAddress, ResolverConfig
from netlib.names import check_resolver_option, check_search_domain, is_domain, is_resolver_option

__all__ = [
    "UPLINK_RESOLV_CONF",
    "HostResolver",
    "check_host_name",
    "check_resolver",
    "hosts_file",
    "parse_resolv_conf",
    "sandbox_resolv_conf",
]

# Docker's, for a sandbox that asks servers itself where the host has only loopback ones.
_FALLBACK = {4: ("8.8.8.8", "8.8.4.4"), 6: ("2001:4860:4860::8888", "2001:4860:4860::8844")}
UPLINK_RESOLV_CONF = "/run/systemd/resolve/resolv.conf"
_SYSTEMD_STUB = ipaddress.ip_address("127.0.0.53")
_NDOTS = "ndots:0"  # as in Docker: a bare name is asked for before any search domain is added
_LOCALHOST = """\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""


class HostResolver(Struct, frozen=True):
    """The content of a resolv.conf."""

    servers: tuple[IPAddress, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def is_stub(self) -> bool:
        """Whether the only server is systemd-resolved's stub; the servers behind it are in ``UPLINK_RESOLV_CONF``."""
        return self.servers == (_SYSTEMD_STUB,)


def parse_resolv_conf(text: str) -> HostResolver:
    """Read a resolv.conf as resolv.conf(5) does: the last ``search`` (or ``domain``) counts, options add up.

    A line or value that cannot be understood is left out, as by the C library.
    """
    servers: list[IPAddress] = []
    search: tuple[str, ...] = ()
    options: list[str] = []
    for line in text.splitlines():
        keyword, *values = line.split() or [""]
        if not values:
            continue
        if keyword == "nameserver":
            try:
                servers.append(ipaddress.ip_address(values[0]))
            except ValueError:
                continue
        elif keyword in ("search", "domain"):
            search = tuple(filter(is_domain, values))
        elif keyword == "options":
            options += filter(is_resolver_option, values)
    return HostResolver(tuple(servers), search, tuple(options))


def check_resolver(resolver: ResolverConfig) -> None:
    """Raise ConfigError for a search domain, option or extra host that the files cannot have."""
    for domain in resolver.search:
        check_search_domain(domain)
    for option in resolver.options:
        check_resolver_option(option)
    for name, _ in resolver.extra_hosts:
        check_host_name(name)


def check_host_name(name: str) -> None:
    """Raise ConfigError for a text that cannot be a host's name."""
    if not is_domain(name):
        raise ConfigError(f'host name "{name}": letters, digits, "-" and "_" in labels of 1 to 63')


def sandbox_resolv_conf(
    resolver: ResolverConfig, host: HostResolver, *, embedded: IPAddress | None, ipv6: bool = False, in_host_netns: bool = False
) -> str:
    """The resolv.conf of a sandbox.

    *embedded* is the address of our resolver for the sandbox (127.0.0.11, or the network's gateway), which asks the servers
    then. Without it the sandbox asks servers itself: its own, else the host's without loopback ones (and without IPv6 ones
    unless it has *ipv6*), else Docker's fallback. In the host's netns all of the host's servers can be reached. Search domains
    and options are the sandbox's own, else the host's; ``ndots:0`` is added with *embedded* unless an option sets ndots.
    """
    check_resolver(resolver)
    if embedded is not None:
        servers: Sequence[IPAddress] = (embedded,)
    elif resolver.servers or in_host_netns:
        servers = resolver.servers or host.servers
    else:
        servers = _reachable(host.servers, ipv6)
    search = [domain for domain in resolver.search or host.search if domain != "."]
    options = list(resolver.options or host.options)
    if embedded is not None and not any(option.startswith("ndots:") for option in options):
        options.append(_NDOTS)
    lines = [f"nameserver {server}" for server in servers]
    if search:
        lines.append(f"search {' '.join(search)}")
    if options:
        lines.append(f"options {' '.join(options)}")
    return "".join(f"{line}\n" for line in lines)


def _reachable(servers: Iterable[IPAddress], ipv6: bool) -> Sequence[IPAddress]:
    """The host's servers that another netns can reach: without loopback and link-local ones, which need the host's links."""
    found = [
        server for server in servers if not server.is_loopback and not server.is_link_local and (server.version == 4 or ipv6)
    ]
    if found:
        return found
    return [ipaddress.ip_address(text) for version in ((4, 6) if ipv6 else (4,)) for text in _FALLBACK[version]]


def hosts_file(
    hostname: str,
    domainname: str,
    addresses: Iterable[IPAddress],
    extra_hosts: Iterable[tuple[str, IPAddress]] = (),
    *,
    names: Iterable[str] = (),
) -> str:
    """The hosts file of a sandbox: localhost as in Docker, then the extra hosts, then its own addresses.

    Its own names are the host name with the domain, the bare host name, and *names* (the sandbox's name, say).
    """
    full = f"{hostname}.{domainname}" if hostname and domainname else hostname
    own = list(dict.fromkeys(name for name in (full, full.partition(".")[0], *names) if name))
    extra_hosts = tuple(extra_hosts)
    for name in (*own, *(name for name, _ in extra_hosts)):
        check_host_name(name)
    lines = [f"{address}\t{name}" for name, address in extra_hosts]
    if own:
        lines += [f"{address}\t{' '.join(own)}" for address in addresses]
    return _LOCALHOST + "".join(f"{line}\n" for line in lines)
