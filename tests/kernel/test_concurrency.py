"""Many processes at once, and many cycles: no address twice, no error but the legitimate ones, nothing left behind."""

import json
import multiprocessing
import resource
import subprocess
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from threading import BrokenBarrierError

import pytest

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.errors import NetlibError, NotFound
from netlib.ports import parse_publish
from netlib.testing.snapshot import differences, snapshot
from tests.descriptors import open_descriptors
from tests.locks import abandoned

PROCESSES = 50
_fork = multiprocessing.get_context("fork")


def _worker(config: Config, number: int, together: Barrier, answers: "multiprocessing.SimpleQueue[str]") -> None:
    """Join a shared network and a private one, and leave both, each at the same moment as all the others."""
    report: dict[str, object] = {"number": number, "addresses": [], "error": None}
    name = f"box{number}"
    try:
        with Controller(config, watcher=Unwatched()) as controller:
            together.wait(60)
            controller.create_sandbox(name)
            shared = controller.connect("shared", name, ports=parse_publish("80"))
            controller.create_network(f"own{number}")
            own = controller.connect(f"own{number}", name)
            report["addresses"] = [str(item) for endpoint in (shared, own) for item in endpoint.addresses]
            together.wait(60)
            controller.disconnect("shared", name)
            controller.remove_sandbox(name)
            controller.remove_network(f"own{number}")
    except (NetlibError, BrokenBarrierError) as error:
        together.abort()
        report["error"] = f"{type(error).__name__}: {error}"
    answers.put(json.dumps(report))


def test_fifty_processes_create_connect_disconnect_and_delete_at_once(config: Config) -> None:
    with Controller(config, watcher=Unwatched()) as controller:
        controller.create_network("shared")
        before = snapshot()
        controller.store.close()
        answers: multiprocessing.SimpleQueue[str] = _fork.SimpleQueue()
        together = _fork.Barrier(PROCESSES)
        workers = [_fork.Process(target=_worker, args=(config, number, together, answers)) for number in range(PROCESSES)]
        for worker in workers:
            worker.start()
        reports = [json.loads(answers.get()) for _ in workers]
        for worker in workers:
            worker.join()
        assert [report["error"] for report in reports if report["error"]] == []
        addresses = [address for report in reports for address in report["addresses"]]
        assert len(addresses) == 2 * PROCESSES == len(set(addresses))
        assert controller.sandboxes() == []
        assert [network.name for network in controller.networks()] == ["bridge", "host", "none", "shared"]
        assert differences(before, snapshot()) == []
        with controller.store.read() as tx:
            assert tx.in_flight() == []
            assert tx.ports() == []
        assert abandoned(config.lock_dir) == []
        controller.reset()


def test_one_name_wanted_by_many_goes_to_one(config: Config) -> None:
    with Controller(config, watcher=Unwatched()) as controller:
        controller.store.close()
        answers: multiprocessing.SimpleQueue[str] = _fork.SimpleQueue()
        _parallel(8, lambda number: _try_create(config, answers))
        outcomes = sorted(answers.get() for _ in range(8))
        assert outcomes == ["AlreadyExists"] * 7 + ["created"]
        controller.reset()


def _try_create(config: Config, answers: "multiprocessing.SimpleQueue[str]") -> None:
    try:
        with Controller(config, watcher=Unwatched()) as controller:
            controller.create_network("web")
        answers.put("created")
    except NetlibError as error:
        answers.put(type(error).__name__)


def _parallel(count: int, work: Callable[[int], None]) -> None:
    workers = [_fork.Process(target=work, args=(number,)) for number in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0


def _resources() -> tuple[int, int]:
    """Open files and peak resident memory (KiB) of this process."""
    return len(open_descriptors()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.soak
def test_cycles_of_connect_and_disconnect_leave_nothing_behind(config: Config, cycles: Callable[[int], int]) -> None:
    with Controller(config, watcher=Unwatched()) as controller:
        controller.create_network("web")
        controller.create_sandbox("box")

        def cycle() -> None:
            controller.connect("web", "box", ports=parse_publish("8080:80"))
            controller.disconnect("web", "box")

        count = cycles(1000)
        for _ in range(max(10, count)):  # SQLite's page cache, 2 MiB, is full after some 900 cycles: it belongs to the base
            cycle()
        before, (files, memory) = snapshot(), _resources()
        with controller.store.read() as tx:
            rows = tx.db.execute(
                "SELECT (SELECT count(*) FROM record), (SELECT count(*) FROM object), (SELECT count(*) FROM lease)"
            ).fetchone()
        for _ in range(count):
            cycle()
        assert differences(before, snapshot()) == []
        with controller.store.read() as tx:
            after = tx.db.execute(
                "SELECT (SELECT count(*) FROM record), (SELECT count(*) FROM object), (SELECT count(*) FROM lease)"
            ).fetchone()
        assert after == rows
        files_now, memory_now = _resources()
        assert files_now == files
        assert memory_now - memory < 4096, f"resident memory grew by {memory_now - memory} KiB over {count} cycles"
        controller.reset()


def test_a_reset_host_knows_nothing_of_what_was(config: Config) -> None:
    empty = snapshot()
    with Controller(config, watcher=Unwatched()) as controller:
        controller.create_network("web")
        controller.create_sandbox("box")
        controller.connect("web", "box", ports=parse_publish("8080:80"))
        controller.connect("bridge", "box")
        controller.reset()
        assert differences(empty, snapshot()) == []
        with pytest.raises(NotFound):
            controller.network("web")
        assert (
            subprocess.run(["sysctl", "-n", "net.ipv4.ip_forward"], capture_output=True, text=True, check=True).stdout == "0\n"
        )
