"""Control groups: one per container below ``netlib/`` in every hierarchy (v1, hybrid, v2), and one for all minders.

Hierarchies and groups are dictionaries from a hierarchy's name (the last part of its mount point; empty where there is only one
hierarchy) to a path. Only ``errno`` and ``os`` are imported at the top: this runs under ``python -IS``. Moving a process takes
one RCU grace period (10 ms measured), also when it is moved in several hierarchies directly after one another.
"""

import errno
import os

PARENT = "netlib"
MINDERS = "minders"
_DEADLINE_MS = 5000
_GONE = (errno.ENOENT, errno.ENODEV)  # ENODEV: the group was removed after its file was opened


def hierarchies(mountinfo: str) -> dict[str, str]:
    """Find the mount points of the writable hierarchies in the text of /proc/self/mountinfo."""
    found: dict[str, str] = {}  # by device: one hierarchy may be mounted twice
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if after.split(" ")[0] in ("cgroup", "cgroup2") and "ro" not in fields[5].split(","):
            found.setdefault(fields[2], fields[4])
    if len(found) == 1:
        return {"": found.popitem()[1]}
    return {path.rpartition("/")[2]: path for path in found.values()}


def own_hierarchies() -> dict[str, str]:
    """Return the hierarchies that are mounted in this process's mount namespace."""
    with open("/proc/self/mountinfo", errors="surrogateescape") as file:
        return hierarchies(file.read())


def create(group: str, where: dict[str, str]) -> dict[str, str]:
    """Make ``netlib/<group>`` in each hierarchy where that is permitted, and return the paths of these groups."""
    made = {}
    for name, mountpoint in where.items():
        path = f"{mountpoint}/{PARENT}/{group}"
        try:
            while True:
                try:
                    _create_one(f"{mountpoint}/{PARENT}")
                    if not _create_one(path):
                        os.close(os.open(f"{path}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))  # refused if it is root's
                except OSError as error:
                    if error.errno not in _GONE or not os.path.isdir(mountpoint):
                        raise
                    continue  # the removal of another container has removed the empty parent just now
                break
        except PermissionError:  # not root on the host: the container stays in its starter's group
            continue
        made[name] = path
    return made


def _create_one(path: str) -> bool:
    """Make a group; False where it existed."""
    is_new = True
    try:
        os.mkdir(path, 0o755)
        os.chmod(path, 0o755)  # noqa: S103 - the usual mode, which the umask must not change, since the container sees the group
    except FileExistsError:
        is_new = False
    _fill_cpuset(path)  # also of a group that existed: another process may have made it just now
    return is_new


def _fill_cpuset(path: str) -> None:
    """Give a group of version 1 the processors and memory of its parent: it has none at first, and no process can join it."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        try:
            fd = os.open(f"{path}/{name}", os.O_RDWR)
        except OSError:
            return
        try:
            if not os.read(fd, 4096).strip():
                with open(f"{os.path.dirname(path)}/{name}", "rb") as parent:
                    os.write(fd, parent.read())
        except FileNotFoundError:  # version 2, in which the root has no such file, and an empty one inherits
            return
        finally:
            os.close(fd)


def join(pid: int, group: dict[str, str]) -> None:
    """Move the process *pid* (0: the caller) into the group in each hierarchy."""
    for path in group.values():
        fd = os.open(f"{path}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str(pid).encode())
        finally:
            os.close(fd)


def join_minders(where: dict[str, str]) -> None:
    """Move the caller out of its starter's groups into the group of all minders."""
    while True:
        try:
            join(0, create(MINDERS, where))
        except OSError as error:
            if error.errno not in _GONE:
                raise
            continue  # the group was empty, and another process has removed it just now
        return


def leave_minders(where: dict[str, str]) -> None:
    """If the caller is the last process in the group of all minders, leave the group and remove it."""
    for mountpoint in where.values():
        try:
            with open(f"{mountpoint}/{PARENT}/{MINDERS}/cgroup.procs") as file:
                if file.read().split() != [str(os.getpid())]:
                    return
            join(0, {"": mountpoint})
        except OSError:  # there is no such group, or the caller may not leave it
            return
    remove_unused(where)


def remove_unused(where: dict[str, str]) -> None:
    """Remove the group of all minders and the parent of all groups where they are empty."""
    for mountpoint in where.values():
        for path in (f"{mountpoint}/{PARENT}/{MINDERS}", f"{mountpoint}/{PARENT}"):
            if os.path.isdir(path):
                try:
                    os.rmdir(path)
                except OSError:
                    break


def remove(group: str, where: dict[str, str]) -> None:
    """Kill the processes in the group and remove it from every hierarchy; TimeoutError after 5 s. A no-op without the group."""
    import time

    deadline = time.monotonic() + _DEADLINE_MS / 1000
    for mountpoint in where.values():
        path = f"{mountpoint}/{PARENT}/{group}"
        while True:
            try:
                os.rmdir(path)
            except (FileNotFoundError, PermissionError):  # not permitted where `create` was not either
                break
            except OSError as error:
                if not _kill_members(path):
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"control group {path} cannot be removed: {error.strerror}") from error
                    time.sleep(0.005)  # noqa: TID251 - a process that has just ended is unlisted but still counted, and no event tells when it is not
            else:
                break


def _kill_members(path: str) -> bool:
    """Kill the processes of a group and wait until they have ended; False when there were none."""
    import select
    import signal

    with open(f"{path}/cgroup.procs") as file:
        pids = [int(line) for line in file if int(line)]
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if not poll.poll(_DEADLINE_MS):
                raise TimeoutError(
                    f"process {pid} in control group {path} did not end within {_DEADLINE_MS // 1000} seconds of SIGKILL; see "
                    f"/proc/{pid}/stack for what it waits for"
                )
        except ProcessLookupError:
            continue
        finally:
            os.close(pidfd)
    return bool(pids)
