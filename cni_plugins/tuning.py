"""The plugin type ``tuning``: sysctls of the container, and settings of the link that the plugins before it made.

The former values are in the record. The reference plugin keeps them in a file instead, which a DEL without a record reads.
A list may tune an interface several times: each entry is an attachment of its own, and the first DEL undoes all of them.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field
from msgspec.structs import replace

from cni_plugins import attaching
from cni_plugins.chained import previous
from cni_plugins.decode import convert, read_json
from cni_plugins.interface import checked_mtu, requested_mac
from cni_plugins.netconf import NetConf
from cni_plugins.node import Node
from cni_plugins.protocol import CniError, Code
from cni_plugins.result import Result
from cni_plugins.single_link import MacRequest
from cni_plugins.skel import Call
from netlib.core.pending_attachment import Wanted
from netlib.errors import NetlibError, ObjectMissing, TeardownError
from netlib.kernel.sysctl import sysctl_path
from netlib.kernel.translate import doing
from netlib.kernel.tuning import LinkSetting, TunedSysctl
from netlib.model import HOST, CniAttachment, NetnsRef
from netlib.names import check_mac
from netlib.plan import KernelObject, Plan

__all__ = ["TuningConf", "TuningPlugin"]

NAME = "tuning"
_ENTRIES = (NAME, *(f"{NAME}#{number}" for number in range(2, 9)))  # plugin names in the records of one list's entries
_BACKUPS = "/run/cni/tuning"
_ALLOWLIST = Path("/etc/cni/tuning/allowlist.conf")
_LINK = "IFNAME"  # in the name of a sysctl: the container's link
_QueueLength = Annotated[int, Meta(ge=0, lt=1 << 32)]
Setting = Literal["mac", "mtu", "txqlen", "promisc", "allmulti"]


class TuningArgs(Struct, frozen=True, rename="camel"):
    """The keys under ``args.cni``, which override the configuration's own."""

    sysctl: dict[str, str] = {}
    mac: str | None = None
    promisc: bool | None = None
    mtu: int | None = None
    allmulti: bool | None = None
    tx_q_len: _QueueLength | None = field(name="txQLen", default=None)


class Args(Struct, frozen=True):
    """The key ``args``."""

    cni: TuningArgs = TuningArgs()


class TuningConf(NetConf, frozen=True, kw_only=True, rename="camel"):
    """The configuration. ``mtu`` 0 and ``promisc`` false leave the link as it is, as do others that are absent."""

    sysctl: dict[str, str] = field(default_factory=dict)
    mac: str = ""
    promisc: bool = False
    mtu: int = 0
    allmulti: bool | None = None
    tx_q_len: _QueueLength | None = field(name="txQLen", default=None)
    data_dir: str = ""
    args: Args = Args()
    runtime_config: MacRequest = MacRequest()


class Backup(Struct, frozen=True, rename="camel"):
    """The former settings of a link, in the file of the reference plugin."""

    mac: str = ""
    promisc: bool | None = None
    mtu: int = 0
    allmulti: bool | None = None
    tx_q_len: _QueueLength | None = field(name="txQLen", default=None)


class TuningPlugin:
    """The verbs of this type."""

    name = NAME
    config = TuningConf

    def __init__(self, node: Node) -> None:
        self._node = node

    def add(self, call: Call[TuningConf]) -> Result:
        result = previous(call)
        config = _merged(call)
        _check_allowed(config.sysctl)
        with attaching.pending_attachment(self._node, call, self._next_entry(call)) as pending:
            plan = _plan(config, call.ifname, pending.netns)
            pending.apply(lambda _: Wanted(plan))
            return attaching.finish(pending, call, _changed_result(result, config, call.ifname))

    def check(self, call: Call[TuningConf]) -> None:
        configured = _plan(_merged(call), call.ifname, attaching.netns_of(self._node, call))
        if attaching.check(self._node, call, NAME, configured) is None:
            return
        for entry in self._later_entries(call):
            attaching.check(self._node, call, entry)

    def delete(self, call: Call[TuningConf]) -> None:
        attachments = attaching.attachments_of(self._node)
        for entry in reversed(self._later_entries(call)):
            attachments.delete(attaching.key_of(call, entry))
        attaching.delete(self._node, call, NAME, lambda: self._restore_from_file(call))

    def garbage_collect(self, call: Call[TuningConf]) -> None:
        for entry in reversed(_ENTRIES):
            attaching.collect(self._node, call, entry)

    def status(self, call: Call[TuningConf]) -> None:
        config = _merged(call)
        _check_allowed(config.sysctl)
        _plan(config, "eth0", HOST)

    def _next_entry(self, call: Call[TuningConf]) -> str:
        """The plugin name to record the entry of *call* under: the first that is free in this container."""
        attachments, netns = attaching.attachments_of(self._node), attaching.netns_of(self._node, call)
        for entry in _ENTRIES:
            found = attachments.find(attaching.key_of(call, entry))
            if found is None or found.netns != netns:
                return entry
        return NAME

    def _later_entries(self, call: Call[TuningConf]) -> list[str]:
        """The plugin names under which entries besides the first are recorded, oldest first."""
        with attaching.attachments_of(self._node).store.read() as tx:
            return [
                entry for entry in _ENTRIES[1:] if tx.find_named(CniAttachment, attaching.key_of(call, entry).name) is not None
            ]

    def _restore_from_file(self, call: Call[TuningConf]) -> None:
        """Restore the settings that the reference plugin changed, from its file, and delete the file."""
        file = Path(call.config.data_dir or _BACKUPS) / f"{call.container_id}_{call.ifname}.json"
        with doing(f"read {file}"):
            try:
                written = file.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return
        try:
            backup = convert(read_json(written, str(file)), Backup, str(file))
            settings = _settings(backup, check_mac(backup.mac) if backup.mac else "")
        except NetlibError as error:
            call.stderr.append(f"{error}; the link is left as it is")
            return
        if self._node.netns is not None:
            self._set(call, settings)
        with doing(f"delete {file}"):
            file.unlink(missing_ok=True)

    def _set(self, call: Call[TuningConf], settings: Iterable[tuple[Setting, str]]) -> None:
        netns = attaching.netns_of(self._node, call)
        failures: list[NetlibError] = []
        with attaching.lent_kernel(self._node, call) as kernel:
            for setting, value in settings:
                try:
                    LinkSetting(ifname=call.ifname, setting=setting, value=value, netns=netns).ensure(kernel)
                except ObjectMissing:
                    return
                except NetlibError as error:
                    failures.append(error)
        if failures:
            raise TeardownError(failures)


