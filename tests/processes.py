"""Waiting for processes that a test did not start itself."""

import os
import select


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
