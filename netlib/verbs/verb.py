"""What a verb is: a struct of what it may be asked, and a function."""

from collections.abc import Callable
from typing import Any, NamedTuple

from msgspec import Struct

__all__ = ["Verb"]


class Verb(NamedTuple):
    """One verb: *perform* takes a Controller and a *request*, and answers with what JSON can hold."""

    request: type[Struct]
    perform: Callable[..., Any]
