"""netlibd, or a process that holds a lock, is stopped: what needs nobody is done, the rest is told within 5 s, and undone."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.errors import DeadlineExceeded, NetlibError, Stuck
from netlib.plan import KernelObject
from netlib.store.locks import record_lock
from netlib.testing.snapshot import snapshot
from netlib.verbs.call import call
from netlib.wire import notices
from netlib.wire.client import DaemonWatcher, leave, start_daemon
from tests.kernel.dns_client import wait_until
from tests.processes import ended, pid_of
from tests.stopping import HOLDING, LIMIT, remedy, stopped_holding, stopped_netlibd, stopping_itself

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _each_notice_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_shown", set())


@pytest.fixture
def daemon(config: Config) -> Iterator[Config]:
    """A host with a netlibd, two networks and two containers, one of them on a network with names."""
    start_daemon(config)
    call(config, "network.create", {"name": "web"})
    call(config, "network.create", {"name": "spare"})
    call(config, "container.run", {"command": ["sleep", "600"], "name": "box", "networks": ["web"]})
    call(config, "container.run", {"command": ["sleep", "600"], "name": "alone", "networks": ["bridge"]})
    yield config
    call(config, "system.reset", {})


def netlib(config: Config, *words: str) -> subprocess.CompletedProcess[str]:
    """One command of a person, which must end in time."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    folders = ["--state-dir", str(config.state_dir), "--run-dir", str(config.run_dir)]
    command = [sys.executable, "-P", "-m", "netlib", *folders, *words]
    with in_time():
        return subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)


@contextmanager
def in_time(seconds: float = LIMIT) -> Iterator[None]:
    before = time.monotonic()
    yield
    assert time.monotonic() - before < seconds


def state_of(config: Config) -> Any:
    """What a verb that is refused leaves as it was: records, and the kernel."""
    with Controller(config, watcher=Unwatched()) as controller, controller.store.read() as tx:
        return sorted(tx.ready_ids()), tx.in_flight(), snapshot()


# --- netlibd is stopped ------------------------------------------------------------------------------------------------


@pytest.mark.needs_cgroups
@pytest.mark.parametrize(
    "words",
    [
        "ps -a",
        "network ls",
        "network inspect web",
        "inspect box",
        "port box",
        "explain web",
        "check box",
        "log -n 3",
        "network create more",
        "network rm spare",
        "network prune -f",
        "network connect bridge box",
        "network disconnect bridge alone",
        "exec box true",
        "run --rm --network none true",
        "run -d --network bridge --name third sleep 600",
        "stop -t 0 box",
        "rm -f box",
        "kill alone",
        "logs box",
        "cni ls",
    ],
)
def test_what_needs_no_netlibd_is_done_with_one_warning(daemon: Config, words: str) -> None:
    with stopped_netlibd(daemon) as pid:
        done = netlib(daemon, *words.split())
        assert done.returncode == 0, done.stderr
        warning = f"netlib: warning: netlibd (pid {pid}) is stopped, so names and held ports stay as they were{remedy(pid)}\n"
        assert done.stderr == warning


@pytest.mark.needs_cgroups
@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("network connect web alone", 1),
        ("run -d --network web sleep 600", 125),
        ("run -d -p 8081:80 sleep 600", 125),
        ("run --rm --network web true", 125),
    ],
)
def test_what_netlibd_is_needed_for_is_refused_and_undone(daemon: Config, words: str, code: int) -> None:
    before = state_of(daemon)
    with stopped_netlibd(daemon) as pid:
        done = netlib(daemon, *words.split())
        assert (done.returncode, done.stdout) == (code, "")
        told = done.stderr.splitlines()
        assert len(told) == 2
        assert told[0].startswith("netlib: warning: ")
        assert told[1].endswith(f"names and ports are not served: netlibd (pid {pid}) is stopped{remedy(pid)}")
        assert state_of(daemon) == before


@pytest.mark.needs_cgroups
def test_what_was_done_meanwhile_is_served_when_it_goes_on(daemon: Config) -> None:
    with stopped_netlibd(daemon):
        assert netlib(daemon, "rm", "-f", "box").returncode == 0
    with Controller(daemon) as controller:
        controller.create_sandbox("after")
        controller.connect("web", "after")
        controller.remove_sandbox("after")
    assert "box" not in netlib(daemon, "ps", "-a").stdout


