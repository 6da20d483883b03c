"""Firewall objects as text: what reaches nft, what is refused, what is read back."""

import json
import shlex
from collections.abc import Sequence
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from netlib import codec
from netlib.errors import ConfigError, FeatureMissing, KernelError, NotPermitted, ObjectMissing
from netlib.firewall.foreign import allowance_commands, hooks, lacking, our_rules
from netlib.firewall.libnftables import nft_error
from netlib.firewall.members import MemberTable, PortSources
from netlib.firewall.nftables import base_difference, parsed_entries
from netlib.firewall.objects import (
    AddressAllowance,
    ApartBridge,
    BridgedNetwork,
    ContainerSubnet,
    DnsRedirect,
    FirewallBase,
    FirewallObject,
    ForwardAllowance,
    ForwardedAddress,
    Masquerade,
    MasqueradedAddress,
    PacketMatch,
    PortCondition,
    PublishedPort,
)
from netlib.firewall.ruleset import (
    Element,
    add_elements,
    base_commands,
    base_comments,
    chain_commands,
    commands,
    delete_elements,
    elements,
)
from netlib.model import NetnsRef, Protocol
from netlib.objects import object_class

GOLDEN = Path(__file__).parent / "golden"


def port(address: str = "10.1.0.2", host_ip: str = "", **options: Any) -> PublishedPort:
    host = ip_address(host_ip) if host_ip else None
    return PublishedPort(
        address=ip_address(address), host_ip=host, **{"bridge": "br-web", "container_port": 80, "host_port": 8080, **options}
    )


CONDITION = PortCondition(
    version=4,
    matches=(PacketMatch("saddr", "10.9.0.0/16"), PacketMatch("iifname", "eth0", True), PacketMatch("daddr", "10.8.0.1/32")),
)
STANDARD: list[FirewallObject] = [
    FirewallBase(),
    BridgedNetwork(bridge="br-web", subnets=(ip_network("10.1.0.0/16"), ip_network("fd01::/64"))),
    BridgedNetwork(bridge="br-db", subnets=(ip_network("10.2.0.0/24"),), internal=True, icc=False),
    BridgedNetwork(bridge="br-open", subnets=(ip_network("10.3.0.7/32"),), mode="nat-unprotected"),
    Masquerade(subnet=ip_network("10.1.0.0/16"), bridge="br-web"),
    Masquerade(subnet=ip_network("fd01::/64"), bridge="br-web"),
    port(),
    port("fd01::2"),
    port(host_ip="127.0.0.1", host_port=53, protocol=Protocol.UDP),
    port("fd01::2", host_ip="fd09::1", host_port=443, container_port=8443),
    ContainerSubnet(subnet=ip_network("10.22.0.0/16")),
    ContainerSubnet(subnet=ip_network("fd22::/64")),
    MasqueradedAddress(address=ip_interface("10.22.0.5/16")),
    MasqueradedAddress(address=ip_interface("fd22::5/64")),
    port("10.22.0.5", host_port=9000, count=2, bridge="", hairpin=ip_network("10.22.0.0/16")),
    port("fd22::5", host_ip="fd09::1", host_port=9000, bridge="", hairpin=ip_network("fd22::/64"), protocol=Protocol.SCTP),
    CONDITION,
    port("10.22.0.5", host_port=9100, bridge="", condition=CONDITION),
    ApartBridge(bridge="cni0"),
    ApartBridge(bridge="cni1", icc=False),
    ForwardedAddress(address=ip_address("10.22.0.5")),
    ForwardedAddress(address=ip_address("fd22::5")),
]


def test_the_script_of_a_standard_set() -> None:
    lines = [
        *base_commands(),
        *(line for item in STANDARD for line in chain_commands(item, "netlib:store:record")),
        *add_elements([element for item in STANDARD for element in elements(item)], "netlib:store:record"),
    ]
    assert "\n".join(lines) + "\n" == (GOLDEN / "nftables_script.txt").read_text()


