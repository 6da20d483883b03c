"""The options of ``run``, the requests of the container verbs, and the record of a container. No function changes the host.

Texts are checked when they are read: the ``parse_`` functions return well-formed parts of a :class:`ContainerSpec` only.
"""

import posixpath
import random
import signal
from collections.abc import Iterable, Mapping
from itertools import count
from typing import Annotated, Any

from msgspec import Struct
from msgspec.structs import replace

from netlib.errors import ConfigError
from netlib.kernel.sysctl import asked_sysctls, sysctl_name
from netlib.model import IPAddress, NetnsRef, ResolverConfig
from netlib.names import parse_options
from netlib.requests import Flag, Join, Labels, Links, Ports, Request, Resolver, Text, Texts, address_or_none, each
from netlib.structs import Asked

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
RECORD_SUFFIX = ".container"
_ADJECTIVES = (
    "amber", "bold", "brave", "calm", "clever", "dry", "eager", "fair", "fast", "gentle", "glad", "grand", "keen", "kind",
    "light", "lucky", "mild", "neat", "proud", "quiet", "sharp", "swift", "warm", "wise",
)  # fmt: skip
_NOUNS = (
    "alder", "badger", "beaver", "birch", "cedar", "crane", "finch", "fox", "hare", "hawk", "heron", "ibis", "lark", "lynx",
    "maple", "marten", "otter", "owl", "pine", "raven", "seal", "swan", "trout", "wren",
)  # fmt: skip


class Volume(Struct, frozen=True):
    """A folder or file of the host (*source*) that is bind-mounted in the container at *target*."""

    source: str
    target: str
    readonly: bool = False


def _volume(value: Any) -> Any:
    return parse_volume(value) if isinstance(value, str) else value


def _join(value: Any) -> Any:
    return parse_join(value) if isinstance(value, str) else value


def _sysctls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return asked_sysctls(value)
    return parse_sysctls(value) if isinstance(value, list | tuple) else value


def _signal(value: Any) -> Any:
    return (parse_signal(value) if value else None) if isinstance(value, str) else value


Size = Annotated[tuple[int, int], Asked("rows and columns of a terminal")]
Descriptors = Annotated[tuple[int, ...], Asked("a list or tuple of descriptors")]


class ContainerSpec(Struct, frozen=True, kw_only=True):
    """The options of a container, as its record keeps them; an empty value means Docker's default."""

    command: Texts
    name: Text = ""
    rootfs: Text = ""  # empty: an overlay over the host's /, which is deleted with the container
    hostname: Text = ""
    domainname: Text = ""
    environment: Annotated[dict[str, str], Asked("a dict with texts as keys and values")] = {}
    workdir: Text = ""
    user: Text = ""
    tty: Flag = False
    stdin: Flag = False
    auto_remove: Flag = False
    volumes: Annotated[
        tuple[Volume, ...], Asked("a list or tuple of volumes, written like SOURCE:TARGET[:ro]", each(_volume))
    ] = ()
    networks: Annotated[tuple[Join, ...], Asked("a list or tuple of networks", each(_join))] = (Join(network="bridge"),)
    netns_of: Text = ""  # the container whose network it shares (``--network container:NAME``); then *networks* is empty
    publish: Ports = ()
    resolver: Resolver = ResolverConfig()
    sysctls: Annotated[
        dict[str, str], Asked("a dict of sysctls and their values", _sysctls)
    ] = {}  # by path: "net/ipv4/ip_forward"
    labels: Labels = {}
    stop_signal: Annotated[int, Asked("a signal", _signal)] = int(signal.SIGTERM)
    stop_seconds: Annotated[float, Asked("a number of seconds")] = 10.0


