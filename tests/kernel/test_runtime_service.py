"""Containers on networks: from the request to the record, the sandbox and the processes, and all the ways back."""

import json
import os
import secrets
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from glob import glob
from pathlib import Path
from typing import Any

import pytest

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.core.traces import container_folders
from netlib.errors import AlreadyExists, CommandNotRun, ConfigError, Conflict, InUse, NetlibError, NotFound, PortTaken
from netlib.kernel import owned_netns
from netlib.kernel.netns import NETNS_DIR
from netlib.model import Phase, Sandbox
from netlib.names import new_id
from netlib.requests import Join
from netlib.runtime import attach, cgroups, ending, leftovers, lookup, service
from netlib.runtime.container import Runtime
from netlib.runtime.spec import Container, ContainerSpec, ExecSpec
from netlib.verbs.container import VERBS, remove_all
from netlib.verbs.lost import reset_lost, strays
from netlib.verbs.perform import perform
from tests.kernel.runtime_world import execute

pytestmark = pytest.mark.needs_cgroups


_PREFIX = secrets.token_hex(3)


@pytest.fixture
def controller(config: Config, monkeypatch: pytest.MonkeyPatch) -> Iterator[Controller]:
    monkeypatch.setattr(service, "new_id", lambda: _PREFIX + new_id()[len(_PREFIX) :])
    with Controller(config, watcher=Unwatched()) as controller:
        controller.create_network("web")
        yield controller
        remove_all(controller)
        controller.reset()


def _run(controller: Controller, *command: str, **wanted: Any) -> tuple[int, str]:
    """Run in the foreground, as the command line does; answer with exit code and output."""
    mine, theirs = attach.pair()
    read, write = os.pipe()
    with mine, theirs:
        answer = perform(controller, "container.run", {"command": command, "fds": [theirs.fileno()], **wanted})
        theirs.close()
        code = attach.relay(mine, stdin=None, stdout=write, stderr=write, tty=False, forward=lambda _: None)
    os.close(write)
    perform(controller, "container.reap", {"name": answer["Id"]})
    with open(read) as pipe:
        return code, pipe.read()


def _everything(controller: Controller) -> dict[str, object]:
    """What a failed verb must leave as it was."""
    with controller.store.read() as tx:
        records = sorted(row[0] for row in tx.db.execute("SELECT id FROM record"))
    return {
        "records": records,
        "folders": container_folders(controller.config),
        "netns": sorted(path.name for path in NETNS_DIR.iterdir()),
        "links": subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout.count("veth"),
        "groups": _groups(),
    }


def _groups() -> list[str]:
    """Control groups of this test's containers; the machine's hierarchies are shared with whoever else runs tests."""
    places = cgroups.own_hierarchies().values()
    # Path.glob raises where another host's group goes meanwhile.
    return sorted(path for place in places for path in glob(f"{place}/{cgroups.PARENT}/{_PREFIX}*"))


# --- networks ------------------------------------------------------------------------------------------------------------


@pytest.mark.vm
def test_a_container_lives_in_its_sandbox(controller: Controller) -> None:
    code, out = _run(
        controller, "sh", "-c", "ls /sys/class/net; hostname; cat /etc/hostname; ip -4 -o addr show eth0", networks=["web"]
    )
    words = out.split()
    assert code == 0
    assert {"eth0", "lo"} <= set(words)
    assert words.count(words[2]) == 2
    assert "172.18.0.2/16" in words


def test_containers_reach_each_other(controller: Controller) -> None:
    perform(controller, "container.run", {"command": ["sleep", "60"], "name": "db", "networks": ["web"], "ip": "172.18.0.9"})
    assert _run(controller, "ping", "-c1", "-W2", "172.18.0.9", networks=["web"])[0] == 0


def test_host_network(controller: Controller) -> None:
    before = _everything(controller)["links"]
    code, out = _run(controller, "sh", "-c", "readlink /proc/self/ns/net; hostname", networks=["host"])
    assert (code, out.split()) == (0, [os.readlink("/proc/self/ns/net"), os.uname().nodename])
    assert _everything(controller)["links"] == before


