"""What a person asks of ``run``, and the record kept of a container. Nothing in here touches the host.

Texts are checked where they are read: what gets into a :class:`ContainerSpec` by the ``parse_`` functions is well-formed.
"""

import posixpath
import random
import re
import signal
from collections.abc import Iterable, Mapping
from itertools import count

from msgspec import Struct

from netlib.errors import ConfigError
from netlib.kernel.sysctl import asked_sysctls, sysctl_name
from netlib.model import Link, NetnsRef, ResolverConfig

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
RECORD_SUFFIX = ".container"
_VARIABLE = re.compile(r"[^=\0]+")
_ADJECTIVES = (
    "amber", "bold", "brave", "calm", "clever", "dry", "eager", "fair", "fast", "gentle", "glad", "grand", "keen", "kind",
    "light", "lucky", "mild", "neat", "proud", "quiet", "sharp", "swift", "warm", "wise",
)  # fmt: skip
_NOUNS = (
    "alder", "badger", "beaver", "birch", "cedar", "crane", "finch", "fox", "hare", "hawk", "heron", "ibis", "lark", "lynx",
    "maple", "marten", "otter", "owl", "pine", "raven", "seal", "swan", "trout", "wren",
)  # fmt: skip


class Volume(Struct, frozen=True):
    """A folder or file of the host (*source*) shown in the container at *target*."""

    source: str
    target: str
    readonly: bool = False


class NetworkAttachment(Struct, frozen=True, kw_only=True):
    """One ``--network``: what :meth:`netlib.core.controller.Controller.connect` is to be asked."""

    network: str
    aliases: tuple[str, ...] = ()
    ip: str = ""
    ip6: str = ""
    mac: str = ""
    ifname: str = ""
    links: tuple[Link, ...] = ()
    gw_priority: int = 0
    options: dict[str, str] = {}


class ContainerSpec(Struct, frozen=True, kw_only=True):
    """What ``run`` was asked for; empty means Docker's default."""

    command: tuple[str, ...]
    name: str = ""
    rootfs: str = ""  # empty: a throw-away view of the host's /
    hostname: str = ""
    domainname: str = ""
    environment: dict[str, str] = {}
    workdir: str = ""
    user: str = ""
    tty: bool = False
    stdin: bool = False
    auto_remove: bool = False
    volumes: tuple[Volume, ...] = ()
    networks: tuple[NetworkAttachment, ...] = (NetworkAttachment(network="bridge"),)
    netns_of: str = ""  # a container (``--network container:NAME``); then there are no networks of its own
    publish: tuple[str, ...] = ()  # as typed: "8080:80"
    resolver: ResolverConfig = ResolverConfig()
    sysctls: dict[str, str] = {}  # by path: "net/ipv4/ip_forward"
    labels: dict[str, str] = {}
    stop_signal: int = int(signal.SIGTERM)
    stop_seconds: float = 10.0


class Container(Struct, frozen=True, kw_only=True):
    """The record of a container; it outlives the runs of the command, of which each has a sandbox of its own."""

    id: str  # the container's id with RECORD_SUFFIX: its sandbox has the plain one
    name: str
    created: float  # seconds since the epoch
    spec: ContainerSpec
    hostname: str
    netns: NetnsRef | None = None  # where its processes are, while it runs; HOST is the host's
    owns_sandbox: bool = True  # False: it shares another container's
    files_dir: str = ""  # folder of resolv.conf, hosts and hostname

    @property
    def container_id(self) -> str:
        """What people see: 64 hexadecimal digits."""
        return self.id.removesuffix(RECORD_SUFFIX)

    @property
    def short_id(self) -> str:
        return self.id[:12]

    @property
    def environment(self) -> dict[str, str]:
        """The variables that its processes start with, besides HOME."""
        defaults = {"PATH": DEFAULT_PATH, "HOSTNAME": self.hostname}
        return defaults | ({"TERM": "xterm"} if self.spec.tty else {}) | self.spec.environment


