"""Reading and checking ``daemon.json``, which has Docker's keys for networks.

The file is ``/etc/netlib/daemon.json`` for the default state folder, and ``daemon.json`` in any other state folder. Docker's
keys for other things than networks are ignored, so that Docker's own file can be used. Networking keys without an effect in
this version are listed by ``netlib system info``. All other keys are refused. The file may change at any time:
:class:`SettingsFile` notices by one ``stat``.
"""

import ipaddress
import json
import os
import stat
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from netlib.config import DEFAULT_STATE_DIR, Config
from netlib.errors import ConfigError
from netlib.model import IPAddress, IPInterface, IPNetwork, ResolverConfig
from netlib.names import check_mtu, check_resolver_option, check_search_domain, parse_address, parse_subnet
from netlib.requests import each, read
from netlib.structs import Asked

__all__ = ["AddressBlock", "Settings", "SettingsFile", "read_settings", "settings_file"]

_POOLS = "default-address-pools"
_DERIVED = {"without_effect", "missed"}  # fields of Settings that are no keys
_WIDEST_SPLIT = 16  # bits; a block of more than 65,536 subnets is taken for a mistake in base or size
_JUST_NOW_NS = 50_000_000  # two changes within one tick of the kernel's clock (up to 10 ms) may have the same time


class AddressBlock(NamedTuple):
    """A block for automatic subnets: *base* is divided into subnets with the prefix length *size*."""

    base: IPNetwork
    size: int


def _bridge_address(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        address = ipaddress.ip_interface(value)
    except ValueError:
        raise ConfigError(f"bip={value!r} is no address with its prefix length; write it like 172.26.0.1/16") from None
    subnet = address.network
    if "/" not in value:
        raise ConfigError(f"bip={value!r} has no prefix length; write it like {value}/{24 if address.version == 4 else 64}")
    if subnet.num_addresses < 4:
        raise ConfigError(f"bip={value!r} leaves no room for containers; write it like 172.26.0.1/16")
    if address.ip == subnet.network_address or (address.version == 4 and address.ip == subnet.broadcast_address):
        what = "the subnet itself" if address.ip == subnet.network_address else "its broadcasts"
        own = f"{subnet.network_address + 1}/{subnet.prefixlen}"
        raise ConfigError(f"bip={value!r} is the address of {what}, not one that the bridge can have; write it like {own}")
    return address


def _block(value: Any) -> Any:
    if not isinstance(value, Mapping) or set(value) != {"base", "size"} or type(value["size"]) is not int:
        return value
    base, size = parse_subnet(value["base"], f"{_POOLS}: base"), value["size"]
    if not base.prefixlen <= size <= min(base.max_prefixlen - 2, base.prefixlen + _WIDEST_SPLIT):
        raise ConfigError(f"{_POOLS}: size {size} cuts no subnets out of {base}; choose one from {base.prefixlen} on")
    return AddressBlock(base, size)


def _optional(what: str) -> Asked:
    return Asked("an IP address", lambda value: parse_address(value, what) if isinstance(value, str) else value)


def _checked_texts(check: Callable[[str, str], str], key: str) -> Asked:
    return Asked("a list of texts", each(lambda value: check(value, key) if isinstance(value, str) else value))


_Flag = Annotated[bool, Asked("true or false")]
_Texts = Annotated[tuple[str, ...], Asked("a list of texts")]


class Settings(Struct, frozen=True, kw_only=True):
    """The keys that have an effect; in the file their names have dashes."""

    bip: Annotated[IPInterface | None, Asked("an address with its prefix length", _bridge_address)] = None
    fixed_cidr: Annotated[
        IPNetwork | None,
        Asked("a subnet", lambda value: parse_subnet(value, "fixed-cidr") if isinstance(value, str) else value),
    ] = None
    default_gateway: Annotated[IPAddress | None, _optional("default-gateway")] = None
    default_address_pools: Annotated[
        tuple[AddressBlock, ...], Asked('a list of objects like {"base": "10.128.0.0/16", "size": 24}', each(_block))
    ] = ()
    mtu: Annotated[int, Asked("a whole number")] = 0
    icc: _Flag = True
    ip_masq: _Flag = True
    ip_forward: _Flag = True
    dns: Annotated[tuple[IPAddress, ...], Asked("a list of IP addresses", each(lambda value: parse_address(value, "dns")))] = ()
    dns_opts: Annotated[tuple[str, ...], _checked_texts(check_resolver_option, "dns-opts")] = ()
    dns_search: Annotated[tuple[str, ...], _checked_texts(check_search_domain, "dns-search")] = ()
    without_effect: _Texts = ()  # keys in the file that are known and have no effect in this version
    missed: _Texts = ()  # those of them with a value that asks for something else than what netlib does, as in the file

    def resolver(self, asked: ResolverConfig) -> ResolverConfig:
        """Return the resolver configuration of a sandbox: the values in *asked*, and these settings where *asked* has none."""
        return replace(
            asked,
            servers=asked.servers or self.dns,
            options=asked.options or self.dns_opts,
            search=asked.search or self.dns_search,
        )


_NOT_YET = {
    "allow-direct-routing", "bridge", "bridge-accept-fwmark", "default-gateway-v6", "default-network-opts",
    "firewall-backend", "fixed-cidr-v6", "host-gateway-ip", "host-gateway-ips", "ip", "ip6tables", "iptables",
    "ip-forward-no-drop", "ipv6", "userland-proxy", "userland-proxy-path",
}  # fmt: skip
_WHAT_IS_DONE: Mapping[str, tuple[Any, ...]] = {
    "allow-direct-routing": (False,), "bridge": ("",), "bridge-accept-fwmark": ("",), "default-gateway-v6": ("",),
    "default-network-opts": ({},), "fixed-cidr-v6": ("",), "ip": ("", "0.0.0.0"), "ip6tables": (True,), "iptables": (True,),
    "ipv6": (False,),
}  # fmt: skip
"""Keys without effect that people set for what they do, each with the values that ask for what netlib does anyway.

The other keys without effect choose between ways to the same end (``userland-proxy``), or ask for what netlib has not.
"""
_NO_NETWORKS = {
    "allow-nondistributable-artifacts", "api-cors-header", "authorization-plugins", "builder", "cgroup-parent",
    "config-file", "containerd", "containerd-namespace", "containerd-plugins-namespace", "data-root", "debug",
    "default-cgroupns-mode", "default-ipc-mode", "default-runtime", "default-shm-size", "default-ulimits", "exec-opts",
    "exec-root", "experimental", "features", "group", "hosts", "http-proxy", "https-proxy", "init", "init-path",
    "insecure-registries", "labels", "live-restore", "log-driver", "log-format", "log-level", "log-opts",
    "max-concurrent-downloads", "max-concurrent-uploads", "max-download-attempts", "metrics-addr", "min-api-version",
    "no-new-privileges", "no-proxy", "node-generic-resources", "oom-score-adjust", "pidfile", "proxies", "raw-logs",
    "registry-mirrors", "runtimes", "seccomp-profile", "selinux-enabled", "shutdown-timeout", "storage-driver",
    "storage-opts", "swarm-default-advertise-addr", "tls", "tlscacert", "tlscert", "tlskey", "tlsverify", "userns-remap",
    "validate",
}  # fmt: skip


def settings_file(config: Config) -> str:
    """Return the path of the settings file for *config*."""
    is_host = str(config.state_dir) == DEFAULT_STATE_DIR
    return "/etc/netlib/daemon.json" if is_host else f"{config.state_dir}/daemon.json"


def read_settings(config: Config) -> Settings:
    """Read the settings for *config*, the defaults where there is no file. ConfigError names the file and the key."""
    path = settings_file(config)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ConfigError(f"{path} is no file; write a file with a JSON object like {{}} in its place, or remove it")
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        return Settings()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} must hold a JSON object like {{}}")
    try:
        return _checked(found)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


