"""Kernel objects as values: identity, what they carry, what a person would type, how they are written down."""

import errno
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from msgspec.structs import replace

from netlib.codec import decode, encode
from netlib.errors import ConfigError, FeatureMissing, KernelError, NotPermitted, ObjectMissing
from netlib.firewall.members import PortSources
from netlib.firewall.spoofing import PortMac, PortMacs
from netlib.kernel.addresses import Address
from netlib.kernel.bridges import Bridge, BridgeBefore, BridgePort
from netlib.kernel.files import Folder, TextFile
from netlib.kernel.linkinfo import LinkInfo
from netlib.kernel.links import LinkUp, Veth
from netlib.kernel.moved import DeviceBefore, MovedDevice
from netlib.kernel.netlink import attribute, attributes_of, nest, number, text
from netlib.kernel.owned_netns import OwnedNetns
from netlib.kernel.qdiscs import IngressRedirect, TokenBucket
from netlib.kernel.routes import RouteAway, RouteEntry
from netlib.kernel.rules import PolicyRule
from netlib.kernel.sublinks import Dummy, Ifb, Ipvlan, Macvlan, Vlan
from netlib.kernel.sysctl import RouterAdvertisements, Sysctl, sysctl_path
from netlib.kernel.taps import Tap
from netlib.kernel.translate import doing, kernel_error
from netlib.kernel.tuning import LinkSetting, TunedSysctl
from netlib.kernel.vlans import PortVlans
from netlib.kernel.vrfs import Enslaved, Vrf
from netlib.model import HOST, NetnsRef
from netlib.objects import object_class
from netlib.plan import KernelObject, Overrides, ability
from netlib.testing.snapshot import differences

WEB = NetnsRef("/run/netns/web", "123456789abc:7")
FAR = NetnsRef("/proc/4711/ns/net")
ANY4, ANY6 = ip_network("0.0.0.0/0"), ip_network("::/0")
BEFORE = BridgeBefore(up=False, mac="02:00:00:00:00:01", mtu=1500, nf_call=(False, False), disable_ipv6="0")
DEVICE = DeviceBefore("02:00:00:00:00:09", "", 1500, 1000, 1, "", (ip_interface("10.5.0.1/24"), ip_interface("fd00::1/64")))
VETH = Veth(ifname="veth0", peer="eth0", peer_netns=WEB, mac="02:42:0a:00:00:02", mtu=1400)


def refusals(ifname: str) -> list[str]:
    """What has a link of the host take nothing from routers."""
    names = ("ipv4/conf/{}/accept_redirects", "ipv6/conf/{}/accept_ra", "ipv6/conf/{}/accept_redirects")
    return [f"sysctl -w net/{name.format(ifname)}=0" for name in names]