class ExecSpec(Struct, frozen=True, kw_only=True):
    """What ``exec`` was asked for; the environment comes on top of the container's."""

    command: tuple[str, ...]
    environment: dict[str, str] = {}
    workdir: str = ""
    user: str = ""
    tty: bool = False
    stdin: bool = False
    detach: bool = False
    detach_keys: bytes = b""  # on a terminal; netlib.runtime.attach.parse_detach_keys makes them


def check_spec(spec: ContainerSpec) -> None:
    """Raise ConfigError, one sentence, for what contradicts itself in a request whose texts are well-formed."""
    if not spec.command or not spec.command[0]:
        raise ConfigError("no command given; say what to run after the options")
    for text in (*spec.command, *spec.environment.values()):
        if "\0" in text:
            raise ConfigError("a command and its environment cannot contain the character NUL")
    names = [attachment.network for attachment in spec.networks]
    if spec.netns_of and (spec.publish or spec.hostname):
        what = "publish ports (-p)" if spec.publish else "have a hostname (-h) of its own"
        raise ConfigError(f"a container on the network of container {spec.netns_of!r} cannot {what}: both are that container's")
    shared = f"container {spec.netns_of!r}" if spec.netns_of else "host" if "host" in names else ""
    if spec.sysctls and shared:
        name = sysctl_name(next(iter(spec.sysctls)))
        raise ConfigError(f'sysctl "{name}" not allowed in {shared} network namespace; leave --sysctl out')
    for what, text in (("--rootfs", spec.rootfs), ("--workdir", spec.workdir)):
        if text and not text.startswith("/"):
            raise ConfigError(f"{what} {text!r} is not an absolute path")
    targets = [volume.target for volume in spec.volumes]
    for target in targets:
        if targets.count(target) > 1:
            raise ConfigError(f"two volumes have the same target {target!r}; leave one out")
    if len(names) > len(set(names)):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"network {twice!r} is given twice; a container joins it once, leave one out")
    if len(names) > 1 and ({"host", "none"} & set(names)):
        raise ConfigError("the networks host and none cannot be combined with others")


def parse_volume(text: str) -> Volume:
    """Read ``SRC:DST[:ro|rw]``, both absolute paths; raises ConfigError."""
    parts = text.split(":")
    mode = parts.pop() if len(parts) == 3 else "rw"
    if len(parts) != 2 or mode not in ("ro", "rw"):
        raise ConfigError(f"volume {text!r}: expected SOURCE:TARGET or SOURCE:TARGET:ro")
    for path in parts:
        if not path.startswith("/") or "\0" in path:
            raise ConfigError(f"volume {text!r}: {path!r} is not an absolute path")
    source, target = (posixpath.normpath(path) for path in parts)
    if target.strip("/") == "" or target == "/proc" or target.startswith("/proc/"):
        raise ConfigError(f"volume {text!r}: a volume cannot lie on {target}")
    return Volume("/" + source.lstrip("/"), "/" + target.lstrip("/"), mode == "ro")


def parse_environment(items: Iterable[str], inherited: Mapping[str, str]) -> dict[str, str]:
    """Read ``NAME=VALUE`` items; ``NAME`` alone takes the value it has in *inherited*, or is left out. Raises ConfigError."""
    found: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not _VARIABLE.fullmatch(name):
            raise ConfigError(f"environment variable {item!r} has no name; expected NAME=VALUE or NAME")
        if equals:
            found[name] = value
        elif name in inherited:
            found[name] = inherited[name]
    return found


def parse_sysctls(items: Iterable[str]) -> dict[str, str]:
    """Read ``NAME=VALUE`` items, names of ``net.*``, by path; of one given twice, the last. Raises ConfigError."""
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
    raise ConfigError(f"unknown signal {text!r}")


def generate_name(taken: Iterable[str]) -> str:
    """A name for people that is not among *taken*: adjective_noun, numbered when these run out."""
    used = set(taken)
    name = f"{random.choice(_ADJECTIVES)}_{random.choice(_NOUNS)}"
    return next(candidate for number in count(1) if (candidate := f"{name}{number}" if number > 1 else name) not in used)
