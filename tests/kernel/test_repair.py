"""What somebody deleted by hand comes back when it is needed, and is told; what cannot come back is told with the remedy."""

import json
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.errors import NetlibError, ObjectMissing
from netlib.names import bridge_ifname
from netlib.ports import parse_publish


@pytest.fixture
def controller(config: Config) -> Iterator[Controller]:
    with Controller(config, watcher=Unwatched()) as controller:
        controller.create_network("web", subnets=["10.1.0.0/24", "fd00:1::/64"])
        yield controller
        controller.reset()


def _run(command: str) -> str:
    return subprocess.run(command.split(), check=True, capture_output=True, text=True).stdout


def _links() -> dict[str, Any]:
    return {link["ifname"]: link for link in json.loads(_run("ip -j -d link"))}


def test_a_bridge_deleted_by_hand_comes_back_with_its_members(controller: Controller) -> None:
    bridge = bridge_ifname(controller.network("web"))
    for name in ("old", "new"):
        controller.create_sandbox(name)
    old = controller.connect("web", "old", ports=parse_publish("127.0.0.1:8080:80"))
    before = _links()[bridge]
    _run(f"ip link del {bridge}")
    assert controller.check("old") != []
    new = controller.connect("web", "new")
    assert controller.check("web") == controller.check("old") == controller.check("new") == []
    after = _links()[bridge]
    assert {key: after[key] for key in ("address", "ifalias")} == {key: before[key] for key in ("address", "ifalias")}
    _run(f"ip netns exec new ping -c1 -W2 {old.addresses[0].ip}")
    _run(f"ip netns exec old ping -c1 -W2 {new.addresses[1].ip}")
    entry = next(entry for entry in controller.journal() if entry.operation == "network repair")
    assert (entry.subject, entry.outcome) == ("web", "ok")
    assert f"link/host/{bridge}: bridge {bridge} is missing" in entry.detail


def test_a_flushed_firewall_is_repaired_where_no_netlibd_does_it(controller: Controller) -> None:
    controller.create_sandbox("box")
    _run("nft flush ruleset")
    controller.connect("web", "box", ports=parse_publish("8080:80"))
    assert controller.check("web") == controller.check("box") == []


def test_ports_move_to_another_network_though_the_firewall_was_flushed(controller: Controller) -> None:
    controller.create_network("app")
    controller.create_sandbox("box")
    controller.connect("app", "box", ports=parse_publish("8080:80"))
    controller.connect("web", "box")
    _run("nft flush ruleset")
    controller.disconnect("app", "box", keep_ports=True)
    assert controller.check("web") == controller.check("box") == []


def test_many_who_join_at_once_find_one_repair(controller: Controller, config: Config) -> None:
    names = [f"box{number}" for number in range(6)]
    for name in names:
        controller.create_sandbox(name)
    _run(f"ip link del {bridge_ifname(controller.network('web'))}")
    failures: list[NetlibError] = []

    def join(name: str) -> None:
        with Controller(config, watcher=Unwatched()) as other:
            try:
                other.connect("web", name)
            except NetlibError as error:
                failures.append(error)

    threads = [threading.Thread(target=join, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [controller.check(name) for name in ("web", *names)] == [[]] * 7


def test_a_bridge_of_somebody_else_does_not_come_back_and_the_remedy_is_told(controller: Controller) -> None:
    _run("ip link add br-lan type bridge")
    controller.create_network("lan", subnets=["10.7.0.0/24"], options={"com.docker.network.bridge.name": "br-lan"})
    controller.create_sandbox("box")
    _run("ip link del br-lan")
    with pytest.raises(ObjectMissing, match="br-lan.*cannot be made again.*remove the network and create it anew"):
        controller.connect("lan", "box")
    assert controller.endpoints(sandbox="box") == []
    controller.remove_network("lan")
    controller.create_network("lan", subnets=["10.7.0.0/24"], options={"com.docker.network.bridge.name": "br-lan"})
    controller.connect("lan", "box")
    assert controller.check("lan") == []


def test_what_the_sandbox_itself_has_lost_is_no_matter_of_its_network(controller: Controller) -> None:
    controller.create_sandbox("box")
    _run("ip netns del box")
    with pytest.raises(ObjectMissing, match="box"):
        controller.connect("web", "box")
    assert [entry.operation for entry in controller.journal()][-1] == "network connect"
