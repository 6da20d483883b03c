"""``dhcp``: a lease asked for by the container's link, kept in step with the server, and given back."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from msgspec.structs import replace

from cni_plugins import dhcp
from cni_plugins.protocol import Code
from ipam.dhcp_client import DhcpLease, now
from netlib.config import Config
from netlib.core.attachments import Attachments
from netlib.core.controller import Controller, Unwatched
from netlib.daemon import leases
from netlib.daemon.leases import DhcpLeases
from netlib.errors import DaemonError
from netlib.model import NetnsRef
from netlib.testing.snapshot import differences, snapshot
from tests.cni.calling import Caller, run
from tests.cni.dhcp_server import ADDRESS, GRANTED, Heard, Server, grant
from tests.faults import interrupted

T = TypeVar("T")
ALONE = {"cniVersion": "1.1.0", "name": "lan", "type": "dhcp", "ipam": {"type": "dhcp"}}


def bridged(**ipam: Any) -> dict[str, Any]:
    return {**ALONE, "type": "bridge", "bridge": "br-lan", "ipam": {"type": "dhcp", **ipam}}


def alone(**ipam: Any) -> dict[str, Any]:
    return {**ALONE, "ipam": {"type": "dhcp", **ipam}}


@pytest.fixture
def server(lan: NetnsRef) -> Iterator[Server]:
    """A server of ours there."""
    server = Server(lan, "eth0")
    yield server
    server.close()


@pytest.fixture
def wired(cable: Caller, server: Server) -> Caller:
    """A container that asks that server."""
    return cable


def lease_of(controller: Controller) -> tuple[str, DhcpLease]:
    with controller.store.read() as tx:
        ((record, item),) = tx.ready_objects("dhcp_lease", "host")
    assert isinstance(item, DhcpLease)
    return record, item


# --- ADD and DEL -----------------------------------------------------------------------------------------------------------


def test_a_container_on_a_bridge_gets_an_address_and_gives_it_back(
    caller: Caller, server: Server, controller: Controller
) -> None:
    caller.container("c1")
    before = snapshot()
    server.answers = lambda heard: grant(heard, ("router", ADDRESS))
    result = caller.ok("ADD", bridged(priority=7))
    assert result["ips"] == [{"address": f"{GRANTED}/24", "gateway": ADDRESS, "interface": 2}]
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": ADDRESS, "priority": 7}]
    assert caller.pings("c1", ADDRESS)
    assert "metric 7" in run("ip", "-n", "c1", "route", "show", "default")
    assert {heard.client for heard in server.heard} == {b"\0c1/lan/eth0"}
    assert server.wait_for("request").options["requested_addr"] == GRANTED
    assert server.wait_for("request").packet.xid == server.wait_for("discover").packet.xid
    mac = result["interfaces"][2]["mac"]
    assert server.wait_for("discover").packet.chaddr[:6] == bytes.fromhex(mac.replace(":", ""))
    caller.ok("CHECK", {**bridged(priority=7), "prevResult": result})
    for _ in range(2):
        caller.ok("DEL", bridged(priority=7))
    release = server.wait_for("release")
    assert (release.packet.ciaddr, release.options["server_id"], release.client) == (GRANTED, ADDRESS, b"\0c1/lan/eth0")
    Attachments(controller).prune()
    assert differences(before, snapshot()) == []
    assert server.kinds() == ["discover", "request", "release"]


def test_a_macvlan_gives_its_address_back_before_it_goes(caller: Caller, server: Server) -> None:
    caller.container("c1")
    run("ip", "link", "add", "lan2", "master", "br-lan", "type", "veth", "peer", "name", "lan3")
    try:
        for ifname in ("lan2", "lan3"):
            run("ip", "link", "set", ifname, "up")
        macvlan = {**ALONE, "type": "macvlan", "master": "lan3"}
        assert caller.ok("ADD", macvlan)["ips"] == [{"address": f"{GRANTED}/24", "interface": 0}]
        assert caller.pings("c1", ADDRESS)
        caller.ok("DEL", macvlan)
        assert server.wait_for("release").packet.ciaddr == GRANTED
    finally:
        run("ip", "link", "del", "lan2")


def test_a_plugin_of_others_gets_the_address_alone(wired: Caller, server: Server, controller: Controller) -> None:
    result = wired.ok("ADD", ALONE)
    assert result == {"cniVersion": "1.1.0", "ips": [{"address": f"{GRANTED}/24"}]}
    assert "inet " not in run("ip", "-n", "c1", "addr", "show", "eth0")
    wired.ok("CHECK", {**ALONE, "prevResult": result})
    assert wired.error("ADD", ALONE)[0] == Code.CONFLICT
    record, lease = lease_of(controller)
    Attachments(controller).revise(record, replace(lease, since=lease.since - 601))
    assert wired.error("CHECK", {**ALONE, "prevResult": result})[0] == Code.DRIFT
    wired.ok("DEL", ALONE)
    server.wait_for("release")
    assert "state UP" in run("ip", "-n", "c1", "link", "show", "eth0")
    told = wired.error("CHECK", {**ALONE, "prevResult": result})
    assert told == (Code.DRIFT, "dhcp: no lease of container c1; for eth0 in /run/netns/c1")


def test_a_link_that_is_down_is_put_up_and_down_again(wired: Caller, server: Server) -> None:
    run("ip", "-n", "c1", "link", "set", "eth0", "down")
    wired.ok("ADD", ALONE)
    assert "state UP" in run("ip", "-n", "c1", "link", "show", "eth0")
    wired.ok("DEL", ALONE)
    assert "state DOWN" in run("ip", "-n", "c1", "link", "show", "eth0")
    server.wait_for("release")


def test_what_is_provided_and_asked_for(wired: Caller, server: Server) -> None:
    provide = [
        {"option": "host-name", "fromArg": "K8S_POD_NAME", "value": "other"},
        {"option": "vendor-class-identifier", "value": "netlib"},
        {"option": "12", "fromArg": "ABSENT"},
        {"option": "224", "value": "own"},
    ]
    request = [{"option": "6"}, {"option": "routers"}, {"skipDefault": False}]
    args = "IgnoreUnknown=1;K8S_POD_NAME=web;X=a=b"
    server.answers = lambda heard: grant(heard, ("name_server", "1.1.1.1", "8.8.8.8"), ("domain", "example.org"))
    result = wired.ok("ADD", alone(provide=provide, request=request), args=args)
    assert result["dns"] == {"nameservers": ["1.1.1.1", "8.8.8.8"], "domain": "example.org"}
    for heard in server.heard:
        assert heard.options["hostname"] == b"web"
        assert heard.options["vendor_class_id"] == b"netlib"
        assert heard.options[224] == b"own"
        assert heard.options["param_req_list"] == [6, 3, 1]
    wired.ok("DEL", ALONE)
    assert "hostname" not in server.wait_for("release").options


def test_skip_default_leaves_the_list_out(wired: Caller, server: Server) -> None:
    wired.ok("ADD", alone(request=[{"skipDefault": True}], daemonSocketPath="/run/cni/dhcp.sock"))
    assert "param_req_list" not in server.wait_for("request").options


def test_a_route_without_a_router_is_on_the_link(caller: Caller, server: Server) -> None:
    caller.container("c1")
    routes = bytes([24, 10, 8, 0, 0, 0, 0, 0, 0, 10, 9, 0, 1])
    server.answers = lambda heard: grant(heard, (121, routes))
    result = caller.ok("ADD", bridged())
    assert result["routes"] == [{"dst": "10.8.0.0/24", "gw": "0.0.0.0", "scope": 253}, {"dst": "0.0.0.0/0", "gw": ADDRESS}]
    assert "10.8.0.0/24 dev eth0 proto static scope link" in run("ip", "-n", "c1", "route")
    caller.ok("CHECK", {**bridged(), "prevResult": result})


@pytest.mark.parametrize(
    ("ipam", "args", "message"),
    [
        (
            {"provide": [{"option": "nonsense", "value": "x"}]},
            "",
            'Can not parse option "nonsense"; it is a number from 1 to 254',
        ),
        ({"request": [{"option": "255"}]}, "", 'Can not parse option "255"'),
        ({"request": [{"option": "²"}]}, "", 'Can not parse option "²"'),
        ({"provide": [{"option": "12", "value": "x" * 256}]}, "", 'value too long for option "12": "xxx'),
        ({"provide": [{"option": "12", "fromArg": "A"}]}, f"A={'x' * 256}", 'value too long for option "12" from CNI_ARGS "A"'),
        ({"provide": [{"value": "x"}]}, "", "dhcp: ipam.provide[0].option: this key is required"),
    ],
)
def test_what_is_refused(caller: Caller, ipam: dict[str, Any], args: str, message: str) -> None:
    caller.container("c1")
    code, told = caller.error("ADD", alone(**ipam), args=args)
    assert code == Code.INVALID_CONFIG
    assert told.startswith(message)


# --- servers as they are ---------------------------------------------------------------------------------------------------


def test_without_a_server_the_add_says_so_and_leaves_nothing(
    caller: Caller, lan: NetnsRef, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dhcp, "SECONDS", 0.2)
    caller.container("c1")
    before = snapshot()
    told = caller.error("ADD", bridged())
    assert told == (Code.TRY_AGAIN, "no DHCP server offered an address on eth0; check that its network has one; ")
    assert differences(before, snapshot()) == []
    assert Attachments(controller).attachments() == []


def test_a_refused_request_begins_anew_and_a_lost_answer_is_asked_for_again(wired: Caller, server: Server) -> None:
    lost = iter((True,))

    def answers(heard: Heard) -> list[Any]:
        number = len(server.heard)
        if number == 0 and next(lost, False):
            return []
        if heard.kind == "request" and server.kinds().count("request") == 0:
            server.granted = "10.9.0.60"
            return [[("message-type", "nak"), ("server_id", ADDRESS)]]
        return grant(heard)

    server.answers = answers
    assert wired.ok("ADD", ALONE)["ips"] == [{"address": "10.9.0.60/24"}]
    assert server.kinds() == ["discover", "discover", "request", "discover", "request"]
    wired.ok("DEL", ALONE)
    assert server.wait_for("release").packet.ciaddr == "10.9.0.60"


def test_what_was_granted_counts_and_not_what_was_offered(wired: Caller, server: Server, controller: Controller) -> None:
    server.answers = lambda heard: grant(heard, lease=60 if heard.kind == "discover" else 6000)
    wired.ok("ADD", ALONE)
    _, lease = lease_of(controller)
    assert (lease.lease, lease.renewal, lease.rebinding) == (6000, 3000, 5100)


def test_half_an_offer_is_told(wired: Caller, server: Server) -> None:
    server.answers = lambda heard: grant(heard, mask="")
    told = wired.error("ADD", ALONE)
    assert told == (Code.MISSING, f"DHCP option Subnet Mask not found in the offer of {ADDRESS}; let the server send it; ")


def test_what_is_for_others_or_broken_is_not_heard(wired: Caller, server: Server) -> None:
    def answers(heard: Heard) -> list[Any]:
        wrong = heard.packet.copy()
        wrong.xid ^= 1
        for noise in (b"", b"\xff" * 300, b"\2\1\6" + bytes(297)):
            server._socket.sendto(noise, ("255.255.255.255", 68))
        server.granted = "10.9.0.66"
        server._say(wrong, *grant(heard))
        wrong.xid ^= 1
        wrong.chaddr = b"\2" * 6
        server._say(wrong, *grant(heard))
        server.granted = GRANTED
        return grant(heard)

    server.answers = answers
    assert wired.ok("ADD", ALONE)["ips"] == [{"address": f"{GRANTED}/24"}]


def test_an_add_that_nobody_could_renew_is_refused(
    wired: Caller, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(**_: Any) -> None:
        raise DaemonError("netlibd cannot be started")

    monkeypatch.setattr(controller.watcher, "changed", changed)
    refusal = "nobody could renew a DHCP lease: netlibd cannot be started; "
    assert wired.error("ADD", ALONE) == (Code.DAEMON, refusal)
    assert wired.error("STATUS", ALONE) == (Code.UNAVAILABLE, refusal)


@pytest.mark.parametrize("action", ["fail", "die"])
def test_whatever_fails_and_wherever_it_dies_the_address_is_given_back(
    config: Config, wired: Caller, server: Server, action: str
) -> None:
    for moment in range(20):
        releases = server.kinds().count("release")
        if not _interrupted(config, moment, action):
            break
        with Controller(config, watcher=Unwatched()) as controller:
            controller.recover()
            assert Attachments(controller).attachments() == []
        if server.kinds()[-1:] == ["request"] or releases < server.kinds().count("release"):
            server.wait_for("release", releases + 1)
    assert moment == 4, "before and after the link is up, and the lease written down"
    wired.ok("DEL", ALONE)


def _interrupted(config: Config, moment: int, action: str) -> bool:
    """Whether an ADD that fails, or dies, at that moment got there at all."""

    def attempt(controller: Controller) -> bool:
        return Caller(lambda: controller).call("ADD", ALONE).code == 1

    return interrupted(config, moment, action, attempt)


def test_gc_gives_back_what_is_not_valid(wired: Caller, server: Server, controller: Controller) -> None:
    wired.ok("ADD", ALONE)
    wired.ok("GC", {**ALONE, "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]})
    assert server.kinds() == ["discover", "request"]
    wired.ok("GC", {**ALONE, "cni.dev/valid-attachments": []})
    server.wait_for("release")
    assert Attachments(controller).attachments() == []


# --- netlibd's part --------------------------------------------------------------------------------------------------------


class Keeping:
    """What netlibd does for leases, here."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._leases = self._begin()

    def _begin(self) -> DhcpLeases:
        return DhcpLeases(lambda: Controller(self._config, watcher=Unwatched()))

    def due(self, controller: Controller, part: float) -> DhcpLease:
        """Let the lease be so old that a part of its time is over, and netlibd start anew."""
        record, lease = lease_of(controller)
        assert lease.lease is not None
        lease = replace(lease, since=now() - part * lease.lease)
        assert Attachments(controller).revise(record, lease)
        self.close()
        self._leases = self._begin()
        self._leases.reload()
        return lease

    def look(self) -> None:
        self._leases.reload()

    def close(self) -> None:
        self._leases.stop()


