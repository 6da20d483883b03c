"""A member of a masquerading network is heard from its own addresses only, whatever its frames would go on to.

Each with bridged frames passing the host's rules (bridge-nf-call-iptables 1) and without. A forged datagram is sent right
before an honest one on the same way: what is heard first says whether the forged one got through.
"""

import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import NamedTuple

import pytest
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import ICMPv6MLReport, ICMPv6ND_NS, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.daemon.firewall import restore_table
from netlib.firewall.members import MemberTable, PortSources
from netlib.kernel.handle import Kernel
from netlib.model import HOST, Endpoint, NetnsRef
from netlib.names import bridge_ifname, veth_ifname
from netlib.ports import parse_publish
from tests.kernel.frames import Ears, datagram, send
from tests.kernel.test_on_the_wire import capture

UPLINK = {4: "192.0.2.1", 6: "2001:db8::1"}
LAN = {4: "192.0.2.2", 6: "2001:db8::2"}
STRANGER = {4: "198.51.100.7", 6: "2001:db8:7::7"}
PORT, PUBLISHED, SERVED = 9000, 8080, 80


@pytest.fixture
def controller(config: Config, bridge_nf: str) -> Iterator[Controller]:
    with Controller(config, watcher=Unwatched()) as controller:
        yield controller
        controller.reset()


@pytest.fixture
def lan(netns_factory: Callable[[str], NetnsRef]) -> Iterator[NetnsRef]:
    """Another machine, on the host's way out."""
    netns = netns_factory("lan")
    lines = [f"ip link add uplink type veth peer name eth0 netns {netns.label}", "ip link set uplink up"]
    lines += [f"ip addr add {UPLINK[4]}/24 dev uplink", f"ip addr add {UPLINK[6]}/64 dev uplink nodad"]
    lines += [f"ip -n {netns.label} addr add {LAN[4]}/24 dev eth0", f"ip -n {netns.label} addr add {LAN[6]}/64 dev eth0 nodad"]
    lines += [f"ip -n {netns.label} link set eth0 up"]
    lines += ["ip route add default via 192.0.2.2", "ip route add default via 2001:db8::2"]
    for line in lines:
        subprocess.run(line.split(), check=True)
    yield netns
    subprocess.run(["ip", "link", "del", "uplink"], check=True)


@pytest.fixture
def ears() -> Iterator[Ears]:
    ears = Ears()
    yield ears
    ears.close()


class Party(NamedTuple):
    """A network with a member that serves and publishes a port, one that forges, and what is known of them."""

    controller: Controller
    victim: Endpoint
    forger: Endpoint
    netns: NetnsRef
    bridge: str
    bridge_mac: str

    def own(self, version: int) -> str:
        return address(self.forger, version)


def address(endpoint: Endpoint, version: int) -> str:
    found = endpoint.address(version)
    assert found is not None
    return str(found.ip)


def party(controller: Controller, options: dict[str, str] | None = None) -> Party:
    network = controller.create_network("web", subnets=["10.81.0.0/24", "fd81::/64"], options=options or {})
    for name in ("victim", "forger"):
        controller.create_sandbox(name)
    ports = parse_publish(f"{PUBLISHED}:{SERVED}/udp")
    victim, forger = controller.connect("web", "victim", ports=ports), controller.connect("web", "forger")
    with Kernel() as kernel:
        mac = kernel.rtnl().get_link(bridge_ifname(network)).mac
    return Party(controller, victim, forger, controller.sandbox("forger").netns, bridge_ifname(network), mac)


def forged_sources(party: Party, version: int) -> list[str]:
    """Another member's address, the gateway's, one of the subnet that nobody has, one from elsewhere, the loopback."""
    subnet = {4: "10.81.0.{}", 6: "fd81::{}"}[version]
    loopback = {4: "127.0.0.1", 6: "::1"}[version]
    return [address(party.victim, version), subnet.format(1), subnet.format(99), STRANGER[version], LAN[version], loopback]


def heard_first(party: Party, version: int, target: str, port: int, mac: str, hear: Callable[[], str]) -> list[str]:
    """What is heard of forged datagrams and the honest one that follows, up to that one."""
    frames = [datagram(source, target, port, f"from {source}", mac=mac) for source in forged_sources(party, version)]
    send(party.netns, "eth0", *frames, datagram(party.own(version), target, port, "honest", mac=mac))
    words = [hear()]
    while words[-1] != "honest":
        words.append(hear())
    return words


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("way", ["out", "host", "published", "member through the host", "member"])
def test_only_its_own_address_is_heard(controller: Controller, lan: NetnsRef, ears: Ears, way: str, version: int) -> None:
    there = party(controller)
    victim = controller.sandbox("victim").netns
    place, target, port, mac = {
        "out": (lan, LAN[version], PORT, there.bridge_mac),
        "host": (HOST, {4: "10.81.0.1", 6: "fd81::1"}[version], PORT, there.bridge_mac),
        "published": (victim, UPLINK[version], PUBLISHED, there.bridge_mac),
        "member through the host": (victim, address(there.victim, version), PORT, there.bridge_mac),
        "member": (victim, address(there.victim, version), PORT, there.victim.mac),
    }[way]
    hear = ears.open(place, SERVED if way == "published" else port)
    assert heard_first(there, version, target, port, mac, hear) == ["honest"]


