"""Running a foreign plugin for one of ours (section 4 of the specification): a process, never a shell, always a deadline.

The process gets the environment and the configuration of the caller, its stderr is passed on. Input and output are files in
memory, so neither a full pipe nor a child that outlives the process can block us.
"""

import errno
import os
import select
import stat
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from signal import SIGKILL
from typing import Any

from msgspec import Struct

from cni_plugins.decode import MAX_BYTES, convert, read_json
from cni_plugins.protocol import CniError, Code, Command
from cni_plugins.result import Result, parse_result
from cni_plugins.skel import Call
from netlib.errors import DeadlineExceeded, NetlibError
from netlib.kernel.handle import Kernel
from netlib.plan import KernelObject, Key

__all__ = ["DEADLINE", "ForeignLease", "delegate", "delegate_add", "find_executable"]

DEADLINE = 60.0
"""Seconds that a delegate has: a DHCP client retries for about half a minute."""


def find_executable(kind: str, folders: tuple[str, ...]) -> str:
    """The path of the plugin type *kind* in the first of *folders* that has it; CniError names where it was sought."""
    if not kind or "/" in kind or "\0" in kind:
        raise CniError(Code.INVALID_CONFIG, f"invalid plugin name: {kind!a}", "it is the name of a file in CNI_PATH")
    for folder in folders:
        path = os.path.join(folder, kind)
        try:
            if stat.S_ISREG(os.stat(path).st_mode):
                return path
        except OSError:
            continue
    raise CniError(
        Code.INVALID_CONFIG,
        f'failed to find plugin "{kind}" in path [{" ".join(folders)}]',
        "install it in one of these folders (CNI_PATH), or correct the type",
    )


def delegate_add(call: Call[Any], kind: str, seconds: float = DEADLINE) -> Result:
    """ADD by the plugin type *kind*; after a failure its DEL removes what the ADD may have left, as section 4 requires.

    Raises the delegate's own error with its code, DeadlineExceeded after *seconds* (the DEL has as long again).
    """
    try:
        answer = _execute(call, kind, Command.ADD, seconds)
        return parse_result(read_json(answer, f"result of {kind}"), call.version, f"result of {kind}")
    except NetlibError:
        try:
            _execute(call, kind, Command.DEL, seconds)
        except NetlibError as error:
            call.stderr.append(f"{kind}: DEL after a failed ADD failed as well: {error}")
        raise


def delegate(call: Call[Any], kind: str, command: Command | None = None, seconds: float = DEADLINE) -> None:
    """Pass CHECK, DEL, GC or STATUS (that of *call* unless *command* is given) on to the plugin type *kind*.

    Raises as :func:`delegate_add`.
    """
    _execute(call, kind, command or call.command, seconds)


class ForeignLease(KernelObject, frozen=True, kw_only=True, tag="foreign_lease"):
    """The lease of a foreign IPAM plugin for an attachment; a DEL with the same environment and configuration releases it.

    It is written down before the plugin is executed, so that no crash can lose it. The caller executes the plugin, for it
    needs the answer.
    """

    kind: str
    container: str
    ifname: str
    folders: tuple[str, ...]  # of CNI_PATH
    environ: dict[str, str]
    config: str

    @cached_property
    def key(self) -> Key:
        return Key("foreign_lease", "", f"{self.kind}/{self.container}/{self.ifname}/{self.environ.get('CNI_NETNS', '')}")

    def ensure(self, kernel: Kernel) -> None:
        """Do nothing: the caller executes the plugin."""

    def remove(self, kernel: Kernel) -> None:
        _run(self.kind, Command.DEL, self.folders, self.environ, self.config.encode(), [], DEADLINE)

    def drift(self, kernel: Kernel) -> str | None:
        """Return None: CHECK is passed on to the plugin, which compares."""

    def commands(self) -> Iterable[str]:
        return ()


def _execute(call: Call[Any], kind: str, command: Command, seconds: float) -> bytes:
    return _run(kind, command, call.path, call.environ, call.stdin, call.stderr, seconds)


def _run(
    kind: str,
    command: Command,
    folders: tuple[str, ...],
    environ: Mapping[str, str],
    config: bytes,
    lines: list[str],
    seconds: float,
) -> bytes:
    """Execute the plugin and return its stdout; add its stderr to *lines*."""
    path = find_executable(kind, folders)
    environ = {**environ, "CNI_COMMAND": command.value}
    with _memory_file() as stdin, _memory_file() as stdout, _memory_file() as stderr:
        _fill(stdin, config)
        process = _start(path, environ, stdin, stdout, stderr)
        ended = _ends_within(process, seconds)
        told = _content(stderr).decode(errors="replace").rstrip("\n")
        if told:
            lines.append(told)
        if not ended:
            raise DeadlineExceeded(f"{kind} ({path}) did not end its {command} within {seconds:g} s and was killed; try again")
        answer = _content(stdout)
    if process.returncode:
        raise _failure(kind, process.returncode, answer, told)
    return answer


@contextmanager
def _memory_file() -> Iterator[int]:
    fd = os.memfd_create("cni-delegate")
    try:
        yield fd
    finally:
        os.close(fd)


def _fill(fd: int, content: bytes) -> None:
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(fd, 0, os.SEEK_SET)


def _content(fd: int) -> bytes:
    """The bytes written to *fd*; one more than a document may have, so that a longer one is refused as too long."""
    return os.pread(fd, MAX_BYTES + 1, 0)


def _start(path: str, environ: dict[str, str], stdin: int, stdout: int, stderr: int) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen([path], env=environ, stdin=stdin, stdout=stdout, stderr=stderr, process_group=0)
    except OSError as error:
        code = Code.TRY_AGAIN if error.errno == errno.ETXTBSY else Code.IO_FAILURE  # ETXTBSY: it is being written
        raise CniError(code, f"{path} cannot be run: {os.strerror(error.errno or 0)}") from error


def _ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for *process* and reap it; at the deadline it is killed first, with all of its group."""
    fd = os.pidfd_open(process.pid)
    try:
        waiter = select.poll()
        waiter.register(fd, select.POLLIN)
        ended = bool(waiter.poll(seconds * 1000))
        if not ended:
            os.killpg(process.pid, SIGKILL)
        process.wait()
    finally:
        os.close(fd)
    return ended


class _Failure(Struct):
    code: int = 0
    msg: str = ""
    details: str = ""


def _failure(kind: str, status: int, answer: bytes, told: str) -> CniError:
    """The delegate's own error, or libcni's words for one that gave none."""
    how = f"exit status {status}" if status > 0 else f"signal {-status}"
    if not answer:
        return CniError(Code.INTERNAL, f"netplugin failed: {told!a}: {how}" if told else _SILENT.format(how), kind)
    try:
        failure = convert(read_json(answer, kind), _Failure, kind)
    except CniError as error:
        return CniError(Code.INTERNAL, f"netplugin failed but error parsing its diagnostic message: {error}", how)
    return CniError(failure.code or Code.INTERNAL, failure.msg or _SILENT.format(how), failure.details)


_SILENT = "netplugin failed with no error message: {}"
