"""Every verb by name, JSON in and JSON out: what netlibd answers and what the command line does in its own process.

Its one rule: arguments are the texts that people type, checked here or below, and answers are Docker's JSON. The verbs of
containers are :mod:`netlib.runtime.service`'s, and loaded when the first of them is asked for.
"""

import os
import platform
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from netlib import __version__, cni
from netlib.client import condition
from netlib.controller import Controller
from netlib.errors import ConfigError, Conflict, NotFound
from netlib.inspect import Member, journal_row, network_details, network_row
from netlib.model import Network, Sandbox
from netlib.names import parse_labels, parse_link, parse_options
from netlib.store.backup import copy_store

Verb = Callable[..., Any]


def perform(controller: Controller, verb: str, args: Mapping[str, Any]) -> Any:
    """Do *verb* with *args* and answer with what JSON can hold; raises ConfigError for a verb that does not exist."""
    function = _VERBS.get(verb)
    if function is None and verb.startswith("container."):
        from netlib.runtime.verbs import VERBS

        function = VERBS.get(verb)
    if function is None:
        function = cni.VERBS.get(verb)
    if function is None:
        raise ConfigError(f"unknown verb {verb!r}; is the other side of the connection a newer netlib?")
    return function(controller, **args)


# --- networks ----------------------------------------------------------------------------------------------------------


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


# --- telling -----------------------------------------------------------------------------------------------------------


def explain(controller: Controller, *, name: str) -> list[dict[str, Any]]:
    """The objects of a network or a container, each with the commands that amount to it."""
    record = _in_kernel(controller, name)
    plan = controller.plan_of(record) if record else cni.plan(controller, name)
    return [{"Object": str(item.key), "Commands": list(item.commands())} for item in plan]


def check(controller: Controller, *, name: str) -> list[dict[str, str]]:
    """How the kernel differs from what was written down for a network or a container; empty when it does not."""
    record = _in_kernel(controller, name)
    found = controller.check(record) if record else cni.drift(controller, name)
    return [{"Object": key, "Drift": difference} for key, difference in found]


def _in_kernel(controller: Controller, name: str) -> str:
    """The network or the sandbox that *name* stands for: a container's own, or that of the one whose network it shares.

    Whole names and ids come before beginnings of ids. Empty where only CNI may know it.
    """
    from netlib.runtime.service import find_container
    from netlib.runtime.spec import Container

    found: list[Network | Sandbox | Container] = []
    for find in (controller.network, controller.sandbox, partial(find_container, controller)):
        with suppress(NotFound):
            found.append(find(name))
    whole = [record for record in found if name in (record.name, record.id)]
    if not found or (not whole and name in cni.names(controller)):
        return ""
    record = (whole or found)[0]
    if not isinstance(record, Container):
        return record.id
    if record.spec.netns_of:
        return _in_kernel(controller, record.spec.netns_of)
    raise Conflict(f"container {record.name!r} is not running, so there is nothing of it in the kernel; start it first")


def log(controller: Controller, *, limit: int = 50) -> list[dict[str, Any]]:
    """The last operations, oldest first."""
    if limit < 1:
        raise ConfigError(f"-n {limit} asks for no operation at all; give a number from 1 on")
    return [journal_row(entry) for entry in controller.journal(limit)]


# --- the system --------------------------------------------------------------------------------------------------------


def system_reset(controller: Controller) -> None:
    """Remove all that is ours: containers first, then everything else, and put changed sysctls back."""
    from netlib.runtime.verbs import remove_all

    remove_all(controller)
    controller.reset()


def system_backup(controller: Controller, *, file: str, replace: bool = False) -> None:
    """Copy the store into *file*, a whole path, as it is at one moment; other verbs go on meanwhile."""
    copy_store(controller.store.path, Path(file), replace=replace)


def system_info(controller: Controller) -> dict[str, Any]:
    """What there is, and where."""
    return {
        "Version": __version__,
        "Networks": len(controller.networks()),
        "Sandboxes": len(controller.sandboxes()),
        "Endpoints": len(controller.endpoints()),
        "StateDir": str(controller.config.state_dir),
        "RunDir": str(controller.config.run_dir),
        "FirewallBackend": "nftables",
        "KernelVersion": platform.release(),
        "Architecture": platform.machine(),
        "ServedBy": os.getpid(),
        "Netlibd": condition(controller.config),
    }


def version(_: Controller) -> dict[str, str]:
    """The version of the netlib that answers."""
    return {"Version": __version__, "Python": platform.python_version(), "KernelVersion": platform.release()}


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