def test_published_ports_on_the_host_network_are_warned_of(controller: Controller) -> None:
    answer = perform(controller, "container.run", {"command": ["true"], "networks": ["host"], "publish": ["80:80"]})
    assert "-p has no effect on network" in answer["Warnings"][0]
    assert perform(controller, "container.run", {"command": ["true"], "publish": ["80:80"]})["Warnings"] == []


def test_no_network(controller: Controller) -> None:
    code, out = _run(controller, "ls", "/sys/class/net", networks=["none"])
    assert (code, out) == (0, "lo\n")


def test_the_network_of_another_container(controller: Controller) -> None:
    perform(
        controller, "container.run", {"command": ["python3", "-m", "http.server", "80"], "name": "first", "networks": ["web"]}
    )
    first = lookup.find_container(controller, "first")
    place = os.readlink(f"/proc/{lookup.runtime(controller).state(first).pid}/ns/net")
    script = "readlink /proc/self/ns/net; hostname; cat /etc/hostname; ip -o -4 addr show eth0"
    code, out = _run(controller, "sh", "-c", script, networks=["container:first"], name="second")
    assert code == 0
    assert out.split()[:3] == [place, first.hostname, first.hostname]
    assert "172.18.0.2/16" in out
    assert [box.name for box in controller.sandboxes()] == ["first"]
    controller.sandbox("first")  # the end of the second took nothing away from it
    ending.stop_container(controller, "first", seconds=0)
    with pytest.raises(Conflict, match="first.*not running"):
        service.start_container(controller, "second")


def test_several_networks(controller: Controller) -> None:
    controller.create_network("back")
    code, out = _run(controller, "ls", "/sys/class/net", networks=["web", "name=back,ip=172.19.0.7"])
    assert (code, out.split()) == (0, ["eth0", "eth1", "lo"])


def test_low_ports_and_ping_need_no_root(controller: Controller) -> None:
    script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range"
    assert _run(controller, "sh", "-c", script, networks=["web"])[1].split() == ["0", "0", "2147483647"]
    before = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()
    _run(controller, "true", networks=["host"])
    assert Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text() == before


def test_connect_while_it_runs_is_seen_inside(controller: Controller) -> None:
    perform(controller, "container.run", {"command": ["sleep", "60"], "name": "box", "networks": ["web"]})
    controller.create_network("back")
    controller.connect("back", "box")
    box = lookup.find_container(controller, "box")
    read, write = os.pipe()
    wanted = ExecSpec(command=("sh", "-c", "ls /sys/class/net; cat /etc/hosts"))
    assert execute(lookup.runtime(controller), box, wanted, (0, write, 2)) == 0
    os.close(write)
    with open(read) as pipe:
        out = pipe.read()
    assert "eth1" in out
    assert "172.19.0.2" in out  # the file was rewritten in place: the mount shows it


# --- life ----------------------------------------------------------------------------------------------------------------


def test_stop_start_and_remove(controller: Controller) -> None:
    script = "test -e /srv/mark && echo again; touch /srv/mark; exec sleep 60"
    perform(
        controller,
        "container.run",
        {"command": ["sh", "-c", script], "name": "box", "networks": ["web"], "publish": ["8080:80"]},
    )
    assert perform(controller, "container.stop", {"name": "box", "seconds": 0.1}) == {"ExitCode": 137}
    assert controller.sandboxes() == []
    (row,) = perform(controller, "container.ls", {"all_states": True})
    assert (row["State"], row["Ports"]) == ("exited", "")
    assert perform(controller, "container.ls", {}) == []
    perform(controller, "container.start", {"name": "box"})
    box = lookup.find_container(controller, "box")
    assert next(entry.log for entry in lookup.runtime(controller).logs(box, follows=True)) == "again\n"
    (row,) = perform(controller, "container.ls", {})
    assert row["Ports"] == "0.0.0.0:8080->80/tcp"
    with pytest.raises(InUse, match="running"):
        perform(controller, "container.rm", {"names": ["box"]})
    perform(controller, "container.rm", {"names": ["box"], "force": True})
    with pytest.raises(NotFound):
        lookup.find_container(controller, "box")
    assert container_folders(controller.config) == set()


