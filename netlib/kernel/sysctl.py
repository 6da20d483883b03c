"""Kernel settings under ``/proc/sys``, each with the value it had before us.

Names are spelled as sysctl(8) takes them: the first separator decides, so ``net.ipv4.conf.eth0/10.forwarding`` and
``net/ipv4/conf/eth0.10/forwarding`` are one setting. Keys use the second spelling, in which a link may have dots in its name.
"""

import os
import socket
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Self

from msgspec.structs import replace

from netlib.errors import ConfigError, ObjectMissing
from netlib.kernel.netns import command_in
from netlib.kernel.translate import doing
from netlib.model import NetnsRef
from netlib.plan import KernelObject, Key

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel

_ROOT = "/proc/sys"
_LONGEST = 1 << 16  # bytes of a value
_SWAP = str.maketrans("./", "/.")
_RTM_GETROUTE, _PROTOCOL_RA, _RTA_OIF = 26, 9, 4


@lru_cache(maxsize=4096)  # it is part of a key: a connect asks some thirty times
def sysctl_path(name: str) -> str:
    """The path of a setting below ``/proc/sys``; ConfigError when *name* is no such path."""
    dot, slash = name.find("."), name.find("/")
    path = name.translate(_SWAP) if dot >= 0 and (slash < 0 or dot < slash) else name
    if not all(part not in ("", ".", "..") for part in path.split("/")):
        raise ConfigError(f"{name!r} is no sysctl name; write net.ipv4.ip_forward or net/ipv4/conf/eth0.10/forwarding")
    return path


def sysctl_name(path: str) -> str:
    """The name of a setting in dots, ``net.ipv4.ip_forward``; a dot in the name of a link is a slash there."""
    return path.translate(_SWAP)


def asked_sysctls(asked: Mapping[str, str]) -> dict[str, str]:
    """The sysctls that a user asks for in a netns of ours, by path; ConfigError for all but ``net.*``, in Docker's words."""
    found: dict[str, str] = {}
    for name, value in asked.items():
        path = sysctl_path(name)
        if not path.startswith("net/") or "\0" in path + value:
            asking = f"{name}={value}".removesuffix("=")
            raise ConfigError(f"sysctl '{asking}' is not allowed: NAME=VALUE with a NAME of net.* is expected")
        if not value:
            raise ConfigError(f"sysctl '{name}': no value given; write {name}=VALUE")
        found[path] = value
    return found


def sysctl_ifname(path: str) -> str | None:
    """The link that a setting belongs to and vanishes with; None for other settings."""
    _, _, kind, place, *_ = (*path.split("/"), "", "", "")
    return place if kind in ("conf", "neigh") and place not in ("all", "default") else None


def read_sysctl(kernel: "Kernel", netns: NetnsRef, name: str) -> str | None:
    """The value in *netns*, white space as single blanks; None when there is no such setting (the link is gone)."""
    path = sysctl_path(name)
    try:
        with kernel.entered(netns), doing(f"read sysctl {path} in {netns.label}"):
            return _read(path)
    except ObjectMissing:
        return None


def write_sysctl(kernel: "Kernel", netns: NetnsRef, name: str, value: str) -> None:
    """Write a value in *netns*; ObjectMissing when there is no such setting."""
    path = sysctl_path(name)
    with kernel.entered(netns), doing(f"set sysctl {path} to {value!r} in {netns.label}"):
        write_here(path, value)


