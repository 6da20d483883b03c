"""System calls that Python lacks, by ctypes: namespaces, mounts, capabilities, becoming another user.

Rule: only small modules are imported, for this runs in processes started by ``python -IS`` (``typing`` alone would add 10 ms),
and all of them at the top, because an import in a process that has entered a container would run the container's code with
the host's rights. A refusal of the kernel is an ``OSError`` whose ``filename`` is a verb phrase. Needs Linux 5.12
(``mount_setattr``).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
import sys
import termios

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import NoReturn

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x02000000, 0x04000000, 0x08000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE, MS_SLAVE = 1, 2, 4, 8, 1 << 14, 1 << 18, 1 << 19
_MNT_DETACH = 2
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_EMPTY_PATH = 0x4, 0x40
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4
_CLOSE_RANGE_CLOEXEC = 4
_MOST_FDS = 1 << 20
_KEYCTL_JOIN_SESSION_KEYRING = 1
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_READ, _PR_CAPBSET_DROP = 1, 4, 23, 24
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_CLONE3 = 428, 429, 435  # these and the next two: the same on every architecture
_SYS_CLOSE_RANGE, _SYS_MOUNT_SETATTR = 436, 442
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}
_SYS_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "ppc64le": 271, "s390x": 280}
_NULL_DEVICE = os.makedev(1, 3)
_CAPABILITY_VERSION_3 = 0x20080522
_MOST_CAPABILITIES = 64
_MOST_BYTES = 16 << 20  # of a container's /etc/passwd or /etc/group that are read
SIGKILL, SIGPIPE, SIGCHLD = 9, 13, 17
_SIGNALS = 64

# What Docker leaves to a container's root: moby, daemon/pkg/oci/caps/defaults.go. The numbers are those of linux/capability.h.
DEFAULT_CAPABILITIES = {
    "CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "FSETID": 4, "KILL": 5, "SETGID": 6, "SETUID": 7, "SETPCAP": 8,
    "NET_BIND_SERVICE": 10, "NET_RAW": 13, "SYS_CHROOT": 18, "MKNOD": 27, "AUDIT_WRITE": 29, "SETFCAP": 31,
}  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def _check(result: int, action: str) -> int:
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), action)
    return result


# --- namespaces ----------------------------------------------------------------------------------------------------------


def fork_into_new_pids() -> int:
    """Fork as os.fork() does, with the child as process 1 of a new PID namespace. Python's hooks for forks are not run.

    unshare(2) and a fork would not do: after unshare(2) a process can return its later children to its own PID namespace only
    with rights in that one, which root of a user namespace does not have.
    """
    arguments = struct.pack("=8Q", CLONE_NEWPID, 0, 0, 0, SIGCHLD, 0, 0, 0)  # struct clone_args: flags and exit_signal
    return _check(_libc.syscall(_SYS_CLONE3, arguments, len(arguments)), "make namespaces")


def unshare(flags: int) -> None:
    """Move this process into new namespaces of the kinds in *flags*."""
    _check(_libc.unshare(flags), "make namespaces")


def setns(fd: int, flags: int) -> None:
    """Enter the namespaces named by *flags* of a namespace file, or of the process behind a pidfd (Linux 5.8)."""
    _check(_libc.setns(fd, flags), "enter namespaces")


def forbid_imports() -> None:
    """Make later imports fail: the paths of sys.path would be looked up in the container."""
    sys.path.clear()


def set_hostname(hostname: str, domainname: str) -> None:
    """Set the hostname of the UTS namespace, and the domain name unless *domainname* is empty."""
    name = os.fsencode(hostname)
    _check(_libc.sethostname(name, len(name)), f"set the hostname to {hostname}")
    if domainname:
        name = os.fsencode(domainname)
        _check(_libc.setdomainname(name, len(name)), f"set the domain name to {domainname}")


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends. A change of credentials clears the setting."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0), "tie the container to its minder")


def hide() -> None:
    """Keep processes of a container from tracing this one and opening its descriptors until it executes (CVE-2016-9962)."""
    _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "hide from the container")


def open_protected(path: str) -> int:
    """Open a program of the host for execution by a process that enters a container.

    A process in the container can open its executable (``/proc/self/exe``, also in a script's ``#!``), and root there could
    change the file's mode or owner, or write to it once no process executes it (CVE-2019-5736). The descriptor is therefore
    opened by a mount of its own, read-only and nosuid, which is in no mount namespace, so that no process can find the mount or
    make it writable. The program's libraries need no such mount: only ``/proc/PID/map_files`` leads to them, and opening that
    needs CAP_CHECKPOINT_RESTORE in the host's user namespace.
    """
    source = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_EMPTY_PATH
        tree = _check(_libc.syscall(_SYS_OPEN_TREE, source, b"", flags), f"bind {path}")
    finally:
        os.close(source)
    try:
        _set_attributes(tree, _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV, recursive=False)
        return os.open(f"/proc/self/fd/{tree}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(tree)  # detaches the mount: it is in no namespace now, and its flags cannot be changed any more


def close_others(*keep: int) -> None:
    """Close every descriptor from 3 on except *keep*, so that no open descriptor leads a container to the host's files."""
    first = 3
    for fd in sorted(keep):
        os.closerange(first, fd)
        first = max(first, fd + 1)
    os.closerange(first, _MOST_FDS)


def open_null() -> int:
    """Open the container's ``/dev/null``. Through a descriptor of the host's, root inside could change its mode and owner.

    CommandRefused where a volume put another file there.
    """
    fd = os.open("/dev/null", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(fd)
    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != _NULL_DEVICE:
        os.close(fd)
        raise CommandRefused(125, "/dev/null in the container is not the null device; leave out the volume that replaces it")
    os.set_blocking(fd, True)
    return fd


def leave_keyring() -> None:
    """Join a new session keyring; in the caller's, the container's processes would find the caller's keys."""
    number = _SYS_KEYCTL.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), f"make a session keyring on {os.uname().machine}")
    if _libc.syscall(number, _KEYCTL_JOIN_SESSION_KEYRING, None) == -1 and ctypes.get_errno() != errno.ENOSYS:  # without keys
        _check(-1, "make a session keyring")


