"""A state folder of an earlier netlib, with its containers, minders and netlibd still running, under the present netlib.

The earlier netlib is commit 11f308c, out of the repository's history: what works with it works with what was installed then.
Where former minders or launchers have a part in it, a test is done twice: with the present netlib in a folder of its own, and
in the former one's folder, as an upgrade of a package puts it, where those then find it.
"""

import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from netlib.config import Config
from netlib.kernel.netns import NETNS_DIR, create_netns, delete_netns
from netlib.testing.snapshot import differences, snapshot
from tests.cni.launching import environment, run
from tests.kernel.former_world import FORMER, FormerHost, check_out
from tests.processes import ended, pid_of
from tests.stopping import LIMIT, remedy, stopped_netlibd

pytestmark = pytest.mark.needs_cgroups

BESIDE, IN_ITS_PLACE = "beside it", "in its place"
beside = pytest.mark.parametrize("place", [BESIDE])

PATIENCE = 20.0
SERVER = ("sh", "-c", "echo began; exec python3 -m http.server 80")
ENDING = ("sh", "-c", "trap 'echo ended; exit 7' TERM; echo began; while :; do sleep 0.05; done")
BRIDGE_NAME = "com.docker.network.bridge.name"
STATE = "{{.State.Status}} {{.State.ExitCode}}"
POD = {
    "cniVersion": "1.0.0",
    "name": "pods",
    "type": "bridge",
    "bridge": "cni0",
    "isGateway": True,
    "ipMasq": True,
    "ipam": {"type": "host-local", "subnet": "10.9.0.0/24"},
}


@pytest.fixture(params=[BESIDE, IN_ITS_PLACE])
def place(request: pytest.FixtureRequest) -> str:
    """Where the present netlib is."""
    return str(request.param)


@pytest.fixture
def host(config: Config, tmp_path: Path, place: str) -> Iterator[FormerHost]:
    """A host with a server with a published port and a client on one network of the former netlib, and another network."""
    before = snapshot()
    host = FormerHost(tmp_path, config)
    try:
        host.former("network", "create", "--subnet", "10.1.0.0/24", "-o", f"{BRIDGE_NAME}=br-web", "web")
        host.former("network", "create", "--subnet", "10.2.0.0/24", "--subnet", "fd00:2::/64", "--ipv6", "blue")
        host.former("run", "-d", "--name", "server", "--network", "web", "-p", "8080:80", *SERVER)
        host.former("run", "-d", "--name", "client", "--network", "web", "sleep", "1000")
        assert "1 received" in host.former("exec", "client", "ping", "-c1", "-W2", "server")
        yield host
    finally:
        host.present("system", "reset", "-f")
    assert differences(before, snapshot()) == []


def upgrade(host: FormerHost, place: str) -> None:
    if place == IN_ITS_PLACE:
        host.exchange()


