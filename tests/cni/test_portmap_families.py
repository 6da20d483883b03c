"""``portmap`` for a container in networks of different IP versions, which publish the same ports side by side."""

from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from threading import Barrier
from typing import Any

import pytest

from netlib.config import Config
from netlib.core.attachments import Attachments
from netlib.core.controller import Controller, Unwatched
from netlib.firewall.objects import PublishedPort
from tests.cni.calling import Caller

NETWORKS = {"four": ("10.1.0.2/24",), "six": ("fd03::2/64",), "both": ("10.2.0.2/24", "fd02::2/64")}
IFNAMES = {"four": "eth0", "six": "eth1", "both": "eth2"}


def conf(network: str, container: str = "c1", **port: str) -> dict[str, Any]:
    return {
        "cniVersion": "1.1.0",
        "name": network,
        "type": "portmap",
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", **port}]},
        "prevResult": {
            "interfaces": [{"name": IFNAMES[network], "sandbox": f"/run/netns/{container}"}],
            "ips": [{"address": address, "interface": 0} for address in NETWORKS[network]],
        },
    }


def published(controller: Controller) -> dict[int, str]:
    """The container's side of the port by IP version, each once."""
    attachments = Attachments(controller)
    plans = [attachments.plan_of(item.id).of(PublishedPort) for item in attachments.attachments()]
    found = [port.address for plan in plans for port in plan]
    assert len(found) == len({address.version for address in found})
    return {address.version: str(address) for address in found}


@pytest.mark.parametrize("order", list(permutations(NETWORKS)), ids="-".join)
def test_each_version_goes_on_by_a_network_that_has_it(controller: Controller, caller: Caller, order: tuple[str, ...]) -> None:
    for name in ("c1", "c2"):
        caller.container(name)
    for network in NETWORKS:
        caller.ok("ADD", conf(network), ifname=IFNAMES[network])
    assert published(controller) == {4: "10.1.0.2", 6: "fd03::2"}
    for number, network in enumerate(order, 1):
        caller.ok("DEL", conf(network), ifname=IFNAMES[network])
        for left in order[number:]:
            caller.ok("CHECK", conf(left), ifname=IFNAMES[left])
            refusal = caller.error("ADD", conf(left, "c2"), "c2", ifname=IFNAMES[left])[1]
            assert "published by container c1" in refusal
        families = {address.count(":") > 0 for left in order[number:] for address in NETWORKS[left]}
        assert len(published(controller)) == len(families)
    caller.ok("ADD", conf("both", "c2"), "c2", ifname="eth2")


def test_an_address_of_the_host_is_claimed_by_the_network_that_can_publish_on_it(caller: Caller) -> None:
    caller.container("c1")
    for network in ("six", "four"):
        caller.ok("ADD", conf(network, hostIP="127.0.0.1"), ifname=IFNAMES[network])


def test_a_container_that_is_gone_keeps_no_port_of_either_version(controller: Controller, caller: Caller) -> None:
    for name in ("c1", "c2"):
        caller.container(name)
    for network in NETWORKS:
        caller.ok("ADD", conf(network), ifname=IFNAMES[network])
    caller.lose("c1")
    caller.ok("DEL", conf("four"), ifname=IFNAMES["four"])
    caller.ok("ADD", conf("both", "c2"), "c2", ifname="eth2")
    assert [item.container for item in Attachments(controller).attachments()] == ["c2"]


def test_two_networks_that_go_at_once_leave_all_to_the_third(controller: Controller, config: Config, caller: Caller) -> None:
    """Each finds the third one's attachment locked by the other now and then."""
    caller.container("c1")

    def leave(network: str) -> None:
        with Controller(config, watcher=Unwatched()) as other:
            runtime = Caller(lambda: other)
            start.wait()
            runtime.ok("DEL", conf(network), ifname=IFNAMES[network])

    for _ in range(10):
        for network in NETWORKS:
            caller.ok("ADD", conf(network), ifname=IFNAMES[network])
        start = Barrier(2)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(leave, ("four", "six")))
        assert published(controller) == {4: "10.2.0.2", 6: "fd02::2"}
        caller.ok("DEL", conf("both"), ifname=IFNAMES["both"])
