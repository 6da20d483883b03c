"""A state or a run folder on a read-only disk: it can be looked at, and every change is refused in one sentence."""

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from netlib.cli.main import main
from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.errors import StoreError
from netlib.runtime.lookup import find_container, runtime
from netlib.store import read_only
from netlib.store.backup import check_backup
from netlib.testing.snapshot import snapshot
from netlib.verbs.call import call
from netlib.verbs.container import remove_all
from netlib.wire.client import start_daemon

pytestmark = pytest.mark.needs_cgroups
ROOT = Path(__file__).parents[2]
REMEDY = "remount it (mount -o remount,rw), or pass"


@pytest.fixture
def lived(config: Config) -> Iterator[Config]:
    """A host with two networks, a container that runs and one that has ended."""
    with Controller(config, watcher=Unwatched()) as controller:
        controller.create_network("web")
        controller.create_network("spare")
    for name, command in (("box", ["sleep", "600"]), ("done", ["true"])):
        call(config, "container.run", {"command": command, "name": name, "networks": ["none"]})
    with Controller(config, watcher=Unwatched()) as controller:
        runtime(controller).wait(find_container(controller, "done"), 10)
    call(config, "container.reap", {"name": "done"})  # its minder does so as well
    yield config
    with Controller(config, watcher=Unwatched()) as controller:
        remove_all(controller)
        controller.reset()


@contextmanager
def read_only_folder(folder: Path) -> Iterator[None]:
    """Have a folder's disk take no writes by its path."""
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    deadline = time.monotonic() + 5
    try:
        while subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=False, stderr=subprocess.DEVNULL).returncode:
            assert time.monotonic() < deadline, f"a file in {folder} stays open for writing"  # by a minder that just ends
        with pytest.raises(OSError, match="Read-only file system"):
            (folder / "mine").touch()
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def netlib(config: Config, words: str) -> int:
    return main(["--state-dir", str(config.state_dir), "--run-dir", str(config.run_dir), *words.split()])


def state_of(config: Config) -> Any:
    with Controller(config, watcher=Unwatched()) as controller, controller.store.read() as tx:
        return sorted(tx.ready_ids()), snapshot()


LOOKING = (
    "ps -a",
    "network ls",
    "network inspect web",
    "inspect box",
    "port box",
    "logs box",
    "check web",
    "explain web",
    "log",
    "info",
    "cni ls",
)
CHANGING = (
    ("network create more", 1),
    ("network rm spare", 1),
    ("network prune -f", 1),
    ("network disconnect none box", 1),
    ("run -d --network none sleep 60", 125),
    ("run --rm --network none true", 125),
    ("start done", 1),
    ("stop -t 0 box", 1),
    ("restart -t 0 box", 1),
    ("rm done", 1),
    ("rm -f box", 1),
    ("system reset -f", 1),
)


def test_a_read_only_state_folder_is_looked_at(lived: Config, capsys: pytest.CaptureFixture[str]) -> None:
    expected = {}
    for words in LOOKING:
        assert netlib(lived, words) == 0, words
        expected[words] = capsys.readouterr().out
    with read_only_folder(lived.state_dir):
        for words in LOOKING:
            assert netlib(lived, words) == 0, words
            told = capsys.readouterr()
            assert told.err == "", words
            if words not in ("info", "ps -a", "log"):  # these tell of the moment, too
                assert told.out == expected[words]
        done = _execute(lived)
        assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")


def _execute(config: Config) -> "subprocess.CompletedProcess[str]":
    folders = ["--state-dir", str(config.state_dir), "--run-dir", str(config.run_dir)]
    command = [sys.executable, "-P", "-m", "netlib", *folders, "exec", "box", "echo", "hello"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)


