"""CNI calls where netlibd is stopped, by the C and by the Python launcher: done in-process, or answered with the code 11."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cni_plugins.install import Kind, install
from cni_plugins.skel import Outcome
from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.model import CniAttachment, NetnsRef
from netlib.testing.snapshot import differences, snapshot
from netlib.verbs.call import call
from netlib.wire.client import start_daemon
from tests.cni.launching import environment, run
from tests.stopping import LIMIT, remedy, stopped_holding, stopped_netlibd, stopping_itself

ROOT = Path(__file__).parents[2]
TYPES = ["bridge", "static", "netlib", "dhcp", "portmap"]
PODS = {
    "cniVersion": "1.1.0",
    "name": "pods",
    "type": "bridge",
    "isGateway": True,
    "ipMasq": True,
    "ipam": {"type": "host-local", "subnet": "10.22.0.0/16"},
}
CNM = {"cniVersion": "1.1.0", "name": "web", "type": "netlib"}


@pytest.fixture(scope="module", params=["c", "python"])
def plugins(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of launchers."""
    kind: Kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    install(folder, Config(), launcher=kind, types=TYPES)
    return folder


@pytest.fixture
def daemon(config: Config) -> Iterator[Config]:
    """A host with a netlibd and a network that has names."""
    start_daemon(config)
    call(config, "network.create", {"name": "web"})
    yield config
    call(config, "system.reset", {})


@pytest.fixture
def pod(netns_factory: Callable[[str], NetnsRef]) -> str:
    return netns_factory("pod").path


def cni(plugins: Path, config: Config, verb: str, conf: dict[str, Any], netns: str) -> Outcome:
    variables = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_NETNS": netns, "CNI_IFNAME": "eth0"}
    environ = environment(config, {**variables, "CNI_PATH": str(plugins)})
    if conf.get("ipam", {}).get("type") == "host-local":
        conf = {**conf, "ipam": {**conf["ipam"], "dataDir": str(config.state_dir.parent / "leases")}}
    before = time.monotonic()
    outcome = run(plugins / conf["type"], environ, json.dumps(conf).encode())
    assert time.monotonic() - before < LIMIT
    return outcome


def code_of(outcome: Outcome) -> tuple[int, str]:
    assert outcome.code == 1, outcome
    error = json.loads(outcome.stdout)
    return error["code"], error["msg"]


def unused(pid: int) -> bytes:
    """What a launcher says on stderr, once."""
    return f"netlibd is not used: netlibd (pid {pid}) is stopped{remedy(pid)}\n".encode()


def test_add_and_del_are_done_in_process(plugins: Path, daemon: Config, pod: str) -> None:
    with stopped_netlibd(daemon) as pid:
        added = cni(plugins, daemon, "ADD", PODS, pod)
        assert (added.code, added.stderr) == (0, unused(pid)), added
        result = json.loads(added.stdout)
        assert result["ips"][0]["address"].startswith("10.22.0.")
        checked = cni(plugins, daemon, "CHECK", {**PODS, "prevResult": result}, pod)
        assert (checked.code, checked.stderr) == (0, unused(pid)), checked
        for _ in range(2):
            deleted = cni(plugins, daemon, "DEL", PODS, pod)
            assert deleted == Outcome(b"", 0, unused(pid))
    assert cni(plugins, daemon, "ADD", PODS, pod).stderr == b""  # it goes on
    assert cni(plugins, daemon, "DEL", PODS, pod) == Outcome(b"", 0)


def test_what_netlibd_made_is_deleted_without_it(plugins: Path, daemon: Config, pod: str) -> None:
    before = snapshot()
    assert cni(plugins, daemon, "ADD", CNM, pod).code == 0
    with stopped_netlibd(daemon) as pid:
        assert cni(plugins, daemon, "DEL", CNM, pod) == Outcome(b"", 0, unused(pid))
    with Controller(daemon, watcher=Unwatched()) as controller:
        assert controller.sandboxes() == []
    left = [line for line in differences(before, snapshot()) if "veth" in line]
    assert [line for line in left if "netlib-guests" not in line] == []  # that table is netlibd's, and ends with it


