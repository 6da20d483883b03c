"""The file systems of a container: which mounts of the host it shows (pure), and making all mounts in its mount namespace.

Two rules. Every target is looked up inside the new root, one part of the path after the other, and no link is followed out of
the root, because whoever filled the root may have put links there. And no mount is made in the host's mount namespace: all of
them end with the container's last process. Only ``os``, ``stat`` and the neighbours are imported: this runs under
``python -IS``.
"""

from __future__ import annotations

import errno
import os
import stat

from netlib.runtime.process import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, CommandRefused, bind, mount, set_attributes

_PSEUDO = {
    "autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs", "fuse.portal",
    "fusectl", "hugetlbfs", "mqueue", "nsfs", "proc", "pstore", "rpc_pipefs", "securityfs", "selinuxfs", "sysfs", "tracefs",
}  # fmt: skip
_EXCLUDED = ("/proc", "/sys", "/dev", "/run", "/tmp", "/var/tmp")
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
# Docker's lists: moby, daemon/pkg/oci/defaults.go
_MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
    "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
)  # fmt: skip
_READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ENOTCONN, errno.ESTALE)
_LOCKED = errno.EINVAL  # there are mounts below, which a user namespace must not uncover
_MOST_LINKS = 40  # the kernel's own limit
_PLAIN = MS_NOSUID | MS_NODEV | MS_NOEXEC


def separate_mounts(mountinfo: str, masked: list[str]) -> tuple[list[str], list[str]]:
    """Find the mounts of the host that an overlay over ``/`` does not show, in the text of /proc/self/mountinfo.

    Returns the paths to bind read-only, parents first, and the folders for temporary files, which get a new tmpfs each. Kernel
    file systems, /run and everything at or below *masked* are left out.
    """
    readonly: dict[str, None] = {}
    temporary: dict[str, None] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        path, kind = _unescape(before.split(" ")[4]), after.split(" ")[0]
        if path in ("/tmp", "/var/tmp"):
            temporary[path] = None
        elif path != "/" and kind not in _PSEUDO and not any(_within(path, folder) for folder in (*_EXCLUDED, *masked)):
            readonly[path] = None
    return sorted(readonly, key=_depth), sorted(temporary)


def overlay_options(lower: str, upper: str, work: str) -> str:
    """Return the options of an overlay. With ``redirect_dir=off`` a folder renamed inside cannot show what a mask hides."""
    return f"lowerdir={_escape(lower)},upperdir={_escape(upper)},workdir={_escape(work)},redirect_dir=off"