def test_the_controller_tells_python_and_refuses_what_needs_netlibd(config: Config) -> None:
    with Controller(config) as controller:
        controller.create_network("web")
        controller.create_sandbox("box")
        controller.create_sandbox("other")
        controller.connect("web", "box")
        before = state_of(config)
        with stopped_netlibd(config) as pid:
            with in_time(), pytest.raises(Stuck, match=re.escape(f"netlibd (pid {pid}) is stopped{remedy(pid)}")):
                controller.connect("web", "other")  # by a connection that was greeted before
            with in_time(), pytest.raises(Stuck, match="names and ports are not served: netlibd"):
                controller.connect("web", "other")
            assert state_of(config) == before
        with stopped_netlibd(config), Controller(config) as second:
            with in_time(), pytest.warns(RuntimeWarning, match="is stopped, so names and held ports stay") as told:
                _leave_both(second)
            assert len(told) == 1
        controller.connect("web", "box")  # it goes on
        controller.reset()


def _leave_both(controller: Controller) -> None:
    controller.disconnect("web", "box")
    controller.remove_sandbox("other")


def test_what_is_asked_of_netlibd_itself_is_refused(config: Config) -> None:
    start_daemon(config)
    with stopped_netlibd(config) as pid:
        with in_time(2.0), pytest.raises(Stuck, match=re.escape(f"netlibd (pid {pid}) is stopped{remedy(pid)}")):
            call(config, "daemon.ping", {})
        with in_time(2.0), pytest.raises(Stuck, match="is stopped"):
            leave(config)
        with in_time(), pytest.raises(Stuck, match=re.escape(f"netlibd cannot start: netlibd (pid {pid}) is stopped")):
            start_daemon(config)
        assert f"Netlibd: netlibd (pid {pid}) is stopped{remedy(pid)}" in netlib(config, "info").stdout
        assert netlib(config, "version").stderr.startswith(f"netlib: warning: netlibd (pid {pid}) is stopped")
    assert f"Netlibd: pid {pid}\n" in netlib(config, "info").stdout


def test_a_netlibd_that_is_stopped_while_it_starts_is_told(config: Config) -> None:
    config.run_dir.mkdir()
    start = "import fcntl; file = open(config.starting_file, 'w'); fcntl.flock(file, fcntl.LOCK_EX)\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(HOLDING, "a start", start)
        says = "netlibd did not get ready: netlibd .* is stopped; continue it"
        with stopped_holding(config, "a start") as pid:
            with in_time(), pytest.raises(Stuck, match=says):
                start_daemon(config)
            assert netlib(config, "network", "create", "web").returncode == 0
            done = netlib(config, "run", "--rm", "--network", "web", "true")
            says = f"names and ports are not served: netlibd did not get ready: netlibd (pid {pid}) is stopped{remedy(pid)}\n"
            assert (done.returncode, done.stderr.endswith(says)) == (125, True), done.stderr
    with Controller(config, watcher=Unwatched()) as controller:
        controller.reset()


@pytest.mark.parametrize("needed", [True, False])
def test_a_reset_is_refused_before_anything_is_removed(config: Config, needed: bool) -> None:
    with Controller(config) as controller:
        controller.create_network("web")
        controller.create_sandbox("box")
        if needed:
            controller.connect("web", "box")
    start_daemon(config)
    with stopped_netlibd(config) as pid:
        for words in (["-f"], ["-f", "--lost"]):
            done = netlib(config, "system", "reset", *words)
            assert (done.returncode, done.stderr) == (1, f"netlib: netlibd (pid {pid}) is stopped{remedy(pid)}\n")
        with Controller(config, watcher=Unwatched()) as controller:
            assert [box.name for box in controller.sandboxes()] == ["box"]
    assert netlib(config, "system", "reset", "-f").returncode == 0


def test_an_operation_that_was_sent_is_told_and_not_done_twice(config: Config) -> None:
    """It was at work by then, so it must not be done a second time: a control socket whose handler stops its own process."""
    with stopping_itself(config) as pid:
        says = "is stopped, in the middle of 'network.create', which it finishes when it continues"
        with in_time(), pytest.raises(Stuck, match=says) as refusal:
            call(config, "network.create", {"name": "web"})
        assert str(refusal.value).endswith(remedy(pid))
        assert not (config.state_dir / "netlib.db").exists(), "it was not done here"