@pytest.mark.parametrize("conf", [CNM, {**PODS, "type": "bridge", "ipam": {"type": "dhcp"}}], ids=["names", "dhcp"])
def test_an_add_that_needs_netlibd_is_refused_and_undone(plugins: Path, daemon: Config, pod: str, conf: dict[str, Any]) -> None:
    with stopped_netlibd(daemon) as pid:
        refused = cni(plugins, daemon, "ADD", conf, pod)
        number, msg = code_of(refused)
        assert number == 11
        assert msg.endswith(f"netlibd (pid {pid}) is stopped{remedy(pid)}")
        assert refused.stderr == unused(pid)
        with Controller(daemon, watcher=Unwatched()) as controller:
            assert controller.sandboxes() == []
            with controller.store.read() as tx:
                assert tx.in_flight() == []
        links = subprocess.run(["ip", "netns", "exec", Path(pod).name, "ip", "-br", "link"], capture_output=True, text=True)
        assert "eth0" not in links.stdout
        assert cni(plugins, daemon, "DEL", conf, pod).code == 0


def test_status_and_version_answer(plugins: Path, daemon: Config, pod: str) -> None:
    with stopped_netlibd(daemon) as pid:
        assert cni(plugins, daemon, "STATUS", PODS, pod) == Outcome(b"", 0, unused(pid))
        assert cni(plugins, daemon, "VERSION", PODS, pod).code == 0


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
@pytest.mark.parametrize("what", ["a record's lock", "the store"])
def test_what_a_stopped_process_holds_is_told_with_code_11(
    plugins: Path, daemon: Config, pod: str, verb: str, what: str
) -> None:
    if verb == "DEL":
        assert cni(plugins, daemon, "ADD", PODS, pod).code == 0
    with stopped_netlibd(daemon):
        attachment = "attachment:pods/c1/eth0/bridge" if verb == "DEL" else "cni-network:pods"
        with stopped_holding(daemon, what, lock_of(daemon, attachment)) as holder:
            number, msg = code_of(cni(plugins, daemon, verb, PODS, pod))
    assert number == 11
    assert f"netlibd (pid {holder}) is stopped and " in msg
    assert msg.endswith(remedy(holder))
    assert cni(plugins, daemon, "DEL", PODS, pod).code == 0


def lock_of(config: Config, name: str) -> str:
    """The name of the lock of that attachment, as the plugin type spells it."""
    with Controller(config, watcher=Unwatched()) as controller, controller.store.read() as tx:
        rows = tx.all(CniAttachment)
    return f"attachment:{rows[0].name}" if rows and name.startswith("attachment") else name


def test_a_launcher_of_the_release_before_is_served_on_its_own_socket(config: Config, tmp_path: Path, pod: str) -> None:
    """Its sources are today's, without the greeting and with the former socket."""
    root = tmp_path / "former"
    for package in ("netlib", "drivers", "ipam", "cni_plugins"):
        subprocess.run(["cp", "-r", str(ROOT / package), f"{root}-{package}"], check=True)
        root.mkdir(exist_ok=True)
        os.rename(f"{root}-{package}", root / package)
    launcher = root / "cni_plugins/launcher/launcher.c"
    text = launcher.read_text()
    assert "    hear_greeting(netlibd, greeted_by);\n" in text
    launcher.write_text(text.replace("    hear_greeting(netlibd, greeted_by);\n", "").replace("control.sock", "netlibd.sock"))
    command = [sys.executable, "-P", "-m", "netlib", "cni", "install", "--c", str(tmp_path / "bin")]
    subprocess.run(command, env=environment(config, {"PYTHONPATH": str(root)}), check=True, capture_output=True)
    subprocess.run(["rm", "-r", str(root)], check=True)  # so that nobody else can have done it
    start_daemon(config)
    for verb in ("ADD", "DEL"):
        assert (
            cni(tmp_path / "bin", config, verb, {**PODS, "ipam": {"type": "host-local", "subnet": "10.9.0.0/24"}}, pod).code
            == 0
        )
    call(config, "system.reset", {})


def test_a_call_that_was_begun_is_told(plugins: Path, config: Config, pod: str) -> None:
    """By a control socket whose handler stops its own process: the runtime is told in seconds, and nothing is done twice."""
    with stopping_itself(config) as pid:
        refused = cni(plugins, config, "ADD", PODS, pod)
        assert code_of(refused) == (11, "netlibd is stopped, with the call begun")
        assert f"kill -CONT {pid}" in json.loads(refused.stdout)["details"]
        assert not (config.state_dir / "netlib.db").exists(), "it was not done here"
