"""``netlib`` as a whole: words to commands, errors to one sentence and an exit code, and nothing heavy imported."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netlib import __version__
from netlib.cli import containers, network, run, system
from netlib.cli.main import main
from netlib.cli.outcome import complain
from netlib.config import Config
from netlib.errors import AlreadyExists, CommandNotRun, NetlibError, NotFound, TeardownError

HEAVY = (
    "asyncio",
    "dataclasses",
    "dns",
    "email",
    "inspect",
    "msgspec",
    "pydantic",
    "pyroute2",
    "rich",
    "sqlite3",
    "typer",
)

Answer = Callable[[str, dict[str, Any]], Any]
Asked = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], Asked]:
    """Let *answer* stand for netlibd; what it is asked is noted."""

    def install(answer: Answer) -> Asked:
        asked: Asked = []

        def call(config: Config, verb: str, args: dict[str, Any], **_: Any) -> Any:
            asked.append((verb, args))
            return answer(verb, args)

        for module in (containers, network, run, system):
            monkeypatch.setattr(module, "call", call)
        return asked

    return install


def _raise(error: BaseException) -> Answer:
    def answer(verb: str, args: dict[str, Any]) -> Any:
        raise error

    return answer


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"], ["network"], ["network", "--help"], ["system"]])
def test_help_names_the_commands(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("usage: netlib")
    assert not shown.err


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    words = capsys.readouterr().out.split()
    assert set(words) >= {*containers.COMMANDS, *system.COMMANDS}
    main(["network", "--help"])
    assert set(capsys.readouterr().out.split()) >= set(network.COMMANDS) - {"list", "remove"}


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"netlib {__version__}\n"


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["frobnicate"], 1, "'frobnicate' is no command"),
        (["network", "frobnicate"], 1, "'network frobnicate' is no command"),
        (["--frobnicate", "ps"], 125, "unknown option '--frobnicate'"),
        (["--state-dir"], 125, "--state-dir needs a folder"),
        (["--run-dir=", "ps"], 125, "--run-dir needs a folder"),
        (["ps", "--frobnicate"], 125, "ps: unknown option --frobnicate"),
        (["stop", "-t", "soon", "web"], 125, "'soon' is no number of seconds"),
        (["network", "create"], 1, "network create: no network given"),
        (["network", "rm", "-f"], 1, "network rm: no network given"),
        (["ps", "web"], 1, "ps: 'web': too many arguments; leave it out"),
        (["run"], 1, "run: no command given"),
        (["run", "-e", "=x", "true"], 125, "'=x' has no name"),
        (["ps", "--filter", "colour=red"], 1, "filter 'colour=red' is not understood"),
        (["events", "--filter", "network="], 1, "filter 'network=' is not understood"),
        (["logs", "--tail", "some", "web"], 1, "--tail 'some' is no number"),
        (["start", "-a", "one", "two"], 1, "one container at a time"),
    ],
)
def test_words_that_mean_nothing_end_with_dockers_code_and_one_sentence(
    words: list[str], code: int, sentence: str, answered: Callable[[Answer], Asked], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = answered(lambda verb, args: None)
    assert main(words) == code
    shown = capsys.readouterr()
    assert shown.err.startswith("netlib: ")
    assert sentence in shown.err
    assert shown.err.count("\n") == 1
    assert not shown.out
    assert not asked


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (NotFound("network 'web' not found"), 1, "netlib: network 'web' not found\n"),
        (CommandNotRun("container 'web': nope: not found", 127), 127, "netlib: container 'web': nope: not found\n"),
        (TeardownError([NetlibError("one\nmore"), NetlibError("two")]), 1, "netlib: one more; two\n"),
        (KeyboardInterrupt(), 130, "netlib: interrupted; what was under way is finished or undone by the next command\n"),
    ],
)
def test_errors_are_one_sentence_and_their_exit_code(
    error: BaseException, code: int, sentence: str, answered: Callable[[Answer], Asked], capsys: pytest.CaptureFixture[str]
) -> None:
    answered(_raise(error))
    assert main(["explain", "web"]) == code
    assert capsys.readouterr().err == sentence


def test_a_defect_is_told_in_one_sentence_and_written_down(
    tmp_path: Path, answered: Callable[[Answer], Asked], capsys: pytest.CaptureFixture[str]
) -> None:
    answered(_raise(ZeroDivisionError("by zero")))
    log = tmp_path / "run" / "errors.log"
    assert main(["--run-dir", str(log.parent), "explain", "web"]) == 125
    assert capsys.readouterr().err == f"netlib: internal error: ZeroDivisionError: by zero; its details are in {log}\n"
    text = log.read_text()
    assert "explain web" in text
    assert "Traceback" in text
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_defect_is_told_also_where_it_cannot_be_written_down(
    tmp_path: Path, answered: Callable[[Answer], Asked], capsys: pytest.CaptureFixture[str]
) -> None:
    answered(_raise(ZeroDivisionError("by zero")))
    (tmp_path / "file").write_text("")
    assert main(["--run-dir", str(tmp_path / "file"), "explain", "web"]) == 125
    assert "could not be written" in capsys.readouterr().err


def test_several_names_go_on_over_failures(answered: Callable[[Answer], Asked], capsys: pytest.CaptureFixture[str]) -> None:
    def answer(verb: str, args: dict[str, Any]) -> None:
        if args["name"] == "b":
            raise NotFound("network 'b' not found")

    asked = answered(answer)
    assert main(["network", "rm", "a", "b", "c"]) == 1
    shown = capsys.readouterr()
    assert shown.out == "a\nc\n"
    assert shown.err == "netlib: network 'b' not found\n"
    assert [args["name"] for _, args in asked] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "words", [["network", "rm", "-f", "web"], ["rm", "-f", "web"], ["network", "disconnect", "-f", "web", "db"]]
)
def test_force_takes_what_is_not_there_for_done(words: list[str], answered: Callable[[Answer], Asked]) -> None:
    answered(_raise(NotFound("not found")))
    assert main(words) == 0
    answered(_raise(AlreadyExists("other")))
    assert main(words) == 1


def test_create_sends_texts_as_typed(answered: Callable[[Answer], Asked], capsys: pytest.CaptureFixture[str]) -> None:
    asked = answered(lambda verb, args: {"Id": "a" * 64})
    options = "--subnet 10.1.0.0/16 --subnet fd00::/64 --gateway 10.1.0.1 --ip-range 10.1.2.0/24 --aux-address p=10.1.0.5"
    assert (
        main(f"network create {options} -o a=b --opt c=d --label x --internal --ipv4=false --ipv6 -d bridge web".split()) == 0
    )
    assert capsys.readouterr().out == "a" * 64 + "\n"
    assert asked == [
        (
            "network.create",
            {
                "name": "web",
                "driver": "bridge",
                "subnets": ["10.1.0.0/16", "fd00::/64"],
                "gateways": ["10.1.0.1"],
                "ip_ranges": ["10.1.2.0/24"],
                "auxiliary": ["p=10.1.0.5"],
                "internal": True,
                "ipv4": False,
                "ipv6": True,
                "options": ["a=b", "c=d"],
                "labels": ["x"],
                "ipam_driver": "default",
                "ipam_options": [],
                "scope": "local",
            },
        )
    ]


def test_run_detached_sends_what_was_typed_and_prints_the_id(
    answered: Callable[[Answer], Asked], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = answered(lambda verb, args: {"Id": "b" * 64, "Warnings": ["published ports are discarded"]})
    words = "run -d --name web --net a --network b --rootfs tree -p 80 -e X=1 --rm sh -c true"
    assert main(words.split()) == 0
    shown = capsys.readouterr()
    assert shown.out == "b" * 64 + "\n"
    assert shown.err == "netlib: warning: published ports are discarded\n"
    (verb, args) = asked[0]
    assert verb == "container.run"
    wanted = {
        "command": ["sh", "-c", "true"],
        "name": "web",
        "networks": ["a", "b"],
        "publish": ["80"],
        "environment": {"X": "1"},
    }
    assert args.items() >= {**wanted, "rootfs": str(tmp_path / "tree"), "auto_remove": True, "tty": False}.items()


def test_a_terminal_is_refused_where_standard_input_is_none(
    answered: Callable[[Answer], Asked], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = answered(lambda verb, args: None)
    assert main(["run", "-it", "sh"]) == 1
    assert "standard input is no terminal" in capsys.readouterr().err
    assert not asked


@pytest.mark.parametrize("words", [["network", "prune"], ["system", "reset"]])
def test_what_removes_much_asks_first(
    words: list[str], answered: Callable[[Answer], Asked], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = answered(lambda verb, args: {"NetworksDeleted": ["web"]})
    for reply in ("n\n", "\n", ""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(reply))
        assert main(words) == 1
    assert not asked
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert main(words) == 0
    assert main([*words, "--force"]) == 0
    assert len(asked) == 2
    assert "[y/N]" in capsys.readouterr().err


PS_ROW = {"Command": "python3 -m http.server 80", "ID": "c" * 64, "Image": "(host)", "Labels": "a=1,b=", "Names": "web"}
PS_ROW |= {"Networks": "alpine-net", "Ports": "0.0.0.0:8080->80/tcp", "RunningFor": "2 hours ago", "State": "running"}
PS_ROW |= {"Status": "Up 2 hours"}


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ("name=we", True),
        ("name=db", False),
        ("id=ccc", True),
        ("label=a", True),
        ("label=a=1", True),
        ("label=a=2", False),
        ("status=running", True),
        ("status=exited", False),
        ("network=alpine-net", True),
        ("network=alpine", False),
    ],
)
def test_ps_filters(filters: str, found: bool, answered: Callable[[Answer], Asked], capsys: pytest.CaptureFixture[str]) -> None:
    answered(lambda verb, args: [PS_ROW])
    assert main(["ps", "-q", "--filter", filters]) == 0
    assert capsys.readouterr().out == ("c" * 12 + "\n" if found else "")


def test_ps_shows_dockers_columns(answered: Callable[[Answer], Asked], capsys: pytest.CaptureFixture[str]) -> None:
    answered(lambda verb, args: [PS_ROW])
    assert main(["container", "ls"]) == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split("  ")[0] == "CONTAINER ID"
    assert heading.split()[-2:] == ["PORTS", "NAMES"]
    assert row.split("   ") == [
        "c" * 12,
        "(host)",
        '"python3 -m http.ser…"',
        "2 hours ago",
        "Up 2 hours",
        "0.0.0.0:8080->80/tcp",
        "web",
    ]


def test_nothing_heavy_is_imported() -> None:
    modules = "netlib.cli.main, netlib.cli.cni, netlib.cli.containers, netlib.cli.network, netlib.cli.run, netlib.cli.system"
    program = f"import sys, {modules}; print(*sorted({{name.partition('.')[0] for name in sys.modules}} & {set(HEAVY)}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_closed_pipe_ends_quietly() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        command = [sys.executable, "-m", "netlib.cli.main", "--help"]
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_what_a_terminal_would_obey_is_spelled_out(capsys: pytest.CaptureFixture[str]) -> None:
    complain("no option \x1b[31m\n or \u202e, said Jürgen…")
    assert capsys.readouterr().err == "netlib: no option \\x1b[31m or \\u202e, said Jürgen…\n"


@pytest.mark.parametrize("closed", ["0", "1", "2", "012"])
def test_closed_standard_descriptors_are_never_ours(closed: str) -> None:
    """Without this, the first file or socket that we open is our standard input or output."""
    redirections = " ".join(f"{fd}{'<' if fd == '0' else '>'}&-" for fd in closed)
    check = "import os, sys; from netlib.cli.main import main; code = main(['--version']); os.fstat(0); sys.exit(code)"
    command = ["sh", "-c", f'exec "$0" -c "$1" {redirections}', sys.executable, check]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == ("" if "1" in closed else f"netlib {__version__}\n")


def test_output_that_finds_no_room_is_one_sentence() -> None:
    with open("/dev/full", "w") as full:
        run = subprocess.run([sys.executable, "-m", "netlib", "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (run.returncode, run.stderr) == (125, "netlib: the output cannot be written: no space left on device\n")


def test_a_number_beyond_all_bounds_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["log", "-n", "99999999999999999999"]) == 125
    assert "'99999999999999999999' is beyond" in capsys.readouterr().err