def test_a_busy_netlibd_greets_all_the_same(config: Config) -> None:
    """Every worker waits for a lock; whoever comes now is taken, and waits as well."""
    start_daemon(config)
    with Controller(config, watcher=Unwatched()) as controller:
        network = controller.create_network("web")
        with controller.locks.hold(record_lock(network.id), "testing"):
            callers = [threading.Thread(target=_try_to_remove, args=(config,)) for _ in range(40)]
            for caller in callers:
                caller.start()
            with in_time(1.0):
                assert call(config, "daemon.ping", {})["pid"] == pid_of(config)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                for _ in range(20):
                    call(config, "daemon.ping", {})
        for caller in callers:
            caller.join()
        controller.reset()


def _try_to_remove(config: Config) -> None:
    try:
        call(config, "network.rm", {"name": "web"})
    except NetlibError:  # another one was first
        return


def test_a_netlibd_that_ends_is_replaced_by_the_next_command(config: Config) -> None:
    start_daemon(config)
    with stopped_netlibd(config) as pid:
        os.kill(pid, signal.SIGKILL)
        assert ended(pid)
        start_daemon(config)
        assert pid_of(config) != pid


# --- the holder of a lock is stopped ------------------------------------------------------------------------------------


@pytest.fixture
def quiet(config: Config) -> Iterator[Config]:
    """A host without a netlibd, with a network and a sandbox in it."""
    with Controller(config, watcher=Unwatched()) as controller:
        controller.create_network("web")
        controller.create_sandbox("box")
        controller.create_sandbox("other")
        controller.connect("web", "box")
    yield config
    with Controller(config, watcher=Unwatched()) as controller:
        controller.reset()


@pytest.mark.parametrize("verb", ["disconnect", "connect", "remove"])
def test_a_record_that_a_stopped_process_works_on(quiet: Config, verb: str) -> None:
    before = state_of(quiet)
    with Controller(quiet, watcher=Unwatched()) as controller:
        name = "other" if verb == "connect" else "box"
        box = controller.sandbox(name)
        with stopped_holding(quiet, "a record's lock", record_lock(box.id)) as pid:
            says = re.escape(f": netlibd (pid {pid}) is stopped and holds a lock that this needs{remedy(pid)}")
            with in_time(), pytest.raises(Stuck, match=says):
                controller.remove_sandbox(name) if verb == "remove" else getattr(controller, verb)("web", name)
    assert state_of(quiet) == before


@pytest.mark.parametrize("words", ["network rm web2", "network create third"])
def test_a_shared_object_that_a_stopped_process_changes(quiet: Config, words: str) -> None:
    with Controller(quiet, watcher=Unwatched()) as controller:
        controller.create_network("web2")
        key = next(item.key for item in controller.plan_of("web2") if _is_shared(item))
    before = state_of(quiet)
    with stopped_holding(quiet, "a shared lock", f"key:{key}") as pid:
        done = netlib(quiet, *words.split())
        assert done.returncode == 1
        assert done.stderr.endswith(f"netlibd (pid {pid}) is stopped and holds a lock that this needs{remedy(pid)}\n")
        assert done.stderr.count("\n") == 1
    if "create" in words:
        assert state_of(quiet) == before
    else:  # what was begun is finished
        assert netlib(quiet, *words.split()).returncode in (0, 1)
        assert "web2" not in netlib(quiet, "network", "ls").stdout


def _is_shared(item: KernelObject) -> bool:
    return item.shared


@pytest.mark.parametrize("words", ["network create more", "network rm web", "network disconnect web box", "system reset -f"])
def test_a_store_that_a_stopped_process_keeps_locked(quiet: Config, words: str) -> None:
    before = state_of(quiet)
    with stopped_holding(quiet, "the store") as pid:
        done = netlib(quiet, *words.split())
        says = f"{quiet.state_dir}/netlib.db: netlibd (pid {pid}) is stopped and keeps it locked{remedy(pid)}"
        assert (done.returncode, done.stderr) == (1, f"netlib: {says}\n")
        assert netlib(quiet, "network", "ls").returncode == 0  # looking takes no lock
    assert state_of(quiet) == before


