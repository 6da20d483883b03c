"""Routers that are none: members that advertise themselves, or redirect. Nobody who did not ask for it listens to them."""

import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from scapy.packet import Packet

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.kernel.bridges import Bridge
from netlib.kernel.handle import Kernel
from netlib.kernel.linkinfo import LinkInfo
from netlib.kernel.links import Veth
from netlib.kernel.netns import entered
from netlib.kernel.routers import router_refusal_drift
from netlib.kernel.sublinks import Dummy, Ifb, Vlan
from netlib.kernel.taps import Tap
from netlib.model import HOST, NetnsRef
from netlib.plan import KernelObject
from netlib.testing.snapshot import differences, snapshot
from tests.kernel.frames import (
    ADDRESS6,
    LEARNT,
    LINK,
    ROUTE6,
    advertisement,
    changes,
    mark,
    redirect4,
    redirect6,
    send,
)
from tests.kernel.test_on_the_wire import capture

NAMES = ("net.ipv4.conf.{}.accept_redirects", "net.ipv6.conf.{}.accept_ra", "net.ipv6.conf.{}.accept_redirects")
AWAY4, AWAY6 = "10.81.0.77", "fe80::77"
TARGET4, TARGET6 = "198.51.100.1", "2001:db8:1::1"


@pytest.fixture
def controller(config: Config) -> Iterator[Controller]:
    with Controller(config, watcher=Unwatched()) as controller:
        yield controller
        controller.reset()


def run(*command: str, netns: NetnsRef = HOST) -> str:
    with entered(netns):
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def settings(ifname: str, netns: NetnsRef = HOST) -> list[str]:
    return run("sysctl", "-n", *(name.format(ifname.replace(".", "/")) for name in NAMES), netns=netns).split()


def set_sysctl(name: str, value: int, netns: NetnsRef = HOST) -> None:
    run("sysctl", "-qw", f"{name}={value}", netns=netns)


def arrived(sender: NetnsRef, ifname: str, frames: Sequence[Packet], receiver: NetnsRef, link: str, mac: str) -> None:
    """Send *frames* and wait until the receiver's link has had them: until what is sent after them comes by."""
    with capture(receiver, link) as first:
        send(sender, ifname, *frames, mark(mac))
        first(lambda packet: b"mark" in bytes(packet))


def learns(netns: NetnsRef) -> bool:
    return LEARNT.removesuffix("::/64") in run("ip", "-6", "addr", netns=netns) + run("ip", "-6", "route", netns=netns)


# --- what stands on the host ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "ifnames"),
    [
        (Bridge(ifname="br-x"), ["br-x"]),
        (Bridge(ifname="br.x", ipv6=False, filtered=True), ["br.x"]),
        (Veth(ifname="v0", peer="v1", peer_netns=HOST), ["v0", "v1"]),
        (Ifb(ifname="ifb9", up=True), ["ifb9"]),
        (Tap(ifname="tap9"), ["tap9"]),
        pytest.param(Dummy(ifname="dm9", up=True), ["dm9"], marks=pytest.mark.needs_link_kind("dummy")),
        pytest.param(
            Vlan(ifname="carrier.7", parent="carrier", vlan_id=7, up=True),
            ["carrier.7"],
            marks=pytest.mark.needs_link_kind("vlan"),
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, KernelObject) else None,
)
def test_a_link_of_the_host_refuses_routers_before_it_is_up(item: KernelObject, ifnames: list[str]) -> None:
    carrier = Veth(ifname="carrier", peer="far", peer_netns=HOST)
    with Kernel("netlib:test:record") as kernel:
        if isinstance(item, Vlan):
            carrier.ensure(kernel)
        with changes(LINK) as events:
            item.ensure(kernel)
            told = [link for link in events.links() if link.ifname in ifnames]
        assert {link.ifname for link in told} == {*ifnames}
        assert [(link.ifname, router_refusal_drift(link)) for link in told if link.up and router_refusal_drift(link)] == []
        for ifname in ifnames:
            assert settings(ifname) == ["0", "0", "0"]
            for name in NAMES:
                set_sysctl(name.format(ifname.replace(".", "/")), 1)
                assert f"{name.rpartition('.')[2]} is '1', not '0'" in str(item.drift(kernel))
                item.ensure(kernel)
                assert item.drift(kernel) is None
        item.remove(kernel)
        carrier.remove(kernel)


