"""Driver options: from the strings that a user types to the typed struct that the driver declares."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from netlib import structs
from netlib.errors import ConfigError, UnknownOption

_S = TypeVar("_S", bound=msgspec.Struct)


def decoded_options(kind: type[_S], options: Mapping[str, str], subject: str) -> _S:
    """Read *options* into *kind*, whose field names are the option keys.

    Raises UnknownOption (listing the keys there are) or ConfigError naming the key, its value and what it should be.
    """
    return _decoded(kind, tuple(sorted(options.items())), subject)  # type: ignore[return-value]  # the cache forgets the kind


@lru_cache(maxsize=256)  # a connect asks for its network's options four times
def _decoded(kind: type[msgspec.Struct], items: tuple[tuple[str, str], ...], subject: str) -> msgspec.Struct:
    options = dict(items)
    fields = {item.encode_name: item for item in msgspec.structs.fields(kind)}
    for key in options:
        if key not in fields:
            known = ", ".join(sorted(fields)) or "none at all"
            raise UnknownOption(f"{subject}: unknown option {key!r}; there are: {known}", option=key, known=sorted(fields))
    try:
        return structs.convert(options, kind, strict=False)
    except msgspec.ValidationError as error:
        key = next((key for key, value in items if not _fits(value, fields[key].type)), "")
        wanted = getattr(fields[key].type, "__name__", "value") if key else "value"
        words = {"bool": "true or false", "int": "a whole number"}.get(wanted, f"a {wanted}")
        raise ConfigError(f"{subject}: option {key}={options.get(key, '')!r} must be {words}") from error


def _fits(value: str, kind: Any) -> bool:
    try:
        structs.convert(value, kind, strict=False)
    except msgspec.ValidationError:
        return False
    return True
