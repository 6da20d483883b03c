"""Descriptors: those that a process opens in large numbers get numbers from 1024 on, which leaves the lower ones free.

libnftables waits for its netlink socket by ``select``, which knows descriptors below 1024 only and aborts on others.
"""

import fcntl
import os
import resource
import socket
from contextlib import suppress

from netlib.errors import NotPermitted

FIRST_HIGH = 1024
_MANY = 1 << 16
_FEWEST = 128  # `netlib run` opens about 30, and one more for each container that ends at the same time


def raise_limit() -> None:
    """Let this process have as many files open as it may, 65,536 or more where it may raise the hard limit too.

    Each held port, each sandbox's resolver and each lock takes one or two. Raises NotPermitted where the limit is so low that
    an operation could fail in the middle.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (hard, max(hard, _MANY)):
        with suppress(ValueError, OSError):  # the second is root's to set; "unlimited" may be above what fs.nr_open allows
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed < _FEWEST:
        raise NotPermitted(f"netlib needs {_FEWEST} open files at a time, and the limit is {allowed}; raise it by `ulimit -Hn`")


def lifted(sock: socket.socket) -> socket.socket:
    """Return *sock* with a high descriptor in the place of its own; unchanged where the limit on open files allows none."""
    if sock.fileno() >= FIRST_HIGH or (fd := _high(sock.fileno())) is None:
        return sock
    high = socket.socket(fileno=fd)
    if (timeout := sock.gettimeout()) is not None:
        high.settimeout(timeout)
    sock.close()
    return high


def lifted_descriptor(sock: socket.socket) -> int:
    """Turn *sock*, one of many that only have to stay open, into a high descriptor, which the caller closes."""
    fd = sock.detach()
    if fd >= FIRST_HIGH or (high := _high(fd)) is None:
        return fd
    os.close(fd)
    return high


def _high(fd: int) -> int | None:
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_HIGH)
    except OSError:
        return None


def has_low() -> bool:
    """Whether the next descriptor that is opened will be a low one."""
    fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.close(fd)
    return fd < FIRST_HIGH