NEW_NETNS = ["sysctl -w net/ipv4/conf/all/accept_redirects=0", *refusals("default")]
EXPLAINED: list[tuple[KernelObject, str, list[str]]] = [
    (
        Bridge(ifname="br-web", mac="02:42:ac:12:00:01", mtu=1400),
        "link/host/br-web",
        [
            "ip link add br-web address 02:42:ac:12:00:01 type bridge",
            *refusals("br-web"),
            "sysctl -w net/ipv6/conf/br-web/disable_ipv6=0",
            "ip link set br-web mtu 1400 up",
        ],
    ),
    (
        Bridge(ifname="br-web", ipv6=False, filtered=True),
        "link/host/br-web",
        [
            "ip link add br-web type bridge",
            *refusals("br-web"),
            "sysctl -w net/ipv6/conf/br-web/disable_ipv6=1",
            "ip link set br-web type bridge nf_call_iptables 1 nf_call_ip6tables 1",
            "ip link set br-web up",
        ],
    ),
    (Bridge(ifname="br0", ipv6=False, adopted=BEFORE), "link/host/br0", ["ip link set br0 up"]),
    (
        VETH,
        "link/host/veth0",
        [
            "ip link add veth0 mtu 1400 type veth peer name eth0 address 02:42:0a:00:00:02 mtu 1400 netns web",
            *refusals("veth0"),
            "ip link set veth0 addrgenmode none",
            "ip link set veth0 up",
        ],
    ),
    (
        Veth(ifname="veth1", peer="eth1", peer_netns=HOST, mtu=1000),
        "link/host/veth1",
        [
            "ip link add veth1 mtu 1000 type veth peer name eth1 mtu 1000",
            "sysctl -w net/ipv4/conf/veth1/accept_redirects=0",
            "sysctl -w net/ipv4/conf/eth1/accept_redirects=0",
            "ip link set veth1 up",
        ],
    ),
    (
        BridgePort(ifname="veth0", bridge="br-web", hairpin=True),
        "port/host/veth0",
        ["ip link set veth0 master br-web", "bridge link set dev veth0 hairpin on isolated off learning on"],
    ),
    (LinkUp(ifname="lo", netns=WEB), "up//run/netns/web/lo", ["ip -n web link set lo up"]),
    (
        Address(ifname="eth0", address=ip_interface("10.22.0.2/16"), netns=WEB),
        "address//run/netns/web/eth0 10.22.0.2/16",
        ["ip -n web addr add 10.22.0.2/16 brd + dev eth0"],
    ),
    (
        Address(ifname="eth0", address=ip_interface("fd00::2/64"), netns=FAR),
        "address//proc/4711/ns/net/eth0 fd00::2/64",
        ["nsenter --net=/proc/4711/ns/net ip addr add fd00::2/64 nodad dev eth0"],
    ),
    (
        RouteEntry(destination=ANY4, gateway=ip_address("10.22.0.1"), ifname="eth0", netns=WEB),
        "route//run/netns/web/default4",
        ["ip -n web route replace default via 10.22.0.1 dev eth0"],
    ),
    (
        RouteEntry(destination=ip_network("fd99::/48"), ifname="eth0", metric=7, table=100),
        "route/host/fd99::/48 metric 7 table 100",
        ["ip -6 route replace fd99::/48 dev eth0 metric 7 table 100"],
    ),
    (
        RouteEntry(
            destination=ip_network("10.9.0.0/16"),
            gateway=ip_address("10.22.0.1"),
            ifname="eth0",
            scope=0,
            source=ip_address("10.22.0.2"),
            mtu=1400,
            advmss=1300,
        ),
        "route/host/10.9.0.0/16",
        ["ip route replace 10.9.0.0/16 via 10.22.0.1 dev eth0 scope 0 src 10.22.0.2 mtu 1400 advmss 1300"],
    ),
    (
        Macvlan(ifname="eth0", netns=WEB, parent="lan0", mac="02:42:0a:00:00:02", mtu=1400, mode="vepa", bcqueuelen=7),
        "link//run/netns/web/eth0",
        [
            (
                "ip link add link lan0 name nl7d6f819cea11 address 02:42:0a:00:00:02 mtu 1400 netns web"
                " type macvlan mode vepa bcqueuelen 7"
            ),
            "ip -n web link set nl7d6f819cea11 name eth0",
        ],
    ),
    (
        Macvlan(ifname="net1", netns=WEB, parent="eth0", parent_netns=WEB),
        "link//run/netns/web/net1",
        ["ip -n web link add link eth0 name net1 type macvlan mode bridge"],
    ),
    (
        Ipvlan(ifname="net1", netns=WEB, parent="eth0", parent_netns=WEB, mode="l3s", flag="private"),
        "link//run/netns/web/net1",
        ["ip -n web link add link eth0 name net1 type ipvlan mode l3s private"],
    ),
    (
        Vlan(ifname="lan0.10", parent="lan0", vlan_id=10, up=True),
        "link/host/lan0.10",
        [
            "ip link add link lan0 name lan0.10 type vlan id 10",
            *refusals("lan0.10"),
            "ip link set lan0.10 addrgenmode none",
            "ip link set lan0.10 up",
        ],
    ),
    (Vlan(ifname="lan0.10", parent="lan0", vlan_id=10, may_stand=True, adopted=True), "link/host/lan0.10", []),
    (Dummy(ifname="dm0", mtu=1400), "link/host/dm0", ["ip link add name dm0 mtu 1400 type dummy"]),
    (Ifb(ifname="ifb0", netns=WEB), "link//run/netns/web/ifb0", ["ip -n web link add name ifb0 type ifb"]),
    (
        Vrf(ifname="red", chosen=3, netns=WEB),
        "link//run/netns/web/red",
        [
            "ip -n web link add name red type vrf table 3",
            "ip -n web link set red addrgenmode none",
            "ip -n web link set red up",
        ],
    ),
    (Vrf(ifname="red", table=5, adopted=True, netns=WEB), "link//run/netns/web/red", []),
    (
        Enslaved(ifname="eth0", vrf="red", routes=(RouteEntry(destination=ANY4, ifname="eth0", netns=WEB),), netns=WEB),
        "vrf//run/netns/web/eth0",
        [
            "ip netns exec web sysctl -w net/ipv6/conf/eth0/keep_addr_on_down=1",
            "ip -n web link set eth0 master red",
            "ip netns exec web sysctl -w net/ipv6/conf/eth0/keep_addr_on_down=0",
            "ip -n web route replace default dev eth0 vrf red proto static",
        ],
    ),
    (
        PortVlans(ifname="veth0", native=10, tagged=((20, 29), (40, 40)), before=((1, 6),)),
        "port_vlans/host/veth0",
        [
            "bridge vlan del dev veth0 vid 1",
            "bridge vlan add dev veth0 vid 20-29",
            "bridge vlan add dev veth0 vid 40",
            "bridge vlan add dev veth0 vid 10 pvid untagged",
        ],
    ),
    (
        PortVlans(ifname="veth0", native=10, keeps_default=True),
        "port_vlans/host/veth0",
        ["bridge vlan add dev veth0 vid 1 untagged", "bridge vlan add dev veth0 vid 10 pvid untagged"],
    ),
    (
        Tap(ifname="tap0", netns=WEB, mac="02:42:0a:00:00:02", multi_queue=True, owner=7, group=0),
        "link//run/netns/web/tap0",
        [
            "ip -n web tuntap add mode tap name tap0 multi_queue user 7 group 0",
            "ip -n web link set tap0 address 02:42:0a:00:00:02",
        ],
    ),
    (Tap(ifname="tap0"), "link/host/tap0", ["ip tuntap add mode tap name tap0", *refusals("tap0")]),
    (
        PortSources(port="veth0", addresses=(ip_address("10.1.0.2"), ip_address("fd01::2"))),
        "firewall/host/sources/veth0",
        [
            "nft 'add element bridge netlib_members ports { \"veth0\" }'",
            "nft 'add element bridge netlib_members sources4 { \"veth0\" . 10.1.0.2 }'",
            "nft 'add element bridge netlib_members sources6 { \"veth0\" . fd01::2 }'",
        ],
    ),
    (
        MovedDevice(device="ens5", ifname="net1", netns=FAR, before=DEVICE),
        "link//proc/4711/ns/net/net1",
        ["ip link set ens5 netns /proc/4711/ns/net name net1 alias ens5"],
    ),
    (
        LinkSetting(ifname="eth0", setting="txqlen", value="77", netns=WEB, prior="1000"),
        "link_setting//run/netns/web/eth0 txqlen",
        ["ip -n web link set eth0 txqueuelen 77"],
    ),
    (
        LinkSetting(ifname="br0", setting="vlan_filtering", value="on"),
        "link_setting/host/br0 vlan_filtering",
        ["ip link set br0 type bridge vlan_filtering 1"],
    ),
    (
        PolicyRule(table=100, source=ip_network("10.22.0.2/32"), iif="eth0", priority=7, netns=WEB),
        "rule//run/netns/web/4 from 10.22.0.2/32 iif eth0 table 100 priority 7",
        ["ip -n web rule add from 10.22.0.2/32 iif eth0 table 100 priority 7 protocol static"],
    ),
    (
        PolicyRule(table=100, destination=ip_network("fd00::/64"), family=6),
        "rule/host/6 from all to fd00::/64 table 100",
        ["ip -6 rule add from all to fd00::/64 table 100 protocol static"],
    ),
    (
        TunedSysctl(name="net.ipv4.conf.eth0.arp_notify", value="1", netns=WEB, prior="0"),
        "tuned_sysctl//run/netns/web/net/ipv4/conf/eth0/arp_notify",
        ["ip netns exec web sysctl -w net/ipv4/conf/eth0/arp_notify=1"],
    ),
    (
        RouteAway(route=RouteEntry(destination=ANY6, gateway=ip_address("fd00::1"), ifname="eth0", netns=WEB), netns=WEB),
        "route_away//run/netns/web/eth0 default6",
        ["ip -n web -6 route del default via fd00::1 dev eth0"],
    ),
    (
        TokenBucket(ifname="veth0", rate=8_000_000, burst=800_000),
        "qdisc/host/veth0 root",
        ["tc qdisc replace dev veth0 root handle 6e6c: tbf rate 8000000bit burst 100000b limit 125000b"],
    ),
    (
        IngressRedirect(ifname="veth0", to="ifb0"),
        "qdisc/host/veth0 ingress",
        [
            "tc qdisc add dev veth0 ingress",
            (
                "tc filter add dev veth0 parent ffff: protocol all pref 28268"
                " u32 match u32 0 0 action mirred egress redirect dev ifb0"
            ),
        ],
    ),
    (
        PortMac(port="veth0", mac="02:00:00:00:00:09"),
        "firewall/host/port mac/veth0",
        [
            "nft 'add element bridge netlib macs { \"veth0\" . 02:00:00:00:00:09 }'",
            "nft 'add element bridge netlib watched { \"veth0\" }'",
        ],
    ),
    (
        PortMacs(),
        "firewall/host/port macs",
        [
            "nft 'add table bridge netlib'",
            "nft 'add set bridge netlib watched { type ifname; }'",
            "nft 'add set bridge netlib macs { type ifname . ether_addr; }'",
            "nft 'add chain bridge netlib prerouting { type filter hook prerouting priority -300; policy accept; }'",
            "nft 'flush chain bridge netlib prerouting'",
            (
                "nft 'add rule bridge netlib prerouting iifname @watched iifname . ether saddr != @macs drop "
                'comment "another MAC address"\''
            ),
        ],
    ),
    (
        Sysctl(name="net.ipv4.ping_group_range", value="0 1", netns=WEB),
        "sysctl//run/netns/web/net/ipv4/ping_group_range",
        ["ip netns exec web sysctl -w net/ipv4/ping_group_range='0 1'"],
    ),
    (
        RouterAdvertisements(ifnames=("eth0", "eth1")),
        "router_advertisements/host/links",
        ["sysctl -w net/ipv6/conf/eth0/accept_ra=2", "sysctl -w net/ipv6/conf/eth1/accept_ra=2"],
    ),
    (
        TextFile(path="/etc/netns/web/hosts", content="a\nb\n"),
        "file/host//etc/netns/web/hosts",
        ["printf 'a\\nb\\n' | install -m 644 /dev/stdin /etc/netns/web/hosts"],
    ),
    (Folder(path="/etc/netns/web", mode=0o755), "folder/host//etc/netns/web", ["mkdir -p -m 755 /etc/netns/web"]),
    (
        OwnedNetns(path="/run/netns/web", identity=WEB.identity),
        "netns//run/netns/web/self",
        ["ip netns add web", *(f"ip netns exec web {line}" for line in NEW_NETNS)],
    ),
    (
        OwnedNetns(path="/home/me/run/netns/web", identity=WEB.identity),
        "netns//home/me/run/netns/web/self",
        [
            "install -D /dev/null /home/me/run/netns/web",
            "unshare --net=/home/me/run/netns/web true",
            *(f"nsenter --net=/home/me/run/netns/web {line}" for line in NEW_NETNS),
        ],
    ),
]
IDS = [str(key) for _, key, _ in EXPLAINED]


