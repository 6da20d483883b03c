"""The default IPAM driver: what it gives, in which order, and what it refuses with which words."""

import re
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from ipam.default import DefaultIpam, PoolUsage
from netlib.errors import AddressTaken, ConfigError, Conflict, NotFound, PoolExhausted, UnknownOption
from netlib.ipamapi import Leased, PoolRequest
from netlib.model import HOST, AddressPool, Endpoint, IPAddress, IPNetwork, Network, Sandbox
from netlib.store.records import Transaction
from netlib.store.sqlite import Store

WEB, DB, EMPTY = "a" * 64, "b" * 64, "c" * 64
IPAM = DefaultIpam()


@pytest.fixture
def tx(tmp_path: Path) -> Iterator[Transaction]:
    store = Store(tmp_path, boot="boot")
    with store.write() as tx:
        for network, name in ((WEB, "web"), (DB, "db")):
            tx.insert(Network(id=network, name=name, driver="bridge", created=0.0), name=name)
        yield tx
    store.close()


def request(tx: Transaction, network: str = WEB, *, avoid: tuple[str, ...] = (), family: int = 4, **parts: Any) -> AddressPool:
    values = {
        "subnet": ip_network(parts["subnet"]) if "subnet" in parts else None,
        "ip_range": ip_network(parts["ip_range"]) if "ip_range" in parts else None,
        "gateway": ip_address(parts["gateway"]) if "gateway" in parts else None,
        "auxiliary": {name: ip_address(text) for name, text in parts.get("auxiliary", {}).items()},
        "wants_gateway": parts.get("wants_gateway", True),
        "options": parts.get("options", {}),
    }
    return IPAM.request_pool(tx.leases, network, PoolRequest(family=family, **values), [ip_network(text) for text in avoid])


def lease(tx: Transaction, subnet: IPNetwork, owner: str = "e1", preferred: IPAddress | None = None, network: str = WEB) -> str:
    return str(IPAM.request_address(tx.leases, network, subnet, owner, preferred).ip)


def automatic(tx: Transaction, count: int, family: int = 4, avoid: tuple[str, ...] = ()) -> list[str]:
    return [str(request(tx, f"{number:064x}", family=family, avoid=avoid).subnet) for number in range(count)]


# --- automatic subnets -------------------------------------------------------------------------------------------------


def test_automatic_subnets_follow_docker_and_go_on(tx: Transaction) -> None:
    subnets = automatic(tx, 34)
    assert subnets[0] == "172.17.0.0/16"
    assert subnets[1] == "172.18.0.0/16"
    assert subnets[14] == "172.31.0.0/16"
    assert subnets[15:17] == ["192.168.0.0/20", "192.168.16.0/20"]
    assert subnets[30:] == ["192.168.240.0/20", "10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24"]


def test_automatic_subnets_avoid_routes_and_given_subnets(tx: Transaction) -> None:
    request(tx, WEB, subnet="172.19.4.0/24")
    subnets = automatic(tx, 2, avoid=("0.0.0.0/0", "128.0.0.0/1", "172.17.42.0/24", "172.16.0.0/15", "fd00::/8"))
    assert subnets == ["172.18.0.0/16", "172.20.0.0/16"]


def test_a_released_subnet_is_the_next_automatic_one(tx: Transaction) -> None:
    automatic(tx, 3)
    IPAM.release_pool(tx.leases, f"{1:064x}")
    IPAM.release_pool(tx.leases, f"{1:064x}")
    assert str(request(tx, WEB).subnet) == "172.18.0.0/16"


def test_automatic_ipv6_subnets_are_the_hosts_own_and_stay_so(tx: Transaction) -> None:
    one, two = (ip_network(text) for text in automatic(tx, 2, family=6))
    assert one.prefixlen == two.prefixlen == 64
    assert int(two.network_address) - int(one.network_address) == 1 << 64
    assert one.supernet(new_prefix=48) == ip_network(tx.meta("ipam.ula") or "")
    assert one.subnet_of(ip_network("fd00::/8"))  # type: ignore[arg-type]


