"""Records in Docker's JSON: keys, spellings and empty values as Docker's API has them."""

from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest

from netlib.errors import ConfigError
from netlib.model import AddressPool, Endpoint, Link, NetnsRef, Network, PortMapping, Protocol, Sandbox
from netlib.names import parse_link
from netlib.verbs.inspect import network_details, network_row, network_settings, ports, timestamp
from netlib.verbs.network import select_networks

NETWORK = Network(
    id="a" * 64,
    name="web",
    driver="bridge",
    created=1700000000.25,
    pools=(
        AddressPool(
            subnet=ip_network("172.18.0.0/16"),
            gateway=ip_address("172.18.0.1"),
            ip_range=ip_network("172.18.5.0/24"),
            auxiliary={"printer": ip_address("172.18.0.5")},
        ),
        AddressPool(subnet=ip_network("fd00:18::/64"), gateway=ip_address("fd00:18::1")),
    ),
    labels={"b": "2", "a": ""},
    ipv6=True,
)
BRIDGE = Network(id="b" * 64, name="bridge", driver="bridge", created=0, predefined=True)
BOX = Sandbox(id="c" * 64, name="box", created=0, netns=NetnsRef("/run/netns/box"), owned=True, hostname="cccccccccccc")


def endpoint(network: Network = NETWORK, **wanted: Any) -> Endpoint:
    addresses = tuple(ip_interface(text) for text in wanted.pop("addresses", ("172.18.0.2/16", "fd00:18::2/64")))
    return Endpoint(
        id="e" * 64,
        network=network.id,
        sandbox=BOX.id,
        created=0,
        ifname="eth0",
        mac="02:42:ac:12:00:02",
        addresses=addresses,
        **wanted,
    )


def test_a_row_of_network_ls_is_all_text() -> None:
    row = network_row(NETWORK)
    assert row.items() >= {"ID": "a" * 64, "Name": "web", "IPv4": "true", "IPv6": "true", "Internal": "false"}.items()
    assert row["Labels"] == "a=,b=2"
    assert row["Scope"] == "local"


def test_network_inspect() -> None:
    shown = network_details(NETWORK, [(endpoint(), BOX)])
    assert shown["IPAM"] == {
        "Driver": "default",
        "Options": {},
        "Config": [
            {
                "Subnet": "172.18.0.0/16",
                "IPRange": "172.18.5.0/24",
                "Gateway": "172.18.0.1",
                "AuxiliaryAddresses": {"printer": "172.18.0.5"},
            },
            {"Subnet": "fd00:18::/64", "Gateway": "fd00:18::1"},
        ],
    }
    assert shown["Containers"] == {
        "c" * 64: {
            "Name": "box",
            "EndpointID": "e" * 64,
            "MacAddress": "02:42:ac:12:00:02",
            "IPv4Address": "172.18.0.2/16",
            "IPv6Address": "fd00:18::2/64",
        }
    }
    assert shown["Created"] == "2023-11-14T22:13:20.250000Z"
    keys = "Name Id Created Scope Driver EnableIPv4 EnableIPv6 IPAM Internal Attachable Ingress ConfigFrom ConfigOnly"
    assert list(shown) == [*keys.split(), "Containers", "Options", "Labels"]


def test_network_settings_of_a_container() -> None:
    member = endpoint(aliases=("www",), links=(Link("db", "mysql"),), gw_priority=5)
    settings = network_settings(BOX, [member], {NETWORK.id: NETWORK})
    assert settings["SandboxKey"] == "/run/netns/box"
    assert settings["IPAddress"] == ""  # only the default bridge's is repeated at the top
    shown = settings["Networks"]["web"]
    assert (shown["IPAddress"], shown["IPPrefixLen"], shown["Gateway"]) == ("172.18.0.2", 16, "172.18.0.1")
    assert (shown["GlobalIPv6Address"], shown["GlobalIPv6PrefixLen"], shown["IPv6Gateway"]) == ("fd00:18::2", 64, "fd00:18::1")
    assert (shown["Links"], shown["GwPriority"]) == (["db:mysql"], 5)
    assert shown["DNSNames"] == ["box", "www", "cccccccccccc"]


def test_the_default_bridges_address_stands_at_the_top() -> None:
    settings = network_settings(BOX, [endpoint(BRIDGE, addresses=("172.17.0.2/16",))], {BRIDGE.id: BRIDGE})
    assert (settings["IPAddress"], settings["MacAddress"]) == ("172.17.0.2", "02:42:ac:12:00:02")
    assert settings["Networks"]["bridge"]["DNSNames"] == []


def test_ports_are_shown_for_the_families_that_answer() -> None:
    everywhere = PortMapping(container_port=80, host_port=8080)
    local = PortMapping(container_port=53, host_port=53, protocol=Protocol.UDP, host_ip=ip_address("127.0.0.1"))
    both = ports([(NETWORK, endpoint(ports=(everywhere, local)))])
    assert both == {
        "53/udp": [{"HostIp": "127.0.0.1", "HostPort": "53"}],
        "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}],
    }
    ipv4 = (NETWORK, endpoint(addresses=("172.18.0.2/16",), ports=(everywhere,)))
    assert ports([ipv4])["80/tcp"] == [{"HostIp": "0.0.0.0", "HostPort": "8080"}]
    ipv6 = ("fd00:18::2/64",)
    assert len(ports([ipv4, (BRIDGE, endpoint(BRIDGE, addresses=ipv6))])["80/tcp"]) == 2  # each goes by its own network
    lan = Network(id="d" * 64, name="lan", driver="macvlan", created=0)
    assert len(ports([ipv4, (lan, endpoint(lan, addresses=ipv6))])["80/tcp"]) == 1  # which publishes none


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ([], ["web", "bridge"]),
        (["driver=bridge"], ["web", "bridge"]),
        (["driver=host"], []),
        (["id=aaa"], ["web"]),
        (["name=we"], ["web"]),
        (["name=we", "name=brid"], ["web", "bridge"]),
        (["type=custom"], ["web"]),
        (["type=builtin"], ["bridge"]),
        (["scope=local"], ["web", "bridge"]),
        (["scope=swarm"], []),
        (["label=a"], ["web"]),
        (["label=a="], ["web"]),
        (["label=b=2", "label=a"], ["web"]),
        (["label=b=2", "label=c"], []),
        (["dangling=true"], ["web"]),
        (["dangling=false"], ["bridge"]),
        (["type=custom", "driver=host"], []),
    ],
)
def test_filters_of_network_ls(filters: list[str], found: list[str]) -> None:
    assert [network.name for network in select_networks([NETWORK, BRIDGE], filters, set())] == found


def test_a_network_in_use_is_not_dangling() -> None:
    assert not select_networks([NETWORK], ["dangling=true"], {NETWORK.id})


@pytest.mark.parametrize("text", ["colour=red", "driver", "type=odd", "dangling=perhaps", "label!=a"])
def test_filters_that_mean_nothing_are_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="filter ") as caught:
        select_networks([], [text], set())
    assert text.split("=", maxsplit=1)[0] in str(caught.value)


def test_links() -> None:
    assert parse_link("db:mysql") == Link("db", "mysql")
    assert parse_link("db") == Link("db", "db")
    for text in ("", ":x", "a:b:c"):
        with pytest.raises(ConfigError, match="^link "):
            parse_link(text)


def test_timestamps_round_to_microseconds() -> None:
    assert timestamp(0.9999999) == "1970-01-01T00:00:01.000000Z"
