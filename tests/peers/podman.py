"""podman with folders of its own, on the test host, with CNI as its network and plugins out of one folder."""

import json
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.peers import IMAGE, PeerError, busybox_root

__all__ = ["Podman"]

_SECONDS = 50
# lock_type: podman's own, in shared memory, would be the machine's. The ulimits: hard limits cannot be raised everywhere.
_CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[network]
network_backend = "cni"
cni_plugin_dirs = ["{plugins}"]
network_config_dir = "{folder}/networks"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "{folder}/tmp"
static_dir = "{folder}/static"
volume_path = "{folder}/volumes"
"""
_STORAGE_CONF = """\
[storage]
driver = "vfs"
runroot = "{folder}/runroot"
graphroot = "{folder}/graph"
"""


class Podman:
    """podman with an image ``busybox``. *folder* has a short path: that of a socket in it is limited."""

    def __init__(self, folder: Path, plugins: Path) -> None:
        self.networks = folder / "networks"
        self._folder = folder
        self._cgroup = f"podman-{os.getpid()}"
        self.networks.mkdir()
        self._environ = {**os.environ, "TMPDIR": str(folder)}
        for variable, text in (("CONTAINERS_CONF", _CONTAINERS_CONF), ("CONTAINERS_STORAGE_CONF", _STORAGE_CONF)):
            (folder / variable).write_text(text.format(folder=folder, plugins=plugins))
            self._environ[variable] = str(folder / variable)

    def __enter__(self) -> Self:
        archive = self._folder / "root.tar"
        archive.write_bytes(busybox_root())
        self("import", str(archive), IMAGE)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Remove the containers and, with whatever podman has left in it, their cgroup."""
        self("rm", "--all", "--force", "--time", "0")
        for cgroup in Path("/sys/fs/cgroup").glob(f"*/{self._cgroup}"):
            for path in sorted((path for path in cgroup.rglob("*") if path.is_dir()), reverse=True):
                path.rmdir()
            cgroup.rmdir()

    def __call__(self, *arguments: str) -> str:
        """Run ``podman ARGUMENTS`` and return what it prints; PeerError when it fails."""
        done = subprocess.run(
            ["/usr/bin/podman", *arguments], env=self._environ, capture_output=True, text=True, check=False, timeout=_SECONDS
        )
        if done.returncode:
            raise PeerError(f"podman {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def run(self, name: str, *command: str, options: tuple[str, ...] = ()) -> None:
        """Start a container in the background."""
        self("run", "--detach", "--name", name, f"--cgroup-parent=/{self._cgroup}", *options, IMAGE, *command)

    def address(self, container: str) -> str:
        """The container's address, in whichever network."""
        networks: dict[str, Any] = json.loads(self("inspect", container))[0]["NetworkSettings"]["Networks"]
        return str(next(iter(networks.values()))["IPAddress"])

    def netns(self, container: str) -> str:
        """The path of the container's netns."""
        return f"/proc/{self('inspect', container, '--format', '{{.State.Pid}}')}/ns/net"