def test_no_subnet_is_left(tx: Transaction) -> None:
    with pytest.raises(PoolExhausted, match=r"no automatic IPv4 subnet is left: .* 10\.0\.0\.0/8; pass --subnet"):
        request(tx, WEB, avoid=("172.16.0.0/12", "192.168.0.0/16", "10.0.0.0/8"))


@pytest.mark.parametrize("part", [{"gateway": "10.0.0.1"}, {"ip_range": "10.0.0.0/28"}, {"auxiliary": {"printer": "10.0.0.9"}}])
def test_parts_of_a_subnet_that_is_not_given_are_refused(tx: Transaction, part: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="needs a given subnet; pass --subnet too"):
        request(tx, **part)


# --- given subnets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subnet", ["10.1.0.0/16", "10.1.128.0/17", "10.0.0.0/8"])
def test_a_subnet_that_overlaps_a_network_is_refused_naming_it(tx: Transaction, subnet: str) -> None:
    request(tx, WEB, subnet="10.1.0.0/16")
    with pytest.raises(Conflict, match=f'subnet {subnet} overlaps subnet 10.1.0.0/16 of network "web"'):
        request(tx, DB, subnet=subnet)
    with pytest.raises(Conflict, match=f"subnet {subnet} overlaps subnet 10.1.0.0/16 of the same network"):
        request(tx, WEB, subnet=subnet)


def test_a_subnet_that_overlaps_a_route_is_refused_naming_it(tx: Transaction) -> None:
    with pytest.raises(Conflict, match=r"subnet 10\.1\.0\.0/16 overlaps route 10\.1\.2\.0/24 of this host"):
        request(tx, subnet="10.1.0.0/16", avoid=("0.0.0.0/0", "10.2.0.0/16", "10.1.2.0/24"))
    assert request(tx, subnet="10.1.0.0/16", avoid=("0.0.0.0/0", "10.2.0.0/16")).gateway == ip_address("10.1.0.1")


def test_neighbours_do_not_overlap(tx: Transaction) -> None:
    request(tx, WEB, subnet="10.1.0.0/24")
    assert request(tx, DB, subnet="10.1.1.0/24").subnet == ip_network("10.1.1.0/24")


def test_a_subnet_of_the_other_family_is_refused(tx: Transaction) -> None:
    with pytest.raises(ConfigError, match="subnet fd00::/64 is not an IPv4 subnet"):
        request(tx, subnet="fd00::/64")