@pytest.mark.parametrize(("item", "key", "commands"), EXPLAINED, ids=IDS)
def test_identity_and_explanation(item: KernelObject, key: str, commands: list[str]) -> None:
    assert str(item.key) == key
    assert list(item.commands()) == commands


@pytest.mark.parametrize(("item", "key", "commands"), EXPLAINED, ids=IDS)
def test_written_down_and_read_again(item: KernelObject, key: str, commands: list[str]) -> None:
    tag = type(item).__struct_config__.tag
    assert object_class(str(tag)) is type(item)
    assert decode(encode(item), type(item)) == item


@pytest.mark.parametrize(
    ("item", "change"),
    [
        (VETH, {"mtu": 9000, "mac": "", "peer": "eth1"}),
        (BridgePort(ifname="veth0", bridge="a"), {"bridge": "b", "hairpin": True}),
        (RouteEntry(destination=ANY4, ifname="eth0"), {"gateway": ip_address("10.0.0.1"), "ifname": "eth1"}),
        (Sysctl(name="net.ipv4.ip_forward", value="1"), {"value": "0", "name": "net/ipv4/ip_forward"}),
        (TextFile(path="/a", content=""), {"content": "x", "mode": 0o600}),
    ],
)
def test_what_is_an_attribute_leaves_the_identity(item: KernelObject, change: dict[str, Any]) -> None:
    assert replace(item, **change).key == item.key