def test_a_link_that_others_bring_up_would_be_seen() -> None:
    """What the tests above look for, seen where it is so."""
    with changes(LINK) as events:
        run("ip", "link", "add", "open0", "type", "veth", "peer", "name", "open1")
        run("ip", "link", "set", "open0", "up")
        assert any(link.ifname == "open0" and link.up and router_refusal_drift(link) for link in events.links())
    run("ip", "link", "del", "open0")


@pytest.mark.parametrize("kind", ["bridge", "veth"])
def test_a_link_too_small_for_ipv6_gets_its_settings_when_it_grows(kind: str, netns_factory: Callable[[str], NetnsRef]) -> None:
    peer = netns_factory("web")

    def item(mtu: int) -> KernelObject:
        if kind == "bridge":
            return Bridge(ifname="small", mtu=mtu)
        return Veth(ifname="small", peer="eth0", peer_netns=peer, mtu=mtu)

    with Kernel("netlib:test:record") as kernel:
        item(1000).ensure(kernel)
        assert item(1000).drift(kernel) is None
        assert not Path("/proc/sys/net/ipv6/conf/small").exists()
        item(1400).ensure(kernel)
        assert settings("small") == ["0", "0", "0"]
        assert item(1400).drift(kernel) is None
        item(1400).remove(kernel)


def test_an_adopted_bridge_keeps_what_its_owner_set(controller: Controller) -> None:
    run("ip", "link", "add", "br-lan", "type", "bridge")
    try:
        for name in NAMES:
            set_sysctl(name.format("br-lan"), 1)
        controller.create_network("lan", subnets=["10.9.0.0/24"], options={"com.docker.network.bridge.name": "br-lan"})
        controller.create_sandbox("box")
        controller.connect("lan", "box")
        assert settings("br-lan") == ["1", "1", "1"]
        assert controller.check("lan") == []
        controller.remove_sandbox("box")
        controller.remove_network("lan")
        assert settings("br-lan") == ["1", "1", "1"]
    finally:
        run("ip", "link", "del", "br-lan")


def test_no_way_in_leaves_a_link_of_the_host_that_listens(
    controller: Controller, netns_factory: Callable[[str], NetnsRef]
) -> None:
    foreign = netns_factory("foreign")
    before = settings("all")[1:], settings("default")
    with changes(LINK) as events:
        controller.create_network("web", subnets=["10.81.0.0/24", "fd81::/64"])
        controller.create_network("inner", internal=True)
        controller.create_network("apart", options={"com.docker.network.bridge.enable_icc": "false"})
        controller.create_sandbox("box")
        controller.create_sandbox("theirs", netns=foreign.path)
        for network in ("web", "inner", "apart"):
            controller.connect(network, "box")
            controller.connect(network, "theirs")
        told = [link for link in events.links() if link.up]
    assert len({link.ifname for link in told if link.kind == "bridge"}) == 3
    assert len({link.ifname for link in told if link.kind == "veth"}) == 6
    assert [(link.ifname, router_refusal_drift(link)) for link in told if router_refusal_drift(link)] == []
    assert (settings("all")[1:], settings("default")) == before  # IPv4's the kernel sets itself when forwarding is switched
    for reference in ("web", "inner", "apart", "box", "theirs"):
        assert controller.check(reference) == []


@pytest.mark.needs_link_kind("dummy", "vlan")
def test_parents_made_for_lan_networks_listen_to_nobody(controller: Controller) -> None:
    run("ip", "link", "add", "trunk0", "type", "veth", "peer", "name", "far")
    run("ip", "link", "set", "far", "up")
    try:
        with changes(LINK) as events:
            controller.create_network("alone", driver="macvlan", subnets=["10.91.0.0/24", "fd91::/64"])
            controller.create_network("tagged", driver="macvlan", subnets=["10.92.0.0/24"], options={"parent": "trunk0.7"})
            box = controller.create_sandbox("box").netns
            for network in ("alone", "tagged"):
                controller.connect(network, "box")
            told = [link for link in events.links() if link.up]
        assert {"dummy", "vlan"} <= {link.kind for link in told}
        ours = [link for link in told if link.kind in ("dummy", "vlan")]
        assert [(link.ifname, router_refusal_drift(link)) for link in ours if router_refusal_drift(link)] == []
        for ifname in ("eth0", "eth1"):
            assert settings(ifname, box) == ["0", "0", "0"]
        for reference in ("alone", "tagged", "box"):
            assert controller.check(reference) == []
        controller.remove_sandbox("box")
        for network in ("alone", "tagged"):
            controller.remove_network(network)
    finally:
        run("ip", "link", "del", "trunk0")


