"""Text files and folders of ours that a sandbox needs.

They are on disk: unlike all other kernel objects they survive a boot.
"""

import errno
import os
import shlex
import stat
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from msgspec.structs import replace

from netlib.errors import KernelError, ObjectMissing
from netlib.kernel.folders import make_folder
from netlib.kernel.translate import doing
from netlib.plan import KernelObject, Key

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel

_DEPTH = 64


class TextFile(KernelObject, frozen=True, kw_only=True, tag="file"):
    """A small text file. A new one gets its name when it is complete; an existing one is rewritten in place.

    In place, because resolv.conf and hosts are bind-mounted into containers, and a mount shows the inode, not the name. The
    new text is written over the old one, and only then is the rest of a longer old one cut off: the file is never empty. An
    *adopted* file was there before us and is left unchanged.
    """

    survives_boot = True
    observations = ("adopted",)

    path: str
    content: str
    mode: int = 0o644
    adopted: bool = False

    @cached_property
    def key(self) -> Key:
        return Key("file", "", self.path)

    def observed(self, kernel: "Kernel") -> Self:
        return replace(self, adopted=os.path.lexists(self.path))

    def ensure(self, kernel: "Kernel") -> None:
        """Write the file; ObjectMissing when its folder is missing, KernelError when its name is not a regular file's."""
        if self.adopted:
            return
        with doing(f"write {self.path}"):
            try:
                fd = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            except FileNotFoundError:
                self._create()
                return
            try:
                found = os.fstat(fd)
                if not stat.S_ISREG(found.st_mode):
                    raise OSError(errno.EEXIST, "it is no regular file")
                self._rewrite(fd, found)
            finally:
                os.close(fd)

    def _create(self) -> None:
        path = Path(self.path)
        temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, self.mode)
        try:
            with open(fd, "wb") as file:
                os.fchmod(fd, self.mode)  # whatever the umask
                file.write(self.content.encode())
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _rewrite(self, fd: int, found: os.stat_result) -> None:
        text = self.content.encode()
        if found.st_size != len(text) or _read(fd, len(text)) != text:
            done = 0
            while done < len(text):
                done += os.pwrite(fd, text[done:], done)
            os.ftruncate(fd, len(text))
        if stat.S_IMODE(found.st_mode) != self.mode:
            os.fchmod(fd, self.mode)

    def remove(self, kernel: "Kernel") -> None:
        if self.adopted:
            return
        with doing(f"delete {self.path}"), suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(self.path)

    def drift(self, kernel: "Kernel") -> str | None:
        if self.adopted:
            return None
        with doing(f"read {self.path}"):
            try:
                fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            except (FileNotFoundError, NotADirectoryError):
                return f"{self.path} is missing"
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
                    return f"{self.path} is no regular file"
                raise
            try:
                found = os.fstat(fd)
                if not stat.S_ISREG(found.st_mode):
                    return f"{self.path} is no regular file"
                text = _read(fd, len(self.content.encode()))
            finally:
                os.close(fd)
        if text != self.content.encode():
            return f"{self.path} has other content"
        return _mode_drift(self.path, found.st_mode, self.mode)

    def commands(self) -> Iterable[str]:
        yield f"printf {shlex.quote(_as_format(self.content))} | install -m {self.mode:o} /dev/stdin {shlex.quote(self.path)}"


def _as_format(text: str) -> str:
    """*text* on one line, as printf(1) takes it."""
    return text.replace("\\", r"\\").replace("%", "%%").replace("\n", r"\n").replace("\t", r"\t")


def _read(fd: int, size: int) -> bytes:
    """At most one byte more than *size*: a container may have made its resolv.conf as long as it likes."""
    return os.pread(fd, size + 1, 0)


def _mode_drift(path: str, found: int, wanted: int) -> str | None:
    mode = stat.S_IMODE(found)
    return None if mode == wanted else f"{path} has mode {mode:o}, not {wanted:o}"


class Folder(KernelObject, frozen=True, kw_only=True, tag="folder"):
    """A folder with its content. An *adopted* one was there before us and is never deleted.

    Missing parents are made as well, with mode 755, and never deleted.
    """

    survives_boot = True
    observations = ("adopted",)

    path: str
    mode: int = 0o700
    adopted: bool = False

    @cached_property
    def key(self) -> Key:
        return Key("folder", "", self.path)

    def observed(self, kernel: "Kernel") -> Self:
        return replace(self, adopted=Path(self.path).is_dir())

    def ensure(self, kernel: "Kernel") -> None:
        path = Path(self.path)
        with doing(f"make folder {self.path}"):
            make_folder(path.parent)
            try:
                path.mkdir()
            except FileExistsError:
                if path.is_symlink() or not path.is_dir():
                    raise
                if self.adopted:
                    return
            path.chmod(self.mode)

    def remove(self, kernel: "Kernel") -> None:
        """Delete it with all that is in it, never following a link; KernelError (EBUSY) when something is mounted in there."""
        if self.adopted:
            return
        parent = Path(self.path).parent
        with doing(f"delete folder {self.path}"), suppress(FileNotFoundError, NotADirectoryError):
            fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _delete_tree(fd, Path(self.path).name, _mount_id(fd))
            finally:
                os.close(fd)

    def drift(self, kernel: "Kernel") -> str | None:
        try:
            with doing(f"look at folder {self.path}"):
                found = os.lstat(self.path)
        except ObjectMissing:
            return f"folder {self.path} is missing"
        except KernelError as error:
            return str(error)
        if not stat.S_ISDIR(found.st_mode):
            return f"{self.path} is no folder"
        return None if self.adopted else _mode_drift(self.path, found.st_mode, self.mode)

    def commands(self) -> Iterable[str]:
        if not self.adopted:
            yield f"mkdir -p -m {self.mode:o} {self.path}"


def _mount_id(fd: int) -> str:
    """The id of the mount that an open folder is on: a bind mount of its file system has the same device, but another id."""
    text = Path(f"/proc/self/fdinfo/{fd}").read_text()
    return next(line.split()[1] for line in text.splitlines() if line.startswith("mnt_id:"))


def _open_folder(name: str, parent: int, mount: str) -> int:
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    if _mount_id(fd) != mount:
        where = os.readlink(f"/proc/self/fd/{fd}")
        os.close(fd)
        raise OSError(errno.EBUSY, f"{where} is a mount; unmount it")
    return fd


def _delete_tree(parent: int, name: str, mount: str) -> None:
    top = _open_folder(name, parent, mount)
    try:
        while _empty(top, mount, top, 0):
            pass
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=parent)


def _empty(fd: int, mount: str, top: int, depth: int) -> bool:
    """Delete the content of a folder; True when folders below _DEPTH were moved up to *top* instead.

    A container can nest folders deeper than a process may open or recurse.
    """
    with os.scandir(fd) as entries:
        inside = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    moved = False
    for name, is_folder in inside:
        if not is_folder:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=fd)
        elif depth < _DEPTH:
            child = _open_folder(name, fd, mount)
            try:
                moved |= _empty(child, mount, top, depth + 1)
            finally:
                os.close(child)
            os.rmdir(name, dir_fd=fd)
        else:
            os.rename(name, os.urandom(8).hex(), src_dir_fd=fd, dst_dir_fd=top)
            moved = True
    return moved
