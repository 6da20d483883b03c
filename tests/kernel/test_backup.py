"""A backup of the store, and what is true after one was put back."""

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from netlib.cli.main import main
from netlib.config import Config
from netlib.core.attachments import Attachments
from netlib.errors import ConfigError, NetlibError, NotFound, PoolExhausted
from netlib.store.backup import copy_store
from netlib.testing.snapshot import differences, snapshot
from netlib.verbs.perform import perform
from netlib.verbs.restore import restore
from netlib.wire.client import leave, start_daemon
from tests.cni.calling import Caller
from tests.kernel.lost_world import delete, host, netlib, run, running_pids, work_files
from tests.processes import ended

pytestmark = pytest.mark.needs_cgroups


def test_a_backup_is_whole_while_others_write(used: Config, tmp_path: Path) -> None:
    start_daemon(used)
    netlib(used, "system", "backup", str(tmp_path / "a.db"), code=0)
    assert oct((tmp_path / "a.db").stat().st_mode)[-3:] == "600"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".a", "a"))] == ["a.db"]
    assert "exists" in netlib(used, "system", "backup", str(tmp_path / "a.db"), code=1)
    netlib(used, "system", "backup", "-f", str(tmp_path / "a.db"), code=0)
    with closing(sqlite3.connect(tmp_path / "a.db")) as db:
        names = [name for (name,) in db.execute("SELECT name FROM record WHERE kind='network' ORDER BY name")]
    assert names == ["bridge", "host", "none", "web"]


