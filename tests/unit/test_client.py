"""The caller's side of netlibd against a real, tiny server: what comes back, and when the work is done here instead."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from netlib import __version__, errors
from netlib.config import Config
from netlib.daemon.dialects import Request
from netlib.daemon.fastpath import ControlServer, Refused
from netlib.errors import DaemonError, DeadlineExceeded, KernelError, NetlibError, NotFound, TeardownError
from netlib.verbs.call import call
from netlib.wire.client import DaemonWatcher
from netlib.wire.protocol import LENGTH, MAX_REQUEST, at_socket, error_from_json, error_to_json, frame, greeting

VERSION = "0.0.1"


@contextmanager
def listening(config: Config) -> Iterator[socket.socket]:
    config.run_dir.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        at_socket(config.socket_path, listener.bind)
        listener.listen()
        yield listener


@contextmanager
def serving(config: Config, handle: Callable[[Request], Any]) -> Iterator[ControlServer]:
    with listening(config) as listener:
        server = ControlServer(listener, handle, VERSION)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield server
        finally:
            server.stop()
            thread.join()
            server.close()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The verbs that were done in this process."""
    done: list[str] = []

    def perform(config: Config, verb: str, args: dict[str, Any], *rest: Any) -> str:
        done.append(verb)
        return "done here"

    monkeypatch.setattr("netlib.verbs.call._perform_here", perform)
    return done


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The attempts to start a netlibd, none of which succeeds."""
    attempts: list[Config] = []

    def start(config: Config, *, deadline: float = 0) -> None:
        attempts.append(config)
        raise DaemonError("not in this test")

    monkeypatch.setattr("netlib.wire.client.start_daemon", start)
    return attempts


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_arrives_as_it_was_raised(name: str) -> None:
    kind: type[NetlibError] = getattr(errors, name)
    if issubclass(kind, TeardownError):
        sent: NetlibError = kind([KernelError("no", 17), NotFound("gone")])
    elif issubclass(kind, errors.CommandNotRun):
        sent = kind("no such command", 127)
    elif issubclass(kind, KernelError):
        sent = kind("no", 95)
    else:
        sent = kind("no")
    arrived = error_from_json(error_to_json(sent))
    assert type(arrived) is kind
    assert (str(arrived), arrived.exit_code) == (str(sent), sent.exit_code)
    if isinstance(sent, KernelError) and isinstance(arrived, KernelError):
        assert arrived.errno == sent.errno
    if isinstance(sent, TeardownError) and isinstance(arrived, TeardownError):
        assert [type(failure) for failure in arrived.failures] == [KernelError, NotFound]


def test_an_error_of_a_newer_version_is_one_of_ours_all_the_same() -> None:
    arrived = error_from_json({"type": "Unheard", "message": "of", "exit_code": 3})
    assert (type(arrived), str(arrived), arrived.exit_code) == (NetlibError, "of", 3)


def test_the_light_path_stays_light() -> None:
    heavy = {"msgspec", "logging", "pyroute2", "subprocess", "sqlite3", "ctypes", "asyncio", "argparse"}
    code = f"import netlib.verbs.call, sys; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.split() == []


def test_a_result_comes_back_with_progress_before_it(config: Config) -> None:
    def handle(request: Request) -> Any:
        assert request.tell is not None
        for number in range(50):
            request.tell({"moment": "ensured", "object": number})
        return {"echo": request.args, "long": "x" * 1_000_000}

    told: list[Any] = []
    with serving(config, handle):
        answer = call(config, "test", {"a": [1, None, "é"]}, progress=told.append)
    assert answer["echo"] == {"a": [1, None, "é"]}
    assert len(answer["long"]) == 1_000_000
    assert [update["object"] for update in told] == list(range(50))


def test_answers_that_come_at_once_are_told_apart(config: Config) -> None:
    answers = frame({"progress": 1}) + frame({"progress": 2}) + frame({"result": "done"})

    def answer(listener: socket.socket) -> None:
        with _greeted(listener) as peer:
            peer.recv(1 << 16)
            peer.sendall(answers)
            peer.recv(1)

    told: list[int] = []
    with listening(config) as listener:
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        assert call(config, "test", {}, deadline=5, progress=told.append) == "done"
        thread.join()
    assert told == [1, 2]


def test_the_request_says_who_asks_from_where(config: Config) -> None:
    seen: list[Request] = []
    with serving(config, seen.append):
        call(config, "network.ls", {})
    assert seen[0].from_here
    assert (seen[0].version, seen[0].protocol, seen[0].store) == (__version__, 1, None)


def test_lent_descriptors_arrive_and_are_closed_afterwards(config: Config) -> None:
    def handle(request: Request) -> None:
        if request.verb == "write":
            os.write(request.fds[0], b"through")

    ours, theirs = os.pipe()
    with serving(config, handle):
        call(config, "write", {}, fds=[theirs])
        os.close(theirs)
        assert os.read(ours, 100) == b"through"
        assert os.read(ours, 100) == b""
    os.close(ours)


def test_an_error_is_raised_here(config: Config) -> None:
    def handle(request: Request) -> None:
        raise NotFound(f"network {request.args['name']!r} not found")

    with serving(config, handle), pytest.raises(NotFound, match="network 'web' not found"):
        call(config, "network.rm", {"name": "web"})


def test_a_bug_in_a_verb_is_an_error_of_the_daemon_and_not_its_end(config: Config) -> None:
    def handle(request: Request) -> Any:
        return {"unwritable": object()} if request.verb == "object" else 1 // 0

    with serving(config, handle):
        with pytest.raises(DaemonError, match="ZeroDivisionError"):
            call(config, "zero", {})
        with pytest.raises(DaemonError, match="not JSON serializable"):
            call(config, "object", {})


def test_without_a_daemon_the_work_is_done_here(config: Config, here: list[str], started: list[Config]) -> None:
    assert call(config, "network.ls", {}) == "done here"
    assert (here, started) == (["network.ls"], [])


def test_a_daemon_that_was_killed_is_started_again(config: Config, here: list[str], started: list[Config]) -> None:
    with listening(config):
        pass
    assert config.socket_path.is_socket()
    assert call(config, "network.ls", {}) == "done here"
    assert (here, started) == (["network.ls"], [config])


def test_not_mine_is_done_here(config: Config, here: list[str], started: list[Config]) -> None:
    def handle(request: Request) -> None:
        raise Refused("other namespaces")

    with serving(config, handle) as server:
        server._version = __version__
        assert call(config, "network.ls", {}) == "done here"
    assert (here, started) == (["network.ls"], [])


def test_a_newer_daemon_is_left_alone(config: Config, here: list[str], started: list[Config]) -> None:
    verbs: list[str] = []

    def handle(request: Request) -> None:
        verbs.append(request.verb)
        raise Refused("this is netlib 99.0")

    with serving(config, handle) as server:
        server._version = "99.0"
        assert call(config, "network.ls", {}) == "done here"
    assert (verbs, here, started) == (["network.ls"], ["network.ls"], [])


def test_a_request_that_was_not_taken_is_done_here(config: Config, here: list[str]) -> None:
    with listening(config) as listener:
        thread = threading.Thread(target=_close_two, args=(listener,))
        thread.start()
        answer = call(config, "network.ls", {"much": "x" * 1_000_000})
        thread.join()
    assert answer == "done here"


def _close_two(listener: socket.socket) -> None:
    for _ in range(2):
        _greeted(listener).close()


def _greeted(listener: socket.socket) -> socket.socket:
    peer = listener.accept()[0]
    peer.sendall(greeting(VERSION))
    return peer


def _take_and_close(listener: socket.socket) -> None:
    with _greeted(listener) as peer:
        size = LENGTH.unpack(peer.recv(LENGTH.size, socket.MSG_WAITALL))[0]
        peer.recv(size, socket.MSG_WAITALL)


def test_a_request_that_was_taken_is_never_done_twice(config: Config, here: list[str]) -> None:
    with listening(config) as listener:
        thread = threading.Thread(target=_take_and_close, args=(listener,))
        thread.start()
        with pytest.raises(DaemonError, match="ended during 'network.create'"):
            call(config, "network.create", {})
        thread.join()
    assert here == []


def test_an_answer_that_does_not_come_is_waited_for_to_the_deadline(config: Config, here: list[str]) -> None:
    given_up = threading.Event()

    def wait(listener: socket.socket) -> None:
        with _greeted(listener):
            given_up.wait(5)

    with listening(config) as listener:
        thread = threading.Thread(target=wait, args=(listener,))
        thread.start()
        before = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="did not answer 'network.create' in time; see `netlib log`"):
            call(config, "network.create", {}, deadline=0.2)
        assert 0.15 < time.monotonic() - before < 5
        given_up.set()
        thread.join()
    assert here == []


def test_a_folder_with_a_long_name_has_its_socket_too(tmp_path: Path) -> None:
    config = Config(state_dir=tmp_path, run_dir=tmp_path / ("x" * 100) / ("y" * 100))
    with serving(config, lambda request: "reached"):
        assert call(config, "test", {}) == "reached"


def test_a_watcher_keeps_its_connection_and_makes_another_when_that_is_gone(config: Config, started: list[Config]) -> None:
    seen: list[dict[str, Any]] = []

    def handle(request: Request) -> None:
        assert request.about_itself
        seen.append(request.args)

    with DaemonWatcher(config) as watcher:
        watcher.changed(sandboxes=["none"], networks=[], needed=False)  # nobody is there, and nobody is needed
        assert started == []
        with serving(config, handle):
            watcher.changed(sandboxes=["s1"], networks={"n1"}, needed=True)
            kept = watcher._connection
            watcher.changed(sandboxes=["s2"], networks=[], needed=False)
            assert watcher._connection is kept
        config.socket_path.unlink()
        with serving(config, handle):
            watcher.changed(sandboxes=["s3"], networks=[], needed=True)
    assert [args["sandboxes"] for args in seen] == [["s1"], ["s2"], ["s3"]]
    assert seen[0] == {"sandboxes": ["s1"], "networks": ["n1"], "needed": True}


def test_a_watcher_speaks_up_only_when_it_is_needed(config: Config, started: list[Config]) -> None:
    def handle(request: Request) -> None:
        raise Refused("it serves another store")

    with serving(config, handle) as server, DaemonWatcher(config) as watcher:
        server._version = __version__
        watcher.changed(sandboxes=["s1"], networks=[], needed=False)
        with pytest.raises(DaemonError, match="not served: .* another store"):
            watcher.changed(sandboxes=["s1"], networks=[], needed=True)
    config.socket_path.unlink()
    with DaemonWatcher(config) as watcher, pytest.raises(DaemonError, match="not in this test"):
        watcher.changed(sandboxes=["s1"], networks=[], needed=True)


# --- what peers may send -----------------------------------------------------------------------------------------------


def _connect(config: Config) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.settimeout(5)
    at_socket(config.socket_path, peer.connect)
    assert peer.recv(len(greeting(VERSION)), socket.MSG_WAITALL) == greeting(VERSION)
    return peer


def _whole(request: dict[str, Any]) -> bytes:
    return frame({"protocol": 1, "version": "1", "verb": "x", "args": {}, **request})


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        LENGTH.pack(MAX_REQUEST + 1),
        LENGTH.pack(0),
        LENGTH.pack(3) + b"{}}",
        LENGTH.pack(4) + b"null",
        LENGTH.pack(100_000) + b"[" * 100_000,
        LENGTH.pack(4) + b"\xff\xfe\x00\x01",
        _whole({"args": []}),
        _whole({"verb": None}),
        _whole({"store": "x"}),
        _whole({"version": 3}),
        _whole({}) + b"more",
    ],
)
def test_what_is_no_request_is_refused_and_harms_nobody(config: Config, sent: bytes) -> None:
    with serving(config, lambda request: "fine"):
        with _connect(config) as peer:
            peer.sendall(sent)
            assert b"malformed request" in peer.recv(1000)
            assert peer.recv(1000) == b""
        assert call(config, "test", {}) == "fine"


def test_a_request_may_come_in_pieces(config: Config) -> None:
    with serving(config, lambda request: request.args), _connect(config) as peer:
        for byte in _whole({"args": {"slowly": True}}):
            peer.sendall(bytes([byte]))
        assert b'{"result":{"slowly":true}}' in peer.recv(1000)


def test_half_a_request_is_not_waited_for_forever(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netlib.daemon.fastpath._FRAME_SECONDS", 0.1)
    with serving(config, lambda request: "fine"), _connect(config) as peer, _connect(config) as idle:
        peer.sendall(_whole({})[:-1])
        assert peer.recv(1000) == b""
        idle.sendall(_whole({}))  # one that has begun nothing may stay as long as it likes
        assert b"fine" in idle.recv(1000)


def test_who_says_nothing_makes_room_for_others(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was silent longest, never one whose request is worked on; it may come back."""
    monkeypatch.setattr("netlib.daemon.fastpath.MAX_PEERS", 3)
    begun, go = threading.Event(), threading.Event()

    def handle(request: Request) -> str:
        begun.set()
        return "finished" if go.wait(5) else "waited in vain"

    with ExitStack() as stack:
        stack.enter_context(serving(config, handle))
        silent, latest, busy = (stack.enter_context(_connect(config)) for _ in range(3))  # taken in this order
        busy.sendall(_whole({}))
        assert begun.wait(5)
        watcher = stack.enter_context(DaemonWatcher(config))
        go.set()
        watcher.changed(sandboxes=["s1"], networks=[], needed=True)
        assert silent.recv(1000) == b""
        assert b"finished" in busy.recv(1000)
        latest.sendall(_whole({}))
        assert b"finished" in latest.recv(1000)
        for _ in range(4):  # each sends another away, the watcher's too, which comes back
            stack.enter_context(_connect(config))
        watcher.changed(sandboxes=["s1"], networks=[], needed=True)


