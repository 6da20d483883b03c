"""Plans: unique keys, runs, differences by key, and objects that survive being written down."""

import ipaddress

import pytest

from netlib.codec import encode
from netlib.kernel.addresses import Address
from netlib.kernel.bridges import Bridge, BridgePort
from netlib.kernel.links import Veth
from netlib.model import NetnsRef
from netlib.objects import _OBJECTS, object_class
from netlib.plan import BATCH_ORDER, Key, Plan, plan_change, removal_rank
from netlib.store.objects import decode_object

WEB = NetnsRef("/run/netns/web", "b00t:42")
VETH = Veth(ifname="veth0a1b2c3", peer="eth0", peer_netns=WEB, mac="02:42:00:00:00:01")
PORT = BridgePort(ifname="veth0a1b2c3", bridge="br0", hairpin=True)
ADDRESS = Address(ifname="eth0", address=ipaddress.ip_interface("172.18.0.2/16"), netns=WEB)


def test_a_plan_refuses_two_objects_with_one_key() -> None:
    with pytest.raises(ValueError, match="link/host/veth0a1b2c3"):
        Plan(VETH, VETH)


def test_an_attribute_that_changes_is_one_ensure_and_no_removal() -> None:
    wider = Bridge(ifname="br0", mtu=9000)
    change = plan_change(Plan(Bridge(ifname="br0", mtu=1500), PORT), Plan(wider, PORT))
    assert change.ensure == (wider,)
    assert change.remove == ()


def test_what_is_new_is_ensured_and_what_is_gone_is_removed() -> None:
    change = plan_change(Plan(VETH, PORT), Plan(VETH, ADDRESS))
    assert change.ensure == (ADDRESS,)
    assert change.remove == (PORT,)


def test_runs_keep_the_order_and_join_only_neighbours_of_one_batch() -> None:
    runs = list(Plan(VETH, PORT, ADDRESS).runs())
    assert [item for run in runs for item in run] == [VETH, PORT, ADDRESS]
    assert len(runs) == 3


def test_every_batch_of_ours_has_its_place_in_a_removal_and_a_foreign_one_comes_after_them() -> None:
    """A lease is released while its link and its way out exist, and a port is closed before the link behind it is deleted."""
    assert {object_class(tag).batch for tag in _OBJECTS} == {"", *BATCH_ORDER}
    assert sorted(["veth", "acme", "port sources", "zeta", "outward", "firewall", "dhcp"], key=removal_rank) == [
        *("dhcp", "firewall", "outward", "port sources", "veth"),
        *("acme", "zeta"),
    ]


def test_a_veth_carries_its_port_and_what_is_on_its_peer() -> None:
    assert VETH.carries(PORT)
    assert VETH.carries(ADDRESS)
    elsewhere = Address(ifname="eth0", address=ipaddress.ip_interface("172.18.0.2/16"), netns=NetnsRef("/run/netns/db"))
    assert not VETH.carries(elsewhere)


@pytest.mark.parametrize("item", [VETH, PORT, ADDRESS])
def test_an_object_reads_back_as_it_was_written_down(item: object) -> None:
    assert decode_object(encode(item), "") == item


@pytest.mark.parametrize("tag", _OBJECTS)
def test_every_tag_in_the_registry_leads_to_a_class_with_that_tag(tag: str) -> None:
    assert object_class(tag).__struct_config__.tag == tag


def test_a_key_reads_as_a_path() -> None:
    assert str(Key("link", "", "br0")) == "link/host/br0"
    assert str(Key("address", "/run/netns/web", "eth0")) == "address//run/netns/web/eth0"
