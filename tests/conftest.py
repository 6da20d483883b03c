"""What every test can ask for, and what is asked of every test.

Tests outside ``tests/unit`` change the network, so they refuse to run anywhere but in a test host, and each is compared
with what it found: links, netns, nftables and processes that it leaves behind fail it. A skip fails the run. What a test needs
of the kernel is in ``tests/needs.py``.
"""

import os
import re
import select
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from netlib.config import Config
from netlib.kernel.handle import Kernel
from netlib.kernel.netns import NETNS_DIR, create_netns, delete_netns, entered, identity_of
from netlib.model import NetnsRef
from netlib.runtime import cgroups
from tests import needs

_TESTS = Path(__file__).parent
_IN_TEST_HOST = os.environ.get("NETLIB_TESTHOST") == os.readlink("/proc/self/ns/net")
_EXIT_SECONDS = 5.0
# What netlib leaves to the next network, and takes away at `netlib system reset`.
_BASE_TABLE = ("nftables", "table inet netlib")
_SWITCHES = (Path("/proc/sys/net/ipv4/ip_forward"), Path("/proc/sys/net/ipv6/conf/all/forwarding"))
_FORWARDING = tuple(path for path in _SWITCHES if path.exists())  # a kernel may have no IPv6

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")

_GROUP = re.compile(rf"/{cgroups.PARENT}/([0-9a-f]{{64}})$", re.MULTILINE)

_outcomes: dict[str, str] = {}
_set_apart: dict[str, list[Any]] = {"without_cgroups": [], "left_to_vm": []}


def pytest_configure(config: pytest.Config) -> None:
    """Have a worker of `make test` keep its temporary files in the memory of its own test host, not with the others'."""
    if hasattr(config, "workeroutput"):
        config.option.basetemp = None


def _room(nodeid: str) -> str:
    """The folder of tests/ that a test is in: unit, kernel, e2e."""
    return nodeid.removeprefix("tests/").partition("/")[0]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse to touch a real machine's network; set aside what this user, or this kernel, cannot do."""
    if not _IN_TEST_HOST and any(_room(item.nodeid) != "unit" for item in items):
        raise pytest.UsageError(
            "these tests change the network: run them with `make test`, or with netlib/testing/testhost in front of the command"
        )
    if needs.BOOT:
        _set_aside(config, items, {item for item in items if needs.BOOT not in needs.boots_of(item)})
        return
    if not _may_make_cgroups():
        aside = {item: None for item in items if item.get_closest_marker("needs_cgroups")}
        _set_apart["without_cgroups"] = [item.nodeid for item in aside]
        _set_aside(config, items, aside)
    left = needs.left_to_vm(items)
    _set_apart["left_to_vm"] = [*left.values()]
    _set_aside(config, items, left)


def _set_aside(config: pytest.Config, items: list[pytest.Item], aside: Collection[pytest.Item]) -> None:
    if aside:
        items[:] = [item for item in items if item not in aside]
        config.hook.pytest_deselected(items=[*aside])


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail, in the virtual machine, a test that not even its kernel has the means for."""
    if needs.BOOT and (lacking := needs.missing(item)):
        pytest.fail(f"this kernel has not what the test needs: {', '.join(lacking)}", pytrace=False)


def _may_make_cgroups() -> bool:
    v1 = Path("/sys/fs/cgroup/pids")
    return os.access(v1 if v1.exists() else v1.parent, os.W_OK)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how each test went: as its call did, unless setting up or taking down went worse."""
    if report.when == "call" or not report.passed:
        _outcomes[report.nodeid] = report.outcome


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Take over what a worker has set apart; all collect the same tests."""
    _set_apart.update(getattr(node, "workeroutput", {}).get("set_apart", {}))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run in which a test was skipped: what is not run does not hold."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["set_apart"] = _set_apart
    if "skipped" in _outcomes.values() and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Close with one line that counts the tests of each folder, after the names of those that did not run."""
    for nodeid in _set_apart["without_cgroups"]:
        terminalreporter.write_line(f"not run, for this user may not make cgroups: {nodeid}", yellow=True)
    for nodeid in (nodeid for nodeid, outcome in _outcomes.items() if outcome == "skipped"):
        terminalreporter.write_line(f"skipped, which fails the run: {nodeid}", red=True)
    counts = Counter((_room(nodeid), outcome) for nodeid, outcome in _outcomes.items())
    rooms = dict.fromkeys(room for room, _ in counts)
    line = "; ".join(
        f"{room}: " + ", ".join(f"{number} {outcome}" for (where, outcome), number in counts.items() if where == room)
        for room in rooms
    )
    if line:
        terminalreporter.write_line(line, bold=True)
    if left := _set_apart["left_to_vm"]:
        terminalreporter.write_line(needs.closing_line(left), yellow=True)


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Config]:
    """Folders of a host of its own; in a test host they are in memory. A netlibd that was started for it ends with the test."""
    config = Config(state_dir=tmp_path / "state", run_dir=tmp_path / "run")
    yield config
    if config.pid_file.exists():
        _end(int(config.pid_file.read_text() or 0))
    log = config.run_dir / "netlibd.log"
    assert not log.exists() or "Fatal Python error" not in log.read_text(errors="replace"), log.read_text(errors="replace")