def _escape(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def _unescape(path: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, character)
    return path


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _depth(path: str) -> tuple[int, str]:
    return path.rstrip("/").count("/"), path


class Root:
    """A directory that is to become the container's ``/``; paths are looked up as the container will see them."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def open(self, path: str, create: str = "") -> int:
        """Return an O_PATH descriptor of *path*, with all links resolved inside the root.

        With *create* ("dir" or "file", the kind of the last part) missing parts of the path are made.
        """
        names = path.split("/")
        stack = [os.dup(self.fd)]
        links = 0
        try:
            while names:
                name = names.pop(0)
                if name in ("", "."):
                    continue
                if name == "..":
                    if len(stack) > 1:
                        os.close(stack.pop())
                    continue
                try:
                    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=stack[-1])
                except FileNotFoundError:
                    if not create:
                        raise
                    self._make(name, stack[-1], "dir" if any(names) else create)
                    names.insert(0, name)
                    continue
                if not stat.S_ISLNK(os.fstat(fd).st_mode):
                    stack.append(fd)
                    continue
                target = os.readlink("", dir_fd=fd)
                os.close(fd)
                links += 1
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                while target.startswith("/") and len(stack) > 1:
                    os.close(stack.pop())
                names = target.split("/") + names
            return os.dup(stack[-1])
        except OSError as error:
            error.filename = f"find {path} in the container"
            raise
        finally:
            for fd in stack:
                os.close(fd)

    @staticmethod
    def _make(name: str, folder: int, kind: str) -> None:
        if kind == "dir":
            os.mkdir(name, 0o755, dir_fd=folder)
        else:
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=folder))

    def require_folder(self, name: str) -> None:
        """Raise CommandRefused when *name*, right below the root, exists and is a link or a file instead of a folder.

        A link resolves to another place once something is mounted on its way, so later mounts by its name would go astray.
        """
        try:
            mode = os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(mode):
            raise CommandRefused(125, f"/{name} of its root file system must be a folder, not a link or a file; make it one")

    def mount(self, fstype: str, path: str, flags: int, data: str = "") -> None:
        """Mount a new file system at *path*, which is made when it is missing."""
        fd = self.open(path, "dir")
        try:
            mount(fstype, fd, flags, data)
        finally:
            os.close(fd)

    def bind(self, source: str, path: str, *, readonly: bool = False, nodev: bool = True, create: bool = True) -> None:
        """Bind-mount the host's *source* at *path*, which is made when it is missing, unless *create* is False."""
        what = os.open(source, os.O_PATH | os.O_CLOEXEC)
        try:
            kind = ("dir" if stat.S_ISDIR(os.fstat(what).st_mode) else "file") if create else ""
            where = self.open(path, kind)
            try:
                bind(what, where, readonly=readonly, nodev=nodev)
            finally:
                os.close(where)
        finally:
            os.close(what)

    def protect(self, path: str) -> None:
        """Make *path* read-only by a bind mount on itself; a no-op when there is no such path."""
        try:
            fd = self.open(path)
        except FileNotFoundError:
            return
        try:
            bind(fd, fd, readonly=True, recursive=True)
        finally:
            os.close(fd)

    def mask(self, path: str) -> None:
        """Hide *path* behind an empty read-only folder or the null device; a no-op when there is no such path."""
        try:
            fd = self.open(path)
        except FileNotFoundError:
            return
        try:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                mount("tmpfs", fd, MS_RDONLY | _PLAIN, "size=0,mode=555")
            else:
                null = os.open("/dev/null", os.O_PATH | os.O_CLOEXEC)
                try:
                    bind(null, fd, readonly=True)
                finally:
                    os.close(null)
        finally:
            os.close(fd)


def mount_overlay(lower: str, folder: str) -> Root:
    """Mount an overlay of *lower* with a writable layer in *folder*, and return it.

    Where the file system of *folder* cannot hold a writable layer (an overlay itself, NFS), the layer is in a tmpfs, which ends
    with the container's last process. In a user namespace ``/`` cannot be the lower layer: each of its folders gets an overlay.
    """
    root = f"{folder}/root"
    _folders(root)
    target = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            _overlay(lower, folder, target)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            scratch = f"{folder}/scratch"
            _folders(scratch)
            fd = os.open(scratch, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            mount("tmpfs", fd, MS_NOSUID | MS_NODEV, "mode=700")
            os.close(fd)
            try:
                _overlay(lower, scratch, target)
            except OSError as again:
                if again.errno != _LOCKED or lower != "/":
                    raise
                mount("tmpfs", target, MS_NOSUID | MS_NODEV, "mode=755")
                _overlay_folders(scratch, root)
    finally:
        os.close(target)
    return Root(root)


def _overlay(lower: str, folder: str, target: int) -> None:
    upper, work = f"{folder}/upper", f"{folder}/work"
    _folders(upper, work)
    os.chmod(upper, stat.S_IMODE(os.stat(lower).st_mode))  # an overlay's root has the mode of the upper layer
    try:
        mount("overlay", target, MS_NODEV, overlay_options(lower, upper, work))
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
        # In a user namespace redirect_dir cannot be set. userxattr turns it off as well, and has the overlay keep its marks in
        # the extended attributes user.overlay.*, which need no privilege.
        options = overlay_options(lower, upper, work).replace("redirect_dir=off", "userxattr")
        mount("overlay", target, MS_NODEV, options)


def _overlay_folders(scratch: str, root: str) -> None:
    """Mount an overlay over each folder of the host's /, for a user namespace may not uncover what the mounts below / hide.

    A folder with such mounts below it is bound read-only instead.
    """
    for entry in os.scandir("/"):
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), f"{root}/{entry.name}")
        elif entry.is_dir() and entry.path not in _EXCLUDED:
            layer = f"{scratch}/{entry.name}"
            _folders(layer, f"{root}/{entry.name}")
            folder = os.open(f"{root}/{entry.name}", os.O_PATH | os.O_CLOEXEC)
            try:
                _overlay(entry.path, layer, folder)
            except OSError as error:
                if error.errno != _LOCKED:
                    raise
                what = os.open(entry.path, os.O_PATH | os.O_CLOEXEC)
                bind(what, folder, readonly=True, nodev=True, recursive=True)
                os.close(what)
            os.close(folder)


def _folders(*paths: str) -> None:
    for path in paths:
        os.makedirs(path, exist_ok=True)


