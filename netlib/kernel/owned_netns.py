"""A network namespace of our own as a kernel object."""

import errno
import shlex
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from netlib.errors import AlreadyExists, KernelError
from netlib.kernel.netns import NETNS_DIR, REFUSED_BY_NEW_LINKS, command_in, delete_netns, identity_of_path, pin_netns
from netlib.kernel.translate import doing
from netlib.model import NetnsRef
from netlib.plan import HoldsOutside, KernelObject, Key, ability

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel

__all__ = ["OwnedNetns"]


class OwnedNetns(KernelObject, frozen=True, kw_only=True, tag="netns"):
    """A netns that we made, pinned at a path of ours (:func:`netns_dir`) and removed with its sandbox.

    It is made before it is written down (:meth:`Kernel.new_netns`), so that its identity is known from the start: any other
    netns at the path is somebody else's, also after a crash. Links made in it ignore router advertisements and redirects,
    unless somebody changes that inside.
    """

    path: str
    identity: str

    @cached_property
    def key(self) -> Key:
        return Key("netns", self.path, "self")

    def ensure(self, kernel: "Kernel") -> None:
        """Pin the netns. AlreadyExists when another one is at the path, ObjectMissing when ours has ended."""
        found = self._found()
        if found is None:
            fd = kernel.netns_fd(NetnsRef(self.path, self.identity))
            with doing(f"create network namespace {self.path}"):
                Path(self.path).unlink(missing_ok=True)  # an empty file: left by a crash between its creation and the mount
            pin_netns(fd, Path(self.path))
        elif found != self.identity:
            raise AlreadyExists(f"another network namespace is at {self.path}; `ip netns del` it, or choose another name")

    def remove(self, kernel: "Kernel") -> None:
        kernel.forget(NetnsRef(self.path))
        if self._found() in (None, self.identity):
            delete_netns(Path(self.path))

    def drift(self, kernel: "Kernel") -> str | None:
        found = self._found()
        if found is None:
            return f"network namespace {self.path} is missing"
        return None if found == self.identity else f"another network namespace is at {self.path}"

    def carries_in(self) -> tuple[str, ...]:
        return (self.path,)

    def carries(self, other: KernelObject) -> bool:
        """Whether *other* is inside and vanishes with the netns, which ends a moment after its removal.

        False for an object that holds something outside: an ipvlan link would occupy its address on the parent until then.
        """
        outside = ability(other, HoldsOutside)
        return other.netns.path == self.path and not (outside is not None and outside.holds_outside())

    def commands(self) -> Iterable[str]:
        path = Path(self.path)
        if path.parent == NETNS_DIR:
            yield f"ip netns add {path.name}"
        else:
            yield f"install -D /dev/null {shlex.quote(self.path)}"
            yield f"unshare --net={shlex.quote(self.path)} true"
        for name in REFUSED_BY_NEW_LINKS:
            yield command_in(NetnsRef(self.path), f"sysctl -w {name}=0")

    def _found(self) -> str | None:
        """The identity of the netns at the path; None when there is nothing, or a plain file."""
        try:
            return identity_of_path(self.path)
        except KernelError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL):
                raise
            return None
