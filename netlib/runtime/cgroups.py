"""Control groups: one per container below ``netlib/``, in every hierarchy there is (v1, hybrid, v2), and one for the minders.

Hierarchies and groups are dictionaries from a hierarchy's name (the last part of where it is mounted; empty when there is only
v2) to a path. Only ``errno`` and ``os`` are imported at the top: this runs under ``python -IS``. Moving a process costs one RCU
grace period (10 ms measured), however many hierarchies follow at once.
"""

import errno
import os

PARENT = "netlib"
MINDERS = "minders"
_DEADLINE_MS = 5000
_GONE = (errno.ENOENT, errno.ENODEV)  # the second: it was there when its file was opened


def hierarchies(mountinfo: str) -> dict[str, str]:
    """Where the writable hierarchies are mounted, by a text like /proc/self/mountinfo."""
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
    """The hierarchies that this process sees."""
    with open("/proc/self/mountinfo", errors="surrogateescape") as file:
        return hierarchies(file.read())


def create(group: str, where: dict[str, str]) -> dict[str, str]:
    """Make ``netlib/<group>`` in each hierarchy; return the group's paths, where that is permitted."""
    made = {}
    for name, mountpoint in where.items():
        path = f"{mountpoint}/{PARENT}/{group}"
        try:
            while True:
                try:
                    _create_one(f"{mountpoint}/{PARENT}")
                    if not _create_one(path):
                        os.close(os.open(f"{path}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))  # it may be root's
                except OSError as error:
                    if error.errno not in _GONE or not os.path.isdir(mountpoint):
                        raise
                    continue  # another container's removal took the empty parent away just now
                break
        except PermissionError:  # no root in this user namespace: the container stays where its starter is
            continue
        made[name] = path
    return made


def _create_one(path: str) -> bool:
    """Make a group; False where it was there."""
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        return False
    os.chmod(path, 0o755)  # noqa: S103 - as groups are, whatever the umask: it is seen inside
    for name in ("cpuset.cpus", "cpuset.mems"):  # v1: a new group has none, and takes no process before it has
        try:
            fd = os.open(f"{path}/{name}", os.O_RDWR)
        except OSError:
            break
        try:
            if not os.read(fd, 4096).strip():
                with open(f"{os.path.dirname(path)}/{name}", "rb") as parent:
                    os.write(fd, parent.read())
        finally:
            os.close(fd)
    return True


def join(pid: int, group: dict[str, str]) -> None:
    """Move a process into the group in each hierarchy; 0 is the caller."""
    for path in group.values():
        fd = os.open(f"{path}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str(pid).encode())
        finally:
            os.close(fd)


def join_minders(where: dict[str, str]) -> None:
    """Move the caller out of its starter's groups into the one of all minders."""
    while True:
        try:
            join(0, create(MINDERS, where))
        except OSError as error:
            if error.errno not in _GONE:
                raise
            continue  # empty until now, and taken away just now
        return


def leave_minders(where: dict[str, str]) -> None:
    """Leave the group of all minders, if the caller is the last one in it, so that it can go."""
    for mountpoint in where.values():
        try:
            with open(f"{mountpoint}/{PARENT}/{MINDERS}/cgroup.procs") as file:
                if file.read().split() != [str(os.getpid())]:
                    return
            join(0, {"": mountpoint})
        except OSError:  # there is no such group, or no way out of it
            return
    remove_unused(where)


def remove_unused(where: dict[str, str]) -> None:
    """Remove the group of all minders and the parent of all groups where nobody is in them."""
    for mountpoint in where.values():
        for path in (f"{mountpoint}/{PARENT}/{MINDERS}", f"{mountpoint}/{PARENT}"):
            if os.path.isdir(path):
                try:
                    os.rmdir(path)
                except OSError:
                    break


def remove(group: str, where: dict[str, str]) -> None:
    """End what still runs in the group and remove it everywhere; a no-op where it is not. Raises TimeoutError after 5 s."""
    import time

    deadline = time.monotonic() + _DEADLINE_MS / 1000
    for mountpoint in where.values():
        path = f"{mountpoint}/{PARENT}/{group}"
        while True:
            try:
                os.rmdir(path)
            except (FileNotFoundError, PermissionError):  # root's, where this user namespace has no rights: `create` made none
                break
            except OSError as error:
                if not _end_members(path):
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"control group {path} cannot be removed: {error.strerror}") from error
                    time.sleep(0.005)  # noqa: TID251 - who has just ended is not listed and still in it, and nothing tells when
            else:
                break


def _end_members(path: str) -> bool:
    """Kill the members of a group and wait for their ends; say whether there were any."""
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
                raise TimeoutError(f"process {pid} in control group {path} does not end")
        except ProcessLookupError:
            continue
        finally:
            os.close(pidfd)
    return bool(pids)