@pytest.fixture
def keeping(config: Config, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keeping]:
    monkeypatch.setattr(leases, "_ANSWER_SECONDS", 0.3)
    keeping = Keeping(config)
    yield keeping
    keeping.close()


def _until(controller: Controller, wanted: Callable[[DhcpLease], bool]) -> DhcpLease:
    """The lease, once it is as wanted."""
    return _wait(lambda: lease_of(controller)[1], wanted)


def _wait(look: Callable[[], T], wanted: Callable[[T], bool]) -> T:
    deadline = now() + 20
    while not wanted(found := look()):
        assert now() < deadline, found
        os.sched_yield()
    return found


def _link_state() -> str:
    return run("ip", "-n", "c1", "-br", "link", "show", "eth0").split()[1]


def test_a_lease_is_renewed_at_its_half(wired: Caller, server: Server, controller: Controller, keeping: Keeping) -> None:
    wired.ok("ADD", ALONE)
    keeping.due(controller, 0.4)
    server.answers = lambda heard: grant(heard, lease=1200)
    old = keeping.due(controller, 0.5)
    renewed = _until(controller, lambda lease: lease.since > old.since)
    assert (renewed.lease, renewed.renewal, renewed.rebinding) == (1200, 600, 1020)
    assert server.kinds() == ["discover", "request", "request"]
    request = server.wait_for("request", 2)
    assert (request.packet.ciaddr, request.client) == (GRANTED, b"\0c1/lan/eth0")
    assert not {"server_id", "requested_addr"} & request.options.keys()
    wired.ok("DEL", ALONE)
    keeping.look()
    server.wait_for("release")


