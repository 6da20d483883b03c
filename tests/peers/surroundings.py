"""What is around a runtime's containers: a neighbour of the host, servers inside netns, and a look at what is left."""

import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from netlib.config import Config
from netlib.core.attachments import Attachments
from netlib.core.controller import Controller, Unwatched
from netlib.kernel.netns import entered
from netlib.model import HOST, NetnsRef
from netlib.testing.snapshot import Snapshot, differences, snapshot
from tests.locks import abandoned

__all__ = ["HOST_ADDRESS", "answering", "ask", "left_behind", "pings", "uplink"]

HOST_ADDRESS = "198.51.100.1"
_NEIGHBOUR_ADDRESS = "198.51.100.2"
_PATIENCE = 5.0


@contextmanager
def uplink(neighbour: NetnsRef) -> Iterator[NetnsRef]:
    """A link from the test host to another machine, which knows the host's address and nothing behind it."""
    run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", neighbour.label)
    try:
        run("ip", "addr", "add", f"{HOST_ADDRESS}/24", "dev", "up0")
        run("ip", "link", "set", "up0", "up")
        run("ip", "-n", neighbour.label, "addr", "add", f"{_NEIGHBOUR_ADDRESS}/24", "dev", "eth0")
        run("ip", "-n", neighbour.label, "link", "set", "eth0", "up")
        yield neighbour
    finally:
        run("ip", "link", "del", "up0")


def run(*command: str) -> str:
    """What a command says; an error when it fails."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@contextmanager
def answering(netns: NetnsRef, port: int, word: str) -> Iterator[None]:
    """A server in *netns* that says *word* to everybody who connects to *port*."""
    with entered(netns):
        listener = socket.create_server(("", port))

    def serve() -> None:
        with suppress(OSError):  # the listener was shut down
            while True:
                peer = listener.accept()[0]
                with peer:
                    peer.sendall(word.encode())

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def ask(address: str, port: int, source: NetnsRef = HOST, request: str = "") -> str | None:
    """What is said to *source* at *address* and *port*, with *request* sent first; None when nobody listens there."""
    with entered(source):
        try:
            with socket.create_connection((address, port), timeout=_PATIENCE) as connection:
                connection.sendall(request.encode())
                return b"".join(iter(lambda: connection.recv(4096), b"")).decode()
        except (TimeoutError, ConnectionRefusedError):
            return None


def pings(source: NetnsRef, address: str) -> bool:
    """Whether *address* answers *source*."""
    with entered(source):
        command = ["ping", "-c1", "-W2", address]
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def left_behind(config: Config, before: Snapshot, *leases: Path) -> list[str]:
    """What is more than *before* once networks without attachments are pruned: in the kernel, the store, lease folders."""
    with Controller(config, watcher=Unwatched()) as controller:
        attachments = Attachments(controller)
        left = [f"attachment {item}" for item in attachments.attachments()]
        attachments.prune()
        with controller.store.read() as tx:
            left += [f"in flight {row}" for row in tx.in_flight()]
            left += [f"port {row}" for row in tx.ports()]
        left += [f"network {item.name}" for item in attachments.networks()]
    left += [f"lock {path}" for path in abandoned(config.lock_dir)]
    left += [f"lease {path}" for folder in leases for path in folder.glob("*[0-9].*[0-9]") if "last" not in path.name]
    return left + differences(before, snapshot())
