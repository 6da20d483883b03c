"""What commands say when nothing went wrong, or nothing of ours: an interrupted watch, help of nouns, facts of ``info``."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netlib import __version__
from netlib.cli import containers, run, system
from netlib.cli.main import main
from netlib.errors import CommandNotRun

FACTS = {
    "PendingRemovals": {},
    "ServedBy": 0,
    "Netlibd": "pid 9",
    "SettingsWithoutEffect": [],
    "Servants": {"dhcp leases": "ok", "names": "ok"},
}


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Let an answer, or an error, stand for what each verb does."""

    def install(answer: Any) -> None:
        def call(*_: Any, **_kept: Any) -> Any:
            if isinstance(answer, BaseException):
                raise answer
            return dict(answer)

        for module in (containers, run, system):
            monkeypatch.setattr(module, "call", call)

    return install


@pytest.mark.parametrize("words", [["logs", "-f", "web"], ["wait", "web"], ["attach", "web"]])
def test_ctrl_c_ends_a_watching_command_without_a_word(
    words: list[str], answered: Callable[[Any], None], capsys: pytest.CaptureFixture[str]
) -> None:
    answered(KeyboardInterrupt())
    assert main(words) == 130
    assert capsys.readouterr() == ("", "")


def test_an_image_is_no_command(answered: Callable[[Any], None], capsys: pytest.CaptureFixture[str]) -> None:
    answered(CommandNotRun("container 'web': alpine: not found in the container's PATH", 127))
    assert main(["run", "alpine", "sh"]) == 127
    assert "not found in the container's PATH; netlib has no images yet: leave an image's name out" in capsys.readouterr().err
    answered(CommandNotRun("container 'web': /bin/x: no such file in the container", 127))
    assert main(["run", "/bin/x"]) == 127
    assert "images" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "heading"),
    [
        (["container"], "usage: netlib container COMMAND"),
        (["container", "--help"], "usage: netlib container COMMAND"),
        (["network", "help"], "usage: netlib network COMMAND"),
        (["cni", "help"], "usage: netlib cni COMMAND"),
    ],
)
def test_a_noun_lists_its_commands(words: list[str], heading: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(heading)
    commands = {word for line in shown.splitlines() if line.startswith("  ") for word in line.split()[:1]}
    if "container" in words:
        assert commands <= {*containers.COMMANDS, "ls"}


def test_info_lists_servants_below_a_heading(answered: Callable[[Any], None], capsys: pytest.CaptureFixture[str]) -> None:
    answered(FACTS)
    assert main(["info"]) == 0
    facts = "PendingRemovals: none\nServedBy: 0\nNetlibd: pid 9\nSettingsWithoutEffect: none\n"
    assert capsys.readouterr().out == f"{facts}Servants:\n  dhcp leases: ok\n  names: ok\n"
    answered({**FACTS, "ServedBy": os.getpid(), "Netlibd": "not running", "Servants": {}})
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    assert "ServedBy: this command\n" in shown
    assert "Servants: none, netlibd is not running\n" in shown


def test_a_backup_that_is_not_there_is_told_before_the_question(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--state-dir", str(tmp_path / "state"), "--run-dir", str(tmp_path / "run")]
    assert main([*folders, "system", "restore", str(tmp_path / "nowhere")]) == 1
    shown = capsys.readouterr().err
    assert "there is no file" in shown
    assert "Go on?" not in shown


@pytest.mark.parametrize(
    ("word", "code", "answer"),
    [
        ("--version", 0, f"netlibd {__version__}\n"),
        ("--nosuch", 125, "netlibd: unrecognized arguments: --nosuch; see `netlibd --help`\n"),
    ],
)
def test_netlibd_has_a_version_and_the_exit_codes_of_netlib(word: str, code: int, answer: str) -> None:
    done = subprocess.run([sys.executable, "-m", "netlib.daemon", word], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (code, answer)
