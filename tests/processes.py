"""Waiting for processes that a test did not start itself."""

import os
import select

from netlib.config import Config


def pid_of(config: Config) -> int:
    """The netlibd of *config*, as it wrote down."""
    return int(config.pid_file.read_text())


def ended(pid: int) -> bool:
    """Wait until a process has ended, whoever takes its exit code."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], 5)[0])
    finally:
        os.close(fd)