@pytest.mark.parametrize("kind", ["missing", "a folder", "text", "empty", "another database", "newer", "damaged"])
def test_what_is_no_backup_is_refused_and_nothing_is_changed(used: Config, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "backup.db"
    with host(used) as controller:
        copy_store(controller.store.path, file)
    if kind == "missing":
        file.unlink()
    elif kind == "a folder":
        file = tmp_path
    elif kind in ("text", "empty"):
        file.write_text("hello\n" if kind == "text" else "")
    elif kind == "another database":
        file.unlink()
        with closing(sqlite3.connect(file)) as db:
            db.execute("CREATE TABLE other (x)")
    elif kind == "newer":
        with closing(sqlite3.connect(file)) as db:
            db.execute("PRAGMA user_version=999")
    else:
        with file.open("r+b") as stream:
            stream.seek(4096)
            stream.write(b"\xa5" * 16384)
    before, store = snapshot(), (used.state_dir / "netlib.db").read_bytes()
    with pytest.raises(NetlibError) as refusal:
        list(restore(used, file))
    assert isinstance(refusal.value, NotFound if kind == "missing" else ConfigError)
    assert str(file) in str(refusal.value)
    assert (used.state_dir / "netlib.db").read_bytes() == store
    assert differences(before, snapshot()) == []
    with host(used) as controller:
        assert [network.name for network in controller.networks()] == ["bridge", "host", "none", "web"]


def test_a_backup_is_not_written_over_a_folder_or_where_nothing_can_be(used: Config, tmp_path: Path) -> None:
    with host(used) as controller:
        for file, error in (
            (tmp_path, ConfigError),
            (tmp_path / "none" / "x", ConfigError),
            (controller.store.path, ConfigError),
        ):
            with pytest.raises(error):
                perform(controller, "system.backup", {"file": str(file)})


def test_restored_after_it_was_deleted_all_is_as_before(used: Config, tmp_path: Path) -> None:
    backup = tmp_path / "backup.db"
    netlib(used, "system", "backup", str(backup), code=0)
    before, pids = snapshot(), running_pids(used)
    delete(used, backup)
    said = netlib(used, "system", "restore", "-f", str(backup), code=0)
    assert "left" not in said
    assert "forgotten" not in said
    assert (running_pids(used), differences(before, snapshot())) == (pids, [])
    assert netlib(used, "ps", "--format", "{{.Names}} {{.Ports}}", code=0).split("\n")[:2] == [
        "apart ",
        "box 0.0.0.0:8080->80/tcp, [::]:8080->80/tcp",
    ]
    for name in ("web", "box", "apart"):
        assert netlib(used, "check", name, code=0) == ""
    netlib(used, "rm", "-f", "box", "apart", code=0)
    assert all(ended(pid) for pid in pids.values())
    assert "late" not in netlib(used, "network", "rm", "web", code=0)


def test_an_older_copy_adopts_what_was_made_since_and_lists_the_rest(used: Config, tmp_path: Path) -> None:
    """`box` was started anew, `apart` has ended and gone; `third` and its network are in no record of the copy."""
    backup = tmp_path / "backup.db"
    netlib(used, "system", "backup", str(backup), code=0)
    netlib(used, "restart", "-t", "0", "box", code=0)
    netlib(used, "rm", "-f", "apart", code=0)
    with host(used) as controller:
        controller.create_network("new", subnets=["10.2.0.0/24"])
        run(controller, "third", networks=["new"])
        address = controller.endpoints(sandbox="box")[0].addresses[0]
    leave(used)
    pids = running_pids(used)
    said = netlib(used, "system", "restore", "-f", str(backup), code=0)
    assert "kept: the former store" in said
    assert "forgotten, because nothing of them exists any more: apart" in said
    assert "adopted: eth0 of box" in said
    assert "left: container" in said
    assert "left: links" in said
    assert running_pids(used) == pids
    with host(used) as controller:
        (endpoint,) = controller.endpoints(sandbox="box")
        assert endpoint.addresses[0] == address
        assert controller.check("box") == []
        other = controller.create_sandbox("other")
        assert controller.connect("web", other.id).addresses[0] != address
        controller.remove_sandbox("other")
    assert netlib(used, "ps", "-a", "--format", "{{.Names}} {{.State}}", code=0).split("\n")[:2] == [
        "apart created",
        "box running",
    ]
    netlib(used, "run", "--rm", "--network", "web", "true", code=0)
    netlib(used, "rm", "-f", "box", code=0)
    assert len(running_pids(used)) == 1
    assert "removed: containers" in netlib(used, "system", "reset", "-f", "--lost", code=0)
    assert running_pids(used) == {} if used.container_dir.exists() else True


def test_the_store_is_accepted_as_it_is(lost: Config) -> None:
    pids = running_pids(lost)
    folders = ["--state-dir", str(lost.state_dir), "--run-dir", str(lost.run_dir)]
    assert main([*folders, "system", "restore", "-f"]) == 0
    assert running_pids(lost) == pids
    assert "NAMES" in netlib(lost, "ps", "-a", code=0)
    netlib(lost, "run", "--rm", "--network", "none", "true", code=0)
    assert running_pids(lost) == pids
    assert len(work_files(lost)) == 3


def test_the_store_itself_as_its_backup_is_accepted_as_it_is(used: Config) -> None:
    running = running_pids(used)
    said = netlib(used, "system", "restore", "-f", str(used.state_dir / "netlib.db"), code=0)
    assert said.startswith("accepted: the store as it is\n")
    assert running_pids(used) == running
    for name in ("web", "box", "apart"):
        assert netlib(used, "check", name, code=0) == ""


def test_a_container_that_was_half_made_in_the_backup_keeps_its_files(used: Config, tmp_path: Path) -> None:
    """To its record it was being made; by now it has run, and ended."""
    backup = tmp_path / "backup.db"
    with host(used) as controller:
        with controller.store.write() as tx:
            tx.db.execute("UPDATE record SET phase='creating' WHERE kind='container'")
        copy_store(controller.store.path, backup)
        with controller.store.write() as tx:
            tx.db.execute("UPDATE record SET phase='ready' WHERE kind='container'")
    netlib(used, "stop", "-t", "0", "apart", code=0)
    written = work_files(used)
    said = netlib(used, "system", "restore", "-f", str(backup), code=0)
    assert "left: container" not in said
    netlib(used, "run", "--rm", "--network", "none", "true", code=0)
    assert work_files(used) == written
    shown = netlib(used, "ps", "-a", "--format", "{{.Names}} {{.State}}", code=0)
    assert sorted(shown.split("\n")[:2]) == ["apart exited", "box running"]


@pytest.mark.parametrize("name", ["netlib.db", "netlib.db-wal", "tags", "reserve", "a device"])
def test_a_backup_replaces_no_file_of_the_store_and_no_device(used: Config, tmp_path: Path, name: str) -> None:
    target = used.state_dir / name
    if name == "a device":
        target = tmp_path / "null"
        os.mknod(target, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    said = netlib(used, "system", "backup", "-f", str(target), code=1)
    assert str(target) in said
    assert "NAME" in netlib(used, "network", "ls", code=0)


def test_the_address_of_a_container_that_no_record_knows_is_given_to_nobody(used: Config, tmp_path: Path) -> None:
    backup = tmp_path / "backup.db"
    netlib(used, "network", "create", "--subnet", "10.9.0.0/29", "small", code=0)
    netlib(used, "system", "backup", str(backup), code=0)
    netlib(used, "run", "-d", "--name", "late", "--network", "small", "sleep", "600", code=0)
    with host(used) as controller:
        taken = controller.endpoints(network="small")[0].addresses[0]
    netlib(used, "system", "restore", "-f", str(backup), code=0)
    with host(used) as controller:
        for number in range(5):
            controller.create_sandbox(f"box{number}")
        given = [controller.connect("small", f"box{number}").addresses[0] for number in range(4)]
        assert taken not in given
        with pytest.raises(PoolExhausted):
            controller.connect("small", "box4")


def test_what_a_cni_plugin_made_and_took_away_again_is_forgotten(used: Config, tmp_path: Path) -> None:
    """The container goes on, and may be attached anew."""
    pod = {"cniVersion": "1.0.0", "name": "pods", "type": "bridge", "bridge": "cni9", "isGateway": True}
    pod["ipam"] = {"type": "host-local", "subnet": "10.8.0.0/24", "dataDir": str(tmp_path / "leases")}
    with host(used) as controller:
        caller = Caller(lambda: controller)
        try:
            caller.container("c1")
            caller.container("c2")
            caller.ok("ADD", pod, "c1")
            kept = caller.ok("ADD", pod, "c2")
            copy_store(controller.store.path, tmp_path / "backup.db")
            caller.ok("DEL", pod, "c1")
            list(restore(used, tmp_path / "backup.db"))
            assert [item.container for item in Attachments(controller).attachments()] == ["c2"]
            caller.ok("CHECK", {**pod, "prevResult": kept}, "c2")
            caller.ok("ADD", pod, "c1")
        finally:
            for name in ("c1", "c2"):
                caller.ok("DEL", pod, name)
            caller.clear()
