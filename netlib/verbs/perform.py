"""Every verb by name, JSON in and JSON out: what netlibd answers and what the command line does in its own process.

Its one rule: what comes is read into the verb's request once, here (:func:`netlib.requests.read`); answers are Docker's JSON.
The verbs of one noun are loaded when the first of them is asked for.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from netlib.core.controller import Controller
from netlib.errors import ConfigError
from netlib.requests import read
from netlib.verbs.verb import Verb

__all__ = ["find_verb", "perform"]

_NOUNS = {"network", "container", "cni"}


def perform(controller: Controller, verb: str, args: Mapping[str, Any], *, fds: Sequence[int] = ()) -> Any:
    """Do *verb* with *args* and lent descriptors; answer with what JSON can hold. ConfigError where there is no such verb."""
    known = find_verb(verb)
    request = read(known.request, {**args, "fds": tuple(fds)} if fds else args)
    return known.perform(controller, request)


def find_verb(name: str) -> Verb:
    """The verb called *name* (``network.create``); ConfigError where there is none."""
    noun = name.partition(".")[0]
    verbs: dict[str, Verb] = import_module(f"netlib.verbs.{noun if noun in _NOUNS else 'system'}").VERBS
    if name not in verbs:
        raise ConfigError(f"unknown verb {name!r}; is the other side of the connection a newer netlib?")
    return verbs[name]
