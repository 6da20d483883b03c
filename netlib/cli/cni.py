"""``netlib cni …``: install the executables that container runtimes call; list and remove what these attached."""

from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from netlib.cli.arguments import Command, Parser, WrongOption
from netlib.cli.outcome import complain, each
from netlib.cli.render import SHORT_ID, Column, confirm, print_objects, print_rows, progress
from netlib.config import Config, whole_path
from netlib.errors import ConfigError, NotFound
from netlib.verbs.call import call
from netlib.wire.client import DEADLINE_SECONDS

if TYPE_CHECKING:
    from cni_plugins.install import Entry

HELP = """\
usage: netlib cni COMMAND …

  install    write the CNI plugins into a folder
  uninstall  remove them from it
  ls         list what they attached, and networks without attachments
  inspect    show a container's attachments in JSON: which plugin holds what, and what differs
  prune      remove networks without attachments, or also attachments whose netns is gone

`netlib cni COMMAND --help` shows more.
"""

_COLUMNS = (Column("FILE", "File"), Column("ACTION", "Action"))
_LS_COLUMNS = (
    Column("CONTAINER ID", "Container"),
    Column("NETWORK", "Network"),
    Column("INTERFACE", "Interface"),
    Column("PLUGINS", "Plugins"),
    Column("ADDRESSES", "Addresses"),
    Column("NETNS", "Netns"),
    Column("CREATED", "RunningFor"),
    Column("STATUS", "Status"),
)
_NETNS_FOLDERS = ("/var/run/netns/", "/run/netns/")
_LONGEST_DEADLINE_SECONDS = 3600


def install_parser() -> Parser:
    """The arguments of ``cni install``."""
    parser = Parser(
        "cni install",
        "Write one executable per plugin type into a folder, for container runtimes to call.",
        "/opt/netlib/cni",
        "--replace /opt/cni/bin",
        usage="[OPTION …] DIR",
    )
    parser.switch("--replace", purpose="set aside files of others with these names; uninstall puts them back")
    parser.switch("--c", purpose="compile the launcher from C, or fail (compiled if there is a C compiler)")
    parser.switch("--python", purpose="write the launcher in Python: some 10 ms a call instead of 1")
    parser.number("--deadline", default=int(DEADLINE_SECONDS), purpose=f"seconds that a call may take ({DEADLINE_SECONDS:.0f})")
    parser.format_option()
    parser.positional("folder", "DIR")
    return parser


def install(config: Config, given: Namespace) -> int:
    """Write executables and print what was written."""
    from cni_plugins import install as files

    if given.c and given.python:
        raise WrongOption("--c and --python exclude each other; keep one")
    if not 1 <= given.deadline <= _LONGEST_DEADLINE_SECONDS:
        raise WrongOption(f"--deadline {given.deadline} is not possible; choose 1 to {_LONGEST_DEADLINE_SECONDS} seconds")
    launcher, entries, note = files.install(
        _folder(given.folder),
        config,
        launcher="c" if given.c else "python" if given.python else None,
        replace=given.replace,
        deadline=given.deadline,
    )
    if note:
        complain(f"the launchers are Python's, which take some 10 ms a call instead of 1: {note}")
    columns = (*_COLUMNS, Column("LAUNCHER", "Launcher"))
    print_rows([_row(entry) | {"Launcher": launcher} for entry in entries], columns, given.template)
    return 0


def uninstall_parser() -> Parser:
    """The arguments of ``cni uninstall``."""
    parser = Parser(
        "cni uninstall",
        "Remove netlib's CNI plugins from a folder, and put back what they replaced there.",
        "/opt/cni/bin",
        usage="[-f FORMAT] DIR",
    )
    parser.format_option()
    parser.positional("folder", "DIR")
    return parser


def uninstall(_config: Config, given: Namespace) -> int:
    """Remove executables and print what was removed."""
    from cni_plugins import install as files

    folder = _folder(given.folder)
    if not folder.is_dir():
        raise NotFound(f"there is no folder {folder}; name the one of `netlib cni install`")
    print_rows([_row(entry) for entry in files.uninstall(folder)], _COLUMNS, given.template)
    return 0


def ls_parser() -> Parser:
    """The arguments of ``cni ls``."""
    parser = Parser(
        "cni ls",
        "List what CNI plugins attached, and CNI networks without attachments.",
        "",
        "--filter network=pods --filter status=stale",
        "--format '{{.Container}} {{.Addresses}}'",
        usage="[-q] [--no-trunc] [OPTION …]",
    )
    parser.values("-f", "--filter", metavar="KEY=VALUE", purpose=f"{', '.join(_FILTERS)}={' or '.join(_STATUSES)}")
    parser.value("--format", metavar="FORMAT", purpose="json, or a template like '{{.Container}}'")
    parser.switch("-q", "--quiet", purpose="ids of containers only")
    parser.switch("--no-trunc", purpose="ids and paths in full")
    return parser


