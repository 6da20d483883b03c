"""How words become arguments: where options end, Docker's ways to write them, and refusals in one sentence."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from netlib.cli.arguments import HelpShown, Parser, environment
from netlib.cli.containers import COMMANDS as CONTAINER_COMMANDS
from netlib.cli.containers import rm_parser, stop_parser
from netlib.cli.network import COMMANDS as NETWORK_COMMANDS
from netlib.cli.network import connect_parser, create_parser, disconnect_parser
from netlib.cli.run import exec_parser, run_parser
from netlib.cli.system import COMMANDS as OTHER_COMMANDS
from netlib.cli.system import SYSTEM_COMMANDS
from netlib.errors import ConfigError
from netlib.requests import ConnectRequest, DisconnectRequest, NetworkRequest, read
from netlib.runtime.spec import RunRequest

PARSERS = [
    parser
    for commands in (CONTAINER_COMMANDS, NETWORK_COMMANDS, OTHER_COMMANDS, SYSTEM_COMMANDS)
    for parser, _ in commands.values()
]


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["ping", "-c1", "web"], ["ping", "-c1", "web"]),
        (["-d", "--name", "web", "python3", "-m", "http.server", "80"], ["python3", "-m", "http.server", "80"]),
        (["-dit", "--rm", "sh", "-c", "echo --rm"], ["sh", "-c", "echo --rm"]),
        (["-dp", "8080:80", "nc", "-l"], ["nc", "-l"]),
        (["-p8080:80", "nc"], ["nc"]),
        (["--name=web", "-e", "-x=1", "env"], ["env"]),
        (["--", "-odd-command", "-d"], ["-odd-command", "-d"]),
        (["echo", "--rm=false", "-d=true"], ["echo", "--rm=false", "-d=true"]),
        (["echo", "--"], ["echo", "--"]),
    ],
)
def test_the_command_of_run_begins_at_the_first_word_that_is_no_option(words: list[str], command: list[str]) -> None:
    assert run_parser().read(words).command == command


def test_options_of_run_are_read_up_to_the_command() -> None:
    given = run_parser().read(["-dit", "-p", "80", "-p", "8080:80", "-h", "box", "--net", "web", "--network", "db", "sh", "-d"])
    assert (given.detach, given.stdin, given.tty, given.auto_remove) == (True, True, True, False)
    assert (given.publish, given.hostname, given.networks) == (["80", "8080:80"], "box", ["web", "db"])


@pytest.mark.parametrize("value", ["=x", "", "-x=1", "--rm", "a b", "x=", "--"])
@pytest.mark.parametrize("flags", [["-e"], ["--env"], ["-de"]])
def test_any_word_can_be_a_value(flags: list[str], value: str) -> None:
    given = run_parser().read([*flags, value, "sh"])
    assert (given.env, given.command, given.detach) == ([value], ["sh"], flags == ["-de"])


def test_exec_takes_the_container_and_then_the_command() -> None:
    given = exec_parser().read(["-it", "-e", "A=1", "web", "sh", "-c", "ls -it"])
    assert (given.container, given.command, given.env, given.tty) == ("web", ["sh", "-c", "ls -it"], ["A=1"], True)


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        ([], "no container given"),
        (["-it"], "no container given"),
        (["web"], "no command given"),
        (["-e", "A=1", "web"], "no command given"),
    ],
)
def test_exec_says_what_is_missing(words: list[str], missing: str) -> None:
    with pytest.raises(ConfigError, match=missing):
        exec_parser().read(words)


def test_options_and_names_may_come_in_any_order() -> None:
    given = connect_parser().read(["--alias", "a", "web", "--ip", "10.0.0.9", "db", "--alias", "b"])
    assert (given.network, given.container, given.ip, given.aliases) == ("web", "db", "10.0.0.9", ["a", "b"])
    assert rm_parser().read(["a", "-f", "b"]).names == ["a", "b"]
    assert rm_parser().read(["-f", "--", "-a", "-f"]).names == ["-a", "-f"]


@pytest.mark.parametrize(
    ("words", "ipv4", "ipv6", "internal"),
    [
        ([], True, False, False),
        (["--ipv4=false", "--ipv6=true", "--internal=true"], False, True, True),
        (["--no-ipv4", "--ipv6", "--internal=FALSE"], False, True, False),
    ],
)
def test_switches_may_be_written_with_true_and_false(words: list[str], ipv4: bool, ipv6: bool, internal: bool) -> None:
    given = create_parser().read([*words, "web"])
    assert (given.ipv4, given.ipv6, given.internal) == (ipv4, ipv6, internal)


def test_values_that_look_like_truths_are_values() -> None:
    assert create_parser().read(["--label", "--internal=true", "--driver=true", "web"]).driver == "true"


@pytest.mark.parametrize(
    ("parser", "words", "sentence"),
    [
        (run_parser, ["--cpus", "2", "sh"], r"run: unknown option --cpus; see `netlib run --help`"),
        (run_parser, ["--na", "web", "sh"], r"unknown option --na;"),
        (run_parser, ["-d"], r"run: no command given"),
        (run_parser, ["--cpus=2", "sh"], r"run: unknown option --cpus;"),
        (CONTAINER_COMMANDS["logs"][0], ["--until", "job"], r"logs: unknown option --until;"),
        (CONTAINER_COMMANDS["logs"][0], ["-fqt", "job"], r"logs: unknown option -q in -fqt;"),
        (CONTAINER_COMMANDS["logs"][0], ["-x", "job"], r"logs: unknown option -x;"),
        (OTHER_COMMANDS["check"][0], [], r"check: no network or container given;"),
        (run_parser, ["--name"], r"run: --name needs a value, NAME, after it;"),
        (run_parser, ["-dp"], r"run: --publish needs a value, PORT, after it;"),
        (rm_parser, ["--force=maybe", "web"], r"rm: --force takes no value but true or false, and 'maybe' is neither;"),
        (
            CONTAINER_COMMANDS["inspect"][0],
            ["--type", "x", "web"],
            r"--type: 'x' is not possible; choose container or network or sandbox;",
        ),
        (stop_parser, ["-t", "soon", "web"], r"'soon' is no number of seconds"),
        (stop_parser, ["-t", "-1", "web"], r"'-1' is no length of time"),
        (stop_parser, ["-t", "nan", "web"], r"'nan' is no length of time"),
        (stop_parser, [], r"stop: no container given"),
        (connect_parser, ["web", "db", "more"], r"network connect: 'more': too many arguments; leave it out;"),
        (connect_parser, ["--gw-priority", "high", "web", "db"], r"'high' is no whole number"),
    ],
)
def test_wrong_arguments_are_refused_in_one_sentence(parser: Callable[[], Parser], words: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        parser().read(words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: f"{parser.__module__}.{parser.__name__}")
def test_every_help_has_a_purpose_and_examples_that_its_parser_takes(
    parser: Callable[[], Parser], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(HelpShown):
        parser().read(["--help"])
    text = capsys.readouterr().out
    usage, _, examples = text.partition("\nexamples:\n")
    assert usage.startswith("usage: netlib ")
    prog = parser().prog
    lines = [line.strip() for line in examples.splitlines()]
    assert lines
    for line in lines:
        assert line.startswith(prog)
        parser().read(shlex.split(line.removeprefix(prog)))  # raises what it does not take


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: f"{parser.__module__}.{parser.__name__}")
def test_every_help_fits_the_terminal(
    parser: Callable[[], Parser], columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the usage and the examples, which are to be copied; what wraps is the same text."""
    monkeypatch.setenv("COLUMNS", str(columns))
    parser().print_help()
    _, purpose, *options, examples = capsys.readouterr().out.split("\n\n")
    assert purpose.split() == (parser().description or "").split()
    assert [line for text in (purpose, *options) for line in text.splitlines() if len(line) > min(columns, 80)] == []
    assert examples.startswith("examples:\n  netlib ")


