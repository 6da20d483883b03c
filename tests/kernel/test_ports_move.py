"""The published ports of a sandbox in several networks: they go by its way out, and where asked to, outlive a network of it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.errors import KernelError, TeardownError
from netlib.firewall.objects import PublishedPort
from netlib.model import NetnsRef
from netlib.plan import KernelObject
from netlib.ports import parse_publish
from netlib.testing.host import Stop, TestedHost
from netlib.testing.snapshot import differences, snapshot
from tests.peers.surroundings import HOST_ADDRESS, answering, ask, uplink

RP_FILTER = Path("/proc/sys/net/ipv4/conf/all/rp_filter")
PORTS = [*parse_publish("8080:80"), *parse_publish("5353:53/udp")]


@pytest.fixture
def controller(config: Config) -> Iterator[Controller]:
    with Controller(config, watcher=Unwatched()) as controller:
        for name in ("app", "web", "zoo"):
            controller.create_network(name)
        controller.create_sandbox("box")
        yield controller
        controller.reset()


@pytest.fixture
def neighbour(netns_factory: Callable[[str], NetnsRef]) -> Iterator[NetnsRef]:
    with uplink(netns_factory("neighbour")) as neighbour:
        yield neighbour


@pytest.fixture
def strict() -> Iterator[None]:
    """The host drops what comes by another link than answers to it would leave by."""
    before = RP_FILTER.read_text()
    RP_FILTER.write_text("1")
    yield
    RP_FILTER.write_text(before)


def _without_members() -> dict[str, str]:
    """The firewall but for who is a member of what."""
    return {name: text for name, text in snapshot()["firewall"].items() if "netlib_members" not in name}


def _led_to(controller: Controller) -> dict[str, str]:
    """Each published port of the box as the store has it, and the container's side; the kernel has just that."""
    assert controller.check("box") == []
    return {f"{item.endpoint}/{item.protocol}": f"{item.address}" for item in controller.plan_of("box").of(PublishedPort)}


def _address(controller: Controller, network: str) -> str:
    home = controller.network(network).id
    found = next(item for item in controller.endpoints(sandbox="box") if item.network == home)
    return str(found.addresses[0].ip)


def _is_reached(neighbour: NetnsRef, port: int = 8080) -> bool:
    from_outside = ask(HOST_ADDRESS, port, neighbour) == "box"
    assert (ask("127.0.0.1", port) == ask(HOST_ADDRESS, port) == "box") is from_outside
    return from_outside


@pytest.mark.usefixtures("strict")
def test_ports_go_by_the_way_out_whichever_network_they_were_asked_for_with(
    controller: Controller, neighbour: NetnsRef
) -> None:
    controller.connect("web", "box", ports=PORTS)
    with answering(controller.sandbox("box").netns, 80, "box"):
        for network in ("zoo", "app"):
            assert _is_reached(neighbour)
            controller.connect(network, "box")
        assert _is_reached(neighbour)
        assert set(_led_to(controller).values()) == {_address(controller, "app")}
        controller.disconnect("app", "box")
        assert _is_reached(neighbour)
        assert set(_led_to(controller).values()) == {_address(controller, "web")}
        controller.disconnect("web", "box")
        assert not _is_reached(neighbour)
        assert _led_to(controller) == {}


def test_kept_ports_go_on_by_another_network(controller: Controller, neighbour: NetnsRef) -> None:
    controller.connect("web", "box", ports=PORTS)
    with answering(controller.sandbox("box").netns, 80, "box"):
        controller.connect("zoo", "box")
        controller.disconnect("web", "box", keep_ports=True)
        assert _is_reached(neighbour)
        assert set(_led_to(controller).values()) == {_address(controller, "zoo")}
        with controller.store.read() as tx:
            assert [(port.protocol, port.host_port) for port in tx.ports()] == [("tcp", 8080), ("udp", 5353)]
        controller.disconnect("zoo", "box", keep_ports=True)  # nobody is left to have them
        assert not _is_reached(neighbour)
        with controller.store.read() as tx:
            assert tx.ports() == []


def test_kept_ports_that_continue_those_of_the_other_network(controller: Controller, neighbour: NetnsRef) -> None:
    """Two runs of ports become one, another object with the same entries."""
    controller.connect("web", "box", ports=parse_publish("8081:81"))
    controller.connect("zoo", "box", ports=parse_publish("8080:80"))
    netns = controller.sandbox("box").netns
    with answering(netns, 80, "box"), answering(netns, 81, "box"):
        controller.disconnect("web", "box", keep_ports=True)
        assert _is_reached(neighbour, 8080)
        assert _is_reached(neighbour, 8081)
    assert _led_to(controller) == {"0.0.0.0:8080-8081/tcp": _address(controller, "zoo")}


def test_ports_asked_for_with_an_internal_network_go_by_one_that_leads_out(controller: Controller, neighbour: NetnsRef) -> None:
    controller.create_network("deep", internal=True)
    controller.connect("deep", "box", ports=PORTS)
    controller.connect("web", "box")
    with answering(controller.sandbox("box").netns, 80, "box"):
        assert _is_reached(neighbour)
        controller.disconnect("deep", "box", keep_ports=True)
        assert _is_reached(neighbour)


def test_each_family_goes_by_its_own_way_out(controller: Controller) -> None:
    controller.create_network("six", ipv4=False, ipv6=True)
    controller.connect("six", "box", ports=parse_publish("8080:80"))
    assert list(_led_to(controller)) == ["[::]:8080/tcp"]
    controller.connect("web", "box")
    assert _led_to(controller) == {
        "0.0.0.0:8080/tcp": _address(controller, "web"),
        "[::]:8080/tcp": _address(controller, "six"),
    }


def test_a_death_while_ports_are_handed_on_is_finished(controller: Controller, config: Config) -> None:
    before, number = snapshot(), 0
    while True:
        controller.create_sandbox("doomed")
        controller.connect("zoo", "doomed")
        controller.connect("web", "doomed", ports=PORTS)
        moment = TestedHost(config).dies(lambda it: it.disconnect("web", "doomed", keep_ports=True), number)
        controller.recover()
        assert controller.check("doomed") == [], moment
        assert [len(item.ports) for item in controller.endpoints(sandbox="doomed")] == [2], moment
        with controller.store.read() as tx:
            assert len(tx.ports()) == 2
        controller.remove_sandbox("doomed")
        assert differences(before, snapshot()) == [], moment
        if moment is None:
            break
        number += 1
    assert number > 0


def test_a_port_that_would_not_go_stays_written_down_and_goes_with_the_next_change(
    controller: Controller, config: Config
) -> None:
    controller.connect("zoo", "box")
    before = _without_members()
    controller.connect("web", "box", ports=PORTS)

    def fail(item: KernelObject) -> None:
        raise KernelError(f"injected at {item.key}")

    with (
        Controller(config, watcher=Unwatched(), observer=Stop(0, fail, ("remove",))) as faulty,
        pytest.raises(TeardownError, match="injected at firewall/host/port"),
    ):
        faulty.disconnect("web", "box")
    assert len(controller.plan_of("box").of(PublishedPort)) == len(PORTS)
    controller.connect("app", "box")
    assert _led_to(controller) == {}
    assert _without_members() == before
