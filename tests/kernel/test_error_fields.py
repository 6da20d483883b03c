"""The fields of errors, for programs: who holds what, as a plain name and its kind, the same by way of netlibd."""

import os
import socket
from collections.abc import Iterator

import pytest

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.errors import AddressTaken, AlreadyExists, Conflict, InUse, NetlibError, PortTaken
from netlib.wire.protocol import error_from_json, error_to_json


@pytest.fixture
def controller(config: Config) -> Iterator[Controller]:
    with Controller(config, watcher=Unwatched()) as controller:
        controller.create_network("web", subnets=["10.1.0.0/24"], auxiliary={"printer": "10.1.0.9"})
        for name in ("a", "b"):
            controller.create_sandbox(name)
        controller.connect("web", "a", ip="10.1.0.5", ports=["8080:80"])
        yield controller
        controller.reset()


def _holder(error: NetlibError) -> tuple[str, str]:
    """The holder's kind and name, also after a way through netlibd."""
    again = error_from_json(error_to_json(error))
    assert isinstance(again, Conflict)
    assert {fact: getattr(again, fact) for fact in again.facts} == {fact: getattr(error, fact) for fact in error.facts}
    return again.holder_kind, again.holder


def test_a_holder_is_a_plain_name_and_a_kind(controller: Controller) -> None:
    with pytest.raises(PortTaken) as port:
        controller.connect("web", "b", ports=["8080:80"])
    assert _holder(port.value) == ("sandbox", "a")
    with socket.create_server(("127.0.0.1", 8081)), pytest.raises(PortTaken) as held:
        controller.connect("web", "b", ports=["8081:80"])
    kind, name = _holder(held.value)
    assert kind == "process"
    assert name.endswith(f"(pid {os.getpid()})")
    for ip, holder in (
        ("10.1.0.5", ("sandbox", "a")),
        ("10.1.0.1", ("gateway", "web")),
        ("10.1.0.9", ("auxiliary", "printer")),
    ):
        with pytest.raises(AddressTaken) as address:
            controller.connect("web", "b", ip=ip)
        assert _holder(address.value) == holder
        assert (address.value.address, address.value.network) == (ip, "web")


def test_networks_and_sandboxes_are_named(controller: Controller) -> None:
    with pytest.raises(Conflict) as overlap:
        controller.create_network("other", subnets=["10.1.0.0/16"])
    assert _holder(overlap.value) == ("network", "web")
    options = {"com.docker.network.bridge.name": "br-shared"}
    controller.create_network("first", subnets=["10.2.0.0/24"], options=options)
    with pytest.raises(Conflict) as bridge:
        controller.create_network("second", subnets=["10.3.0.0/24"], options=options)
    assert _holder(bridge.value) == ("network", "first")
    with pytest.raises(AlreadyExists) as joined:
        controller.connect("web", "a")
    assert _holder(joined.value) == ("sandbox", "a")
    assert (joined.value.network, joined.value.sandbox) == ("web", "a")
    with pytest.raises(AlreadyExists) as made:
        controller.create_network("web")
    assert (*_holder(made.value), made.value.name) == ("network", "web", "web")
    with pytest.raises(InUse) as used:
        controller.remove_network("web")
    assert (*_holder(used.value), used.value.users) == ("network", "web", ("a",))