# --- mounts --------------------------------------------------------------------------------------------------------------


def make_all_slaves() -> None:
    """Make all mounts slaves: new mounts of the host appear in this mount namespace, and none of ours appear on the host."""
    _check(_libc.mount(None, b"/", None, MS_REC | MS_SLAVE, None), "separate the mounts from the host's")


def mount(fstype: str, target: int, flags: int, data: str = "") -> None:
    """Mount a new file system on the directory that the descriptor *target* refers to."""
    where = f"/proc/self/fd/{target}"
    result = _libc.mount(fstype.encode(), where.encode(), fstype.encode(), flags, os.fsencode(data) or None)
    _check(result, f"mount {fstype} on {os.readlink(where)}")


def bind(source: int, target: int, *, readonly: bool = False, nodev: bool = False, recursive: bool = False) -> None:
    """Bind-mount the file behind the descriptor *source* on the one behind *target*, with its attributes set before."""
    what = os.readlink(f"/proc/self/fd/{source}")
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    tree = _check(_libc.syscall(_SYS_OPEN_TREE, source, b"", flags), f"bind {what}")
    try:
        set_attributes(tree, readonly=readonly, nodev=nodev, recursive=recursive)
        flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
        result = _libc.syscall(_SYS_MOVE_MOUNT, tree, b"", target, b"", flags)
        _check(result, f"bind {what} on {os.readlink(f'/proc/self/fd/{target}')}")
    finally:
        os.close(tree)


def set_attributes(mountpoint: int, *, readonly: bool, nodev: bool = False, recursive: bool = False) -> None:
    """Make the mount behind the descriptor *mountpoint* private, and as asked read-only or without device nodes."""
    wanted = (_MOUNT_ATTR_RDONLY if readonly else 0) | (_MOUNT_ATTR_NODEV if nodev else 0)
    _set_attributes(mountpoint, wanted, recursive=recursive)


def _set_attributes(mountpoint: int, wanted: int, *, recursive: bool) -> None:
    attributes = _MountAttributes(attr_set=wanted, propagation=MS_PRIVATE)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    result = _libc.syscall(_SYS_MOUNT_SETATTR, mountpoint, b"", flags, ctypes.byref(attributes), ctypes.sizeof(attributes))
    _check(result, f"protect {os.readlink(f'/proc/self/fd/{mountpoint}')}")


def pivot_root(root: int) -> None:
    """Make the mount behind the descriptor *root* the root directory, and detach the old root."""
    os.fchdir(root)
    number = _SYS_PIVOT_ROOT.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), f"change the root on {os.uname().machine}")
    _check(_libc.syscall(number, b".", b"."), "change the root")
    _check(_libc.umount2(b".", _MNT_DETACH), "leave the old root")  # it is mounted on top of the new one: see pivot_root(2)
    os.chdir("/")


# --- terminals -----------------------------------------------------------------------------------------------------------


def open_master(path: str, rows: int, columns: int) -> tuple[int, str]:
    """Make a pseudo terminal by the ``ptmx`` at *path*; return the descriptor of its master and the number of its slave."""
    master = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    name = ctypes.create_string_buffer(64)
    _check(_libc.unlockpt(master), "unlock a pseudo terminal")
    if code := _libc.ptsname_r(master, name, len(name)):
        raise OSError(code, os.strerror(code), "name a pseudo terminal")
    set_size(master, rows, columns)
    return master, name.value.decode().rpartition("/")[2]


def set_size(terminal: int, rows: int, columns: int) -> None:
    """Set the size of a pseudo terminal, unless *rows* or *columns* is 0."""
    if rows and columns:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def take_terminal(path: str) -> int:
    """Open the slave of a pseudo terminal as the controlling terminal of this session."""
    slave = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    return slave


