"""A container's processes, files and logs, without its record's network and without the store.

The container's folder has the pids of its processes in ``pid.json`` and its exit code in ``exit.json``, both written by its
minder. A process is recognised by its pid together with its start time and the boot id, so a reused pid is never signalled.
"""

import fcntl
import json
import marshal
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

import netlib
from netlib.config import Config
from netlib.errors import CommandNotRun, ConfigError, Conflict, DeadlineExceeded, KernelError, NotFound
from netlib.kernel.files import Folder
from netlib.kernel.folders import make_folder, own_folder
from netlib.kernel.handle import Kernel
from netlib.kernel.netns import boot_id, opened
from netlib.kernel.translate import doing
from netlib.runtime import attach, cgroups, launch, process
from netlib.runtime.logs import LogEntry, follow, read
from netlib.runtime.shim import CLAIM
from netlib.runtime.spec import Container, ExecSpec

_ROOT = str(Path(netlib.__file__).resolve().parent.parent)
_KILL_SECONDS = 10.0
LOST_CODE = 137  # the exit code where the minder died: the kernel then kills the container by SIGKILL


class State(Struct, frozen=True, kw_only=True):
    """The state of a container: created, running, or exited, and then *code* is its exit code."""

    status: str = "created"
    pid: int = 0
    code: int = 0
    started: float = 0.0  # seconds since the epoch
    finished: float = 0.0
    error: str = ""

    @property
    def running(self) -> bool:
        return self.status == "running"


