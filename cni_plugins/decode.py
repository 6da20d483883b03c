"""Foreign JSON into typed values, with one sentence for what does not fit.

Documents are read as the reference plugins read them, for hosts rely on that: keys match whatever their case, null is the
same as absent, unknown keys are ignored, an empty text is no address, the last of equal keys counts, bytes that are no UTF-8
are replaced. A wrong type is refused by name: ``bridge: isGateway: expected a boolean, got "yes"``.
"""

import ipaddress
import re
from abc import ABCMeta
from collections.abc import Callable
from functools import cache
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from msgspec import Struct

from cni_plugins.protocol import CniError, Code
from netlib import structs

if TYPE_CHECKING:
    from netlib.model import IPAddress as Address
    from netlib.model import IPInterface as Cidr
    from netlib.model import IPNetwork as Subnet
else:
    # Types to declare fields with: an address without a prefix length, one with it (host bits and all), a subnet (no host
    # bits). msgspec takes one custom type in a union, and for the hook below the three must differ.
    Address, Cidr, Subnet = (ABCMeta(name, (), {}) for name in ("Address", "Cidr", "Subnet"))
    for _kind, _suffix in ((Address, "Address"), (Cidr, "Interface"), (Subnet, "Network")):
        _kind.register(getattr(ipaddress, f"IPv4{_suffix}"))
        _kind.register(getattr(ipaddress, f"IPv6{_suffix}"))

__all__ = ["MAX_BYTES", "Address", "Cidr", "Subnet", "convert", "convert_fitting", "parse_address", "parse_cidr", "read_json"]

MAX_BYTES = 16 << 20
"""Longest document that is read: a GC that names 100,000 attachments has about 10 MB."""

_T = TypeVar("_T")
_SHOWN = 60  # characters of a wrong value in a message
_INT64 = 1 << 63  # what Go's int holds
_MAPPED_BITS = 96  # ::ffff:0:0/96, RFC 4291, 2.5.5.2
_PREFIX_LENGTH = re.compile(r"[0-9]{1,3}")
_WORDS = {
    "bool": "a boolean",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "object": "an object",
    "array": "a list",
}


def read_json(body: bytes, what: str) -> dict[str, Any]:
    """Read a JSON object; CniError (code 6) begins with *what*. Null is an empty object."""
    if len(body) > MAX_BYTES:
        raise CniError(Code.DECODING_FAILURE, f"{what}: {len(body)} bytes are too many; {MAX_BYTES} at most are read")
    try:
        document = msgspec.json.decode(body.decode(errors="replace"))
    except RecursionError:
        raise CniError(Code.DECODING_FAILURE, f"{what}: nested too deeply") from None
    except msgspec.DecodeError as error:
        found = f"the text begins {_shown(body[:_SHOWN].decode(errors='replace'))}" if body.strip() else "the text is empty"
        raise CniError(Code.DECODING_FAILURE, f"{what}: no JSON: {error}", found) from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise CniError(Code.DECODING_FAILURE, f"{what}: expected an object, got {_shown(document)}")
    return document


def convert(document: Any, kind: type[_T], what: str) -> _T:
    """Turn a decoded *document* into *kind*; CniError names *what*, the path of the key, what was expected and found.

    A wrong type of JSON is code 6 ("failed to decode"), a value out of its bounds code 7 ("invalid configuration").
    """
    normalized = _normalized(document, kind)
    try:
        return structs.convert(normalized, kind, dec_hook=_address_hook)
    except msgspec.ValidationError as error:
        raise _refusal(error, normalized, kind, what) from None


def convert_fitting(document: Any, kind: type[_T], what: str, refused: list[str]) -> _T:
    """Turn *document* into *kind* without the keys and list items that do not fit; *refused* gets a line for each.

    CniError where the document as a whole does not fit.
    """
    normalized = _normalized(document, kind)
    while True:
        try:
            return structs.convert(normalized, kind, dec_hook=_address_hook)
        except msgspec.ValidationError as error:
            refusal = _refusal(error, normalized, kind, what)
            if not _drop_part(normalized, str(error)):
                raise refusal from None
            refused.append(f"{refusal}; going on without")


def _drop_part(document: Any, message: str) -> bool:
    """Delete from *document* the value that *message* complains of, or one that contains it; False for *document* itself."""
    place = _PLACE.search(message)
    steps: list[str | int] = []
    for key, index, unknown in _STEP.findall(place[1] if place else ""):
        if unknown:
            break
        steps.append(key or int(index))
    if not steps:
        return False
    for step in steps[:-1]:
        document = document[step]
    del document[steps[-1]]
    return True


def parse_cidr(text: str) -> Cidr:
    """Read an address with its prefix length; ValueError says what was expected."""
    address, slash, length = text.partition("/")
    try:
        if not slash or "%" in address or not _PREFIX_LENGTH.fullmatch(length):
            raise ValueError
        found = ipaddress.ip_interface(f"{address}/{int(length)}")
    except ValueError:
        raise ValueError("expected an address with its prefix length like 10.1.0.2/16 or fd00::2/64") from None
    mapped = found.ipv4_mapped if found.version == 6 else None
    if mapped is None or found.network.prefixlen < _MAPPED_BITS:
        return found
    return ipaddress.ip_interface((mapped, found.network.prefixlen - _MAPPED_BITS))