# --- becoming the command ------------------------------------------------------------------------------------------------


def become(uid: int, gid: int, groups: Sequence[int], capabilities: Iterable[int]) -> None:
    """Change to *uid* and *gid*, with no capability but *capabilities* for this process and the programs that it executes."""
    keep = frozenset(capabilities)
    for number in range(_MOST_CAPABILITIES):
        if _libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) == -1:  # the kernel has no more capabilities
            break  # /proc/sys/kernel/cap_last_cap is not read, because /proc may be the container's
        if number not in keep:
            _check(_libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0), "limit the capabilities")
    with open("/proc/self/setgroups") as file:
        if file.read() == "allow\n":  # else it is a user namespace in which the kernel refuses to change groups
            os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    mask = sum(1 << number for number in keep) if uid == 0 else 0
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    _check(_libc.capset(header, (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)), "set the capabilities")


def find_user(text: str) -> tuple[int, int, list[int], str]:
    """Look ``user[:group]``, names or numbers, up in the container's /etc/passwd and /etc/group; an empty text is root.

    Returns uid, gid, all groups and the home folder. Raises LookupError for an unknown name or an id out of range.
    """
    user, _, group = (text or "0").partition(":")
    user = user or "0"
    entries = _colon_file("/etc/passwd", 7)
    entry = next((fields for fields in entries if user in (fields[0], fields[2])), None)
    if entry is None and not user.isdecimal():
        raise LookupError(f"no user {user!r} in the container's /etc/passwd")
    uid = _checked_id(entry[2] if entry else user)
    gid = _checked_id(entry[3]) if entry else 0
    all_groups = _colon_file("/etc/group", 4)
    if group:
        found = next((fields for fields in all_groups if group in (fields[0], fields[2])), None)
        if found is None and not group.isdecimal():
            raise LookupError(f"no group {group!r} in the container's /etc/group")
        return uid, (gid := _checked_id(found[2] if found else group)), [gid], entry[5] if entry else "/"
    more = [_checked_id(fields[2]) for fields in all_groups if entry and entry[0] in fields[3].split(",")]
    return uid, gid, list(dict.fromkeys([gid, *more])), entry[5] if entry else "/"


def _checked_id(text: str) -> int:
    """Read a user or group id in Docker's range. The kernel would take 4294967295 for "no change", and we are root."""
    if not text.isdecimal() or not len(text) <= 10 or int(text) >= 1 << 31:
        raise LookupError(f"{text!r} is no user or group id; they go from 0 to 2147483647")
    return int(text)


def _colon_file(path: str, fields: int) -> list[list[str]]:
    """Read the lines of a file of the container, split at colons; those with other than *fields* parts are left out.

    The container may have put anything there: only a regular file is read (a pipe would block), and at most 16 MiB of it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        text = os.read(fd, _MOST_BYTES) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
        os.close(fd)
    except OSError:  # it does not exist or cannot be read, so it has no users or groups
        return []
    lines = [line.split(":") for line in text.decode(errors="replace").split("\n")]
    return [line for line in lines if len(line) == fields and line[2].isdecimal()]


class CommandRefused(Exception):
    """The command cannot be started. ``code`` is 127 (not found), 126 (found) or 125 (the container's set-up), as Docker's."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def execute(arguments: list[str], environment: dict[str, str]) -> NoReturn:
    """Execute the command, found by the container's PATH, with descriptors 0 to 2 only. Raises CommandRefused."""
    _check(_libc.syscall(_SYS_CLOSE_RANGE, 3, ctypes.c_uint(-1 & 0xFFFFFFFF), _CLOSE_RANGE_CLOEXEC), "close descriptors")
    for number in range(1, _SIGNALS + 1):  # signals that Python or our starter ignores would stay ignored
        _libc.signal(number, None)
    _libc.sigprocmask(2, ctypes.create_string_buffer(128), None)
    name = arguments[0]
    folders = environment.get("PATH", "").split(":")
    missing = "no such file in the container" if "/" in name else "not found in the container's PATH"
    refusal = CommandRefused(127, f"{name}: {missing}")
    for path in [name] if "/" in name else [f"{folder or '.'}/{name}" for folder in folders]:
        try:
            os.execve(path, arguments, environment)
        except (FileNotFoundError, NotADirectoryError):
            if os.path.exists(path):
                refusal = CommandRefused(127, f"{path}: its interpreter is not in the container")
        except OSError as error:
            if os.path.isdir(path):
                refusal = CommandRefused(126, f"{path} is a directory")
            else:
                refusal = CommandRefused(126, f"{path}: {error.strerror}")
            if error.errno != errno.EACCES:
                break
    raise refusal


def start_time(pid: int) -> int:
    """Return when a process started, in ticks since the boot, by which a reused pid is recognised; 0 when it has ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])
