"""macvlan and ipvlan: what their networks and endpoints need, as plans."""

from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from msgspec.structs import replace

from drivers.ipvlan import IpvlanDriver
from drivers.macvlan import MacvlanDriver
from netlib.core.network_record import HostState, pool_requests
from netlib.core.networks import _suggesting_parent
from netlib.core.sandbox_plan import sandbox_plan
from netlib.dns.resolvconf import HostResolver
from netlib.driverapi import PublishesPorts
from netlib.errors import ConfigError, FeatureMissing
from netlib.kernel.links import LinkUp
from netlib.kernel.parents import ParentLink
from netlib.kernel.routes import RouteEntry
from netlib.kernel.sublinks import Dummy, Ipvlan, Macvlan, Vlan
from netlib.kernel.sysctl import Sysctl
from netlib.model import AddressPool, Endpoint, NetnsRef, Network, Sandbox
from netlib.plan import Plan
from netlib.requests import NetworkRequest

BOX = Sandbox(id="b" * 64, name="box", created=0.0, netns=NetnsRef("/run/netns/box", "1:2"), owned=True, files_dir="/f")
MAC = "02:42:c0:a8:01:40"
ENDPOINT = Endpoint(
    id="e" * 64,
    network="a" * 64,
    sandbox="b" * 64,
    created=0.0,
    ifname="eth0",
    mac=MAC,
    addresses=(ip_interface("192.168.1.64/24"),),
)
HOST_RESOLVER = HostResolver()


def network(driver: str, **options: str) -> Network:
    pool = AddressPool(subnet=ip_network("192.168.1.0/24"), gateway=ip_address("192.168.1.1"))
    return Network(id="a" * 64, name="lan", driver=driver, created=0.0, pools=(pool,), options=options)


def test_a_macvlan_network_is_its_parent() -> None:
    plan = MacvlanDriver().network_plan(network("macvlan", parent="lan0"))
    assert plan == Plan(ParentLink(ifname="lan0", use="macvlan"), LinkUp(ifname="lan0"))


def test_a_dotted_parent_is_a_vlan_of_it() -> None:
    plan = MacvlanDriver().network_plan(network("macvlan", parent="lan0.10"))
    assert plan == Plan(
        LinkUp(ifname="lan0", optional=True),
        Vlan(ifname="lan0.10", parent="lan0", vlan_id=10, may_stand=True, up=True),
        ParentLink(ifname="lan0.10", use="macvlan", made=True),
        LinkUp(ifname="lan0.10"),
    )


@pytest.mark.parametrize("parent", ["lan0.0", "lan0.4095", "lan0.x", ".10", "wlan0.1.2x"])
def test_other_dots_are_part_of_a_name(parent: str) -> None:
    plan = MacvlanDriver().network_plan(network("macvlan", parent=parent))
    assert plan.of(ParentLink) == (ParentLink(ifname=parent, use="macvlan"),)
    assert not plan.of(Vlan)


@pytest.mark.parametrize("driver", [MacvlanDriver(), IpvlanDriver()])
def test_without_a_parent_it_is_internal_on_a_dummy(driver: Any) -> None:
    lonely = network(driver.name, **{"com.docker.network.driver.mtu": "1400"})
    assert driver.shaped(lonely).internal
    assert driver.network_plan(lonely) == Plan(Dummy(ifname="dm-aaaaaaaaaaaa", mtu=1400, up=True))
    assert driver.shaped(network(driver.name, parent="lan0")) == network(driver.name, parent="lan0")


def test_a_member_has_a_macvlan_link_and_tells_the_lan() -> None:
    wanted = network("macvlan", parent="lan0", macvlan_mode="vepa", **{"com.docker.network.driver.mtu": "1400"})
    plan = MacvlanDriver().join_plan(wanted, ENDPOINT, BOX)
    assert plan[0] == Macvlan(ifname="eth0", netns=BOX.netns, parent="lan0", mode="vepa", mac=MAC, mtu=1400)
    assert [item.name for item in plan.of(Sysctl)] == ["net/ipv4/conf/eth0/arp_notify", "net/ipv6/conf/eth0/ndisc_notify"]


def test_a_member_has_an_ipvlan_link() -> None:
    wanted = network("ipvlan", parent="lan0", ipvlan_mode="l3s", ipvlan_flag="private")
    plan = IpvlanDriver().join_plan(wanted, ENDPOINT, BOX)
    assert plan[0] == Ipvlan(ifname="eth0", netns=BOX.netns, parent="lan0", mode="l3s", flag="private")


def test_what_serves_for_one_thing_serves_for_no_other() -> None:
    uses = [
        driver.network_plan(wanted).of(ParentLink)[0]
        for driver, wanted in (
            (MacvlanDriver(), network("macvlan", parent="lan0")),
            (MacvlanDriver(), network("macvlan", parent="lan0", macvlan_mode="passthru")),
            (MacvlanDriver(), replace(network("macvlan", parent="lan0", macvlan_mode="passthru"), id="c" * 64)),
            (IpvlanDriver(), network("ipvlan", parent="lan0")),
            (IpvlanDriver(), network("ipvlan", parent="lan0", ipvlan_mode="l3")),
            (IpvlanDriver(), network("ipvlan", parent="lan0", ipvlan_flag="vepa")),
        )
    ]
    assert len(set(uses)) == len(uses)
    assert len({use.key for use in uses}) == 1
    assert MacvlanDriver().network_plan(network("macvlan", parent="lan0", macvlan_mode="vepa")).of(ParentLink)[0] == uses[0]
    sentence = uses[3].disagreement(uses[0], "network 'other'")
    assert sentence == (
        "parent lan0 serves network 'other' for macvlan, so it cannot serve for ipvlan l2 bridge; choose another parent"
    )