def _read(path: str) -> str:
    fd = os.open(f"{_ROOT}/{path}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return " ".join(os.read(fd, _LONGEST).decode().split())
    finally:
        os.close(fd)


def write_here(path: str, value: str) -> None:
    """Write a value in the netns of this thread, by its path below ``/proc/sys`` (5 µs); raises OSError."""
    fd = os.open(f"{_ROOT}/{path}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


class Sysctl(KernelObject, frozen=True, kw_only=True, tag="sysctl"):
    """One setting. *prior* is its value before a record first set it; the last record that holds it restores that value.

    An *optional* one may not exist: a kernel without IPv6 needs none switched off.
    """

    observations = ("prior",)

    name: str
    value: str
    optional: bool = False
    prior: str | None = None

    @cached_property
    def key(self) -> Key:
        return Key("sysctl", self.netns.path, sysctl_path(self.name))

    @property
    def shared(self) -> bool:
        """The host's settings serve every network; a sandbox's are its own."""
        return self.netns.is_host

    @property
    def ifname(self) -> str | None:
        """As :func:`sysctl_ifname`."""
        return sysctl_ifname(sysctl_path(self.name))

    def observed(self, kernel: "Kernel") -> Self:
        return self if self.prior is not None else replace(self, prior=read_sysctl(kernel, self.netns, self.name))

    def ensure(self, kernel: "Kernel") -> None:
        path = sysctl_path(self.name)
        try:
            with kernel.entered(self.netns), doing(f"set sysctl {path} to {self.value!r} in {self.netns.label}"):
                # What was observed to be different is written without another look.
                if self.prior not in (None, self._wanted) or _read(path) != self._wanted:
                    write_here(path, self.value)
        except ObjectMissing:
            if not self.optional:
                raise

    def remove(self, kernel: "Kernel") -> None:
        """Restore the prior value, unless somebody has changed ours meanwhile; a no-op where the setting no longer exists."""
        if self.prior in (None, self._wanted):
            return
        if read_sysctl(kernel, self.netns, self.name) == self._wanted:
            with suppress(ObjectMissing):
                write_sysctl(kernel, self.netns, self.name, str(self.prior))

    def drift(self, kernel: "Kernel") -> str | None:
        found = read_sysctl(kernel, self.netns, self.name)
        if found is None:
            return None if self.optional else f"sysctl {sysctl_path(self.name)} is missing"
        return None if found == self._wanted else f"sysctl {sysctl_path(self.name)} is {found!r}, not {self._wanted!r}"

    def commands(self) -> Iterable[str]:
        value = f"'{self.value}'" if " " in self.value else self.value
        yield command_in(self.netns, f"sysctl -w {sysctl_path(self.name)}={value}")

    @property
    def _wanted(self) -> str:
        return " ".join(self.value.split())


class RouterAdvertisements(KernelObject, frozen=True, kw_only=True, tag="router_advertisements"):
    """Links that keep learning routes by router advertisements while this host forwards IPv6 itself.

    A plan that sets ``net/ipv6/conf/all/forwarding`` has it right before: with ``accept_ra=1``, the default, the kernel
    ignores router advertisements once it forwards (``Documentation/networking/ip-sysctl.rst``); with 2 it does not.
    *ifnames*, observed once, are the links with ``accept_ra=1`` that have a route from an advertisement.
    """

    observations = ("ifnames",)

    ifnames: tuple[str, ...] | None = None

    @property
    def shared(self) -> bool:
        return True

    @cached_property
    def key(self) -> Key:
        return Key("router_advertisements", self.netns.path, "links")

    def observed(self, kernel: "Kernel") -> Self:
        if self.ifnames is not None:
            return self
        rtnl = kernel.rtnl(self.netns)
        header = struct.pack("=BBBBBBBBI", socket.AF_INET6, 0, 0, 0, 0, _PROTOCOL_RA, 0, 0, 0)
        learnt = {found.get(_RTA_OIF) for _, found in rtnl.dump(_RTM_GETROUTE, header)}
        ifnames = sorted(link.ifname for link in rtnl.links() if struct.pack("=I", link.index) in learnt)
        return replace(self, ifnames=tuple(ifname for ifname in ifnames if self._read(kernel, ifname) == "1"))

    def ensure(self, kernel: "Kernel") -> None:
        self._turn(kernel, "1", "2")

    def remove(self, kernel: "Kernel") -> None:
        self._turn(kernel, "2", "1")

    def drift(self, kernel: "Kernel") -> str | None:
        deaf = [ifname for ifname in self.ifnames or () if self._read(kernel, ifname) == "1"]
        return f"{', '.join(deaf)} would stop accepting router advertisements (accept_ra is 1, not 2)" if deaf else None

    def commands(self) -> Iterable[str]:
        for ifname in self.ifnames or ():
            yield command_in(self.netns, f"sysctl -w {_accept_ra(ifname)}=2")

    def _read(self, kernel: "Kernel", ifname: str) -> str | None:
        return read_sysctl(kernel, self.netns, _accept_ra(ifname))

    def _turn(self, kernel: "Kernel", before: str, after: str) -> None:
        for ifname in self.ifnames or ():
            if self._read(kernel, ifname) == before:
                with suppress(ObjectMissing):
                    write_sysctl(kernel, self.netns, _accept_ra(ifname), after)


def _accept_ra(ifname: str) -> str:
    return f"net/ipv6/conf/{ifname}/accept_ra"