def answers(port: int) -> bool:
    """Whether a web server answers there, within the time that it needs to start."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                if connection.recv(4) == b"HTTP":
                    return True
        except OSError:
            select.select([], [], [], 0.02)
    return False


def pings(host: FormerHost, container: str, name: str) -> bool:
    return "1 received" in host.present("exec", container, "ping", "-c1", "-W2", name)


def intact(host: FormerHost, *names: str) -> bool:
    return [host.present("check", name) for name in names] == [""] * len(names)


def running(host: FormerHost) -> set[str]:
    return set(host.present("ps", "--format", "{{.Names}}").split())


def test_containers_run_on_under_the_present_netlib(host: FormerHost, place: str) -> None:
    host.former("network", "create", "--internal", "--subnet", "10.3.0.0/24", "inner")
    host.former("run", "-d", "--name", "hidden", "--network", "inner", "sleep", "1000")
    subprocess.run(["ip", "-n", "hidden", "route", "add", "default", "via", "10.3.0.1"], check=True)
    host.former("exec", "hidden", "ping", "-c1", "-W2", "10.1.0.1")  # an address of the host, which is closed to it now
    former = pid_of(host.config)
    upgrade(host, place)
    assert running(host) == {"server", "client", "hidden"}
    assert ended(former)
    assert f"Netlibd: pid {pid_of(host.config)}\n" in host.present("info")
    assert intact(host, "web", "blue", "inner", "server", "client", "hidden")
    assert host.present("log", "-n", "1").split()[2:6] == ["network", "connect", "hidden", "inner"]  # and nothing failed since

    (server,) = json.loads(host.present("inspect", "server"))
    assert (server["State"]["Status"], server["NetworkSettings"]["Networks"]["web"]["IPAddress"]) == ("running", "10.1.0.2")
    assert host.present("port", "server") == "80/tcp -> 0.0.0.0:8080\n"
    assert host.present("logs", "server").startswith("began\n")
    assert answers(8080)
    assert pings(host, "client", "server")

    assert pings(host, "hidden", "10.3.0.1")
    host.present("exec", "hidden", "ping", "-c1", "-W1", "10.1.0.1", code=1)

    host.present("network", "connect", "blue", "client")
    host.present("run", "-d", "--name", "late", "--network", "blue", "-p", "8081:80", *SERVER)
    assert pings(host, "client", "late")
    assert answers(8081)
    host.present("network", "disconnect", "blue", "client")
    assert intact(host, "web", "blue", "server", "client", "late")

    host.present("stop", "-t", "0", "server")
    assert host.present("inspect", "-f", STATE, "server") == "exited 137\n"
    host.present("start", "server")
    assert answers(8080)
    assert pings(host, "client", "server")
    host.present("stop", "-t", "0", "server")
    host.present("rm", "server")
    host.present("run", "-d", "--name", "next", "--network", "web", "-p", "8080:80", *SERVER)
    assert answers(8080)
    assert pings(host, "client", "next")
    host.present("rm", "-f", "next", "client", "late", "hidden")
    host.present("network", "rm", "web", "blue", "inner")


@beside
def test_a_netlibd_that_was_killed_is_replaced(host: FormerHost, place: str) -> None:
    former = pid_of(host.config)
    os.kill(former, signal.SIGKILL)
    assert ended(former)
    upgrade(host, place)
    assert running(host) == {"server", "client"}
    assert pid_of(host.config) != former
    assert pings(host, "client", "server")
    assert answers(8080)
    with pytest.raises(OSError, match="in use"):  # it is held again
        socket.create_server(("", 8080))
    assert intact(host, "web", "server", "client")


@beside
def test_a_netlibd_that_is_stopped_is_named_and_replaced_when_it_continues(host: FormerHost, place: str) -> None:
    upgrade(host, place)
    with stopped_netlibd(host.config) as former:
        begun = time.monotonic()
        assert remedy(former) in host.present("ps")
        assert remedy(former) in host.present("run", "-d", "--name", "late", "--network", "web", "sleep", "9", code=125)
        host.present("exec", "client", "true")
        assert time.monotonic() - begun < LIMIT
    assert running(host) == {"server", "client"}
    assert ended(former)
    assert pings(host, "client", "server")


def test_a_container_that_ran_on_is_removed_when_all_else_is_new(host: FormerHost, place: str) -> None:
    upgrade(host, place)
    host.present("rm", "-f", "server")
    host.present("run", "-d", "--name", "next", "--network", "web", "-p", "8080:80", *SERVER)
    second = pid_of(host.config)
    os.kill(second, signal.SIGKILL)
    assert ended(second)
    assert pings(host, "next", "client")
    assert pings(host, "client", "next")
    host.present("rm", "-f", "client")
    assert running(host) == {"next"}
    assert "client" not in host.present("network", "inspect", "web")
    assert intact(host, "web", "next")


def test_minders_of_the_former_netlib_report_to_the_present_one(host: FormerHost, place: str) -> None:
    host.former("run", "-d", "--name", "ending", "--network", "web", *ENDING)
    host.former("run", "-d", "--rm", "--name", "passing", "--network", "web", "-p", "8082:80", *ENDING)
    upgrade(host, place)
    assert {"ending", "passing"} <= running(host)
    for name in ("ending", "passing"):
        host.present("kill", "-s", "TERM", name)
    assert host.present("wait", "ending") == "7\n"
    deadline = time.monotonic() + PATIENCE
    while "ending" in (left := host.present("network", "inspect", "web")) or "passing" in left:
        assert time.monotonic() < deadline, left
        select.select([], [], [], 0.02)
    assert host.present("logs", "ending") == "began\nended\n"
    assert "passing" not in host.present("ps", "-a")
    host.present("run", "-d", "--name", "next", "--network", "web", "-p", "8082:80", *SERVER)
    assert answers(8082)
    host.present("rm", "ending")


@beside
def test_reset_removes_all_that_the_former_netlib_made(host: FormerHost, place: str) -> None:
    upgrade(host, place)
    host.present("system", "reset", "-f")
    assert host.present("ps", "-aq") == ""
    assert host.present("network", "ls", "-q", "--filter", "type=custom") == ""
    assert [*host.config.container_dir.iterdir()] == []


def test_attachments_go_on(host: FormerHost, place: str, tmp_path: Path) -> None:
    """Attached by a launcher of the former netlib: the present one's and the former one's work on it alike."""
    plugins = {name: tmp_path / f"plugins-{name}" for name in ("former", "present")}
    pods = [NETNS_DIR / "pod1", NETNS_DIR / "pod2"]
    conf = {**POD, "ipam": {**POD["ipam"], "dataDir": str(tmp_path / "leases")}}  # type: ignore[dict-item]

    def call(verb: str, name: str, pod: Path, **more: object) -> dict[str, object]:
        variables = {"CNI_COMMAND": verb, "CNI_CONTAINERID": pod.name, "CNI_NETNS": str(pod), "CNI_IFNAME": "eth0"}
        variables["CNI_PATH"] = str(plugins[name])
        stdin = json.dumps({**conf, **more}).encode()
        outcome = run(plugins[name] / "bridge", environment(host.config, variables), stdin)
        assert outcome.code == 0, outcome
        found: dict[str, object] = json.loads(outcome.stdout) if outcome.stdout else {}
        return found

    for pod in pods:
        create_netns(pod)
    try:
        host.former("cni", "install", str(plugins["former"]))
        results = {pod: call("ADD", "former", pod) for pod in pods}
        upgrade(host, place)
        host.present("cni", "install", str(plugins["present"]))
        for name, pod in zip(plugins, pods, strict=True):
            call("CHECK", name, pod, prevResult=results[pod])
            ping = ["ip", "netns", "exec", pod.name, "ping", "-c1", "-W2", "10.9.0.1"]
            assert subprocess.run(ping, capture_output=True, check=False).returncode == 0
            call("DEL", name, pod, prevResult=results[pod])
            added = call("ADD", name, pod)
            call("DEL", name, pod, prevResult=added)
        assert host.present("cni", "ls", "--format", "{{.Container}}").split() == []
    finally:
        for pod in pods:
            delete_netns(pod)


def test_a_history_without_that_commit_is_named(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path / "shallow")], check=True)
    with pytest.raises(AssertionError, match=rf"commit {FORMER} is not in .*: this test needs the whole history"):
        check_out(FORMER, tmp_path / "former", tmp_path / "shallow")
