"""``netlib ps``, ``stop``, ``rm``, ``logs`` and the other commands for containers that exist."""

import re
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from netlib.cli import run
from netlib.cli.arguments import Command, Parser
from netlib.cli.outcome import each, only_watching
from netlib.cli.render import SHORT_ID, Column, print_objects, print_rows
from netlib.config import Config
from netlib.errors import ConfigError, NetlibError, NotFound
from netlib.verbs.call import call
from netlib.wire.client import DEADLINE_SECONDS

HELP = """\
usage: netlib container COMMAND …

  run      run a command in a new container   exec     run one more command in it
  ls       list containers                    inspect  show them in JSON
  start    start what has ended               stop     end its command, gently first
  restart  stop and start                     kill     send its command a signal
  wait     wait for its end                   attach   connect your terminal to it
  logs     show its output                    port     show its published ports
  rm       remove it

Each is a command without the word `container` as well; `ls` is `netlib ps` then.
`netlib container COMMAND --help` shows more.
"""

_COLUMNS = (
    Column("CONTAINER ID", "ID"),
    Column("IMAGE", "Image"),
    Column("COMMAND", "Command"),
    Column("CREATED", "RunningFor"),
    Column("STATUS", "Status"),
    Column("PORTS", "Ports"),
    Column("NAMES", "Names"),
)
_INSPECTED = ("container", "network", "sandbox")
_COMMAND_WIDTH = 20
_PORT = re.compile(r"[0-9]{1,5}/(tcp|udp|sctp)")


# --- showing -----------------------------------------------------------------------------------------------------------


def ps_parser() -> Parser:
    """The arguments of ``ps``."""
    parser = Parser("ps", "List containers that run.", "-a", "-q --filter network=web", usage="[-a] [-q] [OPTION …]")
    parser.switch("-a", "--all", purpose="also containers that have ended")
    parser.switch("-q", "--quiet", purpose="ids only")
    parser.switch("--no-trunc", purpose="ids and commands in full")
    parser.switch("-l", "--latest", purpose="the newest one, in whatever state")
    parser.values("-f", "--filter", metavar="KEY=VALUE", purpose="id, name, status, label, network")
    parser.value("--format", metavar="FORMAT", purpose="json, or a template like '{{.Names}}'")
    return parser


def ps(config: Config, given: Namespace) -> int:
    """List containers."""
    wanted = [_filter(text) for text in given.filter]
    everything = given.all or given.latest or any(key == "status" for key, _ in wanted)
    rows = call(config, "container.ls", {"all_states": everything})
    rows = [row for row in rows if all(_FILTERS[key](row, value) for key, value in wanted)]
    if given.latest:
        rows = rows[:1]
    if not given.no_trunc:
        rows = [{**row, "ID": row["ID"][:SHORT_ID], "Command": _shortened(row["Command"])} for row in rows]
    print_rows(rows, _COLUMNS, given.format, quiet="ID" if given.quiet else "")
    return 0


_FILTERS: dict[str, Callable[[Mapping[str, str], str], bool]] = {
    "id": lambda row, value: row["ID"].startswith(value),
    "name": lambda row, value: value in row["Names"],
    "status": lambda row, value: row["State"] == value,
    "label": lambda row, value: any(label == value or label.startswith(f"{value}=") for label in row["Labels"].split(",")),
    "network": lambda row, value: value in row["Networks"].split(","),
}


