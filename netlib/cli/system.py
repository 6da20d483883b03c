"""``netlib explain``, ``check``, ``log``, ``info``, ``version`` and ``netlib system …``: inspection, backups and reset."""

import os
import re
from argparse import Namespace
from typing import Any

from netlib.cli.arguments import Command, Parser
from netlib.cli.events import events, events_parser
from netlib.cli.outcome import refusals_exit_125
from netlib.cli.render import SHORT_ID, confirm, print_objects, progress
from netlib.config import Config, whole_path
from netlib.errors import ConfigError, DiskFull
from netlib.verbs.call import call
from netlib.wire.client import NOT_RUNNING, leave, refuse_silent

HELP = """\
usage: netlib system COMMAND …

  info     show what there is, and where
  events   show what happens, as it happens
  backup   copy the store into a file, also while it is in use
  restore  use a backup as the store, or go on with the present one
  reset    remove every container, network and firewall rule that netlib made

`netlib system COMMAND --help` shows more.
"""

_FULL_ID = re.compile(r"\b[0-9a-f]{64}\b")


def explain_parser() -> Parser:
    """The arguments of ``explain``."""
    parser = Parser(
        "explain",
        "Print the ip, sysctl and nft commands that correspond to a network or a container.",
        "bridge",
        "--format json web",
        usage="[-f FORMAT] NETWORK|CONTAINER",
    )
    parser.format_option()
    parser.positional("name", "NETWORK|CONTAINER")
    return parser


def explain(config: Config, given: Namespace) -> int:
    """Print commands."""
    objects = call(config, "explain", {"name": given.name})
    if given.template:
        print_objects(objects, given.template)
        return 0
    for item in objects:
        for line in item["Commands"]:
            print(line)
    return 0


def check_parser() -> Parser:
    """The arguments of ``check``."""
    parser = Parser(
        "check",
        "Compare a network or a container with the kernel; exit code 1 when they differ.",
        "web",
        usage="[-f FORMAT] NETWORK|CONTAINER",
    )
    parser.format_option()
    parser.positional("name", "NETWORK|CONTAINER")
    return parser


def check(config: Config, given: Namespace) -> int:
    """Print differences."""
    with refusals_exit_125():
        found = call(config, "check", {"name": given.name})
    if given.template:
        print_objects(found, given.template)
    else:
        for item in found:
            print(f"{item['Object']}: {item['Drift']}")
    return 1 if found else 0


def log_parser() -> Parser:
    """The arguments of ``log``."""
    parser = Parser(
        "log", "Show what netlib did, one line per operation, the latest last.", "-n 5 -v", usage="[-n N] [-v] [-f FORMAT]"
    )
    parser.number("-n", "--number", default=50, purpose="how many, the last ones (50)")
    parser.switch("-v", "--verbose", purpose="with every object: + made, - removed")
    parser.format_option()
    return parser


def log(config: Config, given: Namespace) -> int:
    """Print operations."""
    entries = call(config, "log", {"limit": given.number})
    if given.template:
        print_objects(entries, given.template)
        return 0
    for entry in entries:
        objects = entry["Objects"]
        count = f"{len(objects)} object{'' if len(objects) == 1 else 's'}"
        moment = entry["Time"][:19].replace("T", " ")
        parts = (
            f"{moment}Z",
            entry["Operation"],
            _FULL_ID.sub(lambda found: found[0][:SHORT_ID], entry["Subject"]),
            entry["Outcome"],
            f"{entry['Seconds'] * 1000:.1f} ms",
            count,
        )
        print("  ".join(parts))
        for item in objects if given.verbose else ():
            print(f"    {item}")
    return 0


def info_parser() -> Parser:
    """The arguments of ``info``."""
    parser = Parser("info", "Show what there is, and where.", "--format '{{.StateDir}}'", usage="[-f FORMAT]")
    parser.format_option()
    return parser


def info(config: Config, given: Namespace) -> int:
    """Print facts about this netlib's host."""
    facts = call(config, "system.info", {})
    if not given.template:
        if facts["ServedBy"] == os.getpid():
            facts["ServedBy"] = "this command"
        if not facts["Servants"]:
            facts["Servants"] = f"none, {'netlibd is ' if facts['Netlibd'] == NOT_RUNNING else ''}{facts['Netlibd']}"
    return _print_facts(facts, given.template)


