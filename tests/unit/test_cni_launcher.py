"""What a launcher and netlibd say to each other, byte by byte, and how little the Python launcher imports."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_plugins.decode import MAX_BYTES
from cni_plugins.launcher import call, wire
from cni_plugins.skel import Outcome
from netlib.config import Config
from netlib.daemon.dialects import Request
from netlib.daemon.fastpath import Refused
from netlib.errors import StoreError
from netlib.wire import protocol as netlib_wire
from netlib.wire.protocol import LENGTH, at_socket, greeting
from tests.cni.launching import serving

ROOT = Path(__file__).parents[2]
RELEASE = b"0.0.1"


@given(st.lists(st.binary(max_size=300)))
def test_fields_come_out_as_they_went_in(fields: list[bytes]) -> None:
    body = wire.pack(*fields)
    assert wire.unpack(body) == fields


@given(st.binary(max_size=40), st.integers(0, 60))
def test_noise_is_refused(noise: bytes, end: int) -> None:
    for body in (noise, wire.MAGIC + noise, wire.pack(noise, noise)[:end]):
        try:
            fields = wire.unpack(body)
        except ValueError:
            continue
        assert wire.pack(*fields) == body


def test_an_environment_is_what_python_would_make_of_it() -> None:
    entries = [b"A=1", b"A=2", b"B=", b"C=x=y", b"nothing", b"", b"D=\xff", "E=ä".encode()]
    assert wire.environment(entries) == {"A": "1", "B": "", "C": "x=y", "D": "\udcff", "E": "ä"}


def test_limits_are_those_of_the_other_side() -> None:
    source = (ROOT / "cni_plugins/launcher/launcher.c").read_text()
    assert wire.MAX_STDIN == MAX_BYTES
    for name, value in (
        ("MAX_STDIN", MAX_BYTES),
        ("MAX_REQUEST", netlib_wire.MAX_REQUEST),
        ("MAX_ANSWER", netlib_wire.MAX_ANSWER),
    ):
        assert f"#define {name} ({value >> 20} << 20)" in source
    assert (call.MAX_REQUEST, call.MAX_ANSWER) == (netlib_wire.MAX_REQUEST, netlib_wire.MAX_ANSWER)
    assert call.NAMESPACES == netlib_wire.NAMESPACES
    for texts in (call._UNTAKEN, call._UNANSWERED, call._ENDED, call._UNREADABLE):
        assert all(f'"{text}"' in source for text in texts), texts


def test_the_python_launcher_imports_next_to_nothing() -> None:
    """A runtime waits for each of them at every ADD and DEL: socket alone would double the time."""
    code = (
        "import sys; before = set(sys.modules); sys.path.append(sys.argv[1]); import cni_plugins.launcher.launch;"
        "print(*(name for name in sys.modules if name not in before))"
    )
    run = subprocess.run([sys.executable, "-ISXutf8", "-c", code, str(ROOT)], capture_output=True, text=True, check=True)
    ours = {f"cni_plugins.launcher.{name}" for name in ("call", "launch", "wire")}
    own = {"cni_plugins", "cni_plugins.launcher", "netlib"} | ours
    assert set(run.stdout.split()) == {"_socket"} | own


# --- netlibd's end -------------------------------------------------------------------------------------------------------


def exchange(config: Config, handle: Callable[[Request], Any], body: bytes) -> bytes:
    """Send one body, with our namespaces and a file, to a control server; what it answers before it closes or rests."""
    paths = [*(f"/proc/self/ns/{kind}" for kind in call.NAMESPACES), __file__]
    files = [os.open(path, os.O_RDONLY) for path in paths]
    try:
        with serving(config, handle, RELEASE.decode()), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            at_socket(config.socket_path, peer.connect)
            hello = greeting(RELEASE.decode())
            assert peer.recv(len(hello), socket.MSG_WAITALL) == hello
            socket.send_fds(peer, [LENGTH.pack(len(body)) + body], files)
            size = peer.recv(LENGTH.size, socket.MSG_WAITALL)
            return peer.recv(LENGTH.unpack(size)[0], socket.MSG_WAITALL) if size else b""
    finally:
        for fd in files:
            os.close(fd)


def test_a_request_is_read_and_an_outcome_written(config: Config) -> None:
    seen: list[Request] = []
    contents: list[bytes] = []

    def handle(request: Request) -> Outcome:
        seen.append(request)
        contents.append(os.pread(request.args["lent"][wire.STDIN], 10, 0))
        return Outcome(b"out\0\xff", 7, b"err")

    body = wire.pack(RELEASE, b"5:6", wire.STDIN, b"bridge", b"CNI_COMMAND=ADD", b"X=\xff")
    answer = exchange(config, handle, body)
    assert wire.unpack(answer) == [wire.DONE, b"\x07", b"out\0\xff", b"err"]
    (request,) = seen
    assert (request.from_launcher, request.from_here, request.about_itself) == (True, True, False)
    assert (request.version, request.store) == (RELEASE.decode(), [5, 6])
    assert (request.args["kind"], request.args["environ"]) == ("bridge", {"CNI_COMMAND": "ADD", "X": "\udcff"})
    assert contents == [Path(__file__).read_bytes()[:10]]


@pytest.mark.parametrize(
    ("raised", "outcome", "holds"),
    [
        (Refused("it lives elsewhere"), wire.NOT_MINE, b"it lives elsewhere"),
        (StoreError("the store is gone"), wire.DONE, b'"code": 108,\n    "msg": "the store is gone"'),
        (
            ZeroDivisionError("by zero"),
            wire.DONE,
            b"netlibd failed at 'cni': ZeroDivisionError: by zero",
        ),
    ],
)
def test_failures_are_answers_too(config: Config, raised: Exception, outcome: bytes, holds: bytes) -> None:
    def handle(request: Request) -> Outcome:
        raise raised

    answer = wire.unpack(exchange(config, handle, wire.pack(RELEASE, b"", wire.STDIN, b"static")))
    assert answer[0] == outcome
    assert any(holds in field for field in answer[1:])


@pytest.mark.parametrize(
    "body",
    [
        wire.MAGIC,
        wire.MAGIC + b"\0\0\0\x09x",
        wire.pack(RELEASE, b"", b""),
        wire.pack(RELEASE, b"", b"stdin netns", b"static"),
        wire.pack(RELEASE, b"", b"", b"static"),
        wire.pack(RELEASE, b"5:x", b"stdin", b"static"),
        wire.pack(b"\xff", b"", b"stdin", b"static"),
    ],
)
def test_what_is_no_request_is_not_worked_on(config: Config, body: bytes) -> None:
    seen: list[Request] = []
    assert b"malformed request" in exchange(config, seen.append, body)
    assert seen == []