# --- namespaces ----------------------------------------------------------------------------------------------------------


def test_a_netns_of_ours_is_born_so_and_one_of_others_is_as_it_was(
    controller: Controller, netns_factory: Callable[[str], NetnsRef]
) -> None:
    foreign = netns_factory("foreign")
    before = settings("default", foreign), settings("all", foreign)
    controller.create_network("web", subnets=["10.81.0.0/24", "fd81::/64"])
    ours = controller.create_sandbox("box").netns
    controller.create_sandbox("theirs", netns=foreign.path)
    for name in ("box", "theirs"):
        controller.connect("web", name)
    assert settings("eth0", ours) == settings("default", ours) == ["0", "0", "0"]
    assert settings("all", ours)[0] == "0"
    assert (settings("default", foreign), settings("all", foreign)) == before
    assert settings("eth0", foreign) == before[0] == ["1", "1", "1"]


def _pair(controller: Controller) -> tuple[NetnsRef, NetnsRef]:
    controller.create_network("web", subnets=["10.81.0.0/24", "fd81::/64"])
    return _member(controller, "router"), _member(controller, "box")


def _member(controller: Controller, name: str, sysctls: Mapping[str, str] | None = None) -> NetnsRef:
    netns = controller.create_sandbox(name, sysctls=sysctls or {}).netns
    controller.connect("web", name)
    return netns


def test_an_advertising_member_changes_neither_its_neighbour_nor_the_host(controller: Controller) -> None:
    router, box = _pair(controller)
    bridge = next(link.ifname for link in _links() if link.kind == "bridge")
    before = snapshot(), snapshot(box)
    arrived(router, "eth0", [advertisement()], box, "eth0", "ff:ff:ff:ff:ff:ff")
    arrived(router, "eth0", [advertisement()], HOST, bridge, "ff:ff:ff:ff:ff:ff")
    assert differences(before[0], snapshot()) == [] == differences(before[1], snapshot(box))
    set_sysctl("net.ipv6.conf.eth0.accept_ra", 1, box)  # a process inside asks for it: the same frame is heard
    with changes(ADDRESS6 | ROUTE6, box) as events:
        send(router, "eth0", advertisement())
        assert events.until(lambda: learns(box))
    assert controller.check("box") == []
    set_sysctl("net.ipv6.conf.all.forwarding", 0)  # else it takes 2 to listen
    set_sysctl(f"net.ipv6.conf.{bridge}.accept_ra", 1)
    with changes(ADDRESS6 | ROUTE6) as events:
        send(router, "eth0", advertisement())
        assert events.until(lambda: learns(HOST))
    set_sysctl("net.ipv6.conf.all.forwarding", 1)


def _links() -> list[LinkInfo]:
    with Kernel() as kernel:
        return kernel.rtnl().links()


def _know(address: str, ifname: str, netns: NetnsRef) -> None:
    """Have it a neighbour: the kernel follows no IPv4 redirect to somebody whom it does not find."""
    run("ip", "neigh", "replace", address, "lladdr", "02:00:00:00:00:77", "dev", ifname, "nud", "permanent", netns=netns)


def _way(target: str, netns: NetnsRef) -> str:
    return run("ip", "route", "get", target, netns=netns).split(" dev ")[0]


def test_a_redirecting_member_changes_no_way_of_its_neighbour(controller: Controller) -> None:
    router, box = _pair(controller)
    own = {item.version: str(item.ip) for item in controller.endpoints(sandbox="box")[0].addresses}
    mac = controller.endpoints(sandbox="box")[0].mac
    by = {item.version: str(item.ip) for item in controller.endpoints(sandbox="router")[0].addresses}
    run("ip", "route", "add", TARGET4, "via", by[4], netns=box)
    run("ip", "route", "add", TARGET6, "via", "fe80::5", "dev", "eth0", netns=box)
    _know(AWAY4, "eth0", box)
    frames = [
        redirect4(by[4], TARGET4, AWAY4, host=own[4], mac=mac),
        redirect6("fe80::5", TARGET6, AWAY6, host=own[6], mac=mac),
    ]
    before = _way(TARGET4, box), _way(TARGET6, box)
    arrived(router, "eth0", frames, box, "eth0", mac)
    assert (_way(TARGET4, box), _way(TARGET6, box)) == before
    for name in (NAMES[0], NAMES[2]):
        set_sysctl(name.format("eth0"), 1, box)
    arrived(router, "eth0", frames, box, "eth0", mac)
    assert [AWAY4 in _way(TARGET4, box), AWAY6 in _way(TARGET6, box)] == [True, True]


