"""Somebody else's drivers (``tests/plugins``): slow ones hold nobody up, uninstalled ones leave only what is their own."""

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.errors import ConfigError, NotFound, PackageFailed, PackageMissing, TeardownError
from netlib.firewall.objects import PublishedPort
from netlib.kernel.netns import entered
from netlib.names import veth_ifname
from netlib.objects import object_class
from netlib.plan import KernelObject
from netlib.testing.snapshot import differences, snapshot
from netlib.verbs.container import remove_all
from netlib.verbs.perform import perform
from tests.plugins_world import Service, installed, write_tiny_net

VERBS = 50
SECONDS = 2


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with installed(monkeypatch.syspath_prepend):
        yield


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service(f"/run/acme-{os.getpid()}.sock", SECONDS)
    yield made
    made.close()


def _controller(config: Config) -> Controller:
    return Controller(config, watcher=Unwatched())


@pytest.mark.usefixtures("package")
def test_fifty_verbs_go_on_while_an_ipam_driver_waits_for_its_service(config: Config, service: Service) -> None:
    """The service answers after two seconds, and not before the fifty are done: it is stopped meanwhile."""
    ended: list[str] = []

    def make_slowly() -> None:
        with _controller(config) as controller:
            controller.create_network("slow", ipam_driver="acme", ipam_options=service.options)
            ended.append("network")

    def join_slowly() -> None:
        with _controller(config) as controller:
            ended.append(str(controller.connect("slow", "slow-box").addresses[0]))

    with _controller(config) as controller:
        controller.create_sandbox("box")
        controller.create_sandbox("slow-box")
        for task in (make_slowly, join_slowly):
            thread = threading.Thread(target=task)
            with service.stopped():
                before = len(ended)
                thread.start()
                service.wait_for_question()
                for number in range(VERBS // 5):
                    name = f"net{number}"
                    controller.create_network(name)
                    controller.connect(name, "box")
                    controller.disconnect(name, "box")
                    controller.remove_network(name)
                    assert name not in {network.name for network in controller.networks()}
                assert len(ended) == before, "it has got no answer yet"
            thread.join(30)
        assert ended == ["network", "10.77.0.2/24"]
        assert service.held() == ["10.77.0.0/24", "10.77.0.2"]
        controller.reset()
        assert service.held() == []


@pytest.mark.usefixtures("package")
def test_packets_go_by_somebody_elses_driver(config: Config) -> None:
    with _controller(config) as controller:
        controller.create_network("net", driver="routed", subnets=["10.203.0.0/24"], options={"acme.queue": "300"})
        for name in ("a", "b"):
            controller.create_sandbox(name)
            controller.connect("net", name)
        (to,) = controller.endpoints(network="net", sandbox="b")
        with entered(controller.sandbox("a").netns):
            subprocess.run(["ping", "-c1", "-w5", str(to.addresses[0].ip)], check=True, capture_output=True)
        assert Path("/sys/class/net", veth_ifname(to.id), "tx_queue_len").read_text() == "300\n"
        assert "txqueuelen 300" in "\n".join(controller.explain("b"))
        controller.reset()


def test_what_an_uninstalled_package_left_is_taken_down_but_for_what_only_it_can(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot()
    with _controller(config) as controller:
        with monkeypatch.context() as context, installed(context.syspath_prepend):
            controller.create_network("net", driver="routed", subnets=["10.203.0.0/24"])
            controller.create_sandbox("box")
            controller.connect("net", "box")
            controller.connect("bridge", "box")
    with _controller(config) as controller:
        with pytest.raises(NotFound, match="routed"):
            controller.create_network("other", driver="routed")
        controller.create_sandbox("box2")
        with pytest.raises(PackageMissing, match="acme-net") as refused:
            controller.connect("net", "box2")
        assert refused.value.package == "acme-net"
        controller.remove_sandbox("box2")
        with pytest.raises(TeardownError, match="acme-net"):
            controller.remove_sandbox("box")
        with pytest.raises(TeardownError, match="acme-net"):
            controller.reset()
        assert differences(before, snapshot()) == [], "all that the kernel had is gone"
        assert [network.name for network in controller.networks() if not network.predefined] == []
    with monkeypatch.context() as context, installed(context.syspath_prepend), _controller(config) as controller:
        controller.reset()
        with controller.store.read() as tx:
            assert tx.in_flight() == []


# --- a driver that publishes no ports ------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package tiny-net, installed: its driver publishes no ports."""
    folder = tmp_path / "packages"
    write_tiny_net(folder)
    with installed(monkeypatch.syspath_prepend, folder):
        yield folder


@pytest.mark.usefixtures("tiny")
def test_ports_are_refused_on_a_network_that_publishes_none(config: Config) -> None:
    refusal = r"network 'line' \(driver tiny\) publishes no ports; leave -p out"
    with _controller(config) as controller:
        controller.create_network("line", driver="tiny")
        controller.create_network("web")
        controller.create_sandbox("box")
        before = snapshot()
        with pytest.raises(ConfigError, match=refusal):
            controller.connect("line", "box", ports=["8080:80"])
        run = {"command": ["sleep", "60"], "name": "c", "publish": ["8090:80"]}
        with pytest.raises(ConfigError, match=refusal):
            perform(controller, "container.run", {**run, "networks": ["line"]})
        assert differences(before, snapshot()) == []
        controller.connect("web", "box", ports=["8080:80"])
        controller.connect("line", "box")
        controller.disconnect("line", "box")
        with pytest.raises(ConfigError, match=refusal):
            controller.connect("line", "box", ports=["8081:80"])
        assert len(controller.plan_of("box").of(PublishedPort)) == 1
        perform(controller, "container.run", {**run, "networks": ["line", "web"]})
        assert len(controller.plan_of("c").of(PublishedPort)) == 1
        remove_all(controller)
        controller.reset()


def test_a_driver_that_plans_what_the_core_plans_is_told_so(config: Config, tiny: Path) -> None:
    up = "from netlib.kernel.links import LinkUp; return Plan(LinkUp(ifname=endpoint.ifname, netns=sandbox.netns))"
    write_tiny_net(tiny, join_plan=up)
    with _controller(config) as controller:
        controller.create_network("line", driver="tiny")
        controller.create_sandbox("box")
        with pytest.raises(PackageFailed, match="network driver 'tiny' plans what the core plans for every driver: .*eth0"):
            controller.connect("line", "box")
        controller.reset()


# --- a package that is missing -------------------------------------------------------------------------------------------


def test_each_verb_names_the_package_that_is_missing(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_net(tmp_path)
    run = {"command": ["sleep", "60"], "name": "a", "networks": ["line"]}
    with _controller(config) as controller:
        with monkeypatch.context() as context, installed(context.syspath_prepend, tmp_path):
            controller.create_network("line", driver="tiny")
            perform(controller, "container.run", run)
            perform(controller, "container.stop", {"name": "a", "seconds": 0})
            controller.create_sandbox("box")
        for verb, request in (
            ("container.run", {**run, "name": "b"}),
            ("container.start", {"name": "a"}),
            ("network.connect", {"network": "line", "container": "box"}),
        ):
            with pytest.raises(PackageMissing, match="network 'line' needs the network driver 'tiny' of the package tiny-net"):
                perform(controller, verb, request)
        remove_all(controller)
        controller.reset()


def test_a_removal_that_waits_for_a_package_is_shown_and_finished_when_it_is_back(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pending(controller: Controller) -> dict[str, str]:
        found: dict[str, str] = perform(controller, "system.info", {})["PendingRemovals"]
        return found

    with _controller(config) as controller:
        with monkeypatch.context() as context, installed(context.syspath_prepend):
            controller.create_network("net", driver="routed", subnets=["10.203.0.0/24"])
            _add_queue_of_lo(controller, "net")
        explained = perform(controller, "explain", {"name": "net"})
        assert any("# queue_length/host/lo: the package acme-net is not installed" in item["Commands"][0] for item in explained)
        for _ in range(2):
            with pytest.raises(TeardownError, match=r"network 'net' is removed except for .*queue_length/host/lo.*acme-net"):
                controller.remove_network("net")
            assert pending(controller) == {"network net": "queue_length/host/lo"}
    with monkeypatch.context() as context, installed(context.syspath_prepend):
        with _controller(config) as controller:  # opening it has finished the removal
            controller.remove_network("net")
            assert pending(controller) == {}
            assert controller.journal(1)[0].operation == "network rm"
            with pytest.raises(NotFound):
                controller.remove_network("net")


def _add_queue_of_lo(controller: Controller, network: str) -> None:
    """Give a network an object of the package acme-net, which must be removed by itself."""
    item: KernelObject = object_class("acme-net.queue_length")(ifname="lo", packets=1000)  # type: ignore[call-arg]
    record, plan = controller.network(network).id, controller.plan_of(network)
    with controller.store.write() as tx:
        tx.write_objects(record, [*plan, item])


# --- a package that fails ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", [{"network_plan": "raise RuntimeError('boom')"}, {"join_plan": "return Plan(1)"}, {}])
def test_a_driver_that_fails_concerns_its_own_networks_only(config: Config, tiny: Path, changed: dict[str, str]) -> None:
    with _controller(config) as controller:
        controller.create_network("line", driver="tiny")
        controller.create_sandbox("box")
        network = controller.network("line").id
        with controller.store.write() as tx:
            tx.stamp(network, "")  # as after a boot: it is planned again
        write_tiny_net(tiny, **changed) if changed else write_tiny_net(tiny, "import nowhere_at_all")
        with pytest.raises(PackageFailed, match="network driver 'tiny' of the package tiny-net (failed|cannot be loaded): "):
            controller.connect("line", "box")
        controller.create_network("okay")
        controller.connect("okay", "box")
        assert controller.recover() == []
        controller.remove_network("line")
        controller.reset()


@pytest.mark.usefixtures("package")
def test_an_object_that_fails_is_undone_and_reported(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def boom(*_: object) -> None:
        raise RuntimeError("boom")

    with _controller(config) as controller:
        controller.create_network("net", driver="routed", subnets=["10.203.0.0/24"])
        controller.create_sandbox("box")
        before = snapshot()
        with monkeypatch.context() as context:
            context.setattr(object_class("acme-net.queue_length"), "ensure", boom)
            with pytest.raises(PackageFailed, match="kernel object .* of the package acme-net failed: RuntimeError: boom"):
                controller.connect("net", "box")
            assert differences(before, snapshot()) == []
        _add_queue_of_lo(controller, "net")
        with monkeypatch.context() as context:
            context.setattr(object_class("acme-net.queue_length"), "remove", boom)
            with pytest.raises(TeardownError, match="boom"):
                controller.remove_network("net")
            controller.create_network("okay")
            assert [type(failure) for failure in controller.recover()] == [PackageFailed]
        controller.remove_network("net")
        controller.reset()
