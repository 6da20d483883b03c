"""What somebody else, a crash or a boot did is no obstacle: verbs go on, what is alive stays, what is gone is forgotten."""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from netlib.config import Config
from netlib.core import recovery
from netlib.core.controller import Controller, Unwatched
from netlib.daemon.firewall import restore_table
from netlib.errors import AlreadyExists, ConfigError, KernelError, NetlibError, PoolExhausted, TeardownError
from netlib.firewall.backend import firewall
from netlib.firewall.libnftables import nft
from netlib.firewall.objects import FirewallBase
from netlib.kernel.netns import create_netns, delete_netns
from netlib.kernel.owned_netns import OwnedNetns
from netlib.model import NetnsRef
from netlib.plan import KernelObject
from netlib.ports import parse_publish
from netlib.testing.snapshot import differences, snapshot


@pytest.fixture
def controller(config: Config) -> Iterator[Controller]:
    with Controller(config, watcher=Unwatched()) as controller:
        for name in ("one", "two"):
            controller.create_network(name)
        yield controller
        controller.reset()


def _run(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True)


def _ip(arguments: str) -> Any:
    done = subprocess.run(["ip", "-j", *arguments.split()], capture_output=True, text=True, check=True)
    return json.loads(done.stdout or "[]")


def test_a_link_taken_down_inside_costs_no_container_its_netns(controller: Controller, config: Config) -> None:
    controller.create_sandbox("box")
    controller.connect("one", "box")
    controller.connect("two", "box")
    _run("ip -n box link set eth0 down")  # the default route can not be set over it
    with pytest.raises(TeardownError):
        controller.disconnect("two", "box")
    with Controller(config, watcher=Unwatched()) as other:
        other.create_network("unrelated")
        assert [box.name for box in other.sandboxes()] == ["box"]
    assert [link["ifname"] for link in _ip("-n box link")] == ["lo", "eth0"]


def test_leaving_a_network_after_the_netns_has_gone(controller: Controller) -> None:
    path = Path("/run/netns/foreign")
    create_netns(path)
    controller.create_sandbox("guest", netns=str(path))
    controller.connect("one", "guest")
    controller.connect("two", "guest")
    delete_netns(path)
    controller.disconnect("one", "guest")
    assert len(controller.endpoints(sandbox="guest")) == 1
    controller.remove_network("one")
    assert not path.exists()


def test_a_netns_that_somebody_made_anew_at_our_path_stays(controller: Controller) -> None:
    controller.create_sandbox("box")
    controller.connect("one", "box")
    _run("ip netns del box")
    _run("ip netns add box")
    try:
        _run("ip -n box link add mine type bridge")
        assert any("another network namespace" in difference for _, difference in controller.check("box"))
        controller.disconnect("one", "box")
        controller.remove_sandbox("box")
        assert controller.sandboxes() == []
        assert [link["ifname"] for link in _ip("-n box link")] == ["lo", "mine"]
        with pytest.raises(AlreadyExists, match="not ours"):
            controller.create_sandbox("box")
        assert [link["ifname"] for link in _ip("-n box link")] == ["lo", "mine"]
    finally:
        _run("ip netns del box")


@pytest.mark.parametrize("moment", ["ensure", "ensured"])
def test_a_netns_that_somebody_made_after_a_crash_of_ours_stays(controller: Controller, config: Config, moment: str) -> None:
    """Died before its netns was at its path, or after, when somebody deletes it."""

    def die(now: str, item: KernelObject) -> None:
        if now == moment and isinstance(item, OwnedNetns):
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        with Controller(config, watcher=Unwatched(), observer=die) as dying:
            dying.create_sandbox("box")
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    if moment == "ensured":
        _run("ip netns del box")
    _run("ip netns add box")
    try:
        _run("ip -n box link add mine type bridge")
        assert controller.recover() == []
        with controller.store.read() as tx:
            assert tx.in_flight() == []
        assert [link["ifname"] for link in _ip("-n box link")] == ["lo", "mine"]
    finally:
        _run("ip netns del box")


def test_one_thing_that_will_not_go_holds_up_nothing_else(controller: Controller) -> None:
    boxes = {name: controller.create_sandbox(name) for name in ("a", "b", "c")}
    for name in boxes:
        controller.connect("one", name)
    busy = Path(boxes["b"].files_dir) / "busy"
    busy.mkdir()
    _run(f"mount -t tmpfs none {busy}")
    try:
        with pytest.raises(TeardownError, match="busy"):
            controller.remove_sandboxes(["a", "b", "c"])
        assert controller.sandboxes() == []
        with controller.store.read() as tx:
            assert [record for record, _, _ in tx.in_flight()] == [boxes["b"].id]
    finally:
        _run(f"umount {busy}")
    controller.remove_network("one")
    with controller.store.read() as tx:
        assert tx.in_flight() == []


def _pretend_boot(controller: Controller) -> None:
    """Let the store describe a former boot."""
    with controller.store.write() as tx:
        tx.db.execute("UPDATE record SET boot='former' WHERE boot<>''")
        tx.set_meta("netns", "former:1")


def _take_away(controller: Controller) -> None:
    """What a boot takes: links, netns, rules, sysctls."""
    for box in controller.sandboxes():
        delete_netns(Path(box.netns.path))
    for link in _ip("link"):
        if link["ifname"].startswith(("br-", "netlib")):
            _run(f"ip link del {link['ifname']}")
    for table in ("inet netlib", "bridge netlib_members"):
        _run(f"nft delete table {table}")
    _run("sysctl -q -w net.ipv4.ip_forward=0")


