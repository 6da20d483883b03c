"""CNI networks and attachments in Docker's JSON, and the verbs of ``netlib cni``.

One rule: what people call an attachment is all that a chain of plugins did for one interface of one container; here it is
one thing, with a part for each plugin.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from netlib.core.attachments import PREFIX, Attachments
from netlib.core.controller import Controller
from netlib.errors import NotFound
from netlib.kernel.netns import is_alive
from netlib.model import AddressPool, CniAttachment, CniNetwork, IPAddress, IPInterface, IPNetwork, Network
from netlib.plan import Plan
from netlib.requests import CniPruneRequest, NameRequest, NoRequest
from netlib.verbs.inspect import duration, network_details, timestamp
from netlib.verbs.verb import Verb

if TYPE_CHECKING:
    from cni_plugins.result import Result

__all__ = [
    "VERBS",
    "Attached",
    "as_network",
    "attached",
    "drift",
    "inspect_network",
    "networks",
    "plan",
    "remove_network",
    "row",
]

DRIVER = "cni"


class Attached(NamedTuple):
    """One interface of one container in a CNI network, with what each plugin recorded, in the order of the chain."""

    network: CniNetwork
    parts: tuple[CniAttachment, ...]

    @property
    def container(self) -> str:
        return self.parts[0].container

    @property
    def ifname(self) -> str:
        return self.parts[0].ifname

    @property
    def answer(self) -> Mapping[str, Any]:
        """The answer of the last plugin that answered, as JSON: each plugin passes on what those before it made."""
        return next((part.result for part in reversed(self.parts) if part.result), {})

    @property
    def result(self) -> "Result":
        """That answer, typed."""
        from cni_plugins.protocol import NEWEST  # only where something is attached: `network ls` is to be quick
        from cni_plugins.result import parse_result

        return parse_result(self.answer, NEWEST, "recorded result")

    @property
    def addresses(self) -> list[IPInterface]:
        return [ip.address for ip in self.result.ips]

    @property
    def mac(self) -> str:
        return next((item.mac for item in self.result.interfaces if item.name == self.ifname and item.sandbox), "")


def attached(networks: Sequence[CniNetwork], attachments: Sequence[CniAttachment]) -> list[Attached]:
    """Put the plugins of each chain together; by network, container and interface."""
    homes = {network.id: network for network in networks}
    chains: dict[tuple[str, str, str], list[CniAttachment]] = {}
    for item in sorted(attachments, key=lambda item: item.created):
        if item.network in homes:
            chains.setdefault((homes[item.network].name, item.container, item.ifname), []).append(item)
    return [Attached(homes[chain[0].network], tuple(chain)) for _, chain in sorted(chains.items())]


def row(item: Attached, *, stale: bool, now: float) -> dict[str, str]:
    """One line of ``cni ls``; every value is text."""
    first = item.parts[0]
    return {
        "Addresses": ",".join(map(str, item.addresses)),
        "Container": item.container,
        "CreatedAt": timestamp(first.created),
        "Interface": item.ifname,
        "MacAddress": item.mac,
        "Netns": first.netns.path,
        "Network": item.network.name,
        "NetworkID": item.network.id,
        "Plugins": ",".join(part.plugin for part in item.parts),
        "RunningFor": f"{duration(now - first.created)} ago",
        "Status": "stale" if stale else "attached",
    }


def unused_row(network: CniNetwork, now: float) -> dict[str, str]:
    """The line of a network that nobody is attached to."""
    empty = dict.fromkeys(("Addresses", "Container", "Interface", "MacAddress", "Netns", "Plugins"), "")
    return {
        **empty,
        "CreatedAt": timestamp(network.created),
        "Network": network.name,
        "NetworkID": network.id,
        "RunningFor": f"{duration(now - network.created)} ago",
        "Status": "unused",
    }


def as_network(network: CniNetwork, items: Sequence[Attached]) -> Network:
    """The network as ``network ls`` and ``inspect`` show one; its subnets are those of what is attached."""
    gateways: dict[IPNetwork, IPAddress | None] = {}
    for item in items:
        for ip in item.result.ips:
            gateways[ip.address.network] = gateways.get(ip.address.network) or ip.gateway
    return Network(
        id=network.id,
        name=network.name,
        driver=DRIVER,
        created=network.created,
        pools=tuple(AddressPool(subnet=subnet, gateway=gateway) for subnet, gateway in gateways.items()),
        ipv4=any(subnet.version == 4 for subnet in gateways),
        ipv6=any(subnet.version == 6 for subnet in gateways),
        ipam_driver=DRIVER,
    )


def details(network: CniNetwork, items: Sequence[Attached]) -> dict[str, Any]:
    """What ``network inspect`` shows of it. A container's second interface here has its name after the container's id."""
    members: dict[str, dict[str, str]] = {}
    for item in items:
        key = item.container if item.container not in members else f"{item.container}/{item.ifname}"
        members[key] = {
            "Name": item.container,
            "EndpointID": item.parts[0].id,
            "MacAddress": item.mac,
            "IPv4Address": next((str(address) for address in item.addresses if address.version == 4), ""),
            "IPv6Address": next((str(address) for address in item.addresses if address.version == 6), ""),
        }
    return {**network_details(as_network(network, items), ()), "Containers": members}


# --- of one store ------------------------------------------------------------------------------------------------------


def networks(controller: Controller) -> tuple[list[Network], set[str]]:
    """The CNI networks as others are shown, and the ids of those that somebody is attached to."""
    attachments = Attachments(controller)
    found = attachments.networks()
    items = attached(found, attachments.attachments())
    shown = [as_network(network, [item for item in items if item.network is network]) for network in found]
    return shown, {item.network.id for item in items}


def network_names(controller: Controller) -> set[str]:
    """The names of all CNI networks."""
    return {network.name for network in Attachments(controller).networks()}


def names(controller: Controller) -> set[str]:
    """The names of all CNI networks, and the ids of the containers that are attached to any."""
    return network_names(controller) | {item.container for item in Attachments(controller).attachments()}


def inspect_network(controller: Controller, reference: str) -> dict[str, Any]:
    """One CNI network with what is attached to it; NotFound when there is none."""
    attachments = Attachments(controller)
    network = attachments.network(reference)
    return details(network, attached([network], attachments.attachments(network.name)))


def remove_network(controller: Controller, reference: str) -> None:
    """Remove a CNI network without attachments; NotFound, InUse."""
    Attachments(controller).remove_network(reference)


def plan(controller: Controller, reference: str) -> Plan:
    """The objects of a CNI network, or of what is attached of a container; NotFound when it is neither."""
    attachments = Attachments(controller)
    records, _ = _records(controller, reference)
    unique = {item.key: item for record in records for item in attachments.plan_of(record)}
    return Plan(*unique.values())


def drift(controller: Controller, reference: str) -> list[tuple[str, str]]:
    """How the kernel differs from :func:`plan`, and a container's also from what its networks share; NotFound as there."""
    records, items = _records(controller, reference)
    if items:
        return list(dict.fromkeys(found for item in items for found in _drift(controller, item)))
    return Attachments(controller).drift_of(records)