class RunRequest(ContainerSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The request of ``run``. *aliases*, *ip*, *ip6*, *mac* and *links* are for its first network."""

    networks: Annotated[tuple[Join, ...], Asked("a list or tuple of networks", each(_join))] = ()
    aliases: Texts = ()
    ip: Annotated[IPAddress | None, Asked("an IP address", address_or_none("--ip"))] = None
    ip6: Annotated[IPAddress | None, Asked("an IP address", address_or_none("--ip6"))] = None
    mac: Text = ""
    links: Links = ()
    size: Size = (0, 0)
    fds: Descriptors = ()

    @property
    def spec(self) -> ContainerSpec:
        """The options that the record keeps. ConfigError for a wrong combination of networks."""
        kept = {name: getattr(self, name) for name in ContainerSpec.__struct_fields__}
        networks, netns_of = self._networks()
        return ContainerSpec(**{**kept, "networks": networks, "netns_of": netns_of})

    def _networks(self) -> tuple[tuple[Join, ...], str]:
        """Return the networks to connect the container to, and the container whose network it shares or ""."""
        first, *others = self.networks or (Join(network="bridge"),)
        own = {"aliases": self.aliases, "ip": self.ip, "ip6": self.ip6, "mac": self.mac, "links": self.links}
        if first.network.startswith("container:"):
            if others or first.network == "container:":
                raise ConfigError("--network container:NAME names one container; leave out the other networks")
            if any(own.values()):
                raise ConfigError("--network container:NAME takes no addresses, aliases or links of its own; leave them out")
            return (), first.network.removeprefix("container:")
        given = {name: value for name, value in own.items() if value}
        return (replace(first, **{**given, "aliases": (*first.aliases, *self.aliases)}), *others), ""


class StartRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A container to start. A descriptor in *fds* is the minder's end of :func:`netlib.runtime.attach.pair`."""

    name: Text
    size: Size = (0, 0)
    fds: Descriptors = ()


class StopRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A container to stop; None stands for the value that ``run`` was given."""

    name: Text
    seconds: Annotated[float | None, Asked("a number of seconds, or None")] = None
    signal: Annotated[int | None, Asked("a signal", _signal)] = None
    again: Flag = False  # the caller will start it again: refused where it could not be


class KillRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A signal to send to a container."""

    name: Text
    signal: Annotated[int, Asked("a signal", _signal)] = int(signal.SIGKILL)


class RemoveRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Containers to remove; when one name is unknown, none is removed."""

    names: Texts
    force: Flag = False


class ListRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which containers to list: the running ones or, with *all_states*, all."""

    all_states: Flag = False


class Container(Struct, frozen=True, kw_only=True):
    """The record of a container. It is kept when the command ends; each run of the command has a new sandbox."""

    id: str  # the container's id with RECORD_SUFFIX; its sandbox has the id without it
    name: str
    created: float  # seconds since the epoch
    spec: ContainerSpec
    hostname: str
    netns: NetnsRef | None = None  # the netns of its processes while it runs; HOST is the host's
    owns_sandbox: bool = True  # False: it shares another container's sandbox
    files_dir: str = ""  # folder of resolv.conf, hosts and hostname

    @property
    def container_id(self) -> str:
        """The id that people see: 64 hexadecimal digits."""
        return self.id.removesuffix(RECORD_SUFFIX)

    @property
    def short_id(self) -> str:
        return self.id[:12]

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of its processes, without HOME."""
        defaults = {"PATH": DEFAULT_PATH, "HOSTNAME": self.hostname}
        return defaults | ({"TERM": "xterm"} if self.spec.tty else {}) | self.spec.environment


class ExecSpec(Struct, frozen=True, kw_only=True):
    """The options of ``exec``; its environment is added to the container's."""

    command: tuple[str, ...]
    environment: dict[str, str] = {}
    workdir: str = ""
    user: str = ""
    tty: bool = False
    stdin: bool = False
    detach: bool = False
    detach_keys: bytes = b""  # for a terminal, from netlib.runtime.attach.parse_detach_keys


def check_spec(spec: ContainerSpec) -> None:
    """Raise ConfigError for options that contradict each other; each option alone has been checked before."""
    if not spec.command or not spec.command[0]:
        raise ConfigError("no command given; say what to run after the options")
    for text in (*spec.command, *spec.environment.values()):
        if "\0" in text:
            raise ConfigError("a command and its environment cannot contain the character NUL")
    names = [attachment.network for attachment in spec.networks]
    if spec.netns_of and (spec.publish or spec.hostname):
        what, remedy = ("publish ports", "publish them on") if spec.publish else ("have a hostname of its own", "give it to")
        owner = repr(spec.netns_of)
        raise ConfigError(f"a container on the network of container {owner} cannot {what}: {remedy} {owner}")
    shared = f"container {spec.netns_of!r}" if spec.netns_of else "host" if "host" in names else ""
    if spec.sysctls and shared:
        name = sysctl_name(next(iter(spec.sysctls)))
        raise ConfigError(f'sysctl "{name}" not allowed in {shared} network namespace; leave --sysctl out')
    for what, text in (("--rootfs", spec.rootfs), ("--workdir", spec.workdir)):
        if text and not text.startswith("/"):
            raise ConfigError(f"{what} {text!r} is not an absolute path; begin it with /")
    targets = [volume.target for volume in spec.volumes]
    for target in targets:
        if targets.count(target) > 1:
            raise ConfigError(f"two volumes have the same target {target!r}; leave one out")
    if len(names) > len(set(names)):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"network {twice!r} is given twice; a container joins it once, leave one out")
    if len(names) > 1 and ({"host", "none"} & set(names)):
        raise ConfigError("the networks host and none cannot be combined with others; leave one out")