def test_the_script_of_the_table_of_members() -> None:
    """The commands that make the table and a member's elements in it, without their quotes for a shell."""
    member = PortSources(port="veth0", addresses=(ip_address("10.1.0.2"), ip_address("fd01::2")))
    lines = [shlex.split(line)[1] for item in (MemberTable(), member) for line in item.commands()]
    assert "\n".join(lines) + "\n" == (GOLDEN / "members_script.txt").read_text()


def test_the_chains_name_no_network() -> None:
    """Static chains: nothing of an object stands in them, whatever is planned."""
    assert not any("br-" in line or "10.1." in line for line in base_commands())
    assert not any("add chain" in line or "rule" in line for item in STANDARD[1:] for line in add_elements(elements(item)))


def test_the_user_chain_is_never_flushed() -> None:
    assert not any("flush" in line and (line.endswith(" user") or "table" in line) for line in base_commands())
    assert "add chain inet netlib user" in base_commands()


@pytest.mark.parametrize("ifname", ["br*", 'br"', "br 0", "br;x", "br\n", "", "x" * 16, "br\\", "brü", "br{"])
def test_names_that_nft_could_misread_are_refused(ifname: str) -> None:
    for item in (
        BridgedNetwork(bridge=ifname, subnets=()),
        Masquerade(subnet=ip_network("10.0.0.0/8"), bridge=ifname),
        ForwardAllowance(bridge=ifname),
        ApartBridge(bridge=ifname),
        PortCondition(version=4, matches=(PacketMatch("iifname", ifname),)),
        PortCondition(version=4, matches=(PacketMatch("saddr", ifname),)),
    ):
        with pytest.raises(ConfigError):
            commands(item)


@pytest.mark.parametrize("tag", ['x"', "a b", "a;b", "x" * 101, "é"])
def test_tags_that_nft_could_misread_are_refused(tag: str) -> None:
    with pytest.raises(ConfigError):
        list(add_elements([Element("bridges", ("br0",))], tag))


@pytest.mark.parametrize(
    "wrong",
    [
        port(host_ip="::1"),
        port("fd01::2", host_ip="127.0.0.1"),
        port(host_port=0),
        port(host_port=65536),
        port(container_port=0),
        port(host_port=65000, count=537),
        port(container_port=65536 - 2, count=3),
        port(count=0),
        port("fe80::1%eth0"),
    ],
)
def test_impossible_ports_are_refused(wrong: PublishedPort) -> None:
    with pytest.raises(ConfigError):
        elements(wrong)


@pytest.mark.parametrize("host_ip", ["", "0.0.0.0"])
def test_every_address_has_one_key_however_it_is_written(host_ip: str) -> None:
    assert port(host_ip=host_ip).key.name == "port/0.0.0.0:8080/tcp"
    assert elements(port(host_ip=host_ip)) == (Element("ports4", ("tcp", "8080"), ("10.1.0.2", "80")),)


def test_a_range_is_one_object_with_an_entry_for_each_port() -> None:
    """A thousand ports are one row in the store and one line in the journal; the kernel looks each up by itself."""
    some = port(host_port=8000, container_port=90, count=3)
    assert some.key.name == "port/0.0.0.0:8000-8002/tcp"
    assert [(element.key, element.value) for element in elements(some)] == [
        (("tcp", "8000"), ("10.1.0.2", "90")),
        (("tcp", "8001"), ("10.1.0.2", "91")),
        (("tcp", "8002"), ("10.1.0.2", "92")),
    ]
    assert elements(port(host_ip="127.0.0.1", count=2))[1].key == ("127.0.0.1", "tcp", "8081")


def test_keys_leave_out_what_can_change() -> None:
    assert port().key == port("10.1.0.9", container_port=81).key
    assert port().key != port("fd01::2").key
    assert port("fd01::2", host_ip="fd09::1").key.name == "port/[fd09::1]:8080/tcp"
    assert len({item.key for item in STANDARD}) == len(STANDARD)
    assert FirewallBase().key == ("firewall", "", "base")
    assert DnsRedirect(netns=NetnsRef("/run/netns/c1", "boot:7"), port=5353).key == ("firewall", "/run/netns/c1", "dns")


