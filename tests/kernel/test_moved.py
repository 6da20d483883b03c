"""A link of the host in a container, and home again with what it had."""

from collections.abc import Callable, Iterator

import pytest
from msgspec.structs import replace

from netlib.errors import AlreadyExists, KernelError, NotPermitted, ObjectMissing
from netlib.kernel.handle import Kernel
from netlib.kernel.links import LinkUp
from netlib.kernel.moved import MovedDevice
from netlib.kernel.netlink import NetlinkSocket
from netlib.model import NetnsRef
from tests.kernel.object_world import DEVICE_MAC, TAG, World, assert_same, go_rounds, make_world, repair, settle


@pytest.fixture
def world(netns_factory: Callable[[str], NetnsRef]) -> World:
    return make_world(netns_factory)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    with Kernel(TAG) as handle:
        yield handle


def moved(world: World, ifname: str = "net1") -> MovedDevice:
    return MovedDevice(device="dev0", ifname=ifname, netns=world.web, home=world.host)


def furnish(world: World) -> None:
    """Give the device what it is to have again."""
    for line in (
        "host:ip link set dev0 mtu 1400 txqueuelen 77 alias uplink promisc on",
        "host:ip link set dev0 up",
        "host:ip addr add 10.8.0.1/24 brd + dev dev0",
        "host:ip addr add fd08::1/64 nodad dev dev0",
        "host:ip link property add dev dev0 altname the-uplink",
    ):
        world.run(line)


def test_moved_twice_brought_home_twice_and_explained(kernel: Kernel, world: World) -> None:
    go_rounds(kernel, world, moved(world))


def test_it_is_renamed_inside_and_has_all_it_had_at_home(kernel: Kernel, world: World) -> None:
    furnish(world)
    before = world.state()
    item = moved(world, "eth0").observed(kernel)
    settle(kernel, world, item)
    link = kernel.rtnl(world.web).get_link("eth0")
    assert (link.alias, link.mac, link.mtu, link.up) == ("dev0", DEVICE_MAC, 1400, False)
    assert kernel.rtnl(world.host).find_link("dev0") is None
    LinkUp(ifname="eth0", netns=world.web).ensure(kernel)
    for line in ("mtu 1300", "address 02:00:00:00:00:07", "txqueuelen 5", "promisc off", "allmulticast on"):
        world.run(f"web:ip link set eth0 {line}")
    item.remove(kernel)
    assert kernel.rtnl(world.host).get_link("dev0").alias == "uplink"
    assert_same(before, world.state())
    item.remove(kernel)
    assert_same(before, world.state())


def test_its_name_may_be_taken_inside_and_its_new_one_at_home(kernel: Kernel, world: World) -> None:
    for line in ("web:ip link add dev0 type bridge", "host:ip link add eth0 type bridge"):
        world.run(line)
    before = world.state()
    item = moved(world, "eth0").observed(kernel)
    settle(kernel, world, item)
    item.remove(kernel)
    assert_same(before, world.state())


def test_renamed_by_the_container_it_is_found(kernel: Kernel, world: World) -> None:
    before = world.state()
    item = moved(world).observed(kernel)
    item.ensure(kernel)
    world.run("web:ip link set net1 name lost")
    assert item.drift(kernel) == "link net1 is missing"
    settle(kernel, world, item)
    world.run("web:ip link set net1 name lost")
    item.remove(kernel)
    assert_same(before, world.state())


def test_drift_is_named_and_repaired(kernel: Kernel, world: World) -> None:
    repair(kernel, world, moved(world), "web:ip link set net1 name lost", "is missing")


def test_a_link_of_that_name_inside_is_refused_and_left(kernel: Kernel, world: World) -> None:
    world.run("web:ip link add net1 type bridge")
    before = world.state()
    item = moved(world).observed(kernel)
    with pytest.raises(AlreadyExists, match="link net1 exists in web"):
        item.ensure(kernel)
    assert item.drift(kernel) == "link net1 is not the former dev0"
    item.remove(kernel)
    assert_same(before, world.state())


def test_a_device_that_is_not_at_home_is_refused_by_name(kernel: Kernel, world: World) -> None:
    with pytest.raises(ObjectMissing, match="dev9"):
        replace(moved(world), device="dev9").observed(kernel)
    item = moved(world).observed(kernel)
    world.run("host:ip link del dev0")
    with pytest.raises(ObjectMissing, match="dev0"):
        item.ensure(kernel)
    item.remove(kernel)


def test_a_name_that_was_taken_at_home_meanwhile_is_an_error_and_no_loss(kernel: Kernel, world: World) -> None:
    item = moved(world).observed(kernel)
    item.ensure(kernel)
    world.run("host:ip link add dev0 type bridge")
    with pytest.raises(KernelError, match="cannot move link net1 from web.* to host.* as dev0: file exists"):
        item.remove(kernel)
    assert kernel.rtnl(world.host).get_link("net1").alias == "dev0"  # at home it is, and still known
    world.run("host:ip link del dev0")
    item.remove(kernel)
    assert kernel.rtnl(world.host).get_link("dev0").mac == DEVICE_MAC


def test_a_virtual_one_ends_with_its_netns(kernel: Kernel, world: World) -> None:
    item = moved(world).observed(kernel)
    item.ensure(kernel)
    before = [link.ifname for link in kernel.rtnl(world.host).links()]
    stranger = replace(item, netns=NetnsRef(world.web.path, "123456789abc:1"))
    stranger.remove(kernel)
    assert [link.ifname for link in kernel.rtnl(world.host).links()] == before
    assert "is gone" in str(stranger.drift(kernel))


def test_a_card_that_the_kernel_brought_home_under_another_name_is_renamed(kernel: Kernel, world: World) -> None:
    furnish(world)
    before = world.state()
    item = moved(world).observed(kernel)
    item.ensure(kernel)
    # What Linux does with a network card when its netns ends: dev%d if its name is taken, down, alias and altnames kept.
    world.run(f"web:ip link set net1 netns {world.host.label} name dev7")
    replace(item, netns=NetnsRef(world.web.path, "123456789abc:1")).remove(kernel)
    assert_same(before, world.state())


def test_a_crash_at_any_request_is_undone_and_finished(kernel: Kernel, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    furnish(world)
    before = world.state()
    item = moved(world).observed(kernel)
    whole = NetlinkSocket.order
    for number in range(5):
        item.ensure(kernel)
        left = [number]

        def order(self: NetlinkSocket, messages: list[tuple[int, int, bytes]], left: list[int] = left) -> list[OSError | None]:
            if not left[0]:
                raise NotPermitted("here it ends")
            left[0] -= 1
            return whole(self, messages)

        with monkeypatch.context() as patch:
            patch.setattr(NetlinkSocket, "order", order)
            with pytest.raises(NotPermitted):
                item.remove(kernel)
        item.remove(kernel)
        assert_same(before, world.state())
        assert kernel.rtnl(world.host).get_link("dev0").alias == "uplink"
