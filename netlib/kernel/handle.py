"""The handle through which kernel objects act: one conversation per netns, opened at first use, closed with the handle.

A handle serves one operation in one thread. Sockets are opened inside the netns and used from outside: a netlink socket belongs
to the netns in which it was opened. No socket outlives the operation, for an open one keeps its netns from ending.
"""

import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from netlib.errors import ObjectMissing
from netlib.kernel.linkinfo import ALL_LINKS, LinkInfo, link_named
from netlib.kernel.netlink import Attributes, NetlinkSocket
from netlib.kernel.netns import (
    Entered,
    check_identity,
    identity_by,
    identity_of,
    new_netns,
    open_own_netns,
    open_path,
    recognising,
    refuse_routers_here,
)
from netlib.kernel.translate import doing, translated
from netlib.model import HOST, NetnsRef

if TYPE_CHECKING:
    from pyroute2 import IPRoute

__all__ = ["HOST", "Closable", "Kernel", "Rtnl"]


class Closable(Protocol):
    """A conversation with the kernel."""

    def close(self) -> None: ...


_T = TypeVar("_T", bound=Closable)


_STAYING = nullcontext()
_SIOCGIFFLAGS, _SIOCGIFINDEX, _IFF_UP = 0x8913, 0x8933, 1


class Rtnl:
    """A netlink route conversation with one netns; names in, names out.

    ``raw`` is pyroute2's. The requests of every connect are made by :meth:`order`, :meth:`dump` and :meth:`index` instead: one
    through pyroute2 costs about 0.25 ms, an ifindex by ioctl 0.003 ms.
    """

    def __init__(self, kernel: "Kernel", netns: NetnsRef, plain: NetlinkSocket | None = None) -> None:
        """Open a socket in *netns*, or use *plain*, which was opened there."""
        self.netns = netns
        self.masters: dict[int, int] = {}  # of links that were put into a bridge by this handle, by ifindex
        self._kernel = kernel
        if plain is None:
            with kernel.entered(netns), doing(f"open a netlink socket in {netns.label}"):
                plain = NetlinkSocket(socket.NETLINK_ROUTE)
        self.plain = plain

    @cached_property
    def raw(self) -> "IPRoute":
        """pyroute2's conversation, opened at its first use: the import takes 110 ms."""
        from pyroute2 import IPRoute

        with self._kernel.entered(self.netns), doing(f"open a netlink socket in {self.netns.label}"):
            return IPRoute()

    def find_link(self, ifname: str) -> LinkInfo | None:
        """The link called *ifname*, or None."""
        try:
            return self.get_link(ifname)
        except ObjectMissing:
            return None

    def get_link(self, ifname: str) -> LinkInfo:
        """The link called *ifname*; ObjectMissing when there is none."""
        try:
            return LinkInfo.of(*self.plain.get(*link_named(ifname)))
        except OSError as error:
            raise translated(error, f"look up link {ifname} in {self.netns.label}") from error

    def links(self) -> list[LinkInfo]:
        """Every link."""
        with doing(f"list the links of {self.netns.label}"):
            return [LinkInfo.of(*found) for found in self.plain.dump(*ALL_LINKS)]

    def index(self, ifname: str) -> int:
        """The ifindex of a link; ObjectMissing when there is none."""
        (index,) = struct.unpack_from("=i", self._ask(_SIOCGIFINDEX, ifname), 16)
        return int(index)

    def is_up(self, ifname: str) -> bool:
        """Whether a link is administratively up; ObjectMissing when there is none."""
        (flags,) = struct.unpack_from("=H", self._ask(_SIOCGIFFLAGS, ifname), 16)
        return bool(flags & _IFF_UP)

    def _ask(self, request: int, ifname: str) -> bytes:
        try:
            return fcntl.ioctl(self.plain.socket, request, struct.pack("16s24x", ifname.encode()))
        except OSError as error:
            raise translated(error, f"look up link {ifname} in {self.netns.label}") from error

    def order(self, action: str, *messages: tuple[int, int, bytes]) -> None:
        """Send several changes at once, (type, flags, payload) each; raise the kernel's first refusal."""
        try:
            for refusal in self.plain.order(messages):
                if refusal is not None:
                    raise refusal
        except OSError as error:
            raise translated(error, action) from error

    def dump(self, kind: int, header: bytes, *attributes: bytes) -> list[tuple[bytes, Attributes]]:
        """As :meth:`netlib.kernel.netlink.NetlinkSocket.dump`."""
        with doing(f"ask the kernel what {self.netns.label} has"):
            return self.plain.dump(kind, header, *attributes)

    def part(self) -> NetlinkSocket:
        """End the conversation, and return its socket, open."""
        if "raw" in self.__dict__:
            self.raw.close()
        return self.plain

    def close(self) -> None:
        """End the conversation."""
        self.part().close()


