"""The programs that netlib is compared with: Docker's engine and dnsperf, both from Debian, in the test host of the run.

One rule: Docker's engine runs inside a ``with`` block, with its own netns and folders, so that its firewall rules affect
nothing else. After the block no process, control group, mount or netns of it is left.
"""

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from netlib.kernel.netns import NETNS_DIR, create_netns, delete_netns

IMAGE = "busybox"
_START_SECONDS = 30.0
_STOP_SECONDS = 30.0
_APPLETS = ("sh", "sleep", "httpd", "nc", "ping", "wget", "ip", "cat", "true")
# Debian's programs by their paths, because another docker may be found first in PATH.
_DOCKER, _DOCKERD, _BUSYBOX = "/usr/bin/docker", "/usr/sbin/dockerd", "/bin/busybox"


class PeerError(Exception):
    """A peer did not start, or a command of it failed; the message ends with the peer's own error message."""


class Docker:
    """A dockerd in its own host netns, with a ``busybox`` image; it publishes ports and filters with iptables as usual.

    ``host`` is the netns with its bridges and published ports. *folder* must be in memory or on a disk, because overlay2 does
    not work on another overlay.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        """Set the folder of the engine's files; *arguments* are further options of dockerd."""
        self.folder = folder
        self.socket = folder / "docker.sock"
        self.log = folder / "dockerd.log"
        self.host = NETNS_DIR / f"docker-{os.getpid()}"
        self._cgroup = f"docker-{os.getpid()}"
        self._command = [
            "nsenter",
            f"--net={self.host}",
            _DOCKERD,
            f"--host=unix://{self.socket}",
            f"--data-root={folder / 'data'}",
            f"--exec-root={folder / 'exec'}",
            f"--pidfile={folder / 'docker.pid'}",
            f"--cgroup-parent=/{self._cgroup}",
            "--storage-driver=overlay2",
            "--log-level=warn",
            *arguments,
        ]

    def __enter__(self) -> Self:
        if not os.environ.get("NETLIB_TESTHOST"):
            raise PeerError(
                "a dockerd would change this machine's network: run it with netlib/testing/testhost in front of the command"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        create_netns(self.host)
        try:
            subprocess.run(["ip", "-n", self.host.name, "link", "set", "lo", "up"], check=True)
            self._start()
        except BaseException:
            delete_netns(self.host)
            raise
        try:
            self.import_image(IMAGE, busybox_root())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if containers := self("ps", "--all", "--quiet").split():
                self("rm", "--force", *containers)
        finally:
            self._stop()

    def __call__(self, *arguments: str, stdin: bytes | None = None) -> str:
        """Run ``docker ARGUMENTS`` and return what it prints; PeerError when it fails."""
        command = self.command(*arguments)
        result = subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=_START_SECONDS)
        if result.returncode != 0:
            raise PeerError(f"docker {' '.join(arguments)}: {result.stderr.decode(errors='replace').strip()}")
        return result.stdout.decode().strip()

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of ``docker ARGUMENTS`` for this engine, for a benchmark that measures the process."""
        return [_DOCKER, f"--host=unix://{self.socket}", *arguments]

    def import_image(self, name: str, root: bytes) -> None:
        """Make an image from a root file system, which is a tar archive."""
        self("import", "-", name, stdin=root)

    def inspect(self, container: str) -> Any:
        """Return the output of ``docker inspect`` for one container."""
        return json.loads(self("inspect", container))[0]

    def netns(self, container: str) -> Path:
        """Return the path of a running container's netns, for ``nsenter --net`` and :func:`dnsperf`."""
        return Path(f"/proc/{self.inspect(container)['State']['Pid']}/ns/net")

    def _start(self) -> None:
        """Start the engine and wait until it sends READY=1, as to systemd, to a socket of ours."""
        notify = self.folder / "notify.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, self.log.open("wb") as log:
            ready.bind(str(notify))
            environment = {**os.environ, "NOTIFY_SOCKET": str(notify)}
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
            try:
                if not self._says_ready(ready):
                    self._end()
                    raise PeerError(f"dockerd did not start within {_START_SECONDS:.0f} s: {self.log.read_text()[-2000:]}")
            finally:
                notify.unlink()

    def _says_ready(self, ready: socket.socket) -> bool:
        """Whether READY=1 arrived before the deadline and before the engine's end."""
        deadline = time.monotonic() + _START_SECONDS
        alive = os.pidfd_open(self._process.pid)
        try:
            while (left := deadline - time.monotonic()) > 0:
                events = select.select([ready.fileno(), alive], [], [], left)[0]
                if ready.fileno() in events and b"READY=1" in ready.recv(4096):
                    return True
                if alive in events:
                    return False
        finally:
            os.close(alive)
        return False

    def _end(self) -> None:
        """Send the engine SIGTERM, and kill it when it has not ended after 30 seconds."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _stop(self) -> None:
        """End the engine and remove its netns, control groups and data."""
        self._end()
        delete_netns(self.host)
        for cgroup in Path("/sys/fs/cgroup").glob(f"*/{self._cgroup}"):
            for folder in sorted((path for path in cgroup.rglob("*") if path.is_dir()), reverse=True):
                folder.rmdir()
            cgroup.rmdir()
        shutil.rmtree(self.folder / "data", ignore_errors=True)


class DnsLoad(NamedTuple):
    """The figures of one run of dnsperf."""

    answers: int
    lost: int
    per_second: float
    mean_ms: float


def dnsperf(netns: Path, server: str, names: Iterable[str], folder: Path, *, seconds: int = 5, clients: int = 1) -> DnsLoad:
    """Query *server* from inside *netns* for the A records of *names* for some *seconds*; *clients* is the number of sockets.

    Up to 100 queries are open at a time. PeerError when dnsperf fails or gets an answer other than NOERROR.
    """
    questions = folder / "dnsperf.txt"
    questions.write_text("".join(f"{name} A\n" for name in names))
    command = [
        *("nsenter", f"--net={netns}", "dnsperf", "-s", server, "-d", str(questions)),
        *("-l", str(seconds), "-c", str(clients), "-q", "100"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 30)
    report = result.stdout
    if result.returncode != 0:
        raise PeerError(f"dnsperf: {result.stderr.strip()}")
    answers = int(_figure(report, r"Queries completed:\s+(\d+)"))
    codes = re.search(r"Response codes:[ ]+(\S.*)", report)
    if codes is None or not codes[1].startswith(f"NOERROR {answers} "):
        raise PeerError(f"dnsperf: not every answer is NOERROR: {codes[1] if codes else 'no answer at all'}")
    return DnsLoad(
        answers=answers,
        lost=int(_figure(report, r"Queries lost:\s+(\d+)")),
        per_second=_figure(report, r"Queries per second:\s+([\d.]+)"),
        mean_ms=_figure(report, r"Average Latency \(s\):\s+([\d.]+)") * 1000,
    )


def _figure(report: str, pattern: str) -> float:
    found = re.search(pattern, report)
    if found is None:
        raise PeerError(f"dnsperf: no {pattern!r} in its report: {report}")
    return float(found[1])


def busybox_root() -> bytes:
    """Return a root file system as a tar archive: Debian's static busybox, and links by the names of its applets."""
    archive = BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in ("bin", "etc", "proc", "sys", "dev", "tmp", "www"):
            tar.addfile(_member(name, tarfile.DIRTYPE, 0o755))
        tar.add(_BUSYBOX, "bin/busybox")
        for name in _APPLETS:
            link = _member(f"bin/{name}", tarfile.SYMTYPE, 0o777)
            link.linkname = "busybox"
            tar.addfile(link)
    return archive.getvalue()


def _member(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.mode = kind, mode
    return member


def missing(programs: Sequence[str] = (_DOCKERD, "dnsperf", "runc", "containerd")) -> list[str]:
    """Return the programs of the peers that are not installed; ``scripts/install peers`` installs them."""
    return [program for program in programs if shutil.which(program) is None]