def test_another_server_counts_only_when_it_is_time_to_rebind(
    wired: Caller, server: Server, controller: Controller, keeping: Keeping
) -> None:
    wired.ok("ADD", ALONE)

    def other(heard: Heard) -> list[Any]:
        answer = [item if item[0] != "server_id" else ("server_id", "10.9.0.2") for item in grant(heard)[0]]
        return [[("message-type", "nak"), ("server_id", "10.9.0.2")], answer]

    server.answers = other
    old = keeping.due(controller, 0.6)
    server.wait_for("request", 2)
    server.wait_for("request", 3)
    assert lease_of(controller)[1] == old
    keeping.due(controller, 0.9)
    renewed = _until(controller, lambda lease: lease.since > old.since and str(lease.server) == "10.9.0.2")
    assert renewed.address == old.address


@pytest.mark.parametrize("how", ["over", "taken back", "another address"])
def test_what_is_over_or_taken_back_is_used_no_longer(
    wired: Caller, server: Server, controller: Controller, keeping: Keeping, how: str
) -> None:
    wired.ok("ADD", ALONE)
    assert _link_state() == "UP"
    if how == "taken back":
        server.answers = lambda heard: [[("message-type", "nak"), ("server_id", ADDRESS)]]
    elif how == "another address":
        server.granted = "10.9.0.77"
    else:
        server.answers = lambda heard: []
    keeping.due(controller, 0.5 if how == "taken back" else 1.0)
    _wait(_link_state, lambda state: state == "DOWN")
    wired.ok("DEL", ALONE)