class Runtime:
    """Containers of one host, each in ``<state_dir>/containers/<id>``."""

    def __init__(self, config: Config, *, reap: Callable[[str], Sequence[str]] | None = None) -> None:
        """*reap* returns the command that the minder of a container (id) runs at its end; default: ``netlib.verbs.reap``."""
        self.config = config
        self._reap = reap or (lambda container_id: [sys.executable, "-m", "netlib.verbs.reap", container_id])

    # --- where things are ----------------------------------------------------------------------------------------------

    def folder(self, container: Container) -> Path:
        """Return the folder of the container's files: writable layer, log, pid.json, exit.json."""
        return self.config.container_dir / container.container_id

    def run_folder(self, container: Container) -> Path:
        """Return the folder of the container's socket and lock, which does not survive a boot."""
        return self.config.run_dir / "containers" / container.container_id

    def socket_path(self, container: Container) -> Path:
        """Return the path of the minder's socket."""
        return self.run_folder(container) / "attach.sock"

    # --- starting ------------------------------------------------------------------------------------------------------

    def launch(self, container: Container, *, client: socket.socket | None = None, size: tuple[int, int] = (0, 0)) -> int:
        """Start the command and its minder; return the pid of the container's process 1.

        *client* is the minder's end of :func:`netlib.runtime.attach.pair`; it gets the output from the first byte on. *size* is
        the size of its terminal (rows, columns). Raises ConfigError, CommandNotRun, KernelError, and Conflict when the
        container runs already; then nothing has been started.
        """
        rootfs = container.spec.rootfs
        if rootfs and not os.path.isdir(rootfs):
            raise ConfigError(f"--rootfs {rootfs}: no such directory")
        folder = self.folder(container)
        own_folder(folder, "container's folder", "pass --state-dir")
        (folder / CLAIM).unlink(missing_ok=True)
        own_folder(self.run_folder(container), "container's folder", "pass --run-dir")
        for volume in container.spec.volumes:
            if not os.path.lexists(volume.source):
                _make_source(volume.source)
        with ExitStack() as stack:
            fds = {launch.LOCK_FD: stack.enter_context(self._lock(container))}
            fds[launch.LISTEN_FD] = stack.enter_context(attach.listen(self.socket_path(container))).fileno()
            if container.netns is not None and not container.netns.is_host:
                fds[launch.NETNS_FD] = stack.enter_context(opened(container.netns))
            if client is not None:
                fds[launch.CLIENT_FD] = client.fileno()
            config = self._launch_config(container, client is not None, size)
            answer = _spawn_launcher(marshal.dumps(config), fds, folder / "minder.log")
        code, _, text = answer.partition(" ")
        if code == "0":
            return int(text)
        self.socket_path(container).unlink(missing_ok=True)
        if code in ("126", "127"):
            raise CommandNotRun(f"container {container.name!r}: {text}", int(code))
        reason = text or (folder / "minder.log").read_text(errors="replace").strip()[-500:] or "the launcher gave no reason"
        raise KernelError(f"container {container.name!r} cannot be started: {reason}")

    def claim_cleanup(self, container: Container) -> None:
        """Tell the minder that the caller cleans up after the container ends, so that it does not start a process for that."""
        folder = self.folder(container)
        if folder.is_dir():
            (folder / CLAIM).touch(0o600)

    def _launch_config(self, container: Container, has_client: bool, size: tuple[int, int]) -> dict[str, object]:
        spec = container.spec
        own_netns = container.netns is not None and not container.netns.is_host and container.owns_sandbox
        return {
            "id": container.container_id,
            "boot": boot_id(),
            "folder": str(self.folder(container)),
            "socket": str(self.socket_path(container)),
            "lower": os.path.realpath(spec.rootfs or "/"),
            "masked": [os.path.realpath(path) for path in (self.config.state_dir, self.config.run_dir) if not _is_in_run(path)],
            "volumes": self._volumes(container),
            "hostname": container.hostname,
            "domainname": spec.domainname,
            "enter_netns": container.netns is not None and not container.netns.is_host,
            "own_netns": own_netns,
            "tty": spec.tty,
            "size": size,
            "stdin": spec.stdin,
            "keep_stdin": spec.stdin and not has_client,
            "client": has_client,
            "owns_stdio": True,
            "dies_with_parent": True,
            "reap": list(self._reap(container.container_id)),
            "minder_environment": {
                "PATH": os.environ.get("PATH", os.defpath),
                "PYTHONPATH": _ROOT,
                "NETLIB_STATE_DIR": str(self.config.state_dir),
                "NETLIB_RUN_DIR": str(self.config.run_dir),
            },
            **_command_config(spec.command, container.environment, spec.workdir, spec.user),
        }

    @staticmethod
    def _volumes(container: Container) -> list[tuple[str, str, bool]]:
        """Return the volumes of *container*, and our resolv.conf, hosts and hostname except where a volume has their place."""
        found = {volume.target: (volume.source, volume.target, volume.readonly) for volume in container.spec.volumes}
        for name in ("resolv.conf", "hosts", "hostname") if container.files_dir else ():
            found.setdefault(f"/etc/{name}", (f"{container.files_dir}/{name}", f"/etc/{name}", False))
        return list(found.values())

    @contextmanager
    def _lock(self, container: Container) -> Iterator[int]:
        """Hold the lock of a running container during the block; the minder keeps it by an inherited descriptor.

        Conflict when another process holds the lock.
        """
        fd = os.open(self.run_folder(container) / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Conflict(f"container {container.name!r} is running, or being started, already") from error
            yield fd
        finally:
            os.close(fd)

    # --- looking -------------------------------------------------------------------------------------------------------

    def state(self, container: Container) -> State:
        """Return the container's present state."""
        folder = self.folder(container)
        ran = _read_json(folder / "pid.json")
        if ran is None:
            return State()
        started = float(str(ran["started"]))
        alive = ran["boot"] == boot_id() and process.start_time(int(str(ran["minder"]))) == ran["minder_start"]
        ended = _read_json(folder / "exit.json")  # read after `alive`, because a minder writes it before it ends
        if ended is not None and all(ended[key] == ran[key] for key in ("minder", "minder_start")):
            return State(status="exited", code=int(str(ended["code"])), started=started, finished=float(str(ended["finished"])))
        if alive:
            return State(status="running", pid=int(str(ran["pid"])), started=started)
        finished = (folder / "pid.json").stat().st_mtime
        error = "its minder died, or the host was restarted"
        return State(status="exited", code=LOST_CODE, started=started, finished=finished, error=error)

    def logs(
        self, container: Container, *, tail: int | None = None, since: str = "", follows: bool = False
    ) -> Iterator[LogEntry]:
        """Yield the container's output so far, and with *follows* also the output until it ends."""
        path = self.folder(container) / "container.log"
        if not follows:
            yield from read(path, tail=tail, since=since)
            return
        try:
            connection = attach.connect(self.socket_path(container), output=False)
        except NotFound:
            with self._end_descriptor(container) as ended:
                path.touch(mode=0o600)
                yield from follow(path, ended, tail=tail, since=since)
            return
        with connection:
            path.touch(mode=0o600)
            yield from follow(path, connection.fileno(), tail=tail, since=since)

    # --- ending --------------------------------------------------------------------------------------------------------

    def kill(self, container: Container, number: int = signal.SIGKILL) -> None:
        """Send a signal to the container's process 1; Conflict when the container does not run."""
        with self._pidfd(container) as pidfd:
            try:
                signal.pidfd_send_signal(pidfd, number)
            except ProcessLookupError as error:
                raise Conflict(f"container {container.name!r} is not running") from error

    def wait(self, container: Container, seconds: float | None = None) -> int:
        """Wait for the container's end and return its exit code; DeadlineExceeded when that takes longer than *seconds*."""
        try:
            connection = attach.connect(self.socket_path(container), output=False)
        except NotFound:  # the container has ended, or its socket was deleted with the run folder
            with self._end_descriptor(container) as ended:
                if not select.select([ended], [], [], seconds)[0]:
                    raise DeadlineExceeded(f"the container has not ended within {seconds:g} s") from None
            return self.state(container).code
        with connection:
            code = attach.wait(connection, seconds)
        return self.state(container).code if code is None else code

    @contextmanager
    def _end_descriptor(self, container: Container) -> Iterator[int]:
        """Provide a descriptor that is readable once the container's minder has ended: its pidfd, or /dev/null without one."""
        ran = _read_json(self.folder(container) / "pid.json")
        fd = -1
        if ran is not None and self.state(container).running:
            with suppress(ProcessLookupError):
                fd = os.pidfd_open(int(str(ran["minder"])))
        if fd < 0:
            fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)

    def stop(self, container: Container, seconds: float | None = None, number: int | None = None) -> int:
        """Send the container its stop signal, kill it after *seconds* (None: as its record says), and return the exit code.

        A container that does not run gets no signal.
        """
        spec = container.spec
        with suppress(Conflict):  # process 1 has ended; the minder may not have written exit.json yet
            self.kill(container, spec.stop_signal if number is None else number)
        try:
            return self.wait(container, spec.stop_seconds if seconds is None else seconds)
        except DeadlineExceeded:
            with suppress(Conflict):  # it ended just now
                self.kill(container)
            return self.wait(container, _KILL_SECONDS)

    def remove(self, container: Container) -> None:
        """Delete the container's files and control groups; Conflict while it runs."""
        if self.state(container).running:
            raise Conflict(f"container {container.name!r} is running; stop it first")
        with ExitStack() as stack:
            if self.run_folder(container).is_dir():
                stack.enter_context(self._lock(container))
            self.sweep(container.container_id)

    def sweep(self, container_id: str) -> None:
        """Kill what still runs in the control groups of a container, and delete the groups and its files; a no-op without any.

        The container needs no record. Raises KernelError.
        """
        try:
            hierarchies = cgroups.own_hierarchies()
            cgroups.remove(container_id, hierarchies)
            cgroups.remove_unused(hierarchies)
        except (OSError, TimeoutError) as error:
            raise KernelError(str(error)) from error
        with Kernel() as kernel:
            for parent in (self.config.container_dir, self.config.run_dir / "containers"):
                Folder(path=str(parent / container_id)).remove(kernel)

    # --- entering ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _pidfd(self, container: Container) -> Iterator[int]:
        """Provide a pidfd of the container's process 1; Conflict when the container does not run."""
        state = self.state(container)
        refusal = Conflict(f"container {container.name!r} is not running")
        ran = _read_json(self.folder(container) / "pid.json")
        if not state.running or ran is None:
            raise refusal
        try:
            pidfd = os.pidfd_open(state.pid)
        except ProcessLookupError as error:
            raise refusal from error
        try:
            # Compared after the pidfd was opened: if the process with this pid is process 1 now, the pidfd is of process 1.
            if process.start_time(state.pid) != ran["start"]:
                raise refusal
            yield pidfd
        finally:
            os.close(pidfd)

    @contextmanager
    def exec_command(self, container: Container, wanted: ExecSpec) -> Iterator[tuple[int, list[str]]]:
        """Provide a program (an open descriptor) and its command line, which run *wanted* in the container.

        The caller executes it in its own place by ``os.execve``, or in a child that inherits descriptors. It uses descriptors 0
        to 2 of that process.
        """
        if not wanted.command or not wanted.command[0]:
            raise ConfigError("no command given; say what to execute after the container's name")
        groups = [f"{path}/{cgroups.PARENT}/{container.container_id}" for path in cgroups.own_hierarchies().values()]
        spec = container.spec
        environment = container.environment | ({"TERM": "xterm"} if wanted.tty else {}) | wanted.environment
        config = {
            "groups": [path for path in groups if os.path.isdir(path)],
            "tty": wanted.tty and not wanted.detach,
            "stdin": wanted.stdin and not wanted.detach,
            "detach": wanted.detach,
            "detach_keys": wanted.detach_keys,
            "owns_stdio": not wanted.detach,
            "dies_with_parent": False,
            "refusal": f"container {container.name!r} is not running",
            **_command_config(wanted.command, environment, wanted.workdir or spec.workdir, wanted.user or spec.user),
        }
        with self._pidfd(container) as pidfd, _protected_python() as python:
            memory = os.memfd_create("netlib-exec")
            try:
                os.write(memory, marshal.dumps(config))
                os.lseek(memory, 0, os.SEEK_SET)
                for fd in (pidfd, memory):
                    os.set_inheritable(fd, True)
                yield python, launch.command_line(sys.executable, _ROOT, "enter", str(pidfd), str(memory))
            finally:
                os.close(memory)