def test_inspect(controller: Controller) -> None:
    wanted = {"command": ["sleep", "60"], "name": "box", "networks": ["web"], "environment": {"A": "1"}, "labels": ["x=y"]}
    perform(controller, "container.run", {**wanted, "volumes": ["/srv:/data:ro"], "hostname": "inner"})
    (shown,) = perform(controller, "container.inspect", {"names": ["box"]})
    assert shown["Name"] == "/box"
    assert shown["State"]["Running"] is True
    assert Path(f"/proc/{shown['State']['Pid']}/comm").read_text() == "sleep\n"
    assert shown["Config"]["Hostname"] == "inner"
    assert "A=1" in shown["Config"]["Env"]
    assert shown["Mounts"][0] == {
        "Type": "bind",
        "Source": "/srv",
        "Destination": "/data",
        "Mode": "ro",
        "RW": False,
        "Propagation": "rprivate",
    }
    assert shown["NetworkSettings"]["Networks"]["web"]["IPAddress"] == "172.18.0.2"
    assert shown["NetworkSettings"]["SandboxKey"] == "/run/netns/box"
    assert Path(shown["ResolvConfPath"]).exists()
    json.dumps(shown)


def test_ids_names_and_their_beginnings_find_it(controller: Controller) -> None:
    answer = perform(controller, "container.run", {"command": ["sleep", "60"], "networks": ["none"]})
    assert "_" in answer["Name"]
    for reference in (answer["Name"], answer["Id"], answer["Id"][:12], answer["Id"][:4]):
        assert lookup.find_container(controller, reference).container_id == answer["Id"]


def test_removed_at_its_end_by_its_own_minder(controller: Controller) -> None:
    spec = ContainerSpec(command=("sleep", "0.2"), auto_remove=True, networks=(Join(network="web"),))
    container = service.run_container(controller, spec)
    minder = json.loads((lookup.runtime(controller).folder(container) / "pid.json").read_text())["minder"]
    pidfd = os.pidfd_open(minder)
    assert select.select([pidfd], [], [], 20)[0]
    os.close(pidfd)
    assert lookup.containers(controller) == []
    assert controller.sandboxes() == []
    assert not lookup.runtime(controller).folder(container).exists()
    assert not lookup.runtime(controller).run_folder(container).exists()


def test_an_ended_container_loses_its_sandbox_by_its_own_minder(controller: Controller) -> None:
    container = service.run_container(
        controller, ContainerSpec(command=("sh", "-c", "exit 3"), networks=(Join(network="web"),))
    )
    minder = json.loads((lookup.runtime(controller).folder(container) / "pid.json").read_text())["minder"]
    pidfd = os.pidfd_open(minder)
    assert select.select([pidfd], [], [], 20)[0]
    os.close(pidfd)
    assert controller.sandboxes() == []
    found = lookup.find_container(controller, container.name)
    assert found.netns is None
    assert lookup.runtime(controller).state(found).code == 3


