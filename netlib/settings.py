"""Reading and checking ``daemon.json``, which has Docker's keys for networks.

The file is ``/etc/netlib/daemon.json`` for the default state folder, and ``daemon.json`` in any other state folder. Docker's
keys for other things than networks are ignored, so that Docker's own file can be used. Networking keys without an effect in
this version are listed by ``netlib system info``. All other keys are refused.
"""

import ipaddress
import json
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from netlib.config import DEFAULT_STATE_DIR, Config
from netlib.errors import ConfigError
from netlib.model import IPAddress, IPInterface, IPNetwork, ResolverConfig
from netlib.names import check_mtu, parse_address, parse_subnet
from netlib.requests import Flag, Texts, each, read
from netlib.structs import Asked

__all__ = ["AddressBlock", "Settings", "read_settings", "settings_file"]

_WIDEST_SPLIT = 16  # bits; a block of more than 65,536 subnets is taken for a mistake in base or size


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
    if address.network.num_addresses < 4:
        raise ConfigError(f"bip={value!r} leaves no room for containers; write it like 172.26.0.1/16")
    return address


def _block(value: Any) -> Any:
    if not isinstance(value, Mapping) or set(value) != {"base", "size"} or type(value["size"]) is not int:
        return value
    base, size = parse_subnet(value["base"], "base"), value["size"]
    if not base.prefixlen <= size <= min(base.max_prefixlen - 2, base.prefixlen + _WIDEST_SPLIT):
        raise ConfigError(f"size {size} cuts no subnets out of {base}; choose one from {base.prefixlen} on")
    return AddressBlock(base, size)


def _optional(what: str) -> Asked:
    return Asked("an IP address", lambda value: parse_address(value, what) if isinstance(value, str) else value)


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
    icc: Flag = True
    ip_masq: Flag = True
    ip_forward: Flag = True
    dns: Annotated[tuple[IPAddress, ...], Asked("a list of IP addresses", each(lambda value: parse_address(value, "dns")))] = ()
    dns_opts: Texts = ()
    dns_search: Texts = ()
    without_effect: Texts = ()  # keys in the file that are known and have no effect in this version

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
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        return Settings()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} must hold a JSON object like {{}}")
    try:
        return _checked(found)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _checked(found: Mapping[str, Any]) -> Settings:
    """Check the keys of the file and return the settings."""
    known = {name.replace("_", "-"): name for name in Settings.__struct_fields__ if name != "without_effect"}
    unknown = sorted(found.keys() - known.keys() - _NOT_YET - _NO_NETWORKS)
    if unknown:
        raise ConfigError(f"unknown key {unknown[0]!r}; the networking keys are {', '.join(sorted({*known, *_NOT_YET}))}")
    given = {known[key]: value for key, value in found.items() if key in known}
    given["without_effect"] = sorted(found.keys() & _NOT_YET)
    settings = read(Settings, given, spelled=lambda name: name.replace("_", "-"))
    if settings.mtu:
        check_mtu(settings.mtu, ipv6=False)
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
