"""The plugin type ``host-local``: addresses from ranges, each leased to one container in a file, as the reference keeps them.

A host may change from the reference plugin to netlib and back while containers run: each respects and frees the files of the
other. An address is chosen in the transaction that writes its holder down, and its file is made afterwards; where the reference
has made that file meanwhile, another address is chosen (see :class:`netlib.core.pending_attachment.PendingAttachment`).
"""

import os
import stat
from collections.abc import Collection, Iterable
from ipaddress import ip_interface
from itertools import islice

from msgspec import Struct, field

from cni_plugins.addressing import Lease
from cni_plugins.attaching import attachments_of, check, collect, delete, finish, key_of, netns_of, recorded_result
from cni_plugins.decode import Address, Cidr, parse_address, parse_cidr
from cni_plugins.netconf import Ipam, NetConf, required_ipam
from cni_plugins.node import Node
from cni_plugins.protocol import CniError, Code, at_least
from cni_plugins.reference import forget_container
from cni_plugins.result import IP, Dns, Result, Route
from cni_plugins.skel import Call
from ipam.host_local import RangeSet, RangeSpec, parse_range_sets
from ipam.lease_files import LeaseFile, LeaseFolder, lease_text, parse_lease
from netlib.core.pending_attachment import PendingAttachment, Wanted
from netlib.errors import AddressTaken, AlreadyExists, ConfigError, PoolExhausted
from netlib.kernel.handle import Kernel
from netlib.model import HOST, IPAddress
from netlib.plan import Plan
from netlib.store.records import Transaction

__all__ = ["HostLocalConf", "HostLocalPlugin"]

_DATA_DIR = "/var/lib/cni/networks"
_FIRST_LOOK = 4  # addresses looked up together; twice as many each next time, for taken ones lie together
_WIDEST_LOOK = 1024
_RESOLV_CONF_BYTES = 1 << 20


class RangeConf(Struct, frozen=True, rename="camel"):
    """One range of addresses."""

    subnet: Cidr | None = None
    range_start: Address | None = None
    range_end: Address | None = None
    gateway: Address | None = None

    @property
    def spec(self) -> RangeSpec:
        return RangeSpec(self.subnet, self.range_start, self.range_end, self.gateway)


class HostLocalIpam(Ipam, frozen=True, kw_only=True, rename="camel"):
    """The key ``ipam``; a subnet in it is a range set of its own, before ``ranges``."""

    subnet: Cidr | None = None
    range_start: Address | None = None
    range_end: Address | None = None
    gateway: Address | None = None
    ranges: tuple[tuple[RangeConf, ...], ...] = ()
    routes: tuple[Route, ...] = ()
    data_dir: str = ""
    resolv_conf: str = ""


class RuntimeConfig(Struct, frozen=True, kw_only=True):
    """The capabilities ``ips`` and ``ipRanges``; a prefix length of an address is ignored."""

    ips: tuple[str, ...] = ()
    ip_ranges: tuple[tuple[RangeConf, ...], ...] = field(name="ipRanges", default=())


class RequestedIPs(Struct, frozen=True):
    """The key ``args.cni``."""

    ips: tuple[str, ...] = ()


class Args(Struct, frozen=True):
    """The key ``args``."""

    cni: RequestedIPs = RequestedIPs()


class HostLocalConf(NetConf, frozen=True, kw_only=True, rename="camel"):
    """The configuration of the calling plugin, as host-local reads it."""

    ipam: HostLocalIpam | None = None
    runtime_config: RuntimeConfig = RuntimeConfig()
    args: Args = Args()


