"""containerd on the test host, with folders of its own, and ``ctr run --cni``, whose folders are fixed.

``ctr`` takes plugins from ``/opt/cni/bin`` and the network from ``/etc/cni/net.d``. The first is hidden under a file system of
our own meanwhile, the second is the test host's.
"""

import os
import select
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from benchmarks.peers import PeerError, busybox_root
from tests.kernel.dns_client import wait_until

__all__ = ["PLUGINS", "Containerd"]

PLUGINS = Path("/opt/cni/bin")
_NETWORKS = Path("/etc/cni/net.d")
_CONFLIST = _NETWORKS / "00-tested.conflist"
_SECONDS = 30
_CONFIG = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
address = "{folder}/containerd.sock"
[ttrpc]
address = "{folder}/containerd.ttrpc"
"""


class Containerd:
    """containerd and one root file system for all containers."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "containerd.log"
        self._folder = folder
        self._cgroup = f"containerd-{os.getpid()}"
        self._attached: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/opt"], check=True)
        try:
            (self._folder / "rootfs").mkdir()
            subprocess.run(["tar", "-x", "-C", self._rootfs], input=busybox_root(), check=True)
            (self._folder / "config.toml").write_text(_CONFIG.format(folder=self._folder))
            with self.log.open("wb") as log:
                command = ["/usr/bin/containerd", "--config", str(self._folder / "config.toml")]
                self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            wait_until(self._answers, "containerd's answer")
        except BaseException:
            subprocess.run(["umount", "/opt"], check=True)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for name in self("tasks", "list", "--quiet").split():
            self("tasks", "kill", "--signal", "KILL", name)
        for process in self._attached:
            process.wait(_SECONDS)
        for name in self("containers", "list", "--quiet").split():
            self("tasks", "delete", name)
            self("containers", "delete", name)
        self._process.terminate()
        self._process.wait(_SECONDS)
        subprocess.run(["umount", "/opt"], check=True)
        _CONFLIST.unlink(missing_ok=True)
        for cgroup in Path("/sys/fs/cgroup").glob(f"*/{self._cgroup}"):
            cgroup.rmdir()

    def __call__(self, *arguments: str) -> str:
        """Run ``ctr ARGUMENTS`` and return what it prints; PeerError when it fails."""
        done = subprocess.run(self._command(arguments), capture_output=True, text=True, check=False, timeout=_SECONDS)
        if done.returncode:
            raise PeerError(f"ctr {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def use(self, conflist: dict[str, Any]) -> None:
        """Make *conflist* the network of ``ctr run --cni``: the first of all by its name."""
        _NETWORKS.mkdir(parents=True, exist_ok=True)
        _CONFLIST.write_bytes(msgspec.json.encode(conflist))

    def run(self, name: str, *command: str) -> str:
        """Run a container to its end; what it says."""
        return self(*self._run("--rm", name, command))

    def detach(self, name: str, *command: str) -> None:
        """Start a container in the background: ``ctr`` leaves its network alone from then on."""
        self(*self._run("--detach", name, command))

    def end(self, name: str) -> None:
        """Kill a container in the background, and remove it."""
        self("tasks", "kill", "--signal", "KILL", name)
        wait_until(lambda: self._state(name) == "STOPPED", f"the end of {name}")
        self("tasks", "delete", "--force", name)
        self("containers", "delete", name)

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a container whose network is taken away at its end, by the ``ctr`` that is answered with."""
        process = subprocess.Popen(self._command(self._run("--rm", name, command)), stdin=subprocess.DEVNULL)
        self._attached.append(process)
        wait_until(lambda: self._state(name) == "RUNNING", f"the start of {name}")
        return process

    def inside(self, name: str, *command: str) -> str:
        """Run a command in a running container; what it says."""
        return self("tasks", "exec", "--exec-id", f"exec-{len(command)}", name, *command)

    def pid(self, name: str) -> int:
        """The process of a running container."""
        return int(self._task(name)[0])

    def _state(self, name: str) -> str:
        return self._task(name)[1]

    def _task(self, name: str) -> tuple[str, str]:
        """Process and state of a container, as far as there is one."""
        lines = [line.split() for line in self("tasks", "list").splitlines()]
        return next(((words[1], words[2]) for words in lines if words[0] == name), ("0", ""))

    def _run(self, how: str, name: str, command: Sequence[str]) -> tuple[str, ...]:
        return ("run", how, "--cni", "--cgroup", f"/{self._cgroup}/{name}", "--rootfs", self._rootfs, name, *command)

    @property
    def _rootfs(self) -> str:
        return str(self._folder / "rootfs")

    def _command(self, arguments: Sequence[str]) -> list[str]:
        return ["/usr/bin/ctr", "--address", str(self._folder / "containerd.sock"), *arguments]

    def _answers(self) -> bool:
        fd = os.pidfd_open(self._process.pid)
        try:
            if select.select([fd], [], [], 0)[0]:
                raise PeerError(f"containerd did not start: {self.log.read_text()[-2000:]}")
        finally:
            os.close(fd)
        return subprocess.run(self._command(["version"]), check=False, capture_output=True).returncode == 0