@pytest.mark.parametrize(("words", "code"), CHANGING)
def test_a_read_only_state_folder_is_not_changed(
    lived: Config, words: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state_of(lived)
    with read_only_folder(lived.state_dir):
        assert netlib(lived, words) == code
        told = capsys.readouterr()
    sentence = f"netlib: state folder {lived.state_dir} is on a read-only disk, so nothing can be changed; {REMEDY} --state-dir"
    assert (told.out, told.err) == ("", f"{sentence} to use another one\n")
    assert state_of(lived) == before


@pytest.mark.parametrize(("words", "code"), [*((words, 0) for words in LOOKING), *CHANGING])
def test_a_read_only_run_folder(lived: Config, words: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    before = state_of(lived)
    with read_only_folder(lived.run_dir):
        assert netlib(lived, words) == code
        told = capsys.readouterr()
    if code:
        sentence = f"netlib: run folder {lived.run_dir} is on a read-only disk; {REMEDY} --run-dir to use another one\n"
        assert (told.out, told.err) == ("", sentence)
    else:
        assert told.err == ""
    assert state_of(lived) == before


@pytest.mark.parametrize("name", ["state", "run"])
def test_netlibd_does_not_start_on_one(lived: Config, name: str) -> None:
    folder = lived.state_dir if name == "state" else lived.run_dir
    with read_only_folder(folder):
        with pytest.raises(StoreError, match=f"^{name} folder {folder} is on a read-only disk") as refusal:
            start_daemon(lived)
        folders = ["--state-dir", str(lived.state_dir), "--run-dir", str(lived.run_dir)]
        done = subprocess.run(
            [sys.executable, "-P", "-m", "netlib.daemon", *folders],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr.splitlines()[-1]) == (1, "", f"netlibd: {refusal.value}")
        assert "Traceback" not in done.stderr
    start_daemon(lived)


def test_one_that_was_never_written_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Config(state_dir=tmp_path / "disk/state", run_dir=tmp_path / "run")
    (tmp_path / "disk").mkdir()
    with read_only_folder(tmp_path / "disk"):
        assert netlib(config, "network ls") == 1
    told = capsys.readouterr()
    assert told.err.startswith(f"netlib: state folder {config.state_dir} is on a read-only disk, so nothing can be changed; ")
    assert told.err.count("\n") == 1


def test_one_is_backed_up_and_put_back(lived: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whether nobody has it open, or somebody who can write to it."""
    elsewhere = Config(state_dir=tmp_path / "elsewhere", run_dir=lived.run_dir)
    elsewhere.state_dir.mkdir()
    subprocess.run(["mount", "--bind", lived.state_dir, elsewhere.state_dir], check=True)
    try:
        with read_only_folder(lived.state_dir):
            assert netlib(lived, f"system backup {tmp_path}/closed.db") == 0
            with Controller(elsewhere, watcher=Unwatched()) as writer:
                writer.create_network("newest")
                assert netlib(lived, f"system backup {tmp_path}/open.db") == 0
    finally:
        subprocess.run(["umount", elsewhere.state_dir], check=True)
    assert capsys.readouterr().err == ""
    for name, networks in (("closed.db", {"web", "spare"}), ("open.db", {"web", "spare", "newest"})):
        check_backup(tmp_path / name)
        with closing(sqlite3.connect(tmp_path / name)) as db:
            (mode,) = db.execute("PRAGMA journal_mode").fetchone()
        assert mode == "delete"
        assert netlib(lived, f"system restore -f {tmp_path / name}") == 0
        with Controller(lived, watcher=Unwatched()) as controller:
            assert networks <= names(controller)
            assert ("newest" in names(controller)) == ("newest" in networks)


# --- what is read ------------------------------------------------------------------------------------------------------


def names(controller: Controller) -> set[str]:
    return {network.name for network in controller.networks()}


def test_one_that_another_writes_by_another_mount_is_followed(lived: Config, tmp_path: Path) -> None:
    """The other one has it open, closes it, and opens it again: what is read is never older than its last commit."""
    elsewhere = Config(state_dir=tmp_path / "elsewhere", run_dir=lived.run_dir)
    elsewhere.state_dir.mkdir()
    subprocess.run(["mount", "--bind", lived.state_dir, elsewhere.state_dir], check=True)
    try:
        with read_only_folder(lived.state_dir), Controller(lived, watcher=Unwatched()) as reader:
            for number in range(3):
                with Controller(elsewhere, watcher=Unwatched()) as writer:
                    writer.create_network(f"open{number}")
                    assert f"open{number}" in names(reader)  # with its log
                    writer.create_network(f"closed{number}")
                assert {f"open{number}", f"closed{number}"} <= names(reader)  # without
                with pytest.raises(StoreError, match="is on a read-only disk"):
                    reader.create_network("mine")
    finally:
        subprocess.run(["umount", elsewhere.state_dir], check=True)


def test_one_whose_writer_was_killed_is_read_with_its_log(lived: Config) -> None:
    code = "import os, signal; from netlib.core.controller import *; from netlib.config import Config; import sys\n"
    code += "controller = Controller(Config(sys.argv[1], sys.argv[2]), watcher=Unwatched())\n"
    code += "controller.create_network('last')\nos.kill(os.getpid(), signal.SIGKILL)\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, lived.state_dir, lived.run_dir], env=environment, check=False)
    assert (lived.state_dir / "netlib.db-wal").stat().st_size > 0
    with read_only_folder(lived.state_dir), Controller(lived, watcher=Unwatched()) as controller:
        assert "last" in names(controller)


def test_one_that_can_be_written_again_is(lived: Config) -> None:
    with Controller(lived, watcher=Unwatched()) as controller:
        with read_only_folder(lived.state_dir):
            controller.store.close()
            assert "web" in names(controller)
            with pytest.raises(StoreError):
                controller.create_network("more")
        controller.create_network("more")
        assert "more" in names(controller)


def test_a_store_of_another_schema_is_not_brought_up(lived: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netlib.store.sqlite.MIGRATIONS", ["SELECT 1"] * 99)
    with read_only_folder(lived.state_dir), pytest.raises(StoreError, match="was written by another netlib .* read-only"):
        Controller(lived, watcher=Unwatched())


def test_what_changes_while_it_is_copied_is_not_taken(lived: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter(range(100))
    monkeypatch.setattr(read_only, "state_of", lambda _: (next(states),))
    with read_only_folder(lived.state_dir), pytest.raises(StoreError, match="changes while it is read"):
        Controller(lived, watcher=Unwatched())
