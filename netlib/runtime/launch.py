"""Start one container and become its minder: ``python -IS``, with the configuration on standard input.

It writes one line to standard output: ``0 <pid>`` when the command runs, else ``<exit code> <sentence>``. Then this process
executes ``netlib.runtime.shim`` in its own place: the minder is the parent of the command, without the memory that was needed
to start it. The child makes its mounts while this process moves it into its control groups (10 ms in the kernel).
"""

from __future__ import annotations

import marshal  # both ends are the same interpreter, and json costs 5 ms here
import os
import select
import sys
import time

from netlib.runtime import cgroups, init, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# The numbers of the descriptors that the starter passes on. The last two are open only if the configuration says so.
LOCK_FD, LISTEN_FD, NETNS_FD, CLIENT_FD = 3, 4, 5, 6
EXIT_BYTES = 256
_MOST_FDS = 1 << 20
_BOOTSTRAP = "import sys; sys.path.append(sys.argv[1]); from netlib.runtime.{module} import main; main()"


def command_line(python: str, root: str, module: str, *arguments: str) -> list[str]:
    """Return the command that runs ``main()`` of a module of this package from compiled code, without site-packages.

    A process that enters a container executes the descriptor of :func:`netlib.runtime.process.open_protected`, not this path.
    """
    return [python, "-IS", "-c", _BOOTSTRAP.format(module=module), root, *arguments]


def main() -> None:
    """Detach from the starter, read the configuration, start the container, become its minder."""
    try:
        if os.fork():
            os._exit(0)
    except init.FAILURES as error:
        os.write(1, init.explain(error))
        os._exit(1)
    os.setsid()
    os.chdir("/")
    os.umask(0o077)
    with open(0, "rb", closefd=False) as pipe:
        text = pipe.read()
    if not text:
        os._exit(0)  # the starter failed before it wrote the configuration
    config = marshal.loads(text)  # noqa: S302  written by our starter
    os.closerange(CLIENT_FD + 1, _MOST_FDS)
    for fd, wanted in ((NETNS_FD, config["enter_netns"]), (CLIENT_FD, config["client"])):
        if not wanted:
            os.closerange(fd, fd + 1)
    try:
        minder = _start(config)
    except init.FAILURES as error:
        os.write(1, init.explain(error))
        os._exit(1)
    os.execve(minder[0], minder, config["minder_environment"])


def _start(config: dict[str, Any]) -> list[str]:
    """Start the command and report it; return the command line of the minder."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    stdin, feed = os.pipe() if config["stdin"] and not config["tty"] else (None, None)
    out, out_write = os.pipe()
    error, error_write = os.pipe()
    status, status_write = os.pipe()
    go_read, go = os.pipe()
    hierarchies = cgroups.own_hierarchies()
    groups = cgroups.create(config["id"], hierarchies)

    pid = process.fork_into_new_pids()
    if pid == 0:
        for fd in (LOCK_FD, LISTEN_FD, status, go):  # or the child would hold the lock and keep the pipes open
            os.close(fd)
        netns = NETNS_FD if config["enter_netns"] else None
        init.become_container(config, groups, netns, [stdin, out_write, error_write], status_write, go_read)
    for fd in (status_write, go_read, out_write, error_write, *([] if stdin is None else [stdin])):
        os.close(fd)
    if config["enter_netns"]:
        os.close(NETNS_FD)  # or the minder would keep the netns after its removal
    try:
        cgroups.join(pid, groups)
        cgroups.join_minders(hierarchies)
        _survive_memory_pressure()
        _prepare_pid_file(config, pid)
        terminal = _release(config, pid, status, go)
        os.rename(f"{config['folder']}/pid.json.new", f"{config['folder']}/pid.json")
    except init.FAILURES:
        os.kill(pid, process.SIGKILL)
        os.waitpid(pid, 0)
        cgroups.remove(config["id"], hierarchies)
        raise
    if terminal is not None:
        out = feed = terminal
    os.write(1, f"0 {pid}".encode())
    os.dup2(null, 1)
    return _minder(config, pid, out, error, feed)


def _survive_memory_pressure() -> None:
    """Have the kernel kill the container, not its minder, when memory runs out; a no-op where that is not permitted."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("-900")
    except PermissionError:  # no CAP_SYS_RESOURCE
        return


def _release(config: dict[str, Any], pid: int, status: int, go: int) -> int | None:
    """Wait until the child has made its mounts, make its terminal if it wants one, and have it execute the command.

    Returns the terminal's master. Raises CommandRefused with the child's failure.
    """
    terminal = None
    answer = _read_status(status, 1)
    if not answer:
        raise process.CommandRefused(125, "it was killed while it was set up")
    if answer == init.MOUNTED:
        answer, number = b"", "-"
        if config["tty"]:
            terminal, number = process.open_master(f"/proc/{pid}/root/dev/pts/ptmx", *config["size"])
            # The minder keeps the slave open too: else its reads fail whenever no process of the container has it open.
            os.set_inheritable(os.open(f"/proc/{pid}/root/dev/pts/{number}", os.O_RDWR | os.O_NOCTTY), True)
        os.write(go, number.encode())
    while chunk := _read_status(status, 4096):
        answer += chunk
    os.close(status)
    os.close(go)
    if answer:
        code, _, sentence = answer.decode(errors="replace").partition(" ")
        raise process.CommandRefused(int(code), sentence)
    return terminal


def _read_status(status: int, most: int) -> bytes:
    """Read from the child's status pipe, without a limit of time; CommandRefused when our starter has ended meanwhile."""
    poll = select.poll()
    poll.register(status, select.POLLIN)
    poll.register(1, 0)  # errors only: the reader of our standard output has closed it
    if status not in dict(poll.poll()):
        raise process.CommandRefused(125, "the process that started it has ended")
    return os.read(status, most)


def _prepare_pid_file(config: dict[str, Any], pid: int) -> None:
    """Write pid.json.new, with start times and boot id, by which a reused pid is recognised, and a placeholder for exit.json.

    Both are written before the command begins, which may fill the disk at once. Later they only have to be renamed.
    """
    folder, minder = config["folder"], os.getpid()
    start, minder_start = process.start_time(pid), process.start_time(minder)
    who = f'{{"pid": {pid}, "start": {start}, "minder": {minder}, "minder_start": {minder_start},'
    who += f' "boot": "{config["boot"]}", "started": {time.time()}}}'
    try:
        for name, text in (("exit.json.new", " " * EXIT_BYTES), ("pid.json.new", who)):
            with open(f"{folder}/{name}", "w") as file:
                file.write(text)
    except OSError as error:
        error.filename = error.filename or f"write in {folder}"
        raise


def _minder(config: dict[str, Any], pid: int, out: int, error: int, feed: int | None) -> list[str]:
    fds = {"lock": LOCK_FD, "listen": LISTEN_FD, "out": out, "error": error}
    fds |= {} if feed is None else {"feed": feed}
    fds |= {"client": CLIENT_FD} if config["client"] else {}
    for fd in fds.values():
        os.set_inheritable(fd, True)
    facts = {name: config[name] for name in ("id", "folder", "socket", "keep_stdin")}
    facts |= {"pid": pid, "minder_start": process.start_time(os.getpid()), **fds}
    words = [f"{name}={value}" for name, value in facts.items()]
    return command_line(sys.executable, sys.path[-1], "shim", *words, "--", *config["reap"])
