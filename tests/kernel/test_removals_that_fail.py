"""What cannot be given back or removed keeps nothing else: the rest goes, the failure is told, and the next try finishes."""

from collections.abc import Iterator

import pytest

from ipam.default import DefaultIpam
from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.errors import ConfigError, KernelError, TeardownError
from netlib.kernel.handle import Kernel
from netlib.kernel.links import Veth
from netlib.model import Endpoint, Network, Sandbox
from netlib.testing.snapshot import differences, snapshot


@pytest.fixture
def controller(config: Config) -> Iterator[Controller]:
    with Controller(config, watcher=Unwatched()) as controller:
        yield controller
        controller.reset()


def _left(controller: Controller) -> dict[type, set[str]]:
    """The names of records that are not ready, by kind."""
    with controller.store.read() as tx:
        return {kind: {row.name for row in tx.all(kind) if row.phase != "ready"} for kind in (Endpoint, Sandbox, Network)}


def test_an_address_that_its_driver_does_not_take_back_keeps_no_other_record(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    web, other = controller.create_network("web"), controller.create_network("other")
    for name in ("one", "two"):
        controller.create_sandbox(name)
        controller.connect(other, name)
    kept = controller.connect(web, "one")

    def release(self: DefaultIpam, leases: object, network: str, owner: str) -> None:
        if owner == kept.id:
            raise KernelError("the service does not answer")
        original(self, leases, network, owner)  # type: ignore[arg-type]

    original = DefaultIpam.release_address
    with monkeypatch.context() as patched:
        patched.setattr(DefaultIpam, "release_address", release)
        with pytest.raises(TeardownError, match="the service does not answer"):
            controller.remove_sandboxes(["one", "two"])
        assert _left(controller) == {Endpoint: {f"{web.id}/{kept.sandbox}"}, Sandbox: set(), Network: set()}
        assert controller.sandboxes() == []
        with pytest.raises(TeardownError, match="the service does not answer"):
            controller.reset()
        assert {network.name for network in controller.networks()} <= {"web"}
    assert controller.recover() == []
    assert _left(controller) == {Endpoint: set(), Sandbox: set(), Network: set()}


def test_a_connect_that_fails_and_an_address_that_is_not_taken_back_are_both_told(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller.create_network("web")
    controller.create_sandbox("box")

    def fail(*_: object, **__: object) -> None:
        raise KernelError("no")

    with monkeypatch.context() as patched:
        patched.setattr(Veth, "ensure", fail)
        patched.setattr(DefaultIpam, "release_address", fail)
        with pytest.raises(TeardownError, match=r"no.*no"):
            controller.connect("web", "box")
    assert controller.recover() == []
    assert controller.connect("web", "box").addresses


def test_a_defect_in_one_objects_class_keeps_no_other_object(controller: Controller, monkeypatch: pytest.MonkeyPatch) -> None:
    controller.create_network("web")
    controller.create_sandbox("first")
    controller.connect("web", "first")
    controller.remove_sandbox("first")
    before = snapshot()
    controller.create_sandbox("box")
    controller.connect("web", "box")

    def remove(self: Veth, kernel: Kernel) -> None:
        raise ValueError("a defect")

    with monkeypatch.context() as patched:
        patched.setattr(Veth, "remove", remove)
        with pytest.raises(TeardownError, match=r"cannot be removed: a defect in netlib\.kernel\.links\.Veth"):
            controller.remove_sandbox("box")
        controller.create_network("other")  # recovery met the defect again, and goes on
    controller.remove_network("other")
    assert controller.recover() == []
    assert differences(before, snapshot()) == []


def test_in_the_netns_of_a_sandbox_nothing_of_the_host_is_made(controller: Controller) -> None:
    controller.create_network("web")
    controller.create_sandbox("box")
    controller.create_sandbox("other")
    with controller.inside("box") as box:
        assert controller.sandbox(box).name == "box"
        with controller.inside("other"), pytest.raises(ConfigError, match=r"netns of 'other'; leave the block of inside\(\)"):
            controller.connect("web", "box")
        with pytest.raises(ConfigError, match="netns of 'box'"):
            controller.remove_sandbox("other")
    controller.connect("web", "box")
