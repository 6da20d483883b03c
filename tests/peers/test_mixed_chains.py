"""Conflists of which some plugins are ours and some the reference's, in every combination.

A main plugin runs an IPAM plugin out of CNI_PATH; ours does its own type in its own process, so the reference's ``host-local``
is given to it under another name.
"""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netlib.config import Config
from netlib.model import HOST, NetnsRef
from netlib.testing.snapshot import snapshot
from tests.peers.libcni import Runtime
from tests.peers.surroundings import HOST_ADDRESS, answering, ask, left_behind, pings, run

pytestmark = pytest.mark.runtimes

BEHIND = ("portmap", "firewall", "tuning")
PORTS = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
THEIR_IPAM = "their-host-local"


def conflist(data: Path, ipam: str = "host-local", **more: Any) -> dict[str, Any]:
    return {
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isDefaultGateway": True,
                "ipMasq": True,
                "hairpinMode": True,
                "ipam": {"type": ipam, "dataDir": str(data), "ranges": [[{"subnet": "10.23.0.0/24", **more}]]},
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
            {"type": "firewall"},
            {"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.arp_filter": "1"}},
        ],
    }


@pytest.mark.parametrize("behind", ["ours", "theirs"])
@pytest.mark.parametrize("ipam", ["ours", "theirs"])
@pytest.mark.parametrize("main", ["ours", "theirs"])
def test_a_chain_of_ours_and_theirs(
    main: str,
    ipam: str,
    behind: str,
    config: Config,
    plugins: Path,
    reference: Path,
    tmp_path: Path,
    neighbour: NetnsRef,
    netns_factory: Callable[[str], NetnsRef],
) -> None:
    sides = {"ours": plugins, "theirs": reference}
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / THEIR_IPAM).symlink_to(reference / "host-local")
    data = tmp_path / "leases"
    renamed = main == "ours" and ipam == "theirs"
    runtime = Runtime(
        conflist(data, THEIR_IPAM if renamed else "host-local"),
        *(tmp_path / "more", sides[ipam]),
        places={"bridge": sides[main], **dict.fromkeys(BEHIND, sides[behind])},
    )
    first, second = netns_factory("pod"), netns_factory("pod")
    before, inside = snapshot(), [snapshot(first), snapshot(second)]
    published = {"portMappings": PORTS}
    runtime.add(first.label, **published)
    runtime.add(second.label)
    assert runtime.address(first.label) != runtime.address(second.label)
    assert sorted(path.name for path in (data / "pods").glob("10.*")) == ["10.23.0.2", "10.23.0.3"]
    assert pings(first, runtime.address(second.label))
    assert pings(second, HOST_ADDRESS)
    with answering(first, 80, "first"):
        assert ask(runtime.address(first.label), 80, second) == "first"
        for source, address in ((neighbour, HOST_ADDRESS), (HOST, HOST_ADDRESS), (second, HOST_ADDRESS), (HOST, "127.0.0.1")):
            assert ask(address, 8080, source) == "first", (source, address)
    runtime.check(first.label, **published)
    runtime.check(second.label)
    runtime.delete(first.label, **published)
    assert ask(HOST_ADDRESS, 8080, neighbour) is None
    assert pings(second, HOST_ADDRESS)
    runtime.delete(second.label)
    runtime.delete(second.label)
    assert [snapshot(first), snapshot(second)] == inside
    forget_bridge()
    assert but_their_chains(left_behind(config, before, data / "pods")) == []


def forget_bridge() -> None:
    """Delete the bridge, which the reference never does; ours, when it is asked for what is left, finds that done."""
    subprocess.run(["ip", "link", "del", "cni0"], check=False, capture_output=True)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("0")


def but_their_chains(left: list[str]) -> list[str]:
    """*left* without the chains that the reference never removes, after a look for what of containers is in them."""
    rules = [entry["rule"] for entry in json.loads(run("nft", "-j", "list", "ruleset"))["nftables"] if "rule" in entry]
    theirs = [json.dumps(rule) for rule in rules if rule["table"] != "netlib"]
    kept = [line for line in left if "inet netlib" in line or not line.startswith("firewall: + ")]
    return kept + [f"rule {rule}" for rule in theirs if "10.23.0." in rule]
