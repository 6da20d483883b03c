"""Many calls at once by launchers and netlibd, with either killed at any moment: nothing is given twice, nothing is left."""

import json
import os
import random
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest

from cni_plugins.install import install
from cni_plugins.protocol import Code
from cni_plugins.run import serve
from cni_plugins.skel import Outcome
from netlib import __version__
from netlib.config import Config
from netlib.core.attachments import Attachments
from netlib.core.controller import Controller, Unwatched
from netlib.daemon.dialects import Request
from netlib.kernel.netns import NETNS_DIR, create_netns, delete_netns
from netlib.testing.snapshot import differences, snapshot
from netlib.wire.client import leave, start_daemon
from tests.cni.launching import environment, run, serving
from tests.locks import abandoned
from tests.processes import ended

CONTAINERS = 100
PATIENCE = 60.0
_KILLED = 20  # containers whose plugins are killed
_TRIES = 50
_MOST_DONE = 60  # calls between two deaths of netlibd


class Fleet:
    """Containers of one network, each attached and detached by a chain of plugins, a process for each call."""

    def __init__(self, folder: Path, config: Config, plugins: Path) -> None:
        self.config = config
        self.leases = folder / "leases"
        self.bin = plugins
        self.results: dict[int, Any] = {}
        self.done = threading.Semaphore(0)  # released by every call that succeeds
        self._results_lock = threading.Lock()

    def chain(self, number: int) -> list[dict[str, Any]]:
        common = {"cniVersion": "1.1.0", "name": "fleet"}
        ipam = {"type": "host-local", "ranges": [[{"subnet": "10.24.0.0/24"}]], "dataDir": str(self.leases)}
        mapping = {"hostPort": 20000 + number, "containerPort": 80, "protocol": "tcp"}
        return [
            {**common, "type": "bridge", "bridge": "fleet0", "isGateway": True, "ipMasq": True, "ipam": ipam},
            {**common, "type": "portmap", "runtimeConfig": {"portMappings": [mapping]}},
        ]

    def environ(self, verb: str, number: int) -> dict[str, str]:
        variables = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": f"c{number}",
            "CNI_NETNS": str(NETNS_DIR / f"fleet{number}"),
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.bin),
        }
        return environment(self.config, variables)

    def call(self, verb: str, config: dict[str, Any], number: int) -> Outcome:
        return run(self.bin / config["type"], self.environ(verb, number), json.dumps(config).encode())

    def started(self, verb: str, config: dict[str, Any], number: int) -> "subprocess.Popen[bytes]":
        """A call that is under way."""
        with tempfile.TemporaryFile() as stdin:
            stdin.write(json.dumps(config).encode())
            stdin.seek(0)
            return subprocess.Popen(
                [self.bin / config["type"]],
                env=self.environ(verb, number),
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )

    def add(self, number: int) -> str:
        """Attach a container, as a runtime does; what went wrong."""
        result: Any = None
        for config in self.chain(number):
            outcome = self.call("ADD", {**config, "prevResult": result} if result else config, number)
            if outcome.code:
                return outcome.stdout.decode()
            result = json.loads(outcome.stdout)
        return self.attached(number, result)

    def attached(self, number: int, result: Any) -> str:
        """Note what ADD has answered; whether another container has the address."""
        with self._results_lock:
            taken = self.addresses()
            self.results[number] = result
            address = _address(result)
            return f"{address} is given twice" if address in taken else ""

    def delete(self, number: int) -> str:
        """Detach a container; what went wrong."""
        self.results.pop(number, None)
        for config in reversed(self.chain(number)):
            outcome = self.call("DEL", config, number)
            if outcome.code:
                return outcome.stdout.decode()
        return ""

    def addresses(self) -> list[str]:
        """Of the containers that are attached."""
        return [_address(result) for result in self.results.values()]

    def lease_files(self) -> set[str]:
        return {path.name for path in (self.leases / "fleet").glob("10.24.*")}


def _address(result: Any) -> str:
    return str(result["ips"][0]["address"]).partition("/")[0]