@pytest.mark.parametrize(
    "change", [{"destination": ANY6}, {"metric": 1}, {"table": 7}, {"netns": WEB}, {"destination": ip_network("10.0.0.0/8")}]
)
def test_what_tells_routes_apart(change: dict[str, Any]) -> None:
    route = RouteEntry(destination=ANY4, ifname="eth0")
    assert replace(route, **change).key != route.key


def test_a_veth_carries_what_sits_on_its_ends() -> None:
    ours = (
        BridgePort(ifname="veth0", bridge="br-web"),
        Address(ifname="eth0", address=ip_interface("10.22.0.2/16"), netns=WEB),
        RouteEntry(destination=ANY4, ifname="eth0", netns=WEB),
        LinkUp(ifname="eth0", netns=WEB),
    )
    others = (
        VETH,
        BridgePort(ifname="veth1", bridge="br-web"),
        Address(ifname="eth0", address=ip_interface("10.22.0.2/16")),
        LinkUp(ifname="lo", netns=WEB),
        Sysctl(name="net/ipv4/ip_forward", value="1", netns=WEB),
    )
    assert [VETH.carries(item) for item in ours] == [True] * 4
    assert [VETH.carries(item) for item in others] == [False] * 5


DEFAULT = RouteEntry(destination=ANY4, gateway=ip_address("10.22.0.1"), ifname="eth0", netns=WEB)
MACVLAN = Macvlan(ifname="eth0", mac="02:00:00:00:00:01", mtu=1400, parent="lan0", netns=WEB)


