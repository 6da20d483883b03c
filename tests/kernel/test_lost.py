"""The way back when the store is lost: what was made goes by its marks, what is not surely ours stays, and both are told."""

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from netlib.cli.main import main
from netlib.config import Config
from netlib.core.attachments import Attachments
from netlib.core.controller import Controller, Unwatched
from netlib.core.pending_attachment import Wanted
from netlib.errors import ConfigError, Conflict, StoreDamaged, StoreLost, TeardownError, WrongHost
from netlib.firewall.objects import ContainerSubnet, FirewallBase
from netlib.kernel.netns import NETNS_DIR
from netlib.plan import Plan
from netlib.runtime.lookup import find_container, runtime
from netlib.store.tags import known_tags
from netlib.testing.snapshot import differences, snapshot
from netlib.verbs.call import call
from netlib.verbs.lost import reset_lost, strays
from netlib.verbs.perform import perform
from netlib.verbs.restore import restore
from tests.cni.calling import Caller
from tests.folders import take_away
from tests.processes import ended

pytestmark = pytest.mark.needs_cgroups

CNI = {"cniVersion": "1.1.0", "name": "pods", "type": "bridge", "isGateway": True, "ipMasq": True}


@pytest.fixture(autouse=True)
def foreign() -> Iterator[None]:
    """Things of somebody else, some of which look like ours."""
    for command in (
        "ip link add mine type bridge",
        "ip link add aliased alias netlib-like type bridge",
        "ip netns add foreign",
        "nft add table inet other",
    ):
        _run(command)
    kept = Path("/etc/netns/foreign")
    kept.mkdir(parents=True)
    (kept / "resolv.conf").write_text("nameserver 10.0.0.1\n")
    before = _everything()
    yield
    assert differences(before[0], _everything()[0]) == []
    assert _everything()[1:] == before[1:]
    shutil.rmtree(kept)
    for command in ("nft delete table inet other", "ip netns del foreign", "ip link del aliased", "ip link del mine"):
        _run(command)


@pytest.fixture
def used(config: Config) -> Config:
    """A host with a container on a network, and one on none."""
    _use(config, "10.1.0.0/24")
    return config


def _use(config: Config, subnet: str) -> None:
    with _host(config) as controller:
        controller.create_network("web", subnets=[subnet, "fd00:1::/64"])
        perform(controller, "container.run", _running("box", networks=["web"], publish=["8080:80"]))
        perform(controller, "container.run", _running("apart", networks=["none"]))


def _attach(config: Config, number: int) -> None:
    ipam = {"type": "static", "addresses": [{"address": f"10.22.0.{number}/16"}]}
    with _host(config) as controller:
        caller = Caller(lambda: controller)
        caller.container(f"c{number}")
        caller.ok("ADD", {**CNI, "ipam": ipam}, f"c{number}")


def _running(name: str, **wanted: list[str]) -> dict[str, object]:
    return {"command": ["sleep", "60"], "name": name, **wanted}


def _host(config: Config) -> Controller:
    return Controller(config, watcher=Unwatched())


def _run(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True)


def _everything() -> tuple[dict[str, dict[str, str]], list[str], list[str]]:
    """Of the host: what the kernel has but for forwarding, which stays, and the files of ``ip netns``."""
    kernel = snapshot()
    for setting in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
        del kernel["sysctls"][setting]
    kernel["sysctls"] = {name: value for name, value in kernel["sysctls"].items() if not name.endswith("/forwarding")}
    return kernel, sorted(os.listdir(NETNS_DIR)), sorted(str(path) for path in Path("/etc/netns").rglob("*"))


def _minders(config: Config) -> list[int]:
    with _host(config) as controller:
        boxes = [find_container(controller, name) for name in ("box", "apart")]
        return [runtime(controller).state(box).pid for box in boxes]


def _spoil(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * 32768)


def test_a_damaged_store_is_set_aside_and_all_of_it_goes(used: Config) -> None:
    containers = _minders(used)
    _spoil(used.state_dir / "netlib.db")
    with pytest.raises(StoreDamaged, match="`netlib system reset --lost`"):
        _host(used)
    lines = list(reset_lost(used))
    assert all(ended(pid) for pid in containers)
    kept = [path for path in used.state_dir.iterdir() if path.name.startswith("netlib.db.damaged-")]
    assert lines[0] in [f"set aside: {path}" for path in kept]
    assert lines[1:2] == ["removed: containers (2)"]
    assert {"removed: network namespace box", "removed: network namespace apart"} <= set(lines)
    assert any("sysctl -w net/ipv4/ip_forward=0" in line for line in lines)
    assert [*used.container_dir.iterdir(), *used.sandbox_dir.iterdir(), *(used.run_dir / "containers").iterdir()] == []
    assert list(reset_lost(used))[:-1] == []  # again: nothing but what is told of forwarding
    with _host(used) as controller:
        controller.create_network("web")
        controller.reset()


def test_after_the_store_was_deleted_its_successor_is_refused_and_both_are_cleared(used: Config) -> None:
    for path in used.state_dir.glob("netlib.db*"):
        path.unlink()
    with pytest.raises(StoreLost, match=r"\d running container.*2 network namespaces.*`netlib system reset --lost`"):
        _host(used)
    list(restore(used, None))  # accepted as it is, all the same
    with _host(used) as controller:
        with pytest.raises(Conflict, match=r"another netlib store .* `netlib system reset --lost --store [0-9a-f]{6}`"):
            controller.create_network("web")
        controller.create_sandbox("new")
    assert len(known_tags(used.state_dir)) == 2
    lines = list(reset_lost(used))
    assert not any(line.startswith(("set aside", "left: links")) for line in lines)
    with _host(used) as controller:
        assert controller.sandboxes() == []
        assert known_tags(used.state_dir).keys() == {controller.host.tag}


