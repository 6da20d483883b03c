"""Arithmetic of subnets: what is usable, what is refused, where a block fits."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipam.pools import DEFAULT_BLOCKS, Span, check_subnet, dynamic_span, first_fit, merged, overlap, span, usable_span
from netlib.errors import ConfigError


def test_default_blocks_are_dockers_and_then_smaller_ones() -> None:
    texts = [f"{block.base} by /{block.prefixlen}" for block in DEFAULT_BLOCKS]
    assert texts[0] == "172.17.0.0/16 by /16"
    assert texts[14] == "172.31.0.0/16 by /16"
    assert texts[15:] == ["192.168.0.0/16 by /20", "10.0.0.0/8 by /24"]


@pytest.mark.parametrize(
    ("subnet", "first", "last"),
    [
        ("10.0.0.0/24", "10.0.0.1", "10.0.0.254"),
        ("10.0.0.0/30", "10.0.0.1", "10.0.0.2"),
        ("fd00::/64", "fd00::1", "fd00::ffff:ffff:ffff:ffff"),
    ],
)
def test_network_broadcast_and_anycast_addresses_are_not_usable(subnet: str, first: str, last: str) -> None:
    assert usable_span(ip_network(subnet)) == Span(span(ip_network(first)).first, span(ip_network(last)).first)


@pytest.mark.parametrize("subnet", ["10.0.0.0/31", "10.0.0.1/32", "fd00::/127", "fd00::1/128"])
def test_a_subnet_without_room_is_refused(subnet: str) -> None:
    with pytest.raises(ConfigError, match=rf"subnet {subnet} is too small for a gateway and a member; the smallest is a /"):
        check_subnet(ip_network(subnet))


@pytest.mark.parametrize(
    "subnet", ["0.0.0.0/0", "127.1.0.0/16", "224.1.0.0/24", "255.255.255.0/24", "::/96", "fe80::/64", "ff02::/64"]
)
def test_a_subnet_that_no_interface_may_have_is_refused(subnet: str) -> None:
    with pytest.raises(ConfigError, match=rf"subnet {subnet} covers the .* addresse?s?"):
        check_subnet(ip_network(subnet))


def test_dynamic_addresses_come_from_the_usable_part_of_the_range() -> None:
    subnet = ip_network("10.0.0.0/24")
    assert dynamic_span(subnet, ip_network("10.0.0.0/28")) == Span(0x0A000001, 0x0A00000F)
    assert dynamic_span(subnet, ip_network("10.0.0.64/28")) == Span(0x0A000040, 0x0A00004F)
    assert dynamic_span(subnet, ip_network("10.0.0.128/25")) == Span(0x0A000080, 0x0A0000FE)


@pytest.mark.parametrize("ip_range", ["10.0.1.0/28", "10.0.0.0/23", "fd00::/64"])
def test_a_range_outside_its_subnet_is_refused(ip_range: str) -> None:
    with pytest.raises(ConfigError, match=f"ip-range {ip_range} is not inside subnet 10.0.0.0/24"):
        dynamic_span(ip_network("10.0.0.0/24"), ip_network(ip_range))


def test_a_range_of_the_network_address_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"ip-range 10\.0\.0\.0/32 holds no address"):
        dynamic_span(ip_network("10.0.0.0/24"), ip_network("10.0.0.0/32"))


def test_default_routes_also_in_two_halves_are_in_nobodys_way() -> None:
    routes = [
        ip_network(text)
        for text in ("0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "::/0", "10.1.0.0/16", "10.1.2.0/24", "10.2.0.0/16")
    ]
    assert merged(routes, 4) == [Span(0x0A010000, 0x0A02FFFF)]


SPANS = st.lists(st.tuples(st.integers(0, 255), st.integers(0, 40)), max_size=8)


@given(hole=st.tuples(st.integers(0, 200), st.integers(0, 255)), bits=st.integers(0, 6), taken=SPANS)
def test_first_fit_is_the_lowest_of_all_that_fit(hole: tuple[int, int], bits: int, taken: list[tuple[int, int]]) -> None:
    size = 1 << bits
    bounds = Span(min(hole), max(hole))
    routes = [ip_network((0x0A000000 + 256 * first, 24)) for first, _ in taken]
    obstacles = [Span((one.first - 0x0A000000) // 256, (one.last - 0x0A000000) // 256) for one in merged(routes, 4)]
    fitting = [
        start
        for start in range(0, 256, size)
        if bounds.contains(Span(start, start + size - 1))
        and not any(overlap(Span(start, start + size - 1), one) for one in obstacles)
    ]
    assert first_fit(bounds, size, obstacles) == min(fitting, default=None)
