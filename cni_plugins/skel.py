"""The protocol from end to end: environment and stdin in, stdout and exit code out, as values.

Nothing in here touches the process, so netlibd, a launcher and a test call it alike. Checked before the plugin is called, in
this order: verb, environment, JSON, network name, version, previous result, the plugin's own keys, and last the netns.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar

import msgspec
from msgspec import Struct

from cni_plugins.decode import convert, convert_fitting, read_json
from cni_plugins.netconf import Attachment, NetConf, parse_args
from cni_plugins.node import Node
from cni_plugins.protocol import NEWEST, VERSIONS, CniError, Code, Command, as_cni_error, at_least, error_json
from cni_plugins.result import Result, Versioned, parse_result, render_result
from netlib import __version__
from netlib.errors import ConfigError, NetlibError
from netlib.kernel.scarcity import exhaustion
from netlib.names import check_ifname

__all__ = ["Call", "Outcome", "Plugin", "answer", "reread"]

C = TypeVar("C", bound=NetConf)
_C2 = TypeVar("_C2", bound=NetConf)

_WHAT = "network configuration"
_ATTACHMENT = ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME")
_REQUIRED: dict[Command, tuple[str, ...]] = {
    Command.ADD: _ATTACHMENT,
    Command.CHECK: _ATTACHMENT,
    Command.DEL: ("CNI_CONTAINERID", "CNI_IFNAME"),  # without CNI_NETNS when the netns is gone already
    Command.GC: ("CNI_PATH",),
    Command.STATUS: (),
}
_SINCE = {Command.CHECK: "0.4.0", Command.GC: "1.1.0", Command.STATUS: "1.1.0"}
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_IFNAME_BYTES = 15
_VALID_ATTACHMENTS = ("cni.dev/valid-attachments", "cni.dev/attachments")  # libcni 1.2.0 wrote the second one


class Call(Struct, Generic[C], frozen=True, kw_only=True):
    """One checked request. Fields that the verb has no use for are empty: GC and STATUS have no container."""

    command: Command
    container_id: str
    netns: str  # as CNI_NETNS said; in netlibd the launcher's descriptor counts, not this path
    ifname: str
    args: str  # CNI_ARGS; see arguments()
    path: tuple[str, ...]  # folders of CNI_PATH
    config: C
    version: str  # of the configuration, one of VERSIONS
    prev_result: Result | None
    valid_attachments: frozenset[Attachment]  # GC only
    raw: dict[str, Any]  # the configuration as it came
    stdin: bytes  # the same, for a delegate
    environ: Mapping[str, str]  # as it came, for a delegate
    stderr: list[str]  # lines to tell whoever reads the runtime's log; grows during the call

    @property
    def network(self) -> str:
        """The name of the network."""
        return self.config.name

    def arguments(self, *known: str) -> dict[str, str]:
        """The *known* keys of CNI_ARGS; CniError for others, as :func:`parse_args` says."""
        return parse_args(self.args, known)


class Outcome(Struct, frozen=True):
    """What the process writes, and its exit code."""

    stdout: bytes
    code: int
    stderr: bytes = b""


class Plugin(Protocol[C]):
    """What a plugin type provides. Each verb raises a NetlibError, best a CniError, when it fails."""

    name: str
    config: type[C]

    def __init__(self, node: Node) -> None:
        """Work on *node*; nothing is done yet, and nothing can fail."""

    def add(self, call: Call[C]) -> Result:
        """Attach the container, or adjust what is in ``prev_result`` and pass that on."""

    def check(self, call: Call[C]) -> None:
        """Compare what is there with ``prev_result`` (never None here)."""

    def delete(self, call: Call[C]) -> None:
        """Remove what ADD made; succeed where there is nothing."""

    def garbage_collect(self, call: Call[C]) -> None:
        """Remove what belongs to none of ``valid_attachments``."""

    def status(self, call: Call[C]) -> None:
        """Raise the error that an ADD would raise; our own codes are answered as 50."""


def answer(plugin: Plugin[C], environ: Mapping[str, str], stdin: bytes, is_own_netns: Callable[[str], bool]) -> Outcome:
    """Do what CNI_COMMAND in *environ* asks of *plugin* with the configuration in *stdin*.

    *is_own_netns* says whether the path of CNI_NETNS leads to the plugin's own netns; False for a path that leads nowhere.
    Never raises: every failure is an error object on stdout and exit code 1. VERSION, and no command at all, need no *stdin*.
    """
    asked = environ.get("CNI_COMMAND", "")
    if not asked:
        about = f"CNI {plugin.name} plugin, netlib {__version__}\nCNI protocol versions supported: {', '.join(VERSIONS)}\n"
        return Outcome(b"", 0, about.encode())
    command: Command | None = None
    stderr: list[str] = []
    try:
        command = _command(asked)
        if command is Command.VERSION:
            document = {"cniVersion": NEWEST, "supportedVersions": VERSIONS}
            return Outcome(msgspec.json.encode(document) + b"\n", 0)
        call = _read(plugin, command, environ, stdin, stderr)
        if command in (Command.ADD, Command.DEL):
            _refuse_own_netns(call, is_own_netns)
        stdout = _perform(plugin, call)
    except NetlibError as error:
        return Outcome(error_json(as_cni_error(error, command), _callers_version(stdin)), 1, _lines(stderr))
    except Exception as error:  # noqa: BLE001  the last one before the runtime: a defect of ours, told in one sentence
        if (scarce := exhaustion(error)) is not None:
            return Outcome(error_json(as_cni_error(scarce, command), _callers_version(stdin)), 1, _lines(stderr))
        defect = CniError(Code.INTERNAL, f"internal error: {type(error).__name__}: {error}", _where(error))
        return Outcome(error_json(defect, _callers_version(stdin)), 1, _lines(stderr))
    return Outcome(stdout, 0, _lines(stderr))


def reread(call: Call[Any], kind: type[_C2], what: str) -> Call[_C2]:
    """The same call with its configuration read as *kind*: how an IPAM type of ours gets the call of a main plugin."""
    fields = {name: getattr(call, name) for name in call.__struct_fields__}
    return Call(**{**fields, "config": _configuration(call.command, call.raw, kind, what, call.stderr)})


def _perform(plugin: Plugin[C], call: Call[C]) -> bytes:
    match call.command:
        case Command.ADD:
            document = render_result(plugin.add(call), call.version)
            return msgspec.json.format(msgspec.json.encode(document), indent=4) + b"\n"
        case Command.CHECK:
            plugin.check(call)
        case Command.DEL:
            plugin.delete(call)
        case Command.GC:
            plugin.garbage_collect(call)
        case Command.STATUS:
            plugin.status(call)
    return b""


class _Common(Versioned, rename="camel"):
    """The keys that are read first in every configuration."""

    name: str = ""
    prev_result: Any = None


# --- from text to a call -------------------------------------------------------------------------------------------------


def _read(plugin: Plugin[C], command: Command, environ: Mapping[str, str], stdin: bytes, stderr: list[str]) -> Call[C]:
    variables = _environment(command, environ)
    raw = read_json(stdin, _WHAT)
    common = convert(raw, _Common, _WHAT)
    _check_network_name(common.name)
    version = _version(common.cni_version, command)
    prev_result = _prev_result(common.prev_result, version, command, stderr)
    return Call(
        command=command,
        container_id=variables["CNI_CONTAINERID"],
        netns=variables["CNI_NETNS"],
        ifname=variables["CNI_IFNAME"],
        args=variables["CNI_ARGS"],
        path=tuple(folder for folder in variables["CNI_PATH"].split(":") if folder),
        version=version,
        prev_result=prev_result,
        valid_attachments=_valid_attachments(raw) if command is Command.GC else frozenset(),
        config=_configuration(command, raw, plugin.config, plugin.name, stderr),
        raw=raw,
        stdin=stdin,
        environ=environ,
        stderr=stderr,
    )


def _command(asked: str) -> Command:
    try:
        return Command(asked)
    except ValueError:
        raise CniError(Code.INVALID_ENVIRONMENT, f"unknown CNI_COMMAND: {asked}", f"known are {', '.join(Command)}") from None


def _environment(command: Command, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of an attachment, checked where the verb needs them, empty where it does not."""
    attached = command in (Command.ADD, Command.CHECK, Command.DEL)
    used = (*_ATTACHMENT, "CNI_ARGS", "CNI_PATH") if attached else ("CNI_PATH",)
    variables = dict.fromkeys((*_ATTACHMENT, "CNI_ARGS", "CNI_PATH"), "")
    for name in used:
        variables[name] = _text(name, environ.get(name, ""))
    missing = [name for name in _REQUIRED[command] if not variables[name]]
    if missing:
        raise CniError(Code.INVALID_ENVIRONMENT, f"required env variables [{','.join(missing)}] missing")
    if attached:
        _check_container_id(variables["CNI_CONTAINERID"])
        _check_ifname(variables["CNI_IFNAME"], command)
    return variables


