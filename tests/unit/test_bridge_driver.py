"""The bridge driver's plans: which networks check what their members send from. Sandboxes' settings, and records of before."""

from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest

from drivers.bridge import BridgeDriver
from netlib.codec import decode, encode
from netlib.core.sandbox_plan import sandbox_plan
from netlib.dns.resolvconf import HostResolver
from netlib.errors import ConfigError
from netlib.firewall.members import MemberTable, PortSources
from netlib.firewall.objects import Masquerade
from netlib.kernel.bridges import BridgePort
from netlib.kernel.links import Veth
from netlib.kernel.sysctl import Sysctl, asked_sysctls, sysctl_name, sysctl_path
from netlib.kernel.tuning import TunedSysctl
from netlib.model import AddressPool, Endpoint, NetnsRef, Network, Sandbox

MASQUERADE = "com.docker.network.bridge.enable_ip_masquerade"
BOX = Sandbox(id="b" * 64, name="box", created=0, netns=NetnsRef("/run/netns/box", "boot:7"), owned=True)
ENDPOINT = Endpoint(
    id="e" * 64,
    network="n" * 64,
    sandbox=BOX.id,
    created=0,
    ifname="eth0",
    mac="02:42:0a:01:00:02",
    addresses=(ip_interface("10.1.0.2/16"), ip_interface("fd01::2/64")),
)
HOST_RESOLVER = HostResolver()


def network(**more: Any) -> Network:
    pools = tuple(AddressPool(subnet=ip_network(subnet)) for subnet in ("10.1.0.0/16", "fd01::/64"))
    return Network(id="n" * 64, name="web", driver="bridge", created=0, pools=pools, ipv6=True, **more)


def test_a_masquerading_network_checks_its_members_sources() -> None:
    driver = BridgeDriver()
    plan, join = driver.network_plan(network()), driver.join_plan(network(), ENDPOINT, BOX)
    assert len(plan.of(Masquerade)) == 2
    assert plan.of(MemberTable) == (MemberTable(),)
    (veth,), (port,) = join.of(Veth), join.of(BridgePort)
    assert join.of(PortSources) == (PortSources(port=veth.ifname, addresses=(ip_address("10.1.0.2"), ip_address("fd01::2"))),)
    assert join.index(join.of(PortSources)[0]) < join.index(port)  # before anything can come in by it


@pytest.mark.parametrize("more", [{"internal": True}, {"options": {MASQUERADE: "false"}}], ids=["internal", "routed"])
def test_any_other_network_does_not(more: dict[str, Any]) -> None:
    driver = BridgeDriver()
    plans = driver.network_plan(network(**more)), driver.join_plan(network(**more), ENDPOINT, BOX)
    assert [plan.of(kind) for plan in plans for kind in (MemberTable, PortSources, Masquerade)] == [()] * 6


# --- sysctls of a sandbox ------------------------------------------------------------------------------------------------


def test_settings_of_a_link_come_with_the_link() -> None:
    asked = {"net.ipv4.ip_forward": "1", "net.ipv6.conf.eth0.accept_ra": "2", "net/ipv4/conf/eth1/forwarding": "0"}
    box = Sandbox(id="b", name="box", created=0, netns=BOX.netns, owned=True, sysctls=tuple(asked_sysctls(asked).items()))
    forward = TunedSysctl(name="net/ipv4/ip_forward", value="1", netns=BOX.netns)
    listen = TunedSysctl(name="net/ipv6/conf/eth0/accept_ra", value="2", netns=BOX.netns)
    assert sandbox_plan(box, (), HOST_RESOLVER).of(TunedSysctl) == (forward,)
    assert sandbox_plan(box, [(network(), ENDPOINT)], HOST_RESOLVER).of(TunedSysctl) == (forward, listen)


def test_a_setting_that_is_asked_for_takes_the_place_of_ours() -> None:
    name = "net/netfilter/nf_conntrack_udp_timeout"
    box = Sandbox(id="b", name="box", created=0, netns=BOX.netns, owned=True, dns_port=40000, sysctls=((name, "30"),))
    plan = sandbox_plan(box, [(network(), ENDPOINT)], HOST_RESOLVER)
    assert [item.value for item in plan.of(Sysctl) if item.name == name] == ["30"]


@pytest.mark.parametrize(
    "asked",
    [
        {"kernel.shmmax": "1"},
        {"net": "1"},
        {"": "1"},
        {"net.ipv4.ip_forward": ""},
        {"net/../kernel/shmmax": "1"},
        {"net.ipv4.ip_forward\0": "1"},
        {"net.ipv4.ip_forward": "1\0"},
        {"netx.ipv4": "1"},
    ],
)
def test_settings_that_are_nobodys_own_are_refused(asked: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        asked_sysctls(asked)


@pytest.mark.parametrize("name", ["net.ipv4.ip_forward", "net.ipv4.conf.eth0/10.forwarding"])
def test_a_setting_is_told_as_it_was_named(name: str) -> None:
    assert sysctl_name(sysctl_path(name)) == name


# --- what an older netlib wrote ------------------------------------------------------------------------------------------


def test_a_sandbox_written_before_there_were_sysctls_is_read() -> None:
    text = (
        b'{"id":"b","name":"box","created":0.0,"netns":{"path":"/run/netns/box","identity":"boot:7"},"owned":true,'
        b'"hostname":"","domainname":"","resolver":{"servers":[],"search":[],"options":[],"extra_hosts":[]},"dns_port":0,'
        b'"files_dir":"","cni_container":""}'
    )
    box = decode(text, Sandbox)
    assert box.sysctls == ()
    assert decode(encode(box), Sandbox) == box
    assert hash(box) == hash(decode(text, Sandbox))
