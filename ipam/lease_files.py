"""Leases as files: ``<folder>/<address>`` holds who has the address, as the reference plugin ``host-local`` keeps it.

Its one rule: whoever creates or deletes one holds the flock of ``<folder>/lock``, as the reference does, so both may work on
one folder at the same moment. No link is followed in there, and what is no regular file is nobody's lease.
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
_LAST = "last_reserved_ip."  # and the index of the range set
_SEPARATOR = "\r\n"
_MAX_BYTES = 1 << 18  # of a lease: the id, from a variable of 128 KiB at most, and the name of an interface
_DEADLINE = 30.0  # seconds; the reference keeps the lock while it reads every file of the folder
_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def lease_text(container: str, ifname: str) -> str:
    """What the file of an address says whose holder is this interface of this container."""
    return f"{container}{_SEPARATOR}{ifname}"


def parse_lease(text: str) -> tuple[str, str]:
    """The container and the interface that :func:`lease_text` was made of; files of before 2018 name no interface."""
    container, _, ifname = text.partition(_SEPARATOR)
    return container, ifname


class LeaseFolder:
    """The leases of one network."""

    def __init__(self, path: str) -> None:
        self.path = path

    def file_of(self, address: IPAddress) -> str:
        """The path of the file that holds *address*."""
        return f"{self.path}/{address}"

    def has(self, address: IPAddress) -> bool:
        """Whether anything has the address's name: then it cannot be given."""
        return os.access(self.file_of(address), os.F_OK, follow_symlinks=False)

    def last_reserved(self, index: int) -> IPAddress | None:
        """The address that was given last from the range set of that *index*."""
        text = self._read(f"{_LAST}{index}")
        try:
            return ip_address(text) if text else None
        except ValueError:
            return None

    def holder(self, address: IPAddress) -> str | None:
        """What the file of *address* says (see :func:`lease_text`; older ones hold the container's id alone), None without."""
        return self._read(str(address))

    def leases(self) -> Iterator[tuple[IPAddress, str]]:
        """Every address that has a file, with what it says."""
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
        """Make the folder and its lock where they are missing."""
        with self._locked():
            pass

    def reserve(self, address: IPAddress, text: str, index: int) -> None:
        """Write down that *text* has the address; AddressTaken when somebody else has it."""
        path = self.file_of(address)
        with self._locked(), doing(f"write {path}"):
            found = self._create(path, text) or self._read(str(address))
            if found == "":  # a process died, or the power went, before the text was on the disk
                os.unlink(path)
                found = self._create(path, text)
            if found != text:
                raise AddressTaken(f"{path} was written by somebody else meanwhile; try again")
            try:
                _write(f"{self.path}/{_LAST}{index}", str(address), os.O_CREAT)
            except OSError:
                os.unlink(path)
                raise

    @staticmethod
    def _create(path: str, text: str) -> str | None:
        """Write the file if there is none; what it says then, None when there is one."""
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
        """Delete the file of *address* if it says one of *texts*."""
        if not self.has(address):
            return
        path = self.file_of(address)
        with self._locked(), doing(f"delete {path}"):
            if self._read(str(address)) in texts:
                os.unlink(path)

    def _read(self, name: str) -> str | None:
        """What a file says, without white space around it; None where there is no regular file."""
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
            make_folder(self.path)  # mode 755, the reference's: containers' ids are no secret
            _check_folder(self.path)
            fd = _open(path, flags)
        try:
            self._wait_for(fd, path)
            yield
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)  # not by closing it: a child forked by another thread may have it as well
            os.close(fd)

    @staticmethod
    def _wait_for(fd: int, path: str) -> None:
        late = f"waited {_DEADLINE:.0f} s for {path}, which another process keeps locked"
        Waiting(path, "leasing an address", _DEADLINE, lambda: late).flock(fd)


def _write(path: str, text: str, how: int) -> None:
    """Write a small file in one go, then cut off what is left of a longer one: it is never empty to who looks meanwhile."""
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
    """Open a file that is made with the reference's mode under any umask; one that the reference made keeps what it has."""
    fd = os.open(path, flags, PRIVATE_FILE)
    mode = stat.S_IMODE(os.fstat(fd).st_mode)
    if mode != PRIVATE_FILE and not mode & ~PRIVATE_FILE:  # only an umask takes away from it
        os.fchmod(fd, PRIVATE_FILE)
    return fd


def _check_folder(path: str) -> None:
    """Refuse a network's folder that is a link, or is another user's, as its leases or as the folder of all networks."""
    if os.path.islink(path):
        raise ConfigError(f"{path} is a link, which is not followed there; remove it, or give the network another dataDir")
    for folder in (os.path.dirname(path), path):
        check_owner(folder, "folder of leases", "give the network another dataDir")


class LeaseFile(KernelObject, frozen=True, kw_only=True, tag="lease_file"):
    """The file that says that an address belongs to an interface of a container.

    It is made only where there is none, else AddressTaken: to choose another address is the plan's affair. It goes only while
    it says the same, or nothing, for the reference plugin may have given the address to another container by then.
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
        """What the file says."""
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