@contextmanager
def _protected_python() -> Iterator[int]:
    """Open this process's interpreter for a process that enters a container; KernelError where the kernel refuses it.

    :func:`netlib.runtime.process.open_protected` says what it is protected from.
    """
    with doing("open the interpreter by a read-only mount"):
        opened_low = process.open_protected(sys.executable)
        try:
            fd = fcntl.fcntl(opened_low, fcntl.F_DUPFD_CLOEXEC, launch.CLIENT_FD + 1)  # above the numbers that a child gets
        finally:
            os.close(opened_low)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _spawn_actions(fds: Mapping[int, int]) -> Iterator[list[tuple[int, int, int]]]:
    """Provide actions for ``posix_spawn`` that give the child each descriptor of *fds* under the number of its key."""
    above = max(fds) + 1  # copied there first, or an action could replace a descriptor that a later one needs
    with ExitStack() as stack:
        actions = []
        for number, fd in fds.items():
            moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above)
            stack.callback(os.close, moved)
            actions.append((os.POSIX_SPAWN_DUP2, moved, number))
        yield actions


def _pipe(stack: ExitStack) -> tuple[BinaryIO, BinaryIO]:
    """Make a pipe and return both ends, which *stack* closes."""
    read, write = os.pipe()
    return stack.enter_context(open(read, "rb")), stack.enter_context(open(write, "wb"))


