"""Containers that join and leave networks while they run."""

import subprocess
from collections.abc import Iterator

import pytest

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.errors import ConfigError, NotFound
from netlib.firewall.objects import PublishedPort
from netlib.names import bridge_ifname
from netlib.requests import Join
from netlib.runtime import lookup
from netlib.verbs.container import remove_all
from netlib.verbs.perform import perform

pytestmark = pytest.mark.needs_cgroups


@pytest.fixture
def controller(config: Config) -> Iterator[Controller]:
    with Controller(config, watcher=Unwatched()) as controller:
        yield controller
        remove_all(controller)
        controller.reset()


def test_a_networks_name_is_not_taken_for_the_beginning_of_anothers_id(controller: Controller) -> None:
    other = controller.create_network("back")
    controller.create_network(other.id[:6])
    perform(controller, "container.run", {"command": ["sleep", "60"], "name": "box", "networks": [other.id[:6]]})
    perform(controller, "network.connect", {"network": "back", "container": "box"})
    perform(controller, "network.disconnect", {"network": "back", "container": "box"})
    homes = [controller.network(item.network).name for item in controller.endpoints(sandbox="box")]
    assert homes == [item.network for item in lookup.find_container(controller, "box").spec.networks] == [other.id[:6]]


def test_ports_outlive_the_networks_of_a_container(controller: Controller) -> None:
    def published() -> list[str]:
        return [f"{item.endpoint} {item.bridge}" for item in controller.plan_of("box").of(PublishedPort)]

    bridges = {name: bridge_ifname(controller.create_network(name)) for name in ("back", "zoo")}
    deep = controller.create_network("deep", internal=True)
    run = {"command": ["sleep", "60"], "name": "box", "publish": ["8080:80"], "networks": ["deep"]}
    perform(controller, "container.run", run)
    assert published() == [f"0.0.0.0:8080 {bridge_ifname(deep)}"]
    perform(controller, "network.connect", {"network": "zoo", "container": "box"})
    perform(controller, "network.disconnect", {"network": "deep", "container": "box"})
    assert published() == [f"0.0.0.0:8080 {bridges['zoo']}"]
    perform(controller, "network.disconnect", {"network": "zoo", "container": "box"})
    assert published() == []
    with controller.store.read() as tx:
        assert tx.ports() == []
    perform(controller, "network.connect", {"network": "back", "container": "box"})
    assert published() == [f"0.0.0.0:8080 {bridges['back']}"]


def test_a_network_is_left_for_good_though_another_one_of_the_container_is_broken(controller: Controller) -> None:
    """The ports go to a bridge that somebody deleted."""
    for name in ("app", "web"):
        controller.create_network(name)
    run = {"command": ["sleep", "60"], "name": "box", "publish": ["8080:80"], "networks": ["web", "app"]}
    perform(controller, "container.run", run)
    subprocess.run(["ip", "link", "del", bridge_ifname(controller.network("web"))], check=True)
    perform(controller, "network.disconnect", {"network": "app", "container": "box"})
    assert lookup.find_container(controller, "box").spec.networks == (Join(network="web"),)
    assert controller.check("box") == []
    controller.disconnect("web", "box")  # as a verb does that dies before it has the container's record
    perform(controller, "network.disconnect", {"network": "web", "container": "box"})
    assert lookup.find_container(controller, "box").spec.networks == ()
    controller.connect("app", "box")
    perform(controller, "network.disconnect", {"network": "app", "container": "box"})
    assert controller.endpoints(sandbox="box") == []
    with pytest.raises(NotFound, match="container 'box' is not in network 'app'"):
        perform(controller, "network.disconnect", {"network": "app", "container": "box"})


def test_a_container_that_left_the_network_of_its_ports_starts_without_them(controller: Controller) -> None:
    subprocess.run(["ip", "link", "add", "lan0", "type", "veth", "peer", "name", "lan1"], check=True)
    try:
        controller.create_network("lan", driver="macvlan", subnets=["192.0.2.0/24"], options={"parent": "lan0"})
        controller.create_network("web")
        run = {"command": ["sleep", "60"], "name": "box", "publish": ["8080:80"]}
        with pytest.raises(ConfigError, match="publishes no ports"):
            perform(controller, "container.run", {**run, "networks": ["lan"]})
        perform(controller, "container.run", {**run, "networks": ["lan", "web"]})
        perform(controller, "network.disconnect", {"network": "web", "container": "box"})
        perform(controller, "container.stop", {"name": "box", "seconds": 0})
        perform(controller, "container.start", {"name": "box"})
        perform(controller, "network.connect", {"network": "web", "container": "box"})
        assert len(controller.plan_of("box").of(PublishedPort)) == 1
        remove_all(controller)
        controller.remove_network("lan")
    finally:
        subprocess.run(["ip", "link", "del", "lan0"], check=True)