@pytest.mark.parametrize(
    "item",
    [*STANDARD, ForwardAllowance(bridge="br0"), AddressAllowance(), DnsRedirect(netns=NetnsRef("/run/netns/c1"), port=5353)],
)
def test_objects_survive_the_store(item: FirewallObject) -> None:
    body = codec.encode(item)
    assert codec.decode(body, object_class(json.loads(body)["type"])) == item


def test_deletion_names_keys_only() -> None:
    assert list(delete_elements(elements(port()))) == ["delete element inet netlib ports4 { tcp . 8080 }"]


def test_commands_are_what_a_person_would_type() -> None:
    assert commands(port()) == ["nft 'add element inet netlib ports4 { tcp . 8080 : 10.1.0.2 . 80 }'"]
    dns = commands(DnsRedirect(netns=NetnsRef("/run/netns/c1"), port=5353))
    assert dns[-1] == (
        "ip netns exec c1 nft 'add rule ip netlib_dns output ip daddr 127.0.0.11 tcp dport 53 dnat to 127.0.0.11:5353'"
    )
    assert all(shlex.split(line)[0] == "nft" for item in STANDARD for line in item.commands())


def listed(**chains: Sequence[str | None]) -> list[dict[str, Any]]:
    """A listing of the table in which the named chains have rules with these comments."""
    found: list[dict[str, Any]] = [{"metainfo": {}}]
    found += [{"set": {"name": line.split()[4]}} for line in base_commands() if line.startswith("add set")]
    found += [{"map": {"name": line.split()[4]}} for line in base_commands() if line.startswith("add map")]
    contents: dict[str, Sequence[str | None]] = {"user": [], **base_comments(), **chains}
    for name, comments in contents.items():
        found.append({"chain": {"name": name}})
        found += [{"rule": {"chain": name, "comment": comment} if comment else {"chain": name}} for comment in comments]
    return found


def test_an_intact_table_is_recognised_and_so_is_any_other() -> None:
    comments = base_comments()["forward"]
    assert base_difference(listed()) is None
    assert base_difference(listed(user=["mine", None])) is None
    others: list[Sequence[str | None]] = [[], comments[1:], [*comments, None], comments[::-1], ["yours first", *comments[1:]]]
    for other in others:
        assert base_difference(listed(forward=other)) == "nftables chain inet netlib forward has other rules than ours"
    lacks = base_difference([entry for entry in listed() if entry.get("map", {}).get("name") != "ports6"])
    assert lacks == "nftables table inet netlib lacks ports6"


def test_entries_are_read_back_as_they_were_written() -> None:
    body = {
        "type": ["inet_proto", "inet_service"],
        "map": "ipv6_addr . inet_service",
        "elem": [
            [{"elem": {"val": {"concat": [6, 8080]}, "comment": "netlib:s:r"}}, {"concat": ["fd01::2", 80]}],
            [{"concat": [17, 53]}, {"concat": ["::ffff:1.2.3.4", 53]}],
        ],
    }
    assert parsed_entries([{"map": body}]) == {
        ("tcp", "8080"): (("fd01::2", "80"), "netlib:s:r"),
        ("udp", "53"): (("::ffff:102:304", "53"), ""),
    }
    subnets = {"type": ["ipv4_addr", "ifname"], "elem": [{"concat": [{"prefix": {"addr": "10.1.0.0", "len": 16}}, "br0"]}]}
    assert parsed_entries([{"set": subnets}]) == {("10.1.0.0/16", "br0"): ((), "")}
    assert parsed_entries([{"set": {"type": "ifname", "elem": ["br0"]}}]) == {("br0",): ((), "")}
    assert parsed_entries([{"set": {"type": "ifname"}}]) == {}
    verdicts = {"type": "ipv4_addr", "map": "verdict", "elem": [["10.1.0.2", {"goto": {"target": "outward_10.1.0.0/16"}}]]}
    assert parsed_entries([{"map": verdicts}]) == {("10.1.0.2",): (("goto outward_10.1.0.0/16",), "")}


