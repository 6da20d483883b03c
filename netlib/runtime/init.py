"""Turning a forked child into the container's process 1: namespaces, root, terminal, user, command.

This runs between fork and exec under ``python -IS``, so it imports no more than its neighbours do. A failure is written to the
status pipe as ``<exit code> <sentence>``. When the pipe is closed without one, the command runs.
"""

from __future__ import annotations

import errno
import os

from netlib.runtime import mounts, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

MOUNTED = b"+"
FAILURES = (OSError, LookupError, ValueError, MemoryError, process.CommandRefused)
_NO_PROCESS = "no more processes can be made; end some, or raise their limit (ulimit -u, pids.max of the control group)"
_NO_MEMORY = "too little memory is left for it; free some, or raise the limit (ulimit -v, the control group's)"
UNEXPECTED = b"125 an unexpected error occurred"
_SYSCTLS = {"ipv4/ip_unprivileged_port_start": "0", "ipv4/ping_group_range": "0 2147483647"}  # Docker's, in a netns of our own


def become_container(
    config: dict[str, Any], groups: dict[str, str], netns: int | None, stdio: list[int | None], status: int, go: int
) -> NoReturn:
    """Enter the namespaces, make the mounts, write MOUNTED to *status*, wait for an answer on *go*, execute the command.

    The answer is the number of the terminal, or "-" without one. *stdio* holds the descriptors for 0 to 2, None for the null
    device. This function does not return: on an error the process ends.
    """
    message = UNEXPECTED
    try:
        process.die_with_parent()
        os.setsid()
        os.umask(0o022)
        _enter_namespaces(config, netns)
        _make_root(config, groups)
        os.write(status, MOUNTED)
        answer = os.read(go, 64).decode()
        if not answer:  # the process that started us has died, and with it the container's minder
            os._exit(1)
        process.unshare(process.CLONE_NEWCGROUP)  # its root is the present group: by now that is the container's
        if config["tty"]:
            stdio = _take_console(f"/dev/pts/{answer}")
        run_command(config, stdio, status)
    except FAILURES as error:
        message = explain(error)
    finally:
        os.write(status, message)
        os._exit(1)


def explain(error: Exception) -> bytes:
    """Return ``<exit code> <sentence>`` for an error because of which a container or command was not started."""
    code = error.code if isinstance(error, process.CommandRefused) else 125
    text = str(error)
    if isinstance(error, MemoryError) or getattr(error, "errno", 0) == errno.ENOMEM:
        text = _NO_MEMORY
    elif isinstance(error, BlockingIOError):
        text = _NO_PROCESS
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror.lower()}" if error.filename else error.strerror.lower()
    text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return f"{code} {text}".encode(errors="replace")


def _enter_namespaces(config: dict[str, Any], netns: int | None) -> None:
    if netns is not None:
        process.setns(netns, process.CLONE_NEWNET)
    if config["own_netns"]:
        for name, value in _SYSCTLS.items():
            _set_sysctl(f"/proc/sys/net/{name}", value)
    process.unshare(process.CLONE_NEWNS | process.CLONE_NEWUTS | process.CLONE_NEWIPC)
    process.set_hostname(config["hostname"], config["domainname"])


def _set_sysctl(path: str, value: str) -> None:
    try:
        with open(path, "w") as file:
            file.write(value)
    except OSError as error:
        # A user namespace has fewer groups than ping_group_range names. Its root may ping without the setting.
        if error.errno != errno.EINVAL:
            raise


def _make_root(config: dict[str, Any], groups: dict[str, str]) -> None:
    with open("/proc/self/mountinfo", errors="surrogateescape") as file:
        mountinfo = file.read()
    process.make_all_slaves()
    root = mounts.mount_overlay(config["lower"], config["folder"])
    if config["lower"] == "/":
        mounts.show_host(root, mountinfo, config["masked"])
    mounts.mount_system(root, groups)
    mounts.mount_volumes(root, config["volumes"])
    process.forbid_imports()
    process.pivot_root(root.fd)


def _take_console(path: str) -> list[int | None]:
    """Make the terminal at *path* the session's controlling terminal and /dev/console; return it for descriptors 0 to 2."""
    slave = process.take_terminal(path)
    os.close(os.open("/dev/console", os.O_CREAT | os.O_CLOEXEC | os.O_RDONLY, 0o600))
    source, target = (os.open(name, os.O_PATH | os.O_CLOEXEC) for name in (path, "/dev/console"))
    process.bind(source, target)
    return [slave, slave, slave]


def run_command(config: dict[str, Any], stdio: list[int | None], status: int) -> NoReturn:
    """Execute the command of *config* as its user, in its folder, with its environment; return only by an exception.

    Before a path of the container is looked up, every descriptor except *stdio* and *status* is closed: a link in the container
    could lead to any open descriptor by /proc/self/fd (CVE-2024-21626 was a working folder by such a link).
    """
    process.close_others(status, *(fd for fd in stdio if fd is not None))
    process.leave_keyring()
    uid, gid, groups, home = process.find_user(config["user"])
    _enter_workdir(config["workdir"] or "/")
    null = process.open_null() if None in stdio else -1
    try:
        for number, fd in enumerate(null if fd is None else fd for fd in stdio):
            if uid and config["owns_stdio"] and fd != null:
                os.fchown(fd, uid, -1)  # or the user could not open /dev/stdout, which is a link to the descriptor
            os.dup2(fd, number)
        process.become(uid, gid, groups, process.DEFAULT_CAPABILITIES.values())
    except OSError as error:  # a user namespace may not have this user
        error.filename = error.filename or f"become user {uid} and group {gid}"
        raise
    if config["dies_with_parent"]:
        process.die_with_parent()  # again, because the kernel clears the setting when the credentials change
    process.execute(config["command"], {"HOME": home, **config["environment"]})


def _enter_workdir(workdir: str) -> None:
    """Make the working folder if it is missing, and enter it; CommandRefused when it is no folder in the container."""
    refusal = process.CommandRefused(125, f"{workdir} is no folder in the container; choose another --workdir")
    try:
        os.makedirs(workdir, exist_ok=True)
        os.chdir(workdir)
        os.getcwd()
    except (FileExistsError, NotADirectoryError) as error:
        raise refusal from error
    except FileNotFoundError as error:  # from getcwd(3): the folder was deleted, or is outside the container's root
        raise refusal from error
