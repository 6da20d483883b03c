"""The verbs of networks."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from netlib.core.controller import Controller
from netlib.core.networks import create_network
from netlib.errors import ConfigError, NotFound
from netlib.model import Network
from netlib.requests import ConnectRequest, DisconnectRequest, FilterRequest, NameRequest, NamesRequest, NetworkRequest
from netlib.verbs import cni
from netlib.verbs.inspect import Member, network_details, network_row
from netlib.verbs.verb import Verb

__all__ = ["VERBS", "select_networks"]


def network_create(controller: Controller, request: NetworkRequest) -> dict[str, str]:
    """Create a network and return its id."""
    return {"Id": create_network(controller, request).id}


def network_ls(controller: Controller, request: FilterRequest) -> list[dict[str, str]]:
    """List the networks that pass the filters, sorted by name."""
    controller.tell_of_bridge()
    used = _used(controller) if any(text.startswith("dangling") for text in request.filters) else set()
    of_cni, attached = cni.networks(controller)
    networks = sorted([*controller.networks(), *of_cni], key=lambda network: network.name)
    return [network_row(network) for network in select_networks(networks, request.filters, used | attached)]


def network_inspect(controller: Controller, request: NamesRequest) -> list[dict[str, Any]]:
    """Return each named network with its members.

    Where a network of netlib and a CNI network have the same name, NAME is netlib's and ``cni:NAME`` is CNI's.
    """
    sandboxes = {sandbox.id: sandbox for sandbox in controller.sandboxes()}
    found = []
    for name in request.names:
        try:
            network = _network(controller, name)
        except NotFound:
            found.append(cni.inspect_network(controller, name))
            continue
        controller.tell_of_bridge(network)
        endpoints = controller.endpoints(network=network.id)
        members: list[Member] = [(item, sandboxes[item.sandbox]) for item in endpoints if item.sandbox in sandboxes]
        found.append(network_details(network, members))
    return found


def network_connect(controller: Controller, request: ConnectRequest) -> dict[str, str]:
    """Connect a container to a network and return the endpoint's id.

    For a container that does not run the id is empty: its next start makes the endpoint.
    """
    from netlib.runtime.membership import connect_container

    endpoint = connect_container(controller, request.container, request.join)
    return {"EndpointID": endpoint.id if endpoint else ""}


def network_disconnect(controller: Controller, request: DisconnectRequest) -> None:
    """Disconnect a container from a network."""
    from netlib.runtime.membership import disconnect_container

    disconnect_container(controller, request.container, request.network)


def network_rm(controller: Controller, request: NameRequest) -> None:
    """Remove a network without endpoints, or a CNI network without attachments."""
    name = request.name
    try:
        if name in cni.network_names(controller):
            name = _network(controller, name).id
        controller.remove_network(name)
    except NotFound:
        cni.remove_network(controller, name)


def _network(controller: Controller, name: str) -> Network:
    """Return the network of that name or id that is not CNI's; NotFound where there is none.

    The whole name of a CNI network is preferred to the beginning of another network's id, and is NotFound here.
    """
    network = controller.network(name)
    if name not in (network.name, network.id) and name in cni.network_names(controller):
        raise NotFound(f"network {name!r} is a CNI network")
    return network


def network_prune(controller: Controller, request: FilterRequest) -> dict[str, list[str]]:
    """Remove the networks without endpoints, except the predefined ones, and return their names."""
    used = _used(controller)
    removed = []
    for network in select_networks(controller.networks(), request.filters, used, known=_PRUNE_FILTERS):
        if not network.predefined and network.id not in used:
            controller.remove_network(network.id)
            removed.append(network.name)
    return {"NetworksDeleted": removed}


# --- filters -----------------------------------------------------------------------------------------------------------

_LS_FILTERS = frozenset({"driver", "id", "label", "name", "scope", "type", "dangling"})
_PRUNE_FILTERS = frozenset({"label", "label!"})
_TRUTH = {"true": True, "1": True, "false": False, "0": False}


def select_networks(
    networks: Iterable[Network], filters: Sequence[str], used: Collection[str], *, known: Collection[str] = _LS_FILTERS
) -> list[Network]:
    """Return the networks that pass ``KEY=VALUE`` *filters*; *used* holds the ids of the networks with members.

    A network passes if it has any of the values given for one key; of labels it must have all. Raises ConfigError for a key
    that is not *known* and for a value that the key does not take.
    """
    wanted = _filters(filters, known)
    return [network for network in networks if _passes(network, wanted, used)]


def _filters(texts: Sequence[str], known: Collection[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if key not in known or not equals:
            raise ConfigError(f"filter {text!r} is not understood; write KEY=VALUE, the key one of {', '.join(sorted(known))}")
        found.setdefault(key, []).append(value.lower() if key == "dangling" else value)
    for key, values in (("type", ("custom", "builtin")), ("dangling", tuple(_TRUTH))):
        for value in found.get(key, []):
            if value not in values:
                raise ConfigError(f"filter '{key}={value}' is not understood; it is {' or '.join(values)}")
    return found


def _passes(network: Network, wanted: Mapping[str, Sequence[str]], used: Collection[str]) -> bool:
    tests: dict[str, Callable[[str], bool]] = {
        "driver": lambda value: network.driver == value,
        "id": lambda value: network.id.startswith(value),
        "name": lambda value: value in network.name,
        "scope": lambda value: network.scope.value == value,
        "type": lambda value: network.predefined == (value == "builtin"),
        "dangling": lambda value: (network.id not in used and not network.predefined) == _TRUTH[value],
    }
    return (
        all(_has_label(network, value) for value in wanted.get("label", ()))
        and not any(_has_label(network, value) for value in wanted.get("label!", ()))
        and all(any(tests[key](value) for value in values) for key, values in wanted.items() if key in tests)
    )


def _has_label(network: Network, text: str) -> bool:
    key, equals, value = text.partition("=")
    return key in network.labels and (not equals or network.labels[key] == value)


def _used(controller: Controller) -> set[str]:
    return {endpoint.network for endpoint in controller.endpoints()}


VERBS = {
    "network.create": Verb(NetworkRequest, network_create),
    "network.ls": Verb(FilterRequest, network_ls),
    "network.inspect": Verb(NamesRequest, network_inspect),
    "network.connect": Verb(ConnectRequest, network_connect),
    "network.disconnect": Verb(DisconnectRequest, network_disconnect),
    "network.rm": Verb(NameRequest, network_rm),
    "network.prune": Verb(FilterRequest, network_prune),
}
