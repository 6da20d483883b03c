"""Network namespaces: entering, recognising, making and removing them (as a kernel object: :mod:`netlib.kernel.owned_netns`).

One rule: a thread that entered a netns returns to its own on every path. ``os.setns`` is new in Python 3.12, so the calls are
made through ctypes, here and nowhere else.
"""

import ctypes
import errno
import os
import shlex
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from netlib.config import is_ours
from netlib.errors import KernelError, NetlibError, ObjectMissing
from netlib.kernel.folders import make_folder
from netlib.kernel.translate import doing, kernel_error
from netlib.model import NetnsRef

NETNS_DIR = Path("/run/netns")
NETNS_FILES_DIR = Path("/etc/netns")  # `ip netns exec NAME` binds the files of its subfolder NAME over /etc
_CLONE_NEWNET = 0x40000000
_MS_BIND, _MS_SHARED, _MS_REC, _MNT_DETACH = 4096, 1 << 20, 16384, 2
_SO_NETNS_COOKIE = 71
_libc = ctypes.CDLL(None, use_errno=True)

REFUSED_BY_NEW_LINKS = (
    "net/ipv4/conf/all/accept_redirects",  # where a link does not forward, its own 0 is not enough
    "net/ipv4/conf/default/accept_redirects",
    "net/ipv6/conf/default/accept_ra",  # "all" of IPv6 changes neither
    "net/ipv6/conf/default/accept_redirects",
)


def _check(result: int, action: str) -> None:
    if result != 0:
        raise kernel_error(ctypes.get_errno(), action)


def setns(fd: int) -> None:
    """Move this thread into the netns that *fd* refers to."""
    _check(_libc.setns(fd, _CLONE_NEWNET), "enter the network namespace")


@cache
def boot_id() -> str:
    """The kernel's random id of this boot, first 12 hexadecimal digits."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().replace("-", "")[:12]


def current_identity() -> str:
    """The identity of this thread's netns: ``<boot id>:<SO_NETNS_COOKIE>`` (never reused within a boot)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        return identity_by(sock)


def identity_by(sock: socket.socket) -> str:
    """The identity of the netns in which *sock*, of any family, was opened."""
    (cookie,) = struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))
    return f"{boot_id()}:{cookie}"


def identity_of(fd: int) -> str:
    """The identity of the netns behind an open file descriptor."""
    with entered_fd(fd):
        return current_identity()


def identity_of_path(path: str) -> str:
    """The identity of the netns pinned at *path*; ObjectMissing when there is none."""
    netns = NetnsRef(path)
    with opened(netns) as fd, recognising(netns):
        return identity_of(fd)


