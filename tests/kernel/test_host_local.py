"""``host-local`` and its files: what is in its way, fails, dies or is gone, and what it takes away."""

import json
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from cni_plugins.bridge import BridgePlugin
from cni_plugins.host_local import HostLocalPlugin
from cni_plugins.node import Node
from cni_plugins.skel import Plugin, answer
from ipam.lease_files import LeaseFile
from netlib.codec import decode, encode
from netlib.config import Config
from netlib.core.attachments import Attachments
from netlib.core.controller import Controller, Unwatched
from netlib.kernel.handle import Kernel
from netlib.kernel.netns import delete_netns
from netlib.model import NetnsRef
from netlib.plan import KernelObject
from tests.faults import interrupted

Make = Callable[[str], NetnsRef]


class Host:
    """Calls of host-local, with one network ``pods`` of 10.1.0.0/29: five addresses."""

    def __init__(self, controller: Controller, data_dir: Path, plugin: type[Plugin[Any]] = HostLocalPlugin) -> None:
        self.controller = controller
        self.plugin = plugin
        self.data_dir = data_dir
        self.folder = data_dir / "pods"

    def ask(
        self,
        verb: str,
        container: str = "c1",
        netns: NetnsRef | None = None,
        ipam: Any = None,
        valid: Iterable[tuple[str, str]] | None = None,
        **keys: Any,
    ) -> dict[str, Any]:
        if valid is not None:
            keys["cni.dev/valid-attachments"] = [{"containerID": item, "ifname": ifname} for item, ifname in valid]
        environ = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": netns.path if netns is not None else "/run/netns/none",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/usr/lib/cni",
        }
        ipam = {"type": "host-local", "subnet": "10.1.0.0/29", "dataDir": str(self.data_dir), **(ipam or {})}
        stdin = json.dumps({"cniVersion": "1.1.0", "name": "pods", "ipam": ipam, **keys}).encode()
        fd = os.open(netns.path, os.O_RDONLY | os.O_CLOEXEC) if netns is not None else None
        try:
            outcome = answer(self.plugin(Node(lambda: self.controller, fd)), environ, stdin, lambda _: False)
        finally:
            if fd is not None:
                os.close(fd)
        document: dict[str, Any] = json.loads(outcome.stdout or b"{}")
        assert "internal error" not in document.get("msg", "")
        return document

    def add(self, container: str = "c1", netns: NetnsRef | None = None, **keys: Any) -> str:
        """The address that an ADD gives, or its refusal."""
        document = self.ask("ADD", container, netns, **keys)
        return str(document["msg"] if "code" in document else document["ips"][0]["address"].removesuffix("/29"))

    def leases(self) -> dict[str, str]:
        files = self.folder.iterdir() if self.folder.is_dir() else ()
        return {path.name: path.read_text() for path in files if path.name.startswith("10.") and path.is_file()}

    def plant(self, name: str, content: str = "") -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / name
        path.write_bytes(content.encode())
        return path


@pytest.fixture
def controller(config: Config) -> Iterator[Controller]:
    with Controller(config, watcher=Unwatched()) as controller:
        yield controller
        controller.reset()


@pytest.fixture
def host(controller: Controller, tmp_path: Path) -> Host:
    return Host(controller, tmp_path / "networks")


# --- what is in the way ----------------------------------------------------------------------------------------------------


def test_the_folder_is_made_for_others_to_list_and_the_files_for_root(host: Host) -> None:
    before = os.umask(0o077)
    try:
        assert host.add() == "10.1.0.2"
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (host.data_dir, host.folder, *host.folder.iterdir())}
    assert modes == {"networks": 0o755, "pods": 0o755, "lock": 0o600, "10.1.0.2": 0o600, "last_reserved_ip.0": 0o600}
    assert host.plant("x").parent.joinpath("10.1.0.2").read_bytes() == b"c1\r\neth0"


