"""Somebody else's package (``tests/plugins``), as it is installed: on the path, or not on it any more."""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from netlib import objects, packages, registry

__all__ = ["INSTALLED", "Service", "forget_drivers", "installed", "write_tiny_net"]

INSTALLED = Path(sys.prefix) / "plugins"
"""Where ``scripts/install`` put it."""

_QUESTION_SECONDS = 30
_QUESTION_SECONDS = 30
_CACHES: tuple[Any, ...] = (registry.driver, registry.ipam_driver, objects.object_class)


_TINY = """
from netlib.driverapi import NoOptions
from netlib.kernel.links import Veth
from netlib.model import Scope
from netlib.names import veth_ifname
from netlib.plan import Plan


class Tiny:
    name = "tiny"
    scope = Scope.LOCAL
    network_options = NoOptions
    endpoint_options = NoOptions

    def network_plan(self, network):
        return Plan()

    def join_plan(self, network, endpoint, sandbox):
        return Plan(Veth(ifname=veth_ifname(endpoint.id), peer=endpoint.ifname, peer_netns=sandbox.netns, mac=endpoint.mac))
"""


def write_tiny_net(folder: Path, source: str = _TINY, **changed: str) -> None:
    """Write the package tiny-net into *folder*, as pip installs it: a network driver that publishes no ports.

    *changed* replaces a method's statement (``network_plan="raise RuntimeError('boom')"``).
    """
    for method, statement in changed.items():
        before, head, rest = source.partition(f"    def {method}(")
        line, _, rest = rest.partition("\n")
        source = f"{before}{head}{line}\n        {statement}\n{rest}"
    info = folder / "tiny_net-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-net\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[netlib.drivers]\ntiny = tiny_net:Tiny\n")
    (folder / "tiny_net.py").write_text(source)
    importlib.invalidate_caches()
    sys.modules.pop("tiny_net", None)
    forget_drivers()


def forget_drivers() -> None:
    """Have netlib look for drivers and kernel objects again, as a new process would."""
    for found in _CACHES:
        found.cache_clear()
    packages._read.clear()


class Service:
    """The package's address service, in a process of its own."""

    def __init__(self, path: str, seconds: float) -> None:
        self.path = path
        command = [sys.executable, "-m", "acme_net.service", path, str(seconds)]
        environment = {**os.environ, "PYTHONPATH": str(INSTALLED)}
        self._process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    @property
    def options(self) -> dict[str, str]:
        """How a network is told of it."""
        return {"acme.service": self.path}

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Have it answer nobody in the block, who can ask."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def wait_for_question(self) -> None:
        """Wait until somebody's connection is waiting for it."""
        deadline = time.monotonic() + _QUESTION_SECONDS
        while self.path not in self._waited_for():
            assert time.monotonic() < deadline, "nobody asked"

    def _waited_for(self) -> str:
        """The service's sockets that have a connection that was not accepted yet."""
        command = ["ss", "--no-header", "--listening", "--unix", "--processes"]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        return "\n".join(line for line in lines if int(line.split()[2]) > 0)

    def held(self) -> list[str]:
        """All that it has given away."""
        with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rw") as lines:
            connection.connect(self.path)
            lines.write('{"verb": "held"}\n')
            lines.flush()
            found: list[str] = json.loads(lines.readline())["held"]
        return found

    def close(self) -> None:
        """End it."""
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


@contextmanager
def installed(syspath_prepend: Callable[[str], None], folder: Path = INSTALLED) -> Iterator[None]:
    """Have the packages in *folder* installed in the block, as far as this process goes."""
    syspath_prepend(str(folder))
    forget_drivers()
    try:
        yield
    finally:
        forget_drivers()