def ls(config: Config, given: Namespace) -> int:
    """List attachments."""
    wanted: dict[str, list[str]] = {}
    for key, value in map(_filter, given.filter):
        wanted.setdefault(key, []).append(value)
    rows = [
        row
        for row in call(config, "cni.ls", {})
        if all(any(_FILTERS[key](row, value) for value in values) for key, values in wanted.items())
    ]
    if given.quiet:
        rows = [{"Container": container} for container in dict.fromkeys(row["Container"] for row in rows) if container]
    if not given.no_trunc:
        rows = [_truncated(row) for row in rows]
    print_rows(rows, _LS_COLUMNS, given.format, quiet="Container" if given.quiet else "")
    return 0


_STATUSES = "attached", "stale", "unused"
_FILTERS: dict[str, Callable[[Mapping[str, str], str], bool]] = {
    "container": lambda row, value: bool(row["Container"]) and row["Container"].startswith(value),
    "interface": lambda row, value: row["Interface"] == value,
    "network": lambda row, value: value == row["Network"] or (bool(value) and row["NetworkID"].startswith(value)),
    "plugin": lambda row, value: value in row["Plugins"].split(","),
    "status": lambda row, value: row["Status"] == value,
}


def _filter(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if key not in _FILTERS or not equals:
        raise ConfigError(f"filter {text!r} is not understood; write KEY=VALUE, the key one of {', '.join(_FILTERS)}")
    if key == "status" and value not in _STATUSES:
        raise ConfigError(f"filter {text!r} is not understood; a status is one of {', '.join(_STATUSES)}")
    return key, value


def _truncated(row: Mapping[str, str]) -> dict[str, str]:
    short = {"Container": row["Container"][:SHORT_ID]}
    if "Netns" in row:
        short["NetworkID"] = row["NetworkID"][:SHORT_ID]
        folder = next((folder for folder in _NETNS_FOLDERS if row["Netns"].startswith(folder)), "")
        short["Netns"] = row["Netns"].removeprefix(folder)
    return {**row, **short}


def inspect_parser() -> Parser:
    """The arguments of ``cni inspect``."""
    parser = Parser(
        "cni inspect",
        "Show the attachments of containers in JSON: plugins with their objects, the result, and what differs in the kernel.",
        "3f2a1c9d0e11",
        "-f '{{range .Plugins}}{{println .Type}}{{end}}' 3f2a1c9d0e11",
        usage="[-f FORMAT] CONTAINER …",
    )
    parser.format_option()
    parser.names("CONTAINER")
    return parser


def inspect(config: Config, given: Namespace) -> int:
    """Show attachments of containers."""
    found, code = each(given.names, lambda name: call(config, "cni.inspect", {"name": name}))
    print_objects([item for items in found for item in items], given.template)
    return code


def prune_parser() -> Parser:
    """The arguments of ``cni prune``."""
    parser = Parser(
        "cni prune",
        "Remove CNI networks without attachments, with their bridges; they are made again when they are used again.",
        "-f --stale",
        usage="[-f] [--stale]",
    )
    parser.switch("-f", "--force", purpose="do not ask")
    parser.switch("--stale", purpose="first remove attachments whose netns is gone, with their leases, ports and rules")
    return parser


def prune(config: Config, given: Namespace) -> int:
    """Remove what is not used, once confirmed."""
    if not given.force:
        also = ", and all attachments whose netns is gone" if given.stale else ""
        confirm(f"This removes all CNI networks without attachments{also}. Go on?")
    with progress("removing CNI networks") as tell:
        removed = call(config, "cni.prune", {"stale": given.stale}, progress=tell)
    for heading, key in (("Deleted Attachments:", "AttachmentsDeleted"), ("Deleted Networks:", "NetworksDeleted")):
        if removed[key]:
            print("\n".join([heading, *removed[key]]))
    return 0


def _folder(path: str) -> Path:
    if not path:
        raise ConfigError("DIR is empty; name the folder of the CNI plugins")
    if any("\ud800" <= char <= "\udfff" for char in path):
        raise ConfigError(f"{path!r} is no UTF-8 text; choose a folder that is spelled in UTF-8")
    return Path(whole_path(path))


def _row(entry: "Entry") -> dict[str, str]:
    return {"File": str(entry.path), "Action": entry.action}


COMMANDS: dict[str, Command] = {
    "inspect": (inspect_parser, inspect),
    "install": (install_parser, install),
    "list": (ls_parser, ls),
    "ls": (ls_parser, ls),
    "prune": (prune_parser, prune),
    "uninstall": (uninstall_parser, uninstall),
}
