"""The verbs in a real kernel: who gets which link, address, route and file, and who is refused."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

import pytest

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.errors import (
    AddressTaken,
    AlreadyExists,
    ConfigError,
    Conflict,
    InUse,
    NotFound,
    PortTaken,
    WrongHost,
)
from netlib.kernel.netns import create_netns, delete_netns, entered
from netlib.model import NetnsRef, Protocol, ResolverConfig
from netlib.ports import parse_publish
from netlib.store.records import Transaction
from netlib.testing.snapshot import snapshot


@pytest.fixture
def controller(config: Config) -> Iterator[Controller]:
    with Controller(config, watcher=Unwatched()) as controller:
        yield controller
        controller.reset()


def _ip(*arguments: str, netns: str = "") -> Any:
    place = ["-n", netns] if netns else []
    result = subprocess.run(["ip", "-j", *place, *arguments], capture_output=True, text=True, check=True)
    return json.loads(result.stdout or "[]")


def _ping(netns: str, target: str) -> bool:
    command = ["ip", "netns", "exec", netns, "ping", "-c1", "-W1", target]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _addresses(netns: str, ifname: str) -> set[str]:
    return {
        f"{item['local']}/{item['prefixlen']}"
        for item in _ip("addr", "show", ifname, netns=netns)[0]["addr_info"]
        if item["scope"] == "global"
    }


def test_looking_makes_nothing_in_the_kernel(config: Config) -> None:
    before = snapshot()
    with Controller(config, watcher=Unwatched()) as controller:
        assert [network.name for network in controller.networks()] == ["bridge", "host", "none"]
        assert controller.explain("bridge")
        assert controller.network("bridge").pools[0].gateway == ip_address("172.17.0.1")
        assert controller.check("bridge") == []
    assert snapshot() == before


def test_the_default_bridge_appears_at_its_first_use(controller: Controller) -> None:
    controller.create_sandbox("box")
    assert not any(link["ifname"] == "netlib0" for link in _ip("link"))
    endpoint = controller.connect("bridge", "box")
    assert any(link["ifname"] == "netlib0" for link in _ip("link"))
    assert endpoint.addresses == (ip_interface("172.17.0.2/16"),)
    assert _addresses("box", "eth0") == {"172.17.0.2/16"}
    assert _ip("route", "show", "default", netns="box")[0]["gateway"] == "172.17.0.1"
    assert _ping("box", "172.17.0.1")


def test_a_route_of_the_host_moves_the_default_bridge_elsewhere(config: Config) -> None:
    subprocess.run(["ip", "route", "add", "172.17.5.0/24", "dev", "lo"], check=True)
    try:
        with Controller(config, watcher=Unwatched()) as controller:
            assert str(controller.network("bridge").pools[0].subnet) == "172.18.0.0/16"
    finally:
        subprocess.run(["ip", "route", "del", "172.17.5.0/24", "dev", "lo"], check=True)


def test_networks_are_numbered_from_172_18_and_isolated(controller: Controller) -> None:
    first, second = controller.create_network("one"), controller.create_network("two")
    assert [str(item.pools[0].subnet) for item in (first, second)] == ["172.18.0.0/16", "172.19.0.0/16"]
    for name, network in (("a", "one"), ("b", "one"), ("c", "two")):
        controller.create_sandbox(name)
        controller.connect(network, name)
    assert _ping("a", "172.18.0.3")
    assert not _ping("a", "172.19.0.2")


def test_dual_stack_addresses_routes_and_reachability(controller: Controller) -> None:
    controller.create_network("six", subnets=["10.61.0.0/24", "fd61::/64"])
    for name in ("a", "b"):
        controller.create_sandbox(name)
        controller.connect("six", name)
    assert _addresses("a", "eth0") == {"10.61.0.2/24", "fd61::2/64"}
    assert _ip("-6", "route", "show", "default", netns="a")[0]["gateway"] == "fd61::1"
    assert _ping("a", "fd61::3")
    assert _ping("a", "fd61::1")


def test_fixed_addresses_and_mac_are_given_and_kept_from_others(controller: Controller) -> None:
    controller.create_network("web", subnets=["10.62.0.0/24", "fd62::/64"], auxiliary={"printer": "10.62.0.9"})
    controller.create_sandbox("a")
    endpoint = controller.connect("web", "a", ip="10.62.0.50", ip6="fd62::50", mac="02:42:AA:00:00:01")
    assert endpoint.mac == "02:42:aa:00:00:01"
    assert _ip("link", "show", "eth0", netns="a")[0]["address"] == "02:42:aa:00:00:01"
    assert _addresses("a", "eth0") == {"10.62.0.50/24", "fd62::50/64"}
    controller.create_sandbox("b")
    for taken, who in (("10.62.0.50", '"?a"?'), ("10.62.0.1", "gateway"), ("10.62.0.9", "printer")):
        with pytest.raises(AddressTaken, match=who):
            controller.connect("web", "b", ip=taken)
    with pytest.raises(ConfigError, match="10.62.1.5"):
        controller.connect("web", "b", ip="10.62.1.5")
    with pytest.raises(AlreadyExists, match="02:42:aa:00:00:01"):
        controller.connect("web", "b", mac="02:42:aa:00:00:01")
    assert controller.endpoints(sandbox="b") == []


def test_the_default_gateway_follows_priority_then_name_as_networks_come_and_go(controller: Controller) -> None:
    for name, subnet in (("zoo", "10.63.1.0/24"), ("alpha", "10.63.2.0/24"), ("inner", "10.63.3.0/24")):
        controller.create_network(name, subnets=[subnet], internal=name == "inner")
    controller.create_sandbox("box")

    def gateway() -> str | None:
        routes = _ip("route", "show", "default", netns="box")
        return routes[0]["gateway"] if routes else None

    controller.connect("inner", "box")
    assert gateway() is None
    controller.connect("zoo", "box")
    assert gateway() == "10.63.1.1"
    controller.connect("alpha", "box")
    assert gateway() == "10.63.2.1"
    controller.disconnect("alpha", "box")
    assert gateway() == "10.63.1.1"
    controller.connect("alpha", "box", gw_priority=-1)
    assert gateway() == "10.63.1.1"
    controller.disconnect("zoo", "box")
    controller.disconnect("alpha", "box")
    assert gateway() is None


def test_links_are_named_in_order_and_a_freed_name_is_used_again(controller: Controller) -> None:
    controller.create_sandbox("box")
    for name in ("one", "two", "three"):
        controller.create_network(name)
    assert [controller.connect(name, "box").ifname for name in ("one", "two")] == ["eth0", "eth1"]
    controller.disconnect("one", "box")
    assert controller.connect("three", "box").ifname == "eth0"
    with pytest.raises(AlreadyExists, match="eth1"):
        controller.connect("one", "box", ifname="eth1")


def test_a_second_connect_and_a_disconnect_of_what_is_not_there_are_refused(controller: Controller) -> None:
    controller.create_network("web")
    controller.create_sandbox("box")
    with pytest.raises(NotFound, match="box.*not connected.*web"):
        controller.disconnect("web", "box")
    controller.connect("web", "box")
    with pytest.raises(AlreadyExists, match="box.*already connected.*web"):
        controller.connect("web", "box")
    with pytest.raises(InUse, match="box"):
        controller.remove_network("web")
    for name in ("bridge", "host", "none"):
        with pytest.raises(ConfigError, match=f"{name}.*predefined.*cannot be removed; choose another network"):
            controller.remove_network(name)
        with pytest.raises(AlreadyExists, match=f"{name}.*predefined.*cannot be removed; choose another name"):
            controller.create_network(name)


def test_two_networks_do_not_share_a_subnet_a_name_or_a_bridge(controller: Controller) -> None:
    controller.create_network("web", subnets=["10.64.0.0/16"], options={"com.docker.network.bridge.name": "br-mine"})
    for subnet in ("10.64.5.0/24", "10.0.0.0/8"):
        with pytest.raises(Conflict, match="web"):
            controller.create_network("other", subnets=[subnet])
    with pytest.raises(AlreadyExists, match="web"):
        controller.create_network("web")
    with pytest.raises(Conflict, match="web"):
        controller.create_network("other", options={"com.docker.network.bridge.name": "br-mine"})
    assert [network.name for network in controller.networks()] == ["bridge", "host", "none", "web"]


def test_ports_are_published_once_and_given_back(controller: Controller) -> None:
    controller.create_network("web")
    for name in ("a", "b"):
        controller.create_sandbox(name)
    endpoint = controller.connect(
        "web", "a", ports=[*parse_publish("8080:80"), *parse_publish("53:53/udp"), *parse_publish("90")]
    )
    assert [(item.host_port, item.protocol) for item in endpoint.ports[:2]] == [(8080, Protocol.TCP), (53, Protocol.UDP)]
    assert endpoint.ports[2].host_port >= 32768
    with pytest.raises(PortTaken, match="8080/tcp.*'a'"):
        controller.connect("web", "b", ports=parse_publish("127.0.0.1:8080:80"))
    controller.disconnect("web", "a")
    controller.connect("web", "b", ports=parse_publish("127.0.0.1:8080:80"))


def test_host_and_none_networks_make_no_link(controller: Controller) -> None:
    links = {link["ifname"] for link in _ip("link")}
    controller.create_sandbox("alone")
    assert controller.connect("none", "alone").ifname == ""
    assert [link["ifname"] for link in _ip("link", netns="alone")] == ["lo"]
    controller.create_sandbox("shared", netns="")
    assert controller.connect("host", "shared").addresses == ()
    assert {link["ifname"] for link in _ip("link")} == links
    with pytest.raises(ConfigError, match="shared.*host"):
        controller.connect("bridge", "shared")
    with pytest.raises(ConfigError, match="alone.*host"):
        controller.connect("host", "alone")


def test_a_netns_of_somebody_else_is_used_and_left_alone(controller: Controller) -> None:
    path = Path("/run/netns/foreign")
    create_netns(path)
    try:
        with pytest.raises(AlreadyExists, match="not ours"):
            controller.create_sandbox("foreign")
        controller.create_sandbox("guest", netns=str(path))
        controller.connect("bridge", "guest")
        assert _addresses("foreign", "eth0") == {"172.17.0.2/16"}
        controller.remove_sandbox("guest")
        assert [link["ifname"] for link in _ip("link", netns="foreign")] == ["lo"]
    finally:
        delete_netns(path)


def test_a_netns_that_vanished_or_was_replaced_is_no_obstacle_to_removal(controller: Controller) -> None:
    path = Path("/run/netns/foreign")
    create_netns(path)
    controller.create_sandbox("guest", netns=str(path))
    controller.connect("bridge", "guest")
    veths = {link["ifname"] for link in _ip("link") if link["ifname"].startswith("veth")}
    delete_netns(path)
    create_netns(path)
    try:
        subprocess.run(["ip", "-n", "foreign", "link", "add", "eth0", "type", "bridge"], check=True)
        controller.remove_sandbox("guest")
        assert {link["ifname"] for link in _ip("link", netns="foreign")} == {"lo", "eth0"}
        assert veths
        assert veths.isdisjoint(link["ifname"] for link in _ip("link"))
    finally:
        delete_netns(path)


def test_one_netns_is_one_sandbox_whatever_the_path(controller: Controller, netns_factory: Callable[[str], NetnsRef]) -> None:
    guest = netns_factory("guest")
    controller.create_sandbox("box")
    controller.create_sandbox("first", netns=guest.path)
    fd = os.open(guest.path, os.O_RDONLY)
    try:
        for path, name in (
            (guest.path, "first"),
            (f"/proc/{os.getpid()}/fd/{fd}", "first"),
            ("/run/netns/box", "box"),
        ):
            with pytest.raises(AlreadyExists, match=f"{path}.*{name!r}"):
                controller.create_sandbox("second", netns=path)
    finally:
        os.close(fd)
    assert [box.name for box in controller.sandboxes()] == ["box", "first"]
    controller.remove_sandbox("first")
    controller.create_sandbox("second", netns=guest.path)
    controller.create_sandbox("shared", netns="")
    controller.create_sandbox("shared-too", netns="")  # the host's netns is everybody's


def test_a_request_that_contradicts_itself_is_refused(controller: Controller) -> None:
    with pytest.raises(ConfigError, match=r"^network 'six': subnet 10\.1\.0\.0/24 is of IPv4, which is switched off"):
        controller.create_network("six", ipv4=False, ipv6=True, subnets=["10.1.0.0/24", "fd01::/64"])
    binding = {"com.docker.network.bridge.host_binding_ipv4": "127.0.0.1"}
    with pytest.raises(ConfigError, match=r"^network 'six': .*host_binding_ipv4=127\.0\.0\.1 asks for ports on IPv4"):
        controller.create_network("six", ipv4=False, ipv6=True, options=binding)
    assert [network.name for network in controller.networks()] == ["bridge", "host", "none"]


def test_files_tell_the_sandbox_its_resolver_names_and_addresses(controller: Controller) -> None:
    controller.create_network("web")
    box = controller.create_sandbox("box", hostname="machine")
    controller.connect("web", "box")
    folder = Path(box.files_dir)
    assert "nameserver 127.0.0.11" in (folder / "resolv.conf").read_text()
    assert "172.18.0.2\tmachine" in (folder / "hosts").read_text()
    assert (folder / "hostname").read_text() == "machine\n"
    assert Path("/etc/netns/box/resolv.conf").read_text() == (folder / "resolv.conf").read_text()
    controller.remove_sandbox("box")
    assert not folder.exists()
    assert not Path("/etc/netns/box").exists()


def test_the_journal_tells_each_operation_with_its_objects_and_its_failure(controller: Controller) -> None:
    controller.create_network("web")
    with pytest.raises(AlreadyExists):
        controller.create_network("web")
    made, refused = controller.journal(2)
    assert (made.operation, made.subject, made.outcome) == ("network create", "web", "ok")
    assert any(line.startswith("+ link/host/br-") for line in made.detail)
    assert refused.outcome.startswith("AlreadyExists: ")
    assert refused.detail == []


def test_check_names_what_was_changed_by_hand(controller: Controller) -> None:
    controller.create_network("web")
    controller.create_sandbox("box")
    endpoint = controller.connect("web", "box")
    assert controller.check("box") == [] == controller.check("web")
    subprocess.run(["ip", "-n", "box", "addr", "del", str(endpoint.addresses[0]), "dev", "eth0"], check=True)
    assert any("172.18.0.2/16" in key for key, _ in controller.check("box"))


def test_a_store_opened_from_another_netns_is_refused(controller: Controller, config: Config) -> None:
    path = Path("/run/netns/elsewhere")
    create_netns(path)
    try:
        with entered(NetnsRef(str(path))), pytest.raises(WrongHost, match="--state-dir"):
            Controller(config, watcher=Unwatched())
    finally:
        delete_netns(path)


def test_many_sandboxes_go_at_once(controller: Controller) -> None:
    controller.create_network("web")
    names = [f"box{number}" for number in range(12)]
    for name in names:
        controller.create_sandbox(name)
        controller.connect("web", name, ports=parse_publish("80"))
    controller.remove_sandboxes(names)
    assert controller.sandboxes() == []
    assert not any(link["ifname"].startswith("veth") for link in _ip("link"))
    controller.remove_network("web")


def test_how_many_go_at_once_costs_no_more_questions(controller: Controller, monkeypatch: pytest.MonkeyPatch) -> None:
    controller.create_network("web")
    counts: list[int] = []
    read = controller.store.read

    def counted() -> AbstractContextManager[Transaction]:
        counts[-1] += 1
        return read()

    monkeypatch.setattr(controller.store, "read", counted)
    for number in (2, 12):
        names = [f"box{index}" for index in range(number)]
        counts.append(0)
        for name in names:
            controller.create_sandbox(name)
            controller.connect("web", name, ports=parse_publish("80"))
        counts[-1] = 0
        controller.remove_sandboxes(names)
    assert counts[0] == counts[1]


def test_a_refused_first_use_makes_no_link(controller: Controller) -> None:
    controller.create_sandbox("box")
    before = snapshot()
    with pytest.raises(PortTaken, match="twice"):
        controller.connect("bridge", "box", ports=[*parse_publish("9000:80"), *parse_publish("9000:81")])
    assert snapshot() == before


def test_one_host_and_one_none_network_and_no_network_without_a_family(controller: Controller) -> None:
    for driver in ("host", "none"):
        with pytest.raises(ConfigError, match=f"there is one network of driver {driver}"):
            controller.create_network("second", driver=driver, ipv4=False)
    with pytest.raises(ConfigError, match="IPv4 or IPv6"):
        controller.create_network("neither", ipv4=False)


def test_a_port_on_an_address_of_a_family_that_the_network_lacks_is_refused(controller: Controller) -> None:
    controller.create_sandbox("box")
    with pytest.raises(ConfigError, match=r"2001:db8::1.*IPv6"):
        controller.connect("bridge", "box", ports=parse_publish("[2001:db8::1]:8080:80"))


def test_a_second_store_does_not_touch_the_firewall_of_the_first(controller: Controller, tmp_path: Path) -> None:
    controller.create_network("web")
    before = snapshot()
    with Controller(Config(state_dir=tmp_path / "other", run_dir=tmp_path / "run"), watcher=Unwatched()) as other:
        with pytest.raises(Conflict, match="another netlib store"):
            other.create_network("mine")
        assert [network.name for network in other.networks()] == ["bridge", "host", "none"]
    assert snapshot() == before


def test_arguments_of_the_wrong_type_are_refused_and_nothing_is_changed(controller: Controller, tmp_path: Path) -> None:
    controller.create_network("web")
    controller.create_sandbox("box")
    calls: list[Callable[[], object]] = [
        lambda: controller.create_network(None),  # type: ignore[arg-type]
        lambda: controller.create_network("x", subnets="10.0.0.0/24"),
        lambda: controller.create_network("x", subnets=[10]),  # type: ignore[list-item]
        lambda: controller.create_sandbox(None),  # type: ignore[arg-type]
        lambda: controller.create_sandbox("x", hostname=5),  # type: ignore[arg-type]
        lambda: controller.create_sandbox("x", resolver=ResolverConfig(search="abc")),  # type: ignore[arg-type]
        lambda: controller.connect("web", "box", aliases="abc"),
        lambda: controller.connect("web", "box", ports="8080:80"),
        lambda: controller.connect("web", "box", ip=5),  # type: ignore[arg-type]
        lambda: controller.remove_sandboxes("box"),
    ]
    before = snapshot()
    for call in calls:
        with pytest.raises(ConfigError):
            call()
    for lookup in (controller.network, controller.sandbox, controller.remove_network, controller.remove_sandbox):
        with pytest.raises(NotFound, match="None"):
            lookup(None)  # type: ignore[arg-type]
    assert snapshot() == before
    assert [network.name for network in controller.networks()] == ["bridge", "host", "none", "web"]
    assert [sandbox.name for sandbox in controller.sandboxes()] == ["box"]


def test_a_name_comes_before_the_beginning_of_an_id(controller: Controller) -> None:
    digit = controller.create_network("net").id[0]
    controller.create_sandbox(digit)
    controller.connect("net", digit)
    assert "netns add" in "\n".join(controller.explain(digit))
    assert controller.create_network(digit).name == digit
    assert controller.network(digit).name == digit


def test_endpoints_of_a_sandbox_in_a_network(controller: Controller) -> None:
    for name in ("a", "b"):
        controller.create_network(name)
        controller.create_sandbox(f"box-{name}")
    pairs = [("a", "box-a"), ("a", "box-b"), ("b", "box-a")]
    made = {pair: controller.connect(*pair).id for pair in pairs}
    assert {pair: [item.id for item in controller.endpoints(network=pair[0], sandbox=pair[1])] for pair in pairs} == {
        pair: [record] for pair, record in made.items()
    }
    assert controller.endpoints(network="b", sandbox="box-b") == []
    assert len(controller.endpoints()) == 3
