"""Which numbers descriptors get: the low ones are scarce.

libnftables waits for its netlink socket by ``select``, which knows descriptors below 1024 only and aborts on others.
So whatever a process opens in numbers goes above, and libnftables finds a low one free.
"""

import fcntl
import os
import resource
import socket
from contextlib import suppress

from netlib.errors import NotPermitted

FIRST_HIGH = 1024
_MANY = 1 << 16
_FEWEST = 128  # a run takes about 30, and each container that goes at the same time one more


def raise_limit() -> None:
    """Let this process have as many files open as it may, 65,536 or more where it may raise the hard limit too.

    Each held port, each sandbox's resolver and each lock is one or two. Raises NotPermitted where so few are allowed that
    work would break off in the middle.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (hard, max(hard, _MANY)):
        with suppress(ValueError, OSError):  # the second is root's to set; "unlimited" may be above what fs.nr_open allows
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed < _FEWEST:
        raise NotPermitted(f"netlib needs {_FEWEST} open files at a time, and the limit is {allowed}; raise it by `ulimit -Hn`")


def lifted(sock: socket.socket) -> socket.socket:
    """Return *sock* under a high descriptor, closed under its own; as it is where the limit on open files allows none."""
    if sock.fileno() >= FIRST_HIGH:
        return sock
    try:
        fd = fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, FIRST_HIGH)
    except OSError:
        return sock
    high = socket.socket(sock.family, sock.type, sock.proto, fd)  # told what it is, it need not ask the kernel
    if (timeout := sock.gettimeout()) is not None:
        high.settimeout(timeout)
    sock.close()
    return high


def has_low() -> bool:
    """Whether the next descriptor that is opened will be a low one."""
    fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.close(fd)
    return fd < FIRST_HIGH