def _filter(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if key not in _FILTERS or not equals:
        raise ConfigError(f"filter {text!r} is not understood; write KEY=VALUE, the key one of {', '.join(sorted(_FILTERS))}")
    return key, value


def _shortened(command: str) -> str:
    return f'"{command}"' if len(command) <= _COMMAND_WIDTH else f'"{command[: _COMMAND_WIDTH - 1]}…"'


def inspect_parser() -> Parser:
    """The arguments of ``inspect``."""
    parser = Parser(
        "inspect",
        "Show containers, networks and sandboxes of Python programs in JSON.",
        "web",
        "-f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' web",
        usage="[-f FORMAT] NAME …",
    )
    parser.format_option()
    parser.choice("--type", choices=_INSPECTED, purpose="what the names are of (any)")
    parser.names("NAME")
    return parser


def inspect(config: Config, given: Namespace) -> int:
    """Show the containers of these names; where there is none, the network or else the sandbox of the name."""
    found, code = each(given.names, lambda name: _inspect_one(config, name, given.type))
    print_objects(found, given.template)
    return code


def _inspect_one(config: Config, name: str, kind: str | None) -> Any:
    for noun in [kind] if kind else _INSPECTED:
        try:
            return call(config, f"{noun}.inspect", {"names": [name]})[0]
        except NotFound:
            if kind:
                raise
    raise NotFound(f"there is no container or network {name!r}; `netlib ps -a` and `netlib network ls` list them")


def port_parser() -> Parser:
    """The arguments of ``port``."""
    parser = Parser(
        "port",
        "Show the addresses and ports of the host that lead to a container's ports, or to one of them (TCP by default).",
        "web",
        "web 80/tcp",
        usage="CONTAINER [PORT[/PROTOCOL]]",
    )
    parser.positional("name", "CONTAINER")
    parser.positional("private", "PORT", is_needed=False)
    return parser


def port(config: Config, given: Namespace) -> int:
    """Print published ports: all, or the host's side of one."""
    wanted = given.private if "/" in given.private else f"{given.private}/tcp"
    if given.private and not _PORT.fullmatch(wanted):
        raise ConfigError(f"{given.private!r} is no port of a container; write a number, or one with its protocol: 53/udp")
    published = call(config, "container.inspect", {"names": [given.name]})[0]["NetworkSettings"]["Ports"]
    if not given.private:
        for key, places in published.items():
            for place in places:
                print(f"{key} -> {_place(place)}")
        return 0
    if wanted not in published:
        raise NotFound(f"container {given.name!r} publishes no port {wanted}; `netlib port {given.name}` lists what it does")
    for place in published[wanted]:
        print(_place(place))
    return 0


def _place(place: Mapping[str, str]) -> str:
    host = f"[{place['HostIp']}]" if ":" in place["HostIp"] else place["HostIp"]
    return f"{host}:{place['HostPort']}"


def logs_parser() -> Parser:
    """The arguments of ``logs``."""
    parser = Parser(
        "logs",
        "Show a container's output; its standard error goes to standard error.",
        "-f web",
        "--tail 20 --since 10m web",
        usage="[-f] [-t] [OPTION …] CONTAINER",
    )
    parser.switch("-f", "--follow", purpose="wait for more, until it ends")
    parser.switch("-t", "--timestamps", purpose="with the time of each line")
    parser.value("-n", "--tail", metavar="LINES", default="all", purpose="the last ones only")
    parser.value("--since", metavar="TIME", purpose="only from a time on like 2024-05-01T10:00:00, or from so long ago: 10m")
    parser.positional("name", "CONTAINER")
    return parser


@only_watching
def logs(config: Config, given: Namespace) -> int:
    """Print a container's log."""
    if given.tail != "all" and not given.tail.isdecimal():
        raise ConfigError(f"--tail {given.tail!r} is no number of lines; give one, or all")
    record = call(config, "container.record", {"name": given.name})
    import time

    from netlib.codec import convert
    from netlib.runtime.container import Runtime
    from netlib.runtime.logs import parse_since
    from netlib.runtime.spec import Container

    entries = Runtime(config).logs(
        convert(record, Container),
        tail=None if given.tail == "all" else int(given.tail),
        since=parse_since(given.since, time.time()) if given.since else "",
        follows=given.follow,
    )
    for entry in entries:
        stream = sys.stderr if entry.stream == "stderr" else sys.stdout
        stream.write(f"{entry.time} {entry.log}" if given.timestamps else entry.log)
        stream.flush()
    return 0


# --- ending ------------------------------------------------------------------------------------------------------------


def stop_parser() -> Parser:
    """The arguments of ``stop``."""
    parser = Parser(
        "stop",
        "Ask containers to end, and kill those that do not end in time.",
        "web",
        "-t 1 web db",
        usage="[-t SECONDS] [-s SIGNAL] CONTAINER …",
    )
    parser.seconds("-t", "--timeout", "--time", purpose="before it is killed (10, or what `run` was told)")
    parser.value("-s", "--signal", metavar="SIGNAL", purpose="how to ask (TERM, or what `run` was told)")
    parser.names("CONTAINER")
    return parser


def stop(config: Config, given: Namespace) -> int:
    """Stop containers; print the names of those that have stopped."""
    return _for_each(given.names, lambda name: _stop_one(config, given, name))


def _stop_one(config: Config, given: Namespace, name: str, *, again: bool = False) -> None:
    args = {"name": name, "seconds": given.timeout, "signal": given.signal, "again": again}
    call(config, "container.stop", args, deadline=DEADLINE_SECONDS + (given.timeout or 0))


def restart_parser() -> Parser:
    """The arguments of ``restart``."""
    parser = Parser("restart", "Stop containers and start them again.", "web", usage="[-t SECONDS] CONTAINER …")
    parser.seconds("-t", "--timeout", "--time", purpose="before it is killed (10, or what `run` was told)")
    parser.value("-s", "--signal", metavar="SIGNAL", purpose="how to ask (TERM, or what `run` was told)")
    parser.names("CONTAINER")
    return parser


def restart(config: Config, given: Namespace) -> int:
    """Restart containers; print their names."""

    def restart_one(name: str) -> None:
        _stop_one(config, given, name, again=True)
        run.start_detached(config, name)

    return _for_each(given.names, restart_one)


def kill_parser() -> Parser:
    """The arguments of ``kill``."""
    parser = Parser("kill", "Send containers a signal.", "web", "-s HUP web", usage="[-s SIGNAL] CONTAINER …")
    parser.value("-s", "--signal", metavar="SIGNAL", default="KILL", purpose="which (KILL)")
    parser.names("CONTAINER")
    return parser


def kill(config: Config, given: Namespace) -> int:
    """Send a signal; print the names of the containers that got it."""
    return _for_each(given.names, lambda name: call(config, "container.kill", {"name": name, "signal": given.signal}))


def wait_parser() -> Parser:
    """The arguments of ``wait``."""
    parser = Parser("wait", "Wait until containers end, and print their exit codes.", "job", usage="CONTAINER …")
    parser.names("CONTAINER")
    return parser


@only_watching
def wait(config: Config, given: Namespace) -> int:
    """Wait for containers, one after the other."""
    _, code = each(given.names, lambda name: print(_exit_code(config, name)))
    return code


def _exit_code(config: Config, name: str) -> int:
    from netlib.runtime.attach import connect
    from netlib.runtime.attach import wait as wait_for_end

    facts = call(config, "container.inspect", {"names": [name]})[0]
    if facts["State"]["Running"]:
        try:
            with connect(run.minder_socket(config, facts["Id"]), output=False) as connection:
                code = wait_for_end(connection)
        except NotFound:  # the container has ended meanwhile
            code = None
        if code is not None:
            return code
        facts = call(config, "container.inspect", {"names": [facts["Id"]]})[0]
    return int(facts["State"]["ExitCode"])


def rm_parser() -> Parser:
    """The arguments of ``rm``."""
    parser = Parser("rm", "Remove containers with their files and logs.", "job", "-f web db", usage="[-f] CONTAINER …")
    parser.switch("-f", "--force", purpose="kill those that run; no error for those that do not exist")
    parser.switch("-v", "--volumes", purpose="accepted; volumes are folders of the host, which stay")
    parser.names("CONTAINER")
    return parser


def rm(config: Config, given: Namespace) -> int:
    """Remove containers; print the names of the removed ones."""

    def remove_one(name: str) -> None:
        try:
            call(config, "container.rm", {"names": [name], "force": given.force})
        except NotFound:
            if not given.force:
                raise

    if len(given.names) > 1:
        with suppress(NetlibError):  # all in one call, which is quicker; after an error one by one, to name its subject
            call(config, "container.rm", {"names": given.names, "force": given.force})
            print("\n".join(given.names))
            return 0
    return _for_each(given.names, remove_one)


def _for_each(names: Sequence[str], action: Callable[[str], object]) -> int:
    """Do *action* for every name and print the name, as Docker does; return the exit code."""

    def act(name: str) -> None:
        action(name)
        print(name)

    return each(names, act)[1]


COMMANDS: dict[str, Command] = {
    "attach": (run.attach_parser, run.attach),
    "exec": (run.exec_parser, run.execute),
    "inspect": (inspect_parser, inspect),
    "kill": (kill_parser, kill),
    "logs": (logs_parser, logs),
    "port": (port_parser, port),
    "ps": (ps_parser, ps),
    "restart": (restart_parser, restart),
    "rm": (rm_parser, rm),
    "run": (run.run_parser, run.run),
    "start": (run.start_parser, run.start),
    "stop": (stop_parser, stop),
    "wait": (wait_parser, wait),
}