@pytest.fixture(scope="module", autouse=True)
def containers() -> Iterator[None]:
    for number in range(CONTAINERS):
        create_netns(NETNS_DIR / f"fleet{number}")
    yield
    for number in range(CONTAINERS):
        delete_netns(NETNS_DIR / f"fleet{number}")


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Launchers in C; where netlibd is, their environment says."""
    folder = tmp_path_factory.mktemp("plugins")
    install(folder, Config(), types=["bridge", "host-local", "portmap"])
    return folder


@pytest.fixture
def fleet(config: Config, tmp_path: Path, plugins: Path) -> Iterator[Fleet]:
    """A network that is there, with nobody in it; at the end there must be nothing else."""
    fleet = Fleet(tmp_path, config, plugins)
    empty = snapshot()
    inside = snapshot_of_containers()
    assert fleet.add(0) == fleet.delete(0) == ""
    before = snapshot()
    yield fleet
    assert fleet.lease_files() == set()
    assert snapshot_of_containers() == inside
    assert differences(before, snapshot()) == []
    with Controller(config, watcher=Unwatched()) as controller:
        with controller.store.read() as tx:
            assert tx.in_flight() == []
            assert tx.ports() == []
        attachments = Attachments(controller)
        assert attachments.attachments() == []
        assert [network.name for network in attachments.prune()] == ["fleet"]
        assert abandoned(config.lock_dir) == []
    assert differences(empty, snapshot()) == []


def snapshot_of_containers() -> list[str]:
    """The links of each container, by name."""
    return [run_in(number, "ip", "-br", "link") for number in range(CONTAINERS)]


def run_in(number: int, *command: str) -> str:
    inside = ["nsenter", f"--net={NETNS_DIR / f'fleet{number}'}", *command]
    return subprocess.run(inside, check=True, capture_output=True, text=True).stdout


def at_once(work: Callable[[int], str], numbers: Sequence[int]) -> list[str]:
    """What went wrong when *work* was done for all of *numbers* at the same time."""
    with ThreadPoolExecutor(len(numbers)) as pool:
        return [wrong for wrong in pool.map(work, numbers) if wrong]


def test_a_hundred_are_attached_at_once_and_detached_at_once(fleet: Fleet) -> None:
    numbers = range(CONTAINERS)
    assert at_once(fleet.add, numbers) == []
    assert len(set(fleet.addresses())) == CONTAINERS
    assert fleet.lease_files() == set(fleet.addresses())
    assert at_once(fleet.delete, numbers) == []


def test_an_add_whose_caller_was_killed_before_it_began_is_not_done(config: Config, tmp_path: Path, plugins: Path) -> None:
    """Its runtime has called DEL by then, and nobody would take down what it makes."""
    begun, go_on, answers = threading.Event(), threading.Event(), []
    fleet = Fleet(tmp_path, config, plugins)
    before = snapshot()
    with Controller(config, watcher=Unwatched()) as controller:

        def handle(request: Request) -> Outcome:
            begun.set()
            assert go_on.wait(PATIENCE)
            controller_here = Controller(config, watcher=Unwatched())
            answers.append(serve(open_controller=lambda: controller_here, is_awaited=request.is_awaited, **request.args))
            controller_here.close()
            return answers[0]

        with serving(config, handle, __version__):
            with fleet.started("ADD", fleet.chain(0)[0], 0) as launcher:
                assert begun.wait(PATIENCE)
                launcher.kill()
            go_on.set()
        assert json.loads(answers[0].stdout)["code"] == Code.TRY_AGAIN
        assert differences(before, snapshot()) == []
        assert Attachments(controller).attachments() == []


class Runtime:
    """What a runtime does to one container when its plugins, or netlibd, are killed under it: DEL until that succeeds, anew."""

    def __init__(self, fleet: Fleet, number: int) -> None:
        self.fleet = fleet
        self.number = number
        self._random = random.Random()
        self.killed = 0

    def live(self, rounds: int) -> str:
        """Attach and detach the container; what went wrong."""
        for _ in range(rounds):
            wrong = self._attach() or self._detach()
            if wrong:
                return f"c{self.number}: {wrong}"
        return ""

    def _attach(self) -> str:
        for _ in range(_TRIES):
            result: Any = None
            for config in self.fleet.chain(self.number):
                answer = self._call("ADD", {**config, "prevResult": result} if result else config)
                if isinstance(answer, str):
                    return answer
                if answer is None:
                    break
                result = answer
            else:
                return self.fleet.attached(self.number, result)
            if wrong := self._detach():
                return wrong
        return "never attached"

    def _detach(self) -> str:
        self.fleet.results.pop(self.number, None)  # before DEL: its address may be another's at once
        for config in reversed(self.fleet.chain(self.number)):
            for _ in range(_TRIES):
                answer = self._call("DEL", config)
                if isinstance(answer, str):
                    return answer
                if answer is not None:
                    break
            else:
                return "never detached"
        return ""

    def _call(self, verb: str, config: dict[str, Any]) -> Any:
        """The answer; None where the call has to be made again, and what is no legitimate error as a text."""
        with self.fleet.started(verb, config, self.number) as process:
            is_doomed = self._random.random() < 0.2
            try:
                stdout, stderr = process.communicate(timeout=self._random.random() * 0.1 if is_doomed else PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                self.killed += 1
                return None if is_doomed else f"{verb} of {config['type']} takes longer than {PATIENCE:.0f} s"
        if process.returncode == 0:
            self.fleet.done.release()
            return json.loads(stdout) if stdout else {}
        error = json.loads(stdout)
        if error["code"] == Code.TRY_AGAIN:
            return None
        return f"{verb} of {config['type']}: {error} {stderr.decode()}"


class Killer:
    """Ends netlibd by SIGKILL in the midst of calls, each time that some more have succeeded, which they do on any machine."""

    def __init__(self, fleet: Fleet) -> None:
        self.killed = 0
        self._fleet = fleet
        self._stopping = False
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._fleet.done.release(_MOST_DONE)
        self._thread.join()

    def _run(self) -> None:
        while True:
            for _ in range(random.randint(1, _MOST_DONE)):
                self._fleet.done.acquire()
            if self._stopping:
                return
            with suppress(FileNotFoundError, ValueError, ProcessLookupError):  # it is just being started
                pid = int(self._fleet.config.pid_file.read_text())
                os.kill(pid, signal.SIGKILL)
                assert ended(pid)
                self.killed += 1


@pytest.mark.soak
def test_launchers_and_netlibd_are_killed_meanwhile(fleet: Fleet, cycles: Callable[[int], int]) -> None:
    runtimes = [Runtime(fleet, number) for number in range(_KILLED)]
    with Killer(fleet) as killer:
        assert at_once(lambda number: runtimes[number].live(cycles(50)), range(_KILLED)) == []
    assert killer.killed
    assert sum(runtime.killed for runtime in runtimes)
    start_daemon(fleet.config)  # recovers what the last one left
    assert at_once(fleet.delete, range(_KILLED)) == []
    leave(fleet.config)
