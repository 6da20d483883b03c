"""``netlib run``, ``start``, ``attach``, ``exec``: commands that connect the caller's terminal with a container's command."""

import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from netlib.cli.arguments import Parser, environment
from netlib.cli.outcome import complain, each, only_watching, refusals_exit_125
from netlib.config import Config, whole_path
from netlib.errors import CommandNotRun, ConfigError, Conflict, NetlibError
from netlib.verbs.call import call

NOT_FOUND = 127  # as in shells: there is no such command


def run_parser() -> Parser:
    """The arguments of ``run``."""
    parser = Parser(
        "run",
        "Run a command in a new container. Its files are those of --rootfs, else a throw-away view of the host's.",
        "-d --name web --network alpine-net -p 8080:80 python3 -m http.server 80",
        "--rm --network alpine-net ping -c1 web",
        "--rm -it --network name=web,ip=172.28.0.9 --network backend sh",
        "--rm --rootfs /srv/alpine -v /srv/data:/data:ro cat /data/file",
        usage="[OPTION …] COMMAND [ARGUMENT …]",
        short_help=False,
    )
    parser.switch("-d", "--detach", purpose="leave it running and print its id")
    parser.switch("-i", "--interactive", field="stdin", purpose="pass standard input on")
    parser.switch("-t", "--tty", field="tty", purpose="give it a terminal")
    _add_detach_keys(parser)
    parser.switch("--rm", field="auto_remove", purpose="remove it when it ends")
    parser.value("--name", metavar="NAME", field="name", purpose="its name, by which others on its networks find it")
    parser.value("-h", "--hostname", metavar="NAME", field="hostname", purpose="its hostname (the beginning of its id)")
    parser.value("--domainname", metavar="NAME", field="domainname", purpose="its domain name")
    _add_network_options(parser)
    parser.values("-e", "--env", metavar="NAME=VALUE", purpose="variable; NAME alone takes your value")
    parser.values("--env-file", metavar="FILE", purpose="variables, one a line")
    parser.value("-w", "--workdir", metavar="DIR", field="workdir", purpose="folder that the command starts in")
    parser.value("-u", "--user", metavar="USER[:GROUP]", field="user", purpose="who runs the command")
    parser.values("-v", "--volume", metavar="SOURCE:TARGET[:ro]", field="volumes", purpose="mount a folder of the host into it")
    parser.value("--rootfs", metavar="DIR", purpose="folder with its files")
    parser.values("-l", "--label", metavar="KEY=VALUE", field="labels", purpose="label")
    parser.value("--stop-signal", metavar="SIGNAL", default="TERM", field="stop_signal", purpose="what `stop` sends (TERM)")
    parser.seconds("--stop-timeout", field="stop_seconds", purpose="what `netlib stop` waits before it kills (10)")
    parser.command_after()
    return parser


def _add_detach_keys(parser: Parser) -> None:
    parser.value("--detach-keys", metavar="KEYS", purpose="keys that detach from its terminal (ctrl-p,ctrl-q)")


def _add_network_options(parser: Parser) -> None:
    parser.values(
        "--network",
        "--net",
        metavar="NETWORK",
        field="networks",
        purpose="network to join, repeatable: a name, host, none, container:NAME, or name=…,alias=…,ip=…,ip6=…,mac-address=…,"
        "driver-opt=…,gw-priority=… (bridge)",
    )
    parser.values(
        "--network-alias", "--net-alias", metavar="NAME", field="aliases", purpose="one more name on the first network"
    )
    parser.value("--ip", metavar="IP", field="ip", purpose="IPv4 address on the first network")
    parser.value("--ip6", metavar="IP", field="ip6", purpose="IPv6 address on the first network")
    parser.value("--mac-address", metavar="MAC", field="mac", purpose="MAC address on the first network")
    parser.values("--link", metavar="NAME[:ALIAS]", field="links", purpose="a name by which it finds another container")
    parser.values(
        "-p",
        "--publish",
        metavar="PORT",
        field="publish",
        purpose="publish a port: 80, 8080:80, IP:8080:80, IP::80, 8000-8010:80-90, with /udp",
    )
    parser.values("--dns", metavar="IP", field="resolver.servers", purpose="name server for names that are no container's")
    parser.values("--dns-search", metavar="DOMAIN", field="resolver.search", purpose="search domain")
    parser.values("--dns-option", "--dns-opt", metavar="OPTION", field="resolver.options", purpose="resolver option")
    parser.values("--add-host", metavar="NAME:IP", field="resolver.extra_hosts", purpose="line for /etc/hosts")
    parser.values("--sysctl", metavar="NAME=VALUE", field="sysctls", purpose="setting net.* of its own network namespace")


