"""Containers that advertise themselves as routers, or redirect: the host's ends of their links take neither."""

import subprocess
from typing import Any

import pytest

from netlib.core.controller import Controller
from netlib.kernel.handle import Kernel
from netlib.kernel.linkinfo import LinkInfo
from netlib.kernel.routers import router_refusal_drift
from netlib.model import HOST, NetnsRef
from netlib.testing.snapshot import differences, snapshot
from tests.cni.calling import Caller, run
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

TARGET4, TARGET6 = "198.51.100.1", "2001:db8:1::1"
AWAY4, AWAY6 = "10.22.0.77", "fe80::77"


def conf(kind: str, number: int = 2, **more: Any) -> dict[str, Any]:
    given = {"address": f"10.22.0.{number}/16", "gateway": "10.22.0.1"}
    ipam = {"type": "static", "addresses": [given]}
    return {"cniVersion": "1.1.0", "name": "pods", "type": kind, "ipam": ipam, "isGateway": True, **more}


def where(container: str) -> NetnsRef:
    return NetnsRef(f"/run/netns/{container}")


def links() -> list[LinkInfo]:
    with Kernel() as kernel:
        return kernel.rtnl().links()


def host_link(config: dict[str, Any], result: dict[str, Any]) -> LinkInfo:
    """Where the host is spoken to: the bridge, or the host's end of the pair; both are the first interface of a result."""
    (found,) = [link for link in links() if link.ifname == result["interfaces"][0]["name"]]
    assert found.kind == ("bridge" if config["type"] == "bridge" else "veth")
    return found


def arrived(container: str, frames: list[Any], link: LinkInfo) -> None:
    """Send *frames* to the host, and wait until it has had them."""
    with capture(HOST, link.ifname) as first:
        send(where(container), "eth0", *frames, mark(link.mac))
        first(lambda packet: b"mark" in bytes(packet))


def way(target: str) -> str:
    return run("ip", "route", "get", target).split(" dev ")[0]


def learns() -> bool:
    return LEARNT.removesuffix("::/64") in run("ip", "-6", "addr") + run("ip", "-6", "route")


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_an_advertising_container_gives_the_host_no_address_and_no_route(caller: Caller, kind: str) -> None:
    caller.container("c1")
    config = conf(kind)
    link = host_link(config, caller.ok("ADD", config))
    run("sysctl", "-qw", f"net.ipv6.conf.{link.ifname}.disable_ipv6=0")
    assert run("sysctl", "-n", "net.ipv6.conf.all.forwarding").strip() == "0"  # a host that forwards IPv6 would not listen
    before = snapshot()
    arrived("c1", [advertisement()], link)
    assert differences(before, snapshot()) == []
    run("sysctl", "-qw", f"net.ipv6.conf.{link.ifname}.accept_ra=1")  # the same frame is heard where it is not refused
    with changes(ADDRESS6 | ROUTE6) as events:
        send(where("c1"), "eth0", advertisement())
        assert events.until(learns)


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_a_redirecting_container_changes_no_way_of_the_host(caller: Caller, kind: str) -> None:
    caller.container("c1")
    config = conf(kind)
    link = host_link(config, caller.ok("ADD", config))
    run("sysctl", "-qw", "net.ipv4.conf.all.accept_redirects=1")
    run("ip", "addr", "add", "fe80::1/64", "dev", link.ifname, "nodad")
    run("ip", "route", "add", TARGET4, "via", "10.22.0.2", "dev", link.ifname, "onlink")
    run("ip", "route", "add", TARGET6, "via", "fe80::5", "dev", link.ifname)
    run("ip", "neigh", "replace", AWAY4, "lladdr", "02:00:00:00:00:77", "dev", link.ifname, "nud", "permanent")
    frames = [
        redirect4("10.22.0.2", TARGET4, AWAY4, host="10.22.0.1", mac=link.mac),
        redirect6("fe80::5", TARGET6, AWAY6, host="fe80::1", mac=link.mac),
    ]
    before = way(TARGET4), way(TARGET6)
    arrived("c1", frames, link)
    assert (way(TARGET4), way(TARGET6)) == before
    for version in (4, 6):
        run("sysctl", "-qw", f"net.ipv{version}.conf.{link.ifname}.accept_redirects=1")
    arrived("c1", frames, link)
    assert [AWAY4 in way(TARGET4), AWAY6 in way(TARGET6)] == [True, True]


