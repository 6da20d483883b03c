"""libnftables by ctypes: text in, text or JSON out, one context per netns.

Two rules: a context belongs to the netns it was opened in and to one thread at a time; and one thread of a process writes JSON
at a time, whatever the context, for the library (1.0.6) splits types by strtok(3), which has one state for the whole process.
The library has no error codes, only text; here and nowhere else it is translated back into errno.
"""

import ctypes
import errno
import json
import mmap
import os
import resource
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from typing import Any, TypeVar

from netlib.errors import FeatureMissing, HostExhausted, KernelError, NotPermitted
from netlib.firewall.expressions import NETFILTER, NFTABLES
from netlib.kernel.descriptors import has_low
from netlib.kernel.handle import Closable, Kernel
from netlib.kernel.scarcity import NO_MEMORY, exhaustion
from netlib.kernel.translate import doing, kernel_error
from netlib.model import HOST, NetnsRef

_ROOM, _ROOM_PER_BYTE = 4 << 20, 16  # bytes for its buffers, and for each byte of commands
_NFT_MSG_GETGEN = NFTABLES << 8 | 16
_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2
# <nftables/libnftables.h>: protocols as numbers, for their names come from a file that a small system may lack
_OUTPUT_JSON, _OUTPUT_NUMERIC_PROTO, _OUTPUT_TERSE = 1 << 4, 1 << 7, 1 << 11


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libnftables.so.1")
    except OSError as error:
        missing = FeatureMissing("libnftables is not installed; on Debian: apt install libnftables1")
        raise exhaustion(error) or missing from error
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    for name, result, arguments in (
        ("nft_ctx_new", pointer, [ctypes.c_uint32]),
        ("nft_ctx_free", None, [pointer]),
        ("nft_ctx_buffer_output", ctypes.c_int, [pointer]),
        ("nft_ctx_buffer_error", ctypes.c_int, [pointer]),
        ("nft_ctx_get_output_buffer", text, [pointer]),
        ("nft_ctx_get_error_buffer", text, [pointer]),
        ("nft_ctx_output_set_flags", None, [pointer, ctypes.c_uint]),
        ("nft_run_cmd_from_buffer", ctypes.c_int, [pointer, text]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


_writing_json = threading.Lock()
os.register_at_fork(before=_writing_json.acquire, after_in_parent=_writing_json.release, after_in_child=_writing_json.release)
_KEPT_MOST = 4  # of a kind
_T = TypeVar("_T", bound=Closable)

_kept: dict[type[Closable], list[Any]] | None = None  # idle ones with this process's own netns; None: none is kept


@contextmanager
def keeping() -> Iterator[None]:
    """Keep conversations with this process's own netns for the next operation while the block runs, instead of closing them.

    For a long-lived process: closing a conversation waits until the kernel has freed what was deleted before, some 10 ms, and
    everybody's transactions wait with it (``nft_rcv_nl_event``).
    """
    global _kept
    _kept = {}
    os.register_at_fork(after_in_child=_leave_to_parent)
    try:
        yield
    finally:
        idle, _kept = _kept or {}, None
        for conversations in idle.values():
            for conversation in conversations:
                conversation.close()


def take_idle(kind: type[_T]) -> _T | None:
    """An idle conversation of that kind with this process's own netns, or None."""
    with suppress(IndexError):  # another thread took the last one
        if _kept is not None and (idle := _kept.get(kind)):
            conversation: _T = idle.pop()
            return conversation
    return None


def leave_idle(conversation: Closable) -> bool:
    """Keep *conversation*, with this process's own netns, for the next operation; False where the caller has to close it."""
    if _kept is None:
        return False
    idle = _kept.setdefault(type(conversation), [])
    if len(idle) >= _KEPT_MOST:
        return False
    idle.append(conversation)
    return True


def _leave_to_parent() -> None:
    global _kept
    _kept = None


def nft(kernel: Kernel, netns: NetnsRef = HOST) -> "Nft":
    """The conversation of *kernel* with the nftables of *netns*, opened as :class:`Nft` says at its first use."""
    return kernel.kept(netns, opened_nft)


def opened_nft(kernel: Kernel, netns: NetnsRef) -> "Nft":
    """A conversation with *netns*: an idle one of this process, or a new one, as :class:`Nft` says."""
    return (take_idle(Nft) if netns.is_host else None) or Nft(kernel, netns)


class Nft:
    """A conversation with the nftables of one netns."""

    def __init__(self, kernel: Kernel, netns: NetnsRef) -> None:
        """Open it. Raises ObjectMissing when *netns* is gone, FeatureMissing without libnftables or nf_tables."""
        self.netns = netns
        library = _library()
        with kernel.entered(netns), doing(f"open nftables in {netns.label}"):
            # nft_ctx_new ends the whole process when the kernel has no NETLINK_NETFILTER: this socket finds out first.
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETFILTER)
            try:
                self.generation()
                _require_memory(0)
                if not has_low():
                    raise KernelError(f"cannot open nftables in {netns.label}: too many files are open for libnftables")
                self._context = library.nft_ctx_new(0)
            except BaseException:
                self._socket.close()
                raise
        library.nft_ctx_buffer_output(self._context)
        library.nft_ctx_buffer_error(self._context)

    def generation(self) -> int:
        """The number of the ruleset's generation, which every change by any program increases (36 µs)."""
        with doing(f"ask for the nftables generation in {self.netns.label}"):
            self._socket.send(struct.pack("=IHHIIBBH", 20, _NFT_MSG_GETGEN, _NLM_F_REQUEST, 0, 0, 0, 0, 0))
            answer = self._socket.recv(4096)
        (kind,) = struct.unpack_from("=H", answer, 4)
        if kind == _NLMSG_ERROR:
            (code,) = struct.unpack_from("=i", answer, 16)
            if -code in (errno.EPERM, errno.EACCES):
                raise kernel_error(-code, f"use nftables in {self.netns.label}")
            raise FeatureMissing(f"this kernel lacks nf_tables ({os.strerror(-code).lower()})", -code)
        (value,) = struct.unpack_from("!I", answer, 24)
        return int(value)

    def run(self, commands: str, action: str) -> None:
        """Run *commands* as one transaction: all of them or none. KernelError says why *action* failed."""
        self._run(commands, action, 0)

    def listing(self, command: str, *, elements: bool = True) -> list[dict[str, Any]]:
        """What a ``list …`` command shows, as nft's JSON objects (libnftables-json(5)); ObjectMissing for a missing object.

        One command at a time: nft 1.0.6 finds only the first of several sets.
        """
        flags = _OUTPUT_JSON | _OUTPUT_NUMERIC_PROTO | (0 if elements else _OUTPUT_TERSE)
        text = self._run(command, command, flags)
        items: list[dict[str, Any]] = json.loads(text)["nftables"] if text else []
        return items

    def text(self, command: str) -> str:
        """What a ``list …`` command shows, as a person reads it."""
        return self._run(command, command, 0)

    def close(self) -> None:
        """Free the context, which else keeps the netns from ending; or keep it for the next operation (:func:`keeping`)."""
        if self.netns.is_host and leave_idle(self):
            return
        _library().nft_ctx_free(self._context)
        self._socket.close()

    def _run(self, commands: str, action: str, flags: int) -> str:
        library = _library()
        _require_memory(len(commands))
        library.nft_ctx_output_set_flags(self._context, flags)
        with _writing_json if flags & _OUTPUT_JSON else nullcontext():
            failed = library.nft_run_cmd_from_buffer(self._context, commands.encode())
        output: str = library.nft_ctx_get_output_buffer(self._context).decode()
        problem: str = library.nft_ctx_get_error_buffer(self._context).decode(errors="replace")
        if failed:
            raise nft_error(problem, f"{action} in {self.netns.label}")
        return output


def _require_memory(size: int) -> None:
    """Raise HostExhausted where memory for *size* bytes of commands is lacking: libnftables would end the whole process.

    The kernel refuses memory only where a limit is set, or where it may not promise more than it has (overcommit_memory).
    """
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY and not _is_strict():
        return
    try:
        mmap.mmap(-1, _ROOM + _ROOM_PER_BYTE * size).close()
    except (OSError, MemoryError) as error:
        raise HostExhausted(NO_MEMORY) from error


@cache
def _is_strict() -> bool:
    with open("/proc/sys/vm/overcommit_memory") as file:
        return file.read().strip() == "2"


@cache
def _codes() -> dict[str, int]:
    return {os.strerror(code): code for code in errno.errorcode}


def nft_error(problem: str, action: str) -> KernelError | NotPermitted:
    """Return the error for nft's output: its first line ends with the kernel's reason, its second is the refused command.

    The library gives no errno, so it is looked up by the text; an unknown text is shown unchanged.
    """
    lines = problem.splitlines() or ["no reason given"]
    reason = lines[0].split("Error: ", 1)[-1].removeprefix("Could not process rule: ")
    code = _codes().get(reason.split(";", 1)[0].strip(), 0)
    where = lines[1][:160] if len(lines) > 1 else ""
    return kernel_error(code, action, f"{reason} (nft: {where})" if where else reason)
