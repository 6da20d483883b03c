"""CNI networks and attachments in Docker's JSON, and the verbs of ``netlib cni``.

One rule: people call one interface of one container an attachment, whatever number of plugins in a chain worked on it. The
store has a record for each plugin; this module puts the records of one chain together.
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
    """One interface of one container in a CNI network, with the record of each plugin, in the order of the chain."""

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
        """The result of the last plugin that returned one, as JSON: it is the chain's, for each extends the former result."""
        return next((part.result for part in reversed(self.parts) if part.result), {})

    @property
    def result(self) -> "Result":
        """The result of the chain, typed."""
        from cni_plugins.protocol import NEWEST  # imported only where something is attached, for `network ls` has to be quick
        from cni_plugins.result import parse_result

        return parse_result(self.answer, NEWEST, "recorded result")

    @property
    def addresses(self) -> list[IPInterface]:
        return [ip.address for ip in self.result.ips]

    @property
    def mac(self) -> str:
        return next((item.mac for item in self.result.interfaces if item.name == self.ifname and item.sandbox), "")


def attached(networks: Sequence[CniNetwork], attachments: Sequence[CniAttachment]) -> list[Attached]:
    """Put the records of each chain together, sorted by network, container and interface."""
    homes = {network.id: network for network in networks}
    chains: dict[tuple[str, str, str], list[CniAttachment]] = {}
    for item in sorted(attachments, key=lambda item: item.created):
        if item.network in homes:
            chains.setdefault((homes[item.network].name, item.container, item.ifname), []).append(item)
    return [Attached(homes[chain[0].network], tuple(chain)) for _, chain in sorted(chains.items())]


def row(item: Attached, *, stale: bool, now: float) -> dict[str, str]:
    """Return one line of ``cni ls``; every value is text."""
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
    """Return the line of ``cni ls`` for a network without attachments."""
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
    """Return the CNI network in the form that ``network ls`` and ``inspect`` show; its subnets are those of its attachments."""
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
    """Return what ``network inspect`` shows of a CNI network.

    Members are listed by container id. A container's second interface in the network is listed as ``ID/IFNAME``.
    """
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
    """Return the CNI networks in the form of other networks, and the ids of those with attachments."""
    attachments = Attachments(controller)
    found = attachments.networks()
    items = attached(found, attachments.attachments())
    shown = [as_network(network, [item for item in items if item.network is network]) for network in found]
    return shown, {item.network.id for item in items}


def network_names(controller: Controller) -> set[str]:
    """Return the names of all CNI networks."""
    return {network.name for network in Attachments(controller).networks()}


def names(controller: Controller) -> set[str]:
    """Return the names of all CNI networks and the ids of the containers that are attached to them."""
    return network_names(controller) | {item.container for item in Attachments(controller).attachments()}


def inspect_network(controller: Controller, reference: str) -> dict[str, Any]:
    """Return what ``network inspect`` shows of the CNI network *reference*; NotFound when there is no such network."""
    attachments = Attachments(controller)
    network = attachments.network(reference)
    return details(network, attached([network], attachments.attachments(network.name)))


def remove_network(controller: Controller, reference: str) -> None:
    """Remove a CNI network. Raises NotFound, and InUse when it has attachments."""
    Attachments(controller).remove_network(reference)


def plan(controller: Controller, reference: str) -> Plan:
    """Return the kernel objects of a CNI network, or of a container's attachments; NotFound when *reference* names neither."""
    attachments = Attachments(controller)
    records, _ = _records(controller, reference)
    unique = {item.key: item for record in records for item in attachments.plan_of(record)}
    return Plan(*unique.values())


def drift(controller: Controller, reference: str) -> list[tuple[str, str]]:
    """Return how the kernel differs from :func:`plan`, as pairs of an object's key and the difference.

    A container's attachments are also compared with the objects that their networks share. Raises NotFound as :func:`plan`.
    """
    records, items = _records(controller, reference)
    if items:
        return list(dict.fromkeys(found for item in items for found in _drift(controller, item)))
    return Attachments(controller).drift_of(records)


_UNKNOWN = "there is no container or network {}; `netlib ps -a`, `cni ls` and `network ls` list them"
_UNATTACHED = "no CNI plugin has attached a container {}; `netlib cni ls` lists the containers that are attached"


def _records(controller: Controller, reference: str) -> tuple[list[str], list[Attached]]:
    """Return the record ids that *reference* stands for, and their attachments, which are empty for a network.

    A whole name or id is preferred to the beginning of an id.
    """
    attachments = Attachments(controller)
    with suppress(NotFound):
        network = attachments.network(reference)
        is_whole = reference.removeprefix(PREFIX) in (network.name, network.id)
        if is_whole or all(item.container != reference for item in attachments.attachments()):
            return [network.id], []
    items = _of_container(controller, reference)
    return [part.id for item in items for part in item.parts], items


def _of_container(controller: Controller, reference: str, unknown: str = _UNKNOWN) -> list[Attached]:
    """Return the attachments of the container whose id is *reference* or begins with it; NotFound for none or for several."""
    attachments = Attachments(controller)
    items = attached(attachments.networks(), attachments.attachments())
    containers = {item.container for item in items if reference and item.container.startswith(reference)}
    if reference in containers:
        containers = {reference}
    if len(containers) > 1:
        raise NotFound(f"{len(containers)} attached containers have ids that begin with {reference!r}; give more of the id")
    if not containers:
        raise NotFound(unknown.format(repr(reference)), kind="container", reference=reference)
    return [item for item in items if item.container in containers]


def _drift(controller: Controller, item: Attached) -> list[tuple[str, str]]:
    attachments = Attachments(controller)
    netns = item.parts[0].netns
    if not is_alive(netns):
        return [(f"netns/{netns.path}", "gone")]
    return list(dict.fromkeys(found for part in item.parts for found in attachments.drift(part)))


# --- verbs -------------------------------------------------------------------------------------------------------------


def cni_ls(controller: Controller, _: NoRequest) -> list[dict[str, str]]:
    """List the attachments, and the networks without attachments."""
    attachments = Attachments(controller)
    found, now = attachments.networks(), time.time()
    items = attached(found, attachments.attachments())
    used = {item.network.id for item in items}
    return [
        *(row(item, stale=not is_alive(item.parts[0].netns), now=now) for item in items),
        *(unused_row(network, now) for network in found if network.id not in used),
    ]


def cni_inspect(controller: Controller, request: NameRequest) -> list[dict[str, Any]]:
    """Return what the store and the kernel say of a container's attachments."""
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
        for item in _of_container(controller, request.name, _UNATTACHED)
    ]


def _keys(objects: Plan) -> list[str]:
    return [str(item.key) for item in objects]


def cni_prune(controller: Controller, request: CniPruneRequest) -> dict[str, list[str]]:
    """Remove the networks without attachments. With *stale*, first remove the attachments whose netns is gone."""
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
