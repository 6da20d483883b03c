"""A full disk of the state folder: what fills it can be looked at, stopped and removed, and no log fills it to the end."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from netlib.cli.main import main
from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.errors import DiskFull
from netlib.runtime.lookup import find_container, runtime
from netlib.verbs.container import remove_all
from netlib.verbs.perform import perform

pytestmark = pytest.mark.needs_cgroups

MIB = 1 << 20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Config]:
    """A host whose state folder is a disk of 32 MiB."""
    config = Config(state_dir=tmp_path / "state", run_dir=tmp_path / "run")
    config.state_dir.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(config.state_dir)], check=True)
    with _host(config) as controller:
        controller.create_network("web")
        perform(controller, "container.run", {"command": ["sleep", "60"], "name": "idle", "networks": ["web"]})
    yield config
    (config.state_dir / "filler").unlink(missing_ok=True)
    with _host(config) as controller:
        remove_all(controller)
        controller.reset()
    subprocess.run(["umount", "--lazy", str(config.state_dir)], check=True)  # a minder that goes has its log open yet


def _host(config: Config) -> Controller:
    return Controller(config, watcher=Unwatched())


def _fill(config: Config) -> None:
    fd = os.open(config.state_dir / "filler", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while _free(config):
        with suppress(OSError):  # a container may be quicker
            os.write(fd, bytes(4096))
    os.close(fd)


def _free(config: Config) -> int:
    disk = os.statvfs(config.state_dir)
    return disk.f_bavail * disk.f_frsize


def _names(controller: Controller) -> set[str]:
    return {row["Names"] for row in perform(controller, "container.ls", {"all_states": True})}


def _create_networks(controller: Controller) -> None:
    """As many as there is room for in what the store's log has taken already."""
    for number in range(100):
        controller.create_network(f"more{number}")


def test_a_container_that_prints_without_end_leaves_room_and_one_line_says_so(small: Config) -> None:
    with _host(small) as controller:
        script = "while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done"
        perform(controller, "container.run", {"command": ["sh", "-c", script], "name": "loud", "networks": ["web"]})
        loud = find_container(controller, "loud")
        said = next(entry for entry in runtime(controller).logs(loud, follows=True) if entry.stream == "stderr")
        assert said.log.startswith(f"netlib: no space left on the disk of {runtime(controller).folder(loud)}: output is lost")
        left = _free(small)
        assert MIB < left < 2 * MIB  # 5 % of it
        perform(controller, "container.kill", {"name": "loud"})
        runtime(controller).wait(loud, 10)
        assert _free(small) > left - 64 * 1024
        assert sum(entry.stream == "stderr" for entry in runtime(controller).logs(loud)) == 1
        perform(controller, "container.rm", {"names": ["loud"], "force": True})
        assert _free(small) > 20 * MIB


def test_nothing_is_made_on_it_and_all_can_be_looked_at_stopped_and_removed(small: Config) -> None:
    with _host(small) as controller:
        script = "cat /dev/zero > /srv/fill; exec sleep 60"
        perform(controller, "container.run", {"command": ["sh", "-c", script], "name": "filler", "networks": ["web"]})
        _fill(small)
        with pytest.raises(DiskFull, match=f"no space left on the disk of the state folder {small.state_dir}; free some"):
            _create_networks(controller)
        assert _names(controller) == {"idle", "filler"}
        assert perform(controller, "container.stop", {"name": "filler", "seconds": 0}) == {"ExitCode": 137}
        perform(controller, "container.rm", {"names": ["filler"], "force": True})
        assert _names(controller) == {"idle"}


@pytest.mark.parametrize("removal", ["container.rm", "system.reset"])
def test_with_nobody_at_the_store_it_is_opened_and_cleared(small: Config, removal: str) -> None:
    """To open it takes room as well."""
    assert not (small.state_dir / "netlib.db-shm").exists()
    _fill(small)
    with _host(small) as controller:
        perform(controller, removal, {"names": ["idle"], "force": True} if removal == "container.rm" else {})
        assert _names(controller) == set()


def test_without_a_reserve_the_files_of_what_is_removed_make_the_room(small: Config) -> None:
    with _host(small) as controller:
        script = "head -c 8000000 /dev/zero > /srv/fill; echo filled; exec sleep 60"
        perform(controller, "container.run", {"command": ["sh", "-c", script], "name": "filler", "networks": ["web"]})
        filler = find_container(controller, "filler")
        next(entry for entry in runtime(controller).logs(filler, follows=True) if entry.log == "filled\n")
        (small.state_dir / "reserve").unlink()
        _fill(small)
        with pytest.raises(DiskFull):
            perform(controller, "container.rm", {"names": ["idle"], "force": True})
        perform(controller, "container.rm", {"names": ["filler"], "force": True})
        assert not runtime(controller).folder(filler).exists()
        # What the store's log had room for of the first try stays begun; asked for again, it comes to its end.
        perform(controller, "container.rm", {"names": ["idle"], "force": True})
        assert (_names(controller), controller.sandboxes()) == (set(), [])
    assert (small.state_dir / "reserve").stat().st_size == MIB  # there was room again


def test_a_reset_that_cannot_open_the_store_removes_what_containers_wrote_first(small: Config) -> None:
    with _host(small) as controller:
        script = "head -c 8000000 /dev/zero > /srv/fill; echo filled; exec sleep 60"
        perform(controller, "container.run", {"command": ["sh", "-c", script], "name": "filler", "networks": ["web"]})
        filler = find_container(controller, "filler")
        next(entry for entry in runtime(controller).logs(filler, follows=True) if entry.log == "filled\n")
    (small.state_dir / "reserve").unlink()
    _fill(small)
    with pytest.raises(DiskFull):
        _host(small)
    folders = ["--state-dir", str(small.state_dir), "--run-dir", str(small.run_dir)]
    assert main([*folders, "system", "reset", "-f"]) == 0
    with _host(small) as controller:
        assert _names(controller) == set()
        assert controller.sandboxes() == []


def test_a_network_is_removed_on_a_full_disk(small: Config) -> None:
    with _host(small) as controller:
        controller.create_network("more")
    _fill(small)
    with _host(small) as controller:
        controller.remove_network("more")
        assert "more" not in {network.name for network in controller.networks()}
