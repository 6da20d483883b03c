"""CNI calls on a poor host: read-only folders, too little memory, no more processes. Each answers with an error object."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cni_plugins.install import Kind, install
from cni_plugins.skel import Outcome
from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.model import CniAttachment, NetnsRef
from netlib.testing.snapshot import differences, snapshot
from netlib.verbs.call import call
from netlib.wire.client import start_daemon
from tests.cni.launching import environment, run, serving

ELSEWHERE = ("unshare", "--mount")  # another mount namespace than netlibd's: the call is done in-process
MIB = 1 << 20
LEAST, MOST = 14 * MIB, 300 * MIB  # of address space: with the first an interpreter comes as far as our code


@pytest.fixture(scope="module", params=["c", "python"])
def plugins(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind: Kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    install(folder, Config(), launcher=kind, types=["bridge", "static"])
    return folder


@pytest.fixture
def pods(tmp_path: Path) -> dict[str, Any]:
    """A configuration whose addresses are in the test's own folder."""
    ipam = {"type": "host-local", "subnet": "10.22.0.0/16", "dataDir": str(tmp_path / "leases")}
    return {"cniVersion": "1.1.0", "name": "pods", "type": "bridge", "isGateway": True, "ipMasq": True, "ipam": ipam}


@pytest.fixture
def pod(netns_factory: Callable[[str], NetnsRef]) -> str:
    return netns_factory("pod").path


@pytest.fixture
def host(config: Config) -> Iterator[Config]:
    """A host that has been used; what a test leaves goes at the end."""
    with Controller(config, watcher=Unwatched()):
        config.run_dir.mkdir(exist_ok=True)
    yield config
    call(config, "system.reset", {})


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def cni(plugins: Path, config: Config, verb: str, conf: dict[str, Any], netns: str, prefix: Sequence[str] = ()) -> Outcome:
    variables = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_NETNS": netns, "CNI_IFNAME": "eth0"}
    environ = environment(config, {**variables, "CNI_PATH": str(plugins)})
    return run(plugins / conf["type"], environ, json.dumps(conf).encode(), prefix)


def attachments(config: Config) -> list[str]:
    with Controller(config, watcher=Unwatched()) as controller, controller.store.read() as tx:
        return [row.name for row in tx.all(CniAttachment)]


@pytest.mark.parametrize("name", ["state", "run"])
def test_a_read_only_folder(plugins: Path, host: Config, pods: dict[str, Any], pod: str, name: str) -> None:
    folder = host.state_dir if name == "state" else host.run_dir
    before = snapshot()
    with read_only(folder):
        assert cni(plugins, host, "VERSION", pods, pod).code == 0
        refused = cni(plugins, host, "ADD", pods, pod)
        error = json.loads(refused.stdout)
        assert (refused.code, error["code"]) == (1, 108)
        assert error["msg"].startswith(f"{name} folder {folder} is on a read-only disk")
        assert refused.stderr.startswith(b"netlibd is not used: ")
        assert refused.stderr.count(b"\n") == 1
    assert (differences(before, snapshot()), attachments(host)) == ([], [])
    assert cni(plugins, host, "ADD", pods, pod).code == 0
    present = snapshot()
    call(host, "daemon.leave", {})
    with read_only(folder):
        refused = cni(plugins, host, "DEL", pods, pod)
        assert (refused.code, json.loads(refused.stdout)["code"]) == (1, 108)
        assert len(attachments(host)) == 1
    assert differences(present, snapshot()) == []
    assert cni(plugins, host, "DEL", pods, pod).code == 0


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_too_little_memory(plugins: Path, host: Config, pods: dict[str, Any], pod: str, verb: str) -> None:
    """In-process, from too little to enough: each refusal is an error object, and undone."""
    if verb == "DEL":
        assert cni(plugins, host, "ADD", pods, pod, ELSEWHERE).code == 0
    present = attachments(host)
    for limit in range(LEAST, MOST, 3 * MIB):
        outcome = cni(plugins, host, verb, pods, pod, ("prlimit", f"--as={limit}", *ELSEWHERE))
        if outcome.code == 0:
            assert limit > LEAST, "the first limit was to be too small"
            break
        if not outcome.stdout:  # the interpreter itself had no memory to raise its error with
            assert b"emory" in outcome.stderr or b"failed to map segment" in outcome.stderr or outcome.code < 0, outcome
            continue
        code = json.loads(outcome.stdout)["code"]
        assert code in (5, 11, 107), outcome  # a library that cannot be mapped; the call; the undoing of it, or the removal
        assert b"Traceback" not in outcome.stderr
        if code != 107:  # a DEL may have come to its end before it ran out of memory, and is asked for again
            assert attachments(host) in ([present] if verb == "ADD" else [present, []])
    else:
        pytest.fail(f"{MOST} bytes are too little")
    assert cni(plugins, host, "DEL", pods, pod, ELSEWHERE).code == 0
    assert attachments(host) == []


def test_with_netlibd_a_launcher_needs_little(plugins: Path, host: Config, pods: dict[str, Any], pod: str) -> None:
    start_daemon(host)
    for verb in ("ADD", "DEL"):
        assert cni(plugins, host, verb, pods, pod, ("prlimit", f"--as={LEAST}")).code == 0


def test_an_answer_that_the_launcher_has_no_memory_for(tmp_path: Path, config: Config) -> None:
    """By the C launcher, for the Python launcher's interpreter needs more than any answer."""
    install(tmp_path / "bin", Config(), launcher="c", types=["static"])
    variables = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/nonexistent", "CNI_IFNAME": "eth0"}
    with serving(config, lambda request: Outcome(b"x" * (32 * MIB), 0)):
        outcome = run(tmp_path / "bin/static", environment(config, variables), b"{}", ("prlimit", f"--as={8 * MIB}"))
    error = json.loads(outcome.stdout)
    assert (outcome.code, error["code"], error["msg"]) == (1, 11, "too little memory for netlibd's answer")
    assert os.fsencode("Traceback") not in outcome.stderr
