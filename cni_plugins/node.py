"""The host that a call is answered on, as plugins see it: its store, and the netns that the caller has opened."""

import os
import stat
from collections.abc import Callable
from functools import cached_property

from cni_plugins.netconf import NetConf
from cni_plugins.protocol import CniError, Code
from cni_plugins.skel import Call
from netlib.attachments import AttachmentKey, Attachments
from netlib.controller import Controller
from netlib.errors import KernelError
from netlib.kernel.netns import identity_of
from netlib.model import NetnsRef

__all__ = ["Node"]


class Node:
    """What every plugin is made with; the store is opened when the first of them needs it."""

    def __init__(self, controller: Callable[[], Controller], netns_fd: int | None = None) -> None:
        """*netns_fd* is a descriptor of CNI_NETNS, None where there is none; it stays the caller's."""
        self._controller = controller
        self.netns_fd = netns_fd

    @cached_property
    def attachments(self) -> Attachments:
        """The attachments of this host."""
        return Attachments(self._controller())

    def netns(self, call: Call[NetConf]) -> NetnsRef:
        """The netns of *call*, recognised; CniError (code 8) when it is not there, or is no netns."""
        fd = self.netns_fd
        try:
            if fd is not None:
                return NetnsRef(call.netns, identity_of(fd))
            fd = os.open(call.netns, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would make us wait for its writer
        except OSError as error:
            raise _no_netns(call.netns, error.strerror or "") from None
        except KernelError as error:
            raise _no_netns(call.netns, str(error)) from None
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise _no_netns(call.netns, "it is no regular file")
            return NetnsRef(call.netns, identity_of(fd))
        except KernelError as error:
            raise _no_netns(call.netns, str(error)) from None
        finally:
            os.close(fd)


def key_of(call: Call[NetConf], plugin: str) -> AttachmentKey:
    """Who *call* is about."""
    return AttachmentKey(call.network, call.container_id, call.ifname, plugin)


def _no_netns(path: str, reason: str) -> CniError:
    return CniError(Code.INVALID_NETNS, f"failed to open netns {path!r}", reason)