class HostLocalPlugin:
    """The verbs of this type, and the leases of main plugins in the same process."""

    name = "host-local"
    config = HostLocalConf

    def __init__(self, node: Node) -> None:
        self._node = node

    def lease(self, call: Call[HostLocalConf], tx: Transaction, pending: PendingAttachment) -> Lease:
        """Choose an address of each range set, the requested one where there is one.

        Raises PoolExhausted, AddressTaken for a requested address, ConfigError and CniError.
        """
        return _choose(call, tx, pending.record, pending.plan)

    def add(self, call: Call[HostLocalConf]) -> Result:
        answer = Result()

        def draft(tx: Transaction) -> Wanted:
            nonlocal answer
            lease = self.lease(call, tx, made)
            answer = lease.result
            return Wanted(lease.plan)

        made: PendingAttachment
        attachments, key = attachments_of(self._node), key_of(call, self.name)
        # A caller of host-local alone may name no netns. Such a lease ends by DEL or GC only: no netns tells that it is stale.
        netns = netns_of(self._node, call) if self._node.netns is not None else HOST
        try:
            with attachments.pending(key, netns, self._node.netns) as made:
                self._node.check_awaited()
                made.apply(draft)
                return finish(made, call, answer)
        except AlreadyExists as error:
            found = attachments.find(key)
            leased = ", ".join(str(ip.address.ip) for ip in recorded_result(found).ips) if found is not None else "an address"
            msg = f"{leased} has been allocated to {call.container_id}, duplicate allocation is not allowed"
            raise CniError(Code.CONFLICT, msg, str(error)) from None

    def check(self, call: Call[HostLocalConf]) -> None:
        """Check that each range set still holds one of the addresses of prevResult for the container."""
        if check(self._node, call, self.name) is not None:
            return
        assert call.prev_result is not None
        folder, text = _folder(call), lease_text(call.container_id, call.ifname)
        addresses = [ip.address.ip for ip in call.prev_result.ips]
        held = [address for address in addresses if folder.holder(address) in (text, call.container_id)]
        lost = [
            ", ".join(str(address) for address in leased)
            for ranges in _range_sets(call)
            if (leased := [address for address in addresses if ranges.find(address)]) and not set(leased) & set(held)
        ]
        if lost or not held:
            raise CniError(
                Code.DRIFT,
                f"host-local: Failed to find address added by container {call.container_id}",
                f"no file in {folder.path} holds {'; '.join(lost) or 'an address of prevResult'} for {call.ifname}",
            )

    def delete(self, call: Call[HostLocalConf]) -> None:
        delete(self._node, call, self.name, lambda: self._free(call))

    def _free(self, call: Call[HostLocalConf]) -> None:
        """Free what the reference plugin left for the container; its files of before 2018 name no interface."""
        folder = _folder(call)
        leases = list(folder.leases())
        for text in (lease_text(call.container_id, call.ifname), call.container_id):
            if self._free_unrecorded(folder, [lease for lease in leases if lease[1] == text]):
                return

    def garbage_collect(self, call: Call[HostLocalConf]) -> None:
        """Remove attachments that are not valid, and what the reference left for containers that only a lease file names."""
        collect(self._node, call, self.name)
        folder = _folder(call)
        valid = {lease_text(item.container_id, item.ifname) for item in call.valid_attachments}
        valid |= {item.container_id for item in call.valid_attachments}
        leases = self._without_record(folder, [lease for lease in folder.leases() if lease[1] not in valid])
        with Kernel() as kernel:
            for address, text in leases:
                container, ifname = parse_lease(text)
                forget_container(kernel, call.network, container, ifname, {address})
                folder.free(address, (text,))

    def _free_unrecorded(self, folder: LeaseFolder, leases: Collection[tuple[IPAddress, str]]) -> bool:
        """Free those of *leases* that no record holds; the others are freed with their record. False for no leases."""
        for address, text in self._without_record(folder, leases):
            folder.free(address, (text,))
        return bool(leases)

    def _without_record(self, folder: LeaseFolder, leases: Collection[tuple[IPAddress, str]]) -> list[tuple[IPAddress, str]]:
        if not leases:
            return []
        with attachments_of(self._node).store.read() as tx:
            held = _held(tx, folder, [address for address, _ in leases])
        return [lease for lease in leases if lease[0] not in held]

    def status(self, call: Call[HostLocalConf]) -> None:
        """Choose addresses as an ADD would, without recording them; reclaim those of containers that are gone, if need be."""
        attachments = attachments_of(self._node)
        _folder(call).ensure()
        try:
            with attachments.store.read() as tx:
                _choose(call, tx)
        except (PoolExhausted, AddressTaken):
            if not attachments.reclaim(call.network):
                raise
            with attachments.store.read() as tx:
                _choose(call, tx)


# --- choosing ------------------------------------------------------------------------------------------------------------


def _choose(call: Call[HostLocalConf], tx: Transaction, record: str = "", chosen: Plan | None = None) -> Lease:
    """Choose an address of each range set for *record*; addresses that its plan *chosen* has already are kept."""
    folder, requested = _folder(call), _requested(call)
    before = {item.range_set: item.address for item in (chosen or Plan()).of(LeaseFile) if item.folder == folder.path}
    ips, files = [], []
    for index, ranges in enumerate(_range_sets(call)):
        wanted = next((address for address in requested if ranges.find(address)), None)
        if wanted is not None:
            requested.remove(wanted)
        try:
            if index in before:
                address = before[index]
            elif wanted is not None:
                address = _take(wanted, ranges, folder, tx, record)
            else:
                address = _find_free(ranges, index, folder, tx, record)
        except (ConfigError, AddressTaken, PoolExhausted) as error:
            raise type(error)(f"failed to allocate for range {index}: {error}") from None
        found = ranges.find(address)
        assert found is not None
        ips.append(IP(ip_interface((address, found.subnet.prefixlen)), found.gateway))
        files.append(
            LeaseFile(folder=folder.path, address=address, container=call.container_id, ifname=call.ifname, range_set=index)
        )
    if requested:
        raise ConfigError(f"failed to allocate all requested IPs: {' '.join(str(address) for address in requested)}")
    assert call.config.ipam is not None
    return Lease(Result(ips=tuple(ips), routes=call.config.ipam.routes, dns=_dns(call.config.ipam.resolv_conf)), Plan(*files))


