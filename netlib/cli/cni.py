"""``netlib cni …``: the executables that container runtimes call."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from netlib.cli.arguments import Command, Parser, WrongOption
from netlib.cli.outcome import complain
from netlib.cli.render import Column, print_rows
from netlib.client import DEADLINE_SECONDS
from netlib.config import Config, whole_path
from netlib.errors import ConfigError

if TYPE_CHECKING:
    from cni_plugins.install import Entry

HELP = """\
usage: netlib cni COMMAND …

  install    write the CNI plugins into a folder
  uninstall  take them out of it again

`netlib cni COMMAND --help` shows more.
"""

_COLUMNS = (Column("FILE", "File"), Column("ACTION", "Action"))
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
    parser.switch("--replace", purpose="set aside what others have there under these names; uninstall puts it back")
    parser.switch("--c", purpose="compile the launcher from C, or fail (compiled where a C compiler is there)")
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

    print_rows([_row(entry) for entry in files.uninstall(_folder(given.folder))], _COLUMNS, given.template)
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
    "install": (install_parser, install),
    "uninstall": (uninstall_parser, uninstall),
}
