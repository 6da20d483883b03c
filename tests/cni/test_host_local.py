"""``host-local`` beside the reference's binary: the same calls to both, each with a folder of its own, or both with one folder.

What is answered and what lies in the folder must be equal. Where ours differs on purpose, the last table says how and why.
"""

import json
import multiprocessing
import os
import subprocess
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from cni_plugins.host_local import HostLocalPlugin
from cni_plugins.node import Node
from cni_plugins.skel import answer
from ipam.lease_files import LeaseFolder
from netlib.config import Config
from netlib.core.controller import Controller, Unwatched

pytestmark = pytest.mark.peers

REFERENCE = Path("/usr/lib/cni/host-local")
PROCESSES, EACH = 50, 4
_fork = multiprocessing.get_context("fork")
Answer = dict[str, Any]
Step = tuple[str, str, str, dict[str, Any]]  # verb, container, CNI_ARGS, keys of the configuration besides the case's


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    """The peer itself; its absence is a failure, for what is not compared does not hold."""
    if not REFERENCE.is_file():
        pytest.fail(f"{REFERENCE} is missing; install it with `apt-get install containernetworking-plugins`")


@pytest.fixture
def controller(config: Config) -> Iterator[Controller]:
    with Controller(config, watcher=Unwatched()) as controller:
        yield controller
        controller.reset()


class Twins:
    """Both plugins, each with its folder."""

    def __init__(self, controller: Controller, folder: Path) -> None:
        self._node = Node(lambda: controller)
        self.folder = folder

    def ours(self, step: Step, config: dict[str, Any], data_dir: str = "ours") -> Answer:
        environ, stdin = self._call(step, config, data_dir)
        outcome = answer(HostLocalPlugin(self._node), environ, stdin, lambda _: False)
        document: Answer = json.loads(outcome.stdout or b"{}")
        assert bool(outcome.code) == ("code" in document)
        return document

    def theirs(self, step: Step, config: dict[str, Any], data_dir: str = "theirs") -> Answer:
        environ, stdin = self._call(step, config, data_dir)
        process = subprocess.run([REFERENCE], env=environ, input=stdin, capture_output=True, timeout=10)
        return dict(json.loads(process.stdout or b"{}"))

    def files(self, data_dir: str) -> dict[str, str]:
        folder = self.folder / data_dir / "pods"
        found = {path.name: path.read_bytes().decode() for path in folder.iterdir()} if folder.is_dir() else {}
        return {"lock": "", **found}  # the reference makes it even where it gives nothing

    def _call(self, step: Step, config: dict[str, Any], data_dir: str) -> tuple[dict[str, str], bytes]:
        verb, container, args, keys = step
        container, _, ifname = container.partition("/")
        environ = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": "/run/netns/none",
            "CNI_IFNAME": ifname or "eth0",
            "CNI_ARGS": args,
            "CNI_PATH": "/usr/lib/cni",
        }
        document: dict[str, Any] = {"cniVersion": "1.0.0", "name": "pods", "type": "bridge", **config, **keys}
        if document.get("ipam") is not None:
            document["ipam"] = {"type": "host-local", "dataDir": str(self.folder / data_dir), **document["ipam"]}
        return environ, json.dumps(document).encode()


@pytest.fixture
def twins(controller: Controller, tmp_path: Path) -> Twins:
    os.umask(0o022)
    return Twins(controller, tmp_path)


def add(container: str = "c1", cni_args: str = "", **keys: Any) -> Step:
    return ("ADD", container, cni_args, keys)


def delete(container: str = "c1", **keys: Any) -> Step:
    return ("DEL", container, "", keys)


def check(container: str = "c1", address: str = "10.1.0.2/24") -> Step:
    return ("CHECK", container, "", {"prevResult": {"cniVersion": "1.0.0", "ips": [{"address": address}]}})


def subnet(written: str, **keys: Any) -> dict[str, Any]:
    return {"ipam": {"subnet": written, **keys}}


