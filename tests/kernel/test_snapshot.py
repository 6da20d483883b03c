"""Snapshots: equal as long as nothing is changed, and a change is readable."""

import subprocess
from collections.abc import Callable

import pytest

from netlib.errors import KernelError
from netlib.kernel.netns import entered
from netlib.model import NetnsRef
from netlib.testing.snapshot import differences, snapshot

RULES = """
table inet netlib {
    set bridges { type ifname; elements = { "b1", "b2", "b3" } }
    map ports4 { type inet_proto . inet_service : ipv4_addr . inet_service
        elements = { tcp . 80 : 10.0.0.2 . 80, tcp . 81 : 10.0.0.3 . 80, udp . 53 : 10.0.0.4 . 53 } }
    chain forward { type filter hook forward priority filter; iifname @bridges counter accept; drop; }
}
"""


@pytest.fixture
def web(netns_factory: Callable[[str], NetnsRef]) -> NetnsRef:
    return netns_factory("web")


def run(netns: NetnsRef, *commands: str, text: str | None = None) -> None:
    with entered(netns):
        for command in commands:
            subprocess.run(command.split(), check=True, input=text, text=True)


def test_two_netns_made_alike_are_alike(netns_factory: Callable[[str], NetnsRef]) -> None:
    found = []
    for word in ("one", "two"):
        netns = netns_factory(word)
        if word == "two":  # other ifindexes, other handles
            run(netns, "ip link add pad type bridge", "ip link del pad", "nft add table ip pad", "nft delete table ip pad")
        run(
            netns,
            "ip link add br0 address 02:00:00:00:00:01 type bridge",
            "ip addr add 10.0.0.1/24 dev br0",
            "ip link set br0 up",
        )
        run(netns, "ip route add default via 10.0.0.2", "ip rule add from 10.0.0.0/24 table 77")
        run(netns, "nft -f -", text=RULES)
        found.append(snapshot(netns))
    assert differences(*found) == []
    assert {section: bool(content) for section, content in found[0].items()} == dict.fromkeys(found[0], True)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("ip link add br1 type bridge", "links: + br1 bridge down mtu 1500"),
        ("ip link set br0 alias x", "links: br0: bridge down mtu 1400 mac 02:00:00:00:00:01 → "),
        ("ip addr add 10.0.0.1/24 dev br0", "addresses: + br0 10.0.0.1/24 scope 0"),
        ("ip route add 10.1.0.0/16 dev lo table 99", "routes: + 10.1.0.0/16 table 99"),
        ("ip -6 route add default dev lo", "routes: + default6 table 254"),
        ("ip rule add fwmark 7 table 99", "rules: + 2 "),
        ("ip -6 rule del from all lookup main", "rules: - 10 "),
        ("sysctl -q -w net.ipv4.ip_forward=1", "sysctls: net/ipv4/ip_forward: 0 → 1"),
        ("nft add element inet netlib bridges {b4}", "firewall: set inet netlib bridges: "),
        ("nft add rule inet netlib forward accept", "firewall: + rule inet netlib forward #3"),
        ("nft delete table inet netlib", "firewall: - table inet netlib"),
    ],
)
def test_a_change_is_told(web: NetnsRef, command: str, words: str) -> None:
    run(web, "ip link add br0 address 02:00:00:00:00:01 mtu 1400 type bridge")
    run(web, "nft -f -", text=RULES)
    before = snapshot(web)
    assert differences(before, snapshot(web)) == []
    run(web, command)
    assert any(line.startswith(words) for line in differences(before, snapshot(web)))


def test_a_netns_that_is_gone() -> None:
    with pytest.raises(KernelError, match="nobody"):
        snapshot(NetnsRef("/run/netns/nobody"))
