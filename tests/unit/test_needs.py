"""How tests are sorted between this kernel and the virtual machine's."""

import pytest

from tests import needs


@pytest.mark.parametrize(
    "mark",
    [pytest.mark.needs_link_kind("vlan", "wlan"), pytest.mark.needs_kernel("cgroup_v3"), pytest.mark.vm("ordinary", "wet")],
)
def test_a_name_that_nobody_knows_ends_the_session(request: pytest.FixtureRequest, mark: pytest.MarkDecorator) -> None:
    request.node.add_marker(mark)
    with pytest.raises(pytest.UsageError, match=r"wlan|cgroup_v3|wet.*: known are "):
        needs.boots_of(request.node)


@pytest.mark.parametrize(
    ("marks", "boots"),
    [
        ([], set()),
        ([pytest.mark.needs_link_kind("vlan"), pytest.mark.needs_link_kind("vrf")], {"ordinary"}),
        ([pytest.mark.needs_kernel("no_ipv6"), pytest.mark.needs_link_kind("vlan")], {"bare"}),
        ([pytest.mark.vm], {"ordinary"}),
        ([pytest.mark.vm("ordinary", "bare")], {"ordinary", "bare"}),
        ([pytest.mark.vm("bare"), pytest.mark.needs_link_kind("vlan")], {"ordinary", "bare"}),
    ],
)
def test_marks_add_up(request: pytest.FixtureRequest, marks: list[pytest.MarkDecorator], boots: set[str]) -> None:
    for mark in marks:
        request.node.add_marker(mark)
    assert needs.boots_of(request.node) == boots


def test_the_closing_line_counts_tests_and_reasons() -> None:
    assert needs.closing_line([["vlan"]]) == "1 test needs the VM (make test-vm): vlan 1"
    line = "3 tests need the VM (make test-vm): ipvlan 1, vlan 2, vrf 1"
    assert needs.closing_line([["vlan"], ["ipvlan", "vlan"], ["vrf"]]) == line