def test_environment_comes_from_files_then_options_then_the_callers_own(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text("# comment\n\nA=file\nB=file\n  HOME  \n")
    found = environment(["B=option", "HOME", "UNSET", "EMPTY="], [str(path)], {"HOME": "/root"})
    assert found == {"A": "file", "B": "option", "HOME": "/root", "EMPTY": ""}


def test_environment_refuses_what_has_no_name_and_files_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'=x' has no name"):
        environment(["=x"], [], {})
    with pytest.raises(ConfigError, match=r"nowhere' cannot be read: no such file"):
        environment([], [str(tmp_path / "nowhere")], {})
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"is not UTF-8"):
        environment([], [str(tmp_path / "binary")], {})


def test_words_too_many_are_named_without_our_own() -> None:
    with pytest.raises(ConfigError, match="'b', 'c': too many arguments;"):
        CONTAINER_COMMANDS["logs"][0]().read(["a", "b", "c"])
    with pytest.raises(ConfigError, match="'a': too many arguments;"):
        NETWORK_COMMANDS["ls"][0]().read(["a"])


def test_what_is_not_given_is_not_asked_for() -> None:
    given = run_parser().read(["--dns", "10.0.0.1", "--add-host", "a:10.0.0.2", "sh"])
    assert given.asked["resolver"] == {"servers": ["10.0.0.1"], "search": [], "options": [], "extra_hosts": ["a:10.0.0.2"]}
    assert "stop_seconds" not in given.asked


@pytest.mark.parametrize(
    ("parser", "words", "request_type"),
    [
        (create_parser, ["web"], NetworkRequest),
        (connect_parser, ["web", "box"], ConnectRequest),
        (disconnect_parser, ["web", "box"], DisconnectRequest),
        (run_parser, ["sh"], RunRequest),
    ],
)
def test_what_a_command_asks_for_are_fields_of_its_request(
    parser: Callable[[], Parser], words: list[str], request_type: type[Struct]
) -> None:
    asked = parser().read(words).asked
    required = {"command": ["sh"]} if request_type is RunRequest else {}
    assert read(request_type, {**asked, **required}) == read(request_type, {**_needed(request_type, asked), **required})


def _needed(request_type: type[Struct], asked: dict[str, Any]) -> dict[str, Any]:
    """Of what was asked, what has no default: the rest must be the defaults themselves."""
    return {name: value for name, value in asked.items() if value in ("web", "box")}
