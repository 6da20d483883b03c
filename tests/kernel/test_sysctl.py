"""Kernel settings in a fresh netns: set, and given back."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from netlib.errors import KernelError, ObjectMissing
from netlib.kernel.bridges import Bridge
from netlib.kernel.handle import Kernel
from netlib.kernel.sysctl import RouterAdvertisements, Sysctl, read_sysctl, write_sysctl
from netlib.model import NetnsRef
from netlib.testing.snapshot import differences, snapshot

FORWARD = "net/ipv4/ip_forward"


@pytest.fixture
def web(netns_factory: Callable[[str], NetnsRef]) -> NetnsRef:
    return netns_factory("web")


def test_setting_comes_and_its_prior_value_returns(kernel: Kernel, web: NetnsRef) -> None:
    host = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    before = snapshot(web)
    setting = Sysctl(name=FORWARD, value="1", netns=web).observed(kernel)
    assert setting.prior == "0"
    assert setting.drift(kernel) == "sysctl net/ipv4/ip_forward is '0', not '1'"
    setting.ensure(kernel)
    setting.ensure(kernel)
    assert setting.drift(kernel) is None
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == host
    assert replace(setting, prior="0").observed(kernel).prior == "0"
    setting.remove(kernel)
    setting.remove(kernel)
    assert differences(before, snapshot(web)) == []


def test_a_value_that_somebody_changed_meanwhile_stays(kernel: Kernel, web: NetnsRef) -> None:
    setting = Sysctl(name="net.ipv4.conf.all.rp_filter", value="2", netns=web, prior="0")
    setting.ensure(kernel)
    write_sysctl(kernel, web, setting.name, "1")
    setting.remove(kernel)
    assert read_sysctl(kernel, web, setting.name) == "1"


def test_a_value_of_several_numbers_is_compared_whatever_its_blanks(kernel: Kernel, web: NetnsRef) -> None:
    setting = Sysctl(name="net.ipv4.ping_group_range", value="0 0", netns=web).observed(kernel)
    setting.ensure(kernel)
    assert setting.drift(kernel) is None
    setting.remove(kernel)
    assert read_sysctl(kernel, web, setting.name) == setting.prior == "1 0"


@pytest.mark.parametrize("name", ["net/ipv4/conf/eth0.10/forwarding", "net.ipv4.conf.eth0/10.forwarding"])
def test_a_link_with_a_dot_in_its_name(kernel: Kernel, web: NetnsRef, name: str) -> None:
    Bridge(ifname="eth0.10", netns=web).ensure(kernel)
    setting = Sysctl(name=name, value="1", netns=web).observed(kernel)
    setting.ensure(kernel)
    assert read_sysctl(kernel, web, "net/ipv4/conf/eth0.10/forwarding") == "1"
    assert setting.key.name == "net/ipv4/conf/eth0.10/forwarding"
    Bridge(ifname="eth0.10", netns=web).remove(kernel)
    setting.remove(kernel)
    assert "is missing" in str(setting.drift(kernel))
    with pytest.raises(ObjectMissing, match="set sysctl net/ipv4/conf/eth0.10/forwarding"):
        setting.ensure(kernel)


def test_setting_of_a_replaced_netns_is_gone(kernel: Kernel, web: NetnsRef) -> None:
    write_sysctl(kernel, web, FORWARD, "1")
    setting = Sysctl(name=FORWARD, value="1", prior="0", netns=NetnsRef(web.path, "123456789abc:1"))
    setting.remove(kernel)
    assert read_sysctl(kernel, web, FORWARD) == "1"
    assert "is missing" in str(setting.drift(kernel))


def test_a_value_that_the_kernel_refuses(kernel: Kernel, web: NetnsRef) -> None:
    with pytest.raises(KernelError, match=f"cannot set sysctl {FORWARD} to 'yes' in web"):
        Sysctl(name=FORWARD, value="yes", netns=web).ensure(kernel)


def _ip(netns: NetnsRef, command: str) -> None:
    subprocess.run(["ip", "-n", netns.label, *command.split()], check=True)


def test_links_that_learn_from_routers_go_on_when_the_host_forwards(kernel: Kernel, web: NetnsRef) -> None:
    for ifname in ("up.link", "fixed", "off"):
        _ip(web, f"link add {ifname} type bridge")
        _ip(web, f"link set {ifname} up")
    _ip(web, "-6 route add default via fe80::1 dev up.link proto ra")
    _ip(web, "-6 route add fd09::/64 dev off proto ra")
    _ip(web, "-6 route add fd10::/64 dev fixed")
    write_sysctl(kernel, web, "net/ipv6/conf/off/accept_ra", "0")
    before = snapshot(web)
    plan = RouterAdvertisements(netns=web).observed(kernel), Sysctl(name="net/ipv6/conf/all/forwarding", value="1", netns=web)
    learning, forwarding = plan[0], plan[1].observed(kernel)
    assert learning.ifnames == ("up.link",)
    assert "up.link would stop accepting" in str(learning.drift(kernel))
    for item in (learning, forwarding, learning):
        item.ensure(kernel)
    assert [read_sysctl(kernel, web, f"net/ipv6/conf/{name}/accept_ra") for name in ("up.link", "fixed", "off")] == [
        "2",
        "1",
        "0",
    ]
    assert learning.drift(kernel) is None
    forwarding.remove(kernel)
    learning.remove(kernel)
    learning.remove(kernel)
    assert differences(before, snapshot(web)) == []


def test_no_link_learns_from_routers(kernel: Kernel, web: NetnsRef) -> None:
    learning = RouterAdvertisements(netns=web).observed(kernel)
    assert learning.ifnames == ()
    assert learning.drift(kernel) is None
