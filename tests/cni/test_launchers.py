"""Every way that a call can take answers alike: the C and the Python launcher by netlibd, each in-process, and skel itself.

Who did a call is seen by what the C launcher runs as Python: it is told only when netlibd will not do.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cni_plugins import install as files
from cni_plugins.decode import MAX_BYTES
from cni_plugins.install import install
from cni_plugins.node import Node
from cni_plugins.protocol import VERSIONS
from cni_plugins.run import perform
from cni_plugins.skel import Outcome
from cni_plugins.types import plugin_types
from netlib import __version__
from netlib.config import Config
from netlib.core.controller import Controller
from netlib.model import NetnsRef
from netlib.verbs.call import call
from netlib.wire.client import start_daemon
from tests.cni.launching import check_at_once, environment, run
from tests.processes import ended

ROOT = Path(__file__).parents[2]
KINDS = ("c", "python")
ELSEWHERE = ("unshare", "--mount")  # another mount namespace than netlibd's: the call is done in-process


class Host:
    """Launchers in Python and C, one pair for all tests, and a netlibd for those that ask for it."""

    def __init__(self, folder: Path) -> None:
        self.config = Config(state_dir=folder / "state", run_dir=folder / "run")
        self.bin = folder / "bin"
        self._fallen_back = folder / "fallen-back"
        self._python = folder / "python"
        self._python.write_text(f'#!/bin/sh\n(: >> {self._fallen_back}) 2> /dev/null\nexec {sys.executable} "$@"\n')
        self._python.chmod(0o755)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "_python", lambda: str(self._python))
            install(self.bin / "c", self.config, launcher="c")
        install(self.bin / "python", self.config, launcher="python")

    def path(self, kind: str, name: str = "static") -> Path:
        return self.bin / kind / name

    def has_fallen_back(self) -> bool:
        """Whether a C launcher has run Python since this was asked last."""
        found = self._fallen_back.exists()
        self._fallen_back.unlink(missing_ok=True)
        return found


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    host = Host(tmp_path_factory.mktemp("launchers"))
    start_daemon(host.config)
    host.has_fallen_back()
    yield host
    pid = int(host.config.pid_file.read_text())
    os.kill(pid, signal.SIGTERM)
    assert ended(pid)


@pytest.fixture
def netns(netns_factory: Callable[[str], NetnsRef]) -> str:
    return netns_factory("pod").path


# --- the same answers ----------------------------------------------------------------------------------------------------

ADDRESSES: dict[str, Any] = {
    "type": "static",
    "addresses": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}, {"address": "fd00::2/64"}],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.9"}],
    "dns": {"nameservers": ["10.0.0.1"], "search": ["ä"]},
}
PREV = {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}, {"address": "fd00::2/64"}]}
VALID: dict[str, Any] = {"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]}


def conf(version: str = "1.1.0", **keys: Any) -> bytes:
    return json.dumps({"cniVersion": version, "name": "pods", "type": "static", "ipam": ADDRESSES, **keys}).encode()


Case = tuple[dict[str, str], bytes]
CASES: list[Case] = [
    *(({"CNI_COMMAND": "ADD"}, conf(version)) for version in VERSIONS),
    *(({"CNI_COMMAND": "DEL"}, conf(version, prevResult=PREV)) for version in VERSIONS),
    *(({"CNI_COMMAND": "CHECK"}, conf(version, prevResult=PREV)) for version in VERSIONS),
    *(({"CNI_COMMAND": command}, conf(version, **VALID)) for command in ("GC", "STATUS") for version in ("1.0.0", "1.1.0")),
    ({}, b""),
    ({"CNI_COMMAND": ""}, b"not read"),
    ({"CNI_COMMAND": "VERSION"}, b"not read"),
    ({"CNI_COMMAND": "FROBNICATE"}, conf("0.4.0")),
    ({"CNI_COMMAND": "DEL", "CNI_NETNS": ""}, conf()),
    ({"CNI_COMMAND": "DEL", "CNI_NETNS": "/nonexistent"}, conf()),
    ({"CNI_COMMAND": "DEL"}, conf(prevResult=3)),
    ({"CNI_COMMAND": "ADD", "CNI_NETNS": "/nonexistent"}, conf()),
    ({"CNI_COMMAND": "ADD", "CNI_NETNS": "/dev/null"}, conf()),
    ({"CNI_COMMAND": "ADD", "CNI_NETNS": "/proc/self/ns/net"}, conf()),
    ({"CNI_COMMAND": "ADD", "CNI_NETNS": "/proc/self/ns/net", "CNI_NETNS_OVERRIDE": "1"}, conf()),
    ({"CNI_COMMAND": "ADD", "CNI_NETNS": "/proc/self/ns/mnt"}, conf()),
    ({"CNI_COMMAND": "ADD", "CNI_ARGS": "IP=10.1.0.5/24;IgnoreUnknown=1;K8S_POD_NAME=ä"}, conf()),
    ({"CNI_COMMAND": "ADD", "CNI_ARGS": "IP=x"}, conf()),
    ({"CNI_COMMAND": "ADD", "CNI_ARGS": "\udcff"}, conf()),
    ({"CNI_COMMAND": "ADD", "CNI_CONTAINERID": '"\\\n'}, conf()),
    ({"CNI_COMMAND": "ADD", "CNI_IFNAME": "interface-too-long"}, conf()),
    ({"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "", "CNI_IFNAME": ""}, conf()),
    ({"CNI_COMMAND": "ADD", "LARGE": "x" * 100_000, **{f"LARGE{number}": "y" * 100_000 for number in range(12)}}, conf()),
    ({"CNI_COMMAND": "CHECK"}, conf()),
    ({"CNI_COMMAND": "CHECK"}, conf(prevResult={"ips": []})),
    ({"CNI_COMMAND": "GC"}, conf()),
    ({"CNI_COMMAND": "GC", "CNI_PATH": ""}, conf(**VALID)),
    ({"CNI_COMMAND": "STATUS"}, conf(ipam=None)),
    ({"CNI_COMMAND": "ADD"}, b""),
    ({"CNI_COMMAND": "ADD"}, b"{"),
    ({"CNI_COMMAND": "ADD"}, b"\xff\0"),
    ({"CNI_COMMAND": "ADD"}, conf("9.9.9")),
    ({"CNI_COMMAND": "ADD"}, conf(name="-")),
    ({"CNI_COMMAND": "ADD"}, conf(ipam={"addresses": "x"})),
    ({"CNI_COMMAND": "ADD"}, conf("0.2.0", ipam={"addresses": [{"address": "10.0.0.2/24"}] * 2})),
    ({"CNI_COMMAND": "ADD"}, conf(unknown="x" * 3_000_000)),
    ({"CNI_COMMAND": "ADD"}, b" " * (MAX_BYTES - 1000) + conf()),
    ({"CNI_COMMAND": "ADD"}, b" " * MAX_BYTES + conf()),
]


def expected(environ: Mapping[str, str], stdin: bytes, kind: str = "static") -> Outcome:
    """What the protocol itself answers, without a launcher; nothing of it needs a controller."""
    netns = environ.get("CNI_NETNS")
    fd = os.open(netns, os.O_RDONLY) if netns and os.path.exists(netns) else None
    try:
        return perform(kind, environ, stdin[: MAX_BYTES + 1], Node(Controller, fd))
    finally:
        if fd is not None:
            os.close(fd)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].get("CNI_COMMAND", "none"))
def test_all_ways_answer_alike(host: Host, netns: str, case: Case) -> None:
    changes, stdin = case
    attachment = {"CNI_CONTAINERID": "c1", "CNI_NETNS": netns, "CNI_IFNAME": "eth0", "CNI_PATH": "/nonexistent"}
    environ = environment(host.config, {**attachment, **changes})
    wanted = expected(environ, stdin)
    for kind in KINDS:
        assert run(host.path(kind), environ, stdin) == wanted, kind
    assert not host.has_fallen_back(), "netlibd did it"
    assert run(host.path("c"), environ, stdin, ELSEWHERE) == wanted
    assert host.has_fallen_back(), "and here it did not"
    assert run(host.path("python"), environ, stdin, ELSEWHERE) == wanted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", plugin_types())
def test_every_type_answers_by_its_name(host: Host, kind: str, name: str) -> None:
    environ = environment(host.config, {"CNI_COMMAND": "VERSION"})
    assert run(host.path(kind, name), environ) == expected(environ, b"", name)
    assert run(host.path(kind, name), {}).stderr.startswith(f"CNI {name} plugin, netlib {__version__}\n".encode())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["calico", 'a "b" \\c', "\udcff", "x" * 200])
def test_an_executable_of_another_name_is_an_unknown_type(host: Host, tmp_path: Path, kind: str, name: str) -> None:
    shutil.copy2(host.path(kind), tmp_path / name)
    for prefix in ((), ELSEWHERE):
        told = run(tmp_path / name, environment(host.config, {"CNI_COMMAND": "VERSION"}), prefix=prefix)
        assert (told.code, told.stderr) == (1, b"")
        error = json.loads(told.stdout)
        assert (error["code"], error["msg"]) == (7, f"unknown plugin type {name!a}")
    (tmp_path / "static").symlink_to(name)
    assert run(tmp_path / "static", environment(host.config, {"CNI_COMMAND": "VERSION"})).code == 0, "a link's name counts"
    host.has_fallen_back()


# --- from elsewhere ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("namespace", ["--net", "--mount", "--user --map-root-user"])
def test_in_other_namespaces_it_is_done_in_process(host: Host, netns: str, kind: str, namespace: str) -> None:
    environ = add(host, netns)
    outcome = run(host.path(kind), environ, conf(), ("unshare", *namespace.split()))
    assert (outcome.code, outcome.stdout) == (0, expected(environ, conf()).stdout)
    assert host.has_fallen_back() == (kind == "c")


@pytest.mark.parametrize("kind", KINDS)
def test_the_netns_is_found_where_the_caller_is(host: Host, netns: str, kind: str) -> None:
    """Its own netns is refused by what the path leads to for the caller, in either way."""
    code = 'mount --bind /proc/self/ns/net "$CNI_NETNS" && exec "$0"'
    own = run(host.path(kind), add(host, netns), conf(), ("unshare", "--mount", "sh", "-c", code))
    assert json.loads(own.stdout)["code"] == 8
    own = run(host.path(kind), add(host, netns), conf(), ("nsenter", f"--net={netns}"))
    assert json.loads(own.stdout)["code"] == 8
    assert run(host.path(kind), add(host, netns), conf()).code == 0
    host.has_fallen_back()


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_user_is_served_in_process(host: Host, netns: str, kind: str) -> None:
    """With the right to read everything (where Python is), but none to the socket."""
    plain = "--reuid 65534 --regid 65534 --clear-groups --inh-caps +dac_read_search --ambient-caps +dac_read_search"
    outcome = run(host.path(kind), add(host, netns), conf(), ("setpriv", *plain.split()))
    assert (outcome.code, outcome.stderr) == (0, b"")
    assert outcome.stdout == expected(add(host, netns), conf()).stdout
    host.has_fallen_back()


@pytest.mark.parametrize("kind", KINDS)
def test_another_store_is_not_netlibds(host: Host, netns: str, kind: str, tmp_path: Path) -> None:
    environ = add(host, netns) | {"NETLIB_STATE_DIR": str(tmp_path)}
    assert run(host.path(kind), environ, conf()).code == 0
    assert host.has_fallen_back() == (kind == "c")


def test_what_is_no_netns_is_not_taken_for_one(host: Host, netns: str) -> None:
    for path, is_one, is_own in (
        (netns, True, False),
        ("/proc/self/ns/net", True, True),
        ("/proc/self/ns/mnt", False, False),
        ("/dev/null", False, False),
    ):
        fd = os.open(path, os.O_RDONLY)
        node = Node(Controller, fd)
        assert (node.netns == fd, node.is_own_netns(path)) == (is_one, is_own), path
        os.close(fd)


def add(host: Host, netns: str, container: str = "c1") -> dict[str, str]:
    variables = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": container, "CNI_NETNS": netns, "CNI_IFNAME": "eth0"}
    return environment(host.config, {**variables, "CNI_PATH": str(host.bin)})


# --- descriptors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", [(), ELSEWHERE], ids=["netlibd", "in-process"])
@pytest.mark.parametrize("closed", ["0", "1", "2", "12", "012"])
def test_closed_standard_descriptors(host: Host, netns: str, kind: str, prefix: tuple[str, ...], closed: str) -> None:
    redirections = " ".join(f"{fd}{'<' if fd == '0' else '>'}&-" for fd in closed)
    outcome = run(host.path(kind), add(host, netns), conf(), (*prefix, "sh", "-c", f'exec "$0" {redirections}'))
    if "1" in closed:
        told = b"" if "2" in closed else b"netlib: the answer cannot be written: Bad file descriptor\n"
        assert outcome == Outcome(b"", 1, told)
    elif "0" in closed:
        assert outcome == expected(add(host, netns), b"")
    else:
        assert outcome == Outcome(expected(add(host, netns), conf()).stdout, 0)
    host.has_fallen_back()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", [(), ELSEWHERE], ids=["netlibd", "in-process"])
def test_output_that_cannot_be_written(host: Host, netns: str, kind: str, prefix: tuple[str, ...]) -> None:
    outcome = run(host.path(kind), add(host, netns), conf(), (*prefix, "sh", "-c", 'exec "$0" > /dev/full'))
    assert outcome == Outcome(b"", 1, b"netlib: the answer cannot be written: No space left on device\n")
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(
        [*prefix, host.path(kind)], env=add(host, netns), stdin=subprocess.PIPE, stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    _, told = process.communicate(conf(), timeout=30)
    assert (process.returncode, told) == (1, b"netlib: the answer cannot be written: Broken pipe\n")
    host.has_fallen_back()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", [(), ELSEWHERE], ids=["netlibd", "in-process"])
def test_an_endless_stdin_is_not_read_to_its_end(host: Host, netns: str, kind: str, prefix: tuple[str, ...]) -> None:
    with open("/dev/zero", "rb") as zeros:
        done = subprocess.run([*prefix, host.path(kind)], env=add(host, netns), stdin=zeros, capture_output=True, check=False)
    error = json.loads(done.stdout)
    assert (error["code"], error["msg"]) == (
        6,
        f"network configuration: {MAX_BYTES + 1} bytes are too many; {MAX_BYTES} at most are read",
    )
    host.has_fallen_back()


@pytest.mark.parametrize("kind", KINDS)
def test_a_netns_path_that_would_block_does_not(host: Host, tmp_path: Path, kind: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    for prefix in ((), ELSEWHERE):
        assert run(host.path(kind), add(host, str(tmp_path / "fifo")), conf(), prefix).code == 0
    host.has_fallen_back()


@pytest.mark.parametrize("kind", KINDS)
def test_an_environment_larger_than_netlibd_takes(host: Host, netns: str, kind: str) -> None:
    """Beyond 2 MiB only with an unlimited stack; netlibd takes 4."""
    environ = add(host, netns) | {f"LARGE{number}": "x" * 100_000 for number in range(45)}
    most = resource.RLIM_INFINITY, resource.RLIM_INFINITY
    outcome = run(host.path(kind), environ, conf(), preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_STACK, most))
    assert outcome == expected(add(host, netns), conf())
    assert host.has_fallen_back() == (kind == "c")


# --- many ------------------------------------------------------------------------------------------------------------------


def test_fifty_at_once_get_each_its_own_answer(host: Host, netns: str) -> None:
    def open_files() -> int:
        return len(os.listdir(f"/proc/{host.config.pid_file.read_text().strip()}/fd"))

    paths = [host.path(kind) for kind in KINDS]
    check_at_once(paths, add(host, netns), 50)
    before = open_files()
    check_at_once(paths, add(host, netns), 50)
    call(host.config, "daemon.ping", {})
    assert open_files() < before + 25  # of the 50 calls none leaves a file
    assert not host.has_fallen_back()
