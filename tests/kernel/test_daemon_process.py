"""netlibd as a process: started when it is needed, alone, for root, back after it was killed, replaced after an upgrade."""

import fcntl
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netlib import __version__
from netlib.config import Config
from netlib.core.controller import Controller
from netlib.errors import DaemonError, DeadlineExceeded, PackageFailed, WrongHost
from netlib.kernel.netns import entered
from netlib.model import NetnsRef
from netlib.verbs.call import call
from netlib.wire import starting
from netlib.wire.client import DaemonWatcher, leave, start_daemon
from netlib.wire.protocol import LENGTH, at_socket, frame
from tests.folders import take_away
from tests.kernel.dns_client import wait_until
from tests.plugins_world import write_tiny_net
from tests.processes import ended, pid_of
from tests.stopping import stopped_netlibd

ROOT = Path(__file__).parents[2]


def ping(config: Config) -> dict[str, Any]:
    answer: dict[str, Any] = call(config, "daemon.ping", {})
    return answer


def kill(config: Config) -> None:
    """End netlibd as a crash would."""
    pid = pid_of(config)
    os.kill(pid, signal.SIGKILL)
    assert ended(pid)


def daemons_of(config: Config) -> list[int]:
    """The netlibd of this host, after those that came second have ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"netlib.daemon" in command and os.fsencode(config.run_dir) in command:
                found.append(int(entry.name))
    serving = config.pid_file.read_text().strip() if config.pid_file.exists() else ""
    return [pid for pid in found if str(pid) == serving or not ended(pid)]


@pytest.fixture
def daemon(config: Config) -> Config:
    start_daemon(config)
    return config


def test_looking_starts_nothing_and_connecting_does(config: Config) -> None:
    with Controller(config) as controller:
        controller.networks()
        controller.create_network("web")
        controller.create_sandbox("box")
        assert not config.pid_file.exists()
        controller.connect("web", "box")
        assert daemons_of(config) == [pid_of(config)]
        controller.remove_sandbox("box")
        controller.remove_network("web")
        assert ping(config)["pid"] == pid_of(config)
        controller.reset()


def test_many_starters_end_with_one_daemon(config: Config) -> None:
    pids: list[int] = []

    def start() -> None:
        start_daemon(config)
        pids.append(ping(config)["pid"])

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pids == [pid_of(config)] * 6
    assert daemons_of(config) == [pid_of(config)]


def test_it_stands_on_its_own(daemon: Config) -> None:
    pid = ping(daemon)["pid"]  # its threads are made by then; the C library blocks signals while it makes one
    assert os.getsid(pid) != os.getsid(0)
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    assert (status["Umask"], status["PPid"]) == ("0077", "1")
    assert int(status["SigBlk"], 16) == 0
    environment = Path(f"/proc/{pid}/environ").read_bytes().rstrip(b"\0").split(b"\0")
    assert {item.partition(b"=")[0] for item in environment} <= {b"PATH", b"LANG", b"PYTHONPATH"}
    outputs = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)}
    assert outputs == {"/dev/null", str(daemon.run_dir / "netlibd.log")}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        assert line.endswith(":/"), line


def test_what_it_makes_is_for_root_alone(daemon: Config) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in daemon.run_dir.iterdir() if not path.is_dir()}
    assert modes["control.sock"] == modes["netlibd.sock"] == modes["netlibd.pid"] == modes["netlibd.log"] == 0o600
    assert all(mode & 0o077 == 0 for mode in modes.values())
    for folder in (daemon.run_dir, daemon.state_dir):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((daemon.state_dir / "netlib.db").stat().st_mode) == 0o600


def test_it_leaves_on_sigterm_and_when_asked(daemon: Config) -> None:
    pid = pid_of(daemon)
    os.kill(pid, signal.SIGTERM)
    assert ended(pid)
    assert not daemon.socket_path.exists()
    assert daemon.pid_file.read_text() == ""
    assert leave(daemon) is False
    start_daemon(daemon)
    assert leave(daemon) is True
    start_daemon(daemon)  # at once: by the answer, the place was free
    assert ping(daemon)["pid"] == pid_of(daemon)
    assert "WARNING" not in daemon.log_file.read_text()  # of its run folder: it deletes its sockets itself


def test_its_log_says_where_a_library_ended_it(daemon: Config) -> None:
    pid = pid_of(daemon)
    os.kill(pid, signal.SIGSEGV)
    assert ended(pid)
    log = daemon.run_dir / "netlibd.log"
    assert "Fatal Python error: Segmentation fault" in log.read_text()
    log.unlink()  # else this test fails for it


def test_a_second_one_in_the_foreground_says_so_and_ends(daemon: Config) -> None:
    command = [sys.executable, "-m", "netlib.daemon", "--state-dir", str(daemon.state_dir), "--run-dir", str(daemon.run_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    assert done.stderr == f"netlibd: another netlibd serves {daemon.run_dir}\n"


def test_why_it_cannot_start_reaches_the_caller(config: Config, netns_factory: Callable[[str], NetnsRef]) -> None:
    with Controller(config):
        pass
    with entered(netns_factory("elsewhere")), pytest.raises(WrongHost, match="describes another network namespace"):
        start_daemon(config)
    assert daemons_of(config) == []


def test_an_interpreter_that_cannot_begin_says_why(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netlib.wire.starting._environment", lambda: {"PYTHONPATH": "/nowhere", "PYTHONHOME": "/nowhere"})
    with pytest.raises(DaemonError, match="netlibd did not start: "):
        start_daemon(config)


def test_killed_and_back_with_the_next_command(daemon: Config) -> None:
    first = pid_of(daemon)
    kill(daemon)
    assert daemon.socket_path.is_socket()  # stale now
    assert {row["Name"] for row in call(daemon, "network.ls", {})} == {"bridge", "host", "none"}
    assert daemons_of(daemon) == [pid_of(daemon)] != [first]


def test_the_verbs_are_done_by_it(daemon: Config) -> None:
    assert call(daemon, "system.info", {})["ServedBy"] == pid_of(daemon)
    told: list[dict[str, str]] = []
    call(daemon, "network.create", {"name": "web"}, progress=told.append)
    assert {"moment": "ensured", "object": "firewall/host/base"} in told
    assert [row["Name"] for row in call(daemon, "network.inspect", {"names": ["web"]})] == ["web"]
    call(daemon, "system.reset", {})


# --- not mine ----------------------------------------------------------------------------------------------------------


def test_from_another_netns_it_is_not_asked_and_the_store_refuses(
    daemon: Config, netns_factory: Callable[[str], NetnsRef]
) -> None:
    with entered(netns_factory("elsewhere")), pytest.raises(WrongHost):
        call(daemon, "network.ls", {})


def test_from_another_mount_namespace_the_work_is_done_there(daemon: Config) -> None:
    code = "import os, sys; from netlib.verbs.call import call; print(call(None, 'system.info', {})['ServedBy'] == os.getpid())"
    assert _python(code, daemon, prefix=["unshare", "--mount"]) == "True"
    assert _python(code, daemon) == "False"


def test_another_store_is_not_its_own(daemon: Config, tmp_path: Path) -> None:
    other = Config(state_dir=tmp_path / "other", run_dir=daemon.run_dir)
    assert call(other, "system.info", {})["ServedBy"] == os.getpid()
    with Controller(other):
        pass
    with DaemonWatcher(other) as watcher, pytest.raises(DaemonError, match="serves another store"):
        watcher.changed(sandboxes=["x"], networks=[], needed=True)


def test_it_ends_when_its_store_is_deleted(daemon: Config) -> None:
    first = pid_of(daemon)
    take_away(daemon.state_dir)
    call(daemon, "network.ls", {})  # done here, in a new store
    start_daemon(daemon)
    assert pid_of(daemon) != first
    assert call(daemon, "system.info", {})["ServedBy"] == pid_of(daemon)


def test_a_start_waits_for_the_one_that_is_leaving(config: Config) -> None:
    config.run_dir.mkdir()
    leaving = os.open(config.pid_file, os.O_RDWR | os.O_CREAT)  # its socket is gone already
    fcntl.flock(leaving, fcntl.LOCK_EX)
    with pytest.raises(DeadlineExceeded):
        start_daemon(config, deadline=1)
    os.close(leaving)
    start_daemon(config)
    assert ping(config)["pid"] == pid_of(config)


@pytest.mark.parametrize("end", [take_away, lambda folder: folder.rename(folder.with_name("elsewhere"))])
def test_it_ends_when_its_run_folder_is_taken_away(daemon: Config, end: Callable[[Path], object]) -> None:
    first = pid_of(daemon)
    end(daemon.run_dir)
    assert ended(first)
    start_daemon(daemon)
    assert ping(daemon)["pid"] == pid_of(daemon) != first


def test_one_that_comes_late_leaves_the_socket_of_its_successor(daemon: Config) -> None:
    """It has not seen yet that its run folder was taken away, as when it is stopped (by SIGSTOP) meanwhile."""
    with stopped_netlibd(daemon) as first:
        take_away(daemon.run_dir)
        start_daemon(daemon)
    os.kill(first, signal.SIGTERM)
    assert ended(first)
    assert ping(daemon)["pid"] == pid_of(daemon) != first


def test_it_ends_when_its_socket_is_deleted(daemon: Config) -> None:
    first = pid_of(daemon)
    daemon.socket_path.unlink()
    assert ended(first)
    start_daemon(daemon)
    assert ping(daemon)["pid"] == pid_of(daemon) != first


def _python(code: str, config: Config, *, prefix: list[str] | None = None, path: Path = ROOT) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": str(path),
        "NETLIB_STATE_DIR": str(config.state_dir),
        "NETLIB_RUN_DIR": str(config.run_dir),
    }
    command = [*(prefix or []), sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def other_version(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of netlib that calls itself by another version."""

    def copy(version: str) -> Path:
        target = tmp_path / version
        for package in ("netlib", "drivers", "ipam", "cni_plugins"):
            shutil.copytree(ROOT / package, target / package, ignore=shutil.ignore_patterns("__pycache__"))
        init = target / "netlib" / "__init__.py"
        init.write_text(init.read_text().replace(f'"{__version__}"', f'"{version}"'))
        return target

    return copy


