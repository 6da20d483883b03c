"""The verb of sandboxes. A container has one, and Python programs make them by :meth:`Controller.create_sandbox`."""

from typing import Any

from netlib.core.controller import Controller
from netlib.requests import NamesRequest
from netlib.verbs.inspect import sandbox_details
from netlib.verbs.verb import Verb

__all__ = ["VERBS"]


def sandbox_inspect(controller: Controller, request: NamesRequest) -> list[dict[str, Any]]:
    """Return each named sandbox with its endpoints."""
    networks = {network.id: network for network in controller.networks()}
    found = []
    for name in request.names:
        sandbox = controller.sandbox(name)
        endpoints = [item for item in controller.endpoints(sandbox=sandbox.id) if item.network in networks]
        found.append(sandbox_details(sandbox, endpoints, networks))
    return found


VERBS = {"sandbox.inspect": Verb(NamesRequest, sandbox_inspect)}
