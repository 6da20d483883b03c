"""Shaping: limits on how fast a link sends, and on how fast it receives.

Qdiscs have no place for a tag; ours are known by their handle. A qdisc limits what a link sends. To limit what it receives,
packets are redirected through an ifb link (:class:`netlib.kernel.sublinks.Ifb`), and what that sends is limited.
"""

import errno
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING

from netlib.errors import AlreadyExists, KernelError, ObjectMissing
from netlib.kernel.netlink import CREATE, EXCLUSIVE, Attributes, attribute, attributes_of, nest
from netlib.kernel.netns import command_in
from netlib.plan import KernelObject, Key

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel, Rtnl

_RTM_NEWQDISC, _RTM_DELQDISC, _RTM_GETQDISC = 36, 37, 38
_RTM_NEWTFILTER, _RTM_DELTFILTER, _RTM_GETTFILTER = 44, 45, 46
_TCMSG = struct.Struct("=BxxxiIII")  # tcmsg: family, ifindex, handle, parent, info
_ROOT, _INGRESS, _INGRESS_HANDLE = 0xFFFFFFFF, 0xFFFFFFF1, 0xFFFF0000
_MARK = 0x6E6C  # "nl": major number of our handles, priority of our filters
_KIND, _OPTIONS = 1, 2
_TBF_PARAMETERS, _TBF_RATE64, _TBF_BURST = 1, 4, 6
_TBF = struct.Struct("=8x4s12xIII")  # of tc_tbf_qopt what we read or write
_U32_SELECTOR, _U32_ACTIONS = 5, 7
_MIRRED_PARAMETERS, _MIRRED_BYTES, _REDIRECT, _STOLEN = 2, 28, 1, 4
_TICKS_PER_SECOND = 15_625_000  # PSCHED_SHIFT 6: 64 ns each
_LATENCY_SECONDS = 0.025  # as the reference bandwidth plugin's
_MOST = 2**32 - 1
_ALL_PACKETS = socket.htons(3)  # ETH_P_ALL


