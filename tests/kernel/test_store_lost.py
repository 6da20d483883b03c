"""A store that was lost, emptied, or is older than what it made costs nothing: it is told, and what runs goes on."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cni_plugins.protocol import Code
from netlib.config import Config
from netlib.errors import StoreLost
from netlib.kernel.netns import NETNS_DIR
from netlib.runtime.leftovers import finish
from netlib.store.backup import copy_store
from netlib.testing.snapshot import differences, snapshot
from netlib.verbs.restore import restore
from netlib.wire.client import leave, start_daemon
from tests.kernel.lost_world import LOSSES, delete_rows, host, netlib, put_older, run, running_pids, work_files
from tests.processes import ended

pytestmark = pytest.mark.needs_cgroups


PERSONS = (
    ("ps", "-a"),
    ("ps",),
    ("network", "ls"),
    ("network", "inspect", "web"),
    ("network", "create", "new"),
    ("network", "prune", "-f"),
    ("run", "--rm", "--network", "none", "true"),
    ("run", "-d", "--network", "web", "sleep", "60"),
    ("rm", "-f", "box"),
    ("stop", "-t", "0", "box"),
    ("exec", "box", "true"),
    ("inspect", "box"),
    ("logs", "box"),
    ("port", "box"),
    ("check", "web"),
    ("explain", "web"),
    ("info",),
    ("log",),
    ("cni", "ls"),
    ("cni", "prune", "-f"),
    ("system", "backup", "/run/tmp/never.db"),
    ("system", "reset", "-f"),
)


def test_a_lost_store_is_told_by_every_command_and_nothing_is_touched(lost: Config) -> None:
    before, pids, files = snapshot(), running_pids(lost), work_files(lost)
    assert (len(pids), len(files)) == (3, 3)
    for words in PERSONS:
        said = netlib(lost, *words, code=125 if words[0] in ("run", "check") else 1)
        assert "netlib.db is new" in said or "it is an older copy" in said, words
        assert "3 running containers, the files of 3 containers" in said, words
        assert "`netlib system restore FILE`" in said, words
        assert "`netlib system reset --lost`" in said, words
        assert "Traceback" not in said, words
    assert "netlib" in netlib(lost, "--help", code=0)
    assert (running_pids(lost), work_files(lost)) == (pids, files)
    assert differences(before, snapshot()) == []
    assert not Path("/run/tmp/never.db").exists()


def test_netlibd_does_not_start_on_a_lost_store(lost: Config) -> None:
    with pytest.raises(StoreLost, match="nothing was touched"):
        start_daemon(lost)


def test_an_ended_container_keeps_its_layer(lost: Config) -> None:
    """Its minder asks for it to be cleared away, and so does whoever looks for what crashes left."""
    (pid, *_) = pids = list(running_pids(lost).values())
    os.kill(pid, 9)
    assert ended(pid)
    for _ in range(2):
        with pytest.raises(StoreLost):
            host(lost)
    with host(lost, despite_loss=True) as controller:
        finish(controller)
    assert len(work_files(lost)) == 3
    assert len(running_pids(lost)) == len(pids) - 1


def test_all_of_a_lost_store_goes_when_that_is_asked_for(lost: Config) -> None:
    pids = running_pids(lost)
    said = netlib(lost, "system", "reset", "-f", "--lost", code=0)
    assert "left: links" not in said
    assert all(ended(pid) for pid in pids.values())
    assert not list(lost.container_dir.iterdir())
    assert [path.name for path in NETNS_DIR.iterdir()] == []
    assert "netlib0" not in str(snapshot()["links"])
    assert "NAME" in netlib(lost, "network", "ls", code=0)
    with host(lost) as controller:
        controller.create_network("web", subnets=["10.1.0.0/24"])
        controller.remove_network("web")


def test_without_traces_a_new_store_is_taken_without_a_word(config: Config) -> None:
    with host(config) as controller:
        controller.create_network("net", subnets=["10.1.0.0/24"])
        controller.remove_network("net")
        controller.reset()
    for path in config.state_dir.glob("netlib.db*"):
        path.unlink()
    with host(config) as controller:
        controller.create_network("net", subnets=["10.1.0.0/24"])
        controller.reset()


def test_a_store_under_a_living_netlibd_is_exchanged(used: Config, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    with host(used) as controller:
        copy_store(controller.store.path, copy)
    start_daemon(used)
    netlib(used, "run", "-d", "--name", "late", "--network", "web", "sleep", "600", code=0)
    pids = running_pids(used)
    put_older(used, copy)
    for words in (("ps", "-a"), ("run", "--rm", "true"), ("ps", "-a")):
        assert "it is an older copy" in netlib(used, *words, code=125 if words[0] in ("run", "check") else 1)
    assert running_pids(used) == pids


@pytest.mark.parametrize("damage", ["spoilt", "cut off", "deleted"])
def test_a_damaged_log_is_told(used: Config, damage: str) -> None:
    """SQLite goes on without what it cannot read of a log, and without a word."""
    start_daemon(used)  # a connection that stays: the log is folded into the file by the last one that closes
    netlib(used, "network", "create", "late", code=0)
    pid = int(used.pid_file.read_text())
    os.kill(pid, 9)
    assert ended(pid)
    log = used.state_dir / "netlib.db-wal"
    size = log.stat().st_size
    assert size > 8192
    if damage == "deleted":
        log.unlink()
        (used.state_dir / "netlib.db-shm").unlink()
    else:
        with log.open("r+b") as file:
            file.seek(size // 4)
            if damage == "spoilt":
                file.write(b"\xa5" * 4096)
            else:
                file.truncate()
        (used.state_dir / "netlib.db-shm").unlink()
    pids = running_pids(used)
    said = netlib(used, "ps", "-a", code=1)
    assert "netlib.db-wal was lost" in said or "is new" in said
    assert running_pids(used) == pids


def test_a_container_half_made_in_an_older_copy_goes_on(used: Config, tmp_path: Path) -> None:
    """The copy was made while `run` was at work; to that record the container is one that a crash left."""
    copy = tmp_path / "copy.db"
    with host(used) as controller:
        write = controller.store.write
        run(controller, "third", networks=["web"])
        with write() as tx:
            tx.db.execute("UPDATE record SET phase='creating' WHERE kind='container' AND name='third'")
            tx.db.execute("UPDATE sqlite_sequence SET seq=seq-1 WHERE name='journal'")
        copy_store(controller.store.path, copy)
    put_older(used, copy)
    pids = running_pids(used)
    for words in (("run", "--rm", "true"), ("ps", "-a")):
        netlib(used, *words, code=125 if words[0] in ("run", "check") else 1)
    assert running_pids(used) == pids
    list(restore(used, None))
    netlib(used, "ps", "-a", code=0)
    assert running_pids(used) == pids


# --- CNI -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def plugins(used: Config, tmp_path: Path) -> Path:
    netlib(used, "cni", "install", str(tmp_path / "plugins"), code=0)
    return tmp_path / "plugins"


CHAIN: list[dict[str, Any]] = [
    {
        "type": "bridge",
        "bridge": "cni7",
        "isGateway": True,
        "ipMasq": True,
        "ipam": {"type": "host-local", "subnet": "10.7.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]},
    },
    {"type": "portmap", "capabilities": {"portMappings": True}},
    {"type": "firewall"},
]


class _Chain:
    """A list of plugins, called as libcni calls it."""

    def __init__(self, config: Config, plugins: Path, data: Path) -> None:
        folders = {"NETLIB_STATE_DIR": str(config.state_dir), "NETLIB_RUN_DIR": str(config.run_dir)}
        self._environ = {**os.environ, **folders, "CNI_PATH": str(plugins), "CNI_IFNAME": "eth0"}
        self._plugins = plugins
        self._data = data

    def call(self, command: str, container: str, previous: Any = None) -> Any:
        """Its answer; the error object where a plugin fails."""
        environ = {
            **self._environ,
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": f"/run/netns/{container}",
        }
        for conf in reversed(CHAIN) if command == "DEL" else CHAIN:
            whole = {"cniVersion": "1.1.0", "name": "pods", **conf}
            if conf["type"] == "bridge":
                whole["ipam"] = {**conf["ipam"], "dataDir": str(self._data)}
            if conf["type"] == "portmap":
                ports = [{"hostPort": 7000 + ord(container[-1]), "containerPort": 80, "protocol": "tcp"}]
                whole["runtimeConfig"] = {"portMappings": ports}
            if previous is not None:
                whole["prevResult"] = previous
            plugin = [self._plugins / conf["type"]]
            given = json.dumps(whole)
            done = subprocess.run(plugin, env=environ, input=given, capture_output=True, text=True, check=False, timeout=60)
            if done.returncode:
                return json.loads(done.stdout)
            if command == "ADD":
                previous = json.loads(done.stdout)
        return previous


@pytest.mark.parametrize("loss", LOSSES)
def test_cni_with_a_lost_store(used: Config, plugins: Path, tmp_path: Path, loss: str) -> None:
    """ADD is to be tried again, DEL takes away by tag what is that container's, and leaves what is another's."""
    chain = _Chain(used, plugins, tmp_path / "leases")
    for name in ("c1", "c2", "c3"):
        subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        copy = tmp_path / "copy.db"
        first = snapshot()
        chain.call("ADD", "c1")
        only_c1 = snapshot()
        with host(used) as controller:
            copy_store(controller.store.path, copy)
        leave(used)
        added = chain.call("ADD", "c2")
        assert added["ips"][0]["address"] == "10.7.0.3/24"
        leave(used)
        LOSSES[loss](used, copy)
        refused = chain.call("ADD", "c3")
        assert refused["code"] == Code.TRY_AGAIN
        assert "nothing was touched" in refused["msg"]
        assert chain.call("DEL", "c2", added) == added
        assert differences(only_c1, snapshot()) == []
        assert chain.call("DEL", "c2") is None
        assert sorted(path.name for path in (tmp_path / "leases" / "pods").glob("10.*")) == ["10.7.0.2"]
        assert len(running_pids(used)) == 2
        chain.call("DEL", "c1")
        assert [line for line in differences(first, snapshot()) if re.search(r"\b10\.7\.0\.[23]\b", line)] == []
    finally:
        for name in ("c1", "c2", "c3"):
            subprocess.run(["ip", "netns", "del", name], check=True)


def test_rows_that_somebody_deleted_cost_no_container(used: Config) -> None:
    """The store is neither new nor older; who asks for containers, or wants one more, is told of those that have files."""
    running, written = running_pids(used), work_files(used)
    delete_rows(used, used.state_dir)
    for words in (("ps", "-a"), ("ps",), ("run", "--rm", "--network", "none", "true"), ("ps", "-a")):
        said = netlib(used, *words, code=125 if words[0] == "run" else 1)
        assert "does not know 2 containers with files" in said
        assert "`netlib system restore FILE`" in said
    assert (running_pids(used), work_files(used)) == (running, written)
    said = netlib(used, "system", "restore", "-f", code=0)
    assert said.count("left: container") == 2
    assert "NAMES" in netlib(used, "ps", "-a", code=0)
    netlib(used, "run", "--rm", "--network", "none", "true", code=0)
    assert (running_pids(used), work_files(used)) == (running, written)