def _records(controller: Controller, reference: str) -> tuple[list[str], list[Attached]]:
    """The ids of records behind a reference, and the attachments that they are, none for a network.

    Whole names and ids come before beginnings of ids.
    """
    attachments = Attachments(controller)
    with suppress(NotFound):
        network = attachments.network(reference)
        is_whole = reference.removeprefix(PREFIX) in (network.name, network.id)
        if is_whole or all(item.container != reference for item in attachments.attachments()):
            return [network.id], []
    items = _of_container(controller, reference)
    return [part.id for item in items for part in item.parts], items


def _of_container(controller: Controller, reference: str) -> list[Attached]:
    """The attachments of the container with that id, or unambiguous beginning of an id."""
    attachments = Attachments(controller)
    items = attached(attachments.networks(), attachments.attachments())
    containers = {item.container for item in items if reference and item.container.startswith(reference)}
    if reference in containers:
        containers = {reference}
    if len(containers) > 1:
        raise NotFound(f"{len(containers)} attached containers have ids that begin with {reference!r}; give more of the id")
    if not containers:
        raise NotFound(f"there is no container or network {reference!r}; `netlib ps -a`, `cni ls` and `network ls` list them")
    return [item for item in items if item.container in containers]


def _drift(controller: Controller, item: Attached) -> list[tuple[str, str]]:
    attachments = Attachments(controller)
    netns = item.parts[0].netns
    if not is_alive(netns):
        return [(f"netns/{netns.path}", "gone")]
    return list(dict.fromkeys(found for part in item.parts for found in attachments.drift(part)))


# --- verbs -------------------------------------------------------------------------------------------------------------


def cni_ls(controller: Controller, _: NoRequest) -> list[dict[str, str]]:
    """What is attached, and networks that nothing is attached to."""
    attachments = Attachments(controller)
    found, now = attachments.networks(), time.time()
    items = attached(found, attachments.attachments())
    used = {item.network.id for item in items}
    return [
        *(row(item, stale=not is_alive(item.parts[0].netns), now=now) for item in items),
        *(unused_row(network, now) for network in found if network.id not in used),
    ]


def cni_inspect(controller: Controller, request: NameRequest) -> list[dict[str, Any]]:
    """Everything that is known of a container's attachments."""
    attachments = Attachments(controller)
    return [
        {
            "Container": item.container,
            "Network": item.network.name,
            "NetworkID": item.network.id,
            "Interface": item.ifname,
            "Netns": item.parts[0].netns.path,
            "Created": timestamp(item.parts[0].created),
            "Status": "attached" if is_alive(item.parts[0].netns) else "stale",
            "Plugins": [
                {"Type": part.plugin, "ID": part.id, "Objects": _keys(attachments.plan_of(part.id))} for part in item.parts
            ],
            "Shared": _keys(attachments.plan_of(item.network.id)),
            "Result": item.answer,
            "Drift": [{"Object": key, "Drift": difference} for key, difference in _drift(controller, item)],
        }
        for item in _of_container(controller, request.name)
    ]


def _keys(objects: Plan) -> list[str]:
    return [str(item.key) for item in objects]


def cni_prune(controller: Controller, request: CniPruneRequest) -> dict[str, list[str]]:
    """Remove networks that nothing is attached to; where asked for, first the attachments whose netns is gone."""
    attachments = Attachments(controller)
    reclaimed = attachments.networks() if request.stale else []
    gone = [item for network in reclaimed for item in attachments.reclaim(network.name)]
    names = {network.id: network.name for network in attachments.networks()}
    chains = dict.fromkeys(f"{item.container} {item.ifname} {names.get(item.network, item.network)}" for item in gone)
    return {"AttachmentsDeleted": list(chains), "NetworksDeleted": [network.name for network in attachments.prune()]}


VERBS = {
    "cni.ls": Verb(NoRequest, cni_ls),
    "cni.inspect": Verb(NameRequest, cni_inspect),
    "cni.prune": Verb(CniPruneRequest, cni_prune),
}