def test_a_sandbox_in_a_netns_of_others_is_no_exception(
    controller: Controller, ears: Ears, netns_factory: Callable[[str], NetnsRef]
) -> None:
    there, theirs = party(controller), netns_factory("theirs")
    controller.create_sandbox("theirs", netns=theirs.path)
    there = there._replace(forger=controller.connect("web", "theirs"), netns=theirs)
    hear = ears.open(controller.sandbox("victim").netns, PORT)
    for version in (4, 6):
        assert heard_first(there, version, address(there.victim, version), PORT, there.victim.mac, hear) == ["honest"]


@pytest.mark.parametrize("version", [4, 6])
def test_without_masquerade_a_member_may_be_a_router(controller: Controller, ears: Ears, version: int) -> None:
    there = party(controller, {"com.docker.network.bridge.enable_ip_masquerade": "false"})
    hear = ears.open(controller.sandbox("victim").netns, PORT)
    words = heard_first(there, version, address(there.victim, version), PORT, there.victim.mac, hear)
    assert f"from {STRANGER[version]}" in words
    assert not any(item for item in controller.plan_of("forger") if isinstance(item, PortSources))


def test_on_a_bridge_of_somebody_else_only_members_are_looked_at(controller: Controller, ears: Ears, lan: NetnsRef) -> None:
    """A port of the owner's own, the uplink of a LAN say, brings whom it will."""
    subprocess.run(["ip", "link", "add", "br-lan", "type", "bridge"], check=True)
    try:
        there = party(controller, {"com.docker.network.bridge.name": "br-lan"})
        hear = ears.open(controller.sandbox("victim").netns, PORT)
        target = address(there.victim, 4)
        assert heard_first(there, 4, target, PORT, there.victim.mac, hear) == ["honest"]
        subprocess.run(["ip", "link", "set", "uplink", "master", "br-lan"], check=True)
        send(lan, "eth0", datagram(STRANGER[4], target, PORT, "from the LAN", mac=there.victim.mac))
        assert hear() == "from the LAN"
        controller.remove_sandboxes(["victim", "forger"])
        controller.remove_network("web")
    finally:
        subprocess.run(["ip", "link", "del", "br-lan"], check=True)


def test_a_vlan_tag_hides_no_source(controller: Controller) -> None:
    there = party(controller)

    def tagged(source: str, word: str) -> Packet:
        inside = IP(src=source, dst=address(there.victim, 4)) / UDP(sport=1, dport=PORT) / Raw(word.encode())
        return Ether(src=there.forger.mac, dst=there.victim.mac) / Dot1Q(vlan=7) / inside

    with capture(controller.sandbox("victim").netns, "eth0") as first:
        send(there.netns, "eth0", tagged(STRANGER[4], "forged"), tagged(there.own(4), "honest"))
        assert b"honest" in bytes(first(lambda packet: UDP in packet))


@pytest.mark.parametrize("outer", [0x8100, 0x88A8], ids=hex)
@pytest.mark.parametrize("inner", [0x8100, 0x88A8], ids=hex)
def test_tags_within_tags_hide_no_source(controller: Controller, outer: int, inner: int) -> None:
    """With priority tags (VLAN 0) the kernel takes one after another off, and would deliver what is inside."""
    there = party(controller)

    def tagged(source: str, word: str) -> Packet:
        inside = IP(src=source, dst=address(there.victim, 4)) / UDP(sport=1, dport=PORT) / Raw(word.encode())
        tags = Dot1Q(vlan=0, type=inner) / Dot1Q(vlan=0, type=0x0800)
        return Ether(src=there.forger.mac, dst=there.victim.mac, type=outer) / tags / inside

    honest = datagram(there.own(4), address(there.victim, 4), PORT, "honest", mac=there.victim.mac)
    with capture(controller.sandbox("victim").netns, "eth0") as first:
        send(there.netns, "eth0", tagged(STRANGER[4], "forged"), honest)
        assert b"honest" in bytes(first(lambda packet: b"forged" in bytes(packet) or b"honest" in bytes(packet)))