def _text(name: str, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise CniError(Code.INVALID_ENVIRONMENT, f"{name} is no UTF-8", ascii(value)) from None
    if "\0" in value:
        raise CniError(Code.INVALID_ENVIRONMENT, f"{name} holds a zero byte", ascii(value))
    return value


def _check_container_id(container_id: str) -> None:
    if not _NAME.fullmatch(container_id):
        raise CniError(Code.INVALID_ENVIRONMENT, "invalid characters in containerID", container_id)


def _check_ifname(ifname: str, command: Command) -> None:
    """Check CNI_IFNAME as libcni does; for an ADD also as everything does that will hold the name."""
    if len(ifname.encode()) > _IFNAME_BYTES:
        reason, details = "interface name is too long", f"interface name should be less than {_IFNAME_BYTES + 1} characters"
    elif ifname in (".", ".."):
        reason, details = "interface name is . or ..", ""
    elif any(character in "/:" or character.isspace() for character in ifname):
        reason, details = "interface name contains / or : or whitespace characters", ""
    else:
        if command is Command.ADD:
            try:
                check_ifname(ifname)
            except ConfigError as error:
                raise CniError(Code.INVALID_ENVIRONMENT, "invalid CNI_IFNAME", str(error)) from None
        return
    raise CniError(Code.INVALID_ENVIRONMENT, reason, details)


def _check_network_name(name: str) -> None:
    if not name:
        raise CniError(Code.INVALID_CONFIG, "missing network name")
    if not _NAME.fullmatch(name):
        raise CniError(Code.INVALID_CONFIG, "invalid characters found in network name", name)


def _version(written: str, command: Command) -> str:
    version = written or VERSIONS[0]
    if version not in VERSIONS:
        supported = " ".join(f'"{known}"' for known in VERSIONS)
        raise CniError(
            Code.INCOMPATIBLE_VERSION, "incompatible CNI versions", f'config is "{version}", plugin supports [{supported}]'
        )
    if not at_least(version, _SINCE.get(command, VERSIONS[0])):
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"config version does not allow {command}",
            f'config is "{version}", {command} came with {_SINCE[command]}',
        )
    return version