def _spawn_launcher(config: bytes, fds: Mapping[int, int], log: Path) -> str:
    """Run ``netlib.runtime.launch`` and return its answer. It is spawned, not forked, because the caller may have threads."""
    try:
        with ExitStack() as stack:
            config_read, config_write = _pipe(stack)
            answer_read, answer_write = _pipe(stack)
            messages = stack.enter_context(open(log, "wb", opener=partial(os.open, mode=0o600)))
            theirs = (config_read, answer_write, messages)
            python = stack.enter_context(_protected_python())
            with _spawn_actions({**dict(enumerate(file.fileno() for file in theirs)), **fds}) as actions:
                arguments = launch.command_line(sys.executable, _ROOT, "launch")
                pid = os.posix_spawn(f"/proc/self/fd/{python}", arguments, {}, file_actions=actions)
            for file in theirs:
                file.close()
            config_write.write(config)
            config_write.close()
            os.waitpid(pid, 0)  # ends at once: the launcher forks, so that the minder is not our child
            return answer_read.read().decode(errors="replace")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise KernelError(f"cannot start the container's minder: {reason}", error.errno or 0) from error


def _command_config(command: Sequence[str], environment: Mapping[str, str], workdir: str, user: str) -> dict[str, object]:
    return {"command": list(command), "environment": dict(environment), "workdir": workdir, "user": user}


def _make_source(path: str) -> None:
    """Make the missing source folder of a volume, as Docker does; ConfigError where that fails."""
    try:
        make_folder(path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"volume source {path} is missing and cannot be made: {reason}; name an existing folder") from error


def _is_in_run(path: Path) -> bool:
    """Whether *path* is below /run, which the container's own tmpfs hides."""
    return os.path.realpath(path).startswith("/run/")


def _read_json(path: Path) -> dict[str, object] | None:
    """Read a JSON file that a minder wrote; None where it is missing or is no JSON.

    After a loss of power a file may be empty, and one such file must not make every verb fail.
    """
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None