def parse_volume(text: str) -> Volume:
    """Read ``SOURCE:TARGET[:ro|rw]``, two absolute paths; raises ConfigError."""
    parts = text.split(":")
    mode = parts.pop() if len(parts) == 3 else "rw"
    if len(parts) != 2 or mode not in ("ro", "rw"):
        raise ConfigError(f"volume {text!r}: expected SOURCE:TARGET or SOURCE:TARGET:ro")
    for path in parts:
        if not path.startswith("/") or "\0" in path:
            raise ConfigError(f"volume {text!r}: {path!r} is not an absolute path; begin it with /")
    source, target = (posixpath.normpath(path) for path in parts)
    if target.strip("/") == "" or target == "/proc" or target.startswith("/proc/"):
        raise ConfigError(f"volume {text!r}: a volume cannot lie on {target}; choose another target")
    return Volume("/" + source.lstrip("/"), "/" + target.lstrip("/"), mode == "ro")


_JOIN_KEYS = ("name", "alias", "ip", "ip6", "mac-address", "gw-priority", "driver-opt")


def parse_join(text: str) -> Join:
    """Read one ``--network``: a name, or ``key=value`` pairs separated by commas; raises ConfigError."""
    if "=" not in text:
        return Join(network=text)
    values: dict[str, list[str]] = {}
    for item in text.split(","):
        key, _, value = item.partition("=")
        if key not in _JOIN_KEYS or not value:
            raise ConfigError(f"--network {text!r}: {item!r} is none of {', '.join(f'{key}=…' for key in _JOIN_KEYS)}")
        values.setdefault(key, []).append(value)
    single = {key: items[-1] for key, items in values.items()}
    if "name" not in single:
        raise ConfigError(f"--network {text!r} does not say which one: name=… is missing")
    priority = single.get("gw-priority", "0")
    if not priority.lstrip("-").isdecimal():
        raise ConfigError(f"--network {text!r}: gw-priority must be a whole number")
    return Join(
        network=single["name"],
        aliases=tuple(values.get("alias", ())),
        ip=address_or_none("--ip")(single.get("ip")),
        ip6=address_or_none("--ip6")(single.get("ip6")),
        mac=single.get("mac-address", ""),
        gw_priority=int(priority),
        options=parse_options(values.get("driver-opt", ())),
    )


def parse_sysctls(items: Iterable[str]) -> dict[str, str]:
    """Read ``NAME=VALUE`` items with names of ``net.*`` into a dictionary by path; the last of a name counts. ConfigError."""
    asked: dict[str, str] = {}
    for item in items:
        name, _, value = item.partition("=")
        asked |= asked_sysctls({name: value})
    return asked


def parse_signal(text: str) -> int:
    """Read a signal by name (``TERM``, ``SIGTERM``) or number; raises ConfigError."""
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    if text.isdecimal() and 1 <= int(text) <= signal.NSIG - 1:
        return int(text)
    if name in signal.Signals.__members__:
        return int(signal.Signals[name])
    raise ConfigError(f"unknown signal {text!r}; write a name like TERM, or a number from 1 to {signal.NSIG - 1}")


def generate_name(taken: Iterable[str]) -> str:
    """Return a new name for a container, ``adjective_noun``, with a number where that is among *taken*."""
    used = set(taken)
    name = f"{random.choice(_ADJECTIVES)}_{random.choice(_NOUNS)}"
    return next(candidate for number in count(1) if (candidate := f"{name}{number}" if number > 1 else name) not in used)
