"""Performing a verb by its name, with JSON arguments and a JSON result, in netlibd or in the command's own process.

One rule: arguments are decoded into the verb's request struct once, here (:func:`netlib.requests.read`); results are Docker's
JSON. The module of a noun is imported when the first verb of the noun is called.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from netlib.core.controller import Controller
from netlib.errors import ConfigError
from netlib.requests import read
from netlib.verbs.verb import Verb

__all__ = ["find_verb", "perform"]

_NOUNS = {"network", "container", "sandbox", "cni"}


def perform(controller: Controller, verb: str, args: Mapping[str, Any], *, fds: Sequence[int] = ()) -> Any:
    """Perform *verb* with *args* and the lent descriptors *fds*, and return its result; ConfigError for an unknown verb."""
    known = find_verb(verb)
    request = read(known.request, {**args, "fds": tuple(fds)} if fds else args)
    controller.follow_settings()
    result = known.perform(controller, request)
    controller.tell_fault()
    return result


def find_verb(name: str) -> Verb:
    """Return the verb called *name* (``network.create``); ConfigError where there is none."""
    noun = name.partition(".")[0]
    verbs: dict[str, Verb] = import_module(f"netlib.verbs.{noun if noun in _NOUNS else 'system'}").VERBS
    if name not in verbs:
        raise ConfigError(f"unknown verb {name!r}; is the other side of the connection a newer netlib?")
    return verbs[name]
