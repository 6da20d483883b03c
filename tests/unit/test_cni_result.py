"""Results of every version of the specification, in and out."""

from ipaddress import ip_address, ip_interface
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni_plugins.protocol import NEWEST, VERSIONS, CniError, Code, at_least
from cni_plugins.result import IP, Dns, Interface, Result, Route, parse_result, render_result

FULL = Result(
    interfaces=(
        Interface("cni0", mac="00:11:22:33:44:55", mtu=1500),
        Interface("eth0", sandbox="/run/netns/blue", socket_path="/run/s", pci_id="0000:00:1f.6"),
    ),
    ips=(
        IP(ip_interface("10.1.0.5/16"), ip_address("10.1.0.1"), 1),
        IP(ip_interface("10.1.0.6/16"), None, 1),
        IP(ip_interface("fd00::5/64"), ip_address("fd00::1"), 1),
    ),
    routes=(
        Route(ip_interface("0.0.0.0/0"), ip_address("10.1.0.1"), mtu=1400, advmss=1360, priority=5, table=0, scope=253),
        Route(ip_interface("10.9.1.2/16")),
        Route(ip_interface("::/0"), ip_address("fd00::1")),
    ),
    dns=Dns(("10.1.0.1",), "example.org", ("a", "b"), ("ndots:1",)),
)
DNS = {"nameservers": ["10.1.0.1"], "domain": "example.org", "search": ["a", "b"], "options": ["ndots:1"]}
OLD_INTERFACES = [{"name": "cni0", "mac": "00:11:22:33:44:55"}, {"name": "eth0", "sandbox": "/run/netns/blue"}]
OLD_ROUTES = [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "10.9.1.2/16"}, {"dst": "::/0", "gw": "fd00::1"}]


def plain(document: dict[str, Any]) -> Any:
    return msgspec.json.decode(msgspec.json.encode(document))


def test_the_newest_version_has_everything() -> None:
    assert plain(render_result(FULL, "1.1.0")) == {
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "cni0", "mac": "00:11:22:33:44:55", "mtu": 1500},
            {"name": "eth0", "sandbox": "/run/netns/blue", "socketPath": "/run/s", "pciID": "0000:00:1f.6"},
        ],
        "ips": [
            {"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 1},
            {"address": "10.1.0.6/16", "interface": 1},
            {"address": "fd00::5/64", "gateway": "fd00::1", "interface": 1},
        ],
        "routes": [
            {"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400, "advmss": 1360, "priority": 5, "table": 0, "scope": 253},
            *OLD_ROUTES[1:],
        ],
        "dns": DNS,
    }


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0"])
def test_older_versions_leave_out_what_they_do_not_know(version: str) -> None:
    written = plain(render_result(FULL, version))
    assert (written["cniVersion"], written["interfaces"], written["routes"]) == (version, OLD_INTERFACES, OLD_ROUTES)
    assert written["dns"] == DNS
    families = [ip.get("version") for ip in written["ips"]]
    assert families == ([None] * 3 if version == "1.0.0" else ["4", "4", "6"])


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_the_oldest_versions_have_one_address_of_each_family(version: str) -> None:
    assert plain(render_result(FULL, version)) == {
        "cniVersion": version,
        "ip4": {"ip": "10.1.0.5/16", "gateway": "10.1.0.1", "routes": OLD_ROUTES[:2]},
        "ip6": {"ip": "fd00::5/64", "gateway": "fd00::1", "routes": OLD_ROUTES[2:]},
        "dns": DNS,
    }


def test_what_is_empty_is_left_out_as_libcni_leaves_it_out() -> None:
    address = Result(ips=(IP(ip_interface("10.0.0.2/24")),))
    assert plain(render_result(Result(), "1.1.0")) == {"cniVersion": "1.1.0"}
    assert plain(render_result(Result(), "1.0.0")) == {"cniVersion": "1.0.0", "dns": {}}
    assert plain(render_result(address, "0.2.0")) == {"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.2/24"}, "dns": {}}
    assert plain(render_result(address, "0.3.1"))["ips"] == [{"version": "4", "address": "10.0.0.2/24"}]


def test_the_oldest_versions_cannot_say_that_there_is_no_address() -> None:
    with pytest.raises(CniError, match="cannot convert: no valid IP addresses") as caught:
        render_result(Result(), "0.2.0")
    assert caught.value.code == Code.INCOMPATIBLE_VERSION


