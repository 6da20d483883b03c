"""Bad input, a row each: Docker's exit code, one sentence that names the thing, and nothing changed anywhere."""

import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from netlib.cli.main import main
from netlib.config import Config
from netlib.core.controller import Controller
from netlib.ports import parse_publish
from netlib.testing.snapshot import snapshot
from netlib.wire.client import leave

HELD_PORT = 8099
# Neither the journal nor what an attempt may leave: when a predefined network was first used, which address was given last.
ROWS = {
    "record": "id, kind, name, phase, network, sandbox, body",
    "object": "*",
    "pool": "id, network, family, subnet",
    "free_range": "*",
    "lease": "*",
    "port": "*",
}
LONG = "n" * 64


class World(NamedTuple):
    """A host on which much is taken."""

    config: Config

    def netlib(self, *words: str) -> int:
        return main(["--state-dir", str(self.config.state_dir), "--run-dir", str(self.config.run_dir), *words])

    def state(self) -> set[str]:
        """The kernel, the store's rows (but for the journal) and the files of this host, a line each."""
        kernel = {f"{section}: {name} {text}" for section, items in snapshot().items() for name, text in items.items()}
        with sqlite3.connect(self.config.state_dir / "netlib.db") as db:
            rows = {
                f"{table}: {row}" for table, columns in ROWS.items() for row in db.execute(f"SELECT {columns} FROM {table}")
            }
        files = [path for path in self.config.state_dir.rglob("*") if path.is_file() and "netlib.db" not in path.name]
        return kernel | rows | {f"file: {path}" for path in files}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("host")
    config = Config(state_dir=folder / "state", run_dir=folder / "run")
    subprocess.run(["ip", "route", "add", "10.99.0.0/16", "dev", "lo"], check=True)
    holder = socket.create_server(("0.0.0.0", HELD_PORT))
    with Controller(config) as controller:
        controller.create_network("web", subnets=["172.28.0.0/24"], auxiliary={"printer": "172.28.0.9"})
        controller.create_network("tiny", subnets=["172.29.0.0/30"])
        controller.create_network("v4", subnets=["172.30.0.0/24"])
        controller.create_sandbox("box")
        controller.create_sandbox("other")
        controller.connect("web", "box", ip="172.28.0.10", mac="02:42:00:00:00:99", ports=parse_publish("8088:80"))
        controller.connect("tiny", "box")
        controller.create_sandbox("plain")
        controller.connect("bridge", "plain")
        yield World(config)
        controller.reset()
    leave(config)
    holder.close()
    subprocess.run(["ip", "route", "del", "10.99.0.0/16", "dev", "lo"], check=True)


