"""Too little memory, no more processes: one sentence for whoever asks, nothing changed, and netlibd goes on."""

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.daemon.dialects import Request
from netlib.errors import HostExhausted, KernelError, NetlibError
from netlib.kernel.scarcity import NO_MEMORY, NO_PROCESS
from netlib.names import new_id
from netlib.plan import KernelObject
from netlib.runtime import cgroups
from netlib.testing.snapshot import differences, snapshot
from netlib.verbs.call import call
from netlib.wire.client import start_daemon
from tests.cni.launching import serving
from tests.kernel.dns_client import wait_until
from tests.kernel.runtime_world import World
from tests.processes import pid_of

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
LEAST = 22 * MIB  # of address space, with which the interpreter and the command line's own modules are there
MOST = 400 * MIB


def netlib(config: Config, *words: str, address_space: int = 0) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    folders = ["--state-dir", str(config.state_dir), "--run-dir", str(config.run_dir)]
    limit = ["prlimit", f"--as={address_space}"] if address_space else []
    command = [*limit, sys.executable, "-P", "-m", "netlib", *folders, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)


def state_of(config: Config) -> Any:
    with Controller(config, watcher=Unwatched()) as controller, controller.store.read() as tx:
        return sorted(tx.ready_ids()), tx.in_flight()


@pytest.fixture
def host(config: Config) -> Iterator[Config]:
    with Controller(config, watcher=Unwatched()) as controller:
        controller.create_network("web")
    yield config
    call(config, "system.reset", {})


# --- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.needs_cgroups
@pytest.mark.parametrize(
    "words",
    ["network create more", "network inspect web", "ps -a", "run --rm --network none true", "run -d --network none sleep 9"],
)
def test_a_command_with_too_little_memory_says_so_and_changes_nothing(host: Config, words: str) -> None:
    """From too little to enough, in steps; each refusal is a line."""
    netlib(host, "ps")  # compiled code is there
    before = state_of(host)
    for limit in range(LEAST, MOST, 3 * MIB):
        done = netlib(host, *words.split(), address_space=limit)
        if done.returncode == 0:
            assert limit > LEAST, "the first limit was to be too small"
            return
        assert done.returncode in (1, 125), done
        assert done.stdout in ("", "[]\n"), "inspect prints a list in any case"
        assert done.stderr.startswith("netlib: "), done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        assert "internal error" not in done.stderr
        assert state_of(host) == before
    pytest.fail(f"{MOST} bytes are too little")


class Moments:
    """An observer that runs out of something at one moment of a verb."""

    def __init__(self, moment: int, error: Exception) -> None:
        self._left = moment
        self._error = error
        self.reached = False

    def __call__(self, _: str, item: KernelObject) -> None:
        self._left -= 1
        if self._left == 0:
            self.reached = True
            raise self._error


SCARCE = {"memory": MemoryError(), "the kernel's memory": OSError(12, "x"), "processes": BlockingIOError(11, "x")}


@pytest.mark.parametrize("what", SCARCE)
@pytest.mark.parametrize("verb", ["create", "connect", "disconnect", "remove"])
def test_whenever_it_runs_out_everything_is_as_it_was(host: Config, verb: str, what: str) -> None:
    """What is being made is unmade at once, by the same process; what is being removed goes on to its end."""
    verbs: dict[str, Callable[[Controller], Any]] = {
        "create": lambda controller: controller.create_network("more"),
        "connect": lambda controller: controller.connect("web", "box"),
        "disconnect": lambda controller: controller.disconnect("web", "box"),
        "remove": lambda controller: controller.remove_network("more"),
    }
    with Controller(host, watcher=Unwatched()) as controller:
        controller.create_sandbox("box")
        controller.connect("web", "box")
        if verb == "connect":
            controller.disconnect("web", "box")
        if verb == "remove":
            controller.create_network("more")
    for moment in range(1, 200):
        before, records = snapshot(), state_of(host)
        moments = Moments(moment, SCARCE[what])
        with Controller(host, watcher=Unwatched(), observer=moments) as controller:
            try:
                with controller.undoing_on_scarcity():
                    verbs[verb](controller)
            except (MemoryError, OSError):
                assert state_of(host)[1] == [], "nothing is left in flight"
        if not moments.reached:
            assert moment > 3
            return
        if verb in ("create", "connect"):
            assert (differences(before, snapshot()), state_of(host)) == ([], records)
        else:  # it is gone: the next moment is one of a new one
            with Controller(host, watcher=Unwatched()) as controller:
                if verb == "remove":
                    assert "more" not in {network.name for network in controller.networks()}
                    controller.create_network("more")
                else:
                    assert controller.endpoints(sandbox="box") == []
                    controller.connect("web", "box")
    pytest.fail("the verb has no end")


