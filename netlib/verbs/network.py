"""The verbs of networks."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from netlib.core.controller import Controller
from netlib.errors import ConfigError, NotFound
from netlib.model import Network
from netlib.names import parse_labels, parse_link, parse_options
from netlib.verbs import cni
from netlib.verbs.inspect import Member, network_details, network_row

__all__ = [
    "network_connect",
    "network_create",
    "network_disconnect",
    "network_inspect",
    "network_ls",
    "network_prune",
    "network_rm",
    "select_networks",
]


def network_create(
    controller: Controller,
    *,
    name: str,
    driver: str = "bridge",
    subnets: Sequence[str] = (),
    gateways: Sequence[str] = (),
    ip_ranges: Sequence[str] = (),
    auxiliary: Sequence[str] = (),
    internal: bool = False,
    ipv4: bool = True,
    ipv6: bool = False,
    options: Sequence[str] = (),
    labels: Sequence[str] = (),
    ipam_driver: str = "default",
    ipam_options: Sequence[str] = (),
    scope: str = "local",
) -> dict[str, str]:
    """Create a network; answer with its id."""
    if scope != "local":
        raise ConfigError(f"--scope {scope!r} is not there yet; networks reach as far as this host (local)")
    network = controller.create_network(
        name,
        driver=driver,
        subnets=subnets,
        gateways=gateways,
        ip_ranges=ip_ranges,
        auxiliary=_auxiliary(auxiliary),
        internal=internal,
        ipv4=ipv4,
        ipv6=ipv6,
        options=parse_options(options),
        labels=parse_labels(labels),
        ipam_driver=ipam_driver,
        ipam_options=parse_options(ipam_options),
    )
    return {"Id": network.id}


def network_ls(controller: Controller, *, filters: Sequence[str] = ()) -> list[dict[str, str]]:
    """The networks that pass *filters*, by name."""
    used = _used(controller) if any(text.startswith("dangling") for text in filters) else set()
    of_cni, attached = cni.networks(controller)
    networks = sorted([*controller.networks(), *of_cni], key=lambda network: network.name)
    return [network_row(network) for network in select_networks(networks, filters, used | attached)]


def network_inspect(controller: Controller, *, names: Sequence[str]) -> list[dict[str, Any]]:
    """Every named network with its members; of two with one name it is the CNM's, and ``cni:NAME`` the other."""
    boxes = {box.id: box for box in controller.sandboxes()}
    found = []
    for name in names:
        try:
            network = _network(controller, name)
        except NotFound:
            found.append(cni.inspect_network(controller, name))
            continue
        endpoints = controller.endpoints(network=network.id)
        members: list[Member] = [(endpoint, boxes[endpoint.sandbox]) for endpoint in endpoints if endpoint.sandbox in boxes]
        found.append(network_details(network, members))
    return found


def network_connect(
    controller: Controller,
    *,
    network: str,
    container: str,
    ip: str = "",
    ip6: str = "",
    mac: str = "",
    aliases: Sequence[str] = (),
    links: Sequence[str] = (),
    options: Sequence[str] = (),
    gw_priority: int = 0,
) -> dict[str, str]:
    """Join a container to a network; answer with the endpoint's id, empty when it joins at its next start."""
    from netlib.runtime.membership import connect_container
    from netlib.runtime.spec import NetworkAttachment

    wanted = NetworkAttachment(
        network=network,
        aliases=tuple(aliases),
        ip=ip,
        ip6=ip6,
        mac=mac,
        links=tuple(parse_link(text) for text in links),
        gw_priority=gw_priority,
        options=parse_options(options),
    )
    endpoint = connect_container(controller, container, wanted)
    return {"EndpointID": endpoint.id if endpoint else ""}


def network_disconnect(controller: Controller, *, network: str, container: str) -> None:
    """Take a container out of a network."""
    from netlib.runtime.membership import disconnect_container

    disconnect_container(controller, container, network)


def network_rm(controller: Controller, *, name: str) -> None:
    """Remove a network without endpoints, or a CNI network without attachments."""
    try:
        if name in cni.network_names(controller):
            name = _network(controller, name).id
        controller.remove_network(name)
    except NotFound:
        cni.remove_network(controller, name)


def _network(controller: Controller, name: str) -> Network:
    """The CNM's network; NotFound also where its id merely begins with the name of a CNI network."""
    network = controller.network(name)
    if name not in (network.name, network.id) and name in cni.network_names(controller):
        raise NotFound(f"network {name!r} is CNI's")
    return network


def network_prune(controller: Controller, *, filters: Sequence[str] = ()) -> dict[str, list[str]]:
    """Remove the networks that people made and nobody is in; answer with their names."""
    used = _used(controller)
    removed = []
    for network in select_networks(controller.networks(), filters, used, known=_PRUNE_FILTERS):
        if not network.predefined and network.id not in used:
            controller.remove_network(network.id)
            removed.append(network.name)
    return {"NetworksDeleted": removed}


# --- reading arguments -------------------------------------------------------------------------------------------------


def _auxiliary(texts: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, _, address = text.partition("=")
        if not name or not address:
            raise ConfigError(f"--aux-address {text!r} is malformed; write it like printer=172.28.0.5")
        if name in found:
            raise ConfigError(f"--aux-address {text!r}: the name {name!r} is given twice; choose another")
        found[name] = address
    return found


_LS_FILTERS = frozenset({"driver", "id", "label", "name", "scope", "type", "dangling"})
_PRUNE_FILTERS = frozenset({"label", "label!"})
_TRUTH = {"true": True, "1": True, "false": False, "0": False}


def select_networks(
    networks: Iterable[Network], filters: Sequence[str], used: Collection[str], *, known: Collection[str] = _LS_FILTERS
) -> list[Network]:
    """The networks that pass ``KEY=VALUE`` *filters*; *used* holds the ids of those that somebody is in.

    Values of one key are alternatives, but for labels, which must all be there. Raises ConfigError for a filter that is
    not *known*.
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
