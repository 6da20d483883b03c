"""What a container sees of file systems: the plan of its separate mounts (pure) and the doing, inside its own mount namespace.

Two rules. Every target is looked up inside the new root, step by step without following a link out of it, since whoever filled
the root may have put links there. And nothing here is seen on the host: with the last process of the namespace it is all gone.
Only ``os``, ``stat`` and the neighbours are imported: this runs under ``python -IS``.
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
_NEVER = ("/proc", "/sys", "/dev", "/run", "/tmp", "/var/tmp")
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
_LOCKED = errno.EINVAL  # below it are mounts that a user namespace may not look behind
_MOST_LINKS = 40  # as many as the kernel follows
_PLAIN = MS_NOSUID | MS_NODEV | MS_NOEXEC


def separate_mounts(mountinfo: str, masked: list[str]) -> tuple[list[str], list[str]]:
    """Read which mounts of the host an overlay over ``/`` must be given besides, parents first.

    Return what is to be bound read-only and which folders for temporary files are to be made anew. Left out: kernel file
    systems, /run and everything at or below *masked*.
    """
    readonly: dict[str, None] = {}
    temporary: dict[str, None] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        path, kind = _unescape(before.split(" ")[4]), after.split(" ")[0]
        if path in ("/tmp", "/var/tmp"):
            temporary[path] = None
        elif path != "/" and kind not in _PSEUDO and not any(_within(path, folder) for folder in (*_NEVER, *masked)):
            readonly[path] = None
    return sorted(readonly, key=_depth), sorted(temporary)


def overlay_options(lower: str, upper: str, work: str) -> str:
    """The options of an overlay; ``redirect_dir=off``, so that no renamed folder shows what a mask hid."""
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
    """A directory that is about to become ``/``; paths are looked up as they will be then."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def open(self, path: str, create: str = "") -> int:
        """An O_PATH descriptor of *path*, all links followed inside the root.

        What is missing is made when *create* is "dir" or "file", which is what the last part becomes.
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
        """Raise CommandRefused when *name* (a folder right below the root) is there and is no folder, but a link.

        Once other mounts lie on a link's way, its name no longer leads to what was mounted by it.
        """
        try:
            mode = os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(mode):
            raise CommandRefused(125, f"/{name} of its root file system must be a folder, not a link or a file; make it one")

    def mount(self, fstype: str, path: str, flags: int, data: str = "") -> None:
        """Mount a new file system at *path*, made when missing."""
        fd = self.open(path, "dir")
        try:
            mount(fstype, fd, flags, data)
        finally:
            os.close(fd)

    def bind(self, source: str, path: str, *, readonly: bool = False, nodev: bool = True, create: bool = True) -> None:
        """Show the host's *source* at *path*, which is made when missing if *create* says so."""
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
        """Make what is at *path* read-only; a no-op when nothing is."""
        try:
            fd = self.open(path)
        except FileNotFoundError:
            return
        try:
            bind(fd, fd, readonly=True, recursive=True)
        finally:
            os.close(fd)

    def mask(self, path: str) -> None:
        """Hide what is at *path* behind an empty read-only folder or file; a no-op when nothing is."""
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
    """Lay a writable layer kept in *folder* over *lower* and return the result.

    Where the file system of *folder* cannot hold such a layer (an overlay itself, NFS), it is a tmpfs that ends with the
    container's last process. In a user namespace, ``/`` is laid over folder by folder.
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
    os.chmod(upper, stat.S_IMODE(os.stat(lower).st_mode))  # the container's / has the mode of this folder
    try:
        mount("overlay", target, MS_NODEV, overlay_options(lower, upper, work))
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
        # In a user namespace redirect_dir cannot be set; userxattr turns it off as well, and keeps the marks in user.overlay.
        options = overlay_options(lower, upper, work).replace("redirect_dir=off", "userxattr")
        mount("overlay", target, MS_NODEV, options)


def _overlay_folders(scratch: str, root: str) -> None:
    """Lay a layer over each folder of the host's /, for there are mounts in it that a user namespace may not look behind.

    A folder which has such mounts itself is shown read-only.
    """
    for entry in os.scandir("/"):
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), f"{root}/{entry.name}")
        elif entry.is_dir() and entry.path not in _NEVER:
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
    """Complete an overlay over the host's ``/``: its separate mounts read-only, /run and *masked* hidden.

    A convenience, so that a container needs no image; no isolation: whatever else root can read on the host is seen inside.
    """
    readonly, temporary = separate_mounts(mountinfo, masked)
    for path in readonly:
        try:
            root.bind(path, path, readonly=True, create=False)
        except OSError as error:
            # One that lies hidden below another one, or a dead FUSE server; or its folder is shown with all that is in it.
            if error.errno not in (*_GONE, _LOCKED):
                raise
    for path in temporary:
        root.mount("tmpfs", path, MS_NOSUID | MS_NODEV, "mode=1777")
    root.mount("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=755")
    for path in masked:
        root.mask(path)


def mount_system(root: Root, groups: dict[str, str]) -> None:
    """Mount /proc, /sys, /dev and what belongs in them, with Docker's masked and read-only paths."""
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
        set_attributes(folder, readonly=False, nodev=True)  # it takes no more nodes: a container has CAP_MKNOD, as in Docker
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
    """Make a device node of the container's own, and a mount for it alone that lets devices be used.

    With the host's node, root inside would change the mode and the owner of that. Root of a user namespace may make none: there
    it is the host's, read-only, which keeps mode and owner, and lets a device be written to all the same.
    """
    try:
        os.mknod(name, stat.S_IFCHR, os.stat(f"/dev/{name}").st_rdev, dir_fd=folder)
    except PermissionError:
        root.bind(f"/dev/{name}", f"/dev/{name}", readonly=True, nodev=False)
        return
    os.chmod(name, 0o666, dir_fd=folder)  # noqa: S103 - the devices that are everybody's
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
    """Bind (source, target, readonly), parents first; a device node in them works only if something of /dev was asked for.

    A target that leads into /proc is refused: what is mounted there could fool whoever enters the container later.
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
