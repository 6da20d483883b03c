"""The command line from end to end: networks, containers on them by name, what is shown of them, and the way they end."""

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netlib.cli.main import main
from netlib.config import Config
from netlib.errors import FeatureMissing
from netlib.kernel.bridges import Bridge
from netlib.testing.snapshot import differences, snapshot

Netlib = Callable[..., subprocess.CompletedProcess[str]]
SECONDS = 20


@pytest.fixture
def netlib(config: Config) -> Iterator[Netlib]:
    """Run ``netlib`` as a process of its own, on a host of its own; afterwards all that it made is removed."""

    def run(*words: str, code: int = 0, **wanted: Any) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(_netlib(config, *words), capture_output=True, text=True, timeout=SECONDS, check=False, **wanted)
        assert done.returncode == code, f"netlib {' '.join(words)}: {done.returncode} {done.stdout}{done.stderr}"
        return done

    yield run
    run("system", "reset", "-f")


def _folders(config: Config) -> list[str]:
    return ["--state-dir", str(config.state_dir), "--run-dir", str(config.run_dir)]


def _netlib(config: Config, *words: str) -> list[str]:
    return [sys.executable, "-m", "netlib.cli.main", *_folders(config), *words]


def _reachable(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something answers HTTP there, within the time that a server needs to start."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host, port), timeout=SECONDS) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                if connection.recv(4) == b"HTTP":
                    return True
        except OSError:
            select.select([], [], [], 0.02)
    return False


SERVER = ("python3", "-m", "http.server", "80")


FORGE = """
import socket, struct, sys
def sent(source, target, word):
    body = struct.pack("!HHHH", 4000, 9000, 8 + len(word), 0) + word
    head = struct.pack("!BBHHHBBH4s4s", 69, 0, 20 + len(body), 7, 0, 64, 17, 0, *map(socket.inet_aton, (source, target)))
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", 0xFFFF - total) + head[12:]
    link.send(bytes.fromhex(sys.argv[1].replace(":", "")) + bytes([2, 0, 0, 0, 0, 9]) + b"\\x08\\x00" + head + body)
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
link.bind(("eth0", 0))
for source, word in ((sys.argv[2], b"forged"), ("198.51.100.7", b"forged"), (sys.argv[3], b"honest")):
    sent(source, sys.argv[2], word)
"""


@pytest.mark.needs_cgroups
def test_a_container_is_heard_from_its_own_address_only(netlib: Netlib) -> None:
    netlib("network", "create", "--subnet", "172.28.0.0/16", "web")
    bridge = json.loads(netlib("network", "inspect", "web").stdout)[0]["Id"][:12]
    mac = Path(f"/sys/class/net/br-{bridge}/address").read_text().strip()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
        host.bind(("172.28.0.1", 9000))
        host.settimeout(SECONDS)
        netlib("run", "--rm", "--network", "web", "--ip", "172.28.0.9", "python3", "-c", FORGE, mac, "172.28.0.1", "172.28.0.9")
        assert host.recvfrom(100) == (b"honest", ("172.28.0.9", 4000))


@pytest.mark.needs_cgroups
def test_containers_on_a_network_by_name_and_published_port(netlib: Netlib, config: Config) -> None:
    network_id = netlib("network", "create", "alpine-net").stdout.strip()
    assert len(network_id) == 64
    web_id = netlib("run", "-d", "--name", "web", "--network", "alpine-net", "-p", "8080:80", *SERVER).stdout.strip()
    assert len(web_id) == 64

    assert "1 received" in netlib("run", "--rm", "--network", "alpine-net", "ping", "-c1", "web").stdout
    assert _reachable(8080)
    assert netlib("port", "web").stdout == "80/tcp -> 0.0.0.0:8080\n"
    assert netlib("port", "web", "80").stdout == "0.0.0.0:8080\n"
    assert netlib("ps", "-q").stdout.split() == [web_id[:12]]  # the one of ping is gone when `run` ends
    assert netlib("ps", "-aq", "--no-trunc").stdout.split() == [web_id]

    shown = json.loads(netlib("network", "inspect", "alpine-net").stdout)[0]
    member = shown["Containers"][web_id]
    assert (member["Name"], member["IPv4Address"]) == ("web", "172.18.0.2/16")
    address = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    assert netlib("inspect", "-f", address, "web").stdout == "172.18.0.2\n"
    assert netlib("inspect", "-f", "{{.Name}}", "alpine-net").stdout == "alpine-net\n"

    assert f"ip link add br-{network_id[:12]}" in netlib("explain", "alpine-net").stdout
    explained = netlib("explain", "web").stdout
    assert "ip -n web addr add 172.18.0.2/16" in explained
    assert "ports4 { tcp . 8080 : 172.18.0.2 . 80 }" in explained
    assert netlib("check", "web").stdout == ""

    pid = int(config.pid_file.read_text())
    os.kill(pid, signal.SIGKILL)
    assert "1 received" in netlib("run", "--rm", "--network", "alpine-net", "ping", "-c1", "web").stdout

    refused = netlib("network", "rm", "alpine-net", code=1)
    assert "web" in refused.stderr
    assert netlib("rm", "-f", "web").stdout == "web\n"
    assert netlib("network", "rm", "alpine-net").stdout == "alpine-net\n"
    operations = [line.split("  ")[1] for line in netlib("log").stdout.splitlines()]
    assert operations[0] == "network create"
    assert operations[-1] == "network rm"


@pytest.mark.needs_cgroups
def test_exit_codes_and_streams_are_the_commands_own(netlib: Netlib) -> None:
    done = netlib("run", "--rm", "--network", "none", "sh", "-c", "echo out; echo err >&2; exit 7", code=7)
    assert (done.stdout, done.stderr) == ("out\n", "err\n")
    assert netlib("run", "--rm", "-i", "--network", "none", "cat", input="in\n").stdout == "in\n"
    missing = netlib("run", "--rm", "--network", "none", "no-such-command", code=127)
    assert missing.stderr.startswith("netlib: ")
    assert "no-such-command" in missing.stderr
    assert netlib("run", "--rm", "--network", "none", "/etc", code=126).stderr.count("\n") == 1
    assert netlib("ps", "-aq").stdout == ""
    netlib("exec", "job", "true", code=1)
    netlib("run", "--rm", "--no-such-option", "true", code=125)
    netlib("ps", "--no-such-option", code=125)


class Terminal:
    """A ``netlib`` at a terminal on which keys are pressed."""

    def __init__(self, config: Config, *words: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            _netlib(config, *words), stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        self.seen = b""

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def shows(self, text: bytes) -> None:
        """Wait until *text* has been shown."""
        while text not in self.seen:
            assert select.select([self._master], [], [], SECONDS)[0], self.seen
            self.seen += os.read(self._master, 4096)

    def code(self) -> int:
        """Wait for its end; what it showed last is then seen."""
        code = self.process.wait(SECONDS)
        while select.select([self._master], [], [], 0)[0]:
            try:
                self.seen += os.read(self._master, 4096)
            except OSError:  # EIO: all was read
                break
        os.close(self._master)
        return code


_ECHO = ("sh", "-c", "stty -echo; echo ready; while read line; do echo got $line; done")


@pytest.mark.needs_cgroups
def test_a_terminal_is_left_by_dockers_keys_and_the_container_goes_on(config: Config, netlib: Netlib) -> None:
    """``run`` and ``start -ai`` succeed without a word, ``attach`` says Docker's; keys that are none of these go through."""
    for words in (["run", "-it", "--name", "job", "--network", "none", *_ECHO], ["start", "-ai", "job"]):
        terminal = Terminal(config, *words)
        terminal.shows(b"ready")
        terminal.press(b"one\n\x10")
        terminal.shows(b"got one")
        terminal.press(b"two\n")
        terminal.shows(b"got \x10two")
        terminal.press(b"three\n\x10\x11lost\n")
        assert terminal.code() == 0
        assert b"escape" not in terminal.seen

        terminal = Terminal(config, "attach", "job")
        terminal.press(b"four\n")
        terminal.shows(b"got four")
        terminal.press(b"\x10")
        terminal.press(b"\x11")
        assert terminal.code() == 1
        assert terminal.seen.endswith(b"read escape sequence\r\n")
        assert netlib("ps", "--format", "{{.Names}} {{.State}}").stdout == "job running\n"
        netlib("stop", "-t", "0", "job")
    assert "got three" in netlib("logs", "job").stdout
    assert "lost" not in netlib("logs", "job").stdout


@pytest.mark.needs_cgroups
def test_keys_of_ones_own(config: Config, netlib: Netlib) -> None:
    terminal = Terminal(config, "run", "-it", "--rm", "--detach-keys", "ctrl-a,d", "--name", "job", "--network", "none", *_ECHO)
    terminal.shows(b"ready")
    terminal.press(b"\x10\x11\n")
    terminal.shows(b"got \x10")  # its own terminal takes ctrl-q for "go on"
    terminal.press(b"\x01d")
    assert terminal.code() == 0
    assert "'ctrl-' is no key" in netlib("attach", "--detach-keys", "ctrl-", "job", code=1).stderr
    netlib("stop", "-t", "0", "job")
    assert netlib("ps", "-aq").stdout == ""


@pytest.mark.needs_cgroups
def test_a_command_that_was_executed_goes_on_without_its_terminal(config: Config, netlib: Netlib) -> None:
    netlib("run", "-d", "--name", "job", "--network", "none", "sleep", "60")
    script = "mkfifo /srv/go; echo ready; read line < /srv/go; yes | head -c 1000000; tty > /srv/done"
    terminal = Terminal(config, "exec", "-it", "job", "sh", "-c", script)
    terminal.shows(b"ready")
    terminal.press(b"\x10\x11")
    assert terminal.code() == 1
    assert terminal.seen.endswith(b"read escape sequence\r\n")
    waits = "echo > /srv/go; while ! grep dev/pts /srv/done; do sleep 0.02; done"
    assert netlib("exec", "job", "sh", "-c", waits).stdout == "/dev/pts/0\n"


@pytest.mark.needs_cgroups
def test_few_open_files(config: Config, netlib: Netlib) -> None:
    """The soft limit is raised; where the hard one is too low it is told before anything is begun, by netlibd as well."""
    assert _limited("-S", *_netlib(config, "run", "--rm", "--network", "none", "echo", "fine")) == (0, "fine\n", "")
    sentence = "netlib needs 128 open files at a time, and the limit is 32; raise it by `ulimit -Hn`\n"
    assert _limited("-SH", *_netlib(config, "network", "ls")) == (1, "", f"netlib: {sentence}")
    daemon = [sys.executable, "-m", "netlib.daemon", *_folders(config)]
    assert _limited("-SH", *daemon) == (1, "", f"netlibd: {sentence}")


def _limited(which: str, *command: str) -> tuple[int, str, str]:
    """Run a command that may have 32 open files at a time."""
    done = subprocess.run(
        ["bash", "-c", f'ulimit {which} -n 32; exec "$@"', "bash", *command],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.needs_cgroups
def test_a_refused_check_is_told_from_a_difference(netlib: Netlib) -> None:
    netlib("check", "no-such-network", code=125)
    netlib("run", "-d", "--name", "job", "sleep", "60")
    assert netlib("check", "job").stdout == ""
    subprocess.run(["ip", "-n", "job", "addr", "flush", "dev", "eth0"], check=True)
    assert "172.17.0.2/16" in netlib("check", "job", code=1).stdout


@pytest.mark.needs_cgroups
def test_a_command_that_is_gone_when_it_is_started_again(netlib: Netlib, tmp_path: Path) -> None:
    script = tmp_path / "job"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    netlib("run", "--name", "job", "--network", "none", "-v", f"{tmp_path}:/srv", "/srv/job")
    script.unlink()
    for words in (["start", "job"], ["start", "-a", "job"], ["restart", "job"]):
        assert "/srv/job" in netlib(*words, code=1).stderr
    netlib("rm", "job")


@pytest.mark.needs_cgroups
def test_the_life_of_a_container(netlib: Netlib) -> None:
    script = "trap 'echo bye; exit 3' TERM; echo hello; while :; do sleep 0.05; done"
    netlib("run", "-d", "--name", "job", "--network", "none", "-e", "COLOUR=blue", "sh", "-c", script)
    assert netlib("exec", "job", "printenv", "COLOUR").stdout == "blue\n"
    assert netlib("exec", "-e", "COLOUR=red", "-w", "/usr", "job", "sh", "-c", "echo $COLOUR $PWD").stdout == "red /usr\n"
    assert netlib("exec", "-i", "job", "cat", input="through\n").stdout == "through\n"
    netlib("exec", "job", "sh", "-c", "exit 9", code=9)
    netlib("exec", "job", "no-such-command", code=127)
    assert netlib("stop", "job").stdout == "job\n"
    assert netlib("wait", "job").stdout == "3\n"
    assert netlib("logs", "job").stdout == "hello\nbye\n"
    assert netlib("logs", "-n", "1", "job").stdout == "bye\n"
    assert "is not running" in netlib("exec", "job", "true", code=1).stderr
    assert netlib("ps", "--format", "{{.Names}}").stdout == ""
    assert netlib("ps", "-a", "--format", "{{.Names}} {{.State}}").stdout == "job exited\n"
    assert netlib("start", "job").stdout == "job\n"
    assert netlib("restart", "-t", "5", "job").stdout == "job\n"
    assert netlib("kill", "job").stdout == "job\n"
    assert netlib("wait", "job").stdout == "137\n"
    assert netlib("rm", "job").stdout == "job\n"
    assert netlib("ps", "-aq").stdout == ""


@pytest.mark.needs_cgroups
def test_connect_and_disconnect_while_it_runs_and_for_the_next_start(netlib: Netlib) -> None:
    netlib("network", "create", "one")
    netlib("network", "create", "two")
    netlib("run", "-d", "--name", "box", "--network", "one", "sleep", "1000")
    netlib("network", "connect", "--alias", "other", "--ip", "172.19.0.77", "two", "box")
    assert "172.19.0.77/16" in netlib("exec", "box", "ip", "-o", "addr").stdout
    assert "already" in netlib("network", "connect", "two", "box", code=1).stderr
    assert "1 received" in netlib("run", "--rm", "--network", "two", "ping", "-c1", "other").stdout

    netlib("restart", "-t", "0", "box")
    assert "172.19.0.77/16" in netlib("exec", "box", "ip", "-o", "addr").stdout
    netlib("network", "disconnect", "one", "box")
    addresses = netlib("exec", "box", "ip", "-o", "addr").stdout
    assert "172.18.0." not in addresses
    assert "172.19.0.77/16" in addresses
    assert "is not in network 'one'" in netlib("network", "disconnect", "one", "box", code=1).stderr
    netlib("network", "disconnect", "-f", "one", "box")

    netlib("stop", "-t", "0", "box")
    netlib("network", "connect", "one", "box")
    assert "not running" in netlib("explain", "box", code=1).stderr
    netlib("start", "box")
    networks = json.loads(netlib("inspect", "box").stdout)[0]["NetworkSettings"]["Networks"]
    assert sorted(networks) == ["one", "two"]


@pytest.mark.needs_cgroups
def test_another_containers_network_and_the_hosts(netlib: Netlib) -> None:
    netlib("network", "create", "web")
    netlib("run", "-d", "--name", "first", "--network", "web", "sleep", "1000")
    shared = netlib("run", "--rm", "--network", "container:first", "ip", "-o", "addr").stdout
    assert "172.18.0.2/16" in shared
    netlib("run", "-d", "--name", "second", "--network", "container:first", "sleep", "1000")
    assert netlib("explain", "second").stdout == netlib("explain", "first").stdout
    assert "'first'" in netlib("network", "connect", "web", "second", code=1).stderr

    host = netlib("run", "--rm", "--network", "host", "-p", "80:80", "ip", "-o", "link")
    assert "br-" in host.stdout
    assert host.stderr.startswith("netlib: warning: ")
    assert netlib("run", "--rm", "--network", "none", "ls", "/sys/class/net").stdout.split() == ["lo"]


@pytest.mark.needs_cgroups
def test_a_terminal_is_passed_on(netlib: Netlib, config: Config) -> None:
    import pty

    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "netlib.cli.main", *_folders(config), "run", "--rm", "-it", "--network", "none"]
    process = subprocess.Popen(
        [*words, "sh", "-c", "tty; read word; echo got-$word"], stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    seen = _read_until(ours, b"/dev/pts/")
    os.write(ours, b"apple\n")
    seen += _read_until(ours, b"got-apple")
    assert process.wait(SECONDS) == 0
    os.close(ours)


def _read_until(fd: int, wanted: bytes) -> bytes:
    seen = b""
    deadline = time.monotonic() + SECONDS
    while wanted not in seen:
        assert select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0], f"{wanted!r} did not come: {seen!r}"
        seen += os.read(fd, 4096)
    return seen


def test_a_network_from_its_making_to_its_end(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    def netlib(*words: str) -> str:
        assert main([*_folders(config), *words]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    before = snapshot()
    options = ["--subnet", "172.28.0.0/16", "--ip-range", "172.28.5.0/24", "--gateway", "172.28.5.254", "--label", "a=1"]
    network_id = netlib("network", "create", *options, "--ipv6", "--subnet", "fd00:28::/64", "web").strip()
    shown = json.loads(netlib("network", "inspect", network_id[:8]))[0]
    assert shown["IPAM"]["Config"] == [
        {"Subnet": "172.28.0.0/16", "IPRange": "172.28.5.0/24", "Gateway": "172.28.5.254"},
        {"Subnet": "fd00:28::/64", "Gateway": "fd00:28::1"},
    ]
    assert (shown["EnableIPv6"], shown["Labels"]) == (True, {"a": "1"})
    assert netlib("network", "ls", "-f", "type=custom", "--no-trunc", "-q") == f"{network_id}\n"
    rows = [json.loads(line) for line in netlib("network", "ls", "--format", "json").splitlines()]
    assert [row["Name"] for row in rows] == ["bridge", "host", "none", "web"]
    assert netlib("check", "web") == ""
    subprocess.run(["ip", "address", "del", "172.28.5.254/16", "dev", f"br-{network_id[:12]}"], check=True)
    assert main([*_folders(config), "check", "web"]) == 1
    assert "172.28.5.254" in capsys.readouterr().out
    assert netlib("network", "prune", "-f", "--filter", "label!=a") == ""
    assert netlib("network", "prune", "-f") == "Deleted Networks:\nweb\n"
    netlib("system", "reset", "-f")
    assert differences(before, snapshot()) == []


def test_looking_changes_nothing(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot()
    for words in (
        ["network", "ls"],
        ["network", "inspect", "bridge"],
        ["explain", "bridge"],
        ["ps", "-a"],
        ["info"],
        ["log"],
        ["version"],
    ):
        assert main([*_folders(config), *words]) == 0, capsys.readouterr().err
    assert differences(before, snapshot()) == []
    assert not config.pid_file.exists()


def test_a_kernel_without_a_feature_is_named_in_one_sentence_and_nothing_is_left(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ensure(self: Bridge, kernel: object) -> None:
        raise FeatureMissing("this kernel has no bridges; load the module bridge")

    monkeypatch.setattr(Bridge, "ensure", ensure)
    before = snapshot()
    assert main([*_folders(config), "network", "create", "x"]) == 1
    assert capsys.readouterr().err == "netlib: this kernel has no bridges; load the module bridge\n"
    assert differences(before, snapshot()) == []
    assert main([*_folders(config), "network", "ls", "-q", "-f", "type=custom"]) == 0
    assert capsys.readouterr().out == ""
