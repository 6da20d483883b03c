"""Where subjects are measured: hosts of ours with folders of their own, and Docker's engine beside them where it runs.

One rule: a host is empty before its block and gone after it, records, kernel objects and netlibd.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

from benchmarks.peers import Docker, PeerError, missing
from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.core.engine import Observer
from netlib.verbs.container import remove_all
from netlib.wire.client import leave, start_daemon


class World:
    """What every subject is given."""

    def __init__(self, folder: Path, *, part: float = 1.0, docker: Docker | None = None, without: str = "") -> None:
        """*folder* lies in memory; *part* is what part of the repetitions to do; *without* says why *docker* is None."""
        self.folder = folder
        self.docker = docker
        self.without = without
        self._part = part
        self._numbers = count(1)

    def times(self, full: int) -> int:
        """How often to do what a full run does *full* times."""
        return max(1, round(full * self._part))

    @contextmanager
    def host(self, observer: Observer | None = None) -> Iterator[Controller]:
        """A host worked on in this process alone: nobody answers names and holds ports."""
        with Controller(self._config(), watcher=Unwatched(), observer=observer) as controller:
            try:
                yield controller
            finally:
                controller.reset()

    @contextmanager
    def served_host(self) -> Iterator[Controller]:
        """A host with a warm netlibd, which is told of what the controller changes."""
        config = self._config()
        start_daemon(config)
        try:
            with Controller(config) as controller:
                try:
                    yield controller
                finally:
                    remove_all(controller)
                    controller.reset()
        finally:
            leave(config)

    @contextmanager
    def docker_network(self, name: str) -> Iterator[Docker | None]:
        """A network of Docker's, which goes with its containers after the block; None without Docker."""
        if self.docker is None:
            yield None
            return
        self.docker("network", "create", name)
        try:
            yield self.docker
        finally:
            if containers := self.docker("ps", "--all", "--quiet").split():
                self.docker("rm", "--force", *containers)
            self.docker("network", "rm", name)

    def _config(self) -> Config:
        folder = self.folder / f"host{next(self._numbers)}"
        return Config(state_dir=folder / "state", run_dir=folder / "run")


def start_docker(stack: ExitStack, folder: Path) -> tuple[Docker | None, str]:
    """Docker's engine until *stack* closes, or None and why there is none."""
    absent = missing()
    if absent:
        return None, f"not installed: {', '.join(absent)}; `scripts/install peers` brings them"
    try:
        return stack.enter_context(Docker(folder)), ""
    except PeerError as error:
        return None, str(error)


def netlib(config: Config, *words: str) -> list[str]:
    """The words of ``netlib WORDS`` as a person would run it on that host."""
    return [sys.executable, "-m", "netlib", f"--state-dir={config.state_dir}", f"--run-dir={config.run_dir}", *words]