def ranges(*sets: Any, **keys: Any) -> dict[str, Any]:
    written = [[{"subnet": item} if isinstance(item, str) else item for item in items] for items in sets]
    return {"ipam": {"ranges": written, **keys}}


def requested(*addresses: str) -> dict[str, Any]:
    return {"args": {"cni": {"ips": list(addresses)}}}


ONE = subnet("10.1.0.0/24")
TINY = subnet("10.1.0.0/29")
ALL_OF_TINY = [add(f"c{number}") for number in range(6)]
V6 = "fd00:1::/64"
ROUTES = [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.0.9"}]

SAME: dict[str, tuple[dict[str, Any], list[Step]]] = {
    "one subnet": (ONE, [add("c1"), add("c2"), check(), delete("c1"), add("c3"), delete("c2"), delete("c3"), delete("c3")]),
    "several interfaces of a container": (ONE, [add("c1/eth0"), add("c1/eth1"), delete("c1/eth0"), delete("c1/eth1")]),
    "a pool that runs out": (TINY, [*ALL_OF_TINY, delete("c2"), add("c9"), add("c10"), delete("c10")]),
    "round and round": (TINY, [step for number in range(12) for step in (add(f"c{number}"), delete(f"c{number}"))]),
    "the smallest subnet": (subnet("10.1.0.0/30"), [add("c1"), add("c2")]),
    "a subnet without an address to give": (subnet("10.1.0.0/31"), [add()]),
    "one address": (subnet("10.1.0.5/32"), [add()]),
    "a gateway of its own": (subnet("10.1.0.0/29", gateway="10.1.0.3"), ALL_OF_TINY),
    "a gateway elsewhere": (subnet("10.1.0.0/29", gateway="10.2.0.1"), [*ALL_OF_TINY, add("c6")]),
    "a start and an end": (
        subnet("10.1.0.0/24", rangeStart="10.1.0.250", rangeEnd="10.1.0.252"),
        [add("c1"), add("c2"), delete("c1"), add("c3"), add("c4"), add("c5")],
    ),
    "from the network's address to the broadcast": (
        subnet("10.1.0.0/30", rangeStart="10.1.0.0", rangeEnd="10.1.0.3"),
        [add("c1"), add("c2"), add("c3"), add("c4")],
    ),
    "IPv6": (subnet(V6), [add("c1"), add("c2"), check("c1", "fd00:1::2/64"), delete("c1"), delete("c2")]),
    "IPv6 up to the last one": (subnet("fd00:1::/126"), [add("c1"), add("c2"), add("c3")]),
    "IPv6 written at length": (
        subnet("FD00:0001:0:0::/64", rangeStart="fd00:1::0:0:a:0", gateway="fd00:1:0:0:0:0:0:1"),
        [add("c1"), add("c2")],
    ),
    "dual stack": (ranges(["10.1.0.0/24"], [V6], routes=ROUTES), [add("c1"), add("c2"), delete("c1"), add("c3"), delete("c2")]),
    "ranges of a set one after the other": (
        ranges([{"subnet": "10.1.0.0/30"}, {"subnet": "10.2.0.0/29", "rangeEnd": "10.2.0.3"}]),
        [add("c1"), add("c2"), add("c3"), delete("c1"), add("c4"), add("c5")],
    ),
    "a subnet before ranges": (ranges(["10.3.0.0/24"], subnet="10.1.0.0/24"), [add("c1"), delete("c1"), add("c2")]),
    "a second set that comes round": (ranges(["10.1.0.0/24"], ["10.2.0.0/30"]), [add("c1"), delete("c1"), add("c1")]),
    "ranges of the runtime": (
        {**ONE, "runtimeConfig": {"ipRanges": [[{"subnet": "10.5.0.0/24"}], [{"subnet": V6, "gateway": "fd00:1::9"}]]}},
        [add("c1"), add("c2"), delete("c1"), delete("c2")],
    ),
    "rangeStart without subnet": ({"ipam": {"rangeStart": "10.1.0.9", **ranges(["10.1.0.0/24"])["ipam"]}}, [add()]),
    "requested by CNI_ARGS": (ONE, [add("c1", "IP=10.1.0.77"), add("c2"), add("c3", "IP=10.1.0.77"), add("c4", "IP=10.1.0.1")]),
    "requested with a prefix length": (ONE, [add("c1", "IP=10.1.0.77/8"), add("c2", "IP=")]),
    "requested badly": (ONE, [add("c1", "IP=x"), add("c1", "MAC=1"), add("c1", "MAC=1;IgnoreUnknown=1")]),
    "requested by args": (
        ranges(["10.1.0.0/24"], [V6]),
        [add("c1", **requested("10.1.0.9", "fd00:1::9")), add("c2", **requested("fd00:1::8")), add("c3"), delete("c1")],
    ),
    "requested by the capability": (
        ONE,
        [add("c1", runtimeConfig={"ips": ["10.1.0.9/24"]}), add("c2", runtimeConfig={"ips": ["10.1.0.9"]}), add("c3")],
    ),
    "requested again by all three": (
        ONE,
        [add("c1", "IP=10.1.0.9", **requested("10.1.0.9"), runtimeConfig={"ips": ["::ffff:10.1.0.9"]})],
    ),
    "a start outside": (subnet("10.1.0.0/24", rangeStart="10.2.0.1"), [add()]),
    "a start of the other family": (subnet("10.1.0.0/24", rangeStart="fd00::1"), [add()]),
    "an end outside": (subnet("10.1.0.0/24", rangeEnd="10.2.0.1"), [add()]),
    "an end of the other family": (subnet("10.1.0.0/24", rangeStart="10.1.0.9", rangeEnd="fd00::1"), [add()]),
    "the end before the start": (subnet("10.1.0.0/24", rangeStart="10.1.0.9", rangeEnd="10.1.0.8"), [add()]),
    "host bits": (subnet("10.1.0.7/24"), [add()]),
    "host bits in a set": (ranges(["10.1.0.0/24"], ["10.2.0.9/24"]), [add()]),
    "overlapping sets": (ranges(["10.1.0.0/24"], [V6], ["10.1.0.0/16"]), [add()]),
    "overlapping ranges": (ranges(["10.1.0.0/24", "10.2.0.0/24", "10.1.0.128/25"]), [add()]),
    "overlapping subnets, ranges apart": (
        ranges([{"subnet": "10.1.0.0/24", "rangeEnd": "10.1.0.9"}], [{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.10"}]),
        [add("c1"), add("c2")],
    ),
    "mixed families": (ranges(["10.1.0.0/24", V6]), [add()]),
    "no ranges": ({"ipam": {}}, [add()]),
    "an empty set": (ranges([]), [add()]),
    "no ipam": ({"ipam": None}, [add()]),
    "two of a family before 0.3.0": ({**ranges(["10.1.0.0/24"], ["10.2.0.0/24"]), "cniVersion": "0.2.0"}, [add()]),
    "one of each family before 0.3.0": (
        {**ranges(["10.1.0.0/24"], [V6], routes=[*ROUTES, {"dst": "::/0"}]), "cniVersion": "0.2.0"},
        [add()],
    ),
    "an old result": ({**ranges(["10.1.0.0/24"], ["10.2.0.0/24"], routes=ROUTES), "cniVersion": "0.3.1"}, [add()]),
    "nothing to check": (ONE, [check(), add("c1"), check("c2"), check("c1"), delete("c1"), check("c1")]),
}


@pytest.mark.parametrize("name", SAME)
def test_answers_and_files_are_equal(twins: Twins, name: str) -> None:
    config, steps = SAME[name]
    for number, step in enumerate(steps):
        reference, own = _said(twins.theirs(step, config)), _said(twins.ours(step, config))
        assert own == reference, (number, step)
        assert twins.files("ours") == twins.files("theirs"), (number, step)


def _said(document: Answer) -> Any:
    """A result, or the sentence of an error: its code is 999 always in the reference, and tells something in ours."""
    return document["msg"] if "code" in document else document


# --- different on purpose --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [add("c2"), add("c2", "IP=10.9.0.77"), add("c2", "IP=fd00::1")])
def test_a_failed_add_uses_no_address_up(twins: Twins, step: Step) -> None:
    config = ranges(["10.1.0.0/24"], ["10.2.0.0/30"])
    for each in (add("c1"), step):
        assert _said(twins.ours(each, config)) == _said(twins.theirs(each, config))
    assert twins.files("theirs")["last_reserved_ip.0"] == "10.1.0.3"
    assert twins.files("ours")["last_reserved_ip.0"] == "10.1.0.2"


def test_a_second_add_is_refused_in_other_words(twins: Twins) -> None:
    for plugin in (twins.ours, twins.theirs):
        plugin(add(), ONE)
    assert twins.theirs(add(), ONE)["msg"].endswith("10.1.0.2 has been allocated to c1, duplicate allocation is not allowed")
    refusal = twins.ours(add(), ONE)
    assert (refusal["code"], refusal["msg"]) == (102, "10.1.0.2 has been allocated to c1, duplicate allocation is not allowed")
    assert "10.1.0.3" not in twins.files("ours")


def test_a_del_asks_no_more_of_the_configuration_than_it_needs(twins: Twins) -> None:
    for plugin in (twins.ours, twins.theirs):
        plugin(add(), ONE)
    broken = subnet("10.1.0.7/24")
    assert twins.theirs(delete(), broken)["msg"].startswith("invalid range set 0")
    assert twins.ours(delete(), broken) == {}
    assert set(twins.files("ours")) == {"lock", "last_reserved_ip.0"}


def test_check_looks_for_each_family(twins: Twins) -> None:
    config = ranges(["10.1.0.0/24"], [V6])
    twins.theirs(add(), config, "one")
    prev = {"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.2/24"}, {"address": "fd00:1::2/64"}]}
    step = ("CHECK", "c1", "", {"prevResult": prev})
    assert twins.ours(step, config, "one") == {} == twins.theirs(step, config, "one")
    (twins.folder / "one/pods/fd00:1::2").unlink()
    assert twins.theirs(step, config, "one") == {}
    refusal = twins.ours(step, config, "one")
    assert refusal["code"] == 106
    assert refusal["details"] == f"no file in {twins.folder}/one/pods holds fd00:1::2 for eth0"


def test_a_folder_is_named_in_full(twins: Twins) -> None:
    refusal = twins.ours(add(), {"ipam": {"subnet": "10.1.0.0/24", "dataDir": "here"}})
    assert (refusal["code"], refusal["msg"]) == (7, "host-local: ipam.dataDir: 'here' is no absolute path")


# --- one folder for both ---------------------------------------------------------------------------------------------------


def test_a_host_switches_over_and_back_with_containers_running(twins: Twins) -> None:
    assert _said(twins.theirs(add("c1"), ONE, "one"))["ips"][0]["address"] == "10.1.0.2/24"
    assert _said(twins.ours(add("c2"), ONE, "one"))["ips"][0]["address"] == "10.1.0.3/24"
    assert _said(twins.theirs(add("c3"), ONE, "one"))["ips"][0]["address"] == "10.1.0.4/24"
    assert _said(twins.ours(add("c4", "IP=10.1.0.4"), ONE, "one")).endswith("not available in range set 10.1.0.1-10.1.0.254")
    for plugin in (twins.ours, twins.theirs):
        for container, address in (("c1", "10.1.0.2/24"), ("c2", "10.1.0.3/24"), ("c3", "10.1.0.4/24")):
            assert plugin(check(container, address), ONE, "one") == {}
    assert twins.theirs(delete("c2"), ONE, "one") == {} == twins.ours(delete("c1"), ONE, "one")
    assert {name for name in twins.files("one") if name.startswith("10.")} == {"10.1.0.4"}
    assert twins.ours(delete("c2"), ONE, "one") == {}
    assert twins.ours(delete("c3"), ONE, "one") == {}
    assert twins.files("one") == {"lock": "", "last_reserved_ip.0": "10.1.0.4"}


def test_what_the_reference_gave_to_another_since_stays(twins: Twins) -> None:
    config = subnet("10.1.0.0/30")
    twins.ours(add("c1"), config, "one")
    twins.theirs(delete("c1"), config, "one")
    twins.theirs(add("c2"), config, "one")
    assert twins.ours(delete("c1"), config, "one") == {}
    assert twins.files("one")["10.1.0.2"] == "c2\r\neth0"


def test_the_older_files_of_the_reference_name_no_interface(twins: Twins) -> None:
    for data_dir in ("theirs", "ours"):
        (twins.folder / data_dir / "pods").mkdir(parents=True)
        for name, content in (("10.1.0.2", "c1"), ("10.1.0.3", " c1\n"), ("10.1.0.4", "c1\r\neth1"), ("10.1.0.5", "c11")):
            (twins.folder / data_dir / "pods" / name).write_text(content)
    for step in (check("c1"), delete("c1/eth1"), delete("c1/eth1"), check("c1"), add("c2"), delete("c2"), delete("c11")):
        assert bool(twins.ours(step, ONE)) == bool(twins.theirs(step, ONE)), step
        assert twins.files("ours") == twins.files("theirs"), step


def test_the_reference_waits_for_our_lock_and_we_for_its(twins: Twins) -> None:
    twins.theirs(add("c0"), ONE, "one")
    lock = twins.folder / "one/pods/lock"
    environ, stdin = twins._call(add("c1"), ONE, "one")
    with LeaseFolder(str(lock.parent))._locked():
        process = subprocess.Popen([REFERENCE], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(stdin)
        process.stdin.close()
        _until_somebody_waits_for(lock)
        assert "10.1.0.3" not in twins.files("one")
    assert process.stdout is not None
    assert json.loads(process.stdout.read())["ips"][0]["address"] == "10.1.0.3/24"
    process.stdout.close()
    assert process.wait(10) == 0


def _until_somebody_waits_for(lock: Path) -> None:
    inode, deadline = str(lock.stat().st_ino), time.monotonic() + 10
    while not any("->" in line and inode in line for line in Path("/proc/locks").read_text().splitlines()):
        assert time.monotonic() < deadline, "nobody waits for the lock"
        os.sched_yield()


def test_many_at_once_of_both(twins: Twins, config: Config) -> None:
    wide, together, answers = subnet("10.1.0.0/16"), _fork.Barrier(PROCESSES), _fork.SimpleQueue()
    workers = [_fork.Process(target=_worker, args=(twins, config, number, together, answers)) for number in range(PROCESSES)]
    for worker in workers:
        worker.start()
    given = [answers.get() for _ in range(PROCESSES * EACH)]
    for worker in workers:
        worker.join()
    assert [item for item in given if "/" not in item] == []
    assert len(set(given)) == PROCESSES * EACH
    leases = {name: text for name, text in twins.files("one").items() if name.startswith("10.")}
    assert sorted(leases) == sorted(address.removesuffix("/16") for address in given)
    for number in range(PROCESSES):  # each frees what the other made
        for turn in range(EACH):
            plugin = twins.theirs if number % 2 else twins.ours
            assert plugin(delete(f"c{number}-{turn}"), wide, "one") == {}
    assert set(twins.files("one")) == {"lock", "last_reserved_ip.0"}


def _worker(twins: Twins, config: Config, number: int, together: Barrier, answers: "multiprocessing.SimpleQueue[str]") -> None:
    with Controller(config, watcher=Unwatched()) as controller:
        mine = Twins(controller, twins.folder)
        plugin = mine.ours if number % 2 else mine.theirs
        together.wait(60)
        for turn in range(EACH):
            said = _said(plugin(add(f"c{number}-{turn}"), subnet("10.1.0.0/16"), "one"))
            answers.put(said if isinstance(said, str) else said["ips"][0]["address"])
