"""Which numbers descriptors get: the low ones are scarce.

libnftables waits for its netlink socket by ``select``, which knows descriptors below 1024 only and aborts on others.
So whatever a process opens in numbers goes above, and libnftables finds a low one free.
"""

import fcntl
import os
import socket

FIRST_HIGH = 1024


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