def test_a_lease_that_was_left_alone_too_long_is_asked_for_once_more(
    wired: Caller, server: Server, controller: Controller, keeping: Keeping
) -> None:
    wired.ok("ADD", ALONE)
    old = keeping.due(controller, 1.5)
    _until(controller, lambda lease: lease.since > old.since)
    assert _link_state() == "UP"


def test_a_container_that_is_gone_is_no_error_and_its_lease_goes_with_its_record(
    wired: Caller, server: Server, controller: Controller, keeping: Keeping, caplog: pytest.LogCaptureFixture
) -> None:
    wired.ok("ADD", ALONE)
    wired.lose("c1")
    with caplog.at_level("INFO", logger="netlib.daemon.leases"):
        keeping.due(controller, 0.5)
        _wait(lambda: caplog.text, lambda text: "a DHCP lease is not renewed any more" in text)
    wired.ok("DEL", ALONE)
    assert server.kinds() == ["discover", "request"]


def test_netlibd_renews(config: Config, caller: Caller, server: Server) -> None:
    """The whole of it: the ADD in this process starts netlibd, which finds the lease by itself."""
    with Controller(config) as controller:
        with_daemon = Caller(lambda: controller)
        caller.container("c1")
        server.answers = lambda heard: grant(heard, lease=2 if server.kinds().count("request") < 3 else 600)
        with_daemon.ok("ADD", bridged())
        server.wait_for("request", 3)
        _until(controller, lambda lease: lease.lease == 600)
        with_daemon.ok("DEL", bridged())
        server.wait_for("release")
        controller.reset()
    assert Path(f"/proc/{config.pid_file.read_text().strip()}").exists()