@pytest.mark.parametrize(
    ("override", "other", "left"),
    [
        (LinkSetting(ifname="eth0", setting="mac", value="02:00:00:00:00:09", netns=WEB), VETH, replace(VETH, mac="")),
        (LinkSetting(ifname="eth0", setting="mtu", value="1300", netns=WEB), VETH, replace(VETH, mtu=0)),
        (LinkSetting(ifname="eth0", setting="mtu", value="1300", netns=WEB), MACVLAN, replace(MACVLAN, mtu=0)),
        (LinkSetting(ifname="eth0", setting="mac", value="02:00:00:00:00:09", netns=WEB), MACVLAN, replace(MACVLAN, mac="")),
        (LinkSetting(ifname="eth0", setting="promisc", value="on", netns=WEB), VETH, VETH),
        (LinkSetting(ifname="eth1", setting="mtu", value="1300", netns=WEB), VETH, VETH),
        (LinkSetting(ifname="eth0", setting="mtu", value="1300"), MACVLAN, MACVLAN),
        (TunedSysctl(name="net/ipv4/ip_forward", value="1"), Sysctl(name="net.ipv4.ip_forward", value="0"), None),
        (TunedSysctl(name="net/ipv4/ip_forward", value="1"), Sysctl(name="net/ipv4/tcp_mem", value="0"), ...),
        (RouteAway(route=replace(DEFAULT, protocol=2), netns=WEB), DEFAULT, None),
        (RouteAway(route=DEFAULT, netns=WEB), replace(DEFAULT, ifname="eth1"), ...),
        (RouteAway(route=DEFAULT, netns=WEB), replace(DEFAULT, table=100), ...),
        (Enslaved(ifname="eth0", vrf="red", netns=WEB), DEFAULT, None),
        (Enslaved(ifname="eth0", vrf="red", netns=WEB), replace(DEFAULT, ifname="eth1"), ...),
        (Enslaved(ifname="eth0", vrf="red", netns=WEB), replace(DEFAULT, table=7), ...),
        (LinkUp(ifname="eth0", netns=WEB), VETH, ...),
    ],
)
def test_what_another_record_overrides(override: KernelObject, other: KernelObject, left: Any) -> None:
    overriding = ability(override, Overrides)
    found = other if overriding is None else overriding.remaining(other)
    assert found == (other if left is ... else left)