_ASK = "from netlib.verbs.call import call; info = call(None, 'system.info', {}); print(info['Version'], info['ServedBy'])"


def test_after_an_upgrade_the_next_client_replaces_the_older_daemon(
    daemon: Config, other_version: Callable[[str], Path]
) -> None:
    first = pid_of(daemon)
    version, served_by = _python(_ASK, daemon, path=other_version("99.0")).split()
    assert (version, int(served_by)) == ("99.0", pid_of(daemon))
    assert pid_of(daemon) != first
    assert daemons_of(daemon) == [pid_of(daemon)]


def test_after_an_upgrade_of_a_drivers_package_the_next_client_replaces_the_daemon(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "packages"
    write_tiny_net(folder)
    environment = {**starting._environment(), "PYTHONPATH": f"{ROOT}:{folder}"}
    monkeypatch.setattr(starting, "_environment", lambda: environment)
    start_daemon(config)
    first = pid_of(config)
    call(config, "network.create", {"name": "line", "driver": "tiny"})
    assert pid_of(config) == first
    write_tiny_net(folder, network_plan="raise RuntimeError('boom')")
    (folder / "tiny_net-1.0.dist-info" / "RECORD").write_text("")  # pip writes the folder anew
    with pytest.raises(PackageFailed, match="network driver 'tiny' of the package tiny-net failed: RuntimeError: boom"):
        call(config, "network.create", {"name": "again", "driver": "tiny"})
    assert pid_of(config) != first
    assert daemons_of(config) == [pid_of(config)]
    assert "RuntimeError: boom" in config.log_file.read_text().partition("Traceback")[2]
    call(config, "network.rm", {"name": "line"})


def test_an_older_client_leaves_the_daemon_alone(daemon: Config, other_version: Callable[[str], Path]) -> None:
    first = pid_of(daemon)
    version, served_by = _python(_ASK, daemon, path=other_version("0.0.1")).split()
    assert version == "0.0.1"
    assert int(served_by) != first
    assert ping(daemon)["pid"] == pid_of(daemon) == first


# --- who may speak -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["control.sock", "netlibd.sock"])
def test_nobody_but_root_is_answered(daemon: Config, name: str) -> None:
    daemon.run_dir.chmod(0o755)  # past the first two walls: the folder's mode and the socket's
    (daemon.run_dir / name).chmod(0o666)
    folder = os.open(daemon.run_dir, os.O_PATH)
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            try:
                peer.connect(f"/proc/self/fd/{folder}/{name}")
                peer.sendall(frame({"protocol": 1, "version": "1", "verb": "daemon.leave", "args": {}}))
                answer = peer.recv(1000)
            except ConnectionError:
                answer = b""
            except OSError as error:
                answer = str(error).encode()
        os.write(theirs, answer or b"nothing")
        os._exit(0)
    os.waitpid(child, 0)
    os.close(theirs)
    assert os.read(ours, 1000) == b"nothing"
    os.close(ours)
    os.close(folder)
    assert ping(daemon)["pid"] == pid_of(daemon)


def test_noise_neither_kills_it_nor_fills_it(daemon: Config) -> None:
    def open_files() -> int:
        return len(os.listdir(f"/proc/{pid_of(daemon)}/fd"))

    rng = random.Random(1)
    pieces = [b"", LENGTH.pack(2), LENGTH.pack(1 << 31), b"{}", b"\0" * 9, frame({"verb": 1}), frame({"verb": "x", "args": {}})]
    ping(daemon)
    before = open_files()
    with open("/dev/null") as null:
        for _ in range(300):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
                at_socket(daemon.socket_path, peer.connect)
                noise = b"".join(rng.choice([rng.randbytes(rng.randrange(40)), *pieces]) for _ in range(3))
                try:
                    socket.send_fds(peer, [noise or b"x"], [null.fileno()] * rng.randrange(5))
                except ConnectionError:
                    continue
    assert ping(daemon)["pid"] == pid_of(daemon)
    wait_until(lambda: open_files() <= before + 2, "netlibd to close what was let go")


@pytest.fixture(autouse=True)
def _no_leftover_store(config: Config) -> Iterator[None]:
    yield
    if daemons_of(config):
        leave(config)
