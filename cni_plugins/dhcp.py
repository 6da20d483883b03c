"""The plugin type ``dhcp``: addresses that a DHCP server on the container's network leases.

The plugin asks in the container's netns over the container's link, so the container needs no DHCP client of its own. netlibd
renews the lease; the reference's daemon and its socket are not needed.
"""

from ipaddress import IPv4Interface

from msgspec import Struct

from cni_plugins import attaching
from cni_plugins.addressing import Lease
from cni_plugins.netconf import Ipam, NetConf, required_ipam
from cni_plugins.node import Node
from cni_plugins.protocol import CniError, Code
from cni_plugins.result import IP, Dns, Result, Route
from cni_plugins.skel import Call
from ipam.dhcp import Option, Terms
from ipam.dhcp_client import DhcpClient, LeaseAsked, granted_terms, kept_lease, lease_key
from netlib.core.pending_attachment import PendingAttachment, Wanted
from netlib.errors import DaemonError, Stuck
from netlib.kernel.links import LinkUp
from netlib.plan import Plan
from netlib.store.records import Transaction

__all__ = ["DhcpConf", "DhcpPlugin"]

SECONDS = 45.0
"""How long an ADD asks: a bridge with the spanning tree protocol forwards nothing for its first 30 s."""
_SCOPE_LINK = 253
_ASKED_BY_DEFAULT = (Option.ROUTERS, Option.SUBNET_MASK)
_LONGEST_VALUE = 255
_NAMES = {
    "dhcp-client-identifier": Option.CLIENT_IDENTIFIER,
    "subnet-mask": Option.SUBNET_MASK,
    "routers": Option.ROUTERS,
    "host-name": Option.HOST_NAME,
    "user-class": Option.USER_CLASS,
    "vendor-class-identifier": Option.VENDOR_CLASS,
}


class Provided(Struct, frozen=True, rename="camel"):
    """An option to send: by its number or name, with a value of its own, or with that of a key of CNI_ARGS."""

    option: str
    value: str = ""
    from_arg: str = ""


class Requested(Struct, frozen=True, rename="camel"):
    """An option to ask for; ``skipDefault`` leaves out what is asked for by default."""

    option: str = ""
    skip_default: bool = False


class DhcpIpam(Ipam, frozen=True, kw_only=True, rename="camel"):
    """The key ``ipam``; ``daemonSocketPath`` is read and ignored."""

    daemon_socket_path: str = ""
    priority: int = 0
    provide: tuple[Provided, ...] = ()
    request: tuple[Requested, ...] = ()


class DhcpConf(NetConf, frozen=True, kw_only=True, rename="camel"):
    """The configuration of the calling plugin, as dhcp reads it."""

    ipam: DhcpIpam | None = None


class DhcpPlugin:
    """The verbs of this type, and the lease of a main plugin in the same process."""

    name = "dhcp"
    config = DhcpConf

    def __init__(self, node: Node) -> None:
        self._node = node
        self._answer = Result()

    def ask(self, call: Call[DhcpConf], pending: PendingAttachment) -> None:
        """Get a lease from a DHCP server; the server's offer is written down for *pending* before the lease is requested.

        Raises DaemonError or Stuck when there is no netlibd to renew the lease, DeadlineExceeded when no server answers,
        NotFound for an offer without a subnet mask.
        """
        ipam = required_ipam(call.config.ipam)
        options = _options(call, ipam)
        self._require_netlibd()
        client = f"{call.container_id}/{call.network}/{call.ifname}"
        asked = LeaseAsked(netns=pending.netns, link=call.ifname, client=client, options=options, seconds=SECONDS)
        facts = pending.ask_world(DhcpClient(), asked, kept_lease)
        self._answer = _result(granted_terms(facts), ipam.priority)

    def lease(self, call: Call[DhcpConf], tx: Transaction, pending: PendingAttachment) -> Lease:
        """The lease that :meth:`ask` got; its object belongs to *pending* already."""
        return Lease(self._answer)

    def add(self, call: Call[DhcpConf]) -> Result:
        _options(call, required_ipam(call.config.ipam))  # refused before anything is made
        with attaching.pending_attachment(self._node, call, self.name) as made:
            made.apply(lambda _: Wanted(Plan(LinkUp(ifname=call.ifname, netns=made.netns))))
            self.ask(call, made)
            return attaching.finish(made, call, self._answer)

    def check(self, call: Call[DhcpConf]) -> None:
        """Check that the lease is held, by dhcp's own attachment or by that of a main plugin that asked in the same process."""
        if attaching.check(self._node, call, self.name) is not None:
            return
        key = lease_key(call.netns, call.ifname)
        with attaching.attachments_of(self._node).store.read() as tx:
            held = tx.holders([key], besides=[])
        if not held:
            raise CniError(Code.DRIFT, f"dhcp: no lease of container {call.container_id}", f"for {call.ifname} in {call.netns}")

    def delete(self, call: Call[DhcpConf]) -> None:
        attaching.delete(self._node, call, self.name, lambda: None)

    def garbage_collect(self, call: Call[DhcpConf]) -> None:
        attaching.collect(self._node, call, self.name)

    def status(self, call: Call[DhcpConf]) -> None:
        _options(call, required_ipam(call.config.ipam))
        self._require_netlibd()

    def _require_netlibd(self) -> None:
        try:
            self._node.controller.watcher.changed(sandboxes=(), networks=(), needed=True)
        except (DaemonError, Stuck) as error:
            raise type(error)(f"nobody could renew a DHCP lease: {error}") from error


def _options(call: Call[DhcpConf], ipam: DhcpIpam) -> tuple[tuple[int, bytes], ...]:
    """The options of every DHCP request; CniError for an unknown option, and for a value that is too long."""
    arguments = dict(pair.partition("=")[::2] for pair in call.args.split(";"))
    options: dict[int, bytes] = {}
    for entry in ipam.provide:
        code = _code(entry.option)
        for value, where in ((entry.value, ""), (arguments.get(entry.from_arg, ""), f' from CNI_ARGS "{entry.from_arg}"')):
            if len(value.encode()) > _LONGEST_VALUE:
                raise CniError(Code.INVALID_CONFIG, f'value too long for option "{entry.option}"{where}: "{value}"')
            if value:
                options[code] = value.encode()
    wanted = [_code(entry.option) for entry in ipam.request if entry.option]
    if not any(entry.skip_default for entry in ipam.request):
        wanted += _ASKED_BY_DEFAULT
    if wanted:
        options[Option.PARAMETERS] = bytes(dict.fromkeys(wanted))
    return tuple(options.items())


def _code(option: str) -> int:
    if option in _NAMES:
        return _NAMES[option]
    if option.isascii() and option.isdecimal() and Option.PAD < int(option) < Option.END:
        return int(option)
    details = f"it is a number from 1 to 254, or one of {', '.join(_NAMES)}"
    raise CniError(Code.INVALID_CONFIG, f'Can not parse option "{option}"', details)


def _result(terms: Terms, priority: int) -> Result:
    routes = (
        Route(IPv4Interface(target), router, priority=priority, scope=_SCOPE_LINK if router.is_unspecified else None)
        for target, router in terms.routes
    )
    return Result(
        ips=(IP(terms.address, terms.gateway),),
        routes=tuple(routes),
        dns=Dns(nameservers=terms.name_servers, domain=terms.domain, search=terms.search),
    )
