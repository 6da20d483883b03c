"""Somebody else's drivers (``tests/plugins``): slow ones hold nobody up, uninstalled ones leave only what is their own."""

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.errors import NotFound, PackageMissing, TeardownError
from netlib.kernel.netns import entered
from netlib.names import veth_ifname
from netlib.testing.snapshot import differences, snapshot
from tests.plugins_world import Service, installed

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
