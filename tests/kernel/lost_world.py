"""What the tests of lost stores and of backups share: a host with containers, and the ways to lose its store."""

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.runtime.lookup import containers, runtime
from netlib.verbs.perform import perform

MARK = "echo mine > /srv/work; echo ready; exec sleep 600"


def host(config: Config, **wanted: Any) -> Controller:
    return Controller(config, watcher=Unwatched(), **wanted)


def run(controller: Controller, name: str, **wanted: Any) -> None:
    perform(controller, "container.run", {"command": ["sh", "-c", MARK], "name": name, **wanted})
    (box,) = [box for box in containers(controller) if box.name == name]
    for entry in runtime(controller).logs(box, follows=True):
        if entry.log == "ready\n":
            return


def running_pids(config: Config) -> dict[str, int]:
    """The process of every running container, by the beginning of its id, from its files alone."""
    found = {}
    for path in config.container_dir.iterdir():
        pid = json.loads((path / "pid.json").read_text())["pid"]
        if _runs(pid):
            found[path.name[:12]] = pid
    return found


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie, which waits for its minder."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def work_files(config: Config) -> list[str]:
    return sorted(str(path) for path in config.container_dir.glob("*/*/srv/work"))


def netlib(config: Config, *words: str, code: int) -> str:
    folders = ["--state-dir", str(config.state_dir), "--run-dir", str(config.run_dir)]
    command = [sys.executable, "-m", "netlib.cli.main", *folders, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == code, (words, done)
    return done.stdout + done.stderr


# --- the ways to lose it -------------------------------------------------------------------------------------------------


def delete(config: Config, copy: Path) -> None:
    for path in config.state_dir.glob("netlib.db*"):
        path.unlink()


def empty(config: Config, copy: Path) -> None:
    """Every row deleted: a store as it was before its first use."""
    delete(config, copy)
    with host(Config(copy.parent / "fresh", copy.parent / "fresh-run")):
        pass
    with closing(sqlite3.connect(copy.parent / "fresh" / "netlib.db")) as db:
        db.execute("DELETE FROM record")
        db.execute("DELETE FROM meta")
        db.commit()
    shutil.copy(copy.parent / "fresh" / "netlib.db", config.state_dir / "netlib.db")


def truncate(config: Config, copy: Path) -> None:
    delete(config, copy)
    (config.state_dir / "netlib.db").touch()


def put_older(config: Config, copy: Path) -> None:
    delete(config, copy)
    shutil.copy(copy, config.state_dir / "netlib.db")


def delete_with_tags(config: Config, copy: Path) -> None:
    """The whole state folder but the containers' files, and the run folder's sockets and locks."""
    delete(config, copy)
    for name in ("tags", "reserve"):
        (config.state_dir / name).unlink(missing_ok=True)


def delete_rows(config: Config, copy: Path) -> None:
    """By somebody else's hand, in a store that is otherwise what it was."""
    with closing(sqlite3.connect(config.state_dir / "netlib.db")) as db:
        db.execute("PRAGMA foreign_keys=ON")
        db.execute("DELETE FROM record")
        db.commit()


LOSSES: dict[str, Callable[[Config, Path], None]] = {
    "deleted": delete,
    "emptied": empty,
    "truncated": truncate,
    "older": put_older,
    "with its tags": delete_with_tags,
}
