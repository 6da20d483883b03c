"""The host that a plugin works on, as it is for one call."""

import fcntl
import os
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from cni_plugins.protocol import CniError, Code

if TYPE_CHECKING:
    from netlib.core.controller import Controller

__all__ = ["Node"]

_OWN = "/proc/thread-self/ns/net"
_NS_GET_NSTYPE, _CLONE_NEWNET = 0xB703, 0x40000000


class Node:
    """The host and the netns of one call, for its thread. The caller that made the node closes the descriptor of the netns."""

    def __init__(
        self,
        open_controller: "Callable[[], Controller]",
        netns: int | None = None,
        is_awaited: Callable[[], bool] = lambda: True,
    ) -> None:
        """*netns* is a descriptor of what CNI_NETNS led to in the caller's mount namespace; one of no netns is ignored.

        *is_awaited* says whether anybody still waits for the answer.
        """
        self._open_controller = open_controller
        self._is_awaited = is_awaited
        self.netns = netns if netns is not None and _is_netns(netns) else None

    @cached_property
    def controller(self) -> "Controller":
        """The host's verbs, opened at first use: not every type needs them, nor the root that they ask for."""
        return self._open_controller()

    def check_awaited(self) -> None:
        """Raise CniError (code 11) when the caller has gone: whoever killed it may have called DEL before this ADD began."""
        if not self._is_awaited():
            raise CniError(Code.TRY_AGAIN, "the caller was gone before its ADD began", "nothing was done")

    def is_own_netns(self, _path: str) -> bool:
        """Whether the netns that the caller lent is the one of this thread; False where none was lent. For skel.answer.

        Device and inode tell: both netns are held open, so neither number can have been given to another.
        """
        return self.netns is not None and os.path.samestat(os.fstat(self.netns), os.stat(_OWN))


def _is_netns(fd: int) -> bool:
    """Whether *fd* is on the kernel's file system of namespaces (nsfs), and a network namespace there."""
    is_namespace = os.fstat(fd).st_dev == os.stat(_OWN).st_dev
    return is_namespace and fcntl.ioctl(fd, _NS_GET_NSTYPE) == _CLONE_NEWNET
