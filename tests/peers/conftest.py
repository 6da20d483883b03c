"""What tests with runtimes ask for: our folder of plugins, the reference's, a neighbour of the host."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netlib.config import Config
from netlib.model import NetnsRef
from tests.peers.libcni import REFERENCE
from tests.peers.surroundings import run, uplink

_PROGRAMS = ("/usr/bin/podman", "/usr/bin/containerd", "/usr/bin/ctr", "/usr/sbin/runc", str(REFERENCE / "bridge"))


@pytest.fixture(scope="session", autouse=True)
def installed() -> None:
    """The peers themselves; their absence is a failure, for what is not run does not hold."""
    missing = [program for program in _PROGRAMS if not os.access(program, os.X_OK)]
    if missing:
        pytest.fail(f"missing: {', '.join(missing)}; `scripts/install peers` brings them")


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a short path, for sockets."""
    with tempfile.TemporaryDirectory(prefix="peer-") as folder:
        yield Path(folder)


@pytest.fixture
def plugins(config: Config, short_folder: Path) -> Path:
    """Our folder, as ``netlib cni install`` writes it. Nothing runs yet: the first call that needs netlibd starts it."""
    install(config, short_folder / "bin")
    assert not config.pid_file.exists()
    return short_folder / "bin"


def install(config: Config, folder: Path) -> None:
    environ = {**os.environ, "NETLIB_STATE_DIR": str(config.state_dir), "NETLIB_RUN_DIR": str(config.run_dir)}
    subprocess.run(
        [sys.executable, "-m", "netlib", "cni", "install", str(folder)], env=environ, check=True, capture_output=True
    )


@pytest.fixture
def neighbour(netns_factory: Callable[[str], NetnsRef]) -> Iterator[NetnsRef]:
    """Another machine beside the test host."""
    with uplink(netns_factory("neighbour")) as netns:
        yield netns


@pytest.fixture
def reference() -> Iterator[Path]:
    """The folder of the reference plugins; the tables and chains that they never take away go with the test."""
    before = set(run("nft", "list", "tables").splitlines())
    yield REFERENCE
    for table in set(run("nft", "list", "tables").splitlines()) - before:
        if table != "table inet netlib":
            run("nft", "delete", *table.split())