class SettingsFile:
    """The settings of one host as its file has them, read again when the file has changed; for one thread.

    ``known`` are the settings of the last reading without a fault, the defaults before there was one. ``fault`` is the error
    of the newest reading, None when that was good.
    """

    def __init__(self, config: Config) -> None:
        """Read the file; no fault in it is raised."""
        self._config = config
        self.path = settings_file(config)
        self.known = Settings()
        self.fault: ConfigError | None = None
        self._seen: object = None
        self.look()

    def look(self) -> bool:
        """Read the file again when it has changed since the last look, and return whether that made a difference.

        An unchanged file costs one stat.
        """
        stamp = self._stamp()
        if stamp is not None and stamp == self._seen:
            return False
        self._seen = stamp
        before = self.known, str(self.fault)
        try:
            self.known, self.fault = read_settings(self._config), None
        except ConfigError as error:
            self.fault = error
        return (self.known, str(self.fault)) != before

    def _stamp(self) -> object:
        """Return what tells one state of the file from others; None, by which nothing is told, when it changed just now."""
        try:
            found = os.stat(self.path)
        except OSError as error:
            return error.errno
        if time.time_ns() - found.st_ctime_ns < _JUST_NOW_NS:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _checked(found: Mapping[str, Any]) -> Settings:
    """Check the keys of the file and return the settings."""
    known = {name.replace("_", "-"): name for name in Settings.__struct_fields__ if name not in _DERIVED}
    unknown = sorted(found.keys() - known.keys() - _NOT_YET - _NO_NETWORKS)
    if unknown:
        raise ConfigError(f"unknown key {unknown[0]!r}; the networking keys are {', '.join(sorted({*known, *_NOT_YET}))}")
    given = {known[key]: value for key, value in found.items() if key in known}
    given["without_effect"] = sorted(found.keys() & _NOT_YET)
    given["missed"] = [
        f"{json.dumps(key)}: {json.dumps(found[key])}"
        for key in given["without_effect"]
        if found[key] not in _WHAT_IS_DONE.get(key, (found[key],))
    ]
    settings = read(Settings, given, spelled=lambda name: name.replace("_", "-"), written=json.dumps)
    if settings.mtu:
        check_mtu(settings.mtu, ipv6=False, what="mtu")
    for key, inside in (("fixed-cidr", settings.fixed_cidr), ("default-gateway", settings.default_gateway)):
        if inside is not None and settings.bip is None:
            raise ConfigError(f"{key}={inside} needs bip, the bridge's own address and the length of its subnet")
    if settings.bip is not None:
        _check_inside(settings, settings.bip)
    return settings


def _check_inside(settings: Settings, bip: IPInterface) -> None:
    if settings.fixed_cidr is not None:
        part = settings.fixed_cidr
        if part.version != bip.version or not part.subnet_of(bip.network):  # type: ignore[arg-type]  # of one version
            raise ConfigError(f"fixed-cidr={part} is no part of {bip.network}, which bip={bip} is in")
    if settings.default_gateway is not None and settings.default_gateway not in bip.network:
        raise ConfigError(f"default-gateway={settings.default_gateway} is outside of {bip.network}, which bip={bip} is in")
