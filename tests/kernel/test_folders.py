"""Folders of ours: their modes under any umask, and none of another user's."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

import pytest

from ipam.lease_files import LeaseFolder
from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.errors import ConfigError, NetlibError, NotPermitted, StoreError
from netlib.runtime.spec import Volume
from netlib.wire.client import start_daemon
from tests.kernel.runtime_world import World

SOMEBODY = 12345
UMASKS = [0o000, 0o022, 0o077, 0o777]


@contextmanager
def umask(mask: int) -> Iterator[None]:
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


def modes(*folders: Path) -> dict[str, str]:
    """The mode of everything below, by path; what containers write is theirs."""
    found = {}
    for folder in folders:
        for path in [folder, *folder.rglob("*")]:
            if not path.is_symlink() and "upper" not in path.parts and "root" not in path.parts:
                name = re.sub("stores/[0-9a-f]{12}", "stores/x", str(path.relative_to(folder.parent)))
                found[name] = oct(stat.S_IMODE(path.stat().st_mode))
    return found


def _life(state: Path, mask: int) -> dict[str, str]:
    """What a life with networks, a sandbox, CNI leases and a volume leaves on the disk under a umask."""
    config = Config(state / "deep" / "state", state / "deep" / "run")
    with umask(mask), Controller(config, watcher=Unwatched()) as controller:
        controller.create_network("net", subnets=["10.77.0.0/24"])
        controller.create_sandbox("box", sandbox_id="b" * 64)
        controller.connect("net", "box")
        LeaseFolder(str(state / "leases" / "net")).ensure()
        found = modes(state)
        controller.reset()
    return found


@pytest.mark.parametrize("mask", UMASKS, ids=oct)
def test_modes_are_the_same_under_any_umask(tmp_path: Path, mask: int) -> None:
    usual = _life(tmp_path / "a", 0o022)
    assert _life(tmp_path / "b", mask) == {path.replace("a", "b", 1): mode for path, mode in usual.items()}
    assert {usual[f"a/deep/{name}"] for name in ("state", "run")} == {"0o700"}


@pytest.mark.needs_cgroups
@pytest.mark.parametrize("mask", UMASKS, ids=oct)
def test_what_a_container_sees_is_the_same_under_any_umask(world: World, mask: int) -> None:
    script = "umask; stat -c '%a %U %n' / . /dev /dev/* /dev/shm /sys/fs/cgroup /sys/fs/cgroup/* /proc | sed 's/[0-9]*$//'"
    with umask(mask):
        code, out, _ = world.run("sh", "-c", script, workdir="/srv/new/place", user="nobody")
    with umask(0o022):
        assert world.run("sh", "-c", script, workdir="/srv/new/place", user="nobody")[:2] == (code, out)
    assert out.startswith("0022\n755 root /\n755 root .\n")


@pytest.mark.needs_cgroups
@pytest.mark.parametrize("mask", UMASKS, ids=oct)
def test_a_missing_source_of_a_volume_is_a_folder_of_mode_755(world: World, tmp_path: Path, mask: int) -> None:
    source = tmp_path / "new" / "source"
    with umask(mask):
        assert world.run("true", volumes=(Volume(str(source), "/data"),))[0] == 0
    assert [stat.S_IMODE(path.stat().st_mode) for path in (source.parent, source)] == [0o755, 0o755]


# --- folders of others ----------------------------------------------------------------------------------------------------


@pytest.fixture
def others(config: Config, request: pytest.FixtureRequest) -> Path:
    """The folder that the test is about, made by another user, with nothing in it."""
    folder: Path = getattr(config, request.param)
    folder.mkdir(parents=True)
    os.chown(folder, SOMEBODY, SOMEBODY)
    folder.chmod(0o777)
    return folder


def _refused_verbs(config: Config) -> Iterator[NetlibError]:
    """What every way to begin with these folders says."""
    for way in (lambda: Controller(config, watcher=Unwatched()), lambda: start_daemon(config), lambda: _locked(config)):
        with pytest.raises(NetlibError) as refusal:
            way()
        yield refusal.value


def _locked(config: Config) -> None:
    with Controller(config, watcher=Unwatched()) as controller:
        controller.create_network("net")


@pytest.mark.parametrize("others", ["state_dir", "run_dir", "lock_dir"], indirect=True)
def test_folders_of_another_user_are_refused(config: Config, others: Path) -> None:
    for refusal in _refused_verbs(config):
        assert f"folder {others} belongs to user {SOMEBODY}" in str(refusal)
        assert "--run-dir" in str(refusal) or "--state-dir" in str(refusal)
    assert list(others.iterdir()) == []
    assert stat.S_IMODE(others.stat().st_mode) == 0o777


def test_a_state_folder_that_a_link_of_another_user_leads_to(config: Config, tmp_path: Path) -> None:
    """Its target may be root's: /etc, say, which would become private and fill with our files."""
    target = tmp_path / "target"
    target.mkdir(mode=0o755)
    config.state_dir.symlink_to(target)
    os.lchown(config.state_dir, SOMEBODY, SOMEBODY)
    with pytest.raises(NotPermitted, match=f"belongs to user {SOMEBODY}"):
        Controller(config, watcher=Unwatched())
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("name", ["netlib.db", "netlib.db-wal", "tags", "reserve"])
def test_no_link_in_the_state_folder_is_followed(config: Config, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    config.state_dir.mkdir()
    (config.state_dir / name).symlink_to(victim)
    with suppress(StoreError), Controller(config, watcher=Unwatched()) as controller:  # refused, or done without that file
        controller.create_network("net")
        controller.remove_network("net")
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("name", ["netlibd.pid", "netlibd.starting", "netlibd.log"])
def test_no_link_in_the_run_folder_is_followed(config: Config, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    config.run_dir.mkdir()
    (config.run_dir / name).symlink_to(victim)
    with pytest.raises(NetlibError, match=str(config.run_dir)):
        start_daemon(config)
    (config.run_dir / name).unlink()
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("whose", ["network", "data"])
def test_leases_in_a_folder_of_another_user_are_refused(tmp_path: Path, whose: str) -> None:
    folder = tmp_path / "data" / "network"
    folder.mkdir(parents=True)
    of_others = folder if whose == "network" else folder.parent
    os.chown(of_others, SOMEBODY, SOMEBODY)
    with pytest.raises(NotPermitted, match=f"folder of leases {of_others} belongs to user {SOMEBODY}.*dataDir"):
        LeaseFolder(str(folder)).reserve(ip_address("10.0.0.2"), "c1", 0)
    assert list(folder.iterdir()) == []


def test_a_networks_folder_of_leases_that_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "network").symlink_to("elsewhere")
    with pytest.raises(ConfigError, match="is a link"):
        LeaseFolder(str(tmp_path / "network")).reserve(ip_address("10.0.0.2"), "c1", 0)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("name", ["10.0.0.2", "lock", "last_reserved_ip.0"])
def test_no_link_among_leases_is_followed(tmp_path: Path, name: str) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "network"
    victim.write_text("precious")
    folder.mkdir()
    (folder / name).symlink_to(victim)
    with pytest.raises(NetlibError):
        LeaseFolder(str(folder)).reserve(ip_address("10.0.0.2"), "c1", 0)
    assert victim.read_text() == "precious"
