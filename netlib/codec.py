"""Records and kernel objects to and from JSON: the one place that knows how an address is spelled.

``ipaddress`` types are written as their text. msgspec checks everything else against the types of the struct, so a
damaged row is a :class:`StoreDamaged` that names it, never a half-filled object.
"""

import ipaddress
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from netlib import structs
from netlib.errors import StoreDamaged

_T = TypeVar("_T")
_ADDRESS: Any = ipaddress._BaseAddress  # noqa: SLF001 - the common ancestor has no public name
_NETWORK: Any = ipaddress._BaseNetwork  # noqa: SLF001 - as above


def _encode_custom(value: Any) -> Any:
    if isinstance(value, (_ADDRESS, _NETWORK, Path)):
        return str(value)
    raise NotImplementedError(f"cannot write a {type(value).__name__}")


def _decode_custom(kind: type, value: Any) -> Any:
    if isinstance(value, kind):  # from a Python program; in JSON there are texts only
        return value
    if issubclass(kind, _ADDRESS):
        return _address(value)
    if issubclass(kind, _NETWORK):
        return _subnet(value)
    if issubclass(kind, Path):
        return Path(value)
    raise NotImplementedError(f"cannot read a {kind.__name__}")


@lru_cache(maxsize=4096)  # a record is read several times in a verb; ipaddress takes 5 µs, and its objects never change
def _address(value: str) -> Any:
    return ipaddress.ip_interface(value) if "/" in value else ipaddress.ip_address(value)


@lru_cache(maxsize=4096)
def _subnet(value: str) -> Any:
    return ipaddress.ip_network(value)


_encoder = msgspec.json.Encoder(enc_hook=_encode_custom, order="deterministic")
_decoders: dict[Any, Callable[[bytes], Any]] = {}


def encode(value: Any) -> bytes:
    """Write *value* as JSON with sorted keys, so that equal values have equal bytes."""
    return _encoder.encode(value)


def decode(body: bytes, kind: type[_T]) -> _T:
    """Read JSON into *kind*; raise :class:`StoreDamaged` saying what does not fit."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = structs.decoder(kind, dec_hook=_decode_custom)
    try:
        result: _T = decoder(body)
    except (msgspec.DecodeError, ValueError) as error:
        raise StoreDamaged(f"damaged record: {error}; its text begins {body[:80]!r}") from error
    return result


def to_builtins(value: Any) -> Any:
    """Turn *value* into dicts, lists and strings, as :func:`encode` would write it."""
    return msgspec.to_builtins(value, enc_hook=_encode_custom)


def convert(value: Any, kind: type[_T]) -> _T:
    """Turn dicts, lists and strings into *kind*; raise ``msgspec.ValidationError`` naming the path that does not fit."""
    return structs.convert(value, kind, dec_hook=_decode_custom)
