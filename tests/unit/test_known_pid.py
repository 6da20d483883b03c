"""Whose pid netlibd's pid file has, and what is advised where it is nobody's."""

import fcntl
import os
import socket
from contextlib import ExitStack

import pytest

from netlib.config import Config
from netlib.errors import Stuck
from netlib.verbs.call import call
from netlib.wire.client import DaemonWatcher, condition
from netlib.wire.conversation import known_pid
from netlib.wire.protocol import at_socket


def test_a_pid_that_was_left_behind_is_nobodys(config: Config) -> None:
    """Who was killed leaves it, and another process may have the number by now: here, this one."""
    config.run_dir.mkdir(parents=True)
    config.pid_file.write_text(f"{os.getpid()}\n")
    assert (known_pid(config), condition(config)) == (0, "not running")
    with config.pid_file.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert (known_pid(config), condition(config)) == (os.getpid(), f"pid {os.getpid()}")


def test_no_signal_is_advised_to_a_netlibd_whose_process_is_not_known(config: Config) -> None:
    """It listens and takes no connection, and its pid file names another process: `kill -KILL 0` ends the caller's shell."""
    config.run_dir.mkdir(parents=True)
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        at_socket(config.socket_path, listener.bind)
        listener.listen(0)
        config.pid_file.write_text(f"{os.getpid()}\n")
        at_socket(config.socket_path, stack.enter_context(socket.socket(socket.AF_UNIX)).connect)
        with pytest.raises(Stuck) as refusal:
            call(config, "daemon.ping", {})
        with DaemonWatcher(config) as watcher, pytest.raises(Stuck) as second:
            watcher.changed(sandboxes=[], networks=[], needed=True)
        with DaemonWatcher(config) as watcher, pytest.warns(RuntimeWarning, match="^netlibd does not answer, so names"):
            watcher.changed(sandboxes=[], networks=[], needed=False)
    says = "netlibd does not answer; try again, and see `netlib log` for what it does"
    assert (str(refusal.value), str(second.value)) == (says, f"names and ports are not served: {says}")