def open_own_netns() -> int:
    """A descriptor of the netns that this thread is in."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


class Entered:
    """A block in the netns of *fd*; at the end of the block the thread is in that of *home* again."""

    __slots__ = ("_fd", "_home")

    def __init__(self, fd: int, home: int) -> None:
        self._fd, self._home = fd, home

    def __enter__(self) -> None:
        setns(self._fd)

    def __exit__(self, *_: object) -> None:
        setns(self._home)


@contextmanager
def entered_fd(fd: int) -> Iterator[None]:
    """Put this thread into the netns of *fd* for the block, and back into its own afterwards, whatever happened."""
    home = open_own_netns()
    try:
        with Entered(fd, home):
            yield
    finally:
        os.close(home)


@contextmanager
def opened(netns: NetnsRef) -> Iterator[int]:
    """A file descriptor of *netns*; ObjectMissing when the path is gone or leads to another netns by now."""
    fd = open_path(netns)
    try:
        if netns.identity:
            with recognising(netns):
                found = identity_of(fd)
            check_identity(netns, found)
        yield fd
    finally:
        os.close(fd)


def open_path(netns: NetnsRef) -> int:
    """A file descriptor of whatever is at the path of *netns*; ObjectMissing when nothing is."""
    try:
        # O_NONBLOCK: somebody may have put a FIFO at the path since, and to open one waits for a writer.
        return os.open(netns.path or "/proc/thread-self/ns/net", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise kernel_error(error.errno or 0, f"open network namespace {netns.label}", error.strerror or "") from error


@contextmanager
def recognising(netns: NetnsRef) -> Iterator[None]:
    """Raise ObjectMissing where what was opened for *netns* cannot be entered in the block."""
    try:
        yield
    except KernelError as error:
        if error.errno != errno.EINVAL:
            raise
        # A plain file, left by a boot or a crash before the mount.
        raise ObjectMissing(f"{netns.path} is no network namespace", error.errno) from error


def check_identity(netns: NetnsRef, found: str) -> None:
    """Raise ObjectMissing where the netns that was opened (its identity is *found*) is not *netns*."""
    if found != netns.identity:
        raise ObjectMissing(f"network namespace {netns.label} is gone: another one is at {netns.path} now")


@contextmanager
def entered(netns: NetnsRef) -> Iterator[None]:
    """Put this thread into *netns* for the block; for the host (an empty path) that is the netns it is in already.

    A thread or process that is started in the block stays in *netns*.
    """
    if netns.is_host:
        yield
        return
    with opened(netns) as fd, entered_fd(fd):
        yield


def command_in(netns: NetnsRef, command: str) -> str:
    """The command line that runs *command* in *netns*, as a person would type it."""
    if netns.is_host:
        return command
    if "/" in netns.label:
        return f"nsenter --net={shlex.quote(netns.path)} {command}"
    if command.startswith("ip "):
        return f"ip -n {netns.label} {command.removeprefix('ip ')}"
    return f"ip netns exec {netns.label} {command}"


def netns_dir(run_dir: Path) -> Path:
    """The folder to pin our netns in: the one of ``ip netns``, or the run folder for a user who may not write there."""
    return NETNS_DIR if is_ours(str(NETNS_DIR)) and is_ours(str(NETNS_FILES_DIR)) else run_dir / "netns"


def is_alive(netns: NetnsRef) -> bool:
    """Whether *netns* still exists."""
    try:
        with opened(netns):
            return True
    except ObjectMissing:
        return False


def pinned_netns(run_dir: Path) -> Iterator[NetnsRef]:
    """Every netns that is pinned in a folder where ours may be (that of ``ip netns``, and the run folder), by name."""
    folders = {NETNS_DIR, netns_dir(run_dir)}
    for path in sorted(path for folder in folders if folder.is_dir() for path in folder.iterdir()):
        try:
            identity = identity_of_path(str(path))
        except KernelError:  # a plain file, or a netns that was unpinned meanwhile
            continue
        yield NetnsRef(str(path), identity)


def new_netns(prepare: Callable[[], None] = lambda: None) -> int:
    """Make a netns without a path, which exists while the returned descriptor is open or :func:`pin_netns` has pinned it.

    *prepare* is called inside, before anybody else can be there.
    """
    made: list[int | NetlibError] = []

    def make() -> None:  # in a thread of its own, which stays in what it unshares
        try:
            with doing("create a network namespace"):
                _check(_libc.unshare(_CLONE_NEWNET), "create a network namespace")
                prepare()
                made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        except NetlibError as error:  # carried to the caller's thread
            made.append(error)

    thread = threading.Thread(target=make, name="netns")
    thread.start()
    thread.join()
    (result,) = made
    if isinstance(result, NetlibError):
        raise result
    return result


def refuse_routers_here() -> None:
    """Make links that will be created in this thread's netns ignore router advertisements and redirects.

    A process inside, the CNI plugin tuning or ``--sysctl`` may change this later.
    """
    for path in REFUSED_BY_NEW_LINKS:
        with suppress(FileNotFoundError):  # a kernel without IPv6
            Path("/proc/sys", path).write_text("0")


def pin_netns(fd: int, path: Path) -> None:
    """Pin the netns behind *fd* at *path*, as ``ip netns add`` does, so that ``ip netns`` sees it.

    The parent folder becomes a shared mount, so that mounts in it are seen by containers' mount namespaces and undone there.
    """
    with doing(f"create network namespace {path}"):
        _prepare_netns_dir(path.parent)
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    try:
        source = f"/proc/self/fd/{fd}".encode()
        _check(_libc.mount(source, str(path).encode(), b"none", _MS_BIND, None), f"pin network namespace {path}")
    except NetlibError:
        path.unlink(missing_ok=True)
        raise


def create_netns(path: Path) -> None:
    """Make a new netns and pin it at *path*."""
    fd = new_netns()
    try:
        pin_netns(fd, path)
    finally:
        os.close(fd)


def _prepare_netns_dir(folder: Path) -> None:
    make_folder(folder)
    name = str(folder).encode()
    if _libc.mount(b"", name, b"none", _MS_SHARED | _MS_REC, None) == 0:
        return
    _check(_libc.mount(name, name, b"none", _MS_BIND | _MS_REC, None), f"make {folder} a mount point")
    _check(_libc.mount(b"", name, b"none", _MS_SHARED | _MS_REC, None), f"share the mounts of {folder}")


def delete_netns(path: Path) -> None:
    """Unpin the netns at *path* and delete the file; a no-op when neither is there.

    The netns itself ends when the last process and socket in it do.
    """
    if not path.exists():
        return
    while _libc.umount2(str(path).encode(), _MNT_DETACH) == 0:  # several mounts may be stacked there
        pass
    with doing(f"delete network namespace {path}"):
        path.unlink(missing_ok=True)
