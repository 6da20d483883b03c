"""The two dialects of the control socket: JSON for commands and Python programs, fields for the launchers of CNI plugins.

Bytes in, requests out; answers in, bytes out; no I/O. Frames are :mod:`netlib.wire.frames`'.
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
    """These bytes are no request; the connection is of no use any more."""


class Request(Struct, frozen=True):
    """One well-formed request; ``fds`` are open while it is worked on; ``tell`` sends progress, where that is wanted."""

    verb: str
    args: dict[str, Any]
    version: str
    protocol: int
    store: list[int] | None
    fds: tuple[int, ...]
    from_here: bool  # the caller is in our net, mnt and user namespaces
    tell: Callable[[Any], None] | None
    is_awaited: Callable[[], bool]  # whether the caller is still there
    from_launcher: bool = False  # a CNI call: written in fields, and so is its answer

    @property
    def about_itself(self) -> bool:
        """Whether it asks the daemon about the daemon."""
        return self.verb.startswith(ABOUT_ITSELF)


def read_request(body: bytes, fds: Sequence[int], tell: Tell, is_awaited: Callable[[], bool]) -> Request:
    """The request that *body* and the descriptors with it make; *tell* sends progress. Raises Malformed."""
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
    """The answer that the verb's result is *value*; of a launcher's call that is an Outcome."""
    return _outcome(value) if request.from_launcher else frame({"result": value})


def refusal(request: Request, error: NetlibError) -> bytes:
    """The answer that the verb raised *error*."""
    if not request.from_launcher:
        return frame({"error": error_to_json(error)})
    from cni_plugins.run import failed  # the keeper has imported it; a start need not wait for it

    return _outcome(failed(error))


def not_mine(request: Request, reason: str, version: str) -> bytes:
    """The answer that nothing was done, for *reason*, by a netlibd of *version*."""
    if request.from_launcher:
        return _fields(launchers.NOT_MINE, reason.encode(), version.encode())
    return frame({"not_mine": reason, "version": version})


def _outcome(outcome: Any) -> bytes:
    return _fields(launchers.DONE, bytes([outcome.code]), outcome.stdout, outcome.stderr)


def _fields(*fields: bytes) -> bytes:
    body = launchers.pack(*fields)
    return LENGTH.pack(len(body)) + body


@cache
def _own_namespaces() -> tuple[tuple[int, int], ...]:
    """Device and inode of each; no other namespace can have them while we are in ours."""
    found = [os.stat(f"/proc/self/ns/{kind}") for kind in NAMESPACES]
    return tuple((item.st_dev, item.st_ino) for item in found)


def _are_ours(fds: Sequence[int]) -> bool:
    return tuple((item.st_dev, item.st_ino) for item in map(os.fstat, fds)) == _own_namespaces()
