"""A verb: the type of its request, and the function that performs it."""

from collections.abc import Callable
from typing import Any, NamedTuple

from msgspec import Struct

__all__ = ["Verb"]


class Verb(NamedTuple):
    """One verb: *perform* takes a Controller and a *request*, and returns a value that JSON can hold."""

    request: type[Struct]
    perform: Callable[..., Any]
