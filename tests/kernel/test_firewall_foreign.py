"""Forward hooks of others: what drops, where our accept goes, and that it goes without a trace."""

import subprocess
from collections.abc import Callable, Iterator

import pytest

from netlib.firewall.objects import ForwardAllowance
from netlib.kernel.handle import Kernel
from netlib.kernel.netns import entered
from netlib.model import NetnsRef

TAG = "netlib:test:record"
ALLOWANCE = ForwardAllowance(bridge="br0")

# What drops, as a person or a program would set it up; the chain that our two rules go to, and the rule that stays behind them.
_HOOK = "{ type filter hook forward priority 0; policy %s; }"
DROPPING = {
    "policy": ((f"add chain ip filter FORWARD {_HOOK % 'drop'}",), "ip filter FORWARD", ""),
    "inet_policy": ((f"add chain inet filter pass {_HOOK % 'drop'}",), "inet filter pass", ""),
    "final_reject": (
        (
            f"add chain ip filter FORWARD {_HOOK % 'accept'}",
            "add rule ip filter FORWARD ip saddr 10.9.9.9 accept",
            "add rule ip filter FORWARD counter log reject",
        ),
        "ip filter FORWARD",
        "reject",
    ),
    "final_jump": (
        (
            f"add chain ip6 filter FORWARD {_HOOK % 'accept'}",
            "add chain ip6 filter last",
            "add rule ip6 filter last drop",
            "add rule ip6 filter FORWARD jump last",
        ),
        "ip6 filter FORWARD",
        "jump last",
    ),
    "docker": (
        (
            f"add chain ip filter FORWARD {_HOOK % 'drop'}",
            "add chain ip filter DOCKER-USER",
            "add rule ip filter FORWARD jump DOCKER-USER",
            "add rule ip filter DOCKER-USER iifname eth7 drop",
            "add rule ip filter DOCKER-USER return",
        ),
        "ip filter DOCKER-USER",
        "return",
    ),
}


@pytest.fixture
def kernel(netns_factory: Callable[[str], NetnsRef]) -> Iterator[Kernel]:
    with entered(netns_factory("host")), Kernel(TAG) as kernel:
        yield kernel


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def nft(*commands: str) -> None:
    """Run *commands* after the tables that they are about have been made."""
    tables = {f"add table {' '.join(command.split()[2:4])}" for command in commands}
    run("nft", "; ".join([*tables, *commands]))


@pytest.mark.parametrize("case", DROPPING)
def test_accepts_stand_in_front_of_the_final_drop(kernel: Kernel, case: str) -> None:
    setup, chain, last = DROPPING[case]
    nft(*setup)
    before = run("nft", "list", "ruleset")
    assert f"chain {chain} drops what br0 forwards" in (ALLOWANCE.drift(kernel) or "")
    ALLOWANCE.ensure(kernel)
    assert ALLOWANCE.drift(kernel) is None
    rules = [line.strip() for line in run("nft", "list", "chain", *chain.split()).splitlines()]
    ours = [f'{way} "br0" counter packets 0 bytes 0 accept comment "{TAG} forward br0"' for way in ("iifname", "oifname")]
    behind = rules[rules.index(ours[0]) :]
    assert behind[:2] == ours
    assert behind[2].endswith(last or "}")
    once = run("nft", "list", "ruleset")
    ALLOWANCE.ensure(kernel)
    assert run("nft", "list", "ruleset") == once
    ALLOWANCE.remove(kernel)
    assert run("nft", "list", "ruleset") == before
    ALLOWANCE.remove(kernel)


def test_the_line_to_type_is_the_one_that_helps(kernel: Kernel) -> None:
    nft(*DROPPING["docker"][0])
    drift = ALLOWANCE.drift(kernel) or ""
    for command in drift.partition("type: ")[2].split("; "):
        run("nft", command.removeprefix("nft ").strip("'"))
    assert ALLOWANCE.drift(kernel) is None


def test_what_accepts_by_default_is_left_alone(kernel: Kernel) -> None:
    run("nft", "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; }")
    run(
        "nft",
        "add rule ip filter FORWARD ip saddr 10.9.9.9 drop; add chain ip filter other; add rule ip filter FORWARD jump other",
    )
    before = run("nft", "list", "ruleset")
    ALLOWANCE.ensure(kernel)
    assert ALLOWANCE.drift(kernel) is None
    assert run("nft", "list", "ruleset") == before


def test_bridges_are_told_apart(kernel: Kernel) -> None:
    nft(*DROPPING["policy"][0])
    other = ForwardAllowance(bridge="br00")
    ForwardAllowance.ensure_many(kernel, [ALLOWANCE, other])
    ALLOWANCE.remove(kernel)
    assert ALLOWANCE.drift(kernel) is not None
    assert other.drift(kernel) is None
    other.remove(kernel)


def test_firewalld_is_asked_for_by_its_own_command(kernel: Kernel) -> None:
    """It rewrites its table at every reload: the person types the line, and then firewalld's rules speak of the bridge."""
    nft(
        f"add chain inet firewalld filter_FORWARD {_HOOK % 'accept'}",
        "add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited",
    )
    before = run("nft", "list", "ruleset")
    ALLOWANCE.ensure(kernel)
    assert run("nft", "list", "ruleset") == before
    assert ALLOWANCE.drift(kernel) == "firewalld drops what br0 forwards; type: firewall-cmd --zone=trusted --add-interface=br0"
    run("nft", "insert rule inet firewalld filter_FORWARD iifname br0 accept")
    assert ALLOWANCE.drift(kernel) is None


@pytest.mark.parametrize("program", ["iptables-legacy", "ip6tables-legacy"])
def test_legacy_tables(kernel: Kernel, program: str) -> None:
    """Those of iptables-legacy, which nftables does not show."""
    run(program, "-P", "FORWARD", "DROP")
    run(program, "-A", "FORWARD", "-i", "br0", "-j", "ACCEPT", "-m", "comment", "--comment", "somebody's own")
    before = run(program, "-S")
    lines = "; ".join(f"{program} -A FORWARD {option} br0 -j ACCEPT" for option in ("-i", "-o"))
    assert ALLOWANCE.drift(kernel) == f"{program}'s FORWARD drops what br0 forwards; type: {lines}"
    ALLOWANCE.ensure(kernel)
    ALLOWANCE.ensure(kernel)
    assert ALLOWANCE.drift(kernel) is None
    assert run(program, "-S") == before + "".join(
        f'-A FORWARD {option} br0 -m comment --comment "{TAG} forward br0" -j ACCEPT\n' for option in ("-i", "-o")
    )
    ALLOWANCE.remove(kernel)
    ALLOWANCE.remove(kernel)
    assert run(program, "-S") == before