@pytest.mark.parametrize(
    ("printed", "kind", "number"),
    [
        ("Error: Could not process rule: No such file or directory\nadd element …\n", ObjectMissing, 2),
        ("Error: No such file or directory; did you mean set x?\n", ObjectMissing, 2),
        ("Error: Could not process rule: File exists\n", KernelError, 17),
        ("Error: Could not process rule: Operation not supported\n", FeatureMissing, 95),
        ("Error: syntax error, unexpected newline\nadd blah\n", KernelError, 0),
        ("", KernelError, 0),
    ],
)
def test_what_nft_prints_becomes_an_errno(printed: str, kind: type[KernelError], number: int) -> None:
    error = nft_error(printed, "publish")
    assert type(error) is kind
    assert error.errno == number


def test_without_root_the_sentence_says_so() -> None:
    error = nft_error("Error: Could not process rule: Operation not permitted\n", "publish")
    assert isinstance(error, NotPermitted)
    assert "root" in str(error)


def filter_table(*rules: list[dict[str, Any]], policy: str = "accept", comment: str = "") -> dict[str, list[dict[str, Any]]]:
    chain = {"name": "FORWARD", "type": "filter", "hook": "forward", "policy": policy}
    numbered = [
        {"rule": {"chain": "FORWARD", "handle": 10 + number, "expr": expr, "comment": comment}}
        for number, expr in enumerate(rules)
    ]
    return {"ip filter": [{"chain": chain}, *numbered]}


MATCH = {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "eth0"}}
COUNTER = {"counter": {"packets": 0, "bytes": 0}}


@pytest.mark.parametrize(
    ("tables", "before"),
    [
        (filter_table(policy="drop"), 0),
        (filter_table([MATCH, {"drop": None}], policy="drop"), 0),
        (filter_table([COUNTER, {"drop": None}]), 10),
        (filter_table([MATCH, {"accept": None}], [COUNTER, {"xt": {"type": "target", "name": "REJECT"}}]), 11),
        (filter_table([{"xt": {"type": "match", "name": "comment"}}, {"reject": None}], policy="drop"), 10),
        (filter_table(), None),
        (filter_table([MATCH, {"drop": None}]), None),
        (filter_table([{"drop": None}], [MATCH, {"accept": None}]), None),
        (filter_table([{"xt": {"type": "match", "name": "conntrack"}}, {"drop": None}]), None),
        (filter_table([{"jump": {"target": "FORWARD"}}]), None),
    ],
)
def test_which_foreign_hooks_drop_and_where_the_accept_goes(tables: dict[str, Any], before: int | None) -> None:
    found = hooks(tables)
    assert [hook.before for hook in found] == ([] if before is None else [before])
    assert bool(list(lacking(tables, "br0"))) == bool(found)
    verb = "insert" if before else "add"
    assert all(line.startswith(f"{verb} rule ip filter FORWARD ") for line in allowance_commands(tables, "br0", "netlib:s:r"))


def test_one_rule_in_a_foreign_chain_serves_every_cni_container() -> None:
    tables = filter_table(policy="drop")
    (line,) = allowance_commands(tables, AddressAllowance().subject, "netlib:s:r")
    assert line == (
        'add rule ip filter FORWARD meta mark and 0x1000 == 0x1000 counter accept comment "netlib:s:r forward mark:0x1000"'
    )
    present = filter_table([MATCH, {"accept": None}], policy="drop", comment="netlib:s:r forward mark:0x1000")
    assert list(allowance_commands(present, AddressAllowance().subject, "netlib:s:r")) == []
    assert our_rules(present, "br0") == ()


def test_our_rules_in_foreign_chains_are_known_by_comment() -> None:
    tables = filter_table([MATCH, {"accept": None}], policy="drop", comment="netlib:s:r forward br0")
    assert [(rule.chain, rule.handle) for rule in our_rules(tables, "br0")] == [("ip filter FORWARD", 10)]
    assert our_rules(tables) == our_rules(tables, "br0")
    assert our_rules(tables, "br") == ()
    assert list(allowance_commands(tables, "br0", "")) == []
    for comment in ("forward br0", "netlibrary forward br0", "let netlib forward br0"):
        assert our_rules(filter_table([MATCH], comment=comment)) == ()
