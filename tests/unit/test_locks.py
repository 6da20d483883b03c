"""Locks: exclusive between threads and processes, never kept alive by a child, and clear about who holds them."""

import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from netlib.errors import DeadlineExceeded
from netlib.store.locks import Locks


@pytest.fixture
def locks(tmp_path: Path) -> Locks:
    return Locks(tmp_path / "run" / "locks")


def test_a_held_lock_is_refused_to_others_and_free_afterwards(locks: Locks) -> None:
    with locks.hold("record:web", "creating web"), locks.attempt("record:web", "recovering") as held:
        assert not held
    with locks.attempt("record:web", "recovering") as held:
        assert held
    assert list(locks.folder.iterdir()) == []


def test_the_error_of_a_wait_that_ends_names_the_holder(locks: Locks) -> None:
    with (
        locks.hold("record:web", "creating web"),
        pytest.raises(DeadlineExceeded, match=rf"pid {os.getpid()} \(creating web\)"),
        locks.hold("record:web", "removing web", seconds=0.01),
    ):
        pass


def test_a_waiter_gets_the_lock_when_it_is_let_go(locks: Locks) -> None:
    order: list[str] = []
    started = threading.Event()

    def wait() -> None:
        started.set()
        with locks.hold("record:web", "second", seconds=10):
            order.append("second")

    with locks.hold("record:web", "first"):
        thread = threading.Thread(target=wait)
        thread.start()
        started.wait()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_what_a_killed_holder_left_is_swept_and_no_held_lock_is(locks: Locks) -> None:
    child = os.fork()
    if child == 0:
        with locks.hold("record:web", "creating web"):
            os._exit(0)
    os.waitpid(child, 0)
    assert len(list(locks.folder.iterdir())) == 1
    with locks.hold("record:db", "creating db"):
        locks.sweep()
        assert len(list(locks.folder.iterdir())) == 1
        with locks.attempt("record:db", "recovering") as held:
            assert not held
    assert list(locks.folder.iterdir()) == []


def test_a_forked_child_does_not_keep_its_parents_lock(locks: Locks) -> None:
    with locks.hold("record:web", "creating web"):
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
    try:
        with locks.attempt("record:web", "next") as held:
            assert held
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_the_lock_of_a_killed_process_is_free(locks: Locks) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with locks.hold("record:web", "creating web"):
            os.write(writing, b"held")
            signal.pause()
        os._exit(0)
    assert os.read(reading, 4) == b"held"
    with locks.attempt("record:web", "recovering") as held:
        assert not held
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with locks.attempt("record:web", "recovering") as held:
        assert held


def test_many_processes_never_hold_one_lock_together(locks: Locks, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    children = []
    for _ in range(8):
        child = os.fork()
        if child == 0:
            for _ in range(50):
                with locks.hold("key", "counting", seconds=30):
                    counter.write_text(str(int(counter.read_text()) + 1))
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
    assert counter.read_text() == "400"


def test_many_threads_take_and_give_back_one_lock(locks: Locks) -> None:
    before, seconds = len(os.listdir("/proc/self/fd")), sys.getswitchinterval()
    working = most = 0

    def work(_: int) -> None:
        nonlocal working, most
        for _ in range(200):
            with locks.hold("record:web", "counting"):
                working += 1
                most = max(most, working)
                working -= 1

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
    finally:
        sys.setswitchinterval(seconds)
    assert most == 1
    assert len(os.listdir("/proc/self/fd")) == before
    assert list(locks.folder.iterdir()) == []
