"""Watching a file or a folder for changes by inotify(7), which Python's library does not have."""

import ctypes
import os
from pathlib import Path

from netlib.kernel.translate import kernel_error

__all__ = ["LOST", "MODIFIED", "watch"]

MODIFIED = 0x2
LOST = (
    0x40 | 0x200 | 0x400 | 0x800
)  # IN_MOVED_FROM, IN_DELETE, IN_DELETE_SELF, IN_MOVE_SELF: of the path itself, or of something in it
_libc = ctypes.CDLL(None, use_errno=True)


def watch(path: Path, events: int) -> int:
    """A descriptor that becomes readable when one of *events* happens to *path*; it does not block, and the caller closes it.

    Raises ObjectMissing, KernelError (a user may have 128 such descriptors).
    """
    fd: int = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    if fd == -1:
        raise kernel_error(ctypes.get_errno(), f"watch {path}")
    if _libc.inotify_add_watch(fd, os.fsencode(path), events) == -1:
        number = ctypes.get_errno()
        os.close(fd)
        raise kernel_error(number, f"watch {path}")
    return fd
