"""What this process has open."""

import gc
import os

__all__ = ["open_descriptors"]


def open_descriptors() -> list[int]:
    """The open descriptors, lowest first, without those that earlier tests left to the garbage collector."""
    gc.collect()
    with os.scandir("/proc/self/fd") as entries:  # its own one is closed again when the names are looked at
        names = [int(entry.name) for entry in entries]
    return sorted(fd for fd in names if os.path.lexists(f"/proc/self/fd/{fd}"))
