"""Addresses on links in a fresh netns."""

import json
import subprocess
from collections.abc import Callable
from ipaddress import ip_interface
from typing import Any

import pytest

from netlib.errors import KernelError, ObjectMissing
from netlib.kernel.addresses import Address
from netlib.kernel.bridges import Bridge
from netlib.kernel.handle import Kernel
from netlib.model import NetnsRef
from netlib.testing.snapshot import differences, snapshot


@pytest.fixture
def web(netns_factory: Callable[[str], NetnsRef], kernel: Kernel) -> NetnsRef:
    """A netns with a link eth0 that is up."""
    netns = netns_factory("web")
    Bridge(ifname="eth0", netns=netns).ensure(kernel)
    return netns


def shown(netns: NetnsRef) -> list[dict[str, Any]]:
    command = ["ip", "-j", "-n", netns.label, "addr", "show", "dev", "eth0"]
    (link,) = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return [address for address in link["addr_info"] if address["scope"] == "global"]


def add(netns: NetnsRef, address: str) -> None:
    subprocess.run(["ip", "-n", netns.label, "addr", "add", address, "dev", "eth0"], check=True)


@pytest.mark.parametrize(
    ("text", "broadcast"),
    [("10.22.0.2/16", "10.22.255.255"), ("10.22.0.2/31", None), ("10.22.0.2/32", None), ("fd00::2/64", None)],
)
def test_address_comes_once_and_goes(kernel: Kernel, web: NetnsRef, text: str, broadcast: str | None) -> None:
    before = snapshot(web)
    address = Address(ifname="eth0", address=ip_interface(text), netns=web)
    assert address.drift(kernel) == f"address {text} is missing on eth0"
    address.ensure(kernel)
    address.ensure(kernel)
    (found,) = shown(web)
    assert (f"{found['local']}/{found['prefixlen']}", found.get("broadcast")) == (text, broadcast)
    assert address.drift(kernel) is None
    address.remove(kernel)
    address.remove(kernel)
    assert differences(before, snapshot(web)) == []


def test_ipv6_address_is_usable_at_once(kernel: Kernel, web: NetnsRef) -> None:
    Address(ifname="eth0", address=ip_interface("fd00::2/64"), netns=web).ensure(kernel)
    (found,) = shown(web)
    assert found["nodad"] is True
    assert "tentative" not in found


def test_the_same_address_with_another_length_is_another_one(kernel: Kernel, web: NetnsRef) -> None:
    wide = Address(ifname="eth0", address=ip_interface("10.22.0.2/16"), netns=web)
    narrow = Address(ifname="eth0", address=ip_interface("10.22.0.2/24"), netns=web)
    wide.ensure(kernel)
    assert narrow.drift(kernel) is not None
    narrow.ensure(kernel)
    narrow.remove(kernel)
    assert wide.drift(kernel) is None


def test_address_that_was_there_before_stays(kernel: Kernel, web: NetnsRef) -> None:
    add(web, "10.22.0.1/16")
    before = snapshot(web)
    address = Address(ifname="eth0", address=ip_interface("10.22.0.1/16"), netns=web).observed(kernel)
    assert address.adopted
    address.ensure(kernel)
    address.remove(kernel)
    assert differences(before, snapshot(web)) == []


def test_other_addresses_are_left_alone(kernel: Kernel, web: NetnsRef) -> None:
    add(web, "10.23.0.1/16")
    before = snapshot(web)
    address = Address(ifname="eth0", address=ip_interface("10.22.0.1/16"), netns=web).observed(kernel)
    assert not address.adopted
    address.ensure(kernel)
    address.remove(kernel)
    assert differences(before, snapshot(web)) == []


def test_without_its_link_an_address_cannot_come_and_is_gone(kernel: Kernel, web: NetnsRef) -> None:
    address = Address(ifname="eth7", address=ip_interface("10.22.0.2/16"), netns=web)
    assert address.observed(kernel) == address
    address.remove(kernel)
    assert "eth7" in str(address.drift(kernel))
    with pytest.raises(ObjectMissing, match="eth7"):
        address.ensure(kernel)


def test_in_a_replaced_netns_an_address_is_gone(kernel: Kernel, web: NetnsRef) -> None:
    add(web, "10.22.0.2/16")
    stranger = NetnsRef(web.path, "123456789abc:1")
    address = Address(ifname="eth0", address=ip_interface("10.22.0.2/16"), netns=stranger)
    address.remove(kernel)
    assert shown(web)[0]["local"] == "10.22.0.2"
    assert "is gone" in str(address.drift(kernel))
    with pytest.raises(ObjectMissing):
        address.ensure(kernel)


def test_a_refused_address_is_named_with_the_reason(kernel: Kernel, web: NetnsRef) -> None:
    address = Address(ifname="eth0", address=ip_interface("ff02::1/128"), netns=web)
    with pytest.raises(KernelError, match=r"cannot add address ff02::1/128 to eth0 in web\S+: "):
        address.ensure(kernel)