# --- gateway, range, auxiliary addresses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "gateway", "first"),
    [
        ({}, "10.0.0.1", "10.0.0.2"),
        ({"gateway": "10.0.0.254"}, "10.0.0.254", "10.0.0.1"),
        ({"ip_range": "10.0.0.64/28"}, "10.0.0.64", "10.0.0.65"),
        ({"ip_range": "10.0.0.64/28", "gateway": "10.0.0.1"}, "10.0.0.1", "10.0.0.64"),
        ({"auxiliary": {"router": "10.0.0.1", "printer": "10.0.0.3"}}, "10.0.0.2", "10.0.0.4"),
        ({"wants_gateway": False}, None, "10.0.0.1"),
    ],
)
def test_gateway_and_first_address(tx: Transaction, parts: dict[str, Any], gateway: str | None, first: str) -> None:
    pool = request(tx, subnet="10.0.0.0/24", **parts)
    assert pool.gateway == (ip_address(gateway) if gateway else None)
    assert lease(tx, pool.subnet) == first


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"gateway": "10.0.1.1"}, "gateway 10.0.1.1 is outside subnet 10.0.0.0/24"),
        ({"gateway": "fd00::1"}, "gateway fd00::1 is outside subnet 10.0.0.0/24"),
        ({"gateway": "10.0.0.0"}, "gateway 10.0.0.0 is the network address of subnet"),
        ({"gateway": "10.0.0.255"}, "gateway 10.0.0.255 is the broadcast address of subnet"),
        ({"auxiliary": {"printer": "10.9.0.1"}}, 'auxiliary address "printer" (10.9.0.1) is outside subnet 10.0.0.0/24'),
        (
            {"gateway": "10.0.0.9", "auxiliary": {"printer": "10.0.0.9"}},
            'auxiliary address "printer" (10.0.0.9) is the gateway too',
        ),
        (
            {"auxiliary": {"printer": "10.0.0.9", "scanner": "10.0.0.9"}},
            'auxiliary address "scanner" (10.0.0.9) is auxiliary address "printer" too',
        ),
    ],
)
def test_reserved_addresses_that_are_refused(tx: Transaction, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        request(tx, subnet="10.0.0.0/24", **parts)


def test_the_anycast_address_of_ipv6_is_no_gateway(tx: Transaction) -> None:
    with pytest.raises(ConfigError, match="gateway fd00:: is the router anycast address of subnet fd00::/64"):
        request(tx, family=6, subnet="fd00::/64", gateway="fd00::")


def test_no_address_for_the_gateway(tx: Transaction) -> None:
    with pytest.raises(PoolExhausted, match=r"gateway of subnet 10\.0\.0\.0/30, for auxiliary addresses take all"):
        request(tx, subnet="10.0.0.0/30", auxiliary={"one": "10.0.0.1", "two": "10.0.0.2"})


# --- addresses ---------------------------------------------------------------------------------------------------------


def test_a_released_address_rests_until_the_cursor_comes_around(tx: Transaction) -> None:
    subnet = request(tx, subnet="10.0.0.0/29").subnet
    assert [lease(tx, subnet, f"e{n}") for n in range(3)] == ["10.0.0.2", "10.0.0.3", "10.0.0.4"]
    IPAM.release_address(tx.leases, WEB, "e0")
    assert [lease(tx, subnet, f"f{n}") for n in range(3)] == ["10.0.0.5", "10.0.0.6", "10.0.0.2"]
    with pytest.raises(PoolExhausted) as caught:
        lease(tx, subnet, "g")
    assert str(caught.value) == (
        'network "web" has no address left: all 6 from 10.0.0.1 to 10.0.0.6 in subnet 10.0.0.0/29 are in use; '
        "disconnect containers or create a network with a larger subnet or ip-range"
    )


def test_a_fixed_address_leaves_the_cursor_alone(tx: Transaction) -> None:
    subnet = request(tx, subnet="10.0.0.0/24", ip_range="10.0.0.0/29").subnet
    assert lease(tx, subnet, "e1", ip_address("10.0.0.200")) == "10.0.0.200"
    assert lease(tx, subnet, "e2", ip_address("10.0.0.3")) == "10.0.0.3"
    assert [lease(tx, subnet, f"f{n}") for n in range(3)] == ["10.0.0.2", "10.0.0.4", "10.0.0.5"]


def test_the_address_comes_with_the_length_of_its_subnet(tx: Transaction) -> None:
    pool = request(tx, family=6, subnet="fd00::/64")
    assert IPAM.request_address(tx.leases, WEB, pool.subnet, "e1") == ip_interface("fd00::2/64")


def test_a_taken_address_names_its_holder(tx: Transaction) -> None:
    pool = request(tx, subnet="10.0.0.0/24", auxiliary={"printer": "10.0.0.9"})
    tx.insert(Sandbox(id="d" * 64, name="shop", created=0.0, netns=HOST, owned=False), name="shop")
    endpoint = Endpoint(id="e" * 64, network=WEB, sandbox="d" * 64, created=0.0)
    tx.insert(endpoint, name="e", network=WEB, sandbox="d" * 64)
    lease(tx, pool.subnet, endpoint.id, ip_address("10.0.0.5"))
    for address, holder in (
        ("10.0.0.1", "the gateway"),
        ("10.0.0.5", 'the endpoint of sandbox "shop"'),
        ("10.0.0.9", 'auxiliary address "printer"'),
    ):
        with pytest.raises(AddressTaken, match=f'address {address} of network "web" is taken by {holder}; choose another one'):
            lease(tx, pool.subnet, "x", ip_address(address))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("10.0.1.7", 'address 10.0.1.7 for network "web" is outside subnet 10.0.0.0/24'),
        ("fd00::7", 'address fd00::7 for network "web" is outside subnet 10.0.0.0/24'),
        ("10.0.0.255", 'address 10.0.0.255 for network "web" is the broadcast address'),
    ],
)
def test_a_fixed_address_that_cannot_be(tx: Transaction, address: str, message: str) -> None:
    subnet = request(tx, subnet="10.0.0.0/24").subnet
    with pytest.raises(ConfigError, match=message):
        lease(tx, subnet, "e1", ip_address(address))