def test_no_plugin_brings_up_a_link_that_listens(caller: Caller, controller: Controller) -> None:
    with changes(LINK) as events:
        for number, config in enumerate(
            (
                conf("bridge", 2),
                conf("bridge", 3, bridge="cni1", isDefaultGateway=True, ipMasq=True),
                conf("bridge", bridge="cni2", isGateway=False, ipam={}),
                conf("ptp", 5, ipMasq=True),
            )
        ):
            caller.container(f"c{number}")
            caller.ok("ADD", config, f"c{number}")
        shaped = caller.ok("ADD", conf("ptp", 9), "c0", ifname="eth9")
        bandwidth = {"type": "bandwidth", "ingressRate": 8000, "ingressBurst": 8000, "egressRate": 8000, "egressBurst": 8000}
        caller.ok("ADD", {"cniVersion": "1.1.0", "name": "pods", **bandwidth, "prevResult": shaped}, "c0", ifname="eth9")
        told = [link for link in events.links() if link.up]
    assert {link.kind for link in told} == {"bridge", "veth", "ifb"}
    assert len({link.ifname for link in told if link.kind == "veth"}) == 5
    assert [(link.ifname, router_refusal_drift(link)) for link in told if router_refusal_drift(link)] == []
    for container in ("c0", "c1", "c2", "c3"):  # what is inside is the container's own affair
        assert run("ip", "netns", "exec", container, "sysctl", "-n", "net.ipv6.conf.eth0.accept_ra").strip() == "1"


@pytest.mark.needs_link_kind("bridge_vlan_filtering")
def test_a_gateway_in_a_vlan_listens_to_no_router(caller: Caller) -> None:
    caller.container("c1")
    with changes(LINK) as events:
        caller.ok("ADD", conf("bridge", vlan=100))
        told = [link for link in events.links() if link.up]
    assert "cni0.100" in {link.ifname for link in told}
    assert [(link.ifname, router_refusal_drift(link)) for link in told if router_refusal_drift(link)] == []


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_check_names_a_link_that_listens(caller: Caller, kind: str) -> None:
    caller.container("c1")
    config = conf(kind)
    result = caller.ok("ADD", config)
    port = result["interfaces"][1 if kind == "bridge" else 0]["name"]
    run("sysctl", "-qw", f"net.ipv6.conf.{port}.accept_ra=1")
    assert (
        f"sysctl net/ipv6/conf/{port}/accept_ra is '1', not '0'" in caller.error("CHECK", {**config, "prevResult": result})[1]
    )
    run("sysctl", "-qw", f"net.ipv6.conf.{port}.accept_ra=0")
    caller.ok("CHECK", {**config, "prevResult": result})


def test_what_tuning_asks_for_in_a_netns_of_ours_is_heard_and_no_drift(caller: Caller, controller: Controller) -> None:
    controller.create_network("web", subnets=["10.81.0.0/24", "fd81::/64"])
    for name in ("router", "box"):
        controller.create_sandbox(name)
        controller.connect("web", name)
    box = controller.sandbox("box").netns
    previous = {"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": box.path}], "ips": []}
    tuning = {"cniVersion": "1.1.0", "name": "pods", "type": "tuning", "sysctl": {"net.ipv6.conf.eth0.accept_ra": "2"}}
    caller.ok("ADD", {**tuning, "prevResult": previous}, "box")
    assert controller.check("box") == []
    with changes(ADDRESS6 | ROUTE6, box) as events:
        send(controller.sandbox("router").netns, "eth0", advertisement())
        assert events.until(lambda: LEARNT.removesuffix("::/64") in run("ip", "-n", "box", "-6", "addr"))
    caller.ok("CHECK", {**tuning, "prevResult": previous}, "box")
    caller.ok("DEL", {**tuning, "prevResult": previous}, "box")
    asked = subprocess.run(
        ["ip", "netns", "exec", "box", "sysctl", "-n", "net.ipv6.conf.eth0.accept_ra"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert asked.stdout.strip() == "0"