def test_a_lock_whose_holder_works_is_waited_for(quiet: Config) -> None:
    """Only a stopped one is given up early."""
    with Controller(quiet, watcher=Unwatched()) as controller:
        box = controller.sandbox("box")
        with stopped_holding(quiet, "a record's lock", record_lock(box.id)) as pid:
            os.kill(pid, signal.SIGCONT)
            with pytest.raises(DeadlineExceeded, match=f"waited 2 s for pid {pid} \\(testing\\)") as refusal:
                controller.locks.hold(record_lock(box.id), "this", seconds=2).__enter__()
            assert not isinstance(refusal.value, Stuck)


def test_stopped_at_any_moment_of_its_work_every_command_ends_in_time(daemon: Config, cycles: Any) -> None:
    """netlibd is stopped while it makes and removes networks: the next commands succeed, or say that it is stopped."""
    for number in range(cycles(200)):
        worker = threading.Thread(target=_churn, args=(daemon, number))
        worker.start()
        threading.Event().wait(0.003 * (number % 12))  # another moment each time
        with stopped_netlibd(daemon) as pid:
            for words in (f"network create own{number}", "network ls", f"network rm own{number}"):
                done = netlib(daemon, *words.split())
                refusal = done.stderr.splitlines()[-1]
                assert done.returncode == 0 or "is stopped" in refusal or "not found" in refusal, done.stderr
                assert f"kill -CONT {pid}" in done.stderr
        worker.join()


def _churn(config: Config, number: int) -> None:
    with suppress(NetlibError, RuntimeWarning):  # it is netlibd that works here, and it is stopped meanwhile
        for verb in ("network.create", "network.rm"):
            call(config, verb, {"name": f"churn{number}"})


# --- before the greeting -----------------------------------------------------------------------------------------------


@pytest.fixture
def former(config: Config, tmp_path: Path) -> Iterator[Config]:
    """A netlibd of an earlier netlib, which greets nobody: the newer one without its new socket."""
    code = """if True:
        import sys
        from netlib.daemon import service
        from netlib.daemon.app import main
        from netlib.daemon.fastpath import ControlServer
        class Former(ControlServer):
            def __init__(self, listener, handle, version, *, former):
                listener.close()
                super().__init__(former, handle, version)
                self._greeted = -1
        service.ControlServer = Former
        listen = service.Service._listen
        def listen_and_hide(path):
            sock = listen(path)
            if path.name == "control.sock":
                path.unlink()
            return sock
        service.Service._listen = staticmethod(listen_and_hide)
        service.Service._check_place = lambda self: None
        sys.exit(main(sys.argv[1:]))
    """
    command = [sys.executable, "-P", "-c", code, "--state-dir", str(config.state_dir), "--run-dir", str(config.run_dir)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL) as process:
        wait_until(config.former_socket_path.exists, "the former netlibd to listen")
        assert not config.socket_path.exists()
        try:
            yield config
        finally:
            process.kill()


def test_a_netlibd_from_before_the_greeting_is_replaced(former: Config) -> None:
    first = pid_of(former)
    assert call(former, "system.info", {})["ServedBy"] == pid_of(former) != first
    assert former.socket_path.is_socket()
    assert ended(first)


def test_a_watcher_replaces_it_too(former: Config) -> None:
    first = pid_of(former)
    with DaemonWatcher(former) as watcher:
        watcher.changed(sandboxes=[], networks=[], needed=True)
    assert pid_of(former) != first


def test_a_netlibd_from_before_the_greeting_may_be_stopped_too(former: Config) -> None:
    with stopped_netlibd(former) as pid:
        done = netlib(former, "network", "ls")
        assert done.returncode == 0
        assert f"netlibd (pid {pid}) is stopped" in done.stderr or "process" in done.stderr, done.stderr


def test_a_client_from_before_the_greeting_is_served(config: Config) -> None:
    start_daemon(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Config, "socket_path", Config.former_socket_path)
        patch.setattr("netlib.wire.conversation.Connection._hear_greeting", lambda *_: None)
        assert call(config, "system.info", {})["ServedBy"] == pid_of(config)
