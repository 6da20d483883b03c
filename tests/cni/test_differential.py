"""The same configurations and verbs to the reference plugins and to ours, on twin hosts.

Compared is what is answered, what stands, what is reached, and what is left. Where ours differs on purpose, the case says so
and why. MAC addresses, names of veths, and the words of errors always differ; where an ADD fails, ours leaves nothing, and a
DEL of what is not there succeeds: the reference does neither always.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.kernel.netns import NETNS_DIR, create_netns, delete_netns
from netlib.model import HOST, NetnsRef
from tests.cni.calling import run
from tests.cni.twins import OUTSIDE, REFERENCE, Twin, outcome_of, unlike

pytestmark = pytest.mark.peers


class Case(NamedTuple):
    """One list of plugins, and what is looked at."""

    name: str
    chain: Sequence[dict[str, Any]]
    containers: int = 1
    reach: Sequence[tuple[str, str]] = ()  # from whom to what address
    version: str = "1.0.0"
    args: str = ""
    before: Sequence[str] = ()  # commands on the host
    differs: Sequence[str] = ()  # lines of what stands or is left that differ on purpose
    better: Mapping[str, str] = {}  # what the reference fails in, at times at least, and ours does not; and why
    is_error: bool = False


SUBNET = "10.22.0.0/16"
V6 = "fd00:22::/64"
HOST_LOCAL = {"type": "host-local", "subnet": SUBNET}
DUAL = {
    "type": "host-local",
    "ranges": [[{"subnet": SUBNET}], [{"subnet": V6}]],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
}
ROUTED = {**HOST_LOCAL, "routes": [{"dst": "0.0.0.0/0"}]}
STATIC = {
    "type": "static",
    "addresses": [{"address": "10.22.0.7/16", "gateway": "10.22.0.1"}],
    "routes": [{"dst": "0.0.0.0/0"}],
}


def bridge(ipam: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"type": "bridge", "isGateway": True, "ipam": HOST_LOCAL if ipam is None else ipam, **more}


def plugin(kind: str, ipam: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"type": kind, "ipam": ROUTED if ipam is None else ipam, **more}


def macvlan(**more: Any) -> dict[str, Any]:
    address = {"address": "198.51.100.7/24", "gateway": "198.51.100.1"}
    return {"type": "macvlan", "master": "up0", "ipam": {"type": "static", "addresses": [address]}, **more}


def portmap(*mappings: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "portmap", "runtimeConfig": {"portMappings": list(mappings)}, **more}


NEIGHBOURS = (("1", "10.22.0.3"), ("2", "10.22.0.2"), ("1", "10.22.0.1"), ("host", "10.22.0.2"))
WEB = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
CASES = [
    # bridge
    Case("bridge", [bridge()], 2, NEIGHBOURS),
    Case("bridge without gateway", [bridge(isGateway=False)], 2, [("1", "10.22.0.3")]),
    Case("bridge, default gateway", [bridge(isDefaultGateway=True)], 1, [("1", OUTSIDE), ("1", "198.51.100.1")]),
    Case("bridge, masquerade", [bridge(ROUTED, ipMasq=True)], 2, [*NEIGHBOURS, ("1", OUTSIDE)]),
    Case(
        "bridge, dual stack",
        [bridge(DUAL)],
        2,
        [*NEIGHBOURS, ("1", "fd00:22::3"), ("2", "fd00:22::1")],
        better={"reach": "its bridge looks for duplicates of its address, and does not answer meanwhile"},
    ),
    Case(
        "bridge, default gateway and default routes",
        [bridge(DUAL, isDefaultGateway=True)],
        better={
            "ADD 1": "sets a default route twice, and stumbles over the first one",
            "leases": "and so there is no lease",
        },
        differs=["."],
    ),
    Case("bridge, dual stack, masquerade", [bridge(DUAL, ipMasq=True)], 1, [("1", OUTSIDE)]),
    Case("bridge, IPv6 alone", [bridge({"type": "host-local", "subnet": V6})], 2, [("1", "fd00:22::3")]),
    Case("bridge, MTU", [bridge(mtu=1400)], differs=["link cni0"]),  # theirs forgets it with the last of its ports
    Case("bridge, hairpin", [bridge(hairpinMode=True)], 2, NEIGHBOURS),
    Case("bridge of another name", [bridge(bridge="br-other")]),
    Case("bridge, static addresses", [bridge(STATIC)], 1, [("1", "10.22.0.1")]),
    Case("bridge, no addresses", [bridge({})]),
    Case("bridge, name servers", [bridge(dns={"nameservers": ["192.0.2.53"], "search": ["lan"]})]),
    Case("bridge, MAC address of the runtime", [bridge(runtimeConfig={"mac": "02:11:00:00:00:01"})]),
    Case("bridge, MAC address of args", [bridge(args={"cni": {"mac": "02:11:00:00:00:02"}})]),
    Case("bridge, MAC address of CNI_ARGS", [bridge()], args="IgnoreUnknown=1;MAC=02:11:00:00:00:03"),
    Case("bridge that is there", [bridge()], 1, [("1", "10.22.0.1")], before=["ip link add cni0 type bridge"]),
    Case(
        "bridge with its address there",
        [bridge()],
        before=["ip link add cni0 type bridge", "ip addr add 10.22.0.1/16 dev cni0", "ip link set cni0 up"],
    ),
    Case(
        "bridge with another address",
        [bridge()],
        before=["ip link add cni0 type bridge", "ip addr add 10.99.0.1/16 dev cni0", "ip link set cni0 up"],
        is_error=True,
    ),
    Case("bridge where a veth has its name", [bridge()], before=["ip link add cni0 type veth"], is_error=True),
    *(
        Case(f"bridge, CNI {version}", [bridge(ROUTED)], version=version)
        for version in ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0")
    ),
    # ptp
    Case("ptp", [plugin("ptp")], 2, [("1", "10.22.0.3"), ("1", "10.22.0.1"), ("host", "10.22.0.2")]),
    Case("ptp, masquerade", [plugin("ptp", ipMasq=True)], 1, [("1", OUTSIDE)]),
    Case(
        "ptp, dual stack",
        [plugin("ptp", DUAL)],
        2,
        [("1", "10.22.0.3"), ("1", "fd00:22::3"), ("1", "fd00:22::1")],
        better={"reach": "the host's ends are asked for neighbours that do not know them yet"},
    ),
    Case("ptp, MTU", [plugin("ptp", mtu=1400)]),
    Case("ptp, name servers", [plugin("ptp", dns={"nameservers": ["192.0.2.53"]})]),
    Case("ptp without addresses", [plugin("ptp", {})], is_error=True),
    # macvlan, host-device, loopback
    *(
        Case(f"macvlan, {mode or 'no mode'}", [macvlan(mode=mode)], 1, [("1", OUTSIDE)])
        for mode in ("", "bridge", "private", "vepa")
    ),
    Case("macvlan, passthru", [macvlan(mode="passthru")]),
    Case("macvlan, MTU", [macvlan(mtu=1300)]),
    Case("macvlan, MTU above its parent's", [macvlan(mtu=9000)], is_error=True),
    Case("macvlan, MAC address", [macvlan(mac="02:11:00:00:00:04")]),
    Case("macvlan, no such parent", [macvlan(master="gone0")], is_error=True),
    Case("macvlan, no such mode", [macvlan(mode="round")], is_error=True),
    Case("macvlan without addresses", [{**macvlan(), "ipam": {}}]),
    Case(
        "host-device",
        [{"type": "host-device", "device": "dev0", "ipam": STATIC}],
        before=["ip link add dev0 type veth peer dev1"],
        better={"DEL again": "looks for a device that is home already"},
    ),
    Case("host-device, no such device", [{"type": "host-device", "device": "gone0"}], is_error=True),
    Case("host-device, nothing named", [{"type": "host-device"}], is_error=True),
    Case("loopback", [{"type": "loopback"}]),
    # host-local
    Case("host-local, a range", [bridge({**HOST_LOCAL, "rangeStart": "10.22.4.10", "rangeEnd": "10.22.4.20"})]),
    Case("host-local, a gateway", [bridge({**HOST_LOCAL, "gateway": "10.22.0.254"})], 1, [("1", "10.22.0.254")]),
    Case(
        "host-local, two ranges of one set",
        [bridge({"type": "host-local", "ranges": [[{"subnet": "10.22.1.0/30"}, {"subnet": "10.22.2.0/24"}]]}, isGateway=False)],
        2,
    ),
    Case("host-local, one asked for", [bridge()], args="IgnoreUnknown=1;IP=10.22.9.9"),
    Case("host-local, one asked for by args", [bridge(args={"cni": {"ips": ["10.22.8.8"]}})]),
    Case("host-local, one asked for by the runtime", [bridge(runtimeConfig={"ips": ["10.22.7.7/16"]})]),
    Case(
        "host-local, ranges of the runtime",
        [bridge({"type": "host-local"}, runtimeConfig={"ipRanges": [[{"subnet": "10.44.0.0/24"}]]})],
    ),
    Case("host-local, one outside asked for", [bridge(args={"cni": {"ips": ["10.99.8.8"]}})], is_error=True),
    Case(
        "host-local, one pool used up",
        [bridge({"type": "host-local", "subnet": "10.22.0.0/30"}, isGateway=False)],
        2,
        differs=["^theirs only: .*veth"],  # that it has made before it asked for an address
    ),
    Case("host-local, no range", [bridge({"type": "host-local"})], is_error=True),
    Case("host-local, a range outside its subnet", [bridge({**HOST_LOCAL, "rangeStart": "10.99.0.1"})], is_error=True),
    Case(
        "host-local, ranges that overlap",
        [bridge({"type": "host-local", "ranges": [[{"subnet": SUBNET}], [{"subnet": SUBNET}]]})],
        is_error=True,
    ),
    Case(
        "host-local, routes",
        [bridge({**HOST_LOCAL, "routes": [{"dst": "192.168.7.0/24"}, {"dst": "192.168.8.0/24", "gw": "10.22.0.9"}]})],
    ),
    # portmap
    Case("portmap", [bridge(ROUTED), portmap(WEB)]),
    Case(
        "portmap, UDP on one address",
        [bridge(ROUTED), portmap({"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "198.51.100.1"})],
    ),
    Case(
        "portmap, several",
        [
            bridge(ROUTED),
            portmap(*({"hostPort": port, "containerPort": port, "protocol": "tcp"} for port in range(9000, 9010))),
        ],
    ),
    Case("portmap, nothing to map", [bridge(ROUTED), portmap()]),
    Case("portmap alone", [portmap(WEB)], is_error=True),
    Case(
        "portmap, port 0",
        [bridge(ROUTED), portmap({"hostPort": 8080, "containerPort": 0, "protocol": "tcp"})],
        better=dict.fromkeys(("DEL", "DEL again"), "refuses to take away what it refused to make"),
    ),
    # the protocol
    Case("a type that is not there", [bridge({"type": "nothing-like-that"})], is_error=True),
    Case("a wrong type of value", [bridge(mtu="1500")], is_error=True),
    Case("hairpin and promiscuous", [bridge(hairpinMode=True, promiscMode=True)], is_error=True),
    Case("an unknown key", [bridge(colour="blue")]),
    Case("an unknown version", [bridge()], version="9.9.9", is_error=True),
]


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    """The peer itself; its absence is a failure, for what is not compared does not hold."""
    if not (REFERENCE / "bridge").is_file():
        pytest.fail(f"{REFERENCE}/bridge is missing; install it with `apt-get install containernetworking-plugins`")


@pytest.fixture
def twins(config: Config, tmp_path: Path) -> Iterator[tuple[Twin, Twin]]:
    home = NETNS_DIR / "theirs"
    create_netns(home)
    run("ip", "-n", "theirs", "link", "set", "lo", "up")
    run("ip", "netns", "exec", "theirs", "sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
    with Controller(config, watcher=Unwatched()) as controller:
        pair = (
            Twin("o", HOST, controller, tmp_path / "o"),
            Twin("t", NetnsRef(str(home)), None, tmp_path / "t"),
        )
        yield pair
        controller.reset()
        for twin in pair:
            twin.clear()
    delete_netns(home)
    for left in ("cni0", "dev0", "br-other"):
        if Path(f"/sys/class/net/{left}").exists():
            run("ip", "link", "del", left)


def _with_data(twin: Twin, case: Case, config: dict[str, Any], previous: Any) -> dict[str, Any]:
    ipam = config.get("ipam") or {}
    complete = {"cniVersion": case.version, "name": "pods", **config}
    if ipam.get("type") == "host-local":
        complete["ipam"] = {**ipam, "dataDir": str(twin.data)}
    return {**complete, "prevResult": previous} if previous is not None else complete


def _add(twin: Twin, case: Case, number: int) -> tuple[list[Any], Any]:
    """The answers of the chain, and the last result as it came."""
    answers, previous = [], None
    for config in case.chain:
        outcome = twin.call("ADD", _with_data(twin, case, config, previous), number, case.args)
        answers.append(outcome_of(twin, outcome))
        if outcome.code:
            break
        previous = json.loads(outcome.stdout)
    return answers, previous


def _delete(twin: Twin, case: Case, number: int, previous: Any) -> list[Any]:
    configs = [_with_data(twin, case, config, previous) for config in reversed(case.chain)]
    return [outcome_of(twin, twin.call("DEL", config, number, case.args)) for config in configs]


def _check(twin: Twin, case: Case, number: int, previous: Any) -> list[Any]:
    if previous is None or case.version < "0.4.0":
        return []
    configs = [_with_data(twin, case, config, previous) for config in case.chain]
    return [outcome_of(twin, twin.call("CHECK", config, number, case.args)) for config in configs]


def _leases(twin: Twin) -> list[str]:
    return sorted(str(path.relative_to(twin.data)) for path in twin.data.rglob("*") if path.is_file() and path.name != "lock")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_ours_does_what_the_reference_does(twins: tuple[Twin, Twin], case: Case) -> None:
    seen: list[dict[str, Any]] = []
    for twin in twins:
        twin.set_up(case.containers)
        for command in case.before:
            twin.run(*command.split())
        found: dict[str, Any] = {"before": twin.look(case.containers)} if case.is_error else {}
        results = []
        for number in range(1, case.containers + 1):
            answers, previous = _add(twin, case, number)
            results.append(previous)
            found[f"ADD {number}"] = answers
        found["look"] = twin.look(case.containers)
        found["reach"] = [f"{source} → {address}: {twin.reaches(source, address)}" for source, address in case.reach]
        found["leases"] = _leases(twin)
        found["CHECK"] = [_check(twin, case, number, previous) for number, previous in enumerate(results, 1)]
        for round_ in ("DEL", "DEL again"):
            found[round_] = [_delete(twin, case, number, previous) for number, previous in enumerate(results, 1)]
        found["left"] = twin.look(case.containers)
        found["leases left"] = _leases(twin)
        seen.append(found)
    ours, theirs = seen
    if case.is_error:
        _check_error(ours, theirs)
        return
    for part in ours:
        if part in ("look", "left"):
            for where in ours[part]:
                assert unlike(ours[part][where], theirs[part][where], case.differs) == [], (part, where)
        elif part == "CHECK":  # theirs fails at times, over routes without a gateway and addresses of the other family
            assert ours[part] == theirs[part] or "an error" not in str(ours[part])
        elif part in case.better:
            assert "an error" not in str(ours[part])
            assert ": False" not in str(ours[part])
        else:
            assert ours[part] == theirs[part], part


def _check_error(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Both refuse; ours leaves nothing, and a DEL of nothing succeeds."""
    assert ours["ADD 1"] == theirs["ADD 1"]
    assert ours["ADD 1"][-1] == "an error"
    for mine, reference in zip(ours["DEL"] + ours["DEL again"], theirs["DEL"] + theirs["DEL again"], strict=True):
        assert mine == reference or "an error" not in mine
    for where, lines in ours["left"].items():
        assert unlike(lines, ours["before"][where], ()) == [], where
    assert ours["leases left"] == []