def test_what_has_no_address_yet_is_let_through(controller: Controller) -> None:
    """DHCP, duplicate address detection, multicast groups, ARP; and whatever is of the link alone."""
    there = party(controller)
    asking = BOOTP(chaddr=b"\2" * 6, xid=7) / DHCP(options=[("message-type", "discover"), "end"])
    mac = "02:00:00:00:00:99"  # not the forger's: its own kernel has something to say too
    everybody, solicited = Ether(src=mac, dst="ff:ff:ff:ff:ff:ff"), Ether(src=mac, dst="33:33:ff:00:00:42")
    wanted = [
        everybody / IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67) / asking,
        everybody / IP(src="0.0.0.0", dst="224.0.0.22", proto=2) / Raw(b"\x22" + bytes(7)),
        everybody / ARP(op=1, hwsrc=mac, psrc="0.0.0.0", pdst="10.81.0.42"),
        solicited / IPv6(src="::", dst="ff02::1:ff00:42", hlim=255) / ICMPv6ND_NS(tgt="fd81::42"),
        solicited / IPv6(src="::", dst="ff02::1:ff00:42", hlim=1) / ICMPv6MLReport(mladdr="ff02::1:ff00:42"),
        solicited / IPv6(src="fe80::77", dst="ff02::1:ff00:42", hlim=255) / ICMPv6ND_NS(tgt="fd81::42"),
    ]
    unwanted = [
        everybody / IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=4000, dport=PORT) / Raw(b"none"),
        solicited / IPv6(src="::", dst="ff02::1:ff00:42") / UDP(sport=4000, dport=PORT) / Raw(b"none"),
    ]
    with capture(controller.sandbox("victim").netns, "eth0") as first:
        for frame in wanted:
            send(there.netns, "eth0", *unwanted, frame)
            came = first(lambda packet: packet[Ether].src == mac)
            assert bytes(came)[: len(frame)] == bytes(frame)


def test_a_member_of_several_networks_answers_by_any_of_its_links(controller: Controller, ears: Ears) -> None:
    """It is asked at one address, and the best route back leads by another link. A neighbour's address is none of its own."""
    there = party(controller)
    controller.create_network("more", subnets=["10.82.0.0/24", "fd82::/64"])
    second = controller.connect("more", "forger")
    with Kernel() as kernel:
        mac = kernel.rtnl().get_link(bridge_ifname(controller.network("more"))).mac
    hear = ears.open(HOST, PORT)
    for version in (4, 6):
        target = {4: "10.82.0.1", 6: "fd82::1"}[version]

        def from_(source: str, word: str, target: str = target) -> Packet:
            return datagram(source, target, PORT, word, mac=mac)

        sent = [from_(address(there.victim, version), "forged"), from_(there.own(version), "its other address")]
        send(there.netns, second.ifname, *sent, from_(address(second, version), "honest"))
        assert (hear(), hear()) == ("its other address", "honest")
    assert controller.check("forger") == []
    controller.disconnect("web", "forger")  # its address there may be another's by now
    forged = datagram(there.own(6), "fd82::1", PORT, "no more its own", mac=mac)
    send(there.netns, second.ifname, forged, datagram(address(second, 6), "fd82::1", PORT, "honest", mac=mac))
    assert hear() == "honest"


def test_the_host_reaches_a_published_port_by_the_gateway_of_each_network(controller: Controller) -> None:
    """The request is led to the network with the default route; the answer leaves by the link to the gateway that asked."""
    controller.create_network("a", subnets=["10.83.0.0/24"])
    controller.create_network("b", subnets=["10.84.0.0/24"])
    controller.create_sandbox("box")
    controller.connect("a", "box", ports=parse_publish(f"{PUBLISHED}:{SERVED}"))
    controller.connect("b", "box", gw_priority=5)
    with controller.inside("box"):
        server = socket.create_server(("", SERVED))
    with server:
        for gateway in ("10.83.0.1", "10.84.0.1"):
            with socket.create_connection((gateway, PUBLISHED), timeout=5) as connection:
                accepted, _ = server.accept()
                accepted.sendall(b"served")
                accepted.close()
                assert connection.recv(10) == b"served"
    assert controller.check("box") == []


def test_internal_networks_members_may_be_routers(controller: Controller) -> None:
    controller.create_network("inner", internal=True)
    controller.create_sandbox("box")
    controller.connect("inner", "box")
    assert not any(
        isinstance(item, PortSources | MemberTable) for item in (*controller.plan_of("inner"), *controller.plan_of("box"))
    )


# --- the table -----------------------------------------------------------------------------------------------------------


def elements() -> dict[str, int]:
    """How many elements each set of the table has; none without it."""
    shown = subprocess.run(["nft", "-j", "list", "table", "bridge", "netlib_members"], capture_output=True, text=True).stdout
    sets = [entry["set"] for entry in json.loads(shown or '{"nftables": []}')["nftables"] if "set" in entry]
    return {item["name"]: len(item.get("elem", ())) for item in sets}


