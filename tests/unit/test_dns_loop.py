"""Descriptors handed to the loop from other threads."""

import os
import threading

import pytest

from netlib.dns.loop import Loop
from netlib.errors import DaemonError


def test_what_joins_from_another_thread_is_handled_in_the_loops() -> None:
    loop = Loop("loop")
    reader, writer = os.pipe()
    handled: list[str] = []
    done = threading.Event()

    def handle(events: int) -> None:
        handled.append(threading.current_thread().name)
        os.read(reader, 1)
        done.set()

    loop.join({reader: handle})
    os.write(writer, b"x")
    assert done.wait(5)
    assert handled == ["loop"]
    loop.stop()
    with pytest.raises(DaemonError, match="closed"):
        loop.join({reader: handle})
    os.close(reader)
    os.close(writer)


def test_of_descriptors_that_join_together_all_are_watched_or_none(tmp_path: os.PathLike[str]) -> None:
    loop = Loop("loop")
    reader, writer = os.pipe()
    file = os.open(os.path.join(tmp_path, "file"), os.O_CREAT | os.O_RDONLY)
    handled: list[int] = []
    with pytest.raises(PermissionError):  # epoll's EPERM: a plain file cannot be waited for
        loop.join({reader: handled.append, file: handled.append})
    os.write(writer, b"x")
    loop.call(lambda: None)
    loop.call(lambda: None)
    assert handled == []
    loop.join({reader: lambda _: loop.forget(reader)})
    loop.stop()
    for fd in (reader, writer, file):
        os.close(fd)
