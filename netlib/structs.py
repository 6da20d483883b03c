"""Values into typed structs, from any thread: the only place that has msgspec read a type.

msgspec reads a struct's annotations at its first use, and lets other threads use the type while it is half read, which ends
the process (seen with 0.22.0). So a type, and all that it is made of, is read under one lock before anybody uses it.
"""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import msgspec

__all__ = ["Asked", "convert", "decoder"]

_T = TypeVar("_T")
_Hook = Callable[[type, Any], Any]


class Asked(NamedTuple):
    """What a field of a request accepts: *words* for an error, and *read*, which makes its value where msgspec cannot."""

    words: str
    read: Callable[[Any], Any] | None = None


_reading = threading.Lock()
_read: set[Any] = set()


def convert(value: Any, kind: type[_T], *, dec_hook: _Hook | None = None, strict: bool = True) -> _T:
    """``msgspec.convert``: dicts, lists and texts into *kind*. Raises ``msgspec.ValidationError``."""
    _read_once(kind)
    return msgspec.convert(value, kind, dec_hook=dec_hook, strict=strict)  # noqa: TID251 - the type is read


def decoder(kind: type[_T], *, dec_hook: _Hook | None = None) -> Callable[[bytes | str], _T]:
    """A function that reads JSON into *kind*, for any thread. It raises ``msgspec.DecodeError``."""
    with _reading:
        return msgspec.json.Decoder(kind, dec_hook=dec_hook).decode  # noqa: TID251 - nobody else reads a type


def _read_once(kind: Any) -> None:
    if kind not in _read:
        decoder(kind)
        _read.add(kind)
