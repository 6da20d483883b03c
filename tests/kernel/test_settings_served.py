"""``daemon.json`` that changes while netlibd runs, or has a fault: what commands do, and what they tell."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni_plugins.install import install
from netlib.config import Config
from netlib.settings import settings_file
from netlib.verbs.call import call
from netlib.wire.client import leave, start_daemon
from tests.processes import pid_of

ROOT = Path(__file__).parents[2]
MAKING = (
    ["run", "--rm", "true"],
    ["run", "-d", "--name", "new", "true"],
    ["network", "create", "new"],
    ["network", "connect", "web", "box"],
    ["restart", "-t", "0", "box"],
)
LOOKING = (
    ["ps"],
    ["network", "ls"],
    ["network", "inspect", "web"],
    ["inspect", "box"],
    ["explain", "box"],
    ["logs", "box"],
    ["port", "box"],
    ["log"],
    ["info"],
    ["events", "--since", "1m", "--until", "0s"],
)
CLEARING = (
    ["stop", "-t", "0", "box"],
    ["rm", "-f", "box", "spare"],
    ["network", "disconnect", "web", "joined"],
    ["kill", "joined"],
    ["rm", "-f", "joined"],
    ["network", "rm", "web"],
    ["network", "prune", "-f"],
    ["cni", "prune", "-f"],
    ["system", "reset", "-f"],
)


@pytest.fixture
def daemon(config: Config) -> Iterator[Config]:
    start_daemon(config)
    yield config
    Path(settings_file(config)).unlink(missing_ok=True)
    call(config, "system.reset", {})


def netlib(config: Config, *words: str) -> subprocess.CompletedProcess[str]:
    """One command of a person."""
    folders = ["--state-dir", str(config.state_dir), "--run-dir", str(config.run_dir)]
    command = [sys.executable, "-P", "-m", "netlib", *folders, *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)


def write(config: Config, text: str) -> None:
    Path(settings_file(config)).write_text(text)


def mtu(config: Config) -> str:
    """What a container on the network bridge has."""
    done = netlib(config, "run", "--rm", "cat", "/sys/class/net/eth0/mtu")
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout.strip()


def test_a_warm_netlibd_follows_every_change(daemon: Config) -> None:
    pid = pid_of(daemon)
    assert mtu(daemon) == "1500"
    write(daemon, '{"mtu": 1300}')
    assert mtu(daemon) == "1300"
    write(daemon, '{"mtu": 1400}')
    assert mtu(daemon) == "1400"
    Path(settings_file(daemon)).unlink()
    assert mtu(daemon) == "1500"
    assert pid_of(daemon) == pid


def test_the_former_bridge_is_told_of_where_it_is_used_or_shown(daemon: Config) -> None:
    assert netlib(daemon, "run", "-d", "--name", "box", "sleep", "600").returncode == 0
    write(daemon, '{"mtu": 1300}')
    told = (
        "netlib: warning: network bridge still has its former settings, because containers are in it; "
        "it is made anew when they are removed\n"
    )
    for words in (["network", "ls"], ["network", "inspect", "bridge"], ["run", "--rm", "true"]):
        assert netlib(daemon, *words).stderr == told
    for words in (["ps"], ["info"], ["network", "inspect", "none"], ["run", "--rm", "--network", "none", "true"]):
        assert netlib(daemon, *words).stderr == ""
    assert netlib(daemon, "rm", "-f", "box").stderr == ""
    assert mtu(daemon) == "1300"


@pytest.mark.parametrize(("text", "fault"), [("{", "is no JSON: "), ('{"nonsense": 1}', "unknown key 'nonsense'")])
@pytest.mark.parametrize("is_warm", [True, False])
def test_a_fault_stops_what_makes_things_and_nothing_else(daemon: Config, text: str, fault: str, is_warm: bool) -> None:
    call(daemon, "network.create", {"name": "web"})
    for name, network in (("box", "bridge"), ("spare", "none"), ("joined", "web")):
        call(daemon, "container.run", {"command": ["sleep", "600"], "name": name, "networks": [network]})
    write(daemon, text)
    if not is_warm:
        leave(daemon)
    for words in MAKING:
        done = netlib(daemon, *words)
        assert done.returncode != 0, words
        assert done.stderr.startswith(f"netlib: {settings_file(daemon)}"), (words, done)
        assert fault in done.stderr, (words, done)
        assert done.stderr.count("\n") == 1, (words, done)
    assert len(netlib(daemon, "ps", "-q").stdout.split()) == 3
    for words in (*LOOKING, *CLEARING):
        done = netlib(daemon, *words)
        assert done.returncode == 0, (words, done)
        assert done.stderr.startswith(f"netlib: warning: {settings_file(daemon)}"), (words, done)
        assert fault in done.stderr, (words, done)
        assert done.stderr.count("\n") == 1, (words, done)
    assert netlib(daemon, "network", "ls", "--format", "{{.Name}}").stdout.split() == ["bridge", "host", "none"]


@pytest.mark.parametrize("is_warm", [True, False])
def test_a_pod_is_removed_whatever_the_file_says_by_then(daemon: Config, tmp_path: Path, is_warm: bool) -> None:
    folder = tmp_path / "plugins"
    install(folder, Config(), types=["bridge"])
    pods = {"type": "host-local", "subnet": "10.22.0.0/16", "dataDir": str(tmp_path / "leases")}
    conf = json.dumps({"cniVersion": "1.1.0", "name": "pods", "type": "bridge", "ipam": pods})

    def cni(verb: str, ifname: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": os.environ["PATH"],
            "NETLIB_STATE_DIR": str(daemon.state_dir),
            "NETLIB_RUN_DIR": str(daemon.run_dir),
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": "pod",
            "CNI_NETNS": "/run/netns/pod",
            "CNI_IFNAME": ifname,
            "CNI_PATH": str(folder),
        }
        return subprocess.run([folder / "bridge"], env=environment, input=conf, capture_output=True, text=True, check=False)

    def break_it() -> None:
        write(daemon, '{"mtu": 1300')
        if not is_warm:
            leave(daemon)

    subprocess.run(["ip", "netns", "add", "pod"], check=True)
    try:
        assert cni("ADD", "eth0").returncode == 0
        break_it()
        refused = cni("ADD", "eth1")
        assert (refused.returncode, json.loads(refused.stdout)["code"]) == (1, 7)
        assert f"{settings_file(daemon)} is no JSON" in refused.stdout
        break_it()
        deleted = cni("DEL", "eth0")
        assert (deleted.returncode, deleted.stdout) == (0, "")
        assert f"{settings_file(daemon)} is no JSON" in deleted.stderr
        assert subprocess.run(["ip", "-n", "pod", "link", "show", "eth0"], capture_output=True, check=False).returncode != 0
    finally:
        subprocess.run(["ip", "netns", "del", "pod"], check=True)