def _prev_result(found: Any, version: str, command: Command, stderr: list[str]) -> Result | None:
    if found is None:
        if command is Command.CHECK:
            raise CniError(Code.INVALID_CONFIG, "Required prevResult missing", "CHECK compares with what ADD answered")
        return None
    try:
        return parse_result(found, version)
    except CniError as error:
        if command is not Command.DEL:
            raise
        stderr.append(f"{error}; going on without")  # an unreadable leftover is no reason to keep a container's network
        return None


def _configuration(command: Command, raw: dict[str, Any], kind: type[C], what: str, stderr: list[str]) -> C:
    """*raw* as *kind*. A DEL ignores values that do not fit: no ADD with them has succeeded."""
    return convert_fitting(raw, kind, what, stderr) if command is Command.DEL else convert(raw, kind, what)


def _valid_attachments(raw: dict[str, Any]) -> frozenset[Attachment]:
    """The attachments that a GC keeps. A missing list is refused (null is an empty one): the GC would remove everything."""
    for key in _VALID_ATTACHMENTS:
        if key in raw:
            return convert([] if raw[key] is None else raw[key], frozenset[Attachment], key)
    raise CniError(
        Code.INVALID_CONFIG, f"missing {_VALID_ATTACHMENTS[0]}", "GC needs the list of attachments to keep, which may be empty"
    )


def _refuse_own_netns(call: Call[Any], is_own_netns: Callable[[str], bool]) -> None:
    if not call.netns or call.environ.get("CNI_NETNS_OVERRIDE", "").upper() in ("TRUE", "1"):
        return
    if is_own_netns(call.netns):
        raise CniError(
            Code.INVALID_NETNS,
            "plugin's netns and netns from CNI_NETNS should not be the same",
            f"CNI_NETNS is {call.netns}; set CNI_NETNS_OVERRIDE=1 if that is meant",
        )


# --- when it fails -------------------------------------------------------------------------------------------------------


def _callers_version(stdin: bytes) -> str:
    """The CNI version of the caller, the newest where that cannot be read."""
    try:
        version = convert(read_json(stdin, _WHAT), Versioned, _WHAT).cni_version
    except CniError:
        return NEWEST
    return version if version in VERSIONS else NEWEST


def _where(error: BaseException) -> str:
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return f"{frame.tb_frame.f_code.co_filename}, line {frame.tb_lineno}" if frame is not None else ""


def _lines(stderr: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in stderr).encode(errors="backslashreplace")