def _merged(call: Call[TuningConf]) -> TuningConf:
    """The configuration with what ``args.cni``, the runtime and CNI_ARGS ask for, checked."""
    config, args = call.config, call.config.args.cni
    _refuse_duplicates(call)
    mac = args.mac if args.mac is not None else requested_mac(call, config.runtime_config.mac) or config.mac
    changes = {name: value for name in ("promisc", "mtu", "allmulti", "tx_q_len") if (value := getattr(args, name)) is not None}
    config = replace(config, sysctl={**config.sysctl, **args.sysctl}, mac=check_mac(mac) if mac else "", **changes)
    checked_mtu(config.mtu)
    return config


def _plan(config: TuningConf, ifname: str, netns: NetnsRef) -> Plan:
    sysctls = {
        path: TunedSysctl(name=path, value=value, netns=netns)
        for path, value in ((_path(name, ifname), value) for name, value in config.sysctl.items())
    }
    settings = _settings(replace(config, promisc=config.promisc or None), config.mac)
    links = [LinkSetting(ifname=ifname, setting=setting, value=value, netns=netns) for setting, value in settings]
    objects: list[KernelObject] = [*sysctls.values(), *links]
    return Plan(*objects)


def _settings(wanted: Any, mac: str) -> list[tuple[Setting, str]]:
    """The settings of a link that a configuration asks for, or that a backup holds."""
    found: list[tuple[Setting, str]] = []
    if mac:
        found.append(("mac", mac))
    if wanted.promisc is not None:
        found.append(("promisc", "on" if wanted.promisc else "off"))
    if wanted.mtu:
        found.append(("mtu", str(wanted.mtu)))
    if wanted.allmulti is not None:
        found.append(("allmulti", "on" if wanted.allmulti else "off"))
    if wanted.tx_q_len is not None:
        found.append(("txqlen", str(wanted.tx_q_len)))
    return found


def _changed_result(result: Result, config: TuningConf, ifname: str) -> Result:
    """*result* with the link's new MAC address, and its new MTU where *result* names one."""
    interfaces = tuple(
        replace(item, mac=config.mac or item.mac, mtu=config.mtu if config.mtu and item.mtu else item.mtu)
        if item.name == ifname
        else item
        for item in result.interfaces
    )
    return replace(result, interfaces=interfaces)


# --- names of sysctls ----------------------------------------------------------------------------------------------------


def _path(name: str, ifname: str) -> str:
    """The path of a sysctl below ``/proc/sys``; CniError where it is none of the network's."""
    path = sysctl_path(name)
    if not path.startswith("net/"):
        raise CniError(Code.INVALID_CONFIG, f'invalid net sysctl key: "{name}"', "tuning sets what is below net")
    return path.replace(_LINK, ifname, 1)


def _refuse_duplicates(call: Call[TuningConf]) -> None:
    """Raise CniError where the configuration names one sysctl twice: which value counts would be chance."""
    if not call.config.sysctl:
        return
    import json  # costs a millisecond of every start

    keys = msgspec.json.decode(call.stdin.decode(errors="replace"), type=dict[str, msgspec.Raw])
    written = next(bytes(value) for key, value in reversed(keys.items()) if key.lower() == "sysctl")
    names = [name for name, _ in json.loads(written, object_pairs_hook=list)]
    seen: set[str] = set()
    for name in names:
        path = _path(name, call.ifname)
        if path in seen:
            raise CniError(Code.INVALID_CONFIG, "duplicated sysctl keys are not allowed", f"{name} is given twice")
        seen.add(path)


def _check_allowed(names: Iterable[str]) -> None:
    """Raise CniError for a sysctl that no pattern in the host's list of allowed ones matches; without a list all are."""
    with doing(f"read {_ALLOWLIST}"):
        try:
            lines = _ALLOWLIST.read_text(errors="replace").splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return
    patterns = [line.strip() for line in lines if line.strip()]
    try:
        refused = [name for name in names if not any(re.search(pattern, name) for pattern in patterns)]
    except re.error as error:
        raise CniError(Code.INVALID_CONFIG, f"{_ALLOWLIST}: no regular expression: {error}", str(error.pattern)) from None
    if refused:
        msg = f"Sysctl {refused[0]} is not allowed. Only the following sysctls are allowed: [{' '.join(patterns)}]"
        raise CniError(Code.INVALID_CONFIG, msg, f"the list is {_ALLOWLIST}")