def run(config: Config, given: Namespace) -> int:
    """Run a command in a new container; return its exit code, or 0 when it is detached."""
    _check_terminal(given)
    with refusals_exit_125():
        try:
            return _run(config, given)
        except CommandNotRun as error:
            if error.exit_code != NOT_FOUND or "/" in given.command[0]:
                raise
            text = f"{error}; netlib has no images yet: leave an image's name out"
            raise CommandNotRun(text, error.exit_code) from error


def _run(config: Config, given: Namespace) -> int:
    args: dict[str, Any] = {
        **given.asked,
        "command": given.command,
        "rootfs": whole_path(given.rootfs) if given.rootfs else "",  # relative to the caller's folder, not to netlibd's
        "environment": environment(given.env, given.env_file, os.environ),
    }
    if given.detach:
        started = call(config, "container.run", args)
        _warn(started)
        print(started["Id"])
        return 0
    return _foreground(config, "container.run", args, tty=given.tty, stdin=given.stdin, keys=given.detach_keys)


def start_parser() -> Parser:
    """The arguments of ``start``."""
    parser = Parser("start", "Start containers that have ended.", "web", "-a job", usage="[-a] [-i] CONTAINER …")
    _add_detach_keys(parser)
    parser.switch("-a", "--attach", purpose="show its output, and end with its exit code")
    parser.switch("-i", "--interactive", field="stdin", purpose="pass standard input on")
    parser.names("CONTAINER")
    return parser


def start(config: Config, given: Namespace) -> int:
    """Start containers."""
    if not (given.attach or given.stdin):
        _, code = each(given.names, lambda name: print(start_detached(config, name)))
        return code
    if len(given.names) > 1:
        raise ConfigError(
            f"start -a shows one container at a time, and {len(given.names)} are named; start the others without -a"
        )
    (name,) = given.names
    facts = call(config, "container.inspect", {"names": [name]})[0]
    if facts["State"]["Running"]:
        raise Conflict(f"container {name!r} is running already; `netlib attach {name}` shows its output")
    with _ordinary_exit_code():
        return _foreground(
            config,
            "container.start",
            {"name": name},
            tty=facts["Config"]["Tty"],
            stdin=given.stdin,
            keys=given.detach_keys,
        )


def start_detached(config: Config, name: str) -> str:
    """Start a container in the background; return its name."""
    with _ordinary_exit_code():
        call(config, "container.start", {"name": name})
    return name


@contextmanager
def _ordinary_exit_code() -> Iterator[None]:
    """Give CommandNotRun the exit code of other errors: in Docker only ``run`` and ``exec`` end with 126 and 127."""
    try:
        yield
    except CommandNotRun as error:
        error.exit_code = NetlibError.exit_code
        raise


def attach_parser() -> Parser:
    """The arguments of ``attach``."""
    parser = Parser(
        "attach",
        "Connect your terminal to a running container; end with its exit code.",
        "web",
        usage="[--no-stdin] [--detach-keys KEYS] CONTAINER",
    )
    _add_detach_keys(parser)
    parser.switch("--no-stdin", purpose="do not pass standard input on")
    parser.positional("name", "CONTAINER")
    return parser


@only_watching
def attach(config: Config, given: Namespace) -> int:
    """Attach to a running container until it ends, or until the keys to detach are pressed, which counts as a failure."""
    from netlib.runtime.attach import DETACHED, Detached, connect, parse_detach_keys

    keys = parse_detach_keys(given.detach_keys)
    facts = call(config, "container.inspect", {"names": [given.name]})[0]
    if not facts["State"]["Running"]:
        raise Conflict(f"container {given.name!r} is not running; `netlib start -a {given.name}` starts it")
    with connect(minder_socket(config, facts["Id"]), output=True) as connection:
        stdin = facts["Config"]["OpenStdin"] and not given.no_stdin
        try:
            return _relay(config, connection, facts["Id"], tty=facts["Config"]["Tty"], stdin=stdin, keys=keys)
        except Detached:
            print(DETACHED, file=sys.stderr)
            return NetlibError.exit_code