def parse_address(text: str) -> Address:
    """Read an address without a prefix length; ValueError says what was expected."""
    try:
        if "%" in text:
            raise ValueError
        found = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError("expected an address like 10.1.0.1 or fd00::1") from None
    return (found.ipv4_mapped or found) if found.version == 6 else found


def _parse_subnet(text: str) -> Subnet:
    try:
        found = parse_cidr(text)
    except ValueError:
        raise ValueError("expected a subnet like 10.1.0.0/16 or fd00::/64") from None
    if found.ip != found.network.network_address:
        raise ValueError(f"host bits are set: expected a subnet like {found.network}")
    return found.network


def _address_hook(kind: type, value: Any) -> Any:
    """Read the text of one of the types above; msgspec adds the key's path to an error."""
    if not isinstance(value, str):
        raise TypeError("expected the text of an address")
    return _PARSERS[kind](value)


_PARSERS: dict[Any, Callable[[str], Any]] = {Address: parse_address, Cidr: parse_cidr, Subnet: _parse_subnet}


# --- as Go's encoding/json reads -----------------------------------------------------------------------------------------


def _normalized(value: Any, kind: Any) -> Any:
    """*value* with only the keys that *kind* has, spelled as in *kind*, and without nulls."""
    kind = _bare(kind)
    origin = getattr(kind, "__origin__", None)
    if isinstance(value, dict):
        if isinstance(kind, type) and issubclass(kind, Struct):
            return _normalized_object(value, _keys_of(kind))
        if origin is dict:
            return {key: _normalized(item, kind.__args__[1]) for key, item in value.items()}
    elif isinstance(value, list):
        if origin in (tuple, list, frozenset, set):
            return [_normalized(item, kind.__args__[0]) for item in value]
    elif type(value) is int and not -_INT64 <= value < _INT64:
        return float(value)  # refused where a whole number is expected
    return value


def _normalized_object(value: dict[str, Any], known: dict[str, tuple[str, Any]]) -> dict[str, Any]:
    normalized = {}
    for key, item in value.items():
        name, kind = known.get(key.lower(), ("", None))
        if name and item is not None and not (item == "" and _bare(kind) is Address):
            normalized[name] = _normalized(item, kind)
    return normalized


@cache
def _keys_of(kind: type[Struct]) -> dict[str, tuple[str, Any]]:
    """For each key in small letters: its spelling, and the type of its value."""
    return {field.encode_name.lower(): (field.encode_name, field.type) for field in msgspec.structs.fields(kind)}


def _bare(kind: Any) -> Any:
    """*kind* without bounds (Annotated) and without None."""
    if hasattr(kind, "__metadata__"):
        return _bare(kind.__origin__)
    arguments = getattr(kind, "__args__", ())
    if NoneType in arguments:
        return _bare(next(argument for argument in arguments if argument is not NoneType))
    return kind


# --- errors of values that do not fit ------------------------------------------------------------------------------------

_PLACE = re.compile(r" - at `(?:key in )?\$(.*)`$")
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]|(\[\.\.\.\])")
_WRONG_TYPE = re.compile(r"Expected `([^`]+)`, got `[^`]+`$")
_REQUIRED = re.compile(r"Object missing required field `([^`]+)`$")


def _refusal(error: msgspec.ValidationError, document: Any, kind: Any, what: str) -> CniError:
    text = str(error)
    place = _PLACE.search(text)
    path = place[1] if place else ""
    reason = text[: place.start()] if place else text
    value, found_kind, known = _walk(document, kind, path)
    code = Code.INVALID_CONFIG
    if wrong_type := _WRONG_TYPE.match(reason):
        code = Code.DECODING_FAILURE
        expected = [_WORDS.get(word, word) for word in wrong_type[1].split(" | ") if word != "null"]
        reason = f"expected {' or '.join(expected)}"
    elif required := _REQUIRED.match(reason):
        path += f".{required[1]}"
        reason, known = "this key is required", False
    elif reason.startswith("Invalid enum value"):
        reason = f"expected one of {', '.join(str(choice) for choice in _choices(found_kind))}"
    elif isinstance(error.__cause__, TypeError):
        code = Code.DECODING_FAILURE
    got = f", got {_shown(value)}" if known else ""
    where = f": {path[1:]}" if path.startswith(".") else path
    return CniError(code, f"{what}{where}: {reason[0].lower()}{reason[1:]}{got}")


def _walk(document: Any, kind: Any, path: str) -> tuple[Any, Any, bool]:
    """The value at *path* and its type; False when the path does not tell which value it was."""
    for step in _STEP.finditer(path):
        kind = _bare(kind)
        key, index, unknown = step.groups()
        if unknown:
            return None, None, False
        if key is not None:
            document, kind = document[key], _keys_of(kind)[key.lower()][1]
        else:
            document, kind = document[int(index)], kind.__args__[0]
    return document, _bare(kind), True


def _choices(kind: Any) -> tuple[Any, ...]:
    """The values of a Literal or an enumeration."""
    return tuple(getattr(kind, "__args__", None) or kind)


def _shown(value: Any) -> str:
    import json  # costs a millisecond of every start, and knows numbers of any size

    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