def _end(pid: int) -> None:
    """Ask a netlibd to end, and wait for it; a no-op when it has ended."""
    if "netlib" not in _processes().get(pid, ""):
        return
    fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(fd, signal.SIGTERM)
        if not select.select([fd], [], [], _EXIT_SECONDS)[0]:
            pytest.fail(f"netlibd (process {pid}) did not end within {_EXIT_SECONDS:.0f} s of SIGTERM")
    finally:
        os.close(fd)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    """A handle on the netns of the test host; its sockets are closed after the test."""
    with Kernel() as handle:
        yield handle


_numbers = count(1)


@pytest.fixture
def netns_factory() -> Iterator[Callable[[str], NetnsRef]]:
    """Make netns with lo up and forwarding off, named after a word of the test's choice; they go with the test."""
    made: list[Path] = []

    def make(word: str = "test") -> NetnsRef:
        path = NETNS_DIR / f"{word}-{os.getpid()}-{next(_numbers)}"
        create_netns(path)
        made.append(path)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            netns = NetnsRef(str(path), identity_of(fd))
        finally:
            os.close(fd)
        with entered(netns):  # a new netns starts as the kernel was told to start them, on some with forwarding on
            for path in _FORWARDING:
                path.write_text("0")
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return netns

    yield make
    for path in reversed(made):
        delete_netns(path)


@pytest.fixture
def cycles() -> Callable[[int], int]:
    """How many of a long test's cycles to run: all in ``make soak``, a part with SOAK=0.1, one in fifty otherwise."""
    part = float(os.environ.get("NETLIB_SOAK", "0.02"))
    return lambda full: max(1, round(full * part))


def _settled(before: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """What is there once the links are gone whose other end was in a netns that was deleted: the kernel takes its time."""
    deadline = time.monotonic() + 5
    after = _snapshot()
    while any(kind == "link" for kind, _ in after - before) and time.monotonic() < deadline:
        after = _snapshot()
    return after


@pytest.fixture(autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compare the test host after a test with what it was before; fail the test by the names of what differs."""
    if _room(request.node.nodeid) == "unit":
        yield
        return
    before, processes, switches = _snapshot(), _processes(), {path: path.read_text() for path in _FORWARDING}
    yield
    differences = [f"left process {name}" for name in _end_leftovers(_processes().keys() - processes.keys())]
    after = _settled(before)
    differences += [f"left {' '.join(thing)}" for thing in sorted(after - before - {_BASE_TABLE})]
    differences += [f"took away {' '.join(thing)}" for thing in sorted(before - after - {_BASE_TABLE})]
    # What may remain must not make the next test pass, nor what must not remain make it fail.
    for kind, name in after - before:
        _clear_away(kind, name)
    for path, value in switches.items():
        path.write_text(value)
    if differences:
        pytest.fail(f"the test host is not as it was: {', '.join(differences)}", pytrace=False)


def _snapshot() -> set[tuple[str, str]]:
    """What is in the test host, each as its kind and its name."""
    tables = subprocess.run(["nft", "list", "tables"], check=True, capture_output=True, text=True).stdout
    return {
        *(("link", ifname) for _, ifname in socket.if_nameindex()),
        *(("netns", name) for name in os.listdir(NETNS_DIR)),
        *(("folder", str(path)) for path in Path("/etc/netns").glob("*")),
        *(("device", _device(name)) for name in _DEVICES),
        *(("nftables", table) for table in tables.splitlines()),
    }


def _device(name: str) -> str:
    """A node of the machine's own, which a test host shares, with what a container could change of it."""
    found = os.stat(f"/dev/{name}")
    return f"/dev/{name} of user {found.st_uid} with mode {found.st_mode:o}"


def _clear_away(kind: str, name: str) -> None:
    if kind == "device":
        return
    if kind == "netns":
        delete_netns(NETNS_DIR / name)
    elif kind == "folder":
        shutil.rmtree(name)
    elif kind == "nftables":
        subprocess.run(["nft", "delete", *name.split()], check=True)
    else:  # it may have gone with its peer or its netns
        subprocess.run(["ip", "link", "delete", name], check=False, capture_output=True)


def _processes() -> dict[int, str]:
    """The processes of the test host, by id, with their command lines; Python's own workers are not counted."""
    found = {}
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        if "multiprocessing" not in command:
            found[pid] = command or "(ended, but nobody waits for it)"
    return found


def _end_leftovers(pids: set[int]) -> list[str]:
    """Give processes that are about to end the time for it; name and kill the others, and name children nobody waited for."""
    deadline = time.monotonic() + _EXIT_SECONDS
    names, groups = [], _groups_of(pids)
    for pid in sorted(pids):
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            ended = bool(select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0])
            command = _processes().get(pid, "")
            if not ended:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        finally:
            os.close(fd)
        if command and (not ended or _parent(pid) == os.getpid()):
            names.append(f"{pid} {command}")
    for group in groups:  # of containers whose minders were killed: nobody else removes them
        cgroups.remove(group, cgroups.own_hierarchies())
    return names


def _groups_of(pids: set[int]) -> set[str]:
    """The containers' control groups that processes are in."""
    found: set[str] = set()
    for pid in pids:
        with suppress(OSError):  # it ended meanwhile
            found.update(_GROUP.findall(Path(f"/proc/{pid}/cgroup").read_text()))
    return found


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0