@pytest.mark.parametrize("forwarding", [0, 1])
def test_a_redirecting_member_changes_no_way_of_the_host(controller: Controller, forwarding: int) -> None:
    """Also where the host forwards nothing: then ``conf.all``, which is not ours, would allow an IPv4 redirect."""
    router, _ = _pair(controller)
    bridge = next(link for link in _links() if link.kind == "bridge")
    by = {item.version: str(item.ip) for item in controller.endpoints(sandbox="router")[0].addresses}
    set_sysctl("net.ipv4.ip_forward", forwarding)
    set_sysctl("net.ipv6.conf.all.forwarding", forwarding)
    set_sysctl("net.ipv4.conf.all.accept_redirects", 1)  # changing ip_forward resets it
    run("ip", "route", "add", TARGET4, "via", by[4])
    run("ip", "route", "add", TARGET6, "via", "fe80::5", "dev", bridge.ifname)
    _know(AWAY4, bridge.ifname, HOST)
    try:
        frames = [
            redirect4(by[4], TARGET4, AWAY4, host="10.81.0.1", mac=bridge.mac),
            redirect6("fe80::5", TARGET6, AWAY6, host="fe80::1", mac=bridge.mac),
        ]
        before = _way(TARGET4, HOST), _way(TARGET6, HOST)
        arrived(router, "eth0", frames, HOST, bridge.ifname, bridge.mac)
        assert (_way(TARGET4, HOST), _way(TARGET6, HOST)) == before
        # The same frames are taken where nothing of ours is in their way; of IPv6 not by a host that forwards.
        run("nft", "flush", "chain", "inet", "netlib", "input")
        for name in (NAMES[0], NAMES[2]) if forwarding else (NAMES[2],):
            set_sysctl(name.format(bridge.ifname), 1)
        arrived(router, "eth0", frames, HOST, bridge.ifname, bridge.mac)
        assert AWAY4 in _way(TARGET4, HOST)
        assert (AWAY6 in _way(TARGET6, HOST)) == (not forwarding)
    finally:
        set_sysctl("net.ipv4.ip_forward", 1)
        set_sysctl("net.ipv6.conf.all.forwarding", 1)
        run("ip", "route", "del", TARGET4)
        run("ip", "route", "del", TARGET6)


# --- asked for -----------------------------------------------------------------------------------------------------------


def test_a_sandbox_that_was_asked_to_listen_does(controller: Controller) -> None:
    controller.create_network("web", subnets=["10.81.0.0/24", "fd81::/64"])
    router = _member(controller, "router")
    box = _member(controller, "box", sysctls={"net.ipv6.conf.eth0.accept_ra": "2", "net.ipv6.conf.eth1.accept_ra": "1"})
    assert settings("eth0", box)[1] == "2"
    assert controller.check("box") == []
    with changes(ADDRESS6 | ROUTE6, box) as events:
        send(router, "eth0", advertisement())
        assert events.until(lambda: learns(box))
    controller.create_network("more", subnets=["10.82.0.0/24", "fd82::/64"])
    controller.connect("more", "box")
    assert settings("eth1", box)[1] == "1"
    controller.disconnect("more", "box")
    assert controller.check("box") == []


def test_what_a_sandbox_was_asked_to_have_wins_over_what_its_endpoint_sets(controller: Controller) -> None:
    controller.create_network("web")
    _member(controller, "box", sysctls={"net.ipv6.conf.eth0.disable_ipv6": "0"})
    assert run("ip", "netns", "exec", "box", "sysctl", "-n", "net.ipv6.conf.eth0.disable_ipv6").strip() == "0"
    assert controller.check("box") == []


@pytest.mark.needs_kernel("no_ipv6")
def test_without_ipv6_links_refuse_redirects(controller: Controller) -> None:
    controller.create_network("web")
    box = _member(controller, "box")
    assert run("sysctl", "-n", "net.ipv4.conf.eth0.accept_redirects", netns=box).strip() == "0"
    for link in _links():
        if link.kind in ("bridge", "veth"):
            name = link.ifname
            assert Path(f"/proc/sys/net/ipv4/conf/{name}/accept_redirects").read_text() == "0\n"
    assert controller.check("web") == [] == controller.check("box")
