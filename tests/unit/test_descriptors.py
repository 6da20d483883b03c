"""Descriptors that go above the low numbers."""

import fcntl
import os
import resource
import socket
from collections.abc import Iterator

import pytest

from netlib.errors import NotPermitted
from netlib.kernel import descriptors
from netlib.kernel.descriptors import FIRST_HIGH, has_low, lifted, lifted_descriptor, raise_limit


@pytest.fixture
def room() -> Iterator[None]:
    """A limit on open files that allows high descriptors."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limits[1], FIRST_HIGH + 64), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.usefixtures("room")
def test_a_lifted_socket_is_the_same_one_elsewhere() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    low = ours.fileno()
    high = lifted(ours)
    with high, theirs:
        assert high.fileno() >= FIRST_HIGH
        assert (high.family, high.type, high.gettimeout()) == (socket.AF_UNIX, socket.SOCK_STREAM, 0.0)
        assert fcntl.fcntl(high.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(low)
        theirs.send(b"through")
        assert high.recv(10) == b"through"
        assert lifted(high) is high


@pytest.mark.usefixtures("room")
def test_of_a_socket_that_only_has_to_stay_open_a_lifted_descriptor_is_left() -> None:
    ours, theirs = socket.socketpair()
    low = ours.fileno()
    high = lifted_descriptor(ours)
    with theirs:
        assert high >= FIRST_HIGH
        assert ours.fileno() == -1
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(low)
        os.close(high)
        assert theirs.recv(10) == b""  # nothing else kept it open


def test_without_room_it_stays_where_it_is() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as sock:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, limits[1]))
        try:
            assert lifted(sock) is sock
            other = socket.socket()
            fd = other.fileno()
            assert lifted_descriptor(other) == fd
            os.close(fd)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert sock.fileno() >= 0


@pytest.mark.usefixtures("room")
def test_it_is_known_when_the_low_ones_are_used_up() -> None:
    assert has_low()
    taken: list[int] = []
    try:
        while not taken or taken[-1] < FIRST_HIGH - 1:
            taken.append(os.open("/dev/null", os.O_RDONLY))
        assert not has_low()
    finally:
        for fd in taken:
            os.close(fd)


def test_the_limit_is_raised_as_far_as_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
    try:
        raise_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= limits[1]
        monkeypatch.setattr(descriptors, "_FEWEST", 1 << 40)
        with pytest.raises(NotPermitted, match=r"needs 1099511627776 open files .* limit is \d+; raise it"):
            raise_limit()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