class IdleSockets:
    """The route socket of this thread's own netns, between one handle's operation and the next: 0.05 ms to open and close."""

    def __init__(self) -> None:
        self._left: tuple[int, NetlinkSocket] | None = None  # the pid of the process that opened it, for a fork shares it

    def take(self) -> NetlinkSocket | None:
        """The socket, if a handle left it; None in a forked child."""
        left, self._left = self._left, None
        if left is not None and left[0] != os.getpid():
            left[1].close()  # the child's descriptor; the parent has its own
            left = None
        return left[1] if left is not None else None

    def leave(self, plain: NetlinkSocket) -> None:
        """Keep *plain*, on which every question was answered, for the next handle."""
        self.close()
        self._left = (os.getpid(), plain)

    def close(self) -> None:
        """Close the socket."""
        if (plain := self.take()) is not None:
            plain.close()

    def __del__(self) -> None:  # of a session that nobody closed
        self.close()


class Kernel:
    """The handle by which kernel objects act; its ``tag`` (``netlib:<store>:<record>``) marks what they make as ours."""

    def __init__(self, tag: str = "", idle: IdleSockets | None = None) -> None:
        """*idle* lends the host's route socket; it gets it back when a `with` block of the handle ends without an error."""
        self.tag = tag
        self._idle = idle
        self._kept: dict[NetnsRef, dict[Any, Any]] = {}  # the conversations with a netns, by what opens them
        self._fds: dict[NetnsRef, int] = {}
        self._home: int | None = None

    @contextmanager
    def marking(self, tag: str) -> Iterator[None]:
        """Mark objects that are made in the block with *tag* instead."""
        before, self.tag = self.tag, tag
        try:
            yield
        finally:
            self.tag = before

    def rtnl(self, netns: NetnsRef = HOST) -> Rtnl:
        """The route conversation with *netns*; ObjectMissing when that netns is gone."""
        if not netns.is_host:
            self.netns_fd(netns)  # which opens the conversation, where it has to recognise the netns
        elif self._idle is not None and netns not in self._kept and (plain := self._idle.take()) is not None:
            self._kept[netns] = {Rtnl: Rtnl(self, netns, plain)}
        return self.kept(netns, Rtnl)

    def kept(self, netns: NetnsRef, make: "Callable[[Kernel, NetnsRef], _T]") -> _T:
        """The conversation that *make* opens with *netns*; it is opened once, kept, and closed with the handle."""
        kept = self._kept.get(netns)
        if kept is None:
            kept = self._kept[netns] = {}
        found: _T | None = kept.get(make)
        if found is None:
            found = kept[make] = make(self, netns)
        return found

    def entered(self, netns: NetnsRef) -> AbstractContextManager[None]:
        """As :func:`netlib.kernel.netns.entered`; that netns, and this one, are opened once for the life of the handle."""
        return _STAYING if netns.is_host else self._entered(self.netns_fd(netns))

    def _entered(self, fd: int) -> Entered:
        if self._home is None:
            self._home = open_own_netns()
        return Entered(fd, self._home)

    def netns_fd(self, netns: NetnsRef) -> int:
        """A descriptor of *netns* for netlink attributes; it lives as long as the handle."""
        fd = self._fds.get(netns)
        if fd is None:
            fd = open_path(netns)
            try:
                self._recognise(netns, fd)
            except BaseException:
                os.close(fd)
                raise
            self._fds[netns] = fd
        return fd

    def _recognise(self, netns: NetnsRef, fd: int) -> None:
        """See that *fd* is *netns*, by the route socket that is opened in it at the same time."""
        if not netns.identity or netns.is_host:
            return
        with recognising(netns), doing(f"open a netlink socket in {netns.label}"), self._entered(fd):
            plain = NetlinkSocket(socket.NETLINK_ROUTE)
        try:
            check_identity(netns, identity_by(plain.socket))
        except BaseException:
            plain.close()
            raise
        self._kept.setdefault(netns, {})[Rtnl] = Rtnl(self, netns, plain)

    def lend(self, netns: NetnsRef, fd: int) -> None:
        """Use the descriptor *fd*, of which a copy is kept, to reach *netns*; the path of *netns* is never opened then."""
        self._fds[netns] = os.dup(fd)

    def new_netns(self, path: str) -> NetnsRef:
        """Make a netns that an object will pin at *path*; until then the netns ends with the handle.

        Its links ignore router advertisements and redirects, unless somebody changes that later.
        """
        fd = new_netns(refuse_routers_here)
        try:
            netns = NetnsRef(path, identity_of(fd))
        except BaseException:
            os.close(fd)
            raise
        self._fds[netns] = fd
        return netns

    def forget(self, netns: NetnsRef) -> None:
        """Close sockets and descriptors of any netns at the path of *netns*, so that it can end."""
        for key in [key for key in {*self._kept, *self._fds} if key.path == netns.path]:
            for conversation in self._kept.pop(key, {}).values():
                conversation.close()
            if key in self._fds:
                os.close(self._fds.pop(key))

    def close(self) -> None:
        """Close every socket; the handle can be used again and opens new ones."""
        for netns in {*self._kept, *self._fds}:
            self.forget(netns)
        if self._home is not None:
            os.close(self._home)
            self._home = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._idle is not None and error is None:
            rtnl = self._kept.get(HOST, {}).pop(Rtnl, None)
            if isinstance(rtnl, Rtnl):
                self._idle.leave(rtnl.part())
        self.close()