def version_parser() -> Parser:
    """The arguments of ``version``."""
    parser = Parser("version", "Print the versions of the programs in use.", "--format json", usage="[-f FORMAT]")
    parser.format_option()
    return parser


def version(config: Config, given: Namespace) -> int:
    """Print versions."""
    return _print_facts(call(config, "version", {}), given.template)


def reset_parser() -> Parser:
    """The arguments of ``system reset``."""
    parser = Parser(
        "system reset",
        "Remove every container, network and firewall rule that netlib made, and put changed sysctls back.",
        "-f",
        "--lost",
        usage="[-f] [--lost [--store TAG …]]",
    )
    parser.switch("-f", "--force", purpose="do not ask")
    parser.switch("--lost", purpose="the store is damaged or was deleted: find objects by their marks, not by records")
    parser.values("--store", metavar="TAG", purpose="with --lost: also objects of this store, whose state folder is gone")
    return parser


def reset(config: Config, given: Namespace) -> int:
    """Remove all that is ours, once confirmed."""
    from netlib.verbs.lost import reset_lost, reset_on_full_disk, strays

    if given.store and not given.lost:
        raise ConfigError("--store names a lost store; pass --lost too")
    if not given.force:
        confirm("This stops and removes every container and network that netlib made. Go on?")
    refuse_silent(config)  # before anything is removed: a silent netlibd could not be told to end
    if given.lost:
        for line in reset_lost(config, given.store):
            print(line)
        return 0
    try:
        with progress("removing everything") as tell:
            call(config, "system.reset", {}, progress=tell)
    except DiskFull:
        reset_on_full_disk(config)
    leave(config)
    for line in strays(config):
        print(line)
    return 0


def backup_parser() -> Parser:
    """The arguments of ``system backup``."""
    parser = Parser(
        "system backup",
        "Copy the store (networks, containers, addresses; not the containers' files) into a file, also while it is in use.",
        "/var/backups/netlib.db",
        usage="[-f] FILE",
    )
    parser.switch("-f", "--force", purpose="replace the file where it exists")
    parser.positional("file", "FILE")
    return parser


def backup(config: Config, given: Namespace) -> int:
    """Copy the store; print where."""
    path = whole_path(given.file)
    call(config, "system.backup", {"file": path, "replace": given.force})
    print(path)
    return 0


def restore_parser() -> Parser:
    """The arguments of ``system restore``."""
    parser = Parser(
        "system restore",
        "Use a backup as the store; without FILE, go on with the present store although it is older than what is in the "
        "kernel. Nothing that runs is stopped. Records are kept for objects whose tags prove them; objects without a record "
        "are listed.",
        "/var/backups/netlib.db",
        "-f",
        usage="[-f] [FILE]",
    )
    parser.switch("-f", "--force", purpose="do not ask")
    parser.positional("file", "FILE", is_needed=False)
    return parser


def restore(config: Config, given: Namespace) -> int:
    """Restore, once confirmed; print what was done and what is left."""
    from pathlib import Path

    from netlib.store.backup import check_backup
    from netlib.verbs.restore import restore as put_back

    path = Path(whole_path(given.file)) if given.file else None
    if path:
        check_backup(path)
    if not given.force:
        confirm(f"This replaces the store by {path}. Go on?" if path else "This accepts the store as it is. Go on?")
    for line in put_back(config, path):
        print(line)
    return 0


def _listed(value: Any) -> Any:
    return (", ".join(value) or "none") if isinstance(value, list | dict) else value


def _print_facts(facts: dict[str, Any], template: str) -> int:
    if template:
        print_objects([facts], template)
        return 0
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            print(f"{key}:")
            for name, fact in value.items():
                print(f"  {name}: {_listed(fact)}")
        else:
            print(f"{key}: {_listed(value)}")
    return 0


COMMANDS: dict[str, Command] = {
    "check": (check_parser, check),
    "events": (events_parser, events),
    "explain": (explain_parser, explain),
    "info": (info_parser, info),
    "log": (log_parser, log),
    "version": (version_parser, version),
}
SYSTEM_COMMANDS: dict[str, Command] = {
    "backup": (backup_parser, backup),
    "events": (events_parser, events),
    "info": (info_parser, info),
    "reset": (reset_parser, reset),
    "restore": (restore_parser, restore),
}
