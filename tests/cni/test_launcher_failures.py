"""A netlibd that does not answer as it should: a call is never done twice, and always ends in an answer of the protocol.

In the place of netlibd there is a socket that does one thing wrong. What a launcher does next tells whether it takes the call
for begun: code 11 if so, and if not, a netlibd that is started for it, or the answer made in-process.
"""

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from cni_plugins.install import Kind, install
from cni_plugins.launcher import wire
from cni_plugins.skel import Outcome
from netlib import __version__
from netlib.config import Config
from netlib.daemon.dialects import Request
from netlib.daemon.fastpath import Refused
from netlib.verbs.call import call
from netlib.wire.client import start_daemon
from netlib.wire.protocol import LENGTH, MAX_ANSWER, greeting
from tests.cni.launching import check_at_once, environment, listening, run, serving
from tests.processes import ended

ROOT = Path(__file__).parents[2]
DEADLINE = 2
GREETING = greeting(__version__)
CONF = b'{"cniVersion": "1.1.0", "name": "pods", "ipam": {"addresses": [{"address": "10.0.0.2/24"}]}}'
Act = Callable[[socket.socket], None]


@pytest.fixture(scope="module", params=["c", "python"])
def static(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A launcher."""
    return installed(request.param, tmp_path_factory)


@pytest.fixture(scope="module", params=["c", "python"])
def hasty(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A launcher that waits for DEADLINE at most."""
    return installed(request.param, tmp_path_factory, deadline=DEADLINE)


def installed(kind: Kind, folders: pytest.TempPathFactory, deadline: int = 120) -> Path:
    folder = folders.mktemp(kind)
    install(folder, Config(), launcher=kind, types=["static"], deadline=deadline)
    return folder / "static"


VARIABLES = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/nonexistent", "CNI_IFNAME": "eth0"}


def add(static: Path, config: Config) -> Outcome:
    return run(static, environment(config, VARIABLES), CONF)


def address(outcome: Outcome) -> str:
    assert outcome.code == 0, outcome
    found: str = json.loads(outcome.stdout)["ips"][0]["address"]
    return found


def lost(outcome: Outcome) -> str:
    """What a call without an answer is told: in JSON, with the code 11."""
    assert (outcome.code, outcome.stderr) == (1, b"")
    error = json.loads(outcome.stdout)
    assert set(error) == {"cniVersion", "code", "msg", "details"}
    assert error["code"] == 11
    msg: str = error["msg"]
    return msg


@contextmanager
def misbehaving(config: Config, act: Act, *, greets: bool = True) -> Iterator[None]:
    """Let *act* have the first connection; the listener is closed with it, as that of a killed process is."""
    with listening(config) as listener:

        def once() -> None:
            with listener.accept()[0] as peer:
                listener.close()
                peer.sendall(GREETING if greets else b"")
                act(peer)

        thread = threading.Thread(target=once)
        thread.start()
        yield
        thread.join()


def take(peer: socket.socket) -> bytes:
    """Read the whole request."""
    (size,) = LENGTH.unpack(peer.recv(LENGTH.size, socket.MSG_WAITALL))
    return peer.recv(size, socket.MSG_WAITALL)


def framed(body: bytes) -> bytes:
    return LENGTH.pack(len(body)) + body


# --- the request was taken -----------------------------------------------------------------------------------------------


def test_netlibd_that_ends_during_the_call(static: Path, config: Config) -> None:
    def act(peer: socket.socket) -> None:
        take(peer)

    with misbehaving(config, act):
        assert lost(add(static, config)) == "netlibd ended during the call"
    assert not config.pid_file.exists(), "it was not started again, for the call may be done"


def test_netlibd_killed_at_work(static: Path, config: Config) -> None:
    """The real thing: its control socket in a process of its own, which dies by SIGKILL with the call in hand."""
    code = """if True:
        import os, sys, signal
        from netlib.config import Config
        from tests.cni.launching import serving
        with serving(Config.from_environment(), lambda request: os.kill(os.getpid(), signal.SIGKILL)):
            print("ready", flush=True)
            signal.pause()
    """
    variables = environment(config, {"PYTHONPATH": str(ROOT)})
    with subprocess.Popen([sys.executable, "-c", code], env=variables, stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"ready\n"
        assert lost(add(static, config)) == "netlibd ended during the call"
        assert victim.wait(5) == -signal.SIGKILL
    assert address(add(static, config)) == "10.0.0.2/24", "the next call starts another one"
    assert config.pid_file.exists()


def test_an_answer_that_does_not_come_is_waited_for_to_the_deadline(hasty: Path, config: Config) -> None:
    gone = threading.Event()

    def act(peer: socket.socket) -> None:
        take(peer)
        gone.wait(30)

    with misbehaving(config, act):
        assert lost(add(hasty, config)) == "netlibd did not answer in time"
        gone.set()
    assert not config.pid_file.exists()


@pytest.mark.parametrize(
    "answer",
    [
        framed(b""),
        framed(b"CNI"),
        framed(b'{"result": 1}'),
        framed(b"CNI\x02" + wire.pack(wire.DONE, b"\0", b"", b"")[4:]),
        framed(wire.MAGIC),
        framed(wire.MAGIC + b"\0\0"),
        framed(wire.MAGIC + b"\xff\xff\xff\xff"),
        framed(wire.MAGIC + b"\0\0\0\x05done"),
        framed(wire.pack(b"perhaps", b"\0", b"", b"")),
        framed(wire.pack(wire.DONE)),
        framed(wire.pack(wire.DONE, b"\0")),
        framed(wire.pack(wire.DONE, b"\0", b"")),
        framed(wire.pack(wire.DONE, b"", b"", b"")),
        framed(wire.pack(wire.DONE, b"00", b"", b"")),
        framed(wire.pack(wire.DONE, b"\0", b"", b"", b"")),
        LENGTH.pack(MAX_ANSWER + 1) + wire.MAGIC,
        b"\xff" * 100,
    ],
    ids=lambda answer: answer[:30].hex(),
)
def test_garbage_is_no_answer(static: Path, config: Config, answer: bytes) -> None:
    def act(peer: socket.socket) -> None:
        take(peer)
        peer.sendall(answer)
        with suppress(ConnectionResetError):  # it does not read on
            peer.recv(1)

    with misbehaving(config, act):
        assert lost(add(static, config)) == "netlibd gave an answer that cannot be read"
    assert not config.pid_file.exists()


@pytest.mark.parametrize("length", [1, 3, 4, 5, 20])
def test_an_answer_that_breaks_off(static: Path, config: Config, length: int) -> None:
    def act(peer: socket.socket) -> None:
        take(peer)
        peer.sendall(framed(wire.pack(wire.DONE, b"\0", b"{}", b""))[:length])

    with misbehaving(config, act):
        assert lost(add(static, config)) == "netlibd ended during the call"


def test_an_answer_in_pieces_is_put_together(static: Path, config: Config) -> None:
    large = b"x" * 3_000_000
    answer = framed(wire.pack(wire.DONE, b"\x07", large, b"told"))

    def act(peer: socket.socket) -> None:
        take(peer)
        for at in (*range(12), 12):
            peer.sendall(answer[at:] if at == 12 else answer[at : at + 1])

    with misbehaving(config, act):
        assert add(static, config) == Outcome(large, 7, b"told")


# --- the request was not taken -------------------------------------------------------------------------------------------


def test_closed_before_it_was_read(static: Path, config: Config) -> None:
    """As when netlibd is killed with the request still in its socket: the kernel says so, and the call is done anew."""

    def act(peer: socket.socket) -> None:
        select.select([peer], [], [], 30)

    with misbehaving(config, act):
        assert address(add(static, config)) == "10.0.0.2/24"
    assert call(config, "daemon.ping", {})["pid"], "a netlibd was started for it"


def test_closed_at_once(static: Path, config: Config) -> None:
    with misbehaving(config, lambda peer: None):
        assert address(add(static, config)) == "10.0.0.2/24"


def test_behind_a_full_backlog_it_is_done_in_process(static: Path, config: Config) -> None:
    """Nobody takes connections any more, so nothing was sent."""
    with listening(config) as listener:
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
            folder = os.open(config.run_dir, os.O_PATH)
            for waiting in (first, second):
                waiting.setblocking(False)
                waiting.connect_ex(f"/proc/self/fd/{folder}/{config.socket_path.name}")
            os.close(folder)
            outcome = add(static, config)
    assert address(outcome) == "10.0.0.2/24"
    assert outcome.stderr == b"netlibd is not used: netlibd does not greet\n"
    assert not config.pid_file.exists()


@pytest.mark.parametrize("said", [b"", b"\0", LENGTH.pack(20) + GREETING[4:14]], ids=["nothing", "a byte", "half"])
def test_without_a_greeting_not_a_byte_is_sent(static: Path, config: Config, said: bytes) -> None:
    sent: list[bytes] = []

    def act(peer: socket.socket) -> None:
        peer.sendall(said)
        sent.append(peer.recv(1))

    with misbehaving(config, act, greets=False):
        outcome = add(static, config)
    assert (address(outcome), sent) == ("10.0.0.2/24", [b""])
    assert outcome.stderr == b"netlibd is not used: netlibd does not greet\n"


@pytest.mark.parametrize(
    "said",
    [framed(b"{}"), framed(b"{" * 300), framed(b'{"netlibd":' + b" " * 300), b"HTTP/1.1 400\r\n"],
    ids=["short", "long", "long beginning as ours", "text"],
)
def test_who_greets_otherwise_is_not_spoken_to(static: Path, config: Config, said: bytes) -> None:
    sent: list[bytes] = []

    def act(peer: socket.socket) -> None:
        peer.sendall(said)
        with suppress(ConnectionResetError):  # it does not read on
            sent.append(peer.recv(1))

    with misbehaving(config, act, greets=False):
        assert address(add(static, config)) == "10.0.0.2/24"
    assert sent in ([], [b""])


def test_a_greeting_in_pieces_is_heard(static: Path, config: Config) -> None:
    def act(peer: socket.socket) -> None:
        for byte in GREETING:
            peer.sendall(bytes([byte]))
        take(peer)
        peer.sendall(framed(wire.pack(wire.DONE, b"\x07", b"out", b"told")))

    with misbehaving(config, act, greets=False):
        assert add(static, config) == Outcome(b"out", 7, b"told")


def test_a_socket_of_somebody_else_is_not_spoken_to(static: Path, config: Config) -> None:
    config.run_dir.mkdir(parents=True)
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:  # who listens is whom the kernel names to those that connect
        os.chown(config.run_dir, 65534, 65534)
        os.chdir(config.run_dir)
        os.setuid(65534)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(config.socket_path.name)
            listener.listen()
            theirs.sendall(b"ready")
            while True:
                theirs.sendall(listener.accept()[0].recv(1))
    theirs.close()
    with ours:
        assert ours.recv(5) == b"ready"
        assert address(add(static, config)) == "10.0.0.2/24"
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert ours.recv(1) == b"", "not a byte of ours"
    assert not config.pid_file.exists()


# --- there is none -------------------------------------------------------------------------------------------------------


def test_where_there_is_none_it_is_started(static: Path, config: Config) -> None:
    version = {**VARIABLES, "CNI_COMMAND": "VERSION"}
    assert run(static, environment(config, version)).code == 0
    assert not config.run_dir.exists(), "VERSION needs none"
    assert address(add(static, config)) == "10.0.0.2/24"
    assert call(config, "daemon.ping", {})["pid"] == int(config.pid_file.read_text())


def test_many_without_netlibd_end_with_one(static: Path, config: Config) -> None:
    check_at_once([static], environment(config, VARIABLES), 12)
    pid = call(config, "daemon.ping", {})["pid"]
    os.kill(pid, signal.SIGKILL)
    assert ended(pid)
    check_at_once([static], environment(config, VARIABLES), 12)
    assert call(config, "daemon.ping", {})["pid"] == int(config.pid_file.read_text()) != pid


# --- "not mine" ----------------------------------------------------------------------------------------------------------


def test_a_refusal_is_done_in_process(static: Path, config: Config) -> None:
    asked: list[Request] = []

    def handle(request: Request) -> Any:
        asked.append(request)
        raise Refused("not today")

    with serving(config, handle, "99.0"):
        assert address(add(static, config)) == "10.0.0.2/24"
    assert {request.version for request in asked} == {__version__}
    assert not config.pid_file.exists()


def copy_of_netlib(folder: Path, version: str) -> Path:
    for package in ("netlib", "drivers", "ipam", "cni_plugins"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    init = folder / "netlib" / "__init__.py"
    init.write_text(init.read_text().replace(f'"{__version__}"', f'"{version}"'))
    return folder


@pytest.mark.parametrize("kind", ["c", "python"])
def test_after_an_upgrade_the_older_netlibd_is_replaced(config: Config, tmp_path: Path, kind: str) -> None:
    start_daemon(config)
    first = call(config, "daemon.ping", {})
    root = copy_of_netlib(tmp_path / "copy", "99.0")
    command = [sys.executable, "-P", "-m", "netlib", "cni", "install", f"--{kind}", str(tmp_path / "bin")]
    subprocess.run(command, env=environment(config, {"PYTHONPATH": str(root)}), check=True, capture_output=True)
    outcome = add(tmp_path / "bin/static", config)
    assert (address(outcome), outcome.stderr) == ("10.0.0.2/24", b"")
    second = call(config, "daemon.ping", {})
    assert (second["version"], second["pid"] != first["pid"]) == ("99.0", True)


def test_a_launcher_from_before_an_upgrade_is_served(config: Config, tmp_path: Path) -> None:
    root = copy_of_netlib(tmp_path / "copy", "0.0.1")
    command = [sys.executable, "-P", "-m", "netlib", "cni", "install", "--c", str(tmp_path / "bin")]
    subprocess.run(command, env=environment(config, {"PYTHONPATH": str(root)}), check=True, capture_output=True)
    shutil.rmtree(root)  # so that nobody else can have done it
    start_daemon(config)
    assert address(add(tmp_path / "bin/static", config)) == "10.0.0.2/24"


def test_why_netlibd_cannot_be_started_is_told_on_stderr(static: Path, config: Config) -> None:
    config.state_dir.parent.mkdir(parents=True, exist_ok=True)
    config.state_dir.write_text("in the way")
    outcome = add(static, config)
    assert address(outcome) == "10.0.0.2/24"
    assert outcome.stderr.startswith(b"netlibd is not used: ")
    assert outcome.stderr.count(b"\n") == 1