def test_netlibd_with_no_memory_left_answers_so_and_goes_on(host: Config) -> None:
    start_daemon(host)
    call(host, "network.ls", {})
    pid = pid_of(host)
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    for room in (0, MIB // 16, MIB, 4 * MIB):
        size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(pid, resource.RLIMIT_AS, (size + room, resource.RLIM_INFINITY))
        try:
            for verb, args in (
                ("network.create", {"name": f"room{room}", "options": ["com.docker.network.driver.mtu=1400"] * 20_000}),
                ("explain", {"name": "x" * 3_000_000}),
                ("network.ls", {}),
            ):
                refusal = _refusal(host, verb, args)
                assert "\n" not in refusal
                assert "Error:" not in refusal, "a sentence of ours"
        finally:
            resource.prlimit(pid, resource.RLIMIT_AS, unlimited)
        assert call(host, "daemon.ping", {})["pid"] == pid
    assert state_of(host)[1] == []


def _refusal(config: Config, verb: str, args: dict[str, Any]) -> str:
    try:
        call(config, verb, args, deadline=20)
    except NetlibError as error:
        return str(error)
    return ""


def test_a_worker_that_runs_out_answers_and_goes_on(config: Config) -> None:
    def handle(request: Request) -> Any:
        if request.verb == "plenty":
            return "done"
        raise SCARCE[request.verb]

    with serving(config, handle, "0.1.0"):
        for what, sentence in (("memory", NO_MEMORY), ("the kernel's memory", NO_MEMORY), ("processes", NO_PROCESS)):
            with pytest.raises(HostExhausted) as refusal:
                call(config, what, {})
            assert str(refusal.value) == sentence
        assert call(config, "plenty", {}) == "done"


def test_work_waits_where_no_thread_can_be_made(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()

    def handle(request: Request) -> str:
        if request.verb == "first":
            begun.set()
            go.wait(10)
        return request.verb

    answers: list[str] = []

    def ask(verb: str) -> None:
        answers.append(call(config, verb, {}))

    with serving(config, handle, "0.1.0"):
        callers = [threading.Thread(target=ask, args=(verb,)) for verb in ("first", "second")]
        callers[0].start()
        assert begun.wait(5)
        with monkeypatch.context() as patch:
            callers[1].start()  # before threads are refused
            patch.setattr("netlib.daemon.workers.Workers._add", lambda _: False)
            wait_until(lambda: callers[1].is_alive(), "the second request to be sent")
            assert call(config, "daemon.ping", {}) == "daemon.ping"
        go.set()
        for caller in callers:
            caller.join()
    assert sorted(answers) == ["first", "second"]


# --- processes ---------------------------------------------------------------------------------------------------------


@contextmanager
def pids_limited(pid: int, most: int) -> Iterator[None]:
    """Have a process in a control group in which there may be *most* processes and threads."""
    root = Path(cgroups.own_hierarchies()["pids"])
    group = root / f"scarce-{new_id()[:12]}"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(pid))
        (group / "pids.max").write_text(str(most))
        yield
    finally:
        (group / "pids.max").write_text("max")
        for member in (group / "cgroup.procs").read_text().split():
            (root / "cgroup.procs").write_text(member)
        group.rmdir()


@contextmanager
def no_more_processes(pid: int) -> Iterator[None]:
    threads = len(os.listdir(f"/proc/{pid}/task"))
    with pids_limited(pid, threads):
        yield


@pytest.mark.needs_cgroups
def test_netlibd_that_may_make_no_process(host: Config) -> None:
    start_daemon(host)
    call(host, "network.ls", {})
    pid, before = pid_of(host), state_of(host)
    with no_more_processes(pid):
        with pytest.raises((HostExhausted, KernelError), match="no more processes can be made"):
            call(host, "container.run", {"command": ["true"], "networks": ["none"]})
        assert {row["Name"] for row in call(host, "network.ls", {})} >= {"web"}
    assert (pid_of(host), state_of(host)) == (pid, before)
    call(host, "container.run", {"command": ["true"], "networks": ["none"]})


@pytest.mark.needs_cgroups
def test_a_command_that_may_make_no_process(host: Config) -> None:
    code = """if True:
        import sys
        from netlib.cli.main import main
        input()
        sys.exit(main(sys.argv[1:]))
    """
    folders = ["--state-dir", str(host.state_dir), "--run-dir", str(host.run_dir)]
    before = state_of(host)
    for words in ("run -d --network none true", "run --rm --network none true", "exec box true"):
        with subprocess.Popen(
            [sys.executable, "-P", "-c", code, *folders, *words.split()],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as command:
            with no_more_processes(command.pid):
                out, told = command.communicate("go\n", timeout=30)
        assert (out, told.count("\n")) == ("", 1), told
        if "exec" in words:
            assert command.returncode == 1
        else:
            assert (command.returncode, "no more processes can be made" in told) == (125, True), told
    assert state_of(host) == before


@pytest.mark.needs_cgroups
def test_exec_into_a_container_that_may_have_no_more(world: World) -> None:
    container = world.living("sleep", "600")
    groups = [Path(path, cgroups.PARENT, container.container_id) for path in cgroups.own_hierarchies().values()]
    limits = [group / "pids.max" for group in groups if (group / "pids.max").exists()]
    for limit in limits:
        limit.write_text("1")
    assert limits
    code, out, told = world.exec(container, "sh", "-c", "true & wait")
    assert (code, out) == (2, "")
    assert "fork" in told, "sh says so itself: the command is there"


@pytest.mark.needs_cgroups
def test_starting_netlibd_where_no_process_can_be_made(host: Config) -> None:
    code = "import sys; from netlib import Config; from netlib.errors import *; from netlib.wire.client import start_daemon\n"
    code += "input()\ntry: start_daemon(Config(*sys.argv[1:]))\nexcept NetlibError as error: print(type(error).__name__, error)"
    command = [sys.executable, "-P", "-c", code, str(host.state_dir), str(host.run_dir)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as starter:
        with no_more_processes(starter.pid):
            out, _ = starter.communicate("go\n", timeout=30)
    assert out == f"HostExhausted {NO_PROCESS}\n"
    assert not host.pid_file.exists()
