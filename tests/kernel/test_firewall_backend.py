"""The nftables backend in a real kernel: one transaction, what it replaces, what it forgives, what it never does."""

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from netlib.errors import ConfigError, FeatureMissing, NetlibError, ObjectMissing
from netlib.firewall import libnftables
from netlib.firewall.backend import firewall
from netlib.firewall.libnftables import Nft, keeping, opened_nft
from netlib.firewall.members import MemberTable, PortSources
from netlib.firewall.objects import BridgedNetwork, FirewallBase, FirewallObject, ForwardAllowance, PublishedPort
from netlib.firewall.ruleset import base_commands
from netlib.kernel.handle import Kernel
from netlib.kernel.netns import entered
from netlib.model import HOST, NetnsRef, Protocol
from tests.descriptors import open_descriptors
from tests.unit.test_firewall import STANDARD

GOLDEN = Path(__file__).parents[1] / "unit" / "golden" / "nftables_listing.txt"
TAG = "netlib:test:record"


@pytest.fixture
def host(netns_factory: Callable[[str], NetnsRef]) -> NetnsRef:
    return netns_factory("host")


@pytest.fixture
def kernel(host: NetnsRef) -> Iterator[Kernel]:
    with entered(host), Kernel(TAG) as kernel:
        FirewallBase().ensure(kernel)
        yield kernel


def port(number: int, last: int = 2, protocol: Protocol = Protocol.TCP) -> PublishedPort:
    address = ip_address(f"10.1.{number // 4000}.{last}")
    return PublishedPort(bridge="br0", address=address, container_port=80, host_port=number, protocol=protocol)


def nft(command: str) -> str:
    return subprocess.run(["nft", command], check=True, capture_output=True, text=True).stdout


def test_the_whole_listing(kernel: Kernel) -> None:
    FirewallObject.ensure_many(kernel, STANDARD)
    assert firewall(kernel).listing() == GOLDEN.read_text()


def test_the_whole_listing_of_members(kernel: Kernel) -> None:
    MemberTable().ensure(kernel)
    PortSources(port="veth0", addresses=(ip_address("10.1.0.2"), ip_address("fd01::2"))).ensure(kernel)
    assert nft("list table bridge netlib_members") == (GOLDEN.parent / "members_listing.txt").read_text()


def test_ensuring_again_changes_nothing(kernel: Kernel) -> None:
    FirewallObject.ensure_many(kernel, STANDARD)
    before = nft("list ruleset")
    FirewallObject.ensure_many(kernel, STANDARD)
    with entered(NetnsRef("")):
        assert nft("list ruleset") == before


def test_a_port_with_another_target_is_replaced(kernel: Kernel) -> None:
    FirewallObject.ensure_many(kernel, [port(80, 2), port(81, 2)])
    assert port(80, 3).drift(kernel) == "ports4 tcp . 80 leads to 10.1.0.2 . 80 instead"
    FirewallObject.ensure_many(kernel, [port(79, 3), port(80, 3), port(81, 2), port(82, 3)])
    assert [port(number, 2 if number == 81 else 3).drift(kernel) for number in (79, 80, 81, 82)] == [None] * 4


def test_a_network_with_other_settings_is_changed_in_place(kernel: Kernel) -> None:
    before = BridgedNetwork(bridge="br0", subnets=(ip_network("10.1.0.0/24"), ip_network("fd01::/64")))
    other = BridgedNetwork(bridge="br00", subnets=before.subnets)
    after = BridgedNetwork(bridge="br0", subnets=(ip_network("10.2.0.0/24"),), internal=True, icc=False, mode="nat-unprotected")
    FirewallObject.ensure_many(kernel, [before, other])
    assert "own4 10.1.0.0/24 . br0 should not be there" in (after.drift(kernel) or "")
    for wanted in (after, before):
        wanted.ensure(kernel)
        assert wanted.drift(kernel) is None
        assert other.drift(kernel) is None


def test_removal_forgives_what_is_gone(kernel: Kernel) -> None:
    FirewallObject.ensure_many(kernel, [port(number) for number in (80, 81, 82)])
    port(81).remove(kernel)
    FirewallObject.remove_many(kernel, [port(number) for number in (80, 81, 82, 83)])
    assert firewall(kernel).list_ours() == ()
    nft("delete table inet netlib")
    FirewallObject.remove_many(kernel, [port(80), FirewallBase()])


def test_all_or_nothing(kernel: Kernel) -> None:
    """A name that nft would take for something else stops the whole plan before the kernel sees any of it."""
    with pytest.raises(ConfigError, match="cannot be used in firewall rules"):
        FirewallObject.ensure_many(kernel, [port(80), BridgedNetwork(bridge="br*", subnets=())])
    assert firewall(kernel).list_ours() == ()


