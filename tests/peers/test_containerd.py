"""``ctr run --cni`` with our folder as its plugins; the ``loopback`` network that it adds by itself is ours too."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netlib.config import Config
from netlib.model import NetnsRef
from netlib.testing.snapshot import snapshot
from tests.peers.conftest import install
from tests.peers.containerd import PLUGINS, Containerd
from tests.peers.libcni import Runtime
from tests.peers.surroundings import HOST_ADDRESS, left_behind, pings

pytestmark = [pytest.mark.runtimes, pytest.mark.needs_cgroups]

LEASES = Path("/var/lib/cni/networks/pods")
CONFLIST: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isDefaultGateway": True,
            "ipMasq": True,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.22.0.0/24"}]]},
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}


@pytest.fixture
def containerd(config: Config, short_folder: Path) -> Iterator[Containerd]:
    with Containerd(short_folder) as containerd:
        install(config, PLUGINS)
        assert not config.pid_file.exists()  # the first call that needs netlibd starts it
        containerd.use(CONFLIST)
        yield containerd


def test_run_reach_and_end(config: Config, containerd: Containerd, neighbour: NetnsRef) -> None:
    before = snapshot()
    long = containerd.start("long", "/bin/sleep", "1000")
    assert config.pid_file.exists()
    inside = containerd.inside("long", "/bin/ip", "addr")
    assert "inet 127.0.0.1/8" in inside
    assert "inet 10.22.0.2/24" in inside
    assert "64 bytes from 10.22.0.2" in containerd.run("short", "/bin/ping", "-c1", "-W2", "10.22.0.2")
    assert not (LEASES / "10.22.0.3").exists()
    assert pings(NetnsRef(f"/proc/{containerd.pid('long')}/ns/net"), HOST_ADDRESS)
    containerd("tasks", "kill", "--signal", "KILL", "long")
    long.wait(10)
    assert left_behind(config, before, LEASES) == []


def test_what_ctr_never_detaches_is_collected(config: Config, containerd: Containerd) -> None:
    """``ctr run --detach`` calls no DEL, ever: the lease goes by GC, or when its address is needed."""
    before = snapshot()
    narrow = json.loads(json.dumps(CONFLIST))
    narrow["plugins"][0]["ipam"]["ranges"] = [[{"subnet": "10.22.0.0/24", "rangeStart": "10.22.0.2", "rangeEnd": "10.22.0.2"}]]
    containerd.use(narrow)
    containerd.detach("lost", "/bin/sleep", "1000")
    containerd.end("lost")
    assert (LEASES / "10.22.0.2").read_text().split() == ["default-lost", "eth0"]
    assert "inet 10.22.0.2/24" in containerd.run("next", "/bin/ip", "addr")
    containerd.detach("lost", "/bin/sleep", "1000")
    containerd.end("lost")
    assert (LEASES / "10.22.0.2").exists()
    Runtime(narrow | {"cniVersion": "1.1.0"}, PLUGINS).collect([])
    assert left_behind(config, before, LEASES) == []