CREATE = "network create"
NETWORKS = [
    # subnets
    (f"{CREATE} --subnet 172.28.0.128/25 x", ["172.28.0.128/25", "web"]),
    (f"{CREATE} --subnet 172.16.0.0/12 x", ["172.16.0.0/12"]),
    (f"{CREATE} --subnet 10.99.5.0/24 x", ["10.99.5.0/24", "10.99.0.0/16"]),
    (f"{CREATE} --subnet 10.1.0.0/16 --subnet 10.1.2.0/24 x", ["10.1.2.0/24"]),
    (f"{CREATE} --subnet banana x", ["banana"]),
    (f"{CREATE} --subnet 10.1.0.0 x", ["10.1.0.0", "prefix"]),
    (f"{CREATE} --subnet 10.1.0.0/33 x", ["10.1.0.0/33"]),
    (f"{CREATE} --subnet 10.1.0.1/16 x", ["10.1.0.1/16", "10.1.0.0/16"]),
    (f"{CREATE} --subnet 10.1.0.0/255.255.0.0 x", ["10.1.0.0/255.255.0.0"]),
    (f"{CREATE} --subnet 10.1.0.0/31 x", ["10.1.0.0/31"]),
    (f"{CREATE} --subnet 10.1.0.0/30 --aux-address a=10.1.0.2 --gateway 10.1.0.2 x", ["10.1.0.2"]),
    # gateways, ranges, auxiliary addresses
    (f"{CREATE} --subnet 10.1.0.0/16 --gateway 10.2.0.1 x", ["10.2.0.1", "10.1.0.0/16"]),
    (f"{CREATE} --gateway 10.2.0.1 x", ["10.2.0.1", "--subnet"]),
    (f"{CREATE} --subnet 10.1.0.0/16 --gateway 10.1.0.0 x", ["10.1.0.0"]),
    (f"{CREATE} --subnet 10.1.0.0/16 --gateway 10.1.255.255 x", ["10.1.255.255"]),
    (f"{CREATE} --subnet 10.1.0.0/16 --gateway 10.1.0.1 --gateway 10.1.0.2 x", ["10.1.0.2", "10.1.0.1"]),
    (f"{CREATE} --subnet 10.1.0.0/16 --gateway gate x", ["gate"]),
    (f"{CREATE} --subnet 10.1.0.0/16 --ip-range 10.2.0.0/24 x", ["10.2.0.0/24", "10.1.0.0/16"]),
    (f"{CREATE} --subnet 10.1.0.0/16 --ip-range 10.1.2.3/24 x", ["10.1.2.3/24"]),
    (f"{CREATE} --subnet 10.1.0.0/16 --aux-address p=10.2.0.5 x", ["p", "10.2.0.5"]),
    (f"{CREATE} --subnet 10.1.0.0/16 --gateway 10.1.0.5 --aux-address p=10.1.0.5 x", ["10.1.0.5"]),
    (f"{CREATE} --subnet 10.1.0.0/16 --aux-address p=10.1.0.5 --aux-address q=10.1.0.5 x", ["10.1.0.5"]),
    (f"{CREATE} --subnet 10.1.0.0/16 --aux-address p=10.1.0.5 --aux-address p=10.1.0.6 x", ["'p'"]),
    (f"{CREATE} --subnet 10.1.0.0/16 --aux-address 10.1.0.5 x", ["10.1.0.5", "--aux-address"]),
    # drivers and options
    (f"{CREATE} -d nosuch x", ["nosuch", "bridge"]),
    (f"{CREATE} --ipam-driver nosuch x", ["nosuch", "default"]),
    (f"{CREATE} --ipam-opt nosuch=1 x", ["nosuch", "com.docker.network.ipam.serial"]),
    (f"{CREATE} --ipam-opt com.docker.network.ipam.serial=perhaps x", ["com.docker.network.ipam.serial", "perhaps"]),
    (f"{CREATE} -o com.docker.network.bridge.nosuch=1 x", ["com.docker.network.bridge.nosuch"]),
    (f"{CREATE} -o com.docker.network.driver.mtu x", ["com.docker.network.driver.mtu"]),
    (f"{CREATE} -o com.docker.network.driver.mtu=big x", ["com.docker.network.driver.mtu", "big"]),
    (f"{CREATE} -o com.docker.network.driver.mtu=67 x", ["67", "68"]),
    (f"{CREATE} -o com.docker.network.driver.mtu=65536 x", ["65536"]),
    (f"{CREATE} --ipv6 -o com.docker.network.driver.mtu=1279 x", ["1279", "1280"]),
    (f"{CREATE} -o com.docker.network.bridge.enable_icc=perhaps x", ["enable_icc", "perhaps"]),
    (f"{CREATE} -o com.docker.network.bridge.name=a/b x", ["a/b"]),
    (f"{CREATE} -o com.docker.network.bridge.name=sixteen-letters- x", ["sixteen-letters-"]),
    (f"{CREATE} -o com.docker.network.bridge.host_binding_ipv4=nowhere x", ["nowhere"]),
    (f"{CREATE} -o com.docker.network.container_iface_prefix=too-long-a-prefix x", ["too-long-a-prefix"]),
    (f"{CREATE} --label =v x", ["label"]),
    (f"{CREATE} --scope swarm x", ["swarm"]),
    (f"{CREATE} --ingress x", ["--ingress"]),
    # names
    (f"{CREATE} a/b", ["a/b"]),
    (f"{CREATE} .a", [".a"]),
    (f"{CREATE} -- -a", ["-a"]),
    (f"{CREATE} ..", [".."]),
    (f"{CREATE} {LONG}", [LONG]),
    (f"{CREATE} web", ["web"]),
    (f"{CREATE} bridge", ["bridge", "predefined"]),
    # removing
    ("network rm nosuch", ["nosuch"]),
    ("network rm web", ["web", "box"]),
    ("network rm bridge", ["bridge", "predefined"]),
    ("network inspect nosuch", ["nosuch"]),
    ("network ls -f colour=red", ["colour=red"]),
    ("explain nosuch", ["nosuch"]),
    ("cni inspect nosuch", ["nosuch", "netlib cni ls"]),
    ("cni uninstall /nosuch", ["/nosuch", "netlib cni install"]),
    ("port box http", ["'http'", "53/udp"]),
    ("events --format table", ["events has no table", "json"]),
    ("check nosuch", ["nosuch"]),
    ("log -n 0", ["0"]),
]
CONNECTS = [
    ("network connect nosuch other", ["nosuch"]),
    ("network connect web nosuch", ["nosuch"]),
    ("network connect web box", ["box", "web"]),
    ("network connect host other", ["other", "host"]),
    ("network connect --ip 172.27.0.5 web other", ["172.27.0.5", "172.28.0.0/24"]),
    ("network connect --ip 172.28.0.10 web other", ["172.28.0.10", "box"]),
    ("network connect --ip 172.28.0.1 web other", ["172.28.0.1", "gateway"]),
    ("network connect --ip 172.28.0.9 web other", ["172.28.0.9", "printer"]),
    ("network connect --ip 172.28.0.255 web other", ["172.28.0.255"]),
    ("network connect --ip fd00::5 web other", ["fd00::5"]),
    ("network connect --ip6 fd00::5 v4 other", ["fd00::5", "IPv6"]),
    ("network connect --ip here web other", ["here"]),
    ("network connect --mac-address 02:42:00:00:00:99 web other", ["02:42:00:00:00:99", "box"]),
    ("network connect --mac-address 01:00:00:00:00:01 web other", ["01:00:00:00:00:01"]),
    ("network connect --mac-address banana web other", ["banana"]),
    ("network connect --alias a/b web other", ["a/b"]),
    ("network connect --link :x web other", [":x"]),
    ("network connect --driver-opt nosuch=1 web other", ["nosuch"]),
    ("network connect --driver-opt com.docker.network.endpoint.ifname=lo web other", ["lo"]),
    ("network connect tiny other", ["tiny", "172.29.0.0/30"]),
    ("network disconnect web other", ["other", "web"]),
    ("network disconnect nosuch other", ["nosuch"]),
]
RUN = "run -d"
CONTAINERS = [
    (f"{RUN} --name a/b true", ["a/b"]),
    (f"{RUN} --name .a true", [".a"]),
    (f"{RUN} --name {LONG} true", [LONG]),
    (f"{RUN} --name box true", ["box"]),
    (f"{RUN} --hostname a_/b true", ["a_/b"]),
    (f"{RUN} --network nosuch true", ["nosuch"]),
    (f"{RUN} --network container:nosuch true", ["nosuch"]),
    (f"{RUN} --network name=web,colour=red true", ["colour=red"]),
    (f"{RUN} --network alias=x true", ["alias=x"]),
    (f"{RUN} --network host --network web true", ["host"]),
    (f"{RUN} --network web --network web true", ["web"]),
    (f"{RUN} --network web --ip 172.28.0.10 true", ["172.28.0.10", "box"]),
    (f"{RUN} --network web --network-alias a/b true", ["a/b"]),
    (f"{RUN} -p eighty true", ["eighty"]),
    (f"{RUN} -p 0 true", ["0"]),
    (f"{RUN} -p 65536 true", ["65536"]),
    (f"{RUN} -p 0:80 true", ["0:80"]),
    (f"{RUN} -p 65536:80 true", ["65536"]),
    (f"{RUN} -p 9000-8000:80 true", ["9000-8000"]),
    (f"{RUN} -p 8000-8002:80-81 true", ["8000-8002:80-81"]),
    (f"{RUN} -p 8080:80/sctp true", ["sctp"]),
    (f"{RUN} -p 1.2.3:8080:80 true", ["1.2.3"]),
    (f"{RUN} -p 8080: true", ["8080:"]),
    (f"{RUN} -p 8088:80 true", ["8088", "box"]),
    (f"{RUN} -p 127.0.0.1:8088:80 true", ["8088", "box"]),
    (f"{RUN} -p {HELD_PORT}:80 true", [str(HELD_PORT), "python"]),
    (f"{RUN} -p 9000:80 -p 9000:81 true", ["9000"]),
    (f"{RUN} --dns nowhere true", ["nowhere"]),
    (f"{RUN} --add-host db true", ["db"]),
    (f"{RUN} --add-host db:nowhere true", ["nowhere"]),
    (f"{RUN} --link a:b:c true", ["a:b:c"]),
    (f"{RUN} -v data:/data true", ["data"]),
    (f"{RUN} -v /srv:/proc true", ["/proc"]),
    (f"{RUN} -v /srv true", ["/srv"]),
    (f"{RUN} -v /etc/passwd/in:/in true", ["/etc/passwd/in"]),
    (f"{RUN} -v /etc/passwd:/etc true", ["/etc/passwd", "folder"]),
    (f"{RUN} -w /etc/passwd true", ["/etc/passwd", "--workdir"]),
    (f"{RUN} -w relative true", ["relative"]),
    (f"{RUN} -e =x true", ["=x"]),
    (f"{RUN} --env-file /nowhere true", ["/nowhere"]),
    (f"{RUN} --rootfs /nowhere true", ["/nowhere"]),
    (f"{RUN} --stop-signal SIGNOSUCH true", ["SIGNOSUCH"]),
    (f"{RUN} --cpus 2 true", ["--cpus"]),
    (f"{RUN}", ["no command"]),
    ("exec nosuch true", ["nosuch"]),
    ("stop nosuch", ["nosuch"]),
    ("start nosuch", ["nosuch"]),
    ("kill nosuch", ["nosuch"]),
    ("rm nosuch", ["nosuch"]),
    ("logs nosuch", ["nosuch"]),
    ("inspect nosuch", ["nosuch"]),
    ("port nosuch", ["nosuch"]),
    ("wait nosuch", ["nosuch"]),
    ("attach nosuch", ["nosuch"]),
]