def test_a_result_names_its_own_version_or_has_that_of_the_configuration() -> None:
    old = {"ip4": {"ip": "10.0.0.2/24", "gateway": "10.0.0.1", "routes": [{"dst": "0.0.0.0/0"}]}}
    expected = Result(
        ips=(IP(ip_interface("10.0.0.2/24"), ip_address("10.0.0.1")),), routes=(Route(ip_interface("0.0.0.0/0")),)
    )
    assert parse_result(old, "0.2.0") == parse_result({**old, "cniVersion": "0.1.0"}, "1.0.0") == expected
    assert parse_result({**old, "cniVersion": "1.0.0"}, "0.2.0") == Result(), "ip4 is no key of 1.0.0"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (3, "prevResult: expected an object, got 3"),
        ({"cniVersion": "2.0.0"}, "prevResult: cniVersion: '2.0.0' is not known; known are 0.1.0, 0.2.0"),
        ({"ips": [{"address": "10.0.0.2"}]}, "prevResult: ips[0].address: expected an address with its prefix length"),
        ({"ips": [{}]}, "prevResult: ips[0].address: this key is required"),
        ({"ips": [{"address": "10.0.0.2/8", "interface": "0"}]}, "prevResult: ips[0].interface: expected a whole number"),
        ({"routes": [{"dst": "0.0.0.0/0", "mtu": -1}]}, "prevResult: routes[0].mtu: expected `int` >= 0, got -1"),
        (
            {"routes": [{"dst": "0.0.0.0/0", "table": 1 << 70}]},
            "prevResult: routes[0].table: expected a whole number, got 1.18",
        ),
        ({"ips": [{"address": "10.0.0.2/8", "interface": 1 << 63}]}, "prevResult: ips[0].interface: expected a whole number"),
        ({"interfaces": {"name": "eth0"}}, "prevResult: interfaces: expected a list"),
        ({"cniVersion": "0.2.0", "ip4": {"ip": 1}}, "prevResult: ip4.ip: expected the text of an address, got 1"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(raw: Any, message: str) -> None:
    with pytest.raises(CniError) as caught:
        parse_result(raw, "1.0.0")
    assert str(caught.value).startswith(message)


def test_the_interface_of_an_address() -> None:
    assert [FULL.interface_of(ip) for ip in FULL.ips] == [FULL.interfaces[1]] * 3
    for index in (None, -1, 2):
        assert FULL.interface_of(IP(ip_interface("10.0.0.2/8"), None, index)) is None


# --- there and back ------------------------------------------------------------------------------------------------------

_texts = st.text(st.characters(codec="utf-8"), max_size=8)
_counts = st.integers(0, 2**32 - 1)
_addresses = st.ip_addresses().filter(lambda address: address.version == 4 or address.ipv4_mapped is None)
_cidrs = st.builds(
    lambda address, length: ip_interface((address, length % (address.max_prefixlen + 1))), _addresses, st.integers(0, 128)
)
_gateways = st.none() | _addresses
_lists = st.lists(_texts, max_size=2).map(tuple)
results = st.builds(
    Result,
    interfaces=st.lists(
        st.builds(Interface, _texts, mac=_texts, mtu=_counts, sandbox=_texts, socket_path=_texts, pci_id=_texts), max_size=3
    ).map(tuple),
    ips=st.lists(st.builds(IP, _cidrs, _gateways, st.none() | st.integers(-2, 5)), max_size=4).map(tuple),
    routes=st.lists(
        st.builds(Route, _cidrs, _gateways, _counts, _counts, _counts, st.none() | _counts, st.none() | st.integers(0, 255)),
        max_size=3,
    ).map(tuple),
    dns=st.builds(Dns, _lists, _texts, _lists, _lists),
)


def known_to(version: str, result: Result) -> Result:
    """What of *result* a version can say."""
    if version == NEWEST:
        return result
    routes = tuple(Route(route.dst, route.gw) for route in result.routes)
    if at_least(version, "0.3.0"):
        interfaces = tuple(Interface(link.name, mac=link.mac, sandbox=link.sandbox) for link in result.interfaces)
        return Result(interfaces=interfaces, ips=result.ips, routes=routes, dns=result.dns)
    ips = [next((ip for ip in result.ips if ip.address.version == family), None) for family in (4, 6)]
    kept = tuple(IP(ip.address, ip.gateway) for ip in ips if ip is not None)
    return Result(
        ips=kept,
        routes=tuple(route for ip in kept for route in routes if route.dst.version == ip.address.version),
        dns=result.dns,
    )


@settings(max_examples=300, deadline=None)
@given(results, st.sampled_from(VERSIONS))
def test_what_is_written_is_read_again(result: Result, version: str) -> None:
    if not at_least(version, "0.3.0") and not result.ips:
        with pytest.raises(CniError):
            render_result(result, version)
        return
    written = plain(render_result(result, version))
    read = parse_result(written, version)
    assert read == known_to(version, result)
    assert plain(render_result(read, version)) == written
    del written["cniVersion"]
    assert parse_result(written, version) == read, "the version of the configuration stands in"
