"""The two formats on the control socket: JSON for commands and Python programs, fields for the launchers of CNI plugins.

Requests are read from bytes and answers are written to bytes, without I/O. :mod:`netlib.wire.frames` splits a stream into
frames.
"""

import json
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from msgspec import Struct

from cni_plugins.launcher import wire as launchers
from netlib.errors import NetlibError
from netlib.wire.protocol import ABOUT_ITSELF, LENGTH, NAMESPACES, PROTOCOL, error_to_json, frame

__all__ = ["Malformed", "Request", "Tell", "not_mine", "read_request", "refusal", "result"]

Tell = Callable[[Any], None]


class Malformed(Exception):
    """The bytes received are not a request; the connection has to be closed."""


class Request(Struct, frozen=True):
    """One well-formed request. ``fds`` are open until it is answered; ``tell`` sends progress, None where it is not wanted."""

    verb: str
    args: dict[str, Any]
    version: str
    protocol: int
    store: list[int] | None
    fds: tuple[int, ...]
    from_here: bool  # the caller is in our net, mnt and user namespaces
    tell: Callable[[Any], None] | None
    is_awaited: Callable[[], bool]  # whether the caller is still there
    notices: list[str] = []  # for the caller, besides the answer; grows while the verb is performed
    from_launcher: bool = False  # a CNI call: request and answer are written in fields

    @property
    def about_itself(self) -> bool:
        """Whether the verb concerns netlibd itself (``daemon.ping``)."""
        return self.verb.startswith(ABOUT_ITSELF)


def read_request(body: bytes, fds: Sequence[int], tell: Tell, is_awaited: Callable[[], bool]) -> Request:
    """Read a request from *body* and the descriptors received with it; *tell* sends progress. Raises Malformed."""
    if body.startswith(launchers.MAGIC):
        return _read_launchers(body, fds, is_awaited)
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"no JSON: {error}") from error
    if not isinstance(message, dict):
        raise Malformed("no JSON object")
    verb, args, version, protocol = (message.get(key) for key in ("verb", "args", "version", "protocol"))
    if not (isinstance(verb, str) and isinstance(args, dict) and isinstance(version, str) and isinstance(protocol, int)):
        raise Malformed("verb, args, version or protocol is missing or of the wrong type")
    store = message.get("store")
    if store is not None and not (isinstance(store, list) and len(store) == 2):
        raise Malformed("store is no pair")
    return Request(
        verb=verb,
        args=args,
        version=version,
        protocol=protocol,
        store=store,
        fds=tuple(fds[len(NAMESPACES) :]),
        from_here=_are_ours(fds[: len(NAMESPACES)]),
        tell=tell if message.get("progress") else None,
        is_awaited=is_awaited,
    )


def _read_launchers(body: bytes, fds: Sequence[int], is_awaited: Callable[[], bool]) -> Request:
    lent = fds[len(NAMESPACES) :]
    try:
        release, store, names, kind, *environment = launchers.unpack(body)
        return Request(
            verb="cni",
            args={
                "kind": kind.decode(errors="surrogateescape"),
                "environ": launchers.environment(environment),
                "lent": dict(zip(names.split(), lent, strict=True)),
            },
            version=release.decode(),
            protocol=PROTOCOL,
            store=[int(number) for number in store.split(b":")] if store else None,
            fds=tuple(lent),
            from_here=_are_ours(fds[: len(NAMESPACES)]),
            tell=None,
            is_awaited=is_awaited,
            from_launcher=True,
        )
    except ValueError as error:
        raise Malformed(f"from a launcher: {error}") from error


# --- answers -----------------------------------------------------------------------------------------------------------


def result(request: Request, value: Any) -> bytes:
    """Write the answer for a verb that returned *value*, an Outcome for a launcher's call."""
    return _outcome(request, value) if request.from_launcher else frame({"result": value, **_notices(request)})


def refusal(request: Request, error: NetlibError) -> bytes:
    """Write the answer for a verb that raised *error*."""
    if not request.from_launcher:
        return frame({"error": error_to_json(error), **_notices(request)})
    from cni_plugins.run import failed  # imported here, so that the start need not wait; the keeper imports it ahead

    return _outcome(request, failed(error))


def not_mine(request: Request, reason: str, version: str) -> bytes:
    """Write the answer that a netlibd of *version* did not begin the verb, for *reason*."""
    if request.from_launcher:
        return _fields(launchers.NOT_MINE, reason.encode(), version.encode())
    return frame({"not_mine": reason, "version": version})


def _notices(request: Request) -> dict[str, list[str]]:
    return {"notices": request.notices} if request.notices else {}


def _outcome(request: Request, outcome: Any) -> bytes:
    stderr = "".join(f"{sentence}\n" for sentence in request.notices).encode(errors="backslashreplace") + outcome.stderr
    return _fields(launchers.DONE, bytes([outcome.code]), outcome.stdout, stderr)


def _fields(*fields: bytes) -> bytes:
    body = launchers.pack(*fields)
    return LENGTH.pack(len(body)) + body


@cache
def _own_namespaces() -> tuple[tuple[int, int], ...]:
    """Return device and inode of each of our namespaces; while we are in them, no other namespace can have these numbers."""
    found = [os.stat(f"/proc/self/ns/{kind}") for kind in NAMESPACES]
    return tuple((item.st_dev, item.st_ino) for item in found)


def _are_ours(fds: Sequence[int]) -> bool:
    return tuple((item.st_dev, item.st_ino) for item in map(os.fstat, fds)) == _own_namespaces()