@pytest.mark.parametrize(
    ("line", "named"), [*NETWORKS, *CONNECTS, *CONTAINERS], ids=lambda value: value if isinstance(value, str) else ""
)
def test_it_is_refused_in_one_sentence_and_nothing_is_changed(
    line: str, named: list[str], world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    before = world.state()
    _refused(world, line.split(), named, capsys)
    assert world.state() ^ before == set()


def _refused(world: World, words: list[str], named: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code = world.netlib(*words)
    shown = capsys.readouterr()
    _one_sentence(shown.err, named)
    assert code == _code(words)
    assert shown.out in ("", "[]\n")


def _code(words: list[str]) -> int:
    """125 for what `run` (and `check`, whose 1 means something) refuses and for unknown options, 1 for the rest."""
    return 125 if (words[0] in ("run", "check") and words != RUN.split()) or "--ingress" in words else 1


def _one_sentence(text: str, named: list[str]) -> None:
    assert text.startswith("netlib: ")
    assert text.count("\n") == 1
    assert "internal error" not in text
    assert "Traceback" not in text
    for word in named:
        assert word in text


@pytest.mark.parametrize("name", ["a b", "", "ä", "a\nb", "a\0b"])
def test_names_that_no_word_list_can_hold(name: str, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    before = world.state()
    _refused(world, ["network", "create", name], [], capsys)
    _refused(world, ["run", "-d", "--name", name or " ", "true"], [], capsys)
    assert world.state() ^ before == set()


@pytest.mark.parametrize(
    "line",
    ["network create --label a=X x", "network rm X", "inspect X", "explain X", "run -d echo X", "run -d -e A=X true", "logs X"],
)
def test_bytes_that_are_no_text(line: str, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    before = world.state()
    _refused(world, [word.replace("X", "\udcff") for word in line.split()], ["udcff", "UTF-8"], capsys)
    assert world.state() ^ before == set()


def test_a_current_folder_that_was_removed(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    _refused(world, ["run", "-d", "--rootfs", "root", "true"], ["root", "removed"], capsys)
    assert main(["--state-dir", "state", "network", "ls"]) == 1
    _one_sentence(capsys.readouterr().err, ["state", "removed"])


@pytest.mark.needs_cgroups
def test_a_command_that_cannot_be_started_leaves_nothing(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    before = world.state()
    for command, code in (("no-such-command", 127), ("/etc", 126)):
        assert world.netlib("run", "-d", "--network", "v4", command) == code
        _one_sentence(capsys.readouterr().err, [command])
    assert world.state() ^ before == set()


def test_not_root(world: World, tmp_path: Path) -> None:
    before = world.state()
    shown = tmp_path / "shown"
    for words in (["network", "create", "x"], ["network", "ls"], ["run", "true"], ["system", "reset", "-f"]):
        assert _as_nobody(world, words, shown) == _code(words)
        _one_sentence(shown.read_text(), ["root"])
    assert world.state() ^ before == set()


def _as_nobody(world: World, words: list[str], shown: Path) -> int:
    """Run a command in a child without any privilege; all modules are imported already, as their files may be root's."""
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(shown, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        sys.stderr = open(2, "w")  # noqa: SIM115  it goes with the process
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        code = 99
        try:
            code = world.netlib(*words)
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_the_store_opened_from_another_network_namespace(world: World) -> None:
    before = world.state()
    folders = ["--state-dir", str(world.config.state_dir), "--run-dir", str(world.config.run_dir)]
    for words in (["network", "ls"], ["network", "create", "x"], ["run", "true"]):
        command = ["unshare", "--net", sys.executable, "-m", "netlib.cli.main", *folders, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == _code(words)
        _one_sentence(done.stderr, [str(world.config.state_dir), "--state-dir"])
    assert world.state() ^ before == set()


@pytest.mark.parametrize("damage", [b"this is no database" * 100, b"SQLite format 3\0" + bytes(4096)])
def test_a_damaged_store(damage: bytes, config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    config.state_dir.mkdir()
    (config.state_dir / "netlib.db").write_bytes(damage)
    _refused(World(config), ["network", "ls"], [str(config.state_dir)], capsys)


@pytest.mark.parametrize("obstacle", [lambda path: path.write_text("a file"), lambda path: path.symlink_to("/nowhere/at/all")])
def test_a_state_folder_that_is_none(
    obstacle: Callable[[Path], object], config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    obstacle(config.state_dir)
    _refused(World(config), ["network", "ls"], [str(config.state_dir)], capsys)
