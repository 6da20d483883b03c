"""Leases as files, in the format of the reference plugin ``host-local``: ``<folder>/<address>`` names the address's holder.

One rule: a process that creates or deletes a lease holds the flock of ``<folder>/lock``, as the reference does, so both may
work on one folder at the same time. In the folder no link is followed, and only regular files are leases.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from ipaddress import ip_address
from typing import TYPE_CHECKING

from netlib.errors import AddressTaken, ConfigError
from netlib.kernel.folders import PRIVATE_FILE, check_owner, make_folder
from netlib.kernel.translate import doing
from netlib.kernel.waiting import Waiting
from netlib.model import IPAddress
from netlib.plan import KernelObject, Key

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel

__all__ = ["LeaseFile", "LeaseFolder", "lease_text", "parse_lease"]

_LOCK = "lock"
_LAST = "last_reserved_ip."  # followed by the index of the range set
_SEPARATOR = "\r\n"
_MAX_BYTES = 1 << 18  # of a file: a container id of at most 128 KiB (from a variable), and the name of an interface
_DEADLINE = 30.0  # seconds; the reference holds the lock while it reads every file of the folder
_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def lease_text(container: str, ifname: str) -> str:
    """Return the text of a lease file for an interface of a container."""
    return f"{container}{_SEPARATOR}{ifname}"


def parse_lease(text: str) -> tuple[str, str]:
    """Read the container and the interface from a text of :func:`lease_text`; files of before 2018 have no interface."""
    container, _, ifname = text.partition(_SEPARATOR)
    return container, ifname


class LeaseFolder:
    """The folder with the leases of one network."""

    def __init__(self, path: str) -> None:
        self.path = path

    def file_of(self, address: IPAddress) -> str:
        """Return the path of the lease file of *address*."""
        return f"{self.path}/{address}"

    def has(self, address: IPAddress) -> bool:
        """Whether any file has the address's name, so that the address cannot be leased."""
        return os.access(self.file_of(address), os.F_OK, follow_symlinks=False)

    def last_reserved(self, index: int) -> IPAddress | None:
        """Return the address that was leased last from the range set of that *index*, or None."""
        text = self._read(f"{_LAST}{index}")
        try:
            return ip_address(text) if text else None
        except ValueError:
            return None

    def holder(self, address: IPAddress) -> str | None:
        """Return the text of the file of *address* (see :func:`parse_lease`), or None without a file."""
        return self._read(str(address))

    def leases(self) -> Iterator[tuple[IPAddress, str]]:
        """Yield each address with a lease file, and the file's text."""
        with doing(f"list {self.path}"):
            try:
                names = os.listdir(self.path)
            except (FileNotFoundError, NotADirectoryError):
                return
        for name in names:
            with suppress(ValueError):
                address = ip_address(name)
                text = self._read(name)
                if text is not None:
                    yield address, text

    def ensure(self) -> None:
        """Make the folder and its lock file where they are missing."""
        with self._locked():
            pass

    def reserve(self, address: IPAddress, text: str, index: int) -> None:
        """Lease *address* by writing its file with *text*; AddressTaken when its file has another text."""
        path = self.file_of(address)
        with self._locked(), doing(f"write {path}"):
            found = self._create(path, text) or self._read(str(address))
            if found == "":  # a process died, or the power failed, before the text was on the disk
                os.unlink(path)
                found = self._create(path, text)
            if found != text:
                raise AddressTaken(f"{path} was written by another process meanwhile; try again")
            try:
                _write(f"{self.path}/{_LAST}{index}", str(address), os.O_CREAT)
            except OSError:
                os.unlink(path)
                raise

    @staticmethod
    def _create(path: str, text: str) -> str | None:
        """Write the file and return *text*, or return None when the file exists."""
        try:
            _write(path, text, os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return None
        except OSError:
            with suppress(FileNotFoundError):
                os.unlink(path)
            raise
        return text

    def free(self, address: IPAddress, texts: Collection[str]) -> None:
        """Delete the file of *address* if its text is one of *texts*."""
        if not self.has(address):
            return
        path = self.file_of(address)
        with self._locked(), doing(f"delete {path}"):
            if self._read(str(address)) in texts:
                os.unlink(path)

    def _read(self, name: str) -> str | None:
        """Read a file's text, without white space around it; None where there is no regular file of that name."""
        path = f"{self.path}/{name}"
        with doing(f"read {path}"):
            try:
                fd = os.open(path, os.O_RDONLY | _SAFE)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):  # the last two: a link, a socket
                    return None
                raise
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    return None
                return os.read(fd, min(status.st_size, _MAX_BYTES)).decode(errors="replace").strip()
            finally:
                os.close(fd)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        path = f"{self.path}/{_LOCK}"
        flags = os.O_RDONLY | os.O_CREAT | _SAFE
        with doing(f"lock {path}"):
            make_folder(self.path)  # mode 755, as the reference's: container ids need not be hidden
            _check_folder(self.path)
            fd = _open(path, flags)
        try:
            self._wait_for(fd, path)
            yield
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)  # explicitly, because a child that another thread has forked may have it open too
            os.close(fd)

    @staticmethod
    def _wait_for(fd: int, path: str) -> None:
        expired = f"waited {_DEADLINE:.0f} s for {path}, which another process keeps locked; try again"
        Waiting(path, "leasing an address", _DEADLINE, lambda: expired).flock(fd)