def show_host(root: Root, mountinfo: str, masked: list[str]) -> None:
    """Complete an overlay over the host's ``/``: bind the host's other mounts read-only, hide /run and *masked*.

    It spares a container an image and isolates nothing: the container sees all other files that root can read on the host.
    """
    readonly, temporary = separate_mounts(mountinfo, masked)
    for path in readonly:
        try:
            root.bind(path, path, readonly=True, create=False)
        except OSError as error:
            # The mount is hidden below another one, or its FUSE server is dead, or its folder is bound with all mounts below.
            if error.errno not in (*_GONE, _LOCKED):
                raise
    for path in temporary:
        root.mount("tmpfs", path, MS_NOSUID | MS_NODEV, "mode=1777")
    root.mount("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=755")
    for path in masked:
        root.mask(path)


def mount_system(root: Root, groups: dict[str, str]) -> None:
    """Mount /proc, /sys, /dev and the control groups, with Docker's masked and read-only paths."""
    for name in ("proc", "sys", "dev"):
        root.require_folder(name)
    root.mount("proc", "/proc", _PLAIN)
    _mount_dev(root)
    root.mount("sysfs", "/sys", MS_RDONLY | _PLAIN)
    _mount_cgroups(root, groups)
    for path in _READONLY:
        root.protect(path)
    for path in _MASKED:
        root.mask(path)


def _mount_dev(root: Root) -> None:
    root.mount("tmpfs", "/dev", MS_NOSUID | MS_NOEXEC, "mode=755,size=64k")
    folder = root.open("/dev")
    try:
        for name in _DEVICES:
            _make_device(root, name, folder)
        # Device nodes that the container makes here do not work: it has CAP_MKNOD, as in Docker.
        set_attributes(folder, readonly=False, nodev=True)
        for name, target in _LINKS.items():
            os.symlink(target, name, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        root.mount("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5")
    except OSError as error:
        if error.errno != errno.EINVAL:  # a user namespace without a group 5
            raise
        root.mount("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620")
    root.mount("tmpfs", "/dev/shm", _PLAIN, "mode=1777,size=64m")
    try:
        root.mount("mqueue", "/dev/mqueue", _PLAIN)
    except OSError as error:
        if error.errno != errno.ENODEV:  # a kernel without POSIX message queues
            raise


def _make_device(root: Root, name: str, folder: int) -> None:
    """Make a device node for the container, and bind it on itself by a mount without nodev, so that it works.

    With the host's node, root in the container could change the host's mode and owner. Root of a user namespace may make no
    nodes: there the host's node is bound read-only, which protects mode and owner and still lets the device be written to.
    """
    try:
        os.mknod(name, stat.S_IFCHR, os.stat(f"/dev/{name}").st_rdev, dir_fd=folder)
    except PermissionError:
        root.bind(f"/dev/{name}", f"/dev/{name}", readonly=True, nodev=False)
        return
    os.chmod(name, 0o666, dir_fd=folder)  # noqa: S103 - devices that every user may use
    node = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        bind(node, node)
    finally:
        os.close(node)


def _mount_cgroups(root: Root, groups: dict[str, str]) -> None:
    if not groups:
        return
    if "" in groups:
        root.bind(groups[""], "/sys/fs/cgroup", readonly=True)
        return
    root.mount("tmpfs", "/sys/fs/cgroup", _PLAIN, "mode=755,size=64k")
    for name, path in groups.items():
        root.bind(path, f"/sys/fs/cgroup/{name}", readonly=True)
    fd = root.open("/sys/fs/cgroup")
    try:
        set_attributes(fd, readonly=True)
    finally:
        os.close(fd)


def mount_volumes(root: Root, volumes: list[tuple[str, str, bool]]) -> None:
    """Bind-mount each (source, target, readonly), parents first. Device nodes work only in volumes whose source is in /dev.

    A target that leads into /proc is refused: a file mounted there could deceive a process that enters the container later.
    """
    proc = root.open("/proc")
    forbidden = os.fstat(proc).st_dev
    os.close(proc)
    for source, target, readonly in sorted(volumes, key=lambda volume: _depth(volume[1])):
        what = os.open(source, os.O_PATH | os.O_CLOEXEC)
        where = root.open(target, "dir" if stat.S_ISDIR(os.fstat(what).st_mode) else "file")
        if os.fstat(where).st_dev == forbidden:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), f"mount {source} on {target}, in /proc")
        folders = [stat.S_ISDIR(os.fstat(fd).st_mode) for fd in (what, where)]
        if folders[0] != folders[1]:
            folder, other = (source, f"{target} in the container") if folders[0] else (f"{target} in the container", source)
            raise CommandRefused(125, f"volume {source}:{target}: {folder} is a folder, {other} is not; choose two of a kind")
        bind(what, where, readonly=readonly, nodev=not _within(os.path.realpath(source), "/dev"), recursive=True)
        os.close(what)
        os.close(where)
