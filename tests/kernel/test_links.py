"""Bridges, veth pairs and ports in fresh netns: made once, changed live, never somebody else's."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import pytest
from msgspec.structs import replace

from netlib.errors import AlreadyExists, ConfigError, FeatureMissing, KernelError, ObjectMissing
from netlib.kernel import bridges
from netlib.kernel.bridges import Bridge, BridgePort
from netlib.kernel.handle import Kernel
from netlib.kernel.linkinfo import IFLA_GROUP, IFLA_IFNAME, IFLA_LINKINFO, INFO_KIND, RTM_NEWLINK, RTM_SETLINK, link_header
from netlib.kernel.links import LinkUp, Veth, remove_links
from netlib.kernel.netlink import CREATE, EXCLUSIVE, attribute, nest, number, text
from netlib.kernel.netns import create_netns, delete_netns
from netlib.model import NetnsRef
from netlib.plan import KernelObject
from netlib.testing.snapshot import differences, snapshot

TAG = "netlib:test:record"
MAC = "02:42:0a:00:00:02"


@pytest.fixture
def host(netns_factory: Callable[[str], NetnsRef]) -> NetnsRef:
    return netns_factory("host")


@pytest.fixture
def web(netns_factory: Callable[[str], NetnsRef]) -> NetnsRef:
    return netns_factory("web")


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    with Kernel(TAG) as handle:
        yield handle


def ip(netns: NetnsRef, command: str) -> str:
    return subprocess.run(["ip", "-n", netns.label, *command.split()], check=True, capture_output=True, text=True).stdout


def settle(kernel: Kernel, item: KernelObject) -> None:
    """Ensure twice: the second time changes nothing."""
    item.ensure(kernel)
    before = snapshot(item.netns)
    item.ensure(kernel)
    assert differences(before, snapshot(item.netns)) == []
    assert item.drift(kernel) is None


def vanish(kernel: Kernel, item: KernelObject) -> None:
    item.remove(kernel)
    item.remove(kernel)
    assert item.drift(kernel) is not None


# --- bridge ------------------------------------------------------------------------------------------------------------


def test_bridge_is_made_with_mac_mtu_and_tag_and_goes_without_trace(kernel: Kernel, host: NetnsRef) -> None:
    before = snapshot(host)
    bridge = Bridge(ifname="br-web", mac="02:42:ac:12:00:01", mtu=1400, netns=host)
    settle(kernel, bridge)
    link = kernel.rtnl(host).get_link("br-web")
    assert (link.kind, link.up, link.mac, link.mtu, link.alias, link.group) == ("bridge", True, bridge.mac, 1400, TAG, 0)
    vanish(kernel, bridge)
    assert differences(before, snapshot(host)) == []


def test_bridge_mtu_stays_when_a_port_with_another_one_comes(kernel: Kernel, host: NetnsRef, web: NetnsRef) -> None:
    bridge = Bridge(ifname="br-web", mtu=1400, netns=host)
    bridge.ensure(kernel)
    Veth(ifname="veth0", peer="eth0", peer_netns=web, mtu=1300, netns=host).ensure(kernel)
    BridgePort(ifname="veth0", bridge="br-web", netns=host).ensure(kernel)
    assert bridge.drift(kernel) is None


def test_bridge_changes_live(kernel: Kernel, host: NetnsRef) -> None:
    Bridge(ifname="br-web", mtu=1400, netns=host).ensure(kernel)
    index = kernel.rtnl(host).index("br-web")
    wider = Bridge(ifname="br-web", mtu=1500, mac="02:42:ac:12:00:09", netns=host)
    assert wider.drift(kernel) is not None
    settle(kernel, wider)
    assert kernel.rtnl(host).index("br-web") == index


@pytest.mark.parametrize(
    ("damage", "drift"),
    [
        ("link set br-web mtu 1300", "MTU 1300, not 1400"),
        ("link set br-web down", "is down"),
        ("link set br-web address 02:00:00:00:00:01", "has MAC address 02:00:00:00:00:01"),
        ("link del br-web", "is missing"),
    ],
)
def test_bridge_drift_is_named_and_repaired(kernel: Kernel, host: NetnsRef, damage: str, drift: str) -> None:
    bridge = Bridge(ifname="br-web", mac="02:42:ac:12:00:01", mtu=1400, netns=host)
    bridge.ensure(kernel)
    ip(host, damage)
    assert drift in str(bridge.drift(kernel))
    settle(kernel, bridge)


def test_bridge_does_not_listen_to_router_advertisements(kernel: Kernel, host: NetnsRef) -> None:
    bridge = Bridge(ifname="br.web", netns=host)  # a name with a dot
    settle(kernel, bridge)
    with kernel.entered(host):
        setting = Path("/proc/sys/net/ipv6/conf/br.web/accept_ra")
        assert setting.read_text() == "0\n"
        setting.write_text("1")
    assert "accept_ra is '1', not '0'" in str(bridge.drift(kernel))


def test_bridge_with_an_mtu_too_small_for_ipv6(kernel: Kernel, host: NetnsRef) -> None:
    settle(kernel, Bridge(ifname="br-web", mtu=1000, netns=host))


def test_bridge_of_somebody_else_is_adopted_and_has_back_what_it_had(kernel: Kernel, host: NetnsRef) -> None:
    ip(host, "link add br0 mtu 1300 type bridge")
    before, settings = snapshot(host), kernel.rtnl(host).get_link("br0").data
    bridge = Bridge(ifname="br0", mac=MAC, mtu=1400, filtered=True, netns=host).observed(kernel)
    assert bridge.adopted
    assert bridge.drift(kernel) is not None
    settle(kernel, bridge)
    link = kernel.rtnl(host).get_link("br0")
    assert (link.up, link.mtu, link.alias, link.mac) == (True, 1400, "", bridge.adopted.mac)
    assert bridge.observed(kernel).adopted != bridge.adopted  # so that what was seen first is what counts
    bridge.remove(kernel)
    assert differences(before, snapshot(host)) == []
    after = kernel.rtnl(host).get_link("br0").data
    assert [after[kind] for kind in (36, 37)] == [settings[kind] for kind in (36, 37)] == [b"\0", b"\0"]


def test_bridge_of_ours_is_not_adopted(kernel: Kernel, host: NetnsRef) -> None:
    bridge = Bridge(ifname="br0", netns=host)
    assert not bridge.observed(kernel).adopted
    bridge.ensure(kernel)
    assert not bridge.observed(kernel).adopted


def test_bridge_with_the_name_of_another_link_is_refused_when_observed(kernel: Kernel, host: NetnsRef) -> None:
    with pytest.raises(ConfigError, match=r"link lo in .* is no bridge"):
        Bridge(ifname="lo", netns=host).observed(kernel)


def test_bridge_made_by_somebody_else_meanwhile_is_refused_and_left(kernel: Kernel, host: NetnsRef) -> None:
    bridge = Bridge(ifname="br0", netns=host)
    ip(host, "link add br0 type bridge")
    before = snapshot(host)
    with pytest.raises(AlreadyExists, match=r"link br0 exists in .* is not netlib's"):
        bridge.ensure(kernel)
    bridge.remove(kernel)  # as the way back does
    assert differences(before, snapshot(host)) == []


def test_half_made_bridge_is_ours(kernel: Kernel, host: NetnsRef) -> None:
    with Kernel() as untagged:  # leaves what a crash between the two requests leaves: the mark, no tag
        Bridge(ifname="br0", netns=host).ensure(untagged)
    settle(kernel, Bridge(ifname="br0", netns=host))
    assert kernel.rtnl(host).get_link("br0").alias == TAG
    vanish(kernel, Bridge(ifname="br0", netns=host))


def test_unknown_kind_of_link_is_a_missing_feature(kernel: Kernel, host: NetnsRef) -> None:
    kind = nest(IFLA_LINKINFO, attribute(INFO_KIND, b"nosuchkind"))
    with pytest.raises(FeatureMissing, match="this kernel lacks the feature"):
        kernel.rtnl(host).order("create x", (RTM_NEWLINK, CREATE | EXCLUSIVE, link_header() + text(IFLA_IFNAME, "x") + kind))


# --- veth --------------------------------------------------------------------------------------------------------------


def test_veth_reaches_into_the_sandbox(kernel: Kernel, host: NetnsRef, web: NetnsRef) -> None:
    before = snapshot(host), snapshot(web)
    veth = Veth(ifname="veth0", peer="eth0", peer_netns=web, mac=MAC, mtu=1400, netns=host)
    settle(kernel, veth)
    outer, inner = kernel.rtnl(host).get_link("veth0"), kernel.rtnl(web).get_link("eth0")
    assert (outer.mtu, outer.up, outer.alias, outer.group) == (1400, True, TAG, 0)
    assert (inner.mtu, inner.up, inner.mac, inner.alias, inner.group) == (1400, False, MAC, "", 0)
    assert "addrgenmode none" in ip(host, "-d link show veth0")
    vanish(kernel, veth)
    assert differences(before[0], snapshot(host)) == []
    assert differences(before[1], snapshot(web)) == []


def test_veth_host_end_gets_no_address_by_itself(kernel: Kernel, host: NetnsRef, web: NetnsRef) -> None:
    Veth(ifname="veth0", peer="eth0", peer_netns=web, netns=host).ensure(kernel)
    LinkUp(ifname="eth0", netns=web).ensure(kernel)
    deadline = monotonic() + 10
    while "fe80" not in ip(web, "addr show eth0"):  # the peer gets one, when it finds its carrier
        assert monotonic() < deadline
    assert "inet" not in ip(host, "addr show veth0")


def test_veth_with_an_mtu_too_small_for_ipv6(kernel: Kernel, host: NetnsRef, web: NetnsRef) -> None:
    settle(kernel, Veth(ifname="veth0", peer="eth0", peer_netns=web, mtu=1000, netns=host))


def test_veth_within_one_netns(kernel: Kernel, host: NetnsRef) -> None:
    veth = Veth(ifname="left", peer="right", peer_netns=host, netns=host)
    settle(kernel, veth)
    vanish(kernel, veth)


def test_veth_changes_live(kernel: Kernel, host: NetnsRef, web: NetnsRef) -> None:
    veth = Veth(ifname="veth0", peer="eth0", peer_netns=web, netns=host)
    veth.ensure(kernel)
    index = kernel.rtnl(host).index("veth0")
    other = replace(veth, mtu=1400, mac=MAC)
    assert "MTU 1500, not 1400" in str(other.drift(kernel))
    settle(kernel, other)
    assert kernel.rtnl(host).index("veth0") == index


@pytest.mark.parametrize(
    ("where", "damage", "drift"),
    [
        ("host", "link del veth0", "veth0 is missing"),
        ("host", "link set veth0 down", "veth0 is down"),
        ("web", "link set eth0 name lost", "not connected to eth0"),
        ("web", "link set eth0 address 02:00:00:00:00:01", "has MAC address 02:00:00:00:00:01"),
        ("web", "link set eth0 mtu 1300", "eth0 has MTU 1300"),
        ("web", "link set eth0 netns {other}", "not connected to eth0"),
    ],
)
def test_veth_drift_is_named_and_repaired(
    kernel: Kernel,
    host: NetnsRef,
    web: NetnsRef,
    netns_factory: Callable[[str], NetnsRef],
    where: str,
    damage: str,
    drift: str,
) -> None:
    veth = Veth(ifname="veth0", peer="eth0", peer_netns=web, mac=MAC, mtu=1400, netns=host)
    veth.ensure(kernel)
    ip({"host": host, "web": web}[where], damage.format(other=netns_factory("other").label))
    assert drift in str(veth.drift(kernel))
    settle(kernel, veth)


def test_veth_to_a_like_named_peer_elsewhere_is_made_anew(
    kernel: Kernel, host: NetnsRef, web: NetnsRef, netns_factory: Callable[[str], NetnsRef]
) -> None:
    other = netns_factory("other")  # links have the same numbers in there as in web
    Veth(ifname="veth0", peer="eth0", peer_netns=other, netns=host).ensure(kernel)
    Veth(ifname="veth1", peer="eth0", peer_netns=web, netns=host).ensure(kernel)
    inner = {netns: kernel.rtnl(netns).get_link("eth0") for netns in (other, web)}
    assert inner[other].index == inner[web].index
    wanted = Veth(ifname="veth0", peer="eth0", peer_netns=web, netns=host)
    assert "not connected" in str(wanted.drift(kernel))
    with pytest.raises(AlreadyExists, match="link eth0 exists in web"):
        wanted.ensure(kernel)  # the broken one is gone, but web's eth0 belongs to veth1
    Veth(ifname="veth1", peer="eth0", peer_netns=web, netns=host).remove(kernel)
    settle(kernel, wanted)


def test_veth_refuses_a_peer_name_that_is_taken(kernel: Kernel, host: NetnsRef, web: NetnsRef) -> None:
    ip(web, "link add eth0 type bridge")
    before = snapshot(host), snapshot(web)
    veth = Veth(ifname="veth0", peer="eth0", peer_netns=web, netns=host)
    with pytest.raises(AlreadyExists, match=r"link eth0 exists in web\S+; rename or delete it"):
        veth.ensure(kernel)
    veth.remove(kernel)
    assert differences(before[0], snapshot(host)) == []
    assert differences(before[1], snapshot(web)) == []


@pytest.mark.parametrize(
    "foreign",
    [
        ["link add veth0 type veth peer name eth0 netns {web}"],
        ["link add veth0 type veth peer name eth0 netns {web}", "link set veth0 alias mine"],
        ["link add veth0 type bridge"],
    ],
)
def test_foreign_link_is_left_alone(kernel: Kernel, host: NetnsRef, web: NetnsRef, foreign: list[str]) -> None:
    for command in foreign:
        ip(host, command.format(web=web.label))
    before = snapshot(host), snapshot(web)
    veth = Veth(ifname="veth0", peer="eth0", peer_netns=web, mtu=1400, netns=host)
    with pytest.raises(AlreadyExists):
        veth.ensure(kernel)
    assert veth.drift(kernel) == "link veth0 is not netlib's"
    veth.remove(kernel)
    remove_links(kernel, ["veth0", "lo"], netns=host)
    assert differences(before[0], snapshot(host)) == []
    assert differences(before[1], snapshot(web)) == []


def test_veth_into_a_netns_that_is_gone(kernel: Kernel, host: NetnsRef, tmp_path: Path) -> None:
    veth = Veth(ifname="veth0", peer="eth0", peer_netns=NetnsRef("/run/netns/nobody"), netns=host)
    with pytest.raises(ObjectMissing, match="nobody"):
        veth.ensure(kernel)
    veth.remove(kernel)
    assert veth.drift(kernel) == "link veth0 is missing"


def test_objects_of_a_netns_that_was_replaced_are_gone(kernel: Kernel, host: NetnsRef) -> None:
    path = Path("/run/netns/replaced")
    create_netns(path)
    try:
        stranger = NetnsRef(str(path), "123456789abc:1")  # the cookie of the first netns, long gone
        ip(NetnsRef(str(path)), "link set lo up")
        before = snapshot(NetnsRef(str(path)))
        for item in (
            LinkUp(ifname="lo", netns=stranger),
            Bridge(ifname="br0", netns=stranger),
            BridgePort(ifname="lo", bridge="br0", netns=stranger),
        ):
            item.remove(kernel)
            with pytest.raises(ObjectMissing, match="is gone: another one is at /run/netns/replaced"):
                item.ensure(kernel)
        remove_links(kernel, ["lo"], netns=stranger)
        assert differences(before, snapshot(NetnsRef(str(path)))) == []
        with pytest.raises(ObjectMissing):
            Veth(ifname="veth0", peer="eth0", peer_netns=stranger, netns=host).ensure(kernel)
    finally:
        delete_netns(path)


# --- port, up ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def wired(kernel: Kernel, host: NetnsRef, web: NetnsRef) -> None:
    Bridge(ifname="br-web", netns=host).ensure(kernel)
    Veth(ifname="veth0", peer="eth0", peer_netns=web, netns=host).ensure(kernel)


@pytest.mark.usefixtures("wired")
@pytest.mark.parametrize(("br_netfilter", "isolated"), [("bridge", "off"), ("no-bridge", "on")])
def test_port_settings(
    kernel: Kernel, host: NetnsRef, monkeypatch: pytest.MonkeyPatch, br_netfilter: str, isolated: str
) -> None:
    monkeypatch.setattr(bridges, "_BR_NETFILTER", Path("/proc/sys/net") / br_netfilter)
    port = BridgePort(ifname="veth0", bridge="br-web", hairpin=True, isolated=True, filtered=True, learning=False, netns=host)
    assert port.drift(kernel) == "link veth0 is not a port of bridge br-web"
    settle(kernel, port)
    shown = ip(host, "-d link show veth0")
    assert "hairpin on" in shown
    assert f"isolated {isolated}" in shown
    assert "learning off" in shown
    plain = BridgePort(ifname="veth0", bridge="br-web", netns=host)
    assert plain.drift(kernel) == "bridge port veth0 has hairpin on"
    settle(kernel, plain)
    vanish(kernel, plain)
    assert kernel.rtnl(host).get_link("veth0").master == 0


@pytest.mark.usefixtures("wired")
def test_port_moves_to_another_bridge_and_stays_there(kernel: Kernel, host: NetnsRef) -> None:
    old, new = (BridgePort(ifname="veth0", bridge=bridge, netns=host) for bridge in ("br-web", "br-new"))
    old.ensure(kernel)
    assert new.drift(kernel) == "bridge br-new is missing"
    with pytest.raises(ObjectMissing, match="br-new"):
        new.ensure(kernel)
    Bridge(ifname="br-new", netns=host).ensure(kernel)
    settle(kernel, new)
    old.remove(kernel)
    assert new.drift(kernel) is None


@pytest.mark.usefixtures("wired")
def test_port_without_its_link_or_bridge_is_already_removed(kernel: Kernel, host: NetnsRef) -> None:
    port = BridgePort(ifname="veth0", bridge="br-web", netns=host)
    port.ensure(kernel)
    ip(host, "link del br-web")
    port.remove(kernel)
    ip(host, "link del veth0")
    port.remove(kernel)
    assert port.drift(kernel) == "link veth0 is missing"


def test_link_up_goes_down_again_unless_it_was_up_before(kernel: Kernel, host: NetnsRef) -> None:
    up = LinkUp(ifname="lo", netns=host)
    ip(host, "link set lo down")
    ours = up.observed(kernel)
    settle(kernel, ours)
    theirs = up.observed(kernel)
    assert (ours.adopted, theirs.adopted) == (False, True)
    theirs.remove(kernel)
    assert up.drift(kernel) is None
    vanish(kernel, ours)


def test_link_up_of_what_is_not_there(kernel: Kernel, host: NetnsRef) -> None:
    up = LinkUp(ifname="eth7", netns=host)
    assert not up.observed(kernel).adopted
    up.remove(kernel)
    assert "eth7" in str(up.drift(kernel))
    with pytest.raises(ObjectMissing, match="set link eth7 up in host"):
        up.ensure(kernel)


# --- many at once ------------------------------------------------------------------------------------------------------


def test_many_veths_go_in_one_request_and_leave_foreign_links(kernel: Kernel, host: NetnsRef, web: NetnsRef) -> None:
    ip(host, "link add foreign type veth peer name theirs netns " + web.label)
    before = snapshot(host), snapshot(web)
    veths = [Veth(ifname=f"veth{n}", peer=f"eth{n}", peer_netns=web, netns=host) for n in range(40)]
    for veth in veths:
        veth.ensure(kernel)
    ip(host, "link del veth7")
    ip(host, "link set veth8 alias taken-over")
    Veth.remove_many(kernel, [*veths, Veth(ifname="foreign", peer="theirs", peer_netns=web, netns=host)])
    assert [link.ifname for link in kernel.rtnl(host).links()] == ["lo", "foreign", "veth8"]
    ip(host, "link del veth8")
    Veth.remove_many(kernel, veths)
    assert differences(before[0], snapshot(host)) == []
    assert differences(before[1], snapshot(web)) == []


def test_a_stranger_in_the_group_stops_the_deletion(
    kernel: Kernel, host: NetnsRef, web: NetnsRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    for ifname in ("veth0", "veth1"):
        Veth(ifname=ifname, peer=f"p-{ifname}", peer_netns=web, netns=host).ensure(kernel)
    ip(host, "link add foreign type bridge")
    rtnl = kernel.rtnl(host)
    plain_order = rtnl.plain.order

    def order_and_interfere(messages: list[tuple[int, int, bytes]]) -> list[OSError | None]:
        """Somebody puts his link into the very group, after it was found free."""
        results = plain_order(messages)
        group = rtnl.get_link("veth0").group
        plain_order([(RTM_SETLINK, 0, link_header(rtnl.index("foreign")) + number(IFLA_GROUP, group))])
        return results

    monkeypatch.setattr(rtnl.plain, "order", order_and_interfere)
    with pytest.raises(KernelError, match="somebody put foreign into link group"):
        remove_links(kernel, ["veth0", "veth1"], netns=host)
    assert {link.ifname for link in rtnl.links()} == {"lo", "veth0", "veth1", "foreign"}


def test_ifindex_is_read_from_the_right_netns(kernel: Kernel, host: NetnsRef, web: NetnsRef) -> None:
    ip(host, "link add pad type bridge")
    for netns in (host, web):
        ip(netns, "link add same type bridge")
    assert kernel.rtnl(host).index("same") != kernel.rtnl(web).index("same")
    (shown,) = (line for line in ip(web, "-o link show same").splitlines())
    assert shown.startswith(f"{kernel.rtnl(web).index('same')}: ")