def _take(address: IPAddress, ranges: RangeSet, folder: LeaseFolder, tx: Transaction, record: str) -> IPAddress:
    found = ranges.find(address)
    if found is not None and address == found.gateway:
        raise ConfigError(f"requested ip {address} is subnet's gateway")
    if folder.has(address) or _held(tx, folder, [address], record):
        raise AddressTaken(f"requested IP address {address} is not available in range set {ranges}")
    return address


def _find_free(ranges: RangeSet, index: int, folder: LeaseFolder, tx: Transaction, record: str) -> IPAddress:
    order = ranges.order(folder.last_reserved(index))
    width = _FIRST_LOOK
    while look := list(islice(order, width)):
        without_file = [address for address in look if not folder.has(address)]
        held = _held(tx, folder, without_file, record) if without_file else ()
        free = next((address for address in without_file if address not in held), None)
        if free is not None:
            return free
        width = min(2 * width, _WIDEST_LOOK)
    raise PoolExhausted(f"no IP addresses available in range set: {ranges}")


def _held(tx: Transaction, folder: LeaseFolder, addresses: Iterable[IPAddress], record: str = "") -> set[IPAddress]:
    """Those of *addresses* that a record other than *record* holds or is about to hold."""
    keys = {address: LeaseFile(folder=folder.path, address=address, container="", ifname="").key for address in addresses}
    holders = tx.holders(keys.values(), besides=[record])
    return {address for address, key in keys.items() if str(key) in holders}


# --- reading the configuration -------------------------------------------------------------------------------------------


def _folder(call: Call[HostLocalConf]) -> LeaseFolder:
    """The folder of the network's lease files. DEL and GC read nothing else of the configuration."""
    data_dir = (call.config.ipam.data_dir if call.config.ipam is not None else "") or _DATA_DIR
    if not data_dir.startswith("/") or "\0" in data_dir:
        raise CniError(Code.INVALID_CONFIG, f"host-local: ipam.dataDir: {data_dir!a} is no absolute path")
    return LeaseFolder(os.path.normpath(f"/{data_dir.lstrip('/')}/{call.network}"))


def _range_sets(call: Call[HostLocalConf]) -> tuple[RangeSet, ...]:
    ipam = required_ipam(call.config.ipam)
    own = [[RangeSpec(ipam.subnet, ipam.range_start, ipam.range_end, ipam.gateway)]] if ipam.subnet is not None else []
    written = [[item.spec for item in ranges] for ranges in (*call.config.runtime_config.ip_ranges, *ipam.ranges)]
    given = len(call.config.runtime_config.ip_ranges)
    found = parse_range_sets([*written[:given], *own, *written[given:]])
    families = [ranges[0].subnet.version for ranges in found]
    if len(families) > len(set(families)) and not at_least(call.version, "0.3.0"):
        raise CniError(Code.INVALID_CONFIG, f"CNI version {call.version} does not support more than 1 address per family")
    return found


def _requested(call: Call[HostLocalConf]) -> list[IPAddress]:
    """The addresses that *call* asks for, each once."""
    argument = call.arguments("IP").get("IP")
    asked = (
        [_address(argument, Code.INVALID_ENVIRONMENT, f'ARGS: error parsing value of pair "IP={argument}": ')]
        if argument
        else []
    )
    texts = (*call.config.args.cni.ips, *call.config.runtime_config.ips)
    return list(dict.fromkeys([*asked, *(_address(text, Code.INVALID_CONFIG) for text in texts)]))


def _address(text: str, code: Code, where: str = "") -> IPAddress:
    try:
        return parse_cidr(text).ip if "/" in text else parse_address(text)
    except ValueError as error:
        raise CniError(code, f"{where}invalid IP address {text}", str(error)) from None


def _dns(path: str) -> Dns:
    """The resolver's configuration in the resolv.conf at *path*, as the reference reads it."""
    if not path:
        return Dns()
    words: dict[str, list[str]] = {}
    for line in _resolv_conf(path).splitlines():
        keyword, *values = line.split() or [""]
        if keyword == "domain":
            words[keyword] = values[:1] or words.get(keyword, [])
        elif values:
            words.setdefault(keyword, []).extend(values[:1] if keyword == "nameserver" else values)
    return Dns(
        nameservers=tuple(words.get("nameserver", ())),
        domain="".join(words.get("domain", ())),
        search=tuple(words.get("search", ())),
        options=tuple(words.get("options", ())),
    )


def _resolv_conf(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ValueError("it is no regular file")
            return file.read(_RESOLV_CONF_BYTES).decode(errors="replace")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CniError(Code.IO_FAILURE, f"host-local: ipam.resolvConf: cannot read {path!a}", str(reason)) from None
