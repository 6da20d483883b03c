"""The protocol of netlibd and its clients: frames, errors as JSON, the socket. The standard library's small modules only.

A frame is four bytes of length (network order) and that much JSON. netlibd speaks first on each connection to ``control.sock``:
a greeting with its version (``netlibd``), ``protocol`` and ``pid``. A client without a greeting sends nothing, and works
without netlibd. On ``netlibd.sock``, for launchers and clients of earlier versions, there is no greeting.

A connection carries one request at a time: an object with ``protocol``, ``version``, ``store``, ``verb``, ``args`` and
``progress`` (whether it is wanted). Descriptors are sent with it: of the caller's net, mnt and user namespaces, then those that
are lent to the verb. The answers are any number of ``progress``, then one ``result``, ``error`` or ``not_mine``. Launchers of
CNI plugins write fields instead of JSON: cni_plugins.launcher.wire.
"""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from netlib import errors
from netlib.errors import NetlibError, TeardownError

__all__ = [
    "ABOUT_ITSELF",
    "GREETING_SECONDS",
    "LENGTH",
    "MAX_ANSWER",
    "MAX_FDS",
    "MAX_REQUEST",
    "NAMESPACES",
    "PROTOCOL",
    "at_socket",
    "error_from_json",
    "error_to_json",
    "frame",
    "greeting",
    "release",
    "store_identity",
]

PROTOCOL = 1
NAMESPACES = ("net", "mnt", "user")
ABOUT_ITSELF = "daemon."  # verbs about netlibd: any caller may ask, and no namespaces are sent
GREETING_SECONDS = 1.0  # netlibd greets from the loop that accepts, whatever its workers do
MAX_REQUEST = 4 << 20
MAX_ANSWER = 64 << 20
MAX_FDS = 16
LENGTH = struct.Struct("!I")
_SOCKET_PATH_MAX = 107


def frame(message: dict[str, Any]) -> bytes:
    """One message as the bytes for the socket."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return LENGTH.pack(len(body)) + body


def greeting(version: str) -> bytes:
    """netlibd's greeting. Its beginning must never change: launchers check that, and no more."""
    return frame({"netlibd": version, "protocol": PROTOCOL, "pid": os.getpid()})


def at_socket(path: Path, action: Callable[[str], object]) -> None:
    """Do *action* (a connect, a bind) with the path of a socket, however long the folder's name is."""
    if len(os.fsencode(path)) <= _SOCKET_PATH_MAX:
        action(str(path))
        return
    folder = os.open(path.parent, os.O_PATH | os.O_CLOEXEC)
    try:
        action(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def store_identity(state_dir: "os.PathLike[str]") -> list[int] | None:
    """The identity of a store, whichever path leads to it: device and inode; None before there is one."""
    try:
        found = os.stat(os.path.join(state_dir, "netlib.db"))
    except OSError:
        return None
    return [found.st_dev, found.st_ino]


def release(version: str) -> tuple[int, ...]:
    """A version as numbers, so that an older one is less."""
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def error_to_json(error: NetlibError) -> dict[str, Any]:
    """*error* as JSON for an answer."""
    answer: dict[str, Any] = {"type": type(error).__name__, "message": str(error), "exit_code": error.exit_code}
    answer["facts"] = {name: getattr(error, name) for name in error.facts}
    if isinstance(error, TeardownError):
        answer["failures"] = [error_to_json(failure) for failure in error.failures]
    return answer


def error_from_json(answer: dict[str, Any]) -> NetlibError:
    """The error that :func:`error_to_json` wrote: of its class where netlib.errors has it, else the root of the tree."""
    name = answer["type"]
    kind: type[NetlibError] = getattr(errors, name) if name in errors.__all__ else NetlibError
    facts = {fact: value for fact, value in answer.get("facts", {}).items() if fact in kind.facts}
    if issubclass(kind, TeardownError):
        error: NetlibError = kind([error_from_json(failure) for failure in answer["failures"]], **facts)
    elif "what" in kind.facts:  # the class makes its message from it
        error = kind(facts.get("what", answer["message"]))
    else:
        error = kind(answer["message"], **facts)
    error.exit_code = answer["exit_code"]
    return error