def test_elements_come_and_go_with_their_members(controller: Controller) -> None:
    there = party(controller)
    assert elements() == {"ports": 2, "sources4": 2, "sources6": 2}
    controller.disconnect("web", "forger")
    assert elements() == {"ports": 1, "sources4": 1, "sources6": 1}
    controller.remove_sandbox("victim")
    assert elements() == {"ports": 0, "sources4": 0, "sources6": 0}
    controller.remove_sandbox("forger")
    controller.remove_network(there.controller.network("web").name)
    assert elements() == {}


def test_what_is_taken_away_is_named_and_put_back(controller: Controller, ears: Ears) -> None:
    there = party(controller)
    port = veth_ifname(there.forger.id)
    whole = elements()
    subprocess.run(["nft", "delete", "element", "bridge", "netlib_members", "ports", f'{{ "{port}" }}'], check=True)
    assert [key for key, _ in controller.check("forger")] == [f"firewall/host/sources/{port}"]
    assert restore_table(controller) == 0  # static rules are whole
    assert restore_table(controller, thorough=True) > 0
    assert elements() == whole
    for damage in ("flush chain bridge netlib_members prerouting", "delete table bridge netlib_members", "flush ruleset"):
        subprocess.run(["nft", *damage.split()], check=True)
        assert any("netlib_members" in difference for _, difference in controller.check("web"))
        assert restore_table(controller) > 0
        assert elements() == whole
        assert controller.check("web") == [] == controller.check("forger")
    hear = ears.open(HOST, PORT)
    assert heard_first(there, 4, "10.81.0.1", PORT, there.bridge_mac, hear) == ["honest"]


def test_a_network_without_a_table_gets_one_with_its_next_member(controller: Controller, ears: Ears) -> None:
    """As a network that an older netlib made in this boot."""
    controller.create_network("web", subnets=["10.81.0.0/24", "fd81::/64"])
    network = controller.network("web")
    with controller.store.write() as tx:
        tx.write_objects(network.id, [item for item in tx.objects(network.id) if not isinstance(item, MemberTable)])
    subprocess.run(["nft", "delete", "table", "bridge", "netlib_members"], check=True)
    controller.create_sandbox("box")
    controller.connect("web", "box")
    assert elements() == {"ports": 1, "sources4": 1, "sources6": 1}
    with Kernel() as kernel:
        MemberTable().remove(kernel)  # no record has it


@pytest.mark.parametrize("count", [1, 300])
def test_many_ports_are_one_transaction_and_gone_twice_is_gone(controller: Controller, count: int) -> None:
    ports = [
        PortSources(port=f"v{number}", addresses=(ip_address(f"10.1.{number >> 8}.{number & 255}"),)) for number in range(count)
    ]
    with Kernel() as kernel:
        MemberTable().ensure(kernel)
        for _ in range(2):
            PortSources.ensure_many(kernel, ports)
        assert elements() == {"ports": count, "sources4": count, "sources6": 0}
        assert ports[-1].drift(kernel) is None
        for _ in range(2):
            PortSources.remove_many(kernel, ports)
        assert elements() == {"ports": 0, "sources4": 0, "sources6": 0}
        assert ports[-1].drift(kernel) is not None
        MemberTable().remove(kernel)
        PortSources.remove_many(kernel, ports)
        MemberTable().remove(kernel)


def test_a_port_that_leaves_the_table_is_free_again(controller: Controller, ears: Ears) -> None:
    """What the tests above call dropped is dropped by the table alone."""
    there = party(controller)
    subprocess.run(["nft", "flush", "chain", "bridge", "netlib_members", "prerouting"], check=True)
    hear = ears.open(controller.sandbox("victim").netns, PORT)
    words = heard_first(there, 4, address(there.victim, 4), PORT, there.victim.mac, hear)
    assert f"from {STRANGER[4]}" in words


def _rules() -> list[str]:
    """The rules of the table with their handles, which change when a rule is made again."""
    listing = subprocess.run(
        ["nft", "-a", "list", "chain", *MemberTable.table.split(), "prerouting"], check=True, capture_output=True, text=True
    ).stdout
    return [line.strip() for line in listing.splitlines() if "handle" in line]


def test_a_whole_table_is_left_alone_and_a_broken_one_is_made_again() -> None:
    with Kernel() as kernel:
        table = MemberTable()
        table.ensure(kernel)
        whole = _rules()
        table.ensure(kernel)
        assert _rules() == whole
        handle = whole[-1].rpartition("handle ")[2]
        subprocess.run(["nft", "delete", "rule", *MemberTable.table.split(), "prerouting", "handle", handle], check=True)
        table.ensure(kernel)
        assert table.drift(kernel) is None
        assert len(_rules()) == len(whole)
        table.remove(kernel)
        table.ensure(kernel)
        assert table.drift(kernel) is None
        table.remove(kernel)
