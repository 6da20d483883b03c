"""The Python launcher: one call of a CNI plugin, done by netlibd or here. The C launcher executes it where netlibd cannot help.

Runs under ``python -IS`` and imports next to nothing (a test lists its modules), for a runtime waits for it. Its rule is the
one of :mod:`netlib.verbs.call`: the call is done here only when netlibd certainly has not begun it. Once the whole request has
reached netlibd, only netlibd's answer counts; without one the call ends with the code 11, "try again later".
"""

import posix  # os itself, which -S leaves out, takes longer than all the rest
import sys
import time

from cni_plugins.launcher.call import (
    NO_MEMORY,
    SILENT,
    Answer,
    LauncherCall,
    Lost,
    NotBegun,
    encoded,
    error_object,
    lost_answer,
    write_all,
)
from cni_plugins.launcher.wire import MAX_STDIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["main"]

_CHUNK = 1 << 16
_ENOMEM = 12  # errno itself is one import more


def main(kind: str, state_dir: str, run_dir: str, deadline: float) -> "NoReturn":
    """Do the call of the plugin type *kind* that environment and stdin describe, and end this process with its exit code.

    The folders are those of the installation, unless the environment names others; *deadline* is in seconds. A C launcher that
    has waited in vain for netlibd's greeting says so by the argument "silent".
    """
    _hold_standard_descriptors()
    environ = posix.environ
    with_stdin = environ.get(b"CNI_COMMAND", b"") not in (b"", b"VERSION")
    try:
        call = LauncherCall(
            kind,
            dict(environ),
            _read_stdin() if with_stdin else None,
            _open_netns(environ.get(b"CNI_NETNS", b"")),
            state_dir=environ.get(b"NETLIB_STATE_DIR") or encoded(state_dir),
            run_dir=environ.get(b"NETLIB_RUN_DIR") or encoded(run_dir),
            until=time.monotonic() + deadline,
        )
        stdout, code, stderr = _answer(call, is_silent=sys.argv[2:] == ["silent"])
    except (MemoryError, SystemError):  # the interpreter may lack the memory for its own exception
        stdout, code, stderr = lost_answer(Lost(*NO_MEMORY))
    except ImportError as error:  # a library that is loaded when it is first needed
        stdout, code, stderr = _not_imported(error)
    except OSError as error:
        if error.errno != _ENOMEM:
            raise
        stdout, code, stderr = lost_answer(Lost(*NO_MEMORY))
    _try_to_write(2, stderr)  # whether or not anybody reads it
    if failure := _try_to_write(1, stdout):
        _try_to_write(2, f"netlib: the answer cannot be written: {failure.strerror}\n".encode())
        code = 1
    posix._exit(code)  # noqa: SLF001 - public as os._exit


def _answer(call: LauncherCall, *, is_silent: bool) -> Answer:
    try:
        if is_silent:
            raise NotBegun(SILENT, is_silent=True)
        return call.ask()
    except NotBegun as reason:
        return _do_without(call, reason)
    except Lost as lost:
        return lost_answer(lost)


def _do_without(call: LauncherCall, reason: NotBegun) -> Answer:
    """Start netlibd where that helps, else do the call here; only this needs the heavy imports."""
    import site

    try:
        site.main()  # what -S left out: the folders of the libraries
        from cni_plugins.run import do_without
    except (ImportError, OSError) as error:
        return _not_imported(error)
    return do_without(call, reason)


def _not_imported(error: Exception) -> Answer:
    msg, details = (
        "netlib or a library of it cannot be imported",
        "stderr says why; where one is missing, install netlib again; where memory is lacking, free some and try again",
    )
    return error_object(5, msg, details), 1, f"{error}\n".encode()


# --- input ---------------------------------------------------------------------------------------------------------------


def _hold_standard_descriptors() -> None:
    """Keep the numbers 0 to 2 from being given to files of ours where the caller closed them."""
    try:
        fd = posix.open("/dev/null", posix.O_PATH)  # neither read nor written, as the closed one
    except OSError:  # a root without devices
        return
    while fd <= 2:
        posix.set_inheritable(fd, True)
        fd = posix.dup(fd)
    posix.close(fd)


def _read_stdin() -> bytes:
    """All of stdin, at most one byte more than a configuration may have; where reading fails, what was read before."""
    parts = []
    left = MAX_STDIN + 1
    while left:
        try:
            part = posix.read(0, min(_CHUNK, left))
        except OSError:
            break
        if not part:
            break
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _open_netns(path: bytes) -> int | None:
    if not path:
        return None
    try:
        return posix.open(path, posix.O_RDONLY | posix.O_NONBLOCK | posix.O_NOCTTY | posix.O_CLOEXEC)
    except (OSError, ValueError):
        return None


def _try_to_write(fd: int, data: bytes) -> OSError | None:
    try:
        write_all(fd, data)
    except OSError as error:
        return error
    return None