def test_an_unknown_subnet_is_named(tx: Transaction) -> None:
    with pytest.raises(NotFound, match=r'network "web" has no subnet 10\.0\.0\.0/24'):
        lease(tx, ip_network("10.0.0.0/24"))


def test_release_is_of_one_owner_in_one_network_and_idempotent(tx: Transaction) -> None:
    web, db = request(tx, WEB, subnet="10.0.0.0/24").subnet, request(tx, DB, subnet="10.0.1.0/24").subnet
    for owner in ("e1", "e2"):
        lease(tx, web, owner)
        lease(tx, db, owner, network=DB)
    IPAM.release_address(tx.leases, WEB, "e1")
    IPAM.release_address(tx.leases, WEB, "e1")
    IPAM.release_address(tx.leases, EMPTY, "e2")
    assert [item.owner for item in tx.leases.listed(WEB)] == ["gateway", "e2"]
    assert [item.owner for item in tx.leases.listed(DB)] == ["gateway", "e1", "e2"]


def test_release_of_a_pool_leaves_no_row(tx: Transaction) -> None:
    before = rows(tx)
    pool = request(tx, subnet="10.0.0.0/24", auxiliary={"printer": "10.0.0.9"})
    lease(tx, pool.subnet)
    request(tx, family=6)
    IPAM.release_pool(tx.leases, WEB)
    assert rows(tx) == before


def rows(tx: Transaction) -> list[Any]:
    return [tx.db.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall() for table in ("pool", "free_range", "lease")]


def test_usage_and_leases(tx: Transaction) -> None:
    pool = request(tx, subnet="10.0.0.0/24", ip_range="10.0.0.0/28", auxiliary={"printer": "10.0.0.200"})
    lease(tx, pool.subnet, "e1" * 32)
    assert IPAM.usage(tx.leases, WEB) == [PoolUsage(pool.subnet, total=254, leased=3, available=13)]
    assert tx.leases.listed(WEB) == [
        Leased(ip_interface("10.0.0.1/24"), "gateway", "the gateway"),
        Leased(ip_interface("10.0.0.2/24"), "e1" * 32, "e1e1e1e1e1e1 (without a record)"),
        Leased(ip_interface("10.0.0.200/24"), "auxiliary:printer", 'auxiliary address "printer"'),
    ]
    assert IPAM.usage(tx.leases, EMPTY) == []


def test_options_have_an_effect_or_are_refused_by_name(tx: Transaction) -> None:
    serial = "com.docker.network.ipam.serial"
    with pytest.raises(
        UnknownOption, match=r"IPAM driver default: unknown option 'a'; there are: com\.docker\.network\.ipam\.serial"
    ):
        request(tx, options={"a": "b"})
    with pytest.raises(ConfigError, match=r"ipam\.serial=false is not possible"):
        request(tx, subnet="10.0.0.0/24", options={serial: "false"})
    assert request(tx, subnet="10.0.0.0/24", options={serial: "true"}).subnet == ip_network("10.0.0.0/24")