def test_a_bridge_carries_its_addresses_and_ports_unless_it_stays() -> None:
    bridge = Bridge(ifname="br-web")
    items = Address(ifname="br-web", address=ip_interface("10.22.0.1/16")), BridgePort(ifname="veth0", bridge="br-web")
    assert [bridge.carries(item) for item in items] == [True, True]
    assert [replace(bridge, adopted=BEFORE).carries(item) for item in items] == [False, False]
    assert not bridge.carries(bridge)
    assert not bridge.carries(VETH)


def test_a_netns_carries_what_is_inside_it() -> None:
    netns = OwnedNetns(path=WEB.path, identity=WEB.identity)
    assert netns.carries(LinkUp(ifname="lo", netns=WEB))
    assert netns.carries(Macvlan(ifname="net1", netns=WEB, parent="eth0", parent_netns=WEB))
    assert not netns.carries(Macvlan(ifname="net1", netns=WEB, parent="lan0"))
    assert not netns.carries(MovedDevice(device="ens5", ifname="net1", netns=WEB))
    assert not netns.carries(VETH)
    assert not netns.carries(netns)
    assert not netns.carries(TextFile(path="/x", content=""))


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/conf/eth0.10/forwarding", "net/ipv4/conf/eth0.10/forwarding"),
        ("net.ipv4.conf.eth0/10.forwarding", "net/ipv4/conf/eth0.10/forwarding"),
    ],
)
def test_sysctl_names_as_the_command_takes_them(name: str, path: str) -> None:
    assert sysctl_path(name) == path


@pytest.mark.parametrize("name", ["", "/net/ipv4", "net/../kernel", "net..ipv4", "net/ipv4/", "net/./ipv4", "../x"])
def test_sysctl_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is no sysctl name"):
        sysctl_path(name)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EPERM, NotPermitted),
        (errno.ENODEV, ObjectMissing),
        (errno.EOPNOTSUPP, FeatureMissing),
        (errno.EBUSY, KernelError),
    ],
)
def test_errno_becomes_one_sentence(code: int, kind: type[Exception]) -> None:
    error = kernel_error(code, "create bridge br0 in host")
    assert type(error) is kind
    assert str(error).startswith("cannot create bridge br0 in host: ")
    with pytest.raises(kind, match="cannot do it"), doing("do it"):
        raise OSError(code, "reason")


def test_what_is_no_errno_passes_untranslated() -> None:
    with pytest.raises(ZeroDivisionError), doing("do it"):
        raise ZeroDivisionError


def test_attributes_there_and_back() -> None:
    data = number(4, 1400) + text(3, "eth0") + nest(18, attribute(1, b"veth"), number(7, 9)) + attribute(1, b"\1\2\3\4\5\6")
    found = attributes_of(data)
    assert found[3] == b"eth0\0"
    assert attributes_of(found[18]) == {1: b"veth", 7: b"\t\0\0\0"}
    link = LinkInfo.of(bytes(16), found)
    assert (link.ifname, link.mtu, link.kind, link.mac, link.up) == ("eth0", 1400, "veth", "01:02:03:04:05:06", False)
    assert (link.alias, link.master, link.peer_nsid) == ("", 0, None)


@pytest.mark.parametrize("data", [b"", b"\0", b"\1\0\3\0", b"\xff\xff\3\0abc"])
def test_cut_off_attributes_end_the_reading(data: bytes) -> None:
    assert set(attributes_of(data)) <= {3}


def test_differences_are_a_line_each() -> None:
    before = {"links": {"a": "1", "b": "1"}, "rules": {"r": "1"}}
    after = {"links": {"b": "2", "c": "3"}, "rules": {"r": "1"}}
    assert differences(before, after) == ["links: - a 1", "links: b: 1 → 2", "links: + c 3"]