# --- refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "error", "sentence"),
    [
        ({"command": []}, ConfigError, "no command"),
        ({"name": "taken"}, AlreadyExists, "taken.*in use"),
        ({"name": "a b"}, ConfigError, "name"),
        ({"hostname": "-x"}, ConfigError, "-x"),
        ({"networks": ["nosuch"]}, NotFound, "nosuch"),
        ({"networks": ["container:nosuch"]}, NotFound, "nosuch"),
        ({"networks": ["host", "web"]}, ConfigError, "combined"),
        ({"publish": ["0:80"]}, ConfigError, "0:80"),
        ({"publish": ["8081:80"]}, PortTaken, "8081"),
        ({"ip": "10.1.2.3"}, NetlibError, "10.1.2.3"),
        ({"ip": "172.18.0.2"}, NetlibError, "172.18.0.2"),
        ({"volumes": ["a:b"]}, ConfigError, "a:b"),
        ({"rootfs": "/nosuch"}, ConfigError, "/nosuch"),
        ({"user": "nosuch"}, NetlibError, "nosuch"),
        ({"command": ["nosuch"]}, CommandNotRun, "nosuch"),
        ({"command": ["/etc/passwd"]}, CommandNotRun, "ermission"),
        ({"volumes": ["/etc/passwd:/etc"]}, NetlibError, "/etc"),
    ],
)
def test_a_refused_run_changes_nothing(
    controller: Controller, wanted: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    perform(
        controller, "container.run", {"command": ["sleep", "60"], "name": "taken", "networks": ["web"], "publish": ["8081:80"]}
    )
    before = _everything(controller)
    with pytest.raises(error, match=sentence):
        perform(controller, "container.run", {"command": ["true"], "networks": ["web"], **wanted})
    assert _everything(controller) == before


def test_a_name_is_free_again_after_a_failure(controller: Controller) -> None:
    with pytest.raises(CommandNotRun):
        perform(controller, "container.run", {"command": ["nosuch"], "name": "box", "networks": ["web"]})
    assert _run(controller, "true", name="box", networks=["web"])[0] == 0


# --- crashes -------------------------------------------------------------------------------------------------------------


def _killed_at(
    controller: Controller, target: object, name: str, monkeypatch: pytest.MonkeyPatch, when: str, verb: Callable[[], object]
) -> None:
    """Do *verb* in a child that dies by SIGKILL before or after it calls *target*'s *name*."""
    controller.store.close()  # a connection outlives no fork
    child = os.fork()
    if child == 0:
        original = getattr(target, name)

        def die(*args: Any, **wanted: Any) -> None:
            if when == "after":
                original(*args, **wanted)
            os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(target, name, die)
        try:
            verb()
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


_STEPS = {
    "record": (service, "_insert_record"),
    "netns": (owned_netns, "pin_netns"),
    "sandbox": (service, "create_sandbox"),
    "place": (service, "write_record"),
    "endpoint": (service, "connect"),
    "processes": (Runtime, "launch"),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", _STEPS)
def test_killed_while_it_was_started(controller: Controller, monkeypatch: pytest.MonkeyPatch, when: str, step: str) -> None:
    _run(controller, "true", networks=["web"], name="warm", auto_remove=True)
    before = _everything(controller)
    target, name = _STEPS[step]
    spec = ContainerSpec(command=("sleep", "60"), name="box", networks=(Join(network="web"),))
    _killed_at(controller, target, name, monkeypatch, when, lambda: service.run_container(controller, spec))
    leftovers.finish(controller)
    controller.recover()
    if (step, when) == ("processes", "after"):  # its command has begun, and may have written something: it is kept
        assert [container.name for container in lookup.containers(controller)] == ["box"]
        assert lookup.runtime(controller).state(lookup.find_container(controller, "box")).running
        ending.remove_container(controller, "box", force=True)
    assert _everything(controller) == before


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["remove_sandboxes", "delete_container"])
def test_killed_while_it_was_removed(controller: Controller, monkeypatch: pytest.MonkeyPatch, when: str, step: str) -> None:
    _run(controller, "true", networks=["web"], name="warm", auto_remove=True)
    before = _everything(controller)
    service.run_container(controller, ContainerSpec(command=("sleep", "60"), name="box", networks=(Join(network="web"),)))
    _killed_at(controller, ending, step, monkeypatch, when, lambda: ending.remove_container(controller, "box", force=True))
    leftovers.finish(controller)
    assert _everything(controller) == before


def test_a_dead_minder_is_noticed_and_cleared_away_after(controller: Controller) -> None:
    container = service.run_container(
        controller, ContainerSpec(command=("sleep", "60"), name="box", networks=(Join(network="web"),))
    )
    minder = json.loads((lookup.runtime(controller).folder(container) / "pid.json").read_text())["minder"]
    pidfd = os.pidfd_open(minder)
    os.kill(minder, signal.SIGKILL)
    assert select.select([pidfd], [], [], 5)[0]
    os.close(pidfd)
    assert [box.name for box in controller.sandboxes()] == ["box"]
    leftovers.finish(controller)
    with controller.store.read() as tx:
        assert tx.find(Sandbox, "box") is None
        row = tx.find(Container, "box")
    assert row is not None
    assert lookup.runtime(controller).state(row.value).code == 137


def test_files_without_a_record_stay_until_they_are_given_up(controller: Controller) -> None:
    """The store has lost the record, and they may be somebody's work."""
    stray = controller.config.container_dir / ("ab" * 32)
    (stray / "upper" / "deep").mkdir(parents=True)
    leftovers.finish(controller)
    perform(controller, "system.reset", {})
    assert (stray / "upper" / "deep").is_dir()
    assert any("the files of containers (1)" in line for line in strays(controller.config))
    assert "removed: containers (1)" in list(reset_lost(controller.config))
    assert not stray.exists()


def test_two_start_it_at_once(controller: Controller) -> None:
    container = service.create_container(
        controller, ContainerSpec(command=("sleep", "60"), name="box", networks=(Join(network="web"),))
    )
    controller.store.close()  # a connection outlives no fork
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                service.start_container(controller, container.id)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    assert [box.name for box in controller.sandboxes()] == ["box"]
    assert len(controller.endpoints(sandbox="box")) == 1


def test_every_verb_is_named_as_its_room(controller: Controller) -> None:
    assert all(verb.startswith("container.") for verb in VERBS)
    with pytest.raises(ConfigError, match="unknown verb"):
        perform(controller, "container.nosuch", {})


@pytest.mark.parametrize("force", [False, True])
def test_started_before_it_could_be_removed(controller: Controller, monkeypatch: pytest.MonkeyPatch, force: bool) -> None:
    """An ended one may run again once its lock is free: it keeps its network, or is killed."""
    container = service.create_container(
        controller, ContainerSpec(command=("sleep", "60"), name="box", networks=(Join(network="web"),))
    )
    hold = controller.locks.hold

    def hold_late(name: str, purpose: str, **wanted: Any) -> Any:
        monkeypatch.setattr(controller.locks, "hold", hold)
        service.start_container(controller, container.id)
        return hold(name, purpose, **wanted)

    monkeypatch.setattr(controller.locks, "hold", hold_late)
    if force:
        ending.remove_container(controller, "box", force=True)
        assert lookup.containers(controller) == []
        return
    with pytest.raises(InUse, match="is running"):
        ending.remove_container(controller, "box")
    assert [box.name for box in lookup.containers(controller)] == ["box"]
    assert len(controller.endpoints(sandbox="box")) == 1


def test_removed_before_it_could_be_started(controller: Controller, monkeypatch: pytest.MonkeyPatch) -> None:
    service.create_container(controller, ContainerSpec(command=("sleep", "60"), name="box"))
    hold = controller.locks.hold

    def hold_late(name: str, purpose: str, **wanted: Any) -> Any:
        monkeypatch.setattr(controller.locks, "hold", hold)
        ending.remove_container(controller, "box")
        return hold(name, purpose, **wanted)

    monkeypatch.setattr(controller.locks, "hold", hold_late)
    with pytest.raises(NotFound, match="'box' was removed meanwhile"):
        service.start_container(controller, "box")


def test_a_removal_that_failed_is_tried_again(controller: Controller, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(own: Runtime, container: Container) -> None:
        raise Conflict("container 'box' is being started")

    service.create_container(controller, ContainerSpec(command=("true",), name="box"))
    with monkeypatch.context() as patch:
        patch.setattr(Runtime, "remove", refuse)
        for _ in range(2):
            with pytest.raises(Conflict, match="is being started"):
                perform(controller, "container.rm", {"names": ["box"], "force": True})
    perform(controller, "container.rm", {"names": ["box"]})
    with pytest.raises(NotFound):
        perform(controller, "container.rm", {"names": ["box"]})


def test_one_that_cannot_be_cleared_away_stands_in_nobodys_way(controller: Controller, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = service.create_container(controller, ContainerSpec(command=("true",), name="stuck"))
    with controller.store.write() as tx:
        tx.set_phase(stuck.id, Phase.REMOVING)
    remove = Runtime.remove

    def remove_others(own: Runtime, container: Container) -> None:
        if container.id == stuck.id:
            raise Conflict("container 'stuck' is being started")
        remove(own, container)

    with monkeypatch.context() as patch:
        patch.setattr(Runtime, "remove", remove_others)
        assert _run(controller, "true", networks=["web"], auto_remove=True)[0] == 0
        assert [str(error) for error in leftovers.finish(controller)] == ["container 'stuck' is being started"]
    assert leftovers.finish(controller) == []