@pytest.mark.parametrize("kind", ["folder", "link", "dangling", "fifo", "empty", "garbage"])
def test_whatever_has_the_name_of_an_address_keeps_it_from_being_given(host: Host, tmp_path: Path, kind: str) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"c1\r\neth0")
    path = host.plant("10.1.0.2", "\xff\0 no lease" if kind == "garbage" else "")
    if kind in ("folder", "link", "dangling", "fifo"):
        path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind != "empty" and kind != "garbage":
        path.symlink_to(outside if kind == "link" else "/nowhere")
    assert host.add("c0") == "10.1.0.3"
    refused = host.ask("ADD", "c2", args={"cni": {"ips": ["10.1.0.2"]}})
    assert refused["msg"].endswith("requested IP address 10.1.0.2 is not available in range set 10.1.0.1-10.1.0.6")
    assert host.ask("DEL", "c1") == {}
    assert os.path.lexists(path)
    assert host.ask("GC", valid=()) == {}
    assert os.path.lexists(path) == (kind not in ("empty", "garbage")), "a file that is nobody's lease is freed"
    assert outside.read_bytes() == b"c1\r\neth0"


@pytest.mark.parametrize("content", ["", "x", "10.9.0.1", "fd00::1", "10.1.0.3\n", "\xff" * 9000])
def test_the_round_begins_anew_where_the_last_address_is_not_known(host: Host, content: str) -> None:
    host.plant("last_reserved_ip.0", content)
    assert host.add() == ("10.1.0.4" if content.startswith("10.1") else "10.1.0.2")
    assert (host.folder / "last_reserved_ip.0").read_text() == ("10.1.0.4" if content.startswith("10.1") else "10.1.0.2")