def exec_parser() -> Parser:
    """The arguments of ``exec``."""
    parser = Parser(
        "exec",
        "Run one more command in a running container.",
        "web ip addr",
        "-it web sh",
        "-e DEBUG=1 -w /srv web ./check",
        usage="[OPTION …] CONTAINER COMMAND [ARGUMENT …]",
    )
    parser.switch("-d", "--detach", purpose="do not wait for it")
    parser.switch("-i", "--interactive", field="stdin", purpose="pass standard input on")
    parser.switch("-t", "--tty", purpose="give it a terminal")
    _add_detach_keys(parser)
    parser.values("-e", "--env", metavar="NAME=VALUE", purpose="variable; NAME alone takes your value")
    parser.values("--env-file", metavar="FILE", purpose="variables, one a line")
    parser.value("-w", "--workdir", metavar="DIR", purpose="folder that the command starts in")
    parser.value("-u", "--user", metavar="USER[:GROUP]", purpose="who runs the command")
    parser.command_after("CONTAINER")
    return parser


def execute(config: Config, given: Namespace) -> int:
    """Run one more command in a container: this process executes the program that joins it, and ends with its exit code."""
    _check_terminal(given)
    variables = environment(given.env, given.env_file, os.environ)
    record = call(config, "container.record", {"name": given.container})
    from netlib.codec import convert
    from netlib.runtime.attach import parse_detach_keys
    from netlib.runtime.container import Runtime
    from netlib.runtime.spec import Container, ExecSpec

    wanted = ExecSpec(
        command=tuple(given.command),
        environment=variables,
        workdir=given.workdir,
        user=given.user,
        tty=given.tty,
        stdin=given.stdin,
        detach=given.detach,
        detach_keys=parse_detach_keys(given.detach_keys),
    )
    sys.stdout.flush()
    with Runtime(config).exec_command(convert(record, Container), wanted) as (python, arguments):
        os.execve(python, arguments, {})


def minder_socket(config: Config, container_id: str) -> Any:
    """The path of the socket on which a container's minder answers."""
    return config.run_dir / "containers" / container_id / "attach.sock"


def _check_terminal(given: Namespace) -> None:
    if given.tty and given.stdin and not given.detach and not sys.stdin.isatty():
        raise ConfigError("standard input is no terminal, which -t needs; leave -t out")


def _warn(started: dict[str, Any]) -> None:
    for sentence in started.get("Warnings", ()):
        complain(f"warning: {sentence}")


def _foreground(config: Config, verb: str, args: dict[str, Any], *, tty: bool, stdin: bool, keys: str) -> int:
    """Start a container, relay all of its output and input, and return its exit code once its sandbox is removed.

    Return 0, for there is no exit code yet, when the user detaches by *keys* before it ends.
    """
    from netlib.runtime.attach import Detached, pair, parse_detach_keys
    from netlib.runtime.terminal import size

    detach_keys = parse_detach_keys(keys)
    ours, theirs = pair()
    with ours:
        with theirs:
            started = call(config, verb, {**args, "size": size(0) if stdin else size(1)}, fds=[theirs.fileno()])
        _warn(started)
        try:
            code = _relay(config, ours, started["Id"], tty=tty, stdin=stdin, keys=detach_keys)
        except Detached:
            return 0
    # The container's minder asks for this too. Waiting for it makes its name, addresses and ports free for the next command.
    try:
        call(config, "container.reap", {"name": started["Id"]})
    except NetlibError as error:  # the minder or the next command clears up; the exit code counts
        complain(str(error))
    return code


def _relay(config: Config, connection: Any, container_id: str, *, tty: bool, stdin: bool, keys: bytes) -> int:
    from netlib.runtime.attach import relay

    def forward(number: int) -> None:
        try:
            call(config, "container.kill", {"name": container_id, "signal": str(number)})
        except NetlibError as error:  # the container has ended meanwhile, which relay() will see
            complain(str(error))

    sys.stdout.flush()
    return relay(connection, stdin=0 if stdin else None, stdout=1, stderr=2, tty=tty, forward=forward, keys=keys)