def test_after_a_boot_containers_are_forgotten_and_networks_come_back(controller: Controller, config: Config) -> None:
    box = controller.create_sandbox("box")
    first = controller.connect("one", "box")
    _take_away(controller)
    _pretend_boot(controller)
    with Controller(config, watcher=Unwatched()) as booted:
        assert booted.sandboxes() == []
        assert {network.name for network in booted.networks()} == {"bridge", "host", "none", "one", "two"}
        assert not Path(box.files_dir).exists()
        assert not Path("/etc/netns/box").exists()
        booted.create_sandbox("box")
        assert booted.connect("one", "box", ip=str(first.addresses[0].ip)).addresses == first.addresses
        assert booted.check("one") == [] == booted.check("box")


def test_a_boot_is_forgotten_again_when_that_failed(
    controller: Controller, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller.create_sandbox("box")
    _take_away(controller)
    _pretend_boot(controller)

    def fail(*_: object) -> None:
        raise KernelError("the disk hiccups")

    with monkeypatch.context() as patch:
        patch.setattr(recovery, "forget_former_boot", fail)
        with pytest.raises(KernelError, match="hiccups"):
            Controller(config, watcher=Unwatched())
    with Controller(config, watcher=Unwatched()) as booted:
        assert booted.sandboxes() == []


def test_a_flushed_table_is_put_back_in_one_transaction_each_entry_with_its_records_tag(controller: Controller) -> None:
    for number in range(3):
        controller.create_sandbox(f"box{number}")
        controller.connect("one", f"box{number}", ports=parse_publish(f"{8080 + number}:80"))
    with controller.engine.kernel("") as kernel:
        before = set(firewall(kernel).list_ours())
        assert len({item.tag for item in before}) == 5  # two networks, three endpoints
        _run("nft flush ruleset")
        generation = nft(kernel).generation()
        assert restore_table(controller) > 0
        assert nft(kernel).generation() == generation + 3  # then the table of members, and these
        assert set(firewall(kernel).list_ours()) == before
        assert restore_table(controller, thorough=True) == 0


def test_a_look_at_a_whole_table_waits_for_nobody(controller: Controller) -> None:
    controller.create_sandbox("box")
    controller.connect("one", "box")
    busy = controller.locks.hold(f"key:{FirewallBase().key}", "changing the firewall")

    def look(config: Config) -> int:
        with Controller(config, watcher=Unwatched()) as keeper:
            opened.set()
            return restore_table(keeper)

    opened = threading.Event()
    with ThreadPoolExecutor(1) as pool, busy:
        looked = pool.submit(look, controller.config)
        assert opened.wait(10)  # who opens a store may have to write
        with controller.store.write():
            assert looked.result(timeout=10) == 0


def test_a_bridge_of_somebody_else_is_used_and_keeps_what_it_has(controller: Controller) -> None:
    _run("ip link add br-lan type bridge")
    _run("ip link set br-lan up")
    _run("ip -6 addr add fd77::1/64 dev br-lan nodad")
    try:
        before = snapshot()
        controller.create_network("lan", subnets=["10.77.0.0/24"], options={"com.docker.network.bridge.name": "br-lan"})
        during = snapshot()
        assert {name for name in before["addresses"] if "br-lan" in name} <= set(during["addresses"])
        controller.remove_network("lan")
        assert differences(before, snapshot()) == []
    finally:
        _run("ip link del br-lan")


def test_a_bridge_name_belongs_to_one_network_also_before_its_first_use(controller: Controller) -> None:
    with pytest.raises(NetlibError, match="netlib0.*bridge"):
        controller.create_network("thief", options={"com.docker.network.bridge.name": "netlib0"})


def test_the_hosts_own_netns_is_no_guest_and_a_guests_default_route_stays(
    controller: Controller, netns_factory: Callable[[str], NetnsRef]
) -> None:
    own = Path("/run/netns/own")
    own.touch()
    _run(f"mount --bind /proc/self/ns/net {own}")
    try:
        with pytest.raises(ConfigError, match="host itself"):
            controller.create_sandbox("host-again", netns=str(own))
    finally:
        _run(f"umount {own}")
        own.unlink()
    guest = netns_factory("guest")
    for command in ("link set lo up", "link add mine type bridge", "link set mine up", "route add default dev mine"):
        _run(f"ip -n {guest.label} {command}")
    controller.create_sandbox("guest", netns=guest.path)
    controller.connect("one", "guest")
    assert [route["dev"] for route in _ip(f"-n {guest.label} route show default")] == ["mine", "eth0"], "the first counts"
    controller.remove_sandbox("guest")
    assert [route["dev"] for route in _ip(f"-n {guest.label} route show default")] == ["mine"]


def test_a_network_with_two_subnets_of_one_family_gives_from_both(controller: Controller) -> None:
    controller.create_network("wide", subnets=["10.78.0.0/29", "10.79.0.0/24"])
    for number in range(5):
        controller.create_sandbox(f"box{number}")
        controller.connect("wide", f"box{number}")
    controller.create_sandbox("next")
    endpoint = controller.connect("wide", "next")
    assert str(endpoint.addresses[0]) == "10.79.0.2/24"
    assert _ip("-n next route show default")[0]["gateway"] == "10.79.0.1"
    controller.create_sandbox("chosen")
    assert str(controller.connect("wide", "chosen", ip="10.79.0.50").addresses[0]) == "10.79.0.50/24"
    controller.create_network("narrow", subnets=["10.76.0.0/30"])
    controller.connect("narrow", "next")
    with pytest.raises(PoolExhausted, match="10.76.0.0/30"):
        controller.connect("narrow", "chosen")
