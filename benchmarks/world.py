"""The environment of benchmarks: hosts of netlib, each with its own folders, and Docker's engine where it is installed.

One rule: a host is empty at the beginning of its block, and after the block no record, kernel object or netlibd of it is left.
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
    """Provides each benchmark with hosts, Docker's engine and the number of repetitions."""

    def __init__(self, folder: Path, *, part: float = 1.0, docker: Docker | None = None, without: str = "") -> None:
        """*folder* is in memory; *part* is the fraction of repetitions to do; *without* is the reason why *docker* is None."""
        self.folder = folder
        self.docker = docker
        self.without = without
        self._part = part
        self._numbers = count(1)

    def times(self, full: int) -> int:
        """Return the number of repetitions of something that a full run does *full* times."""
        return max(1, round(full * self._part))

    @contextmanager
    def host(self, observer: Observer | None = None) -> Iterator[Controller]:
        """Provide a host without a netlibd: all work is done in this process, and names and held ports are missing."""
        with Controller(self._config(), watcher=Unwatched(), observer=observer) as controller:
            try:
                yield controller
            finally:
                controller.reset()

    @contextmanager
    def served_host(self) -> Iterator[Controller]:
        """Provide a host with a netlibd, which is told of the controller's changes."""
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
        """Provide Docker with a network called *name*, and remove the network and all containers after the block; or None."""
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
    """Start Docker's engine until *stack* closes; return the engine, or None and the reason why there is none."""
    absent = missing()
    if absent:
        return None, f"not installed: {', '.join(absent)}; `scripts/install peers` brings them"
    try:
        return stack.enter_context(Docker(folder)), ""
    except PeerError as error:
        return None, str(error)


def netlib(config: Config, *words: str) -> list[str]:
    """Return the command line of ``netlib WORDS`` on the host of *config*."""
    return [sys.executable, "-m", "netlib", f"--state-dir={config.state_dir}", f"--run-dir={config.run_dir}", *words]
