"""`netlib cni install` and `uninstall`: what is written, what is spared, what is put back."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cni_plugins import install as files
from cni_plugins.install import KEPT, Kind, install, uninstall
from cni_plugins.skel import Outcome
from cni_plugins.types import plugin_types
from netlib import __version__
from netlib.cli.main import main
from netlib.config import Config
from netlib.daemon.dialects import Request
from netlib.errors import ConfigError
from netlib.wire.protocol import store_identity
from tests.cni.launching import run, serving

KINDS: tuple[Kind, ...] = ("c", "python")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "opt" / "cni"


def actions(entries: list[files.Entry]) -> dict[str, str]:
    return {entry.path.name: entry.action for entry in entries}


def of_somebody_else(path: Path, text: str = "#!/bin/sh\necho theirs\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_one_executable_per_type_is_written_and_taken_away(folder: Path, config: Config, kind: Kind) -> None:
    other = of_somebody_else(folder / "calico")
    installed = install(folder, config, launcher=kind)
    assert (installed.launcher, installed.note) == (kind, "")
    assert actions(installed.entries) == dict.fromkeys(plugin_types(), "written")
    assert {path.name for path in folder.iterdir()} == {"calico", *plugin_types()}
    for name in plugin_types():
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o755
        told = subprocess.run([folder / name], env={}, capture_output=True, text=True, check=True)
        assert told.stderr.startswith(f"CNI {name} plugin, netlib ")
    assert actions(install(folder, config, launcher=kind).entries) == dict.fromkeys(plugin_types(), "unchanged")
    assert actions(uninstall(folder)) == dict.fromkeys(plugin_types(), "removed")
    assert list(folder.iterdir()) == [other]
    assert uninstall(folder) == []


def test_one_kind_takes_the_others_place(folder: Path, config: Config) -> None:
    install(folder, config, launcher="python")
    assert set(actions(install(folder, config, launcher="c").entries).values()) == {"written"}
    (folder / "static").chmod(0o644)
    assert actions(install(folder, config, launcher="c", types=["static"]).entries) == {"static": "written"}


def test_files_of_others_are_refused_by_name_and_nothing_is_written(folder: Path, config: Config) -> None:
    of_somebody_else(folder / "static")
    with pytest.raises(ConfigError, match=r"has static of somebody else; pass --replace"):
        install(folder, config, launcher="python", types=["loopback", "static"])
    assert [path.name for path in folder.iterdir()] == ["static"]
    (folder / "static").unlink()
    (folder / "static").symlink_to("elsewhere")
    with pytest.raises(ConfigError, match="somebody else"):
        install(folder, config, launcher="python")


def test_what_was_replaced_comes_back(folder: Path, config: Config) -> None:
    former = of_somebody_else(folder / "static").stat()
    (folder / "loopback").symlink_to("/nowhere")
    entries = install(folder, config, launcher="python", replace=True, types=["static", "loopback", "tap"]).entries
    assert actions(entries) == {"static": "replaced", "loopback": "replaced", "tap": "written"}
    assert (folder / KEPT / "static").stat().st_ino == former.st_ino
    again = install(folder, config, launcher="python", replace=True, types=["static", "loopback", "tap"]).entries
    assert set(actions(again).values()) == {"unchanged"}
    assert actions(uninstall(folder)) == {"static": "restored", "loopback": "restored", "tap": "removed"}
    assert (folder / "static").stat().st_ino == former.st_ino
    assert os.readlink(folder / "loopback") == "/nowhere"
    assert {path.name for path in folder.iterdir()} == {"static", "loopback"}


def test_a_package_that_writes_its_own_again_has_the_last_word(folder: Path, config: Config) -> None:
    of_somebody_else(folder / "static", "old")
    of_somebody_else(folder / "tap", "old")
    install(folder, config, launcher="python", replace=True, types=["static", "tap"])
    os.replace(of_somebody_else(folder / "new", "new"), folder / "static")
    os.replace(of_somebody_else(folder / "new", "new"), folder / "tap")
    assert actions(install(folder, config, launcher="python", replace=True, types=["static"]).entries) == {"static": "replaced"}
    entries = uninstall(folder)
    assert [(str(entry.path.relative_to(folder)), entry.action) for entry in entries] == [
        ("static", "restored"),
        (f"{KEPT}/tap", "left"),
    ]
    assert (folder / "static").read_text() == (folder / "tap").read_text() == "new"


def test_what_a_killed_install_left_is_cleared_away(folder: Path, config: Config) -> None:
    (folder / ".netlib-install-abc").mkdir(parents=True)
    assert uninstall(folder) == []
    assert list(folder.iterdir()) == []


def test_without_a_compiler_it_is_python(folder: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_compiler", lambda: None)
    installed = install(folder, config)
    assert (installed.launcher, "no C compiler" in installed.note) == ("python", True)
    with pytest.raises(ConfigError, match=r"no C compiler \(cc, gcc, clang\) is in PATH"):
        install(folder, config, launcher="c")


def test_a_compiler_that_fails_is_told(folder: Path, config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failing = of_somebody_else(tmp_path / "cc", "#!/bin/sh\necho 'launcher.c:1: error: no headers' >&2; exit 1\n")
    monkeypatch.setattr(files, "_compiler", lambda: str(failing))
    with pytest.raises(ConfigError, match="cannot compile the launcher: launcher.c:1: error: no headers"):
        install(folder, config, launcher="c")
    assert list(folder.iterdir()) == []
    installed = install(folder, config)
    assert (installed.launcher, "no headers" in installed.note) == ("python", True)


def test_a_launcher_that_does_not_run_is_not_installed(folder: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_python", lambda: "/nonexistent/python3")
    for kind in KINDS:
        with pytest.raises(ConfigError, match=r"the launcher made for .* does not run: "):
            install(folder, config, launcher=kind)
    monkeypatch.setattr(files, "_python", lambda: "/opt/my python/bin/python3")
    with pytest.raises(ConfigError, match="the kernel takes no such path behind #!"):
        install(folder, config, launcher="python")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_odd_folders_reach_the_launcher_whole(folder: Path, tmp_path: Path, kind: Kind) -> None:
    odd = tmp_path / 'a "b" \\c ??/ %s\n{d} ä 1'
    config = Config(state_dir=odd / "s", run_dir=odd / "r")
    config.state_dir.mkdir(parents=True)
    (config.state_dir / "netlib.db").touch()
    install(folder, config, launcher=kind)
    seen: list[Request] = []

    def handle(request: Request) -> Outcome:
        seen.append(request)
        return Outcome(b"", 0)

    with serving(config, handle):
        assert run(folder / "static", {"CNI_COMMAND": "STATUS"}) == Outcome(b"", 0)
    (request,) = seen
    assert request.store == store_identity(config.state_dir)
    assert (request.version, request.args["kind"]) == (__version__, "static")


@pytest.mark.parametrize("kind", KINDS)
def test_a_launcher_whose_netlib_is_gone_says_so_in_json(tmp_path: Path, config: Config, kind: Kind) -> None:
    root = Path(files.__file__).parents[1]
    copy = tmp_path / "copy"
    for package in ("netlib", "drivers", "ipam", "cni_plugins"):
        shutil.copytree(root / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-P", "-m", "netlib", "--run-dir", str(config.run_dir), "cni", "install", f"--{kind}", "bin"]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(copy)}, cwd=tmp_path, check=True, capture_output=True)
    shutil.rmtree(copy)
    done = subprocess.run([tmp_path / "bin/static"], env={"CNI_COMMAND": "VERSION"}, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (1, b"")
    error = json.loads(done.stdout)
    assert (error["code"], error["msg"]) == (5, f"netlib is no longer at {copy}")


# --- the commands --------------------------------------------------------------------------------------------------------


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_commands_say_what_they_did(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = command(capsys, "cni", "install", "--python", str(folder))
    assert (code, err) == (0, "")
    heading, *rows = out.splitlines()
    assert heading.split() == ["FILE", "ACTION", "LAUNCHER"]
    assert [row.split() for row in rows] == [[str(folder / name), "written", "python"] for name in plugin_types()]
    code, out, err = command(capsys, "cni", "install", "--python", "--format", "json", str(folder))
    assert json.loads(out.splitlines()[0]) == {
        "File": str(folder / plugin_types()[0]),
        "Action": "unchanged",
        "Launcher": "python",
    }
    code, out, err = command(capsys, "cni", "uninstall", "--format", "{{.File}} {{.Action}}", str(folder))
    assert out.splitlines() == [f"{folder / name} removed" for name in sorted(plugin_types())]


def test_a_launcher_in_python_that_was_not_asked_for_is_explained(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_compiler", lambda: None)
    code, out, err = command(capsys, "cni", "install", str(folder))
    assert (code, "python" in out) == (0, True)
    assert err.startswith("netlib: the launchers are Python's, which take some 10 ms a call instead of 1: no C compiler")


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["install"], 1, "cni install: no dir given"),
        (["install", ""], 1, "DIR is empty"),
        (["install", "--c", "--python", "x"], 125, "--c and --python exclude each other"),
        (["install", "--deadline", "0", "x"], 125, "--deadline 0 is not possible; choose 1 to 3600 seconds"),
        (["install", "/dev/null"], 1, "/dev/null: Not a directory; choose a folder that can be written"),
        (["install", "/proc/x"], 1, "/proc/x: No such file or directory; choose a folder that can be written"),
        (["install", "a\udcff"], 1, "'a\\udcff' is no UTF-8 text"),
        (["remove", "x"], 1, "'cni remove' is no command"),
    ],
)
def test_bad_arguments_get_one_sentence(
    capsys: pytest.CaptureFixture[str], words: list[str], status: int, sentence: str
) -> None:
    code, out, err = command(capsys, "cni", *words)
    assert (code, out) == (status, "")
    assert err.startswith(f"netlib: {sentence}")
    assert err.count("\n") == 1


def test_nothing_to_uninstall_is_no_failure_but_a_folder_that_is_not_there_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = command(capsys, "cni", "uninstall", str(folder))
    assert (code, out) == (1, "")
    assert f"there is no folder {folder}" in err
    assert not folder.exists()
    folder.mkdir(parents=True)
    assert command(capsys, "cni", "uninstall", str(folder)) == (0, "FILE   ACTION\n", "")
