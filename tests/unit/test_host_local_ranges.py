"""The ranges of ``host-local``: what is given, in which order, and what is refused."""

from ipaddress import ip_address, ip_interface
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipam.host_local import RangeSet, RangeSpec, parse_range, parse_range_sets
from netlib.errors import ConfigError
from netlib.model import IPAddress


def spec(subnet: str, start: str = "", end: str = "", gateway: str = "") -> RangeSpec:
    return RangeSpec(ip_interface(subnet), *(ip_address(text) if text else None for text in (start, end, gateway)))


@pytest.mark.parametrize(
    ("written", "start", "end", "gateway"),
    [
        (spec("10.1.0.0/24"), "10.1.0.1", "10.1.0.254", "10.1.0.1"),
        (spec("10.1.0.0/30"), "10.1.0.1", "10.1.0.2", "10.1.0.1"),
        (spec("fd00::/64"), "fd00::1", "fd00::ffff:ffff:ffff:ffff", "fd00::1"),
        (spec("10.1.0.0/24", "10.1.0.9", "10.1.0.20", "10.9.9.9"), "10.1.0.9", "10.1.0.20", "10.9.9.9"),
        (spec("0.0.0.0/0"), "0.0.0.1", "255.255.255.254", "0.0.0.1"),
    ],
)
def test_what_is_not_written_is_filled_in(written: RangeSpec, start: str, end: str, gateway: str) -> None:
    found = parse_range(written)
    assert (str(found.start), str(found.end), str(found.gateway)) == (start, end, gateway)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([], "no IP ranges specified"),
        ([[]], "invalid range set 0: empty range set"),
        ([[RangeSpec(None)]], "invalid range set 0: a range without subnet; write its network like 10.1.0.0/16"),
        ([[spec("10.1.0.0/31")]], "invalid range set 0: Network 10.1.0.0/31 too small to allocate from"),
        ([[spec("10.1.0.0/24", "10.1.0.255")]], "invalid range set 0: RangeStart 10.1.0.255 not in network 10.1.0.0/24"),
        ([[spec("10.1.0.0/24", end="10.1.0.0")]], "invalid range set 0: RangeEnd 10.1.0.0 not in network 10.1.0.0/24"),
        ([[spec("10.1.0.0/24")], [spec("fd00::/64"), spec("10.1.0.0/16")]], "invalid range set 1: mixed address families"),
        ([[spec("10.1.0.0/24")], [spec("fd00::/64")], [spec("10.1.0.0/16")]], "range set 0 overlaps with 2"),
    ],
)
def test_what_is_refused(sets: list[list[RangeSpec]], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_range_sets(sets)
    assert str(caught.value) == message


def test_a_wide_range_is_not_counted_through() -> None:
    ranges = RangeSet([parse_range(spec("fd00::/64"))])
    assert [str(address) for address in islice(ranges.order(ip_address("fd00::ffff:ffff:ffff:fffe")), 3)] == [
        "fd00::ffff:ffff:ffff:ffff",
        "fd00::2",
        "fd00::3",
    ]


@st.composite
def range_sets(draw: st.DrawFn) -> RangeSet:
    """One to three small ranges that do not overlap, with gateways inside and outside."""
    specs = []
    for base in draw(st.permutations(("10.1.0", "10.1.1", "10.1.2")))[: draw(st.integers(1, 3))]:
        start = draw(st.integers(0, 15))
        end = draw(st.integers(start, 15))
        gateway = draw(st.sampled_from(["", f"{base}.{start}", f"{base}.{end}", "10.1.0.3", "10.9.0.1"]))
        specs.append(spec(f"{base}.0/28", f"{base}.{start}", f"{base}.{end}", gateway))
    return parse_range_sets([specs])[0]


@given(range_sets(), st.integers(0, 3 * 256))
def test_round_after_the_last_one_every_address_once(ranges: RangeSet, number: int) -> None:
    every: list[IPAddress] = [
        address for item in ranges for address in item.addresses(int(item.start), int(item.end))
    ]  # in the order of a folder where nothing was given yet
    last = ip_address(int(ip_address("10.1.0.0")) + number)
    order = list(ranges.order(last))
    assert sorted(order) == sorted(every)
    assert list(ranges.order(None)) == every
    home = ranges.find(last)
    if home is None:
        assert order == every
    else:
        position = [(ranges.index(item), address) for address in every if (item := ranges.find(address)) is not None]
        following = [address for index, address in position if (index, address) > (ranges.index(home), last)]
        assert order == following + [address for address in every if address not in following]
