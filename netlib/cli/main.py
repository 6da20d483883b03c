"""``netlib``: finds the command's module by its first word, before anything heavy is imported.

Nothing here touches records or the kernel: a command asks :func:`netlib.verbs.call.call`, which asks netlibd if that runs.
"""

import sys
from collections.abc import Mapping, Sequence

from netlib import __version__
from netlib.cli.arguments import Command, WrongOption, do
from netlib.cli.outcome import complain, guarded, open_standard
from netlib.config import Config
from netlib.errors import ConfigError

HELP = """\
usage: netlib [--state-dir DIR] [--run-dir DIR] COMMAND …

Connect containers: networks with names, published ports and isolation,
on one Linux host.

networks:
  network create   make a network             network ls        list them
  network inspect  show them in JSON          network rm        remove them
  network connect  connect a container to one
  network disconnect  disconnect it
  network prune    remove those without members

containers (also as `netlib container COMMAND`):
  run       run a command in a new container  exec      run one more command in it
  ps        list containers                   inspect   show containers or networks in JSON
  start     start what has ended              stop      end its command, gently first
  restart   stop and start                    kill      send its command a signal
  wait      wait for its end                  attach    connect your terminal to it
  logs      show its output                   port      show its published ports
  rm        remove it

CNI plugins:
  cni install  write them into a folder       cni uninstall  take them out of it
  cni ls       list what they attached        cni inspect    show it in JSON
  cni prune    remove networks without attachments

inspection and maintenance:
  explain   the ip and nft commands that correspond to a network or container
  check     how the kernel differs from what was asked for
  log       what netlib did, one line per operation
  events    what happens, as it happens, one JSON object a line
  info      what there is, and where          version   print the version
  system backup  copy the records to a file   system restore  use such a copy
  system reset   remove all that netlib made

options:
  --state-dir DIR   where records are kept (NETLIB_STATE_DIR; /var/lib/netlib)
  --run-dir DIR     where sockets and locks are (NETLIB_RUN_DIR; /run/netlib)
  --version         print the version
  --help            show this; `netlib COMMAND --help` shows more

examples:
  netlib network create alpine-net
  netlib run -d --name web --network alpine-net -p 8080:80 python3 -m http.server 80
  netlib run --rm --network alpine-net ping -c1 web
  netlib network inspect alpine-net
"""

_CONTAINERS = ("attach", "exec", "inspect", "kill", "logs", "port", "ps", "restart", "rm", "run", "start", "stop", "wait")
_CONTAINER_WORDS = {"list": "ps", "ls": "ps", "remove": "rm"}  # Docker's long spelling: `container ls`
_DIRECTORIES = {"--state-dir": "state_dir", "--run-dir": "run_dir"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; *arguments* None means those of this process. Returns the exit code, never raises."""
    open_standard()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        config, rest = _global_options(words)
    except ConfigError as error:
        complain(str(error))
        return error.exit_code
    return guarded(lambda: _dispatch(config, rest), config, words)


def _dispatch(config: Config, rest: list[str]) -> int:
    if not rest or rest[0] in ("--help", "-h", "help"):
        print(HELP, end="")
        return 0
    if rest[0] in ("--version", "-v"):
        print(f"netlib {__version__}")
        return 0
    command, *words = rest
    if command == "network":
        from netlib.cli import network

        return _choose(config, network.COMMANDS, network.HELP, "network ", words)
    if command == "cni":
        from netlib.cli import cni

        return _choose(config, cni.COMMANDS, cni.HELP, "cni ", words)
    if command == "system":
        from netlib.cli import system

        return _choose(config, system.SYSTEM_COMMANDS, system.HELP, "system ", words)
    if command == "container":
        from netlib.cli import containers

        commands = containers.COMMANDS | {word: containers.COMMANDS[short] for word, short in _CONTAINER_WORDS.items()}
        return _choose(config, commands, containers.HELP, "container ", words)
    if command in _CONTAINERS:
        from netlib.cli import containers

        return do(config, containers.COMMANDS[command], words)
    from netlib.cli import system

    return _choose(config, system.COMMANDS, HELP, "", [command, *words])


def _choose(config: Config, commands: Mapping[str, Command], usage: str, noun: str, words: Sequence[str]) -> int:
    if not words or words[0] in ("--help", "-h", "help"):
        print(usage, end="")
        return 0
    if words[0] not in commands:
        raise ConfigError(f"{noun + words[0]!r} is no command; `netlib {noun}--help` lists them")
    return do(config, commands[words[0]], words[1:])


def _global_options(words: Sequence[str]) -> tuple[Config, list[str]]:
    """Read ``--state-dir`` and ``--run-dir`` at the beginning of *words*; return the folders and the other words."""
    found: dict[str, str] = {}
    rest = list(words)
    while rest and rest[0].startswith("--"):
        option, equals, value = rest[0].partition("=")
        if option not in _DIRECTORIES:
            if option in ("--help", "--version"):
                break
            raise WrongOption(f"unknown option {option!r} before the command; `netlib --help` lists them")
        del rest[0]
        if not equals:
            if not rest:
                raise WrongOption(f"{option} needs a folder after it")
            value = rest.pop(0)
        if not value:
            raise WrongOption(f"{option} needs a folder, not an empty text")
        found[_DIRECTORIES[option]] = value
    return Config.from_environment(**found), rest


if __name__ == "__main__":
    sys.exit(main())
