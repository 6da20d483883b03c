"""Loads on name servers, and one client's measure of them, as a process of its own.

``python -IS dns_load.py MODE NAME NUMBER NETNS,ADDRESS,PORT …``: it must not share an interpreter with a server under test,
whose thread would wait for it. In *NAME*, ``#`` is another number each time. Every load ends by itself.
"""

import contextlib
import ctypes
import json
import os
import select
import socket
import sys
import time
from collections.abc import Iterator
from itertools import count

_SECONDS = 20.0  # the longest that a load lasts; its test ends it sooner
_PIPELINED = 64  # queries sent by a connection in one go
_PATIENCE = 5.0
_PAUSE = 0.004
BEFORE_OTHERS = -10  # the nice value of what is measured
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def query(name: str, number: int = 0) -> bytes:
    labels = b"".join(bytes((len(label),)) + label.encode() for label in name.replace("#", str(number)).split("."))
    return (number & 0xFFFF).to_bytes(2, "big") + b"\1\0\0\1\0\0\0\0\0\0" + labels + b"\0\0\1\0\1"


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


def connected(kind: socket.SocketKind, target: str) -> socket.socket:
    """A socket in the target's netns, connected to its address and port."""
    netns, address, port = target.split(",")
    fd = os.open(netns, os.O_RDONLY)
    if _libc.setns(fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), netns)
    os.close(fd)
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    sock.settimeout(_PATIENCE)
    sock.connect((address, int(port)))
    return sock


def ask(name: str, number: int, targets: list[str]) -> None:
    """Ask *number* times, now and then; print how many answers there were by rcode (or none), and the seconds they took."""
    seconds: list[float] = []
    outcomes: dict[str, int] = {}
    with connected(socket.SOCK_DGRAM, targets[0]) as sock:
        for serial in range(number):
            wire = query(name, serial)
            started = time.monotonic()
            sock.send(wire)
            outcome = "none"
            sock.settimeout(1.0)
            try:
                while (response := sock.recv(4096))[:2] != wire[:2]:
                    pass
                outcome = str(response[3] & 15)
            except TimeoutError:
                pass
            seconds.append(time.monotonic() - started)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            select.select([], [], [], _PAUSE)  # else the next is there before the server has turned to another client
    seconds.sort()
    json.dump({"median": seconds[len(seconds) // 2], "worst": seconds[-1], "outcomes": outcomes}, sys.stdout)


def flood(name: str, number: int, targets: list[str]) -> None:
    """*number* datagrams from each target every hundredth of a second: a server's whole time, and not a whole processor's."""
    socks = [connected(socket.SOCK_DGRAM, target) for target in targets]
    for sock in socks:
        sock.setblocking(False)
    serials = count()
    _begin()
    for _ in _until_the_end():
        pause = time.monotonic() + 0.01
        for sock in socks:
            for _ in range(number):
                try:
                    sock.send(query(name, next(serials)))
                    sock.recv(4096)
                except OSError:
                    continue
        select.select([], [], [], max(0, pause - time.monotonic()))


def unanswered(name: str, number: int, targets: list[str]) -> None:
    """Have *number* questions more in flight from each target every tenth of a second, whatever becomes of them."""
    socks = [connected(socket.SOCK_DGRAM, target) for target in targets]
    serials = count()
    for round_ in _until_the_end():
        for sock in socks:
            for _ in range(number):
                sock.send(query(name, next(serials)))
        if not round_:
            _begin()
        pause = time.monotonic() + 0.1
        while (rest := pause - time.monotonic()) > 0:
            for sock in select.select(socks, [], [], rest)[0]:
                sock.recv(4096)


def pipeline(name: str, number: int, targets: list[str], *, reads: bool = True) -> None:
    """Write queries into *number* TCP connections of each target without a pause, and read the answers or not."""
    batch = framed(query(name)) * _PIPELINED
    socks = {}
    poller = select.poll()
    for target in targets * number:
        sock = connected(socket.SOCK_STREAM, target)
        sock.setblocking(False)
        socks[sock.fileno()] = sock, bytearray(batch)
        poller.register(sock, select.POLLOUT | (select.POLLIN if reads else 0))
    _begin()
    for _ in _until_the_end():
        for fd, events in poller.poll(1000):
            sock, unsent = socks[fd]
            try:
                if events & select.POLLIN:
                    sock.recv(65536)
                del unsent[: sock.send(unsent)]
                unsent += b"" if unsent else batch
            except BlockingIOError:
                continue
            except OSError:
                poller.unregister(fd)


def slow_readers(name: str, number: int, targets: list[str]) -> None:
    pipeline(name, number, targets, reads=False)


def sure_pipeline(name: str, number: int, targets: list[str]) -> None:
    """A pipeline that other work of the machine does not hold up: where a load must not be none."""
    pipeline(name, number, targets)


def half_frames(name: str, number: int, targets: list[str]) -> None:
    """A byte of a query at a time into each of *number* connections, all but the last one; then the next connections."""
    _begin()
    for _ in _until_the_end():
        socks = [connected(socket.SOCK_STREAM, target) for target in targets * number]
        for sock in socks:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in framed(query(name))[:-1]:
            for sock in socks:
                try:
                    sock.send(bytes((byte,)))
                except OSError:
                    continue
        for sock in socks:
            sock.close()


def connections(name: str, number: int, targets: list[str]) -> None:
    """Connections without a query, *number* at a time."""
    _begin()
    for _ in _until_the_end():
        try:
            for sock in [connected(socket.SOCK_STREAM, target) for target in targets * number]:
                sock.close()
        except OSError:
            continue


def serve(name: str, number: int, targets: list[str]) -> None:
    """A name server at the target: it answers each name with 192.0.2.1, but none in *name*, and none by TCP."""
    _, address, port = targets[0].split(",")
    silent = query(name)[12:-4].lower()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        socket.create_server((address, int(port)), backlog=1024),
    ):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.bind((address, int(port)))
        _begin()
        for _ in _until_the_end():
            if not select.select([sock], [], [], 1.0)[0]:
                continue
            wire, client = sock.recvfrom(4096)
            if silent not in wire.lower():
                record = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4\xc0\0\2\1"
                sock.sendto(wire[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + wire[12:] + record, client)


def _begin() -> None:
    os.write(1, b"\n")


def _until_the_end() -> Iterator[int]:
    end = time.monotonic() + _SECONDS
    for number in count():
        if time.monotonic() > end:
            return
        yield number


MODES = {
    load.__name__: load
    for load in (ask, flood, unanswered, pipeline, slow_readers, sure_pipeline, half_frames, connections, serve)
}

if __name__ == "__main__":
    mode, name, number, *targets = sys.argv[1:]
    # A load is to take a server's time, and not the processor from it.
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, BEFORE_OTHERS if mode in ("ask", "serve", "sure_pipeline") else 19)
    MODES[mode](name, int(number), targets)