class TokenBucket(KernelObject, frozen=True, kw_only=True, tag="token_bucket"):
    """Let a link send at most *rate* bits per second, *burst* bits at once; packets wait 25 ms at most, else are dropped."""

    ifname: str
    rate: int
    burst: int

    @cached_property
    def key(self) -> Key:
        return Key("qdisc", self.netns.path, f"{self.ifname} root")

    @property
    def _limit(self) -> int:
        """How many bytes may wait."""
        return min(int(self.rate // 8 * _LATENCY_SECONDS) + self.burst // 8, _MOST)

    def ensure(self, kernel: "Kernel") -> None:
        """Set the qdisc where the link has the default one, or change ours; AlreadyExists when it is somebody else's."""
        rtnl = kernel.rtnl(self.netns)
        index = rtnl.index(self.ifname)
        try:
            self._order(rtnl, index, CREATE | EXCLUSIVE)
        except KernelError as error:
            if error.errno != errno.EEXIST:
                raise
            self._change(rtnl, index)

    def _change(self, rtnl: "Rtnl", index: int) -> None:
        try:
            self._order(rtnl, index, 0)
        except KernelError as error:
            if error.errno not in (errno.EEXIST, errno.EINVAL):
                raise
            raise AlreadyExists(
                f"link {self.ifname} in {self.netns.label} has a qdisc that is not netlib's; "
                f"`{command_in(self.netns, f'tc qdisc del dev {self.ifname} root')}` removes it"
            ) from error

    def _order(self, rtnl: "Rtnl", index: int, flags: int) -> None:
        rate, burst = self.rate // 8, min(self.burst // 8, _MOST)
        ticks = min(burst * _TICKS_PER_SECOND // max(rate, 1), _MOST)
        # tc_ratespec: cell_log, linklayer (1: Ethernet), overhead, cell_align, mpu, rate
        speed = struct.pack("=BBHhHI", 0, 1, 0, 0, 0, min(rate, _MOST))
        parameters = struct.pack("=12s12xIII", speed, self._limit, ticks, 0)
        options = [attribute(_TBF_PARAMETERS, parameters), attribute(_TBF_BURST, struct.pack("=I", burst))]
        if rate > _MOST:
            options.append(attribute(_TBF_RATE64, struct.pack("=Q", rate)))
        payload = _TCMSG.pack(0, index, _MARK << 16, _ROOT, 0) + attribute(_KIND, b"tbf\0") + nest(_OPTIONS, *options)
        rtnl.order(f"limit what {self.ifname} in {self.netns.label} sends", (_RTM_NEWQDISC, flags, payload))

    def remove(self, kernel: "Kernel") -> None:
        with suppress(ObjectMissing):
            rtnl = kernel.rtnl(self.netns)
            payload = _TCMSG.pack(0, rtnl.index(self.ifname), _MARK << 16, _ROOT, 0)
            try:
                rtnl.order(f"no longer limit what {self.ifname} in {self.netns.label} sends", (_RTM_DELQDISC, 0, payload))
            except KernelError as error:
                if error.errno != errno.EINVAL:  # the qdisc there has another handle: it is not ours
                    raise

    def drift(self, kernel: "Kernel") -> str | None:
        try:
            rtnl = kernel.rtnl(self.netns)
            handle, kind, found = _qdisc(rtnl, rtnl.index(self.ifname), _ROOT)
        except ObjectMissing as error:
            return str(error)
        if (handle, kind) != (_MARK << 16, "tbf"):
            return f"link {self.ifname} sends without limit"
        speed, limit, ticks, _ = _TBF.unpack_from(found[_TBF_PARAMETERS])
        (rate,) = struct.unpack("=Q", found[_TBF_RATE64]) if _TBF_RATE64 in found else struct.unpack("=I", speed)
        if rate != self.rate // 8:
            return f"link {self.ifname} sends {rate * 8} bit/s, not {self.rate}"
        if abs(ticks * rate // _TICKS_PER_SECOND - self.burst // 8) > 1 + rate // _TICKS_PER_SECOND:
            return f"link {self.ifname} sends another burst than {self.burst} bit"
        return None if limit == self._limit else f"link {self.ifname} lets {limit} bytes wait, not {self._limit}"

    def commands(self) -> Iterable[str]:
        limits = f"rate {self.rate // 8 * 8}bit burst {self.burst // 8}b limit {self._limit}b"
        yield command_in(self.netns, f"tc qdisc replace dev {self.ifname} root handle {_MARK:x}: tbf {limits}")


class IngressRedirect(KernelObject, frozen=True, kw_only=True, tag="ingress_redirect"):
    """Redirect packets that a link receives through the ifb link *to*."""

    ifname: str
    to: str

    @cached_property
    def key(self) -> Key:
        return Key("qdisc", self.netns.path, f"{self.ifname} ingress")

    def ensure(self, kernel: "Kernel") -> None:
        """Make the ingress qdisc with its only filter; AlreadyExists when somebody else filters what the link receives."""
        rtnl = kernel.rtnl(self.netns)
        index, to = rtnl.index(self.ifname), rtnl.index(self.to)
        mine, others = _redirects(rtnl, index)
        if mine == to and not others:
            return
        if others:
            raise AlreadyExists(
                f"what link {self.ifname} in {self.netns.label} receives is filtered by somebody else; "
                f"`{command_in(self.netns, f'tc qdisc del dev {self.ifname} ingress')}` removes that"
            )
        self._delete(rtnl, index)
        qdisc = _TCMSG.pack(0, index, _INGRESS_HANDLE, _INGRESS, 0) + attribute(_KIND, b"ingress\0")
        rtnl.order(
            f"send what {self.ifname} in {self.netns.label} receives through {self.to}",
            (_RTM_NEWQDISC, CREATE | EXCLUSIVE, qdisc),
            (_RTM_NEWTFILTER, CREATE | EXCLUSIVE, _filter(index) + _redirect_to(to)),
        )

    def remove(self, kernel: "Kernel") -> None:
        """Delete the ingress qdisc, or only our filter where the qdisc has filters of somebody else."""
        with suppress(ObjectMissing):
            rtnl = kernel.rtnl(self.netns)
            index = rtnl.index(self.ifname)
            mine, others = _redirects(rtnl, index)
            if others and mine is not None:
                rtnl.order(f"redirect {self.ifname} no longer", (_RTM_DELTFILTER, 0, _filter(index)))
            elif not others:
                self._delete(rtnl, index)

    def _delete(self, rtnl: "Rtnl", index: int) -> None:
        payload = _TCMSG.pack(0, index, _INGRESS_HANDLE, _INGRESS, 0)
        try:
            rtnl.order(f"redirect {self.ifname} in {self.netns.label} no longer", (_RTM_DELQDISC, 0, payload))
        except KernelError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT):  # there is none
                raise

    def drift(self, kernel: "Kernel") -> str | None:
        try:
            rtnl = kernel.rtnl(self.netns)
            mine, _ = _redirects(rtnl, rtnl.index(self.ifname))
            is_so = mine == rtnl.index(self.to)
        except ObjectMissing as error:
            return str(error)
        return None if is_so else f"what link {self.ifname} receives does not go through {self.to}"

    def commands(self) -> Iterable[str]:
        yield command_in(self.netns, f"tc qdisc add dev {self.ifname} ingress")
        redirect = f"u32 match u32 0 0 action mirred egress redirect dev {self.to}"
        yield command_in(self.netns, f"tc filter add dev {self.ifname} parent ffff: protocol all pref {_MARK} {redirect}")


def _filter(index: int) -> bytes:
    return _TCMSG.pack(0, index, 0, _INGRESS_HANDLE, _MARK << 16 | _ALL_PACKETS) + attribute(_KIND, b"u32\0")


def _redirect_to(index: int) -> bytes:
    # tc_u32_sel with one key that every packet fits: flags (1: terminal), offshift, nkeys, …, then mask, value, offset, offmask
    selector = struct.pack("=BBB13x16x", 1, 0, 1)
    # tc_mirred: index, capabilities, action, reference counts, what to do, where
    mirred = struct.pack("=IIiiiiI", 0, 0, _STOLEN, 0, 0, _REDIRECT, index)
    action = nest(1, attribute(_KIND, b"mirred\0"), nest(_OPTIONS, attribute(_MIRRED_PARAMETERS, mirred)))
    return nest(_OPTIONS, attribute(_U32_SELECTOR, selector), nest(_U32_ACTIONS, action))


def _qdisc(rtnl: "Rtnl", index: int, place: int) -> tuple[int, str, Attributes]:
    """Handle, kind and options of the qdisc that a link has at a place; 0 and nothing when it has none."""
    for header, found in rtnl.dump(_RTM_GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0)):
        _, link, handle, parent, _ = _TCMSG.unpack(header)
        if (link, parent) == (index, place):
            return handle, found[_KIND].rstrip(b"\0").decode(), attributes_of(found.get(_OPTIONS, b""))
    return 0, "", {}


def _redirects(rtnl: "Rtnl", index: int) -> tuple[int | None, bool]:
    """The ifindex to which our filter redirects (None without it), and whether somebody else filters what the link receives."""
    kind = _qdisc(rtnl, index, _INGRESS)[1]
    target, others = None, kind not in ("", "ingress")  # a clsact qdisc, which also filters what the link sends
    for header, found in rtnl.dump(_RTM_GETTFILTER, _TCMSG.pack(0, index, 0, _INGRESS_HANDLE, 0)):
        if _TCMSG.unpack(header)[4] >> 16 != _MARK:
            others = True
            continue
        for action in attributes_of(attributes_of(found.get(_OPTIONS, b"")).get(_U32_ACTIONS, b"")).values():
            mirred = attributes_of(attributes_of(action).get(_OPTIONS, b"")).get(_MIRRED_PARAMETERS, b"")
            if len(mirred) >= _MIRRED_BYTES:
                (target,) = struct.unpack_from("=I", mirred, _MIRRED_BYTES - 4)
    return target, others