def _write(path: str, text: str, how: int) -> None:
    """Write a small file by one write, then cut off the rest of a longer former text: no reader ever sees the file empty."""
    fd = _open(path, os.O_WRONLY | how | _SAFE)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EEXIST, "it is no regular file")
        body = text.encode()
        if os.write(fd, body) < len(body):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.ftruncate(fd, len(body))
    finally:
        os.close(fd)


def _open(path: str, flags: int) -> int:
    """Open a file; a new one gets the reference's mode whatever the umask, and one with another mode keeps it."""
    fd = os.open(path, flags, PRIVATE_FILE)
    mode = stat.S_IMODE(os.fstat(fd).st_mode)
    if mode != PRIVATE_FILE and not mode & ~PRIVATE_FILE:  # fewer bits: the file is new, and an umask has cleared some
        os.fchmod(fd, PRIVATE_FILE)
    return fd


def _check_folder(path: str) -> None:
    """Raise ConfigError for a network's folder that is a link, or that or whose parent belongs to another user."""
    if os.path.islink(path):
        raise ConfigError(f"{path} is a link, which is not followed there; remove it, or give the network another dataDir")
    for folder in (os.path.dirname(path), path):
        check_owner(folder, "folder of leases", "give the network another dataDir")


class LeaseFile(KernelObject, frozen=True, kw_only=True, tag="lease_file"):
    """The lease file of an address that an interface of a container has.

    An existing file with another text is AddressTaken; the caller then plans with another address. The file is deleted only if
    it has this text or none, for the reference plugin may have leased the address to another container meanwhile.
    """

    survives_boot = True

    folder: str
    address: IPAddress
    container: str
    ifname: str
    range_set: int = 0  # index in the configuration

    @cached_property
    def key(self) -> Key:
        return Key("lease_file", "", f"{self.folder}/{self.address}")

    @property
    def text(self) -> str:
        """The text of the file."""
        return lease_text(self.container, self.ifname)

    def ensure(self, kernel: "Kernel") -> None:
        LeaseFolder(self.folder).reserve(self.address, self.text, self.range_set)

    def remove(self, kernel: "Kernel") -> None:
        LeaseFolder(self.folder).free(self.address, (self.text, ""))

    def drift(self, kernel: "Kernel") -> str | None:
        found = LeaseFolder(self.folder).holder(self.address)
        if found == self.text:
            return None
        return f"{self.folder}/{self.address} {'is missing' if found is None else 'has another holder'}"

    def commands(self) -> Iterable[str]:
        yield f"printf '{self.container}\\r\\n{self.ifname}' > {self.folder}/{self.address}"
