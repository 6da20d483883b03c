"""What an earlier netlib made in this boot gets, once, what this one makes besides."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.errors import ObjectMissing
from netlib.firewall.members import MemberTable, PortSources
from netlib.model import NetnsRef
from netlib.testing.snapshot import differences, snapshot
from tests.cni.calling import Caller
from tests.stored import stored_objects

POD = {
    "cniVersion": "1.0.0",
    "name": "pods",
    "type": "bridge",
    "bridge": "cni0",
    "isGateway": True,
    "ipam": {"type": "static", "addresses": [{"address": "10.9.0.2/24"}]},
}


def _make_former(controller: Controller) -> None:
    """Take away what netlib did not make at 11f308c, from the records and from the kernel."""
    with controller.store.write() as tx:
        for (record,) in tx.db.execute("SELECT id FROM record").fetchall():
            tx.write_objects(record, [item for item in tx.objects(record) if not isinstance(item, MemberTable | PortSources)])
        tx.db.execute("DELETE FROM meta WHERE key='plans'")
    former_rules = "flush chain inet netlib input; delete chain inet netlib input; flush chain inet netlib forward"
    subprocess.run(["nft", f"delete table bridge netlib_members; {former_rules}"], check=True)
    for link in json.loads(subprocess.run(["ip", "-j", "link"], check=True, capture_output=True, text=True).stdout):
        if "netlib:" in link.get("ifalias", ""):
            for name in ("ipv4/conf/{}/accept_redirects", "ipv6/conf/{}/accept_ra", "ipv6/conf/{}/accept_redirects"):
                Path("/proc/sys/net", name.format(link["ifname"])).write_text("1")


def _objects(controller: Controller, kind: type[MemberTable | PortSources]) -> int:
    with controller.store.read() as tx:
        return sum(isinstance(item, kind) for item in stored_objects(tx))


def test_what_was_made_before_is_protected_as_what_is_new(config: Config, netns_factory: Callable[[str], NetnsRef]) -> None:
    before = snapshot()
    with Controller(config, watcher=Unwatched()) as controller:
        caller = Caller(lambda: controller)
        try:
            caller.container("c1")
            added = caller.ok("ADD", POD)
            controller.create_network("web", subnets=["10.1.0.0/24"], options={"com.docker.network.bridge.name": "br-web"})
            controller.create_network("inner", subnets=["10.2.0.0/24"], internal=True)
            for network in ("web", "inner"):
                controller.create_sandbox(f"in-{network}")
                controller.connect(network, f"in-{network}")
            whole = snapshot()
            _make_former(controller)
            assert controller.check("web") != []
            with Controller(config, watcher=Unwatched()) as upgraded:
                assert differences(whole, snapshot()) == []
                assert (_objects(upgraded, MemberTable), _objects(upgraded, PortSources)) == (1, 1)
                for name in ("web", "inner", "in-web", "in-inner"):
                    assert upgraded.check(name) == []
            assert caller.ok("CHECK", {**POD, "prevResult": added}) is None
            caller.ok("DEL", POD)
        finally:
            caller.clear()
            controller.reset()
    assert [line for line in differences(before, snapshot()) if "netlib_members" in line or "br-web" in line] == []


def test_it_is_done_once(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("it was done before")

    with Controller(config, watcher=Unwatched()) as controller:
        controller.create_network("web", subnets=["10.1.0.0/24"])
        monkeypatch.setattr("netlib.core.upgrade._refuse_routers", never)
        with Controller(config, watcher=Unwatched()) as again:
            again.remove_network("web")
        controller.reset()


def test_what_could_not_be_done_is_in_the_journal(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    with Controller(config, watcher=Unwatched()) as controller:
        controller.create_network("web", subnets=["10.1.0.0/24"])
        _make_former(controller)
        monkeypatch.setattr("netlib.core.upgrade._refuse_routers", lambda _: [ObjectMissing("there is no link veth1")])
        with Controller(config, watcher=Unwatched()) as upgraded:
            (told,) = [entry for entry in upgraded.journal() if entry.operation == "upgrade"]
            assert upgraded.check("web") != []  # the rest was done, and this is not
        assert told.outcome == "ObjectMissing: there is no link veth1"
        controller.reset()