@pytest.mark.parametrize(
    ("driver", "options", "reason"),
    [
        (MacvlanDriver(), {}, ""),
        (MacvlanDriver(), {"macvlan_mode": "passthru"}, "in passthru mode it has the MAC address of the parent"),
        (IpvlanDriver(), {}, "it has the MAC address of the parent"),
    ],
)
def test_who_has_no_mac_address_of_its_own(driver: Any, options: dict[str, str], reason: str) -> None:
    assert driver.why_no_mac(network(driver.name, parent="lan0", **options)) == reason


@pytest.mark.parametrize("driver", [MacvlanDriver(), IpvlanDriver()])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parent": "lo"}, "lo leads nowhere"),
        ({"parent": "a/b"}, "interface name 'a/b' is not allowed"),
        ({"parent": "lan0", "com.docker.network.driver.mtu": "5"}, "MTU 5 is not possible"),
        ({"parent": "lan0", "com.docker.network.driver.mtu": "big"}, "must be a whole number"),
        ({"parnt": "lan0"}, "unknown option 'parnt'; there are: com.docker.network.driver.mtu, "),
    ],
)
def test_bad_options_are_refused_by_name(driver: Any, options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        driver.validate_network(network(driver.name, **options))


@pytest.mark.parametrize(
    ("driver", "option"), [(MacvlanDriver(), "macvlan_mode"), (IpvlanDriver(), "ipvlan_mode"), (IpvlanDriver(), "ipvlan_flag")]
)
def test_a_mode_that_is_none_is_refused_by_name(driver: Any, option: str) -> None:
    with pytest.raises(ConfigError, match=f"option {option}='sideways' must be "):
        driver.validate_network(network(driver.name, parent="lan0", **{option: "sideways"}))


@pytest.mark.parametrize("driver", [MacvlanDriver(), IpvlanDriver()])
def test_ports_are_refused(driver: Any) -> None:
    assert not isinstance(driver, PublishesPorts)
    assert "addresses on the LAN" in driver.why_no_ports(network(driver.name, parent="lan0"))


@pytest.mark.parametrize("driver", [MacvlanDriver(), IpvlanDriver()])
def test_a_network_without_addresses_is_refused(driver: Any) -> None:
    with pytest.raises(ConfigError, match="needs IPv4 or IPv6"):
        driver.validate_network(replace(network(driver.name, parent="lan0"), ipv4=False))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (network("macvlan", parent="lan0"), [ip_address("192.168.1.1")]),
        (network("ipvlan", parent="lan0"), [ip_address("192.168.1.1")]),
        (network("ipvlan", parent="lan0", ipvlan_mode="l3"), [None]),
        (replace(network("ipvlan", parent="lan0", ipvlan_mode="l3"), internal=True), []),
    ],
)
def test_the_default_route(wanted: Network, expected: list[Any]) -> None:
    plan = sandbox_plan(BOX, [(wanted, ENDPOINT)], HOST_RESOLVER)
    assert [route.gateway for route in plan.of(RouteEntry)] == expected


# --- the LAN's subnet -----------------------------------------------------------------------------------------------------

LAN = HostState(
    routes=[ip_network("192.168.1.0/24")],
    link="lan0",
    addresses=[ip_interface("192.168.1.5/24"), ip_interface("10.0.0.1/8")],
    is_lan=True,
    routers=[ip_address("192.168.1.254"), ip_address("10.0.0.9")],
)


def test_the_hosts_router_is_the_gateway_and_what_the_host_has_is_given_to_nobody() -> None:
    (pool,) = pool_requests(NetworkRequest(name="lan", driver="macvlan", subnets=(ip_network("192.168.1.0/24"),)), LAN)
    assert (pool.gateway, pool.wants_gateway) == (ip_address("192.168.1.254"), True)
    assert pool.auxiliary == {"lan0 192.168.1.5": ip_address("192.168.1.5")}


def test_a_given_gateway_counts_and_the_hosts_router_is_given_to_nobody() -> None:
    request = NetworkRequest(
        name="lan", driver="macvlan", subnets=(ip_network("192.168.1.0/24"),), gateways=(ip_address("192.168.1.1"),)
    )
    (pool,) = pool_requests(request, LAN)
    assert pool.gateway == ip_address("192.168.1.1")
    assert set(pool.auxiliary.values()) == {ip_address("192.168.1.5"), ip_address("192.168.1.254")}


def test_without_a_router_there_is_no_gateway() -> None:
    (pool,) = pool_requests(NetworkRequest(name="lan", driver="macvlan", subnets=(ip_network("192.168.9.0/24"),)), LAN)
    assert (pool.gateway, pool.wants_gateway, pool.auxiliary) == (None, False, {})
    (automatic,) = pool_requests(NetworkRequest(name="lan", driver="macvlan"), LAN)
    assert (automatic.subnet, automatic.wants_gateway) == (None, False)


@pytest.mark.parametrize("driver_name", ["macvlan", "ipvlan"])
def test_where_a_dummy_cannot_be_made_a_parent_is_suggested(driver_name: str) -> None:
    refusal = FeatureMissing("cannot create dummy dm-1: this kernel lacks the feature", 95)
    with pytest.raises(FeatureMissing, match="name one by -o parent=LINK") as caught:
        with _suggesting_parent(NetworkRequest(name="lan", driver=driver_name)):
            raise refusal
    assert caught.value.errno == 95
    with pytest.raises(FeatureMissing, match="lacks the feature$"), _suggesting_parent(NetworkRequest(name="lan")):
        raise refusal