def test_when_all_are_at_work_no_more_are_taken(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netlib.daemon.fastpath.MAX_PEERS", 1)
    begun, go = threading.Event(), threading.Event()

    def handle(request: Request) -> str:
        begun.set()
        return "finished" if go.wait(5) else "waited in vain"

    with serving(config, handle), _connect(config) as busy, DaemonWatcher(config) as watcher:
        busy.sendall(_whole({}))
        assert begun.wait(5)
        with pytest.raises(DaemonError, match="not served: netlibd broke off"):
            watcher.changed(sandboxes=["s1"], networks=[], needed=True)
        go.set()
        assert b"finished" in busy.recv(1000)


def test_more_descriptors_than_allowed_are_closed(config: Config) -> None:
    with serving(config, lambda request: "fine"):
        before = len(os.listdir("/proc/self/fd"))
        with _connect(config) as peer, open("/dev/null") as null:
            socket.send_fds(peer, [_whole({})[:-1]], [null.fileno()] * 100)
            assert b"descriptors" in peer.recv(1000)
            assert peer.recv(1000) == b""
        assert len(os.listdir("/proc/self/fd")) == before


def test_requests_are_worked_on_side_by_side(config: Config) -> None:
    barrier = threading.Barrier(8, timeout=5)

    def handle(request: Request) -> None:
        barrier.wait()

    with serving(config, handle):
        threads = [threading.Thread(target=call, args=(config, "test", {})) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not barrier.broken


def test_the_daemon_answers_for_itself_while_all_workers_wait(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netlib.daemon.fastpath.WORKERS", 1)
    go = threading.Event()

    def handle(request: Request) -> bool:
        return request.about_itself or go.wait(5)

    with serving(config, handle):
        waiting = threading.Thread(target=call, args=(config, "long", {}))
        waiting.start()
        assert call(config, "daemon.ping", {}) is True
        go.set()
        waiting.join()


def test_stopping_finishes_what_was_begun(config: Config) -> None:
    begun, go = threading.Event(), threading.Event()

    def handle(request: Request) -> str:
        begun.set()
        go.wait(5)
        return "finished"

    answers: list[str] = []
    with listening(config) as listener:
        server = ControlServer(listener, handle, VERSION)
        running = threading.Thread(target=server.run)
        running.start()
        caller = threading.Thread(target=lambda: answers.append(call(config, "long", {})))
        caller.start()
        assert begun.wait(5)
        server.stop()
        go.set()
        running.join()
        caller.join()
        server.close()
    assert answers == ["finished"]
