"""``dhcp`` beside the reference's plugin and daemon, with a server that neither of us wrote: dnsmasq."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from ipam.dhcp_client import DhcpLease, now
from netlib.config import Config
from netlib.core.attachments import Attachments
from netlib.core.controller import Controller, Unwatched
from netlib.daemon.leases import DhcpLeases
from netlib.model import NetnsRef
from tests.cni.calling import Caller, run
from tests.cni.dhcp_server import ADDRESS

pytestmark = pytest.mark.peers

REFERENCE = "/usr/lib/cni/dhcp"
DNSMASQ = "/usr/sbin/dnsmasq"
OPTIONS = (
    f"--dhcp-option=option:router,{ADDRESS}",
    "--dhcp-option=option:dns-server,10.9.0.3,10.9.0.4",
    "--dhcp-option=option:static-route,192.168.7.0,10.9.0.5",
    "--dhcp-option=option:classless-static-route,10.7.0.0/17,10.9.0.6,10.8.0.0/16,0.0.0.0,0.0.0.0/0,10.9.0.7",
    "--dhcp-match=set:netlib,option:vendor-class,netlib",
    "--dhcp-option=tag:netlib,option:router,10.9.0.8",
    "--dhcp-name-match=set:web,web",
    "--dhcp-option=tag:web,option:router,10.9.0.9",
)


def _until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline, what


class Dnsmasq:
    """The server, and what it has granted."""

    def __init__(self, home: NetnsRef, folder: Path) -> None:
        self._file = folder / "leases"
        self._home = home.path
        command = [
            *("nsenter", f"--net={home.path}", DNSMASQ, "--keep-in-foreground", "--conf-file=/dev/null", "--user=root"),
            *("--port=0", "--interface=eth0", "--bind-interfaces", f"--dhcp-leasefile={self._file}", "--no-ping"),
            *(
                "--dhcp-range=10.9.0.50,10.9.0.99,255.255.255.0,1h",
                f"--pid-file={folder / 'pid'}",
                "--log-facility=-",
                *OPTIONS,
            ),
        ]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        _until(lambda: ":0043 " in run("nsenter", f"--net={home.path}", "cat", "/proc/net/udp"), "dnsmasq does not listen")

    def close(self) -> None:
        self._process.terminate()
        assert self._process.wait(10) == 0

    def leases(self) -> list[str]:
        """The addresses that somebody has."""
        return [line.split()[2] for line in self._file.read_text().splitlines()] if self._file.exists() else []


@pytest.fixture
def dnsmasq(lan: NetnsRef, tmp_path: Path) -> Iterator[Dnsmasq]:
    for path in (DNSMASQ, REFERENCE):
        if not Path(path).is_file():
            pytest.fail(f"{path} is missing; install it with `apt-get install dnsmasq-base containernetworking-plugins`")
    dnsmasq = Dnsmasq(lan, tmp_path)
    yield dnsmasq
    dnsmasq.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[str]:
    """The reference's daemon; the path of its socket."""
    path = tmp_path / "dhcp.sock"
    process = subprocess.Popen([REFERENCE, "daemon", "-socketpath", str(path)], stderr=subprocess.DEVNULL)
    _until(path.exists, "the reference's daemon does not listen")
    yield str(path)
    process.terminate()
    process.wait(10)


def conf(**ipam: Any) -> dict[str, Any]:
    return {"cniVersion": "1.0.0", "name": "lan", "type": "dhcp", "ipam": {"type": "dhcp", **ipam}}


def theirs(verb: str, config: dict[str, Any], args: str) -> Any:
    environ = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/run/netns/c1",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/usr/lib/cni",
        "CNI_ARGS": args,
    }
    process = subprocess.run([REFERENCE], env=environ, input=json.dumps(config).encode(), capture_output=True, timeout=50)
    assert process.returncode == 0, process.stdout
    return json.loads(process.stdout) if process.stdout else None


@pytest.mark.parametrize(
    ("ipam", "args"),
    [
        ({}, ""),
        ({"request": [{"option": "33"}]}, ""),
        ({"request": [{"option": "121"}]}, ""),
        ({"request": [{"skipDefault": True, "option": "subnet-mask"}]}, ""),
        ({"provide": [{"option": "vendor-class-identifier", "value": "netlib"}]}, ""),
        ({"provide": [{"option": "12", "fromArg": "K8S_POD_NAME"}]}, "IgnoreUnknown=1;K8S_POD_NAME=web"),
    ],
)
def test_the_answers_are_equal(cable: Caller, dnsmasq: Dnsmasq, daemon: str, ipam: dict[str, Any], args: str) -> None:
    config = conf(**ipam, daemonSocketPath=daemon)
    reference = theirs("ADD", config, args)
    assert len(dnsmasq.leases()) == 1
    theirs("DEL", config, args)
    _until(lambda: dnsmasq.leases() == [], "the reference gives nothing back")
    assert cable.ok("ADD", config, args=args) == reference
    assert len(dnsmasq.leases()) == 1
    cable.ok("DEL", config, args=args)
    _until(lambda: dnsmasq.leases() == [], "nothing is given back")


def test_a_server_of_others_renews(cable: Caller, dnsmasq: Dnsmasq, config: Config, controller: Controller) -> None:
    cable.ok("ADD", conf())
    with controller.store.read() as tx:
        ((record, lease),) = tx.ready_objects("dhcp_lease", "host")
    assert isinstance(lease, DhcpLease)
    Attachments(controller).revise(record, replace(lease, since=now() - 1900))
    keeper = DhcpLeases(lambda: Controller(config, watcher=Unwatched()))
    keeper.reload()

    def is_renewed() -> bool:
        with controller.store.read() as tx:
            ((_, found),) = tx.ready_objects("dhcp_lease", "host")
        return isinstance(found, DhcpLease) and found.since > now() - 60

    _until(is_renewed, "it is not renewed")
    keeper.stop()


def test_a_host_that_switches_keeps_its_address(cable: Caller, dnsmasq: Dnsmasq, daemon: str) -> None:
    """The container's daemon is gone, and the runtime adds it anew: the server knows it by the same name."""
    config = conf(daemonSocketPath=daemon)
    reference = theirs("ADD", config, "")
    assert cable.ok("ADD", config) == reference
    assert len(dnsmasq.leases()) == 1