def test_what_a_deleted_stores_cni_containers_hold_of_its_successors_goes_too(config: Config) -> None:
    _attach(config, 2)
    for path in config.state_dir.glob("netlib.db*"):
        path.unlink()
    list(restore(config, None))
    _attach(config, 3)
    with _host(config) as controller, pytest.raises(TeardownError, match="outward_10.22.0.0/16"):
        controller.reset()
    assert any(line.startswith("removed: firewall entries") for line in reset_lost(config))
    with _host(config) as controller:
        controller.reset()
    _run("ip -n c2 link del eth0")  # the lost one's container goes on; without its netns the kernel would take its time
    for name in ("c2", "c3"):
        _run(f"ip netns del {name}")


def test_telling_what_another_store_has_changes_nothing(config: Config, tmp_path: Path) -> None:
    """Its network without containers has no entry in the table that a tag could stand on."""
    subnet = ip_network("10.22.0.0/16")
    with Controller(config, watcher=Unwatched()) as controller:
        attachments = Attachments(controller)
        attachments.share("pods", Wanted(Plan(), Plan(FirewallBase(), ContainerSubnet(subnet=subnet))))
        before = snapshot()
        assert list(strays(Config(tmp_path / "other", tmp_path / "run"))) == []
        assert differences(before, snapshot()) == []
        controller.reset()


def test_after_the_state_folder_was_deleted_the_store_is_named_by_hand(used: Config) -> None:
    containers = _minders(used)
    (tag,) = known_tags(used.state_dir)
    take_away(used.state_dir)
    with pytest.raises(StoreLost, match=r"\d running containers?, 2 links"):
        call(used, "system.reset", {})
    take_away(used.memory_dir)
    with pytest.raises(StoreLost, match=r"\d running containers?, which"):  # whose the links are is known no more
        call(used, "system.reset", {})
    assert len([line for line in strays(used) if line.startswith("left: links") and tag in line]) == 1
    lines = list(reset_lost(used))
    assert all(ended(pid) for pid in containers)
    (left,) = [line for line in lines if line.startswith("left: links")]
    assert left.endswith(f"netlib system reset --lost --store {tag}")
    assert (NETNS_DIR / "box").exists()
    lines = list(reset_lost(used, [tag]))
    assert "removed: network namespace box" in lines
    for name in ("apart", "box"):  # the text to compare it with was in the folder
        assert f"left: /etc/netns/{name}, of no network namespace there is; delete it if it is not yours" in lines
        shutil.rmtree(f"/etc/netns/{name}")


def test_what_another_store_has_is_left_and_told(config: Config, tmp_path: Path) -> None:
    other = Config(state_dir=tmp_path / "other", run_dir=tmp_path / "other-run")
    with _host(other) as controller:
        controller.create_network("theirs")
        box = controller.create_sandbox("theirs")
        controller.connect("theirs", "theirs")
        before = _everything()
        with _host(config) as mine:
            mine.create_sandbox("box")
        _spoil(config.state_dir / "netlib.db")
        lines = list(reset_lost(config))
        assert differences(before[0], _everything()[0]) == []
        assert _everything()[1:] == before[1:]
        assert any(line.startswith("left: links") and line.endswith(controller.host.tag) for line in lines)
        assert controller.check(box.name) == []
        controller.reset()


def test_rules_of_the_administrator_keep_the_table(used: Config) -> None:
    _run("nft add rule inet netlib user counter")
    _spoil(used.state_dir / "netlib.db")
    try:
        assert "left: your rules in chain user of the nftables table inet netlib" in list(reset_lost(used))
    finally:
        _run("nft delete table inet netlib")


def test_from_another_network_namespace_nothing_is_touched(used: Config) -> None:
    _spoil(used.state_dir / "netlib.db")
    code = "import sys; from pathlib import Path; from netlib.config import Config; from netlib.verbs.lost import reset_lost;"
    code += "list(reset_lost(Config(Path(sys.argv[1]), Path(sys.argv[2]))))"
    command = ["unshare", "--net", sys.executable, "-c", code, str(used.state_dir), str(used.run_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert WrongHost.__name__ in done.stderr
    assert (used.state_dir / "netlib.db").exists()
    assert "removed: containers (2)" in list(reset_lost(used))


def test_the_command_asks_and_prints(used: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folders = ["--state-dir", str(used.state_dir), "--run-dir", str(used.run_dir)]
    _spoil(used.state_dir / "netlib.db")
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert main([*folders, "system", "reset", "--lost"]) == 1
    assert "not confirmed" in capsys.readouterr().err
    assert main([*folders, "system", "reset", "-f", "--store", "abcdef"]) == 1
    assert "--lost" in capsys.readouterr().err
    assert main([*folders, "system", "reset", "-f", "--lost"]) == 0
    assert "removed: containers (2)\n" in capsys.readouterr().out


def test_a_store_that_is_no_tag_is_refused_before_anything_is_touched(used: Config) -> None:
    with pytest.raises(ConfigError, match="six hexadecimal digits"):
        list(reset_lost(used, ["../../x"]))
    assert (NETNS_DIR / "box").exists()
    list(reset_lost(used))