def test_without_the_table_a_port_is_refused_and_a_plan_with_the_base_is_not(kernel: Kernel) -> None:
    nft("delete table inet netlib")
    with pytest.raises(ObjectMissing, match="another program deleted it"):
        port(80).ensure(kernel)
    FirewallObject.ensure_many(kernel, [FirewallBase(), port(80)])
    assert port(80).drift(kernel) is None


def test_a_kernel_without_what_the_base_needs_is_told_from_a_lost_table(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel answers ENOENT to an expression that it does not have, as it does to a chain that is not there."""
    nft("delete table inet netlib")
    broken = (*base_commands(), "add rule inet netlib forward jump nowhere")
    monkeypatch.setattr("netlib.firewall.nftables.base_commands", lambda: broken)
    with pytest.raises(FeatureMissing, match="lacks a part of nf_tables"):
        FirewallBase().ensure(kernel)
    assert firewall(kernel).listing() == ""


def test_an_older_versions_rules_are_replaced_and_entries_kept(kernel: Kernel) -> None:
    port(80).ensure(kernel)
    nft('flush chain inet netlib forward; add rule inet netlib forward jump user comment "yours first (0ldc0de0)"')
    assert FirewallBase().drift(kernel) == "nftables chain inet netlib forward has other rules than ours"
    FirewallBase().ensure(kernel)
    assert FirewallBase().drift(kernel) is None
    assert port(80).drift(kernel) is None


def test_what_is_ours_is_listed_with_its_tag_and_can_be_discarded(kernel: Kernel) -> None:
    nft("add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }")
    FirewallObject.ensure_many(kernel, [*STANDARD, ForwardAllowance(bridge="br-web")])
    found = firewall(kernel).list_ours()
    assert {item.tag for item in found} == {TAG}
    assert "inet netlib ports4 tcp . 8080" in {item.what for item in found}
    assert sum(item.what.startswith("ip filter FORWARD rule") for item in found) == 2
    firewall(kernel).discard(found)
    firewall(kernel).discard(found)
    assert firewall(kernel).list_ours() == ()


def test_a_thousand_ports_are_one_transaction(kernel: Kernel) -> None:
    ports = [port(number, protocol=Protocol.UDP) for number in range(20000, 21000)]
    before = libnftables.nft(kernel).generation()
    FirewallObject.ensure_many(kernel, ports)
    assert libnftables.nft(kernel).generation() == before + 1
    FirewallObject.remove_many(kernel, ports)
    assert libnftables.nft(kernel).generation() == before + 2


def test_writers_at_once_lose_nothing(kernel: Kernel, host: NetnsRef) -> None:
    """Eight threads, a handle each: their own ports come and go, and all of them replace one."""
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with entered(host), Kernel(TAG) as own:
                for step in range(10):
                    FirewallObject.ensure_many(own, [port(1000 + number * 100 + step), port(3000 + number, step + 2)])
                    port(1000 + number * 100 + step, 9).ensure(own)
                    if step % 2:
                        port(1000 + number * 100 + step).remove(own)
        except NetlibError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(firewall(kernel).list_ours()) == 8 * 6


def test_a_handle_keeps_to_the_netns_it_was_opened_in(host: NetnsRef, netns_factory: Callable[[str], NetnsRef]) -> None:
    """Opened inside, used from home."""
    other = netns_factory("other")
    with Kernel(TAG) as kernel:
        inside = firewall(kernel, other)
        port = PublishedPort(netns=other, bridge="b", address=ip_address("10.0.0.2"), container_port=1, host_port=2)
        inside.ensure({TAG: [FirewallBase(netns=other), port]})
        assert "10.0.0.2 . 1" in inside.listing()
        assert firewall(kernel).listing() == ""
        with entered(other):
            assert "tcp . 2" in nft("list table inet netlib")


def test_a_process_that_stays_keeps_its_conversations() -> None:
    """With its own netns, for one user at a time; a fork leaves them to it, and at the end they are closed."""
    before = open_descriptors()

    def opened() -> Nft:
        return opened_nft(Kernel(), HOST)

    with keeping():
        first, second = opened(), opened()
        assert first is not second
        first.close()
        assert opened() is first
        first.run("add table inet kept", "test")
        first.close()
        child = os.fork()
        if child == 0:
            os._exit(opened() is first)
        assert os.waitpid(child, 0)[1] == 0
        assert opened() is first
        first.run("delete table inet kept", "test")
        for nft in (first, second):
            nft.close()
    assert open_descriptors() == before
