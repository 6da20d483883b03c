"""Every verb by name, JSON in and JSON out: what netlibd answers and what the command line does in its own process.

Its one rule: arguments are the texts that people type, checked here or below, and answers are Docker's JSON. The verbs of
containers are loaded when the first of them is asked for.
"""

from collections.abc import Callable, Mapping
from typing import Any

from netlib.core.controller import Controller
from netlib.errors import ConfigError
from netlib.verbs import cni
from netlib.verbs.network import (
    network_connect,
    network_create,
    network_disconnect,
    network_inspect,
    network_ls,
    network_prune,
    network_rm,
)
from netlib.verbs.system import check, explain, log, system_backup, system_info, system_reset, version

__all__ = ["Verb", "perform"]

Verb = Callable[..., Any]


def perform(controller: Controller, verb: str, args: Mapping[str, Any]) -> Any:
    """Do *verb* with *args* and answer with what JSON can hold; raises ConfigError for a verb that does not exist."""
    function = _VERBS.get(verb)
    if function is None and verb.startswith("container."):
        from netlib.verbs.container import VERBS

        function = VERBS.get(verb)
    if function is None:
        function = cni.VERBS.get(verb)
    if function is None:
        raise ConfigError(f"unknown verb {verb!r}; is the other side of the connection a newer netlib?")
    return function(controller, **args)


_VERBS: dict[str, Verb] = {
    "network.create": network_create,
    "network.ls": network_ls,
    "network.inspect": network_inspect,
    "network.connect": network_connect,
    "network.disconnect": network_disconnect,
    "network.rm": network_rm,
    "network.prune": network_prune,
    "explain": explain,
    "check": check,
    "log": log,
    "system.backup": system_backup,
    "system.reset": system_reset,
    "system.info": system_info,
    "version": version,
}