@pytest.mark.parametrize("name", ["last_reserved_ip.0", "lock"])
def test_nothing_outside_is_written_through_a_link(host: Host, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    host.plant(name).unlink()
    (host.folder / name).symlink_to(outside)
    doing = {"lock": f"lock {host.folder}/lock", "last_reserved_ip.0": f"write {host.folder}/10.1.0.2"}[name]
    assert host.add() == f"cannot {doing}: too many levels of symbolic links"
    assert outside.read_text() == "untouched"
    assert host.leases() == {}


def test_a_file_where_the_folder_is_to_be_is_told(host: Host) -> None:
    host.data_dir.write_text("")
    assert host.add() == f"cannot lock {host.folder}/lock: not a directory"
    assert host.ask("DEL") == {}
    assert host.ask("STATUS")["code"] == 50


def test_a_full_disk_leaves_no_half_a_lease(host: Host) -> None:
    host.data_dir.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=4", "tmpfs", str(host.data_dir)], check=True)
    try:
        assert host.add() == f"cannot write {host.folder}/10.1.0.2: no space left on device"  # no inode for the last one given
        assert host.leases() == {}
        assert Attachments(host.controller).attachments() == []
    finally:
        subprocess.run(["umount", str(host.data_dir)], check=True)


def test_an_address_that_a_stranger_took_meanwhile_is_left_to_it(config: Config, tmp_path: Path) -> None:
    strangers = iter(("10.1.0.2", "10.1.0.3"))
    host: Host

    def observer(moment: str, item: KernelObject) -> None:
        if moment == "ensure" and (address := next(strangers, None)):
            assert item.key.name.endswith(address)
            host.plant(address, "stranger\r\neth0")

    with Controller(config, watcher=Unwatched(), observer=observer) as controller:
        host = Host(controller, tmp_path)
        assert host.add() == "10.1.0.4"
        stranger = b"stranger\r\neth0"
        assert {path.name: path.read_bytes() for path in host.folder.glob("10.*")} == {
            "10.1.0.2": stranger,
            "10.1.0.3": stranger,
            "10.1.0.4": b"c1\r\neth0",
        }
        refused = host.ask("ADD", "c2", args={"cni": {"ips": ["10.1.0.3"]}})
        assert refused["code"] == 102
        assert host.ask("DEL") == {}
        assert set(host.leases()) == {"10.1.0.2", "10.1.0.3"}
        controller.reset()


def test_a_main_plugin_of_ours_leases_in_its_own_record(config: Config, tmp_path: Path, netns_factory: Make) -> None:
    host: Host
    strangers = iter(("10.1.0.2",))

    def observer(moment: str, item: KernelObject) -> None:
        if moment == "ensure" and isinstance(item, LeaseFile) and (address := next(strangers, None)):
            host.plant(address, "stranger\r\neth0")

    with Controller(config, watcher=Unwatched(), observer=observer) as controller:
        host = Host(controller, tmp_path, BridgePlugin)
        homes = [netns_factory("c") for _ in range(5)]
        assert [host.add(f"c{number}", home) for number, home in enumerate(homes[:4])] == [f"10.1.0.{n}" for n in range(3, 7)]
        assert "no IP addresses available" in host.add("c4", homes[4])
        assert host.ask("STATUS")["code"] == 50
        delete_netns(Path(homes[0].path))
        assert host.add("c4", homes[4]) == "10.1.0.3"
        assert host.ask("DEL", "c1", homes[1]) == {} == host.ask("DEL", "stranger")
        assert host.ask("GC", valid=[("c2", "eth0"), ("c4", "eth0")]) == {}
        assert set(host.leases()) == {"10.1.0.3", "10.1.0.5"}
        assert [item.container for item in Attachments(controller).attachments()] == ["c2", "c4"]
        controller.reset()
        assert host.leases() == {}


# --- what fails and dies ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["fail", "die"])
def test_nothing_is_left_whatever_fails_and_wherever_it_dies(config: Config, tmp_path: Path, action: str) -> None:
    for moment in range(20):
        is_there = _interrupted(config, tmp_path, moment, action)
        with Controller(config, watcher=Unwatched()) as controller:
            host = Host(controller, tmp_path)
            controller.recover()
            if not is_there:
                break
            assert host.leases() == {}, moment
            assert Attachments(controller).attachments() == []
    assert moment == 2, "before the file and after it"
    with Controller(config, watcher=Unwatched()) as controller:
        assert Host(controller, tmp_path).ask("DEL") == {}
        assert Host(controller, tmp_path).leases() == {}
        controller.reset()


def _interrupted(config: Config, folder: Path, moment: int, action: str) -> bool:
    """Whether an ADD that fails, or dies, at that moment got there at all."""

    def attempt(controller: Controller) -> bool:
        return Host(controller, folder).add().startswith("injected")

    return interrupted(config, moment, action, attempt)


def test_a_file_that_lost_its_text_to_a_crash_goes_with_its_record(host: Host, kernel: Kernel) -> None:
    host.add()
    (host.folder / "10.1.0.2").write_text("")
    lease = LeaseFile(folder=str(host.folder), address=ip_address("10.1.0.2"), container="c1", ifname="eth0")
    assert lease.drift(kernel) == f"{host.folder}/10.1.0.2 has another holder"
    lease.ensure(kernel)
    lease.ensure(kernel)
    assert lease.drift(kernel) is None
    (host.folder / "10.1.0.2").write_text("")
    assert host.ask("DEL") == {}
    assert host.leases() == {}
    assert lease.drift(kernel) == f"{host.folder}/10.1.0.2 is missing"


def test_what_a_person_would_type_makes_the_lease(host: Host, kernel: Kernel) -> None:
    host.folder.mkdir(parents=True)
    lease = LeaseFile(folder=str(host.folder), address=ip_address("fd00::2"), container="c1", ifname="eth0", range_set=1)
    assert decode(encode(lease), LeaseFile) == lease
    for command in lease.commands():
        subprocess.run(["sh", "-c", command], check=True)
    assert lease.drift(kernel) is None
    lease.remove(kernel)
    lease.remove(kernel)
    assert lease.drift(kernel) is not None


# --- who is gone, and who is not -------------------------------------------------------------------------------------------


def test_addresses_of_containers_that_are_gone_are_reclaimed_when_there_is_no_other(host: Host, netns_factory: Make) -> None:
    homes = [netns_factory("c") for _ in range(5)]
    assert [host.add(f"c{number}", home) for number, home in enumerate(homes)] == [f"10.1.0.{number}" for number in range(2, 7)]
    exhausted = "failed to allocate for range 0: no IP addresses available in range set: 10.1.0.1-10.1.0.6"
    other = netns_factory("c")
    assert host.ask("ADD", "c5", other) == {"cniVersion": "1.1.0", "code": 103, "msg": exhausted}
    assert host.ask("STATUS") == {"cniVersion": "1.1.0", "code": 50, "msg": exhausted}
    delete_netns(Path(homes[2].path))
    assert host.ask("STATUS") == {}
    assert host.add("c5", other) == "10.1.0.4"
    delete_netns(Path(homes[0].path))
    assert host.add("c6", netns_factory("c"), args={"cni": {"ips": ["10.1.0.2"]}}) == "10.1.0.2"
    assert host.leases()["10.1.0.2"].startswith("c6")


def test_a_lease_without_a_netns_ends_by_del_or_gc_alone(host: Host) -> None:
    assert [host.add(f"c{number}") for number in range(5)] == [f"10.1.0.{number}" for number in range(2, 7)]
    assert "no IP addresses available" in host.add("c5")
    assert host.ask("DEL", "c3") == {}
    assert host.add("c5") == "10.1.0.5"


def test_the_longest_id_that_a_process_can_be_given_is_freed_too(host: Host) -> None:
    container = "x" * ((128 << 10) - len("CNI_CONTAINERID=") - 1)  # MAX_ARG_STRLEN of the kernel
    assert host.add(container) == "10.1.0.2"
    assert host.ask("DEL", container) == {}
    assert host.leases() == {}


def test_gc_frees_what_is_not_valid_whoever_gave_it(host: Host) -> None:
    assert [host.add(name) for name in ("c1", "c2")] == ["10.1.0.2", "10.1.0.3"]
    host.plant("10.1.0.4", "c3\r\neth0")
    host.plant("10.1.0.5", "c4\r\neth0")
    host.plant("10.1.0.6", "c5")
    host.plant("notes", "c9\r\neth0")
    valid = [("c2", "eth0"), ("c3", "eth0"), ("c5", "eth0")]
    for _ in range(2):
        assert host.ask("GC", valid=valid) == {}
        assert set(host.leases()) == {"10.1.0.3", "10.1.0.4", "10.1.0.6"}
    valid = [("c2", "eth1"), ("c3", "eth1")]
    assert host.ask("GC", valid=valid) == {}
    assert host.leases() == {}
    assert (host.folder / "notes").exists()
    assert Attachments(host.controller).attachments() == []


def test_a_boot_frees_what_its_containers_held(config: Config, tmp_path: Path) -> None:
    with Controller(config, watcher=Unwatched()) as controller:
        host = Host(controller, tmp_path)
        assert host.add() == "10.1.0.2"
        with controller.store.write() as tx:
            tx.db.execute("UPDATE record SET boot='former' WHERE boot<>''")
            tx.set_meta("netns", "former:1")
    with Controller(config, watcher=Unwatched()) as controller:
        host = Host(controller, tmp_path)
        assert host.add("c2") == "10.1.0.3"
        assert set(host.leases()) == {"10.1.0.3"}
        controller.reset()


# --- what else the configuration says --------------------------------------------------------------------------------------


def test_the_name_servers_of_a_resolv_conf_are_passed_on(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(
        "; no\n# nameserver 9.9.9.9\nnameserver 8.8.8.8 x\nnameserver\n"
        "search a b\nsearch c\noptions x:1 y\ndomain d e\ndomain\n"
    )
    dns = {"nameservers": ["8.8.8.8"], "domain": "d", "search": ["a", "b", "c"], "options": ["x:1", "y"]}
    assert host.ask("ADD", ipam={"resolvConf": str(path)})["dns"] == dns
    for wrong in (tmp_path, tmp_path / "none", tmp_path / "a\0b"):
        refused = host.ask("ADD", "c2", ipam={"resolvConf": str(wrong)})
        assert (refused["code"], refused["msg"]) == (5, f"host-local: ipam.resolvConf: cannot read {str(wrong)!a}")
